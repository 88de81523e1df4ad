"""The strips of a fingerprint: 16 properties of solutions and updates, each measured in one experiment of the suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from optbench.metrics import METRICS, Metric

SUITE = "fingerprint"
"""Name of the shipped suite whose experiments measure the strips."""
TUNED_ON = "permuted"
"""Name of the experiment on which the width of the learning-rate optimum is measured."""

TASKS = {
    "permuted": "three permutations of MNIST",
    "pairs": "pairs of MNIST digits",
    "plasticity": "40 permutations of MNIST",
    "matched": "one task of MNIST",
}
"""The tasks of each experiment."""

Topic = Literal["learning", "solution", "updates"]
TOPICS: dict[Topic, str] = {
    "learning": "Learning and forgetting",
    "solution": "The solution",
    "updates": "Its updates",
}


@dataclass(frozen=True)
class Strip:
    """One property of a solution or of updates.

    name: key of the property in tables and JSON.
    experiment, metric: the experiment in which the property is measured, and the metric that measures it.
    label: name of the property on a page, at most 22 characters.
    more, less: phrases that continue a sentence after "it" if the value is higher or lower than another optimizer's.
    digits: number of decimals with which values are shown.
    """

    name: str
    topic: Topic
    experiment: str
    metric: str
    label: str
    more: str
    less: str
    digits: int = 3

    @property
    def of(self) -> Metric:
        """The metric's entry in the catalog."""
        return METRICS[self.metric]

    @property
    def title(self) -> str:
        """The label, followed by an arrow if one direction is better."""
        return self.label if self.of.direction == "neutral" else f"{self.label} {self.of.arrow}"


STRIPS: tuple[Strip, ...] = (
    Strip(
        "learning_accuracy",
        "learning",
        "permuted",
        "learning_accuracy",
        "learning accuracy",
        "learns tasks better",
        "learns tasks less well",
    ),
    Strip("forgetting", "learning", "permuted", "forgetting", "forgetting", "forgets more", "forgets less"),
    Strip(
        "earlier_pairs_kept",
        "learning",
        "pairs",
        "earlier_tasks_accuracy",
        "earlier pairs kept",
        "keeps more of earlier digit pairs",
        "keeps less of earlier digit pairs",
    ),
    Strip(
        "forward_transfer",
        "learning",
        "permuted",
        "forward_transfer",
        "forward transfer",
        "transfers more to tasks it has not seen",
        "transfers less to tasks it has not seen",
    ),
    Strip(
        "plasticity_kept",
        "learning",
        "plasticity",
        "plasticity_kept",
        "plasticity kept",
        "keeps more of its ability to learn over 40 tasks",
        "keeps less of its ability to learn over 40 tasks",
    ),
    Strip(
        "effective_rank",
        "solution",
        "permuted",
        "effective_rank",
        "effective rank",
        "finds features with a higher effective rank",
        "finds features with a lower effective rank",
        1,
    ),
    Strip(
        "class_cosine",
        "solution",
        "pairs",
        "class_cosine_mean",
        "class cosine",
        "aligns the features of different classes more",
        "aligns the features of different classes less",
    ),
    Strip(
        "dormant_units",
        "solution",
        "plasticity",
        "dormant_0.025",
        "dormant units",
        "leaves more units dormant",
        "leaves fewer units dormant",
    ),
    Strip("hoyer", "solution", "permuted", "hoyer", "Hoyer sparsity", "finds sparser weights", "finds denser weights"),
    Strip(
        "pruned_accuracy",
        "solution",
        "permuted",
        "pruned_accuracy_0.05_global",
        "accuracy, 5% weights",
        "keeps more accuracy with 5% of its weights",
        "keeps less accuracy with 5% of its weights",
    ),
    Strip(
        "quantised_drop",
        "solution",
        "matched",
        "quantised_drop_4",
        "4-bit drop",
        "loses more accuracy to 4-bit weights",
        "loses less accuracy to 4-bit weights",
        4,
    ),
    Strip(
        "sharpness",
        "solution",
        "matched",
        "sam_sharpness",
        "sharpness (SAM)",
        "ends in a sharper minimum",
        "ends in a flatter minimum",
        4,
    ),
    Strip(
        "distance",
        "solution",
        "matched",
        "distance_from_init",
        "distance from start",
        "ends further from its start",
        "ends nearer to its start",
        2,
    ),
    Strip(
        "update_stable_rank",
        "updates",
        "permuted",
        "update_stable_rank",
        "stable rank",
        "makes updates with a higher stable rank",
        "makes updates with a lower stable rank",
        2,
    ),
    Strip(
        "update_cosine_gradient",
        "updates",
        "permuted",
        "update_cosine_gradient",
        "cosine, gradient",
        "makes updates that follow the gradient more closely",
        "makes updates that follow the gradient less closely",
    ),
    Strip(
        "update_cosine_polar",
        "updates",
        "permuted",
        "update_cosine_polar",
        "cosine, polar factor",
        "makes updates that follow the gradient's polar factor more closely",
        "makes updates that follow the gradient's polar factor less closely",
    ),
)

EXPERIMENTS: tuple[str, ...] = tuple(dict.fromkeys(strip.experiment for strip in STRIPS))

"""Task sequences of text: windows agree with a plain reference and are the same for every optimizer of a seed."""

from __future__ import annotations

import pytest
import torch

from optbench.data import Dataset
from optbench.data.windows import Text
from optbench.errors import UsageError
from optbench.kinds import TASKS
from optbench.streams import generator
from optbench.suite.protocol import Protocol
from optbench.suite.schema import TaskSettings
from optbench.tasks import Examples, TaskFamily
from optbench.tasks.permuted_vocabulary import PermutedVocabulary

CPU = torch.device("cpu")
CONTEXT, VOCABULARY = 8, 30
TOKEN_BYTES = torch.tensor([1] * 10 + [2] * 15 + [3] * 5)
KINDS = {
    "fixed": TaskSettings.of("domains", tokens_per_task=400),
    "chosen": TaskSettings.of("domains", order=["gamma", "alpha"], tokens_per_task=400),
    "shuffled": TaskSettings.of("domains", order="shuffled", tokens_per_task=400),
    "permuted": TaskSettings.of("permuted-vocabulary", count=3, domain="beta", tokens_per_task=400),
}


def dataset(token_bytes: torch.Tensor | None = TOKEN_BYTES) -> Dataset:
    """Return three texts of random tokens, each split into three stretches."""
    draws = torch.Generator().manual_seed(0)

    def text() -> Text:
        return Text(*(torch.randint(VOCABULARY, (n,), generator=draws).to(torch.int16) for n in (900, 100, 90)))

    return Dataset.of_texts(
        "toy", {name: text() for name in ("alpha", "beta", "gamma")}, VOCABULARY, CONTEXT, token_bytes
    )


DATA = dataset()
PROTOCOL = Protocol(validation_examples=5)


def family(tasks: TaskSettings, protocol: Protocol = PROTOCOL, suite_seed: int = 0) -> TaskFamily:
    return TaskFamily(tasks, DATA, protocol, suite_seed, CPU)


def whole(examples: Examples) -> list[list[int]]:
    """Return windows (N, T + 1); assert that targets are the next tokens."""
    assert torch.equal(examples.inputs[:, 1:], examples.targets[:, :-1])
    return torch.cat([examples.inputs, examples.targets[:, -1:]], 1).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 3])
def test_examples_equal_the_windows_of_a_plain_reference(kind: str, seed: int) -> None:
    tasks = family(KINDS[kind])
    assert DATA.texts is not None
    for task in range(tasks.count):
        if kind == "permuted":
            domain = DATA.texts["beta"]
            p = tasks._kind.permutation(seed, task).tolist()
        else:
            domain = DATA.texts[tasks._kind.domains(seed)[task]]
            p = list(range(VOCABULARY))
        streams = {part: [p[v] for v in getattr(domain, part).tolist()] for part in ("train", "validation", "test")}
        places = torch.randint(900 - CONTEXT, (50,), generator=generator(0, seed, f"windows of task {task}")).tolist()
        sequence = tasks.sequence(seed)
        assert whole(sequence.train(task)) == [streams["train"][i : i + CONTEXT + 1] for i in places]
        held_out = [streams["validation"][i : i + CONTEXT + 1] for i in range(0, 99 - CONTEXT, CONTEXT)]
        assert whole(sequence.validation(task)) == held_out[:5]  # at most `validation_examples`
        held_out = [streams["test"][i : i + CONTEXT + 1] for i in range(0, 90 - CONTEXT, CONTEXT)]
        assert whole(sequence.test(task)) == held_out


@pytest.mark.parametrize("kind", KINDS)
def test_windows_do_not_depend_on_earlier_requests_to_the_family(kind: str) -> None:
    # The windows of a trial must depend only on seeds and task, not on its companions or optimizer.
    one, other = family(KINDS[kind]), family(KINDS[kind])
    for seed, task in ((7, 1), (2, 0)):
        other.sequence(seed).train(task)
    for task in (1, 0):
        a, b = one.sequence(3).train(task), other.sequence(3).train(task)
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
    assert not torch.equal(one.sequence(3).train(0).inputs, one.sequence(4).train(0).inputs)
    assert not torch.equal(
        one.sequence(3).train(0).inputs, family(KINDS[kind], suite_seed=1).sequence(3).train(0).inputs
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_announced_tasks_and_sizes_equal_the_actual_ones(kind: str) -> None:
    tasks = family(KINDS[kind])
    assert len(tasks.task_names) == tasks.count == (2 if kind == "chosen" else 3)
    assert tasks.outline.ticks == {"fixed": ("alpha", "beta", "gamma"), "chosen": ("gamma", "alpha")}.get(kind, ())
    assert [size for *_, size in tasks.train_sizes([0, 1])] == [50]
    assert len(tasks.sequence(1).train(1)) == 50


def test_held_out_windows_of_a_domain_are_the_same_for_every_seed() -> None:
    tasks = family(KINDS["shuffled"])
    assert tasks._kind.domains(0) != tasks._kind.domains(1)
    for seed in (0, 1):
        assert sorted(tasks._kind.domains(seed)) == ["alpha", "beta", "gamma"]
    places = [tasks._kind.domains(seed).index("beta") for seed in (0, 1)]
    assert tasks.sequence(0).test(places[0]) is tasks.sequence(1).test(places[1])


def test_a_shuffled_vocabulary_permutes_tokens_of_equal_length() -> None:
    kind = family(KINDS["permuted"])._kind
    assert isinstance(kind, PermutedVocabulary)
    found = [kind.permutation(seed, task) for seed in range(4) for task in range(3)]
    for permutation in found:
        assert permutation.sort().values.tolist() == list(range(VOCABULARY))
        assert torch.equal(TOKEN_BYTES[permutation], TOKEN_BYTES)
        assert not torch.equal(permutation, torch.arange(VOCABULARY))
    assert len({tuple(permutation.tolist()) for permutation in found}) == len(found)


def test_byte_tokens_are_permuted_uniformly() -> None:
    data = dataset(token_bytes=None)
    kind = TaskFamily(KINDS["permuted"], data, PROTOCOL, 0, CPU)._kind
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    for seed in range(2000):
        counts[torch.arange(VOCABULARY), kind.permutation(seed, 0)] += 1
    # Each pair occurs about 2000 / 30 times; 900 Poisson counts stay within six standard deviations.
    assert (counts - 2000 / VOCABULARY).abs().max() < 6 * (2000 / VOCABULARY) ** 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "domains", "order": ["alpha", "betta"]},
            "tasks.order.1: unknown domain 'betta'; did you mean 'beta'?",
        ),
        (
            {"kind": "domains", "order": ["alpha", "alpha"]},
            "tasks.order.1: expected each domain once, got 'alpha' again",
        ),
        (
            {"kind": "permuted-vocabulary", "domain": "gama"},
            "tasks.domain: unknown domain 'gama'; did you mean 'gamma'?",
        ),
        (
            {"kind": "domains", "tokens_per_task": 7},
            "tasks.tokens_per_task: expected at least 8, the context of one window, got 7",
        ),
        ({"kind": "permuted"}, "tasks.kind: expected one target for each example, got one for each position"),
    ],
)
def test_tasks_that_do_not_fit_the_texts_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        family(TaskSettings.model_validate(settings))
    assert str(error.value).partition(" (valid: ")[0] == message


def test_a_limit_on_training_examples_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^protocol\.train_examples: expected none for text"):
        family(KINDS["fixed"], Protocol(validation_examples=5, train_examples=10))


@pytest.mark.parametrize("kind", ["domains", "permuted-vocabulary"])
def test_tasks_of_text_are_refused_for_images(kind: str, mnist: Dataset) -> None:
    with pytest.raises(UsageError, match=r"^tasks\.kind: expected a dataset with text domains"):
        TaskFamily(TaskSettings.of(kind), mnist, Protocol(), 0, CPU)
    assert kind in TASKS.names

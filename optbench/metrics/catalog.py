"""The metric catalog, which describes metrics without importing the functions that compute them.

To add a metric, write a function in one of the sibling modules and add an entry to the table `_TABLE` below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import get_args

from optbench.errors import UsageError, unknown
from optbench.metrics.metric import Derived, Kind, Metric, base_name
from optbench.metrics.place import FEATURES

_GEM = "Lopez-Paz & Ranzato 2017"
_ROY = "Roy & Vetterli 2007"
_CKA, _GOLUB = "Kornblith et al. 2019", "Golub & Van Loan 1996"
_RUDELSON = "Rudelson & Vershynin 2007"
_PAPER = "Pascanu et al. 2025, Figure 4"
_KUMAR, _DOHARE = "Kumar et al. 2023", "after Dohare et al. 2024"


_SIZES = ("features_n", "features_d")
"""The metrics that report N and d, which are needed to interpret any metric of features."""
_LOSS = "landscape_loss"

_continual = partial(Metric, margin=0.005, kind="continual", subject="continual", reads=("accuracy",), remarks=True)


def _of(needs: str, *, pairs: bool) -> Callable[..., Metric]:
    return partial(_continual, note_arguments={"over_pairs": pairs, "needs": needs})


_learnt_online = partial(Metric, direction="higher", kind="online", subject="plasticity", default=False)


def _online(of: str, margin: float = 0.01, *, fresh: bool = False) -> Callable[..., Metric]:
    reads = ("accuracy", "fresh") if fresh else ("accuracy",)
    return partial(_learnt_online, margin=margin, reads=reads, note_arguments={"of": of})


_features = partial(Metric, kind="features", alongside=_SIZES)
_rank = partial(_features, subject="rank", reads=("spectrum",), remarks=True, note_arguments={"centred": False})
_centred = partial(_rank, note_arguments={"centred": True})
_correlation = partial(_rank, note_arguments={"centred": True, "correlation": True}, default=False)
_size = partial(_features, source="recorded", margin=0.0, subject="rank", reads=("spectrum",))
_units = partial(_features, subject="sparsity", reads=("activity",), note="activation_note")
_dormant = partial(_units, source="Sokar et al. 2023", called="dormant")
_cosine = partial(_features, kind="similarity", subject="similarity", reads=("class_sums",), remarks=True)
_cosine = partial(_cosine, arguments={"labels": None, "classes": None})  # both are in the sums
_weights = partial(Metric, kind="weights", subject="sparsity", reads=("flat",))
_matrix = partial(_weights, subject="rank", reads=("singular_values",), note="weight_note", remarks=True)
_matrix = partial(_matrix, averaged=True, default=False)
_prediction = partial(Metric, margin=0.005, subject="prediction", default=False)
_of_classes = partial(_prediction, direction="higher", kind="logits", reads=("class_hits",), note="class_note")
_spoilt = partial(_prediction, direction="higher", kind="model", cost="expensive", reads=("corrupted",))
_rounded = partial(_prediction, direction="lower", kind="model", reads=("model", "inputs", "targets", "accuracy"))
_rounded = partial(_rounded, cost="expensive", called="quantised_drop", note="drop_note")
_rounded = partial(_rounded, source="Jacob et al. 2018")
# No margin, here and below: which values count as far or sharp depends on the model and its loss.
_landscape = partial(Metric, margin=0.0, kind="landscape", subject="landscape")
_distance = partial(_landscape, source="Nagarajan & Kolter 2019", reads=("weights", "start"), note="displacement_note")
_expensive = partial(
    _landscape, cost="expensive", default=False, result="value", reads=("loss", "weights"), alongside=(_LOSS,)
)
_hessian = partial(_expensive, reads=("loss", "weights", "generator"))
_top = partial(_hessian, called="hessian_top_eigenvalue", alongside=(_LOSS, "hessian_top_residual"))
_trace = partial(_hessian, called="hessian_trace", alongside=(_LOSS, "hessian_trace_error"))
# Interpreted relative to its null: no margin.
_overlap = partial(_expensive, kind="overlap", subject="overlap", alongside=())
_kept = partial(_overlap, reads=("changes",), alongside=("kept_cka_null", "overlap_chance"))
_broken = partial(_kept, source="recorded", called="kept_cka", arguments={"broken": True}, alongside=())
_shared = partial(_overlap, reads=("tasks",), alongside=("tasks_cka_within", "tasks_overlap_within", "overlap_chance"))
_within = partial(_shared, source="recorded", arguments={"within": True}, alongside=())
# No margin: times depend on the machine.
_cost = partial(Metric, source="recorded", direction="lower", margin=0.0, kind="cost", subject="cost")
# Interpreted relative to its null, which depends on the network and the data: no margin.
_pair = partial(Metric, margin=0.0, kind="pair", subject="pairs", default=False)
_debiased = partial(_pair, called="linear_cka", arguments={"debiased": True})


_update = partial(Metric, margin=0.0, kind="updates", subject="updates", reads=("points",), default=False)
_update = partial(_update, called="mean", remarks=True, averaged=True)


_collapse = partial(Metric, margin=0.0, kind="collapse", subject="collapse", reads=("collapse",), default=False)
_PAPYAN = "Papyan et al. 2020"


def _geometry(of: str) -> Callable[..., Metric]:
    return partial(_update, f"update_{of}", arguments={"of": of}, note_arguments={"of": of})


def _pruned(scope: str, how: str) -> tuple[Metric, ...]:
    """Return the metrics of the pruning curve with this scope.

    how: the scope in words, for the formulas.

    If a suite names any of these metrics, the curves of both scopes are measured.
    """
    read = partial(Metric, source="Schwarz et al. 2021", direction="higher", kind="pruning", subject="pruning")
    read = partial(read, cost="expensive", default=False, scope=scope)
    accuracy = partial(read, called="pruned_accuracy")
    area, holding = (
        "∫ accuracy d(sparsity), sparsity 0 to .99",
        "largest sparsity up to which accuracy is ≥ .99 of dense",
    )
    return (
        *(
            accuracy(
                f"pruned_accuracy_{keep:g}_{scope}",
                f"accuracy with the largest {100 * keep:g}% of weights, {how}",
                arguments={"keep": keep},
            )
            for keep in (1.0, 0.1, 0.05, 0.02)
        ),
        read(f"pruning_area_{scope}", f"{area}, {how}", called="pruning_area"),
        read(f"holding_sparsity_{scope}", f"{holding}, {how}", called="holding_sparsity"),
    )


_TABLE = (
    _of("last row", pairs=False)("average_accuracy", "mean_j R[T,j]", _GEM, "higher"),
    _of("since learnt", pairs=True)(
        "forgetting", "mean_{j<T} (max_{j≤l<T} R[l,j] - R[T,j])", "Chaudhry et al. 2018", "lower"
    ),
    _of("last row", pairs=True)("backward_transfer", "mean_{j<T} (R[T,j] - R[j,j])", _GEM, "higher"),
    _of("before", pairs=True)("forward_transfer", "mean_{j≥2} (R[j-1,j] - R[0,j])", _GEM, "higher"),
    _of("learnt", pairs=False)("learning_accuracy", "mean_j R[j,j]", "Riemer et al. 2019", "higher"),
    _of("learnt", pairs=False)("last_task_accuracy", "R[T,T]", _PAPER, "higher"),
    _of("last row", pairs=True)("earlier_tasks_accuracy", "mean_{j<T} R[T,j]", _PAPER, "higher"),
    _online("level", 0.005)("online_accuracy", "mean_k a_k, a_k on each batch of task k before its update", _KUMAR),
    _online("level", 0.005)("late_online_accuracy", "mean of the last w a_k, w = max(1, ⌊T/10⌋)", _KUMAR),
    _online("kept")("plasticity_kept", "mean of the last w a_k / largest mean of w consecutive a_k", _DOHARE),
    _online("slope")("plasticity_slope", "median_{k<l} (a_l - a_k) / (l - k), per 100 tasks", "Sen 1968"),
    _online("level", fresh=True)("against_fresh", "mean of the last w a_k minus that of fresh networks", _DOHARE),
    _centred("effective_rank", "exp(-Σ p ln p), p = λ/Σλ, centred", _ROY, margin=0.5),
    _centred("effective_rank_ratio", "effective_rank divided by d", _ROY, margin=0.005),
    _rank("effective_rank_uncentred", "exp(-Σ p ln p), p = σ²/Σσ², uncentred", _ROY, margin=0.5, default=False),
    _correlation(
        "effective_rank_correlation",
        "exp(-Σ p ln p), p = ρ/Σρ, ρ eigenvalues of the correlation matrix",
        _ROY,
        margin=0.5,
    ),
    _rank("effective_rank_sv", "exp(-Σ p ln p), p = σ/Σσ, uncentred", _ROY, margin=0.5),
    _rank("stable_rank", "Σσ² / σ₁²", _RUDELSON, margin=0.1),
    _centred("participation_ratio", "(Σλ)² / Σλ², centred", "Gao et al. 2017", margin=0.5),
    _rank(
        "srank",
        "smallest k with Σ_{i≤k} σ_i ≥ (1 - δ) Σσ, δ = delta, .01 by default",
        "Kumar et al. 2020",
        margin=1.0,
        default=False,
    ),
    _rank("pca99", "smallest k with Σ_{i≤k} σ_i² ≥ .99 Σσ²", "srank with σ²", margin=1.0, default=False),
    _centred("pca99_centred", "smallest k with Σ_{i≤k} λ_i ≥ .99 Σλ", "Jolliffe 2002", margin=1.0, default=False),
    _centred(
        "eigenvalue_count_relative",
        "number of λ > r λ₁, r = relative, .01 by default",
        "counted",
        margin=1.0,
        default=False,
    ),
    _centred("eigenvalue_count", "number of λ > t, t = threshold, 1 by default", "counted", margin=1.0, default=False),
    _size("features_n", "N, the number of examples", called="feature_examples"),
    _size("features_d", "d, the width of the features", called="feature_width"),
    _units("activation_zero_share", "share of activations that are exactly 0", "counted"),
    _dormant("dormant_0.025", "share of units with mean|h_i| / mean_k mean|h_k| ≤ 0.025", arguments={"tau": 0.025}),
    _dormant("dormant_0.1", "share of units with mean|h_i| / mean_k mean|h_k| ≤ 0.1", arguments={"tau": 0.1}),
    _units("dead_share", "share of units that are 0 on every example", "counted"),
    _cosine("class_cosine_mean", "mean_{a≠b} cos(μ_a, μ_b), μ class means", _PAPER),
    _cosine(
        "pairwise_class_cosine",
        "mean cosine over pairs of examples of different classes, each pair counted once",
        _PAPER,
    ),
    _weights("hoyer", "(√n - ‖w‖₁/‖w‖₂) / (√n - 1)", "Hoyer 2004"),
    _weights("gini", "1 - 2 Σ_k |w|_(k)/‖w‖₁ (n-k+½)/n", "Hurley & Rickard 2009"),
    _weights("kurtosis", "m₄ / m₂², not excess kurtosis", "Pearson 1905", margin=0.1, default=False),
    _weights("zero_share", "share of weights that are exactly 0", "counted"),
    _weights(
        "near_zero_share",
        "share of weights with |w| < r rms(layer), r = relative, .01 by default",
        "counted",
        averaged=True,
    ),
    _of_classes("worst_class_accuracy", "min_c accuracy on class c", "counted"),
    _of_classes("balanced_accuracy", "mean_c accuracy on class c", "counted"),
    _prediction(
        "calibration_error",
        "Σ_b n_b/N |accuracy_b - confidence_b|, 15 bins of the largest probability",
        "Guo et al. 2017",
        "lower",
        kind="logits",
        reads=("logits", "targets"),
        note="calibration_note",
    ),
    _prediction(
        "cue_following",
        "share of predictions equal to the class that a spurious cue indicates",
        "Geirhos et al. 2020",
        "lower",
        kind="logits",
        reads=("logits", "cues"),
        note="cue_note",
    ),
    _spoilt(
        "corruption_accuracy",
        "mean accuracy over noise of .1, .2, .4 of the pixel range, shifts by 1, 2, 3 pixels, contrast × .5, .25 and a "
        "blur of 1 pixel; or accuracy under a single corruption",
        "after Hendrycks & Dietterich 2019",
        note="corruption_note",
    ),
    Metric(
        "transfer_accuracy",
        "test accuracy of ridge regression from the features to the classes of another dataset (`transfer`)",
        "after Kornblith et al. 2019, arXiv:1805.08974",
        "higher",
        margin=0.005,
        kind="transfer",
        subject="transfer",
        reads=("probe",),
        default=False,
    ),
    *(
        _rounded(
            f"quantised_drop_{bits}",
            f"accuracy lost if each weight tensor is rounded to {bits} bits, w ← s round(w/s), s = max|w| / {top}",
            arguments={"bits": bits},
        )
        for bits, top in ((8, 127), (4, 7), (3, 3))
    ),
    _matrix("weight_effective_rank", "exp(-Σ p ln p), p = σ/Σσ, σ of a layer's weights", _ROY, margin=0.5),
    _matrix("weight_stable_rank", "Σσ² / σ₁², σ of a layer's weights", _RUDELSON, margin=0.1),
    _distance("distance_from_init", "‖w - w₀‖₂, all parameters"),
    _distance("relative_distance_from_init", "‖w - w₀‖₂ / ‖w₀‖₂"),
    _expensive(_LOSS, "L(w), the training loss for metrics of the Hessian and of sharpness", "recorded"),
    _top("hessian_top_eigenvalue", "largest λ of ∇²L(w), by Lanczos' method", "Ghorbani et al. 2019"),
    _top(
        "hessian_top_residual",
        "‖Hv - λv‖ / |λ|, λ the hessian_top_eigenvalue and v its eigenvector",
        "recorded",
        result="residual",
    ),
    _trace("hessian_trace", "tr ∇²L(w), mean of vᵀHv, v random signs", "Hutchinson 1990"),
    _trace("hessian_trace_error", "standard error of hessian_trace", "recorded", result="error"),
    _expensive("sam_sharpness", "L(w + ρ g/‖g‖) - L(w), g = ∇L(w), ρ = rho, .05 by default", "Foret et al. 2021"),
    _expensive("adaptive_sam_sharpness", "L(w + ρ w² g / ‖|w| g‖) - L(w), ρ = rho, .5 by default", "Kwon et al. 2021"),
    _kept("kept_cka", "mean_{j<T} linear CKA between task j's features after task j and at the end", _CKA),
    _broken("kept_cka_null", "kept_cka with wrongly paired examples"),
    _kept("kept_cka_means", "kept_cka of features averaged over each sequence's positions, debiased", _CKA),
    _kept(
        "kept_overlap",
        "mean_{j<T} ‖UᵀV‖²_F / k, U and V the k = 16 principal directions of task j's features after task j and at the "
        "end",
        _GOLUB,
    ),
    _shared("tasks_cka", "mean_{a<b} ⟨C_a, C_b⟩ / (‖C_a‖ ‖C_b‖), C_a covariance of task a's features at the end", _CKA),
    _within("tasks_cka_within", "tasks_cka between two halves of each task", called="tasks_cka"),
    _shared("tasks_overlap", "mean_{a<b} subspace overlap of tasks' features at the end, k = 16", _GOLUB),
    _within("tasks_overlap_within", "tasks_overlap between two halves of each task", called="tasks_overlap"),
    _within("overlap_chance", "k / d, the overlap of random subspaces", arguments={}),
    _collapse("nc0", "‖Wᵀ1‖² / C, W the last layer", "Zhao et al. 2026"),
    _collapse(
        "nc1", "tr(Σ_W Σ_B⁺) / C, covariances of features within and between classes, on training examples", _PAPYAN
    ),
    _collapse("nc2_norm", "sd_c‖m_c‖ / mean_c‖m_c‖, m_c = μ_c - μ_G the centred class means", _PAPYAN),
    _collapse("nc2_angle", "mean_{c≠c'} |cos(m_c, m_c') + 1/(C-1)|", _PAPYAN),
    _collapse("nc3", "‖W/‖W‖ - M/‖M‖‖²_F, M the rows m_c", _PAPYAN),
    _collapse(
        "nc4", "share of examples whose nearest class mean is not that of the class with the largest logit", _PAPYAN
    ),
    _collapse(
        "class_margin",
        "mean_i min_{c≠y} (z_y - z_c) / ‖w_y - w_c‖ / √tr Σ, z logits, w rows of the last layer, Σ "
        "covariance of the features",
        "Elsayed et al. 2018, Jiang et al. 2019",
        note="margin_note",
    ),
    Metric(
        "steps_to_accuracy",
        "steps until an evaluation in the last task reaches an accuracy of a, a = accuracy, .95 by default",
        "after Power et al. 2022",
        "lower",
        margin=0.0,
        kind="curve",
        subject="reaching",
        reads=("curve",),
        result="value",
        default=False,
    ),
    _geometry("stable_rank")("‖Δ‖²_F / ‖Δ‖²₂ of a layer's update Δ, mean over 16 points of training", _RUDELSON),
    _geometry("cosine_gradient")("mean of cos(Δ, -G), G the layer's gradient", "counted"),
    _geometry("cosine_sign")("mean of cos(Δ, -sign G)", "Bernstein et al. 2018"),
    _geometry("cosine_polar")("mean of cos(Δ, -UVᵀ), G = U S Vᵀ", "Carlson et al. 2015"),
    _geometry("relative_size")("mean of ‖Δ‖_F / ‖W‖_F, W the weights before the update", "You et al. 2017"),
    _geometry("angle")("mean angle between W and W + Δ, in degrees", "counted", unit="°"),
    *_pruned("global", "all weights ranked together"),
    *_pruned("layer", "each layer ranked separately"),
    _pair("linear_cka", "‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F), centred features", _CKA),
    _debiased("linear_cka_debiased", "linear_cka with unbiased estimates of its terms", "Song et al. 2012"),
    _pair(
        "subspace_overlap",
        "‖UᵀV‖²_F / k, U and V the k = 10 leading directions of the features",
        _GOLUB,
    ),
    _pair("subspace_overlap_chance", "k / d, the overlap of random subspaces", "recorded"),
    _pair("prediction_disagreement", "share of test examples that two solutions label differently", "counted"),
    _pair("loss_barrier", "max_α L(w_α) - (1-α) L(w₀) - α L(w₁), w_α = (1-α) w₀ + α w₁", "Frankle et al. 2020"),
    _pair("accuracy_barrier", "max_α (1-α) A(w₀) + α A(w₁) - A(w_α), w_α as in loss_barrier", "Frankle et al. 2020"),
    _pair("weight_distance", "2 ‖a - b‖₂ / (‖a - w₀‖₂ + ‖b - w₀‖₂), w₀ the initial weights", "Fort et al. 2019"),
    _pair("displacement_angle", "angle in degrees between a - w₀ and b - w₀", "Fort et al. 2019"),
    _cost("train_seconds", "seconds spent on batches, gradients and updates"),
    _cost("milliseconds_per_step", "1000 · train_seconds / steps"),
    _cost("optimizer_share", "seconds spent in the optimizer / train_seconds", direction="neutral"),
    _cost("steps", "number of optimizer steps over all tasks", direction="neutral"),
    _cost("state_bytes_per_parameter", "bytes of optimizer state / parameters"),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _TABLE})
assert len(METRICS) == len(_TABLE), "two metrics share a name"

METRICS_VERSION = 1
"""Increased when the meaning of a stored metric changes, which makes its values incomparable with older ones."""

PRIMARY_METRICS: tuple[str, ...] = ("average_accuracy", "forgetting", "effective_rank")
"""The primary metrics of an experiment that declares none. Verdicts are given only for primary metrics."""

DEFAULT_METRICS: tuple[str, ...] = tuple(metric.name for metric in _TABLE if metric.default)

DERIVED: tuple[Derived, ...] = get_args(Derived)
UNSET: tuple[Kind, ...] = (*DERIVED, "pair", "overlap", "updates", "collapse", "transfer")
"""Kinds whose registered metrics take no settings, because the metrics are derived when a run is read, or describe
several networks or the course of training."""

OF_TEST_DATA = ("features", "similarity", "logits", "model")
"""Kinds measured on the test data of each task, including the last, and on the test data of all tasks together."""

DEFAULT = "default"
"""The entry that stands for the default metrics in a suite's list of metrics."""

PAIR_METRICS: tuple[str, ...] = tuple(metric.name for metric in _TABLE if metric.kind == "pair")
"""The metrics of two solutions that are measured if `pairs` names none."""


def select(names: Iterable[str] | None, *kinds: Kind) -> tuple[Metric, ...]:
    """Return the metrics with these names (None: the default set) and kinds (default: all), without duplicates.

    Raises:
        UsageError: a name is not in the catalog, regardless of the kinds.
    """
    chosen = []
    for name in dict.fromkeys(DEFAULT_METRICS if names is None else names):
        if name not in METRICS:
            raise UsageError(unknown("metric", name, METRICS))
        chosen.append(METRICS[name])
    return tuple(metric for metric in chosen if not kinds or metric.kind in kinds)


def companions(metric: Metric) -> Iterator[Metric]:
    """Yield the companions of a metric.

    A companion that is computed by the same function as the metric gets the metric's settings. If the metric reads
    features at a non-default place, its other companions are measured at the same place.
    """
    for other in map(METRICS.__getitem__, metric.alongside):
        if metric.target and other.computed_by == metric.computed_by:
            name = other.name + metric.name.removeprefix(base_name(metric.name))
            yield other.with_settings(name, metric.settings, metric.arguments)
        elif metric.place == FEATURES:
            yield other
        else:
            yield other.with_settings(f"{other.name} {metric.place.name}", metric.place.settings, {})

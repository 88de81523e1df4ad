"""Render the catalog's formulas as MathML, which browsers display without a script.

A formula in the catalog is text that contains mathematics. `PIECES` gives the LaTeX of each piece of mathematics;
everything else remains text. A piece that does not occur in any formula stops the build, because its formula must
have changed.
"""

from __future__ import annotations

import functools
import html
import re

from latex2mathml.converter import convert

from optbench.metrics.catalog import METRICS

PIECES = {
    # The accuracy matrix R
    "mean_j R[T,j]": r"\frac{1}{T}\sum_{j} R_{T,j}",
    "mean_{j<T} (max_{j≤l<T} R[l,j] - R[T,j])": r"\operatorname{mean}_{j<T}\left(\max_{j\le l<T} R_{l,j} - R_{T,j}\right)",
    "mean_{j<T} (R[T,j] - R[j,j])": r"\operatorname{mean}_{j<T}\left(R_{T,j} - R_{j,j}\right)",
    "mean_{j≥2} (R[j-1,j] - R[0,j])": r"\operatorname{mean}_{j\ge 2}\left(R_{j-1,j} - R_{0,j}\right)",
    "mean_j R[j,j]": r"\frac{1}{T}\sum_{j} R_{j,j}",
    "R[T,T]": r"R_{T,T}",
    "mean_{j<T} R[T,j]": r"\operatorname{mean}_{j<T} R_{T,j}",
    # Online accuracy
    "mean_k a_k": r"\operatorname{mean}_k a_k",
    "w = max(1, ⌊T/10⌋)": r"w = \max(1, \lfloor T/10 \rfloor)",
    "median_{k<l} (a_l - a_k) / (l - k)": r"\operatorname{median}_{k<l} \frac{a_l - a_k}{l - k}",
    "a_k": "a_k",
    # Rank
    "exp(-Σ p ln p)": r"\exp\left(-\sum_i p_i \ln p_i\right)",
    "p = λ/Σλ": r"p_i = \lambda_i / \sum_j \lambda_j",
    "p = σ²/Σσ²": r"p_i = \sigma_i^2 / \sum_j \sigma_j^2",
    "p = ρ/Σρ, ρ": r"p_i = \rho_i / \sum_j \rho_j, \; \rho",
    "p = σ/Σσ, σ": r"p_i = \sigma_i / \sum_j \sigma_j, \; \sigma",
    "p = σ/Σσ": r"p_i = \sigma_i / \sum_j \sigma_j",
    "Σσ² / σ₁², σ": r"\sum_i \sigma_i^2 / \sigma_1^2, \; \sigma",
    "Σσ² / σ₁²": r"\sum_i \sigma_i^2 / \sigma_1^2",
    "(Σλ)² / Σλ²": r"\left(\sum_i \lambda_i\right)^2 / \sum_i \lambda_i^2",
    "k with Σ_{i≤k} σ_i ≥ (1 - δ) Σσ, δ": r"k \text{ with } \sum_{i\le k} \sigma_i \ge (1-\delta) \sum_i \sigma_i, \; \delta",
    "k with Σ_{i≤k} σ_i² ≥ .99 Σσ²": r"k \text{ with } \sum_{i\le k} \sigma_i^2 \ge .99 \sum_i \sigma_i^2",
    "k with Σ_{i≤k} λ_i ≥ .99 Σλ": r"k \text{ with } \sum_{i\le k} \lambda_i \ge .99 \sum_i \lambda_i",
    "λ > r λ₁, r": r"\lambda_i > r \lambda_1, \; r",
    "λ > t, t": r"\lambda_i > t, \; t",
    # Units, classes, weights
    "mean|h_i| / mean_k mean|h_k| ≤ 0.025": r"\operatorname{mean}|h_i| \,/\, \operatorname{mean}_k \operatorname{mean}|h_k| \le .025",
    "mean|h_i| / mean_k mean|h_k| ≤ 0.1": r"\operatorname{mean}|h_i| \,/\, \operatorname{mean}_k \operatorname{mean}|h_k| \le .1",
    "mean_{a≠b} cos(μ_a, μ_b), μ": r"\operatorname{mean}_{a\ne b} \cos(\mu_a, \mu_b), \; \mu",
    "(√n - ‖w‖₁/‖w‖₂) / (√n - 1)": r"\frac{\sqrt{n} - \lVert w \rVert_1 / \lVert w \rVert_2}{\sqrt{n} - 1}",
    "1 - 2 Σ_k |w|_(k)/‖w‖₁ (n-k+½)/n": r"1 - 2 \sum_k \frac{|w|_{(k)}}{\lVert w \rVert_1} \cdot \frac{n-k+1/2}{n}",
    "m₄ / m₂²": r"m_4 / m_2^2",
    "|w| < r rms(layer), r": r"|w| < r \operatorname{rms}(\text{layer}), \; r",
    # Prediction
    "min_c": r"\min_c",
    "mean_c accuracy": r"\operatorname{mean}_c \text{ accuracy}",
    "Σ_b n_b/N |accuracy_b - confidence_b|": r"\sum_b \frac{n_b}{N} \left| \text{accuracy}_b - \text{confidence}_b \right|",
    **{
        f"w ← s round(w/s), s = max|w| / {top}": rf"w \leftarrow s \operatorname{{round}}(w/s), \; s = \max|w| / {top}"
        for top in (127, 7, 3)
    },
    "mean_i min_{c≠y} (z_y - z_c) / ‖w_y - w_c‖ / √tr Σ, z": (
        r"\frac{1}{\sqrt{\operatorname{tr} \Sigma}} \operatorname{mean}_i \min_{c\ne y} \frac{z_y - z_c}{\lVert w_y - w_c \rVert}, \; z"
    ),
    "w rows of the last layer, Σ": r"w \text{ rows of the last layer, } \Sigma",
    # Landscape
    "‖w - w₀‖₂ / ‖w₀‖₂": r"\lVert w - w_0 \rVert_2 / \lVert w_0 \rVert_2",
    "‖w - w₀‖₂,": r"\lVert w - w_0 \rVert_2,",
    "L(w), the": r"L(w), \text{ the}",
    "λ of ∇²L(w)": r"\lambda \text{ of } \nabla^2 L(w)",
    "‖Hv - λv‖ / |λ|, λ": r"\lVert Hv - \lambda v \rVert / |\lambda|, \; \lambda",
    "tr ∇²L(w), mean of vᵀHv, v": r"\operatorname{tr} \nabla^2 L(w), \text{ mean of } v^\top H v, \; v",
    "L(w + ρ g/‖g‖) - L(w), g = ∇L(w), ρ": r"L(w + \rho\, g / \lVert g \rVert) - L(w), \; g = \nabla L(w), \; \rho",
    "L(w + ρ w² g / ‖|w| g‖) - L(w), ρ": r"L\left(w + \rho \frac{w^2 g}{\lVert |w| g \rVert}\right) - L(w), \; \rho",
    # Overlap and pairs
    "mean_{j<T} linear CKA": r"\operatorname{mean}_{j<T} \text{ linear CKA}",
    "mean_{j<T} ‖UᵀV‖²_F / k, U and V the k": (
        r"\operatorname{mean}_{j<T} \lVert U^\top V \rVert_F^2 / k, \; U \text{ and } V \text{ the } k"
    ),
    "‖UᵀV‖²_F / k, U and V the k": r"\lVert U^\top V \rVert_F^2 / k, \; U \text{ and } V \text{ the } k",
    "mean_{a<b} ⟨C_a, C_b⟩ / (‖C_a‖ ‖C_b‖), C_a": r"\operatorname{mean}_{a<b} \frac{\langle C_a, C_b \rangle}{\lVert C_a \rVert \lVert C_b \rVert}, \; C_a",
    "mean_{a<b} subspace": r"\operatorname{mean}_{a<b} \text{ subspace}",
    "‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F)": r"\frac{\lVert Y^\top X \rVert_F^2}{\lVert X^\top X \rVert_F \lVert Y^\top Y \rVert_F}",
    "max_α L(w_α) - (1-α) L(w₀) - α L(w₁), w_α = (1-α) w₀ + α w₁": (
        r"\max_\alpha L(w_\alpha) - (1-\alpha) L(w_0) - \alpha L(w_1), \; w_\alpha = (1-\alpha) w_0 + \alpha w_1"
    ),
    "max_α (1-α) A(w₀) + α A(w₁) - A(w_α), w_α": (
        r"\max_\alpha (1-\alpha) A(w_0) + \alpha A(w_1) - A(w_\alpha), \; w_\alpha"
    ),
    "2 ‖a - b‖₂ / (‖a - w₀‖₂ + ‖b - w₀‖₂), w₀": (
        r"\frac{2 \lVert a - b \rVert_2}{\lVert a - w_0 \rVert_2 + \lVert b - w_0 \rVert_2}, \; w_0"
    ),
    "a - w₀ and b - w₀": r"a - w_0 \text{ and } b - w_0",
    "k / d": "k / d",
    # Neural collapse
    "‖Wᵀ1‖² / C, W": r"\lVert W^\top \mathbf{1} \rVert^2 / C, \; W",
    "tr(Σ_W Σ_B⁺) / C": r"\operatorname{tr}(\Sigma_W \Sigma_B^{+}) / C",
    "sd_c‖m_c‖ / mean_c‖m_c‖, m_c = μ_c - μ_G": (
        r"\operatorname{sd}_c \lVert m_c \rVert / \operatorname{mean}_c \lVert m_c \rVert, \; m_c = \mu_c - \mu_G"
    ),
    "mean_{c≠c'} |cos(m_c, m_c') + 1/(C-1)|": (
        r"\operatorname{mean}_{c\ne c'} \left| \cos(m_c, m_{c'}) + \frac{1}{C-1} \right|"
    ),
    "‖W/‖W‖ - M/‖M‖‖²_F, M the rows m_c": (
        r"\left\lVert W / \lVert W \rVert - M / \lVert M \rVert \right\rVert_F^2, \; M \text{ the rows } m_c"
    ),
    # Updates
    "‖Δ‖²_F / ‖Δ‖²₂ of a layer's update Δ": (
        r"\lVert \Delta \rVert_F^2 / \lVert \Delta \rVert_2^2 \text{ of a layer's update } \Delta"
    ),
    "cos(Δ, -G), G": r"\cos(\Delta, -G), \; G",
    "cos(Δ, -sign G)": r"\cos(\Delta, -\operatorname{sign} G)",
    "cos(Δ, -UVᵀ), G = U S Vᵀ": r"\cos(\Delta, -UV^\top), \; G = U S V^\top",
    "‖Δ‖_F / ‖W‖_F, W": r"\lVert \Delta \rVert_F / \lVert W \rVert_F, \; W",
    "W and W + Δ": r"W \text{ and } W + \Delta",
    # Pruning
    "∫ accuracy d(sparsity)": r"\int \text{accuracy} \; d(\text{sparsity})",
    "≥ .99": r"\ge .99",
}
_FOUND = re.compile("|".join(re.escape(piece) for piece in sorted(PIECES, key=len, reverse=True)))
_MATHEMATICS = re.compile(r"[Σ∫√‖⟨≤≥≠½₀-₉²ᵀ⁺αδλμρσΔ∇⌊{}\[\]|^]|\w_\w(?!\w)")


def rendered(formula: str) -> str:
    """Return a formula as HTML."""
    parts, end = [], 0
    for found in _FOUND.finditer(formula):
        parts += [html.escape(formula[end : found.start()]), _mathml(PIECES[found[0]])]
        end = found.end()
    return "".join([*parts, html.escape(formula[end:])])


def unlisted() -> list[str]:
    """Return the formulas of the catalog that contain mathematics missing from `PIECES`."""
    return [m.formula for m in METRICS.values() if _MATHEMATICS.search(_FOUND.sub("", m.formula))]


def check_used() -> None:
    """Raise ValueError if a piece does not occur in any formula of the catalog."""
    used = {piece for metric in METRICS.values() for piece in _FOUND.findall(metric.formula)}
    if unused := sorted(set(PIECES) - used):
        raise ValueError(f"docs/site/formulas.py: expected every piece in a formula, got {unused[0]!r} in none")


@functools.cache
def _mathml(latex: str) -> str:
    return str(convert(latex)).replace("|", "&#124;")

"""What two random arrangements score: the expected score of every metric that has a law, no arrangement drawn.

Two sides with `dimension` features each, of which they have a share `overlap` in common, mixed into n and m units by
arrangements that are drawn independently. An endless sample, so that nothing is left to chance but the arrangements. With t =
n / d, u = m / d and ρ the overlap, the laws of many units are one family:

    nuclear norm per feature = (2/π) ∫₀^min(t, u, ρ) √[(t - η) (u - η) (ρ - η) / η] (1 - η)^-p dη,

p = 1 for orthonormal columns (cca, and procrustes of tight frames), p = 0 for Gaussian ones (procrustes).

*Derivation.* For a positive variable with S-transform S, E √λ = (1/π) ∫ E[λ / (λ + y)] dy / √y, and E[λ / (λ + y)] = ζ where
y(ζ) = (1 - ζ) / (ζ S(-ζ)); by parts, E √λ = (2/π) ∫ √y(ζ) dζ over ζ from 0 to 1 less the share of zeros. So a nuclear norm
needs no density and no root of a polynomial. Squared singular values of A_sᵀ B_s, s = ρ d the shared rows, are eigenvalues of
the product of A_s A_sᵀ and B_s B_sᵀ, which are free, so that their S-transforms multiply: (1 + ρ z) / (t + ρ z) for a
projection of rank n cut to s rows (Jacobi), 1 / (n + s z) for Gaussian rows (Marchenko-Pastur). Put η = ρ ζ. Sources:
Voiculescu 1987 (S-transform); Nica & Speicher 2006, "Lectures on the combinatorics of free probability", lectures 14 and 18;
Wachter 1980 (canonical correlations of independent samples: p = 1, ρ = 1).

These limits are off by about 1 / k, k the smaller number of units. With k = 1 every score is a product of roots of Beta
variables, exactly; so value = limit + (exact value of one unit, at the same ratios - limit) / k. Nothing is fitted.

That superposition deflates rsa, cka and regression, not matching alone, is the finding of Liu, Issa, Longon, Gorton, Khosla,
Williams & Klindt, "Similarity of neural network representations in superposition", arXiv 2604.00208. Of it only the summary
was at hand; what is here is derived here. Matching: Longon, Klindt & Khosla, arXiv 2510.03186, PMLR 322, pages 342-359.

All take `n_units`, a number or (of the source, of the target), and

- `dimension`: features of each side; of tight frames at least as many as units. For features of unequal variance pass
  `effective_dimension`: right to leading order for cka of Gaussian arrangements, an approximation elsewhere.
- `overlap`: ρ, the share of each side's features that both have, by variance; the others are private.
- `family`: "gaussian" (independent entries), "unit_norm" (features of norm 1) or "tight" (columns orthogonal, of one norm).

All may be traced but `family`. The errors against simulation are in the guide (`superpos/README.md`, Theory).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from superpos.metrics.base import positive_integer

Family = Literal["gaussian", "unit_norm", "tight"]
Value = Float[Array, ""]


def effective_dimension(covariance: Float[Array, "features features"]) -> Value:
    """(tr Σ)² / tr Σ²: so many features of equal variance would make random units correlate as much."""
    return jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)


# Second moments


def random_cka(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected cka: ρ √(p_a p_b) / d, with p = (tr W)² / tr W² of each side's covariance W = AᵀA, its effective units.

    For M = AAᵀ / |AAᵀ|, cka = tr M_a M_b over shared features. Both sides are independent and no feature is preferred, so
    that its mean is ρ E[√p_a] E[√p_b] / d exactly. Tight: p = n, so that cka = ρ n / d, exact. Gaussian: p = (n d + 2) / (n +
    d + 1), so about ρ n / (n + d); tr W is independent of W / tr W, so that only a root is exchanged with a mean. Unit norm:
    p = n d / (n + d - 1).

    Raises:
        ValueError: n_units that are not positive integers, or above `dimension` for tight frames; an overlap outside 0 to 1; an
            unknown family. So do all laws.

    >>> round(float(random_cka(16, 64)), 3), round(float(random_cka(16, 64, family="tight")), 3)
    (0.198, 0.25)
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    return overlap * jnp.sqrt(_effective_units(n, d, family) * _effective_units(m, d, family)) / d


def random_debiased_cka(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected debiased cka: that of `random_cka`, which is what it estimates from few samples."""
    return random_cka(n_units, dimension, overlap=overlap, family=family)


def random_rsa(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected rsa (1 - Pearson correlation of patterns) of jointly Gaussian features.

    Centring a pattern costs a unit, and scaling it to norm 1 the rest: rsa = cka of n - 1 and m - 1 units, times h_n h_m (1 +
    c)², h = (E |x|)² / (n - 1) the linear part of x / |x| for Gaussian x, and c = (Σ σ² + 2 σ̄²) / (2 (n + 1) (m + 1)) what
    its cubic part adds, of canonical correlations σ. Asymptotic: parts of fifth order and spectra that are not flat are left
    out. Means of features cancel. Sparse features lower it more, as patterns of few active features have unequal norms: by
    .02 of .23 for 64 of probability .1 in 16 units.
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    # Of 1 unit a centred pattern is 0.
    n, m = jnp.maximum(n - 1, 0), jnp.maximum(m - 1, 0)
    base = overlap * jnp.sqrt(_effective_units(n, d, family) * _effective_units(m, d, family)) / d
    squares = overlap * n * m / d  # Σ σ²
    cubic = squares * (1 + 2 / jnp.maximum(jnp.minimum(n, m), 1)) / (2 * (n + 2) * (m + 2))
    shrunk = [2 * _half_step(k / 2) ** 2 / jnp.maximum(k, 1) for k in (n, m)]
    return jnp.minimum(base * shrunk[0] * shrunk[1] * (1 + cubic) ** 2, 1)


def random_ols(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected ols: E √Beta(ρ d/2, (1 - ρ) d/2) · E √Beta(n/2, (d - n)/2), about √(ρ n / d).

    Of a target unit the first is the length of what it has of shared features, the second that of its projection on the
    source's n-dimensional subspace. Exact for Gaussian and tight arrangements; to order 1 / d for unit norm. The number of
    target units does not matter.

    >>> round(float(random_ols(16, 64)), 3)
    0.494
    """
    (n, _), d, overlap = _checked(n_units, dimension, overlap, family)
    return _shared(overlap, d) * _root_beta(n, d - n)


def random_ridge(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected ridge: that of `random_ols`, since with endless samples the best penalty is the least."""
    return random_ols(n_units, dimension, overlap=overlap, family=family)


def random_pls(
    n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian", n_components: int = 25
) -> Value:
    """The expected pls where it has as many components as source units: that of `random_ols`.

    Raises:
        ValueError: more source units than components: which directions come first has no law here.
    """
    (n, _), *_ = _checked(n_units, dimension, overlap, family)
    positive_integer("n_components", n_components)
    if not isinstance(n, jax.core.Tracer) and n > n_components:
        raise ValueError(
            f"random_pls has a law for at most n_components = {n_components} source units, got {n:g}: "
            'score drawn arrangements by sp.theory.predict(a, b, covariance, "pls").'
        )
    return random_ols(n_units, dimension, overlap=overlap, family=family)


def random_procrustes(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected procrustes, |A_sᵀB_s|_* / (|A| |B|): the law of the module, p = 1 (tight) or 0, over √(t u).

    Asymptotic, corrected by 1 / k. For few units of many features 0.85 √(ρ n / d). Tight: `random_cca` times √(min / max) of
    the units.

    >>> round(float(random_procrustes(16, 64, family="tight")), 3), round(float(random_procrustes(16, 64)), 3)
    (0.435, 0.414)
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    k, larger = jnp.minimum(n, m), jnp.maximum(n, m)
    if family == "tight":
        return _canonical(n, m, d, overlap) * jnp.sqrt(k / larger)
    limit = _nuclear(n / d, m / d, overlap, 0) * d / jnp.sqrt(n * m)
    ratio, rest = larger / k, d / k
    one = _shared(overlap, rest) * _root_beta(ratio, jnp.maximum(rest - 1, 0) * ratio)
    return limit + (one - limit) / k


def random_cca(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected cca, the mean canonical correlation: the law of the module, p = 1, over min(t, u).

    Asymptotic, corrected by 1 / k; the same for Gaussian and tight arrangements, whose subspaces are alike; unit norm:
    nearly. Where both sides' units add up to more than the features, n + m - d correlations are 1 at ρ = 1.

    >>> round(float(random_cca(16, 64)), 3)
    0.435
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    return _canonical(n, m, d, overlap)


def random_svcca(
    n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian", variance: float = 0.99
) -> Value:
    """The expected svcca: `random_cca` of the components that hold the share `variance`, whose directions are as random as any.

    Their number is that of the Marchenko-Pastur law, rounded up; of tight frames it is n · variance. Asymptotic.
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be above 0 and at most 1, got {variance}.")
    kept = [jnp.ceil(k * _components(k / d, variance, family) - 1e-4) for k in (n, m)]
    return _canonical(kept[0], kept[1], d, overlap)


def random_pwcca(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected pwcca: that of `random_cca`. Weights are of directions that are random whatever their correlations."""
    return random_cca(n_units, dimension, overlap=overlap, family=family)


# Matching


def random_semi_match(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected semi_match: the mean of the largest of n_source random cosines, times E √Beta(ρ d/2, (1 - ρ) d/2).

    Exact for Gaussian arrangements of features of equal variance: each target unit is a fixed direction in `dimension`
    dimensions, and source units are independent random ones, E max = ∫ t d(F(t)ⁿ), F the law of one cosine, whose square is
    Beta(½, (d - 1)/2). Exact for tight ones too: n coordinates of a random direction, E max of n normal variables over E χ_d.
    Unit norm as Gaussian.
    """
    (n, _), d, overlap = _checked(n_units, dimension, overlap, family)
    return _shared(overlap, d) * _best(n, d, family)


def random_permutation_match(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected permutation_match with as many units on both sides: a random assignment problem.

    Solved by the cavity method for many units. Rank a unit's n correlations by u = n · P(a random one is larger): the ranks are
    uniform, and near its end a cosine has an exponential tail, t(u) ≈ c - log(u) / b. For costs log u the cavity equation X =
    min_i (log u_i - X_i) is solved by e^X ~ n Beta(1, n - 1), the law of the smallest of n - 1 ranks. So the matched rank has
    the density P(E E' > u) with two independent E of that law (2√u K₁(2√u) for many units), where that of the best alone is
    (1 - u/n)^(n - 1). With two units (â₁ - â₂) · (b̂₁ - b̂₂) decides, whose mean is known; the law's error there, a fifth, is
    taken off by (2 / n)². Asymptotic; nothing is fitted. Method: Mézard & Parisi 1985; Aldous 2001, "The ζ(2) limit in the
    random assignment problem".

    Raises:
        ValueError: other numbers of units on both sides: see `simulate_random`.
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    _equal("random_permutation_match", n, m)

    apart = jnp.sqrt(2.0) if family == "tight" else 2 * _root_beta(d - 1, d - 1)  # E |â₁ - â₂|
    two = apart**2 / 4 * _root_beta(1, d - 1)
    law, at_two = (_matched(units, d, family, False) for units in (jnp.maximum(n, 2), jnp.full_like(n, 2)))
    matched = law + (two - at_two) * 4 / n**2
    return jnp.where(n > 1, _shared(overlap, d) * matched, 0.0)  # of one unit there is nothing to choose


def random_soft_match(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected soft_match with as many units on both sides, where it is one to one: `random_permutation_match`."""
    (n, m), *_ = _checked(n_units, dimension, overlap, family)
    _equal("random_soft_match", n, m)
    return random_permutation_match(n_units, dimension, overlap=overlap, family=family)


def random_mcc(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected mcc between the units of both sides: `random_permutation_match` of |r|, whose tail is twice as heavy.

    Asymptotic, by the same cavity law, some 6 % too high for 2 units; of one unit E |cos|, exact.

    Raises:
        ValueError: other numbers of units on both sides.
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)
    _equal("random_mcc", n, m)
    matched = _matched(jnp.maximum(n, 2), d, family, True)
    return _shared(overlap, d) * jnp.where(n > 1, matched, _root_beta(1, d - 1))


def random_jaccard(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected jaccard of Gaussian units of mean 0: J = (1/4 + a) / (3/4 - a), a = arcsin(r) / 2π, at the largest r.

    A unit is positive on half of the samples, and J grows with r (Sheppard 1899), so that the best partner is that of
    `random_semi_match`. Asymptotic: units of many features. Means, thresholds and few active features change it; then there
    is no law: score samples of `superpos.worlds`.
    """
    (n, _), d, overlap = _checked(n_units, dimension, overlap, family)
    return _best_index(n, d, _shared(overlap, d), family)


# Fourth order


def random_cokurtosis(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected cokurtosis of features of equal law: ρ E[|a|²]² / E[|a|⁴], which is ρ for features of one norm.

    Σ κ |a_i|² |b_i|² over shared features, by the root of both sides' own: interference cancels (see
    `superpos.theory.fourth`), unequal norms do not. As of `random_cka` the mean is ρ E[√p_a] E[√p_b] / d, now with p = (Σ
    |a|²)² / Σ |a|⁴. Unit norm: p = d, so that it is ρ, exact. Gaussian: p = (n d + 2) / (n + 2); tight: n (d + 2) / (n + 2);
    exact but for the mean of a root.
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)

    def evenness(n: Any) -> Any:
        if family == "unit_norm":
            return jnp.ones_like(n)
        return (n * (d + 2) if family == "tight" else n * d + 2) / (d * (n + 2))

    return overlap * jnp.sqrt(evenness(n) * evenness(m))


def random_cumulant_cka(n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The expected cumulant_cka of independent features of equal law, whitened, without its direction of energy.

    Not free of interference: about ρ / (1 + 2 d / n²) for few units of many features, one half where the features are as many
    as quadricovariance has room for (`feature_limit`). *Derivation.* Whitened, K_xy = κ Σ_i vec(M_i) vec(M_i')ᵀ with M_i =
    q_i q_iᵀ - |q_i|² I / n, q_i the rows of a random n-frame in d dimensions. |K_xy|² = κ² Σ_ij (M_i · M_j) (M_i' · M_j'),
    and M_i · M_j = P_ij² - P_ii P_jj / n, P a random projection. Its mean is D = (1 - 1/n) E[P_ii²] for i = j, and - D / (d -
    1) otherwise, as rows add up to 0. E[(M_i · M_j)²] follows from P_ii = u, P_ij² = u (1 - u) g, P_jj = (1 - u) g + (1 - g)
    b with independent u ~ Beta(n/2, (d - n)/2), g ~ Beta(½, (d - 2)/2), b ~ Beta((n - 1)/2, (d - n - 1)/2). Means are exact
    for Gaussian and tight arrangements; that of the ratio is taken to be their ratio, 6 % too low for 2 units. Unit norm: the
    variance of u and b is n / d of that, to leading order.

    For 40 features of unit norm in 20 and 10 units it is .88 and .64; samples of `superpos.worlds` gave .87 and .65.

    >>> [round(float(random_cumulant_cka(n, 40)), 2) for n in (40, 20, 10)]
    [1.0, 0.82, 0.52]
    """
    (n, m), d, overlap = _checked(n_units, dimension, overlap, family)

    (left, source), (right, target) = (_interference(k, d, family) for k in (n, m))
    shared = overlap * d
    off = jnp.where(jnp.minimum(n, m) < d, shared * jnp.maximum(shared - 1, 0) / (d - 1) ** 2, 0)
    cross = left * right * (shared + off)
    return jnp.where(jnp.minimum(n, m) > 1, cross / jnp.sqrt(jnp.maximum(source * target, 1e-30)), jnp.nan)


RANDOM: dict[str, Callable[..., Value]] = {
    "semi_match": random_semi_match,
    "permutation_match": random_permutation_match,
    "soft_match": random_soft_match,
    "mcc": random_mcc,
    "jaccard": random_jaccard,
    "ols": random_ols,
    "ridge": random_ridge,
    "pls": random_pls,
    "cka": random_cka,
    "debiased_cka": random_debiased_cka,
    "rsa": random_rsa,
    "procrustes": random_procrustes,
    "cca": random_cca,
    "svcca": random_svcca,
    "pwcca": random_pwcca,
    "cokurtosis": random_cokurtosis,
    "cumulant_cka": random_cumulant_cka,
}


def expected(metric: str, n_units: Any, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian") -> Value:
    """The law of a metric by its name: `RANDOM`.

    Raises:
        ValueError: a metric without a law, and what can be done instead.

    >>> round(float(expected("cka", (16, 32), 64, overlap=0.5, family="tight")), 3)
    0.177
    """
    if metric not in RANDOM:
        raise ValueError(
            f"metric has a law for random arrangements out of {', '.join(RANDOM)}, got {metric!r}: simulate it, by "
            "sp.align of samples of sp.worlds.World(n_features, n_units, overlap)."
        )
    return RANDOM[metric](n_units, dimension, overlap=overlap, family=family)


# What the laws are made of


@jax.jit
def _half_step(x: Any) -> Array:
    """Γ(x + ½) / Γ(x), to six digits in float32, where differences of log Γ would lose them; 0 at 0."""
    x = jnp.asarray(x, jnp.result_type(float))
    factor = jnp.ones_like(x)
    for i in range(4):
        factor = factor * (x + i) / (x + i + 0.5)
    far = x + 4
    series = 1 - 1 / (8 * far) + 1 / (128 * far**2) + 5 / (1024 * far**3) - 21 / (32768 * far**4)
    return factor * jnp.sqrt(far) * series


def _root_beta(first: Any, second: Any) -> Array:
    """E √v, v ~ Beta(first / 2, second / 2): the mean length of `first` out of first + second coordinates of a direction."""
    first = jnp.asarray(first, jnp.result_type(float))
    length = _half_step(first / 2) / _half_step(jnp.maximum(first + second, 1e-6) / 2)
    return jnp.where(jnp.asarray(second) > 0, length, jnp.where(first > 0, 1.0, 0.0))


def _shared(overlap: Any, dimension: Any) -> Array:
    """The mean length of what a unit has of shared features."""
    return _root_beta(overlap * dimension, (1 - overlap) * dimension)


def _beta_moment(first: Any, second: Any, i: int, j: int = 0) -> Any:
    """E[v^i (1 - v)^j], v ~ Beta(first, second); 1 - v = 0 where `second` is 0."""
    top, total = 1.0, first + second
    for k in range(i):
        top = top * (first + k) / (total + k)
    for k in range(j):
        top = top * jnp.maximum(second + k, 0) / (total + i + k)
    return top


@partial(jax.jit, static_argnums=2)
def _interference(n: Any, d: Any, family: Family) -> tuple[Any, Any]:
    """D of `random_cumulant_cka`, and |K_xx|² / κ²."""
    even = d / n if family == "unit_norm" else 1.0
    u, g, b = (even * n / 2, even * (d - n) / 2), (0.5, (d - 2) / 2), (even * (n - 1) / 2, even * (d - n - 1) / 2)
    less = 1 - 1 / n
    alike = less * _beta_moment(*u, 2)
    squared = less**2 * _beta_moment(*u, 4)
    apart = (
        less**2 * _beta_moment(*u, 2, 2) * _beta_moment(*g, 2)
        - 2 * less / n * _beta_moment(*u, 2, 1) * _beta_moment(*g, 1, 1) * _beta_moment(*b, 1)
        + _beta_moment(*u, 2) * _beta_moment(*g, 0, 2) * _beta_moment(*b, 2) / n**2
    )
    return alike, d * squared + d * (d - 1) * jnp.where(n < d, apart, 0)


def _effective_units(n: Any, d: Any, family: Family) -> Any:
    if family == "tight":
        return n
    return n * d / (n + d - 1) if family == "unit_norm" else jnp.where(n > 0, (n * d + 2) / (n + d + 1), 0)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_ANGLES, _WEIGHTS = (_NODES + 1) * np.pi / 4, _WEIGHTS * np.pi / 4


@partial(jax.jit, static_argnums=3)
def _nuclear(t: Any, u: Any, overlap: Any, power: int) -> Array:
    """The integral of the module; η = h sin² takes its singular ends out."""
    end = jnp.minimum(jnp.minimum(t, u), overlap)
    sine, cosine = jnp.sin(_ANGLES), jnp.cos(_ANGLES)
    eta = end * sine**2
    inside = jnp.sqrt(jnp.maximum((t - eta) * (u - eta) * (overlap - eta), 0))
    # 1 - η is h cos² + (1 - h): without a difference of nearly equal numbers.
    return 4 / jnp.pi * jnp.sqrt(end) * jnp.sum(_WEIGHTS * inside * cosine / (end * cosine**2 + (1 - end)) ** power)


def _canonical(n: Any, m: Any, d: Any, overlap: Any) -> Array:
    n, m = jnp.minimum(n, d), jnp.minimum(m, d)  # more units than features span no more
    k, larger = jnp.minimum(n, m), jnp.maximum(n, m)
    limit = _nuclear(n / d, m / d, overlap, 1) * d / k
    ratio, rest = larger / k, d / k
    one = _shared(overlap, rest) * _root_beta(ratio, jnp.maximum(rest - ratio, 0))
    return limit + (one - limit) / k


@partial(jax.jit, static_argnums=(1, 2))
def _components(ratio: Any, variance: float, family: Family) -> Array:
    """The share of a side's components that hold a share of its variance: of the Marchenko-Pastur law with t = n / d."""
    if family == "tight":
        return jnp.asarray(variance, jnp.result_type(float))
    # λ = 1 + t + 2 √t cos θ has the weight 2 sin² θ / (π λ): cumulate from the largest.
    theta = (jnp.arange(2000) + 0.5) * jnp.pi / 2000
    root = jnp.sqrt(ratio)
    value = (1 - root) ** 2 + 4 * root * jnp.cos(theta / 2) ** 2
    held = jnp.cumsum(jnp.sin(theta) ** 2) * 2 / 2000
    count = jnp.cumsum(jnp.sin(theta) ** 2 / value) * 2 / 2000
    return jnp.interp(variance, held, count / count[-1])


def _quantile(dimension: Any, family: Family) -> Callable[[Array], Array]:
    """The correlation of two units that is exceeded with a given probability."""
    if family == "tight":  # coordinates of a random direction, of which the others make it one
        mean_length = jnp.sqrt(2.0) * _half_step(dimension / 2)
        return lambda exceeded: -norm.ppf(exceeded) / mean_length
    return lambda exceeded: _cosine(exceeded, dimension)


@partial(jax.jit, static_argnums=2)
def _best(n: Any, d: Any, family: Family) -> Array:
    """The mean of the largest of n correlations."""
    return _expected(n, _quantile(d, family), lambda u: (1 - u / n) ** (n - 1))


@partial(jax.jit, static_argnums=3)
def _best_index(n: Any, d: Any, shared: Any, family: Family) -> Array:
    """The mean of what it is worth as a Jaccard index."""
    quantile = _quantile(d, family)

    def index(exceeded: Array) -> Array:
        angle = jnp.arcsin(jnp.clip(shared * quantile(exceeded), -1, 1)) / (2 * jnp.pi)
        return (0.25 + angle) / (0.75 - angle)

    return _expected(n, index, lambda u: (1 - u / n) ** (n - 1))


@partial(jax.jit, static_argnums=(2, 3))
def _matched(n: Any, d: Any, family: Family, unsigned: bool) -> Array:
    """The mean of the correlations, or of their absolute values, that an assignment of n to n units takes."""
    quantile = _quantile(d, family)
    return _expected(n, lambda p: quantile(p / 2 if unsigned else p), lambda u: _matched_density(u, n))


def _expected(n: Any, quantile: Callable[[Array], Array], density: Callable[[Array], Array]) -> Array:
    """∫ t(u) density(u) du over ranks u in 0..n, t(u) what is exceeded with probability u / n."""
    # u = n s², so that the end where correlations are large is resolved.
    s = (jnp.arange(2000) + 0.5) / 2000
    weights = density(n * s**2) * s
    return jnp.sum(quantile(s**2) * weights) / jnp.sum(weights)


def _cosine(exceeded: Array, dimension: Any) -> Array:
    """The value that a random cosine exceeds with a given probability, by bisection."""

    def tail(t: Array) -> Array:
        half = 0.5 * betainc((dimension - 1) / 2, 0.5, 1 - t**2)
        return jnp.where(t > 0, half, 1 - half)

    low, high = -jnp.ones_like(exceeded), jnp.ones_like(exceeded)

    def halve(_: Any, ends: Any) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        larger = tail(middle) > exceeded
        return jnp.where(larger, middle, low), jnp.where(larger, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    return (low + high) / 2


def _matched_density(u: Array, n: Any) -> Array:
    """P(E E' > u), E and E' independent and n times Beta(1, n - 1): ∫ p(x) P(E' > u / x) dx on a grid that is even in log x."""
    x = n * jnp.exp(jnp.linspace(-14.0 - jnp.log(n), 0.0, 800))
    survives = jnp.maximum(1 - u[:, None] / (n * x), 0) ** (n - 1)
    return jnp.sum(jnp.maximum(1 - x / n, 0) ** (n - 2) * survives * x, axis=1)


def _checked(n_units: Any, dimension: Any, overlap: Any, family: str) -> tuple[tuple[Any, Any], Any, Any]:
    """Both sides' units, the dimension and the overlap as floats, if they make sense."""
    if family not in get_args(Family):
        raise ValueError(f"family must be one of {', '.join(get_args(Family))}, got {family!r}.")
    both = tuple(n_units) if isinstance(n_units, tuple | list) else (n_units, n_units)
    if len(both) != 2:
        raise ValueError(f"n_units must be a number, or that of the source and that of the target, got {n_units!r}.")
    for n in both:
        if not isinstance(n, jax.Array):
            positive_integer("n_units", n)
    if not isinstance(dimension, jax.core.Tracer):
        if not dimension >= 1 or not math.isfinite(dimension):
            raise ValueError(f"dimension must be at least 1, got {dimension}.")
        if family == "tight" and any(not isinstance(n, jax.core.Tracer) and n > dimension for n in both):
            raise ValueError(f"n_units must be at most dimension for tight frames, got {n_units} of {dimension} features.")
    if not isinstance(overlap, jax.core.Tracer) and not 0 <= overlap <= 1:
        raise ValueError(f"overlap must be between 0 and 1, got {overlap}.")
    n, m, d, overlap = (jnp.asarray(value, jnp.result_type(float)) for value in (*both, dimension, overlap))
    return (n, m), d, overlap


def _equal(name: str, n: Any, m: Any) -> None:
    if not isinstance(n, jax.core.Tracer) and not isinstance(m, jax.core.Tracer) and n != m:
        raise ValueError(
            f"{name} has a law for as many units on both sides, got {n:g} and {m:g}: score drawn "
            "arrangements by sp.theory.predict."
        )

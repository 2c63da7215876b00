"""Alignment predicted from arrangements alone: y = z A for features z with covariance Σ, no sample drawn.

Two arrangements of the same features have the cross-covariance A_aᵀ Σ A_b, and nothing else enters metrics that read second
moments: `population` makes the moments that an endless sample would have, for `sp.score` to read. The question is that of
Longon, Klindt & Khosla, arXiv 2510.03186; their statements were not at hand, so what is here is derived in the docstrings, and
tested against simulation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import alignment, arrangements, stats, transport
from superpos import features as features_lib
from superpos import moments as moments_lib
from superpos.linalg import matmul
from superpos.metrics.base import Metric, Score, positive_integer
from superpos.moments import Moments, Side

Arrangement = Float[Array, "features units"]

# Metrics that second moments decide, with the default settings of each.
PREDICTED = ("semi_match", "permutation_match", "soft_match", "ols", "ridge", "cka", "procrustes")


def covariances(a: Arrangement, b: Arrangement, covariance: Float[Array, "features features"]) -> tuple[Array, Array, Array]:
    """Within and across two arrangements: A_aᵀ Σ A_a, A_aᵀ Σ A_b, A_bᵀ Σ A_b.

    Raises:
        ValueError: as `predict`.
    """
    a, b, covariance = _checked(a, b, covariance)
    left, right = matmul(covariance, a), matmul(covariance, b)
    return matmul(a.T, left), matmul(a.T, right), matmul(b.T, right)


def correlations(
    a: Arrangement, b: Arrangement, covariance: Float[Array, "features features"]
) -> Float[Array, "units_a units_b"]:
    """R_ij = (A_aᵀ Σ A_b)_ij / √((A_aᵀ Σ A_a)_ii (A_bᵀ Σ A_b)_jj), 0 for units that never vary."""
    xx, xy, yy = covariances(a, b, covariance)
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(xx), 0)[:, None] * jnp.maximum(jnp.diagonal(yy), 0))
    return jnp.where(scale > 0, xy / jnp.where(scale > 0, scale, 1), 0)


def population(a: Arrangement, b: Arrangement, covariance: Float[Array, "features features"], n_folds: int = 3) -> Moments:
    """The moments of an endless sample: every fold has the same, a million samples each, so that shrinkage vanishes.

    Args:
        a, b: arrangements of the same features; a is the source.
        covariance: Σ of the features, `(n_features, n_features)`.
        n_folds: static; ridge needs 3, to choose its alpha.
    """
    n = 1e6
    xx, xy, yy = covariances(a, b, covariance)

    def side(scatter: Array) -> Side:
        squares = jnp.maximum(jnp.diagonal(scatter), 0)
        varies = jnp.where(squares > 0, 1.0, 0.0)
        parts = (jnp.zeros_like(squares), n * squares, -varies, varies, n * scatter)
        return Side(*(jnp.broadcast_to(part, (n_folds, *part.shape)) for part in parts))

    return Moments(jnp.full(n_folds, n), side(xx), side(yy), jnp.broadcast_to(n * xy, (n_folds, *xy.shape)))


def predict(
    a: Arrangement,
    b: Arrangement,
    covariance: Float[Array, "features features"],
    metrics: str | Metric | Sequence[str | Metric] = PREDICTED,
) -> dict[str, Score]:
    """The scores of an endless sample of y_a = z A_a and y_b = z A_b: see `population`.

    The inner-product RSA of column-centred data has the limit of `cka`: for independent stimuli, E[(x·x')(y·y')] = ‖Σ_xy‖² and
    products of different stimuli have mean 0, so that their correlation over pairs is ‖Σ_xy‖² / (‖Σ_xx‖ ‖Σ_yy‖).
    Row-normalised RSA (`rsa`) depends on more than Σ and is not predicted.

    Args:
        a, b: arrangements of the same features, `(n_features, n_units)` each; a is the source.
        covariance: Σ of the features, `(n_features, n_features)`: see `sp.features.covariance`.
        metrics: as in `sp.align`, out of those that second moments decide: `PREDICTED` and others.

    Returns:
        Scores as `sp.align` returns them; all folds are alike.

    Raises:
        ValueError: shapes that do not fit; concrete values that are not finite; a concrete covariance that is not symmetric, or
            with a negative variance.
    """
    return alignment.score(population(a, b, covariance), metrics)


# Units that `measure` samples: y = z A, and y = relu(z A).
UNITS = ("linear", "rectified")


def measure(
    a: Arrangement,
    b: Arrangement,
    features: Any,
    key: Key[Array, ""],
    *,
    n_batches: int,
    batch_size: int,
    n_rsa: int,
    width: int,
    n_folds: int = 3,
    tick: Callable[[Any], None] = lambda i: None,
) -> dict[str, Any]:
    """The moments of two arrangements, of an endless sample and of samples of each of `UNITS`, and the rsa of other samples.

    Args:
        a, b: arrangements of the same features, `(n_features, n_units)` each; a is the source.
        features: any of `sp.features`; may be traced.
        key: of the samples.
        n_batches, batch_size: of the samples, which are made one batch after the other; batch i is of fold i mod n_folds.
        n_rsa: samples of the rsa, which moments do not give.
        width: of the moments on both sides, filled with silent units, so that scores of several n_units compile once.
        n_folds: static.
        tick: is told the number of each batch.

    Returns:
        `moments`, leaves `(1 + len(UNITS), ...)`, those of `population` first; `rsa`, `(len(UNITS), n_folds)`.

    >>> a, b = arrangements.varied_pair(jax.random.key(0), 6, 2)
    >>> z = features_lib.SparseFeatures(6, 0.5)
    >>> measured = measure(a, b, z, jax.random.key(1), n_batches=3, batch_size=64, n_rsa=96, width=2)
    >>> measured["rsa"].shape, measured["moments"].xy.shape
    ((2, 3), (3, 3, 2, 2))
    """

    def sides(i: Any, n: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        z = features.sample(jax.random.fold_in(key, i), n)
        x, y = (matmul(side.T, z.T).T for side in (a, b))  # samples last in memory
        return (x, y), (jax.nn.relu(x), jax.nn.relu(y))

    def add(sums: list[Moments], i: Array) -> tuple[list[Moments], None]:
        tick(i)
        both = zip(sums, sides(i, batch_size), strict=True)
        return [moments_lib.update(old, x, y, i % n_folds) for old, (x, y) in both], None

    empty = moments_lib.init(a.shape[1], b.shape[1], n_folds, ("xx", "xy", "yy"))
    sampled, _ = jax.lax.scan(add, [empty] * len(UNITS), jnp.arange(n_batches))
    kinds = (population(a, b, features_lib.covariance(features), n_folds), *sampled)
    units = jnp.arange(width)
    moments = [moments_lib.select(kind, units, units) for kind in kinds]
    ids = np.arange(n_rsa) % n_folds
    rsa = [alignment.align(x, y, "rsa", ids)["rsa"].folds for x, y in sides(n_batches, n_rsa)]
    return {"moments": jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments), "rsa": jnp.stack(rsa)}


def perfectly_matchable(a: Arrangement, b: Arrangement, covariance: Array, tolerance: float = 1e-5) -> Array:
    """Whether some one-to-one matching of units gives a score of 1: arrangements equal up to permutation and positive scale.

    Units i and j correlate perfectly just where Σ^½ A_a,i is a positive multiple of Σ^½ A_b,j; with Σ of full rank, where the
    columns themselves are.
    """
    matched = predict(a, b, covariance, ("permutation_match",))["permutation_match"]
    return jnp.asarray(a.shape[1] == b.shape[1]) & (matched.mean >= 1 - tolerance)


# Random arrangements


def effective_dimension(covariance: Float[Array, "features features"]) -> Float[Array, ""]:
    """(tr Σ)² / tr Σ²: so many features of equal variance would make random units correlate as much."""
    return jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)


def random_semi_match(n_units: int, dimension: float) -> Float[Array, ""]:
    """The expected semi_match of two Gaussian arrangements: the mean of the largest of n_units random cosines.

    For features of equal variance each target unit is a fixed direction in `dimension` = n_features dimensions, and source
    units are independent random ones: E max = ∫ t d(F(t)ⁿ), F the law of one cosine, whose square is Beta(½, (d - 1)/2). For
    other Σ pass `effective_dimension`, an approximation.
    """
    _positive(n_units, dimension)
    return _expected(n_units, dimension, lambda u: (1 - u / n_units) ** (n_units - 1))


def random_permutation_match(n_units: int, dimension: float) -> Float[Array, ""]:
    """The expected permutation_match (and soft_match) of two Gaussian arrangements with n_units units each.

    A random assignment problem, solved by the cavity method for many units: of simulations it is a few percent off from 8 units
    and 64 dimensions on, and a fifth for 2 units. Rank a unit's n correlations by u = n · P(a random one is
    larger): the ranks are uniform, and near its end a cosine has an exponential tail, t(u) ≈ c - log(u) / b. For costs log u
    the cavity equation X = min_i (log u_i - X_i) is solved by e^X ~ n Beta(1, n - 1), the law of the smallest of n - 1 ranks.
    So the matched rank has the density P(E E' > u) with two independent E of that law (2√u K₁(2√u) for many units), where that
    of the best alone is (1 - u/n)^(n - 1). No constant is fitted. Method: Mézard & Parisi 1985; Aldous 2001, "The ζ(2) limit in
    the random assignment problem".
    """
    _positive(n_units, dimension)
    if n_units == 1:
        return jnp.zeros(())  # nothing to choose
    return _expected(n_units, dimension, lambda u: _matched_density(u, n_units))


# With equally many units on both sides soft matching is one to one.
RANDOM = {
    "semi_match": random_semi_match,
    "permutation_match": random_permutation_match,
    "soft_match": random_permutation_match,
}


def simulate_random(key: Key[Array, ""], n_features: int, n_units: int) -> dict[str, Float[Array, ""]]:
    """The scores of an endless sample of two Gaussian arrangements of features of equal variance: what `RANDOM` expects.

    Args:
        key: draws both arrangements.
        n_features, n_units: static sizes.
    """
    sides = (arrangements.gaussian(side, n_features, n_units) for side in jax.random.split(key))
    a, b = (arrangements.directions(side.T) for side in sides)  # units of norm 1: products are correlations
    r = matmul(a, b.T)
    return {"semi_match": jnp.mean(jnp.max(r, axis=0)), "permutation_match": -transport.assignment(-r).objective / n_units}


def agreement(predicted: Float[np.ndarray, "pairs folds"], measured: Float[np.ndarray, "pairs folds"]) -> dict[str, float]:
    """Measured less predicted scores of many pairs, beside the standard error of one measured score.

    The error is that of the mean over folds, which are independent samples, from their spread; root mean square over pairs.

    Returns:
        `mean_difference`, `rms_difference`, `largest_difference`, `sampling_error`, `n_pairs`.
    """
    predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    error = (measured - predicted).mean(axis=1)
    return {
        "mean_difference": error.mean(),
        "rms_difference": np.sqrt(np.mean(error**2)),
        "largest_difference": np.abs(error).max(),
        "sampling_error": np.sqrt(np.mean(measured.var(axis=1, ddof=1) / measured.shape[1])),
        "n_pairs": len(error),
    }


def summary(predicted: Float[np.ndarray, "pairs folds"], measured: Float[np.ndarray, "pairs folds"]) -> dict[str, Any]:
    """Scores of many pairs, predicted and measured, and how far they are apart.

    Returns:
        `predicted`, the mean; of what is measured `mean`, `std` and `ci95`, over `n_pairs` independent pairs;
        `mean_difference` and `largest_difference`, as `agreement` has them.

    >>> told = summary(np.zeros((3, 2)), np.array([[0.0, 0.2], [0.1, 0.1], [0.1, 0.1]]))
    >>> round(float(told["mean"]), 3), told["n_pairs"], round(float(told["largest_difference"]), 3)
    (0.1, 3, 0.1)
    """
    predicted, values = (np.asarray(scores, np.float64).mean(axis=1) for scores in (predicted, measured))
    over, error = stats.over_seeds(values), values - predicted
    over["n_pairs"] = over.pop("n_seeds")
    differences = {"mean_difference": error.mean(), "largest_difference": np.abs(error).max()}
    return {"predicted": predicted.mean(), **over, **differences}


def agreement_of_random(simulated: Float[np.ndarray, " pairs"], n_features: int, n_units: int, metric: str) -> dict[str, float]:
    """The `formula` of `RANDOM` beside the `mean` of simulations, its `standard_error`, and the `relative_difference`.

    Args:
        simulated: `(pairs,)`, scores of pairs of random arrangements, at least 2.
        n_features, n_units: of the arrangements.
        metric: a name out of `RANDOM`.
    """
    simulated = np.asarray(simulated, np.float64)
    mean, formula = simulated.mean(), float(RANDOM[metric](n_units, n_features))
    return {
        "formula": formula,
        "mean": mean,
        "standard_error": simulated.std(ddof=1) / math.sqrt(len(simulated)),
        "relative_difference": formula / mean - 1,
        "n_pairs": len(simulated),
    }


def _expected(n_units: Any, dimension: Any, density: Callable[..., Array]) -> Array:
    """∫ t(u) density(u) du over ranks u in 0..n_units, t(u) the cosine that is exceeded with probability u / n_units."""
    # u = n s², so that the end where cosines are large is resolved.
    s = (jnp.arange(4000) + 0.5) / 4000
    u = n_units * s**2
    weights = density(u) * s
    return jnp.sum(_cosine(s**2, dimension) * weights) / jnp.sum(weights)


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
    x = n * jnp.exp(jnp.linspace(-14.0 - math.log(n), 0.0, 800))
    survives = jnp.maximum(1 - u[:, None] / (n * x), 0) ** (n - 1)
    return jnp.sum((1 - x / n) ** (n - 2) * survives * x, axis=1)


# Recovery


def recoverable_sparsity(arrangement: Arrangement) -> Float[Array, ""]:
    """Features that may be active at once so that sparse inference surely finds them: fewer than (1 + 1/μ) / 2.

    μ is the mutual coherence. Below this number the sparsest solution is unique, and basis pursuit and orthogonal matching
    pursuit find it; then units of any two such arrangements, disentangled, match perfectly. Sufficient, far from necessary.
    Sources: Donoho & Elad 2003, theorem 7 and corollary 1; Tropp 2004, "Greed is good", theorem B.
    """
    return (1 + 1 / arrangements.coherence(arrangement)) / 2


def isometry_recovers(constant: float) -> bool:
    """Whether a restricted isometry constant δ_2s guarantees that basis pursuit recovers all s-sparse features: δ_2s < √2 - 1.

    Source: Candès 2008, "The restricted isometry property and its implications for compressed sensing", theorem 1.2. As
    `arrangements.restricted_isometry` is a lower bound of the constant, it can rule the guarantee out, not prove it.
    """
    return constant < math.sqrt(2) - 1


def phase_transition(compression: ArrayLike) -> Array:
    """The share of features that may be active for sparse inference to find them in a large random arrangement.

    Below it, the least sum of non-negative features that explains the units is typically the true one; above it, typically
    not. The weak threshold ε = ρ δ of Donoho and Tanner for non-negative signals, in the form of approximate message passing:
    min over τ of ε (1 + τ²) + (1 - ε) E[(Z - τ)₊²] = δ, Z standard normal. At the minimum ε = g / (τ + g) with
    g = E[(Z - τ)₊] = φ(τ) - τ Φ(-τ), so that τ is a parameter of the curve, found by bisection. Exact for many features, with
    Gaussian or uniformly random directions and linear units; for few it is passed gradually.

    Sources: Donoho & Tanner 2005, "Neighborliness of randomly projected simplices in high dimensions"; Donoho, Maleki &
    Montanari 2009, "Message-passing algorithms for compressed sensing".

    Args:
        compression: δ = n_units / n_features, between 0 and 1, of any shape; may be traced, but has no gradient.

    Returns:
        ε, as many values, NaN outside 0 to 1. n_features ε features may be active at once, ρ = ε / δ of the number of units.

    >>> round(float(phase_transition(0.5)), 3)
    0.279
    """
    compression = jnp.asarray(compression, jnp.result_type(float))

    def curve(tau: Array) -> tuple[Array, Array]:
        density, tail = norm.pdf(tau), norm.cdf(-tau)
        excess = jnp.maximum(density - tau * tail, 0)
        share = excess / (tau + excess)
        return share, share * (1 + tau**2) + (1 - share) * ((1 + tau**2) * tail - tau * density)

    def halve(_: Any, ends: Any) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        falls = curve(middle)[1] > compression  # δ falls from 1 at τ = 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    low, high = jnp.zeros_like(compression), jnp.full_like(compression, 8.0)
    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    return jnp.where((compression >= 0) & (compression <= 1), curve((low + high) / 2)[0], jnp.nan)


def _checked(a: Any, b: Any, covariance: Any) -> tuple[Any, Any, Any]:
    """All three as arrays of floats, if they fit."""
    if hasattr(covariance, "joint"):
        raise ValueError("covariance must be an array, got a distribution of features: pass sp.features.covariance(features).")
    named = {"a": a, "b": b, "covariance": covariance}
    named = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in named.items()}
    a, b, covariance = named.values()
    n = len(a) if a.ndim == 2 else 0
    if not (a.ndim == b.ndim == 2 and len(b) == n and covariance.shape == (n, n)):
        raise ValueError(
            "a and b must be (n_features, n_units) and covariance (n_features, n_features) of the same features, got "
            f"{a.shape}, {b.shape} and {covariance.shape}."
        )
    for name, value in named.items():
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values.")
    if not isinstance(covariance, jax.core.Tracer):
        values = np.asarray(covariance)
        if not np.allclose(values, values.T, rtol=1e-3, atol=1e-6 * np.abs(values).max()) or (values.diagonal() < 0).any():
            raise ValueError("covariance must be symmetric, with variances of at least 0.")
    return a, b, covariance


def _positive(n_units: Any, dimension: Any) -> None:
    positive_integer("n_units", n_units)
    if not isinstance(dimension, jax.core.Tracer) and not dimension >= 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}.")

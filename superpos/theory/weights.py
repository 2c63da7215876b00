"""Scores of two given arrangements: y = z A for features z with covariance Σ, no sample drawn.

Two arrangements of the same features have the cross-covariance A_aᵀ Σ A_b, and nothing else enters metrics that read second
moments: `population` makes the moments that an endless sample would have, for `sp.score` to read. Features that only one side
has are rows of zeros in the other's arrangement. The question is that of Longon, Klindt & Khosla, arXiv 2510.03186.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from superpos import alignment
from superpos.linalg import matmul
from superpos.metrics.base import Metric, Score, positive_integer
from superpos.metrics.registry import resolve
from superpos.metrics.ridge import Ridge
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


def population(
    a: Arrangement,
    b: Arrangement,
    covariance: Float[Array, "features features"],
    n_folds: int = 3,
    *,
    noise: tuple[Any, Any] = (0.0, 0.0),
) -> Moments:
    """The moments of an endless sample: every fold has the same, a million samples each, so that shrinkage vanishes.

    Args:
        a, b: arrangements of the same features; a is the source.
        covariance: Σ of the features, `(n_features, n_features)`.
        n_folds: static; ridge needs 3, to choose its alpha.
        noise: of source and target, the standard deviation of independent noise, in units of that of the units (root mean
        square).
    """
    xx, xy, yy = covariances(a, b, covariance)
    xx, yy = (
        own + jnp.asarray(level) ** 2 * jnp.mean(jnp.diagonal(own)) * jnp.eye(len(own))
        for own, level in zip((xx, yy), noise, strict=True)
    )
    return endless(xx, xy, yy, n_folds=n_folds)


def endless(xx: Array, xy: Array, yy: Array, *, means: tuple[Any, Any] = (0.0, 0.0), n_folds: int = 3) -> Moments:
    """The moments of an endless sample with these covariances and means, of linear units or others.

    Args:
        xx, xy, yy: covariances within the source, across, and within the target.
        means: of source and target units.
        n_folds: static.
    """
    n = 1e6

    def side(scatter: Array, mean: Any) -> Side:
        squares = jnp.maximum(jnp.diagonal(scatter), 0)
        varies = jnp.where(squares > 0, 1.0, 0.0)
        mean = jnp.broadcast_to(jnp.asarray(mean, scatter.dtype), squares.shape)
        parts = (mean, n * squares, mean - varies, mean + varies, n * scatter)
        return Side(*(jnp.broadcast_to(part, (n_folds, *part.shape)) for part in parts))

    cross = jnp.broadcast_to(n * xy, (n_folds, *xy.shape))
    return Moments(jnp.full(n_folds, n), side(xx, means[0]), side(yy, means[1]), cross)


def predict(
    a: Arrangement,
    b: Arrangement,
    covariance: Float[Array, "features features"],
    metrics: str | Metric | Sequence[str | Metric] = PREDICTED,
    *,
    noise: tuple[Any, Any] = (0.0, 0.0),
) -> dict[str, Score]:
    """The scores of an endless sample of y_a = z A_a and y_b = z A_b: see `population`.

    For a toy model or an autoencoder pass its read-in or read-out weights; no data are needed. `predict_pairs` does many at
    once.

    The inner-product RSA of column-centred data has the limit of `cka`: for independent stimuli, E[(x·x')(y·y')] = ‖Σ_xy‖² and
    products of different stimuli have mean 0, so that their correlation over pairs is ‖Σ_xy‖² / (‖Σ_xx‖ ‖Σ_yy‖).
    Row-normalised RSA (`rsa`) depends on more than Σ and is not predicted; for random arrangements `random_rsa` is its law.

    Args:
        a, b: arrangements of the same features, `(n_features, n_units)` each; a is the source.
        covariance: Σ of the features, `(n_features, n_features)`: see `sp.features.covariance`.
        metrics: as in `sp.align`, out of those that second moments decide: `PREDICTED` and others.
        noise: see `population`.

    Returns:
        Scores as `sp.align` returns them; all folds are alike.

    Raises:
        ValueError: shapes that do not fit; concrete values that are not finite; a concrete covariance that is not symmetric, or
            with a negative variance.
    """
    return alignment.score(population(a, b, covariance, noise=noise), metrics)


def predict_pairs(
    a: Float[Array, "pairs features units_a"],
    b: Float[Array, "pairs features units_b"],
    covariance: Float[Array, "features features"],
    metrics: str | Metric | Sequence[str | Metric] = PREDICTED,
    *,
    noise: tuple[float, float] = (0.0, 0.0),
    block: int = 64,
) -> dict[str, Float[Array, " pairs"]]:
    """`predict` of many pairs, in one compiled program: ten thousand pairs of 64 features in 16 units take seconds.

    Args:
        a, b: arrangements, pair by pair.
        covariance, metrics, noise: as in `predict`, the same for all.
        block: pairs that are worked on at once.

    Returns:
        The `mean` of each metric's score.

    Raises:
        ValueError: as `predict`; other numbers of pairs; a block below 1.

    >>> a = jax.random.normal(jax.random.key(0), (2, 3, 6, 4))
    >>> scores = predict_pairs(a[0], a[1], jnp.eye(6), "cka")
    >>> scores["cka"].shape
    (3,)
    """
    positive_integer("block", block)
    if not (np.ndim(a) == np.ndim(b) == 3 and len(a) == len(b)):
        raise ValueError(
            f"a and b must be (pairs, n_features, n_units) with as many pairs each, got {np.shape(a)} and {np.shape(b)}."
        )
    a, b = jnp.asarray(a), jnp.asarray(b)
    covariance = _checked(a[0], b[0], covariance)[2]
    for name, value in {"a": a, "b": b}.items():
        if not isinstance(value, jax.core.Tracer) and not bool(jnp.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite values.")
    return _predict_pairs(a, b, covariance, resolve(metrics), tuple(float(level) for level in noise), min(block, len(a)))


@partial(jax.jit, static_argnums=(3, 4, 5))
def _predict_pairs(a: Array, b: Array, covariance: Array, metrics: Any, noise: Any, block: int) -> dict[str, Array]:
    # Folds are alike: one will do for all but ridge, which divides its training part once more.
    groups = {1: [metric for metric in metrics if not isinstance(metric, Ridge)]}
    groups[3] = [metric for metric in metrics if isinstance(metric, Ridge)]

    def one(pair: tuple[Array, Array]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for n_folds, group in groups.items():
            if group:
                scores = alignment.score(population(*pair, covariance, n_folds, noise=noise), group)
                found |= {name: score.mean for name, score in scores.items()}
        return {metric.name: found[metric.name] for metric in metrics}

    # Whole blocks: what is left over would be compiled once more.
    n = len(a)
    whole = [jnp.concatenate([side, side[: -n % block]]) for side in (a, b)]
    blocks = [side.reshape(-1, block, *side.shape[1:]) for side in whole]
    scores = jax.lax.map(jax.vmap(one), (blocks[0], blocks[1]))
    return {name: score.reshape(-1)[:n] for name, score in scores.items()}


def perfectly_matchable(a: Arrangement, b: Arrangement, covariance: Array, tolerance: float = 1e-5) -> Array:
    """Whether some one-to-one matching of units gives a score of 1: arrangements equal up to permutation and positive scale.

    Units i and j correlate perfectly just where Σ^½ A_a,i is a positive multiple of Σ^½ A_b,j; with Σ of full rank, where the
    columns themselves are.
    """
    matched = predict(a, b, covariance, ("permutation_match",))["permutation_match"]
    return jnp.asarray(a.shape[1] == b.shape[1]) & (matched.mean >= 1 - tolerance)


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

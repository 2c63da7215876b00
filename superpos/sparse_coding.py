"""Inference of sparse features with a known dictionary: what a disentangler could read that knows the arrangement."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from superpos import arrangements, linalg


def fista(
    y: Float[Array, "samples units"],
    arrangement: Float[Array, "features units"],
    penalty: ArrayLike = 0.01,
    *,
    ridge: ArrayLike = 0.0,
    upper: ArrayLike = jnp.inf,
    rectified: bool = False,
    steps: int = 500,
) -> Float[Array, "samples features"]:
    """Non-negative features that explain the units: argmin over 0 ≤ z ≤ upper of ½|y - z A|² + penalty · Σ z + ½ ridge · |z|².

    Accelerated proximal gradient descent. Source: Beck & Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm for
    linear inverse problems", FISTA with constant step size.

    Args:
        y: units, `(n_samples, n_units)`.
        arrangement: A, `(n_features, n_units)`.
        penalty: of the sum of the features; scikit-learn's `Lasso(alpha, positive=True)` of each sample has alpha = penalty /
            n_units.
        ridge: of their squares, as in the elastic net: pulls towards the mean of what is possible where units do not decide.
        upper: the largest value that a feature can have, scalar or `(n_features,)`.
        rectified: y = relu(z A): a silent unit says only that its pre-activation was not positive, so that its error is
            relu(z A) in place of its difference from y.
        steps: static.

    Returns:
        Features, `(n_samples, n_features)`.

    Raises:
        ValueError: y and the arrangement have different numbers of units; steps below 1; a negative penalty, ridge or upper.
    """
    y, arrangement = _checked(y, arrangement)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    for name, value in (("penalty", penalty), ("ridge", ridge), ("upper", upper)):
        if isinstance(value, int | float) and not value >= 0:  # traced ones can't be checked
            raise ValueError(f"{name} must be at least 0, got {value}.")
    if jnp.shape(upper) not in ((), arrangement.shape[:1]):
        raise ValueError(f"upper must be a number or have shape {arrangement.shape[:1]}, got {jnp.shape(upper)}.")
    # Samples run along the last axis: on CPU all passes and matmuls are then fast.
    units, upper = y.T, jnp.broadcast_to(jnp.asarray(upper), arrangement.shape[:1])[:, None]
    silent = rectified & (units <= 0)
    units = jnp.maximum(units, 0) if rectified else units
    step = 1 / jnp.maximum(_largest_eigenvalue(linalg.matmul(arrangement.T, arrangement)) + ridge, 1e-30)

    def improve(state: Any, _: Any) -> tuple[Any, None]:
        z, ahead, t = state
        error = linalg.matmul(arrangement.T, ahead) - units
        error = jnp.where(silent, jnp.maximum(error, 0), error)
        gradient = linalg.matmul(arrangement, error) + ridge * ahead + penalty
        moved = jnp.clip(ahead - step * gradient, 0, upper).astype(z.dtype)
        faster = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return (moved, moved + (t - 1) / faster * (moved - z), faster), None

    start = jnp.zeros((arrangement.shape[0], y.shape[0]), y.dtype)
    (z, _, _), _ = lax.scan(improve, (start, start, jnp.ones((), start.dtype)), length=steps)
    return z.T


def omp(
    y: Float[Array, "samples units"], arrangement: Float[Array, "features units"], k: int, *, nonnegative: bool = False
) -> Float[Array, "samples features"]:
    """Orthogonal matching pursuit: k times the feature most correlated with the residual joins, and all are fitted anew.

    Source: Pati, Rezaiifar & Krishnaprasad 1993; Tropp 2004.

    Args:
        y: units, `(n_samples, n_units)`.
        arrangement: A, `(n_features, n_units)`; features are compared by direction, those of no length never join.
        k: features that join; static.
        nonnegative: only features that correlate positively join, and one whose weight turns negative is set to 0 at the end.

    Returns:
        Features, `(n_samples, n_features)`, at most k of each sample not 0.

    Raises:
        ValueError: k is not in 1..min(n_features, n_units), or y and the arrangement have different numbers of units.
    """
    y, arrangement = _checked(y, arrangement)
    n_features, n_units = arrangement.shape
    if not isinstance(k, int) or not 1 <= k <= min(n_features, n_units):
        raise ValueError(f"k must be between 1 and min(n_features, n_units) = {min(n_features, n_units)}, got {k}.")
    return _omp(y, arrangement, k, nonnegative)


@partial(jax.jit, static_argnums=(2, 3))
def _omp(y: Array, arrangement: Array, k: int, nonnegative: bool) -> Array:
    live = arrangements.feature_norms(arrangement) > 0
    directions = arrangements.directions(arrangement)

    def of_sample(target: Array) -> Array:
        # Gram-Schmidt over the chosen directions: `basis` is orthonormal, so the residual needs no solve in each round.
        def join(state: Any, i: Array) -> tuple[Any, None]:
            residual, basis, chosen = state
            fit = linalg.matmul(directions, residual)
            fit = jnp.where(live & ~jnp.isin(jnp.arange(len(fit)), chosen), fit if nonnegative else jnp.abs(fit), -jnp.inf)
            best = jnp.argmax(fit)
            # What is rounding error of what the others explain, or a direction of theirs, would make the last fit singular.
            useful = fit[best] > 1e-6 * jnp.linalg.norm(target)
            new = directions[best]
            for _ in range(2):  # twice is enough
                new = new - linalg.matmul(linalg.matmul(basis, new), basis)
            length = jnp.linalg.norm(new)
            useful &= length > 1e-4
            new = jnp.where(useful, new / jnp.maximum(length, 1e-30), 0)
            residual = residual - jnp.dot(residual, new) * new
            return (residual, basis.at[i].set(new), chosen.at[i].set(jnp.where(useful, best, -1))), None

        empty = (target, jnp.zeros((k, target.shape[0]), target.dtype), jnp.full(k, -1))
        (_, _, chosen), _ = lax.scan(join, empty, jnp.arange(k))
        rows = jnp.where((chosen >= 0)[:, None], arrangement[chosen], 0)
        gram = linalg.matmul(rows, rows.T) + jnp.diag(jnp.where(chosen >= 0, 0.0, 1.0))
        weights = jnp.linalg.solve(gram, linalg.matmul(rows, target))
        weights = jnp.maximum(weights, 0) if nonnegative else weights
        code = jnp.zeros(arrangement.shape[0], target.dtype).at[chosen].add(jnp.where(chosen >= 0, weights, 0))
        return jnp.where(jnp.any(jnp.isnan(target)), jnp.nan, code)

    return lax.map(of_sample, y, batch_size=1024)


def _largest_eigenvalue(gram: Float[Array, "units units"]) -> Float[Array, ""]:
    """An upper bound that is tight to a percent: power iteration, with a margin."""

    def step(v: Array, _: Any) -> tuple[Array, None]:
        v = linalg.matmul(gram, v)
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-30), None

    v, _ = lax.scan(step, 1 + 0.01 * jnp.arange(gram.shape[0], dtype=gram.dtype), length=100)
    return 1.02 * jnp.linalg.norm(linalg.matmul(gram, v))


def _checked(y: ArrayLike, arrangement: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays of floats of one precision, float32 at least, if they fit."""
    y, arrangement = jnp.asarray(y), jnp.asarray(arrangement)
    dtype = jnp.promote_types(jnp.promote_types(y.dtype, arrangement.dtype), jnp.float32)
    y, arrangement = y.astype(dtype), arrangement.astype(dtype)
    if y.ndim != 2 or arrangement.ndim != 2 or y.shape[1] != arrangement.shape[1]:
        raise ValueError(
            f"y must be (n_samples, n_units) and the arrangement (n_features, n_units), got {y.shape} and {arrangement.shape}."
        )
    return y, arrangement

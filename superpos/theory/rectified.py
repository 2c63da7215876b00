"""Scores of rectified units y = relu(z A + b) of given arrangements, no sample drawn.

What metrics of second moments read, E[y_i] and E[y_i y_j], by one of two ways:

- "mixture": exact for independent sparse features: the mixture over all sets of active ones, 2^n of them, which the
  characteristic function of two units' inputs holds as a product, φ(s, t) = Π_k (1 - p_k + p_k ψ(s a_ki + t a_kj)). The set
  of none active is taken by itself; for the others relu is a cosine series (the COS method of Fang & Oosterlee 2008), whose
  means φ gives;
- "gaussian": where many features are active inputs are nearly Gaussian, and a pair needs means, variances and the correlation
  r alone: E[relu relu] = Σ_k c_k d_k r^k by Hermite polynomials, for inputs of mean 0 the arc-cosine kernel (Cho & Saul
  2009). Any covariance of features; cheap. With six of twenty features active it is off by .1 of a correlation.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array

from superpos import features as features_lib
from superpos.metrics.base import positive_integer
from superpos.moments import Moments
from superpos.theory.weights import Arrangement, _checked, endless


def population_rectified(
    a: Arrangement,
    b: Arrangement,
    features: Any,
    *,
    biases: tuple[Any, Any] = (0.0, 0.0),
    method: Literal["mixture", "gaussian"] = "mixture",
    n_folds: int = 3,
    terms: int = 48,
) -> Moments:
    """The moments of an endless sample of relu(z A + b) on both sides, for `sp.score`.

    Args:
        a, b: arrangements of the same features, `(n_features, n_units)`; a is the source.
        features: of `sp.features`; "mixture" takes `SparseFeatures`, "gaussian" all that have a covariance and equal means p
        / 2. biases: of source and target, a number or `(n_units,)`. method: see the module. n_folds: static. terms: of each
        cosine series; static.

    Raises:
        ValueError: shapes that do not fit, an unknown method, or features that are not independent for "mixture".

    >>> z = features_lib.SparseFeatures(6, 0.1)
    >>> a, b = jax.random.normal(jax.random.key(0), (2, 6, 3))
    >>> population_rectified(a, b, z, method="gaussian").xy.shape
    (3, 3, 3)
    """
    positive_integer("terms", terms)
    if method not in ("mixture", "gaussian"):
        raise ValueError(f'method must be "mixture" or "gaussian", got {method!r}.')
    if not hasattr(features, "joint"):
        raise ValueError(f"features must be a distribution of sp.features, got {type(features).__name__}.")
    if method == "mixture" and not isinstance(features, features_lib.SparseFeatures):
        raise ValueError(
            f'method "mixture" takes independent features, sp.features.SparseFeatures, got {type(features).__name__}: '
            'take "gaussian", or measure samples by sp.theory.measure.'
        )
    a, b, covariance = _checked(a, b, features_lib.covariance(features))
    both = jnp.concatenate([a, b], axis=1)
    bias = jnp.concatenate(
        [jnp.broadcast_to(jnp.asarray(value, both.dtype), side.shape[1:]) for value, side in zip(biases, (a, b), strict=True)]
    )
    active = jnp.diagonal(features.joint)
    mean = jnp.matmul(active / 2, both, precision="highest") + bias
    spread = jnp.sqrt(jnp.maximum(jnp.einsum("ki,kl,li->i", both, covariance, both, precision="highest"), 0))
    if method == "gaussian":
        inner = jnp.matmul(both.T, jnp.matmul(covariance, both, precision="highest"), precision="highest")
        means, products = _gaussian(mean, spread, inner)
    else:
        means, products = _mixture(both, bias, active, mean, spread, terms)
    covariances = products - means[:, None] * means
    n = a.shape[1]
    own = covariances[:n, :n], covariances[:n, n:], covariances[n:, n:]
    return endless(*own, means=(means[:n], means[n:]), n_folds=n_folds)


def _gaussian(mean: Array, spread: Array, inner: Array) -> tuple[Array, Array]:
    """Means and second moments of rectified Gaussian variables."""
    scale = jnp.where(spread > 0, spread, 1)
    h = mean / scale
    density, share = norm.pdf(h), norm.cdf(h)
    means = mean * share + scale * density
    squares = (mean**2 + scale**2) * share + mean * scale * density
    r = jnp.clip(inner / (scale[:, None] * scale), -1, 1)
    # E[relu(μ + σ ξ) He_k(ξ)] / √k! = σ φ(h) He_{k-2}(-h) / √k!, by the recursion of normalised polynomials.
    total = means[:, None] * means + (scale * share)[:, None] * (scale * share) * r
    before, now, power = jnp.zeros_like(h), jnp.ones_like(h), r
    for k in range(2, 60):
        power = power * r
        coefficient = scale * density * now / jnp.sqrt(k * (k - 1.0))
        total = total + coefficient[:, None] * coefficient * power
        before, now = now, (-h * now - jnp.sqrt(k - 2.0) * before) / jnp.sqrt(k - 1.0)
    silent = spread <= 0
    constant = jnp.maximum(mean, 0)
    means = jnp.where(silent, constant, means)
    total = jnp.where(silent[:, None] | silent, means[:, None] * means, total)
    own = jnp.where(silent, constant**2, squares)
    return means, jnp.where(jnp.eye(len(h), dtype=bool), own, total)


@partial(jax.jit, static_argnums=5)
def _mixture(a: Array, bias: Array, active: Array, mean: Array, spread: Array, terms: int) -> tuple[Array, Array]:
    """The same of sparse features: sums over frequencies of characteristic functions, a pair of units at a time."""
    # relu on mean ± half, mirrored at the upper end, is a cosine series whose terms fall as 1 / k².
    half = jnp.maximum(9 * spread, 1.1 * jnp.max(jnp.abs(a), axis=0)) + jnp.finfo(a.dtype).tiny
    half = jnp.maximum(half, 1.1 * jnp.abs(mean))
    k = jnp.arange(terms)
    frequency = k * jnp.pi / (2 * half[:, None])  # (units, terms)
    start = jnp.maximum(-mean, -half)[:, None]  # where relu begins
    safe = jnp.where(k == 0, 1, frequency)
    rising = (mean[:, None] + half[:, None]) ** 2 / 2 - (mean[:, None] + start) ** 2 / 2
    turn = safe * (start + half[:, None])
    waves = (jnp.cos(k * jnp.pi) - jnp.cos(turn)) / safe**2 - (mean[:, None] + start) * jnp.sin(turn) / safe
    series = jnp.where(k == 0, rising / 2, waves) / half[:, None]
    phase = frequency * (half - mean)[:, None]
    nothing = jnp.prod(1 - active)

    def characteristic(weights: Array) -> Array:
        """E exp(i z · weights), features last, less the part of none active."""
        wave = jnp.exp(0.5j * weights) * jnp.sinc(weights / (2 * jnp.pi))
        return jnp.prod(1 - active + active * wave, axis=-1) - nothing

    def of_unit(i: Array) -> Array:
        shift = jnp.exp(1j * (phase[i] + frequency[i] * bias[i]))
        found = characteristic(frequency[i][:, None] * a[:, i])
        return jnp.sum(series[i] * jnp.real(shift * found)) + nothing * jnp.maximum(bias[i], 0)

    def of_pair(pair: Array) -> Array:
        i, j = pair
        left, right = phase[i] + frequency[i] * bias[i], phase[j] + frequency[j] * bias[j]
        total: Any = 0.0
        for sign in (1, -1):
            weights = frequency[i][:, None, None] * a[:, i] + sign * frequency[j][:, None] * a[:, j]
            shift = jnp.exp(1j * (left[:, None] + sign * right))
            total += jnp.real(shift * characteristic(weights))
        product = 0.5 * jnp.sum(series[i][:, None] * series[j] * total)
        return product + nothing * jnp.maximum(bias[i], 0) * jnp.maximum(bias[j], 0)

    n = len(bias)
    means = jax.lax.map(of_unit, jnp.arange(n))
    rows, columns = jnp.triu_indices(n)
    found = jax.lax.map(of_pair, jnp.stack([rows, columns], axis=1))
    products = jnp.zeros((n, n), found.dtype).at[rows, columns].set(found)
    return means, jnp.where(jnp.tri(n, dtype=bool), products.T, products)

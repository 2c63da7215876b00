"""CKA of the populations that units, and samples, are drawn from."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from superpos.linalg import matmul, safe_sqrt
from superpos.metrics.base import Metric, Samples, Score, from_folds
from superpos.metrics.geometry import unbiased_hsic
from superpos.metrics.registry import register


@dataclasses.dataclass(frozen=True)
class SampledCKA(Metric):
    """Linear CKA as it would be of all units of both systems, of which a few were recorded, in each held-out part.

    A kernel of few units resembles itself more than that of the population: each unit's product with itself is in it. The
    squared norm of one side is therefore taken over pairs of *different* units, Σ_{α≠β} hsic(x_α, x_β) q / (q - 1) of q units,
    with the estimator of the Hilbert-Schmidt independence criterion that is unbiased in samples too (Song et al. 2012). Between
    the sides no unit meets itself. Source: Chun, Canatar, Chung & Lee 2025, arXiv 2502.15104.

    It assumes that units are drawn at random from a population, so that it is not invariant to rotation: of units that are
    orthogonal by design, as principal components are, it is not defined. Noise carries it beyond ±1, where it is not cut. Its
    parts are unbiased, their ratio is not: of eight units a side it reads .77 on average where that of all is .68. Symmetric.
    Invariant to isotropic scaling of either side. NaN for fewer than two live units, folds of fewer than 4 samples, and where a
    side's own norm is not positive.

    >>> import jax
    >>> import superpos as sp
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, "sampled_cka"), x, y)["sampled_cka"]  # traced alone, to be quick
    >>> score.folds.shape
    (5,)
    """

    name: str = "sampled_cka"
    symmetric: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    least: ClassVar[int] = 4

    def evaluate(self, fitted: Any, evidence: Samples) -> Score:
        """The alignment of each held-out part."""
        del fitted

        def of_fold(fold: Array) -> Array:
            x, y, count = evidence.centred(fold)
            n = jnp.where(count > 3, count, jnp.nan)
            # On one scale, so that fourth powers stay within float32's range.
            x, y = (side / jnp.maximum(safe_sqrt(jnp.mean(jnp.sum(side**2, axis=1))), 1e-30) for side in (x, y))

            def between(a: Array, b: Array) -> Array:
                lengths = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)
                product = jnp.sum(lengths[0] * lengths[1])
                return unbiased_hsic(jnp.sum(matmul(a.T, b) ** 2), product, jnp.sum(lengths[0]) * jnp.sum(lengths[1]), n)

            def within(a: Array, live: Array) -> Array:
                q = jnp.sum(live)
                squares = jnp.sum(a**2, axis=0) ** 2
                selves = jnp.sum(jnp.where(live, unbiased_hsic(squares, jnp.sum(a**4, axis=0), squares, n), 0))
                return (between(a, a) - selves) * q / (q - 1)

            xx, yy = within(x, evidence.source), within(y, evidence.target)
            told = (xx > 0) & (yy > 0)
            return jnp.where(told, between(x, y) / jnp.where(told, safe_sqrt(xx) * safe_sqrt(yy), 1), jnp.nan)

        return from_folds(lax.map(of_fold, jnp.arange(evidence.n_folds)), (evidence.source, evidence.target))


register(SampledCKA())

"""Metrics of fourth-order cumulants, which superposition does not deflate: no SAE, no seeds, no training.

For independent features z and units x = z A, y = z B,

    cov(|x|², |y|²) - 2 ‖cov(x, y)‖² = Σ_i κ_i |a_i|² |b_i|²,

the sum over features that both sides have, κ_i the excess fourth cumulant of feature i and a_i, b_i its directions. Different
features do not interfere, whatever the arrangements, and Gaussian noise adds nothing: its cumulants of fourth order are 0.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from superpos.linalg import matmul, whitening
from superpos.metrics.base import Metric, Samples, Score, from_folds, safe_sqrt
from superpos.metrics.geometry import BOTH, lengths_hold, masked
from superpos.metrics.registry import register
from superpos.moments import Moments


@dataclasses.dataclass(frozen=True)
class Cokurtosis(Metric):
    """The cokurtosis of two sides, in each held-out part: the cosine of their features' fourth cumulants.

    c = k(x, y) / √(k(x, x) k(y, y)), k(x, y) = Σ_ij cum(x_i, x_i, y_j, y_j) by unbiased k-statistics, which is the sum above:
    Σ κ_i |a_i|² |b_i|² over the features of both sides, over the roots of those of each. With features of equal norm and law it
    is the share of features that the sides have in common. Symmetric. Invariant to rotation and to isotropic scaling of either
    side. Source: the theorem is that of cumulants of sums (McCullagh 1987, "Tensor methods in statistics", ch. 2 and 4);
    Cardoso 1991 for sources in more directions than sensors; the metric is ours.

    It assumes independent features and units that are linear in them. What breaks it: gain, density or strength of noise that
    features have in common makes unrelated sides alike (.57 to .83 in pilots); so do features in groups that occur together.
    Rectified units have cumulants of their own: of trained toy models that share all features it reads .91 to .97, of random
    rectified layers .34 to .72. Features of large norm and large kurtosis count more. Heavy-tailed noise adds to both sides.

    NaN where the sides' own cumulants are not of one sign, in folds of fewer than 4 samples, and for moments with a unit that
    is constant in some folds only. Of Gaussian units, whose cumulants are 0, it is NaN or noise without a bound: look at the
    details. Its sums are of fourth powers: feed moments with data of about unit size (`sp.align` scales them beforehand).

    Attributes:
        whitened: whiten each side first, by the covariance of its training part, so that features count by their share of each
            direction. Reads samples; NaN with no more training samples than units.
        name: its key in the result.

    Details: `source_cumulant`, `target_cumulant`, `(folds,)`, k(x, x) and k(y, y) in units of the squared variance. Where they
    vary between folds as much as they are large, do not believe the score.

    >>> import jax
    >>> import superpos as sp
    >>> metric = sp.metrics.Cokurtosis()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["cokurtosis"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['source_cumulant', 'target_cumulant'])
    """

    whitened: bool = False
    name: str = "cokurtosis"
    symmetric: ClassVar[bool] = True
    rotates: ClassVar[frozenset[str]] = BOTH
    least: ClassVar[int] = 4

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The moments that it reads, or samples."""
        return frozenset({"samples"} if self.whitened else {"xx", "xy", "yy", "norms"})

    def fit(self, evidence: Any) -> Any:
        """The whitening of each side, by each training part."""
        if not self.whitened:
            return None

        def of_fold(fold: Array) -> tuple[Array, Array]:
            ids = evidence.fold_ids
            inside = (ids >= 0) & (ids < evidence.n_folds) & ((ids != fold) | (evidence.n_folds == 1))
            count = jnp.sum(inside, dtype=evidence.x.dtype)
            roots = []
            for values, live in ((evidence.x, evidence.source), (evidence.y, evidence.target)):
                mean = jnp.sum(jnp.where(inside[:, None], values, 0), axis=0) / count
                centred = jnp.where(inside[:, None] & live, values - mean, 0)
                roots.append(jnp.where(count > jnp.sum(live), whitening(matmul(centred.T, centred))[0], jnp.nan))
            return roots[0], roots[1]

        return lax.map(of_fold, jnp.arange(evidence.n_folds))

    def evaluate(self, fitted: Any, evidence: Moments | Samples) -> Score:
        """The cokurtosis of each held-out part."""
        if isinstance(evidence, Samples):
            live: Any = (evidence.source, evidence.target)
            cumulants = lax.map(lambda inputs: _of_samples(evidence, *inputs), (jnp.arange(evidence.n_folds), fitted))
        else:
            live = evidence.live()
            whole = lengths_hold(evidence)
            cumulants = tuple(jnp.where(whole, cumulant, jnp.nan) for cumulant in _of_moments(masked(evidence)))
        xy, xx, yy = cumulants
        told = (xx * yy > 0) & jnp.isfinite(xy)
        cosine = xy * jnp.sign(xx) / jnp.where(told, safe_sqrt(jnp.abs(xx)) * safe_sqrt(jnp.abs(yy)), 1)
        details = {"source_cumulant": xx, "target_cumulant": yy}
        return from_folds(jnp.where(told, cosine, jnp.nan), live, details)


def _k_statistic(count: Array, product: Array, traces: Array, cross: Array) -> Array:
    """Σ_ij cum(x_i, x_i, y_j, y_j), unbiased, from Σ |x|² |y|², Σ |x|² Σ |y|² and ‖XᵀY‖² of centred samples (Fisher 1930)."""
    n = jnp.where(count > 3, count, jnp.nan)
    fourth, second = product / n, (traces + 2 * cross) / n**2
    return n**2 * ((n + 1) * fourth - (n - 1) * second) / ((n - 1) * (n - 2) * (n - 3))


def _of_moments(moments: Moments) -> tuple[Array, Array, Array]:
    """k(x, y), k(x, x) and k(y, y) of each fold, in units of the variances."""
    assert moments.norms is not None, "cokurtosis reads norms"
    totals = {side: jnp.sum(getattr(moments, side).squares, axis=1) for side in "xy"}
    size = {side: jnp.where(total > 0, total, 1) for side, total in totals.items()}
    crosses: dict[str, Any] = {"xx": moments.x.scatter, "xy": moments.xy, "yy": moments.y.scatter}

    def cumulant(pair: str) -> Array:
        root = jnp.sqrt(size[pair[0]]) * jnp.sqrt(size[pair[1]])
        cross = jnp.sum((crosses[pair] / root[:, None, None]) ** 2, axis=(1, 2))
        product = moments.norms[pair].product / size[pair[0]] / size[pair[1]]  # type: ignore[index]
        # Of totals that are 1: in units of the variance a sample's share is 1 / n.
        return moments.count**2 * _k_statistic(moments.count, product, jnp.ones_like(product), cross)

    return cumulant("xy"), cumulant("xx"), cumulant("yy")


def _of_samples(samples: Samples, fold: Array, roots: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """The same of one fold's whitened samples."""
    x, y, count = samples.centred(fold)
    x, y = matmul(x, roots[0]), matmul(y, roots[1])
    lengths = {"x": jnp.sum(x**2, axis=1), "y": jnp.sum(y**2, axis=1)}
    values = {"x": x, "y": y}

    def cumulant(pair: str) -> Array:
        a, b = (lengths[side] for side in pair)
        cross = jnp.sum(matmul(values[pair[0]].T, values[pair[1]]) ** 2)
        scale = jnp.sum(a) * jnp.sum(b)
        scale = jnp.where(scale > 0, scale, 1)
        return count**2 * _k_statistic(count, jnp.sum(a * b) / scale, jnp.ones_like(scale), cross / scale)

    return cumulant("xy"), cumulant("xx"), cumulant("yy")


register(Cokurtosis(), Cokurtosis(whitened=True, name="whitened_cokurtosis"))

"""Representational similarity analysis: metrics that compare dissimilarities of stimuli."""

import dataclasses
from typing import Any, ClassVar, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from superpos.linalg import matmul
from superpos.metrics.base import Metric, Samples, Score, from_folds, safe_norm
from superpos.metrics.registry import register
from superpos.rsa import Distance, Kind, correlation, dissimilarities, masked_correlation


@dataclasses.dataclass(frozen=True)
class RSA(Metric):
    """Representational similarity analysis: correlation of two representational dissimilarity matrices, in each held-out part.

    The dissimilarity of two stimuli is 1 - Pearson correlation of their patterns over live units, or another `distance_of`
    them, of
    `superpos.rsa.dissimilarities`; the two matrices are compared over all pairs of different stimuli. Stimuli whose pattern is
    constant on either side have no correlation, those that are 0 no cosine: they are left out of both sides.
    Symmetric. Source: Kriegeskorte, Mur & Bandettini 2008; Kendall's tau: Nili et al. 2014; rho_a: Schütt et al. 2023.

    - "pearson": in a second pass over the samples, from the moments of row-normalised patterns, without the n × n matrix
      where there are more samples in a fold than units. It has a gradient; the others do not, and say so;
    - "spearman": Pearson correlation of ranks, ties averaged; "rho_a": the mean of Spearman's correlation over all orders of
      the tied, in closed form;
    - "kendall": tau-b, which takes tied pairs out of its denominator; "tau_a" does not, and so prefers a matrix that
      predicts no tie to one that ties what differs.

    All but "pearson" hold the n (n - 1) / 2 pairs of a fold. Dissimilarities that are nearer to each other than `tolerance`
    tie: equal formulas give numbers that differ in their last digits.

    Not invariant to adding a constant to a unit, nor to scaling single units; invariant to rotations that keep the mean over
    units. Units whose means differ by more than a hundred standard deviations make all patterns alike, and cost float32 its
    digits: centre them, which changes what is measured, or enable x64. 0 where all dissimilarities of a side are equal.

    Attributes:
        kind: how matrices are compared.
        distance_of: stimuli: "correlation", "cosine", "euclidean" or "squared" (Euclidean). All but the first hold the pairs of
            a fold.
        tolerance: dissimilarities tie within this distance, Euclidean ones within this share of the median; by default 16
            eps, which is 2e-6 in float32: equal ones were seen to differ by up to 7 eps, with 10 to 5,000 units.
        name: its key in the result.

    Details: `n_stimuli`, `(folds,)`, those compared.

    Raises:
        ValueError: an unknown kind, or a negative tolerance.

    >>> import jax
    >>> import superpos as sp
    >>> metric = sp.metrics.RSA(kind="spearman")
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["rsa"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['n_stimuli'])
    """

    kind: Kind = "pearson"
    distance_of: Distance = "correlation"
    tolerance: float | None = None
    name: str = "rsa"
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    symmetric: ClassVar[bool] = True
    centres: ClassVar[bool] = False
    least: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}.")
        if self.distance_of not in get_args(Distance):
            raise ValueError(f"distance_of must be one of {', '.join(get_args(Distance))}, got {self.distance_of!r}.")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance}.")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the score has a gradient that is not 0 nearly everywhere."""
        return self.kind == "pearson"

    def evaluate(self, fitted: Any, evidence: Samples) -> Score:
        """The correlation of each held-out part."""
        del fitted

        def of_fold(fold: Array) -> Any:
            x, y, valid = evidence.held_out(fold)
            tolerance = 16 * jnp.finfo(x.dtype).eps if self.tolerance is None else self.tolerance
            if self.distance_of == "correlation":
                valid &= _varies(x, evidence.source) & _varies(y, evidence.target)
            elif self.distance_of == "cosine":
                valid &= jnp.any(x != 0, axis=1) & jnp.any(y != 0, axis=1)
            if (self.distance_of, self.kind) == ("correlation", "pearson"):
                x, y = _patterns(x, evidence.source, valid), _patterns(y, evidence.target, valid)
                through_pairs = len(valid) <= max(x.shape[1], y.shape[1])
                value = (_pairwise if through_pairs else _two_pass)(x, y, valid, tolerance)
            else:
                row, col = jnp.triu_indices(len(valid), 1)
                live = evidence.source, evidence.target
                # Ranks are those of squares, which rounding leaves equal where distances are.
                squares = self.kind != "pearson" and self.distance_of == "euclidean"
                distance = "squared" if squares else self.distance_of
                a, b = (dissimilarities(v, distance, live=mask) for v, mask in zip((x, y), live, strict=True))
                there = valid[row] & valid[col]
                bounded = distance in ("correlation", "cosine")
                sizes = [1.0 if bounded else jnp.nanmedian(jnp.where(there, v, jnp.nan)) for v in (a, b)]
                value = masked_correlation(self.kind, a, b, there, [tolerance * size for size in sizes])
            return jnp.where(jnp.sum(valid) > 2, value, jnp.nan), jnp.sum(valid)

        folds, n_stimuli = lax.map(of_fold, jnp.arange(evidence.n_folds))
        return from_folds(folds, (evidence.source, evidence.target), {"n_stimuli": n_stimuli})


def _varies(values: Array, live: Array) -> Array:
    """Rows that are not constant over live units, but for rounding."""
    low = jnp.min(jnp.where(live, values, jnp.inf), axis=1)
    high = jnp.max(jnp.where(live, values, -jnp.inf), axis=1)
    return high - low > 2 * jnp.finfo(values.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))


def _patterns(values: Array, live: Array, valid: Array) -> Array:
    """Rows centred over live units and scaled to norm 1; 0 where not valid."""
    centred = jnp.where(live, values - jnp.sum(values, axis=1, keepdims=True) / jnp.maximum(jnp.sum(live), 1), 0)
    norms = safe_norm(centred, axis=1)
    return jnp.where(valid[:, None], centred / jnp.where(valid[:, None], norms, 1), 0)


def _two_pass(x: Array, y: Array, valid: Array, tolerance: Any) -> Array:
    """Pearson correlation of two similarity matrices over i ≠ j from sums over samples; rows have norm 1."""
    n = jnp.sum(valid).astype(x.dtype)
    means = [jnp.sum(v, axis=0) / n for v in (x, y)]
    centred = [jnp.where(valid[:, None], v - mean, 0) for v, mean in zip((x, y), means, strict=True)]
    mu = [(n * n * jnp.sum(mean**2) - n) / (n * (n - 1)) for mean in means]  # mean similarity of a pair

    def covariance(i: int, j: int) -> Array:
        scatter = matmul(centred[i].T, centred[j])
        between = n * n * (jnp.sum(means[i] ** 2) - mu[i]) * (jnp.sum(means[j] ** 2) - mu[j])
        shared = 2 * n * jnp.sum(means[i] * matmul(scatter, means[j]))
        return jnp.sum(scatter**2) + shared + between - n * (1 - mu[i]) * (1 - mu[j])

    return correlation(covariance(0, 1), covariance(0, 0), covariance(1, 1), [n * (n - 1) * tolerance**2] * 2)


def _pairwise(x: Array, y: Array, valid: Array, tolerance: Any) -> Array:
    """The same through the similarity matrices."""
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    count = jnp.sum(pairs, dtype=x.dtype)

    def centred(values: Array) -> Array:
        similarity = matmul(values, values.T)
        return jnp.where(pairs, similarity - jnp.sum(jnp.where(pairs, similarity, 0)) / count, 0)

    a, b = centred(x), centred(y)
    return correlation(jnp.sum(a * b), jnp.sum(a**2), jnp.sum(b**2), [count * tolerance**2] * 2)


register(RSA(), RSA(kind="spearman", name="rsa_spearman"), RSA(kind="kendall", name="rsa_kendall"))

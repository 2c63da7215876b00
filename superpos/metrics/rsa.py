"""Representational similarity analysis: metrics that compare dissimilarities of stimuli."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from superpos.linalg import matmul
from superpos.metrics.base import Metric, Samples, Score, from_folds, safe_divide, safe_norm, safe_sqrt
from superpos.metrics.registry import register

Kind = Literal["pearson", "spearman", "rho_a", "kendall", "tau_a"]


@dataclasses.dataclass(frozen=True)
class RSA(Metric):
    """Representational similarity analysis: correlation of two representational dissimilarity matrices, in each held-out part.

    The dissimilarity of two stimuli is 1 - Pearson correlation of their patterns over live units; the two matrices are
    compared over all pairs of different stimuli. Stimuli whose pattern is constant on either side are left out of both.
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
        tolerance: dissimilarities, which lie between 0 and 2, tie within this distance; by default 16 eps, which is 2e-6 in
            float32: equal ones were seen to differ by up to 7 eps, with 10 to 5,000 units.
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
    tolerance: float | None = None
    name: str = "rsa"
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    symmetric: ClassVar[bool] = True
    centres: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}.")
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
            valid &= _varies(x, evidence.source) & _varies(y, evidence.target)
            x, y = _patterns(x, evidence.source, valid), _patterns(y, evidence.target, valid)
            tolerance = 16 * jnp.finfo(x.dtype).eps if self.tolerance is None else self.tolerance
            if self.kind == "pearson":
                through_pairs = len(valid) <= max(x.shape[1], y.shape[1])
                value = (_pairwise if through_pairs else _two_pass)(x, y, valid, tolerance)
            else:
                row, col = jnp.triu_indices(len(valid), 1)
                a, b = (1 - matmul(v, v.T)[row, col] for v in (x, y))
                value = rank_correlation(self.kind, a, b, valid[row] & valid[col], tolerance)
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

    # The sums lose to rounding what pairs vary by beside their mean.
    smallest = [n * (n - 1) * jnp.maximum(tolerance**2, 4 * jnp.finfo(x.dtype).eps * m**2) for m in mu]
    return _correlation(covariance(0, 1), covariance(0, 0), covariance(1, 1), smallest)


def _pairwise(x: Array, y: Array, valid: Array, tolerance: Any) -> Array:
    """The same through the similarity matrices."""
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    count = jnp.sum(pairs, dtype=x.dtype)

    def centred(values: Array) -> Array:
        similarity = matmul(values, values.T)
        return jnp.where(pairs, similarity - jnp.sum(jnp.where(pairs, similarity, 0)) / count, 0)

    a, b = centred(x), centred(y)
    return _correlation(jnp.sum(a * b), jnp.sum(a**2), jnp.sum(b**2), [count * tolerance**2] * 2)


def _correlation(cross: Array, a: Array, b: Array, smallest: Sequence[Any]) -> Array:
    """The correlation, 0 where the squares of a side are no larger than rounding makes them."""
    varies = (a > smallest[0]) & (b > smallest[1])
    return safe_divide(cross, jnp.where(varies, safe_sqrt(a) * safe_sqrt(b), 0))


def rank_correlation(kind: str, a: Array, b: Array, there: Array, tolerance: Any = 0.0) -> Array:
    """A rank correlation of two vectors `(n,)` over the entries that are `there`; 0 where all of one tie.

    Args:
        kind: "spearman", "kendall" (tau-b), "rho_a" or "tau_a".
        a, b: the vectors.
        there: `(n,)` mask.
        tolerance: entries nearer to each other than this tie.
    """
    a, b = (_tied(values, there, tolerance) for values in (a, b))
    if kind in ("kendall", "tau_a"):
        return kendall_tau(a, b, there, kind == "kendall")
    count = jnp.sum(there, dtype=a.dtype)

    def ranks(values: Array) -> Array:
        ordered = jnp.sort(values)
        low, high = (jnp.searchsorted(ordered, values, side, method="sort") for side in ("left", "right"))
        rank = (low + high).astype(a.dtype) / (2 * count)
        return jnp.where(there, rank - jnp.sum(jnp.where(there, rank, 0)) / count, 0)

    a, b = ranks(a), ranks(b)
    if kind == "rho_a":  # the variance of 1 ... n in place of that of averaged ranks
        return 12 * jnp.sum(a * b) / count / (1 - 1 / count**2)
    # Where one value differs from all others the squares add up to 1/8 at least, where none does to rounding errors.
    return _correlation(jnp.sum(a * b), jnp.sum(a**2), jnp.sum(b**2), (1e-3, 1e-3))


def _tied(values: Array, there: Array, tolerance: Any) -> Array:
    """Values with the least of a group for all of it, a group being no wider than the tolerance; infinite where not `there`.

    Groups are taken from the least value upwards. Chains of neighbours would grow without bound where values are dense.
    """
    ordered = jnp.sort(jnp.where(there, values, jnp.inf))
    n = len(ordered)
    # The first value that is not tied with each, and what one comes to from the least value on by steps of that kind.
    jump = jnp.append(jnp.searchsorted(ordered, ordered + tolerance, side="right", method="sort"), n)
    first = jnp.zeros(n + 1, bool).at[0].set(True)

    def double(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, jump = state
        return first.at[jump].max(first), jump[jump]

    first, _ = lax.fori_loop(0, n.bit_length(), double, (first, jump))
    start = lax.cummax(jnp.where(first[:n], jnp.arange(n), 0))
    position = jnp.searchsorted(ordered, values, side="right", method="sort") - 1
    return jnp.where(there, ordered[start[position]], jnp.inf)


def kendall_tau(a: Any, b: Any, there: Any, corrected: bool = True) -> Any:
    """Kendall's tau-b of two vectors `(n,)` over the entries that are `there`, or tau-a if not `corrected`; in O(n log n).

    Inversions are counted a bit at a time, from the highest: among values that agree in all higher bits, those with a 1 that
    come before one with a 0 are out of order.
    """
    n = len(a)
    a, b = (jnp.where(there, v, jnp.inf) for v in (a, b))  # the others go last, tied with each other
    order = jnp.lexsort((b, a))
    a, b, there = a[order], b[order], there[order]
    dtype = a.dtype

    def ties(*columns: Array) -> Array:
        """Number of pairs that agree, of sorted columns."""
        new = jnp.concatenate([jnp.ones(1, bool), jnp.any(jnp.stack([c[1:] != c[:-1] for c in columns]), axis=0)])
        position = jnp.arange(n) - lax.cummax(jnp.where(new, jnp.arange(n), 0))
        return jnp.sum(jnp.where(there, position, 0).astype(dtype))  # entries that are there come first

    tied_a, tied_both = ties(a), ties(a, b)
    tied_b = ties(jnp.sort(b))
    rank = jnp.searchsorted(jnp.sort(b), b, method="sort").astype(jnp.int32)
    n_bits = max(1, (n - 1).bit_length())

    def one_bit(level: Any, state: Any) -> tuple[Any, ...]:
        rank, there, start, discordant = state
        bit = (rank >> (n_bits - 1 - level)) & 1
        ones = jnp.cumsum(bit) - bit
        before = ones - ones[start]
        discordant += jnp.sum(jnp.where((bit == 0) & there, before, 0).astype(dtype))
        # Stable partition of each group into zeros and ones.
        zeros = jnp.cumsum(1 - bit) - (1 - bit)
        size = jnp.zeros(n, jnp.int32).at[start].add(1 - bit)  # zeros of each group, at its start
        to = start + jnp.where(bit == 0, zeros - zeros[start], size[start] + before)
        moved = jnp.zeros_like(rank).at[to].set(rank)
        there = jnp.zeros_like(there).at[to].set(there)
        start = jnp.zeros_like(start).at[to].set(start + jnp.where(bit == 1, size[start], 0))
        return moved, there, start, discordant

    state = (rank, there, jnp.zeros(n, jnp.int32), jnp.zeros((), dtype))
    *_, discordant = lax.fori_loop(0, n_bits, one_bit, state)
    count = jnp.sum(there).astype(dtype)
    total = count * (count - 1) / 2
    concordant_less_discordant = total - tied_a - tied_b + tied_both - 2 * discordant
    if not corrected:
        return safe_divide(concordant_less_discordant, total)
    return safe_divide(concordant_less_discordant, safe_sqrt(total - tied_a) * safe_sqrt(total - tied_b))


register(RSA(), RSA(kind="spearman", name="rsa_spearman"), RSA(kind="kendall", name="rsa_kendall"))

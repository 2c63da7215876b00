"""Metrics that compare the geometry of two representations: the distances or the subspaces of their samples.

Invariant to rotations of either side, so that superposition does not deflate them where a rotation is all that it does; but
they weigh directions by variance, and mixing features changes which directions carry it.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from superpos.linalg import eigh, matmul, polar, svd
from superpos.metrics.base import (
    Metric,
    Samples,
    Score,
    from_folds,
    from_units,
    positive_integer,
    safe_divide,
    safe_sqrt,
)
from superpos.metrics.registry import register
from superpos.moments import Moments, training

_BOTH = frozenset({"source", "target"})


@dataclasses.dataclass(frozen=True)
class CKA(Metric):
    """Linear centred kernel alignment of each held-out part.

    cka = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), columns centred; between 0 and 1. Debiased: each squared norm is replaced by the unbiased
    estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012), so that unrelated sides score 0 on average
    whatever the numbers of units, where cka itself grows with units / samples; between -1 and 1. Symmetric. Invariant to
    rotation and to isotropic scaling of either side. Source: Kornblith et al. 2019, "Similarity of neural network
    representations revisited".

    The debiased form is NaN for moments with a unit that is constant in some folds only (its length cannot be taken out of
    the sums afterwards; `sp.align` leaves it out beforehand), and for folds of fewer than 4 samples. Its sums are of fourth
    powers: feed moments with data of about unit size (`sp.align` scales them beforehand).

    Attributes:
        debiased: use the unbiased estimator.
        name: its key in the result.

    >>> import superpos as sp
    >>> metric = sp.metrics.CKA(debiased=True)
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["cka"]  # traced alone, to be quick
    >>> score.folds.shape
    (5,)
    """

    debiased: bool = False
    name: str = "cka"
    symmetric: ClassVar[bool] = True
    rotates: ClassVar[frozenset[str]] = _BOTH

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The moments that it reads."""
        return frozenset({"xx", "xy", "yy"} | ({"norms"} if self.debiased else set()))

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The alignment of each held-out part."""
        del fitted
        live = evidence.live()
        moments = _masked(evidence)
        assert moments.x.scatter is not None, "CKA reads xx"
        assert moments.y.scatter is not None, "CKA reads yy"
        size = {  # the scale of each side, which squares of squares would carry out of float32's range
            side: jnp.where(total > 0, total, 1)[:, None, None]
            for side, total in (("x", jnp.sum(moments.x.squares, axis=1)), ("y", jnp.sum(moments.y.squares, axis=1)))
        }
        matrices = {
            "xx": moments.x.scatter / size["x"],
            "xy": moments.xy / jnp.sqrt(size["x"]) / jnp.sqrt(size["y"]),
            "yy": moments.y.scatter / size["y"],
        }
        squares = {pair: jnp.sum(matrix**2, axis=(1, 2)) for pair, matrix in matrices.items()}
        if self.debiased:
            squares = {pair: self._unbiased(moments, pair, squares[pair], size) for pair in matrices}
        folds = squares["xy"] / (safe_sqrt(squares["xx"]) * safe_sqrt(squares["yy"]))
        if self.debiased:
            for side, mask in zip((evidence.x, evidence.y), live, strict=True):
                folds = jnp.where(jnp.any((side.squares > 0) & ~mask), jnp.nan, folds)
            folds = jnp.where(evidence.count > 3, folds, jnp.nan)
        return from_folds(folds, live)

    @staticmethod
    def _unbiased(moments: Any, pair: str, squared: Array, size: Any) -> Array:
        n = moments.count
        scale = jnp.sqrt(size[pair[0]] * size[pair[1]])[:, 0, 0] if pair == "xy" else size[pair[0]][:, 0, 0]
        # The two totals divided by their scale are 1.
        norms = moments.norms[pair].product / scale / scale
        return squared - n / (n - 2) * norms + 1 / ((n - 1) * (n - 2))


@dataclasses.dataclass(frozen=True)
class Procrustes(Metric):
    """Orthogonal Procrustes: how alike two representations are after the best rotation of the source.

    Q maximises tr(Qᵀ XᵀY) over (partial) isometries on the training part, columns centred; with c = tr(Qᵀ XᵀY) / (‖X‖ ‖Y‖) on
    the held-out part,

    - "similarity": c, at most 1;
    - "angular": arccos c, in radians, 0 for sides that a rotation and a scale make equal, a metric with `folds=None`;
    - "bures": √((‖X‖² + ‖Y‖² - 2 tr(Qᵀ XᵀY)) / n), the Bures distance of the covariances, in the units of the data, not
      invariant to scale.

    With `folds=None`, 1 - c² is scipy's Procrustes disparity. Symmetric. Invariant to rotation of either side and, but for
    "bures", to isotropic scaling. Fitted on fewer samples than units it cannot reach 1, even between equal sides. Source:
    Schönemann 1966; Williams et al. 2021, "Generalized shape metrics on neural representations"; Bhatia, Jain & Lim 2019
    (Bures).

    Attributes:
        kind: as above.
        name: its key in the result.

    Details: `rank`, `(folds,)`, of the isometry.

    >>> import superpos as sp
    >>> metric = sp.metrics.Procrustes(kind="bures")
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["procrustes"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['rank'])
    """

    kind: Literal["similarity", "angular", "bures"] = "similarity"
    name: str = "procrustes"
    symmetric: ClassVar[bool] = True
    rotates: ClassVar[frozenset[str]] = _BOTH

    def __post_init__(self) -> None:
        if self.kind not in ("similarity", "angular", "bures"):
            raise ValueError(f'kind must be "similarity", "angular" or "bures", got {self.kind!r}.')

    @property
    def distance(self) -> bool:  # type: ignore[override]
        """Whether lower is more alike."""
        return self.kind != "similarity"

    def fit(self, evidence: Moments) -> Any:
        """The isometry of each training part."""
        live = evidence.live()
        return jax.vmap(lambda cross: polar(cross)[0])(_masked(training(evidence), live).xy)

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The similarity or distance of each held-out part."""
        live = evidence.live()
        moments = _masked(evidence)
        overlap = jnp.sum(fitted * moments.xy, axis=(1, 2))
        x, y = jnp.sum(moments.x.squares, axis=1), jnp.sum(moments.y.squares, axis=1)
        if self.kind == "bures":
            folds = safe_sqrt((x + y - 2 * overlap) / moments.count)
        else:
            folds = jnp.clip(safe_divide(overlap, jnp.sqrt(x) * jnp.sqrt(y)), -1, 1)
            if self.kind == "angular":  # arccos, with a finite gradient at 1
                folds = 2 * jnp.arcsin(safe_sqrt((1 - folds) / 2))
        return from_folds(folds, live, {"rank": jnp.round(jnp.sum(fitted**2, axis=(1, 2)))})


@dataclasses.dataclass(frozen=True)
class CCA(Metric):
    """Canonical correlation analysis: mean held-out correlation of the canonical pairs.

    Directions A, B that whiten both sides of the training part and diagonalise their cross-covariance; ρ_i = r_test(X a_i, Y
    b_i); score = Σ α_i ρ_i / Σ α_i over the min(rank X, rank Y) pairs, or the first `n_components`. The weights α and what is
    kept decide which CCA:

    - cca: all directions, α = 1 (Hotelling 1936);
    - svcca: of each side only the principal components that hold the share `variance` of its variance, α = 1 (Raghu et al.
      2017);
    - pwcca: α_i = Σ_j |⟨X a_i, x_j⟩| on the training part, the weight of direction i in the source (Morcos et al. 2018); not
      symmetric.

    Invariant to invertible linear maps of either side; svcca only to rotations and isotropic scaling, and pwcca on the source
    only to permuting units, flipping their signs and isotropic scaling, since its weights add up absolute values over units.
    Every pair counts alike in cca, however little variance it has: unless samples far outnumber units it measures noise,
    which the held-out correlations show. NaN where the ranks of both sides add up to the number of training samples or more:
    then some canonical correlations are 1 by necessity, and their directions arbitrary. Principal components whose variance
    is below units · eps of the largest are left out.

    Attributes:
        n_components: pairs to average over, None for all.
        variance: share of variance of each side that is kept; 1 keeps all.
        projection_weighted: weigh the pairs as pwcca does.
        name: its key in the result.

    Details: `correlations`, `(folds, min(n_source, n_target, n_samples))`, held out, NaN for pairs that are not there;
    `fitted_correlations`, those of the training part; `weights`, α, summing to 1.

    Raises:
        ValueError: fewer than one component, or a variance outside (0, 1].

    >>> import superpos as sp
    >>> metric = sp.metrics.CCA(variance=0.99)
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["cca"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['correlations', 'fitted_correlations', 'weights'])
    """

    n_components: int | None = None
    variance: float = 1.0
    projection_weighted: bool = False
    name: str = "cca"
    reads: ClassVar[frozenset[str]] = frozenset({"xx", "xy", "yy"})

    def __post_init__(self) -> None:
        if self.n_components is not None:
            positive_integer("n_components", self.n_components)
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance must be above 0 and at most 1, got {self.variance}.")

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether swapping source and target leaves the score as it is."""
        return not self.projection_weighted

    @property
    def rotates(self) -> frozenset[str]:  # type: ignore[override]
        """Sides whose rotation changes nothing."""
        return frozenset({"target"}) if self.projection_weighted else _BOTH

    def fit(self, evidence: Moments) -> Any:
        """Canonical directions, correlations and weights of each training part."""
        live = evidence.live()
        part = _masked(training(evidence), live)

        def whiten(scatter: Array) -> tuple[Array, Array]:
            values, vectors = (leaf[..., ::-1] for leaf in eigh(scatter))  # largest first
            kept = values > values.size * jnp.finfo(values.dtype).eps * values[0]
            if self.variance < 1:
                values = jnp.where(kept, values, 0)
                kept &= jnp.cumsum(values) - values < self.variance * jnp.sum(values)
            return jnp.where(kept, vectors / jnp.sqrt(jnp.where(kept, values, 1)), 0), jnp.sum(kept)

        def solve(count: Array, xx: Any, xy: Array, yy: Any) -> tuple[Array, Array, Array, Array]:
            (x, x_rank), (y, y_rank) = whiten(xx), whiten(yy)
            u, correlations, vt = svd(matmul(x.T, xy, y))
            a, b = matmul(x, u), matmul(y, vt.T)
            rank = jnp.minimum(x_rank, y_rank)
            if self.n_components is not None:
                rank = jnp.minimum(rank, self.n_components)
            there = jnp.arange(correlations.size) < rank
            weights = jnp.sum(jnp.abs(matmul(xx, a)), axis=0) if self.projection_weighted else jnp.ones_like(correlations)
            weights = jnp.where(there, weights, 0)
            weights = jnp.where(x_rank + y_rank < count, safe_divide(weights, jnp.sum(weights)), jnp.nan)
            return a, b, weights, jnp.where(there, correlations, jnp.nan)

        return jax.vmap(solve)(part.count, part.x.scatter, part.xy, part.y.scatter)

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The weighted mean of each held-out part's correlations."""
        a, b, weights, fitted_correlations = fitted
        moments = _masked(evidence)

        def along(matrix: Any, left: Array, right: Array) -> Array:
            return jnp.sum(left * matmul(matrix, right), axis=1)

        spread = safe_sqrt(along(moments.x.scatter, a, a)) * safe_sqrt(along(moments.y.scatter, b, b))
        correlations = jnp.clip(safe_divide(along(moments.xy, a, b), spread), -1, 1)
        details = {
            "correlations": jnp.where(jnp.isnan(fitted_correlations), jnp.nan, correlations),
            "fitted_correlations": fitted_correlations,
            "weights": weights,
        }
        return from_folds(jnp.sum(weights * correlations, axis=1), evidence.live(), details)


@dataclasses.dataclass(frozen=True)
class RSA(Metric):
    """Representational similarity analysis: correlation of two representational dissimilarity matrices, in each held-out part.

    The dissimilarity of two stimuli is 1 - Pearson correlation of their patterns over live units; the two matrices are
    compared over all pairs of different stimuli. Stimuli whose pattern is constant on either side are left out of both.
    Symmetric. Source: Kriegeskorte, Mur & Bandettini 2008; Kendall's tau: Nili et al. 2014.

    - "pearson": in a second pass over the samples, from the moments of row-normalised patterns, without the n × n matrix
      where there are more samples in a fold than units;
    - "spearman": Pearson correlation of ranks, ties averaged; "kendall": tau-b. Both hold the n (n - 1) / 2 pairs of a fold.

    Not invariant to adding a constant to a unit, nor to scaling single units; invariant to rotations that keep the mean over
    units. Units whose means differ by more than a hundred standard deviations make all patterns alike, and cost float32 its
    digits: centre them, which changes what is measured, or enable x64. Ties are those of equal numbers, not of equal formulas.

    Attributes:
        kind: how matrices are compared.
        name: its key in the result.

    Details: `n_stimuli`, `(folds,)`, those compared.

    >>> import superpos as sp
    >>> metric = sp.metrics.RSA(kind="spearman")
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["rsa"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['n_stimuli'])
    """

    kind: Literal["pearson", "spearman", "kendall"] = "pearson"
    name: str = "rsa"
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("pearson", "spearman", "kendall"):
            raise ValueError(f'kind must be "pearson", "spearman" or "kendall", got {self.kind!r}.')

    def evaluate(self, fitted: Any, evidence: Samples) -> Score:
        """The correlation of each held-out part."""
        del fitted

        def of_fold(fold: Array) -> Any:
            x, y, valid = evidence.held_out(fold)
            valid &= _varies(x, evidence.source) & _varies(y, evidence.target)
            x, y = _patterns(x, evidence.source, valid), _patterns(y, evidence.target, valid)
            if self.kind == "pearson":
                through_pairs = len(valid) <= max(x.shape[1], y.shape[1])
                value = (_pairwise if through_pairs else _two_pass)(x, y, valid)
            else:
                value = _rank_correlation(self.kind, x, y, valid)
            return jnp.where(jnp.sum(valid) > 2, value, jnp.nan), jnp.sum(valid)

        folds, n_stimuli = lax.map(of_fold, jnp.arange(evidence.n_folds))
        return from_folds(folds, (evidence.source, evidence.target), {"n_stimuli": n_stimuli})


def _varies(values: Array, live: Array) -> Array:
    low = jnp.min(jnp.where(live, values, jnp.inf), axis=1)
    return jnp.max(jnp.where(live, values, -jnp.inf), axis=1) > low


def _patterns(values: Array, live: Array, valid: Array) -> Array:
    """Rows centred over live units and scaled to norm 1; 0 where not valid."""
    centred = jnp.where(live, values - jnp.sum(values, axis=1, keepdims=True) / jnp.maximum(jnp.sum(live), 1), 0)
    norms = jnp.linalg.norm(centred, axis=1, keepdims=True)
    return jnp.where(valid[:, None], centred / jnp.where(valid[:, None], norms, 1), 0)


def _two_pass(x: Array, y: Array, valid: Array) -> Array:
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

    return safe_divide(covariance(0, 1), safe_sqrt(covariance(0, 0)) * safe_sqrt(covariance(1, 1)))


def _pairwise(x: Array, y: Array, valid: Array) -> Array:
    """The same through the similarity matrices."""
    pairs = valid[:, None] & valid & ~jnp.eye(len(valid), dtype=bool)
    count = jnp.sum(pairs, dtype=x.dtype)

    def centred(values: Array) -> Array:
        similarity = matmul(values, values.T)
        return jnp.where(pairs, similarity - jnp.sum(jnp.where(pairs, similarity, 0)) / count, 0)

    a, b = centred(x), centred(y)
    return safe_divide(jnp.sum(a * b), jnp.linalg.norm(a) * jnp.linalg.norm(b))


def _rank_correlation(kind: str, x: Array, y: Array, valid: Array) -> Array:
    """Spearman's or Kendall's correlation of two dissimilarity matrices over pairs of stimuli."""
    row, col = jnp.triu_indices(len(valid), 1)
    there = valid[row] & valid[col]
    a, b = (jnp.where(there, 1 - matmul(v, v.T)[row, col], jnp.inf) for v in (x, y))
    if kind == "kendall":
        return kendall_tau(a, b, there)
    count = jnp.sum(there, dtype=x.dtype)

    def ranks(values: Array) -> Array:
        ordered = jnp.sort(values)
        low, high = (jnp.searchsorted(ordered, values, side, method="sort") for side in ("left", "right"))
        rank = (low + high).astype(x.dtype) / 2
        return jnp.where(there, rank - jnp.sum(jnp.where(there, rank, 0)) / count, 0)

    a, b = ranks(a), ranks(b)
    return safe_divide(jnp.sum(a * b), jnp.linalg.norm(a) * jnp.linalg.norm(b))


def kendall_tau(a: Any, b: Any, there: Any) -> Any:
    """Kendall's tau-b of two vectors `(n,)` over the entries that are `there`, in O(n log n).

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
    return safe_divide(concordant_less_discordant, safe_sqrt(total - tied_a) * safe_sqrt(total - tied_b))


@dataclasses.dataclass(frozen=True)
class MutualKNN(Metric):
    """Mutual nearest neighbours: the share of a sample's k nearest neighbours that both sides agree on, in each held-out part.

    Neighbours by cosine similarity of patterns over live units, a sample not being its own; samples whose pattern is zero on
    either side, which has no direction, are left out of both. Symmetric. Chance is k / (n - 1) for folds of n samples without
    ties; where many patterns are the same, as those of very sparse units are, it is higher: see `sp.stats.permutation_test`.
    Invariant to rotation and isotropic scaling, not to adding a constant to a unit; constants above a hundred standard
    deviations cost float32 its digits. NaN for folds of at most k samples. Source: Huh et al. 2024, "The platonic
    representation hypothesis".

    Attributes:
        k: number of neighbours; below the number of samples in a fold.
        name: its key in the result.

    Raises:
        ValueError: k below 1, or no fold of more than k samples.

    >>> import superpos as sp
    >>> metric = sp.metrics.MutualKNN(k=3)
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["mutual_knn"]  # traced alone, to be quick
    >>> score.folds.shape
    (5,)
    """

    k: int = 10
    name: str = "mutual_knn"
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive_integer("k", self.k)

    def evaluate(self, fitted: Any, evidence: Samples) -> Score:
        """The share of each held-out part."""
        del fitted
        if self.k >= evidence.largest_fold:
            raise ValueError(f"mutual_knn with k={self.k} needs folds of more samples, got at most {evidence.largest_fold}.")

        def of_fold(fold: Array) -> Any:
            x, y, valid = evidence.held_out(fold)
            valid &= jnp.any(x != 0, axis=1) & jnp.any(y != 0, axis=1)
            sides = [v / jnp.maximum(jnp.linalg.norm(v, axis=1, keepdims=True), jnp.finfo(v.dtype).tiny) for v in (x, y)]

            def of_row(i: Array) -> Array:
                def nearest(values: Array) -> Array:
                    similarity = jnp.where(valid, matmul(values, values[i]), -jnp.inf).at[i].set(-jnp.inf)
                    return lax.top_k(similarity, self.k)[1]

                x, y = (nearest(side) for side in sides)
                return jnp.sum(x[:, None] == y)

            shared = lax.map(of_row, jnp.arange(len(valid)), batch_size=256)
            n = jnp.sum(valid)
            return jnp.where(n > self.k, jnp.sum(jnp.where(valid, shared, 0)) / (self.k * n), jnp.nan).astype(x.dtype)

        folds = lax.map(of_fold, jnp.arange(evidence.n_folds))
        return from_folds(folds, (evidence.source, evidence.target))


@dataclasses.dataclass(frozen=True)
class Jaccard(Metric):
    """Overlap of supports: for each target unit the best Jaccard index with a source unit, in each held-out part.

    The support of a unit is the set of samples on which it is positive; J = |A ∩ B| / |A ∪ B|; score = mean of the highest J
    over live target units that are positive somewhere in the fold. Not symmetric. Nothing is fitted: the best of many units
    is above chance, and only a permutation null (`sp.stats.permutation_test`) says by how much. Invariant to permuting units
    and scaling them by positive factors; meant for non-negative, sparse units, as SAE latents are. Source: Jaccard 1901.

    Details: `partner`, `(folds, n_target)`, the source unit of the highest J.

    >>> import superpos as sp
    >>> metric = sp.metrics.Jaccard()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["jaccard"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['partner'])
    """

    name: str = "jaccard"
    reads: ClassVar[frozenset[str]] = frozenset({"active"})

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The best index of each target unit."""
        del fitted
        source, target = evidence.live()
        active = evidence.active
        assert active is not None, "Jaccard reads active"
        count = evidence.count[:, None, None]
        share_x, share_y = active.x.mean[:, :, None], active.y.mean[:, None, :]
        both = active.xy + count * share_x * share_y
        index = safe_divide(both, count * (share_x + share_y) - both)
        index = jnp.where(source[:, None], index, -jnp.inf)
        there = target & jnp.any(source) & (active.y.mean > 0)
        return from_units(jnp.max(index, axis=1), there, {"partner": jnp.argmax(index, axis=1)})


def _masked(moments: Moments, live: Any = None) -> Moments:
    """Moments with zeros for masked units."""
    source, target = moments.live() if live is None else live

    def side(old: Any, mask: Array) -> Any:
        scatter = None if old.scatter is None else jnp.where(mask[:, None] & mask, old.scatter, 0)
        return dataclasses.replace(old, squares=jnp.where(mask, old.squares, 0), scatter=scatter)

    xy = jnp.where(source[:, None] & target, moments.xy, 0)
    return dataclasses.replace(moments, x=side(moments.x, source), y=side(moments.y, target), xy=xy)


register(CKA(), CKA(debiased=True, name="debiased_cka"))
register(Procrustes(), Procrustes(kind="angular", name="procrustes_angular"), Procrustes(kind="bures", name="procrustes_bures"))
register(CCA(), CCA(variance=0.99, name="svcca"), CCA(projection_weighted=True, name="pwcca"))
register(RSA(), RSA(kind="spearman", name="rsa_spearman"), RSA(kind="kendall", name="rsa_kendall"))
register(MutualKNN(), Jaccard())

"""Metrics that compare the geometry of two representations: the distances or the subspaces of their samples.

Invariant to rotations of either side, but not to superposition: with fewer units than features each side keeps other directions
of the space of features, and that deflates all of them, cka as n / d (`superpos.theory.laws`).
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from superpos.linalg import inverse_root, matmul, polar, svd, whitening
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

BOTH = frozenset({"source", "target"})


def unbiased_hsic(squared: Any, product: Any, traces: Any, n: Any) -> Any:
    """The Hilbert-Schmidt independence criterion, unbiased in samples, but for a factor: ‖XᵀY‖² less what chance makes of it.

    Args:
        squared: ‖XᵀY‖² of centred samples.
        product: Σ |x|² |y|² over samples.
        traces: Σ |x|² Σ |y|².
        n: number of samples, more than 3. Source: Song et al. 2012.
    """
    return squared - n / (n - 2) * product + traces / ((n - 1) * (n - 2))


@dataclasses.dataclass(frozen=True)
class CKA(Metric):
    """Linear centred kernel alignment of each held-out part.

    cka = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), columns centred; between 0 and 1. Debiased: each squared norm is replaced by the unbiased
    estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012), so that unrelated sides score 0 on average
    whatever the numbers of units, where cka itself grows with units / samples; between -1 and 1. Symmetric. Invariant to
    rotation and to isotropic scaling of either side. Source: Kornblith et al. 2019, "Similarity of neural network
    representations revisited".

    The debiased form is NaN for moments with a unit that is constant in some folds only (its length cannot be taken out of
    the sums afterwards; `sp.align` leaves it out beforehand), and for folds of fewer than 4 samples, for which the estimator
    does not exist. It is 0 where that of a side alone is not positive, as of patterns that are all equally far apart; beyond
    ±1, where small samples carry it, it is cut. Its sums are of fourth powers: feed moments with data of about unit size
    (`sp.align` scales them beforehand).

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
    rotates: ClassVar[frozenset[str]] = BOTH

    @property
    def least(self) -> int:  # type: ignore[override]
        """Samples that a fold must have."""
        return 4 if self.debiased else 1

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The moments that it reads."""
        return frozenset({"xx", "xy", "yy"} | ({"norms"} if self.debiased else set()))

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The alignment of each held-out part."""
        del fitted
        live = evidence.live()
        moments = masked(evidence)
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
            epsilon = jnp.finfo(moments.count.dtype).eps
            biased, squares = squares, {pair: self._unbiased(moments, pair, squares[pair], size) for pair in matrices}
            for pair in ("xx", "yy"):  # what is left of a side may be nothing but rounding
                squares[pair] = jnp.where(squares[pair] > 16 * epsilon * biased[pair], squares[pair], 0)
        folds = safe_divide(squares["xy"], safe_sqrt(squares["xx"]) * safe_sqrt(squares["yy"]))
        if self.debiased:
            folds = jnp.clip(folds, -1, 1)
            folds = jnp.where(lengths_hold(evidence) & (evidence.count > 3), folds, jnp.nan)
        return from_folds(folds, live)

    @staticmethod
    def _unbiased(moments: Any, pair: str, squared: Array, size: Any) -> Array:
        n = moments.count
        scale = jnp.sqrt(size[pair[0]] * size[pair[1]])[:, 0, 0] if pair == "xy" else size[pair[0]][:, 0, 0]
        # The two totals divided by their scale are 1.
        return unbiased_hsic(squared, moments.norms[pair].product / scale / scale, 1, n)


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
    "bures", to isotropic scaling. By `sp.align` distances are right down to rounding; moments alone (`sp.score`) cannot tell
    angles below √eps, 3e-4 in float32, from 0. Fitted on fewer samples than units it cannot reach 1, even between equal
    sides. Source: Schönemann 1966; Williams et al. 2021, "Generalized shape metrics on neural representations"; Bhatia, Jain
    & Lim 2019 (Bures).

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
    rotates: ClassVar[frozenset[str]] = BOTH

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
        return jax.vmap(lambda cross: polar(cross)[0])(masked(training(evidence), live).xy)

    @property
    def second_pass(self) -> bool:  # type: ignore[override]
        """Small distances are differences of samples: as differences of moments they would drown in rounding."""
        return self.distance

    def evaluate(self, fitted: Any, evidence: Moments | Samples) -> Score:
        """The similarity or distance of each held-out part."""
        details = {"rank": jnp.round(jnp.sum(fitted**2, axis=(1, 2)))}
        if isinstance(evidence, Samples):
            return from_folds(self._of_samples(fitted, evidence), (evidence.source, evidence.target), details)
        moments = masked(evidence)
        overlap = jnp.sum(fitted * moments.xy, axis=(1, 2))
        x, y = jnp.sum(moments.x.squares, axis=1), jnp.sum(moments.y.squares, axis=1)
        if self.kind == "bures":
            folds = safe_sqrt((x + y - 2 * overlap) / moments.count)
        else:
            folds = jnp.clip(safe_divide(overlap, safe_sqrt(x) * safe_sqrt(y)), -1, 1)
            if self.kind == "angular":
                folds = _angle(1 - folds)
        return from_folds(folds, evidence.live(), details)

    def _of_samples(self, fitted: Array, samples: Samples) -> Array:
        """The distances, of the samples less each other and what the isometry leaves out of the source."""

        def of_fold(inputs: tuple[Array, Array]) -> Array:
            fold, isometry = inputs
            x, y, count = samples.centred(fold)
            moved = matmul(x, isometry)
            left = jnp.sum((x - matmul(moved, isometry.T)) ** 2)
            if self.kind == "bures":
                return safe_sqrt((jnp.sum((moved - y) ** 2) + left) / count)
            size, other = (jnp.sum(v**2) for v in (x, y))
            ratio = safe_divide(jnp.ones_like(size), safe_sqrt(size))
            apart = jnp.sum((moved * ratio - y * safe_divide(jnp.ones_like(other), safe_sqrt(other))) ** 2)
            return _angle((apart + left * ratio**2) / 2)

        return lax.map(of_fold, (jnp.arange(samples.n_folds), fitted))


def _angle(gap: Array) -> Array:
    """arccos(1 - gap), exact where the gap is small, with a finite gradient at 0."""
    return 2 * jnp.arcsin(safe_sqrt(jnp.clip(gap / 2, 0, 1)))


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
    then some canonical correlations are 1 by necessity, and their directions arbitrary. Principal components (of units scaled
    to variance 1, where `variance` is 1) whose variance is below units · eps of the largest are left out. The gradient is that
    of the held-out correlations; where two canonical correlations are equal there is none.

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
        return frozenset({"target"}) if self.projection_weighted else BOTH

    def fit(self, evidence: Moments) -> Any:
        """Canonical directions, correlations and weights of each training part."""
        live = evidence.live()
        part = masked(training(evidence), live)

        def whiten(scatter: Array) -> tuple[Array, Array]:
            # Directions do not depend on the units' scales, unless some are left out for their variance.
            return whitening(scatter) if self.variance == 1 else inverse_root(scatter, self.variance)

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
        moments = masked(evidence)

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
class MutualKNN(Metric):
    """Mutual nearest neighbours: the share of a sample's k nearest neighbours that both sides agree on, in each held-out part.

    Neighbours by cosine similarity of patterns over live units, a sample not being its own; samples whose pattern is zero on
    either side, which has no direction, are left out of both. Symmetric. Chance is k / (n - 1) for folds of n samples without
    ties; where many patterns are the same, as those of very sparse units are, it is higher: see `sp.stats.permutation_test`.
    Invariant to rotation and isotropic scaling, not to adding a constant to a unit; constants above a hundred standard
    deviations cost float32 its digits. NaN for folds of at most k samples. No gradient. Source: Huh et al. 2024, "The platonic
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
    centres: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive_integer("k", self.k)

    @property
    def least(self) -> int:  # type: ignore[override]
        """Samples that a fold must have."""
        return self.k + 1

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
    and scaling them by positive factors; meant for non-negative, sparse units, as SAE latents are. No gradient. Source:
    Jaccard 1901.

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
    centres: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

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


def lengths_hold(moments: Moments) -> Array:
    """Whether the squared lengths of samples are those over live units: no unit is constant in some folds only."""
    sides = zip((moments.x, moments.y), moments.live(), strict=True)
    return ~functools.reduce(jnp.logical_or, (jnp.any((side.squares > 0) & ~mask) for side, mask in sides))


def masked(moments: Moments, live: Any = None) -> Moments:
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
register(MutualKNN(), Jaccard())

"""Metrics of fourth-order cumulants, which superposition does not deflate: no SAE, no seeds, no training.

For independent features z and units x = z A, y = z B,

    cov(|x|², |y|²) - 2 ‖cov(x, y)‖² = Σ_i κ_i |a_i|² |b_i|²,

the sum over features that both sides have, κ_i the excess fourth cumulant of feature i and a_i, b_i its directions. Different
features do not interfere, whatever the arrangements, and Gaussian noise adds nothing: its cumulants of fourth order are 0.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from superpos import cumulants
from superpos.checks import SIDES
from superpos.cumulants import Cumulants
from superpos.linalg import eigh, matmul, safe_divide, safe_sqrt, svd, whitening
from superpos.metrics.base import Metric, Samples, Score, from_folds, positive_integer
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
    features have in common makes unrelated sides alike (.4 to .8); so do features in groups that occur together.
    Rectified units have cumulants of their own: of trained toy models it comes within .06 of the formula of their weights, of
    random rectified layers of the same features it reads .3 to .7. Features of large norm and large kurtosis count more.
    Heavy-tailed noise adds to both sides. The details of `CumulantCKA` tell more.

    NaN where the sides' own cumulants are not of one sign, in folds of fewer than 4 samples, and for moments with a unit that
    is constant in some folds only. Of Gaussian units, whose cumulants are 0, it is NaN or noise without a bound: look at the
    details. Its sums are of fourth powers: feed moments with data of about unit size (`sp.align` scales them beforehand).

    Attributes:
        whiten: whiten each side first, by the covariance of its training part, so that features count by their share of each
            direction. Reads samples; NaN with no more training samples than units.
        name: its key in the result.

    Details: `source_cumulant`, `target_cumulant`, `(folds,)`, k(x, x) and k(y, y) in units of the squared variance. Where they
    vary between folds nearly as much as they are large, do not believe the score: `sp.align` warns then. Where samples are at
    hand (`sp.align`) also `projected`, `(folds,)`: how alike the cumulants of both sides are along random axes, without the
    direction of the variances, as in `CumulantCKA`. It is near the score where features are independent, and near 0 for
    unrelated sides whose energies covary, of which `sp.align` warns.

    >>> import jax
    >>> import superpos as sp
    >>> metric = sp.metrics.Cokurtosis()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["cokurtosis"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['projected', 'source_cumulant', 'target_cumulant'])
    """

    whiten: bool = False
    name: str = "cokurtosis"
    symmetric: ClassVar[bool] = True
    rotates: ClassVar[frozenset[str]] = BOTH
    least: ClassVar[int] = 4

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """The moments that it reads, or samples."""
        return frozenset({"samples"} if self.whiten else {"xx", "xy", "yy", "norms"})

    def fit(self, evidence: Any) -> Any:
        """The whitening of each side, by each training part."""
        if not self.whiten:
            return {}

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

        return {"roots": lax.map(of_fold, jnp.arange(evidence.n_folds))}

    def polish(self, fitted: Any, samples: Samples) -> Any:
        """The same with `projected`, for which sums of all units together are not enough."""
        return {**fitted, "projected": _projected(samples, fitted.get("roots"))}

    def evaluate(self, fitted: Any, evidence: Moments | Samples) -> Score:
        """The cokurtosis of each held-out part."""
        if isinstance(evidence, Samples):
            live: Any = (evidence.source, evidence.target)
            cumulants = lax.map(lambda inputs: _of_samples(evidence, *inputs), (jnp.arange(evidence.n_folds), fitted["roots"]))
        else:
            live = evidence.live()
            whole = lengths_hold(evidence)
            cumulants = tuple(jnp.where(whole, cumulant, jnp.nan) for cumulant in _of_moments(masked(evidence)))
        xy, xx, yy = cumulants
        told = (xx * yy > 0) & jnp.isfinite(xy)
        cosine = xy * jnp.sign(xx) / jnp.where(told, safe_sqrt(jnp.abs(xx)) * safe_sqrt(jnp.abs(yy)), 1)
        details = {"source_cumulant": xx, "target_cumulant": yy}
        details |= {name: value for name, value in fitted.items() if name == "projected"}
        return from_folds(jnp.where(told, cosine, jnp.nan), live, details)

    def doubts(self, score: Score) -> list[str]:
        """Where a side's own cumulant is not clearly different from 0, and where energies covary."""
        found = _weak(self.name, score)
        if "projected" in score.details and not found:
            rest = float(np.mean(score.details["projected"]))
            found += _of_energy(self.name, float(score.mean), rest) if rest < NOTHING * score.mean else []
        return found


def _weak(name: str, score: Score) -> list[str]:
    """A sentence for each side whose own cumulant varies between folds nearly as much as it is large."""
    found = []
    for side in SIDES:
        values = np.asarray(score.details[f"{side}_cumulant"])
        error = np.std(values, ddof=1) / np.sqrt(values.size) if values.size > 2 else 0.0
        size = abs(np.mean(values))
        if not size > SURE * error:
            times = f"{size / error:.1f} times its error" if np.isfinite(error) and error > 0 else "not defined"
            found.append(f"{name} is not to be trusted: the fourth cumulant of the {side} is {times} over folds.")
    return found


def _of_energy(name: str, energy: float, rest: float) -> list[str]:
    """A sentence where the energies of samples say far more than all else."""
    if not energy - rest > GAP:
        return []
    return [
        f"{name}: energies alone say {energy:.2f}, all else {rest:.2f}. Either energies covary, as under a common gain, or "
        "superposition is so strong that directions interfere."
    ]


GAP = 0.3  # .23 at an overlap of ½ of independent features in random directions, .57 to .86 where energies covary
NOTHING = 0.25  # of the score of energies: .53 in the same case, up to .1 where energies covary


SURE = 4.5  # errors; in pilots scores with less were wrong by .17 and more


def _k_statistic(count: Array, product: Array, traces: Array, cross: Array) -> Array:
    """Σ_ij cum(x_i, x_i, y_j, y_j), unbiased, from Σ |x|² |y|², Σ |x|² Σ |y|² and ‖XᵀY‖² of centred samples (Fisher 1930)."""
    n = jnp.where(count > 3, count, jnp.nan)
    return cumulants.k_statistic(product / n, (traces + 2 * cross) / n**2, n)


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


N_AXES = 64


def _projected(samples: Samples, roots: Any) -> Array:
    """‖K_xy‖² / (‖K_xx‖ ‖K_yy‖) of the cumulants cum(u_i, u_i, v_j, v_j) along random axes, `(folds,)`.

    Without the direction of the variances, and debiased by products of each fold with the mean of the others.
    """
    sides = ((samples.x, samples.source), (samples.y, samples.target))
    axes = [jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (x.shape[1], N_AXES)) for i, (x, _) in enumerate(sides)]

    def of_fold(inputs: Any) -> tuple[Array, Array, Array]:
        fold, whitening_roots = inputs
        x, y, count = samples.centred(fold)
        units = (
            (x, y) if whitening_roots is None else [matmul(v, root) for v, root in zip((x, y), whitening_roots, strict=True)]
        )
        turned = [matmul(v, axis) for v, axis in zip(units, axes, strict=True)]
        u, v = (safe_divide(side, safe_sqrt(jnp.sum(side**2) / count)) for side in turned)
        n = jnp.where(count > 3, count, jnp.nan)

        def cumulant(a: Array, b: Array) -> Array:
            second = [jnp.sum(side**2, axis=0) / n for side in (a, b)]
            fourth, cross = matmul((a**2).T, b**2) / n, matmul(a.T, b) / n
            found = cumulants.k_statistic(fourth, second[0][:, None] * second[1] + 2 * cross**2, n)
            return cumulants.without_energy(found, *second)

        return cumulant(u, u), cumulant(u, v), cumulant(v, v)

    n = samples.n_folds
    own = lax.map(of_fold, (jnp.arange(n), roots))
    others = [leaf if n == 1 else (jnp.sum(leaf, axis=0) - leaf) / (n - 1) for leaf in own]
    xx, xy, yy = (jnp.sum(a * b, axis=(1, 2)) for a, b in zip(own, others, strict=True))
    return _ratio({"xx": xx, "xy": xy, "yy": yy})


class _Fitted(NamedTuple):
    """What cumulant metrics learn from the training part of each fold, of units that are read on principal components.

    Attributes:
        bases: of each side, the mean and the components of all samples, scaled to variance 1.
        roots: of each side, what makes the training part white, `(folds, components, components)`.
        training: its cumulants.
        maps: of source to target, `(folds, maps, components, components)`: by least squares; where asked for, fitted to
            cumulants, of all samples at once and of two halves.
        kept: of each side, the share of variance in its components.
    """

    bases: tuple[tuple[Array, Array], tuple[Array, Array]]
    roots: tuple[Array, Array]
    training: Cumulants
    maps: Array
    kept: tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class _OfPairs(Metric):
    """What metrics of whole quadricovariances share: what they read and fit."""

    components: int = 32
    name: str = ""
    rotates: ClassVar[frozenset[str]] = BOTH
    reads: ClassVar[frozenset[str]] = frozenset({"samples"})
    least: ClassVar[int] = 4

    def __post_init__(self) -> None:
        positive_integer("components", self.components)

    def _sums(self, samples: Samples, bases: Any, *, mixed: bool = False) -> cumulants.Sums:
        """The sums of each fold."""

        def of_fold(fold: Array) -> cumulants.Sums:
            *sides, valid = samples.held_out(fold)
            x, y = (matmul(side - mean, root) for side, (mean, root) in zip(sides, bases, strict=True))
            return cumulants.sums_of(x, y, valid, mixed=mixed)

        return lax.map(of_fold, jnp.arange(samples.n_folds))

    def learn(self, evidence: Samples, *, mixed: bool = False) -> tuple[_Fitted, cumulants.Sums]:
        """Bases of all samples; of each training part what makes it white, its cumulants, and maps; the sums of each fold."""
        inside = (evidence.fold_ids >= 0) & (evidence.fold_ids < evidence.n_folds)
        found = [cumulants.white_basis(side, min(side.shape[1], self.components), inside) for side in (evidence.x, evidence.y)]
        bases = tuple((mean, root) for mean, root, _ in found)
        sums = self._sums(evidence, bases, mixed=mixed)
        alone = evidence.n_folds == 1

        def of_fold(inputs: Any) -> Any:
            fold, own = inputs
            rest = jax.tree.map(lambda leaf, out: leaf[0] if alone else jnp.sum(leaf, axis=0) - out, sums, own)
            source, cross, target = cumulants.covariances(rest)
            roots = [whitening(matrix)[0] for matrix in (source, target)]
            training = cumulants.cumulants(rest, *roots)
            least = matmul(roots[0].T, cross, roots[1])  # of white units, least squares
            maps = [least]
            if mixed:
                maps += [_map(training, training)]
                maps += [_map(*_halves(sums, fold, roots))] if evidence.n_folds > 2 else []
            return tuple(roots), training._replace(xxxy=None), jnp.stack(maps)  # which the maps alone need

        roots, training, maps = lax.map(of_fold, (jnp.arange(evidence.n_folds), sums))
        return _Fitted(bases, roots, training, maps, tuple(share for *_, share in found)), sums  # type: ignore[arg-type]

    def _both(self, fitted: _Fitted, evidence: Samples) -> tuple[Cumulants, Cumulants]:
        """The cumulants of the held-out part and of the training part of each fold."""
        sums = self._sums(evidence, fitted.bases)
        held_out = lax.map(lambda inputs: cumulants.cumulants(inputs[0], *inputs[1]), (sums, fitted.roots))
        return held_out, fitted.training


def _halves(sums: cumulants.Sums, fold: Array, roots: Any) -> list[Cumulants]:
    """The cumulants of two halves of the folds that train where one fold is held out."""
    n_folds = len(cumulants.count(sums))
    place = (jnp.arange(n_folds) - fold) % n_folds  # 0: the fold that is held out

    def of(half: int) -> Cumulants:
        chosen = (place > 0) & (place % 2 == half)
        return cumulants.cumulants(jax.tree.map(lambda leaf: jnp.tensordot(chosen.astype(leaf.dtype), leaf, 1), sums), *roots)

    return [of(0), of(1)]


def _map(*halves: Cumulants) -> Array:
    """W of cum(x_i, x_j, x_k, y_l) = Σ_a cum(x_i, x_j, x_k, x_a) W_al: noise of x does not attenuate it.

    Least squares whose products are of two halves of the samples, so that errors of estimates do not attenuate it either.
    """

    def product(first: Array, second: Array) -> Array:
        return jnp.einsum("pka,pkl->al", first, second, precision=lax.Precision.HIGHEST)

    # Without the direction in which a common gain makes estimates vary: what is left holds as well.
    thirds = [cumulants.without_direction(jax.vmap(cumulants.unpacked)(half.xx), half.x) for half in halves]  # (pairs, k, a)
    mixed = [cumulants.without_direction(half.xxxy, half.x) for half in halves]  # type: ignore[arg-type]
    gram = product(thirds[0], thirds[1])
    right = product(thirds[0], mixed[1]) + product(thirds[1], mixed[0])
    values, vectors = eigh(gram + gram.T)
    # Directions without cumulants have no map: what stands there is noise, which lies about 0 on both sides.
    there = values > jnp.maximum(-values[0], 1e-4 * values[-1])
    return matmul(vectors * jnp.where(there, 1 / jnp.where(there, values, 1), 0), vectors.T, right)


@dataclasses.dataclass(frozen=True)
class CumulantCKA(_OfPairs):
    """How alike the quadricovariances of two sides are, and how much of that no linear map explains.

    c = ‖K_xy‖² / (‖K_xx‖ ‖K_yy‖), K the fourth cumulants over pairs of units. Of independent features in directions that do not
    interfere it is the share ρ of features of equal law that the sides have in common. It is debiased: each squared norm is the
    product of a held-out part with its training part, so that unrelated sides score 0 on average. Units are whitened by the
    training part, and read on their leading principal components.

    **The hidden part.** Were y = x W, K_xy would be K_xx with W on its second pair. W is fitted to the training part in three
    ways: by least squares, which noise on x attenuates; and to cumulants, with and without products of two halves, which it
    does not: cum(x_i, x_j, x_k, y_l) = Σ_a cum(x_i, x_j, x_k, x_a) W_al. The one that explains most over all folds counts. With
    the cosine of K_xy and that surrogate, linear = c cos², hidden = c - linear. It is of this direction, source to target.
    Hidden is what no linear map explains. **Superposition is one of four causes**: the others are units that are not linear in
    the features, target units that hold conjunctions of the source's, and units that were not recorded. Where noise drowns
    directions of ill-conditioned units, no map of them can be fitted either (.33 for noise as strong as 40 mixed units).

    It assumes independent features and linear units. In superposition directions interfere, and c falls below ρ: .87 for 40
    features in 20 units at ρ = 1, .65 in 10. Common gain or density of features scales it down, and unrelated sides stay near
    0; features in groups that occur together on both sides read .5 at ρ = 0. Rectified units have cumulants of their own. With
    `folds=None` nothing is debiased. Symmetric, but for linear and hidden. Invariant to rotation and isotropic scaling, and
    where all components are read to every linear map that can be undone. Source: Cardoso 1991 for the quadricovariance; the
    metric is ours.

    Attributes:
        components: principal components read of each side at most; `source_kept` and `target_kept` say what share of the
            variance they hold.
        name: its key in the result.
        project_energy: leave out the direction of the covariance in the space of pairs, along which total energies of samples
            covary: what gain, density or strength of noise in common does to unrelated sides.
        split: whether to find the linear part, which takes about as long again.

    Details, `(folds,)`: `linear`, `hidden`, `cosine`; `hidden_least_squares`, the same by an ordinary regression;
    `with_energy`, the score without projection; `energy`, the whitened cokurtosis, which is far above the score where energies
    covary, and where superposition is strong; `source_cumulant`, `target_cumulant`, the debiased squared norms. Scalars:
    `hidden_error`, a jackknife over folds of the hidden part; `source_kept`, `target_kept`.

    >>> import superpos as sp
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, "cumulant_cka"), x, y)["cumulant_cka"]  # traced alone, to be quick
    >>> score.folds.shape, score.details["hidden"].shape
    ((5,), (5,))
    """

    name: str = "cumulant_cka"
    _: dataclasses.KW_ONLY
    project_energy: bool = True
    split: bool = True
    symmetric: ClassVar[bool] = True

    def fit(self, evidence: Samples) -> _Fitted:
        """What is learned from each training part."""
        return self.learn(evidence, mixed=self.split)[0]

    def evaluate(self, fitted: _Fitted, evidence: Samples) -> Score:
        """Each held-out part against its training part."""
        held_out, training = self._both(fitted, evidence)

        def of_fold(inputs: Any) -> dict[str, Array]:
            own, rest, maps = inputs
            plain = {pair: jnp.sum(getattr(own, pair) * getattr(rest, pair)) for pair in ("xx", "xy", "yy")}
            sides = {"xx": (own.x, own.x), "xy": (own.x, own.y), "yy": (own.y, own.y)}

            def clean(part: Cumulants, pair: str, matrix: Any = None) -> Array:
                matrix = getattr(part, pair) if matrix is None else matrix
                return cumulants.without_energy(matrix, *sides[pair]) if self.project_energy else matrix

            kept = {pair: (clean(own, pair), clean(rest, pair)) for pair in plain}
            found = {f"plain_{pair}": value for pair, value in plain.items()}
            found |= {pair: jnp.sum(a * b) for pair, (a, b) in kept.items()}
            found |= {f"energy_{pair}": matmul(a, getattr(own, pair), b) for pair, (a, b) in sides.items()}

            def surrogate(matrix: Array) -> dict[str, Array]:
                bent = cumulants.square(matrix.T).T
                a, b = (clean(part, "xy", matmul(part.xx, bent)) for part in (own, rest))
                products = {"own": kept["xy"][0] * b, "rest": a * kept["xy"][1], "square": a * b}
                return {name: jnp.sum(product) for name, product in products.items()}

            return found | (lax.map(surrogate, maps) if self.split else {})

        sums = lax.map(of_fold, (held_out, training, fitted.maps))
        folds = _ratio(sums)
        details: dict[str, Any] = {
            "source_cumulant": sums["xx"],
            "target_cumulant": sums["yy"],
            "with_energy": _ratio(sums, "plain_"),
            "energy": _ratio(sums, "energy_"),
            "source_kept": fitted.kept[0],
            "target_kept": fitted.kept[1],
        }
        if self.split:
            n = evidence.n_folds
            best = jnp.argmax(_explained(jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums)))
            explained = _explained(sums)
            details["cosine"] = safe_sqrt(explained[:, best])
            details["linear"] = folds * explained[:, best]
            details["hidden"] = folds - details["linear"]
            details["hidden_least_squares"] = folds * (1 - explained[:, 0])
            without = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0) - leaf, sums)  # each fold in turn
            hidden = _ratio(without) * (1 - _explained(without)[:, best])
            details["hidden_error"] = safe_sqrt((n - 1) * jnp.var(hidden)) if n > 1 else jnp.full((), jnp.nan)
        return from_folds(folds, (evidence.source, evidence.target), details)

    def doubts(self, score: Score) -> list[str]:
        """Where a side's own cumulants are weak, where energies covary, and where components leave out much."""
        found = _weak(self.name, score)
        if np.isnan(score.mean):
            found.append(f"{self.name} is not defined in some folds: a side's own cumulants do not show on other samples.")
        else:
            found += _of_energy(self.name, float(np.mean(score.details["energy"])), float(score.mean))
        return found + _lost(self.name, score)


def _lost(name: str, score: Score) -> list[str]:
    """A sentence for each side whose components leave out more than a tenth of its variance."""
    kept = {side: float(score.details[f"{side}_kept"]) for side in SIDES}
    return [
        f"{name} reads components that hold {share:.0%} of the variance of the {side}: raise components."
        for side, share in kept.items()
        if share < 0.9
    ]


def _ratio(sums: dict[str, Array], form: str = "") -> Array:
    """c; NaN where a side's own cumulants do not show on other samples."""
    xx, yy = sums[f"{form}xx"], sums[f"{form}yy"]
    told = (xx > 0) & (yy > 0)
    return jnp.where(told, sums[f"{form}xy"] / jnp.where(told, safe_sqrt(xx) * safe_sqrt(yy), 1), jnp.nan)


def _explained(sums: dict[str, Array]) -> Array:
    """cos² of the cross-cumulants and the surrogate of each map, between 0 and 1."""
    return jnp.clip(safe_divide(sums["own"] * sums["rest"], sums["xy"][..., None] * sums["square"]), 0, 1)


@dataclasses.dataclass(frozen=True)
class CumulantCCA(_OfPairs):
    """The share of feature lines that two sides have in common, each line alike, whatever its law.

    Canonical correlations of quadricovariances: with K_xx = V Λ Vᵀ cut at its rank, Λ^-½ Vᵀ K_xy V Λ^-½ has a singular value 1
    for each line that both sides have, and 0 for the others. Directions come from the training part, correlations from the
    held-out part. c = Σ_i s_i t_i / √(lines of x · lines of y), s and t the correlations on both parts, so that lines of noise
    count 0 on average. Symmetric. Invariant to every linear map of either side that can be undone, if all components are read.

    The ranks are what brings the truncated matrix of one half of the training folds nearest to that of the other half, as in
    `sp.cumulants.count_features`, of fewer samples: it needs three folds, and is NaN with fewer unless `n_features` is given.
    It is NaN, with a warning from `sp.align`, where folds differ by more than two lines and 10 %, and where lines are nearly as
    many as pairs. It assumes independent features and linear units, and fewer lines than `most`. What breaks `count_features`
    breaks this: features much weaker than others go uncounted. Noise as strong as the signal, or a quarter as many units as
    features, leave 16,000 samples too few.
    Source: Podosinnikova, Bach & Lacoste-Julien 2016, arXiv 1602.09013, for shared components from joint cumulants; Cardoso
    1991; the metric is ours.

    Attributes:
        components: as in `CumulantCKA`.
        name: its key in the result.
        n_features: lines of source and target, where they are known.
        most: lines that are looked at.

    Details, `(folds,)`: `shared`, the number of lines in common; `source_lines`, `target_lines`; scalars `source_kept`,
    `target_kept`.

    >>> import superpos as sp
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, "cumulant_cca"), x, y)["cumulant_cca"]  # traced alone, to be quick
    >>> score.folds.shape, score.details["shared"].shape
    ((5,), (5,))
    """

    name: str = "cumulant_cca"
    _: dataclasses.KW_ONLY
    n_features: tuple[int, int] | None = None
    most: int = 128
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("most", self.most)
        if self.n_features is None:
            return
        whole = len(self.n_features) == 2 and all(isinstance(rank, int | np.integer) for rank in self.n_features)
        if not whole or not 1 <= min(self.n_features) <= max(self.n_features) <= self.most:
            raise ValueError(f"n_features must be two whole numbers from 1 to most = {self.most}, got {self.n_features}.")

    def fit(self, evidence: Samples) -> Any:
        """What is learned from each training part, and the directions of the lines."""
        fitted, sums = self.learn(evidence)
        for rank, matrix in zip(self.n_features or (), (fitted.training.xx, fitted.training.yy), strict=False):
            if rank > matrix.shape[1]:
                raise ValueError(f"n_features must be at most the {matrix.shape[1]} pairs of components, got {rank}.")
        if self.n_features is not None:
            ranks: Any = tuple(jnp.full(evidence.n_folds, rank) for rank in self.n_features)
        elif evidence.n_folds < 3:
            ranks = (jnp.full(evidence.n_folds, -1),) * 2
        else:
            ranks = lax.map(lambda inputs: _ranks(sums, *inputs), (jnp.arange(evidence.n_folds), fitted.roots))

        def of_fold(inputs: Any) -> Any:
            training, ranks = inputs
            sides = zip((training.xx, training.yy), ranks, strict=True)
            (source, signs), (target, others) = (_lines(matrix, rank, self.most) for matrix, rank in sides)
            u, _, vt = svd(matmul(source.T, training.xy, target))
            # With the signs of the lines' cumulants too: features of negative ones count alike.
            return (
                (matmul(source, u), matmul(source * signs, u)),
                (matmul(target, vt.T), matmul(target * others, vt.T)),
            )

        return fitted, ranks, lax.map(of_fold, (fitted.training, ranks))

    def evaluate(self, fitted: Any, evidence: Samples) -> Score:
        """The correlations of each held-out part, along the directions of its training part."""
        learned, ranks, directions = fitted
        parts = self._both(learned, evidence)

        def correlations(part: Cumulants, source: Any, target: Any) -> Array:
            (x, x_signed), (y, y_signed) = source, target
            xx, xy, yy = (
                jnp.sum(a * matmul(matrix, b), axis=0)
                for a, matrix, b in ((x, part.xx, x_signed), (x, part.xy, y), (y, part.yy, y_signed))
            )
            return safe_divide(xy, safe_sqrt(xx) * safe_sqrt(yy))

        def of_fold(inputs: Any) -> Array:
            (own, rest), directions = inputs
            held_out = jnp.clip(correlations(own, *directions), -1, 1)
            return jnp.sum(held_out * jnp.clip(correlations(rest, *directions), -1, 1))

        shared = lax.map(of_fold, (parts, directions))
        lines = [rank.astype(shared.dtype) for rank in ranks]
        told = (ranks[0] > 0) & (ranks[1] > 0)
        if self.n_features is None:
            for rank, matrix in zip(ranks, (learned.training.xx, learned.training.yy), strict=True):
                told &= (rank <= 0.9 * matrix.shape[1]) & (rank <= self.most)
                told &= jnp.max(rank) - jnp.min(rank) <= jnp.maximum(2, 0.1 * jnp.median(rank))
        folds = jnp.where(told, shared / jnp.where(told, jnp.sqrt(lines[0]) * jnp.sqrt(lines[1]), 1), jnp.nan)
        details = {
            "shared": shared,
            "source_lines": lines[0],
            "target_lines": lines[1],
            "source_kept": learned.kept[0],
            "target_kept": learned.kept[1],
        }
        return from_folds(folds, (evidence.source, evidence.target), details)

    def doubts(self, score: Score) -> list[str]:
        """Where lines could not be counted, and where components leave out much."""
        counted = {side: np.asarray(score.details[f"{side}_lines"]) for side in SIDES}
        uncounted = []
        if np.isnan(score.mean) and len(score.folds) < 3:
            uncounted.append(f"{self.name} is not defined: it needs three folds to count lines, or n_features.")
        elif np.isnan(score.mean):
            lines = "; ".join(f"{side} {', '.join(f'{n:.0f}' for n in values)}" for side, values in counted.items())
            uncounted.append(f"{self.name} is not defined, for lines cannot be counted (of each fold: {lines}).")
        return uncounted + _lost(self.name, score)


def _ranks(sums: cumulants.Sums, fold: Array, roots: tuple[Array, Array]) -> tuple[Array, Array]:
    """Lines of both sides, by two halves of the folds that train."""
    halves = _halves(sums, fold, roots)
    both = (cumulants.held_out(*(getattr(half, pair) for half in halves)) for pair in ("xx", "yy"))
    return tuple(cumulants.rank(*found) for found in both)  # type: ignore[return-value]


def _lines(matrix: Array, rank: Array, most: int) -> tuple[Array, Array]:
    """What makes a quadricovariance white within its leading directions, `(pairs, most)`, 0 beyond the rank; their signs."""
    values, vectors = eigh(matrix)
    order = jnp.argsort(-jnp.abs(values))[: min(most, len(values))]
    size = jnp.abs(values[order])
    kept = (jnp.arange(len(order)) < rank) & (size > 0)
    return vectors[:, order] * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, size, 1)), 0), jnp.sign(values[order])


register(Cokurtosis(), Cokurtosis(whiten=True, name="whitened_cokurtosis"), CumulantCKA(), CumulantCCA())

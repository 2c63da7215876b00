"""Metrics that regress target units on source units: invariant to invertible linear maps of the source, up to shrinkage.

Superposition deflates them, less than matching: a linear map undoes a mixture as far as the source's units span what the target
mixes, about √(n / d) of features d in units n (`sp.theory.random_ols`), and not what rectification cut off.

All of them score a fold by the mean over live target units of the Pearson correlation r between prediction and held-out
response; `details["r2"]`, `(folds, n_target)`, holds 1 - error / variance on the held-out part. `sp.reliability.disattenuate`
divides r by the square root of a unit's reliability. With `weights=True`, `details` also hold `weights`, `(folds, n_source,
n_target)`, and `intercept`, `(folds, n_target)`, in the units of the data.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array

from superpos.linalg import eigh, matmul, nnls
from superpos.metrics.base import Metric, Samples, Score, from_units, positive_integer, safe_divide, safe_norm, safe_sqrt
from superpos.metrics.registry import register
from superpos.moments import Moments, training


class Linear(NamedTuple):
    """A linear map for each fold, fitted on the fold's training part.

    Attributes:
        weights: `(folds, n_source, n_target)`, or None where only predictions are held.
        intercept: `(folds, n_target)`.
        predictions: `(n_samples, n_target)`, each by the map of the fold that its sample is held out in, less that map's
            `offset`, beside which strongly shrunk predictions would be lost to rounding; or None.
        offset: `(folds, n_target)`, or None.
        details: what else there is to tell.
        solver: of the normal equations of each fold, where weights are held.
    """

    weights: Any
    intercept: Any
    predictions: Any
    details: dict[str, Any]
    solver: Any = None
    offset: Any = None


class Solver(NamedTuple):
    """Approximate inverses of the normal equations XᵀX + α P of each fold, in an eigenbasis.

    Attributes:
        basis: `(folds, n_source, k)`.
        inverse: `(folds, k, n_target or 1)`.
        penalty: `(folds, n_source, n_target or 1)`, the diagonal of α P.
    """

    basis: Any
    inverse: Any
    penalty: Any


class Regression(Metric):
    """Scores linear maps."""

    weights: bool
    share: bool = False

    def polish(self, fitted: Linear, samples: Samples) -> Linear:
        """One step of iterative refinement whose residual is computed from the samples.

        Second moments hold the weak directions of the source with an error of about cond(X)² · eps, the samples with cond(X)
        · eps.
        """
        if fitted.solver is None:
            return fitted
        n_samples, n_folds = len(samples.x), samples.n_folds
        inside = (samples.fold_ids >= 0) & (samples.fold_ids < n_folds)
        centre = jnp.sum(jnp.where(inside[:, None], samples.x, 0), axis=0) / jnp.maximum(jnp.sum(inside), 1)
        # All folds' maps at once, a block of samples at a time.
        data = blocks(samples.x, samples.y, jnp.where(inside, samples.fold_ids, -1))
        folds = jnp.arange(n_folds)

        def predict(x: Array, weights: Array, intercept: Array) -> Array:
            """By every fold's map, `(folds, size, n_target)`."""
            return jax.vmap(lambda w, b: matmul(x, w) + b)(weights, intercept)

        def residuals(sums: Any, block: Any) -> tuple[Any, None]:
            x, y, ids = block
            x = x - centre
            part = ((ids >= 0) & ((ids != folds[:, None]) | (n_folds == 1))).astype(x.dtype)
            rest = part[:, :, None] * (y - predict(x, fitted.weights, about))
            new = jax.vmap(lambda r: matmul(x.T, r))(rest), jnp.sum(rest, axis=1), matmul(part, x), jnp.sum(part, axis=1)
            return jax.tree.map(jnp.add, sums, new), None

        about = fitted.intercept + matmul(centre, fitted.weights)
        weights, (basis, inverse, penalty) = fitted.weights, fitted.solver
        zeros = (
            jnp.zeros_like(weights),
            jnp.zeros_like(about),
            jnp.zeros_like(weights[:, :, 0]),
            jnp.zeros(n_folds, weights.dtype),
        )
        (cross, rest, x_sum, count), _ = lax.scan(residuals, zeros, data)
        x_mean = x_sum / count[:, None]
        cross = cross - x_mean[:, :, None] * rest[:, None, :] - penalty * weights
        step = matmul(basis, inverse * matmul(basis.mT, cross))
        weights = weights + step
        about = about + rest / count[:, None] - jnp.einsum("fs,fst->ft", x_mean, step, precision=lax.Precision.HIGHEST)

        def own(_: Any, block: Any) -> tuple[None, Array]:
            x, _, ids = block
            x, predicted = x - centre, jnp.zeros((len(ids), about.shape[1]), about.dtype)
            for fold in range(n_folds):
                predicted = jnp.where((ids == fold)[:, None], matmul(x, weights[fold]), predicted)
            return None, predicted

        predictions = lax.scan(own, None, data)[1].reshape(-1, about.shape[1])[:n_samples]
        intercept = about - matmul(centre, weights)
        return fitted._replace(weights=weights, intercept=intercept, predictions=predictions, offset=about)

    def refit(self, fitted: Linear, evidence: Moments | Samples) -> Linear:
        """The map of other samples, with the penalty and the directions of the first, by conjugate gradients.

        The first fit's factorisation is the preconditioner. Without a small part of the samples the preconditioned matrix has
        its eigenvalues near one number below 1, so that a few steps do.
        """
        if fitted.solver is None or isinstance(evidence, Samples):
            return self.fit(evidence)
        part = training(evidence)

        def solve(weights: Array, solver: Solver, scatter: Any, cross: Array) -> Array:
            basis, inverse, penalty = solver
            found, _ = cg(
                lambda w: matmul(scatter, w) + penalty * w,
                cross,
                weights,
                maxiter=10,
                tol=1e-4,
                M=lambda rest: matmul(basis, inverse * matmul(basis.T, rest)),
            )
            return found

        weights = jax.vmap(solve)(fitted.weights, fitted.solver, part.x.scatter, part.xy)
        return linear(part, weights, fitted.solver, **fitted.details)

    def evaluate(self, fitted: Linear, evidence: Moments | Samples) -> Score:
        """Scores the held-out part of each fold."""
        if isinstance(evidence, Samples):
            held_out, shift = _held_out_by_predictions(fitted.predictions, evidence)
            shift = shift - fitted.offset
            source, target = evidence.source, evidence.target
        else:
            held_out, shift = jax.vmap(held_out_by_map)(fitted.weights, fitted.intercept, evidence)
            source, target = evidence.live()
        r = safe_divide(held_out.cross, safe_sqrt(held_out.variance) * safe_sqrt(held_out.squares))
        live = target & jnp.any(source)
        r2 = jnp.where(live, held_out.r2(shift), jnp.nan)
        details = {"r2": r2, **fitted.details}
        if self.weights:
            details |= {"weights": fitted.weights, "intercept": fitted.intercept}
        return from_units(r2 if self.share else jnp.clip(r, -1, 1), live, details)


class _HeldOut(NamedTuple):
    """Sums over held-out samples, centred: of prediction times response, of each squared, and their number."""

    cross: Any
    variance: Any
    squares: Any
    count: Any

    def r2(self, shift: Any) -> Any:
        """1 - error / variance of each target unit, given the mean error."""
        error = self.squares - 2 * self.cross + self.variance + self.count[..., None] * shift**2
        return 1 - safe_divide(error, self.squares)


def held_out_by_map(weights: Any, intercept: Any, fold: Any) -> tuple[_HeldOut, Any]:
    """What a map `(n_source, n_target)` predicts of one fold, from the fold's moments, and the mean error `(n_target,)`."""
    cross = jnp.sum(weights * fold.xy, axis=0)
    variance = jnp.sum(weights * matmul(fold.x.scatter, weights), axis=0)
    shift = fold.y.mean - intercept - matmul(fold.x.mean, weights)
    return _HeldOut(cross, variance, fold.y.squares, fold.count), shift


def _held_out_by_predictions(predictions: Array, samples: Samples) -> tuple[_HeldOut, Array]:
    folds = jnp.arange(samples.n_folds)
    data = blocks(predictions, samples.y, jnp.where(samples.fold_ids < samples.n_folds, samples.fold_ids, -1))

    def total(function: Callable[..., Any], n_sums: int) -> list[Array]:
        """Sums over each fold of `function(predictions, responses, one-hot folds)` of a block, `(folds, n_target)` each."""

        def add(sums: Any, block: Any) -> tuple[list[Array], None]:
            p, y, ids = block
            here = (ids == folds[:, None]).astype(y.dtype)
            p, y = (jnp.where((ids >= 0)[:, None], values, 0) for values in (p, y))
            return [old + matmul(here, new) for old, new in zip(sums, function(p, y, here), strict=True)], None

        return lax.scan(add, [jnp.zeros((samples.n_folds, samples.y.shape[1]), samples.y.dtype)] * n_sums, data)[0]

    # Two passes: one fold's predictions may be far smaller than the mean of all.
    p, y, count = total(lambda p, y, _: (p, y, jnp.ones_like(y)), 3)
    p_mean, y_mean = p / jnp.maximum(count, 1), y / jnp.maximum(count, 1)

    def deviations(p: Array, y: Array, here: Array) -> tuple[Array, Array, Array]:
        p, y = p - matmul(here.T, p_mean), y - matmul(here.T, y_mean)
        return p * y, p**2, y**2

    cross, variance, squares = total(deviations, 3)
    return _HeldOut(cross, variance, squares, count[:, 0]), y_mean - p_mean


def blocks(*arrays: Any) -> tuple[Any, ...]:
    """Arrays over samples in blocks of a size that caches hold, `(blocks, size, ...)`; padded with zeros, fold ids with -1."""
    n_samples = len(arrays[0])
    size = min(n_samples, 2048)
    n_blocks = -(-n_samples // size)

    def cut(values: Array) -> Array:
        padding = [(0, n_blocks * size - n_samples)] + [(0, 0)] * (values.ndim - 1)
        fill = -1 if values.ndim == 1 else 0
        return jnp.pad(values, padding, constant_values=fill).reshape(n_blocks, size, *values.shape[1:])

    return tuple(cut(values) for values in arrays)


def linear(part: Moments, weights: Any, solver: Solver | None = None, **details: Any) -> Linear:
    """The map with these weights through the means of its training part."""
    predicted = jnp.einsum("fs,fst->ft", part.x.mean, weights, precision=lax.Precision.HIGHEST)
    return Linear(weights, part.y.mean - predicted, None, details, solver)


@dataclasses.dataclass(frozen=True)
class OLS(Regression):
    """Ordinary least squares, the solution of minimum norm, with a free intercept.

    Source: Penrose 1956. Equal to scikit-learn's `LinearRegression` where `rcond` agrees.

    In float32 accurate to 1e-4 up to cond(X) = 1,000 by `sp.align`; moments alone (`sp.score`) hold weak directions of
    the source worse, and reach that up to 100. Beyond, enable x64.

    Attributes:
        rcond: singular values of the centred source below this share of the largest count as 0, its units scaled to
            variance 1 where there are more training samples than units. By default 2 √eps, which is 7e-4 in float32 and
            3e-8 with x64: less cannot be told from rounding in second moments.
        weights: return weights and intercept in the details.
        name: its key in the result.

    Details: `r2`; `rank`, `(folds,)`.

    Raises:
        ValueError: an rcond outside [0, 1).

    >>> import superpos as sp
    >>> metric = sp.metrics.OLS()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["ols"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['r2', 'rank'])
    """

    rcond: float | None = None
    weights: bool = False
    name: str = "ols"
    reads: ClassVar[frozenset[str]] = frozenset({"xx", "xy"})
    second_pass: ClassVar[bool] = True
    rotates: ClassVar[frozenset[str]] = frozenset({"source"})

    def __post_init__(self) -> None:
        if self.rcond is not None and not 0 <= self.rcond < 1:
            raise ValueError(f"rcond must be at least 0 and below 1, got {self.rcond}.")

    def fit(self, evidence: Moments) -> Linear:
        """Least squares on each fold's training part."""
        source, _ = evidence.live()
        part = training(evidence)
        epsilon = jnp.finfo(part.xy.dtype).eps
        cutoff = max(4 * float(epsilon), (self.rcond or 0) ** 2)

        def solve(count: Array, scatter: Any, cross: Array) -> tuple[Any, ...]:
            scatter = jnp.where(source[:, None] & source, scatter, 0)
            cross = jnp.where(source[:, None], cross, 0)
            # Without scales, which do not matter but to the norm: with fewer samples than units that one is to be least.
            scale = safe_divide(jnp.ones_like(scatter[0]), safe_sqrt(jnp.diagonal(lax.stop_gradient(scatter))))
            scale = jnp.where(count > jnp.sum(source), scale, 1)
            values, vectors = eigh(lax.stop_gradient(scatter) * scale[:, None] * scale)
            kept = values > cutoff * values[-1]
            inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)[:, None]
            vectors = scale[:, None] * jnp.where(source[:, None], vectors, 0)
            invert = lambda rest: matmul(vectors, inverse * matmul(vectors.T, rest))  # noqa: E731
            weights = invert(lax.stop_gradient(cross))
            solver = Solver(vectors, inverse, jnp.zeros_like(inverse))
            return weights + invert(cross - matmul(scatter, weights)), jnp.sum(kept), solver  # refined: see Ridge

        weights, rank, solver = jax.vmap(solve)(part.count, part.x.scatter, part.xy)
        return linear(part, weights, solver, rank=rank)


@dataclasses.dataclass(frozen=True)
class NNLS(Regression):
    """Non-negative least squares: weights >= 0, a free intercept.

    Each target unit is a non-negative combination of source units, as features of one sign would add up. Exact, by the
    active-set method of Lawson & Hanson 1974 on the moments; source units that are combinations of those in use stay out.
    Reads the covariance of the source units even where there are fewer samples: memory grows with n_source².

    Attributes:
        weights: return weights and intercept in the details.
        name: its key in the result.

    Details: `r2`; `used`, `(folds, n_target)`, number of positive weights.

    >>> import superpos as sp
    >>> metric = sp.metrics.NNLS()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["nnls"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['r2', 'used'])
    """

    weights: bool = False
    name: str = "nnls"
    reads: ClassVar[frozenset[str]] = frozenset({"xx", "xy"})

    def fit(self, evidence: Moments) -> Linear:
        """Non-negative least squares on each fold's training part."""
        source, _ = evidence.live()
        part = training(evidence)
        inverse = jnp.where(source, safe_divide(jnp.ones_like(part.x.squares), safe_sqrt(part.x.squares)), 0)
        assert part.x.scatter is not None, "NNLS reads xx"
        gram = part.x.scatter * inverse[:, :, None] * inverse[:, None, :]
        norms = safe_sqrt(part.y.squares)[:, None, :]
        cross = safe_divide(part.xy * inverse[:, :, None], norms)
        solve = jax.vmap(nnls, (0, 0))  # over folds
        solution = lax.map(lambda target: solve(gram, target), jnp.moveaxis(cross, 2, 0), batch_size=16)
        weights = jnp.moveaxis(solution, 0, 2) * inverse[:, :, None] * norms
        return linear(part, weights, used=jnp.sum(weights > 0, axis=1))


@dataclasses.dataclass(frozen=True)
class PLS(Regression):
    """Partial least squares regression of all target units at once, as neural benchmarks use it: 25 components, no scaling.

    PLS2 by deflation; equal to scikit-learn's `PLSRegression(n_components, scale=False)`. Unlike the other regressions it
    depends on which target units are fitted together. In float32 accurate to 1e-4 up to cond(X) = 100 with as many components
    as units; with few components the weak directions do not enter. Source: Wold 1975; Schrimpf et al. 2018, "Brain-Score".

    Attributes:
        n_components: at most; fewer where the source has fewer units or nothing is left to explain.
        weights: return weights and intercept in the details.
        name: its key in the result.

    Details: `r2`; `n_components`, `(folds,)`, those used.

    Raises:
        ValueError: fewer than one component.

    >>> import superpos as sp
    >>> metric = sp.metrics.PLS(n_components=2)
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["pls"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['n_components', 'r2'])
    """

    n_components: int = 25
    weights: bool = False
    name: str = "pls"
    reads: ClassVar[frozenset[str]] = frozenset({"xx", "xy"})
    rotates: ClassVar[frozenset[str]] = frozenset({"source"})

    def __post_init__(self) -> None:
        positive_integer("n_components", self.n_components)

    def fit(self, evidence: Moments) -> Linear:
        """PLS on each fold's training part."""
        source, target = evidence.live()
        part = training(evidence)
        n_components = min(self.n_components, source.size)

        def solve(scatter: Any, cross: Array) -> tuple[Any, ...]:
            scatter = jnp.where(source[:, None] & source, scatter, 0)
            cross = jnp.where(source[:, None] & target, cross, 0)
            smallest = 10 * jnp.finfo(cross.dtype).eps * safe_norm(cross)

            def component(rest: Any, _: Any) -> tuple[Any, Any]:
                scatter, cross = rest
                direction = _leading(cross)
                moved = matmul(scatter, direction)
                variance = jnp.sum(direction * moved)
                used = (safe_norm(cross) > smallest) & (variance > 0)
                inverse = jnp.where(used, 1 / jnp.where(used, variance, 1), 0)
                loading, response = moved * inverse, matmul(cross.T, direction) * inverse
                scatter = scatter - variance * loading[:, None] * loading
                cross = cross - variance * loading[:, None] * response
                return (scatter, cross), (jnp.where(used, direction, 0), loading, response, used)

            _, (directions, loadings, responses, used) = lax.scan(component, (scatter, cross), length=n_components)
            # Scores are products with the deflated source; rotations are what they are of the source itself.
            overlap = matmul(loadings, directions.T)  # upper triangular with a diagonal of ones

            def rotate(rotations: Array, i: Array) -> tuple[Array, None]:
                rotation = directions[i] - matmul(jnp.where(jnp.arange(n_components) < i, overlap[:, i], 0), rotations)
                return rotations.at[i].set(rotation), None

            rotations, _ = lax.scan(rotate, jnp.zeros_like(directions), jnp.arange(n_components))
            return matmul(rotations.T, responses), jnp.sum(used)

        weights, used = jax.vmap(solve)(part.x.scatter, part.xy)
        return linear(part, weights, n_components=used)


def _leading(matrix: Array) -> Array:
    """The first left singular vector: that of the smaller Gram matrix, and one power iteration to mend its rounding."""
    small, left = (matrix.T, True) if matrix.shape[0] > matrix.shape[1] else (matrix, False)
    vector = eigh(matmul(small, small.T))[1][:, -1]
    if left:
        vector = matmul(matrix, vector)
    vector = matmul(matrix, matmul(matrix.T, vector / _norm(vector)))
    return vector / _norm(vector)


def _norm(vector: Array) -> Array:
    norm = safe_norm(vector)
    return jnp.where(norm > 0, norm, 1)


register(OLS(), NNLS(), PLS())

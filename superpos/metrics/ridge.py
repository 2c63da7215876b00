"""Ridge regression, in the form of units or, with fewer samples than units, of samples."""

import dataclasses
import functools
import itertools
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from superpos.linalg import eigh, matmul
from superpos.metrics.base import Samples, Score, safe_divide, safe_sqrt
from superpos.metrics.registry import register
from superpos.metrics.regression import Linear, Regression, Solver, held_out_by_map, linear
from superpos.moments import Moments, pool, training

SMALL = 0.1  # an alpha below which less is as good as none


@dataclasses.dataclass(frozen=True)
class Ridge(Regression):
    """Ridge regression from source to target units, alpha chosen by errors inside the training part.

    Source columns are standardised with the training part's mean and standard deviation (as scikit-learn's
    StandardScaler), the intercept is free, and the penalty is alpha · |w|² beside a sum of squared errors over samples.
    Not symmetric. Source: Hoerl & Kennard 1970; Longon, Klindt & Khosla, arXiv 2510.03186.

    With fewer samples than source units the n × n Gram matrix of the samples is decomposed instead of the covariance of the
    units. Directions whose eigenvalue is below 4 eps of the largest are left out. In float32 accurate to 1e-4 at equal alpha
    up to cond(X) = 1,000 by `sp.align`, and up to 100 from moments alone (`sp.score`), however small alpha is; beyond, enable
    x64.

    Attributes:
        alphas: candidates.
        per_target: choose alpha for each target unit on its own, instead of one for all.
        selection: "folds": smallest squared error on the other folds of the training part, each held out in turn (needs at
            least 3 folds, else generalised cross-validation is used); "gcv": smallest generalised cross-validation error
            (Golub, Heath & Wahba 1979). Each target unit is divided by its variance, over all samples in "folds": over the few
            of one fold a nearly silent unit could vary so little that its error alone decides for all.
        weights: return weights and intercept in the details.
        share: score a unit by 1 - error / variance, the share of its variance that is explained, in place of r; see
            `sp.stats.partition`.
        name: its key in the result.

    Details: `r2`; `alpha`, `(folds,)` or `(folds, n_target)`.

    Raises:
        ValueError: no alpha, one that is not positive, or an unknown selection.

    >>> import superpos as sp
    >>> metric = sp.metrics.Ridge(per_target=True)
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["ridge"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['alpha', 'r2'])
    """

    alphas: tuple[float, ...] = tuple(float(alpha) for alpha in np.logspace(-8, 8, 17))
    per_target: bool = False
    selection: Literal["folds", "gcv"] = "folds"
    weights: bool = False
    share: bool = False
    name: str = "ridge"
    reads: ClassVar[frozenset[str]] = frozenset({"xx", "xy"})
    wide: ClassVar[bool] = True
    second_pass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in np.ravel(self.alphas)))
        if not self.alphas or not all(0 < alpha < np.inf for alpha in self.alphas):
            raise ValueError(f"alphas must be one or more positive numbers, got {self.alphas}.")
        if self.selection not in ("folds", "gcv"):
            raise ValueError(f'selection must be "folds" or "gcv", got {self.selection!r}.')

    def fit(self, evidence: Moments | Samples) -> Linear:
        """Ridge regression on each fold's training part."""
        if isinstance(evidence, Samples):
            return self._fit_samples(evidence)
        source, target = evidence.live()
        part = training(evidence)
        constants = lax.stop_gradient(evidence)  # of the choice of alpha
        paths = jax.vmap(_path, (0, None))(part, source)
        if self._inner(evidence.n_folds):
            kept, pairs = _inner_parts(evidence.n_folds)
            on = pool(constants, kept)
            bases = jax.vmap(_path, (0, None))(on, source)
            sides = [jax.vmap(_rotate)(bases, jax.tree.map(lambda leaf, s=s: leaf[pairs[:, s]], constants)) for s in (0, 1)]
            fitted_on = jax.vmap(_rotate)(bases, on)
            alphas = self._alphas(part)
            whole = pool(constants, jnp.ones((1, evidence.n_folds), bool)).y.squares[0]
            inverse = jnp.where(target, safe_divide(jnp.ones_like(whole), whole), 0)
            if self.per_target:
                gain = jax.vmap(_inner_gain, (None, 0, 0, 0))
                inner = [inverse * of_side for of_side in lax.map(lambda alpha: gain(alpha, bases, fitted_on, sides), alphas)]
            else:
                total = jax.vmap(functools.partial(_inner_total, alphas, inverse), out_axes=1)
                inner = [total(bases, fitted_on, fold) for fold in sides]
            quality = _outer(inner, evidence.n_folds)
        else:
            quality = lax.map(lambda alpha: jax.vmap(_gcv, (None, 0))(alpha, paths), self._alphas(part))
        alpha = jax.vmap(self._best, (1, None))(quality, target)
        weights = jax.vmap(_refined)(paths, part, alpha)
        inverse = jnp.where(paths.kept[:, :, None], 1 / (paths.values[:, :, None] + alpha[:, None]), 0)
        variance = part.x.squares / part.count[:, None]
        solver = Solver(paths.basis, inverse, variance[:, :, None] * alpha[:, None])
        return linear(part, weights, solver, alpha=alpha if self.per_target else alpha[:, 0])

    def doubts(self, score: Score) -> list[str]:
        """Where alpha is at an end of its grid that matters."""
        alpha = np.asarray(score.details["alpha"])
        found = []
        for end, matters in ((max(self.alphas), True), (min(self.alphas), min(self.alphas) > SMALL)):
            share = float(np.mean(np.isclose(alpha, end, rtol=1e-3)))
            if matters and share > 0.5 and len(self.alphas) > 1:
                found.append(
                    f"{self.name} has alpha at the end of its grid, {end:g}, in {share:.0%} of its fits: widen alphas, unless "
                    "the source tells nothing."
                )
        return found

    def refit(self, fitted: Linear, evidence: Moments | Samples) -> Linear:
        """The map of other samples, alpha as it was chosen."""
        if isinstance(evidence, Samples):
            alpha = fitted.details["alpha"]
            return self._fit_samples(evidence, alpha if self.per_target else alpha[:, None])
        return super().refit(fitted, evidence)

    def _fit_samples(self, samples: Samples, chosen: Array | None = None) -> Linear:
        n_folds, alphas = samples.n_folds, self._alphas(samples)
        constants = lax.stop_gradient(samples)
        inside = (samples.fold_ids >= 0) & (samples.fold_ids < n_folds)
        fits = inside if samples.fits is None else inside & samples.fits
        quality = jnp.zeros((len(alphas), n_folds, 0))
        if chosen is None and self._inner(n_folds):
            squares = jnp.sum(_deviations(constants.y, inside) ** 2, axis=0)
            inverse_squares = jnp.where(samples.target, safe_divide(jnp.ones_like(squares), squares), 0)

            def both(pair: Any) -> list[Array]:
                gram = _gram(constants, inside & (samples.fold_ids != pair[0]) & (samples.fold_ids != pair[1]))
                path, scores = _gram_path(gram)
                held_out = [samples.rows(fold) for fold in (pair[0], pair[1])]

                def gain(alpha: Array) -> Any:
                    coefficients = _solve(path, path.cross, alpha)
                    errors = [gram.y[rows] - matmul(scores[rows], coefficients) for rows, _ in held_out]
                    parts = zip(errors, held_out, strict=True)
                    return [-inverse_squares * jnp.sum(jnp.where(v[:, None], e, 0) ** 2, axis=0) for e, (_, v) in parts]

                return lax.map(gain, alphas)

            pairs = jnp.asarray(_inner_parts(n_folds)[1])
            quality = _outer(jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), lax.map(both, pairs)), n_folds)

        def fit(predictions: Array, inputs: Any) -> tuple[Array, tuple[Any, ...]]:
            fold, quality, chosen = inputs
            part = fits & ((samples.fold_ids != fold) | (n_folds == 1))
            gram = _gram(samples, part)
            path, _ = _gram_path(lax.stop_gradient(gram))
            if chosen is None and not self._inner(n_folds):
                quality = lax.map(lambda alpha: _gcv(alpha, path), alphas)
            alpha = self._best(quality, samples.target) if chosen is None else chosen
            coefficients = _refined_dual(path, gram, alpha)
            rows, valid = samples.rows(fold)
            own = matmul(gram.all[rows], coefficients)
            predictions = predictions.at[jnp.where(valid, rows, len(predictions))].set(own, mode="drop")
            weights = intercept = None
            if self.weights:
                weights = gram.inverse_std[:, None] * matmul(gram.x.T, coefficients)
                intercept = gram.y_mean - matmul(gram.x_mean, weights)
            return predictions, (alpha, weights, intercept, gram.y_mean)

        folds = jnp.arange(n_folds), jnp.swapaxes(quality, 0, 1), chosen
        predictions, (alpha, weights, intercept, offset) = lax.scan(fit, jnp.zeros_like(samples.y), folds)
        return Linear(weights, intercept, predictions, {"alpha": alpha if self.per_target else alpha[:, 0]}, offset=offset)

    def _inner(self, n_folds: int) -> bool:
        return self.selection == "folds" and n_folds > 2

    def _alphas(self, like: Any) -> Array:
        return jnp.asarray(self.alphas, jax.tree.leaves(like)[0].dtype)

    def _best(self, quality: Array, target: Array) -> Array:
        """Alpha `(n_target or 1,)` from its quality `(alphas, n_target)`, or `(alphas, 1)` where it is a sum already."""
        if not self.per_target and quality.shape[1] > 1:
            quality = jnp.sum(jnp.where(target, quality, 0), axis=1, keepdims=True)
        return jnp.asarray(self.alphas, quality.dtype)[jnp.argmax(quality, axis=0)]


def _outer(inner: Any, n_folds: int) -> Any:
    """Quality of each alpha in each fold, `(alphas, folds, n_target)`, from that on the first and second fold of each pair.

    Leaving out folds f and g serves two selections: fold g is held out for outer fold f, and f for g.
    """
    _, pairs = _inner_parts(n_folds)
    outer = [np.eye(n_folds, dtype=np.float32)[pairs[:, side]] for side in (1, 0)]
    return sum(matmul(into.T, gain) for into, gain in zip(outer, inner, strict=True))


def _inner_parts(n_folds: int) -> tuple[Any, Any]:
    """All pairs of folds, `(pairs, 2)`, and which folds are left without each, `(pairs, folds)`."""
    pairs = np.array(list(itertools.combinations(range(n_folds), 2)))
    kept = np.ones((len(pairs), n_folds), bool)
    np.put_along_axis(kept, pairs, False, axis=1)
    return kept, pairs


class _Path(NamedTuple):
    """All ridge solutions of one training part: one eigendecomposition serves every alpha and target.

    Attributes:
        values: `(k,)`, eigenvalues of the standardised source, 0 where left out.
        kept: `(k,)`.
        basis: `(n_source, k)`, from the data's units to standardised eigenvectors; `(n_samples, k)` in the dual.
        cross: `(k, n_target)`, products of eigenvectors with responses.
        y_squares: `(n_target,)`, and count: `()`, of the training part.
    """

    values: Any
    kept: Any
    basis: Any
    cross: Any
    y_squares: Any
    count: Any


def _decompose(matrix: Array) -> tuple[Array, Array, Array]:
    values, vectors = eigh(matrix)
    kept = values > 4 * jnp.finfo(values.dtype).eps * values[-1]
    return jnp.where(kept, values, 0), kept, vectors


def _path(part: Any, source: Array) -> _Path:
    part = lax.stop_gradient(part)
    inverse_std = jnp.where(source, safe_divide(jnp.ones_like(part.x.squares), safe_sqrt(part.x.squares / part.count)), 0)
    values, kept, vectors = _decompose(part.x.scatter * inverse_std[:, None] * inverse_std)
    basis = inverse_std[:, None] * vectors
    return _Path(values, kept, basis, matmul(basis.T, part.xy), part.y.squares, part.count)


def _solve(path: _Path, cross: Array, alpha: Array) -> Array:
    """Solutions in the eigenbasis, `(k, n_target)`."""
    return jnp.where(path.kept[:, None], cross / (path.values[:, None] + alpha), 0)


def _refined(path: _Path, part: Any, alpha: Array) -> Array:
    """Solutions in the units of the data, `(n_source, n_target)`; alpha is `(n_target or 1,)`.

    One step of iterative refinement, which mends rounding, and through which gradients flow: they are those of implicit
    differentiation, finite where those of eigenvectors are not.
    """
    weights = matmul(path.basis, _solve(path, path.cross, alpha))
    variance = (part.x.squares / part.count)[:, None]
    rest = part.xy - matmul(part.x.scatter, weights) - alpha * variance * weights
    return weights + matmul(path.basis, _solve(path, matmul(path.basis.T, rest), alpha))


def _rotate(path: _Path, fold: Any) -> Moments:
    """Moments whose source units are the eigenvectors."""
    side = dataclasses.replace(
        fold.x, mean=matmul(path.basis.T, fold.x.mean), scatter=matmul(path.basis.T, fold.x.scatter, path.basis)
    )
    return dataclasses.replace(fold, x=side, xy=matmul(path.basis.T, fold.xy))


def _inner_gain(alpha: Array, path: _Path, fitted_on: Moments, sides: Any) -> list[Array]:
    """Minus the squared errors of one alpha, but for a constant, on both folds of a pair that the path is not fitted on."""
    coefficients = _solve(path, path.cross, alpha)
    intercept = fitted_on.y.mean - matmul(fitted_on.x.mean, coefficients)

    def gain(fold: Moments) -> Any:
        held_out, shift = held_out_by_map(coefficients, intercept, fold)
        return 2 * held_out.cross - held_out.variance - fold.count * shift**2

    return [gain(fold) for fold in sides]


def _inner_total(alphas: Array, inverse_squares: Array, path: _Path, fitted_on: Moments, fold: Any) -> Array:
    """The sum of `_inner_gain` of one fold over target units, each divided by its variance, of all alphas: `(alphas, 1)`.

    A solution is d ∘ c with d = 1 / (λ + α) and the path's cross c, so that one sum over targets serves all alphas: the
    errors' quadratic part is dᵀ (S ∘ c cᵀ) d, S the fold's scatter about the means of the part that was fitted on, and each
    target divided by its variance.
    """
    scaled = path.cross * inverse_squares
    x_shift, y_shift = fold.x.mean - fitted_on.x.mean, fold.y.mean - fitted_on.y.mean
    linear_part = jnp.sum(scaled * (fold.xy + fold.count * x_shift[:, None] * y_shift), axis=1)
    scatter = fold.x.scatter + fold.count * x_shift[:, None] * x_shift
    inverse = jnp.where(path.kept, 1 / (path.values + alphas[:, None]), 0)
    weighted = scatter * matmul(scaled, path.cross.T)
    # In a loop: XLA (jaxlib 0.10) fuses both products into one that computes `weighted` again for every few rows, 60 x slower.
    quadratic_part = lax.map(lambda d: matmul(d, weighted, d), inverse)
    return (2 * matmul(inverse, linear_part) - quadratic_part)[:, None]


def _gcv(alpha: Array, path: _Path) -> Array:
    """Minus the generalised cross-validation error of each target, over its variance: `(n_target,)`."""
    # What no alpha explains, and what alpha keeps from being explained: as one difference the second would drown in rounding.
    values = jnp.where(path.kept, path.values, jnp.inf)[:, None]
    within = path.cross**2 / values
    rest = jnp.maximum(path.y_squares - jnp.sum(within, axis=0), 0)
    residual = safe_divide(rest + jnp.sum(within * (alpha / (values + alpha)) ** 2, axis=0), path.y_squares)
    freedom = 1 + jnp.sum(path.values / (path.values + alpha))
    return -residual / jnp.maximum(1 - freedom / path.count, 1 / path.count) ** 2


class _Gram(NamedTuple):
    """The n × n form of one training part, for fewer samples than source units.

    Attributes:
        all: `(n, n)`, products of all samples with those of the part (0 for the others), standardised as the part is.
        part: the same, 0 in the rows of the others too.
        y: `(n, n_target)`, responses less the part's mean.
        inside: `(n,)`, which samples the part holds.
        x: the standardised samples of the part; x_mean, inverse_std, y_mean: of the part.
    """

    all: Any
    part: Any
    y: Any
    inside: Any
    x: Any
    x_mean: Any
    inverse_std: Any
    y_mean: Any


def _deviations(values: Array, inside: Array) -> Array:
    """Values less the mean of those inside, 0 for the others."""
    mean = jnp.sum(jnp.where(inside[:, None], values, 0), axis=0) / jnp.sum(inside, dtype=values.dtype)
    return jnp.where(inside[:, None], values - mean, 0)


def _gram(samples: Samples, inside: Array) -> _Gram:
    weight = inside[:, None]
    count = jnp.sum(inside, dtype=samples.x.dtype)
    x_mean, y_mean = (jnp.sum(jnp.where(weight, v, 0), axis=0) / count for v in (samples.x, samples.y))
    centred = samples.x - x_mean
    variance = jnp.sum(jnp.where(weight, centred**2, 0), axis=0) / count
    inverse_std = jnp.where(samples.source, safe_divide(jnp.ones_like(variance), safe_sqrt(variance)), 0)
    standard = centred * inverse_std
    part = jnp.where(weight, standard, 0)
    whole = matmul(standard, part.T)
    return _Gram(whole, jnp.where(weight, whole, 0), samples.y - y_mean, inside, part, x_mean, inverse_std, y_mean)


def _gram_path(gram: _Gram) -> tuple[_Path, Array]:
    """The path in the basis of principal components, and every sample's scores on them, `(n, k)`."""
    values, kept, vectors = _decompose(gram.part)
    root = safe_sqrt(values)
    y = jnp.where(gram.inside[:, None], gram.y, 0)
    path = _Path(
        values, kept, vectors, root[:, None] * matmul(vectors.T, y), jnp.sum(y**2, axis=0), jnp.sum(gram.inside, dtype=y.dtype)
    )
    return path, safe_divide(matmul(gram.all, vectors), root)


def _refined_dual(path: _Path, gram: _Gram, alpha: Array) -> Array:
    """Weights of the part's samples, `(n, n_target)`, refined once as in the primal."""
    y = jnp.where(gram.inside[:, None], gram.y, 0)
    vectors = path.basis
    solve = lambda rest: matmul(vectors, _solve(path, matmul(vectors.T, rest), alpha))  # noqa: E731
    coefficients = solve(lax.stop_gradient(y))
    return coefficients + solve(y - matmul(gram.part, coefficients) - alpha * coefficients)


register(Ridge())

"""Metrics that regress target units on source units: invariant to invertible linear maps of the source, up to shrinkage.

Superposition deflates them less than matching: a linear map can undo part of a mixture, but not what rectification cut off.
"""

import dataclasses
import functools
import itertools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from superpos.metrics.base import Score, from_units, safe_divide
from superpos.moments import Moments, pool, training


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Ridge regression from source to target units, alpha chosen inside the training part.

    Source columns are standardised with the training part's mean and standard deviation (as scikit-learn's
    StandardScaler), the intercept is free, and the penalty is alpha · |w|² beside a sum of squared errors over samples.
    score = mean over live target units of the Pearson correlation between prediction and held-out response. Not
    symmetric. Source: Hoerl & Kennard 1970; Longon, Klindt & Khosla, arXiv 2510.03186.

    Directions whose eigenvalue is below n_source · eps of the largest are left out: they hold rounding errors. In float32,
    source units that differ from a combination of the others by less than about a thousandth of their size still cost accuracy
    where alpha is small beside it: enable x64 for such data.

    Attributes:
        alphas: candidates.
        per_target: choose alpha for each target unit on its own, instead of one for all.
        selection: "folds": highest mean R² over the other folds of the training part, each held out in turn (as RidgeCV with
            `cv=` those folds; needs at least 3 folds, else generalised cross-validation is used); "gcv": smallest generalised
            cross-validation error (Golub, Heath & Wahba 1979), each target divided by its variance.
        name: its key in the result.

    Details: `alpha`, `(folds,)` or `(folds, n_target)`; `weights`, `(folds, n_source, n_target)`, in the units of the data;
    `intercept`, `(folds, n_target)`.

    Raises:
        ValueError: no alpha, one that is not positive, or an unknown selection.
    """

    alphas: tuple[float, ...] = tuple(float(alpha) for alpha in np.logspace(-8, 8, 17))
    per_target: bool = False
    selection: Literal["folds", "gcv"] = "folds"
    name: str = "ridge"
    reads: ClassVar[frozenset[str]] = frozenset({"xx", "xy"})
    symmetric: ClassVar[bool] = False

    def __post_init__(self):
        object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in np.ravel(self.alphas)))
        if not self.alphas or not all(0 < alpha < np.inf for alpha in self.alphas):
            raise ValueError(f"alphas must be one or more positive numbers, got {self.alphas}.")
        if self.selection not in ("folds", "gcv"):
            raise ValueError(f'selection must be "folds" or "gcv", got {self.selection!r}.')

    def __call__(self, moments: Moments) -> Score:
        """Scores moments."""
        source, target = moments.live()
        alphas = jnp.asarray(self.alphas, moments.xy.dtype)
        path = _Path(training(moments), source)
        constants = lax.stop_gradient(moments)  # of the choice of alpha
        if self.selection == "folds" and moments.n_folds > 2:
            quality = _inner_folds(constants, source, alphas)
        else:
            quality = lax.map(path.gcv, alphas)  # (alphas, folds, n_target)
        if not self.per_target:
            quality = jnp.sum(jnp.where(target, quality, 0), axis=2, keepdims=True)
        alpha = alphas[jnp.argmax(quality, axis=0)]  # (folds, n_target or 1)
        weights = path.weights(alpha)
        units = jax.vmap(_pearson)(weights, moments)
        intercept = path.part.y.mean - jnp.einsum("fs,fst->ft", path.part.x.mean, weights, precision=_HIGHEST)
        details = {"alpha": alpha if self.per_target else alpha[:, 0], "weights": weights, "intercept": intercept}
        return from_units(units, target & jnp.any(source), details)


_HIGHEST = lax.Precision.HIGHEST


class _Path:
    """All ridge solutions of each part: one eigendecomposition serves every alpha and target."""

    def __init__(self, part: Moments, source: Any):
        self.part = part
        assert part.x.scatter is not None, "Ridge reads xx"
        count = part.count[:, None]
        squares, scatter = lax.stop_gradient((part.x.squares, part.x.scatter))
        inverse_std = jnp.where(source, safe_divide(jnp.ones_like(squares), jnp.sqrt(squares / count)), 0)
        values, vectors = jax.vmap(_eigh)(scatter * inverse_std[:, :, None] * inverse_std[:, None, :])
        kept = values > values.shape[1] * jnp.finfo(values.dtype).eps * values[:, -1:]
        self.values, self.kept = jnp.where(kept, values, 0), kept
        self.basis = inverse_std[:, :, None] * vectors  # from the data's units to standardised eigenvectors
        self.cross = jnp.matmul(self.basis.mT, lax.stop_gradient(part.xy), precision=_HIGHEST)

    def coefficients(self, alpha):
        """Solutions in the eigenbasis, `(parts, n_source, n_target)`, for one alpha."""
        return self._solve(self.cross, alpha)

    def weights(self, alpha):
        """Solutions in the units of the data, `(parts, n_source, n_target)`; alpha is `(parts, n_target or 1)`.

        One step of iterative refinement, which mends rounding, and through which gradients flow: they are those of implicit
        differentiation, finite where those of eigenvectors are not.
        """
        alpha = alpha[:, None, :]
        weights = jnp.matmul(self.basis, self._solve(self.cross, alpha), precision=_HIGHEST)
        variance = (self.part.x.squares / self.part.count[:, None])[:, :, None]
        rest = self.part.xy - jnp.matmul(self.part.x.scatter, weights, precision=_HIGHEST) - alpha * variance * weights
        rest = self._solve(jnp.matmul(self.basis.mT, rest, precision=_HIGHEST), alpha)
        return weights + jnp.matmul(self.basis, rest, precision=_HIGHEST)

    def _solve(self, cross, alpha):
        return jnp.where(self.kept[:, :, None], cross / (self.values[:, :, None] + alpha), 0)

    def rotate(self, moments):
        """Moments whose source units are the eigenvectors."""
        turned = self.basis.mT
        scatter = jnp.matmul(jnp.matmul(turned, moments.x.scatter, precision=_HIGHEST), self.basis, precision=_HIGHEST)
        mean = jnp.einsum("pes,ps->pe", turned, moments.x.mean, precision=_HIGHEST)
        side = dataclasses.replace(moments.x, mean=mean, scatter=scatter)
        return dataclasses.replace(moments, x=side, xy=jnp.matmul(turned, moments.xy, precision=_HIGHEST))

    def gcv(self, alpha):
        """Minus the generalised cross-validation error of each target, over its variance: `(parts, n_target)`."""
        coefficients = self.coefficients(alpha)
        explained = jnp.sum(coefficients * (2 * self.cross - self.values[:, :, None] * coefficients), axis=1)
        residual = jnp.maximum(1 - safe_divide(explained, self.part.y.squares), 0)
        freedom = 1 + jnp.sum(self.values / (self.values + alpha), axis=1)
        count = self.part.count
        return -residual / jnp.maximum(1 - freedom / count, 1 / count)[:, None] ** 2


@jax.custom_batching.custom_vmap
def _eigh(matrix):
    return tuple(jnp.linalg.eigh(matrix))


@_eigh.def_vmap
def _eigh_batch(axis_size, in_batched, matrices):
    # One matrix at a time on CPU, at no cost in speed: jaxlib's batched kernel waits, inside a worker thread, for tasks
    # that it gave to the same pool, so that two of them side by side on two cores wait forever (seen with jaxlib 0.10.2).
    del axis_size, in_batched
    one_by_one = functools.partial(lax.map, _eigh)
    return lax.platform_dependent(matrices, cpu=one_by_one, default=lambda m: tuple(jnp.linalg.eigh(m))), (True, True)


def _inner_folds(moments, source, alphas):
    """Mean R² of each alpha over the folds of each training part, each held out in turn: `(alphas, folds, n_target)`."""
    n_folds = moments.n_folds
    # Leaving out folds f and g serves two selections: fold g is held out for outer fold f, and f for g.
    pairs = np.array(list(itertools.combinations(range(n_folds), 2)))
    kept = np.ones((len(pairs), n_folds), bool)
    np.put_along_axis(kept, pairs, False, axis=1)
    path = _Path(pool(moments, kept), source)
    fitted_on = path.rotate(path.part)
    held_out = [path.rotate(jax.tree.map(lambda leaf, side=side: leaf[pairs[:, side]], moments)) for side in (0, 1)]
    outer = [np.eye(n_folds, dtype=np.float32)[pairs[:, side]] for side in (1, 0)]

    def quality(alpha):
        coefficients = path.coefficients(alpha)
        r2 = [jax.vmap(_r2)(coefficients, fitted_on, fold) for fold in held_out]
        return sum(jnp.matmul(into.T, values, precision=_HIGHEST) for into, values in zip(outer, r2, strict=True))

    return lax.map(quality, alphas) / (n_folds - 1)


def _spread(weights, fold):
    """Covariance of predictions with responses, and variance of predictions, times the count: `(n_target,)` each."""
    cross = jnp.sum(weights * fold.xy, axis=0)
    return cross, jnp.sum(weights * jnp.matmul(fold.x.scatter, weights, precision=_HIGHEST), axis=0)


def _pearson(weights, fold):
    cross, variance = _spread(weights, fold)
    norms = jnp.sqrt(jnp.where(variance > 0, variance, 0)) * jnp.sqrt(fold.y.squares)
    return jnp.clip(safe_divide(cross, norms), -1, 1)


def _r2(weights, fitted_on, fold):
    cross, variance = _spread(weights, fold)
    shift = jnp.matmul(fold.x.mean - fitted_on.x.mean, weights, precision=_HIGHEST)
    bias = fold.y.mean - fitted_on.y.mean - shift
    error = fold.y.squares - 2 * cross + variance + fold.count * bias**2
    return 1 - safe_divide(error, fold.y.squares)

"""Matrix decompositions that are safe to batch, and their gradients where JAX's are not finite.

Matrices of a batch are decomposed one by one on CPU, at no cost in speed: jaxlib's batched LAPACK kernels wait, inside a worker
thread, for tasks that they gave to the same pool, so that two of them side by side on two cores wait forever (seen with
jaxlib 0.10.2).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

HIGHEST = lax.Precision.HIGHEST


def _one_by_one(decompose: Callable[[Array], Any], n_outputs: int) -> Callable[[Array], Any]:
    safe = jax.custom_batching.custom_vmap(decompose)

    @safe.def_vmap
    def batch(axis_size: int, in_batched: Any, matrices: Array) -> tuple[Any, tuple[bool, ...]]:
        del axis_size, in_batched
        out = lax.platform_dependent(matrices, cpu=functools.partial(lax.map, safe), default=decompose)
        return out, (True,) * n_outputs

    return safe


def _eigh(matrix: Array) -> tuple[Array, ...]:
    return tuple(jnp.linalg.eigh(matrix))


def _svd(matrix: Array) -> tuple[Array, ...]:
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


def _inverse_matrix(matrix: Array) -> tuple[Array]:
    return (jnp.linalg.inv(matrix),)


_safe_eigh, _safe_svd, _safe_inverse = _one_by_one(_eigh, 2), _one_by_one(_svd, 3), _one_by_one(_inverse_matrix, 1)


@jax.custom_jvp
def eigh(matrix: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues in ascending order `(n,)`, and eigenvectors in columns, of a symmetric matrix `(n, n)`.

    The gradient is that of each eigenvector that has an eigenvalue of its own; those that share one do not turn into each
    other.
    """
    return tuple(_safe_eigh(matrix))


@eigh.defjvp
def _eigh_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    values, vectors = eigh(*primals)
    inside = matmul(vectors.T, (tangents[0] + tangents[0].T) / 2, vectors)
    turn = inside * _inverse(values - values[:, None], jnp.max(jnp.abs(values)))
    return (values, vectors), (jnp.diagonal(inside), matmul(vectors, turn))


@jax.custom_jvp
def svd(matrix: Float[Array, "n m"]) -> tuple[Float[Array, "n k"], Float[Array, " k"], Float[Array, "k m"]]:
    """The thin u, s, vᵀ of a matrix `(n, m)`, `(n, k)`, `(k,)` and `(k, m)` with k = min(n, m).

    The gradient is that of each pair of singular vectors that has a singular value of its own, as in `eigh`.
    """
    return tuple(_safe_svd(matrix))


@svd.defjvp
def _svd_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    u, s, vt = svd(*primals)
    moved = tangents[0]
    inside = matmul(u.T, moved, vt.T)
    apart = _inverse((s - s[:, None]) * (s + s[:, None]), s[0] ** 2)
    inverse = _inverse(s, s[0])
    du = matmul(u, apart * (inside * s + s[:, None] * inside.T)) + (matmul(moved, vt.T) - matmul(u, inside)) * inverse
    dv = matmul(vt.T, apart * (s[:, None] * inside + inside.T * s)) + (matmul(moved.T, u) - matmul(vt.T, inside.T)) * inverse
    return (u, s, vt), (du, jnp.diagonal(inside), dv.T)


def _inverse(values: Array, scale: Array) -> Array:
    """1 / values, 0 for those that are rounding errors beside the scale."""
    there = jnp.abs(values) > values.shape[-1] * jnp.finfo(values.dtype).eps * scale
    return jnp.where(there, 1 / jnp.where(there, values, 1), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def inverse_root(matrix: Float[Array, "n n"], variance: float = 1.0) -> tuple[Float[Array, "n n"], Int[Array, ""]]:
    """The inverse square root of a covariance, of its principal components that hold the share `variance` of it; and how many.

    Components whose variance is below n · eps of the largest are left out. Gradients are finite where eigenvalues are equal
    (Daleckii & Krein 1965).
    """
    root, rank, *_ = _inverse_root(matrix, variance)
    return root, rank


def _inverse_root(matrix: Array, variance: float) -> tuple[Array, ...]:
    values, vectors = (leaf[..., ::-1] for leaf in eigh(matrix))  # largest first
    kept = values > values.size * jnp.finfo(values.dtype).eps * values[0]
    if variance < 1:
        held = jnp.where(kept, values, 0)
        kept &= jnp.cumsum(held) - held < variance * jnp.sum(held)
    roots = jnp.sqrt(jnp.where(kept, values, 1))
    return matmul(vectors * jnp.where(kept, 1 / roots, 0), vectors.T), jnp.sum(kept), values, vectors, kept, roots


@inverse_root.defjvp
def _inverse_root_jvp(variance: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    root, rank, values, vectors, kept, roots = _inverse_root(primals[0], variance)
    inside = matmul(vectors.T, (tangents[0] + tangents[0].T) / 2, vectors)
    # Divided differences of λ^-½: between components that are kept, and from those to the ones that are not.
    both = -1 / (roots[:, None] * roots * (roots[:, None] + roots))
    apart = jnp.where(kept[:, None], 1 / roots[:, None], -1 / roots) * _inverse(values[:, None] - values, values[0])
    slope = jnp.where(kept[:, None] & kept, both, jnp.where(kept[:, None] | kept, apart, 0))
    return (root, rank), (matmul(vectors, slope * inside, vectors.T), np.zeros((), jax.dtypes.float0))


def whitening(covariance: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Int[Array, ""]]:
    """What makes units white, whatever their scales, and its rank: `inverse_root` of units scaled to variance 1 first."""
    scale = safe_divide(jnp.ones_like(covariance[0]), safe_sqrt(jnp.diagonal(covariance)))
    root, rank = inverse_root(covariance * scale[:, None] * scale)
    return scale[:, None] * root, rank


def matmul(*factors: Array) -> Array:
    """The product of matrices in full float32 precision, from the left."""
    return functools.reduce(functools.partial(jnp.matmul, precision=HIGHEST), factors)


@jax.custom_jvp
def polar(matrix: Float[Array, "n m"]) -> tuple[Float[Array, "n m"], Float[Array, " k"]]:
    """The (partial) isometry u vᵀ of a matrix u s vᵀ, and its singular values.

    Directions whose singular value is below max(n, m) · eps of the largest are left out of the isometry: they hold rounding
    errors. Gradients are finite where singular values are equal (Kenney & Laub 1991).
    """
    isometry, singular, *_ = _polar(matrix)
    return isometry, singular


def _polar(matrix: Array) -> tuple[Array, ...]:
    u, s, vt = _safe_svd(lax.stop_gradient(matrix))
    kept = s > max(matrix.shape) * jnp.finfo(s.dtype).eps * s[0]
    u = jnp.where(kept, u, 0)
    return matmul(u, vt), s, u, jnp.where(kept[:, None], vt, 0), kept


@polar.defjvp
def _polar_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (matrix,), (moved,) = primals, tangents
    isometry, s, u, vt, kept = _polar(matrix)
    inside = matmul(u.T, moved, vt.T)
    both = kept[:, None] & kept
    turn = jnp.where(both, (inside - inside.T) / jnp.where(both, s[:, None] + s, 1), 0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    right = matmul(moved, vt.T) - matmul(u, inside)
    below = matmul(u.T, moved) - matmul(inside, vt)
    tangent = matmul(u, turn, vt) + matmul(right * inverse, vt) + matmul(u * inverse, below)
    return (isometry, s), (tangent, jnp.where(kept, jnp.diagonal(inside), 0))


@jax.custom_jvp
def nnls(gram: Float[Array, "n n"], cross: Float[Array, " n"]) -> Float[Array, " n"]:
    """Non-negative least squares from second moments: min wᵀ G w / 2 - bᵀ w over w >= 0, exactly.

    The active-set method of Lawson & Hanson 1974. The normal equations of the variables in use are kept solved by the sweep
    operator (Goodnight 1979), so that a change of the set costs one rank-one update.

    Args:
        gram: `(n, n)`, G, positive semi-definite with ones on the diagonal (zeros for masked variables).
        cross: `(n,)`, b, of about unit size.

    Returns:
        w `(n,)`.
    """
    n = cross.shape[0]
    epsilon = jnp.finfo(cross.dtype).eps
    index = jnp.arange(n + 1)
    # Swept on the set in use: the table holds -G⁻¹ of the set, G⁻¹ times the rest, and what the rest still has to explain.
    table = jnp.zeros((n + 1, n + 1), cross.dtype).at[:n, :n].set(gram).at[:n, n].set(cross).at[n, :n].set(cross)
    smallest = 10 * epsilon * jnp.max(jnp.abs(cross), initial=0)

    def change(state: Any) -> tuple[Any, ...]:
        table, weights, used, _, count = state
        solution = jnp.where(used, table[:n, n], 0)
        blocked = used & (solution <= 0)
        infeasible = jnp.any(blocked)
        # Either go back as far as the first weight that reaches zero, and drop it ...
        fraction = jnp.where(blocked, weights / jnp.where(blocked, weights - solution, 1), jnp.inf)
        step = jnp.where(infeasible, jnp.clip(jnp.min(fraction), 0, 1), 1)
        weights = weights + step * (solution - weights)
        # ... or take in the variable with the steepest gain, unless it depends on those in use.
        free = ~used & (jnp.diagonal(table)[:n] > 4 * epsilon)
        gain = jnp.where(free, table[:n, n], -jnp.inf)
        k = jnp.where(infeasible, jnp.argmin(fraction), jnp.argmax(gain))
        done = ~infeasible & (jnp.max(gain) <= smallest)
        pivot, column = table[k, k], table[:, k]
        scaled = column / jnp.where(done, 1, pivot)
        swept = table - scaled[:, None] * column
        edge = jnp.where(infeasible, -scaled, scaled)
        swept = jnp.where(index == k, edge[:, None], jnp.where((index == k)[:, None], edge, swept))
        swept = jnp.where((index == k)[:, None] & (index == k), -1 / jnp.where(done, 1, pivot), swept)
        here = index[:n] == k
        weights = jnp.where(infeasible & here, 0, weights)
        used = jnp.where(here & ~done, ~infeasible, used)
        return jnp.where(done, table, swept), weights, used, done, count + 1

    start = (table, jnp.zeros_like(cross), jnp.zeros(n, bool), jnp.array(False), jnp.int32(0))
    going = lambda state: ~state[3] & (state[4] < 10 * (n + 1))  # noqa: E731 (the bound only guards against rounding)
    table, weights, used, _, _ = lax.while_loop(going, change, start)
    rest = jnp.where(used, cross - matmul(gram, weights), 0)  # refined once
    return jnp.maximum(weights - jnp.where(used, matmul(table[:n, :n], rest), 0), 0)


@nnls.defjvp
def _nnls_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Of the normal equations of the variables in use, which stay the same nearly everywhere."""
    gram, cross = primals
    weights = nnls(gram, cross)
    used = weights > 0
    moved = jnp.where(used, tangents[1] - matmul(tangents[0], weights), 0)
    normal = jnp.where(used[:, None] & used, gram, jnp.eye(cross.size, dtype=gram.dtype))
    return weights, jnp.where(used, matmul(_safe_inverse(normal)[0], moved), 0)


def inverse_deviation(variance: Float[Array, " n"]) -> Float[Array, " n"]:
    """1 / √variance of components, the largest first; 0 where there is no more variance than rounding leaves."""
    varied = variance > len(variance) * jnp.finfo(variance.dtype).eps * variance[0]
    return jnp.where(varied, 1 / jnp.sqrt(jnp.where(varied, variance, 1)), 0)


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is not positive; gradients stay finite."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def safe_sqrt(values: Array) -> Array:
    """The square root, 0 where a value is not positive; gradients stay finite."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def safe_norm(values: Array, axis: int | None = None) -> Array:
    """The Euclidean norm, of all entries or along an axis that stays; its gradient is 0 at 0."""
    return safe_sqrt(jnp.sum(values**2, axis=axis, keepdims=axis is not None))

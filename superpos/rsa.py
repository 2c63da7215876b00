"""Representational dissimilarity matrices: by any of the usual distances, compared, and how alike they could be.

A matrix over n stimuli is its upper triangle, row by row, `(n (n - 1) / 2,)`, as SciPy's `pdist` gives it; what takes matrices
takes square ones too. `sp.metrics.RSA` is the metric of two sides; here are its parts, for matrices of one's own.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from superpos.checks import as_array, floating, repeated
from superpos.linalg import inverse_root, matmul, safe_divide, safe_norm, safe_sqrt

Distance = Literal["correlation", "cosine", "euclidean", "squared"]
Kind = Literal["pearson", "spearman", "rho_a", "kendall", "tau_a"]


def dissimilarities(
    x: Any,
    distance: Distance = "correlation",
    *,
    noise: ArrayLike | None = None,
    live: Bool[Array, " units"] | None = None,
) -> Float[Array, " pairs"]:
    """The distance of every pair of stimuli, as SciPy's `pdist` defines it: NaN where a pattern has no direction.

    Args:
        x: `(n_stimuli, n_units)`.
        distance: "correlation" (1 - Pearson's r), "cosine" (1 - cosine), "euclidean", or "squared" (Euclidean).
        noise: `(n_units, n_units)`, the covariance of the noise: units are whitened by it first, so that "euclidean" is the
            Mahalanobis distance, and "squared" its square. Directions with next to no noise are left out.
        live: `(n_units,)`, mask of the units that count; by default all.

    Raises:
        ValueError: an unknown distance, or shapes that do not fit.

    >>> [round(float(d), 3) for d in dissimilarities(jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]]), "euclidean")]
    [5.0, 4.0, 3.0]
    """
    x = as_array(x, "x")
    if not isinstance(x, jax.core.Tracer) and x.ndim == 2 and x.dtype.kind in "fiub":
        if wrong := int(np.sum(~np.isfinite(x))):
            raise ValueError(f"x must be finite, got {wrong} NaN or infinite values.")
        if distance != "cosine":  # what changes nothing goes before single precision loses digits beside it
            x = x - np.mean(x, axis=1 if distance == "correlation" else 0, keepdims=True, dtype=np.float64)
    x = jnp.asarray(x, floating(x.dtype))
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {distance!r}.")
    if x.ndim != 2:
        raise ValueError(f"x must be (n_stimuli, n_units), got {x.shape}.")
    live = jnp.ones(x.shape[1], bool) if live is None else live
    whitening = None if noise is None else _whitening(noise, x.shape[1], live)
    return _dissimilarities(x, distance, whitening, live)


@functools.partial(jax.jit, static_argnums=1)
def _dissimilarities(x: Array, distance: str, whitening: Array | None, live: Array) -> Array:
    if whitening is not None:
        x = matmul(jnp.where(live, x, 0), whitening)
    if distance == "correlation":
        x = x - jnp.sum(jnp.where(live, x, 0), axis=1, keepdims=True) / jnp.sum(live)
    x = jnp.where(live, x, 0)
    row, col = jnp.triu_indices(len(x), 1)
    if distance in ("correlation", "cosine"):
        norms = safe_norm(x, axis=1)
        unit = jnp.where(norms > 0, x / jnp.where(norms > 0, norms, 1), jnp.nan)
        return 1 - matmul(unit, unit.T)[row, col]
    x = x - jnp.mean(x, axis=0)
    lengths = jnp.sum(x**2, axis=1)
    sums = (lengths[:, None] + lengths)[row, col]
    squared = sums - 2 * matmul(x, x.T)[row, col]
    squared = jnp.where(squared > 8 * jnp.finfo(x.dtype).eps * sums, squared, 0)  # the rest is rounding
    return squared if distance == "squared" else safe_sqrt(squared)


def crossvalidated(repeats: Any, *, noise: ArrayLike | None = None) -> Float[Array, " pairs"]:
    """The crossvalidated squared distance of every pair of stimuli: Δ of one repeat times Δ of another, over all pairs of them.

    Noise adds nothing on average, where it makes any other distance larger: patterns that do not differ have distances about 0,
    half of them negative. With `noise` it is the crossvalidated Mahalanobis distance, "crossnobis". Source: Walther et al.
    2016, "Reliability of dissimilarity measures for multi-voxel pattern analysis".

    Args:
        repeats: `(n_stimuli, n_repeats, n_units)`, at least 2 repeats, all there; or with named axes, see
            `superpos.checks.repeated`.
        noise: `(n_units, n_units)`, the covariance of the noise of one repeat.

    Raises:
        ValueError: as in `repeated`; a single repeat, missing ones, or shapes that do not fit.

    >>> crossvalidated(jnp.array([[[0.0], [0.0]], [[1.0], [3.0]]])).tolist()  # 1 times 3
    [3.0]
    """
    x = repeated(repeats, "repeats")
    if x.shape[1] < 2:
        raise ValueError(f"repeats must be (n_stimuli, n_repeats, n_units), at least 2 repeats, got {x.shape}.")
    if not isinstance(x, jax.core.Tracer) and np.isnan(x).any():
        raise ValueError(f"repeats must all be there, got {int(np.isnan(x).sum())} NaN: take as many of each stimulus.")
    x = jnp.asarray(x)
    if noise is not None:
        x = jnp.einsum("sru,uv->srv", x, _whitening(noise, x.shape[2]), precision=lax.Precision.HIGHEST)
    n = x.shape[1]
    x = x - jnp.mean(x, axis=(0, 1))
    total = jnp.sum(x, axis=1)
    same = jnp.einsum("iru,jru->ij", x, x, precision=lax.Precision.HIGHEST)
    products = (matmul(total, total.T) - same) / (n * (n - 1))  # of different repeats
    own = jnp.diagonal(products)
    row, col = jnp.triu_indices(len(x), 1)
    return (own[:, None] + own - products - products.T)[row, col]


def _whitening(noise: ArrayLike, n_units: int, live: Any = True) -> Array:
    noise = jnp.asarray(noise)
    noise = noise.astype(floating(noise.dtype))
    if noise.shape != (n_units, n_units):
        raise ValueError(f"noise must be the covariance ({n_units}, {n_units}) of the units, got {noise.shape}.")
    live = jnp.broadcast_to(jnp.asarray(live), n_units)
    return inverse_root(jnp.where(live[:, None] & live, noise, 0))[0]


def condensed(matrix: Any, name: str = "matrix") -> Float[Array, " pairs"]:
    """A matrix as its upper triangle, `(pairs,)`, whether it is square or that already.

    Raises:
        ValueError: neither of the two, a square that is not symmetric, or entries that are not finite.
    """
    matrix = as_array(matrix, name)
    matrix = jnp.asarray(matrix, floating(matrix.dtype))
    if matrix.ndim == 1 and _stimuli(matrix.size) is not None:
        return _known(matrix, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"{name} must be square, or the n (n - 1) / 2 entries above its diagonal, got shape {matrix.shape}.")
    above, below = (_known(m[jnp.triu_indices(len(matrix), 1)], name) for m in (matrix, matrix.T))
    if not isinstance(matrix, jax.core.Tracer) and not np.allclose(above, below, rtol=1e-4, atol=1e-6):
        raise ValueError(f"{name} must be symmetric: dissimilarities of the same stimuli in the same order on both axes.")
    return above


def _known(entries: Array, name: str) -> Array:
    missing = jnp.sum(~jnp.isfinite(entries))
    if not isinstance(missing, jax.core.Tracer) and missing > 0:
        raise ValueError(f"{name} must be finite, got {int(missing)} NaN or infinite dissimilarities: leave those stimuli out.")
    return entries


def _stimuli(pairs: int) -> int | None:
    n = round((1 + (1 + 8 * pairs) ** 0.5) / 2)
    return n if n * (n - 1) // 2 == pairs and n > 1 else None


def compare(a: ArrayLike, b: ArrayLike, kind: Kind | Literal["cosine", "whitened"] = "spearman") -> Float[Array, ""]:
    """How alike two dissimilarity matrices of the same stimuli are, square or condensed.

    Args:
        a, b: the matrices.
        kind: "pearson", "spearman", "rho_a", "kendall" (tau-b), "tau_a" (see `sp.metrics.RSA`); "cosine"; or "whitened", the
            cosine after the entries' errors, which share stimuli, are made independent. It takes squared distances, as of
            `crossvalidated`, and is the linear CKA of their centred kernels (Diedrichsen et al. 2020, arXiv 2007.02789). For
            ranks, entries tie within 16 eps of the median.

    Raises:
        ValueError: an unknown kind, no dissimilarity matrices, or of different numbers of stimuli.

    >>> round(float(compare(jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 9.0]))), 3)
    1.0
    """
    if kind not in (*get_args(Kind), "cosine", "whitened"):
        raise ValueError(f"kind must be one of {', '.join((*get_args(Kind), 'cosine', 'whitened'))}, got {kind!r}.")
    a, b = condensed(a, "a"), condensed(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must be of the same stimuli, got {_stimuli(a.size)} and {_stimuli(b.size)} of them.")
    return _compare(a, b, kind)


@functools.partial(jax.jit, static_argnums=2)
def _compare(a: Array, b: Array, kind: Any) -> Array:
    if kind == "whitened":
        a, b = (_kernel(matrix).ravel() for matrix in (a, b))
    if kind in ("cosine", "whitened"):
        return safe_divide(jnp.sum(a * b), safe_norm(a) * safe_norm(b))
    tolerances = [16 * jnp.finfo(v.dtype).eps * jnp.median(jnp.abs(v)) for v in (a, b)]
    return masked_correlation(kind, a, b, jnp.ones(a.shape, bool), tolerances)


def _kernel(squared: Array) -> Array:
    """The centred products whose squared distances these are: -H D H / 2."""
    n = _stimuli(squared.size)
    assert n is not None
    row, col = jnp.triu_indices(n, 1)
    square = jnp.zeros((n, n), squared.dtype).at[row, col].set(squared).at[col, row].set(squared)
    centred = square - jnp.mean(square, axis=0)
    return -(centred - jnp.mean(centred, axis=1, keepdims=True)) / 2


class Ceiling(NamedTuple):
    """Between which bounds the mean score of the best model lies: `lower` and `upper`."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]


def noise_ceiling(matrices: ArrayLike, kind: Kind | Literal["cosine"] = "spearman") -> Ceiling:
    """How alike the best model's matrix can be to those of several subjects, on average.

    Upper: each subject against the mean of all, its own too, the best that any one matrix can do, of ranks for rank
    correlations (for Kendall's near the best). Lower: against the mean of the others. Source: Nili et al. 2014, "A toolbox for
    representational similarity analysis".

    Args:
        matrices: `(n_subjects, pairs)`, at least two subjects, or square `(n_subjects, n, n)`.
        kind: as in `compare`.

    Raises:
        ValueError: fewer than two subjects, or as in `compare`.

    >>> same = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    >>> [round(float(bound), 3) for bound in noise_ceiling(same)]
    [1.0, 1.0]
    """
    if kind not in (*get_args(Kind), "cosine"):
        raise ValueError(f"kind must be one of {', '.join((*get_args(Kind), 'cosine'))}, got {kind!r}.")
    matrices = jnp.asarray(as_array(matrices, "matrices"))
    if matrices.ndim not in (2, 3) or len(matrices) < 2:
        raise ValueError(f"matrices must be (n_subjects, pairs) or (n_subjects, n, n), at least 2, got {matrices.shape}.")
    return _ceiling(jnp.stack([condensed(matrix, "a matrix") for matrix in matrices]), kind)


@functools.partial(jax.jit, static_argnums=1)
def _ceiling(each: Array, kind: str) -> Ceiling:
    if kind in ("pearson", "cosine"):
        each = each - jnp.mean(each, axis=1, keepdims=True) if kind == "pearson" else each
        scaled = each * safe_divide(jnp.ones_like(each[:, :1]), safe_norm(each, axis=1))
    else:
        scaled = jax.vmap(lambda matrix: _ranks(_tied(matrix, jnp.ones(matrix.shape, bool), 0.0)))(each)
    total = jnp.sum(scaled, axis=0)
    upper = lax.map(lambda matrix: _compare(matrix, total, kind), each)
    lower = lax.map(lambda pair: _compare(pair[0], total - pair[1], kind), (each, scaled))
    return Ceiling(jnp.mean(lower), jnp.mean(upper))


def masked_correlation(kind: Kind, a: Array, b: Array, there: Array, tolerances: Sequence[Any]) -> Array:
    """Correlation of two vectors `(n,)` over the entries that are `there`; see `rank_correlation` for the arguments."""
    if kind != "pearson":
        return rank_correlation(kind, a, b, there, tolerances)
    count = jnp.sum(there, dtype=a.dtype)
    a, b = (jnp.where(there, v - jnp.sum(jnp.where(there, v, 0)) / count, 0) for v in (a, b))
    return correlation(jnp.sum(a * b), jnp.sum(a**2), jnp.sum(b**2), [count * tolerance**2 for tolerance in tolerances])


def correlation(cross: Array, a: Array, b: Array, smallest: Sequence[Any]) -> Array:
    """The correlation, 0 where the squares of a side are no larger than rounding makes them."""
    varies = (a > smallest[0]) & (b > smallest[1])
    return safe_divide(cross, jnp.where(varies, safe_sqrt(a) * safe_sqrt(b), 0))


def rank_correlation(kind: str, a: Array, b: Array, there: Array, tolerances: Sequence[Any] = (0.0, 0.0)) -> Array:
    """A rank correlation of two vectors `(n,)` over the entries that are `there`; 0 where all of one tie.

    Args:
        kind: "spearman", "kendall" (tau-b), "rho_a" or "tau_a".
        a, b: the vectors.
        there: `(n,)` mask.
        tolerances: entries nearer to each other than this tie, of a and of b.
    """
    a, b = (_tied(values, there, limit) for values, limit in zip((a, b), tolerances, strict=True))
    if kind in ("kendall", "tau_a"):
        return kendall_tau(a, b, there, kind == "kendall")
    count = jnp.sum(there, dtype=a.dtype)
    ranks = (_ranks(values) / count for values in (a, b))
    a, b = (jnp.where(there, rank - jnp.sum(jnp.where(there, rank, 0)) / count, 0) for rank in ranks)
    if kind == "rho_a":  # the variance of 1 ... n in place of that of averaged ranks
        return 12 * jnp.sum(a * b) / count / (1 - 1 / count**2)
    # Where one value differs from all others the squares add up to 1/8 at least, where none does to rounding errors.
    return correlation(jnp.sum(a * b), jnp.sum(a**2), jnp.sum(b**2), (1e-3, 1e-3))


def _ranks(values: Array) -> Array:
    """The rank of each entry, ties averaged, from 1/2 on."""
    ordered = jnp.sort(values)
    low, high = (jnp.searchsorted(ordered, values, side, method="sort") for side in ("left", "right"))
    return (low + high).astype(values.dtype) / 2


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

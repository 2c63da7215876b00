"""Fourth-order cumulants: what superposition does not hide, because it adds up feature by feature.

For independent features z, units x = z A and y = z B, and any noise that is Gaussian,

    cum(x_i, x_j, y_k, y_l) = Σ_f κ_f A_fi A_fj B_fk B_fl,

κ_f the excess fourth cumulant of feature f. As a matrix over pairs of units this is the quadricovariance (Cardoso 1991,
"Super-symmetric decomposition of the fourth-order cumulant tensor"). That of one side has one eigenvalue for each feature line,
at most n (n + 1) / 2 for n units, so that more features than units can be told apart; that of two sides holds the features that
both have.

Everything is packed: a symmetric matrix is the vector of its upper triangle with √2 on what is off the diagonal, so that
products of vectors are those of matrices.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from superpos.checks import as_array, check_values, floating, is_concrete, offsets, positive_integer
from superpos.linalg import eigh, inverse_deviation, matmul, safe_divide, safe_norm, safe_sqrt

BLOCK = 4096  # samples whose products of pairs are held at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over samples of products of four units, three, two and one, a leading axis of folds.

    A unit that is always 1 stands behind the others, so that one matrix over pairs holds the lower orders too, and two sums of
    other samples simply add up (`jax.tree.map(jnp.add, a, b)`, `psum`). Units should lie about 0, with about unit variance: for
    float32 take off a mean first, any one, the same for all samples.

    Attributes:
        xx, xy, yy: `(folds, pairs, pairs)`, of pairs out of units + 1.
        xxxy: `(folds, pairs, n_x + 1, n_y + 1)`, three units of x and one of y; None where not asked for.
    """

    xx: Float[Array, "folds pairs_x pairs_x"]
    xy: Float[Array, "folds pairs_x pairs_y"]
    yy: Float[Array, "folds pairs_y pairs_y"]
    xxxy: Float[Array, "folds pairs_x x y"] | None


class Cumulants(NamedTuple):
    """Unbiased cumulants of some samples, packed over pairs of units.

    Attributes:
        xx, xy, yy: quadricovariances, `(pairs, pairs)`.
        xxxy: cum(x_i, x_j, x_k, y_l), `(pairs, n_x, n_y)`, or None.
        x, y: packed covariances, `(pairs,)`.
    """

    xx: Float[Array, "pairs_x pairs_x"]
    xy: Float[Array, "pairs_x pairs_y"]
    yy: Float[Array, "pairs_y pairs_y"]
    xxxy: Float[Array, "pairs_x x y"] | None
    x: Float[Array, " pairs_x"]
    y: Float[Array, " pairs_y"]


def init(n_x: int, n_y: int, n_folds: int = 1, *, mixed: bool = False, dtype: Any = jnp.float32) -> Sums:
    """Sums of no samples.

    Args:
        n_x, n_y, n_folds: static sizes.
        mixed: whether to keep `xxxy`, for maps that are fitted to cumulants.
        dtype: of the sums.
    """
    p, q = (n_pairs(n + 1) for n in (n_x, n_y))
    shapes = ((p, p), (p, q), (q, q), (p, n_x + 1, n_y + 1))
    xx, xy, yy, xxxy = (jnp.zeros((n_folds, *shape), dtype) for shape in shapes)
    return Sums(xx, xy, yy, xxxy if mixed else None)


def update(sums: Sums, x: Float[Array, "n x"], y: Float[Array, "n y"], fold: Int[Array, ""], valid: Any = True) -> Sums:
    """Adds samples of one fold; rows that are not `valid` do not count.

    >>> x = jax.random.normal(jax.random.key(0), (100, 3))
    >>> sums = update(init(3, 3), x, x, 0)
    >>> bool(jnp.allclose(count(sums), 100.0))
    True
    """
    one = jnp.broadcast_to(jnp.asarray(valid), x.shape[:1])[:, None]
    x, y = (jnp.concatenate([jnp.where(one, side, 0), one], axis=1).astype(sums.xx.dtype) for side in (x, y))
    a, b = pairs_of(x), pairs_of(y)
    added = {"xx": matmul(a.T, a), "xy": matmul(a.T, b), "yy": matmul(b.T, b)}
    if sums.xxxy is not None:
        both = (x[:, :, None] * y[:, None, :]).reshape(len(x), -1)
        added["xxxy"] = matmul(a.T, both).reshape(sums.xxxy.shape[1:])
    index = jnp.asarray(fold)

    def put(old: Array, value: Array) -> Array:
        return lax.dynamic_update_index_in_dim(old, old[index] + value, index, 0)

    return dataclasses.replace(sums, **{name: put(getattr(sums, name), value) for name, value in added.items()})


def count(sums: Sums) -> Float[Array, " folds"]:
    """The number of samples of each fold."""
    return sums.xx[:, -1, -1]


def cumulants(sums: Sums, x_map: Float[Array, "x a"] | None = None, y_map: Float[Array, "y b"] | None = None) -> Cumulants:
    """The unbiased cumulants (k-statistics) of samples whose units are mapped first: `x @ x_map`, `y @ y_map`.

    Args:
        sums: of one fold, without the axis of folds.
        x_map, y_map: by default the units as they are.

    Fewer than 4 samples give NaN. Source: Fisher 1930; McCullagh 1987, "Tensor methods in statistics", ch. 4.
    """
    n = sums.xx[-1, -1]
    n = jnp.where(n > 3, n, jnp.nan)
    n_x, n_y = (units(len(getattr(sums, pair))) - 1 for pair in ("xx", "yy"))
    maps = []
    for size, given, matrix in ((n_x, x_map, sums.xx), (n_y, y_map, sums.yy)):
        linear = (jnp.eye(size, dtype=matrix.dtype) if given is None else given).T
        shift = -matmul(linear, _mean(matrix))
        affine = jnp.block([[linear, shift[:, None]], [jnp.zeros((1, size)), jnp.ones((1, 1))]])
        maps.append((affine, square(affine)))
    (of_x, pairs_x), (of_y, pairs_y) = maps
    xx, xy, yy = (
        matmul(left, matrix, right.T) / n
        for left, matrix, right in ((pairs_x, sums.xx, pairs_x), (pairs_x, sums.xy, pairs_y), (pairs_y, sums.yy, pairs_y))
    )
    a, b = len(of_x) - 1, len(of_y) - 1
    p, q = n_pairs(a), n_pairs(b)
    cx, cy = xx[:p, -1], yy[:q, -1]
    cov = xy[p:-1, q:-1] / 2
    unbiased = functools.partial(k_statistic, n=n)
    own_x, own_y = unpacked(cx), unpacked(cy)
    mixed = None
    if sums.xxxy is not None:
        fourth = jnp.einsum(
            "qp,pab,ca,db->qcd", pairs_x[:p], sums.xxxy / n, of_x[:a], of_y[:b], precision=lax.Precision.HIGHEST
        )
        i, j, weight = _pairs(a)
        crossed = own_x[i][:, :, None] * cov[j][:, None, :] + own_x[j][:, :, None] * cov[i][:, None, :]
        mixed = unbiased(fourth, cx[:, None, None] * cov + jnp.asarray(weight, cx.dtype)[:, None, None] * crossed)
    return Cumulants(
        unbiased(xx[:p, :p], cx[:, None] * cx + 2 * square(own_x)),
        unbiased(xy[:p, :q], cx[:, None] * cy + 2 * square(cov)),
        unbiased(yy[:q, :q], cy[:, None] * cy + 2 * square(own_y)),
        mixed,
        cx,
        cy,
    )


def k_statistic(fourth: Array, second: Array, n: Array) -> Array:
    """The unbiased cumulant of four units of n centred samples (Fisher 1930).

    Args:
        fourth: the mean of their product.
        second: the sum over the three ways to pair them of products of covariances, each divided by n.
        n: more than 3.
    """
    return n**2 / ((n - 1) * (n - 2) * (n - 3)) * ((n + 1) * fourth - (n - 1) * second)


def covariances(sums: Sums) -> tuple[Float[Array, "x x"], Float[Array, "x y"], Float[Array, "y y"]]:
    """Covariances of x, of x and y, and of y, divided by the number of samples."""
    n = sums.xx[-1, -1]
    p, q = (n_pairs(units(len(matrix)) - 1) for matrix in (sums.xx, sums.yy))
    mean_x, mean_y = _mean(sums.xx), _mean(sums.yy)
    second = unpacked(sums.xx[:p, -1]) / n, sums.xy[p:-1, q:-1] / 2 / n, unpacked(sums.yy[:q, -1]) / n
    pairs = ((mean_x, mean_x), (mean_x, mean_y), (mean_y, mean_y))
    return tuple(matrix - a[:, None] * b for matrix, (a, b) in zip(second, pairs, strict=True))  # type: ignore[return-value]


def _mean(matrix: Float[Array, "pairs pairs"]) -> Float[Array, " units"]:
    """The means of the units of one side, out of its sums."""
    return matrix[n_pairs(units(len(matrix)) - 1) : -1, -1] / math.sqrt(2) / matrix[-1, -1]


def without_energy(matrix: Float[Array, "p q"], x: Float[Array, " p"], y: Float[Array, " q"]) -> Float[Array, "p q"]:
    """A quadricovariance without the direction of the covariance on either side.

    A gain that all features have in common, a common density, or noise whose strength varies adds along it: it makes the total
    energies of samples covary.
    """
    return without_direction(without_direction(matrix, x).T, y).T


def without_direction(array: Array, direction: Float[Array, " p"]) -> Array:
    """An array `(p, ...)` without what it holds along a direction of its first axis."""
    unit = safe_divide(direction, safe_norm(direction))
    return array - jnp.tensordot(unit, jnp.tensordot(unit, array, 1, precision=lax.Precision.HIGHEST), 0)


# Packing.


def n_pairs(n: int) -> int:
    """The number of pairs of n units, each with itself too."""
    return n * (n + 1) // 2


def units(pairs: int) -> int:
    """The number of units that have so many pairs."""
    return (math.isqrt(8 * pairs + 1) - 1) // 2


@functools.lru_cache(maxsize=64)
def _pairs(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second unit of each pair, and its weight: those with the last unit stand behind all others."""
    pairs = np.stack(np.triu_indices(n))
    # By the second: pairs of the first n - 1 units are those of n - 1 units.
    i, j = pairs[:, np.lexsort(pairs)].astype(np.int32)
    return i, j, np.where(i == j, 1, math.sqrt(2))


def pairs_of(x: Float[Array, "n units"]) -> Float[Array, "n pairs"]:
    """The products of pairs of units of each sample, packed."""
    i, j, weight = _pairs(x.shape[1])
    return x[:, i] * x[:, j] * weight.astype(x.dtype)


def unpacked(vector: Float[Array, " pairs"]) -> Float[Array, "n n"]:
    """The symmetric matrix of a packed vector."""
    n = units(len(vector))
    i, j, weight = _pairs(n)
    values = vector / weight.astype(vector.dtype)
    return jnp.zeros((n, n), vector.dtype).at[i, j].set(values).at[j, i].set(values)


def square(matrix: Float[Array, "a b"]) -> Float[Array, "pairs_a pairs_b"]:
    """The symmetric square of T, which maps the packed pairs of x to those of T x."""
    (i, j, wa), (k, m, wb) = _pairs(matrix.shape[0]), _pairs(matrix.shape[1])
    rows, others = matrix[i], matrix[j]
    weight = jnp.asarray(wa[:, None] * wb / 2, matrix.dtype)
    return weight * (rows[:, k] * others[:, m] + rows[:, m] * others[:, k])


# What a representation holds.


@dataclasses.dataclass(frozen=True, eq=False)
class Count:
    """How many feature lines a representation holds.

    Attributes:
        count: median over splits; NaN where it is not identified.
        ci95: smallest and largest over splits. It holds the samples fixed but for how they are split, so that it is no
            interval over samples; NaN where no count could be made.
        identified: whether the count is to be believed.
        reason: why not, in a sentence; empty where it is.
        unresolved: the share of the squared cumulants that lies beyond the counted lines, on samples that did not choose them.
        kept: the share of the variance in the components that were read.
        eigenvalues, held_out: `(pairs,)`, of the quadricovariance of one half, in descending order; and what the other half
            has along the same directions.
    """

    count: float
    ci95: tuple[float, float]
    identified: bool
    reason: str
    unresolved: float
    kept: float
    eigenvalues: Float[np.ndarray, " pairs"]
    held_out: Float[np.ndarray, " pairs"]


def count_features(
    x: ArrayLike, key: Key[Array, ""] | None = None, *, n_splits: int = 4, components: int | None = None
) -> Count:
    """How many feature lines a representation holds, more than units or fewer: the rank of its quadricovariance.

    The units are whitened. In each of some splits into halves, the eigenvectors of one half are held against the other: kept
    are as many of them as bring the truncated matrix of the one half nearest to the whole one of the other. A feature and
    its antipode share a line. Only independent features of positive or of negative fourth cumulant are counted.

    It is not identified, and says so, for fewer than ten samples a pair of units; for Gaussian data; where more than 5 % of the
    squared cumulants lie beyond the lines; where splits differ by more than two, or 5 %; and where lines are nearly as many as
    pairs. Known to fail without a word: features much weaker than others go uncounted (of 40 with lognormal norms, 35 at a
    standard deviation of .3, 32 at .5); features that occur together add directions of their own, and so do heavy-tailed noise
    and a rectification. It runs on the host: not inside of `jit`.

    Args:
        x: `(n_samples, n_units)`.
        key: of the splits; by default `jax.random.key(0)`.
        n_splits: each is read in both directions.
        components: principal components that are read; by default at most 48, and as many as ten samples a pair allow.

    Raises:
        ValueError: an array that is not two-dimensional and finite; fewer than 2 components, or no split.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.uniform(0.3, 1, (16_000, 8)) * (rng.random((16_000, 8)) < 0.05)
    >>> count_features(z @ rng.normal(size=(8, 6))).count
    8.0
    """
    x = _checked(x)
    key = jax.random.key(0) if key is None else key
    if not is_concrete(x):
        raise ValueError("sp.cumulants.count_features gives reasons on the host: call it outside of jit and vmap.")
    positive_integer("n_splits", n_splits)
    n_live = int(np.sum(np.ptp(np.asarray(x), axis=0) > 0))
    size = min(n_live, 48, max(2, units(len(x) // 10))) if components is None else components
    nothing = np.full(max(n_pairs(size), 1), np.nan)

    def unknown(reason: str, **known: Any) -> Count:
        empty = {"ci95": (np.nan, np.nan), "unresolved": np.nan, "kept": np.nan, "eigenvalues": nothing, "held_out": nothing}
        return Count(**{"count": np.nan, "identified": False, "reason": reason, **empty, **known})

    if size < 2 or size > n_live:
        if components is not None:
            raise ValueError(f"components must be between 2 and the {n_live} units that vary, got {components}.")
        return unknown(f"{n_live} units vary: cumulants of pairs need two.")
    if len(x) < 10 * n_pairs(size):
        return unknown(f"{len(x)} samples are fewer than ten for each of {n_pairs(size)} pairs of {size} units.")
    signed, found, chosen, total, kept, there = jax.device_get(_spectra(x, key, n_splits, size))
    if there < size:
        return unknown(
            f"only {there} of {size} components are more than rounding beside the largest: rescale units, or lower components."
        )
    count = float(np.median(chosen))
    within = np.array([np.sum((values * other)[:r]) for values, other, r in zip(signed, found, chosen, strict=True)])
    unresolved = float(1 - np.sum(within) / np.sum(total))
    known = {
        "ci95": (float(chosen.min()), float(chosen.max())),
        "unresolved": unresolved,
        "kept": float(kept),
        "eigenvalues": signed[0],
        "held_out": found[0],
    }
    errors = np.std(total) if len(total) > 2 else 0.0
    if count == 0 or np.mean(total) <= 3 * errors:
        return unknown(
            "one half of the samples says nothing of the other: they look Gaussian, or are too few, or have heavy tails.",
            **known,
        )
    if count > 0.9 * n_pairs(size):
        return unknown(f"{count:.0f} lines are nearly as many as the {n_pairs(size)} pairs of units.", **known)
    if np.ptp(chosen) > max(2, 0.05 * count):
        return unknown(f"splits differ: {chosen.min()} to {chosen.max()} lines.", **known)
    if abs(unresolved) > 0.05:
        return unknown(
            f"{unresolved:.0%} of the squared cumulants lie beyond the lines that samples tell, {count:.0f}.", **known
        )
    return Count(count=count, identified=True, reason="", **known)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _spectra(x: Array, key: Array, n_splits: int, size: int) -> tuple[Array, ...]:
    """Of each split, both ways: eigenvalues of one half, what the other has there, its rank, the product of both matrices.

    And the share of the variance that components keep, and how many of them there are.
    """
    mean, root, kept = white_basis(x, size)
    white = matmul(x - mean, root)

    def split(key: Array) -> tuple[Array, ...]:
        order = jax.random.permutation(key, len(white))
        a, b = (own(white[rows]).xx for rows in (order[: len(x) // 2], order[len(x) // 2 :]))
        values, along = (jnp.stack(leaves) for leaves in zip(held_out(a, b), held_out(b, a), strict=True))
        return values, along, jax.vmap(rank)(values, along), jnp.broadcast_to(jnp.sum(a * b), (2,))

    found = lax.map(split, jax.random.split(key, n_splits))
    values, along, ranks, total = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in found)
    return values, along, ranks, total, kept, jnp.sum(jnp.any(root != 0, axis=0))


def rank(values: Float[Array, " p"], along: Float[Array, " p"]) -> Int[Array, ""]:
    """The number of eigenvectors that bring one quadricovariance, cut there, nearest to another: of what `held_out` gives."""
    gain = jnp.cumsum(2 * values * along - values**2)
    return jnp.where(jnp.max(gain) > 0, jnp.argmax(gain) + 1, 0)


def held_out(one: Float[Array, "p p"], other: Float[Array, "p p"]) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
    """The eigenvalues of one quadricovariance, largest by size first, and what another has along their directions."""
    values, vectors = eigh(one)
    order = jnp.argsort(-jnp.abs(values))
    along = jnp.sum(vectors * matmul(other, vectors), axis=0)
    return values[order], along[order]


def own(x: Float[Array, "n units"]) -> Cumulants:
    """The cumulants of one side alone."""
    return cumulants(sums_of(x, jnp.zeros((len(x), 1), x.dtype)))


def sums_of(x: Float[Array, "n x"], y: Float[Array, "n y"], valid: Any = True, *, mixed: bool = False) -> Sums:
    """The sums of all samples that are `valid`, without an axis of folds, a block of samples after the other."""
    n_blocks = -(-len(x) // BLOCK)
    size = -(-len(x) // n_blocks)

    def blocks(array: Array) -> Array:
        widths = [(0, n_blocks * size - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, widths).reshape(n_blocks, size, *array.shape[1:])

    def add(sums: Sums, block: Any) -> tuple[Sums, None]:
        return update(sums, block[0], block[1], jnp.int32(0), block[2]), None

    empty = init(x.shape[1], y.shape[1], mixed=mixed, dtype=x.dtype)
    given = (x, y, jnp.broadcast_to(jnp.asarray(valid), x.shape[:1]))
    return jax.tree.map(lambda leaf: leaf[0], lax.scan(add, empty, tuple(map(blocks, given)))[0])


def white_basis(x: Float[Array, "n units"], size: int, valid: Any = True) -> tuple[Array, Array, Array]:
    """The mean, the leading principal components scaled to variance 1, `(units, size)`, and their share of the variance.

    Only samples that are `valid` count, and components that are rounding errors are 0. Of all components, those of units of
    variance 1, so that scales cost no digits; of fewer, those of the units as they are, so that a rotation changes nothing.
    With fewer samples than units they come from the products of samples.
    """
    inside = jnp.broadcast_to(jnp.asarray(valid), x.shape[:1])[:, None]
    n = jnp.sum(inside, dtype=x.dtype)
    # A constant is one exactly, whatever rounding makes of its mean.
    varies = jnp.max(jnp.where(inside, x, -jnp.inf), axis=0) > jnp.min(jnp.where(inside, x, jnp.inf), axis=0)
    mean = jnp.sum(jnp.where(inside, x, 0), axis=0) / n
    centred = jnp.where(inside & varies, x - mean, 0)
    deviation = safe_sqrt(jnp.sum(centred**2, axis=0) / n)
    scale = safe_divide(jnp.ones_like(deviation), deviation)
    if size < x.shape[1]:
        scale = jnp.where(scale > 0, 1 / jnp.maximum(safe_norm(deviation), jnp.finfo(x.dtype).tiny), 0)
    scaled = centred * scale
    wide = x.shape[1] > len(x)
    values, vectors = eigh(matmul(scaled, scaled.T) / n if wide else matmul(scaled.T, scaled) / n)
    values, vectors = values[::-1], vectors[:, ::-1]
    roots = inverse_deviation(values)
    if wide:
        vectors = matmul(scaled.T, vectors) * roots / jnp.sqrt(n)
    missing = max(0, size - len(values))
    root = jnp.pad((scale[:, None] * vectors * roots)[:, :size], ((0, 0), (0, missing)))
    return mean, root, jnp.sum(values[:size]) / jnp.sum(values)


def directions(
    x: ArrayLike,
    n_features: int,
    key: Key[Array, ""] | None = None,
    *,
    components: int | None = None,
    n_starts: int = 16,
    steps: int = 60,
) -> Float[Array, "features units"]:
    """The lines along which independent features lie, more than units or fewer, without training: `(n_features, n_units)`.

    The leading eigenvectors of the whitened quadricovariance span the products of each feature's direction with itself. The
    subspace power method finds these in the span, one after the other, each from several starts, and takes them out of it; all
    are polished in the whole span at the end. Source: Kileel & Pereira 2019, arXiv 1912.04007; De Lathauwer, Castaing &
    Cardoso 2007 for the problem.

    Pure: `jit` it with `n_features` static, `vmap` it over keys and representations. Ask `count_features` first: lines that are
    not there come back as directions of noise. It needs sparse features (p ≤ .1), some 16,000 samples, and clearly fewer lines
    than pairs of units. Antipodal features share a line.

    Args:
        x: `(n_samples, n_units)`.
        n_features: lines to look for, at most n (n + 1) / 2 for n components.
        key: of the starts; by default `jax.random.key(0)`.
        components: principal components that are read; by default at most 48.
        n_starts: for each line.
        steps: iterations of each start.

    Returns:
        Unit vectors, turned to the side to which samples are skewed, in the order in which they were found. Lines beyond what
        repeated and constant units leave are 0, where x is traced.

    Raises:
        ValueError: an array that is not two-dimensional and finite, or a number of features that pairs cannot hold.
    """
    x = _checked(x)
    key = jax.random.key(0) if key is None else key
    size = min(x.shape[1], 48) if components is None else components
    if not 1 <= size <= x.shape[1]:
        raise ValueError(f"components must be between 1 and the {x.shape[1]} units, got {components}.")
    if not isinstance(n_features, (int, np.integer)) or not 1 <= n_features <= n_pairs(size):
        raise ValueError(f"n_features must be between 1 and the {n_pairs(size)} pairs of {size} components, got {n_features}.")
    if n_starts < 1 or steps < 1:
        raise ValueError(f"n_starts and steps must be at least 1, got {n_starts} and {steps}.")
    lines = _directions(x, key, int(n_features), size, n_starts, steps)
    if is_concrete(lines) and not np.all(np.linalg.norm(lines, axis=1) > 0.5):
        told = int(np.sum(np.linalg.norm(lines, axis=1) > 0.5))
        raise ValueError(f"n_features must be at most what x can hold: of {n_features} lines {told} have a direction.")
    return lines


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _directions(x: Array, key: Array, n_features: int, size: int, n_starts: int, steps: int) -> Array:
    mean, root, _ = white_basis(x, size)
    centred = x - mean
    white = matmul(centred, root)
    values, vectors = eigh(own(white).xx)
    leading = jnp.argsort(-jnp.abs(values))[:n_features]
    span, weights = vectors[:, leading], values[leading]

    def climb(start: Array, inside: Array, steps: int) -> Array:
        """Fixed points of v -> (the matrix in the span nearest to v vᵀ) v."""

        def step(v: Array, _: Any) -> tuple[Array, None]:
            nearest = matmul(matmul(pairs_of(v), span, inside), span.T)
            moved = jax.vmap(lambda packed, v: matmul(unpacked(packed), v))(nearest, v) + SHIFT * v
            return moved / jnp.maximum(jnp.linalg.norm(moved, axis=1, keepdims=True), 1e-30), None

        return lax.scan(step, start, length=steps)[0]

    def find(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        inside, inverse = state
        start = jax.random.normal(key, (n_starts, size), x.dtype)
        found = climb(start / jnp.linalg.norm(start, axis=1, keepdims=True), inside, steps)
        at = matmul(pairs_of(found), span)
        height = jnp.sum(at * matmul(at, inside), axis=1)
        best = jnp.argmax(height)
        # Wedderburn's reduction: the rank of the matrix less this line is lower by one, and so is its span.
        out = matmul(inside, matmul(inverse, matmul(inside, at[best])))
        out = out / jnp.maximum(jnp.linalg.norm(out), 1e-30)
        return (inside - out[:, None] * out, inverse), found[best]

    told = jnp.abs(weights) > len(values) * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(weights))
    inverse = jnp.where(told, 1 / jnp.where(told, weights, 1), 0)
    start = (jnp.diag(told.astype(x.dtype)), jnp.diag(inverse))
    _, lines = lax.scan(find, start, jax.random.split(key, n_features))
    lines = climb(lines, start[0], steps)
    skewness = jnp.mean(matmul(white, lines.T) ** 3, axis=0)
    lines = lines * jnp.where(skewness < 0, -1, 1)[:, None]
    mapped = matmul(matmul(lines, white.T) / len(x), centred)  # what makes samples white, undone
    mapped = jnp.where((jnp.arange(n_features) < jnp.sum(told))[:, None], mapped, 0)
    return safe_divide(mapped, safe_norm(mapped, axis=1))


SHIFT = 0.2  # of itself that a power iteration keeps: it then climbs from every start


def _checked(given: ArrayLike) -> Array:
    """The array in float32 at least, if it is samples of units."""
    x: Any = as_array(given, "x")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must be a non-empty (n_samples, n_units) array, got shape {x.shape}.")
    if is_concrete(x):
        mean = offsets(x)
        x = (x if mean is None else x - mean).astype(floating(x.dtype), copy=False)
        check_values("x", x)
    return jnp.asarray(x, floating(x.dtype))

"""Per-fold moments of paired representations: all that most metrics need to know about the samples.

Sums are centred: every block of samples is centred on its own mean, and blocks and folds are merged by the parallel formula of
Chan, Golub & LeVeque (1979), so that float32 does not lose what millions of samples add up to.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

READS = ("xx", "xy", "yy", "norms", "active")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Side:
    """Moments of one side, a leading axis of folds.

    Attributes:
        mean: `(folds, units)`.
        squares: `(folds, units)`, sums of squared deviations from the fold's mean.
        low, high: `(folds, units)`, smallest and largest value.
        scatter: `(folds, units, units)`, sums of products of deviations, or None where no metric reads it.
    """

    mean: Float[Array, "folds units"]
    squares: Float[Array, "folds units"]
    low: Float[Array, "folds units"]
    high: Float[Array, "folds units"]
    scatter: Float[Array, "folds units units"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Norms:
    """Sums over samples of squared lengths of deviations, for debiased metrics.

    Attributes:
        product: `(folds,)`, Σ |a|² |b|².
        a, b: `(folds, units)`, Σ a |b|² and Σ b |a|².
    """

    product: Float[Array, " folds"]
    a: Float[Array, "folds units_a"]
    b: Float[Array, "folds units_b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of a source x and a target y over the same samples, a leading axis of folds.

    Attributes:
        count: `(folds,)`, number of samples.
        x, y: the moments of each side alone.
        xy: `(folds, n_source, n_target)`, sums of products of deviations.
        norms: of the pairs "xx", "xy" and "yy", or None where no metric reads them.
        active: the moments of 1[x > 0] and 1[y > 0], or None likewise.
    """

    count: Float[Array, " folds"]
    x: Side
    y: Side
    xy: Float[Array, "folds source target"]
    norms: dict[str, Norms] | None = None
    active: "Moments | None" = None

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return self.count.shape[0]

    def live(self) -> tuple[Bool[Array, " source"], Bool[Array, " target"]]:
        """Masks of the units that are constant in no fold, hence in no fold's training part either."""
        return jnp.all(self.x.high > self.x.low, axis=0), jnp.all(self.y.high > self.y.low, axis=0)


def init(n_source: int, n_target: int, n_folds: int, reads: Iterable[str] = ("xx", "xy", "yy"), dtype: Any = None) -> Moments:
    """Moments of no samples.

    Args:
        n_source, n_target, n_folds: static sizes.
        reads: what to keep, out of `READS`: the cross moments "xy" and the diagonals of "xx" and "yy" always are; "norms", the
            squared lengths of deviations, brings "xx" and "yy" with it; "active" are the cross moments of 1[x > 0] and 1[y >
            0].
        dtype: of the sums; by default JAX's default float.

    Raises:
        ValueError: an unknown name in `reads`.
    """
    reads = {reads} if isinstance(reads, str) else set(reads)
    if unknown := reads - set(READS):
        raise ValueError(f"reads takes names out of {', '.join(READS)}, got {', '.join(sorted(unknown))}.")
    dtype = jnp.result_type(float) if dtype is None else dtype

    def side(units: Any, full: bool) -> Side:
        mean, squares, low, high = (jnp.full((n_folds, units), value, dtype) for value in (0, 0, jnp.inf, -jnp.inf))
        scatter = jnp.zeros((n_folds, units, units), dtype) if full or "norms" in reads else None
        return Side(mean, squares, low, high, scatter)  # arrays of their own, each of which can be donated

    def norms(a: Any, b: Any) -> Norms:
        return Norms(jnp.zeros(n_folds, dtype), jnp.zeros((n_folds, a), dtype), jnp.zeros((n_folds, b), dtype))

    pairs = {"xx": (n_source, n_source), "xy": (n_source, n_target), "yy": (n_target, n_target)}
    return Moments(
        count=jnp.zeros(n_folds, dtype),
        x=side(n_source, "xx" in reads),
        y=side(n_target, "yy" in reads),
        xy=jnp.zeros((n_folds, n_source, n_target), dtype),
        norms={pair: norms(*sizes) for pair, sizes in pairs.items()} if "norms" in reads else None,
        active=init(n_source, n_target, n_folds, ("xy",), dtype) if "active" in reads else None,
    )


def update(moments: Moments, x: Float[Array, "n source"], y: Float[Array, "n target"], fold_ids: Int[Array, "*n"]) -> Moments:
    """Adds samples: a batch at a time, for samples one by one would each round the running means.

    Args:
        moments: so far, from `init` or an earlier update.
        x: `(n, n_source)`.
        y: `(n, n_target)`, the same samples.
        fold_ids: `(n,)` fold of each sample, or a scalar where all belong to one fold, which is cheaper. Samples with an id
            outside 0 to n_folds - 1 are left out.

    Raises:
        ValueError: shapes that do not fit.
    """
    n_source, n_target = moments.xy.shape[1:]
    x, y, fold_ids = jnp.asarray(x), jnp.asarray(y), jnp.asarray(fold_ids)
    n = x.shape[0]
    if x.shape != (n, n_source) or y.shape != (n, n_target) or fold_ids.shape not in ((), (n,)):
        raise ValueError(
            f"x, y and fold_ids must have shapes (n, {n_source}), (n, {n_target}) and (n,) or (), "
            f"got {x.shape}, {y.shape} and {fold_ids.shape}."
        )
    if n == 0:
        return moments
    if fold_ids.ndim == 0:
        inside = (fold_ids >= 0) & (fold_ids < moments.n_folds)
        return update_fold(moments, x, y, jnp.broadcast_to(inside, (n,)), jnp.where(inside, fold_ids, 0))

    rows, valid, folds = _blocks(fold_ids, moments.n_folds)

    def add(moments: Moments, block: Any) -> tuple[Moments, None]:
        rows, valid, fold = block
        return update_fold(moments, x[rows], y[rows], valid, fold), None

    return lax.scan(add, moments, (rows, valid, folds))[0]


def update_fold(
    moments: Moments, x: Float[Array, "n source"], y: Float[Array, "n target"], valid: Bool[Array, " n"], fold: Int[Array, ""]
) -> Moments:
    """Adds samples of one fold; rows that are not `valid` do not count, whatever they hold."""
    dtype = moments.count.dtype
    added = jnp.sum(valid, dtype=dtype)
    count = moments.count[fold]
    total = count + added
    inverse = 1 / jnp.maximum(total, 1)

    def put(array: Array, value: Any) -> Array:
        return lax.dynamic_update_index_in_dim(array, value.astype(array.dtype), fold, 0)

    def deviations(values: Array, side: Side) -> tuple[Array, Array]:
        values = jnp.where(valid[:, None], values.astype(dtype), 0)
        mean = jnp.sum(values, axis=0) / jnp.maximum(added, 1)
        return jnp.where(valid[:, None], values - mean, 0), mean - side.mean[fold]

    def product(old: Any, a: Any, b: Any, shift_a: Array, shift_b: Array) -> Array:
        between = (count * added * inverse) * shift_a[:, None] * shift_b[None, :]
        return put(old, old[fold] + _matmul(a.T, b) + between)

    def side(old: Any, values: Array, deviation: Array, shift: Array) -> Side:
        values = values.astype(dtype)
        low = jnp.min(jnp.where(valid[:, None], values, jnp.inf), axis=0)
        high = jnp.max(jnp.where(valid[:, None], values, -jnp.inf), axis=0)
        squares = jnp.sum(deviation**2, axis=0) + (count * added * inverse) * shift**2
        scatter = None if old.scatter is None else product(old.scatter, deviation, deviation, shift, shift)
        return Side(
            mean=put(old.mean, old.mean[fold] + shift * added * inverse),
            squares=put(old.squares, old.squares[fold] + squares),
            low=put(old.low, jnp.minimum(old.low[fold], low)),
            high=put(old.high, jnp.maximum(old.high[fold], high)),
            scatter=scatter,
        )

    x_deviation, x_shift = deviations(x, moments.x)
    y_deviation, y_shift = deviations(y, moments.y)
    norms = None
    if moments.norms is not None:
        block = _block_moments(x_deviation, y_deviation, added)
        of_block = _moved_norms(block, x_shift * count * inverse, y_shift * count * inverse)
        so_far = jax.tree.map(lambda leaf: leaf[fold], dataclasses.replace(moments, active=None))
        of_old = _moved_norms(so_far, -x_shift * added * inverse, -y_shift * added * inverse)
        norms = jax.tree.map(lambda old, a, b: put(old, a + b), moments.norms, of_block, of_old)
    return Moments(
        count=put(moments.count, total),
        x=side(moments.x, x, x_deviation, x_shift),
        y=side(moments.y, y, y_deviation, y_shift),
        xy=product(moments.xy, x_deviation, y_deviation, x_shift, y_shift),
        norms=norms,
        active=None if moments.active is None else update_fold(moments.active, x > 0, y > 0, valid, fold),
    )


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of samples, fold by fold.

    Raises:
        ValueError: different numbers of folds or units, or not the same `reads`.
    """
    shapes = [jax.tree.map(jnp.shape, side) for side in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError("a and b must have the same numbers of folds and units, and the same reads.")
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), a, b)
    return pool(both, jnp.tile(jnp.eye(a.n_folds, dtype=bool), (1, 2)))


def pool(moments: Moments, parts: Bool[Array, "parts folds"]) -> Moments:
    """The moments of unions of folds: row p of `parts` marks the folds that make up fold p of the result."""
    chosen = jnp.asarray(parts)
    weights = chosen.astype(moments.count.dtype)
    sizes = weights * moments.count
    count = jnp.sum(sizes, axis=1)

    def mean_and_shift(mean: Array) -> tuple[Array, Array]:
        pooled = _matmul(sizes, mean) / jnp.maximum(count, 1)[:, None]
        return pooled, mean[None] - pooled[:, None]  # (parts, folds, units)

    def scatter(within: Array, shift_a: Array, shift_b: Array) -> Array:
        between = jnp.einsum("pf,pfi,pfj->pij", sizes, shift_a, shift_b, precision=lax.Precision.HIGHEST)
        return jnp.einsum("pf,fij->pij", weights, within, precision=lax.Precision.HIGHEST) + between

    def side(old: Any, mean: Array, shift: Array) -> Side:
        return Side(
            mean=mean,
            squares=_matmul(weights, old.squares) + jnp.sum(sizes[:, :, None] * shift**2, axis=1),
            low=jnp.min(jnp.where(chosen[:, :, None], old.low[None], jnp.inf), axis=1),
            high=jnp.max(jnp.where(chosen[:, :, None], old.high[None], -jnp.inf), axis=1),
            scatter=None if old.scatter is None else scatter(old.scatter, shift, shift),
        )

    x_mean, x_shift = mean_and_shift(moments.x.mean)
    y_mean, y_shift = mean_and_shift(moments.y.mean)
    norms = None
    if moments.norms is not None:
        moved = jax.vmap(jax.vmap(_moved_norms), (None, 0, 0))(moments, x_shift, y_shift)  # leaves (parts, folds, ...)
        norms = jax.tree.map(lambda leaf: jnp.einsum("pf,pf...->p...", weights, leaf, precision=lax.Precision.HIGHEST), moved)
    return Moments(
        count=count,
        x=side(moments.x, x_mean, x_shift),
        y=side(moments.y, y_mean, y_shift),
        xy=scatter(moments.xy, x_shift, y_shift),
        norms=norms,
        active=None if moments.active is None else pool(moments.active, parts),
    )


def training(moments: Moments) -> Moments:
    """The moments of each fold's training part: all other folds, or the fold itself where it is the only one."""
    n_folds = moments.n_folds
    return pool(moments, ~jnp.eye(n_folds, dtype=bool) | (n_folds == 1))


def select(moments: Moments, source: Int[Array, " units"], target: Int[Array, " units"]) -> Moments:
    """The moments of some units of each side, in the order given; an index out of range makes a dead unit, which pads.

    The squared lengths of samples ("norms") are those of all units together: they are left out.

    Args:
        moments: of all units.
        source: `(units,)` indices, not negative.
        target: `(units,)` likewise.
    """

    def take(array: Array, units: Any, axis: int) -> Array:
        return jnp.take(array, jnp.asarray(units), axis=axis, mode="fill", fill_value=0)

    def side(old: Any, units: Any) -> Side:
        scatter = None if old.scatter is None else take(take(old.scatter, units, 1), units, 2)
        mean, squares, low, high = (take(leaf, units, 1) for leaf in (old.mean, old.squares, old.low, old.high))
        return Side(mean, squares, low, high, scatter)

    xy = take(take(moments.xy, source, 1), target, 2)
    active = None if moments.active is None else select(moments.active, source, target)
    return Moments(moments.count, side(moments.x, source), side(moments.y, target), xy, None, active)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _moved_norms(moments: Moments, x_shift: Array, y_shift: Array) -> dict[str, Norms]:
    """The norms of one fold about a centre from which its mean lies `x_shift`, `y_shift` away."""
    squares = {"x": jnp.sum(moments.x.squares), "y": jnp.sum(moments.y.squares)}
    shifts = {"x": x_shift, "y": y_shift}
    crosses: dict[str, Any] = {"xx": moments.x.scatter, "xy": moments.xy, "yy": moments.y.scatter}

    def moved(pair: Any, old: Any) -> Norms:
        a, b = pair
        s, t, cross = shifts[a], shifts[b], crosses[pair]
        s2, t2 = jnp.sum(s**2), jnp.sum(t**2)
        cross_t, s_cross = _matmul(cross, t), _matmul(s, cross)
        return Norms(
            product=old.product
            + 2 * (jnp.sum(s * old.a) + jnp.sum(t * old.b) + 2 * jnp.sum(s * cross_t))
            + t2 * squares[a]
            + s2 * squares[b]
            + moments.count * s2 * t2,
            a=old.a + 2 * cross_t + s * (squares[b] + moments.count * t2),
            b=old.b + 2 * s_cross + t * (squares[a] + moments.count * s2),
        )

    return {pair: moved(pair, old) for pair, old in (moments.norms or {}).items()}


def _block_moments(x: Array, y: Array, count: Array) -> Moments:
    """One fold's moments, as far as norms need them, of deviations from their own mean."""

    def side(values: Array) -> Side:
        squares = jnp.sum(values**2, axis=0)
        return Side(jnp.zeros_like(squares), squares, squares, squares, _matmul(values.T, values))

    def norms(a: Any, b: Any) -> Norms:
        a2, b2 = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)
        return Norms(jnp.sum(a2 * b2), _matmul(b2, a), _matmul(a2, b))

    pairs = {"xx": (x, x), "xy": (x, y), "yy": (y, y)}
    return Moments(count, side(x), side(y), _matmul(x.T, y), {pair: norms(*both) for pair, both in pairs.items()})


def _blocks(fold_ids: Array, n_folds: int, largest: int = 4096) -> tuple[Array, Array, Array]:
    """Cuts samples into blocks of one fold each, with static shapes although the folds' sizes are not static.

    Returns the rows of each block `(blocks, size)`, which of them are real, and each block's fold `(blocks,)`. Samples with an
    id outside 0..n_folds - 1 are in no block.
    """
    n = fold_ids.shape[0]
    size = min(largest, -(-n // (4 * n_folds)))  # at most one part-filled block a fold
    n_blocks = -(-n // size) + n_folds
    ids = jnp.where((fold_ids >= 0) & (fold_ids < n_folds), fold_ids, n_folds)
    order = jnp.argsort(ids, stable=True)
    counts = jnp.sum(ids[:, None] == jnp.arange(n_folds), axis=0)
    first_sample = jnp.cumsum(counts) - counts
    ends = jnp.cumsum(-(-counts // size))  # in blocks
    block = jnp.arange(n_blocks)
    folds = jnp.minimum(jnp.sum(block[:, None] >= ends, axis=1), n_folds - 1)
    first_block = ends - (-(-counts // size))
    offset = (block - first_block[folds])[:, None] * size + jnp.arange(size)
    valid = offset < counts[folds][:, None]
    rows = order[jnp.where(valid, first_sample[folds][:, None] + offset, 0)]
    return rows, valid, folds

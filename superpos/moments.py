"""Per-fold moments of paired representations: all that most metrics need to know about the samples.

Sums are centred: every block of samples is centred on its own mean, and blocks and folds are merged by the parallel formula of
Chan, Golub & LeVeque (1979), so that float32 does not lose what millions of samples add up to.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

READS = ("xx", "xy", "yy")


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
class Moments:
    """Moments of a source x and a target y over the same samples, a leading axis of folds.

    Attributes:
        count: `(folds,)`, number of samples.
        x, y: the moments of each side alone.
        xy: `(folds, n_source, n_target)`, sums of products of deviations.
    """

    count: Float[Array, " folds"]
    x: Side
    y: Side
    xy: Float[Array, "folds source target"]

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return self.count.shape[0]

    def live(self) -> tuple[Bool[Array, " source"], Bool[Array, " target"]]:
        """Masks of the units that are constant in no fold, hence in no fold's training part either."""
        return jnp.all(self.x.high > self.x.low, axis=0), jnp.all(self.y.high > self.y.low, axis=0)


def init(n_source: int, n_target: int, n_folds: int, reads: Iterable[str] = READS, dtype=None) -> Moments:
    """Moments of no samples.

    Args:
        n_source, n_target, n_folds: static sizes.
        reads: which of "xx", "xy", "yy" to keep; the cross moments "xy" and the diagonals of the others always are.
        dtype: of the sums; by default JAX's default float.

    Raises:
        ValueError: an unknown name in `reads`.
    """
    if unknown := set(reads) - set(READS):
        raise ValueError(f"reads takes names out of {', '.join(READS)}, got {', '.join(sorted(unknown))}.")
    dtype = jnp.result_type(float) if dtype is None else dtype

    def side(units, full):
        zeros = jnp.zeros((n_folds, units), dtype)
        scatter = jnp.zeros((n_folds, units, units), dtype) if full else None
        return Side(zeros, zeros, zeros + jnp.inf, zeros - jnp.inf, scatter)

    return Moments(
        count=jnp.zeros(n_folds, dtype),
        x=side(n_source, "xx" in reads),
        y=side(n_target, "yy" in reads),
        xy=jnp.zeros((n_folds, n_source, n_target), dtype),
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
        return _add_block(moments, x, y, jnp.broadcast_to(inside, (n,)), jnp.where(inside, fold_ids, 0))

    rows, valid, folds = _blocks(fold_ids, moments.n_folds)

    def add(moments, block):
        rows, valid, fold = block
        return _add_block(moments, x[rows], y[rows], valid, fold), None

    return lax.scan(add, moments, (rows, valid, folds))[0]


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of samples, fold by fold."""
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), a, b)
    return pool(both, jnp.tile(jnp.eye(a.n_folds, dtype=bool), (1, 2)))


def pool(moments: Moments, parts: Bool[Array, "parts folds"]) -> Moments:
    """The moments of unions of folds: row p of `parts` marks the folds that make up fold p of the result."""
    chosen = jnp.asarray(parts)
    weights = chosen.astype(moments.count.dtype)
    sizes = weights * moments.count
    count = jnp.sum(sizes, axis=1)

    def mean_and_shift(mean):
        pooled = _matmul(sizes, mean) / jnp.maximum(count, 1)[:, None]
        return pooled, mean[None] - pooled[:, None]  # (parts, folds, units)

    def scatter(within, shift_a, shift_b):
        between = jnp.einsum("pf,pfi,pfj->pij", sizes, shift_a, shift_b, precision=lax.Precision.HIGHEST)
        return jnp.einsum("pf,fij->pij", weights, within, precision=lax.Precision.HIGHEST) + between

    def side(old, mean, shift):
        return Side(
            mean=mean,
            squares=_matmul(weights, old.squares) + jnp.sum(sizes[:, :, None] * shift**2, axis=1),
            low=jnp.min(jnp.where(chosen[:, :, None], old.low[None], jnp.inf), axis=1),
            high=jnp.max(jnp.where(chosen[:, :, None], old.high[None], -jnp.inf), axis=1),
            scatter=None if old.scatter is None else scatter(old.scatter, shift, shift),
        )

    x_mean, x_shift = mean_and_shift(moments.x.mean)
    y_mean, y_shift = mean_and_shift(moments.y.mean)
    return Moments(
        count=count,
        x=side(moments.x, x_mean, x_shift),
        y=side(moments.y, y_mean, y_shift),
        xy=scatter(moments.xy, x_shift, y_shift),
    )


def training(moments: Moments) -> Moments:
    """The moments of each fold's training part: all other folds, or the fold itself where it is the only one."""
    n_folds = moments.n_folds
    return pool(moments, ~jnp.eye(n_folds, dtype=bool) | (n_folds == 1))


def select(moments: Moments, source: Int[Array, " units"], target: Int[Array, " units"]) -> Moments:
    """The moments of some units of each side, in the order given; an index out of range makes a dead unit, which pads.

    Args:
        moments: of all units.
        source: `(units,)` indices, not negative.
        target: `(units,)` likewise.
    """

    def take(array, units, axis):
        return jnp.take(array, jnp.asarray(units), axis=axis, mode="fill", fill_value=0)

    def side(old, units):
        scatter = None if old.scatter is None else take(take(old.scatter, units, 1), units, 2)
        return Side(*(take(leaf, units, 1) for leaf in (old.mean, old.squares, old.low, old.high)), scatter)

    xy = take(take(moments.xy, source, 1), target, 2)
    return Moments(moments.count, side(moments.x, source), side(moments.y, target), xy)


def _matmul(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _add_block(moments, x, y, valid, fold):
    """Merges one block of samples, all of one fold, into that fold; rows that are not `valid` do not count."""
    dtype = moments.count.dtype
    added = jnp.sum(valid, dtype=dtype)
    count = moments.count[fold]
    total = count + added
    inverse = 1 / jnp.maximum(total, 1)

    def put(array, value):
        return lax.dynamic_update_index_in_dim(array, value.astype(array.dtype), fold, 0)

    def deviations(values, side):
        values = jnp.where(valid[:, None], values.astype(dtype), 0)
        mean = jnp.sum(values, axis=0) / jnp.maximum(added, 1)
        return jnp.where(valid[:, None], values - mean, 0), mean - side.mean[fold]

    def product(old, a, b, shift_a, shift_b):
        between = (count * added * inverse) * shift_a[:, None] * shift_b[None, :]
        return put(old, old[fold] + _matmul(a.T, b) + between)

    def side(old, values, deviation, shift):
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
    return Moments(
        count=put(moments.count, total),
        x=side(moments.x, x, x_deviation, x_shift),
        y=side(moments.y, y, y_deviation, y_shift),
        xy=product(moments.xy, x_deviation, y_deviation, x_shift, y_shift),
    )


def _blocks(fold_ids, n_folds, largest=4096):
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

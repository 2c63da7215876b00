"""Alignment of two representations: arrays in, scores out."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Key

from superpos import data, results
from superpos import metrics as metrics_lib
from superpos import moments as moments_lib
from superpos.linalg import eigh, matmul
from superpos.metrics import Metric, Samples, Score
from superpos.moments import Moments

Metrics = Sequence[str | Metric] | str | Metric
Encoder = Callable[[Array], Array]
SIDES = ("source", "target")
DEFAULT = ("semi_match", "soft_match", "ridge")


def align(
    source: ArrayLike,
    target: ArrayLike,
    metrics: Metrics = DEFAULT,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    key: Key[Array, ""] | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Score]:
    """Scores how well `source` predicts `target`, cross-validated. `jit` and `vmap` it freely.

    A unit that is constant in any fold is masked in all of them. Values are checked where the arrays are concrete; under
    a transformation a side without a live unit scores NaN.

    Args:
        source: `(n_samples, n_source)`.
        target: `(n_samples, n_target)`, the same samples in the same order.
        metrics: names (`sp.metrics.names()`) or configured metrics (`sp.metrics.Ridge(per_target=True)`).
        folds: number of folds, shuffled by `key`; or the fold of each sample, integers `(n_samples,)`, -1 for a sample that
            is left out; or None: fit and score on all samples.
        n_folds: number of folds, where `folds` is traced.
        key: shuffles the folds; by default `jax.random.key(0)`.
        groups: `(n_samples,)` integers; samples of one group share a fold (patches of an image, repeats of a stimulus).

    Returns:
        A `Score` for each metric's name: `mean`, `folds` `(n_folds,)`, `units` `(n_folds, n_target)`, `details`.

    Raises:
        ValueError: arrays that are not numeric, two-dimensional, finite and of equal length; a side without a live unit; an
            unknown metric; folds that are empty, or that a group straddles.

    >>> x = jax.random.normal(jax.random.key(0), (200, 5))
    >>> round(float(align(x, x[:, ::-1] * 2, metrics="soft_match")["soft_match"].mean), 4)
    1.0
    """
    resolved = metrics_lib.resolve(metrics)
    x, y, ids, n_folds, largest = check(source, target, folds, n_folds, key, groups)
    scores = _align(x, y, ids, resolved, n_folds, largest)
    return {metric.name: scores[metric.name] for metric in resolved}  # jit sorts


def check(
    source: ArrayLike, target: ArrayLike, folds: Any, n_folds: int | None, key: Key[Array, ""] | None, groups: Any
) -> tuple[Array, Array, Array, int, int]:
    """Both sides, fold ids, the number of folds and of samples in the largest: see `align` for the arguments and errors."""
    x, y = _check_pair(source, target)
    ids, n_folds = assign_folds(x.shape[0], folds, n_folds, key, groups)
    for name, array in (("source", x), ("target", y)):
        if _concrete(array, ids):
            _check_live(name, array, ids, n_folds)
    largest = x.shape[0]  # a bound, where it cannot be known
    if _concrete(ids):
        largest = int(np.bincount(np.asarray(ids)[np.asarray(ids) >= 0]).max())
    elif groups is None and isinstance(folds, (int, np.integer)):
        largest = -(-largest // n_folds)
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(ids), n_folds, largest


def score(moments: Moments, metrics: Metrics = DEFAULT) -> dict[str, Score]:
    """Scores moments that were accumulated with `sp.moments`.

    Args:
        moments: at least the moments that the metrics read: `sp.moments.init(..., reads=sp.reads(metrics))`.
        metrics: as in `sp.align`.

    Raises:
        ValueError: an unknown metric, or one that reads moments that were not kept.
    """
    resolved = _of_moments(metrics)
    holds = {"xx": moments.x.scatter, "yy": moments.y.scatter, "norms": moments.norms, "active": moments.active}
    kept = {"xy"} | {name for name, content in holds.items() if content is not None}
    for metric in resolved:
        if missing := metric.reads - kept:
            raise ValueError(f"moments must hold {', '.join(sorted(missing))} for {metric.name}: see init(reads=...).")
    return {metric.name: metric(moments) for metric in resolved}


_score = jax.jit(score, static_argnums=1)


def _of_moments(metrics):
    """The metrics, if they read moments alone."""
    resolved = metrics_lib.resolve(metrics)
    for metric in resolved:
        if "samples" in metric.reads:
            raise ValueError(f"{metric.name} reads samples, which moments do not hold: use sp.align.")
    return resolved


def align_stream(
    source: ArrayLike | data.Store | str | os.PathLike,
    target: ArrayLike | data.Store | str | os.PathLike,
    metrics: Metrics = DEFAULT,
    folds: int | ArrayLike | None = 5,
    key: Key[Array, ""] | None = None,
    groups: ArrayLike | None = None,
    *,
    batch_size: int = 4096,
    encode: tuple[Encoder | None, Encoder | None] = (None, None),
    progress: bool | None = None,
) -> dict[str, Score]:
    """Scores two sides that need not fit into memory, optionally through an encoder on each: `sp.align` in one pass.

    Folds are those of `sp.align`, and so are scores to rounding, but those that a second pass over the samples mends there
    (`ridge`, `ols`): in float32 these are accurate to 1e-4 up to a condition number of the source of 100, not 1,000.

    Memory does not grow with the number of samples but for their fold ids: it is that of the moments, `(folds, units, units)`
    for each of "xx", "xy" and "yy" that a metric reads, of what the metrics make of them (`ridge`: some ten times as
    much), and of folds · batch_size rows of either side. Rows wait until there are batch_size of one fold.

    Args:
        source: `(n_samples, units)`, an array, memory map or Zarr array (`superpos.data.Store`), or a path that
            `superpos.data.load` takes. Axes between the first and the last count as further samples, and the first axis then
            numbers their groups, unless `groups` does.
        target: likewise, the same samples in the same order.
        metrics: as in `sp.align`, those that read moments only.
        folds, key, groups: as in `sp.align`; `(n_samples,)` counts the samples of all axes.
        batch_size: samples that are read, encoded and added at once.
        encode: for each side None or a pure function `(batch, units) -> (batch, latents)`, row by row, such as
            `functools.partial(sae.encode, params)`, whose latents are scored in place of the units.
        progress: whether to show a bar on standard error; by default in a terminal or a notebook, unless TQDM_DISABLE is set.

    Returns:
        As `sp.align`.

    Raises:
        ValueError: a metric that reads samples; sides that are not numeric, of two or more axes and of equal length; folds
            as in `sp.align`; an encoder that does not give rows of latents; while reading, NaN or infinity; after it, a
            side without a live unit, or on a scale whose squares float32 does not hold.
        FileNotFoundError: a path that is not there.
    """
    from tqdm import tqdm

    resolved = _of_moments(metrics)
    if not _concrete(source, target, folds, key, groups):
        raise ValueError(
            "sp.align_stream feeds a compiled step from the host: call it outside of jit and vmap, or use sp.align."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not isinstance(encode, Sequence) or len(encode) != 2 or not all(one is None or callable(one) for one in encode):
        raise ValueError(f"encode must be a pair of functions, None for a side that is scored as it is, got {encode!r}.")
    sides = data.Rows(source, SIDES[0]), data.Rows(target, SIDES[1])
    found_groups = _check_rows(*sides)
    assigned, n_folds = assign_folds(sides[0].n_rows, folds, None, key, found_groups if groups is None else groups)
    ids = np.asarray(assigned)
    size = int(min(batch_size, np.bincount(ids[ids >= 0]).max()))
    rows = [jax.ShapeDtypeStruct((size, side.n_units), _floating(side.dtype)) for side in sides]
    programs, latents = zip(*map(_encoder, SIDES, encode, rows), strict=True)
    # Closed over, they would be constants of the compiled step; left on the devices that trained them, it would be compiled
    # once more, for moments that have come to lie there too.
    weights = jax.device_put(jax.device_get([program.consts for program in programs]))

    def step(moments, weights, values, count, fold):
        x, y = (jax.core.eval_jaxpr(p.jaxpr, w, v)[0] for p, w, v in zip(programs, weights, values, strict=True))
        moments = moments_lib.update_fold(moments, x, y, jnp.arange(size) < count, fold)
        # Latents that are NaN or infinite show in the range; of units the host has checked every value.
        return moments, [
            jnp.all(jnp.isfinite(side.low[fold]) & jnp.isfinite(side.high[fold])) for side in (moments.x, moments.y)
        ]

    def settle(finite):
        for name, good in zip(SIDES, finite, strict=True):
            if not good:
                raise ValueError(f"encode must give finite latents, got NaN or infinity for {name}.")

    add = jax.jit(step, donate_argnums=0)
    dtype = jnp.result_type(jnp.float32, *latents)
    moments = moments_lib.init(latents[0].shape[1], latents[1].shape[1], n_folds, reads(resolved), dtype)
    finite = [True, True]
    shown = results.shows_progress(progress)
    with tqdm(total=len(ids), desc="align_stream", unit="sample", unit_scale=True, disable=not shown) as bar:
        for values, count, fold in _by_fold(sides, rows, ids, n_folds):
            values = jax.device_put(values)  # on its way while the step before still runs
            settle(finite)  # JAX would run ahead and pile up batches
            moments, finite = add(moments, weights, values, count, fold)
            bar.update(count)
        settle(finite)
        bar.update(int(np.sum(ids < 0)))
    for name, side, live in zip(SIDES, (moments.x, moments.y), moments.live(), strict=True):
        _check_range(name, np.asarray(side.low.min(axis=0)), np.asarray(side.high.max(axis=0)))
        if not live.any():
            raise _no_live_unit(name, live.size)
    scores = _score(moments, resolved)
    return {metric.name: scores[metric.name] for metric in resolved}


def _check_rows(source, target):
    """The groups of samples, None where each is its own, if both sides hold the same samples."""
    for name, side in zip(SIDES, (source, target), strict=True):
        if 0 in side.shape:
            raise ValueError(f"{name} must be a non-empty (n_samples, n_units) array, got shape {side.shape}.")
    _check_lengths(source.shape, target.shape)
    grouped = [side.shape[0] for side in (source, target) if len(side.shape) > 2]
    if len(set(grouped)) > 1:
        raise ValueError(f"source and target must have the same samples, got shapes {source.shape} and {target.shape}.")
    return np.repeat(np.arange(grouped[0]), source.n_rows // grouped[0]) if grouped else None


def _encoder(name, encode, rows):
    """The program of an encoder, which does nothing where there is none, and the shape and dtype of its latents."""
    program, latents = jax.make_jaxpr(encode or (lambda x: x), return_shape=True)(rows)
    if not isinstance(latents, jax.ShapeDtypeStruct) or latents.ndim != 2 or latents.shape[0] != rows.shape[0]:
        raise ValueError(f"encode must give (batch, latents), but of {name} {rows.shape} it gives {latents}.")
    return program, latents


def _by_fold(sides, rows, ids, n_folds):
    """Batches of one fold each: `(values of both sides, number of rows, fold)`, full but for each fold's last.

    So a step is one product of matrices for each of the moments, without rows of other folds that would count as zeros.
    """
    size = len(rows[0])

    def empty(n):
        return [np.empty((n, side.shape[1]), side.dtype) for side in rows]

    waiting, filled = [empty(size) for _ in range(n_folds)], [0] * n_folds
    for first in range(0, len(ids), size):
        of_rows = ids[first : first + size]
        block = empty(len(of_rows))
        for side, values in zip(sides, block, strict=True):
            side.read(first, first + len(of_rows), values)
        for fold in range(n_folds):
            left = np.flatnonzero(of_rows == fold)
            while len(left):
                taken, left = np.split(left, [size - filled[fold]])
                end = filled[fold] + len(taken)
                for room, values in zip(waiting[fold], block, strict=True):
                    room[filled[fold] : end] = values[taken]
                filled[fold] = end
                if end == size:
                    yield waiting[fold], size, fold
                    waiting[fold], filled[fold] = empty(size), 0  # others: a device may still read those
    for fold in range(n_folds):
        if filled[fold]:
            yield waiting[fold], filled[fold], fold


def reads(metrics: Metrics) -> frozenset[str]:
    """The moments that some metrics read: what to pass to `sp.moments.init`."""
    return frozenset().union(*(metric.reads for metric in metrics_lib.resolve(metrics))) - {"samples"}


def assign_folds(
    n_samples: int,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    key: Key[Array, ""] | None = None,
    groups: Any = None,
) -> tuple[Int[Array, " samples"], int]:
    """The fold of each sample, `(n_samples,)`, and the number of folds: see `align` for the arguments and errors."""
    groups = None if groups is None else _as_array(groups)
    if groups is not None and (groups.shape != (n_samples,) or not jnp.issubdtype(groups.dtype, jnp.integer)):
        raise ValueError(f"groups must be integers of shape ({n_samples},), got {groups.dtype} {groups.shape}.")
    if key is not None and not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be a JAX key, such as jax.random.key(0), got {key!r}.")
    if folds is None and n_folds not in (None, 1):
        raise ValueError(f"n_folds must be left out where folds is None, got {n_folds}.")
    if folds is None:
        return jnp.zeros(n_samples, jnp.int32), 1
    if isinstance(folds, (int, np.integer)):
        if n_folds not in (None, folds):
            raise ValueError(f"n_folds must be left out or equal folds={folds}, got {n_folds}.")
        return _shuffled_folds(n_samples, int(folds), key, groups), int(folds)

    ids = _as_array(folds)
    if ids.shape != (n_samples,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"folds must be an int, None or integers ({n_samples},), got {ids.dtype} {ids.shape}.")
    if not _concrete(ids):
        if n_folds is None:
            raise ValueError("folds is traced: pass n_folds, the number of folds.")
        return ids, n_folds
    n_folds = int(ids.max()) + 1 if n_folds is None else n_folds
    ids = np.where(ids < 0, -1, ids)
    if ids.max() >= n_folds:
        raise ValueError(f"folds must be below n_folds={n_folds}, got {ids.max()}.")
    counts = np.bincount(ids[(ids >= 0) & (ids < n_folds)], minlength=n_folds)
    if n_folds < 2 or (counts == 0).any():
        raise ValueError(f"folds must number 0 to n_folds - 1, at least 2 and none empty, got counts {counts.tolist()}.")
    if groups is not None and _concrete(groups):
        pairs = np.unique(np.stack([groups, ids]), axis=1)
        if len(np.unique(pairs[0])) < pairs.shape[1]:
            raise ValueError("folds splits a group: all samples of one group must be in one fold.")
    return jnp.asarray(ids), n_folds


def _shuffled_folds(n_samples, n_folds, key, groups):
    key = jax.random.key(0) if key is None else key
    groups, n_groups = _number(groups, n_samples)
    if n_folds < 2 or (n_groups is not None and n_groups < n_folds):
        unit = "samples" if n_groups == n_samples else "groups"
        raise ValueError(f"folds must be between 2 and the number of {unit}, {n_groups}, got {n_folds}.")
    # Groups in random order are dealt out to the folds like cards; slots of groups that don't exist come last.
    slots = n_samples if n_groups is None else n_groups
    dealt = jax.random.uniform(key, (slots,), jnp.float32)  # the same folds with x64
    if n_groups is None:
        dealt = jnp.where(jnp.arange(slots) <= jnp.max(groups), dealt, jnp.inf)
    return (jnp.argsort(jnp.argsort(dealt)) % n_folds)[groups]


def deal(ids: Array, n_folds: int, n_blocks: int, key: Key[Array, ""], groups: Any = None) -> Int[Array, " samples"]:
    """Divides each fold into blocks of equally many groups: the block of each sample, `(n_samples,)`.

    Raises:
        ValueError: fewer groups in a fold than blocks.
    """
    groups, n_groups = _number(groups if groups is None else _as_array(groups), ids.shape[0])
    slots = ids.shape[0] if n_groups is None else n_groups
    fold = jnp.full(slots, n_folds).at[groups].set(jnp.where((ids >= 0) & (ids < n_folds), ids, n_folds))  # of each group
    counts = jnp.sum(fold[:, None] == jnp.arange(n_folds), axis=0)
    if _concrete(counts) and counts.min() < n_blocks:
        raise ValueError(
            f"n_blocks must be at most the number of samples, or groups, in a fold, {counts.min()}, got {n_blocks}."
        )
    order = jnp.lexsort((jax.random.uniform(jax.random.fold_in(key, 1), (slots,), jnp.float32), fold))
    first = jnp.concatenate([jnp.zeros(1, counts.dtype), jnp.cumsum(counts)])
    position = jnp.zeros(slots, counts.dtype).at[order].set(jnp.arange(slots, dtype=counts.dtype)) - first[fold]
    return (position % n_blocks)[groups]


def _number(groups, n_samples):
    """Groups numbered from 0, and how many, None where they are traced; each sample its own where there are none."""
    if groups is None:
        return jnp.arange(n_samples), n_samples
    if _concrete(groups):
        groups = np.unique(groups, return_inverse=True)[1]
        return jnp.asarray(groups), int(groups.max()) + 1
    return jnp.unique(groups, return_inverse=True, size=n_samples)[1], None


@functools.partial(jax.jit, static_argnames=("metrics", "n_folds", "largest_fold"))
def _align(x, y, ids, metrics, n_folds, largest_fold):
    scores = {}
    for metric, found in zip(metrics, gather(x, y, ids, metrics, n_folds, largest_fold), strict=True):
        basis = found.basis
        score = found.score(metric)
        if basis is not None and "weights" in score.details and metric.rotates == {"source"}:
            # Weights on principal components, as weights on the units.
            score.details["weights"] = matmul(basis.components, score.details["weights"])
            score.details["intercept"] -= matmul(basis.mean, score.details["weights"])
        scores[metric.name] = score
    return scores


class Found(NamedTuple):
    """What a metric reads: its evidence, the samples that this is of, and the basis of the source where it is rotated."""

    evidence: Moments | Samples
    samples: Samples
    basis: "Basis | None"

    def fit(self, metric: Metric) -> Any:
        """What the metric fits, mended by a second pass over the samples."""
        return metric.polish(metric.fit(self.evidence), self.samples)

    def score(self, metric: Metric) -> Score:
        """Fits and evaluates."""
        return metric.evaluate(self.fit(metric), self.samples if metric.second_pass else self.evidence)


class Basis(NamedTuple):
    """Principal components of all samples of a side: `(n_units, n_samples)` and the mean `(n_units,)`."""

    components: Array
    mean: Array


def gather(
    x: Array,
    y: Array,
    ids: Array,
    metrics: tuple[Metric, ...],
    n_folds: int,
    largest_fold: int,
    blocks: Any = None,
    n_blocks: int = 1,
    masks: tuple[Array, Array] | None = None,
) -> list[Found]:
    """What each metric reads, from one pass over the samples for all metrics that read the same.

    Where there are fewer samples than units, metrics that a rotation leaves unchanged read the moments of the principal
    components of the samples, n of them, in place of those of the units: the n × n Gram matrix holds the same numbers.

    Args:
        x, y: `(n_samples, units)`.
        ids: `(n_samples,)` fold of each sample.
        metrics, n_folds, largest_fold: static.
        blocks: `(n_samples,)` block of each sample within its fold: moments are then of n_folds · n_blocks parts, those of a
            fold together.
        n_blocks: static.
        masks: of live units, where they are not to be taken from the samples.

    Returns:
        What each metric reads.
    """
    n_samples = x.shape[0]
    wide = {side for side, array in (("source", x), ("target", y)) if n_samples < array.shape[1]}
    # The sums of fourth powers that debiased metrics read are taken apart from the others, of rescaled data.
    kinds = [
        "samples" if "samples" in m.reads or (m.wide and "source" in wide) else (m.rotates & wide) | (m.reads & {"norms"})
        for m in metrics
    ]
    parts = ids if blocks is None else jnp.where((ids >= 0) & (ids < n_folds), ids * n_blocks + blocks, -1)
    source, target = (live_units(x, ids, n_folds), live_units(y, ids, n_folds)) if masks is None else masks
    masked = jnp.where(source, x, 0), jnp.where(target, y, 0)
    inside = (ids >= 0) & (ids < n_folds)
    found: dict[Any, Found] = {}
    for kind in dict.fromkeys(kinds):
        if kind == "samples":
            samples = Samples(*masked, ids, source, target, n_folds, largest_fold)
            found[kind] = Found(samples, samples, None)
            continue
        read = frozenset().union(*(m.reads for m, k in zip(metrics, kinds, strict=True) if k == kind))
        a, b = masked if kind else (x, y)  # moments know masked units by themselves, principal components and norms do not
        basis = None
        if "source" in kind:
            a, basis = _principal(a, inside)
        if "target" in kind:
            b, _ = _principal(b, inside)
        if "norms" in kind:
            a, b = _unit_size(a, inside), _unit_size(b, inside)
        empty = moments_lib.init(a.shape[1], b.shape[1], n_folds * n_blocks, read, jnp.result_type(x, y))
        moments = moments_lib.update(empty, a, b, parts)
        # Principal components are not units: none of them is masked where a unit is live.
        x_live = jnp.broadcast_to(jnp.any(source), a.shape[1:]) if "source" in kind else source
        y_live = jnp.broadcast_to(jnp.any(target), b.shape[1:]) if "target" in kind else target
        if "source" in kind or masks is not None:
            moments = dataclasses.replace(moments, x=_marked(moments.x, x_live))
        if "target" in kind or masks is not None:
            moments = dataclasses.replace(moments, y=_marked(moments.y, y_live))
        found[kind] = Found(moments, Samples(a, b, ids, x_live, y_live, n_folds, largest_fold), basis)
    return [found[kind] for kind in kinds]


def live_units(values: Array, ids: Array, n_folds: int) -> Bool[Array, " units"]:
    """Mask of the units that are constant in no fold."""

    def varies(fold):
        inside = (ids == fold)[:, None]
        return jnp.max(jnp.where(inside, values, -jnp.inf), axis=0) > jnp.min(jnp.where(inside, values, jnp.inf), axis=0)

    return jnp.all(lax.map(varies, jnp.arange(n_folds)), axis=0)


def _marked(side, live):
    """Moments whose live units are those named, whatever their samples say."""
    low = jnp.zeros_like(side.low)
    return dataclasses.replace(side, low=low, high=low + live)


def _centred(values, inside):
    """Samples less the mean of those inside, 0 for the others, and that mean."""
    mean = jnp.sum(jnp.where(inside[:, None], values, 0), axis=0) / jnp.maximum(jnp.sum(inside), 1)
    return jnp.where(inside[:, None], values - mean, 0), mean


def _unit_size(values, inside):
    """Values about 0 and of size 1 over all units, so that their fourth powers stay within float32's range."""
    centred, _ = _centred(values, inside)
    largest = jnp.max(jnp.abs(centred))
    return centred / jnp.where(largest > 0, largest, 1)


def _principal(values, inside):
    """Scores of the samples on their principal components, `(n_samples, n_samples)`, through their Gram matrix."""
    centred, mean = _centred(values, inside)
    eigenvalues, vectors = eigh(matmul(centred, centred.T))
    kept = eigenvalues > len(eigenvalues) * jnp.finfo(values.dtype).eps * eigenvalues[-1]
    root = jnp.sqrt(jnp.where(kept, eigenvalues, 1))
    return jnp.where(kept, vectors * root, 0), Basis(jnp.where(kept, matmul(centred.T, vectors) / root, 0), mean)


def _as_array(value: Any) -> Any:
    """A traced array as it is, anything else as a NumPy array, so that its values can be checked even inside `jit`."""
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)


def _concrete(*arrays: Any) -> bool:
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def _check_pair(source, target):
    """Both sides as floating-point arrays, or one clear sentence."""
    checked = []
    for name, value in (("source", source), ("target", target)):
        try:
            array = _as_array(value)
        except ValueError as error:
            raise ValueError(f"{name} must be a (n_samples, n_units) array, got rows of different lengths.") from error
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool) or jnp.iscomplexobj(array):
            raise ValueError(f"{name} must hold real numbers, got an array of {array.dtype}.")
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name} must be a non-empty (n_samples, n_units) array, got shape {array.shape}.")
        dtype = _floating(array.dtype)
        if _concrete(array):
            with np.errstate(over="ignore"):  # an overflow is an infinity, and named below
                array = array.astype(dtype, copy=False)
            _check_values(name, array)
        checked.append(array if array.dtype == dtype else array.astype(dtype))
    x, y = checked
    _check_lengths(x.shape, y.shape)
    return x, y


def _floating(dtype):
    """What values of a dtype are computed in."""
    return jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))


def _check_lengths(source, target):
    """Both shapes hold the same number of samples, on all axes but the last."""
    x, y = math.prod(source[:-1]), math.prod(target[:-1])
    if x != y:
        hint = " Are the axes of one of them swapped?" if x in target or y in source else ""
        raise ValueError(f"source and target must have the same samples, got {x} and {y} (shapes {source} and {target}).{hint}")


def _check_values(name, array):
    """Finite, and of a scale that `_check_range` takes: two passes over the array."""
    low, high = array.min(axis=0), array.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = array.size - np.isfinite(array).sum()
        raise ValueError(f"{name} must be finite in {array.dtype}, got {bad} NaN or infinite values.")
    _check_range(name, low, high)


def _check_range(name, low, high):
    """A scale whose squares neither overflow nor vanish in float32, by the least and greatest value of each unit."""
    largest = max(-low.min(), high.max())
    spread = (high - low)[high > low].min(initial=np.inf)
    if largest > 1e15 or spread < 1e-15:
        raise ValueError(
            f"{name} must have values below 1e15 and units that vary by at least 1e-15, got values up to "
            f"{largest:.0e} and a unit that varies by {spread:.0e}: rescale them."
        )


def _check_live(name, array, ids, n_folds):
    ids = np.asarray(ids)
    rows = [np.flatnonzero(ids == fold) for fold in range(n_folds)]
    for some in (16, None):  # a few samples of each fold nearly always show a live unit
        parts = [array[fold[:some]] for fold in rows]
        live = np.all([part.max(axis=0) > part.min(axis=0) for part in parts], axis=0)
        if live.any():
            return
    raise _no_live_unit(name, live.size)


def _no_live_unit(name, n_units):
    return ValueError(f"{name} has no live unit: each of its {n_units} units is constant in some fold.")

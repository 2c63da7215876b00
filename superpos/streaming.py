"""Alignment of two sides of any size, in one pass over files or arrays."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from superpos import data, results
from superpos import moments as moments_lib
from superpos.alignment import DEFAULT, Metrics, of_moments, reads, score
from superpos.checks import SIDES, check_lengths, check_range, floating, is_concrete, no_live_unit
from superpos.folds import assign_folds
from superpos.metrics import Scores
from superpos.moments import Moments

Encoder = Callable[[Array], Array]
_score = jax.jit(score, static_argnums=1)


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
) -> Scores:
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

    >>> x = np.random.default_rng(0).normal(size=(30, 3))
    >>> round(float(align_stream(x, 2 * x, "cka", folds=2, batch_size=15)["cka"].mean), 4)
    1.0
    """
    from tqdm import tqdm

    resolved = of_moments(metrics)
    if not is_concrete(source, target, folds, key, groups):
        raise ValueError(
            "sp.align_stream feeds a compiled step from the host: call it outside of jit and vmap, or use sp.align."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not isinstance(encode, Sequence) or len(encode) != 2 or not all(side is None or callable(side) for side in encode):
        raise ValueError(f"encode must be a pair of functions, None for a side that is scored as it is, got {encode!r}.")
    sides = data.Rows(source, SIDES[0]), data.Rows(target, SIDES[1])
    own_groups = _check_rows(*sides)
    assigned, n_folds = assign_folds(sides[0].n_rows, folds, None, key, own_groups if groups is None else groups)
    ids = np.asarray(assigned)
    size = min(batch_size, int(np.max(np.bincount(ids[ids >= 0]))))
    rows = [jax.ShapeDtypeStruct((size, side.n_units), floating(side.dtype)) for side in sides]
    programs, latents = zip(*map(_encoder, SIDES, encode, rows), strict=True)
    # Closed over, they would be constants of the compiled step; left on the devices that trained them, it would be compiled
    # once more, for moments that have come to lie there too.
    weights = jax.device_put(jax.device_get([program.consts for program in programs]))

    def step(moments: Moments, weights: list, values: list, count: Array, fold: Array) -> tuple[Moments, list[Array]]:
        x, y = (jax.core.eval_jaxpr(p.jaxpr, w, v)[0] for p, w, v in zip(programs, weights, values, strict=True))
        moments = moments_lib.update_fold(moments, x, y, jnp.arange(size) < count, fold)
        # Latents that are NaN or infinite show in the range; of units the host has checked every value.
        return moments, [
            jnp.all(jnp.isfinite(side.low[fold]) & jnp.isfinite(side.high[fold])) for side in (moments.x, moments.y)
        ]

    def settle(finite: Sequence[Any]) -> None:
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
        check_range(name, np.asarray(side.low.min(axis=0)), np.asarray(side.high.max(axis=0)))
        if not live.any():
            raise no_live_unit(name, live.size)
    scores = _score(moments, resolved)
    return Scores((metric.name, scores[metric.name]) for metric in resolved)


def _check_rows(source: data.Rows, target: data.Rows) -> np.ndarray | None:
    """The groups of samples, None where each is its own, if both sides hold the same samples."""
    for name, side in zip(SIDES, (source, target), strict=True):
        if 0 in side.shape:
            raise ValueError(f"{name} must be a non-empty (n_samples, n_units) array, got shape {side.shape}.")
    check_lengths(source.shape, target.shape)
    grouped = [side.shape[0] for side in (source, target) if len(side.shape) > 2]
    if len(set(grouped)) > 1:
        raise ValueError(f"source and target must have the same samples, got shapes {source.shape} and {target.shape}.")
    return np.repeat(np.arange(grouped[0]), source.n_rows // grouped[0]) if grouped else None


def _encoder(name: str, encode: Encoder | None, rows: jax.ShapeDtypeStruct) -> tuple[Any, jax.ShapeDtypeStruct]:
    """The program of an encoder, which does nothing where there is none, and the shape and dtype of its latents."""
    program, latents = jax.make_jaxpr(encode or (lambda x: x), return_shape=True)(rows)
    if not isinstance(latents, jax.ShapeDtypeStruct) or latents.ndim != 2 or latents.shape[0] != rows.shape[0]:
        raise ValueError(f"encode must give (batch, latents), but of {name} {rows.shape} it gives {latents}.")
    return program, latents


def _by_fold(
    sides: tuple[data.Rows, data.Rows], rows: list[jax.ShapeDtypeStruct], ids: np.ndarray, n_folds: int
) -> Iterator[tuple[list[np.ndarray], int, int]]:
    """Batches of one fold each: `(values of both sides, number of rows, fold)`, full but for each fold's last.

    So a step is one product of matrices for each of the moments, without rows of other folds that would count as zeros.
    """
    size = len(rows[0])

    def empty(n: int) -> list[np.ndarray]:
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

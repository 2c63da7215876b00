"""A grid of settings x seeds as one compiled program: over devices and processes, in chunks that are saved as they finish."""

import inspect
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from superpos.results import Run, read_json
from superpos.sweeps.program import Bar, Program, free_memory
from superpos.sweeps.study import Study, read, save_piece
from superpos.sweeps.table import Axis, Layout, Results

__all__ = ["Axis", "Results", "load", "sweep"]

Tree = Any


def sweep(
    train: Callable[..., Tree],
    grid: Mapping[str, Sequence[Any]],
    keys: Key[Array, " seeds"] | np.ndarray,
    *,
    score: Callable[..., Tree] | None = None,
    pairs: str | Sequence[tuple[int, int]] = "ordered",
    data_key: Tree = None,
    eval_key: Tree = None,
    chunk: int | None = None,
    memory: int | None = None,
    workdir: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> Results:
    """Runs `train` on every point of a grid with every seed, then `score` on pairs of seeds, as one compiled program.

    Settings whose values are floats (or arrays) are vmapped like the seeds. All others - widths, k, names - are unrolled: each
    combination is a branch of the same program. Models are trained and kept first, then compared. Devices take equal shares of
    every chunk; under `jax.distributed` those of all processes do, and each process gets all results.

    Args:
        train: `train(key, data_key, **settings) -> pytree of arrays`, one model of one point; pure.
        grid: the values of each setting; may be empty.
        keys: `(n_seeds,)`, one a seed; or any array, with whose rows `train` is called.
        score: `score(state_a, state_b, eval_key) -> pytree of arrays` for two models of one point; pure. Settings that it
            names among its further parameters are passed on to it.
        pairs: of seeds: "ordered" (all, a model with itself too), "unordered" (a < b), or a list of (a, b).
        data_key: passed on to every `train`, the same for all: a key, or a pytree of arrays such as a key and a data set.
        eval_key: the same for `score`. Both are fixed keys by default.
        chunk: models, and pairs of models, in flight at once, rounded up to a multiple of the number of devices. By default as
            many as fit into `memory`.
        memory: bytes that this process may use; by default half of what is free on CPU, 80 % on an accelerator.
        workdir: a folder that keeps each finished chunk. The same sweep goes on from there, with the same result bit for bit
            where `chunk` and devices are the same too; see also `load`.
        devices: by default all.
        progress: whether to show a bar on standard error; by default where that is a terminal and TQDM_DISABLE is not set. A
            program that reports progress is compiled anew in each run: JAX's persistent compilation cache takes none with
            callbacks.

    Returns:
        `Results`.

    Warns:
        RuntimeWarning: NaN or infinity in what `train` returned, with point and seed; all other points are unaffected.

    Raises:
        ValueError: an argument that does not fit; a workdir of another sweep, or with a damaged checkpoint.
        OSError: a chunk could not be saved.

    >>> def train(key, data_key, scale, width):
    ...     return {"norm": jnp.linalg.norm(scale * jax.random.normal(key, (width,)))}
    >>> found = sweep(train, {"scale": [0.5, 2.0], "width": [10, 1000]}, jax.random.split(jax.random.key(0), 16))
    >>> dict(found.states["norm"].sizes), found.programs
    ({'scale': 2, 'width': 2, 'seed': 16}, 1)
    >>> round(float(found.states["norm"].sel(scale=2.0, width=1000).mean("seed")))
    63
    """
    axes = _axes(grid, train)
    if np.ndim(keys) < 1 or len(keys) < 1:
        raise ValueError(f"keys must be an array with a row a seed, got shape {np.shape(keys)}.")
    listed = None if score is None else _pairs(pairs, len(keys))
    for name, value in (("chunk", chunk), ("memory", memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    started = time.perf_counter()
    devices = jax.devices() if devices is None else list(devices)
    # Seeds that nobody else takes: no key should serve twice.
    data_key = jax.random.key(0xDA7A5EED) if data_key is None else data_key
    eval_key = jax.random.key(0xE7A15EED) if eval_key is None else eval_key
    layout = Layout(axes, len(keys), listed)
    study = Study(_bare(train), None if score is None else _bare(score), layout, keys, data_key, eval_key)

    first = jax.process_index() == 0  # the one that reads and writes
    run = Run(workdir, "sweep", study.describe()) if workdir is not None and first else None
    if run is not None:
        study.restore(run)
    if workdir is not None and jax.process_count() > 1:
        study.broadcast()
    if progress is None:  # where processes would differ in it, so would their programs
        progress = sys.stderr.isatty() and jax.process_count() == 1 and not os.environ.get("TQDM_DISABLE")
    bar = Bar(progress, "sweep", shown=first)
    compiled = time.perf_counter()
    n_programs = 0
    limits = (chunk or math.inf, chunk or math.inf)
    sizes = study.sizes(*limits, len(devices))
    if any(study.pieces(sizes)):
        if run is not None:
            run.claim()
        budget = memory or (free_memory(devices) if chunk is None else math.inf)
        program, sizes, n_programs = _compile(study, limits, devices, bar, budget)
        compiled = time.perf_counter()
        bar.open([branch.runs for branch in program.branches])
        try:
            for piece in study.pieces(sizes):
                found = study.do(piece, program, sizes)
                if run is not None:
                    save_piece(run, piece, found)
                study.fill(piece, found)
                if first and piece.stage == "train":
                    _warn(layout.failures(piece.config, piece.block[0][0], found))
        finally:
            bar.close()
    seconds = {"compile": compiled - started, "run": time.perf_counter() - compiled}
    return Results(layout, {name: stage.trees for name, stage in study.stages.items()}, n_programs, seconds)


def load(workdir: str | os.PathLike) -> Results:
    """What a finished sweep left in its workdir, without its functions: pytrees come back as nested dicts and lists.

    Raises:
        ValueError: no sweep is there, it is not finished, or a checkpoint is damaged.
    """
    path = Path(workdir)
    described = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if described.get("experiment") != "sweep":
        raise ValueError(f"workdir {path} holds no sweep.")
    config = described["config"]
    run = Run(path, "sweep", config)
    axes = tuple(
        Axis(name, tuple(labels), np.asarray(labels) if name in config["vmapped"] else None)
        for name, labels in config["grid"].items()
    )
    layout = Layout(axes, config["n_seeds"], None if config["pairs"] is None else np.asarray(config["pairs"]))
    return Results(layout, {name: stage.trees for name, stage in read(run, layout, config["stages"]).items()})


def _compile(study, limits, devices, bar, budget):
    """The program, with calls as large as the memory allows; the number of programs that were compiled to find out."""
    for attempt in range(1, 5):  # noqa: B007
        sizes = study.sizes(*limits, len(devices))
        program = Program(study.branches(sizes), study.shared, devices, bar)
        smallest = sizes == study.sizes(1, 1, len(devices))
        if program.memory <= budget or smallest:
            break
        # Memory is about proportional to what is in flight.
        shrink = 0.9 * budget / program.memory
        limits = tuple(max(1, int(n * shrink)) for n in (sizes.rows, math.prod(sizes.pairs)))
    if program.memory > budget:
        warnings.warn(
            f"One model a device takes about {program.memory / 2**20:,.0f} MiB of the {budget / 2**20:,.0f} MiB of memory.",
            RuntimeWarning,
            stacklevel=3,
        )
    return program, sizes, attempt


def _axes(grid, train):
    parameters = inspect.signature(train).parameters.values()
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    named = [parameter.name for parameter in parameters][2:]
    axes = []
    for name, values in grid.items():
        if not open_ended and name not in named:
            raise ValueError(f"grid has {name!r}, but train takes the settings {named}.")
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise ValueError(f"grid[{name!r}] must list the values of a setting, got {values!r}.")
        if len(values) == 0:
            raise ValueError(f"grid[{name!r}] is empty: list at least one value.")
        array = None
        if isinstance(values, (np.ndarray, jax.Array)) or all(
            isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in values
        ):
            array = np.asarray(values)
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            array = None
        values = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
        axis = Axis(name, values, None if array is None else array.astype(jnp.result_type(float)))
        if len(set(axis.labels)) < len(values):
            raise ValueError(f"grid[{name!r}] has a value twice: {axis.labels}.")
        axes.append(axis)
    return tuple(axes)


def _pairs(pairs, n_seeds):
    """The listed pairs `(n_pairs, 2)`, None for all ordered ones."""
    if isinstance(pairs, str):
        if pairs not in ("ordered", "unordered"):
            raise ValueError(f"pairs takes 'ordered', 'unordered' or a list of (a, b), got {pairs!r}.")
        if n_seeds < 2:
            raise ValueError(f"keys must hold at least 2 seeds, to have a pair to compare, got {n_seeds}.")
        return None if pairs == "ordered" else np.stack(np.triu_indices(n_seeds, 1), axis=1)
    array = np.asarray(pairs)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(f"pairs must list (a, b) of seeds, at least one, got shape {array.shape} of {array.dtype}.")
    if array.min() < 0 or array.max() >= n_seeds:
        raise ValueError(f"pairs must hold seeds from 0 to {n_seeds - 1}, got {array.min()} to {array.max()}.")
    return array


def _bare(function):
    """A function without its own `jit`: what that has traced before reports no progress."""
    while hasattr(function, "lower") and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _warn(failed):
    if not failed:
        return
    seeds: dict[str, list[str]] = {}
    for point in failed:
        settings = ", ".join(f"{name}={value}" for name, value in point.items() if name not in ("seed", "leaves"))
        seeds.setdefault(settings, []).append(str(point["seed"]))
    named = [f"{settings or 'the sweep'} (seed {', '.join(found)})" for settings, found in seeds.items()]
    leaves = sorted({leaf for point in failed for leaf in point["leaves"]})
    more = f" and at {len(named) - 5} more points" if len(named) > 5 else ""
    warnings.warn(
        f"NaN or infinity in {', '.join(leaves)} at {'; '.join(named[:5])}{more}. All others are unaffected.",
        RuntimeWarning,
        stacklevel=3,
    )

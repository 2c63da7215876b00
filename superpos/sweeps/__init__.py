"""A grid of settings x seeds as one compiled program: over devices and processes, in chunks that are saved as they finish."""

import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from superpos.results import Run, shows_progress
from superpos.storage import read_json, unbroken
from superpos.sweeps.plan import Plan, Sizes, read
from superpos.sweeps.processes import agree, together
from superpos.sweeps.program import Bar, Program, free_memory
from superpos.sweeps.table import Axis, Layout, Results

__all__ = ["Axis", "Results", "load", "sweep"]

Tree = Any
RESERVED = ("key", "data_key", "seed", "source", "target", "pair", "leaves")


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

    Settings whose values are floats (or arrays of one shape) are vmapped like the seeds, and reach `train` as arrays of JAX's
    default float. All others - widths, k, names - are unrolled: each combination is a branch of the same program. Models are
    trained and kept first, then compared. Devices take equal shares of every chunk; under `jax.distributed` those of all
    processes do, and each process gets all results.

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
            where `chunk` and devices are the same too; see also `load`. What the functions compute is part of what makes a
            sweep the same, host callbacks in them excepted.
        devices: by default all.
        progress: whether to show a bar on standard error; by default in a terminal or a notebook, unless TQDM_DISABLE is set. A
            program that reports progress is compiled anew in each run: JAX's persistent compilation cache takes none with
            callbacks.

    Returns:
        `Results`.

    Warns:
        RuntimeWarning: NaN or infinity in what `train` returned, with point and seed; all others are unaffected. Too little
            memory for one model a device. Keys that draw other numbers under `vmap`.

    Raises:
        ValueError: an argument that does not fit; a workdir of another sweep, or with a damaged checkpoint.
        OSError: a chunk could not be saved.
        MemoryError: what is in flight, or what is returned, does not fit into memory.

    >>> def train(key, data_key, scale, width):
    ...     return {"norm": jnp.linalg.norm(scale * jax.random.normal(key, (width,)))}
    >>> table = sweep(train, {"scale": [0.5, 2.0], "width": [10, 1000]}, jax.random.split(jax.random.key(0), 16))
    >>> dict(table.states["norm"].sizes), table.programs
    ({'scale': 2, 'width': 2, 'seed': 16}, 1)
    >>> round(float(table.states["norm"].sel(scale=2.0, width=1000).mean("seed")))
    63
    """
    started = time.perf_counter()
    keys = _keys(keys)
    axes = _axes(grid, train)
    listed = None if score is None else _pairs(pairs, len(keys))
    for name, value in (("chunk", chunk), ("memory", memory)):
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}.")
    devices = jax.devices() if devices is None else list(devices)
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"devices must list at least one device, and none twice, got {devices}.")
    # Seeds that nobody else takes: no key should serve twice.
    data_key = jax.random.key(0xDA7A5EED) if data_key is None else data_key
    eval_key = jax.random.key(0xE7A15EED) if eval_key is None else eval_key
    layout = Layout(axes, len(keys), listed)
    plan = Plan(train, score, layout, keys, data_key, eval_key)
    if jax.process_count() == 1:  # of devices without a model or pair of their own, each would compute one that another has
        devices = devices[: max(math.prod(stage.shape) for stage in plan.stages.values())]

    first = jax.process_index() == 0  # the one that reads and writes
    run: Any = None  # None on all others
    if workdir is not None:
        run = together(lambda: Run(workdir, "sweep", plan.describe()))
        together(lambda: plan.restore(run))
        plan.broadcast()
    if progress is None:  # where processes would differ in it, so would their programs
        progress = shows_progress(None) and jax.process_count() == 1
    bar = Bar(progress, "sweep", shown=first)
    compiled = time.perf_counter()
    n_programs = n_bytes = 0
    limits = (chunk or math.inf, chunk or math.inf)
    if any(plan.pieces(plan.sizes(*limits, len(devices)))):
        if workdir is not None:
            together(lambda: run.claim())
        budget = agree(memory or (free_memory(devices) if chunk is None else math.inf))
        sizes = plan.sizes(*limits, len(devices))
        try:
            program, sizes, n_programs = _compile(plan, limits, devices, bar, budget)
            n_bytes, compiled = program.memory, time.perf_counter()
            bar.open([branch.runs for branch in program.branches])
            for stage in plan.stages:
                for piece in plan.pieces(sizes, [stage]):
                    with unbroken():  # what is computed is saved too, before a signal ends the program
                        outputs = plan.do(piece, program, sizes)
                        if workdir is not None:
                            together(lambda: run.save(piece.name, outputs))  # noqa: B023
                        plan.fill(piece, outputs)
                if stage == "train" and first:
                    _warn(layout.failures(plan.stages["train"].trees))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            most = sizes.rows if score is None else max(sizes.rows, math.prod(sizes.pairs))
            advice = f"take a smaller one, such as {most // 2}" if most > len(devices) else "let train and score hold less"
            raise MemoryError(f"Out of memory with chunk={most}: {advice}.") from error
        finally:
            bar.close()
            if run is not None:
                run.release()
    elif first:
        _warn(layout.failures(plan.stages["train"].trees))
    seconds = {"compile": compiled - started, "run": time.perf_counter() - compiled}
    return Results(layout, {name: stage.trees for name, stage in plan.stages.items()}, n_programs, n_bytes, seconds)


def load(workdir: str | os.PathLike) -> Results:
    """What a finished sweep left in its workdir, without its functions: pytrees come back as nested dicts and lists.

    Raises:
        ValueError: no sweep is there, it is not finished, or a checkpoint is damaged.
    """
    path = Path(workdir)
    described = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if not isinstance(described, dict) or described.get("experiment") != "sweep":
        raise ValueError(f"workdir {path} holds no sweep.")
    config = described["config"]
    run = Run(path, "sweep", config)
    axes = []
    for name, labels in config["grid"].items():
        vmapped = name in config["vmapped"]
        labels = [float(label) for label in labels] if vmapped else labels  # infinity is kept as text
        axes.append(Axis(name, tuple(labels), np.asarray(labels) if vmapped else None))
    layout = Layout(tuple(axes), config["n_seeds"], None if config["pairs"] is None else np.asarray(config["pairs"]))
    return Results(layout, {name: stage.trees for name, stage in read(run, layout, config["stages"]).items()})


def _compile(plan: Plan, limits: Any, devices: Any, bar: Any, budget: float) -> tuple[Program, Sizes, int]:
    """The program, with calls as large as the memory allows; the number of programs that were compiled to find out."""
    smallest = plan.sizes(1, 1, len(devices))
    measured: list[tuple[float, float]] = []
    share = 1.0
    for attempt in range(1, 5):
        sizes = plan.sizes(limits[0], limits[1], len(devices))
        program = Program(plan.branches(sizes, heard=bar.active), plan.shared, devices, bar)
        need = agree(program.memory, largest=True)
        if need <= budget or sizes == smallest:
            break
        # So much of the largest call fits: first as if memory were proportional to it, then by two points, at last the least.
        measured.append((share, need))
        if len(measured) == 1:
            share, whole = budget / need, (sizes.rows, math.prod(sizes.pairs))
        else:
            (x0, y0), (x1, y1) = measured[-2:]
            slope = (y0 - y1) / (x0 - x1) if x0 > x1 else math.inf
            share = x1 + (budget - y1) / slope if slope > 0 else 0
        share = max(0, 0.95 * share) if attempt < 3 else 0
        limits = tuple(max(1, int(n * share)) for n in whole)
    if need > budget:
        warnings.warn(
            f"Even one model a device takes about {need / 2**20:,.1f} MiB, with memory for {budget / 2**20:,.1f} MiB.",
            RuntimeWarning,
            stacklevel=3,
        )
    return program, sizes, attempt


def _keys(keys: Any) -> Any:
    """The keys as an array with a row a seed."""
    if isinstance(keys, list | tuple) and keys and all(isinstance(key, jax.Array) for key in keys):
        keys = jnp.stack(keys)
    if isinstance(keys, jax.core.Tracer):
        raise ValueError("sp.sweep makes a compiled program of its own: call it outside of jit and vmap.")
    if np.ndim(keys) < 1 or len(keys) < 1:
        raise ValueError(f"keys must be an array with a row a seed, got shape {np.shape(keys)}.")
    if getattr(keys, "dtype", None) == np.uint32 and np.ndim(keys) == 1:
        raise ValueError("keys must hold a key for each seed, got what looks like one: pass jax.random.split(key, n_seeds).")
    array = jnp.asarray(keys)
    if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        if not np.array_equal(np.asarray(array), np.asarray(keys)):
            raise ValueError(f"keys do not fit into {array.dtype}: pass smaller numbers, or jax.random.split(key, n_seeds).")
    elif str(jax.random.key_impl(array)) != "threefry2x32":
        warnings.warn(
            f"Under vmap {jax.random.key_impl(array)} keys draw numbers that depend on how many are mapped: results will then "
            "depend on chunk and devices. Threefry keys do not.",
            RuntimeWarning,
            stacklevel=3,
        )
    return array


def _axes(grid: Any, train: Any) -> tuple[Axis, ...]:
    if not isinstance(grid, Mapping):
        raise ValueError(f"grid must map the names of settings to their values, got {type(grid).__name__}.")
    parameters = list(inspect.signature(train).parameters.values())
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [parameter.name for parameter in parameters if parameter.kind in positional]
    if len(named) < 2 and not any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        raise ValueError(f"train must take key and data_key first, then settings; it takes {inspect.signature(train)}.")
    named = [parameter.name for parameter in parameters][2:]
    axes = []
    for name, values in grid.items():
        if not open_ended and name not in named:
            raise ValueError(f"grid has {name!r}, but train takes the settings {named}.")
        if name in RESERVED:
            raise ValueError(f"grid has {name!r}, which has a meaning of its own in results: name the setting otherwise.")
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise ValueError(f"grid[{name!r}] must list the values of a setting, got {values!r}.")
        if len(values) == 0:
            raise ValueError(f"grid[{name!r}] is empty: list at least one value.")
        values = [_plain(value) for value in values]
        numbers = all(isinstance(value, int | float | np.ndarray) and not isinstance(value, bool) for value in values)
        array: Any = np.asarray(values) if numbers and len({np.shape(value) for value in values}) == 1 else np.empty(0, object)
        array = array.astype(jnp.result_type(float)) if array.dtype.kind == "f" else None
        axis = Axis(name, tuple(values), array)
        scalars = [value for value in values if isinstance(value, bool | int | float | str)]
        if len(set(axis.labels)) < len(values) or len(set(scalars)) < len(scalars):
            raise ValueError(f"grid[{name!r}] has a value twice: {axis.labels}.")
        axes.append(axis)
    needed = [p.name for p in parameters[2:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for name in needed:
        if name not in grid:
            raise ValueError(f"grid has no {name!r}, which train needs: give it a value, or a default.")
    return tuple(axes)


def _plain(value: Any) -> Any:
    """A number as Python has it, in as few digits as its precision takes; an array as NumPy has it."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value)
        value = float(str(value)) if value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.floating) else value
        return value.item() if np.ndim(value) == 0 and isinstance(value, np.ndarray) else value
    return value


def _pairs(pairs: Any, n_seeds: int) -> np.ndarray | None:
    """The listed pairs `(n_pairs, 2)`, None for all ordered ones."""
    if isinstance(pairs, str):
        if pairs not in ("ordered", "unordered"):
            raise ValueError(f"pairs takes 'ordered', 'unordered' or a list of (a, b), got {pairs!r}.")
        if n_seeds < 2:
            raise ValueError(f"keys must hold at least 2 seeds, to have a pair to compare, got {n_seeds}.")
        return None if pairs == "ordered" else np.stack(np.triu_indices(n_seeds, 1), axis=1)
    try:
        array = np.asarray(pairs)
    except ValueError:  # ragged
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(f"pairs must list (a, b) of seeds, at least one, got shape {array.shape} of {array.dtype}.")
    if array.min() < 0 or array.max() >= n_seeds:
        raise ValueError(f"pairs must hold seeds from 0 to {n_seeds - 1}, got {array.min()} to {array.max()}.")
    return array


def _warn(failed: Any) -> None:
    """Names the models with NaN or infinity."""
    if not failed:
        return
    seeds: dict[str, list[str]] = {}
    for point in failed:
        settings = ", ".join(f"{name}={value}" for name, value in point.items() if name not in ("seed", "leaves"))
        seeds.setdefault(settings, []).append(str(point["seed"]))
    named = [f"{settings or 'the sweep'} (seed {', '.join(names)})" for settings, names in seeds.items()]
    leaves = sorted({leaf for point in failed for leaf in point["leaves"]})
    more = f" and at {len(named) - 5} more points" if len(named) > 5 else ""
    warnings.warn(
        f"NaN or infinity in {', '.join(leaves)} at {'; '.join(named[:5])}{more}. All others are unaffected.",
        RuntimeWarning,
        stacklevel=3,
    )

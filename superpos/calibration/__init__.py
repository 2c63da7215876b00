"""Which instrument can tell what two systems share, and why it moved: instruments judged on worlds whose truth is known.

>>> import superpos as sp
>>> table = sp.calibration.published()
>>> print(sp.calibration.leaderboard(table, 1).splitlines()[0].split()[:2])
['instrument', 'disorder']

Your own enters in five lines, and its row stands among the others:

    def mine(source, target):                # (n, units) each
        return number

    table = sp.calibration.run({"mine": mine})
    print(sp.calibration.leaderboard(table))

`judge(table)` gives a column a question, `leaderboard(table)` the rows as text; `published()` is the table of the default
instruments, into which `run` puts others where worlds, seeds and key are the published ones.
"""

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from superpos.calibration.grid import N_SAMPLES, Made, Spec, arranged, make, rows, worlds
from superpos.calibration.io import VERSION, load, published, save
from superpos.calibration.judge import CAUSES as CAUSES
from superpos.calibration.judge import PLAIN, calibrated, gains, judge, ranked
from superpos.calibration.suite import Suite, crosscoder, rbf_cka
from superpos.sweeps import sweep

__all__ = [
    "CAUSES",
    "CHOSEN",
    "HELD_OUT",
    "VERSION",
    "Made",
    "Spec",
    "Suite",
    "arranged",
    "beside",
    "calibrated",
    "crosscoder",
    "dataset",
    "gains",
    "judge",
    "leaderboard",
    "load",
    "make",
    "published",
    "ranked",
    "rbf_cka",
    "rows",
    "run",
    "save",
    "worlds",
]

CHOSEN, HELD_OUT = 0, 1  # the seeds of worlds that anything is chosen or fitted on, and of those that are judged


def run(
    instruments: Suite | Callable[..., float] | Mapping[str, Callable[..., float]] | None = None,
    specs: Sequence[Spec] | None = None,
    key: Key[Array, ""] | None = None,
    *,
    seeds: Sequence[int] = (CHOSEN, HELD_OUT),
    n: int = N_SAMPLES,
    workdir: str | os.PathLike | None = None,
    chunk: int = 1,
) -> Any:
    """Scores of instruments on worlds.

    Args:
        instruments: a `Suite`, by default that of all that the package has, which runs as one program a shape; or functions
            by name, `function(source, target) -> number` on arrays `(n, units)`, one of which may take `train=`, a pair of
            arrays of other samples of both systems, to fit on. One that raises scores NaN, and costs its points.
        specs: the worlds, by default `worlds()`.
        key: of all worlds; by default `jax.random.key(0)`.
        seeds: the last is that of the worlds that are judged. Of the others only plain worlds are made: maps from scores to
            overlaps are learned on them.
        n: samples that functions see; a suite has its own number.
        workdir: keeps what a suite finished, so that it goes on from there.
        chunk: worlds in flight at once.

    Returns:
        An xarray Dataset, the worlds that are judged last: `score` and `null`, with one side's samples rolled, `(instrument,
        world)`; `truth_variance`, `truth_count`, `truth_kurtosis`; what is known of the worlds; `distance` of instruments; for
        functions `failure`, what was raised first. Functions on the default worlds stand among the published instruments, if
        these are published for them.

    Raises:
        ValueError: no instrument, no world, or settings that worlds do not have.
    """
    instruments = Suite() if instruments is None else instruments
    default = specs is None and key is None and tuple(seeds) == (CHOSEN, HELD_OUT)
    specs = worlds() if specs is None else list(specs)
    if not specs or not seeds:
        raise ValueError("specs and seeds must hold at least one each, got none.")
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0) if key is None else key))(jnp.asarray(seeds))
    toys = any(spec.settings.get("arrangement") == "toy" for spec in specs)
    given = {}
    for units in dict.fromkeys(spec.units for spec in specs):
        both = [arranged(own, units, learned=toys) for own in keys]
        given[units] = [jnp.stack(side) for side in zip(*both, strict=True)]
    lessons = [spec for spec in specs if spec.cause in PLAIN]
    parts = [*([lessons] * (len(seeds) - 1)), specs]
    # A row and the place of its seed make a world.
    table = np.concatenate([np.pad(rows(part), ((0, 0), (0, 1)), constant_values=i) for i, part in enumerate(parts)])
    told = [seed for seed, part in zip(seeds, parts, strict=True) for _ in part]
    specs = [spec for part in parts for spec in part]

    def made(row: Array, shared: Any, n: int, n_folds: int = 2) -> Made:
        place = row[-1].astype(int)
        return make(row[:-1], shared["keys"][place], [side[place] for side in shared["given"]], n, n_folds)

    if isinstance(instruments, Suite):
        suite = instruments

        def measure(row: Array, shared: Any) -> dict[str, Array]:
            world = made(row, shared, suite.n, suite.n_folds)
            found = suite.measure(world, jax.random.fold_in(shared["keys"][row[-1].astype(int)], 1))
            return {"scores": found, "truth": jnp.stack(world.pair.truth())}

        scores, truths = np.full((2, len(suite.names()), len(specs)), np.nan), np.full((3, len(specs)), np.nan)
        for units, sides in given.items():
            index = [i for i, spec in enumerate(specs) if spec.units == units]
            kept = None if workdir is None else Path(workdir) / "x".join(map(str, units))
            shared = {"keys": keys, "given": sides}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "NaN or infinity")  # which is what is asked
                states = sweep(measure, {}, table[index], data_key=shared, workdir=kept, chunk=chunk).states
            scores[:, :, index] = np.moveaxis(states["scores"].values, 0, -1)
            truths[:, index] = states["truth"].values.T
        return dataset(suite.names(), suite.distances(), specs, scores, truths, suite.n, told)
    named = {getattr(instruments, "__name__", "mine"): instruments} if callable(instruments) else dict(instruments)
    if not named:
        raise ValueError("instruments must hold at least one function, got none.")
    programs = {
        units: jax.jit(lambda row, sides=sides: made(row, {"keys": keys, "given": sides}, n)) for units, sides in given.items()
    }
    makers = [functools.partial(programs[spec.units], row) for spec, row in zip(specs, table, strict=True)]
    scores, truths, failures = _of_functions(named, specs, makers)
    own = dataset(list(named), [False] * len(named), specs, scores, truths, n, told)
    own = own.assign(failure=("instrument", list(failures.values())))
    return beside(known, own) if default and _same_worlds(known := published(), own) else own


def beside(known: Any, found: Any) -> Any:
    """Two tables of the same worlds as one; what is known of the worlds is that of the first.

    Raises:
        ValueError: other worlds, or an instrument that is in both.
    """
    import xarray

    if not _same_worlds(known, found):
        raise ValueError("tables must be of the same worlds, which are not those of the published one: give specs.")
    if twice := set(known.instrument.values.tolist()) & set(found.instrument.values.tolist()):
        raise ValueError(f"tables have the instrument {sorted(twice)[0]!r} twice: name yours otherwise.")
    both = [known, found.drop_vars("failure", errors="ignore")]
    return xarray.concat(both, "instrument", data_vars="minimal", coords="minimal", compat="override", join="override")


def _same_worlds(*tables: Any) -> bool:
    first, second = ([table[name].values.tolist() for name in ("family", "overlap", "seed")] for table in tables)
    return first == second


def _of_functions(functions: Mapping[str, Any], specs: Any, makers: Any) -> Any:
    """Scores `(2, functions, worlds)`, truths `(3, worlds)` and what each function raised first."""
    scores = np.full((2, len(functions), len(specs)), np.nan)
    truths = np.full((3, len(specs)), np.nan)
    failures = dict.fromkeys(functions, "")
    for i, maker in enumerate(makers):
        made = jax.device_get(maker())
        truths[:, i] = jax.device_get(made.pair.truth())
        scored = np.asarray(made.folds) >= 0
        count = max(int(np.sum(scored)), 1)
        for j, (name, function) in enumerate(functions.items()):
            train = {}
            if "train" in inspect.signature(function).parameters:
                train = {"train": (np.asarray(made.x_train)[:count], np.asarray(made.y_train)[:count])}
            for side, target in enumerate((made.y, made.rolled)):
                try:
                    scores[side, j, i] = float(function(np.asarray(made.x)[scored], np.asarray(target)[scored], **train))
                except Exception as error:
                    failures[name] = failures[name] or f"{specs[i].family}: {type(error).__name__}: {error}"
    return scores, truths, failures


def dataset(
    names: Sequence[str],
    distances: Sequence[bool],
    specs: Sequence[Spec],
    scores: Any,
    truths: Any,
    n: int = N_SAMPLES,
    seeds: Sequence[int] | None = None,
) -> Any:
    """A table as `run` returns it, of scores that were found elsewhere.

    Args:
        names: of the instruments.
        distances: whether lower is more alike.
        specs: the worlds.
        scores: `(2, instruments, worlds)`, of the worlds and of rolled samples.
        truths: `(3, worlds)`, ρ by variance, count and kurtosis.
        n: samples of worlds that do not say how many they have.
        seeds: of each world; by default the one that is judged.
    """
    import xarray

    known = {
        "family": [spec.family for spec in specs],
        "cause": [spec.cause for spec in specs],
        "of": [spec.of for spec in specs],
        "units": ["x".join(map(str, spec.units)) for spec in specs],
        "overlap": [float(spec.settings["overlap"]) for spec in specs],
        "seed": [HELD_OUT] * len(specs) if seeds is None else list(seeds),
        "samples": [min(n, int(spec.settings.get("samples", n))) for spec in specs],
    }
    return xarray.Dataset(
        {
            "score": (("instrument", "world"), scores[0]),
            "null": (("instrument", "world"), scores[1]),
            "distance": ("instrument", list(distances)),
            **{f"truth_{kind}": ("world", values) for kind, values in zip(_KINDS, truths, strict=True)},
            **{name: ("world", values) for name, values in known.items()},
        },
        {"instrument": list(names)},
    )


_KINDS = ("variance", "count", "kurtosis")


def leaderboard(table: Any, first: int | None = None) -> str:
    """The rows of a table as text, those that put worlds in order best first.

    Args:
        table: of `run`.
        first: so many rows at most.
    """
    from tabulate import tabulate

    judged = judge(table)
    shown = ("disorder", "disorder_across", "calibrated", "rms", "bias", "at_zero", "false_alarms", "moved", "undefined")
    order = ranked(judged)[:first]
    listed = [[str(judged.instrument.values[i]), *(float(judged[name][i]) for name in shown)] for i in order]
    return tabulate(listed, headers=["instrument", *(name.replace("_", " ") for name in shown)], floatfmt=".2f")

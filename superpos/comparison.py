"""Every comparison of what views read on two sides: `score` and `score_batches` are pure, `compare` is for arrays and files."""

import dataclasses
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import alignment, stats, training
from superpos import folds as folds_lib
from superpos import metrics as metrics_lib
from superpos import moments as moments_lib
from superpos.activations import POOLS, Side, divide
from superpos.alignment import Metrics
from superpos.moments import Moments
from superpos.results import did_you_mean
from superpos.sweeps import sweep
from superpos.views import ICA, PCA, SAE, Neuron, Rows, Untrained, View, fit_all, params_of, shared
from superpos.views.base import name_of

Units = Mapping[str, Float[Array, "n _"]]  # what each view reads in the same samples


def ends(comparison: str) -> tuple[str, str]:
    """The view of the source and that of the target of a comparison "source->target".

    Raises:
        ValueError: not two names with an arrow between them.

    >>> ends("sae->neuron")
    ('sae', 'neuron')
    """
    source, arrow, target = comparison.partition("->")
    if not (source and arrow and target) or "->" in target:
        raise ValueError(f"A comparison must be two views with an arrow between them, such as sae->neuron, got {comparison!r}.")
    return source, target


def score_batches(
    encode: Callable[[Array], tuple[Units, Units]],
    n_batches: int,
    comparisons: Sequence[str],
    metrics: Metrics = alignment.DEFAULT,
    n_folds: int = 5,
) -> tuple[dict[str, Float[Array, " comparisons"]], Float[Array, ""]]:
    """Scores every comparison over samples that are made batch by batch, for programs that hold no sample longer than needed.

    Views of one side may have any number of units: all comparisons are padded to one shape and compiled once.

    Args:
        encode: `encode(i)` gives batch i as its views read it, on both sides: `{view: (n, units)}` each. Batches are
            independent samples; batch i is of fold i mod n_folds.
        n_batches: static; a multiple of n_folds makes folds equally large.
        comparisons: such as "sae->neuron".
        metrics: those that read moments.
        n_folds: static.

    Returns:
        The mean score of each comparison by metric, and the largest gap that an exact transport problem left.
    """
    sides = [ends(comparison) for comparison in comparisons]
    resolved = metrics_lib.resolve(metrics)
    moments, layouts = batch_moments(encode, n_batches, n_folds, alignment.reads(resolved))
    columns = [[layout.columns(name) for name, layout in zip(pair, layouts, strict=True)] for pair in sides]
    widths = [max(len(pair[end]) for pair in columns) for end in range(2)]
    padded = [np.array([layout.padded(pair[end], widths[end]) for pair in columns]) for end, layout in enumerate(layouts)]

    def compare(units: tuple[Array, Array]) -> tuple[dict[str, Array], Array]:
        scores = alignment.score(moments_lib.select(moments, *units), resolved)
        gaps = [jnp.max(score.details["gap"]) for score in scores.values() if "gap" in score.details]
        return {metric: score.mean for metric, score in scores.items()}, jnp.max(jnp.stack([jnp.zeros(()), *gaps]))

    # One after the other: compiled once, and memory stays small.
    scores, gaps = lax.map(compare, tuple(map(jnp.asarray, padded)))
    return scores, jnp.max(gaps)


class Layout:
    """Which columns belong to which view, where what several views read stands side by side."""

    def __init__(self, widths: Mapping[str, int]):
        self.first, self.widths, self.total = {}, dict(widths), 0
        for name, width in widths.items():
            self.first[name] = self.total
            self.total += width

    def columns(self, name: str) -> np.ndarray:
        """The columns of a view."""
        return np.arange(self.first[name], self.first[name] + self.widths[name])

    def padded(self, columns: np.ndarray, width: int) -> np.ndarray:
        """With columns that are not there, which `moments.select` takes as silent units."""
        return np.concatenate([columns, np.full(width - len(columns), self.total)])


def batch_moments(
    encode: Callable[[Array], tuple[Units, Units]], n_batches: int, n_folds: int, reads: frozenset[str]
) -> tuple[Moments, tuple[Layout, Layout]]:
    """Moments of all that views read on both sides, side by side, over batches that are made one after the other.

    Args:
        encode, n_batches, n_folds: as in `score_batches`.
        reads: the sums to keep, see `sp.reads`.

    Returns:
        The moments, and where in them each view stands on either side.
    """
    shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct((), jnp.int32))
    source, target = (Layout({name: units.shape[1] for name, units in side.items()}) for side in shapes)
    tick = training.loop(n_batches)

    def add(moments: Moments, i: Array) -> tuple[Moments, None]:
        x, y = (
            jnp.concatenate([side[name] for name in layout.widths], axis=1)
            for side, layout in zip(encode(i), (source, target), strict=True)
        )
        tick(i)
        return moments_lib.update(moments, x, y, i % n_folds), None

    empty = moments_lib.init(source.total, target.total, n_folds, reads)
    return lax.scan(add, empty, jnp.arange(n_batches))[0], (source, target)


# The host half: sides of arrays and files, views that are fitted once a side, every comparison of every pair.

DEFAULT_COMPARISONS = ("neuron->neuron", "signed_pca->signed_pca", "ica->ica", "random_sae->random_sae", "sae->sae")


class Plan:
    """All that a comparison is going to do, checked: nothing has been trained yet. `run` does it.

    Attributes:
        divided: the sides, paired and divided.
        pairs: by label, the pairs of sides, source first.
        comparisons: such as "sae->neuron".
        metrics: resolved.
        missing: what cannot be compared, and why: `label`, `comparison`, `reason`.

    See `compare_sides` for the arguments and errors.
    """

    def __init__(
        self,
        sides: Mapping[str, Side],
        pairs: Mapping[str, Sequence[tuple[str, str]]] | Sequence[tuple[str, str]],
        views: Mapping[str, View] | None = None,
        comparisons: Sequence[str] | None = None,
        *,
        metrics: Metrics = alignment.DEFAULT,
        folds: int | ArrayLike | None = 5,
        groups: ArrayLike | None = None,
        split: float = 0.5,
        pool: str | None = None,
        weights: str = "uniform",
        n_seeds: int = 1,
        n_blocks: int | None = 10,
        key: Key[Array, ""] | None = None,
    ):
        self.metrics = metrics_lib.resolve(metrics)
        views = default_views() if views is None else dict(views)
        self.comparisons = tuple(DEFAULT_COMPARISONS if comparisons is None else comparisons)
        self.pairs = {
            label: [tuple(pair) for pair in listed]
            for label, listed in (pairs if isinstance(pairs, Mapping) else {f"{a}->{b}": [(a, b)] for a, b in pairs}).items()
        }
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be {', '.join(WEIGHTS)}, got {weights!r}{did_you_mean(weights, WEIGHTS)}.")
        for name, value, least in (("n_seeds", n_seeds, 1), ("n_blocks", n_blocks, 2)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        self.weights, self.pool, self.n_seeds, self.n_blocks = weights, pool, n_seeds, n_blocks
        self.sides = dict(sides)
        self._check_names(views)
        views_of = {name: _needed({**views, **side.views}, self._read_of(name)) for name, side in self.sides.items()}
        fitted = [name for name, of in views_of.items() if any(getattr(view, "fits", True) for view in shared(of).values())]
        divide_key, self.fit_key, self.block_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
        listed = [pair for of_label in self.pairs.values() for pair in of_label]
        self.divided = divide(
            self.sides, fitted=fitted, split=split, folds=folds, groups=groups, pool=pool, pairs=listed, key=divide_key
        )
        self._check_samples()
        self.stacks = self._stack(views_of)
        self.families = [
            (i, root, family) for i, stack in enumerate(self.stacks) for root, family in _families(stack.views).items()
        ]
        for i, _, family in self.families:  # whatever does not fit shows here, before anything is trained
            stack = self.stacks[i]
            jax.eval_shape(self._train(family), np.zeros(3, np.uint32), self._data(stack))
        self.missing = [
            {"pair": label, "comparison": comparison, "reason": reason}
            for label, listed in self.pairs.items()
            for comparison in self.comparisons
            if (reason := self._lacks(listed, comparison, views))
        ]

    # What can be refused.

    def _check_names(self, views: Mapping[str, View]) -> None:
        if not self.pairs or not all(self.pairs.values()):
            raise ValueError("pairs must name at least one pair of sides.")
        for pair in (pair for listed in self.pairs.values() for pair in listed):
            for name in pair:
                if name not in self.sides:
                    hint = did_you_mean(name, self.sides)
                    raise ValueError(f"pairs must be of the sides {', '.join(self.sides)}, got {name!r}{hint}.")
        known = {**views, **{name: view for side in self.sides.values() for name, view in side.views.items()}}
        for comparison in self.comparisons:
            for name in ends(comparison):
                if name not in known:
                    raise ValueError(
                        f"comparisons must be of the views {', '.join(known)}, got {name!r} in {comparison!r}"
                        f"{did_you_mean(name, known)}."
                    )
        if not self.comparisons:
            raise ValueError("comparisons must name at least one, such as neuron->neuron.")
        if len(set(self.comparisons)) < len(self.comparisons):
            raise ValueError(f"comparisons must each be there once, got {', '.join(self.comparisons)}.")

    def _read_of(self, side: str) -> list[str]:
        """The views that are read of a side, in the order of the comparisons."""
        names: dict[str, None] = {}
        for source, target in (pair for listed in self.pairs.values() for pair in listed):
            for comparison in self.comparisons:
                of_source, of_target = ends(comparison)
                names |= {of_source: None} if source == side else {}
                names |= {of_target: None} if target == side else {}
        return list(names)

    def _check_samples(self) -> None:
        divided = self.divided
        if self.n_blocks is not None:
            folds_lib.deal(divided.folds, divided.n_folds, self.n_blocks, self.block_key, divided.groups)
        for name, array in divided.scored.items():
            pooled = np.asarray(self._pooled(array))
            try:
                alignment.check(pooled, pooled, self._of_samples(divided.folds, pooled), divided.n_folds, None, None)
            except ValueError as error:
                raise ValueError(str(error).replace("source", name, 1)) from error

    def _lacks(self, listed: Sequence[tuple[str, str]], comparison: str, views: Mapping[str, View]) -> str | None:
        """Why a comparison does not exist for some pairs."""
        for pair in listed:
            for side, name in zip(pair, ends(comparison), strict=True):
                if name not in views and name not in self.sides[side].views:
                    return f"{side} has no view {name}"
        return None

    # How it is divided into programs.

    def _stack(self, views_of: Mapping[str, Mapping[str, View]]) -> "list[_Stack]":
        """Sides of one shape that read the same views, which are then fitted and scored by the same programs."""
        stacks: list[_Stack] = []
        for name, of in views_of.items():
            scored, training = self.divided.scored[name], self.divided.training[name]
            n_units = scored.shape[-1]
            prepared = {}
            for view_name, view in of.items():
                if getattr(view, "truth", view) is None and name in self.divided.truth:
                    view = dataclasses.replace(view, truth=Rows(self.divided.truth[name]))  # type: ignore[type-var]
                try:
                    view.check(n_units, len(training) or None)
                    prepared[view_name] = view.prepare(Rows(training if len(training) else _flat(scored)))
                except ValueError as error:
                    raise ValueError(f"{view_name} of {name}: {error}") from error
            for stack in stacks:
                alike = (stack.scored[0].shape, stack.training[0].shape) == (scored.shape, training.shape)
                if alike and stack.views == prepared:
                    break
            else:
                stack = _Stack([], prepared, [], [])
                stacks.append(stack)
            stack.names.append(name)
            stack.scored.append(scored)
            stack.training.append(training)
        return stacks

    def _data(self, stack: "_Stack") -> dict[str, np.ndarray]:
        return {"scored": np.stack(stack.scored), "training": np.stack(stack.training)}

    def _train(self, family: Mapping[str, View]) -> Callable[..., Any]:
        """`train(row, data)` for `sp.sweep`: fits a family of views; a row is a side, a number that stands for it, and a seed."""

        def train(row: Array, data: Mapping[str, Array]) -> dict[str, Any]:
            key = jax.random.fold_in(jax.random.fold_in(self.fit_key, row[1]), row[2])
            scored, training = (data[part][row[0]] for part in ("scored", "training"))
            scored = _flat(scored)
            draw = Rows(training if len(training) else scored)
            fits = fit_all(family, key, draw)
            described = {name: family[name].describe(params_of(family, fits, name), scored) for name in family}
            return {"fits": fits, "described": described}

        return train

    def _of_samples(self, of_images: np.ndarray, units: Any) -> np.ndarray:
        """What each image has, for each sample of it."""
        return np.repeat(of_images, len(units) // len(of_images))

    def _pooled(self, units: Any) -> Any:
        """`(images, positions, k)` as samples: pooled, or each position one."""
        return _flat(units) if self.pool is None else POOLS[self.pool](units)

    def run(
        self,
        workdir: str | os.PathLike | None = None,
        *,
        chunk: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        progress: bool | None = None,
    ) -> "Comparison":
        """Fits every view of every side once, then scores every comparison of every pair.

        Args:
            workdir: a folder that keeps what is finished; a run that was killed goes on from there. See `sp.sweep`.
            chunk, devices, progress: as in `sp.sweep`.
        """
        started = time.perf_counter()
        options: dict[str, Any] = {"chunk": chunk, "devices": devices, "progress": progress}
        folder = None if workdir is None else Path(workdir)
        fits: list[dict[str, _Fits]] = [{} for _ in self.stacks]
        for number, (i, root, family) in enumerate(self.families):
            stack = self.stacks[i]
            n_seeds = self.n_seeds if any(view.random for view in family.values()) else 1
            rows = np.array(
                [[at, zlib.crc32(name.encode()), seed] for at, name in enumerate(stack.names) for seed in range(n_seeds)],
                np.uint32,
            )
            where = None if folder is None else folder / f"{number}_{_plain(root)}"
            swept = sweep(self._train(family), {}, rows, data_key=self._data(stack), workdir=where, **options).load()
            fits[i][root] = _Fits(family, swept["fits"], swept["described"], n_seeds)
        fitted = time.perf_counter()
        cells = self._score(fits, None if folder is None else folder / "scores", options)
        seconds = {"views": fitted - started, "scores": time.perf_counter() - fitted}
        return Comparison(self, fits, cells, seconds)

    def _score(self, fits: "list[dict[str, _Fits]]", folder: Path | None, options: dict[str, Any]) -> dict[Any, Any]:
        """Scores by label, pair and comparison, leaves (seeds, ...)."""
        missing = {(row["pair"], row["comparison"]) for row in self.missing}
        place = {name: (i, at) for i, stack in enumerate(self.stacks) for at, name in enumerate(stack.names)}
        programs: dict[Any, list[Any]] = {}
        for label, listed in self.pairs.items():
            for comparison in self.comparisons:
                if (label, comparison) in missing:
                    continue
                for pair in listed:
                    readers = [
                        self._reader(*place[side], name, fits) for side, name in zip(pair, ends(comparison), strict=True)
                    ]
                    n_seeds = max(reader.n_seeds for reader in readers)
                    for seed in range(n_seeds):
                        row = [(reader.at, min(seed, reader.n_seeds - 1), reader.name) for reader in readers]
                        programs.setdefault(tuple(reader.program for reader in readers), []).append(
                            ((label, pair, comparison, seed), row)
                        )
        cells: dict[Any, list[Any]] = {}
        for number, (program, entries) in enumerate(programs.items()):
            tables, rows = [], []
            for end, (i, _) in enumerate(program):
                names = list(dict.fromkeys(row[end][2] for _, row in entries))
                table, first = self._table(i, names, fits)
                tables.append(table)
                rows.append([[row[end][0], first[row[end][2]](row[end][0], row[end][1])] for _, row in entries])
            views = [self.stacks[i].views[next(row[end][2] for _, row in entries)] for end, (i, _) in enumerate(program)]
            data = [
                {"scored": np.stack(self.stacks[i].scored), "weights": table}
                for (i, _), table in zip(program, tables, strict=True)
            ]
            where = None if folder is None else folder / str(number)
            swept = sweep(
                self._compare(views), {}, np.concatenate(rows, axis=1).astype(np.int32), data_key=data, workdir=where, **options
            ).load()
            for j, (cell, _) in enumerate(entries):
                cells.setdefault(cell[:3], []).append(jax.tree.map(lambda leaf, j=j: leaf[j], swept))
        return {cell: jax.tree.map(lambda *leaves: np.stack(leaves), *seeds) for cell, seeds in cells.items()}

    def _reader(self, i: int, at: int, name: str, fits: "list[dict[str, _Fits]]") -> "_Reader":
        """How a view of a side is read: which program, and of how many seeds."""
        stack = self.stacks[i]
        family = next(family for family in fits[i].values() if name in family.views)
        view = stack.views[name]
        weights = jax.eval_shape(lambda row: view.weights(family.params(name, row)), np.int32(0))
        x = jax.ShapeDtypeStruct((1, stack.scored[0].shape[-1]), jnp.float32)
        traced = jax.make_jaxpr(view.apply)(weights, x)
        # What a view closes over is not told in the program's text.
        program = str(traced) if not traced.consts else f"{id(view)}"
        return _Reader(at, name, family.n_seeds, (i, program))

    def _table(self, i: int, names: Sequence[str], fits: "list[dict[str, _Fits]]") -> tuple[Any, dict[str, Any]]:
        """Weights of several views that one program reads, one after the other, and where those of each side and seed are."""
        parts, first, begin = [], {}, 0
        for name in names:
            family = next(family for family in fits[i].values() if name in family.views)
            rows = len(self.stacks[i].names) * family.n_seeds
            view = self.stacks[i].views[name]
            parts.append([view.weights(family.params(name, row)) for row in range(rows)])
            first[name] = lambda at, seed, begin=begin, n=family.n_seeds: begin + at * n + seed
            begin += rows
        flat = [weights for part in parts for weights in part]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *flat), first

    def _compare(self, views: Sequence[View]) -> Callable[..., Any]:
        """`compare(row, data)` for `sp.sweep`: a row is side and weights of the source, then of the target."""

        def compare(row: Array, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            sides = []
            for end, (view, of_side) in enumerate(zip(views, data, strict=True)):
                x = of_side["scored"][row[2 * end]]
                weights = jax.tree.map(lambda leaf, end=end: leaf[row[2 * end + 1]], of_side["weights"])
                units = view.apply(weights, _flat(x))
                sides.append(self._pooled(units.reshape(*x.shape[:2], units.shape[-1])))
            return score(
                *sides,
                self.metrics,
                self._of_samples(self.divided.folds, sides[0]),
                self.divided.n_folds,
                groups=self._of_samples(self.divided.groups, sides[0]),
                n_blocks=self.n_blocks,
                weights=self.weights,
                key=self.block_key,
            )

        return compare


WEIGHTS: dict[str, Callable[[Array], Array] | None] = {
    "uniform": None,
    "variance": lambda units: jnp.var(units, axis=0),
    "density": lambda units: jnp.mean(units != 0, axis=0),
}


def score(
    x: Float[Array, "n source"],
    y: Float[Array, "n target"],
    metrics: Metrics = alignment.DEFAULT,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    *,
    groups: ArrayLike | None = None,
    n_blocks: int | None = 10,
    weights: str = "uniform",
    key: Key[Array, ""] | None = None,
) -> dict[str, dict[str, Array]]:
    """Scores one pair of representations, with what an interval over samples needs. Pure: `jit` and `vmap` it.

    Args:
        x, y: what views read in the same samples.
        metrics, folds, n_folds, groups: as in `sp.align`.
        n_blocks: parts of a fold that are left out in turn; None: no replicates.
        weights: how target units are averaged: "uniform"; by "variance"; or by "density", the share of samples in which a unit
            is not 0. Only metrics with a score for each unit are weighted.
        key: deals samples to blocks.

    Returns:
        By metric: `mean` (), `folds` (n_folds,), `units` (n_folds, target) with 0 and `live` false where a unit is masked, and
        `replicates` (n_folds, n_blocks), the scores without each block, maps fixed. Those that a metric does not have are left
        out.
    """
    measure = WEIGHTS[weights]
    given = None if measure is None else measure(y)
    if n_blocks is None and given is None:
        scored: Any = alignment.align(x, y, metrics, folds, n_folds, groups=groups)
    else:
        scored = stats.jackknife(x, y, metrics, folds, n_folds, key=key, groups=groups, n_blocks=n_blocks or 2, weights=given)
    scores: dict[str, dict[str, Array]] = {}
    for metric, found in scored.items():
        scores[metric] = {"mean": found.mean, "folds": found.folds}
        if found.units is not None:
            live = ~jnp.isnan(found.units)
            scores[metric] |= {"units": jnp.where(live, found.units, 0), "live": live}
        if n_blocks is not None:
            scores[metric]["replicates"] = found.replicates
    return scores


class _Stack(NamedTuple):
    """Sides that share programs."""

    names: list[str]
    views: dict[str, View]
    scored: list[np.ndarray]
    training: list[np.ndarray]


class _Fits(NamedTuple):
    """What a family of views learned: leaves (sides x seeds, ...)."""

    views: Mapping[str, View]
    fits: dict[str, Any]
    described: dict[str, dict[str, np.ndarray]]
    n_seeds: int

    def params(self, name: str, row: Any) -> Any:
        """The params of a view for one side and seed."""
        return params_of(self.views, jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], self.fits), name)


class _Reader(NamedTuple):
    at: int
    name: str
    n_seeds: int
    program: tuple[int, str]


def _needed(views: Mapping[str, View], names: Sequence[str]) -> dict[str, View]:
    """The views that are read, and those that they are of."""
    wanted = {name: views[name] for name in names if name in views}
    for name, view in list(views.items()):
        if any(view is other.of or view == other.of for other in shared(wanted).values()):
            wanted.setdefault(name, view)
    return {name: view for name, view in views.items() if name in wanted}


def _families(views: Mapping[str, View]) -> dict[str, dict[str, View]]:
    """Views by the root whose fit they share."""
    order = shared(views)
    families: dict[str, dict[str, View]] = {}
    roots: dict[str, str] = {}
    for name, view in order.items():
        base = None if view.of is None else name_of(order, view.of)
        roots[name] = name if base is None else roots[base]
        families.setdefault(roots[name], {})[name] = view
    return families


def _flat(array: Any) -> Any:
    return array.reshape(-1, array.shape[-1])


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)


@dataclasses.dataclass(eq=False, repr=False)
class Comparison:
    """What a comparison found: every score, what intervals over seeds, samples, units and sides need, and what is missing.

    Attributes:
        plan: what was asked for.
        fits: what the views learned.
        cells: by label, pair and comparison, by metric: `mean` (seeds,), `folds` (seeds, folds), `units` and `live`
            (seeds, folds, units), `replicates` (seeds, folds, blocks); see `score`.
        seconds: spent on `views` and `scores`, compiling counted in.
    """

    plan: Plan
    fits: list[dict[str, _Fits]]
    cells: dict[tuple[str, tuple[str, str], str], dict[str, dict[str, np.ndarray]]]
    seconds: dict[str, float]

    @property
    def n_scored(self) -> int:
        """Samples that are scored: images, or positions of them where these are not pooled."""
        scored = next(iter(self.plan.divided.scored.values()))
        return len(scored) * (1 if self.plan.pool else scored.shape[1])

    def refuse_missing(self) -> None:
        """Raises a ValueError where anything that was asked for has no score."""
        for row in self.missing:
            raise ValueError(f"{row['comparison']} of {row['pair']} has no score: {row['reason']}.")

    @property
    def missing(self) -> list[dict[str, str]]:
        """What was not compared, or came to no score, and why: a row each."""
        silent = [
            {"pair": label, "comparison": comparison, "reason": f"no live unit on one side of {' -> '.join(pair)}"}
            for (label, pair, comparison), metrics in self.cells.items()
            if any(np.isnan(scores["mean"]).any() for scores in metrics.values())
        ]
        return [*self.plan.missing, *silent]

    def summary(self, over: str | None = None) -> list[dict[str, Any]]:
        """A row for each label, metric and comparison: `mean`, `std`, `ci95` and what both are over.

        Args:
            over: "sides": all pairs of a label together, the sides being the sample; "seeds" of views; "samples", for the views
                and maps at hand; or "units" of the target. By default "sides" where a label has several pairs, else "samples"
                where there are blocks, else "seeds".

        Raises:
            ValueError: an interval that the comparison does not have the numbers for.
        """
        rows = []
        for label, listed in self.plan.pairs.items():
            for metric in self.plan.metrics:
                for comparison in self.plan.comparisons:
                    cells = [self.cells.get((label, pair, comparison)) for pair in listed]
                    if all(cell is not None for cell in cells):
                        scores = [cell[metric.name] for cell in cells if cell is not None]
                        row = {"pair": label, "metric": metric.name, "comparison": comparison}
                        rows.append({**row, **self._interval(listed, scores, over)})
        return rows

    def differences(self, pairs: Sequence[tuple[str, str]] | None = None, over: str | None = None) -> list[dict[str, Any]]:
        """Differences between comparisons, paired: `difference` names which is subtracted from which.

        Args:
            pairs: of comparisons; by default each but the first less the first.
            over: as in `summary`; over "units" where both have the same target units.
        """
        names = self.plan.comparisons
        wanted = [(name, names[0]) for name in names[1:]] if pairs is None else list(pairs)
        for name in (name for pair in wanted for name in pair):
            if name not in names:
                raise ValueError(f"differences must be of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}.")
        rows = []
        for label, listed in self.plan.pairs.items():
            for metric in self.plan.metrics:
                for a, b in wanted:
                    both = [[self.cells.get((label, pair, name)) for pair in listed] for name in (a, b)]
                    if any(cell is None for side in both for cell in side):
                        continue
                    scores = [_subtract(x[metric.name], y[metric.name]) for x, y in zip(*both, strict=True)]  # type: ignore[index]
                    row = {"pair": label, "metric": metric.name, "difference": f"{a} - {b}"}
                    rows.append({**row, **self._interval(listed, scores, over)})
                    if rows[-1]["over"] == "samples":
                        rows[-1]["p_value"] = stats.paired(_jackknife(scores[0]), _nothing(scores[0]))["p_value"]
        return rows

    def _interval(self, listed: Sequence[tuple[str, str]], scores: Sequence[Any], over: str | None) -> dict[str, Any]:
        over = over or ("sides" if len(listed) > 1 else "samples" if self.plan.n_blocks else "seeds")
        if over not in OVER:
            raise ValueError(f"over must be {', '.join(OVER)}, got {over!r}{did_you_mean(over, OVER)}.")
        if over == "sides":
            names = list(dict.fromkeys(side for pair in listed for side in pair))
            square = np.full((len(names), len(names)), np.nan)
            for (a, b), score in zip(listed, scores, strict=True):
                square[names.index(a), names.index(b)] = score["mean"].mean()
            return {**stats.over_pairs(square), "over": over}
        if len(scores) > 1:
            raise ValueError(f"over must be sides where a label has several pairs of them, got {over!r}.")
        return {**OVER[over](scores[0]), "over": over}

    def describe(self) -> list[dict[str, Any]]:
        """What the views are like on the scored samples: a row for each side and view that tells, mean over seeds."""
        rows = []
        for i, stack in enumerate(self.plan.stacks):
            for family in self.fits[i].values():
                for view, values in family.described.items():
                    for at, side in enumerate(stack.names):
                        mine = {
                            name: leaf.reshape(len(stack.names), family.n_seeds, -1)[at].mean() for name, leaf in values.items()
                        }
                        if mine:
                            rows.append({"side": side, "view": view, **{name: float(value) for name, value in mine.items()}})
        return rows

    def encode(self, side: str, view: str, seed: int = 0, x: ArrayLike | None = None) -> np.ndarray:
        """What a view reads in a side's scored samples, pooled as they were scored: `(samples, k)`.

        Args:
            side, view: names.
            seed: of the view.
            x: samples `(n, units)` to read in place of the scored ones.
        """
        for i, stack in enumerate(self.plan.stacks):
            if side in stack.names and view in stack.views:
                family = next(family for family in self.fits[i].values() if view in family.views)
                at = stack.names.index(side)
                params = family.params(view, at * family.n_seeds + min(seed, family.n_seeds - 1))
                encode = jax.jit(stack.views[view].encode)
                if x is not None:
                    return np.asarray(encode(params, jnp.asarray(x)))
                scored = stack.scored[at]
                units = encode(params, _flat(scored))
                return np.asarray(self.plan._pooled(units.reshape(*scored.shape[:2], units.shape[-1])))
        raise ValueError(f"encode must be given a side and a view that were compared, got {side!r} and {view!r}.")

    @property
    def scores(self) -> Any:
        """All scores as an `xarray.Dataset`: `score` by pair, comparison, metric, seed and fold; `units` and `replicates`.

        What a comparison does not have is NaN: a second seed of neurons, the units of a narrower target, a missing score.
        """
        import xarray as xr

        listed = [(label, pair) for label, pairs in self.plan.pairs.items() for pair in pairs]
        metrics = [metric.name for metric in self.plan.metrics]
        leaves = [scores for cell in self.cells.values() for scores in cell.values()]
        sizes = {
            "seed": max(len(scores["mean"]) for scores in leaves),
            "fold": self.plan.divided.n_folds,
            "unit": max((scores["units"].shape[2] for scores in leaves if "units" in scores), default=0),
            "block": self.plan.n_blocks or 0,
        }
        lead = ("pair", "comparison", "metric", "seed")
        shape = (len(listed), len(self.plan.comparisons), len(metrics), sizes["seed"])
        dims = {"score": ("fold",), "units": ("fold", "unit"), "replicates": ("fold", "block")}
        arrays = {name: np.full((*shape, *(sizes[dim] for dim in own)), np.nan, np.float32) for name, own in dims.items()}
        for (label, pair, comparison), cell in self.cells.items():
            at = listed.index((label, pair)), self.plan.comparisons.index(comparison)
            for metric, scores in cell.items():
                where = (*at, metrics.index(metric), slice(len(scores["mean"])))
                arrays["score"][where] = scores["folds"]
                if "units" in scores:
                    units = np.where(scores["live"], scores["units"], np.nan)
                    arrays["units"][(*where, slice(None), slice(units.shape[2]))] = units
                if "replicates" in scores:
                    arrays["replicates"][where] = scores["replicates"]
        names = [label if len(self.plan.pairs[label]) == 1 else f"{label}: {a}->{b}" for label, (a, b) in listed]
        coordinates = {"pair": names, "comparison": list(self.plan.comparisons), "metric": metrics}
        return xr.Dataset({name: (lead + own, arrays[name]) for name, own in dims.items() if arrays[name].size}, coordinates)

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """The figure: a panel a metric, a bar a comparison, with intervals; written as PNG where there is a path."""
        from superpos import plotting

        return plotting.comparison(self.summary(), path)

    def __repr__(self) -> str:
        rows = [
            f"{row['pair']}  {row['metric']}  {row['comparison']}  {row['mean']:.3f}"
            + (f"  {row['ci95'][0]:.3f} to {row['ci95'][1]:.3f} ({row['over']})" if row["ci95"] else "")
            for row in self.summary()
        ]
        return "\n".join(["Comparison", *rows, *(f"missing: {row['comparison']}, {row['reason']}" for row in self.missing)])


def _jackknife(scores: Mapping[str, np.ndarray]) -> stats.Jackknife:
    """The score of all seeds together."""
    if "replicates" not in scores:
        raise ValueError("over samples needs blocks: compare with n_blocks=10.")
    return stats.Jackknife(scores["mean"].mean(), scores["replicates"].mean(axis=0))


def _nothing(scores: Mapping[str, np.ndarray]) -> stats.Jackknife:
    return stats.Jackknife(jnp.zeros(()), np.zeros(scores["replicates"].shape[1:]))


def _over_samples(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    summary, n = stats.over_samples(_jackknife(scores)), len(scores["mean"])
    std = float(np.std(scores["mean"], ddof=1)) if n > 1 else 0.0
    return {"mean": summary["mean"], "std": std, "ci95": summary["ci95"], "n_seeds": n, "n_pairs": n}


def _over_seeds(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {**stats.over_seeds(scores["mean"]), "n_pairs": len(scores["mean"])}


def _over_units(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if "units" not in scores:
        raise ValueError("over units needs a metric that scores each unit, and the same target units in a difference.")
    units = np.where(scores["live"], scores["units"], np.nan).mean(axis=0)
    return stats.over_units(metrics_lib.Score(jnp.nanmean(units), jnp.nanmean(units, axis=1), units, {}))


OVER: dict[str, Callable[..., dict[str, Any]]] = {
    "sides": stats.over_pairs,
    "samples": _over_samples,
    "seeds": _over_seeds,
    "units": _over_units,
}


def _subtract(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The difference of two scores, seed by seed; one without seeds of its own stands beside each seed of the other."""
    difference = {name: a[name] - b[name] for name in ("mean", "folds", "replicates") if name in a and name in b}
    if "units" in a and "units" in b and a["units"].shape[2] == b["units"].shape[2]:
        difference["units"] = a["units"] - b["units"]
        difference["live"] = a["live"] & b["live"]
    return difference


def default_views(sae: SAE | None = None) -> dict[str, View]:
    """Neurons, an SAE, and what could explain a gain of its latents besides superposition.

    Args:
        sae: whose latents are read; by default `SAE()`. Signed components are as many as its latents, at most two a unit.
    """
    sae = SAE() if sae is None else sae
    return {
        "neuron": Neuron(),
        "sae": sae,
        "random_sae": Untrained(sae),
        "signed_pca": PCA(signed=True, expansion=sae.expansion),
        "ica": ICA(),
    }


def compare_sides(
    sides: Mapping[str, Side],
    pairs: Mapping[str, Sequence[tuple[str, str]]] | Sequence[tuple[str, str]],
    views: Mapping[str, View] | None = None,
    comparisons: Sequence[str] | None = None,
    *,
    metrics: Metrics = alignment.DEFAULT,
    folds: int | ArrayLike | None = 5,
    groups: ArrayLike | None = None,
    split: float = 0.5,
    pool: str | None = None,
    weights: str = "uniform",
    n_seeds: int = 1,
    n_blocks: int | None = 10,
    key: Key[Array, ""] | None = None,
    workdir: str | os.PathLike | None = None,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Comparison:
    """Compares any number of systems: a side's views are fitted once, then every comparison of every pair is scored.

    Sides of one shape are fitted and scored by the same compiled programs. Whatever can be refused is refused before anything
    trains; `Plan` is this function without its last step.

    Args:
        sides: by name, all of the same images: see `Side`.
        pairs: of names, source first; or lists of pairs by label. The pairs of one label are summarised together.
        views: by name; by default those of `default_views`.
        comparisons: such as "sae->neuron", of the names of views; by default `DEFAULT_COMPARISONS`.
        metrics: as in `sp.align`.
        folds, groups, split, pool: see `superpos.activations.divide`.
        weights: how target units are averaged, "uniform", "variance" or "density": an unweighted mean gives rare latents the
            same say as common ones.
        n_seeds: fits of each view that is random.
        n_blocks: parts of a fold that are left out in turn, for intervals over samples; None: no such intervals.
        key: of everything that is drawn; by default `jax.random.key(0)`.
        workdir, chunk, devices: see `Plan.run`.

    Raises:
        ValueError: one sentence, before anything trains, that names what is wrong.
    """
    plan = Plan(
        sides,
        pairs,
        views,
        comparisons,
        metrics=metrics,
        folds=folds,
        groups=groups,
        split=split,
        pool=pool,
        weights=weights,
        n_seeds=n_seeds,
        n_blocks=n_blocks,
        key=key,
    )
    return plan.run(workdir, chunk=chunk, devices=devices)


def compare(
    source: Any,
    target: Any,
    views: Mapping[str, View] | None = None,
    comparisons: Sequence[str] | None = None,
    *,
    train: tuple[Any, Any] = (None, None),
    **settings: Any,
) -> Comparison:
    """Compares two systems as they are and as views read them, each comparison with its interval: `sp.compare`.

    Args:
        source: the side that predicts, `(samples, units)` or `(images, positions, units)`: an array, a path, or a `Side`.
        target: the side that is predicted, the same samples in the same order (or with names that pair them).
        views, comparisons: as in `compare_sides`.
        train: samples of each side that views are fitted on, instead of a part of its own.
        **settings: as in `compare_sides`.

    Returns:
        A `Comparison`: `summary()`, `differences()`, `describe()`, `scores`, `plot()`.

    >>> x = jax.random.laplace(jax.random.key(0), (400, 3))
    >>> mixed = x @ jax.random.orthogonal(jax.random.key(1), 3)
    >>> found = compare(x, mixed, {"neuron": Neuron(), "ica": ICA()}, ("neuron->neuron", "ica->ica"), metrics="semi_match")
    >>> [row["comparison"] for row in found.summary() if row["mean"] > 0.9]
    ['ica->ica']
    """
    given = [
        side if isinstance(side, Side) else Side(side, train=own) for side, own in zip((source, target), train, strict=True)
    ]
    sides = dict(zip(("source", "target"), given, strict=True))
    return compare_sides(sides, [("source", "target")], views, comparisons, **settings)

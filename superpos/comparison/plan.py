"""What a comparison is going to do, checked before anything trains; and its doing."""

import dataclasses
import functools
import itertools
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from superpos import alignment
from superpos import folds as folds_lib
from superpos import metrics as metrics_lib
from superpos.activations import POOLS, Side, divide
from superpos.alignment import Metrics
from superpos.comparison.batches import WEIGHTS, ends, score
from superpos.comparison.result import Comparison, Fits, Stack, flat
from superpos.comparison.settings import spread
from superpos.results import did_you_mean
from superpos.sweeps import sweep
from superpos.views import ICA, PCA, SAE, VIEWS, Neuron, Rows, Top, Untrained, View, fit_all, params_of, shared
from superpos.views.base import name_of

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
        comparisons: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        *,
        metrics: Metrics = alignment.DEFAULT,
        folds: int | ArrayLike | str | os.PathLike | None = 5,
        groups: ArrayLike | None = None,
        split: float = 0.5,
        pool: str | None = None,
        gap: int | None = None,
        weights: str = "uniform",
        n_seeds: int = 1,
        n_blocks: int | str | None = "auto",
        settings: Mapping[str, Sequence[Any]] | None = None,
        key: Key[Array, ""] | None = None,
    ):
        self.metrics = metrics_lib.resolve(metrics)
        views = default_views() if views is None else dict(views)
        self.pairs = {
            label: [(pair[0], pair[1]) for pair in listed]
            for label, listed in (pairs if isinstance(pairs, Mapping) else {f"{a}->{b}": [(a, b)] for a, b in pairs}).items()
        }
        asked: Any = DEFAULT_COMPARISONS if comparisons is None else comparisons
        asked = (asked,) if isinstance(asked, str) else asked
        self.settings: dict[str, dict[str, str]] = {}  # what comparisons are called in each setting but the chosen one
        if settings:
            listed_once = list(dict.fromkeys(itertools.chain(*asked.values()))) if isinstance(asked, Mapping) else asked
            views, every, self.settings = spread(views, listed_once, settings)
            if isinstance(asked, Mapping):
                varied = self.settings.values()
                asked = {
                    label: [*own, *(of[name] for of in varied for name in own if name in of)] for label, own in asked.items()
                }
            else:
                asked = every
        if isinstance(asked, Mapping) and set(asked) != set(self.pairs):
            raise ValueError(f"comparisons must have the labels of pairs, {', '.join(self.pairs)}, got {', '.join(asked)}.")
        self.of_label = {label: tuple(asked.get(label, ()) if isinstance(asked, Mapping) else asked) for label in self.pairs}
        self.comparisons = tuple(dict.fromkeys(name for names in self.of_label.values() for name in names))
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be {', '.join(WEIGHTS)}, got {weights!r}{did_you_mean(weights, WEIGHTS)}.")
        for name, value, least in (("n_seeds", n_seeds, 1), ("n_blocks", n_blocks, 2)):
            unset = name == "n_blocks" and value in (None, "auto")
            if not unset and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        self.weights, self.pool, self.n_seeds = weights, pool, n_seeds
        self.sides, self.known = dict(sides), views
        self.blocked = gap is not None or (isinstance(folds, str) and folds == folds_lib.BLOCKS)
        self._check_names(views)
        views_of = {name: _needed({**views, **side.views}, self._read_of(name)) for name, side in self.sides.items()}
        fitted = [name for name, of in views_of.items() if any(view.fits for view in shared(of).values())]
        divide_key, self.fit_key, self.block_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
        listed = [pair for of_label in self.pairs.values() for pair in of_label]
        self.divided = divide(
            self.sides,
            fitted=fitted,
            split=split,
            folds=folds,
            groups=groups,
            pool=pool,
            pairs=listed,
            gap=gap,
            key=divide_key,
        )
        if n_blocks == "auto":
            least = min(len(np.unique(self.divided.groups[self.divided.folds == i])) for i in range(self.divided.n_folds))
            n_blocks = min(10, least) if least > 1 else None
        self.n_blocks: Any = n_blocks
        # Left out in turn for intervals: neighbours together, where they resemble each other.
        runs = folds_lib.runs(self.divided.folds, int(n_blocks)) if self.blocked and n_blocks else None
        self.groups = self.divided.groups if runs is None else runs
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
            for comparison in self.of_label[label]
            if (reason := self._lacks(listed, comparison, views))
        ]
        if len(self.missing) == sum(map(len, self.of_label.values())):
            raise ValueError(f"comparisons must leave something to compare, but {self.missing[0]['reason']}.")
        for name, side in self.sides.items():
            n_units = self.divided.scored[name].shape[-1]
            if side.reliability is not None and np.shape(side.reliability) != (n_units,):
                raise ValueError(f"reliability of {name} must be ({n_units},), one a unit, got {np.shape(side.reliability)}.")

    # What can be refused.

    def _check_names(self, views: Mapping[str, View]) -> None:
        if not self.pairs or not all(self.pairs.values()):
            raise ValueError("pairs must name at least one pair of sides.")
        for label, listed in self.pairs.items():
            if len(set(listed)) < len(listed) or any(a == b for a, b in listed):
                raise ValueError(f"pairs must be of two different sides, and each there once, got {listed} for {label}.")
        for pair in (pair for listed in self.pairs.values() for pair in listed):
            for name in pair:
                if name not in self.sides:
                    hint = did_you_mean(name, self.sides)
                    raise ValueError(f"pairs must be of the sides {', '.join(self.sides)}, got {name!r}{hint}.")
        for name, view in itertools.chain(views.items(), *(side.views.items() for side in self.sides.values())):
            if not isinstance(view, View):
                raise ValueError(f"views must map names to views, such as views.Neuron(), got {view!r} for {name}.")
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
        for label, names in self.of_label.items():
            if len(set(names)) < len(names):
                raise ValueError(f"comparisons must each be there once, got {', '.join(names)} for {label}.")

    def _read_of(self, side: str) -> list[str]:
        """The views that are read of a side, in the order of the comparisons."""
        names: dict[str, None] = {}
        for label, listed in self.pairs.items():
            for comparison, pair in itertools.product(self.of_label[label], listed):
                names |= {name: None for name, end in zip(ends(comparison), pair, strict=True) if end == side}
        return list(names)

    def _check_samples(self) -> None:
        divided = self.divided
        if self.n_blocks is not None:
            folds_lib.deal(jnp.asarray(divided.folds), divided.n_folds, self.n_blocks, self.block_key, self.groups)
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

    def view(self, side: str, name: str) -> View:
        """The view of a side, as it was prepared for it."""
        return next(stack.views[name] for stack in self.stacks if side in stack.names)

    # How it is divided into programs.

    def _stack(self, views_of: Mapping[str, Mapping[str, View]]) -> list[Stack]:
        """Sides of one shape that read the same views, which are then fitted and scored by the same programs."""
        stacks: list[Stack] = []
        for name, of in views_of.items():
            scored, training = self.divided.scored[name], self.divided.training[name]
            n_units = scored.shape[-1]
            prepared = {}
            for view_name, view in of.items():
                if getattr(view, "truth", view) is None and name in self.divided.truth:
                    view = dataclasses.replace(view, truth=Rows(jnp.asarray(self.divided.truth[name])))  # type: ignore[type-var]
                if isinstance(view, Top) and view.by == "alignment":
                    view = dataclasses.replace(view, target=self._partner(name))
                try:
                    view.check(n_units, len(training) or None)
                    prepared[view_name] = view.prepare(Rows(jnp.asarray(training if len(training) else flat(scored))))
                except ValueError as error:
                    raise ValueError(f"{view_name} of {name}: {error}") from error
            for stack in stacks:
                alike = (stack.scored[0].shape, stack.training[0].shape) == (scored.shape, training.shape)
                if alike and stack.views == prepared:
                    break
            else:
                stack = Stack([], prepared, [], [])
                stacks.append(stack)
            stack.names.append(name)
            stack.scored.append(scored)
            stack.training.append(training)
        return stacks

    def _partner(self, side: str) -> Rows:
        """The samples that fit views of the only other side that a side is compared with, row by row the same samples.

        Raises:
            ValueError: there are several, or they have no samples in common.
        """
        listed = [pair for of_label in self.pairs.values() for pair in of_label if side in pair]
        others = {name for pair in listed for name in pair if name != side}
        if len(others) > 1:
            raise ValueError(f"by of Top must be variance for {side}, which is compared with {', '.join(sorted(others))}.")
        (other,) = others
        own, theirs = self.divided.training[side], self.divided.training[other]
        if not len(own) or len(own) != len(theirs):
            raise ValueError(
                f"by of Top must be variance for {side}: it and {other} have no samples in common to fit views on."
            )
        return Rows(jnp.asarray(theirs))

    def _data(self, stack: "Stack") -> dict[str, np.ndarray]:
        return {"scored": np.stack(stack.scored), "training": np.stack(stack.training)}

    def _train(self, family: Mapping[str, View]) -> Callable[..., Any]:
        """`train(row, data)` for `sp.sweep`: fits a family of views. A row is a side, a number of its name, and a seed."""

        def train(row: Array, data: Mapping[str, Array]) -> dict[str, Any]:
            key = jax.random.fold_in(jax.random.fold_in(self.fit_key, row[1]), row[2])
            scored, training = (data[part][row[0]] for part in ("scored", "training"))
            scored = flat(scored)
            draw = Rows(training if len(training) else scored)
            fits = fit_all(family, key, draw)
            described = {name: family[name].describe(params_of(family, fits, name), scored) for name in family}
            for name, told in described.items():
                if "explained" in told and len(training):  # what shows whether it knows more of what it has seen
                    seen = family[name].describe(params_of(family, fits, name), training[: len(scored)])
                    told["explained_training"] = seen["explained"]
            return {"fits": fits, "described": described}

        return train

    def _of_samples(self, of_images: np.ndarray, units: Any) -> np.ndarray:
        """What each image has, for each sample of it."""
        return np.repeat(of_images, len(units) // len(of_images))

    def _pooled(self, units: Any) -> Any:
        """`(images, positions, k)` as samples: pooled, or each position one."""
        return flat(units) if self.pool is None else POOLS[self.pool](units)

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
        fits: list[dict[str, Fits]] = [{} for _ in self.stacks]
        for i, root, family in self.families:
            stack = self.stacks[i]
            n_seeds = self.n_seeds if any(view.random for view in family.values()) else 1
            rows = np.array(
                [[at, zlib.crc32(name.encode()), seed] for at, name in enumerate(stack.names) for seed in range(n_seeds)],
                np.uint32,
            )
            where = None if folder is None else folder / f"{_plain(root)}_{i}"
            swept = sweep(self._train(family), {}, rows, data_key=self._data(stack), workdir=where, **options).load()
            fits[i][root] = Fits(family, swept["fits"], swept["described"], n_seeds)
        fitted = time.perf_counter()
        cells = self._score(fits, None if folder is None else folder / "scores", options)
        seconds = {"views": fitted - started, "scores": time.perf_counter() - fitted}
        compared = Comparison(self, fits, cells, seconds)
        for doubt in compared.doubts:
            warnings.warn(doubt.doubt, RuntimeWarning, stacklevel=3)
        return compared

    def _score(self, fits: list[dict[str, Fits]], folder: Path | None, options: dict[str, Any]) -> dict[Any, Any]:
        """Scores by label, pair and comparison, leaves (seeds, ...)."""
        missing = {(row["pair"], row["comparison"]) for row in self.missing}
        place = {name: (i, at) for i, stack in enumerate(self.stacks) for at, name in enumerate(stack.names)}
        # Comparisons of the same shapes share a program, whatever the views.
        programs: dict[Any, list[tuple[Any, list[tuple[_Reader, int]]]]] = {}
        reader = functools.cache(lambda i, name: self._reader(i, name, fits))  # sides of one stack are read alike
        for label, listed in self.pairs.items():
            for comparison, pair in itertools.product(self.of_label[label], listed):
                if (label, comparison) in missing:
                    continue
                both = []
                for side, name in zip(pair, ends(comparison), strict=True):
                    i, at = place[side]
                    both.append(reader(i, name)._replace(at=at))
                for seed in range(max(reader.n_seeds for reader in both)):
                    key = tuple(reader.program for reader in both)
                    programs.setdefault(key, []).append(((label, pair, comparison), [(reader, seed) for reader in both]))
        cells: dict[Any, list[Any]] = {}
        for number, entries in enumerate(programs.values()):
            sides = [_Table.of([readers[end] for _, readers in entries], self.stacks, fits) for end in range(2)]
            rows = np.concatenate([side.rows for side in sides], axis=1)
            data = [{"scored": np.stack(side.stack.scored), "weights": side.weights} for side in sides]
            where = None if folder is None else folder / str(number)
            compare = self._compare([side.views for side in sides])
            swept = sweep(compare, {}, rows, data_key=data, workdir=where, **options).load()
            for j, (cell, _) in enumerate(entries):
                cells.setdefault(cell, []).append(jax.tree.map(lambda leaf, j=j: leaf[j], swept))
        return {cell: jax.tree.map(lambda *leaves: np.stack(leaves), *seeds) for cell, seeds in cells.items()}

    def _reader(self, i: int, name: str, fits: list[dict[str, Fits]]) -> "_Reader":
        """How a view of the first side of a stack is read: which program, and of how many seeds."""
        stack = self.stacks[i]
        family = next(family for family in fits[i].values() if name in family.views)
        view = stack.views[name]
        weights = jax.eval_shape(lambda row: view.weights(family.params(name, row)), np.int32(0))
        x = jax.ShapeDtypeStruct((1, stack.scored[0].shape[-1]), jnp.float32)
        traced, units = jax.make_jaxpr(view.apply, return_shape=True)(weights, x)
        # What a view closes over is not told in the program's text.
        text = str(traced) if not traced.consts else str(id(view))
        n_seeds = family.n_seeds if view.random else 1
        return _Reader(i, 0, name, n_seeds, text, (i, units.shape[1], text if view.costly else ""))

    def _compare(self, views: Sequence[Sequence[View]]) -> Callable[..., Any]:
        """`compare(row, data)` for `sp.sweep`: a row is side, view and weights of the source, then of the target."""

        def compare(row: Array, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            sides = []
            for (at, which, index), of_side, readers in zip((row[:3], row[3:]), data, views, strict=True):
                x = of_side["scored"][at]

                def read(view: View, table: Any, x: Array = x, index: Array = index) -> Array:
                    return view.apply(jax.tree.map(lambda leaf: leaf[index], table), flat(x))

                ways = [functools.partial(read, view, table) for view, table in zip(readers, of_side["weights"], strict=True)]
                units = ways[0]() if len(ways) == 1 else lax.switch(which, ways)
                sides.append(self._pooled(units.reshape(*x.shape[:2], units.shape[-1])))
            return score(
                sides[0],
                sides[1],
                self.metrics,
                self._of_samples(self.divided.folds, sides[0]),
                self.divided.n_folds,
                groups=self._of_samples(self.groups, sides[0]),
                n_blocks=self.n_blocks,
                weights=self.weights,
                key=self.block_key,
            )

        return compare


class _Reader(NamedTuple):
    """A view of a side."""

    stack: int
    at: int
    name: str
    n_seeds: int
    text: str
    program: tuple[int, int, str]


class _Table(NamedTuple):
    """One side of a program: its stack, the ways to read it with the weights of each, and what each row reads.

    A row is the side in the stack, the way, and which of its weights: those of all views that read alike, sides and seeds.
    """

    stack: Stack
    views: list[View]
    weights: list[Any]
    rows: np.ndarray

    @classmethod
    def of(cls, readers: Sequence[tuple[_Reader, int]], stacks: Sequence[Stack], fits: Sequence[dict[str, Fits]]) -> "_Table":
        """The table of what each row reads, and with which seed."""
        i = readers[0][0].stack
        stack = stacks[i]
        ways: dict[str, list[Any]] = {}  # weights of each way to read
        first: dict[str, tuple[int, int, int]] = {}  # of each view its way, where its weights begin, and how many a side has
        views = []
        for reader in dict.fromkeys(reader._replace(at=0) for reader, _ in readers):
            view = stack.views[reader.name]
            if reader.text not in ways:
                views.append(view)
            listed = ways.setdefault(reader.text, [])
            family = next(family for family in fits[i].values() if reader.name in family.views)
            first[reader.name] = (list(ways).index(reader.text), len(listed), family.n_seeds)
            n = len(stack.names) * family.n_seeds
            listed += [view.weights(family.params(reader.name, row)) for row in range(n)]
        rows = []
        for reader, seed in readers:
            way, begin, n_seeds = first[reader.name]
            rows.append((reader.at, way, begin + reader.at * n_seeds + min(seed, reader.n_seeds - 1)))
        stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *listed) for listed in ways.values()]
        return cls(stack, views, stacked, np.array(rows, np.int32))


def _needed(views: Mapping[str, View], names: Sequence[str]) -> dict[str, View]:
    """The views that are read, and those that they are of."""
    wanted = {name: views[name] for name in names if name in views}
    for name, view in list(views.items()):
        if any(view is other.of or view == other.of for other in shared(wanted).values()):
            wanted.setdefault(name, view)
    return {name: view for name, view in views.items() if name in wanted}


def _families(views: Mapping[str, View]) -> dict[str, dict[str, View]]:
    """Views that are fitted by one program: those that share the fit of a root."""
    order = shared(views)
    families: dict[str, dict[str, View]] = {}
    roots: dict[str, str] = {}
    for name, view in order.items():
        base = None if view.of is None else name_of(order, view.of)
        roots[name] = name if base is None else roots[base]
        families.setdefault(roots[name], {})[name] = view
    # What no key changes is fitted together, by one program.
    fixed = {root: family for root, family in families.items() if not any(view.random for view in family.values())}
    together = {name: view for family in fixed.values() for name, view in family.items()}
    rest = {root: family for root, family in families.items() if root not in fixed}
    return {**({"fixed": together} if together else {}), **rest}


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def default_views(sae: SAE | None = None, names: Iterable[str] = ()) -> dict[str, View]:
    """Neurons, an SAE, and what could explain a gain of its latents besides superposition.

    Args:
        sae: whose latents are read; by default `SAE()`. Signed components are as many as its latents, at most two a unit.
        names: of further views, out of `superpos.views.VIEWS`, with their default settings; those that are of an SAE by
            default are of this one.

    Raises:
        ValueError: a view that is not registered, or that has no default settings.

    >>> list(default_views(names=["rotation"]))
    ['neuron', 'sae', 'random_sae', 'signed_pca', 'ica', 'rotation']
    """
    sae = SAE() if sae is None else sae
    views = {
        "neuron": Neuron(),
        "sae": sae,
        "random_sae": Untrained(sae),
        "signed_pca": PCA(signed=True, expansion=sae.expansion),
        "ica": ICA(),
    }
    for name in names:
        if name in views:
            continue
        if name not in VIEWS:
            raise ValueError(f"views must be among {', '.join(VIEWS)}, got {name!r}{did_you_mean(name, VIEWS)}.")
        kind: Any = VIEWS[name]
        try:
            of = kind.__dataclass_fields__.get("of")
            views[name] = kind(of=sae) if of is not None and isinstance(of.default, SAE) else kind()
        except TypeError as error:
            raise ValueError(
                f"view {name} must be told more than its name: see help(superpos.views.{kind.__name__})."
            ) from error
    return views

"""What a sweep found, by name of setting and number of seed."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


@dataclasses.dataclass(frozen=True)
class Axis:
    """One setting: its `values`, and the same as an array where it is vmapped (None where it is unrolled)."""

    name: str
    values: tuple[Any, ...]
    array: np.ndarray | None

    @functools.cached_property
    def labels(self) -> list[Any]:
        """The values as coordinates: arrays by their index, functions by their name, other objects by their text."""
        if self.array is not None and self.array.ndim > 1:
            return list(range(len(self.values)))
        labels = [_label(value) for value in self.values]
        return [
            f"{label} #{i}" if isinstance(label, str) and labels.count(label) > 1 else label for i, label in enumerate(labels)
        ]

    def index(self, value: Any) -> int:
        """The position of a value or label.

        Raises:
            ValueError: there is none.
        """
        for i, (own, label) in enumerate(zip(self.values, self.labels, strict=True)):
            same_kind = isinstance(value, bool) == isinstance(label, bool) and np.ndim(value) == 0
            if value is own or (same_kind and value == label):
                return i
        raise ValueError(f"{self.name} has the values {self.labels}, got {value!r}.")


def _label(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "__name__"):
        return value.__name__
    text = str(value)
    return type(value).__name__ if " at 0x" in text or len(text) > 60 else text


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which points, seeds and pairs there are: `pairs` is `(n_pairs, 2)`, None for all ordered ones."""

    axes: tuple[Axis, ...]
    n_seeds: int
    pairs: np.ndarray | None

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The combinations of unrolled settings."""
        combinations = itertools.product(*(axis.values for axis in self.unrolled))
        return [dict(zip((axis.name for axis in self.unrolled), values, strict=True)) for values in combinations]

    @property
    def unrolled(self) -> list[Axis]:
        """The settings that are branches of the program."""
        return [axis for axis in self.axes if axis.array is None]

    @property
    def vmapped(self) -> list[Axis]:
        """The other settings; the combinations of their values are the `points`."""
        return [axis for axis in self.axes if axis.array is not None]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of values of each vmapped setting."""
        return tuple(len(axis.values) for axis in self.vmapped)

    @property
    def points(self) -> dict[str, np.ndarray]:
        """The value of each vmapped setting at each point."""
        index = np.indices(self.grid).reshape(len(self.grid), math.prod(self.grid))
        return {axis.name: np.asarray(axis.array)[i] for axis, i in zip(self.vmapped, index, strict=True)}

    def index(self, config: int, point: int = 0) -> dict[str, int]:
        """Which value of each setting a combination of unrolled ones and a point have."""
        settings = np.unravel_index(config, tuple(len(axis.values) for axis in self.unrolled))
        at = np.unravel_index(point, self.grid)
        names = [axis.name for axis in (*self.unrolled, *self.vmapped)]
        return {name: int(i) for name, i in zip(names, (*settings, *at), strict=True)}

    def shape(self, stage: str) -> tuple[int, ...]:
        """Leading axes of what a stage finds: rows of point and seed; points and seeds of pairs, or rows of point and pair."""
        n_points = math.prod(self.grid)
        if stage == "train":
            return (n_points * self.n_seeds,)
        return (n_points, self.n_seeds, self.n_seeds) if self.pairs is None else (n_points * len(self.pairs),)

    def unfold(self, stage: str, tree: Tree) -> Tree:
        """What a stage found, with an axis for each vmapped setting."""
        rows, leading = self.shape(stage), len(self.shape(stage))
        own = rows[1:] if leading > 1 else (rows[0] // math.prod(self.grid),)
        return jax.tree.map(lambda leaf: leaf.reshape(*self.grid, *own, *leaf.shape[leading:]), tree)

    def failures(self, trees: Sequence[Tree]) -> list[dict[str, Any]]:
        """Models with NaN or infinity in what `train` returned: their settings, `seed` and `leaves`."""
        failed: dict[tuple[int, int], list[str]] = {}
        for config, tree in enumerate(trees):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if jnp.issubdtype(leaf.dtype, jnp.inexact):
                    bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
                    for row in np.flatnonzero(bad).tolist():
                        failed.setdefault((config, row), []).append(path_name(path))
        failures = []
        for (config, row), leaves in sorted(failed.items()):
            point, seed = divmod(row, self.n_seeds)
            at = self.index(config, point)
            failures.append({**{axis.name: axis.labels[at[axis.name]] for axis in self.axes}, "seed": seed, "leaves": leaves})
        return failures


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Results:
    """What a sweep found.

    Attributes:
        layout: its settings, number of seeds, and pairs.
        rows: for each stage ("train", "score") and combination of unrolled settings the pytree that the function returned,
            leaves `(*layout.shape(stage), ...)`.
        programs: how many programs were compiled; 0 where all was found in the workdir.
        memory: bytes that one call of the program takes, on all devices of this process together.
        seconds: time spent on `compile` and `run`.
    """

    layout: Layout
    rows: dict[str, list[Tree]]
    programs: int = 0
    memory: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        axes = [f"{axis.name}={axis.labels}" for axis in self.layout.axes]
        leaves = [f"{stage}: {', '.join(_named(trees[0]))}" for stage, trees in self.rows.items()]
        return f"Results({', '.join([*axes, f'{self.layout.n_seeds} seeds'])}; {'; '.join(leaves)}; {len(self.failed)} failed)"

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Models with NaN or infinity in what `train` returned: their settings, `seed`, and the names of the `leaves`."""
        return self.layout.failures(self.rows["train"])

    def load(self, seed: int | None = None, **settings: Any) -> Tree:
        """What `train` returned at one point: with all seeds on a leading axis, or of one seed.

        Args:
            seed: index into `keys`.
            **settings: a value for each setting; those with just one value may be left out.

        Raises:
            ValueError: no such point or seed.
        """
        names = [axis.name for axis in self.layout.axes]
        for name in settings:
            if name not in names:
                raise ValueError(f"The sweep has no setting {name!r}; it has {names}.")
        branch, index = 0, []
        for axis in self.layout.axes:
            if axis.name not in settings and len(axis.values) > 1:
                raise ValueError(f"Name {axis.name}: it has the values {axis.labels}.")
            at = axis.index(settings[axis.name]) if axis.name in settings else 0
            if axis.array is None:
                branch = branch * len(axis.values) + at
            else:
                index.append(at)
        if seed is not None:
            if not 0 <= seed < self.layout.n_seeds:
                raise ValueError(f"seed must be between 0 and {self.layout.n_seeds - 1}, got {seed}.")
            index.append(seed)
        return jax.tree.map(lambda leaf: leaf[tuple(index)], self.layout.unfold("train", self.rows["train"][branch]))

    @functools.cached_property
    def states(self) -> Any:
        """What `train` returned as an `xarray.Dataset`: a variable a leaf, dimensions the settings, `seed`, and the leaf's own.

        Leaves whose shape depends on a setting, or that are not there at some, are left out: see `load`. A leaf with the name
        of a dimension gets an underscore behind it.
        """
        return self._dataset("train", ("seed",))

    @functools.cached_property
    def scores(self) -> Any:
        """The same of `score`: dimensions the settings, `source` and `target` (or `pair`), and the leaf's own.

        Raises:
            ValueError: a sweep without `score`.
        """
        if "score" not in self.rows:
            raise ValueError("This sweep has no scores: pass sp.sweep(..., score=...).")
        return self._dataset("score", ("source", "target") if self.layout.pairs is None else ("pair",))

    @property
    def table(self) -> Any:
        """All scalars as a `pandas.DataFrame`: a row a point and pair where pairs were scored, else a row a point and seed.

        Raises:
            ValueError: no leaf is a scalar.
        """
        dataset = self.scores if "score" in self.rows else self.states
        n_dims = len(self.layout.axes) + (2 if "source" in dataset.dims else 1)
        scalars = dataset[[name for name, leaf in dataset.items() if leaf.ndim == n_dims]]
        if not scalars:
            raise ValueError("No leaf is a scalar at every point: see states, scores and load.")
        return scalars.to_dataframe().reset_index()

    def _dataset(self, stage: Any, sample: Any) -> Any:
        import xarray as xr

        layout = self.layout
        given = [axis.name for axis in (*layout.unrolled, *layout.vmapped)] + list(sample)
        named = [_named(layout.unfold(stage, tree)) for tree in self.rows[stage]]
        coordinates: dict[str, Any] = {axis.name: _coordinate(axis.labels) for axis in layout.axes}
        if layout.pairs is not None and "pair" in sample:
            coordinates |= {end: ("pair", layout.pairs[:, i]) for i, end in enumerate(("source", "target"))}
        else:
            coordinates |= {name: np.arange(layout.n_seeds) for name in sample}
        columns: dict[str, Any] = {name: [tree.get(name) for tree in named] for name in named[0]}
        leaves = {
            name: np.stack(column).reshape(*(len(axis.values) for axis in layout.unrolled), *column[0].shape)
            for name, column in columns.items()
            if all(leaf is not None and leaf.shape == column[0].shape for leaf in column)
        }
        own = {name: [f"{name}[{i}]" for i in range(leaf.ndim - len(given))] for name, leaf in leaves.items()}
        taken = {*given, *coordinates, *itertools.chain(*own.values())}
        variables = {}
        for name, leaf in leaves.items():
            array = xr.DataArray(leaf, dims=given + own[name])
            ordered = array.transpose(*(axis.name for axis in layout.axes), *sample, *own[name])
            variables[name if name not in taken else f"{name}_"] = ordered
        return xr.Dataset(variables, coordinates)


def _coordinate(labels: Any) -> np.ndarray:
    """Labels of several kinds stay what they are."""
    alike = all(isinstance(label, str) for label in labels) or all(isinstance(label, bool) for label in labels)
    if alike or all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels):
        return np.array(labels)
    mixed = np.empty(len(labels), object)
    mixed[:] = labels
    return mixed


def path_name(path: Any) -> str:
    """The name of a leaf of a pytree: its keys, joined by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def _named(tree: Any) -> dict[str, Any]:
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        while name in named:  # {"a": {"b": ...}, "a.b": ...}
            name += "_"
        named[name] = leaf
    return named

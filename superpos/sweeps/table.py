"""What a sweep found, by name of setting and number of seed."""

import dataclasses
import functools
import itertools
import math
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

    @property
    def labels(self) -> list[Any]:
        """The values as coordinates: arrays by their index, other objects by their text."""
        if self.array is not None and self.array.ndim > 1:
            return list(range(len(self.values)))
        return [value if isinstance(value, (bool, int, float, str)) else str(value) for value in self.values]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which points, seeds and pairs there are: `pairs` is `(n_pairs, 2)`, None for all ordered ones."""

    axes: tuple[Axis, ...]
    n_seeds: int
    pairs: np.ndarray | None

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The combinations of unrolled settings."""
        unrolled = [axis for axis in self.axes if axis.array is None]
        combinations = itertools.product(*(axis.values for axis in unrolled))
        return [dict(zip((axis.name for axis in unrolled), values, strict=True)) for values in combinations]

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

    def failures(self, config: int, first: int, tree: Tree) -> list[dict[str, Any]]:
        """Models with NaN or infinity, in rows from `first` on: their settings, `seed` and `leaves`."""
        found: dict[int, list[str]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
                for row in np.flatnonzero(bad).tolist():
                    found.setdefault(first + row, []).append(path_name(path))
        failures = []
        for row, leaves in sorted(found.items()):
            point, seed = divmod(row, self.n_seeds)
            at = dict(zip((axis.name for axis in self.vmapped), np.unravel_index(point, self.grid), strict=True))
            settings = {
                axis.name: axis.labels[at[axis.name]] if axis.name in at else self.configs[config][axis.name]
                for axis in self.axes
            }
            failures.append({**settings, "seed": seed, "leaves": leaves})
        return failures


@dataclasses.dataclass(frozen=True)
class Results:
    """What a sweep found.

    Attributes:
        layout: its settings, number of seeds, and pairs.
        rows: for each stage ("train", "score") and combination of unrolled settings the pytree that the function returned,
            leaves `(*layout.shape(stage), ...)`.
        programs: how many programs were compiled; 0 where all was found in the workdir.
        seconds: time spent on `compile` and `run`.
    """

    layout: Layout
    rows: dict[str, list[Tree]]
    programs: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Models with NaN or infinity in what `train` returned: their settings, `seed`, and the names of the `leaves`."""
        return [failure for config, tree in enumerate(self.rows["train"]) for failure in self.layout.failures(config, 0, tree)]

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
            labels = axis.labels
            if axis.name not in settings and len(labels) > 1:
                raise ValueError(f"Name {axis.name}: it has the values {labels}.")
            value = settings.get(axis.name, labels[0])
            value = value if value in labels else str(value)
            if value not in labels:
                raise ValueError(f"{axis.name} has the values {labels}, got {settings[axis.name]!r}.")
            if axis.array is None:
                branch = branch * len(labels) + labels.index(value)
            else:
                index.append(labels.index(value))
        if seed is not None:
            if not 0 <= seed < self.layout.n_seeds:
                raise ValueError(f"seed must be between 0 and {self.layout.n_seeds - 1}, got {seed}.")
            index.append(seed)
        return jax.tree.map(lambda leaf: leaf[tuple(index)], self.layout.unfold("train", self.rows["train"][branch]))

    @functools.cached_property
    def states(self) -> Any:
        """What `train` returned as an `xarray.Dataset`: a variable a leaf, dimensions the settings, `seed`, and the leaf's own.

        Leaves whose shape depends on a setting are left out: see `load`.
        """
        return self._dataset("train", ("seed",))

    @functools.cached_property
    def scores(self) -> Any:
        """The same of `score`: dimensions the settings, `source` and `target` (or `pair`), and the leaf's own."""
        if "score" not in self.rows:
            raise ValueError("This sweep has no scores: pass sp.sweep(..., score=...).")
        return self._dataset("score", ("source", "target") if self.layout.pairs is None else ("pair",))

    @property
    def table(self) -> Any:
        """All scalars as a `pandas.DataFrame`: a row a point and pair where pairs were scored, else a row a point and seed."""
        dataset = self.scores if "score" in self.rows else self.states
        n_dims = len(self.layout.axes) + (2 if "source" in dataset.dims else 1)
        return dataset[[name for name, leaf in dataset.items() if leaf.ndim == n_dims]].to_dataframe().reset_index()

    def _dataset(self, stage, sample):
        import xarray as xr

        layout = self.layout
        unrolled = [axis for axis in layout.axes if axis.array is None]
        given = [axis.name for axis in (*unrolled, *layout.vmapped)] + list(sample)
        named = [_named(layout.unfold(stage, tree)) for tree in self.rows[stage]]
        variables = {}
        for name in named[0]:
            leaves = [tree.get(name) for tree in named]
            if any(leaf is None or leaf.shape != leaves[0].shape for leaf in leaves):
                continue
            stacked = np.stack(leaves).reshape(*(len(axis.values) for axis in unrolled), *leaves[0].shape)
            own = [f"{name}_{i}" for i in range(stacked.ndim - len(given))]
            array = xr.DataArray(stacked, dims=given + own)
            variables[name] = array.transpose(*(axis.name for axis in layout.axes), *sample, *own)
        coordinates: dict[str, Any] = {axis.name: axis.labels for axis in layout.axes}
        if layout.pairs is not None and "pair" in sample:
            coordinates |= {end: ("pair", layout.pairs[:, i]) for i, end in enumerate(("source", "target"))}
        else:
            coordinates |= {name: np.arange(layout.n_seeds) for name in sample}
        return xr.Dataset(variables, coordinates)


def path_name(path: Any) -> str:
    """The name of a leaf of a pytree: its keys, joined by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def _named(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

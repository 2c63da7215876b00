"""One recording: responses of units to stimuli, how reliable they are, and splits that do not leak."""

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from superpos import folds, reliability
from superpos.checks import repeated


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """Responses of units (neurons, sites, voxels) to stimuli. Arrays are NumPy's and cannot be written to.

    Args:
        responses: `(n_stimuli, n_units)`, averaged over repeats; by default the mean of the repeats that are there.
        repeats: `(n_stimuli, n_repeats, n_units)`, single trials, NaN where one is missing; or None.
        stimuli: `(n_stimuli,)` identifiers, by default 0, 1, ...; one that occurs twice is the same stimulus.
        units: metadata of the units by name, each `(n_units,)`: area, subject, hemisphere.
        sessions: labels of when responses were taken, `(n_stimuli,)`, or `(n_stimuli, n_repeats)` of each trial.
        images: `(n_stimuli,)` names of the images within `image_source`, as `superpos.images.Images` names them.
        image_source: the folder or zip that holds the images.

    Raises:
        ValueError: neither responses nor repeats; axes or lengths that do not fit each other; values that are no real numbers;
            NaN or infinity in responses, infinity in repeats, a stimulus without any repeat; responses that are not the means
            of the repeats.

    >>> recording = Recording(responses=np.arange(6.0).reshape(3, 2), stimuli=["a", "b", "a"])
    >>> recording.groups().tolist()
    [0, 1, 0]
    """

    responses: Any = None
    repeats: Any = None
    stimuli: Any = None
    units: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sessions: Any = None
    images: Any = None
    image_source: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        responses, repeats, stimuli = self.responses, self.repeats, self.stimuli
        if responses is None and repeats is None:
            raise ValueError("responses or repeats must be given, got neither.")
        if repeats is not None:
            repeats = _numbers("repeats", repeats, ("stimuli", "repeats", "units"))
        if responses is not None:
            responses = _numbers("responses", responses, ("stimuli", "units"))
        n, n_units = responses.shape if repeats is None else (repeats.shape[0], repeats.shape[2])
        if responses is not None and responses.shape != (n, n_units):
            raise ValueError(f"responses must be {(n, n_units)}, as many stimuli and units as repeats, got {responses.shape}.")
        stimuli = np.arange(n) if stimuli is None else np.asarray(stimuli)
        for name, labels in (("stimuli", stimuli), ("images", self.images)):
            if labels is not None and np.shape(labels) != (n,):
                given, shape = ("responses", responses.shape) if repeats is None else ("repeats", repeats.shape)
                swapped = np.ndim(labels) == 1 and len(labels) in shape[1:]
                hint = f": the axes of {given} {shape} seem to be in another order, put stimuli first" if swapped else ""
                raise ValueError(f"{name} must be ({n},), one for each row of {given}, got {np.shape(labels)}{hint}.")
        if repeats is not None and np.isinf(repeats).any():
            i, _, unit = np.argwhere(np.isinf(repeats))[0]
            raise ValueError(f"repeats must be finite, or NaN where missing, got infinity: {_at(stimuli, i, unit)}.")
        if repeats is not None:
            count = np.sum(~np.isnan(repeats), axis=1)
            means = np.nansum(repeats, axis=1, dtype=np.float64) / np.maximum(count, 1)
        if responses is None:
            if (count == 0).any():
                i, unit = np.argwhere(count == 0)[0]
                raise ValueError(
                    f"repeats must have at least one for every stimulus and unit, got none: {_at(stimuli, i, unit)}."
                )
            responses = means.astype(repeats.dtype)
        if not np.isfinite(responses).all():
            i, unit = np.argwhere(~np.isfinite(responses))[0]
            raise ValueError(
                f"responses must be finite (NaN marks a missing one in repeats only), got {_at(stimuli, i, unit)}."
            )
        if self.responses is not None and repeats is not None:
            near = np.isclose(means, responses, rtol=1e-2, atol=1e-2 * np.std(responses))
            if not (near | (count == 0)).all():
                raise ValueError("responses must be the means of the repeats where both are given: give one of them.")
        units = {name: np.asarray(values) for name, values in self.units.items()}
        for name, values in units.items():
            if values.shape != (n_units,):
                raise ValueError(f"units: {name} must be ({n_units},), one for each unit, got {values.shape}.")
        sessions = None if self.sessions is None else np.asarray(self.sessions)
        shapes = [(n,)] if repeats is None else [(n,), repeats.shape[:2]]
        if sessions is not None and sessions.shape not in shapes:
            raise ValueError(f"sessions must be {' or '.join(map(str, shapes))}, got {sessions.shape}.")
        if sessions is not None and sessions.dtype.kind == "f" and np.isnan(sessions).any():
            raise ValueError(f"sessions must be labels, got NaN for {np.isnan(sessions).sum()}.")
        images = None if self.images is None else np.asarray(self.images)
        arrays = {"responses": responses, "repeats": repeats, "stimuli": stimuli, "sessions": sessions, "images": images}
        for name, array in arrays.items():
            object.__setattr__(self, name, _read_only(array))
        object.__setattr__(self, "units", MappingProxyType({name: _read_only(values) for name, values in units.items()}))

    @property
    def n_repeats(self) -> Int[np.ndarray, " stimuli"]:
        """Repeats of each stimulus that are there, the fewest of any unit; `(n_stimuli,)`.

        Raises:
            ValueError: a recording without repeats. The same holds for all noise ceilings.
        """
        return self._count().min(axis=1)

    def select(self, stimuli: ArrayLike | None = None, units: ArrayLike | None = None) -> "Recording":
        """Some of the stimuli and units, as masks or as indices: `recording.select(units=recording.units["area"] == "V4")`.

        Raises:
            ValueError: a mask of another length, an index that is not there, or nothing left.
        """
        n, n_units = self.responses.shape
        rows, columns = _indices("stimuli", stimuli, n), _indices("units", units, n_units)

        def of_stimuli(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[rows]

        return Recording(
            responses=self.responses[np.ix_(rows, columns)],
            repeats=None if self.repeats is None else self.repeats[rows][:, :, columns],
            stimuli=of_stimuli(self.stimuli),
            units={name: values[columns] for name, values in self.units.items()},
            sessions=of_stimuli(self.sessions),
            images=of_stimuli(self.images),
            image_source=self.image_source,
        )

    def where(self, condition: str) -> "Recording":
        """The units whose metadata are as a condition says, such as "region=IT".

        Raises:
            ValueError: no such metadata, or no such unit.
        """
        name, _, value = condition.partition("=")
        chosen = self.units[name].astype(str) == value if name in self.units else np.zeros(1, bool)
        if not chosen.any():
            there = np.unique(self.units[name].astype(str))[:10] if name in self.units else list(self.units)
            raise ValueError(
                f"select must be name=value of some units, got {condition!r}; there are {', '.join(there) or 'none'}."
            )
        return self.select(units=chosen)

    def zscored(self) -> "Recording":
        """Each unit with mean 0 and standard deviation 1 over the trials of each session, or over the responses of each.

        Where there are repeats, these are z-scored and then averaged.

        Raises:
            ValueError: a unit that is constant in a session.
        """
        values = self.responses[:, None] if self.repeats is None else self.repeats
        sessions = np.zeros(len(values)) if self.sessions is None else self.sessions
        sessions = np.broadcast_to(sessions.reshape(len(values), -1), values.shape[:2])
        scored = np.empty_like(values)
        for session in np.unique(sessions):
            inside = sessions == session
            part = values[inside].astype(np.float64)
            self._check_varies(part, "" if self.sessions is None else f" in session {session}")
            count = np.maximum(np.sum(~np.isnan(part), axis=0), 1)
            part -= np.nansum(part, axis=0) / count
            scored[inside] = part / np.sqrt(np.maximum(np.nansum(part**2, axis=0) / count, np.finfo(float).tiny))
        if self.repeats is None:
            return dataclasses.replace(self, responses=scored[:, 0])
        return dataclasses.replace(self, responses=None, repeats=scored)

    def reliability(self, key: Key[Array, ""] | None = None, n_splits: int = 100) -> Float[Array, " units"]:
        """Reliability of the averaged responses from halves of the repeats; its root is the ceiling of a correlation.

        See `superpos.reliability.split_half`, whose result this is, `(n_units,)`, and `superpos.reliability.disattenuate`.

        Raises:
            ValueError: no repeats, a stimulus with fewer than two, or a unit that is constant.
        """
        repeats = self._for_ceiling()
        return reliability.split_half(_named(repeats), key, n_splits)

    def reliable(self, minimum: float, key: Key[Array, ""] | None = None, n_splits: int = 100) -> "Recording":
        """The units whose `reliability` is at least `minimum`.

        Raises:
            ValueError: as `reliability` does, or no unit is as reliable.
        """
        values = np.asarray(self.reliability(key, n_splits))
        if not (values >= minimum).any():
            raise ValueError(
                f"minimum must be at most the highest reliability of a unit, {np.nanmax(values):.3g}, got {minimum}."
            )
        return self.select(units=values >= minimum)

    def ncsnr(self) -> Float[Array, " units"]:
        """See the function `ncsnr`; its source z-scores within session first: `recording.zscored().ncsnr()`."""
        return ncsnr(_named(self._for_ceiling()))

    def noise_ceiling(self, n: ArrayLike | None = None) -> Float[Array, " units"]:
        """See the function `noise_ceiling`, by default for the responses as they are: means of the repeats that are there."""
        return noise_ceiling(self.ncsnr(), self._count() if n is None else n)

    def reduced(self, n: int, key: Key[Array, ""] | None = None) -> "Recording":
        """A unit each for n groups of redundant ones: of each k-means cluster of tuning curves that nearest to its centre.

        Tuning curves, a unit's responses to all stimuli, are z-scored before: the squared distance is as 1 - correlation.
        Source: the authors' code for Longon, Klindt & Khosla, arXiv 2510.03186, which does it to voxels.

        Args:
            n: number of units that are left.
            key: draws the first centres (k-means++); by default `jax.random.key(0)`.

        Raises:
            ValueError: n is not below the number of units, a unit is constant, or fewer than n clusters were found.
        """
        from scipy.cluster.vq import kmeans2

        if not 1 <= n <= self.responses.shape[1]:
            raise ValueError(f"n must be between 1 and the number of units, {self.responses.shape[1]}, got {n}.")
        self._check_varies(self.responses)
        curves = (self.responses - self.responses.mean(axis=0)) / self.responses.std(axis=0)
        seed = int(jax.random.bits(jax.random.key(0) if key is None else key, dtype=jnp.uint32))
        with np.errstate(invalid="ignore"), warnings.catch_warnings():  # about clusters that are empty: see below
            warnings.simplefilter("ignore")
            centres, labels = kmeans2(curves.T, n, iter=30, minit="++", missing="warn", seed=seed)
        if (n_clusters := len(np.unique(labels))) < n:
            raise ValueError(
                f"n must be at most the number of clusters that k-means finds, {n_clusters} with this key, got {n}."
            )
        distance = np.sum((curves - centres[labels].T) ** 2, axis=0)
        nearest = [np.flatnonzero(labels == i)[np.argmin(distance[labels == i])] for i in range(n)]
        return self.select(units=np.sort(nearest))

    def groups(self, same: ArrayLike | None = None) -> Int[np.ndarray, " stimuli"]:
        """Integers, equal for rows that must stay together: those of one identifier, one image name, or one label in `same`.

        Args:
            same: `(n_stimuli,)` further labels, such as `superpos.brain.image_hashes(recording)`.

        Returns:
            `(n_stimuli,)`, numbered from 0: the `groups` of `sp.align` and `sp.assign_folds`.

        Raises:
            ValueError: labels of another shape.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n = len(self.stimuli)
        if same is not None and np.shape(same) != (n,):
            raise ValueError(f"same must be ({n},), one label a stimulus, got {np.shape(same)}.")
        nodes, edges = n, []
        for labels in (self.stimuli, self.images, same):
            if labels is not None:  # each label is a node that all its rows are tied to
                codes = np.unique(labels, return_inverse=True)[1]
                edges.append(nodes + codes)
                nodes += int(np.max(codes)) + 1
        ends = np.concatenate(edges)
        starts = np.tile(np.arange(n), len(edges))
        _, parts = connected_components(coo_array((np.ones(len(ends)), (starts, ends)), shape=(nodes, nodes)), directed=False)
        return np.unique(parts[:n], return_inverse=True)[1]

    def split(
        self, test: float = 0.2, key: Key[Array, ""] | None = None, same: ArrayLike | None = None
    ) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
        """Indices of stimuli for training and for testing, each in ascending order; `groups` are never divided.

        Folds for cross-validation: `sp.assign_folds(n_stimuli, 5, groups=recording.groups())`.

        Args:
            test: share of the groups that are for testing.
            key: shuffles the groups; by default `jax.random.key(0)`.
            same: see `groups`.

        Raises:
            ValueError: a share that leaves either side empty.
        """
        groups = self.groups(same)
        if not 1 <= round(test * (groups.max() + 1)) <= groups.max():
            raise ValueError(f"test must leave some of the {groups.max() + 1} different stimuli on both sides, got {test}.")
        train, tested = folds.split(groups, 1 - test, jax.random.key(0) if key is None else key)
        return np.sort(train), tested

    def rows(self, names: Sequence[str]) -> Int[np.ndarray, " stimuli"]:
        """Where each stimulus's image is among the names of others: `activations[recording.rows(names)]` lines up with it.

        Args:
            names: of images, as in the `manifest.json` of `superpos.networks.io.extract`, or `Images(...).names`.

        Raises:
            ValueError: a recording without images, or one of them that is not named, or named twice.
        """
        if self.images is None:
            raise ValueError("the recording has no images: load it with images, or construct it with their names.")
        where = {name: i for i, name in enumerate(names)}
        if missing := [name for name in self.images if name not in where]:
            raise ValueError(
                f"names must hold all images of the recording, but {len(missing)} are not there, first {missing[0]}."
            )
        count = Counter(names)
        if again := [name for name in self.images if count[name] > 1]:
            raise ValueError(f"names must hold each image once, but {again[0]} is there {count[again[0]]} times.")
        return np.array([where[name] for name in self.images])

    def _count(self) -> np.ndarray:
        if self.repeats is None:
            raise ValueError("repeats are needed for a noise ceiling, but the recording has averaged responses only.")
        return np.sum(~np.isnan(self.repeats), axis=1)

    def _for_ceiling(self) -> np.ndarray:
        """The repeats, if noise can be told from them."""
        count = self._count()
        if (count < 2).any():
            i, unit = np.argwhere(count < 2)[0]
            raise ValueError(
                f"repeats must be at least two of every stimulus for a noise ceiling, got {count[i, unit]}: "
                f"{_at(self.stimuli, i, unit)}; leave such out with select(stimuli=recording.n_repeats >= 2)."
            )
        self._check_varies(self.repeats.reshape(-1, self.repeats.shape[2]))
        return self.repeats

    def _check_varies(self, values: np.ndarray, where: str = "") -> None:
        low, high = (f(values, axis=0, initial=s * np.inf, where=~np.isnan(values)) for f, s in ((np.min, 1), (np.max, -1)))
        if (low == high).any():
            raise ValueError(
                f"units must vary, but {(low == high).sum()} are constant{where}, first unit {np.argmax(low == high)}; "
                "leave such out with select(units=...)."
            )


def _named(repeats: Any) -> Any:
    """Repeats whose axes are known, however many there are of each."""
    import xarray

    return xarray.DataArray(repeats, dims=("stimuli", "repeats", "units"))


def ncsnr(repeats: Any) -> Float[Array, " units"]:
    """Noise ceiling signal-to-noise ratio of each unit: the standard deviation of the signal over that of the noise.

    The variance of the noise is that between repeats of a stimulus (unbiased), averaged over stimuli; the variance of the
    signal is what remains of that of all trials, or 0. Units are z-scored within session before: see `Recording.zscored`.
    Source: Allen et al. 2022, "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence".

    Args:
        repeats: `(n_stimuli, n_repeats, n_units)`, NaN where one is missing, or with named axes: see
            `superpos.checks.repeated`. Stimuli with fewer than two of a unit tell nothing about the noise, and count for
            the variance of all trials only.

    Returns:
        `(n_units,)`; infinite without noise, NaN for constant units and where no stimulus has two repeats.

    Raises:
        ValueError: as `superpos.checks.repeated` does.

    >>> repeats = jnp.array([[[1.0], [3.0]], [[-3.0], [-1.0]]])  # two stimuli, two repeats, one unit
    >>> print(np.asarray(ncsnr(repeats)).round(3))
    [1.528]
    """
    return _ncsnr(jnp.asarray(repeated(repeats, "repeats")))


@jax.jit
def _ncsnr(repeats: Array) -> Array:
    there = ~jnp.isnan(repeats)
    trials = jnp.where(there, repeats, 0)
    trials = jnp.where(there, trials - jnp.sum(trials, axis=(0, 1)) / jnp.sum(there, axis=(0, 1)), 0)  # for the digits' sake
    count = jnp.sum(there, axis=1)
    mean = jnp.sum(trials, axis=1) / jnp.maximum(count, 1)
    within = jnp.sum(jnp.where(there, (trials - mean[:, None]) ** 2, 0), axis=1) / jnp.maximum(count - 1, 1)
    noise = jnp.sum(within, axis=0) / jnp.sum(count > 1, axis=0)
    total = jnp.sum(trials**2, axis=(0, 1)) / (jnp.sum(count, axis=0) - 1)
    return jnp.sqrt(jnp.maximum(total - noise, 0) / noise)


def noise_ceiling(ncsnr: ArrayLike, n: ArrayLike = 1) -> Float[Array, " units"]:
    """Share of the variance of responses, averaged over n repeats, that is signal: ncsnr² / (ncsnr² + 1 / n).

    It is the reliability that `superpos.reliability.disattenuate` takes, and its root is the ceiling of a correlation. Source:
    Allen et al. 2022, who give it in per cent, and put the mean of 1 / n for 1 / n where numbers of repeats are unequal.

    Args:
        ncsnr: `(n_units,)`.
        n: number of repeats, or that of each stimulus, `(n_stimuli,)`, or for each unit too, `(n_stimuli, n_units)`.

    Returns:
        `(n_units,)`, from 0 to 1.

    Raises:
        ValueError: a number of repeats below one.

    >>> print(np.asarray(noise_ceiling(jnp.array([1.0, 3.0]), n=1)).round(3))
    [0.5 0.9]
    """
    if not isinstance(n, jax.core.Tracer) and not np.min(n) >= 1:
        raise ValueError(f"n must be at least one repeat, got {np.min(n):g}.")
    inverse = 1 / jnp.asarray(n)
    if inverse.ndim:
        inverse = jnp.mean(inverse, axis=0)
    return 1 / (1 + inverse / jnp.asarray(ncsnr) ** 2)  # this way round no ratio is infinity over infinity


def _numbers(name: str, values: Any, axes: Sequence[str]) -> np.ndarray:
    """The values as floats, float32 unless they are float64."""
    if np.ma.is_masked(values):
        raise ValueError(f"{name} must not be masked: fill what is missing with NaN, which repeats may hold.")
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers, got {values.dtype}.")
    if values.ndim != len(axes) or 0 in values.shape:
        raise ValueError(f"{name} must have axes ({', '.join(axes)}), none of them empty, got shape {values.shape}.")
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _read_only(array: np.ndarray | None) -> np.ndarray | None:
    if array is not None:
        array = array.view()
        array.flags.writeable = False
    return array


def _at(stimuli: Any, i: int, unit: int) -> str:
    return f"stimulus {stimuli[i]} (row {i}), unit {unit}"


def _indices(name: str, chosen: ArrayLike | None, length: int) -> np.ndarray:
    if chosen is None:
        return np.arange(length)
    chosen = np.asarray(chosen)
    mask = chosen.dtype == bool
    if chosen.ndim != 1 or not (mask or chosen.dtype.kind in "iu") or (mask and len(chosen) != length):
        raise ValueError(f"{name} must be a mask ({length},) or integer indices, got {chosen.dtype} {chosen.shape}.")
    if not mask and len(chosen) and not -length <= chosen.min() <= chosen.max() < length:
        raise ValueError(f"{name} must be indices below {length}, got {chosen.min()} to {chosen.max()}.")
    indices = np.flatnonzero(chosen) if mask else chosen
    if len(indices) == 0:
        raise ValueError(f"{name} must leave at least one, got none of {length}.")
    return indices

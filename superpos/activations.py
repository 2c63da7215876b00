"""The sides of a comparison: read, paired by the names of their images, and divided into what fits views and what is scored."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from superpos import arrangements, brain, data
from superpos import folds as folds_lib
from superpos.checks import as_array, check_range, labels_of
from superpos.images import Images
from superpos.linalg import matmul
from superpos.results import did_you_mean
from superpos.views import Oracle, View

# What is done to the positions of an image once it is encoded: `(images, positions, k)` to `(images, k)`.
POOLS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda units: jnp.mean(units, axis=1),
    "max": lambda units: jnp.max(units, axis=1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One system in a comparison.

    Attributes:
        x: activations or responses, `(samples, units)` or `(images, positions, units)`: an array, a `superpos.data.Store`, or a
            path that `superpos.data.load` takes. Of a path that `superpos.networks.io.extract` wrote, the names and hashes of
            its images are read too.
        train: samples that views are fitted on, of the same units, and that are not scored; or several such. By default a part
            of x, which is then not scored.
        views: that only this side has, by name, such as a loaded SAE; they stand in for views of the comparison of that name.
        names: of the images, one a row. Sides with names are paired by
            them with the first side, others row by row.
        hashes: of the images, one a row: equal for copies. Copies are one group, and are refused where they train.
        truth: of each row, `(rows, features)` or `(rows, positions, features)`: for views that are shown the features.
        reliability: of each unit, `(units,)`, for scores that are corrected for noise; see `superpos.reliability`.
        axes: the name of each axis of x and train, where they are not samples, ..., units: see `superpos.data.flatten`.
    """

    x: Any
    train: Any = None
    views: Mapping[str, View] = dataclasses.field(default_factory=dict)
    names: Sequence[str] | None = None
    hashes: Any = None
    truth: Any = None
    reliability: ArrayLike | None = None
    axes: Sequence[str] | None = None


def recorded(recording: Any, minimum: float = 0.1, **fields: Any) -> Side:
    """A recording as a side: its responses, the names and hashes of its images, and how reliable its units are.

    Args:
        recording: a `superpos.brain.Recording`.
        minimum: reliability that at least one unit must have.
        **fields: further fields of `Side`.

    Raises:
        ValueError: no unit is as reliable as the minimum.

    >>> from superpos import brain
    >>> recording, _ = brain.simulate(jax.random.key(0), 50, 4, 3)
    >>> recorded(recording).reliability.shape
    (4,)
    """
    reliability = None
    # From stimuli with a single repeat it would be too high: that of the means of several.
    if recording.repeats is not None and (recording.n_repeats >= 2).all():
        if not 0 < minimum < 1:
            raise ValueError(f"minimum must be between 0 and 1, got {minimum}.")
        reliability = np.asarray(recording.reliability())
        if not (reliability >= minimum).any():
            raise ValueError(
                f"minimum must be at most the highest reliability of a unit, {reliability.max():.3g}, got {minimum}."
            )
    hashes = None if recording.images is None else brain.image_hashes(recording)
    return Side(recording.responses, names=recording.images, hashes=hashes, reliability=reliability, **fields)


def superposed(
    key: Key[Array, ""],
    features: Float[Array, "samples features"],
    n_units: int,
    *,
    upper: float = np.inf,
    steps: int = 500,
    **options: Any,
) -> Side:
    """Features in superposition as a side: units that mix them in a random arrangement of unit norm, with the oracle as a view.

    Args:
        key: draws the arrangement.
        features: `(samples, n_features)`.
        n_units: the fewer, the more superposed.
        upper, steps, **options: of the `superpos.views.Oracle`, which knows the arrangement; it needs a `penalty`.

    >>> side = superposed(jax.random.key(0), jnp.ones((5, 8)), 3, penalty=0.01)
    >>> side.x.shape, list(side.views)
    ((5, 3), ['oracle'])
    """
    mixing = arrangements.unit_norm(key, features.shape[1], n_units)
    oracle = Oracle(mixing, upper=upper, steps=steps, **options)
    return Side(np.asarray(matmul(features, mixing)), views={"oracle": oracle})


class Divided(NamedTuple):
    """All sides on the same images, divided into samples that fit views and samples that are scored.

    Attributes:
        scored: of each side, `(images, positions, units)`, float32.
        training: of each side, `(samples, units)`, image by image in random order; empty where nothing is there to fit on.
        truth: the features behind the training samples of the sides that have them.
        images: `(images,)`, the row of each scored image in x of the first side, or in what the names leave of it.
        folds: `(images,)`, the fold of each.
        n_folds: number of folds.
        groups: `(images,)`, the group of each.
        dropped: of each side, the rows of x that have no partner on every other side.
    """

    scored: dict[str, Float[np.ndarray, "images positions units"]]
    training: dict[str, Float[np.ndarray, "samples units"]]
    truth: dict[str, Float[np.ndarray, "samples features"]]
    images: Int[np.ndarray, " images"]
    folds: Int[np.ndarray, " images"]
    n_folds: int
    groups: Int[np.ndarray, " images"]
    dropped: dict[str, int]


class _Source(NamedTuple):
    """What was read of one array: `(images, positions, units)`, and what a manifest tells of it."""

    array: np.ndarray
    path: str | None
    names: tuple[str, ...] | None
    hashes: np.ndarray | None
    where: Any  # positions of the grid that were taken


def divide(
    sides: Mapping[str, Side],
    *,
    fitted: Sequence[str] = (),
    split: float = 0.5,
    folds: int | ArrayLike | str | os.PathLike | None = 5,
    groups: ArrayLike | None = None,
    pool: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    gap: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Divided:
    """Reads all sides, pairs them, and divides their images. The one place where this is done.

    Args:
        sides: by name; all of the same images.
        fitted: the sides on which views are fitted.
        split: share of the groups that fit views, where one of `fitted` has no samples of its own to train on; they are scored
            on no side.
        folds: number of folds, or the fold of each row, -1 for one that is not scored: an array, or its path; or "blocks": five
            that are runs of images, see `superpos.folds.contiguous`.
        groups: `(rows,)` integers: rows of one group are neither divided between fitting and scoring nor between folds.
        pool: what is done to positions, a name out of `POOLS`; None: each position is a sample.
        pairs: of sides that are compared, and so must have the same positions where these are not pooled.
        gap: images (or groups) that are left out between folds, and between them and those that fit views: all of these are
            then runs of images in their order. None: they are shuffled, but for folds="blocks", where it is 0.
        key: of the split, the folds and the order of the training samples; by default `jax.random.key(0)`.

    Raises:
        ValueError: sides that cannot be read, hold NaN, have different rows, or train on what is scored; settings that do not
            fit. One sentence, which names the side.
    """
    if not sides:
        raise ValueError("sides must hold at least one side.")
    if pool is not None and pool not in POOLS:
        raise ValueError(f"pool must be {', '.join(POOLS)} or None, got {pool!r}{did_you_mean(pool, POOLS)}.")
    split_key, fold_key, order_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
    sources = {name: _read(name, side, side.x) for name, side in sides.items()}
    rows, dropped = _pair(sources)
    n_rows = len(next(iter(rows.values())))
    for a, b in pairs if pool is None else ():
        _check_positions((a, sources[a]), (b, sources[b]))
    first = next(iter(sources))
    named_groups = _groups(sources, rows, groups, n_rows)
    own = {name: _own(name, side, sources[name]) for name, side in sides.items()}

    if isinstance(folds, str) and folds == folds_lib.BLOCKS:
        folds, gap = 5, gap or 0
    if gap is not None and not isinstance(folds, int | np.integer):
        raise ValueError('gap must be left out where folds are given: it is for a number of folds, or folds="blocks".')
    if isinstance(folds, str | os.PathLike):
        folds = np.asarray(data.load(os.fspath(folds)))
    if folds is None:
        raise ValueError("folds must be a number of folds, or the fold of each row: views are scored on held-out samples.")
    given = None if isinstance(folds, int | np.integer) else np.asarray(folds)
    if given is not None and given.shape != (len(sources[first].array),):
        raise ValueError(f"folds must be one a row, ({len(sources[first].array)},), got shape {given.shape}.")
    given = None if given is None else given[rows[first]]
    scored, training = np.arange(n_rows), np.arange(0)
    if any(own[name] is None for name in fitted):
        training, scored = folds_lib.split(named_groups, split, split_key)
        if gap is not None:  # the first images are scored, the last fit views
            training, scored = np.arange(len(scored) + gap, n_rows), np.arange(len(scored))
    if given is not None:
        scored = scored[given[scored] >= 0]
        if not len(scored):
            raise ValueError("folds must leave some rows to be scored, got none at or above 0.")
    _refuse_scored(sides, sources, own, rows, scored)

    assigned: Any = folds if given is None else given[scored]
    if gap is not None:
        assigned = folds_lib.contiguous(len(scored), int(np.asarray(folds)), gap, named_groups[scored])
    ids, n_folds = folds_lib.assign_folds(
        len(scored),
        assigned,
        None if given is None else int(given.max()) + 1,
        key=fold_key,
        groups=named_groups[scored],
    )
    fits: dict[str, np.ndarray] = {}
    truth: dict[str, np.ndarray] = {}
    for name, source in sources.items():
        others = own[name]
        if sides[name].truth is not None:
            truth[name] = _truth(name, sides[name], source, others)[rows[name][training]].reshape(
                -1, np.shape(sides[name].truth)[-1]
            )
        if others is None:
            chosen = source.array[rows[name][training]]
        else:
            chosen = others[np.asarray(jax.random.permutation(order_key, len(others)))]
        fits[name] = chosen.reshape(-1, source.array.shape[-1])
    return Divided(
        {name: source.array[rows[name][scored]] for name, source in sources.items()},
        fits,
        truth,
        rows[first][scored],
        np.asarray(ids),
        n_folds,
        named_groups[scored],
        dropped,
    )


class Labelled(NamedTuple):
    """Activations to images of known categories.

    Attributes:
        units: `(images, positions, units)`, float32.
        labels: the category of each image, 0 to the number of categories - 1.
        categories: their names.
    """

    units: Float[np.ndarray, "images positions units"]
    labels: Int[np.ndarray, " images"]
    categories: tuple[str, ...]


def read_labelled(activations: Any, *, labels: Any = None, images: Any = None, axes: Sequence[str] | None = None) -> Labelled:
    """Reads activations to images, and the category of each.

    Args:
        activations: as x of a `Side`.
        labels: whole numbers, one an image, as an array or a path that `superpos.data.load` takes; by default the folder in
            which an image lies is its category.
        images: folder or zip, whose sorted names are the images; see `superpos.images.Images`.
        axes: as of a `Side`.

    Raises:
        ValueError: files that cannot be read, hold NaN, or do not fit each other; fewer than two categories. One sentence that
            begins with the argument.

    >>> told = read_labelled(np.zeros((4, 3)), labels=np.array([7, 9, 7, 9]))
    >>> told.units.shape, told.labels.tolist(), told.categories
    ((4, 1, 3), [0, 1, 0, 1], ('7', '9'))
    """
    units = _read("activations", Side(activations, axes=axes), activations).array
    if images is None and labels is None:
        raise ValueError("activations needs categories: labels, one an image, or images that lie in one folder a category.")
    folders = None
    if images is not None:
        try:
            folders = Images(images).folders
        except (ValueError, OSError) as error:
            raise ValueError(f"images: {error}") from error
        if len(folders) != len(units):
            raise ValueError(f"images must be the {len(units)} samples of activations, got {len(folders)} images.")
    if labels is not None:
        try:
            given = np.asarray(data.load(os.fspath(labels)) if isinstance(labels, str | os.PathLike) else labels)
        except (ValueError, OSError) as error:
            raise ValueError(f"labels: {error}") from error
        if given.shape != (len(units),) or given.dtype.kind not in "iu":
            got = f"{given.dtype} of shape {given.shape}"
            raise ValueError(f"labels must be {len(units)} whole numbers, one a sample of activations, got {got}.")
    else:
        given = np.array(folders)
    values, numbers = np.unique(given, return_inverse=True)
    if len(values) < 2:
        argument = "images" if labels is None else "labels"
        raise ValueError(f"{argument} must have at least 2 categories (of images: folders that they lie in), got 1.")
    return Labelled(units, numbers, tuple(map(str, values)))


def _read(name: str, side: Side, value: Any) -> _Source:
    """One array of a side, or one sentence that names it."""
    path, told = None, None
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if not path:
            raise ValueError(f"{name} names no file.")
        try:
            value, told = data.load(path), data.manifest(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error
    where = path or name
    given, value = value, value if path else as_array(value, name)
    if 0 in value.shape:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}.")
    try:
        array = _in_order(value, side.axes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool) or jnp.iscomplexobj(array):
        raise ValueError(f"{name} must hold real numbers, got an array of {array.dtype}.")
    with np.errstate(over="ignore"):  # what does not fit is infinite, and named below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite, but {where} holds {array.size - np.isfinite(array).sum()} NaN or infinite values."
        )
    flat_units = array.reshape(-1, array.shape[-1])
    check_range(name, flat_units.min(axis=0), flat_units.max(axis=0))
    names = side.names if given is side.x or path == _path(side.x) else None
    if names is None and path is None and (labels := labels_of(given)) and len(set(labels)) == len(labels):
        names = labels
    hashes: Any = side.hashes if given is side.x or path == _path(side.x) else None
    position = None
    if told is not None:
        names = told["images"] if names is None else names
        hashes = told["image_sha256"] if hashes is None else hashes
        position = (told["position"], told["seed"], tuple(told["array"]["grid"]))
        position = None if told["position"] in ("mean", "center", "class") else position
    for what, values in (("names", names), ("hashes", hashes)):
        if values is not None and len(values) != len(array):
            raise ValueError(f"{what} of {name} must be one a row, {len(array)}, got {len(values)}.")
    return _Source(
        array,
        path,
        None if names is None else tuple(map(str, names)),
        None if hashes is None else np.asarray(hashes),
        position,
    )


def _path(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def _in_order(array: Any, axes: Sequence[str] | None) -> np.ndarray:
    """Activations as `(images, positions, units)`."""
    rows, groups = data.flatten(array, axes)
    n = len(rows) if groups is None else int(groups[-1]) + 1
    return rows.reshape(n, -1, rows.shape[-1])


def _pair(sources: Mapping[str, _Source]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The rows of each side that are the same images, and how many of each have no partner.

    Sides with names are paired by them with the first that has any; those without are in that side's order.
    """
    first = next((name for name, source in sources.items() if source.names is not None), next(iter(sources)))
    n, names = len(sources[first].array), sources[first].names
    where: dict[str, dict[str, int]] = {}
    for name, source in sources.items():
        if source.names is None:
            if len(source.array) != n:
                raise ValueError(_unequal(first, name, sources[first].array.shape, source.array.shape))
            continue
        if again := [image for image, count in Counter(source.names).items() if count > 1]:
            raise ValueError(f"names of {name} must hold each image once, but {again[0]} is there more than once.")
        where[name] = {image: i for i, image in enumerate(source.names)}
    order = [i for i in range(n) if names is None or all(names[i] in images for images in where.values())]
    if not order:
        raise ValueError(f"names of the sides must have images in common, but {', '.join(where)} have none.")
    chosen = [] if names is None else [names[i] for i in order]
    rows = {name: np.array([where[name][image] for image in chosen]) if name in where else np.array(order) for name in sources}
    reference = None
    for name, source in sources.items():
        if source.hashes is None:
            continue
        mine = source.hashes[rows[name]]
        if reference is not None and (differ := np.flatnonzero(mine != reference[1])).size:
            raise ValueError(
                f"{reference[0]} and {name} must be of the same images, but {len(differ)} of {len(order)} that are named alike "
                f"are not, first {chosen[differ[0]] if chosen else order[differ[0]]}."
            )
        reference = (name, mine) if reference is None else reference
    return rows, {name: len(source.array) - len(order) for name, source in sources.items()}


def _unequal(first: str, name: str, a: tuple[int, ...], b: tuple[int, ...]) -> str:
    swapped = [side for side, own, other in ((first, a, b), (name, b, a)) if own[-1] == other[0]]
    hint = f" Try axes of {swapped[-1]}: units,samples." if swapped else ""
    return (
        f"{first} and {name} must have the same samples, got {a[0]} and {b[0]} "
        f"(as samples x positions x units: {a} and {b}).{hint}"
    )


def _check_positions(*pair: tuple[str, _Source]) -> None:
    """Without pooling, every position is a sample, and must be the same one on both sides."""
    (first, a), (second, b) = pair
    if a.array.shape[1] != b.array.shape[1]:
        raise ValueError(
            f"{first} and {second} must have the same positions, got {a.array.shape[1]} and {b.array.shape[1]}: "
            "pass pool to pool them."
        )
    if a.where is not None and b.where is not None and a.where != b.where:
        raise ValueError(
            f"{first} and {second} must be of the same positions (position, seed and grid), but {a.path} has {a.where} and "
            f"{b.path} {b.where}."
        )


def _groups(sources: Mapping[str, _Source], rows: Mapping[str, np.ndarray], groups: Any, n_rows: int) -> np.ndarray:
    """The group of each paired row, numbered: as given, and copies of one image together."""
    from scipy.sparse import block_array, coo_array
    from scipy.sparse.csgraph import connected_components

    first = next(iter(sources))
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != (len(sources[first].array),) or groups.dtype.kind not in "iu":
            raise ValueError(
                f"groups must be integers, one a row of {first}, ({len(sources[first].array)},), "
                f"got {groups.dtype} {groups.shape}."
            )
        parts = [np.unique(groups[rows[first]], return_inverse=True)[1]]
    else:
        parts = [np.arange(n_rows)]
    # Copies of one image join the groups that they are in.
    hashed = [source.hashes[rows[name]] for name, source in sources.items() if source.hashes is not None]
    parts += [np.unique(hashes, return_inverse=True)[1] for hashes in hashed]
    joined = parts[0]
    for part in parts[1:]:
        edges = coo_array((np.ones(n_rows), (joined, part)), shape=(n_rows, n_rows))
        both = block_array([[None, edges], [edges.T, None]])
        joined = connected_components(both, directed=False)[1][:n_rows][joined]
    return np.unique(joined, return_inverse=True)[1]


def _own(name: str, side: Side, source: _Source) -> np.ndarray | None:
    """The samples that a side brings to fit its views on, `(images, positions, units)`."""
    if side.train is None:
        return None
    several = isinstance(side.train, tuple | list) and not isinstance(side.train, str)
    parts = [_read(f"{name}_train", side, part) for part in (side.train if several else [side.train])]
    if not parts:
        return None
    for part in parts:
        if part.array.shape[-1] != source.array.shape[-1]:
            raise ValueError(f"{name}_train must have {source.array.shape[-1]} units, got {part.array.shape[-1]}.")
        if part.array.shape[1] != parts[0].array.shape[1]:
            raise ValueError(
                f"{name}_train must have {parts[0].array.shape[1]} positions in each part, got {part.array.shape[1]}."
            )
    return np.concatenate([part.array for part in parts])


def _truth(name: str, side: Side, source: _Source, own: np.ndarray | None) -> np.ndarray:
    """The features of each row and position."""
    truth = np.asarray(side.truth, np.float32)
    if own is not None:
        raise ValueError(f"truth of {name} must go with a part of its own samples that fits views: leave its train out.")
    if truth.ndim < 2 or truth.reshape(len(truth), -1, truth.shape[-1]).shape[:2] != source.array.shape[:2]:
        raise ValueError(
            f"truth of {name} must be of its rows and positions, {source.array.shape[:2]}, got shape {truth.shape}."
        )
    return truth.reshape(len(truth), -1, truth.shape[-1])


def _refuse_scored(
    sides: Mapping[str, Side],
    sources: Mapping[str, _Source],
    own: Mapping[str, np.ndarray | None],
    rows: Mapping[str, np.ndarray],
    scored: np.ndarray,
) -> None:
    """Refuses training samples that are scored: by file, by the hashes of images, and by value."""
    files = {Path(source.path).resolve(): name for name, source in sources.items() if source.path}
    hashes: set[str] = set()
    for name, source in sources.items():
        if source.hashes is not None:
            hashes |= set(source.hashes[rows[name]][scored].tolist())
    for name, side in sides.items():
        others = own[name]
        if others is None:
            continue
        parts = side.train if isinstance(side.train, tuple | list) else [side.train]
        for part in parts:
            path = _path(part)
            if path is None:
                continue
            if Path(path).resolve() in files:
                raise ValueError(f"{name}_train must hold images that are not scored, got {path}, which is scored too.")
            told = data.manifest(path)
            if told is not None and (common := hashes.intersection(told["image_sha256"])):
                raise ValueError(f"{name}_train must hold images that are not scored, but {path} has {len(common)} that are.")
        common_rows = _in_both(sources[name].array[rows[name][scored]], others)
        if common_rows:
            raise ValueError(f"{name}_train must hold samples that are not scored, but {common_rows} of them are.")


def _in_both(scored: np.ndarray, training: np.ndarray) -> int:
    """How many samples are in both, where they are more than one in a hundred of those that tell anything.

    Samples tell nothing that are scored more than once, or whose units are silent but for one value: they are alike by chance.
    Neither rescaled nor rounded copies are noticed.
    """

    def told(array: np.ndarray) -> Counter:
        rows = np.ascontiguousarray(array.reshape(-1, array.shape[-1]))
        silent = rows == 0
        low, high = np.where(silent, np.inf, rows).min(axis=1), np.where(silent, -np.inf, rows).max(axis=1)
        return Counter(row.tobytes() for row in rows[low < high])

    single = {row for row, count in told(scored).items() if count == 1}
    common = len(single.intersection(told(training)))
    return common if 100 * common > len(single) else 0

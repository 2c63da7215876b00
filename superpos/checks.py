"""Checks of what callers pass, each with one sentence that names the argument, what it got and what it takes.

Values are checked where arrays are concrete; under a transformation only shapes and dtypes are.
"""

import math
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SIDES = ("source", "target")


def as_array(value: Any, name: str = "array") -> Any:
    """A traced array as it is, anything else as a NumPy array, so that its values can be checked even inside `jit`.

    Args:
        value: an array of NumPy, JAX or PyTorch (of any device, detached if it requires a gradient), a data frame of pandas, an
            xarray.DataArray, or nested lists. Missing values of pandas become NaN.
        name: of the argument, for errors.

    Raises:
        ValueError: masked entries, sparse matrices, rows of different lengths, and paths in place of a side.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, str | os.PathLike) and name in SIDES:
        raise ValueError(f"{name} must be an array, got the path {os.fspath(value)!r}: load it; sp.align_stream reads files.")
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must not have masked entries, got {np.ma.count_masked(value)}: leave what they are in out.")
    if hasattr(value, "tocsr"):
        raise ValueError(f"{name} must be a dense array, got a sparse {type(value).__name__}: pass its toarray().")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.numpy() if "bfloat16" not in str(value.dtype) else value.float().numpy()
    elif hasattr(value, "to_numpy") and hasattr(value, "dtypes" if hasattr(value, "columns") else "array"):  # pandas
        dtypes = value.dtypes if hasattr(value, "columns") else [value.dtype]
        if any(isinstance(dtype, np.dtype) is False and getattr(dtype, "kind", "O") in "fiub" for dtype in dtypes):
            value = value.to_numpy(dtype=np.float64, na_value=np.nan)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a (n_samples, n_units) array, got rows of different lengths.") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def is_concrete(*arrays: Any) -> bool:
    """Whether the values of all arrays are known, as they are not under a transformation."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def check_pair(source: ArrayLike, target: ArrayLike) -> tuple[Any, Any]:
    """Both sides as floating-point arrays, or one clear sentence."""
    checked = []
    for name, value in zip(SIDES, (source, target), strict=True):
        array = as_array(value, name)
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool) or jnp.iscomplexobj(array):
            raise ValueError(f"{name} must hold real numbers, got an array of {array.dtype}.")
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"{name} must be a non-empty (n_samples, n_units) array, got shape {array.shape}.")
        dtype = floating(array.dtype)
        if is_concrete(array):
            with np.errstate(over="ignore"):  # an overflow is an infinity, and named below
                array = array.astype(dtype, copy=False)
            check_values(name, array)
        checked.append(array if array.dtype == dtype else array.astype(dtype))
    x, y = checked
    check_lengths(x.shape, y.shape)
    return x, y


def offsets(array: Any) -> np.ndarray | None:
    """The means of units so far from 0 that a cast to the dtype of computation would cost digits; None where there is none.

    Args:
        array: from `as_array`.
    """
    if not is_concrete(array) or array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        return None
    if array.dtype.itemsize <= np.dtype(floating(array.dtype)).itemsize and array.dtype.kind == "f":
        return None
    low, high = array.min(axis=0).astype(np.float64), array.max(axis=0).astype(np.float64)
    far = (high > low) & (np.maximum(np.abs(low), np.abs(high)) > 64 * (high - low))
    if not far.any() or not np.isfinite([low, high]).all():
        return None
    return np.where(far, low + (array - low).mean(axis=0), 0)


def floating(dtype: Any) -> np.dtype:
    """What values of a dtype are computed in."""
    return jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))


def check_lengths(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Both shapes hold the same number of samples, on all axes but the last."""
    x, y = math.prod(source[:-1]), math.prod(target[:-1])
    if x != y:
        hint = " Are the axes of one of them swapped?" if x in target or y in source else ""
        raise ValueError(f"source and target must have the same samples, got {x} and {y} (shapes {source} and {target}).{hint}")


def labels_of(value: Any, numbered: bool = False) -> list[str] | None:
    """The labels of the samples of a data frame or an xarray.DataArray; pandas' own numbers are none unless `numbered`."""
    index = getattr(value, "index", None)
    if index is not None and hasattr(index, "start") and not numbered:
        return None
    if index is None or callable(index):
        dims = getattr(value, "dims", ())
        if not dims or dims[0] not in getattr(value, "coords", ()):
            return None
        index = value.coords[dims[0]].values
    return list(map(str, index))


def check_labels(source: Any, target: Any) -> None:
    """Samples that both sides label are in one order."""
    x, y = labels_of(source, numbered=True), labels_of(target, numbered=True)
    if x is None or y is None or x == y:
        return
    if sorted(x) == sorted(y):
        raise ValueError("source and target label the same samples in different orders: reindex one by the other's labels.")
    if labels_of(source) is None or labels_of(target) is None:  # names against mere numbers say nothing
        return
    raise ValueError(
        f"source and target label their samples, but share only {len(set(x) & set(y))} of {len(set(x) | set(y))} labels: "
        "select and order the samples that both have, or pass arrays."
    )


def check_values(name: str, array: np.ndarray) -> None:
    """Finite, and of a scale that `check_range` takes: two passes over the array."""
    low, high = array.min(axis=0), array.max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        bad = array.size - np.isfinite(array).sum()
        raise ValueError(f"{name} must be finite in {array.dtype}, got {bad} NaN or infinite values.")
    check_range(name, low, high)


def check_range(name: str, low: np.ndarray, high: np.ndarray) -> None:
    """A scale whose squares neither overflow nor vanish in float32, by the least and greatest value of each unit."""
    largest = max(-low.min(), high.max())
    spread = (high - low)[high > low].min(initial=np.inf)
    size = np.maximum(np.abs(low), np.abs(high))
    lost = (high > low) & (high - low < 1024 * np.finfo(low.dtype).eps * size) if low.dtype.kind == "f" else np.zeros(1, bool)
    if lost.any() and largest <= 1e15:
        warnings.warn(
            f"{name} has {lost.sum()} units whose variation {low.dtype} holds to fewer than three digits beside their means, "
            f"first unit {np.argmax(lost)}: subtract the means in float64 first.",
            RuntimeWarning,
            stacklevel=2,
        )
    if largest > 1e15 or spread < 1e-15:
        raise ValueError(
            f"{name} must have values below 1e15 and units that vary by at least 1e-15, got values up to "
            f"{largest:.0e} and a unit that varies by {spread:.0e}: rescale them."
        )


def check_live(name: str, array: np.ndarray, ids: ArrayLike, n_folds: int) -> None:
    """Some unit of a side varies in every fold."""
    ids = np.asarray(ids)
    rows = [np.flatnonzero(ids == fold) for fold in range(n_folds)]
    for some in (16, None):  # a few samples of each fold nearly always show a live unit
        parts = [array[fold[:some]] for fold in rows]
        live = np.all([part.max(axis=0) > part.min(axis=0) for part in parts], axis=0)
        if live.any():
            return
    fewest = min(map(len, rows))
    if fewest < 2 and np.any(array.max(axis=0) > array.min(axis=0)):
        raise ValueError(
            f"{name} has {len(ids)} scored samples in {n_folds} folds, one of which has {fewest}: use fewer folds."
        )
    raise no_live_unit(name, live.size)


def no_live_unit(name: str, n_units: int) -> ValueError:
    """The error for a side whose every unit is constant in some fold."""
    return ValueError(f"{name} has no live unit: each of its {n_units} units is constant in some fold.")


AXES = {  # names that an axis of repeated responses may have
    "stimuli": ("stimulus", "stimuli", "stimulus_id", "image", "images", "sample", "samples", "presentation"),
    "repeats": ("repeat", "repeats", "repetition", "repetitions", "trial", "trials"),
    "units": ("unit", "units", "neuroid", "neuron", "neurons", "site", "sites", "voxel", "voxels", "channel", "channels"),
}


def repeated(responses: Any, name: str = "responses") -> Any:
    """Repeated responses as an array `(n_stimuli, n_repeats, n_units)`.

    Args:
        responses: an array with its axes in this order, or a labelled one (xarray) with names out of `AXES`.
        name: of the argument, for errors.

    Raises:
        ValueError: not three axes; infinity; more repeats than stimuli in an array without names, whose axes are more likely
            swapped; or names that do not say which axis is which.
    """
    dims = getattr(responses, "dims", None)
    if dims is not None:
        order = [[dim for dim in dims if str(dim).lower() in names] for names in AXES.values()]
        if len(dims) != 3 or any(len(found) != 1 for found in order):
            raise ValueError(f"{name} must have an axis each of {', '.join(AXES)}, got axes named {', '.join(map(str, dims))}.")
        responses = responses.transpose(*(found[0] for found in order)).values
    responses = as_array(responses, name)
    if responses.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got an array of {responses.dtype}.")
    if not isinstance(responses, jax.core.Tracer) and np.isinf(responses).any():
        raise ValueError(f"{name} must be finite, or NaN where missing, got {np.isinf(responses).sum()} infinite.")
    if responses.ndim != 3:
        raise ValueError(f"{name} must be (n_stimuli, n_repeats, n_units), got {responses.shape}.")
    if dims is None and responses.shape[1] > responses.shape[0]:
        raise ValueError(
            f"{name} must be (n_stimuli, n_repeats, n_units), got {responses.shape}: more repeats than stimuli. Are the "
            "first two axes swapped? An xarray.DataArray with named dims is taken in any order."
        )
    if not isinstance(responses, jax.core.Tracer) and responses.size and responses.dtype.itemsize > 2:
        # A constant changes nothing of what repeats tell, and is taken off before single precision loses digits beside it.
        known = np.sum(~np.isnan(responses), axis=(0, 1))
        responses = responses - np.nansum(responses, axis=(0, 1), dtype=np.float64) / np.maximum(known, 1)
    return responses


def positive_integer(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless a value is an integer of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")

"""Checks of what callers pass, each with one sentence that names the argument, what it got and what it takes.

Values are checked where arrays are concrete; under a transformation only shapes and dtypes are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SIDES = ("source", "target")


def as_array(value: Any) -> Any:
    """A traced array as it is, anything else as a NumPy array, so that its values can be checked even inside `jit`."""
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)


def is_concrete(*arrays: Any) -> bool:
    """Whether the values of all arrays are known, as they are not under a transformation."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def check_pair(source: ArrayLike, target: ArrayLike) -> tuple[Any, Any]:
    """Both sides as floating-point arrays, or one clear sentence."""
    checked = []
    for name, value in zip(SIDES, (source, target), strict=True):
        try:
            array = as_array(value)
        except ValueError as error:
            raise ValueError(f"{name} must be a (n_samples, n_units) array, got rows of different lengths.") from error
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


def floating(dtype: Any) -> np.dtype:
    """What values of a dtype are computed in."""
    return jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))


def check_lengths(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Both shapes hold the same number of samples, on all axes but the last."""
    x, y = math.prod(source[:-1]), math.prod(target[:-1])
    if x != y:
        hint = " Are the axes of one of them swapped?" if x in target or y in source else ""
        raise ValueError(f"source and target must have the same samples, got {x} and {y} (shapes {source} and {target}).{hint}")


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
    raise no_live_unit(name, live.size)


def no_live_unit(name: str, n_units: int) -> ValueError:
    """The error for a side whose every unit is constant in some fold."""
    return ValueError(f"{name} has no live unit: each of its {n_units} units is constant in some fold.")

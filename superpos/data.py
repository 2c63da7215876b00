"""Readers of activations."""

import hashlib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int


def load(path: str) -> np.ndarray:
    """Reads one array: `file.npy` (memory-mapped), or `file.npz:key` (the key may be left out where there is just one).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an array of real numbers, or has no such key.
    """
    file, key = _split(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, or is not a file.")
    try:
        content = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a .npy or .npz file of numbers.") from error
    if isinstance(content, np.lib.npyio.NpzFile):
        keys = content.files
        if not key and len(keys) == 1:
            key = keys[0]
        if key not in keys:
            asked = f"no array {key!r}" if key else "several arrays"
            raise ValueError(f"{file} has {asked}: name one as {file}:KEY, KEY out of {', '.join(keys)}.")
        content = content[key]
    if not isinstance(content, np.ndarray):
        raise ValueError(f"{path} is not an array.")
    if content.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold real numbers, got an array of {content.dtype}.")
    return content


def fingerprint(path: str) -> str:
    """SHA-256 of the file behind a path that `load` takes; empty where there is none."""
    file, _ = _split(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _split(path):
    """The file and the key, empty where there is none, of a path that `load` takes."""
    name, archive, key = path.partition(".npz:")
    return Path(name + archive.rstrip(":")), key


def flatten(array: np.ndarray, axes: Sequence[str] | None = None) -> tuple[np.ndarray, Int[np.ndarray, " samples"] | None]:
    """Brings activations into the form `(samples, units)`.

    Args:
        array: two or more axes.
        axes: the name of each axis; one is "samples" and one "units", the others (positions, repeats) count as further
            samples. By default the first axis is samples and the last units.

    Returns:
        The `(samples, units)` array, and the group of each sample, its index on the samples axis: `None` for two axes.

    Raises:
        ValueError: fewer than two axes, or names that do not fit.
    """
    if array.ndim < 2:
        raise ValueError(f"activations must have at least two axes, samples and units, got shape {array.shape}.")
    names = list(axes) if axes else ["samples", *(f"axis {i}" for i in range(1, array.ndim - 1)), "units"]
    if len(names) != array.ndim or names.count("samples") != 1 or names.count("units") != 1:
        raise ValueError(
            f"axes must name each of the {array.ndim} axes of shape {array.shape}, "
            f"one of them samples and one units, got {','.join(names)}."
        )
    # Other axes in the order of their names, so that two sides which name them alike pair the same samples.
    others = sorted(name for name in names if name not in ("samples", "units"))
    if len(set(others)) < len(others):
        raise ValueError(f"axes must have different names, got {','.join(names)}.")
    array = np.transpose(array, [names.index(name) for name in ("samples", *others, "units")])
    repeats = math.prod(array.shape[1:-1])
    groups = np.repeat(np.arange(array.shape[0]), repeats) if array.ndim > 2 else None
    return array.reshape(-1, array.shape[-1]), groups

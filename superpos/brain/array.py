"""Reader of responses in a file of one's own."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from superpos import data
from superpos.brain.files import find_images, in_order, read_apart, sorted_images, swapped_hint
from superpos.brain.recording import Recording


def load_array(
    path: str | os.PathLike,
    axes: str | Sequence[str] = "stimuli,units",
    *,
    stimuli: Any = None,
    units: Mapping[str, Any] | None = None,
    sessions: Any = None,
    images: str | os.PathLike | None = None,
) -> Recording:
    """Responses in a file of one's own.

    Args:
        path: `file.npy`, `file.npz:key`, the folder of a Zarr array, or MATLAB's `file.mat:variable` (version 7.3
            with h5py). The key may be left out where there is just one.
        axes: the name of each axis in its order: stimuli, units and, for single trials (NaN where one is missing), repeats.
        stimuli, units, sessions: see `Recording`; sessions may be the path of an array, as `superpos.data.load` takes it.
        images: folder or zip with an image for each stimulus: named by their identifiers where `stimuli` are given; otherwise
            sorted by name, and the names are the identifiers; numbers in them need zeros in front.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an array of real numbers, axes that do not fit it, or images that do not fit the stimuli.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/mine.npy", np.zeros((5, 3, 2)))
    ...     load_array(f"{folder}/mine.npy", "units,stimuli,repeats").repeats.shape
    (3, 2, 5)
    """
    names = axes.replace(" ", "").split(",") if isinstance(axes, str) else list(axes)
    if sorted(names) not in (["stimuli", "units"], ["repeats", "stimuli", "units"]):
        raise ValueError(f"axes must name stimuli, units and perhaps repeats, each once, got {','.join(names)}.")
    path = str(path)
    values = in_order(_matlab(path) if re.search(r"\.mat(:|$)", path) else data.load(path), names, path)
    image_names = None
    if images is not None:
        image_names = sorted_images(images) if stimuli is None else find_images(images, stimuli)
        stimuli = image_names if stimuli is None else stimuli
    if stimuli is not None and len(stimuli) != len(values):
        hint = swapped_hint(len(stimuli), values.shape)
        raise ValueError(f"{path} has {len(values)} stimuli as {','.join(names)}, but {len(stimuli)} are named{hint}.")
    return Recording(
        **{"repeats" if len(names) == 3 else "responses": values},
        stimuli=stimuli,
        units=units or {},
        sessions=data.load(str(sessions)) if isinstance(sessions, str | os.PathLike) else sessions,
        images=image_names,
        image_source=images,
    )


def _matlab(path: str) -> np.ndarray:
    """A variable of a MATLAB file, read by another process: SciPy's reader crashes on some that are damaged."""
    name, _, key = path.partition(".mat:")
    file = Path(name + ".mat" if key else path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, or is not a file.")
    told, arrays = read_apart(file, "a MATLAB file that can be read", _READER, key)
    if needed := told.get("needs"):
        raise ImportError(f"{file} is of MATLAB's version 7.3 (HDF5), which needs a package: pip install {needed}.")
    if not told["key"]:
        asked = f"no variable {key!r}" if key else "several variables"
        raise ValueError(f"{file} has {asked}: name one as {file}:NAME, NAME out of {', '.join(told['keys'])}.")
    if told["kind"]:
        raise ValueError(f"{path} is not an array of numbers, but a {told['kind']}.")
    return arrays["values"]


_READER = r"""
def choose(keys):
    key = keys[0] if not arguments[0] and len(keys) == 1 else arguments[0]
    told.update(keys=keys, key=key if key in keys else "", kind="")
    return told["key"]

with open(path, "rb") as file:
    hdf = b"\x89HDF\r\n" in file.read(1024)
values = np.zeros(0)
if hdf:
    try:
        import h5py
    except ImportError:
        told["needs"] = "h5py"
    else:
        with h5py.File(path) as file:
            if key := choose([key for key in file if not key.startswith("#")]):
                found = file[key]
                kind = found.attrs.get("MATLAB_class", b"double").decode()
                told["kind"] = kind if kind in ("char", "cell", "struct") or not isinstance(found, h5py.Dataset) else ""
                values = values if told["kind"] else np.transpose(found[()])
else:
    from scipy.io import loadmat, whosmat
    if key := choose([key for key, *_ in whosmat(path)]):
        values = loadmat(path, variable_names=[key])[key]
        told["kind"] = "" if isinstance(values, np.ndarray) else type(values).__name__
if values.dtype.hasobject:
    told["kind"] = "list of arrays"
elif not told.get("kind"):
    arrays["values"] = values
"""

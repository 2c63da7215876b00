"""Reader of Brain-Score's assemblies. Those in netCDF-4 need the extra `brain`: `pip install 'superpos[brain]'`."""

import csv
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from superpos import storage
from superpos.brain.files import find_images, read_apart
from superpos.brain.recording import Recording


def load_brainscore(
    path: str | os.PathLike,
    *,
    time_bin: int | str | None = None,
    images: str | os.PathLike | None = None,
    stimulus_set: str | os.PathLike | None = None,
) -> Recording:
    """A Brain-Score (BrainIO) assembly: one xarray variable in a netCDF file.

    The data: brain-score.org; `brainscore_vision.load_dataset(name)` gives an assembly and keeps its file, and
    `xarray.DataArray(assembly).reset_index(list(assembly.indexes)).to_netcdf(path)` writes one. netCDF-4 files, as those of
    Brain-Score are, need h5netcdf or netCDF4; netCDF-3 files need neither.

    Args:
        path: dimensions presentation and neuroid, and perhaps time_bin, in any order. Coordinates of presentations: stimulus_id
            or image_id, and perhaps repetition; presentations of one stimulus are its repeats, NaN is a missing one.
            Coordinates of neuroids: any; most have neuroid_id, region and animal.
        time_bin: which one, counted from 0, where there are several; a number, or its digits.
        images: folder or zip with an image for each stimulus, named by its identifier.
        stimulus_set: where images have other names, the CSV of the stimulus set: columns stimulus_id or image_id, and filename.

    Returns:
        The recording, stimuli sorted by identifier; repeats where a stimulus was presented more than once. All coordinates of
        neuroids are metadata of units.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the file is netCDF-4, and no package that reads it is installed.
        ValueError: not an assembly, several time bins and none named, or an image that is missing.

    >>> import tempfile, xarray
    >>> assembly = xarray.DataArray(np.eye(3), dims=("presentation", "neuroid"))
    >>> assembly = assembly.assign_coords(stimulus_id=("presentation", ["b", "a", "b"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     assembly.to_netcdf(f"{folder}/assembly.nc", engine="scipy")
    ...     recording = load_brainscore(f"{folder}/assembly.nc")
    >>> recording.stimuli.tolist(), recording.n_repeats.tolist()
    (['a', 'b'], [1, 2])
    """
    import xarray

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is not a file.")
    with path.open("rb") as file:
        start = file.read(4)
    readers = [name for name in ("h5netcdf", "netCDF4") if importlib.util.find_spec(name)]
    if start == b"\x89HDF" and not readers:
        raise ImportError(f"{path} is netCDF-4, which needs a package that is not installed: pip install h5netcdf.")
    if start != b"\x89HDF" and start[:3] != b"CDF":
        raise ValueError(f"{path} is not a netCDF file.")
    engine = "scipy" if start[:3] == b"CDF" else readers[0].lower()
    what = "an assembly, one variable in netCDF"
    if engine == "scipy":
        with storage.reading(path, what), xarray.open_dataarray(path, engine=engine) as stored:
            assembly = stored.load()
    else:
        told, arrays = read_apart(path, what, _READER, engine)
        coords = {name: (dims, arrays[key]) for key, (name, dims) in told["coords"].items()}
        assembly = xarray.DataArray(arrays["values"], dims=told["dims"], coords=coords)
    sizes = dict(assembly.sizes)
    if not {"presentation", "neuroid"} <= set(sizes) <= {"presentation", "neuroid", "time_bin"}:
        raise ValueError(
            f"{path} must have dimensions presentation, neuroid and perhaps time_bin, got {', '.join(map(str, sizes))}."
        )
    identifier = next((name for name in ("stimulus_id", "image_id") if name in assembly.coords), None)
    if identifier is None:
        raise ValueError(f"{path} must have a coordinate stimulus_id or image_id, got {', '.join(map(str, assembly.coords))}.")
    if isinstance(time_bin, str) and time_bin.isdecimal():
        time_bin = int(time_bin)
    if not isinstance(time_bin, int | None):
        raise ValueError(f"time_bin must be a whole number, got {time_bin!r}.")
    bins = sizes.get("time_bin", 1)
    if (time_bin is None and bins > 1) or (time_bin is not None and not 0 <= time_bin < bins):
        raise ValueError(f"time_bin must be one of 0 to {bins - 1}, for {path} has {bins}, got {time_bin}.")
    if "time_bin" in sizes:
        assembly = assembly.isel(time_bin=time_bin or 0)
    assembly = assembly.transpose("presentation", "neuroid")
    stimuli, which, count = np.unique(_text(assembly[identifier].values), return_inverse=True, return_counts=True)
    repetition = assembly["repetition"].values if "repetition" in assembly.coords else np.zeros(len(which))
    order = np.lexsort((repetition, which))
    repeats = np.full((len(stimuli), int(np.max(count)), sizes["neuroid"]), np.nan, np.result_type(assembly.dtype, np.float32))
    repeats[which[order], np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)] = assembly.values[order]
    units = {str(name): _text(c.values) for name, c in assembly.coords.items() if c.dims == ("neuroid",)}
    names = None
    if images is not None:
        names = find_images(images, stimuli if stimulus_set is None else _filenames(stimulus_set, stimuli))
    once = np.max(count) == 1
    return Recording(
        responses=repeats[:, 0] if once else None,
        repeats=None if once else repeats,
        stimuli=stimuli,
        units=units,
        images=names,
        image_source=images,
    )


_READER = """
import xarray

def plain(values):
    return values.astype(str) if values.dtype.hasobject else values

with xarray.open_dataarray(path, engine=arguments[0]) as stored:
    assembly = stored.load()
arrays["values"] = plain(assembly.values)
told.update(dims=[str(name) for name in assembly.dims], coords={})
for i, (name, coord) in enumerate(assembly.coords.items()):
    told["coords"][str(i)] = str(name), [str(dim) for dim in coord.dims]
    arrays[str(i)] = plain(coord.values)
"""


def _filenames(file: str | os.PathLike, identifiers: Iterable[str]) -> list[str]:
    """The file names of stimuli, from the table of a BrainIO stimulus set."""
    with Path(file).open(newline="", encoding="utf-8") as content:
        rows = list(csv.DictReader(content))
    column = next((name for name in ("stimulus_id", "image_id") if rows and name in rows[0]), None)
    if column is None or "filename" not in rows[0]:
        raise ValueError(f"stimulus_set must have columns stimulus_id (or image_id) and filename, but {file} has not.")
    names = {row[column]: row["filename"] for row in rows}
    if missing := [identifier for identifier in identifiers if identifier not in names]:
        raise ValueError(f"stimulus_set must name all stimuli, but {file} lacks {len(missing)}, first {missing[0]}.")
    return [names[identifier] for identifier in identifiers]


def _text(values: np.ndarray) -> np.ndarray:
    """Strings come as objects, and from netCDF-3 as bytes."""
    if values.dtype.kind not in "OS":
        return values
    return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in values])

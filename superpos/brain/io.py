"""Readers of recordings, one a layout. Pillow, h5netcdf and the data themselves are the user's to get: see each."""

import csv
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from superpos import data
from superpos.brain.recording import Recording

# The labels in the Algonauts' roi_masks, as their mapping_<class>.npy give them; those are pickles, which could run any code.
REGIONS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}


def load_v4(folder: str | os.PathLike, session: int | str) -> Recording:
    """One session of macaque V4 recordings: spike counts of sites in 100 ms, and the images.

    The data: Cowley, Stan, Pillow & Smith 2023, "Compact deep neural network models of visual cortex",
    github.com/cowleygroup/V4_compact_models, folder `data_V4_responses/` (GPL-3.0).

    Args:
        folder: holds `images_<session>.zip`, with image0001.jpg for the first stimulus, `responses_<session>.npy` `(n_units,
            n_images)` and, where there are single repeats, `responses_raw_<session>.npy` `(n_units, n_images, n_repeats)`, NaN
            where one is missing; or the release's own folders: `images/images_<session>.zip`,
            `responses_repeat_averaged/responses_<session>.npy` and `responses_raw/responses_<session>.npy`.
        session: six digits, such as 210325.

    Returns:
        The recording; its responses are the mean of the repeats, where these are there. Identifiers of stimuli are
        "<session>/image0001", for sessions number their images alike.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an image is missing, or arrays that do not fit the images.
    """
    folder = Path(folder)
    source = _first(folder, f"images_{session}.zip", f"images/images_{session}.zip")
    raw = (f"responses_raw_{session}.npy", f"responses_raw/responses_{session}.npy")
    averaged = (f"responses_{session}.npy", f"responses_repeat_averaged/responses_{session}.npy")
    repeated = any((folder / name).is_file() for name in raw)
    file = _first(folder, *(raw if repeated else averaged))
    axes = ("units", "stimuli", "repeats") if repeated else ("units", "stimuli")
    values = _ordered(data.load(str(file)), axes, file)
    n_units = values.shape[-1]
    images = _numbered(source, r"image(\d+)\.jpe?g", "image{:04d}.jpg", len(values), n_units)
    for means in [folder / name for name in averaged if repeated and (folder / name).is_file()]:
        if (shape := np.shape(data.load(str(means)))) != (n_units, len(values)):  # nothing else tells units from repeats
            raise ValueError(f"{file} must have the units and images of {means.name}, {shape}, got {(n_units, len(values))}.")
    return Recording(
        **{"repeats" if repeated else "responses": values},
        stimuli=[f"{session}/{Path(name).stem}" for name in images],
        units={"area": np.full(n_units, "V4"), "session": np.full(n_units, str(session))},
        images=images,
        image_source=source,
    )


def load_nsd(folder: str | os.PathLike, subject: int, images: str | os.PathLike | None = None) -> Recording:
    """Prepared betas of one subject of the Natural Scenes Dataset, for instance of the ventral stream's voxels.

    The data: naturalscenesdataset.org, after its access agreement (Allen et al. 2022); betas are z-scored within session and
    averaged over repeats, voxels chosen, and saved in this layout, which Khosla, Murty & Kanwisher 2022 and Longon, Klindt &
    Khosla (arXiv 2510.03186) use.

    Args:
        folder: holds `subj<subject>.npy` `(n_images, n_voxels)`, or with single trials `(n_images, n_repeats, n_voxels)`, NaN
            where one is missing, and `subj<subject>_coco_IDs.npy` `(n_images,)`.
        subject: 1 to 8.
        images: folder or zip of `<COCO id>.jpg` (or .png; zeros in front of the number do not matter); those of other
            subjects may be among them.

    Returns:
        The recording; identifiers of stimuli are COCO ids, alike in all subjects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an image is missing or there twice, or arrays that do not fit each other.
    """
    file = _first(Path(folder), f"subj{subject}.npy")
    values = data.load(str(file))
    ids = np.asarray(data.load(str(_first(Path(folder), f"subj{subject}_coco_IDs.npy"))))
    if ids.dtype.kind not in "iu":
        raise ValueError(f"subj{subject}_coco_IDs.npy must hold integers, got {ids.dtype}.")
    axes = ("stimuli", "repeats", "units") if values.ndim == 3 else ("stimuli", "units")
    values = _ordered(values, axes, file)
    if values.ndim == 3 and values.shape[1] > 3:  # which says nothing where there are no more than three voxels
        raise ValueError(
            f"{file} must be (images, repeats, voxels), an image being shown up to three times, got {values.shape}."
        )
    if ids.shape != values.shape[:1]:
        hint = _swapped(ids.size, values.shape)
        raise ValueError(f"{file} must be (images, voxels) for {ids.size} COCO ids, got {values.shape}{hint}.")
    return Recording(
        **{"repeats" if values.ndim == 3 else "responses": values},
        stimuli=ids,
        units={"subject": np.full(values.shape[-1], subject)},
        images=None if images is None else _find(images, ids),
        image_source=images,
    )


def load_algonauts(folder: str | os.PathLike, subject: int) -> Recording:
    """The training split of one subject of the Algonauts 2023 challenge: the Natural Scenes Dataset on the cortical surface.

    The data: algonauts.csail.mit.edu/challenge.html, after the Natural Scenes Dataset's agreement (Gifford et al. 2023). Betas
    are z-scored within session and averaged over repeats: there is no noise ceiling to be had from them.

    Args:
        folder: holds `subj0<subject>/` with `training_split/training_fmri/{lh,rh}_training_fmri.npy` `(n_images, n_vertices)`,
            `training_split/training_images/train-0001_nsd-00013.png` and so on, and for each class of regions, if it is there,
            `roi_masks/{lh,rh}.<class>_challenge_space.npy` `(n_vertices,)`.
        subject: 1 to 8.

    Returns:
        The recording, left hemisphere first. Identifiers of stimuli are "nsd-00013", alike in all subjects. Metadata of units:
        subject, hemisphere (lh or rh), and for each class of `REGIONS` the name of the region, empty outside.

    Raises:
        FileNotFoundError: no such file, or a mask of one hemisphere only.
        ValueError: an image is missing, arrays that do not fit each other, or an unknown region.
    """
    folder = Path(folder) / f"subj{subject:02d}"
    source = folder / "training_split/training_images"
    files = {side: _first(folder, f"training_split/training_fmri/{side}_training_fmri.npy") for side in ("lh", "rh")}
    sides = {side: _ordered(data.load(str(file)), ("stimuli", "units"), file) for side, file in files.items()}
    n_images, n_vertices = len(sides["lh"]), {side: values.shape[1] for side, values in sides.items()}
    if len(sides["rh"]) != n_images:
        raise ValueError(f"{files['rh']} must have as many images as the left hemisphere, {n_images}, got {len(sides['rh'])}.")
    images = _numbered(source, r"train-(\d+)_nsd-\d+\.png", "train-{:04d}_nsd-*.png", n_images, n_vertices["lh"])
    units: dict[str, Any] = {
        "subject": np.full(sum(n_vertices.values()), subject),
        "hemisphere": np.repeat(list(sides), list(n_vertices.values())),
    }
    for name, regions in REGIONS.items():
        masks = {side: folder / f"roi_masks/{side}.{name}_challenge_space.npy" for side in sides}
        if not (there := [file for file in masks.values() if file.is_file()]):
            continue
        if len(there) == 1:
            raise FileNotFoundError(f"{there[0]} is there without that of the other hemisphere.")
        labels = []
        for side, file in masks.items():
            mask = np.asarray(data.load(str(file)))
            if mask.shape != (n_vertices[side],) or not np.isin(mask, np.arange(len(regions) + 1)).all():
                raise ValueError(
                    f"{file} must be ({n_vertices[side]},), 0 to {len(regions)}, got {mask.shape} up to {mask.max()}."
                )
            labels.append(np.array(["", *regions])[mask.astype(int)])
        units[name] = np.concatenate(labels)
    return Recording(
        responses=np.concatenate(list(sides.values()), axis=1),
        stimuli=[Path(name).stem.partition("_")[2] for name in images],
        units=units,
        images=images,
        image_source=source,
    )


def load_brainscore(
    path: str | os.PathLike,
    *,
    time_bin: int | None = None,
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
        time_bin: which one, counted from 0, where there are several.
        images: folder or zip with an image for each stimulus, named by its identifier.
        stimulus_set: where images have other names, the CSV of the stimulus set: columns stimulus_id or image_id, and filename.

    Returns:
        The recording, stimuli sorted by identifier; repeats where a stimulus was presented more than once. All coordinates of
        neuroids are metadata of units.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the file is netCDF-4, and no package that reads it is installed.
        ValueError: not an assembly, several time bins and none named, or an image that is missing.
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
    try:
        with xarray.open_dataarray(path, engine=engine) as stored:
            assembly = stored.load()
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an assembly, one variable in netCDF: {' '.join(str(error).split())[:300]}") from error
    sizes = dict(assembly.sizes)
    if not {"presentation", "neuroid"} <= set(sizes) <= {"presentation", "neuroid", "time_bin"}:
        raise ValueError(
            f"{path} must have dimensions presentation, neuroid and perhaps time_bin, got {', '.join(map(str, sizes))}."
        )
    identifier = next((name for name in ("stimulus_id", "image_id") if name in assembly.coords), None)
    if identifier is None:
        raise ValueError(f"{path} must have a coordinate stimulus_id or image_id, got {', '.join(map(str, assembly.coords))}.")
    bins = sizes.get("time_bin", 1)
    if (time_bin is None and bins > 1) or (time_bin is not None and not 0 <= time_bin < bins):
        raise ValueError(f"time_bin must be one of 0 to {bins - 1}, for {path} has {bins}, got {time_bin}.")
    if "time_bin" in sizes:
        assembly = assembly.isel(time_bin=time_bin or 0)
    assembly = assembly.transpose("presentation", "neuroid")
    stimuli, which, count = np.unique(_text(assembly[identifier].values), return_inverse=True, return_counts=True)
    repetition = assembly["repetition"].values if "repetition" in assembly.coords else np.zeros(len(which))
    order = np.lexsort((repetition, which))
    repeats = np.full((len(stimuli), count.max(), sizes["neuroid"]), np.nan, np.result_type(assembly.dtype, np.float32))
    repeats[which[order], np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)] = assembly.values[order]
    units = {str(name): _text(c.values) for name, c in assembly.coords.items() if c.dims == ("neuroid",)}
    names = None
    if images is not None:
        names = _find(images, stimuli if stimulus_set is None else _filenames(stimulus_set, stimuli))
    once = count.max() == 1
    return Recording(
        responses=repeats[:, 0] if once else None,
        repeats=None if once else repeats,
        stimuli=stimuli,
        units=units,
        images=names,
        image_source=images,
    )


def load_array(
    path: str,
    axes: str | Sequence[str] = "stimuli,units",
    *,
    stimuli: Any = None,
    units: Mapping[str, Any] | None = None,
    sessions: Any = None,
    images: str | os.PathLike | None = None,
) -> Recording:
    """Responses in a file of one's own.

    Args:
        path: `file.npy`, `file.npz:key`, the folder of a Zarr array, or MATLAB's `file.mat:variable` (up to version 7.2). The
            key may be left out where there is just one.
        axes: the name of each axis in its order: stimuli, units and, for single trials (NaN where one is missing), repeats.
        stimuli, units, sessions: see `Recording`.
        images: folder or zip with an image for each stimulus: named by their identifiers where `stimuli` are given; otherwise
            sorted by name, and the names are the identifiers; numbers in them need zeros in front.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an array of real numbers, axes that do not fit it, or images that do not fit the stimuli.
    """
    names = axes.replace(" ", "").split(",") if isinstance(axes, str) else list(axes)
    if sorted(names) not in (["stimuli", "units"], ["repeats", "stimuli", "units"]):
        raise ValueError(f"axes must name stimuli, units and perhaps repeats, each once, got {','.join(names)}.")
    values = _ordered(_matlab(path) if re.search(r"\.mat(:|$)", str(path)) else data.load(str(path)), names, path)
    found = None
    if images is not None:
        found = _in_order(images) if stimuli is None else _find(images, stimuli)
        stimuli = found if stimuli is None else stimuli
    if stimuli is not None and len(stimuli) != len(values):
        hint = _swapped(len(stimuli), values.shape)
        raise ValueError(f"{path} has {len(values)} stimuli as {','.join(names)}, but {len(stimuli)} are named{hint}.")
    return Recording(
        **{"repeats" if len(names) == 3 else "responses": values},
        stimuli=stimuli,
        units=units or {},
        sessions=sessions,
        images=found,
        image_source=images,
    )


def image_hashes(recording: Recording) -> np.ndarray:
    """SHA-256 of each stimulus's image file, `(n_stimuli,)`: equal for images that are the same byte for byte.

    `recording.groups(image_hashes(recording))` keeps such copies together.

    Raises:
        ValueError: a recording without images.
    """
    if recording.images is None or recording.image_source is None:
        raise ValueError("the recording has no images: load it with images.")
    from superpos.networks.io import Images  # its package loads Flax, which takes seconds

    return np.array(Images(recording.image_source).sha256(recording.images))


def _first(folder, *names):
    """The first of the files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {' or '.join(names)}.")


def _ordered(values, axes, name):
    """An array with its axes in the order of a `Recording`."""
    if values.ndim != len(axes):
        raise ValueError(f"{name} must have axes {','.join(axes)}, got shape {values.shape}.")
    return np.transpose(np.asarray(values), [axes.index(axis) for axis in ("stimuli", "repeats", "units") if axis in axes])


def _swapped(n, shape):
    """What to append to an error about n stimuli and an array (stimuli, ..., units)."""
    return ": its axes seem to be in another order" if n in shape[1:] else ""


def _names(source):
    """The names of the images in a folder or zip."""
    from superpos.networks.io import Images  # its package loads Flax, which takes seconds

    return Images(source).names


def _in_order(source):
    """The names of the images, if their order as text is that of the numbers in them."""
    names = _names(source)

    def numbers(name):
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name) if part]

    for name, other in zip(names, sorted(names, key=numbers), strict=True):
        if name != other:
            raise ValueError(
                f"images must have one order, but of those in {source} {name} comes before {other} as text and after it as a "
                "number: put zeros in front of the numbers, or name the stimuli."
            )
    return names


def _numbered(source, pattern, example, n, n_units):
    """Names of the images in the order of their numbers, from 1 to n."""
    names: dict[int, str] = {}
    for name in _names(source):
        found = re.fullmatch(pattern, Path(name).name)
        if found and (again := names.setdefault(int(found[1]), name)) != name:
            raise ValueError(f"{source} must hold one image a number, but {again} and {name} have the same.")
    if sorted(names) != list(range(1, n + 1)):
        missing = [number for number in range(1, n + 1) if number not in names]
        problem = f"{example.format(missing[0])} is missing" if missing else f"it has {len(names)}"
        hint = "; the axes of the responses seem to be in another order" if len(names) == n_units else ""
        raise ValueError(f"{source} must hold an image for each of {n} stimuli, but {problem}{hint}.")
    return [names[number] for number in sorted(names)]


def _find(source, identifiers):
    """The name of the image of each identifier: its name in full, or without folder and ending."""
    from superpos.networks.io import EXTENSIONS

    known: dict[str, list[str]] = {}
    names = _names(source)
    for name in names:
        known.setdefault(_plain(Path(name).stem), []).append(name)
    exact, found = set(names), []
    for identifier in map(str, identifiers):
        path = Path(identifier)
        stem = path.stem if path.suffix.lower() in EXTENSIONS else path.name  # names may have dots in them
        near = [identifier] if identifier in exact else known.get(_plain(stem), [])
        if len(near) != 1:
            raise ValueError(f"images must be one for each stimulus, but {source} has {len(near)} for {identifier}.")
        found += near
    return found


def _plain(stem):
    """Numbers may have zeros in front."""
    return str(int(stem)) if stem.isdecimal() else stem


def _filenames(file, identifiers):
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


def _text(values):
    """Strings come as objects, and from netCDF-3 as bytes."""
    if values.dtype.kind not in "OS":
        return values
    return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in values])


def _matlab(path):
    from scipy.io import loadmat, whosmat

    name, _, key = str(path).partition(".mat:")
    file = Path(name + ".mat" if key else path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, or is not a file.")
    try:
        keys = [found for found, *_ in whosmat(file)]
        key = keys[0] if not key and len(keys) == 1 else key
        values = loadmat(file, variable_names=[key])[key] if key in keys else None
    except NotImplementedError as error:
        raise ValueError(
            f"{file} is of MATLAB's version 7.3 (HDF5), which is not read here: in MATLAB, save(file, variable, '-v7')."
        ) from error
    except Exception as error:  # of scipy or zlib
        raise ValueError(f"{file} is not a MATLAB file that can be read: {error}") from error
    if values is None:
        asked = f"no variable {key!r}" if key else "several variables"
        raise ValueError(f"{file} has {asked}: name one as {file}:NAME, NAME out of {', '.join(keys)}.")
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{path} is not an array of numbers, but a {type(values).__name__}.")
    return values

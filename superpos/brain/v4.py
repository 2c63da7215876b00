"""Reader of recordings of macaque V4."""

import os
from pathlib import Path

import numpy as np

from superpos import data
from superpos.brain.files import first_file, in_order, numbered_images
from superpos.brain.recording import Recording


def load_v4(path: str | os.PathLike, session: int | str) -> Recording:
    """One session of macaque V4 recordings: spike counts of sites in 100 ms, and the images.

    The data: Cowley, Stan, Pillow & Smith 2023, "Compact deep neural network models of visual cortex",
    github.com/cowleygroup/V4_compact_models, folder `data_V4_responses/` (GPL-3.0).

    Args:
        path: a folder that holds `images_<session>.zip`, with image0001.jpg for the first stimulus, `responses_<session>.npy`
            `(n_units, n_images)` and, where there are single repeats, `responses_raw_<session>.npy` `(n_units, n_images,
            n_repeats)`, NaN where one is missing; or the release's own folders: `images/images_<session>.zip`,
            `responses_repeat_averaged/responses_<session>.npy` and `responses_raw/responses_<session>.npy`.
        session: six digits, such as 210325.

    Returns:
        The recording; its responses are the mean of the repeats, where these are there. Identifiers of stimuli are
        "<session>/image0001", for sessions number their images alike.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an image is missing, or arrays that do not fit the images.

    >>> import tempfile, zipfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with zipfile.ZipFile(f"{folder}/images_210325.zip", "w") as archive:
    ...         for i in (1, 2, 3):
    ...             archive.writestr(f"image{i:04d}.jpg", "")
    ...     np.save(f"{folder}/responses_210325.npy", np.zeros((5, 3)))
    ...     load_v4(folder, 210325).responses.shape
    (3, 5)
    """
    folder = Path(path)
    source = first_file(folder, f"images_{session}.zip", f"images/images_{session}.zip")
    raw = (f"responses_raw_{session}.npy", f"responses_raw/responses_{session}.npy")
    averaged = (f"responses_{session}.npy", f"responses_repeat_averaged/responses_{session}.npy")
    repeated = any((folder / name).is_file() for name in raw)
    file = first_file(folder, *(raw if repeated else averaged))
    axes = ("units", "stimuli", "repeats") if repeated else ("units", "stimuli")
    values = in_order(data.load(str(file)), axes, file)
    n_units = values.shape[-1]
    images = numbered_images(source, r"image(\d+)\.jpe?g", "image{:04d}.jpg", len(values), n_units)
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

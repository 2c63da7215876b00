"""Reader of the Algonauts 2023 challenge."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from superpos import data
from superpos.brain.files import first_file, in_order, numbered_images
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


def load_algonauts(path: str | os.PathLike, subject: int) -> Recording:
    """The training split of one subject of the Algonauts 2023 challenge: the Natural Scenes Dataset on the cortical surface.

    The data: algonauts.csail.mit.edu/challenge.html, after the Natural Scenes Dataset's agreement (Gifford et al. 2023). Betas
    are z-scored within session and averaged over repeats: there is no noise ceiling to be had from them.

    Args:
        path: a folder that holds `subj0<subject>/` with `training_split/training_fmri/{lh,rh}_training_fmri.npy` `(n_images,
            n_vertices)`, `training_split/training_images/train-0001_nsd-00013.png` and so on, and for each class of regions,
            if it is there, `roi_masks/{lh,rh}.<class>_challenge_space.npy` `(n_vertices,)`.
        subject: 1 to 8.

    Returns:
        The recording, left hemisphere first. Identifiers of stimuli are "nsd-00013", alike in all subjects. Metadata of units:
        subject, hemisphere (lh or rh), and for each class of `REGIONS` the name of the region, empty outside.

    Raises:
        FileNotFoundError: no such file, or a mask of one hemisphere only.
        ValueError: an image is missing, arrays that do not fit each other, or an unknown region.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path:
    ...     split = Path(path, "subj01", "training_split")
    ...     for name in ("training_fmri", "training_images"):
    ...         (split / name).mkdir(parents=True)
    ...     for i in (1, 2):
    ...         (split / "training_images" / f"train-{i:04d}_nsd-{10 * i:05d}.png").touch()
    ...     for side in ("lh", "rh"):
    ...         np.save(split / "training_fmri" / f"{side}_training_fmri.npy", np.zeros((2, 3)))
    ...     recording = load_algonauts(path, subject=1)
    >>> recording.stimuli.tolist(), recording.units["hemisphere"].tolist()
    (['nsd-00010', 'nsd-00020'], ['lh', 'lh', 'lh', 'rh', 'rh', 'rh'])
    """
    folder = Path(path) / f"subj{subject:02d}"
    source = folder / "training_split/training_images"
    files = {side: first_file(folder, f"training_split/training_fmri/{side}_training_fmri.npy") for side in ("lh", "rh")}
    sides = {side: in_order(data.load(str(file)), ("stimuli", "units"), file) for side, file in files.items()}
    n_images, n_vertices = len(sides["lh"]), {side: values.shape[1] for side, values in sides.items()}
    if len(sides["rh"]) != n_images:
        raise ValueError(f"{files['rh']} must have as many images as the left hemisphere, {n_images}, got {len(sides['rh'])}.")
    images = numbered_images(source, r"train-(\d+)_nsd-\d+\.png", "train-{:04d}_nsd-*.png", n_images, n_vertices["lh"])
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

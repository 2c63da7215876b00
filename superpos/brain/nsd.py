"""Reader of prepared betas of the Natural Scenes Dataset."""

import os
from pathlib import Path

import numpy as np

from superpos import data
from superpos.brain.files import find_images, first_file, in_order, swapped_hint
from superpos.brain.recording import Recording


def load_nsd(path: str | os.PathLike, subject: int, images: str | os.PathLike | None = None) -> Recording:
    """Prepared betas of one subject of the Natural Scenes Dataset, for instance of the ventral stream's voxels.

    The data: naturalscenesdataset.org, after its access agreement (Allen et al. 2022); betas are z-scored within session and
    averaged over repeats, voxels chosen, and saved in this layout, which Khosla, Murty & Kanwisher 2022 and Longon, Klindt &
    Khosla (arXiv 2510.03186) use.

    Args:
        path: a folder that holds `subj<subject>.npy` `(n_images, n_voxels)`, or with single trials `(n_images, n_repeats,
            n_voxels)`, NaN where one is missing, and `subj<subject>_coco_IDs.npy` `(n_images,)`.
        subject: 1 to 8.
        images: folder or zip of `<COCO id>.jpg` (or .png; zeros in front of the number do not matter); those of other
            subjects may be among them.

    Returns:
        The recording; identifiers of stimuli are COCO ids, alike in all subjects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an image is missing or there twice, or arrays that do not fit each other.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/subj1.npy", np.zeros((3, 5)))
    ...     np.save(f"{folder}/subj1_coco_IDs.npy", np.array([262145, 73, 391895]))
    ...     load_nsd(folder, subject=1).stimuli.tolist()
    [262145, 73, 391895]
    """
    folder = Path(path)
    file = first_file(folder, f"subj{subject}.npy")
    values = data.load(str(file))
    ids = np.asarray(data.load(str(first_file(folder, f"subj{subject}_coco_IDs.npy"))))
    if ids.dtype.kind not in "iu":
        raise ValueError(f"subj{subject}_coco_IDs.npy must hold integers, got {ids.dtype}.")
    axes = ("stimuli", "repeats", "units") if values.ndim == 3 else ("stimuli", "units")
    values = in_order(values, axes, file)
    if values.ndim == 3 and values.shape[1] > 3:  # which says nothing where there are no more than three voxels
        raise ValueError(
            f"{file} must be (images, repeats, voxels), an image being shown up to three times, got {values.shape}."
        )
    if ids.shape != values.shape[:1]:
        hint = swapped_hint(ids.size, values.shape)
        raise ValueError(f"{file} must be (images, voxels) for {ids.size} COCO ids, got {values.shape}{hint}.")
    return Recording(
        **{"repeats" if values.ndim == 3 else "responses": values},
        stimuli=ids,
        units={"subject": np.full(values.shape[-1], subject)},
        images=None if images is None else find_images(images, ids),
        image_source=images,
    )

"""Real representations: recordings of brains, and simulated ones whose truth is known."""

import inspect
import os
from collections.abc import Callable
from typing import Any

from superpos.brain.algonauts import load_algonauts
from superpos.brain.array import load_array
from superpos.brain.brainscore import load_brainscore
from superpos.brain.files import image_hashes
from superpos.brain.nsd import load_nsd
from superpos.brain.recording import Recording, ncsnr, noise_ceiling
from superpos.brain.simulation import Truth, simulate
from superpos.brain.v4 import load_v4

# Readers by the name of their layout: the first parameter is the path, all others are options.
RECORDINGS: dict[str, Callable[..., Recording]] = {
    "v4": load_v4,
    "nsd": load_nsd,
    "algonauts": load_algonauts,
    "brainscore": load_brainscore,
    "array": load_array,
}


def load(name: str, path: str | os.PathLike, **options: Any) -> Recording:
    """A recording of one of the layouts in `RECORDINGS`, read by its reader.

    Args:
        name: of the layout, such as "v4" for `load_v4`.
        path: folder or file, see the reader.
        options: the reader's other arguments, by name: see `options`.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a package that the file needs is missing.
        ValueError: an unknown layout, an option that its reader does not take or that is missing, or what the reader refuses.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/mine.npy", np.zeros((5, 3)))
    ...     load("array", f"{folder}/mine.npy", axes="units,stimuli").responses.shape
    (3, 5)
    >>> load("v4", "folder")
    Traceback (most recent call last):
    ValueError: session must be given for a recording v4.
    """
    reader, taken = _reader(name), _parameters(name)
    for option in options:
        if option not in taken:
            raise ValueError(f"{option} is no option of a recording {name}, which takes {', '.join(taken)}.")
    for option, parameter in taken.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{option} must be given for a recording {name}.")
    return reader(path, **options)


def options(name: str) -> tuple[str, ...]:
    """What `load` takes for a layout besides the path, in the order of its reader.

    Raises:
        ValueError: an unknown layout.

    >>> options("nsd")
    ('subject', 'images')
    """
    return tuple(_parameters(name))


def _reader(name: str) -> Callable[..., Recording]:
    if name not in RECORDINGS:
        raise ValueError(f"name must be one of {', '.join(RECORDINGS)}, got {name!r}.")
    return RECORDINGS[name]


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    _, *parameters = inspect.signature(_reader(name)).parameters.values()
    return {parameter.name: parameter for parameter in parameters}


__all__ = [
    "RECORDINGS",
    "Recording",
    "Truth",
    "image_hashes",
    "load",
    "load_algonauts",
    "load_array",
    "load_brainscore",
    "load_nsd",
    "load_v4",
    "ncsnr",
    "noise_ceiling",
    "options",
    "simulate",
]

"""What the readers of recordings share: files, the order of axes, and the images of stimuli."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from superpos import data, storage
from superpos.brain.recording import Recording
from superpos.images import EXTENSIONS, Images


def image_hashes(recording: Recording) -> np.ndarray:
    """SHA-256 of each stimulus's image file, `(n_stimuli,)`: equal for images that are the same byte for byte.

    `recording.groups(image_hashes(recording))` keeps such copies together.

    Raises:
        ValueError: a recording without images.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.png", "b.png"):
    ...         _ = Path(folder, name).write_bytes(b"the same")
    ...     recording = Recording(responses=np.eye(2), images=["a.png", "b.png"], image_source=folder)
    ...     recording.groups(image_hashes(recording)).tolist()
    [0, 0]
    """
    if recording.images is None or recording.image_source is None:
        raise ValueError("the recording has no images: load it with images.")
    return np.array(Images(recording.image_source).sha256(recording.images))


def read_apart(file: Path, what: str, reader: str, *arguments: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What another process reads of a file: libraries in C may crash, hang, or take all memory where it is damaged.

    Args:
        file: to read.
        what: it should be, for errors.
        reader: a program. It gets `path`, and `arguments` as a list; it fills the dict `told`, of what JSON can hold, and the
            dict `arrays`, of NumPy arrays without objects.
        arguments: text.

    Raises:
        ValueError: the program has failed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "five.txt")
    ...     _ = file.write_text("5")
    ...     told, arrays = read_apart(file, "text", "arrays['ones'] = np.ones(int(open(path).read()))")
    >>> told, arrays["ones"].tolist()
    ({}, [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    import psutil

    with tempfile.TemporaryDirectory() as folder, storage.reading(file, what):
        out, size = Path(folder, "arrays.npz"), file.stat().st_size
        # What is compressed is a thousandth at most; the rest is for the libraries themselves.
        limit = min(2**30 + 1100 * size, psutil.virtual_memory().available)
        program = f"{_BEFORE}\n{reader}\n{_AFTER}"
        command = [sys.executable, "-P", "-c", program, str(file.absolute()), str(out), str(limit), *arguments]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # whose threads each reserve memory
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode < 0:
            raise ValueError(f"its reader ended by {signal.Signals(-done.returncode).name}")
        if done.returncode:
            raise ValueError((done.stderr.strip() or "its reader failed").splitlines()[-1])
        with np.load(out, allow_pickle=False) as arrays:
            return json.loads(done.stdout), dict(arrays)


_BEFORE = """
import json, os, sys
import numpy as np
path, _out, _limit, *arguments = sys.argv[1:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(_limit), int(_limit)))
    _seconds = int(20 + os.path.getsize(path) / 1e6)  # of a core, however busy the machine is
    resource.setrlimit(resource.RLIMIT_CPU, (_seconds, _seconds))
except ImportError:
    pass
told, arrays = {}, {}
"""
_AFTER = """
if any(array.dtype.hasobject for array in arrays.values()):
    raise ValueError("it holds objects, which are not numbers")
np.savez(_out, **arrays)
print(json.dumps(told), flush=True)
os._exit(0)
"""


def first_file(folder: Path, *names: str) -> Path:
    """The first of the files that is there.

    Raises:
        FileNotFoundError: none of them is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "b.npy").touch()
    ...     first_file(Path(folder), "a.npy", "b.npy").name
    'b.npy'
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {' or '.join(names)}.")


def in_order(values: np.ndarray | data.Store, axes: Sequence[str], name: str | Path) -> np.ndarray:
    """An array with its axes, out of stimuli, repeats and units, in the order of a `Recording`.

    Raises:
        ValueError: another number of axes.

    >>> in_order(np.zeros((2, 5, 3)), ("units", "stimuli", "repeats"), "responses.npy").shape
    (5, 3, 2)
    """
    if values.ndim != len(axes):
        raise ValueError(f"{name} must have axes {','.join(axes)}, got shape {values.shape}.")
    return np.transpose(np.asarray(values), [axes.index(axis) for axis in ("stimuli", "repeats", "units") if axis in axes])


def swapped_hint(n: int, shape: Sequence[int]) -> str:
    """What to append to an error about n stimuli and an array (stimuli, ..., units).

    >>> swapped_hint(5, (3, 5)), swapped_hint(4, (3, 5))
    (': its axes seem to be in another order', '')
    """
    return ": its axes seem to be in another order" if n in shape[1:] else ""


def sorted_images(source: str | os.PathLike) -> list[str]:
    """The names of the images, if their order as text is that of the numbers in them.

    Raises:
        ValueError: it is not.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("09.png", "10.png"):
    ...         Path(folder, name).touch()
    ...     sorted_images(folder)
    ['09.png', '10.png']
    """
    names = Images(source).names

    def numbers(name: str) -> list[tuple[bool, int, str]]:
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name) if part]

    for name, other in zip(names, sorted(names, key=numbers), strict=True):
        if name != other:
            raise ValueError(
                f"images must have one order, but of those in {source} {name} comes before {other} as text and after it as a "
                "number: put zeros in front of the numbers, or name the stimuli."
            )
    return names


def numbered_images(source: str | os.PathLike, pattern: str, example: str, n: int, n_units: int) -> list[str]:
    r"""Names of the images in the order of their numbers, from 1 to n.

    Args:
        source: folder or zip of images.
        pattern: regular expression of a name, whose first group is the number.
        example: a name, to be formatted with a number: for errors.
        n: number of stimuli.
        n_units: number of units: as many images hint at swapped axes.

    Raises:
        ValueError: an image is missing, or one too many, or two of one number.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("image10.png", "image9.png", *(f"image{i}.png" for i in range(1, 9))):
    ...         Path(folder, name).touch()
    ...     numbered_images(folder, r"image(\d+)\.png", "image{}.png", 10, 5)[-2:]
    ['image9.png', 'image10.png']
    """
    names: dict[int, str] = {}
    for name in Images(source).names:
        match = re.fullmatch(pattern, Path(name).name)
        if match and (again := names.setdefault(int(match[1]), name)) != name:
            raise ValueError(f"{source} must hold one image a number, but {again} and {name} have the same.")
    if sorted(names) != list(range(1, n + 1)):
        missing = [number for number in range(1, n + 1) if number not in names]
        problem = f"{example.format(missing[0])} is missing" if missing else f"it has {len(names)}"
        hint = "; the axes of the responses seem to be in another order" if len(names) == n_units else ""
        raise ValueError(f"{source} must hold an image for each of {n} stimuli, but {problem}{hint}.")
    return [names[number] for number in sorted(names)]


def find_images(source: str | os.PathLike, identifiers: Iterable[Any]) -> list[str]:
    """The name of the image of each identifier, which is its name in full, or without folder and ending, or its number.

    Raises:
        ValueError: none, or several, for an identifier.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("0042.png", "face.png"):
    ...         Path(folder, name).touch()
    ...     find_images(folder, [42, "face"])
    ['0042.png', 'face.png']
    """
    known: dict[str, list[str]] = {}
    names = Images(source).names
    for name in names:
        known.setdefault(_plain(Path(name).stem), []).append(name)
    exact, chosen = set(names), []
    for identifier in map(str, identifiers):
        path = Path(identifier)
        stem = path.stem if path.suffix.lower() in EXTENSIONS else path.name  # names may have dots in them
        near = [identifier] if identifier in exact else known.get(_plain(stem), [])
        if len(near) != 1:
            raise ValueError(f"images must be one for each stimulus, but {source} has {len(near)} for {identifier}.")
        chosen += near
    return chosen


def _plain(stem: str) -> str:
    """Numbers may have zeros in front."""
    return str(int(stem)) if stem.isdecimal() else stem

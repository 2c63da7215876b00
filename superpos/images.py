"""Images from folders, archives and arrays: their names, their hashes, and what a network reads of them."""

import dataclasses
import hashlib
import itertools
import math
import os
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from superpos import storage

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's others start programs, or are hardly ever tested
LARGEST = 2**28  # bytes of an image's file


class Images:
    """Images of a folder, with all folders in it, or of a zip; `images[i]` decodes one, as a Pillow image in RGB.

    Args:
        path: the folder or the zip. Files that are hidden, or have none of `EXTENSIONS`, are left out.

    Attributes:
        names: paths within the folder or the zip, sorted as text: the identifiers of the stimuli.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a file that is no zip, no image in it, or two of one name; on reading one, that it is unreadable, of none of
            `FORMATS` whatever its name says, larger than `LARGEST` or Pillow's MAX_IMAGE_PIXELS, or grey with more than 8 bits
            (of colours Pillow keeps the upper 8).

    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.png", "a.png"):
    ...         PIL.Image.new("RGB", (4, 3), "red").save(f"{folder}/{name}")
    ...     images = Images(folder)
    ...     images.names, images[0].size, len(set(images.sha256()))  # the two are alike
    (['a.png', 'b.png'], (4, 3), 1)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        if not self.path.exists():
            raise FileNotFoundError(f"images must be a folder or a zip, but {self.path} is not there.")
        if self.path.is_dir():
            self._zip = None
            listed = (file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())
        elif zipfile.is_zipfile(self.path):
            with storage.reading(self.path, "a zip"):
                self._zip = zipfile.ZipFile(self.path)
            listed = (name for name in self._zip.namelist() if not name.endswith("/"))
        else:
            raise ValueError(f"images must be a folder or a zip, but {self.path} is neither.")
        self.names = sorted(name for name in listed if name.lower().endswith(EXTENSIONS) and not _hidden(name))
        if not self.names:
            raise ValueError(f"images must hold at least one image ({', '.join(EXTENSIONS)}), but {self.path} has none.")
        if again := [name for name, following in itertools.pairwise(self.names) if name == following]:
            raise ValueError(f"images must have different names, but {self.path} holds {again[0]} twice.")

    def sha256(self, names: Iterable[str] | None = None) -> list[str]:
        """Of the files of these names, by default of all: equal for images that are the same byte for byte."""
        names = self.names if names is None else list(map(str, names))
        hashes = {}
        for name in dict.fromkeys(names):
            with storage.reading(self.path / name, "an image"), self._open(name) as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return [hashes[name] for name in names]

    def _open(self, name: str) -> Any:
        size = self._zip.getinfo(name).file_size if self._zip else (self.path / name).stat().st_size
        if size > LARGEST:
            raise ValueError(f"its {size:,} bytes are more than {LARGEST:,}")
        return self._zip.open(name) if self._zip else (self.path / name).open("rb")

    @property
    def folders(self) -> list[str]:
        """Where each image lies within the folder or the zip, "." at its top: its category, where there is one folder each."""
        return [Path(name).parent.as_posix() for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        name = self.names[index]
        try:
            with self._open(name) as file:
                image = Image.open(file, formats=FORMATS)
                most = Image.MAX_IMAGE_PIXELS or math.inf  # Pillow itself takes twice as many, with a warning
                if math.prod(image.size) > most:
                    raise ValueError(f"its {math.prod(image.size):,} pixels are more than PIL.Image.MAX_IMAGE_PIXELS, {most:,}")
                image.load()
        except FileNotFoundError:
            raise
        except Exception as error:  # Pillow's readers, and those of zips, raise what they like for a damaged file
            raise ValueError(f"Image {name} in {self.path} cannot be read: {error or type(error).__name__}") from error
        if image.mode.startswith(("I", "F")):  # Pillow would cut their values off
            raise ValueError(f"Image {name} in {self.path} must have 8 bits a channel, got Pillow's mode {image.mode}.")
        return image.convert("RGB")

    def named(self, name: str) -> Any:
        """The image of a name.

        Raises:
            ValueError: none is called so, or it cannot be read.
        """
        if name not in self.names:
            raise ValueError(f"name must be that of an image in {self.path}, got {name!r}.")
        return self[self.names.index(name)]

    def thumbnail(self, index: int, size: int = 128) -> Any:
        """One image for figures, at most `size` pixels high and wide."""
        image = self[index]
        image.thumbnail((size, size))
        return image


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From an image to what a network reads: resized to a square, scaled to [0, 1], normalised.

    Args:
        size: height and width in pixels.
        interpolation: nearest, box, bilinear, hamming, bicubic or lanczos, as Pillow does it: smoothed when it shrinks.
        crop: of an image that is no square: take the square in its middle (True), or squeeze it (False).
        mean, std: of red, green and blue; by default those of ImageNet.

    Raises:
        ValueError: a size that is not positive, an unknown interpolation, three finite numbers that are not, a std of 0.

    >>> import PIL.Image
    >>> Preprocessing(size=2, mean=(0, 0, 0), std=(1, 1, 1))(PIL.Image.new("RGB", (4, 3), "red"))[:, 0].tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """

    size: int = 224
    interpolation: str = "bicubic"
    crop: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        filters = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}.")
        if self.interpolation not in filters:
            raise ValueError(f"interpolation must be one of {', '.join(filters)}, got {self.interpolation!r}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
                kind = "positive numbers" if name == "std" else "finite numbers"
                raise ValueError(f"{name} must be three {kind}, of red, green and blue, got {values}.")

    def __call__(self, image: Any) -> Float[np.ndarray, "3 size size"]:
        """One Pillow image in RGB, as float32."""
        from PIL import Image, ImageOps

        square, method = (self.size, self.size), Image.Resampling[self.interpolation.upper()]
        image = ImageOps.fit(image, square, method) if self.crop else image.resize(square, method)
        values = (np.asarray(image, np.float32) / 255 - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images that are given, such as `read_images` reads them, as a task that `superpos.networks` learns.

    Attributes:
        images: `(n_images, height, width, 3)`, uint8 or floats in 0 to 1.
        labels: `(n_images,)`, the class of each.
        classes: their names; static.

    Raises:
        ValueError: labels that are not one for each image, or not 0 to the number of classes - 1.

    >>> task = LabelledImages(np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1, 2, 2]), ("cat", "dog", "house"))
    >>> images, labels = task.sample(jax.random.key(0), 10)
    >>> images.shape, labels.shape
    ((10, 8, 8, 3), (10,))
    """

    images: Array | np.ndarray
    labels: Array | np.ndarray
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        if not isinstance(self.labels, np.ndarray):  # JAX rebuilds it with what is not an array
            return
        if self.labels.shape != (n := len(self.images),):
            raise ValueError(f"labels must be ({n},), one for each image, got {self.labels.shape}.")
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels must be 0 to {len(self.classes) - 1}, got {self.labels.min()} to {self.labels.max()}.")

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n height width 3"], Int[Array, " n"]]:
        """Draws `n` images with replacement, float32 in 0 to 1, and their classes."""
        chosen = jax.random.randint(key, (n,), 0, len(self.images))
        images = jnp.asarray(self.images)[chosen]
        scale = 255 if jnp.issubdtype(images.dtype, jnp.integer) else 1
        return images.astype(jnp.float32) / scale, jnp.asarray(self.labels)[chosen]


def read_images(path: str | os.PathLike, size: int, crop: bool = True) -> LabelledImages:
    """All images of a folder or zip, as a task: their class is the folder in which they lie.

    Args:
        path: see `Images`.
        size: height and width that images are resized to, pixels (bicubic).
        crop: as in `Preprocessing`.

    Raises:
        FileNotFoundError, ValueError: as `Images`, and `Preprocessing` for the size.

    >>> import tempfile, PIL.Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         os.mkdir(f"{folder}/{name}")
    ...         PIL.Image.new("RGB", (40, 30), "red").save(f"{folder}/{name}/0.png")
    ...     task = read_images(folder, size=8)
    >>> task.images.shape, task.classes
    ((2, 8, 8, 3), ('cat', 'dog'))
    """
    images = Images(path)
    prepare = Preprocessing(size, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))
    with ThreadPoolExecutor() as pool:
        pixels = list(pool.map(lambda i: np.round(255 * prepare(images[i])).astype(np.uint8), range(len(images))))
    classes, labels = np.unique(images.folders, return_inverse=True)
    return LabelledImages(np.stack(pixels).transpose(0, 2, 3, 1), labels, tuple(map(str, classes)))


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))

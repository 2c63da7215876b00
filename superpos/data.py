"""Readers of activations."""

import functools
import hashlib
import itertools
import json
import math
import mmap
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import DTypeLike

from superpos import storage
from superpos.storage import read_json, sha256


class Store:
    """A Zarr array, version 2 or 3, that stays on disk: `store[a:b]` reads a part as a NumPy array, `np.asarray(store)` all.

    Of those that `networks.io.extract` wrote every chunk is there, and has a checksum: see `zarr_spec`.

    Raises:
        ValueError: the folder is no Zarr array; on reading, a chunk that is damaged or missing.

    >>> import tempfile, tensorstore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": folder}}
    ...     _ = tensorstore.open(spec, create=True, dtype="float32", shape=[3, 2]).result()
    ...     Store(folder)[1:].shape
    (2, 2)
    """

    def __init__(self, folder: str | os.PathLike):
        import tensorstore

        described = Path(folder) / "zarr.json"
        told = read_json(described) if described.is_file() else None
        spec: dict[str, Any] = {"driver": "zarr" if told is None else "zarr3", "kvstore": _files(folder)}
        if isinstance(told, dict) and isinstance(of := told.get("attributes"), dict) and of.get("superpos") == _WHOLE:
            spec["fill_missing_data_reads"] = False
        try:
            self._array = tensorstore.open(spec, open=True, read=True).result()
        except ValueError as error:
            raise ValueError(f"{folder} is not a Zarr array (of a group, name one of its arrays: {folder}/NAME).") from error
        self._folder = folder
        self.shape, self.ndim = tuple(self._array.shape), len(self._array.shape)
        self.dtype = np.dtype(self._array.dtype.numpy_dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """A slice of the first axis, without steps."""
        first, end, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"a Zarr array is read in slices without steps, got {rows}.")
        return self._read(self._array[first : max(first, end)])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(self._array), dtype=dtype)

    def _read(self, part: Any) -> np.ndarray:
        with storage.reading(self._folder, "a Zarr array that is whole"):
            storage.check_room(math.prod(part.shape) * self.dtype.itemsize)
            return part.read().result()


_WHOLE = "every chunk is stored"


def zarr_spec(folder: Path) -> dict[str, Any]:
    """TensorStore's description of a Zarr array all of whose chunks are stored, with a checksum each."""
    codecs = [{"name": "bytes"}, {"name": "crc32c"}]
    attributes = {"superpos": _WHOLE}
    return {
        "driver": "zarr3",
        "kvstore": _files(folder),
        "metadata": {"codecs": codecs, "attributes": attributes},
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _files(folder: str | os.PathLike) -> dict[str, str]:
    return {"driver": "file", "path": str(Path(folder).absolute())}


def load(path: str) -> np.ndarray | Store:
    """Reads one array.

    Args:
        path: `file.npy` (memory-mapped), `file.npz:key` (the key may be left out where there is just one; read whole), or the
            folder of a Zarr array (stays on disk, see `Store`).

    What `networks.io.extract` wrote is checked against its hashes: a `.npy` whole, once a process, a Zarr array as it is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an array of real numbers, or has no such key; it is damaged; it does not fit into memory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/layers.npz", conv=np.zeros((3, 2)), head=np.zeros((3, 5)))
    ...     load(f"{folder}/layers.npz:head").shape
    (3, 5)
    """
    file, key = _split(path)
    if file.is_dir():
        return _real(Store(file), path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, or is not a file.")
    with storage.reading(file, "a .npy or .npz file of numbers"):
        if zipfile.is_zipfile(file):
            return _real(_of_archive(file, key), path)
        with file.open("rb") as start:
            np.lib.format.read_magic(start)  # of anything else NumPy would say how to run what may be in it
        content = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(content, np.ndarray):
            raise ValueError("not an array")
        _real(content, path)
    if (told := _told(file)) is not None and "sha256" in told[1]:
        _check_blocks(str(file.absolute()), file.stat().st_mtime_ns, json.dumps(told[1]["sha256"]))
    return content


def _of_archive(file: Path, key: str) -> np.ndarray:
    """An array of a `.npz`, read when what it says of its size is known to be true."""
    with zipfile.ZipFile(file) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        key = keys[0] if not key and len(keys) == 1 else key
        if key not in keys:
            asked = f"no array {key!r}" if key else "several arrays"
            raise ValueError(f"{file} has {asked}: name one as {file}:KEY, KEY out of {', '.join(keys)}.")
        member = archive.infolist()[keys.index(key)]
        with archive.open(member) as content:
            version = np.lib.format.read_magic(content)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = header.get(version, np.lib.format.read_array_header_2_0)(content)
            if dtype.hasobject:
                raise ValueError(f"{key} holds objects, which could run code")
            if (size := math.prod(shape) * dtype.itemsize) != member.file_size - content.tell():
                raise ValueError(f"{key} is not as large as it says")
        # No compression that NumPy writes makes a thousandth of anything.
        if size > 1100 * member.compress_size:
            raise ValueError(f"{key} is larger than it can be")
        storage.check_room(size)
        with archive.open(member) as content:
            return np.lib.format.read_array(content, allow_pickle=False)


def hashes(array: np.ndarray) -> dict[str, Any]:
    """SHA-256 of blocks of rows, as manifests of activations have them: `{"rows": in a block, "blocks": hashes}`."""
    n_rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
    blocks = [storage.digest([array[first : first + n_rows]]) for first in range(0, len(array), n_rows)]
    return {"rows": n_rows, "blocks": blocks}


_BLOCK = 2**24  # bytes


@functools.lru_cache(maxsize=1024)
def _check_blocks(path: str, changed: int, expected: str) -> None:
    """Reads an array once, to see whether it is what was written; once a process, unless it changes."""
    array, told = np.load(path, mmap_mode="r", allow_pickle=False), json.loads(expected)
    n_rows, found = told["rows"], hashes(array)["blocks"]
    if bad := [i for i, (a, b) in enumerate(itertools.zip_longest(found, told["blocks"])) if a != b]:
        rows = f"rows {bad[0] * n_rows} to {(bad[0] + 1) * n_rows - 1}"
        raise ValueError(f"{path} is damaged: {rows} are not what was extracted. Extract them anew, in another folder.")
    _let_go(array)


def fingerprint(path: str) -> str:
    """SHA-256 of the file or folder behind a path that `load` takes, read in blocks; empty where there is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a", "b"):
    ...         np.save(f"{folder}/{name}.npy", np.zeros((3, 2)))
    ...     fingerprint(f"{folder}/a.npy") == fingerprint(f"{folder}/b.npy")
    True
    """
    file, _ = _split(path)
    if not file.is_dir():
        return sha256(file) if file.is_file() else ""
    parts = sorted(part for part in file.rglob("*") if part.is_file())
    return hashlib.sha256("".join(f"{part.relative_to(file)} {sha256(part)}\n" for part in parts).encode()).hexdigest()


def fingerprints(paths: str | Sequence[str]) -> str | list[str]:
    """The `fingerprint` of one path, or of each of several.

    >>> fingerprints(["nowhere.npy"])
    ['']
    """
    return fingerprint(paths) if isinstance(paths, str) else [fingerprint(path) for path in paths]


def _real(array: Any, name: str) -> Any:
    """The array, if it holds real numbers."""
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":  # which is not one of NumPy's own
        raise ValueError(f"{name} must hold real numbers, got an array of {array.dtype}.")
    return array


def _split(path: str) -> tuple[Path, str]:
    """The file and the key, empty where there is none, of a path that `load` takes."""
    name, archive, key = path.partition(".npz:")
    return Path(name + archive.rstrip(":")), key


def manifest(path: str | os.PathLike) -> dict[str, Any] | None:
    """What `networks.io.extract` wrote beside an array, and as "array" what it wrote of this one; None for other files.

    Raises:
        ValueError: rows that are not as many as the images that are named, or images whose hashes are not told.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/layer3.npy", np.zeros((2, 8)))
    ...     manifest(f"{folder}/layer3.npy") is None
    True
    """
    found = _told(Path(path))
    if found is None:
        return None
    told, own = found
    images, file, n = told.get("images"), Path(path).parent / "manifest.json", load(str(path)).shape[0]
    if not isinstance(images, list) or len(images) != n:
        named = f"{len(images)} images" if isinstance(images, list) else "no images"
        raise ValueError(f"{path} has {n} rows, but {file} names {named}.")
    if len(told.get("image_sha256") or ()) != n:
        raise ValueError(f"{file} is of an earlier version, without the hashes of the images: extract anew.")
    return {**told, "array": own}


def _told(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What a manifest beside an array says, of all and of this one; None where there is none, or it is another program's."""
    file = path.parent / "manifest.json"
    told = read_json(file) if file.is_file() else None
    if not isinstance(told, dict):
        return None
    arrays = told.get("arrays")
    listed = [array for array in arrays.values() if isinstance(array, dict)] if isinstance(arrays, dict) else []
    own = [array for array in listed if array.get("file") == path.name]
    sealed = {name: value for name, value in told.items() if name != "seal"}
    if ("seal" in told or (own and "sha256" in own[0])) and told.get("seal") != storage.seal(sealed):
        raise ValueError(f"{file} was changed after it was written: extract anew, in another folder.")
    return (told, own[0]) if own else None


def flatten(
    array: np.ndarray | Store, axes: Sequence[str] | None = None
) -> tuple[np.ndarray, Int[np.ndarray, " samples"] | None]:
    """Brings activations into the form `(samples, units)`.

    Args:
        array: two or more axes.
        axes: the name of each axis; one is "samples" and one "units", the others (positions, repeats) count as further
            samples. By default the first axis is samples and the last units.

    Returns:
        The `(samples, units)` array, and the group of each sample, its index on the samples axis: `None` for two axes.

    Raises:
        ValueError: fewer than two axes, or names that do not fit.

    >>> activations, groups = flatten(np.zeros((2, 3, 4)))  # two images, three positions, four units
    >>> activations.shape, groups.tolist()
    ((6, 4), [0, 0, 0, 1, 1, 1])
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
    array = np.transpose(np.asarray(array), [names.index(name) for name in ("samples", *others, "units")])
    repeats = math.prod(array.shape[1:-1])
    groups = np.repeat(np.arange(array.shape[0]), repeats) if array.ndim > 2 else None
    return array.reshape(-1, array.shape[-1]), groups


class Rows:
    """The rows of one array that may be larger than memory: `read` fetches some of them.

    Args:
        source: an array `(rows, units)`, a memory map, a Zarr array, or a path that `load` takes. Axes between the first and
            the last count as further rows.
        name: what errors call it, where it has no file's name.

    Attributes:
        name: of the file, or as given.
        shape, dtype: of the array.
        n_rows: of all axes but the last together.
        n_units: on the last axis.

    Raises:
        ValueError: not an array of real numbers with two or more axes.
        FileNotFoundError: a path that is not there.

    >>> part = np.empty((2, 2))
    >>> Rows(np.arange(6.0).reshape(3, 2), "mine").read(1, 3, part)
    >>> part.tolist()
    [[2.0, 3.0], [4.0, 5.0]]
    """

    def __init__(self, source: Any, name: str):
        if isinstance(source, str | os.PathLike):
            self.name, self._array = os.fspath(source), load(os.fspath(source))
        else:
            self.name, self._array = str(getattr(source, "filename", None) or name), source
        if not hasattr(self._array, "shape") or not hasattr(self._array, "dtype"):
            raise ValueError(f"activations must be arrays or paths of them, but {self.name} is a {type(self._array).__name__}.")
        self.shape, self.dtype = tuple(self._array.shape), self._array.dtype
        if len(self.shape) < 2:
            raise ValueError(f"{self.name} must have at least two axes, rows and units, got shape {self.shape}.")
        _real(self._array, self.name)
        self.n_rows, self.n_units = math.prod(self.shape[:-1]), self.shape[-1]

    def read(self, first: int, end: int, into: np.ndarray) -> None:
        """Copies rows `first` to `end - 1` into an array of a floating dtype, `(end - first, n_units)`.

        Raises:
            ValueError: NaN or infinity among them, in that dtype.
        """
        inner = math.prod(self.shape[1:-1])
        low, high = first // inner, math.ceil(end / inner)
        rows = np.asarray(self._array[low:high]).reshape(-1, self.n_units)[first - low * inner : end - low * inner]
        with np.errstate(over="ignore"):  # what does not fit into the dtype is reported as infinite
            into[...] = rows
        if not np.isfinite(into).all():
            bad = first + np.flatnonzero(~np.isfinite(into).all(axis=1))
            where = f"{len(bad)} of its rows {first} to {end - 1}, first in row {bad[0]}"
            raise ValueError(f"{self.name} has NaN or infinity, as {into.dtype}, in {where}.")
        _let_go(self._array)


class Batches:
    """Rows of arrays that may be larger than memory, as endless shuffled batches: `batches(start)` iterates from batch `start`.

    The rows of all sources together are cut into blocks of `block_size` neighbours. Each epoch puts the blocks in a new random
    order and deals them out to buffers of equal size (one, where all rows fit into it); the rows of a buffer are shuffled and
    served to the last before the next is read. With the defaults a batch of 4096 holds about 64 rows of each of 64 places in
    the data: as mixed as in a buffer of this size that is refilled by halves, but every row comes exactly once an epoch, and
    any batch is found from its number alone. A batch that an epoch cannot fill is filled up from the next.

    Memory: one buffer of `buffer_size` rows (262,144 of 512 float32 units: 512 MiB) and the batch, whatever the size of the
    data. Of memory maps and Zarr arrays no more than a block is in memory; an array in a `.npz` is read whole.

    Args:
        sources: one or several: arrays `(rows, units)`, memory maps, Zarr arrays, or paths that `load` takes. Axes between the
            first and the last count as further rows. Blocks of a Zarr array that are multiples of its chunks read each once.
        batch_size: rows in a batch.
        seed: of all shuffling; the order of batches is a function of it, the sources' shapes and the sizes here.
        buffer_size: rows that are mixed at once.
        block_size: rows that are read at once; smaller ones mix better and read slower.
        dtype: of the batches and of the buffer; a floating one.

    Attributes:
        n_rows: rows an epoch.
        n_units: columns of a batch.

    Raises:
        ValueError: sources that are not arrays of real numbers with two or more axes and as many units, a batch that is larger
            than the data or the buffer, a size that is not positive, a dtype that is not floating; while iterating, NaN or
            infinity in what is read.
        FileNotFoundError: a path that is not there.

    >>> batches = Batches(np.arange(12.0).reshape(6, 2), 4)
    >>> stream = batches()
    >>> np.sort(np.concatenate([next(stream), next(stream), next(stream)])[:, 0]).tolist()  # two epochs
    [0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 8.0, 8.0, 10.0, 10.0]
    """

    def __init__(
        self,
        sources: Any,
        batch_size: int,
        *,
        seed: int = 0,
        buffer_size: int = 262_144,
        block_size: int = 4096,
        dtype: DTypeLike = np.float32,
    ):
        sizes = {"batch_size": batch_size, "block_size": block_size, "buffer_size": buffer_size}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        if buffer_size < max(batch_size, block_size):
            least = f"batch_size={batch_size} and block_size={block_size}"
            raise ValueError(f"buffer_size must be at least as large as {least}, got {buffer_size}.")
        self.batch_size, self.seed, self.dtype = batch_size, seed, np.dtype(dtype)
        sources = [sources] if isinstance(sources, str | os.PathLike) or hasattr(sources, "shape") else list(sources)
        if self.dtype.kind != "f" and self.dtype.name != "bfloat16":  # whole numbers would be cut off without a word
            raise ValueError(f"dtype must be a floating one, got {self.dtype}.")
        self._sources = [Rows(source, f"sources[{i}]") for i, source in enumerate(sources)]
        widths = [source.n_units for source in self._sources]
        if len(set(widths)) != 1:
            raise ValueError(f"sources must be one or more arrays with as many units, got {widths or 'none'}.")
        lengths = [source.n_rows for source in self._sources]
        self.n_rows, self.n_units = sum(lengths), widths[0]
        if batch_size > self.n_rows:
            raise ValueError(f"batch_size must be at most the number of rows, {self.n_rows}, got {batch_size}.")
        self._blocks = np.array(  # source, first row in it, end
            [(i, at, min(at + block_size, n)) for i, n in enumerate(lengths) for at in range(0, n, block_size)]
        )
        self._n_buffers = math.ceil(len(self._blocks) / (buffer_size // block_size))
        self._buffer_size = min(self.n_rows, math.ceil(len(self._blocks) / self._n_buffers) * block_size)

    def __call__(self, start: int = 0) -> Iterator[Float[np.ndarray, "batch units"]]:
        """Batches from number `start` on, as they come after `start` others, without reading those of earlier buffers."""
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}.")
        return self._serve(*divmod(start * self.batch_size, self.n_rows))

    def _serve(self, epoch: int, skip: int) -> Iterator[np.ndarray]:
        """Batches from row `skip` of an epoch on."""
        buffer = np.empty((self._buffer_size, self.n_units), self.dtype)
        batch, filled = np.empty((self.batch_size, self.n_units), self.dtype), 0
        for now in itertools.count(epoch):
            # NumPy pads seeds with zeros: (seed, epoch) alone would be (seed, epoch, 0).
            order = np.random.default_rng((self.seed, now, 0)).permutation(len(self._blocks))
            for number, chosen in enumerate(np.array_split(order, self._n_buffers), 1):
                blocks = self._blocks[np.sort(chosen)]
                n_rows = int((blocks[:, 2] - blocks[:, 1]).sum())
                if skip >= n_rows:
                    skip -= n_rows
                    continue
                self._read(blocks, buffer)
                rows = np.random.default_rng((self.seed, now, number)).permutation(n_rows)[skip:]
                skip = 0
                while len(rows):
                    taken, rows = np.split(rows, [self.batch_size - filled])
                    batch[filled : filled + len(taken)] = buffer[taken]
                    filled += len(taken)
                    if filled == self.batch_size:
                        yield batch
                        batch, filled = np.empty_like(batch), 0

    def _read(self, blocks: np.ndarray, buffer: np.ndarray) -> None:
        at = 0
        for source, first, end in blocks.tolist():
            self._sources[source].read(first, end, buffer[at : at + end - first])
            at += end - first


def _let_go(array: Any) -> None:
    """Pages of a memory map that were read count as this process's memory until it says that it needs them no more."""
    mapped = getattr(array, "_mmap", None)
    # Of a copy-on-write map this would undo the user's changes; not every system has it.
    if mapped is not None and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)

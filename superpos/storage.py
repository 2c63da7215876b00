"""Files that are written whole or not at all and read with doubt, and folders that one process writes to at a time."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EIO: "the disk reports an error",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "the file would be larger than is allowed",
}


class NotWrittenError(OSError):
    """A file could not be written; what was there before it is there still."""


def replace(file: Path, write: Callable[[Path], Any]) -> None:
    """`write(part)` writes a file, which takes the place of another once it is on disk, and its folder's entry then too.

    Whatever happens on the way, loss of power included, `file` is the old one or the new one, whole.

    Raises:
        NotWrittenError: there is no room for it, for example; the old file stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace(Path(folder, "it.txt"), lambda part: part.write_text("whole"))
    ...     os.listdir(folder)
    ['it.txt']
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with unbroken():
            write(part)
            sync(part)
            os.replace(part, file)
            sync(file.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, Exception) and (reason := why(error)):
            raise NotWrittenError(f"{file} could not be written: {reason}.") from error
        raise


def why(error: BaseException) -> str:
    """Why something could not be written, in words; empty for errors that are not the operating system's."""
    # Libraries in Rust have errors of their own, with the system's number in the text.
    told = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return "" if number is None else _REASONS.get(number, os.strerror(number))


def is_of_the_disk(error: BaseException) -> bool:
    """Whether the disk is to blame, and not what was asked for."""
    return isinstance(error, NotWrittenError) or (isinstance(error, OSError) and error.errno in _REASONS)


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on disk."""
    if os.name == "nt" and path.is_dir():  # which Windows has no call for
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder, with those above it, and waits until it is on disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextlib.contextmanager
def reading(file: str | os.PathLike, what: str) -> Iterator[None]:
    """Whatever a library raises inside, where a file is damaged, becomes one `ValueError` that names the file.

    >>> with reading("torn.npy", "an array"):
    ...     raise EOFError
    Traceback (most recent call last):
    ValueError: torn.npy is not an array, or is damaged (EOFError).
    """
    try:
        yield
    except (ImportError, FileNotFoundError, PermissionError):
        raise
    except ValueError as error:
        if str(error).startswith(str(file)):  # that says it already
            raise
        raise ValueError(_unreadable(file, what, error)) from error
    except Exception as error:  # libraries raise what they like for a damaged file, and C's errors of memory too
        raise ValueError(_unreadable(file, what, error)) from error


def _unreadable(file: str | os.PathLike, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{file} is not {what}, or is damaged ({reason})."


def check_room(n_bytes: int) -> None:
    """Refuses what does not fit into the memory that is free.

    >>> check_room(2**60)
    Traceback (most recent call last):
    ValueError: it takes 1,073,741,824.0 GiB of memory...
    """
    import psutil

    if n_bytes > (free := psutil.virtual_memory().available):
        raise ValueError(f"it takes {n_bytes / 2**30:,.1f} GiB of memory, of which {free / 2**30:,.1f} are free")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of bytes that are no text, too
        raise ValueError(f"{file} is not valid JSON ({error}).") from error


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file, see `replace`; null stands for what is not finite, lists for arrays."""
    text = json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
    replace(file, lambda part: part.write_text(text, encoding="utf-8"))


def finite(content: Any, instead: Callable[[float], Any] = lambda value: None) -> Any:
    """The same with something instead of NaN and infinity, which JSON does not know; arrays are lists."""
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if isinstance(content, dict):
        return {key: finite(value, instead) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value, instead) for value in content]
    return instead(content) if isinstance(content, float) and not math.isfinite(content) else content


def seal(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys.

    >>> seal({"a": 1, "b": [0.5]}) == seal({"b": [0.5], "a": 1})
    True
    """
    text = json.dumps(finite(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest(leaves: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays: their types, shapes and values."""
    sha = hashlib.sha256()
    for leaf in leaves:
        sha.update(f"{leaf.dtype}{leaf.shape}".encode())
        sha.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def sha256(file: str | os.PathLike) -> str:
    """SHA-256 of a file, read in blocks."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Lock:
    """A folder as one process's: made in it is `.lock`, which names that process, while it is held.

    It is the operating system's lock (`flock`), so that it ends with the process, however that ends: there are no stale ones. A
    process may hold it several times over. Where the file system has no locks it is not held, with a warning.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = Lock(Path(folder))
    ...     lock.acquire()
    ...     held = os.listdir(folder)
    ...     lock.release()
    ...     held, os.listdir(folder)
    (['.lock'], [])
    """

    _held: dict[Path, list[int]] = {}  # of this process: file descriptor, how often it is held, process  # noqa: RUF012
    _guard = threading.RLock()

    def __init__(self, folder: Path):
        self.file = folder / ".lock"
        self._key: Path | None = None

    def acquire(self) -> None:
        """Takes it, unless this object has it.

        Raises:
            ValueError: another process has it.
        """
        with self._guard:
            if self._key is not None:
                return
            key = self.file.resolve()
            if key in self._held and self._held[key][2] == os.getpid():
                self._held[key][1] += 1
            elif (descriptor := self._open()) is not None:
                self._held[key] = [descriptor, 1, os.getpid()]
            else:
                return
            self._key = key

    def release(self) -> None:
        """Lets go of it."""
        with self._guard:
            key, self._key = self._key, None
            if key is None or self._held.get(key, (0, 0, 0))[2] != os.getpid():  # a process that was forked has none
                return
            held = self._held[key]
            held[1] -= 1
            if held[1] == 0:
                del self._held[key]
                try:
                    with contextlib.suppress(OSError):  # the folder may be gone
                        os.unlink(key)
                finally:
                    os.close(held[0])

    def _open(self) -> int | None:
        """The descriptor of the file, locked; None where there are no locks."""
        try:
            import fcntl
        except ImportError:  # Windows
            return None
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(self.file) and os.path.samestat(os.fstat(descriptor), os.stat(self.file)):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return descriptor
            except FileNotFoundError:  # its owner has removed it just now
                pass
            except BlockingIOError:
                owner = os.read(descriptor, 1000).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise ValueError(
                    f"workdir {self.file.parent} is in use by {owner}: wait until that has ended, or name another workdir."
                ) from None
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                    warnings.warn(
                        f"The file system of {self.file.parent} has no locks: take care that no second run writes there.",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                    return None
                raise
            os.close(descriptor)


class Interruptions:
    """Signals that end a program, put off while something is done that should not stop half-way: see `unbroken`.

    `interrupt` is called in the main thread by whoever handles signals; it raises what it is given, at once or as soon as the
    outermost `unbroken` ends.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: BaseException | None = None

    def interrupt(self, stop: BaseException) -> None:
        """Raises it now, or later."""
        if self._depth:
            self._waiting = stop
            return
        raise stop

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """What is done inside in the main thread is not interrupted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth and self._waiting is not None:
            stop, self._waiting = self._waiting, None
            raise stop


interruptions = Interruptions()
unbroken = interruptions.unbroken

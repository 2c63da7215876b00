"""A shim that ends what a program does to files at the k-th operation on them, as a crash would."""

import builtins
import contextlib
import io
import os
from pathlib import Path

import safetensors.numpy

from superpos import storage


class Crash(BaseException):
    """The process is gone: nothing that follows changes a file."""


class Shim:
    """Counts the operations that change files in a folder, and lets the k-th and all that follow fail.

    Args:
        folder: operations elsewhere are left alone.
        at: the number of the operation that fails, from 0; None lets all pass.
        torn: whether a write that fails has written half of its bytes.
    """

    def __init__(self, folder, at=None, torn=False):
        self.folder, self.at, self.torn = os.path.realpath(folder), at, torn
        self.log = []  # (operation, path)

    def inside(self, path):
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return os.path.realpath(os.fspath(path)).startswith(self.folder)

    def step(self, name, path, tear=None):
        """One operation; the crash comes before it, or in its midst."""
        self.log.append((name, path if isinstance(path, int) else os.path.realpath(os.fspath(path))))
        if self.at is not None and len(self.log) > self.at:
            if self.torn and tear is not None and len(self.log) == self.at + 1:
                tear()
            raise Crash(name)

    @contextlib.contextmanager
    def installed(self):
        """While it is, files are written through it."""
        real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")}
        real_open, real_save = io.open, safetensors.numpy.save_file

        def of_os(name):
            def call(path, *arguments, **options):
                # rmtree works on names relative to a folder's descriptor.
                where = path if options.get("dir_fd") is None else f"/proc/self/fd/{options['dir_fd']}"
                reads = name == "open" and not (arguments and arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
                if not reads and self.inside(where):
                    self.step(name, os.readlink(f"/proc/self/fd/{path}") if name == "fsync" else where)
                    if name == "fsync":  # counts, but need not wait for a disk
                        return None
                return real[name](path, *arguments, **options)

            return call

        def opened(file, mode="r", *arguments, **options):
            if any(letter in mode for letter in "wxa+") and not isinstance(file, int) and self.inside(file):
                self.step("write", file, lambda: Path(file).exists() or real_open(file, "w").close())
            return real_open(file, mode, *arguments, **options)

        def saved(tensors, file, metadata=None):
            def tear():
                real_save(tensors, file, metadata)
                os.truncate(file, os.path.getsize(file) // 2)

            if self.inside(file):
                self.step("write", file, tear)
            return real_save(tensors, file, metadata)

        try:
            for name in real:
                setattr(os, name, of_os(name))
            io.open = builtins.open = opened
            safetensors.numpy.save_file = saved
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            io.open = builtins.open = real_open
            safetensors.numpy.save_file = real_save


def crash_everywhere(folder, work, result, points=None):
    """Lets `work(folder)` crash at its operations on files, each in a folder of its own, and do the rest of its work after.

    Args:
        folder: a fresh one.
        work: what is done; it gets a folder, and goes on with what is in there.
        result: of a finished folder, to be compared by ==.
        points: how many crashes, spread over all operations; None is one at each, and one with a torn write.

    Returns:
        The operations of one undisturbed run.
    """
    (folder / "whole").mkdir()
    with Shim(folder / "whole").installed() as whole:
        work(folder / "whole")
    expected, n = result(folder / "whole"), len(whole.log)
    chosen = range(n) if points is None else sorted({i * (n - 1) // max(1, points - 1) for i in range(points)})
    for k in chosen:
        for torn in (False, True):
            if torn and (points is not None or whole.log[k][0] != "write"):
                continue
            place = folder / f"{k}{'-torn' * torn}"
            place.mkdir()
            with contextlib.suppress(Crash), Shim(place, k, torn).installed():
                work(place)
            for held in storage.Lock._held.values():  # the kernel lets go of a dead process's
                os.close(held[0])
            storage.Lock._held.clear()
            work(place)
            assert result(place) == expected, (k, whole.log[k])
    return whole.log


def check_order(log):
    """Nothing takes a name before it is on disk, and nothing that was saved goes before what replaces it has its name there."""
    synced, waiting = set(), set()
    for operation, path in log:
        if operation == "write":
            synced.discard(path)
        elif operation == "fsync":
            synced.add(path)
            waiting = {file for file in waiting if os.path.dirname(file) != path}
        elif operation == "replace":
            assert path in synced, f"{path} takes its name before it is on disk"
            waiting.add(path)
        elif operation == "unlink" and path.endswith(".safetensors"):
            assert os.path.dirname(path) not in map(os.path.dirname, waiting), f"{path} goes before another is on disk"

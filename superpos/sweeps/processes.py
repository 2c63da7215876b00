"""What the processes of one sweep have to agree on; with one process nothing."""

import atexit
import ctypes
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

_LONGEST = 1000  # bytes of an error's text
SILENCE = 60  # seconds without a sign of life after which a process is taken for lost; one that is killed is missed at once
LOST = "another process of this run is gone or out of reach: start all again, as many as you like, to go on from what is saved."
_OF_A_PEER = (
    "Gloo|NCCL|heartbeat|coordination service|distributed service|UNAVAILABLE|DEADLINE_EXCEEDED|onnection (closed|reset)"
)
_kept: list[Any] = []  # what must outlive the function that made it


def start_jax(distributed: bool = False) -> None:
    """Settles on which devices a program of its own computes, and where JAX keeps what it compiles; call it first.

    Args:
        distributed: whether several processes share the work. If one is lost the others end with one sentence and status 1.

    Raises:
        ValueError: no cluster, or no device.
    """
    settings: Any = jax.config
    # One device a core, since XLA's threads share the work of one small operation badly: two devices train 1.4 to 2 times
    # faster on two cores. Where there is an accelerator it is used instead.
    settings.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if not settings.jax_compilation_cache_dir:
        settings.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "superpos"))
    if distributed:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE, shutdown_timeout_seconds=2 * SILENCE)
            _abort_in_a_sentence()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"--distributed found no cluster (Slurm, MPI, a TPU pod): {error}") from error
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX is installed without support for it
        raise ValueError(
            f"JAX finds no device for JAX_PLATFORMS={settings.jax_platforms}: unset it to compute on what there is; "
            "JAX for NVIDIA GPUs is installed by pip install 'jax[cuda12]'."
        ) from error


def is_of_a_peer(error: object) -> bool:
    """Whether an error says that another process is gone."""
    return jax.distributed.is_initialized() and re.search(_OF_A_PEER, str(error)) is not None


def leave(status: int) -> NoReturn:
    """Ends this process, without waiting for others that wait for it: they find it lost."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:  # with it goes the service, by which the others hear of nothing but its end
            time.sleep(2)
        os._exit(status)
    sys.exit(status)


def _abort_in_a_sentence() -> None:
    """Where JAX's client of the coordination service finds a process lost, it prints what C++ prints, and aborts.

    It takes no callback in Python (jaxlib 0.10 cannot pass it a status). So what C++ prints is kept aside until this process
    ends, and is printed then if that is for another reason.
    """
    if os.name != "posix":
        return
    aside, console = tempfile.TemporaryFile(), os.dup(2)  # noqa: SIM115 (both stay open)
    sys.stderr.flush()
    sys.stderr = open(console, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.dup2(aside.fileno(), 2)

    def tell() -> None:
        aside.seek(0)
        with open(console, "wb", closefd=False) as file:
            shutil.copyfileobj(aside, file)

    def aborted(number: int) -> None:
        aside.seek(0)
        if re.search(_OF_A_PEER, aside.read().decode(errors="ignore")):
            os.write(console, f"error: {LOST}\n".encode())
            os._exit(1)
        tell()  # and the abort goes on

    atexit.register(tell)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)  # Python's own would wait for the main thread
    _kept.append((handler, aside))


def together(action: Callable[[], Any]) -> Any:
    """Does something on the first process only, such as reading and writing; what it raises, all raise.

    Returns:
        What `action` returns on the first process, None on the others.
    """
    if jax.process_count() == 1:
        return action()
    done, error = None, None
    if jax.process_index() == 0:
        try:
            done = action()
        except (ValueError, OSError) as raised:
            error = raised
    text = broadcast(np.frombuffer(str(error or "").encode()[:_LONGEST].ljust(_LONGEST), np.uint8))
    if message := text.tobytes().decode(errors="ignore").strip():
        raise error or ValueError(message)
    return done


def agree(value: float, largest: bool = False) -> float:
    """The smallest (or largest) of what the processes have."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    values = multihost_utils.process_allgather(np.float32(value))
    return float(np.max(values) if largest else np.min(values))


def broadcast(array: np.ndarray) -> np.ndarray:
    """What the first process has."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    short = array.dtype.kind == "b" or (array.dtype.kind in "iu" and array.dtype.itemsize < 4)
    wide = array.astype(np.int32) if short else array
    return np.asarray(multihost_utils.broadcast_one_to_all(wide)).astype(array.dtype)


def gather(tree: Any) -> Any:
    """Arrays that are split over the devices of all processes, as NumPy arrays on each."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    # One by one: collectives of one program may meet in another order on another process.
    return jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), tree)

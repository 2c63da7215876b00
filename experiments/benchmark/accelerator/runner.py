"""Runs the parts, one process after the other, within a limit of time."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HERE = "experiments.benchmark.accelerator"
REQUIRED = ("jax", "optax", "numpy", "scipy", "jaxtyping", "tabulate", "tqdm")
# And what misses it, where it is not there.
OPTIONAL = {
    "torch": "toys and sae without PyTorch beside them",
    "ml_collections": "no study",
    "ot": "transport without POT beside it",
    "matplotlib": "no study",
    "safetensors": "no study",
    "xarray": "no study",
    "psutil": "no sweeps on a CPU",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of its module, which has `SIZES` and `run(size, report)`.
        seconds: that it may take, where the whole may take 420.
        least: seconds without which it is not begun.
        needs: packages.
        package: of the module.
    """

    name: str
    seconds: float
    least: float = 10
    needs: tuple[str, ...] = ()
    package: str = HERE


DEVICE = Part("device", 45)
# The most telling first.
PARTS = (
    Part("numbers", 110, 20),
    Part("toys", 120, 30),
    Part("sae", 60, 20),
    Part("pairs", 60, 15),
    Part("transport", 45),
    Part("stream", 60),
    Part("mesh", 40),
    # Last, with all that is left: on an H200 it did not end within 100 s, and took them from the others.
    Part("study", 300, 30, ("ml_collections", "matplotlib", "safetensors", "xarray", "absl")),
)


def run(
    folder: Path,
    limit_s: float = 420,
    size: str = "",
    chosen: Sequence[str] = (),
    parts: Sequence[Part] = PARTS,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Runs parts and returns what `accelerator.json` in the folder then holds.

    Args:
        folder: for what is found; made where it is not there.
        limit_s: seconds for all parts together.
        size: "full", "small", or "" for what suits the device.
        chosen: names of parts; all by default.
        parts: to choose from.
        say: prints a line.

    Raises:
        ValueError: bad settings; a folder with results; a package without which nothing runs; a card that JAX does not see.
    """
    started = time.monotonic()
    names = [part.name for part in parts]
    if size not in ("", "full", "small"):
        raise ValueError(f"size takes full, small or nothing, got {size!r}.")
    if limit_s <= 0:
        raise ValueError(f"limit_s must be above 0, got {limit_s}.")
    if unknown := set(chosen) - set(names):
        raise ValueError(f"parts takes names out of {', '.join(names)}, got {', '.join(sorted(unknown))}.")
    if (folder / "accelerator.json").exists():
        raise ValueError(f"{folder} holds results of another run: name another workdir.")
    if missing := [package for package in REQUIRED if not there(package)]:
        raise ValueError(f"not installed, and nothing runs without: {', '.join(missing)}.")
    folder.mkdir(parents=True, exist_ok=True)
    absent = {package: without for package, without in OPTIONAL.items() if not there(package)}
    for package, without in absent.items():
        say(f"not installed: {package} ({without})")
    results: dict[str, Any] = {"limit_s": limit_s, "missing": absent, "rows": [], "parts": []}

    def one(part, size):
        left = limit_s - (time.monotonic() - started)
        begun = time.monotonic()
        (folder / f"{part.name}.jsonl").unlink(missing_ok=True)  # of a run that was killed
        if lacking := [package for package in part.needs if package in absent or not there(package)]:
            reason = f"needs {', '.join(lacking)}, not installed"
        elif left < part.least * min(1, limit_s / 420):
            reason = f"{left:.0f} s of {limit_s:.0f} were left"
        else:
            reason = _process(part, folder, size, min(left, part.seconds * max(1, limit_s / 420)))
        rows = _rows(folder / f"{part.name}.jsonl")
        results["rows"] += rows
        results["parts"].append({"part": part.name, "seconds": time.monotonic() - begun, "rows": len(rows), "reason": reason})
        say(f"{part.name}: {time.monotonic() - begun:.0f} s, {len(rows)} rows" + f"; {reason}" * bool(reason))
        _write(folder / "accelerator.json", results)

    one(DEVICE, size or "full")
    if reason := results["parts"][0]["reason"]:
        raise ValueError(f"JAX finds no device that computes: {reason}")
    results["device"] = json.loads((folder / "card.json").read_text())
    results["platform"] = platform = results["rows"][0]["platform"]
    if platform == "cpu" and not size and not os.environ.get("JAX_PLATFORMS", "").startswith("cpu") and (card := card_there()):
        raise ValueError(
            f"{card} is there, but JAX computes on the CPU: pip install 'jax[cuda12]' or 'jax[cuda13]', whichever fits the "
            "driver; --size=small runs on the CPU nevertheless."
        )
    size = size or ("small" if platform == "cpu" else "full")
    results["size"] = size
    for part in parts:
        if not chosen or part.name in chosen:
            one(part, size)
    results["seconds"] = time.monotonic() - started
    _write(folder / "accelerator.json", results)
    return results


def there(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def card_there() -> str:
    """The name of an NVIDIA card that the driver knows, whatever JAX says; empty where there is none."""
    if command := shutil.which("nvidia-smi"):
        query = [command, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""
    return "An NVIDIA driver" if Path("/proc/driver/nvidia/version").exists() else ""


def _process(part, folder, size, limit):
    """Runs a part; why it did not come to its end, empty where it did."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TQDM_DISABLE": "1"}
    # PyTorch and JAX share the card, and numbers are compared with the CPU's.
    if (platforms := environment.get("JAX_PLATFORMS")) and "cpu" not in platforms:
        environment["JAX_PLATFORMS"] = f"{platforms},cpu"
    command = [sys.executable, "-m", f"{HERE}.part", f"{part.package}.{part.name}".lstrip("."), str(folder.absolute()), size]
    log = folder / f"{part.name}.log"
    with log.open("w") as out:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not finished after its {limit:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # a session of its own: what it has started ends too
                child.wait()
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if status == 0:
        return ""
    if memory := [line for line in said if "RESOURCE_EXHAUSTED" in line or "out of memory" in line.lower()]:
        return f"out of memory: {memory[-1].strip()[:300]}"
    return (f"ended by signal {-status}: " if status < 0 else "") + (said[-1].strip()[:300] if said else "no word")


def _write(file, content):
    """Whole or not at all. Not by `superpos.results`, whose package imports JAX: this process leaves the card alone."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    part.replace(file)


def _rows(file):
    """The rows that a part has written, but for one that it was killed over."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

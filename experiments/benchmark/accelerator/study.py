"""The full study, `toy_alignment --preset=full`, from the command line to the figure, with nothing compiled before."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from superpos.storage import read_json

GOAL = 30  # seconds
KERNELS = 3 * (10_000 * 25 + 8_000 * 45 + 4_000 * 30)  # of the three widths' toys, SAEs and supervised networks
SMALL = ("n_seeds=2", "n_hidden=(8,)", "toy.steps=10", "sae.steps=10", "supervised.steps=0", "eval.n_samples=5120")
SIZES: dict[str, Any] = {"full": ("--preset=full",), "small": tuple(f"--config.{setting}" for setting in SMALL)}


def run(size: tuple[str, ...], report) -> None:
    """One row. This process leaves the device to the study's."""
    small = size != SIZES["full"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.toy_alignment", *size, f"--workdir={folder}/run"]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla", "JAX_LOG_COMPILES": "1"},
            check=False,  # what it says, which programs it compiles included, is in study.log if it does not end in time
        )
        spent = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.returncode)
        found = read_json(Path(folder) / "run" / "results.json")
    alignment = {row["comparison"]: row["mean"] for row in found["rows"] if row["metric"] == "soft_match"}  # of the last width
    said = ", ".join(f"{name} {alignment[name]:.3f}" for name in ("neuron->neuron", "sae->sae"))
    report.row(
        "toy_alignment" + " small" * small,
        spent,
        counts=None if small else {"launches": KERNELS},
        compile_s=found["seconds"]["compile"],
        goal=None if small else f"< {GOAL} s, compiling included",
        met=None if small else spent < GOAL,
        note=f"run {found['seconds']['run']:.1f} s; soft_match of the widest: {said}; on {found['environment']['device']}",
    )

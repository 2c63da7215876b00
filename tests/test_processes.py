"""A run over processes of which one is lost: the others end in one sentence, and any number of processes goes on."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superpos.sweeps.processes import LOST

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys, jax, numpy as np
from ml_collections import ConfigDict
import superpos as sp
from experiments import command

def train(key, data_key):
    return {"w": jax.random.normal(key, (3,))}

def compute(config, run):
    run.claim()
    keys = jax.random.split(jax.random.key(config.seed), 160)
    if config.seed and jax.process_index() == config.seed - 1:  # what is wrong on one process only
        raise ValueError("config.seed must be 0.")
    found = sp.sweep(train, {}, keys, chunk=4, workdir=run.path / "sweep")
    w = np.asarray(found.states["w"])
    return run.finish([{"norm": float(np.linalg.norm(w)), "last": float(w[-1, -1])}], {"run": 0.0})

command.main("toy", ConfigDict({"seed": 0}), compute, lambda results, run: None)
"""


def start(n, *arguments):
    """The program in n processes, as under Open MPI."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    cluster = {
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": str(n),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_PLATFORMS": "cpu",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, *(["--distributed"] if n > 1 else [])],
            cwd=ROOT,
            env={**os.environ, **cluster, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("lost", [0, 1])  # the first is also the one that the others hear from
def test_a_lost_process_ends_the_others_in_one_sentence(tmp_path, lost):
    workdir = f"--workdir={tmp_path / 'run'}"
    both = start(2, workdir)
    checkpoints = tmp_path / "run" / "sweep" / "checkpoints"
    while both[0].poll() is None and (not checkpoints.is_dir() or len(os.listdir(checkpoints)) < 3):
        time.sleep(0.001)
    both[lost].kill()
    killed = time.monotonic()
    other = both[1 - lost]
    _, errors = other.communicate(timeout=60)
    both[lost].communicate()
    assert time.monotonic() - killed < 30
    assert (other.returncode, errors) == (1, f"error: {LOST}\n")
    assert len(os.listdir(checkpoints)) < 40
    for n, place in ((1 + lost, workdir), (1, f"--workdir={tmp_path / 'once'}")):  # with fewer, or as many
        for process in start(n, place):
            _, errors = process.communicate(timeout=120)
            assert (process.returncode, errors) == (0, "")
    rows = [json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("run", "once")]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_what_ends_one_process_ends_all(tmp_path):
    both = start(2, "--config.seed=2", f"--workdir={tmp_path / 'run'}")
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [1, 2]
    assert errors == [f"error: {LOST}\n", "error: config.seed must be 0.\n"]

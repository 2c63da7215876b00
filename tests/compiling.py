"""How the tests compile: that takes most of their time, and most of it is optimising. No result depends on what is set here."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

QUICK = "--xla_cpu_use_fusion_emitters=false"  # the older generator of code takes a third of the time, where there is one


def knows(flag):
    """Whether XLA has a flag: it ends a process that names one which it does not have."""
    run = "import jax; jax.numpy.zeros(()).block_until_ready()"
    return not subprocess.run(
        [sys.executable, "-c", run], env={**os.environ, "XLA_FLAGS": flag}, capture_output=True
    ).returncode


def of_architectures(names):
    """Marks a test of SAEs by name, of which all but two are compiled in the slow tests only."""
    return pytest.mark.parametrize(
        "name", [name if name in ("vanilla", "topk") else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # `test_agreement` optimises every metric once
if "SUPERPOS_TESTS" not in os.environ:  # workers have what the first process found
    os.environ["SUPERPOS_TESTS"] = "1"
    # What one process has compiled the others read: workers, and the commands that tests start.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs = tempfile.mkdtemp(prefix="programs")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    if knows(QUICK):
        os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"
gc.set_threshold(100_000, 20, 100)  # tracing makes many objects that live, each of which a collection looks at

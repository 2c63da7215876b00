import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from superpos import storage
from superpos.results import Run

ROOT = Path(__file__).parents[1]
CONFIG = {"seed": 0}
NAMES = ["lr[1e-3]", "seed[0]", "a*b?", "[!a]", 'it\'s "here"', "grün/ 圖", "ends...", "n" * 240, "$HOME", "~", "%s{}"]


@pytest.mark.parametrize("name", NAMES)
def test_no_path_is_a_pattern(tmp_path, monkeypatch, name):
    tree = {"w": np.arange(6.0).reshape(2, 3), "none": np.zeros((0, 2)), "half": jnp.ones(3, jnp.bfloat16), "at": np.int32(4)}
    monkeypatch.chdir(tmp_path)
    run = Run(name, "toy", CONFIG)
    run.save("step-1", tree)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # after which relative names mean something else
    run.save("step-2", tree, keep=1)
    run.finish([{"mean": 0.5}], {})
    again = Run(tmp_path / name, "toy", CONFIG)
    assert again.checkpoints() == ["step-2"]
    for found in (again.load("step-2"), again.load("step-2", tree)):
        assert {key: (leaf.dtype, leaf.shape) for key, leaf in found.items()} == {
            key: (np.asarray(leaf).dtype, np.shape(leaf)) for key, leaf in tree.items()
        }
        np.testing.assert_array_equal(found["w"], tree["w"])
    assert again.finished()["rows"] == [{"mean": 0.5}]
    (tmp_path / "link").symlink_to(name)
    assert Run(tmp_path / "link", "toy", CONFIG).checkpoints() == ["step-2"]


def test_results_that_were_changed_or_mixed_are_told(tmp_path):
    def made(name, config=CONFIG, value=1.0):
        run = Run(tmp_path / name, "toy", config)
        run.save("states", {"w": np.full(3, value)})
        Run(tmp_path / name / "sweep", "sweep", config).save("states", {"w": np.full(3, value)})
        run.finish([{"mean": 0.25, "ci95": [0.1, float("nan")]}], {"run": 1.0})
        return run

    run = made("it")
    assert run.finished()["rows"][0]["ci95"] == [0.1, None]
    file = run.path / "results.json"
    whole = file.read_text()
    for old, new in (('"mean": 0.25', '"mean": 0.26'), ("0.1", "0.2"), ('"toy"', '"boy"'), ('"numpy"', '"bumpy"')):
        assert old in whole
        file.write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match=r"results.json was changed after the run had written it: remove"):
            run.finished()
    for content, message in (("[]", "without a seal"), ('{"rows": []}', "without a seal"), ("{", "not valid JSON")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            run.finished()
    other = made("other", {"seed": 1}, 2.0)
    shutil.copy(other.path / "results.json", file)
    with pytest.raises(ValueError, match=r"results.json is of another configuration than config.json"):
        run.finished()
    file.write_text(whole)
    for name in ("checkpoints/states.safetensors", "sweep/checkpoints/states.safetensors"):
        before = (run.path / name).read_bytes()
        shutil.copy(other.path / name, run.path / name)
        with pytest.raises(ValueError, match=f"made from other states than {name} is now"):
            run.finished()
        (run.path / name).write_bytes(before)
    shutil.rmtree(run.path / "sweep")  # states may be removed to save room
    assert run.finished()["rows"]


HOLDER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("storage", sys.argv[1])
storage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(storage)
storage.Lock(Path(sys.argv[2])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_process_at_a_time(tmp_path):
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLDER, storage.__file__, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"run is in use by process {holder.pid} on .*: wait until that has ended"):
            Run(tmp_path / "run", "toy", CONFIG).claim()
        assert sorted(os.listdir(tmp_path / "run")) == [".lock"]  # nothing was written
        holder.send_signal(signal.SIGKILL)
    first, second = Run(tmp_path / "run", "toy", CONFIG), Run(tmp_path / "run", "toy", CONFIG)
    first.claim()  # of a dead process it is taken over
    second.claim()  # and is this process's as often as it likes
    first.release()
    first.release()
    assert (tmp_path / "run" / ".lock").exists()
    del second
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json"]


def test_where_there_are_no_locks_a_run_warns_and_goes_on(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(storage.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(RuntimeWarning, match="has no locks: take care that no second run writes there"):
        Run(tmp_path, "toy", CONFIG).claim()


def test_a_run_that_was_killed_while_it_began_may_begin_again(tmp_path):
    for name in (".lock", "config.json.part"):
        (tmp_path / name).write_text("")
    Run(tmp_path, "toy", CONFIG).claim()
    assert json.loads((tmp_path / "config.json").read_text())["config"] == CONFIG


def test_states_of_an_earlier_version_are_not_taken_for_nothing(tmp_path):
    run = Run(tmp_path, "toy", CONFIG)
    run.save("step-1", {"w": np.ones(2)})
    (tmp_path / "checkpoints" / "step-2").mkdir()
    with pytest.raises(ValueError, match=r"holds step-2, of an earlier version of superpos: name another workdir"):
        run.checkpoints()


SIGNALLED = """
import os, resource, sys, time
import numpy as np
from ml_collections import ConfigDict
from experiments import command
from superpos import storage

def compute(config, run):
    run.claim()
    if run.path.name == "full":
        run.save("first", {"w": np.ones(2)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # bytes a file
        run.save("second", {"w": np.ones(1000)})
    with storage.unbroken():
        print(f"{os.getpid()} {run.path.name}", flush=True)
        time.sleep(60 if run.path.name == "twice" else 1.5)
        run.save("piece", {"w": np.ones(2)})
    time.sleep(60)

for name in ("once", "twice", "full"):
    if os.fork() == 0:
        sys.argv = ["main", f"--workdir={sys.argv[1]}/{name}"]
        command.main("toy", ConfigDict({"seed": 0}), compute, None)
print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_commands_that_are_signalled_or_find_no_room_end_in_one_sentence(tmp_path):
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        told = (line.split() for line in parent.stdout if line[0].isdigit())
        children = {name: int(pid) for pid, name in itertools.islice(told, 2)}
        os.kill(children["once"], signal.SIGTERM)
        for _ in range(2):
            os.kill(children["twice"], signal.SIGINT)
            time.sleep(0.3)
        output, errors = parent.communicate(timeout=60)
    assert output.endswith("[1, 130, 143]\n")
    assert "Traceback" not in errors
    assert f"error: stopped by SIGTERM: the same command goes on from what is saved in {tmp_path}/once." in errors
    assert Run(tmp_path / "once", "toy", CONFIG).checkpoints() == ["piece"]
    assert Run(tmp_path / "twice", "toy", CONFIG).checkpoints() == []
    assert "error: Checkpoint second could not be saved in" in errors
    assert "(the file would be larger than is allowed); what was saved before is kept" in errors
    assert os.listdir(tmp_path / "full" / "checkpoints") == ["first.safetensors"]

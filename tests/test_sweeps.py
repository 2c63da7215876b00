import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import sweeps

KEYS = jax.random.split(jax.random.key(0), 5)
GRID = {"width": [2, 3], "scale": [0.5, 1.0, 4.0], "flip": [False, True]}


def train(key, data_key, width, scale, flip=False):
    """A power iteration, cheap to compile: its state depends on every argument."""
    matrix = scale * jax.random.normal(key, (width, width)) + jnp.eye(width) * jax.random.uniform(data_key)
    tick = sp.training.loop(10)

    def step(x, i):
        tick(i)
        x = matrix.T @ (matrix @ x)
        return x / jnp.linalg.norm(x), None

    vector, _ = jax.lax.scan(step, jnp.ones(width), jnp.arange(10))
    return {"vector": -vector if flip else vector, "norm": {"matrix": jnp.linalg.norm(matrix)}}


def score(a, b, eval_key):
    return {"cosine": a["vector"] @ b["vector"], "product": a["norm"]["matrix"] - b["norm"]["matrix"]}


def equal(a, b):
    """Leaves equal to the last bit."""
    leaves = zip(jax.tree.leaves(a.rows), jax.tree.leaves(b.rows), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a.rows, b.rows)


@pytest.fixture(scope="module")
def whole():
    return sp.sweep(train, GRID, KEYS, score=score)


def test_every_point_and_seed_is_what_train_returns_alone(whole):
    assert whole.programs == 1
    assert dict(whole.states["norm.matrix"].sizes) == {"width": 2, "scale": 3, "flip": 2, "seed": 5}
    data_key = jax.random.key(7)
    found = sp.sweep(train, GRID, KEYS, data_key=data_key)
    for width, scale, flip, seed in [(2, 0.5, True, 0), (3, 4.0, False, 4), (3, 1.0, True, 2)]:
        alone = train(KEYS[seed], data_key, width, scale, flip)
        loaded = found.load(width=width, scale=scale, flip=flip, seed=seed)
        np.testing.assert_allclose(loaded["vector"], alone["vector"], atol=1e-4)
        np.testing.assert_allclose(loaded["norm"]["matrix"], alone["norm"]["matrix"], rtol=1e-5)
        labelled = found.states["norm.matrix"].sel(width=width, scale=scale, flip=flip, seed=seed)
        assert float(labelled) == float(loaded["norm"]["matrix"])
    assert "vector" not in found.states  # its shape depends on width
    assert found.load(width=3, scale=1.0, flip=False)["vector"].shape == (5, 3)


def test_pairs_are_scored_as_a_double_loop_would(whole):
    states = whole.load(width=3, scale=1.0, flip=False)["vector"]
    expected = states @ states.T
    ordered = whole.scores.sel(width=3, scale=1.0, flip=False)
    np.testing.assert_allclose(ordered["cosine"].transpose("source", "target"), expected, atol=1e-6)
    norms = whole.load(width=3, scale=1.0, flip=False)["norm"]["matrix"]
    np.testing.assert_allclose(ordered["product"].transpose("source", "target"), norms[:, None] - norms, atol=1e-5)
    for pairs, listed in (("unordered", np.stack(np.triu_indices(5, 1), 1)), ([(4, 0), (1, 1)], [(4, 0), (1, 1)])):
        found = sp.sweep(train, {"width": [3], "scale": [1.0]}, KEYS, score=score, pairs=pairs, chunk=4)
        of_pair = found.scores.isel(width=0, scale=0)
        np.testing.assert_array_equal(np.stack([of_pair["source"], of_pair["target"]], 1), listed)
        np.testing.assert_allclose(of_pair["cosine"], [expected[a, b] for a, b in listed], atol=1e-6)


def test_score_gets_the_settings_that_it_names():
    def compare(a, b, eval_key, scale, width):
        return scale * width + 0 * a["vector"][0]

    found = sp.sweep(train, {"width": [2, 3], "scale": [0.5, 4.0]}, KEYS[:2], score=compare)
    np.testing.assert_allclose(found.scores["value"].isel(source=0, target=1), [[1, 8], [1.5, 12]])


def test_tables_have_a_row_a_point(whole):
    assert repr(whole).startswith(
        "Results(width=[2, 3], scale=[0.5, 1.0, 4.0], flip=[False, True], 5 seeds; train: norm.matrix"
    )
    assert len(whole.table) == 2 * 3 * 2 * 5 * 5
    states = sp.sweep(train, {"width": [2], "scale": [0.5, 1.0]}, KEYS).table
    assert list(states.columns) == ["width", "scale", "seed", "norm.matrix"]
    assert len(states) == 2 * 5


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_results_do_not_depend_on_chunks(whole, chunk):
    found = sp.sweep(train, GRID, KEYS, score=score, chunk=chunk)
    assert found.programs == 1
    close(found, whole)


def test_odd_settings_and_pytrees_survive_saving(tmp_path):
    class Pair(NamedTuple):
        z: jax.Array
        a: jax.Array

    def train(key, data_key, scale, act, limit, seed_offset=0):
        x = act(scale * jax.random.normal(key, (2,)))
        twins = {"a": {"b": x.sum()}, "a.b": 2 * x.sum(), "w": x, "w[0]": x[0], "scale": scale}
        return twins, Pair(x[1], x[0] > 0), [x.astype(jnp.bfloat16), None, jnp.zeros((0, 3))], jnp.minimum(limit, 3.0)

    grid = {"scale": jnp.logspace(-1, 1, 3), "act": [jnp.tanh, jax.nn.relu], "limit": [2.0, np.inf]}
    found = sp.sweep(train, grid, KEYS, workdir=tmp_path / "run")
    assert found.layout.axes[0].labels == [0.1, 1.0, 10.0]
    assert found.layout.axes[1].labels == ["tanh", "relu"]
    again = sp.sweep(train, grid, KEYS, workdir=tmp_path / "run")
    assert again.programs == 0
    assert jax.tree.structure(again.rows["train"]) == jax.tree.structure(found.rows["train"])
    assert equal(again, found)
    loaded, point = sweeps.load(tmp_path / "run"), {"scale": 10.0, "act": "relu", "limit": np.inf, "seed": 2}
    twins, pair, (x, _), limit = loaded.load(**point)
    expected = train(KEYS[2], None, np.float32(10), jax.nn.relu, np.inf)
    np.testing.assert_allclose(twins["w"], expected[0]["w"], rtol=1e-6)
    assert twins["a.b"] == 2 * twins["a"]["b"]
    np.testing.assert_allclose(pair["z"], expected[1].z, rtol=1e-6)  # fields keep their own order, dicts sort theirs
    assert (pair["a"], limit, str(x.dtype)) == (bool(expected[1].a), 3.0, "bfloat16")
    assert set(found.states) >= {"0.a.b", "0.a.b_", "0.w", "0.w[0]_", "0.scale", "1.z", "3"}
    np.testing.assert_allclose(found.states["0.scale"].sel(scale=0.1), 0.1, rtol=1e-6)


def test_what_would_depend_on_chunks_is_told():
    with pytest.warns(RuntimeWarning, match="rbg keys draw numbers that depend"):
        sp.sweep(lambda key, data_key: jax.random.normal(key), {}, jax.random.split(jax.random.key(0, impl="rbg"), 2))


def test_chunks_bound_what_is_in_flight(monkeypatch):
    calls = []
    run = sweeps.Program.__call__
    monkeypatch.setattr(
        sweeps.Program, "__call__", lambda self, i, inputs: calls.append(jax.tree.leaves(inputs)) or run(self, i, inputs)
    )
    settings = {"grid": {"width": [2], "scale": [0.5, 1.0]}, "keys": jax.random.split(jax.random.key(0), 7), "score": score}
    for chunk in (1, 3, 8, 60):
        calls.clear()
        sp.sweep(train, **settings, chunk=chunk)
        rows = [leaves for leaves in calls if leaves[0].ndim == 2 and leaves[0].dtype == np.uint32]
        pairs = [leaves for leaves in calls if leaves[0].dtype != np.uint32]
        assert max(leaves[0].shape[0] for leaves in rows) <= chunk
        assert max(leaves[0].shape[0] * leaves[0].shape[1] * leaves[2].shape[1] for leaves in pairs) <= chunk
    calls.clear()
    sp.sweep(train, **settings)
    assert len(calls) == 2  # what fits into memory goes in one call: all models, then all pairs


@pytest.mark.slow
def test_little_memory_makes_small_chunks():
    def hungry(key, data_key):
        matrix = jax.random.normal(key, (500, 500))
        return jnp.linalg.norm(matrix @ matrix)  # about 2 MB a model

    keys = jax.random.split(jax.random.key(0), 64)
    plenty, little = (sp.sweep(hungry, {}, keys, memory=memory) for memory in (2**30, 2**24))
    assert plenty.programs == 1
    assert little.programs > 1
    close(plenty, little)
    with pytest.warns(RuntimeWarning, match="Even one model a device"):
        close(plenty, sp.sweep(hungry, {}, keys, memory=2**18))


DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import superpos as sp
from tests.test_sweeps import GRID, close, score, train

for n_seeds, chunk in ((13, None), (5, 2), (16, 8)):
    keys = jax.random.split(jax.random.key(0), n_seeds)
    found = [
        sp.sweep(train, {"width": [3], "scale": [0.5, 4.0]}, keys, score=score, devices=jax.devices()[:n], chunk=chunk)
        for n in (1, 3, 8)
    ]
    for other in found[1:]:
        close(found[0], other)
"""


def run_python(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_results_do_not_depend_on_the_number_of_devices():
    done = run_python("-c", DEVICES)
    _, error = done.communicate(timeout=300)
    assert done.returncode == 0, error


PROCESS = """
import sys, jax, numpy as np
rank, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, rank)
import superpos as sp
from tests.test_sweeps import KEYS, score, train

for again in range(2):
    found = sp.sweep(train, {"width": [2, 3], "scale": [0.5]}, KEYS, score=score, chunk=20, workdir=workdir)
    assert found.programs == (0 if again else 1)
    np.savez(f"{workdir}-{rank}-{again}.npz", *jax.tree.leaves(found.rows))
try:
    sp.sweep(train, {"width": [2], "scale": [0.5]}, KEYS, workdir=workdir)
except ValueError as error:
    assert "another configuration" in str(error), error  # on both, though only one has read it
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_two_processes_share_a_sweep(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [run_python("-c", PROCESS, str(rank), port, str(tmp_path / "run")) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    alone = sp.sweep(train, {"width": [2, 3], "scale": [0.5]}, KEYS, score=score)
    leaves = jax.tree.leaves(alone.rows)
    for rank in range(2):
        for again in range(2):
            found = np.load(tmp_path / f"run-{rank}-{again}.npz")
            for expected, name in zip(leaves, found.files, strict=True):
                np.testing.assert_allclose(found[name], expected, atol=1e-5)


KILLED = """
import sys
import superpos as sp
from tests.test_sweeps import KEYS, score, train
sp.sweep(train, {"width": [2, 3], "scale": [0.5, 2.0]}, KEYS, score=score, chunk=10, workdir=sys.argv[1])
"""


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch):
    process = run_python("-c", KILLED, str(tmp_path / "killed"))
    checkpoints = tmp_path / "killed" / "checkpoints"
    while process.poll() is None and (not checkpoints.is_dir() or len(list(checkpoints.iterdir())) < 4):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = [name for name in os.listdir(checkpoints) if not name.endswith(".part")]
    calls = []
    run = sweeps.Program.__call__
    monkeypatch.setattr(sweeps.Program, "__call__", lambda self, *args: calls.append(args[0]) or run(self, *args))
    settings = {"grid": {"width": [2, 3], "scale": [0.5, 2.0]}, "keys": KEYS, "score": score}
    continued = sp.sweep(train, **settings, chunk=10, workdir=tmp_path / "killed")
    n_continued = len(calls)
    once = sp.sweep(train, **settings, chunk=10)
    assert 3 <= len(saved) == len(calls) - 2 * n_continued
    assert equal(continued, once)
    assert sp.sweep(train, **settings, chunk=1, workdir=tmp_path / "killed").programs == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A sweep's workdir, finished: 5 seeds in chunks of 2."""
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    return workdir, sp.sweep(train, {"width": [2], "scale": [1.0]}, KEYS, chunk=2, workdir=workdir)


def test_a_finished_sweep_loads_without_its_functions(saved, whole):
    workdir, found = saved
    assert equal(sweeps.load(workdir), found)
    np.testing.assert_array_equal(sweeps.load(workdir).load(seed=3)["vector"], found.load(seed=3)["vector"])
    with pytest.raises(ValueError, match="holds no sweep"):
        sweeps.load(workdir.parent)
    shutil.copytree(workdir, workdir.parent / "part")
    (workdir.parent / "part" / "checkpoints" / "train-0-2-4.safetensors").unlink()
    with pytest.raises(ValueError, match="not finished"):
        sweeps.load(workdir.parent / "part")


def test_damaged_and_foreign_checkpoints_are_refused(saved, tmp_path):
    workdir, found = saved
    again = lambda workdir: sp.sweep(train, {"width": [2], "scale": [1.0]}, KEYS, chunk=2, workdir=workdir)  # noqa: E731
    name = Path("checkpoints", "train-0-0-2.safetensors")
    whole = (workdir / name).read_bytes()
    damages = {"half": whole[: len(whole) // 2], "bits": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]}
    damages |= {"names": whole.replace(b"vector", b"victor"), "none": b""}
    for damage, content in damages.items():
        torn = tmp_path / damage
        shutil.copytree(workdir, torn)
        (torn / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"Checkpoint train-0-0-2 in .* (cannot be read|is damaged): remove"):
            again(torn)
        (torn / name).unlink()  # as the message says
        assert equal(again(torn), found)

    other = tmp_path / "other"
    sp.sweep(train, {"width": [2], "scale": [2.0]}, KEYS, chunk=2, workdir=other)
    shutil.copytree(workdir, tmp_path / "foreign")
    shutil.copy(other / name, tmp_path / "foreign" / name)
    with pytest.raises(ValueError, match="belongs to another run"):
        again(tmp_path / "foreign")


def test_another_sweep_in_the_same_workdir_is_refused(saved):
    workdir, _ = saved
    grid = {"width": [2], "scale": [1.0]}

    def changed(key, data_key, width, scale):
        return train(key, data_key, width, scale * 1.5)

    for function, settings, keys, options, differs in [
        (train, {"width": [2], "scale": [2.0]}, KEYS, {}, "grid"),
        (train, grid, jax.random.split(jax.random.key(1), 5), {}, "keys"),
        (train, grid, KEYS, {"data_key": jax.random.key(5)}, "data_key"),
        (train, grid, KEYS, {"score": score}, "stages"),
        (changed, grid, KEYS, {}, "train"),
    ]:
        with pytest.raises(ValueError, match=rf"another configuration \(.*{differs}"):
            sp.sweep(function, settings, keys, workdir=workdir, **options)


FULL = """
import resource, sys
import superpos as sp
from tests.test_sweeps import KEYS, train
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # bytes a file: chunks of two models fit, more do not
sp.sweep(train, {"width": [2], "scale": [1.0]}, KEYS, chunk=2, workdir=sys.argv[1])
"""


def test_what_cannot_be_saved_says_so_and_loses_nothing(saved, tmp_path):
    workdir, found = saved
    shutil.copytree(workdir, tmp_path / "full")
    (tmp_path / "full" / "checkpoints" / "train-0-4-5.safetensors").unlink()
    process = run_python("-c", FULL, str(tmp_path / "full"))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "NotWrittenError: Checkpoint train-0-4-5 could not be saved" in error
    assert equal(sp.sweep(train, {"width": [2], "scale": [1.0]}, KEYS, chunk=2, workdir=tmp_path / "full"), found)


def test_nan_is_named_and_the_others_go_on():
    def fragile(key, data_key, rate):
        return {"loss": jnp.where(rate > 1, jnp.log(-1 - jax.random.uniform(key)), rate), "other": rate}

    with pytest.warns(RuntimeWarning, match=r"NaN or infinity in loss at rate=2.0 \(seed 0, 1, 2, 3, 4\)"):
        found = sp.sweep(fragile, {"rate": [0.5, 2.0]}, KEYS)
    assert found.failed[1] == {"rate": 2.0, "seed": 1, "leaves": ["loss"]}
    np.testing.assert_array_equal(found.states["loss"].sel(rate=0.5), np.full(5, 0.5))


def test_progress_reaches_its_total_inside_the_program(monkeypatch, capsys):
    seen = []
    update = sweeps.program.Bar._advance
    monkeypatch.setattr(sweeps.program.Bar, "_advance", lambda self, n: seen.append((n, self.tqdm.total)) or update(self, n))
    quiet = sp.sweep(train, {"width": [2], "scale": [0.5, 1.0]}, KEYS, chunk=4)
    assert capsys.readouterr().err == ""
    assert not seen
    shown = sp.sweep(train, {"width": [2], "scale": [0.5, 1.0]}, KEYS, chunk=4, progress=True)
    assert equal(quiet, shown)
    assert {total for _, total in seen} == {3 * (10 + 1)}  # three chunks of a loop of ten steps
    assert sum(n for n, _ in seen) == 33
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"depth": [1]}}, r"grid has 'depth', but train takes the settings \['width', 'scale', 'flip'\]"),
        ({"grid": {"width": [3]}}, "grid has no 'scale', which train needs"),
        ({"grid": {"width": 3, "scale": [1.0]}}, r"grid\['width'\] must list the values of a setting, got 3"),
        ({"grid": {"width": [2], "scale": []}}, r"grid\['scale'\] is empty"),
        ({"grid": {"width": [2], "scale": [1.0, 1.0]}}, r"grid\['scale'\] has a value twice"),
        ({"keys": KEYS[:0]}, "keys must be an array with a row a seed"),
        ({"grid": {"width": [2], "seed": [1.0]}}, "grid has 'seed', but train takes"),
        ({"keys": jax.random.PRNGKey(0)}, "what looks like one"),
        ({"keys": np.array([2**40, 1])}, "keys do not fit into int32"),
        ({"devices": []}, "at least one device"),
        ({"chunk": 0}, "chunk must be a whole number, at least 1, got 0"),
        ({"chunk": 2.5}, "chunk must be a whole number"),
        ({"memory": -1}, "memory must be a whole number"),
        ({"score": score, "pairs": [(0, 1), (2,)]}, "pairs must list"),
        ({"score": score, "pairs": "all"}, "pairs takes 'ordered', 'unordered' or a list"),
        ({"score": score, "pairs": [(0, 5)]}, "pairs must hold seeds from 0 to 4, got 0 to 5"),
        ({"score": score, "keys": KEYS[:1]}, "at least 2 seeds"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"grid": {"width": [2], "scale": [1.0]}, "keys": KEYS, **arguments}
    with pytest.raises(ValueError, match=message):
        sp.sweep(train, **arguments)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"width": 3, "scale": 1.0}, "Name flip"),
        ({"width": 4, "scale": 1.0, "flip": True}, r"width has the values \[2, 3\], got 4"),
        ({"depth": 1}, "no setting 'depth'"),
        ({"width": 2, "scale": 1.0, "flip": True, "seed": 5}, "seed must be between 0 and 4, got 5"),
    ],
)
def test_points_that_are_not_there(whole, point, message):
    with pytest.raises(ValueError, match=message):
        whole.load(**point)

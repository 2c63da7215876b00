"""A process may end at any operation on a file; made again, the same call ends as if it had not. `--deep` tries every one."""

import contextlib
import json
import sys

import jax
import numpy as np
import pytest
from crashing import Crash, Shim, check_order, crash_everywhere

import superpos as sp
from superpos.results import Run
from superpos.sae import io

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # crashes while a lock is let go
]
KEY = jax.random.key(0)


def rows_of(folder, name="toy"):
    return json.loads((folder / "results.json").read_text())["rows"]


def study(folder):
    """What an experiment does, without the work: pieces that are saved, then results of all of them."""
    run = Run(folder, "toy", {"seed": 0})
    if run.finished():
        return
    run.claim()
    for i in range(3):
        if run.load(f"piece-{i}") is None:
            run.save(f"piece-{i}", {"w": np.full(4, i)})
    run.save("last-1", [np.ones(2)], keep=3)
    run.save("last-2", [np.ones(2)], keep=3)
    run.finish([{"mean": float(sum(run.load(name)["w"].sum() for name in run.checkpoints() if "piece" in name))}], {"run": 0})


def test_a_study_at_every_operation(tmp_path):
    log = crash_everywhere(tmp_path, study, rows_of)
    assert len(log) > 30
    check_order(log)


def test_the_order_of_operations_is_checked():
    good = [("write", "/a/x.part"), ("fsync", "/a/x.part"), ("replace", "/a/x.part"), ("fsync", "/a")]
    check_order([*good, ("unlink", "/a/old.safetensors")])
    with pytest.raises(AssertionError, match="takes its name before it is on disk"):
        check_order([good[0], good[2]])
    with pytest.raises(AssertionError, match="goes before another is on disk"):
        check_order([*good[:3], ("unlink", "/a/old.safetensors")])


def test_an_autoencoder_that_is_replaced_at_every_operation(tmp_path):
    sae = sp.sae.TopK(4, 6, 2)
    old, new = (jax.tree.map(lambda leaf, seed=seed: leaf + seed, sae.init(KEY)) for seed in (0, 1))

    def loaded(place):
        return {name: leaf.tolist() for name, leaf in io.load(place / "it")[1].items()}

    allowed = [{name: leaf.tolist() for name, leaf in params.items()} for params in (old, new)]
    for k in range(100):
        place = tmp_path / f"{k}"
        place.mkdir()
        io.save(place / "it", sae, old)
        finished = False
        with contextlib.suppress(Crash), Shim(place, k).installed():
            io.save(place / "it", sae, new)
            finished = True
        assert loaded(place) in allowed[finished:]  # the old one or the new one, whole
        io.save(place / "it", sae, new)
        assert loaded(place) == allowed[1]
        if finished:
            break
    assert k > 10


def train(key, data_key, scale):
    return {"w": scale * jax.random.normal(key, (3,))}


def sweep(folder):
    sp.sweep(
        train, {"scale": [0.5, 2.0]}, jax.random.split(KEY, 2), score=lambda a, b, key: a["w"] @ b["w"], chunk=2, workdir=folder
    )


def swept(folder):
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(sp.sweeps.load(folder).rows)]


def test_a_sweep(tmp_path, deep):
    check_order(crash_everywhere(tmp_path, sweep, swept, None if deep else 3))


class Model:
    """One that compiles fast."""

    def init(self, key):
        return jax.random.normal(key, (3,))

    def loss(self, params, x, *, key, step):
        return ((x - params) ** 2).mean(), {}


BATCHES = sp.data.Batches(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), 5)


def test_a_stream(tmp_path, deep):
    found = {}

    def work(folder):
        found[folder] = sp.fit_stream(Model(), KEY, BATCHES, steps=6, save_every=2, workdir=folder, devices=jax.devices()[:1])

    def result(folder):
        params, history = found[folder]
        return np.asarray(params).tolist(), history["loss"].tolist()

    check_order(crash_everywhere(tmp_path, work, result, None if deep else 3))


@pytest.mark.parametrize("format", ["npy", "zarr"])
def test_activations(tmp_path, image_folder, deep, format):
    torch = pytest.importorskip("torch", reason="pip install -e '.[torch]'")
    from superpos.images import Preprocessing
    from superpos.networks.io import extract

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    settings = {"preprocessing": Preprocessing(size=12), "batch_size": 4, "position": 2, "device": "cpu", "format": format}

    def work(folder):
        extract(net, image_folder, ["0"], folder, **settings)

    def result(folder):
        return np.asarray(sp.data.load(f"{folder}/0.{format}")).tolist()

    crash_everywhere(tmp_path, work, result, None if deep else 6)


def test_an_experiment(tmp_path, deep):
    """The command itself, figure and all."""
    if not deep:
        pytest.skip("--deep")
    from test_experiments import small_study

    from experiments import toy_alignment

    config = small_study()
    config.n_seeds, config.comparisons, config.metrics = 2, ("neuron->neuron",), ("semi_match",)

    def work(folder):
        run = Run(folder, "toy_alignment", config.to_dict())
        results = run.finished() or toy_alignment.compute(config, run)
        toy_alignment.draw(results, run)

    check_order(crash_everywhere(tmp_path, work, rows_of, 25))

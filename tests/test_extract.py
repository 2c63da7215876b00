import json
import os

import numpy as np
import pytest
import scipy.stats
from test_experiments import assert_refused, run_command

from experiments import extract
from superpos import data


def test_layers_are_described_as_numpy_and_scipy_do(monkeypatch):
    rng = np.random.default_rng(0)
    x = (rng.exponential(size=(300, 4, 6)) @ rng.normal(size=(6, 6)) + 20 * rng.normal(size=6)).astype(np.float32)
    x[..., 2] = 5.0
    monkeypatch.setattr(extract, "BLOCK", 7 * 24)  # 7 images at once, which do not divide 300
    row, spread = extract.describe(x)
    flat = x.reshape(-1, 6).astype(np.float64)
    live = flat[:, [0, 1, 3, 4, 5]]
    eigenvalues = np.linalg.eigvalsh(np.cov(live.T))
    kurtosis = scipy.stats.kurtosis(live)
    assert row == {
        "channels": 6,
        "positions": 4,
        "dead": 1,
        "density": np.mean(flat > 0),
        "dimension": pytest.approx(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2)),
        "kurtosis": pytest.approx(np.median(kurtosis)),
    }
    np.testing.assert_allclose(spread["components"], np.cumsum(eigenvalues[::-1]) / eigenvalues.sum(), atol=1e-5)
    np.testing.assert_allclose(
        spread["channels"], np.cumsum(np.sort(live.var(axis=0))[::-1]) / live.var(axis=0).sum(), atol=1e-5
    )
    np.testing.assert_allclose(spread["kurtosis"], np.sort(kurtosis), atol=1e-3)


def test_a_dead_layer_is_described():
    row, _ = extract.describe(np.ones((5, 3), np.float16))
    assert (row["dead"], row["dimension"]) == (3, 0)
    assert np.isnan(row["kurtosis"])


@pytest.fixture
def config(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="pip install -e '.[torch]'")
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "tiny_net.py").write_text(
        "import torch\n\n"
        "def net():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    config = extract.get_config()
    config.model, config.images, config.layers = "tiny_net:net", str(tmp_path / "images"), ("0", "2")
    config.position, config.device = "3", "cpu"
    config.preprocessing.size = 8
    config.preprocessing.mean = "0.5,0.5,0.5"
    return config


def test_it_writes_activations_that_align_reads(config, conduct):
    run, results = conduct(extract, config)
    assert [(row["layer"], row["channels"], row["positions"]) for row in results["rows"]] == [("0", 4, 3), ("2", 6, 3)]
    flat, groups = data.flatten(data.load(str(run.path / "activations" / "2.npy")))
    assert flat.shape == (15, 6)
    np.testing.assert_array_equal(groups, np.repeat(range(5), 3))
    manifest = json.loads((run.path / "activations" / "manifest.json").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["images"] == [f"{i}.png" for i in range(5)]


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing_behind(config, tmp_path):
    given = [f"--config.model={config.model}", f"--config.images={config.images}"]
    layers = "--config.layers=('0',)"
    (tmp_path / "empty").mkdir()
    cases = {
        (): "config.layers is empty: pass --config.layers=",
        ("--config.layers=('00',)",): "the model has no '00'; near names are 0",
        ("--config.preprocessing.mean=0.5", layers): "mean must be three finite numbers",
        (
            "--config.preprocessing.std=a,b,c",
            layers,
        ): "config.preprocessing.std must be three numbers like 0.5,0.5,0.5, got 'a,b,c'",
        (f"--config.images={tmp_path / 'empty'}", layers): "must hold at least one image",
        ("--config.model=no_such_package:net", layers): "no module 'no_such_package' to import",
        ("--config.position=middle", layers): "position must be one of center, mean, all, class or a number",
    }
    assert_refused("extract", {(*given, *case): message for case, message in cases.items()}, tmp_path / "run")


def test_help_lists_every_setting():
    done = run_command("extract", "--help")
    assert done.returncode == 0
    assert "--config.model=''" in done.stdout
    assert "--config.preprocessing.size=224" in done.stdout

import functools

import numpy as np
import pytest
from test_experiments import assert_refused

import superpos as sp
from experiments import network_alignment
from superpos import networks

pytestmark = pytest.mark.slow  # a whole study

ROW = {"layer", "metric", "comparison", "mean", "std", "ci95", "n_seeds", "n_pairs"}


def tiny(config):
    config.n_folds = config.n_blocks = 2
    config.metrics = ("semi_match",)
    config.sae.update({"steps": 40, "batch_size": 64, "k": 2, "expansion": 2})
    config.vary.share = ()
    return config


@pytest.fixture(scope="module")
def trained(conduct):
    config = tiny(network_alignment.get_config())
    config.n_seeds, config.layers, config.vary.share = 3, ("stem",), (0.1,)
    config.training.steps = config.training.batch_size = 4
    config.images.update({"n_train": 300, "n_scored": 60, "positions": 4})
    with pytest.MonkeyPatch.context() as patch:  # one block is compiled faster than three
        patch.setattr(networks, "CNN", functools.partial(networks.CNN, widths=(8,)))
        return conduct(network_alignment, config)


def test_every_comparison_has_a_row_over_seeds(trained):
    _, results = trained
    assert [(row["layer"], row["comparison"]) for row in results["rows"]] == [
        ("stem", name) for name in network_alignment.COMPARISONS
    ]
    for row in results["rows"]:
        assert set(row) >= ROW
        assert (row["n_seeds"], row["n_pairs"]) == (3, 6)
        assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
    of_layer = {row["comparison"]: row["mean"] for row in results["rows"]}
    difference = next(row for row in results["differences"] if row["difference"] == "sae->sae - neuron->neuron")
    assert difference["mean"] == pytest.approx(of_layer["sae->sae"] - of_layer["neuron->neuron"], abs=1e-6)
    curves = {(row["setting"], row["value"], row["comparison"]) for row in results["curves"]}
    assert curves == {("share", 0.1, name) for name in network_alignment.COMPARISONS if "sae" in name}
    assert [row["network"] for row in results["networks"]] == ["cnn"]


def test_networks_are_kept_with_their_accuracy(trained):
    run, results = trained
    networks = sp.sweeps.load(run.path / "networks").load()
    assert networks["accuracy"].mean() == pytest.approx(results["networks"][0]["mean"], abs=1e-6)
    assert len(networks["accuracy"]) == 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two networks of 90 images at 4 positions: units that share six sources, the second with a copy of the first's."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "b").mkdir()
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(90, 4, 6)) * (rng.random((90, 4, 6)) < 0.3)
    x = z @ rng.normal(size=(6, 5)) + 0.1 * rng.normal(size=(90, 4, 5))
    y = z @ rng.normal(size=(6, 7)) + 0.1 * rng.normal(size=(90, 4, 7))
    for name, array in {"x": x, "y": y, "b/x": x, "b/y": y, "more_x": x[:50] + 1, "more_y": y[:50] + 1}.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def compared(files, conduct):
    config = tiny(network_alignment.get_config())
    config.n_seeds = 2
    config.source, config.target = (f"{files}/x.npy",), (f"{files}/y.npy",)
    return conduct(network_alignment, config)


def test_files_are_scored_as_align_scores_them(compared, files):
    run, results = compared
    rows = {row["comparison"]: row for row in results["rows"]}
    scored = rows["neuron->neuron"]
    # The images on which no view was fitted, in folds that no image straddles.
    config = network_alignment.get_config()
    config.update(run.config)
    divided = network_alignment.planned(config, network_alignment.read(config)).divided
    assert len(divided.images) == 45
    x, y = (np.load(files / f"{name}.npy")[divided.images].reshape(180, -1) for name in "xy")
    expected = sp.align(x, y, "semi_match", folds=np.repeat(divided.folds, 4))
    assert scored["mean"] == pytest.approx(float(expected["semi_match"].mean), abs=1e-5)
    assert (scored["n_seeds"], scored["n_pairs"]) == (1, 1)
    assert scored["ci95"][0] < scored["mean"] < scored["ci95"][1]
    difference = next(row for row in results["differences"] if row["difference"] == "sae->sae - neuron->neuron")
    assert difference["mean"] == pytest.approx(rows["sae->sae"]["mean"] - scored["mean"], abs=1e-5)


def test_what_the_views_are_like_is_told(compared):
    _, results = compared
    told = {(row["side"], row["view"]): row for row in results["views"]}
    for side in ("source", "target"):
        sae, untrained = told[side, "sae"], told[side, "random_sae"]
        assert sae["explained"] > untrained["explained"]
        for row in (sae, untrained):
            assert 1 < row["l0"] <= 2 + 1e-6  # k, and the rounding of a mean
        assert 1 < told[side, "neuron"]["dimensions"] <= 6.1  # six sources, and noise


def test_bad_input_is_one_line_and_leaves_nothing_behind(files, tmp_path):
    x, y = f"--config.source={files}/x.npy", f"--config.target={files}/y.npy"
    cases = {
        (x,): "as many files of each kind, one a layer, got 1 of source, 0 of target",
        (x, y, "--config.layers=('a','b')"): "config.layers must name each of the 1 files",
        tuple(
            f"--config.{side}=('{files}/{name}.npy','{files}/b/{name}.npy')"
            for side, name in (("source", "x"), ("target", "y"))
        ): "config.layers must name the layers, for their files are called alike: x.npy → y.npy, x.npy → y.npy",
        (x, y, f"--config.source_train={files}/x.npy", f"--config.target_train={files}/more_y.npy"): (
            "config.source_train must hold images that are not scored, got"
        ),
        (x, y, "--config.n_folds=50"): "config.n_folds must be between 2 and the number of samples, 45, got 50",
        (
            x,
            y,
            "--config.n_blocks=10",
        ): "config.n_blocks must be at most the number of samples, or groups, in a fold, 9, got 10",
        ("--config.training.steps=1",): "config.training.steps must be at least 2, got 1",
        (x, y, "--config.n_blocks=9", "--config.sae.share=1.5"): "share of an SAE must be above 0 and at most 1, got 1.5",
        (x, y, "--config.n_blocks=9", "--config.sae.k=90"): "k must be a whole number between 1 and n_latents = 20, got 90",
        (x, y, "--config.n_blocks=9", "--config.sae.architecture=vanila"): "architecture must be one of",
        (x, y, "--config.n_blocks=9", "--config.vary.layer=z"): "config.vary.layer must be one of x.npy, got 'z'",
        (
            x,
            y,
            "--config.n_blocks=9",
            "--config.vary.normalize=('scales',)",
        ): "normalize of TopK takes none, scale, layer_norm, got 'scales'",
        ("--config.network=mlp",): "config.network must be cnn or vit, got 'mlp'",
        ("--config.layers=('blok1',)",): "got 'blok1'; near it: block1",
        ("--config.n_seeds=1",): "config.n_seeds must be at least 2, got 1",
    }
    assert_refused("network_alignment", cases, tmp_path / "run")

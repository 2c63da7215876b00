import functools
import json

import numpy as np
import pytest
from test_experiments import assert_refused

import superpos as sp
from experiments import COMPARISONS, align, network_alignment
from superpos import networks

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
        ("stem", name) for name in (*COMPARISONS, "pca->pca")
    ]
    for row in results["rows"]:
        assert set(row) >= ROW
        assert (row["n_seeds"], row["n_pairs"]) == (3, 6)
        assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
    of_layer = {row["comparison"]: row["mean"] for row in results["rows"]}
    difference = next(row for row in results["differences"] if row["difference"] == "sae->sae - neuron->neuron")
    assert difference["mean"] == pytest.approx(of_layer["sae->sae"] - of_layer["neuron->neuron"], abs=1e-6)
    assert {row["comparison"] for row in results["curves"]} == {*COMPARISONS} - {"neuron->neuron"}
    assert {row["n_images"] for row in results["saes"]} == {300, 30}
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
    _, results = compared
    scored = next(row for row in results["rows"] if row["comparison"] == "neuron->neuron")
    # The images that trained no SAE, in folds that no image straddles.
    used = ~np.isin(np.arange(90), np.random.default_rng(0).permutation(90)[:45])
    x, y = (np.load(files / f"{name}.npy")[used].reshape(180, -1) for name in "xy")
    folds = {"folds": 2, "key": network_alignment.keys(network_alignment.get_config()).folds}
    expected = sp.align(x, y, "semi_match", **folds, groups=np.repeat(np.flatnonzero(used), 4))
    assert scored["mean"] == pytest.approx(float(expected["semi_match"].mean), abs=1e-5)
    assert (scored["n_seeds"], scored["n_pairs"]) == (1, 1)
    assert scored["ci95"][0] < scored["mean"] < scored["ci95"][1]


def test_what_the_saes_are_like_is_told(compared):
    _, results = compared
    assert [(row["side"], row["units"], row["latents"]) for row in results["saes"]] == [("source", 5, 10), ("target", 7, 14)]
    for row in results["saes"]:
        assert row["sae_explained"] > row["random_sae_explained"]
        for kind in ("sae", "random_sae"):
            assert 1 < row[f"{kind}_active"] <= 2 + 1e-6  # k, and the rounding of a mean
        assert 1 < row["dimensions"] <= 6.1  # six sources, and noise


def test_principal_components_are_those_of_scikit_learn(files):
    from sklearn.decomposition import PCA

    training, scored = (np.load(files / f"{name}.npy").reshape(-1, 7) for name in ("more_y", "y"))
    found = network_alignment.principal_components(training, scored, 6)
    assert (found >= 0).all()
    signed = PCA(3).fit(training).transform(scored)
    np.testing.assert_allclose(np.abs(found[:, :3] - found[:, 3:]), np.abs(signed), atol=1e-4)
    assert ((found[:, :3] == 0) | (found[:, 3:] == 0)).all()


def test_saes_train_on_the_first_images_in_random_order_alike_on_both_sides(files):
    config = network_alignment.get_config()
    config.source, config.target = (f"{files}/x.npy",), (f"{files}/y.npy",)
    config.source_train, config.target_train = (f"{files}/more_x.npy",), (f"{files}/more_y.npy",)
    (layer,) = network_alignment.read(config).values()
    assert layer["scored"]["source"].shape == (1, 360, 5)
    rows = {side: layer["training"][side][0].reshape(50, 4, -1) for side in ("source", "target")}
    original = {side: np.load(files / f"more_{name}.npy") for side, name in (("source", "x"), ("target", "y"))}
    order = [int(np.flatnonzero((original["source"] == image).all(axis=(1, 2)))[0]) for image in rows["source"]]
    assert sorted(order) == list(range(50))
    assert order != sorted(order)
    np.testing.assert_array_equal(rows["target"], original["target"][order])


def test_bad_input_is_one_line_and_leaves_nothing_behind(files, tmp_path):
    x, y = f"--config.source={files}/x.npy", f"--config.target={files}/y.npy"
    cases = {
        (x,): "as many files of each kind, one a layer, got 1 of source, 0 of target",
        (x, y, "--config.layers=('a','b')"): "config.layers must name each of the 1 files",
        (
            x,
            f"--config.source={files}/b/x.npy",
            y,
            f"--config.target={files}/b/y.npy",
        ): "config.layers must name the layers, for their files are called alike: x.npy → y.npy, x.npy → y.npy",
        (x, y, f"--config.source_train={files}/x.npy"): "config.source_train must hold images that are not scored, got",
        (x, y, "--config.n_folds=50"): "folds must be between 2 and the number of groups, 45, got 50",
        (x, y, "--config.n_blocks=10"): "config.n_blocks must be at most the 9 images in a fold of x.npy, got 10",
        (
            x,
            y,
            "--config.n_blocks=9",
            "--config.vary.expansion=(0.5,)",
        ): "config.vary.expansion must hold whole numbers, got 0.5",
        ("--config.training.steps=1",): "config.training.steps must be at least 2, got 1",
        (x, y, "--config.n_blocks=9", "--config.sae.share=1.5"): "config.sae.share must be above 0 and at most 1, got 1.5",
        (x, y, "--config.n_blocks=9", "--config.sae.k=90"): "k must be a whole number between 1 and n_latents = 20, got 90",
        (x, y, "--config.n_blocks=9", "--config.sae.architecture=vanilla"): "config.sae.architecture must be one of topk",
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


def test_files_of_other_images_or_positions_are_not_paired(tmp_path):
    config = align.get_config()
    for side in ("source", "target"):
        (tmp_path / side).mkdir()
        np.save(tmp_path / side / "x.npy", np.random.default_rng(0).normal(size=(8, 4, 3)))
        config[side] = f"{tmp_path}/{side}/x.npy"

    def tell(side, **changes):
        array = {"file": "x.npy", "grid": changes.pop("grid", [6, 6])}
        told = {"images": list("abcdefgh"), "image_sha256": list("abcdefgh"), "position": 4, "seed": 0, "arrays": {"x": array}}
        (tmp_path / side / "manifest.json").write_text(json.dumps({**told, **changes}))

    tell("source")
    align.read(config)  # of the target nothing is known
    tell("target")
    align.read(config)
    for changes, message in (
        ({"image_sha256": list("abcdefgx")}, "must be of the same images, but"),
        ({"seed": 1}, r"the same positions .* has \(4, 0, \(6, 6\)\) and .* \(4, 1, \(6, 6\)\)"),
        ({"grid": [3, 3]}, "must be of the same positions"),
        ({"images": ["a"]}, r"config\.target: .* has 8 rows, but .* names 1 images"),
    ):
        tell("target", **changes)
        with pytest.raises(ValueError, match=message):
            align.read(config)

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_experiments import run_commands

import superpos as sp
from experiments import brain_alignment
from superpos.activations import divide
from superpos.images import Images

pytestmark = pytest.mark.slow  # a whole study

DATA = Path(__file__).resolve().parents[2] / "shared/data"


def tiny():
    config = brain_alignment.get_config()
    config.n_seeds = config.n_folds = config.n_blocks = config.n_top = 2
    config.metrics = ("ridge",)
    config.simulation.update({"n_stimuli": 2400, "n_units": (12,), "n_sites": 12, "n_features": 32, "n_repeats": 3})
    config.sae.update({"steps": 400, "batch_size": 256, "k": 4})
    return config


@pytest.fixture(scope="module")
def simulated(conduct):
    return conduct(brain_alignment, tiny())


def test_settings_are_compared_where_the_sae_is():
    config = tiny()
    config.settings.k = (2, 4)
    planned = brain_alignment.plan(config, *brain_alignment.read(config))
    assert list(planned.settings) == ["k=2"]
    assert planned.of_label["features"] == ("feature->site",)
    assert "few_random_sae k=2->site" in next(names for label, names in planned.of_label.items() if label != "features")


def test_the_simulated_brain_is_found_in_the_order_that_is_true(simulated):
    _, results = simulated
    rows = {row["comparison"]: row for row in results["rows"]}
    controls = {f"{name}->site" for name in (*brain_alignment.SITES, "oracle", "feature")}
    assert set(rows) == controls | set(brain_alignment.LATENTS)
    for row in rows.values():
        layer = "features" if row["comparison"] == "feature->site" else "12 units"
        assert (row["layer"], row["metric"]) == (layer, "ridge")
        assert row["ci95"][0] < row["mean"] < row["ci95"][1]
        assert row["n_seeds"] == row["n_pairs"] == (2 if "sae" in row["comparison"] or "ica" in row["comparison"] else 1)
    order = ("neuron->site", "sae->site", "oracle->site", "feature->site")
    means = [rows[name]["corrected"] for name in order]
    assert means == sorted(means)
    assert rows["sae->site"]["mean"] > rows["random_sae->site"]["mean"]
    assert rows["feature->site"]["corrected"] == pytest.approx(1, abs=0.06)
    # What noise leaves of a perfect model.
    assert rows["feature->site"]["mean"] == pytest.approx(np.sqrt(np.linspace(0.05, 0.95, 12)).mean(), abs=0.06)


def test_sites_of_low_reliability_are_left_out_of_what_is_corrected(simulated):
    _, results = simulated
    reliability = np.array(results["sites"]["reliability"])
    np.testing.assert_allclose(reliability, np.linspace(0.05, 0.95, 12), atol=0.12)
    of_sites = results["sites"]["scores"]["12 units"]
    for row in results["rows"]:
        if not row["comparison"].endswith("site"):
            assert row["n_units"] is None
            continue
        assert (row["n_units"], row["n_excluded"]) == (12, np.sum(reliability < 0.1))
        r = np.array((of_sites | results["sites"]["scores"]["features"])[row["comparison"]])
        assert row["mean"] == pytest.approx(r.mean(), abs=1e-5)
        expected = (r / np.sqrt(np.maximum(reliability, 1e-9)))[reliability >= 0.1].mean()
        assert row["corrected"] == pytest.approx(expected, abs=1e-5)
        assert row["ci95_units"][0] < row["mean"] < row["ci95_units"][1]


def test_differences_are_those_of_the_rows(simulated):
    _, results = simulated
    rows = {row["comparison"]: row["mean"] for row in results["rows"]}
    differences = {row["difference"]: row for row in results["differences"]}
    assert len(differences) == len(brain_alignment.DIFFERENCES)
    for name, row in differences.items():
        a, b = name.split(" - ")
        assert row["mean"] == pytest.approx(rows[a] - rows[b], abs=1e-5)
    tested = differences["sae->site - neuron->site"]
    assert tested["p"] < 0.05  # of two folds and two blocks, which is little
    assert tested["p_corrected"] >= tested["p"]
    assert differences["sae->site - neuron->site"]["ci95_units"][0] > 0
    assert differences["sae->sae - neuron->site"]["ci95_units"] is None


def test_neurons_are_scored_as_align_scores_them(simulated):
    _, results = simulated
    divided = brain_alignment.plan(tiny(), *brain_alignment.read(tiny())).divided
    assert len(divided.images) == len(divided.training["recording"]) == 1200
    neurons, responses = (divided.scored[name][:, 0] for name in ("12 units", "recording"))
    expected = sp.align(neurons, responses, "ridge", folds=divided.folds)["ridge"].mean
    (row,) = [row for row in results["rows"] if row["comparison"] == "neuron->site"]
    assert row["mean"] == pytest.approx(float(expected), abs=1e-5)


def test_the_latents_that_explain_the_sites_are_named(simulated):
    _, results = simulated
    assert len(results["latents"]) == 2
    shares = [row["share_of_weights"] for row in results["latents"]]
    assert 1 > shares[0] >= shares[1] > 1 / 48
    assert all(0 < row["active"] <= 1 for row in results["latents"])
    assert results["top"] is None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A session of 60 images and 9 sites, and a layer of 3 positions whose mean the sites read."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("v4")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images_123.zip", "w") as archive:
        for i in range(1, 61):
            content = io.BytesIO()
            image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(content, "JPEG")
            archive.writestr(f"image{i:04d}.jpg", content.getvalue())
    layer = rng.exponential(size=(60, 3, 6)).astype(np.float32)
    sites = layer.mean(axis=1) @ rng.normal(size=(6, 9))
    np.save(folder / "layer.npy", layer)
    np.save(folder / "others.npy", layer[:50] + 1)
    np.save(folder / "few.npy", layer[:59])
    np.save(folder / "flat.npy", layer[:, 0, 0])
    np.save(folder / "folds.npy", np.arange(60) % 3 - 1)
    np.save(folder / "responses_raw_123.npy", (sites.T[..., None] + rng.normal(size=(9, 60, 4))).astype(np.float32))
    (folder / "constant").mkdir()
    np.save(folder / "constant" / "responses.npy", np.where(np.arange(9) == 4, 1, sites).astype(np.float32))
    return folder


def of_files(files):
    config = tiny()
    config.update({"recording": "v4", "path": str(files), "session": "123", "activations": (f"{files}/layer.npy",)})
    config.sae.update({"steps": 20, "batch_size": 32, "k": 2, "expansion": 2})
    return config


def test_a_recording_and_files(files, conduct):
    config = of_files(files)
    config.update({"train": (f"{files}/others.npy",), "train_fraction": 0.0, "folds": f"{files}/folds.npy"})
    config.update({"n_seeds": 1, "metrics": ("semi_match",), "layers": ("conv",)})
    run, results = conduct(brain_alignment, config)
    rows = {row["comparison"]: row for row in results["rows"]}
    assert set(rows) == {f"{name}->site" for name in brain_alignment.SITES}  # no responses to train SAEs of the sites on
    assert results["n_scored"] == 40
    layer, responses = np.load(files / "layer.npy"), np.load(files / "responses_raw_123.npy").mean(axis=2).T
    expected = sp.align(layer.mean(axis=1), responses, "semi_match", folds=np.arange(60) % 3 - 1)["semi_match"].mean
    assert rows["neuron->site"]["mean"] == pytest.approx(float(expected), abs=1e-5)
    assert rows["neuron->site"]["corrected"] > rows["neuron->site"]["mean"]
    assert (run.path / "top_images.png").stat().st_size > 5_000
    assert len(results["top"]["images"]) == len(results["latents"]) == 2
    assert {name[:5] for names in results["top"]["images"] for name in names} == {"image"}


def divided(config):
    return brain_alignment.plan(config, *brain_alignment.read(config)).divided


def test_views_are_fitted_on_all_positions_of_images_that_are_not_scored(files):
    config = of_files(files)
    layer = np.load(files / "layer.npy")
    parts = divided(config)
    assert parts.scored["layer.npy"].shape == (30, 3, 6)
    assert parts.training["layer.npy"].shape == (90, 6)
    assert parts.training["recording"].shape == (30, 9)
    everything = np.concatenate([parts.scored["layer.npy"].reshape(-1, 6), parts.training["layer.npy"]])
    np.testing.assert_array_equal(np.sort(everything, axis=0), np.sort(layer.reshape(-1, 6), axis=0))
    config.train = (f"{files}/others.npy",) * 2
    both = np.tile((layer[:50] + 1).reshape(-1, 6), (2, 1))
    np.testing.assert_array_equal(np.sort(divided(config).training["layer.npy"], axis=0), np.sort(both, axis=0))


def test_images_are_lined_up_by_name(files, tmp_path):
    config, order = of_files(files), np.random.default_rng(1).permutation(62)  # of two more images than were shown
    layer = np.concatenate([np.load(files / "layer.npy"), np.zeros((2, 3, 6), np.float32)])
    names = np.array([f"image{i:04d}.jpg" for i in range(1, 61)] + ["x.jpg", "y.jpg"])
    np.save(tmp_path / "layer.npy", layer[order])
    expected = divided(config).scored["layer.npy"]
    config.activations = (f"{tmp_path}/layer.npy",)
    hashes = np.array([*Images(files / "images_123.zip").sha256(), "x", "y"])
    where = {"position": "mean", "seed": 0, "arrays": {"layer": {"file": "layer.npy", "grid": [3]}}}
    told = {**where, "images": names[order].tolist(), "image_sha256": hashes[order].tolist()}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    np.testing.assert_array_equal(divided(config).scored["layer.npy"], expected)
    # Sessions name their images alike.
    (tmp_path / "manifest.json").write_text(json.dumps({**told, "image_sha256": np.roll(hashes, 1)[order].tolist()}))
    with pytest.raises(ValueError, match=r"must be of the same images, but 60 of 60 .*, first image0001\.jpg"):
        divided(config)


def test_bad_input_is_one_line_and_leaves_nothing_behind(files, tmp_path):
    v4 = [f"--config.{name}={value}" for name, value in (("recording", "v4"), ("path", files), ("session", "123"))]
    layer = f"--config.activations=('{files}/layer.npy',)"
    array = ["--config.recording=array", f"--config.path={files}/constant/responses.npy", layer]
    cases = {
        (
            "--config.recording=v1",
        ): "config.recording must be one of simulated, v4, nsd, algonauts, brainscore, array, got 'v1'",
        ("--config.recording=v4",): "config.path is empty, but v4 needs one: pass --config.path=",
        (layer,): "config.recording is simulated, which takes no files",
        tuple(v4): "config.activations names no file",
        (*v4, f"--config.activations=('{files}/none.npy',)"): "none.npy",
        (
            *v4,
            f"--config.activations=('{files}/few.npy',)",
        ): "must have the same samples, got 60 and 59",
        (*v4, f"--config.activations=('{files}/flat.npy',)"): "activations must have at least two axes",
        (*v4, layer, "--config.layers=('a','b')"): "config.layers must name each of the 1 files",
        (*v4, layer, "--config.session=124"): "config.path: ",
        (*v4, layer, "--config.select=area=V1"): "config.select must be name=value of some units, got 'area=V1'; there are V4",
        (*v4, layer, "--config.train_fraction=0"): "config.train_fraction must be above 0 (without config.train) and below 1",
        (*v4, layer, f"--config.train={files}/layer.npy"): "layer.npy_train must hold images that are not scored",
        (*v4, layer, f"--config.folds={files}/few.npy"): "folds must be one a row, (60,), got shape (59, 3, 6)",
        (*v4, layer, "--config.n_folds=31"): "folds must be between 2 and the number of samples, 30, got 31",
        (
            *v4,
            layer,
            "--config.n_blocks=2",
            "--config.sae.k=90",
        ): "k must be a whole number between 1 and n_latents = 36, got 90",
        (*v4, layer, "--config.minimum=0.999"): "config.minimum must be at most the highest reliability of a unit",
        tuple(array): "config.recording: units must vary, but 1 are constant, first unit 4",
    }
    workdir = tmp_path / "run"
    done = run_commands("brain_alignment", [[*case, f"--workdir={workdir}"] for case in cases])
    for (status, errors), message in zip(done, cases.values(), strict=True):
        assert status == 2, errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors
    assert not workdir.exists()


@pytest.mark.parametrize(("session", "published"), [("201025", 0.471), ("210225", 0.412)])
def test_recorded_v4_is_predicted_as_well_as_by_scikit_learn(session, published):
    layer = DATA / f"networks/lite0_{session}_blocks.npz"
    for file in (layer, DATA / f"v4/responses_{session}.npy"):
        if not file.exists():
            pytest.skip(f"needs {file.name}")
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import StandardScaler

    x = np.load(layer)["block10"].astype(np.float64)
    y = np.load(DATA / f"v4/responses_{session}.npy").T
    folds, r = np.zeros(len(x), int), []
    for fold, (train, test) in enumerate(KFold(5, shuffle=True, random_state=42).split(x)):
        folds[test] = fold
        scaler = StandardScaler().fit(x[train])
        ridge = RidgeCV(alphas=np.logspace(-2, 8, 21)).fit(scaler.transform(x[train]), y[train])
        predicted = ridge.predict(scaler.transform(x[test]))
        r.append([np.corrcoef(*pair)[0, 1] for pair in zip(predicted.T, y[test].T, strict=True)])
    assert np.mean(r) == pytest.approx(published, abs=0.005)
    config = brain_alignment.get_config()
    config.update({"recording": "v4", "path": str(DATA / "v4"), "session": session, "activations": (f"{layer}:block10",)})
    _, sides = brain_alignment.read(config)
    parts = divide(sides, folds=folds, pool="mean")
    responses, neurons = (array[:, 0] for array in parts.scored.values())
    score = sp.align(neurons, responses, "ridge", folds=parts.folds)["ridge"]
    assert float(score.mean) == pytest.approx(np.mean(r), abs=0.005)
    np.testing.assert_allclose(np.mean(score.units, axis=0), np.mean(r, axis=0), atol=0.05)

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from test_experiments import assert_refused

import superpos as sp
from experiments import selectivity
from superpos import networks, plotting
from superpos.networks import seeds


@pytest.fixture(scope="module")
def labelled():
    """600 samples of 7 units in 4 categories: units of all scales, one far from 0, one constant."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 600, p=[0.1, 0.2, 0.3, 0.4])
    units = rng.exponential(size=(600, 7)) * (1 + rng.normal(size=(4, 7))[labels] ** 2)
    units[:, 1] *= 1e-3
    units[:, 2] += 1e3
    units[:, 4] = 0.1
    return units.astype(np.float32), labels


def test_d_prime_is_the_formula_in_float64(labelled):
    units, labels = labelled
    expected, live = np.zeros((4, 7)), [0, 1, 2, 3, 5, 6]
    for category in range(4):
        inside, outside = (units[part][:, live].astype(np.float64) for part in (labels == category, labels != category))
        spread = np.sqrt((scipy.stats.tvar(inside) + scipy.stats.tvar(outside)) / 2)
        expected[category, live] = (inside.mean(axis=0) - outside.mean(axis=0)) / spread
    found = sp.selectivity.d_prime(units, labels, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[:, 4], 0)


def test_two_gaussians_have_the_d_prime_and_the_roc_area_of_theory():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 50_000)
    units = 3 + 2 * rng.normal(size=(100_000, 1)) + 2 * 1.5 * labels[:, None]  # means 1.5 standard deviations apart
    found = sp.selectivity.d_prime(units.astype(np.float32), labels, 2)
    np.testing.assert_allclose(found[:, 0], [-1.5, 1.5], atol=0.03)
    area = scipy.stats.mannwhitneyu(units[labels == 1, 0], units[labels == 0, 0]).statistic / 50_000**2
    np.testing.assert_allclose(area, scipy.stats.norm.cdf(found[1, 0] / 2**0.5), atol=0.005)


def test_a_latent_of_a_third_of_a_category_has_d_prime_1():
    labels = np.repeat([0, 1], 30_000)
    units = ((labels == 1) & (np.arange(60_000) % 3 == 0)).astype(np.float32)[:, None]
    np.testing.assert_allclose(sp.selectivity.d_prime(units, labels, 2)[:, 0], [-1, 1], atol=1e-3)


def test_d_prime_knows_neither_scale_nor_shift_nor_order(labelled):
    units, labels = labelled
    found = sp.selectivity.d_prime(units, labels, 4)
    order = np.random.default_rng(2).permutation(600)
    np.testing.assert_allclose(sp.selectivity.d_prime(units[order], labels[order], 4), found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sp.selectivity.d_prime(5 * units - 7, labels, 4), found, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(sp.selectivity.d_prime(-units, labels, 4), -found, rtol=1e-4, atol=1e-5)
    small = units[:, [0, 1, 3, 5, 6]]  # whose variances are out of float32's range, once scaled
    for scale in (np.float32(1e25), np.float32(1e-25)):
        np.testing.assert_allclose(sp.selectivity.d_prime(scale * small, labels, 4), found[:, [0, 1, 3, 5, 6]], rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_unit_that_is_not_finite_is_not_taken_for_constant(labelled, value):
    units, labels = labelled[0].copy(), labelled[1]
    units[3, 5] = value
    found = sp.selectivity.d_prime(units, labels, 4)
    assert np.isnan(found[:, 5]).all()
    assert np.isfinite(np.delete(found, 5, axis=1)).all()
    with pytest.raises(ValueError, match="units must be finite, got 1 NaN or infinite values"):
        sp.selectivity.top(units, 2)


def test_d_prime_jits_and_maps_and_takes_half_precision(labelled):
    units, labels = labelled
    several = jax.jit(jax.vmap(lambda units: sp.selectivity.d_prime(units, labels, 4)))(jnp.stack([units, 2 * units]))
    np.testing.assert_allclose(several[0], several[1], rtol=1e-4, atol=1e-5)
    counts = np.tile(np.arange(600)[:, None], (1, 2))
    halved = sp.selectivity.d_prime(counts.astype(np.float16), jnp.asarray(labels), 4)
    np.testing.assert_allclose(halved, sp.selectivity.d_prime(counts.astype(np.float32), labels, 4), rtol=1e-5)


def test_categories_that_cannot_be_told():
    units = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    found = sp.selectivity.d_prime(units, np.array([0] * 4 + [1] * 4 + [2]), 4)  # one sample of 2, none of 3
    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2:]).all()
    assert np.isnan(sp.selectivity.d_prime(units, np.zeros(9, int), 2)).all()
    apart = sp.selectivity.d_prime(np.array([[0.0], [0], [1], [1]]), np.array([0, 0, 1, 1]), 2)
    np.testing.assert_array_equal(apart[:, 0], [-np.inf, np.inf])


def test_the_best_of_units_that_tell_nothing_is_at_chance():
    rng = np.random.default_rng(3)
    halves = [sp.selectivity.d_prime(rng.normal(size=(400, 500)), np.arange(400) % 10, 10) for _ in range(2)]
    units, d = sp.selectivity.most_selective(*halves)
    assert (np.take_along_axis(halves[0], units[:, None], 1) > 0.35).all()  # selected
    assert abs(d.mean()) < 4 * (1 / 40 + 1 / 360) ** 0.5 / 10**0.5


def test_participation_ratio_counts_equal_shares():
    d = jnp.zeros((3, 40)).at[0, :7].set(2.0).at[1, 3].set(0.4).at[0, 20:].set(-5.0)
    np.testing.assert_allclose(sp.selectivity.participation_ratio(d), [7, 1, 0])
    np.testing.assert_allclose(sp.selectivity.participation_ratio(3 * d.T, axis=0), [7, 1, 0], rtol=1e-6)


def test_top_is_that_of_a_sort():
    units = np.random.default_rng(4).normal(size=(60, 5)).astype(np.float32)
    np.testing.assert_array_equal(sp.selectivity.top(units, 7), np.argsort(-units, axis=0)[:7].T)
    # Of 4 patches an image: images by their largest patch, which is the one that is named.
    groups = np.random.default_rng(5).permutation(np.repeat(np.arange(15) * 10, 4))
    found = np.asarray(jax.jit(sp.selectivity.top, static_argnums=1)(units, 15, groups))
    largest = np.stack([units[groups == group].max(axis=0) for group in np.unique(groups)])
    for unit in range(5):
        assert sorted(groups[found[unit]]) == sorted(set(groups))
        np.testing.assert_array_equal(units[found[unit], unit], -np.sort(-largest[:, unit]))
    few = jax.jit(lambda groups: sp.selectivity.top(units, 3, groups))(np.arange(60) // 30)
    assert (few[:, :2] >= 0).all()
    assert (few[:, 2] == -1).all()


def test_bad_arguments():
    units = np.ones((6, 2), np.float32)
    for arguments, message in (
        ((units, np.zeros(5, int), 2), r"units and labels must be \(n_samples, n_units\) and \(n_samples,\), got \(6, 2\)"),
        ((units, np.zeros(6), 2), "labels must be whole numbers, got float64"),
        ((units, np.arange(6), 5), "labels must be 0 to 4, got 0 to 5"),
        ((units, np.zeros(6, int), 1), "n_categories must be an integer of at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sp.selectivity.d_prime(*arguments)
    with pytest.raises(ValueError, match="number of samples, or of groups of them, 2, got 3"):
        sp.selectivity.top(units, 3, np.arange(6) % 2)
    with pytest.raises(ValueError, match=r"groups \(n_samples,\), got \(6, 2\) and \(5,\)"):
        sp.selectivity.top(units, 2, np.zeros(5, int))
    with pytest.raises(ValueError, match=r"must both be \(n_categories, n_units\)"):
        sp.selectivity.most_selective(units, units.T)


def test_halves_have_all_categories_and_no_image_twice():
    labels = np.random.default_rng(6).choice(3, 101, p=[0.2, 0.3, 0.5])
    halves = sp.selectivity.halve({"all": (labels, ("a", "b", "c"))}, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(halves)), np.arange(101))
    counts = [np.bincount(labels[half], minlength=3) for half in halves]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    with pytest.raises(ValueError, match=r"^halves must have at least 2 images .* got 1 of 'rare' in one\.$"):
        sp.selectivity.halve(
            {"all": (labels, ("a", "b", "c")), "few": ((np.arange(101) < 3).astype(int), ("often", "rare"))}, 1
        )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_a_stratified_split_gives_each_category_its_share(share):
    labels = np.repeat([3, 5, 9], [40, 80, 20])
    fitted, scored = sp.folds.split_stratified(labels, share, seed=2)
    np.testing.assert_array_equal(np.sort(np.concatenate([fitted, scored])), np.arange(140))
    np.testing.assert_allclose([np.sum(labels[fitted] == label) for label in (3, 5, 9)], share * np.array([40, 80, 20]), atol=1)
    assert not np.array_equal(fitted, sp.folds.split_stratified(labels, share, seed=3)[0])
    for wrong in (0, 1, 1e-3):
        with pytest.raises(ValueError, match=r"^share must be above 0 and below 1, and leave some of 140 rows on both sides"):
            sp.folds.split_stratified(labels, wrong, seed=2)


def test_positions_are_samples_of_their_image(labelled):
    units, labels = labelled
    halves = sp.selectivity.halve({"all": (labels, tuple("abcd"))}, 0)
    several = sp.selectivity.d_prime_of_halves(units.reshape(200, 3, 7), labels[::3], 4, (np.arange(100), np.arange(100, 200)))
    for found, rows in zip(several, (slice(0, 300), slice(300, 600)), strict=True):
        np.testing.assert_allclose(
            found, sp.selectivity.d_prime(units[rows], labels[::3].repeat(3)[rows], 4), rtol=1e-4, atol=1e-5
        )
    one = sp.selectivity.d_prime_of_halves(units[:, None], labels, 4, halves)
    np.testing.assert_allclose(one[1], sp.selectivity.d_prime(units[halves[1]], labels[halves[1]], 4), rtol=1e-4, atol=1e-5)


def test_the_numbers_of_a_table_count_units():
    rng = np.random.default_rng(7)
    d = rng.normal(size=(4, 2, 5, 30)).astype(np.float32)  # seeds, halves, categories, units
    rows = sp.selectivity.table({"a": {"x": d, "y": d[:, :, :, :6]}, "b": {"x": d[:1], "y": d[:1]}}, threshold=0.5)
    assert [(row["set"], row["units"], row["n_units"], row["n_seeds"]) for row in rows] == [
        ("x", "a", 30, 4), ("x", "b", 30, 1), ("y", "a", 6, 4), ("y", "b", 30, 1)
    ]  # fmt: skip
    above = [[[unit > 0.5 for unit in category] for category in seed] for seed in d.mean(axis=1)]
    per_unit = [[sum(column) for column in zip(*seed, strict=True)] for seed in above]
    assert rows[0]["above"] == pytest.approx(np.mean([[sum(category) for category in seed] for seed in above]))
    assert rows[0]["selective"] == pytest.approx(np.mean([[n > 0 for n in seed] for seed in per_unit]))
    assert rows[0]["categories"] == pytest.approx(np.mean([np.mean([n for n in seed if n]) for seed in per_unit]))
    best = [d[s, 1 - h, c, d[s, h, c].argmax()] for s in range(4) for h in range(2) for c in range(5)]
    assert rows[0]["best"] == pytest.approx(np.mean(best), abs=1e-5)
    assert rows[0]["above_ci95"][0] < rows[0]["above"] < rows[0]["above_ci95"][1]
    assert rows[1]["above_ci95"] is None
    none = sp.selectivity.summary(d[0], threshold=1e3)
    assert none["above"] == none["selective"] == 0
    assert np.isnan(none["categories"])
    # The curve has the same number at the same threshold.
    curves = sp.selectivity.curves({"a": d}, n=20)
    again = sp.selectivity.table({"a": {"x": d}}, threshold=curves["thresholds"][7])[0]["above"]
    assert np.mean(curves["above"]["a"], axis=0)[7] == pytest.approx(again)


def test_examples_are_chosen_on_one_half_and_shown_of_the_other():
    rng = np.random.default_rng(8)
    labels, half = np.arange(40) % 2, np.arange(1, 40, 3)
    units = np.where(rng.random((40, 3, 4)) < 0.5, rng.random((40, 3, 4)), 0)
    units[:, :, 2] = -1.0
    d = np.array([[[0, 3, 1, 1], [1, 0, 4, 1]], [[9, 2, 9, 9], [9, 9, 1, 9]]], np.float32)
    first, second = sp.selectivity.examples({"x": (labels, ("even", "odd"))}, {"neuron": d}, {"neuron": units[half]}, half, n=5)
    assert (first["category"], first["unit"], first["d_prime"]) == ("even", 1, 2)
    strongest = units[half, :, 1].max(axis=1)
    assert first["images"] == half[np.argsort(-strongest)[:5]].tolist()
    assert first["hits"] == sum(image % 2 == 0 for image in first["images"])
    assert (second["unit"], second["images"], second["hits"]) == (2, [], 0)  # no image drives it


def test_a_line_a_seed_has_one_name_in_the_legend():
    _, ((axis,),) = plotting.panels(1, 1, (3, 3))
    plotting.lines(axis, [0, 1], {"neuron": [[1, 2], [2, 3]], "sae": [[0, 0]]})
    assert len(axis.get_lines()) == 3
    assert axis.get_legend_handles_labels()[1] == ["neurons", "SAE latents"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """36 images in folders of 3 categories, and activations of 4 positions: a unit a category, and 3 that tell nothing."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 12)
    for i, label in enumerate(labels):
        (folder / "images" / "abc"[label]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "abc"[label] / f"{i:02}.png")
    (folder / "one").mkdir()
    for i in range(36):
        Image.fromarray(pixels).save(folder / "one" / f"{i:02}.png")
    units = rng.uniform(size=(36, 4, 6)) + 10 * np.eye(3, 6)[labels][:, None] * rng.uniform(0.8, 1, size=(36, 4, 1))
    np.save(folder / "units.npy", units.astype(np.float16))
    np.save(folder / "labels.npy", labels + 7)
    np.save(folder / "few.npy", np.r_[labels[:-1], 3])
    np.save(folder / "short.npy", labels[:30])
    return folder


VIEWS = ("neuron", "sae", "random_sae")


def small():
    config = selectivity.get_config()
    config.n_seeds, config.views = 2, VIEWS
    config.sae.update({"expansion": 2, "k": 2, "steps": 3, "batch_size": 16})
    return config


@pytest.mark.slow
def test_files_are_scored(files, conduct):
    config = small()
    config.activations, config.images = f"{files}/units.npy", f"{files}/images"
    run, results = conduct(selectivity, config)
    rows = {row["units"]: row for row in results["rows"]}
    assert [rows[kind]["n_units"] for kind in VIEWS] == [6, 12, 12]
    assert [rows[kind]["n_seeds"] for kind in VIEWS] == [1, 2, 2]
    assert rows["neuron"]["above"] == rows["neuron"]["categories"] == 1
    assert rows["neuron"]["selective"] == 0.5
    np.testing.assert_allclose(rows["neuron"]["effective"], 1, atol=0.05)
    assert rows["neuron"]["best"] > 5
    assert results["n_scored"] == 18
    top = results["top"]["rows"]
    assert [(row["category"], row["unit"]) for row in top if row["kind"] == "neuron"] == [("a", 0), ("b", 1), ("c", 2)]
    for row in top:  # images of one half, each once, in which the category has three
        assert len(set(row["images"])) == len(row["images"]) <= 9
        if row["kind"] == "neuron":
            assert {number // 12 for number in row["images"][:3]} == {row["unit"]}
    assert (run.path / "top_images.png").stat().st_size > 10_000

    config.images, config.labels = "", f"{files}/labels.npy"
    run, again = conduct(selectivity, config)
    assert again["rows"] == results["rows"]
    assert [row["category"] for row in again["top"]["rows"]] == ["7", "7", "8", "8", "9", "9"]
    assert not (run.path / "top_images.png").exists()


@pytest.mark.slow
def test_images_are_split_whole_and_by_category(files):
    config = small()
    config.activations, config.labels = f"{files}/units.npy", f"{files}/labels.npy"
    material = selectivity.read(config)
    assert material.training.shape == material.scored.shape == (1, 18, 4, 6)
    labels, names = material.sets["category"]
    np.testing.assert_array_equal(np.bincount(labels), 6)
    assert names == ("7", "8", "9")
    units = np.load(config.activations)
    np.testing.assert_array_equal(material.scored[0], units[material.numbers])
    assert not {image.tobytes() for image in material.scored[0]} & {image.tobytes() for image in material.training[0]}
    for half in selectivity.planned(config, material)[1]:
        np.testing.assert_array_equal(np.bincount(labels[half]), 3)


@pytest.mark.slow
def test_networks_are_trained_and_scored(conduct):
    config = small()
    config.n_categories, config.n_top, config.views = 2, 3, (*VIEWS, "signed_pca")
    config.network.update({"widths": (8,), "layer": "block1", "position": "all", "steps": 2, "batch_size": 4})
    config.network.update({"n_train": 20, "n_scored": 300})
    run, results = conduct(selectivity, config)
    assert [(row["set"], row["units"]) for row in results["rows"]] == [
        (name, view) for name in ("class", "shape", "texture") for view in config.views
    ]
    assert {row["n_units"] for row in results["rows"]} == {8, 16}
    assert {row["n_seeds"] for row in results["rows"]} == {2}
    assert {row["units"] for row in results["views"]} == {"neuron", "sae", "random_sae", "signed_pca"}
    assert json.loads((run.path / "results.json").read_text())["n_scored"] == 300
    assert (run.path / "top_images.png").stat().st_size > 10_000
    # Neurons are measured as they are: the second network, on the images and with the labels that its seed names.
    params = jax.tree.map(lambda leaf: leaf[1:2], sp.sweeps.load(run.path / "networks").load()["params"])
    key = jax.random.fold_in(selectivity.keys_of(config)[2], 1)
    model = networks.Classifier(networks.CNN(selectivity.TASK.n_classes, (8,)))
    read = seeds.activations(model, selectivity.TASK, params, key, 300, ("block1",), "all")["block1"][0]
    classes = np.asarray(seeds.classes(selectivity.TASK, key, 300))
    halves = sp.selectivity.halve(selectivity.TASK.sets(classes), config.seed + 1)
    d = sp.selectivity.d_prime_of_halves(read, classes, 15, halves).mean(axis=0)
    assert results["curves"]["above"]["neuron"][1][0] == pytest.approx(float((d > 0).sum(axis=1).mean()), abs=0.07)
    # The images that are shown have the labels that were scored.
    for row in results["top"]["rows"]:
        assert row["hits"] == sum(selectivity.TASK.classes[classes[image]] == row["category"] for image in row["images"])


@pytest.mark.slow
def test_bad_input_is_one_line(files, tmp_path):
    units = f"--config.activations={files}/units.npy"
    cases = {
        (units,): "config.activations needs categories: labels, one an image, or images that lie in one folder",
        (units, f"--config.labels={files}/short.npy"): "config.labels must be 36 whole numbers",
        (
            units,
            f"--config.labels={files}/few.npy",
        ): "config.train_fraction: halves must have at least 2 images of each category in each half, got 0 of '3' in one",
        (units, f"--config.images={files}/images/a"): "config.images must be the 36 samples of activations, got 12 images",
        (units, f"--config.images={files}/one"): "config.images must have at least 2 categories",
        (units, f"--config.labels={files}/no.npy"): "config.labels: ",
        (
            units,
            f"--config.labels={files}/labels.npy",
            "--config.sae.k=99",
        ): "config.sae.k must be a whole number between 1 and n_latents = 24, got 99",
        (units, f"--config.labels={files}/labels.npy", "--config.train_fraction=1."): "config.train_fraction must be above 0",
        (units, f"--config.labels={files}/labels.npy", "--config.views=('neuron', 'neurons')"): "config.views must be some of",
        (f"--config.images={files}/images",): "config.activations names no file",
        ("--config.network.layer=block9",): "config.network.layer must be layers of the network, got 'block9'; near it: block3",
        ("--config.network.n_scored=40",): "config.network.n_scored: halves must have at least 2 images",
        ("--config.network.position=center",): "config.network.position must be mean or all, got 'center'",
    }
    assert_refused("selectivity", cases, tmp_path / "run")

"""Calibration: instruments of known quality get their known scores, and worlds differ in what they are said to differ in."""

import json

import jax
import numpy as np
import pytest
import scipy.stats
import xarray
from test_experiments import assert_refused

import superpos as sp
from experiments import calibration as experiment
from superpos import calibration

NOISE = 0.2


@pytest.fixture(scope="module")
def mocks():
    """A constant, the truth, the truth with noise, minus the truth as a distance, and one that says nothing, on many worlds."""
    specs = [
        spec._replace(family=f"{spec.family} {i}", of=f"{spec.of} {i}")
        for i in range(8)
        for spec in calibration.worlds("small")
    ]
    truth = np.array([spec.settings["overlap"] for spec in specs])
    rng = np.random.default_rng(0)
    scores = np.stack([truth * 0 + 0.3, truth, truth + NOISE * rng.normal(size=len(truth)), 5 - truth, truth * np.nan])
    nulls = np.stack([scores[0], truth * 0, NOISE * rng.normal(size=len(truth)), 5 + truth * 0, truth * np.nan])
    names = ["constant", "truth", "noisy", "distance", "nothing"]
    return calibration.dataset(names, [False, False, False, True, False], specs, (scores, nulls), np.stack([truth] * 3))


def test_a_constant_the_truth_and_a_noisy_truth_get_their_scores(mocks):
    judged = calibration.judge(mocks)
    constant, truth, noisy, distance, nothing = (judged.sel(instrument=name) for name in judged.instrument.values)
    overlap = mocks.overlap.values
    assert float(truth.disorder) == float(truth.rms) == float(truth.bias) == float(truth.moved) == 0
    assert float(truth.calibrated) == pytest.approx(0, abs=1e-6)
    assert float(truth.at_zero) == float(truth.false_alarms) == 0
    assert float(constant.disorder) == 0.5  # all ties
    assert float(constant.rms) == pytest.approx(np.sqrt(np.mean((0.3 - overlap) ** 2)))
    assert float(constant.calibrated) == pytest.approx(np.std(overlap), rel=1e-3)  # nothing better than the mean
    # Differences of two noises against differences of the overlap, which are ½ twice and 1 once.
    expected = np.mean(scipy.stats.norm.cdf([-0.5, -0.5, -1.0], scale=np.sqrt(2) * NOISE))
    assert float(noisy.disorder) == pytest.approx(expected, abs=0.05)
    assert float(noisy.rms) == pytest.approx(NOISE, rel=0.25)
    assert 0 < float(noisy.calibrated) < 1.3 * NOISE
    assert float(noisy.disorder_low) <= float(noisy.disorder) <= float(noisy.disorder_high)
    assert float(noisy.false_alarms) == pytest.approx(0.05, abs=0.15)
    assert float(noisy.moved) == pytest.approx(2 / np.sqrt(np.pi) * NOISE, rel=0.4)  # E|difference of two noises|
    assert float(distance.disorder) == float(distance.moved) == 0
    assert float(nothing.undefined) == float(nothing.disorder) == 1
    assert float(nothing.calibrated) == pytest.approx(np.sqrt(np.mean(np.maximum(overlap, 1 - overlap) ** 2)))
    assert calibration.leaderboard(mocks, 2).splitlines()[2].startswith("truth")


def test_a_map_is_learned_on_other_families():
    score, truth = np.array([0.0, 0.1, 0.2, 0.3, 9.0]), np.array([0.0, 0.5, 0.5, 1.0, 0.0])
    family = np.array(["a", "a", "b", "b", "c"])
    mapped = calibration.calibrated(score, family, score, truth, family)
    assert mapped[4] == 1  # what the others say of so large a score
    np.testing.assert_allclose(mapped[:2], 0.5)  # below the least score of the others


def test_gains_are_shared_among_controls(mocks):
    table = mocks.isel(instrument=[0, 1, 2]).assign_coords(
        instrument=["cka on neurons", "cka on view", "cka on control"], world=range(mocks.sizes["world"])
    )
    table = table.assign(score=table.score * 0 + xarray.DataArray([0.2, 0.6, 0.3], dims="instrument"))
    (row, *_) = calibration.gains(table, "cka", "view", ("control",))
    assert row["gain"] == pytest.approx(0.4)
    assert row["by control"] == pytest.approx(0.25)


def test_families_differ_in_the_overlap_and_stand_beside_what_they_are_of():
    specs = calibration.worlds()
    of_family = {}
    for spec in specs:
        settings = {name: value for name, value in spec.settings.items() if name != "overlap"}
        assert of_family.setdefault(spec.family, settings) == settings
        assert (spec.cause == "") == (spec.of == "")
        assert spec.cause in ("", *calibration.CAUSES)
    assert {spec.of for spec in specs} - {""} <= of_family.keys()
    assert len(calibration.worlds("full")) > len(specs) == 40
    rows = calibration.rows(specs)
    assert len({tuple(row) for row in rows}) == len(specs)
    everything = calibration.worlds("full")
    draws = dict(zip((spec.family for spec in everything), calibration.rows(everything)[:, -1], strict=True))
    assert len(set(draws.values())) == len(draws)  # no two families are of the same draws
    assert [draws[spec.family] for spec in specs] == rows[:, -1].tolist()


@pytest.mark.slow
def test_functions_enter_and_one_that_raises_costs_its_points():
    seen = []

    def mine(source, target, train):
        seen.append((source.shape, target.shape, train[0].shape))
        return float(sp.align(source, target, "cka")["cka"].mean)

    def broken(source, target):
        raise RuntimeError("no")

    specs = [
        *calibration.worlds("small")[:3],
        calibration.worlds("small")[0]._replace(settings={"overlap": 0.0, "samples": 60}),
    ]
    table = calibration.run({"mine": mine, "broken": broken}, specs, jax.random.key(1), seeds=(1,), n=400)
    mine, broken = table.score.values
    assert mine[0] < mine[1] < mine[2]
    np.testing.assert_allclose(table.truth_variance.values[:3], [0, 0.5, 1], atol=0.15)
    assert set(seen) == {((400, 8), (400, 8), (400, 8)), ((60, 8), (60, 8), (60, 8))}
    assert np.abs(table.null.values[0, :3]).max() < 0.1
    assert np.isnan(broken).all()
    assert str(table.failure.values[1]) == "8 units: RuntimeError: no"
    assert float(calibration.judge(table).disorder.values[1]) == 1


def test_a_table_is_a_file(mocks, tmp_path):
    calibration.save(mocks, tmp_path / "table.json", command="none")
    again = calibration.load(tmp_path / "table.json")
    assert again.attrs == {"command": "none"}
    xarray.testing.assert_allclose(again, mocks, atol=1e-4)


def test_others_enter_the_published_table():
    table = calibration.published()
    assert table.sizes["instrument"] >= 40
    assert {"command", "commit", "version"} <= table.attrs.keys()
    assert (table.sel(instrument="cka on neurons").score.values <= 1).all()
    plain = table.isel(world=table.seed.values == calibration.HELD_OUT)
    assert {spec.family for spec in calibration.worlds("full")} >= set(plain.family.values.tolist())
    known = table.truth_variance.values
    mine = table.isel(instrument=[0]).assign_coords(instrument=["mine"])
    mine = mine.assign(score=mine.score * 0 + known, null=mine.null * 0)
    both = calibration.beside(table, mine)
    assert both.sizes["instrument"] == table.sizes["instrument"] + 1
    assert calibration.leaderboard(both, 1).splitlines()[2].startswith("mine ")
    with pytest.raises(ValueError, match="tables have the instrument 'mine' twice"):
        calibration.beside(both, mine)
    with pytest.raises(ValueError, match="tables must be of the same worlds"):
        calibration.beside(table, mine.isel(world=slice(3)))


@pytest.fixture(scope="module")
def results(conduct):
    config = experiment.get_config()
    config.grid, config.metrics, config.views, config.steps, config.n_samples = "small", ("cka",), ("pca",), 2, 300
    return conduct(experiment, config)


@pytest.mark.slow  # a whole study
def test_every_instrument_has_a_row(results):
    run, content = results
    names = [row["instrument"] for row in content["rows"]]
    assert set(names) == {
        "cka on neurons",
        "rbf_cka on neurons",
        "crosscoder",
        "semi_match on pca",
        "ridge on pca",
        "cka on pca",
    }
    table = calibration.load(run.path / "table.json")
    cka = table.score.sel(instrument="cka on neurons").values
    assert cka[0] < cka[1] < cka[2]
    np.testing.assert_allclose(cka, table.score.sel(instrument="cka on pca").values, atol=1e-3)  # a rotation
    assert "--config.n_samples=300 --config.steps=2" in json.loads((run.path / "table.json").read_text())["attrs"]["command"]


def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path):
    cases = {
        ("--config.grid=huge",): 'grid must be "default", "full" or "small"',
        ("--config.views=('sae',)",): "config.views takes names out of layer_norm",
        ("--config.metrics=('ck',)",): "metrics takes names out of",
    }
    assert_refused("calibration", cases, tmp_path / "run")

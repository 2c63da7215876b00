"""Each doubt where there is reason for it, and none of correct data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import views
from superpos.activations import Side
from superpos.comparison import compare, doubts
from superpos.comparison.settings import spread
from superpos.metrics import Score

SAE = views.SAE(expansion=2, k=2, steps=2, batch_size=16)


def sides(seed=0, n=300):
    """Two sides that mix the same independent sources, with noise."""
    rng = np.random.default_rng(seed)
    z = rng.laplace(size=(n, 4))
    return [(z @ rng.normal(size=(4, 4)) + 0.3 * rng.normal(size=(n, 4))).astype(np.float32) for _ in range(2)]


def doubted(x, y, **settings):
    """The checks that have doubts, by name."""
    found = compare(x, y, {"neuron": views.Neuron()}, "neuron->neuron", metrics="semi_match", n_blocks=4, **settings)
    return {doubt.check: doubt.doubt for doubt in found.doubts}


def test_sound_data_have_no_doubts():
    assert doubted(*sides()) == {}


def test_rows_in_another_order_are_at_chance():
    x, y = sides()
    assert "in the same order" in doubted(x, np.random.default_rng(1).permutation(y))["chance"]


def test_a_silent_site_is_counted_and_what_the_mean_would_be():
    x, y = sides()
    y[:, 1] = 2.0
    found = compare(x, y, {"neuron": views.Neuron()}, "neuron->neuron", metrics="semi_match", n_blocks=4)
    (doubt,) = [doubt.doubt for doubt in found.doubts]
    mean = found.summary()[0]["mean"]
    assert doubt.startswith("1 of 4 target units of source->target")
    assert f"would be {mean * 3 / 4:.3f}, not {mean:.3f}" in doubt


def test_less_of_a_distance_is_better_and_its_zero_is_not_chance():
    x, _ = sides()
    both = {"pca": views.PCA(), "neuron": views.Neuron()}
    found = compare(x, x, both, ("pca->neuron", "neuron->neuron"), metrics="soft_match_distance", n_blocks=4)
    assert found.answer().startswith("neuron->neuron is below pca->neuron by soft_match_distance, a distance")
    lost = found.answer([("pca->neuron", "neuron->neuron")])
    assert lost.startswith("pca->neuron is above neuron->neuron by soft_match_distance")
    assert "chance" not in {doubt.check for doubt in found.doubts}


def test_settings_reach_what_is_of_what_is_of_the_sae():
    known = {"neuron": views.Neuron(), "sae": SAE, "few": views.Top(views.Untrained(SAE))}
    changed, _, names = spread(known, ("neuron->neuron", "few->neuron"), {"k": (1, 2)})
    assert names == {"k=1": {"few->neuron": "few k=1->neuron"}}
    assert changed["few k=1"].of.of.k == 1


def test_copies_dependence_patches_and_small_folds():
    x, y = sides()
    x[101:151], y[101:151] = x[:50], y[:50]
    steps = np.cumsum(np.random.default_rng(2).normal(size=(300, 4)), axis=0).astype(np.float32)
    names = [f"photo{i // 10}_patch{i % 10}" for i in range(300)]
    few = {"source": Side(x, names=names), "target": y + steps}
    found = doubted(few["source"], few["target"], folds=np.arange(300) % 5)
    assert "samples of source are in several folds" in found["repeated"]
    assert "shuffled folds leak" in found["autocorrelated"]
    assert "named as parts of photo" in found["patches"]
    assert "autocorrelated" not in doubted(few["source"], few["target"], folds="blocks", gap=5)
    assert "A fold has 6 samples" in doubted(x[:30], y[:30])["folds"]


@pytest.mark.slow
def test_an_sae_that_has_learned_nothing(tmp_path):
    """Two steps of training: it explains little, is too large for its samples, and no better than an untrained one."""
    x, y = sides()
    known = {"neuron": views.Neuron(), "sae": SAE, "random_sae": views.Untrained(SAE)}
    names = ("neuron->neuron", "sae->neuron", "random_sae->neuron")
    found = compare(x[:120], y[:120], known, names, metrics="semi_match", n_blocks=2, n_seeds=3, settings={"k": (1, 2)})
    checks = {doubt.check for doubt in found.doubts}
    assert {"explained", "rows"} <= checks
    every = found.summary()
    assert [row["comparison"] for row in every[3:]] == ["sae k=1->neuron", "random_sae k=1->neuron"]  # 2 is the chosen one
    rows = {row["comparison"]: row["mean"] for row in every[:3]}
    assert ("untrained" in checks) == (rows["sae->neuron"] <= rows["random_sae->neuron"])
    assert "explained_training" in next(row for row in found.describe() if row["view"] == "sae")
    given = {row["comparison"]: row["given"] for row in every[:3]}
    assert given == {"neuron->neuron": None, "sae->neuron": "given_saes", "random_sae->neuron": "given_saes"}
    assert {row["given"] for row in found.summary("units")} == {
        "given_maps, given_images",
        "given_saes, given_maps, given_images",
    }
    narrow = found.summary("samples_given_maps")[0]
    assert narrow["ci95"] is None
    assert narrow["ci95_given_maps"][0] < narrow["mean"] < narrow["ci95_given_maps"][1]
    (row,) = found.differences([("sae->neuron", "neuron->neuron")])
    widths = [np.ptp(row[name]) for name in ("ci95", "ci95_joint")]
    assert widths[1] >= widths[0]
    (curve,) = found.curve("sae->neuron", "neuron->neuron").values()
    means = {row["setting"]: row["mean"] for row in curve["rows"]}
    assert list(means.values()) == sorted(means.values())
    assert curve["n_settings"] == 2 == len(means)
    assert list(means)[curve["rank"] - 1] == "chosen"
    assert curve["agree"] == np.mean(np.sign(list(means.values())) == np.sign(means["chosen"]))
    assert curve["mean"] == pytest.approx(np.mean(list(means.values())), abs=1e-6)
    assert curve["ci95"][0] < curve["mean"] < curve["ci95"][1]
    assert ("spread" in checks) == (
        curve["rows"][1]["mean"] - curve["rows"][0]["mean"] > abs(means["chosen"]) and not row["ci95"][0] <= 0 <= row["ci95"][1]
    )
    for other, expected in ((0.012, False), (0.05, True)):  # a difference of 0.01, and what it is in another setting
        cells = dict(found.cells)
        for name, shift in (("sae->neuron", 0.01), ("sae k=1->neuron", other)):
            cells["source->target", ("source", "target"), name] = {
                metric: {**scores, **{at: scores[at] + shift for at in ("mean", "folds", "replicates")}}
                for metric, scores in found.cells["source->target", ("source", "target"), "neuron->neuron"].items()
            }
        told = list(doubts._spread(dataclasses.replace(found, cells=cells)))
        assert ["+0.010, and +0.010 to +0.050 over 2 settings" in doubt for doubt in told] == [True] * expected
    found.write(tmp_path)
    lines = (tmp_path / "units.csv").read_text().splitlines()
    assert lines[0] == "label,source,target,comparison,metric,seed,unit,score"
    assert len(lines) == 1 + 4 * (1 + 4 * 3)  # sites; neurons have one seed, four views of latents three
    assert {path.stem for path in tmp_path.iterdir()} == {"summary", "differences", "folds", "units", "doubts", "settings"}
    answer = found.answer()
    assert answer.startswith("sae->neuron is")
    assert "of 2 settings" in answer
    assert "given_saes" in answer


def test_alpha_at_the_end_of_its_grid():
    def score(alpha):
        return Score(jnp.array(0.5), jnp.full(5, 0.5), None, {"alpha": jnp.full(5, alpha)})

    ridge = sp.metrics.Ridge(alphas=(1.0, 10.0, 100.0))
    assert "end of its grid, 100," in ridge.doubts(score(100.0))[0]
    assert "end of its grid, 1," in ridge.doubts(score(1.0))[0]
    assert ridge.doubts(score(10.0)) == []
    assert sp.metrics.Ridge().doubts(score(1e-8)) == []  # less is as good as none


def test_a_control_is_the_same_comparison_untrained():
    known = {"neuron": views.Neuron(), "sae": SAE, "random_sae": views.Untrained(SAE)}
    assert doubts._is_control(known, "random_sae->neuron", "sae->neuron")
    assert doubts._is_control(known, "random_sae->random_sae", "sae->sae")
    assert not doubts._is_control(known, "neuron->neuron", "sae->neuron")


@pytest.mark.parametrize(("lag", "expected"), [(0.0, 0.0), (0.8, 0.8)])
def test_residuals_of_an_autoregression_have_its_coefficient(lag, expected):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 3))
    series = np.zeros_like(noise)
    for i in range(1, len(noise)):
        series[i] = lag * series[i - 1] + noise[i]
    r, error = sp.stats.lag_one(rng.normal(size=(4000, 2)), series)
    assert abs(r - expected) < 4 * error
    assert jax.tree.all(np.isnan(sp.stats.lag_one(noise, series, np.arange(4000) * 2)).tolist())

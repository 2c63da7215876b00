import jax
import numpy as np
import pytest
from references import pearson
from scipy import stats

import superpos as sp
from superpos.stats import over_pairs, over_seeds


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 10))
    return x, x[:, :6] @ rng.normal(size=(6, 6)) + rng.normal(size=(200, 6))


def cka(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_independent_seeds_give_students_interval():
    values = np.random.default_rng(0).normal(size=7)
    summary = over_seeds(values)
    interval = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    np.testing.assert_allclose(summary["ci95"], interval)
    np.testing.assert_allclose([summary["mean"], summary["std"]], [values.mean(), values.std(ddof=1)])


@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_that_add_seed_effects_are_as_uncertain_as_the_seeds(symmetric):
    """Score a_i + a_j: the mean over pairs is twice the mean of a, however many pairs there are."""
    effects = np.random.default_rng(1).normal(size=8)
    summary = over_pairs(effects[:, None] + effects, symmetric=symmetric)
    interval = stats.t.interval(0.95, 7, 2 * effects.mean(), 2 * stats.sem(effects))
    np.testing.assert_allclose(summary["ci95"], interval)
    assert summary["n_pairs"] == (28 if symmetric else 56)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        effects = rng.normal(size=8)
        noise = 0.5 * rng.normal(size=(8, 8))
        low, high = over_pairs(effects[:, None] + effects + noise)["ci95"]
        covered += low < 0 < high
    assert 0.92 < covered / 400 < 0.985


def test_the_diagonal_and_few_seeds():
    scores = np.array([[9.0, 1.0], [3.0, 9.0]])
    assert over_pairs(scores) == {"mean": 2.0, "std": np.sqrt(2), "ci95": None, "n_seeds": 2, "n_pairs": 2}
    with pytest.raises(ValueError, match="at least 2 seeds"):
        over_pairs(np.ones((1, 1)))


def test_intervals_over_samples_cover_the_truth():
    """One unit a side, whose fitted map is no choice at all: Pearson's r, of standard error (1 - rho²) / √n."""
    rho, n, runs = 0.5, 300, 200
    rng = np.random.default_rng(0)
    covered, errors = 0, []
    for _ in range(runs):
        x, noise = rng.normal(size=(2, n, 1)).astype(np.float32)
        y = rho * x + np.sqrt(1 - rho**2) * noise
        summary = sp.stats.over_samples(sp.stats.jackknife(x, y, metrics="semi_match")["semi_match"])
        covered += summary["ci95"][0] < rho < summary["ci95"][1]
        errors.append(summary["standard_error"])
    assert 0.90 < covered / runs < 0.99
    np.testing.assert_allclose(np.mean(errors), (1 - rho**2) / np.sqrt(n), rtol=0.1)


def test_leaving_a_block_out_is_scoring_the_rest_with_the_same_map(pair):
    x, y = pair
    names = ("semi_match", "ridge", "cka")
    groups = np.arange(200) // 8
    ids = groups % 4
    results = sp.stats.jackknife(x, y, metrics=names, folds=ids, groups=groups, n_blocks=3)
    scores = sp.align(x, y, metrics=names, folds=ids)
    blocks = np.asarray(sp.folds.deal(ids, 4, 3, jax.random.key(0), groups))
    assert all(len(np.unique(blocks[groups == group])) == 1 for group in range(25))
    for name in names:
        np.testing.assert_allclose(results[name].mean, scores[name].mean, atol=1e-5)
    # By hand: fold 2 without its block 1.
    rest = (ids == 2) & (blocks != 1)
    partner = np.asarray(scores["semi_match"].details["partner"])[2]
    r = np.diag(pearson(x[rest][:, partner], y[rest]))
    wanted = (scores["semi_match"].folds.sum() - scores["semi_match"].folds[2] + r.mean()) / 4
    np.testing.assert_allclose(results["semi_match"].replicates[2, 1], wanted, atol=1e-5)
    wanted = (scores["cka"].folds.sum() - scores["cka"].folds[2] + cka(x[rest], y[rest])) / 4
    np.testing.assert_allclose(results["cka"].replicates[2, 1], wanted, atol=1e-5)


def test_a_null_stays_null_where_samples_are_left_out():
    """Resampling before the split would put copies on both sides of it, and ridge would find them."""
    x, y = np.random.default_rng(0).normal(size=(2, 300, 10))
    summary = sp.stats.over_samples(sp.stats.jackknife(x, y, metrics="ridge")["ridge"])
    assert summary["ci95"][0] < 0 < summary["ci95"][1]
    assert abs(summary["mean"]) < 0.1


def test_paired_differences_are_tighter_than_two_intervals(pair):
    x, y = pair
    noisier = y + 0.3 * np.random.default_rng(3).normal(size=y.shape)
    a, b = (sp.stats.jackknife(x, target, metrics="ols")["ols"] for target in (y, noisier))
    difference = sp.stats.paired(a, b)
    alone = [sp.stats.over_samples(j) for j in (a, b)]
    np.testing.assert_allclose(difference["mean"], alone[0]["mean"] - alone[1]["mean"], atol=1e-6)
    assert difference["standard_error"] < np.hypot(*(summary["standard_error"] for summary in alone))
    assert difference["p_value"] < 0.01
    same = sp.stats.paired(a, a)
    assert (same["mean"], same["p_value"]) == (0, 1)


def test_chance_is_where_unrelated_sides_are(pair):
    x, y = pair
    unrelated = np.random.default_rng(5).normal(size=y.shape)
    names = ("semi_match", "cka", "feature_recovery", "soft_match_distance")
    groups = np.arange(200) // 4
    results = sp.stats.permutation_test(x, y, metrics=names, groups=groups, n_permutations=39)
    null = sp.stats.permutation_test(x, unrelated, metrics=names, n_permutations=39)
    for name in names:
        np.testing.assert_allclose(results[name].p_value, 1 / 40, rtol=1e-5)  # the lowest that 39 permutations can give
        assert null[name].p_value > 1 / 40
        assert results[name].null.shape == (39,)
        np.testing.assert_allclose(null[name].score, null[name].null.mean(), atol=5 * null[name].null.std())
    # The best of ten is above zero where nothing is shared, and it is more so the fewer the samples.
    assert results["feature_recovery"].null.min() > 0.05


@pytest.mark.parametrize("name", ["ridge", "soft_match", "partial_soft_match", "permutation_match", "jaccard", "rsa", "cka"])
def test_weights_of_target_units(pair, name):
    """Weights that are alike change nothing; where one unit has all of it, its score is the score, replicates alike."""
    x, y = (np.maximum(side, 0) for side in pair)
    y[:, 4] = 1.0  # dead

    def jackknife(weights, of=slice(None)):
        return sp.stats.jackknife(x, y[:, of], name, folds=2, n_blocks=3, weights=weights)[name]

    whole, alike = jackknife(None), jackknife(np.full(6, 0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), whole, alike)
    single = jackknife(np.eye(6)[1])
    if whole.units is None:
        jax.tree.map(np.testing.assert_array_equal, single, whole)
        return
    np.testing.assert_allclose(single.mean, np.mean(whole.units[:, 1]), rtol=1e-5)
    if name == "ridge":  # fits each unit by itself, but for the alpha that all share
        weighted = jackknife([0, 1, 3, 0, 5, 0])
        np.testing.assert_allclose(weighted.mean, np.mean(whole.units[:, [1, 2]] @ np.array([1, 3])) / 4, rtol=1e-5)
        parts = [jackknife(np.eye(6)[unit]).replicates for unit in (1, 2)]
        np.testing.assert_allclose(weighted.replicates, (parts[0] + 3 * parts[1]) / 4, rtol=1e-5)


def test_intervals_over_units_are_students(pair):
    score = sp.align(*pair, metrics="ridge")["ridge"]
    units = np.asarray(score.units, np.float64).mean(axis=0)
    interval = stats.ttest_1samp(units, 0).confidence_interval(0.95)
    got = sp.stats.over_units(score)
    np.testing.assert_allclose(got["ci95"], interval, rtol=1e-6)
    assert got["n_units"] == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: sp.stats.jackknife(x, y, n_blocks=1), "n_blocks must be an integer of at least 2, got 1"),
        (lambda x, y: sp.stats.jackknife(x, y, weights=np.ones(5)), r"weights must be numbers \(6,\), one a target unit"),
        (lambda x, y: sp.stats.jackknife(x, y, weights=-np.ones(6)), "weights must be finite, not negative and not all 0"),
        (lambda x, y: sp.stats.jackknife(x, y, weights=np.zeros(6)), "weights must be finite, not negative and not all 0"),
        (lambda x, y: sp.stats.jackknife(x, y, n_blocks=50), "n_blocks must be at most the number of samples"),
        (
            lambda x, y: sp.stats.permutation_test(x, y, n_permutations=0),
            "n_permutations must be an integer of at least 1, got 0",
        ),
        (
            lambda x, y: sp.stats.permutation_test(x, y, groups=np.minimum(np.arange(200), 150)),
            "equally many samples to change places, got 1 to 50",
        ),
        (lambda x, y: sp.stats.permutation_test(x, y, folds=np.arange(200) % 3 - 1), "leaves samples out with -1"),
        (lambda x, y: sp.stats.over_units(sp.align(x, y, metrics="cka")["cka"]), "without units"),
    ],
)
def test_bad_requests_are_named(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(*pair)


def test_different_blocks_are_not_compared(pair):
    a, b = (sp.stats.jackknife(*pair, metrics="semi_match", n_blocks=n)["semi_match"] for n in (4, 5))
    with pytest.raises(ValueError, match="same folds and blocks"):
        sp.stats.paired(a, b)


def test_what_is_not_defined_is_not_significant(pair):
    """A pattern of one unit is constant: no dissimilarities, no score, no p-value."""
    x, y = pair
    result = sp.stats.permutation_test(x[:, :1], y, metrics="rsa", folds=np.arange(200) % 2, n_permutations=3)["rsa"]
    assert np.isnan(result.score)
    assert np.isnan(result.p_value)
    alone = sp.stats.jackknife(x[:, :1], y, metrics="rsa", folds=np.arange(200) % 2, n_blocks=2)["rsa"]
    assert np.isnan(sp.stats.paired(alone, alone)["p_value"])
    assert sp.stats.over_samples(alone)["ci95"] is None


def test_chance_keeps_the_units_that_are_live():
    """A permutation may leave a rare unit constant in a fold: it counts with 0 there, and does not vanish."""
    ids = np.arange(60) % 5
    y = np.zeros((60, 1))
    y[:5] = 1
    p_values = []
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(60, 3))
        result = sp.stats.permutation_test(x, y, "feature_recovery", folds=ids, n_permutations=19, key=jax.random.key(seed))
        assert np.isfinite(result["feature_recovery"].null).all()
        p_values.append(float(result["feature_recovery"].p_value))
    assert np.mean(np.array(p_values) <= 0.1) <= 0.4  # binomial: 0.1 expected of a uniform p-value

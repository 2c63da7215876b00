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
    assert difference["p"] < 0.01
    same = sp.stats.paired(a, a)
    assert (same["mean"], same["p"]) == (0, 1)


@pytest.mark.slow
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


MATCHING = ("soft_match", "partial_soft_match", "permutation_match", "jaccard")


@pytest.mark.parametrize("name", ["ridge", "rsa", "cka", *(pytest.param(name, marks=pytest.mark.slow) for name in MATCHING)])
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
    assert np.isnan(sp.stats.paired(alone, alone)["p"])
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


def test_a_map_of_other_samples_needs_no_factorisation_of_its_own():
    """Conjugate gradients from the first fit come to what fitting anew comes to, alpha being the same."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    y = (x @ rng.normal(size=(8, 3)) + rng.normal(size=(200, 3))).astype(np.float32)
    ids = np.arange(200) % 4
    metric = sp.metrics.Ridge(alphas=(0.01,), selection="gcv", weights=True)
    empty = sp.moments.init(8, 3, 4, metric.reads)
    whole, rest = (sp.moments.update(empty, x, y, np.where(kept, ids, -1)) for kept in (ids > -1, np.arange(200) > 39))
    fitted = metric.fit(whole)
    again, anew = metric.refit(fitted, rest), metric.fit(rest)
    np.testing.assert_allclose(again.weights, anew.weights, atol=1e-3)  # the penalty is in units of the first variance
    assert np.abs(fitted.weights - anew.weights).max() > 0.02


def test_unrelated_sides_are_found_at_the_level_of_the_test():
    """Interval and paired test where maps are fitted anew, against the interval for the maps at hand, of 300 worlds."""

    @jax.jit
    def worlds(keys):
        def of_world(key):
            x, z, y = jax.random.normal(key, (3, 100, 4))
            return [sp.stats.jackknife(side, y, "ols", key=key, n_blocks=4, n_parts=4)["ols"] for side in (x, z)]

        return jax.lax.map(of_world, keys)

    first, second = jax.device_get(worlds(jax.random.split(jax.random.key(0), 300)))
    drop = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
    outside = lambda ends: not ends[0] <= 0 <= ends[1]  # noqa: E731
    scores = [drop(first, i) for i in range(300)]
    differences = [sp.stats.difference(a, drop(second, i)) for i, a in enumerate(scores)]
    for jackknifed in (scores, differences):
        wide = np.mean([outside(sp.stats.over_samples(one)["ci95"]) for one in jackknifed])
        narrow = np.mean([outside(sp.stats.over_samples_given_maps(one)["ci95_given_maps"]) for one in jackknifed])
        assert wide <= 0.08
        assert narrow >= 0.09
    p = np.array([sp.stats.tested(one)["p"] for one in differences])
    np.testing.assert_allclose(p < 0.05, [outside(sp.stats.over_samples(one)["ci95"]) for one in differences])


def test_corrections_for_many_tests():
    p = np.random.default_rng(0).uniform(size=20) ** 3
    holm, share = sp.stats.corrected(p), sp.stats.corrected(p, "benjamini_hochberg")
    np.testing.assert_allclose(share, stats.false_discovery_control(p))
    assert (holm >= share).all()
    assert (np.argsort(holm, kind="stable") == np.argsort(p, kind="stable")).all() or len(np.unique(holm)) < 20
    np.testing.assert_allclose(holm.min(), min(1, 20 * p.min()))
    with_nan = sp.stats.corrected([*p, np.nan])
    np.testing.assert_allclose(with_nan[:-1], holm)  # what is not defined is no test
    assert np.isnan(with_nan[-1])
    with pytest.raises(ValueError, match="method must be holm or benjamini_hochberg, got 'bonferroni'"):
        sp.stats.corrected(p, "bonferroni")


def test_the_largest_statistic_holds_the_level_of_a_family_and_is_not_stricter_than_bonferroni_for_copies():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        null = rng.normal(size=(199, 1)) + 0.3 * rng.normal(size=(199, 8))
        found += sp.stats.max_permutation(rng.normal() + 0.3 * rng.normal(size=8), null).min() <= 0.05
    assert 0.02 < found / 300 < 0.09
    copies = np.repeat(rng.normal(size=(199, 1)), 8, axis=1)
    alone = sp.stats.max_permutation(np.array([2.0]), copies[:, :1])
    np.testing.assert_array_equal(sp.stats.max_permutation(np.full(8, 2.0), copies), np.repeat(alone, 8))


def test_dependent_samples():
    """Blocks of an autoregression tell the error of its mean: (1 + r) / (1 - r) times the naive variance. Folds are runs."""
    rng, r, n = np.random.default_rng(0), 0.6, 20_000
    noise, series = rng.normal(size=n), np.zeros(n)
    for i in range(1, n):
        series[i] = r * series[i - 1] + noise[i]
    naive = series.std() / np.sqrt(n)
    wanted = naive * np.sqrt((1 + r) / (1 - r))
    np.testing.assert_allclose(sp.stats.block_bootstrap(series, 100)["standard_error"], wanted, rtol=0.1)
    np.testing.assert_allclose(sp.stats.block_bootstrap(series, 1)["standard_error"], naive, rtol=0.1)
    ids = sp.folds.contiguous(103, 5, gap=3)
    assert (np.diff(ids[ids >= 0]) >= 0).all()
    assert np.bincount(ids + 1).tolist() == [12, *np.bincount(ids[ids >= 0]).tolist()]
    assert np.ptp(np.bincount(ids[ids >= 0])) <= 1
    groups = np.repeat(np.arange(20), 5)
    grouped = sp.folds.contiguous(100, 4, gap=1, groups=groups)
    assert all(len(set(grouped[groups == group])) == 1 for group in range(20))
    assert (sp.assign_folds(100, "blocks")[0] == np.repeat(np.arange(5), 20)).all()
    for bad in (lambda: sp.folds.contiguous(10, 5, gap=2), lambda: sp.assign_folds(10, "block")):
        with pytest.raises(ValueError, match=r"gap must leave samples|folds must be an int"):
            bad()


def test_a_shifted_series_is_the_null_of_a_series():
    """Slow series resemble each other by chance, and shifted ones do so too; shuffled ones do less."""
    x, y = np.random.default_rng(3).normal(size=(2, 120, 3))
    for i in range(1, 120):
        x[i], y[i] = 0.95 * x[i - 1] + x[i], 0.95 * y[i - 1] + y[i]
    ids = np.arange(120) % 4
    options = {"metrics": "feature_recovery", "folds": ids, "n_permutations": 39}
    shuffled = sp.stats.permutation_test(x, y, **options)["feature_recovery"]
    shifted = sp.stats.permutation_test(x, y, **options, circular=True)["feature_recovery"]
    assert shifted.null.mean() > shuffled.null.mean() + 3 * shuffled.null.std() / 39**0.5
    assert shifted.null.std() > 1.3 * shuffled.null.std()


def test_seeds_and_samples_add_up_in_the_joint_interval(pair):
    jackknifed = sp.stats.jackknife(*pair, metrics="semi_match", n_blocks=4)["semi_match"]
    summary = sp.stats.over_samples(jackknifed)
    assert sp.stats.joint(summary, [0.1, 0.2]) is None
    alike = sp.stats.joint(summary, [summary["mean"]] * 3)
    np.testing.assert_allclose(alike, summary["ci95"], rtol=1e-6)
    spread = sp.stats.joint({**summary, "standard_error": 0.0}, [0.1, 0.2, 0.4])
    interval = stats.t.interval(0.95, 2, summary["mean"], stats.sem([0.1, 0.2, 0.4]))
    np.testing.assert_allclose(spread, interval)


def test_two_sources_that_share_nothing_explain_their_sum():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 600, 3)).astype(np.float32)
    y = (a + b + 2**0.5 * rng.normal(size=(600, 3))).astype(np.float32)  # a quarter each, half is noise
    metric = sp.metrics.Ridge(alphas=(1.0,), share=True)
    empty = np.zeros_like(a)
    sides = [np.concatenate(pair, axis=1) for pair in ((a, empty), (empty, b), (a, b))]  # silent units keep one shape
    parts = sp.stats.partition(*(sp.stats.jackknife(x, y, metric, n_blocks=4)["ridge"] for x in sides))
    means = {name: row["mean"] for name, row in parts.items()}
    for name, share in {"a": 0.25, "b": 0.25, "both": 0.5, "only_a": 0.25, "only_b": 0.25, "shared": 0.0}.items():
        np.testing.assert_allclose(means[name], share, atol=0.06)
        assert parts[name]["ci95"][0] < share < parts[name]["ci95"][1]
    np.testing.assert_allclose(means["both"], means["only_a"] + means["only_b"] + means["shared"], atol=1e-6)


def test_sessions_with_equal_errors_give_students_interval():
    means = np.array([0.1, 0.4, 0.2, 0.5])
    found = sp.stats.over_sessions(means, np.full(4, 0.01))
    np.testing.assert_allclose(found["ci95"], stats.ttest_1samp(means, 0).confidence_interval(0.95))
    np.testing.assert_allclose(found["between"], np.sqrt(means.var(ddof=1) - 0.01**2))
    assert sp.stats.over_sessions(means, np.full(4, 9.0))["between"] == 0


def test_intervals_over_samples_and_units_cover_the_mean_of_both():
    """Scores a_i + b_j + e_ij of drawn samples and units: their mean has the variance of both, and intervals of one miss it."""
    rng, inside = np.random.default_rng(3), {"joint": 0, "samples": 0}
    for _ in range(400):
        scores = rng.normal(size=(40, 1)) + rng.normal(size=12) + rng.normal(size=(40, 12))
        of_samples = scores.mean(axis=1)
        summary = {"mean": scores.mean(), "standard_error": stats.sem(of_samples), "degrees": 39}
        low, high = sp.stats.joint(summary, scores.mean(axis=0))
        inside["joint"] += low < 0 < high
        inside["samples"] += abs(scores.mean()) < stats.t.ppf(0.975, 39) * summary["standard_error"]
    assert 0.92 < inside["joint"] / 400 < 0.985
    assert inside["samples"] / 400 < 0.8

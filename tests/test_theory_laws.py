"""Laws of random arrangements against arrangements that NumPy draws: a small part of `experiments.laws`."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import laws as experiment
from experiments import overlap
from superpos import theory

RNG = np.random.default_rng(0)


def mean_scores(n_features, n_units, family, overlap, n_pairs):
    shared = round(overlap * n_features)
    drawn = []
    for _ in range(n_pairs):
        a, b = (experiment.arrangement(RNG, family, n_features, n) for n in n_units)
        drawn.append(experiment.simulate(a, b, shared))
    return {
        name: (np.mean([d[name] for d in drawn]), np.std([d[name] for d in drawn]) / math.sqrt(n_pairs)) for name in drawn[0]
    }


@pytest.mark.parametrize(
    ("n_features", "n_units", "family", "overlap", "n_pairs"),
    [
        pytest.param(32, (4, 4), "gaussian", 1.0, 300, marks=pytest.mark.slow),
        (64, (16, 16), "tight", 0.5, 100),
        pytest.param(64, (16, 16), "unit_norm", 1.0, 100, marks=pytest.mark.slow),
        pytest.param(128, (128, 128), "gaussian", 0.5, 8, marks=pytest.mark.slow),
    ],
)
def test_laws_are_within_three_percent_of_simulation(n_features, n_units, family, overlap, n_pairs):
    for metric, (mean, error) in mean_scores(n_features, n_units, family, overlap, n_pairs).items():
        law = theory.expected(metric, n_units, n_features, overlap=overlap, family=family)
        assert abs(float(law) - mean) < 0.03 * mean + 2.5 * error, (metric, float(law), mean, error)


def test_sides_may_have_other_numbers_of_units():
    found = mean_scores(64, (8, 32), "gaussian", 0.5, 100)
    for metric in ("semi_match", "ols", "cka", "procrustes", "cca", "svcca", "pwcca", "cokurtosis", "cumulant_cka"):
        mean, error = found[metric]
        law = float(theory.expected(metric, (8, 32), 64, overlap=0.5))
        assert abs(law - mean) < 0.03 * mean + 2.5 * error, (metric, law, mean, error)
    for metric in ("permutation_match", "soft_match", "mcc"):
        with pytest.raises(ValueError, match=r"as many units on both sides, got 8 and 32"):
            theory.expected(metric, (8, 32), 64)


@pytest.mark.parametrize("metric", list(theory.RANDOM))
def test_no_overlap_scores_nothing_and_all_of_it_in_no_superposition_everything(metric):
    least = 1 / 3 if metric == "jaccard" else 0
    np.testing.assert_allclose(theory.expected(metric, 8, 32, overlap=0.0), least, atol=1e-6)
    if metric not in ("semi_match", "permutation_match", "soft_match", "mcc", "jaccard"):  # which a rotation deflates
        full = float(theory.expected(metric, 16, 16, family="tight"))
        assert 0.92 < full <= 1.0001  # rsa: centring a pattern costs a unit
        if metric != "rsa":
            np.testing.assert_allclose(full, 1, rtol=1e-4)


def test_closed_forms():
    np.testing.assert_allclose(theory.random_cka(16, 64, family="tight", overlap=0.5), 0.125, rtol=1e-6)  # ρ n / d
    np.testing.assert_allclose(theory.random_cka(1, 64), 1 / 64, rtol=1e-5)  # the mean squared cosine
    # One unit a side: the mean |cosine| in d dimensions.
    cosine = math.gamma(16) / math.gamma(16.5) / math.sqrt(math.pi)
    for metric in ("ols", "cca", "procrustes", "mcc"):
        np.testing.assert_allclose(theory.expected(metric, 1, 32), cosine, rtol=1e-5, err_msg=metric)
    np.testing.assert_allclose(theory.random_cokurtosis(7, 30, overlap=0.3, family="unit_norm"), 0.3, rtol=1e-6)


def test_ols_approaches_the_root_of_units_a_feature():
    np.testing.assert_allclose(theory.random_ols(4096, 16384, overlap=0.25), math.sqrt(0.25 * 0.25), rtol=1e-3)


@pytest.mark.parametrize("family", ["gaussian", "tight"])
def test_scores_of_one_arrangement_of_the_shared_features(family):
    n_features, n_units, shared = 96, 24, 48
    measured = {name: [] for name in ("cka", "ols", "procrustes", "cca", "cumulant_cka", "permutation_match")}
    for _ in range(20):
        a, b = (experiment.arrangement(RNG, family, n_features, n_units) for _ in "ab")
        b[:shared] = a[:shared]
        scores = experiment.simulate(a, b, shared)
        for name, values in measured.items():
            values.append(scores[name])
    for name, values in measured.items():
        law = theory.same_arrangement(name, n_units, n_features, overlap=0.5, family=family)
        np.testing.assert_allclose(law, np.mean(values), rtol=0.08, err_msg=name)


@pytest.mark.parametrize("metric", ["ols", "procrustes", "cumulant_cka"])
def test_invert_undoes_a_law(metric):
    score = theory.expected(metric, 12, 40, overlap=0.3)
    found = theory.invert(metric, float(score), 12, 12, 40)
    np.testing.assert_allclose(found.overlap, 0.3, rtol=1e-3)
    assert found.low <= found.overlap == found.high
    assert not found.beyond
    beyond = theory.invert(metric, 0.99, 12, 12, 40)
    assert beyond.beyond
    assert beyond.overlap == 1


def test_what_has_no_law_is_told():
    with pytest.raises(ValueError, match=r"got 'mutual_knn': simulate it, by sp\.align of samples of sp\.worlds\.World"):
        theory.expected("mutual_knn", 4, 8)
    with pytest.raises(ValueError, match=r"n_units must be at most dimension for tight frames, got 9 of 8 features"):
        theory.random_cka(9, 8, family="tight")
    with pytest.raises(ValueError, match=r"overlap must be between 0 and 1, got 1\.5"):
        theory.random_cca(4, 8, overlap=1.5)
    with pytest.raises(ValueError, match=r"score of cka must be between 0 and 1, got 1\.2"):
        theory.invert("cka", 1.2, 4, 4, 8)
    with pytest.raises(ValueError, match=r"at most n_components = 25 source units, got 30"):
        theory.random_pls(30, 60)
    with pytest.raises(ValueError, match=r"family must be one of gaussian, unit_norm, tight, got 'harmonic'"):
        theory.random_ols(4, 8, family="harmonic")


# Samples and noise


def test_scores_of_the_samples_that_they_are_fitted_to_follow_the_same_laws():
    n_features, n_units, n_samples, shared = 64, 12, 100, 32
    scores = {"cka": [], "cca": [], "procrustes": []}
    for _ in range(200):
        z, w = RNG.standard_normal((2, n_samples, n_features))
        w[:, :shared] = z[:, :shared]
        x, y = (side @ RNG.standard_normal((n_features, n_units)) for side in (z, w))
        q = [np.linalg.qr(side)[0] for side in (x, y)]
        scores["cca"].append(np.linalg.svd(q[0].T @ q[1], compute_uv=False).mean())
        nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
        scores["procrustes"].append(nuclear / np.linalg.norm(x) / np.linalg.norm(y))
        scores["cka"].append(np.sum((x.T @ y) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))
    seen = theory.plug_in(n_features, 0.5, n_samples)
    for metric, values in scores.items():
        law = float(theory.expected(metric, n_units, seen.dimension, overlap=seen.overlap))
        np.testing.assert_allclose(law, np.mean(values), rtol=0.07 if metric == "cca" else 0.04, err_msg=metric)


def test_held_out_ols_of_few_samples():
    n_source, n_samples, r = 10, 40, 0.6
    found = []
    for _ in range(300):
        x, held = RNG.standard_normal((2, 500, n_source))
        weights = r * np.eye(n_source)[0]
        y, y_held = (side @ weights + math.sqrt(1 - r**2) * RNG.standard_normal(500) for side in (x, held))
        design = np.column_stack([x[:n_samples], np.ones(n_samples)])
        fitted = np.linalg.lstsq(design, y[:n_samples], rcond=None)[0]
        found.append(np.corrcoef(held @ fitted[:-1], y_held)[0, 1])
    np.testing.assert_allclose(theory.held_out_ols(r, n_source, n_samples), np.mean(found), rtol=0.03)


def test_noise_divides_scores_of_tight_frames():
    a, b = (experiment.arrangement(RNG, "tight", 24, 6).astype(np.float32) for _ in "ab")
    metrics = ("cka", "ols", "procrustes")
    clean, noisy = (theory.predict(a, b, jnp.eye(24), metrics, noise=noise) for noise in ((0, 0), (1, 0.5)))
    for name in metrics:
        law = theory.noisy(name, clean[name].mean, 1 / 2, 1 / 1.25)
        np.testing.assert_allclose(noisy[name].mean, law, rtol=1e-4, err_msg=name)


# Fourth order


def test_energies_covary_by_the_shared_features_alone():
    z = RNG.random((400_000, 12)) * (RNG.random((400_000, 12)) < 0.1)
    a, b = RNG.standard_normal((2, 12, 4))
    a[8:], b[:4] = 0, 0
    x, y = ((z - z.mean(0)) @ side for side in (a, b))
    cross = x.T @ y / len(x)
    measured = np.cov((x**2).sum(1), (y**2).sum(1))[0, 1] - 2 * (cross**2).sum()
    kappa = theory.feature_cumulants(jnp.full(12, 0.1))
    law = float(theory.energy_cumulant(a, b, kappa))
    np.testing.assert_allclose(law, measured, rtol=0.1)
    tensor = jnp.zeros((12,) * 4).at[(jnp.arange(12),) * 4].set(kappa)
    np.testing.assert_allclose(theory.energy_cumulant(a, b, tensor), law, rtol=1e-5)


def test_features_that_occur_together_add_cross_cumulants():
    # Two features with one activity: all fourth cumulants are those of a common gain, by brute force from the moments.
    p, n = 0.2, 200_000
    z = RNG.random((n, 2)) * (RNG.random((n, 1)) < p)
    z = z - z.mean(0)
    second = z.T @ z / n
    tensor = np.einsum("np,nq,nr,ns->pqrs", z, z, z, z, optimize=True) / n
    for axes in ("pq,rs", "pr,qs", "ps,qr"):
        tensor -= np.einsum(f"{axes}->pqrs", second, second)
    a, b = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.6, 0.8]])  # not one feature is shared
    covariance = np.cov((z @ a)[:, 0] ** 2, ((z @ b) ** 2).sum(1))[0, 1] - 2 * (((z @ a).T @ (z @ b) / n) ** 2).sum()
    np.testing.assert_allclose(theory.energy_cumulant(a, b, tensor), covariance, rtol=1e-2)
    assert covariance > 0


@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "tolerance"), [(0.0, 0.1), (0.5, 0.3)])
def test_standard_error_of_a_cokurtosis(overlap, tolerance):
    n_features, n_units, n, p = 24, 12, 4000, 0.2
    shared = round(overlap * n_features)
    total = 2 * n_features - shared
    a, b = np.zeros((2, total, n_units))
    a[:n_features], b[total - n_features :] = (experiment.arrangement(RNG, "unit_norm", n_features, n_units) for _ in "ab")
    found = []
    for _ in range(250):
        z = RNG.random((n, total)) * (RNG.random((n, total)) < p)
        x, y = ((z - z.mean(0)) @ side for side in (a, b))
        energy = [(side**2).sum(1) for side in (x, y)]

        def k(i, j, x=x, y=y, energy=energy):
            sides = (x, y)
            return np.cov(energy[i], energy[j])[0, 1] - 2 * ((sides[i].T @ sides[j] / n) ** 2).sum()

        found.append(k(0, 1) / math.sqrt(k(0, 0) * k(1, 1)))
    variance = p / 3 - p**2 / 4
    told = theory.cokurtosis_error(a, b, variance * jnp.eye(total), theory.feature_cumulants(jnp.full(total, p)), n)
    np.testing.assert_allclose(told.error, np.std(found), rtol=tolerance)
    np.testing.assert_allclose(theory.cokurtosis(a, b, jnp.ones(total)), overlap, atol=1e-5)


# Experiments


def test_laws_are_tabulated_beside_simulations(conduct):
    config = experiment.get_config()
    small = {
        "n_features": (32,),
        "one_in": (4,),
        "families": ("gaussian",),
        "overlaps": (1.0,),
        "metrics": ("cka", "ols", "rsa"),
    }
    config.update({**small, "n_pairs": 800, "n_rsa": 80, "n_samples": 400})
    results = conduct(experiment, config)[1]
    assert [row["n_pairs"] for row in results["rows"]] == [100, 100, 60]
    for row in results["largest"][:2]:
        assert row["beyond_noise"] < 0.03


def test_fewer_features_in_one_arrangement_score_higher_than_all_in_others(conduct):
    config = overlap.get_config()
    config.update({"metrics": ("cka", "cokurtosis"), "widths": (16, 64), "n_overlaps": 3})
    results = conduct(overlap, config)[1]
    cka, cokurtosis = results["confusion"]
    assert cka["reversed"]
    assert not cokurtosis["reversed"]
    of_cokurtosis = [row for row in results["rows"] if row["metric"] == "cokurtosis"]
    np.testing.assert_allclose([row["score"] for row in of_cokurtosis], [row["overlap"] for row in of_cokurtosis], atol=1e-6)
    config.widths = (16, 65)
    with pytest.raises(ValueError, match=r"widths and n_units must be at most n_features = 64"):
        overlap.check(config)

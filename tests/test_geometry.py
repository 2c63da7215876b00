import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import per_unit
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import kendalltau
from sklearn.cross_decomposition import CCA as SklearnCCA

import superpos as sp
from superpos.linalg import polar
from superpos.rsa import kendall_tau


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(400, 5))
    x, y = (latent @ rng.normal(size=(5, 6)) + 0.5 * rng.normal(size=(400, 6)) for _ in range(2))
    return x, y


@pytest.fixture(scope="module")
def whole(pair):
    """Fitted and scored on the same samples, where the published quantities are defined."""
    names = ("procrustes", "procrustes_angular", "procrustes_bures", "cca", "soft_match_distance")
    with jax.enable_x64(True):
        return sp.align(*pair, metrics=names, folds=None)


def test_procrustes_is_scipys(pair, whole):
    *_, disparity = procrustes(*pair)
    np.testing.assert_allclose(1 - whole["procrustes"].mean ** 2, disparity, atol=1e-10)
    np.testing.assert_allclose(np.cos(whole["procrustes_angular"].mean), whole["procrustes"].mean, atol=1e-10)


def test_bures_distance_is_that_of_the_dual_covariances(pair, whole):
    """Harvey et al. 2023: by matrix square roots of the n x n covariances, no rotation in sight."""
    a, b = ((v - v.mean(axis=0)) / 20 for v in pair)  # over the square root of 400 samples
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    root = (u * s) @ u.T
    fidelity = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ b.T @ root), 0)))
    squared = np.sum(a**2) + np.sum(b**2) - 2 * fidelity
    np.testing.assert_allclose(whole["procrustes_bures"].mean ** 2, squared, rtol=1e-5)


def test_cca_predicts_as_scikit_learn(pair, whole):
    model = SklearnCCA(n_components=5, scale=False, tol=1e-14, max_iter=100_000).fit(*pair)
    wanted = per_unit(*model.transform(*pair))
    np.testing.assert_allclose(whole["cca"].details["fitted_correlations"][0][:5], wanted, atol=1e-6)
    np.testing.assert_allclose(whole["cca"].details["correlations"], whole["cca"].details["fitted_correlations"], atol=1e-10)


def test_distances_obey_the_triangle_inequality(pair):
    x, y = pair
    third = np.random.default_rng(1).normal(size=(400, 6)) + x
    for name in ("soft_match_distance", "procrustes_angular", "procrustes_bures"):
        xy, yz, xz = (sp.align(a, b, metrics=name, folds=None)[name].mean for a, b in ((x, y), (y, third), (x, third)))
        assert xz <= xy + yz


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_polar_factor_is_the_best_isometry_and_has_a_gradient(seed, square):
    rng = np.random.default_rng(seed)
    shape = (5, 5) if square else (5, 3)
    matrix, direction = rng.normal(size=(2, *shape))
    with jax.enable_x64(True):
        (isometry, _), (moved, _) = jax.jvp(polar, (jnp.asarray(matrix),), (jnp.asarray(direction),))
        np.testing.assert_allclose(isometry.T @ isometry, np.eye(shape[1]), atol=1e-10)
        numeric = (polar(matrix + 1e-6 * direction)[0] - polar(matrix - 1e-6 * direction)[0]) / 2e-6
    np.testing.assert_allclose(moved, numeric, atol=1e-4 * (1 + np.abs(numeric).max()))


def test_decompositions_side_by_side_end():
    """Two batched decompositions on two cores wait for each other forever in jaxlib 0.10.2, if left to it."""
    from superpos.linalg import eigh, svd

    matrices = np.random.default_rng(0).normal(size=(64, 96, 96)).astype(np.float32)
    both = jax.jit(lambda m: (jax.vmap(svd)(m)[1], jax.vmap(eigh)(m @ m.mT)[0]))
    singular, values = both(matrices)
    np.testing.assert_allclose(np.sort(singular**2), values, rtol=1e-3, atol=1e-2)


def test_rsa_in_two_passes_is_rsa_through_matrices():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(900, 5))
    x, y = (latent @ rng.normal(size=(5, n)) + rng.normal(size=(900, n)) + 3 for n in (12, 8))
    x[7] = 2.0  # a stimulus without a pattern is left out
    got = sp.align(x, y, metrics="rsa", folds=None)["rsa"]
    kept = np.arange(900) != 7
    wanted = np.corrcoef(pdist(x[kept], "correlation"), pdist(y[kept], "correlation"))[0, 1]
    np.testing.assert_allclose(got.mean, wanted, atol=1e-5)
    assert got.details["n_stimuli"][0] == 899


@pytest.mark.parametrize("apart", [5, 50])
def test_rsa_of_units_whose_means_are_far_apart(apart):
    """All patterns are nearly alike: what they differ by is small beside 1, and is what counts."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(300, 5))
    x, y = (latent @ rng.normal(size=(5, 40)) + rng.normal(size=(300, 40)) + apart * rng.normal(size=40) for _ in range(2))
    wanted = np.corrcoef(pdist(x, "correlation"), pdist(y, "correlation"))[0, 1]
    np.testing.assert_allclose(sp.align(x, y, metrics="rsa", folds=None)["rsa"].mean, wanted, atol=2e-3)


def test_rsa_of_more_stimuli_than_a_matrix_could_hold():
    """100,000 stimuli: their dissimilarities would take 40 GB. A subset of them estimates the same correlation."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(100_000, 4)).astype(np.float32)
    x, y = (latent @ rng.normal(size=(4, n)).astype(np.float32) for n in (16, 12))
    started = time.perf_counter()
    got = float(sp.align(x, y, metrics="rsa", folds=None)["rsa"].mean)
    assert time.perf_counter() - started < 60  # not speed: it ends
    some = slice(0, 3000)
    wanted = np.corrcoef(pdist(x[some], "correlation"), pdist(y[some], "correlation"))[0, 1]
    np.testing.assert_allclose(got, wanted, atol=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_kendalls_tau_is_scipys_with_ties_and_gaps(seed, levels):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, levels, (2, 60)).astype(np.float32)
    there = rng.random(60) < 0.8
    wanted = kendalltau(a[there], b[there])[0]
    np.testing.assert_allclose(_tau(a, b, there), 0 if np.isnan(wanted) else wanted, atol=1e-6)


_tau = jax.jit(kendall_tau)


def test_neighbours_need_folds_of_more_samples():
    with pytest.raises(ValueError, match="mutual_knn with k=10 needs folds of more samples, got at most 6"):
        sp.align(*np.random.default_rng(0).normal(size=(2, 30, 4)), metrics="mutual_knn")


def test_sampled_cka_is_that_of_all_units_where_few_are_recorded():
    rng = np.random.default_rng(0)
    n, scales, a, b = 60, np.linspace(1, 0.2, 20), *rng.normal(size=(2, 20, 4000))
    b[::2] = 0  # the second side reads every other variable

    def parts(n_units):
        """Mean products of kernels of single units, centred without bias (Székely & Rizzo 2014), and the samples."""
        z = 3 + rng.normal(size=(n, 20)) * scales
        sides = [z @ side[:, rng.choice(4000, n_units, replace=False)] for side in (a, b)]
        kernels = []
        for side in sides:
            k = (side.T[:, :, None] * side.T[:, None]) * ~np.eye(n, dtype=bool)
            means = k.sum(axis=1) / (n - 2)
            k = k - means[:, None] - means[:, :, None] + k.sum(axis=(1, 2), keepdims=True) / (n - 1) / (n - 2)
            kernels.append((k * ~np.eye(n, dtype=bool)).reshape(n_units, -1))
        x, y, different = *kernels, ~np.eye(n_units, dtype=bool)
        return [np.mean(x @ y.T), np.mean((x @ x.T)[different]), np.mean((y @ y.T)[different])], sides

    grams = [(scales[:, None] * side) @ (scales[:, None] * side).T / 4000 for side in (a, b)]

    (xy, xx, yy), sides = parts(8)
    ours = sp.align(*sides, "sampled_cka", folds=None)["sampled_cka"].mean
    assert float(ours) == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-3)
    draws = np.array([parts(8)[0] for _ in range(400)])
    known = np.array([np.sum(grams[i] * grams[j]) for i, j in ((0, 1), (0, 0), (1, 1))])  # of infinitely many samples
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) / n / (n - 3) - known) < 4 * error / n / (n - 3)).all()  # each part is unbiased
    ratios = draws[:, 0] / np.sqrt(draws[:, 1] * draws[:, 2])
    whole = known[0] / np.sqrt(known[1] * known[2])
    assert whole + 0.02 < np.nanmean(ratios) < whole + 0.2  # their ratio is not


def test_debiased_cka_does_not_grow_with_the_number_of_units():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200, 150))
    scores = sp.align(x, y, metrics=("cka", "debiased_cka"))
    assert scores["cka"].mean > 0.7
    assert abs(scores["debiased_cka"].mean) < 0.02


def test_cca_is_not_defined_where_correlations_are_one_by_necessity():
    x, y = np.random.default_rng(0).normal(size=(2, 60, 30))
    scores = sp.align(x, y, metrics=["cca", sp.metrics.CCA(variance=0.5, name="few")])
    assert np.isnan(scores["cca"].mean)  # ranks 30 + 30, 48 training samples
    assert np.isfinite(scores["few"].mean)


def test_samples_without_a_pattern_are_nobodys_neighbours():
    rng = np.random.default_rng(0)
    x, y = (rng.random((300, 30)) * (rng.random((300, 30)) < 0.02) for _ in range(2))
    kept = x.any(axis=1) & y.any(axis=1)
    whole, some = (sp.align(x[i], y[i], metrics="mutual_knn", folds=None)["mutual_knn"].mean for i in (slice(None), kept))
    np.testing.assert_allclose(whole, some, atol=1e-6)


def test_the_gradient_of_sampled_cka_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(90, 20))
    y, move = x @ rng.normal(size=(20, 15)), rng.normal(size=x.shape)
    with jax.enable_x64(True):
        score = jax.jit(
            lambda x: jax.jvp(lambda x: sp.align(x, y, "sampled_cka", folds=None)["sampled_cka"].mean, (x,), (move,))
        )
        slope = score(x)[1]
        after, before = (score(x + sign * 1e-5 * move)[0] for sign in (1, -1))
    np.testing.assert_allclose(slope, (after - before) / 2e-5, rtol=1e-5)
    assert slope != 0

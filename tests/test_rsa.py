"""Dissimilarity matrices against SciPy, and comparisons of them against their definitions."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, pearsonr, spearmanr

import superpos as sp

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 7)), RNG.normal(size=(12, 5))


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean", "squared"])
def test_distances_are_scipys(distance):
    expected = pdist(X + 3, "sqeuclidean" if distance == "squared" else distance)
    np.testing.assert_allclose(sp.rsa.dissimilarities(X + 3, distance), expected, rtol=1e-4, atol=1e-5)


def test_distances_under_noise_are_mahalanobis():
    root = RNG.normal(size=(7, 7))
    noise = root @ root.T + np.eye(7)
    expected = pdist(X, "mahalanobis", VI=np.linalg.inv(noise))
    np.testing.assert_allclose(sp.rsa.dissimilarities(X, "euclidean", noise=noise), expected, rtol=1e-3)
    repeats = X[:, None] + RNG.multivariate_normal(np.zeros(7), noise, size=(12, 4))
    found = sp.rsa.crossvalidated(repeats, noise=noise)
    inverse = np.linalg.inv(noise)
    row, col = np.triu_indices(12, 1)
    delta = repeats[row] - repeats[col]
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    by_hand = np.mean([np.einsum("pu,uv,pv->p", delta[:, a], inverse, delta[:, b]) for a, b in pairs], axis=0)
    np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-3)


def test_noise_adds_nothing_to_crossvalidated_distances():
    repeats = np.random.default_rng(1).normal(size=(200, 3, 20))
    found = np.asarray(sp.rsa.crossvalidated(repeats))
    assert abs(found.mean()) < 3 * 2 * np.sqrt(20 / 3 / 200)  # three standard errors; 40 without crossvalidation
    assert (found < 0).mean() == pytest.approx(0.5, abs=0.05)


def test_comparisons_are_scipys():
    a, b = sp.rsa.dissimilarities(X), sp.rsa.dissimilarities(Y)
    for kind, reference in (("pearson", pearsonr), ("spearman", spearmanr), ("kendall", kendalltau)):
        np.testing.assert_allclose(sp.rsa.compare(a, b, kind), reference(a, b).statistic, atol=1e-4)
        np.testing.assert_allclose(sp.rsa.compare(squareform(a), b, kind), reference(a, b).statistic, atol=1e-4)
    model = np.random.default_rng(0).integers(0, 2, a.size)  # a model of categories, and one stimulus far from all
    far = np.append(np.arange(1.0, 6), 1e7)
    for kind, reference in (("spearman", spearmanr), ("kendall", kendalltau)):
        np.testing.assert_allclose(sp.rsa.compare(model, a, kind), reference(model, a).statistic, atol=1e-4)
        got = sp.rsa.compare(far, np.array([5, 4, 3, 2, 1, 6]), kind)
        np.testing.assert_allclose(got, reference(far, [5, 4, 3, 2, 1, 6]).statistic, atol=1e-4)


def test_whitened_similarity_is_its_definition():
    """Diedrichsen et al. 2020: entries that share stimuli have errors with covariance (C Cᵀ)², C the contrasts."""
    a, b = (np.asarray(sp.rsa.dissimilarities(v, "squared"), np.float64) for v in (X, Y))
    row, col = np.triu_indices(12, 1)
    contrasts = np.zeros((len(row), 12))
    contrasts[np.arange(len(row)), row], contrasts[np.arange(len(row)), col] = 1, -1
    inverse = np.linalg.inv((contrasts @ contrasts.T) ** 2)
    expected = a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))
    np.testing.assert_allclose(sp.rsa.compare(a, b, "whitened"), expected, rtol=1e-4)
    np.testing.assert_allclose(sp.rsa.compare(a, b, "whitened"), sp.align(X, Y, "cka", folds=None)["cka"].mean, rtol=1e-4)


def test_distances_of_bytes_repeats_and_masked_units():
    images = np.random.default_rng(0).integers(0, 256, (8, 30), dtype=np.uint8)
    np.testing.assert_allclose(sp.rsa.dissimilarities(images, "cosine"), pdist(images, "cosine"), atol=1e-5)
    twice = np.random.default_rng(0).normal(3, 1, (30, 500)).astype(np.float32)[[*range(30), *range(30)]]
    assert (squareform(sp.rsa.dissimilarities(twice, "euclidean"))[range(30), range(30, 60)] == 0).all()
    assert np.isnan(sp.rsa.dissimilarities(np.ones((3, 4)))).all()  # constant patterns have no correlation
    live, noise = np.arange(7) != 2, np.cov(RNG.normal(size=(40, 7)).T)
    other = np.where(live, X, 100)
    found = [sp.rsa.dissimilarities(x, "squared", noise=noise, live=live) for x in (X, other)]
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize("kind", ["pearson", "cosine", "spearman", "kendall"])
def test_the_ceiling_bounds_the_best_matrix(kind):
    truth = np.asarray(sp.rsa.dissimilarities(X, "squared"))
    subjects = truth + 5 * np.random.default_rng(2).normal(size=(6, truth.size))
    ceiling = sp.rsa.noise_ceiling(subjects, kind)
    of_truth = np.mean([sp.rsa.compare(subject, truth, kind) for subject in subjects])
    assert ceiling.lower < ceiling.upper
    assert of_truth <= ceiling.upper + 1e-4
    assert ceiling.lower < of_truth + 0.05
    squares = np.stack([squareform(subject, checks=False) for subject in subjects])
    np.testing.assert_allclose(sp.rsa.noise_ceiling(squares, kind), ceiling, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "squared"])
def test_the_metric_takes_distances_by_name(distance):
    metric = sp.metrics.RSA("spearman", distance_of=distance)
    got = sp.align(X, Y, metric, folds=None)["rsa"].mean
    expected = spearmanr(*(pdist(v, "sqeuclidean" if distance == "squared" else distance) for v in (X, Y))).statistic
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_it_is_pure():
    target = sp.rsa.dissimilarities(Y)
    both = jax.jit(jax.vmap(lambda x: sp.rsa.compare(sp.rsa.dissimilarities(x), target)))(np.stack([X, X[::-1]]))
    expected = sp.align(X, Y, "rsa_spearman", folds=None)["rsa_spearman"].mean
    np.testing.assert_allclose(both[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sp.rsa.dissimilarities(X, "manhattan"), "distance must be one of correlation, cosine, euclidean, squared"),
        (lambda: sp.rsa.dissimilarities(X[0]), r"x must be \(n_stimuli, n_units\), got \(7,\)"),
        (lambda: sp.rsa.dissimilarities(X, noise=np.eye(6)), r"noise must be the covariance \(7, 7\)"),
        (lambda: sp.rsa.compare(np.ones(5), np.ones(5)), r"a must be square, or the n \(n - 1\) / 2 entries"),
        (lambda: sp.rsa.compare(np.triu(np.ones((4, 4))), np.ones(6)), "a must be symmetric"),
        (lambda: sp.rsa.compare(np.ones(6), np.ones(10)), "a and b must be of the same stimuli, got 4 and 5 of them"),
        (lambda: sp.rsa.compare(np.ones(6), np.ones(6), "tau"), "kind must be one of pearson, spearman"),
        (lambda: sp.rsa.noise_ceiling(np.ones((1, 6))), "at least 2, got"),
        (lambda: sp.rsa.noise_ceiling(np.ones((3, 6)), "whitened"), "kind must be one of pearson, spearman"),
        (lambda: sp.rsa.compare(np.array([1, np.nan, 3]), np.ones(3)), "a must be finite, got 1 NaN"),
        (lambda: sp.rsa.crossvalidated(np.ones((5, 1, 3))), "at least 2 repeats"),
        (lambda: sp.rsa.crossvalidated(np.full((5, 2, 3), "a")), "repeats must hold real numbers"),
        (lambda: sp.rsa.dissimilarities(np.full((5, 3), np.nan)), "x must be finite, got 15 NaN"),
        (lambda: sp.rsa.crossvalidated(np.full((5, 2, 3), np.nan)), "repeats must all be there, got 30 NaN"),
        (lambda: sp.metrics.RSA(distance_of="l1"), "distance_of must be one of"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

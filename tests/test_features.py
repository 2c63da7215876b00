import jax
import numpy as np
import pytest

import superpos as sp


@pytest.mark.parametrize("probability", [0.02, 0.1, 1.0])
def test_moments_have_their_closed_form(key, probability):
    z = np.asarray(sp.features.SparseFeatures(8, probability).sample(key, 200_000), np.float64)
    mean, second = probability / 2, probability / 3  # of an active uniform: 1/2 and 1/3
    error = 5 * np.sqrt(second / 200_000)
    np.testing.assert_allclose(z.mean(0), mean, atol=error)
    np.testing.assert_allclose((z**2).mean(0), second, atol=error)
    np.testing.assert_allclose((z > 0).mean(0), probability, atol=error)
    off_diagonal = np.corrcoef(z.T)[~np.eye(8, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(200_000)


def test_active_values_are_uniform_even_when_rare(key):
    from scipy.stats import kstest

    z = np.asarray(sp.features.SparseFeatures(50, 1e-3).sample(key, 200_000))
    assert kstest(z[z > 0], "uniform").pvalue > 1e-3


def test_probability_can_differ_and_be_vmapped(key):
    each = sp.features.SparseFeatures(3, np.array([0.0, 0.5, 1.0], np.float32)).sample(key, 1000)
    assert np.all(np.asarray(each[:, 0]) == 0)
    assert np.mean(np.asarray(each[:, 2]) > 0) > 0.99
    probabilities = np.array([0.1, 0.4], np.float32)
    swept = jax.vmap(lambda p: sp.features.SparseFeatures(3, p).sample(key, 1000))(probabilities)
    for i, p in enumerate(probabilities):
        np.testing.assert_array_equal(swept[i], sp.features.SparseFeatures(3, p).sample(key, 1000))


def test_power_law():
    importance = sp.features.power_law(64)
    assert importance[0] == 1
    np.testing.assert_allclose(importance[32], 0.25)
    np.testing.assert_allclose(importance[63], (1 + 126 / 64) ** -2, rtol=1e-6)


DISTRIBUTIONS = [
    sp.features.SparseFeatures(4, np.array([0.1, 0.3, 0.5, 1.0], np.float32)),
    sp.features.GroupedFeatures(3, 2, probability=0.3),
    sp.features.GroupedFeatures(2, 3, exclusive=True, probability=0.2),
    sp.features.AnchoredFeatures(np.array([0.6, -0.5, 0.0], np.float32), 0.3),
    sp.features.AnchoredFeatures(np.array([0.6, -0.4, 1.0], np.float32), 0.3, exact=True),
    sp.features.HierarchicalFeatures(2, 2, 0.4, 0.6),
]


@pytest.mark.parametrize("features", DISTRIBUTIONS)
def test_covariance_is_that_of_a_large_sample(features, key):
    n = 300_000
    z = np.asarray(features.sample(key, n), np.float64)
    assert z.shape == (n, features.n_features)
    assert (z >= 0).all()
    assert (z <= 1).all()
    np.testing.assert_allclose(sp.features.covariance(features), np.cov(z.T), atol=5 * 0.3 / np.sqrt(n))
    active = (z > 0).astype(float)
    np.testing.assert_allclose(features.joint, active.T @ active / n, atol=5 * 0.5 / np.sqrt(n))


def test_groups_are_together_or_exclusive(key):
    together = np.asarray(sp.features.GroupedFeatures(3, 4, probability=0.2).sample(key, 5000)).reshape(5000, 3, 4) > 0
    assert (together.all(axis=2) | ~together.any(axis=2)).all()
    apart = np.asarray(sp.features.GroupedFeatures(3, 4, True, 0.2).sample(key, 5000)).reshape(5000, 3, 4) > 0
    assert apart.sum(axis=2).max() == 1


def test_children_need_their_parent(key):
    z = np.asarray(sp.features.HierarchicalFeatures(2, 3).sample(key, 5000)) > 0
    children = z[:, 2:].reshape(5000, 2, 3)
    assert not (children & ~z[:, :2, None]).any()


def test_published_generator_has_other_correlations_than_it_names():
    nominal = np.array([-0.25, -0.5, -0.75, -1.0, 0.0, 1.0], np.float32)
    realised = sp.features.AnchoredFeatures(nominal).activity_correlation
    np.testing.assert_allclose(realised, [0.52, 0.34, 0.13, -0.11, 0.0, 1.0], atol=0.005)


def test_exact_generator_has_the_correlations_that_it_names():
    nominal = np.array([-0.11, 0.0, 0.3, 1.0], np.float32)
    features = sp.features.AnchoredFeatures(nominal, 0.1, exact=True)
    np.testing.assert_allclose(features.activity_correlation, nominal, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(features.joint), 0.1, rtol=1e-5)
    assert np.isnan(sp.features.AnchoredFeatures(np.array([-0.2], np.float32), 0.1, exact=True).activity_correlation).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sp.features.GroupedFeatures(2, 3, True, 0.4), "probability must be between 0 and 0.333"),
        (lambda: sp.features.GroupedFeatures(0, 3), "n_groups and size must be at least 1"),
        (lambda: sp.features.HierarchicalFeatures(2, 0), "n_parents and n_children"),
        (lambda: sp.features.HierarchicalFeatures(2, 2, 1.5), "probability must be between 0 and 1"),
    ],
)
def test_bad_distributions(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_geometric():
    np.testing.assert_allclose(sp.features.geometric(4, 0.5), [1, 0.5, 0.25, 0.125])

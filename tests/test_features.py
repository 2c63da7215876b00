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

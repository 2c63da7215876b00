import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import theory

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("probability", [0.03, 0.3])
def test_rectified_units_have_the_moments_of_a_large_sample(probability):
    a, b = RNG.standard_normal((2, 20, 4))
    bias = np.array([0.0, 0.1, -0.1, 0.3])
    n = 400_000
    z = RNG.random((n, 20), dtype=np.float32) * (RNG.random((n, 20), dtype=np.float32) < probability)
    x, y = (np.maximum(z @ side + shift, 0) for side, shift in ((a, bias), (b, 0)))
    features = sp.features.SparseFeatures(20, probability)
    found = theory.population_rectified(a, b, features, biases=(bias, 0.0), n_folds=1)
    scale = np.sqrt(x.var(0)[:, None] * y.var(0))
    cross = (x - x.mean(0)).T @ (y - y.mean(0)) / n
    np.testing.assert_allclose(np.asarray(found.x.mean[0]), x.mean(0), atol=0.006)
    np.testing.assert_allclose(np.asarray(found.xy[0] / 1e6) / scale, cross / scale, atol=0.01)


def test_many_active_features_make_inputs_gaussian():
    a, b = RNG.standard_normal((2, 200, 3))
    z = RNG.random((60_000, 200), dtype=np.float32) * (RNG.random((60_000, 200), dtype=np.float32) < 0.5)
    x, y = (np.maximum(z @ side, 0) for side in (a, b))
    found = theory.population_rectified(a, b, sp.features.SparseFeatures(200, 0.5), n_folds=1, method="gaussian")
    scale = np.sqrt(np.outer(found.x.squares[0], found.y.squares[0]))
    cross = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
    np.testing.assert_allclose(np.asarray(found.xy[0]) / scale, cross / np.outer(x.std(0), y.std(0)), atol=0.03)


def test_gaussian_units_of_mean_zero_have_the_arc_cosine_kernel():
    from superpos.theory.rectified import _gaussian

    r = np.linspace(-0.9, 0.9, 7)
    for value in r:
        inner = jnp.array([[1.0, value], [value, 1.0]])
        angle = np.arccos(value)
        kernel = (np.sin(angle) + (np.pi - angle) * value) / (2 * np.pi)
        _, products = _gaussian(jnp.zeros(2), jnp.ones(2), inner)
        np.testing.assert_allclose(products[0, 1], kernel, atol=2e-4)
        np.testing.assert_allclose(products[0, 0], 0.5, rtol=1e-5)


def test_what_rectified_units_do_not_take():
    a = np.ones((4, 2))
    with pytest.raises(ValueError, match=r'method must be "mixture" or "gaussian", got "?\'?arc'):
        theory.population_rectified(a, a, sp.features.SparseFeatures(4), method="arc")
    with pytest.raises(
        ValueError, match=r'"mixture" takes independent features, sp.features.SparseFeatures, got GroupedFeatures'
    ):
        theory.population_rectified(a, a, sp.features.GroupedFeatures(2, 2))

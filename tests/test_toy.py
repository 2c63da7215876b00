import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from scipy.stats import kstest

import superpos as sp


def test_a_monosemantic_model_without_compression_has_no_loss(key):
    toy = sp.toy.ToyModel(6, 6)
    z = sp.features.SparseFeatures(6).sample(key, 100)
    loss, _ = toy.loss({"W": jnp.eye(6), "b": jnp.zeros(6)}, z)
    assert loss == 0


def test_an_empty_model_loses_the_importance_weighted_second_moment(key):
    importance = sp.features.power_law(6)
    toy = sp.toy.ToyModel(6, 3, importance)
    z = sp.features.SparseFeatures(6).sample(key, 100)
    loss, _ = toy.loss({"W": jnp.zeros((6, 3)), "b": jnp.zeros(6)}, z)
    np.testing.assert_allclose(loss, np.mean(np.asarray(importance) * np.asarray(z) ** 2), rtol=1e-6)


def test_weights_start_xavier_normal_and_not_truncated(key):
    weights = np.asarray(sp.toy.ToyModel(400, 100).init(key)["W"]).ravel()
    scale = np.sqrt(2 / 500)
    assert kstest(weights / scale, "norm").pvalue > 1e-3
    assert np.abs(weights / scale).max() > 3.5


def test_gradient(key):
    toy = sp.toy.ToyModel(6, 3, sp.features.power_law(6))
    z = sp.features.SparseFeatures(6, 0.9).sample(key, 50)
    loss = lambda p: toy.loss(jax.tree.map(jnp.asarray, p), z)[0]  # noqa: E731
    check_grads(loss, (toy.init(key),), order=1, modes="rev", atol=1e-2, rtol=1e-2)

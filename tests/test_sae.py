import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import superpos as sp
from superpos.sae.base import top_k_mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), hnp.arrays(np.float32, (5, 8), elements=st.integers(-3, 3).map(np.float32)))
def test_mask_marks_what_lax_top_k_selects(k, x):
    mask = np.asarray(top_k_mask(jnp.asarray(x), k))
    _, chosen = jax.lax.top_k(jnp.maximum(x, 0), k)  # takes the first of equal values, as promised here
    expected = np.zeros_like(mask)
    np.put_along_axis(expected, np.asarray(chosen), True, axis=1)
    np.testing.assert_array_equal(mask, expected & (x > 0))


def published_loss(params, x, k, weight):
    """The loss of the published code, in NumPy and float64."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = np.asarray(x, np.float64)
    pre = x @ p["W_enc"] + p["b_enc"]
    h = np.maximum(pre, 0)
    h[h < np.sort(h, axis=1)[:, -k][:, None]] = 0
    residual = x - (h @ p["W_dec"] + p["b_dec"])
    silent = (h == 0).all(axis=0)
    predicted = (pre * silent) @ p["W_dec"] + p["b_dec"]
    return np.mean(residual**2) + weight * np.mean((residual - predicted) ** 2), silent


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_loss_is_the_published_one(key, shift):
    sae = sp.sae.TopK(6, 20, 3, **sp.sae.PUBLISHED | {"dead_weight": 0.3})
    params = sae.init(key)
    params["b_enc"] = jnp.where(jnp.arange(20) < 8, shift, 0.1)  # a shift that silences some latents
    params["b_dec"] = jnp.linspace(-1, 1, 6)
    x = jax.random.normal(jax.random.key(1), (300, 6))
    loss, aux = sae.loss(params, x)
    expected, silent = published_loss(params, x, 3, 0.3)
    assert silent.any() == (shift < 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux["dead"], silent.mean())

    # Central differences in float64 of the NumPy rendering, away from ties.
    silent_for = params.pop("silent_for")
    grads = jax.grad(lambda p: sae.loss(p | {"silent_for": silent_for}, x)[0])(params)
    rng = np.random.default_rng(0)
    for name, value in params.items():
        direction = rng.normal(size=value.shape)
        ends = [
            published_loss({**params, name: np.asarray(value, np.float64) + sign * 1e-6 * direction}, x, 3, 0.3)[0]
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(np.sum(grads[name] * direction), (ends[0] - ends[1]) / 2e-6, rtol=2e-3, atol=1e-4)


def test_code_is_as_sparse_as_promised(key):
    sae = sp.sae.TopK(6, 20, 4)
    params = sae.init(key)
    code = np.asarray(sae.encode(params, jax.random.normal(jax.random.key(1), (500, 6))))
    assert ((code != 0).sum(axis=1) <= 4).all()
    assert (code >= 0).all()
    duplicated = jax.tree.map(lambda leaf: leaf, params) | {"W_enc": jnp.tile(params["W_enc"][:, :1], (1, 20))}
    assert ((sae.encode(duplicated, jnp.ones((3, 6))) != 0).sum(axis=1) <= 4).all()


@pytest.mark.parametrize("k", [0, 21])
def test_k_must_fit(k):
    with pytest.raises(ValueError, match="k must be between 1 and n_latents = 20, got"):
        sp.sae.TopK(6, 20, k)

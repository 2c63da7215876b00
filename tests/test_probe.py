import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import superpos as sp

KEY = jax.random.key(0)
PROBE = sp.probe.Probe(2, 2, 16)


def sample(key, n):
    """Of features 0 or 1 each, the first is seen; of the second, whether it equals the first."""
    z = jax.random.bernoulli(key, 0.5, (n, 2)).astype(jnp.float32)
    noise = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.2, (n,))
    return jnp.stack([z[:, 0], jnp.where(noise, 1 - z[:, 1], z[:, 1])], axis=1), z


def test_it_learns_the_conditional_mean():
    fit = jax.jit(lambda key: sp.fit(PROBE, key, sample, steps=800, batch_size=512, optimizer=optax.adam(1e-2))[0])
    y = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    expected = np.stack([y[:, 0], 0.2 + 0.6 * np.asarray(y[:, 1])], axis=1)
    np.testing.assert_allclose(PROBE.encode(fit(KEY), y), expected, atol=0.05)


def test_shapes_must_fit():
    params = PROBE.init(KEY)
    with pytest.raises(ValueError, match=r"units must be \(n, 2\), got \(5, 3\)"):
        PROBE.encode(params, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"features must be \(5, 2\), got \(5, 1\)"):
        PROBE.loss(params, (jnp.ones((5, 2)), jnp.ones((5, 1))))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        sp.probe.Probe(2, 2, 0)

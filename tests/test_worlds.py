"""Worlds: what two systems have in common is what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp

World = sp.worlds.World
KEY = jax.random.key(0)


def test_units_are_the_features_mixed():
    pair = World(8, 5, 0.5).sample(KEY, 50)
    np.testing.assert_allclose(pair.x, pair.z @ pair.a, atol=1e-5)
    np.testing.assert_allclose(pair.y, pair.w @ pair.b, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(pair.a, axis=1), 1, rtol=1e-5)
    rectified = World(8, 5, 0.5, rectified=True).sample(KEY, 50)
    np.testing.assert_allclose(rectified.x, np.maximum(pair.x, 0), atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 1.0])
def test_the_first_features_are_those_of_both(overlap):
    pair = jax.jit(lambda overlap: World(8, 5, overlap).sample(KEY, 4000))(overlap)
    same = np.all(np.asarray(pair.z) == np.asarray(pair.w), axis=0)
    assert same.sum() == round(8 * overlap)
    r = np.corrcoef(pair.z.T, pair.w.T)[:8, 8:]
    np.testing.assert_array_less(np.abs(r - np.diag(same)), 0.08)


def test_each_setting_does_what_it_says():
    def sample(**settings):
        return World(8, 8, 0.0, probability=0.2, **settings).sample(KEY, 20_000)

    plain = sample()
    active = plain.z > 0
    assert np.mean(active) == pytest.approx(0.2, abs=0.01)
    grouped, across = (np.asarray(sample(group=2, across=on).z > 0) for on in (False, True))
    np.testing.assert_array_equal(grouped[:, ::2], grouped[:, 1::2])
    both = sample(group=2, across=True)
    np.testing.assert_array_equal(across, both.w > 0)
    assert not np.array_equal(both.z, both.w)
    noisy = sample(noise=1.0)
    assert float(jnp.std(noisy.x - plain.x)) == pytest.approx(float(jnp.std(plain.x)), rel=0.05)

    def energies(pair):
        return np.corrcoef(jnp.sum(pair.x**2, axis=1), jnp.sum(pair.y**2, axis=1))[0, 1]

    assert abs(energies(plain)) < 0.05
    for settings in ({"gain": 0.5}, {"density": 0.7}, {"noise": 1.0, "noise_spread": 0.5}):
        assert energies(sample(**settings)) > 0.1
    assert np.std(np.log(np.linalg.norm(sample(norms=0.5).a, axis=1))) > 0.2
    turned = sample(orthogonal=True).a
    np.testing.assert_allclose(turned @ turned.T, np.eye(8), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_units": 0}, "n_features and n_units must be at least 1, got 40 and 0"),
        ({"group": 3}, "group must divide the 40 features, got 3"),
        ({"orthogonal": True}, "orthogonal needs as many units as features, got 20 and 40"),
        ({"overlap": 1.5}, "overlap must be between 0 and 1, got 1.5"),
        ({"probability": -0.1}, "probability must be between 0 and 1, got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        World(**settings)

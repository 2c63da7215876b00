"""Worlds: what two systems have in common is what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import lax

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


@pytest.mark.slow
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
    turned = sample(arrangement="tight").a
    np.testing.assert_allclose(turned @ turned.T, np.eye(8), atol=1e-5)


# Of as many units as features, each a feature: what a setting does to the features shows in the units.
VARIED = {
    "plain": {},
    "hierarchy": {"hierarchy": 0.5},
    "anchored": {"anchored": 0.5},
    "exactly": {"exactly": 2},
    "dense": {"dense": 1},
    "signed": {"signed": True},
    "conjunctions": {"conjunctions": True},
    "power": {"power": 2.0},
    "condition": {"condition": 10.0},
    "threshold": {"rectified": True, "threshold": 1.0},
    "saturation": {"saturation": 2.0},
    "layer_norm": {"layer_norm": True},
    "heavy": {"noise": 1.0, "heavy": True},
    "drift": {"drift": 1.0},
    "outliers": {"outliers": 0.01},
    "counts": {"counts": 2.0, "rectified": True},
}


@pytest.fixture(scope="module")
def varied():
    """All of them as one program: settings are numbers, of which the defaults change nothing."""
    names = sorted({name for settings in VARIED.values() for name in settings})
    columns = {name: jnp.array([float(s.get(name, getattr(World(), name))) for s in VARIED.values()]) for name in names}

    def sample(settings):
        pair = World(8, 8, 0.5, probability=0.2, arrangement="monosemantic", **settings).sample(KEY, 4000)
        return pair, pair.truth()

    made = jax.jit(lambda columns: lax.map(sample, columns))(columns)
    return {name: jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), made) for i, name in enumerate(VARIED)}


def test_settings_of_features_are_what_they_say(varied):
    z = {name: pair.z for name, (pair, _) in varied.items()}
    np.testing.assert_array_less(z["hierarchy"][:, 1::2] > 0, (z["hierarchy"][:, ::2] > 0) + 0.5)
    active = z["anchored"] > 0
    r = np.corrcoef(active.T)
    np.testing.assert_allclose(r[0, 1:], 0.5, atol=0.06)
    np.testing.assert_allclose(active.mean(axis=0), 0.2, atol=0.03)
    assert set((z["exactly"] > 0).sum(axis=1)) == {2}
    assert z["dense"][:, -1].std() == pytest.approx(1, abs=0.05)
    assert (z["signed"] < 0).mean() == pytest.approx((z["signed"] > 0).mean(), abs=0.02)
    np.testing.assert_allclose(varied["conjunctions"][0].w, z["conjunctions"] * np.roll(z["conjunctions"], 1, axis=1))


def test_settings_of_units_are_what_they_say(varied):
    x = {name: pair.x for name, (pair, _) in varied.items()}
    plain = varied["plain"][0]
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(varied["power"][0].a, axis=1) ** 2), np.arange(8, 0, -1.0) ** -2, rtol=1e-5
    )
    np.testing.assert_allclose(np.linalg.cond(varied["condition"][0].a), 10, rtol=1e-3)
    np.testing.assert_allclose(x["threshold"], np.maximum(plain.x - plain.x.std(), 0), atol=1e-5)
    np.testing.assert_allclose(x["saturation"], np.tanh(2 * plain.x / plain.x.std()) * plain.x.std() / 2, atol=1e-5)
    lengths = np.linalg.norm(x["layer_norm"], axis=1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-4)
    noise = (x["heavy"] - plain.x) / plain.x.std()
    assert np.mean(noise**4) / np.mean(noise**2) ** 2 == pytest.approx(6, abs=1.5)  # Laplace's
    assert np.linalg.matrix_rank(x["drift"] - plain.x, tol=1e-2) == 1
    assert np.mean(np.abs(x["outliers"] - plain.x).max(axis=1) > 0) == pytest.approx(0.01, abs=0.006)
    counts = x["counts"]
    assert np.all(counts == np.round(counts))
    assert counts.mean() == pytest.approx(2, abs=0.1)


def test_the_truth_is_what_the_systems_have_in_common(varied):
    for name in ("plain", "hierarchy", "layer_norm", "drift"):
        np.testing.assert_allclose(varied[name][1], 0.5, atol=0.08)
    np.testing.assert_array_equal(varied["conjunctions"][1], 0)
    pair, truth = varied["power"]
    z, w, (a, b) = pair.z, pair.w, (pair.a, pair.b)
    assert pair.shared.tolist() == [True] * 4 + [False] * 4

    def shares(weights):
        x, y = weights(z, a), weights(w, b)
        return np.sqrt(x * y)[:4].sum() / np.sqrt(x.sum() * y.sum())

    def variance(z, a):
        return z.var(axis=0) * (a**2).sum(axis=1)

    def kurtosis(z, a):
        return (scipy.stats.kurtosis(z) * variance(z, a) ** 2) ** 2

    np.testing.assert_allclose(truth, [shares(variance), 0.5, shares(kurtosis)], rtol=1e-4)


def test_given_arrangements_and_sides_of_two_sizes():
    a, b = np.eye(4, 3, dtype=np.float32), np.ones((4, 2), np.float32)
    pair = World(4, (3, 2), 1.0, probability=0.5, given=(a, b)).sample(KEY, 50)
    np.testing.assert_allclose(pair.x, pair.z @ a, atol=1e-6)
    np.testing.assert_allclose(pair.y, pair.w @ b, atol=1e-6)
    recorded = World(4, 3, 1.0, probability=0.5, recorded=2).sample(KEY, 50)
    assert recorded.x.shape == (50, 2)
    assert recorded.a.shape == (4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_units": 0}, "n_features and n_units must be at least 1, got 40 and 0"),
        ({"group": 3}, "group must divide the 40 features, got 3"),
        ({"arrangement": "tigt"}, "arrangement must be one of unit_norm, tight, antipodal, monosemantic, got 'tigt'"),
        ({"recorded": 21}, "recorded must be between 1 and the 20 units, got 21"),
        ({"condition": 0.5}, "condition must be at least 1, got 0.5"),
        ({"overlap": 1.5}, "overlap must be between 0 and 1, got 1.5"),
        ({"probability": -0.1}, "probability must be between 0 and 1, got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        World(**settings)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm, logm

import superpos as sp
from superpos import arrangements

KEY = jax.random.key(0)


def test_monosemantic_units_carry_one_feature_each():
    a = np.asarray(arrangements.monosemantic(KEY, 7, 4))
    np.testing.assert_array_equal(a.sum(axis=0), np.ones(4))
    assert np.sort(a.sum(axis=1)).tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(arrangements.polysemanticity(a), np.ones(4))
    np.testing.assert_array_equal(np.sort(arrangements.dimensionality(a)), [0, 0, 0, 1, 1, 1, 1])


def test_gaussian_and_unit_norm_features_have_their_norms():
    norms = arrangements.feature_norms(arrangements.gaussian(KEY, 4000, 50))
    np.testing.assert_allclose(np.mean(np.asarray(norms) ** 2), 1, atol=0.02)
    np.testing.assert_allclose(arrangements.feature_norms(arrangements.unit_norm(KEY, 30, 7)), 1, rtol=1e-6)


def test_antipodal_features_share_a_dimension_in_pairs():
    a = arrangements.antipodal(KEY, 8, 4)
    np.testing.assert_allclose(arrangements.dimensionality(a), 0.5)
    np.testing.assert_allclose(arrangements.interference(a), 1)
    np.testing.assert_allclose(np.asarray(a).sum(axis=0), 0)
    np.testing.assert_allclose(arrangements.polysemanticity(a), 2)


@pytest.mark.parametrize(("n_features", "n_units"), [(9, 4), (10, 5), (6, 6), (7, 7), (12, 3), (8, 1)])
def test_harmonic_frames_are_tight_and_of_unit_norm(n_features, n_units):
    a = np.asarray(arrangements.harmonic(KEY, n_features, n_units))
    np.testing.assert_allclose(a.T @ a, n_features / n_units * np.eye(n_units), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("n_features", "n_units"), [(6, 3), (14, 7), (5, 4), (2, 1), (3, 5)])
def test_equiangular_frames_reach_the_welch_bound(n_features, n_units):
    a = np.asarray(arrangements.equiangular(KEY, n_features, n_units))
    cosines = np.abs(a @ a.T)[~np.eye(n_features, dtype=bool)]
    np.testing.assert_allclose(cosines, arrangements.welch_bound(n_features, n_units), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(arrangements.coherence(a), arrangements.welch_bound(n_features, n_units), atol=1e-5)


def test_no_frame_goes_below_the_welch_bound():
    for seed in range(5):
        a = arrangements.gaussian(jax.random.key(seed), 12, 5)
        assert arrangements.coherence(a) >= arrangements.welch_bound(12, 5)


def test_blocks_do_not_mix():
    a = np.asarray(arrangements.block(KEY, 12, 6, 3))
    linked = (a != 0) @ (a != 0).T  # features that share a unit
    assert (linked.sum(axis=1) == 4).all()
    assert ((linked @ linked > 0) == linked).all()


def test_rotation_follows_a_geodesic():
    whole, half = (np.asarray(arrangements.rotation(KEY, 6, t), np.float64) for t in (1.0, 0.5))
    np.testing.assert_allclose(whole.T @ whole, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(half @ half, whole, atol=1e-5)
    np.testing.assert_allclose(expm(0.25 * logm(half)), arrangements.rotation(KEY, 6, 0.125), atol=1e-5)
    np.testing.assert_array_equal(arrangements.rotation(KEY, 6, 0.0), np.eye(6))
    angles = np.abs(np.angle(np.linalg.eigvals(np.asarray(arrangements.rotation(KEY, 300, 0.5), np.float64))))
    np.testing.assert_allclose(angles.max(), np.pi / 2, rtol=0.05)  # half of the way: the largest angle tends to half of π


def test_units_are_permuted_and_scaled_only():
    a = arrangements.gaussian(KEY, 9, 5)
    permuted = np.asarray(arrangements.permute_units(jax.random.key(1), a))
    assert {tuple(column) for column in permuted.T} == {tuple(column) for column in np.asarray(a).T}
    ratio = np.asarray(arrangements.scale_units(jax.random.key(1), a) / a)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-6)
    assert (ratio > 0).all()


def test_isometry_constant_is_a_lower_bound_and_exact_for_all_of_the_features():
    a = arrangements.unit_norm(KEY, 6, 4)
    values = np.linalg.eigvalsh(np.asarray(a, np.float64) @ np.asarray(a, np.float64).T)
    exact = np.abs(values - 1).max()
    np.testing.assert_allclose(arrangements.restricted_isometry(KEY, a, 6, n_draws=3), exact, rtol=1e-5)
    bounds = [arrangements.restricted_isometry(KEY, a, s, n_draws=50) for s in (1, 2, 4)]
    assert bounds[0] < 1e-5
    assert bounds[0] < bounds[1] < bounds[2] < exact + 1e-5
    np.testing.assert_allclose(bounds[1], arrangements.coherence(a), rtol=1e-4)  # δ_2 is the coherence; 15 pairs, 50 draws


def test_norm_products():
    a, b = arrangements.gaussian(KEY, 5, 3), arrangements.unit_norm(KEY, 5, 3)
    np.testing.assert_allclose(arrangements.norm_products(a, b), np.linalg.norm(a, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrangements.gaussian(KEY, 0, 3), "at least 1, got 0 and 3"),
        (lambda: arrangements.antipodal(KEY, 7, 3), "at most 2 n_units = 6 features, got 7"),
        (lambda: arrangements.harmonic(KEY, 2, 3), "at least n_units = 3 features, got 2"),
        (lambda: arrangements.equiangular(KEY, 8, 4), "no equiangular frame of 8 features in 4 units"),
        (lambda: arrangements.block(KEY, 6, 4, 4), "n_blocks must divide"),
        (lambda: arrangements.restricted_isometry(KEY, jnp.eye(3), 4), "sparsity must be between 1 and n_features = 3"),
    ],
)
def test_bad_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_trained_model_is_an_arrangement():
    toy = sp.toy.ToyModel(6, 3)
    assert arrangements.dimensionality(toy.init(KEY)["W"]).shape == (6,)


def test_semi_match_is_the_best_correlation_of_weights_over_the_shared_features():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(20, 7)).astype(np.float32)
    shared = rng.random(20) < 0.6
    a[shared, 2] = b[shared, 4] = 3.3  # these do not vary over what is shared, and drop out
    live_a, live_b = [0, 1, 3, 4], [0, 1, 2, 3, 5, 6]
    r = np.corrcoef(a[shared][:, live_a], b[shared][:, live_b], rowvar=False)[:4, 4:]
    np.testing.assert_allclose(arrangements.semi_match(a, b, shared), r.max(axis=0).mean(), rtol=1e-5)
    r = np.corrcoef(a, b, rowvar=False)[:5, 5:]
    np.testing.assert_allclose(arrangements.semi_match(a, b), r.max(axis=0).mean(), rtol=1e-5)


def test_semi_match_of_too_few_features_or_constant_weights_is_undefined():
    a = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    assert np.isnan(arrangements.semi_match(a, a, np.arange(20) < 2))
    np.testing.assert_allclose(arrangements.semi_match(a, a, np.arange(20) < 3), 1, rtol=1e-5)
    assert np.isnan(arrangements.semi_match(a, np.full((20, 3), 0.3, np.float32)))

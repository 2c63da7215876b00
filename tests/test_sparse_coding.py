import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear, minimize
from sklearn.linear_model import ElasticNet, orthogonal_mp

import superpos as sp
from superpos import arrangements, sparse_coding

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    a = arrangements.unit_norm(KEY, 20, 8)
    z = sp.features.SparseFeatures(20, 0.1).sample(jax.random.key(1), 60)
    return a, z, z @ a


@pytest.mark.parametrize(("penalty", "ridge"), [(0.001, 0.0), (0.05, 0.0), (0.02, 0.05)])
def test_fista_is_the_positive_elastic_net(problem, penalty, ridge):
    a, _, y = problem
    found = fista(y, a, penalty, ridge)
    net = ElasticNet(
        alpha=(penalty + ridge) / 8,
        l1_ratio=penalty / (penalty + ridge),
        positive=True,
        fit_intercept=False,
        max_iter=100_000,
        tol=1e-10,
    )
    expected = np.stack([net.fit(np.asarray(a, np.float64).T, np.asarray(row, np.float64)).coef_ for row in y])
    np.testing.assert_allclose(found, expected, atol=2e-3)

    def objective(z):
        error = np.asarray(y) - z @ np.asarray(a)
        return 0.5 * np.sum(error**2, axis=1) + penalty * z.sum(axis=1) + 0.5 * ridge * np.sum(z**2, axis=1)

    np.testing.assert_allclose(objective(np.asarray(found)), objective(expected), atol=1e-5)


@jax.jit  # compiled once
def fista(y, a, penalty, ridge):
    return sparse_coding.fista(y, a, penalty, ridge=ridge, steps=2000)


def test_features_stay_below_their_largest_value(problem):
    a, _, y = problem
    upper = np.linspace(0.1, 1, 20)
    found = sparse_coding.fista(y, a, 0.0, upper=jnp.asarray(upper, jnp.float32), ridge=0.01, steps=2000)
    for row, own in zip(np.asarray(y, np.float64)[:10], np.asarray(found), strict=False):
        rows = np.vstack([np.asarray(a, np.float64).T, 0.1 * np.eye(20)])  # the ridge as further equations
        best = lsq_linear(rows, np.concatenate([row, np.zeros(20)]), (0, upper), tol=1e-14).x
        np.testing.assert_allclose(own, best, atol=2e-3)


def test_rectified_units_only_bound_what_is_silent(problem):
    a, z, _ = problem
    y = np.maximum(np.asarray(z @ a), 0)
    found = np.asarray(sparse_coding.fista(jnp.asarray(y), a, 0.01, rectified=True, steps=2000), np.float64)

    def loss(z, row):
        error = z @ np.asarray(a, np.float64) - row
        error = np.where(row > 0, error, np.maximum(error, 0))
        return 0.5 * error @ error + 0.01 * z.sum()

    for row, own in list(zip(y.astype(np.float64), found, strict=True))[:5]:
        best = minimize(loss, np.full(20, 0.1), (row,), bounds=[(0, None)] * 20, options={"maxiter": 5000, "ftol": 1e-14})
        assert loss(own, row) <= best.fun + 1e-5
    linear = np.asarray(sparse_coding.fista(jnp.asarray(y), a, 0.01, steps=2000))
    assert np.mean((found - np.asarray(z)) ** 2) < np.mean((linear - np.asarray(z)) ** 2)


@pytest.mark.parametrize("k", [1, 3])
def test_omp_is_that_of_scikit_learn(problem, k):
    a, _, y = problem
    expected = orthogonal_mp(np.asarray(a, np.float64).T, np.asarray(y, np.float64).T, n_nonzero_coefs=k).T
    active = np.abs(np.asarray(y)).max(axis=1) > 0  # scikit-learn leaves what is already explained
    found = np.asarray(sparse_coding.omp(y, a, k))
    np.testing.assert_allclose(found[active], expected[active], atol=1e-4)
    assert ((found != 0).sum(axis=1) <= k).all()


def test_nonnegative_omp_has_no_negative_weights(problem):
    a, _, y = problem
    found = np.asarray(sparse_coding.omp(y, a, 4, nonnegative=True))
    assert (found >= 0).all()
    assert not sparse_coding.omp(-jnp.abs(y), jnp.abs(a), 4, nonnegative=True).any()  # nothing correlates positively
    dead = jnp.asarray(a).at[3].set(0)
    assert not sparse_coding.omp(y, dead, 4)[:, 3].any()


@pytest.mark.parametrize("k", [0, 9])
def test_k_must_fit(problem, k):
    a, _, y = problem
    with pytest.raises(ValueError, match=r"k must be between 1 and min\(n_features, n_units\) = 8, got"):
        sparse_coding.omp(y, a, k)


def test_units_must_agree(problem):
    a, _, y = problem
    for infer in (sparse_coding.fista, lambda y, a: sparse_coding.omp(y, a, 2)):
        with pytest.raises(ValueError, match=r"n_units\), got \(60, 7\) and \(20, 8\)"):
            infer(y[:, :7], a)


def test_features_of_one_direction_are_one_to_omp():
    a = jnp.concatenate([jnp.eye(4), -jnp.eye(4), jnp.eye(4)])  # antipodal, and once more
    z = np.zeros((3, 12), np.float32)
    z[0, [0, 2]], z[1, 5] = (0.5, 0.3), 0.7
    for nonnegative in (False, True):
        found = np.asarray(sparse_coding.omp(z @ a, a, 4, nonnegative=nonnegative))
        np.testing.assert_allclose(found @ a, z @ a, atol=1e-6)
    np.testing.assert_allclose(found, z, atol=1e-6)
    assert np.isnan(sparse_coding.omp(jnp.full((1, 4), jnp.nan), a, 2)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"penalty": -1.0}, "penalty must be at least 0, got -1.0"),
        ({"upper": jnp.ones(3)}, r"upper must be a number or have shape \(20,\), got \(3,\)"),
    ],
)
def test_bad_settings_of_fista(problem, settings, message):
    a, _, y = problem
    with pytest.raises(ValueError, match=message):
        sparse_coding.fista(y, a, **settings)

"""Cokurtosis against its theorem, against k-statistics written out, and where nothing can be said."""

import itertools

import jax
import numpy as np
import pytest

import superpos as sp


def sparse(rng, n_samples, n_features, p=0.1):
    return rng.uniform(0.3, 1, (n_samples, n_features)) * (rng.random((n_samples, n_features)) < p)


def directions(rng, n_features, n_units):
    a = rng.normal(size=(n_features, n_units))
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def cumulant(x, y):
    """Σ_ij k_iijj by Fisher's k-statistic of four variables, term by term."""
    n = len(x)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    total = 0.0
    for i, j in itertools.product(range(x.shape[1]), range(y.shape[1])):
        a, b = x[:, i], y[:, j]
        fourth = np.mean(a * a * b * b)
        second = np.mean(a * a) * np.mean(b * b) + 2 * np.mean(a * b) ** 2
        total += n**2 * ((n + 1) * fourth - (n - 1) * second) / ((n - 1) * (n - 2) * (n - 3))
    return total


def test_it_is_a_cosine_of_k_statistics():
    rng = np.random.default_rng(0)
    z = sparse(rng, 60, 5)
    x, y = z @ rng.normal(size=(5, 4)) + 3, z @ rng.normal(size=(5, 3))
    got = sp.align(x, y, "cokurtosis", folds=np.arange(60) % 2)["cokurtosis"].folds
    for fold in range(2):
        a, b = x[fold::2], y[fold::2]
        expected = cumulant(a, b) / np.sqrt(cumulant(a, a) * cumulant(b, b))
        np.testing.assert_allclose(got[fold], expected, rtol=1e-3)


def test_it_is_unbiased_where_samples_are_few():
    """The k-statistic of a feature against itself has the mean κ at any number of samples."""
    rng = np.random.default_rng(0)
    z = sparse(rng, 400_000, 1)
    m = z - z.mean()
    kappa = np.mean(m**4) - 3 * np.mean(m**2) ** 2
    found = [cumulant(part, part) for part in z.reshape(-1, 20, 1)]
    assert np.mean(found) == pytest.approx(kappa, abs=4 * np.std(found) / np.sqrt(len(found)))


@pytest.mark.parametrize("n_units", [40, 20, 10])
def test_it_is_the_share_of_features_whatever_the_superposition(n_units):
    """40 features a side, of equal norm and law, a share ρ of them on both: it reads ρ."""
    errors = []
    for seed, n_shared in enumerate((0, 10, 20, 30, 40)):
        rng = np.random.default_rng(seed)
        z = sparse(rng, 16_000, 80 - n_shared, 0.05)
        a, b = (directions(rng, 40, n_units) for _ in range(2))
        x, y = z[:, :40] @ a, z[:, 40 - n_shared : 80 - n_shared] @ b
        scores = sp.align(x, y, ("cokurtosis", "cka"), folds=None)
        errors.append(float(scores["cokurtosis"].mean) - n_shared / 40)
    assert np.sqrt(np.mean(np.square(errors))) <= 0.02
    assert float(scores["cka"].mean) < 0.95  # of the same features, seen by second moments


def test_features_of_unequal_norm_count_by_its_fourth_power():
    rng = np.random.default_rng(0)
    z = sparse(rng, 100_000, 30, 0.05)
    a, b = (directions(rng, 30, 15) * rng.lognormal(0, 0.5, (30, 1)) for _ in range(2))
    m = z - z.mean(axis=0)
    kappa = np.mean(m**4, axis=0) - 3 * np.mean(m**2, axis=0) ** 2
    na, nb = (kappa * (v**2).sum(axis=1) ** 2 for v in (a, b))
    expected = np.sum(np.sqrt(na * nb)) / np.sqrt(na.sum() * nb.sum())
    np.testing.assert_allclose(sp.align(z @ a, z @ b, "cokurtosis", folds=None)["cokurtosis"].mean, expected, atol=0.02)


def test_gaussian_noise_adds_nothing():
    rng = np.random.default_rng(0)
    z = sparse(rng, 16_000, 40, 0.05)
    x, y = (z @ directions(rng, 40, 20) for _ in range(2))
    noisy = [v + rng.normal(size=v.shape) * v.std() for v in (x, y)]
    assert float(sp.align(*noisy, "cokurtosis", folds=None)["cokurtosis"].mean) == pytest.approx(1, abs=0.05)


def test_whitening_takes_scales_and_mixtures_of_directions_away():
    rng = np.random.default_rng(0)
    z = sparse(rng, 16_000, 20, 0.05)
    a, b = rng.normal(size=(2, 20, 20)) * rng.lognormal(0, 0.5, (2, 20, 1))  # ill-conditioned, but all is there
    scores = sp.align(z @ a, z @ b, ("cokurtosis", "whitened_cokurtosis"))
    assert float(scores["whitened_cokurtosis"].mean) == pytest.approx(1, abs=0.03)
    norms = [(v**2).sum(axis=1) for v in (a, b)]
    expected = np.sum(norms[0] * norms[1]) / np.linalg.norm(norms[0]) / np.linalg.norm(norms[1])
    assert float(scores["cokurtosis"].mean) == pytest.approx(expected, abs=0.05)


def test_nothing_is_said_of_cumulants_of_two_signs_and_few_samples():
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(3000, 4))  # of negative cumulants, against sparse units: of two signs
    y = sparse(rng, 3000, 4)
    assert np.isnan(sp.align(x, y, "cokurtosis", folds=None)["cokurtosis"].mean)
    assert float(sp.align(x, x, "cokurtosis", folds=None)["cokurtosis"].mean) == pytest.approx(1, abs=1e-4)
    with pytest.warns(RuntimeWarning, match="cokurtosis needs 4 samples in each fold"):
        assert np.isnan(sp.align(x[:6], x[:6], "cokurtosis", folds=2)["cokurtosis"].mean)
    with pytest.warns(RuntimeWarning):
        assert np.isnan(sp.align(y[:6], y[:6], "whitened_cokurtosis", folds=2)["whitened_cokurtosis"].mean)


def test_it_streams_as_it_scores():
    rng = np.random.default_rng(0)
    z = sparse(rng, 900, 6)
    x, y = z @ rng.normal(size=(6, 4)), z @ rng.normal(size=(6, 3))
    ids = np.arange(900) % 3
    moments = sp.moments.init(4, 3, 3, sp.reads("cokurtosis"))
    for part in np.split(np.arange(900), 3):
        moments = jax.jit(sp.moments.update)(moments, x[part], y[part], ids[part])
    expected = sp.align(x, y, "cokurtosis", folds=ids)["cokurtosis"]
    np.testing.assert_allclose(sp.score(moments, "cokurtosis")["cokurtosis"].folds, expected.folds, rtol=1e-3)

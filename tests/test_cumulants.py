"""Cokurtosis against its theorem, against k-statistics written out, and where nothing can be said."""

import itertools
import warnings

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize("n_units", [pytest.param(40, marks=pytest.mark.slow), 20, 10])
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


# Whole quadricovariances.


def tensor(x, y):
    """cum(x_i, x_j, y_k, y_l) by Fisher's k-statistics, as an array of four axes."""
    n = len(x)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    fourth = np.einsum("ni,nj,nk,nl->ijkl", x, x, y, y) / n
    xx, xy, yy = x.T @ x / n, x.T @ y / n, y.T @ y / n
    second = np.einsum("ij,kl->ijkl", xx, yy) + np.einsum("ik,jl->ijkl", xy, xy) + np.einsum("il,jk->ijkl", xy, xy)
    return n**2 * ((n + 1) * fourth - (n - 1) * second) / ((n - 1) * (n - 2) * (n - 3))


def spread(packed, n, m):
    """A packed quadricovariance as an array of four axes."""
    rows = jax.vmap(sp.cumulants.unpacked, 1, 2)(packed)
    return np.asarray(jax.vmap(jax.vmap(sp.cumulants.unpacked))(rows)).reshape(n, n, m, m)


@pytest.fixture(scope="module")
def few():
    rng = np.random.default_rng(0)
    z = sparse(rng, 90, 6)
    return z @ rng.normal(size=(6, 4)), z @ rng.normal(size=(6, 3))


@pytest.mark.slow
def test_sums_hold_the_unbiased_cumulants_of_mapped_units(few):
    x, y = few
    sums = sp.cumulants.sums_of(*(side.astype(np.float32) for side in few), mixed=True)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)
    for maps, (u, v) in (((None, None), (x, y)), ((a, b), (x @ a, y @ b))):
        found = sp.cumulants.cumulants(sums, *maps)
        n = u.shape[1]
        for pair, one, other in (("xx", u, u), ("xy", u, v), ("yy", v, v)):
            sizes = (one.shape[1], other.shape[1])
            expected = tensor(one, other)
            np.testing.assert_allclose(spread(getattr(found, pair), *sizes), expected, atol=1e-4 * np.abs(expected).max())
        joint = tensor(np.c_[u, v], np.c_[u, v])[:n, :n, :n, n:]
        mixed = np.asarray(jax.vmap(jax.vmap(sp.cumulants.unpacked, 1, 2), 2, 3)(found.xxxy))
        np.testing.assert_allclose(mixed, joint, atol=1e-4 * np.abs(joint).max())
        assert np.linalg.norm(found.xy) == pytest.approx(np.linalg.norm(tensor(u, v)), rel=1e-4)  # packing keeps lengths
    np.testing.assert_allclose(sp.cumulants.covariances(sums)[1], np.cov(x.T, y.T, bias=True)[:4, 4:], atol=1e-5)


def test_sums_of_parts_add_up(few):
    x, y = (side.astype(np.float32) for side in few)
    whole = sp.cumulants.sums_of(x, y)
    sums = sp.cumulants.init(4, 3, n_folds=2)
    for rows, fold in ((slice(0, 40), 0), (slice(40, 60), 1), (slice(60, 90), 0)):
        sums = sp.cumulants.update(sums, x[rows], y[rows], fold)
    sums = sp.cumulants.update(sums, x + np.nan, y, 1, valid=False)
    np.testing.assert_array_equal(sp.cumulants.count(sums), [70, 20])
    for one, other in zip(jax.tree.leaves(sums), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one.sum(axis=0), other, rtol=1e-4, atol=1e-3)


def worlds(seed, n_features, rho, n_samples=16_000, noise=0.0, gain=0.0, n_units=20):
    """Two sides of so many features in 20 units, a share ρ of which both have; 20 of them in orthogonal directions."""
    rng = np.random.default_rng(seed)
    n_shared = round(n_features * rho)
    z = sparse(rng, n_samples, 2 * n_features - n_shared, 0.05) * rng.lognormal(0, gain, (n_samples, 1))
    sides = []
    for part in (z[:, :n_features], z[:, n_features - n_shared :]):
        square = n_features == n_units
        a = np.linalg.qr(rng.normal(size=(n_units, n_units)))[0] if square else directions(rng, n_features, n_units)
        units = part @ a
        sides.append((units + noise * units.std() * rng.normal(size=units.shape)).astype(np.float32))
    return sides


WHOLE = ("cumulant_cka", "cumulant_cca")


@pytest.fixture(scope="module")
def told():
    """Both metrics of some worlds, by the number of features, ρ and what else there is."""
    cases = [(20, 0.5, {"noise": 0.5}), (20, 0.5, {"gain": 0.5})]
    cases += [(40, rho, {}) for rho in (0, 0.5, 1)] + [(40, 0, {"gain": 0.5})]
    return {(n, rho, *other): sp.align(*worlds(0, n, rho, **other), WHOLE, folds=3) for n, rho, other in cases}


@pytest.mark.parametrize("other", ["noise", pytest.param("gain", marks=pytest.mark.slow)])
def test_cumulant_cka_is_the_share_of_features_where_directions_do_not_interfere(told, other):
    found = told[20, 0.5, other]["cumulant_cka"]
    assert float(found.mean) == pytest.approx(0.5, abs=0.05)
    assert float(found.details["hidden"].mean()) == pytest.approx(0, abs=0.05)  # there is only a rotation


def test_superposition_hides_a_part_from_every_linear_map(told):
    scores = [float(told[40, rho]["cumulant_cka"].mean) for rho in (0, 0.5, 1)]
    assert abs(scores[0]) < 0.02
    assert scores[0] < scores[1] < scores[2]
    details = told[40, 1]["cumulant_cka"].details
    hidden = float(details["hidden"].mean())
    assert hidden > 0.25
    np.testing.assert_allclose(details["linear"] + details["hidden"], told[40, 1]["cumulant_cka"].folds, rtol=1e-5)
    assert 0 < float(details["hidden_error"]) < 0.1 * hidden


def test_cumulant_cca_counts_lines_in_common(told):
    for rho in (0, 0.5, 1):
        found = told[40, rho]["cumulant_cca"]
        assert float(found.mean) == pytest.approx(rho, abs=0.06)
        np.testing.assert_allclose(found.details["source_lines"], 40, atol=2)


def test_common_gain_makes_no_alignment_once_energies_are_left_out(told):
    found = told[40, 0, "gain"]["cumulant_cka"]
    assert abs(float(found.mean)) < 0.1
    assert float(np.mean(found.details["with_energy"])) > 3 * abs(float(found.mean))


@pytest.mark.slow
def test_linear_maps_of_either_side_change_nothing():
    x, y = worlds(1, 12, 0.5, n_samples=6000, n_units=8)
    mix = np.random.default_rng(0).normal(size=(8, 8)) * np.logspace(-2, 2, 8)
    plain, mixed = (sp.align(a, y, ("cumulant_cka", "cumulant_cca"), folds=3) for a in (x, (x @ mix + 7).astype(np.float32)))
    for name, score in plain.items():
        np.testing.assert_allclose(mixed[name].folds, score.folds, atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_few_samples_of_many_units_score_0_on_average():
    rng = np.random.default_rng(0)
    scores = jax.jit(lambda x, y: sp.align(x, y, "cumulant_cka", folds=5)["cumulant_cka"].mean)
    found = [scores(*(rng.exponential(size=(640, 64)).astype(np.float32) for _ in range(2))) for _ in range(4)]
    assert abs(np.nanmean(found)) < 0.02


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    z = sparse(rng, 900, 5)
    x, y, move = z @ rng.normal(size=(5, 3)), z @ rng.normal(size=(5, 3)), rng.normal(size=(900, 3))
    metrics = (sp.metrics.CumulantCKA(split=False), sp.metrics.CumulantCCA(n_features=(4, 4)))
    with jax.enable_x64(True):

        def means(x):
            return jnp.stack([s.mean for s in sp.align(x, y, metrics, folds=np.arange(900) % 3).values()])

        slopes = jax.jit(lambda x: jax.jvp(means, (x,), (move,)))
        found = slopes(x)[1]
        after, before = (slopes(x + sign * 1e-6 * move)[0] for sign in (1, -1))
    np.testing.assert_allclose(found, (after - before) / 2e-6, rtol=1e-4)
    assert np.all(found != 0)


@pytest.mark.slow
def test_a_score_that_is_not_to_be_trusted_says_so():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 900, 20)).astype(np.float32)
    with pytest.warns(RuntimeWarning, match="cokurtosis is not to be trusted: the fourth cumulant of the source is"):
        sp.align(*noise, "cokurtosis")
    with pytest.warns(RuntimeWarning, match="for lines cannot be counted"):
        sp.align(*noise, "cumulant_cca", folds=3)
    with pytest.warns(RuntimeWarning, match="reads components that hold 5.% of the variance of the source"):
        sp.align(*noise, sp.metrics.CumulantCKA(components=10, split=False), folds=3)
    with pytest.warns(RuntimeWarning, match="cumulant_cca is not defined: it needs three folds to count lines"):
        sp.align(*noise, "cumulant_cca", folds=2)
    gained = worlds(0, 40, 0, gain=0.5)
    for name in ("cumulant_cka", "cokurtosis"):
        with pytest.warns(RuntimeWarning, match=f"{name}: energies alone say 0.[45]"):
            sp.align(*gained, name, folds=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        sp.align(*worlds(0, 40, 0.5), ("cokurtosis", *WHOLE), folds=5)


@pytest.mark.slow
def test_features_of_negative_cumulants_count_alike():
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (9000, 6)).astype(np.float32)
    for a, b, truth in ((z, z @ rng.normal(size=(6, 6)).astype(np.float32), 1), (z[:, :4], z[:, 2:], 0.5)):
        assert float(sp.align(a, b, "cumulant_cca", folds=3)["cumulant_cca"].mean) == pytest.approx(truth, abs=0.03)


# How many, and where.


@pytest.fixture(scope="module")
def superposed():
    rng = np.random.default_rng(0)
    a = directions(rng, 40, 20)
    return sparse(rng, 16_000, 40, 0.05) @ a, a


def test_features_are_counted_and_found(superposed):
    x, a = superposed
    counted = sp.cumulants.count_features(x, n_splits=2)
    assert counted.identified
    assert counted.count == pytest.approx(40, abs=2)
    assert counted.ci95[0] <= counted.count <= counted.ci95[1]
    lines = np.asarray(sp.cumulants.directions(x, 40))
    np.testing.assert_allclose(np.linalg.norm(lines, axis=1), 1, rtol=1e-5)
    assert np.mean(np.max(np.abs(a @ lines.T), axis=1) > 0.95) >= 0.95
    assert np.mean(np.max(a @ lines.T, axis=1) > 0.95) >= 0.95  # and turned to the side where features lie


@pytest.mark.slow
def test_what_cannot_be_counted_is_not(superposed):
    rng = np.random.default_rng(0)
    cases = {
        "look Gaussian, or are too few": rng.normal(size=(4000, 6)),
        "only 1 of 48 components": np.c_[rng.exponential(size=(16_000, 49)), 1e5 * rng.exponential(size=16_000)],
        "fewer than ten": superposed[0][:100],
        "cumulants of pairs need two": np.c_[superposed[0][:100, :1], np.ones(100)],
        "nearly as many as": sparse(rng, 40_000, 9, 0.05) @ directions(rng, 9, 3),
    }
    for reason, x in cases.items():
        components = 20 if reason == "fewer than ten" else None
        counted = sp.cumulants.count_features(x, n_splits=2, components=components)
        assert not counted.identified
        assert np.isnan(counted.count)
        assert reason in counted.reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: sp.cumulants.directions(x, 7), "n_features must be between 1 and the 6 pairs of 3 components, got 7"),
        (lambda x: sp.cumulants.directions(x, 2, components=4), "components must be between 1 and the 3 units"),
        (lambda x: sp.cumulants.directions(x[0], 2), "x must be a non-empty"),
        (lambda x: sp.cumulants.directions(x + np.nan, 2), "x "),
        (lambda x: sp.cumulants.directions(x, 2, steps=0), "n_starts and steps must be at least 1"),
        (lambda x: sp.cumulants.count_features(x, components=9), "components must be between 2 and the 3 units"),
        (lambda x: sp.cumulants.count_features(x, n_splits=0), "n_splits must be"),
        (lambda x: jax.jit(lambda x: sp.cumulants.count_features(x).count)(x), "outside of jit and vmap"),
        (lambda x: sp.cumulants.directions(np.c_[x[:, :1], x], 7), "of 7 lines 6 have a direction"),
        (lambda x: sp.align(x, x, sp.metrics.CumulantCCA(n_features=(7, 7))), "at most the 6 pairs of components, got 7"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(100, 3)))

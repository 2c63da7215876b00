import jax
import numpy as np
import pytest
from references import ALPHAS, per_unit
from scipy.optimize import nnls
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import superpos as sp


@pytest.fixture(scope="module")
def masks(sides, fold_ids):
    return [np.all([np.ptp(side[fold_ids == fold], axis=0) > 0 for fold in range(5)], axis=0) for side in sides]


@pytest.fixture(scope="module")
def parts(sides, fold_ids, masks):
    """Both sides in float64, live units only, and for each fold its training and held-out part."""
    x, y = (side.astype(np.float64)[:, mask] for side, mask in zip(sides, masks, strict=True))
    return [(x[fold_ids != f], y[fold_ids != f], x[fold_ids == f], y[fold_ids == f]) for f in range(5)]


@pytest.fixture(scope="module")
def fitted(sides, fold_ids):
    metrics = (
        sp.metrics.Ridge(ALPHAS, weights=True),
        sp.metrics.Ridge(ALPHAS, per_target=True, name="each"),
        sp.metrics.Ridge(ALPHAS, selection="gcv", name="gcv"),
        sp.metrics.OLS(weights=True),
        sp.metrics.NNLS(weights=True),
        sp.metrics.PLS(3, weights=True),
    )
    return sp.align(*sides, metrics=metrics, folds=fold_ids)


def search(x, y, inner, variance=1):
    # RidgeCV standardises nothing: a pipeline in a grid search is the same choice with scaling inside each inner fold.
    steps = make_pipeline(StandardScaler(), SklearnRidge())
    error = lambda model, x, y: -np.sum((model.predict(x).reshape(y.shape) - y) ** 2 / variance)  # noqa: E731
    return GridSearchCV(steps, {"ridge__alpha": ALPHAS}, scoring=error, cv=PredefinedSplit(inner)).fit(x, y)


def test_ridge_chooses_and_predicts_as_scikit_learn(fitted, sides, fold_ids, parts, masks):
    got = fitted["ridge"]
    for fold, (x, y, x_test, y_test) in enumerate(parts):
        wanted = search(x, y, fold_ids[fold_ids != fold], np.var(sides[1][:, masks[1]], axis=0))
        np.testing.assert_allclose(got.details["alpha"][fold], wanted.best_params_["ridge__alpha"], rtol=1e-5)
        predicted = wanted.predict(x_test)
        np.testing.assert_allclose(got.units[fold][masks[1]], per_unit(predicted, y_test), atol=1e-4)
        ours = sides[0][fold_ids == fold] @ got.details["weights"][fold] + got.details["intercept"][fold]
        np.testing.assert_allclose(ours[:, masks[1]], predicted, atol=2e-3)
    assert (np.asarray(got.details["weights"])[:, ~masks[0]] == 0).all()


@pytest.mark.slow
def test_a_nearly_silent_target_does_not_choose_for_all():
    """One response in 300 samples: whatever alpha does to the others, its errors in the fold of that response are large."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40))
    y = x @ rng.normal(size=(40, 6)) + rng.normal(size=(300, 6))
    silent = 1e-6 * rng.normal(size=300)
    silent[7] = 1
    ids = np.arange(300) % 5
    alone, beside = (sp.align(x, v, "ridge", folds=ids)["ridge"] for v in (y, np.c_[y, silent]))
    assert (beside.details["alpha"] <= 10 * alone.details["alpha"]).all()  # it has one vote of seven, 1e8 is what it had
    np.testing.assert_allclose(beside.units[:, :6], alone.units, atol=5e-3)


def test_alpha_for_each_target_is_that_of_the_target_alone(fitted, fold_ids, parts, masks):
    x, y, _, _ = parts[0]
    for unit, place in enumerate(np.flatnonzero(masks[1])):
        wanted = search(x, y[:, unit], fold_ids[fold_ids != 0]).best_params_["ridge__alpha"]
        np.testing.assert_allclose(fitted["each"].details["alpha"][0, place], wanted, rtol=1e-5)


def test_gcv_is_its_definition(fitted, parts):
    """Golub, Heath & Wahba 1979, with the hat matrix written out."""
    for fold, (x, y, _, _) in enumerate(parts):
        x, y = StandardScaler().fit_transform(x), StandardScaler().fit_transform(y)
        hats = [x @ np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T) for alpha in ALPHAS]
        errors = [np.sum((y - hat @ y) ** 2) / (len(x) - np.trace(hat) - 1) ** 2 for hat in hats]
        np.testing.assert_allclose(fitted["gcv"].details["alpha"][fold], ALPHAS[np.argmin(errors)], rtol=1e-5)


@pytest.mark.parametrize("name", ["ols", "nnls", "pls"])
def test_maps_predict_as_independent_packages(fitted, sides, fold_ids, parts, masks, name):
    got = fitted[name]
    for fold, (x, y, x_test, y_test) in enumerate(parts):
        if name == "ols":
            predicted = x_test @ np.linalg.lstsq(x - x.mean(axis=0), y, rcond=1e-7)[0]
        elif name == "nnls":
            weights = np.stack([nnls(x - x.mean(axis=0), unit - unit.mean())[0] for unit in y.T], axis=1)
            predicted = x_test @ weights
            assert (np.asarray(got.details["weights"]) >= 0).all()
        else:
            predicted = PLSRegression(3, scale=False, tol=1e-30, max_iter=100_000).fit(x, y).predict(x_test)
        np.testing.assert_allclose(got.units[fold][masks[1]], per_unit(predicted, y_test), atol=1e-4)
        ours = sides[0][fold_ids == fold] @ got.details["weights"][fold] + got.details["intercept"][fold]
        offset = ours[:, masks[1]] - predicted  # the packages center otherwise: compared up to a constant
        np.testing.assert_allclose(offset - offset.mean(axis=0), 0, atol=2e-3)
        assert got.details["r2"].shape == (5, 7)


def test_r2_is_scikit_learns(fitted, parts, masks):
    for fold, (x, y, x_test, y_test) in enumerate(parts):
        kept = np.arange(x.shape[1]) != 4  # the duplicate
        wanted = LinearRegression().fit(x[:, kept], y)
        scores = r2_score(y_test, wanted.predict(x_test[:, kept]), multioutput="raw_values")
        np.testing.assert_allclose(fitted["ols"].details["r2"][fold][masks[1]], scores, atol=1e-4)
        assert np.isnan(np.asarray(fitted["ols"].details["r2"])[:, ~masks[1]]).all()


def test_two_folds_and_none_fall_back_on_gcv(sides):
    for folds in (2, None):
        score = sp.align(*sides, metrics="ridge", folds=folds)["ridge"]
        assert 0.5 < float(score.mean) <= 1
        assert np.isfinite(score.folds).all()


@pytest.mark.slow
def test_correlations_stay_below_one_for_collinear_units():
    rng = np.random.default_rng(0)
    base, other = rng.normal(size=(2, 200, 1))
    x = np.c_[base, base + 1e-3 * other]
    for metric in (sp.metrics.Ridge(alphas=(1e-8,)), "ols", "nnls", "pls"):
        (score,) = sp.align(x, other, metrics=metric).values()
        assert np.abs(score.folds).max() <= 1


@pytest.mark.parametrize("condition", [10, 100, 1000])
def test_ols_in_float32_up_to_a_condition_number_of_1000(condition):
    """The target hangs on the weak directions as much as on the strong ones, which noise of the usual kind would hide."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(2000, 30)))
    v, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    x = ((u * np.logspace(0, -np.log10(condition), 30)) @ v * 40).astype(np.float32).astype(np.float64)
    y = 40 * u @ rng.normal(size=(30, 5)) + rng.normal(size=(2000, 5))
    ids = np.arange(2000) % 5
    got = sp.align(x, y, metrics="ols", folds=ids)["ols"]
    for fold in range(5):
        wanted = LinearRegression().fit(x[ids != fold], y[ids != fold]).predict(x[ids == fold])
        np.testing.assert_allclose(got.units[fold], per_unit(wanted, y[ids == fold]), atol=1e-4)


def test_non_negative_solutions_meet_the_conditions_of_karush_kuhn_and_tucker():
    rng = np.random.default_rng(0)
    from superpos.linalg import nnls as solve

    x, y = rng.normal(size=(2, 80, 40)), rng.normal(size=(2, 80))
    x[1, :, 20:] = x[1, :, :20]  # each twice
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    gram, cross = np.swapaxes(x, 1, 2) @ x, np.einsum("fni,fn->fi", x, y) / np.linalg.norm(y, axis=1, keepdims=True)
    weights = np.asarray(jax.jit(jax.vmap(solve))(gram.astype(np.float32), cross.astype(np.float32)), np.float64)
    gain = cross - np.einsum("fij,fj->fi", gram, weights)
    assert (weights >= 0).all()
    assert gain.max() < 1e-5
    assert np.abs(gain * weights).max() < 1e-5

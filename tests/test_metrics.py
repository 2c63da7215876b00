import jax
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import superpos as sp

ALPHAS = tuple(np.logspace(-1, 5, 7))


def live(sides, ids):
    return [np.all([side[ids == fold].std(axis=0) > 0 for fold in np.unique(ids)], axis=0) for side in sides]


def pearson(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return (a / np.linalg.norm(a, axis=0)).T @ (b / np.linalg.norm(b, axis=0))


@pytest.fixture(scope="module")
def reference(sides, fold_ids):
    """Both sides in float64, live units only, and for each fold its training and held-out part."""
    masks = live(sides, fold_ids)
    x, y = (side.astype(np.float64)[:, mask] for side, mask in zip(sides, masks, strict=True))
    return [(x[fold_ids != f], y[fold_ids != f], x[fold_ids == f], y[fold_ids == f]) for f in range(5)], masks


@pytest.fixture(scope="module")
def scores(sides, fold_ids):
    return sp.align(*sides, folds=fold_ids)


def test_semi_match_is_numpy_on_the_same_folds(scores, reference):
    folds, (_, target) = reference
    for fold, (x_train, y_train, x_test, y_test) in enumerate(folds):
        partner = pearson(x_train, y_train).argmax(axis=0)
        units = pearson(x_test, y_test)[partner, np.arange(y_test.shape[1])]
        np.testing.assert_allclose(scores["semi_match"].units[fold][target], units, atol=1e-4)
        np.testing.assert_allclose(scores["semi_match"].folds[fold], units.mean(), atol=1e-4)


def test_soft_match_is_pot_on_the_same_folds(scores, reference):
    folds, _ = reference
    for fold, (x_train, y_train, x_test, y_test) in enumerate(folds):
        r = pearson(x_train, y_train)
        n, m = r.shape
        plan = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), 1 - r)
        np.testing.assert_allclose(scores["soft_match"].folds[fold], np.sum(plan * pearson(x_test, y_test)), atol=1e-4)
    assert np.abs(scores["soft_match"].details["gap"]).max() < 1e-5


def test_ridge_and_its_alpha_are_scikit_learns(sides, fold_ids, reference):
    folds, (source, target) = reference
    got = sp.align(*sides, metrics=sp.metrics.Ridge(alphas=ALPHAS), folds=fold_ids)["ridge"]
    for fold, (x_train, y_train, x_test, y_test) in enumerate(folds):
        # RidgeCV standardises nothing: a pipeline in a grid search is the same choice with scaling inside each inner fold.
        search = GridSearchCV(
            make_pipeline(StandardScaler(), SklearnRidge()),
            {"ridge__alpha": ALPHAS},
            scoring="r2",
            cv=PredefinedSplit(fold_ids[fold_ids != fold]),
        ).fit(x_train, y_train)
        np.testing.assert_allclose(got.details["alpha"][fold], search.best_params_["ridge__alpha"], rtol=1e-5)
        predicted = search.predict(x_test)
        units = np.diag(pearson(predicted, y_test))
        np.testing.assert_allclose(got.units[fold][target], units, atol=1e-4)
        ours = sides[0][fold_ids == fold] @ got.details["weights"][fold] + got.details["intercept"][fold]
        np.testing.assert_allclose(ours[:, target], predicted, atol=2e-3)
    assert (np.asarray(got.details["weights"])[:, ~source] == 0).all()


def test_per_target_alpha_is_scikit_learns_for_each_target_alone(sides, fold_ids, reference):
    folds, (_, target) = reference
    got = sp.align(*sides, metrics=sp.metrics.Ridge(alphas=ALPHAS, per_target=True), folds=fold_ids)["ridge"]
    x_train, y_train, _, _ = folds[0]
    for unit, wanted in enumerate(np.flatnonzero(target)):
        search = GridSearchCV(
            make_pipeline(StandardScaler(), SklearnRidge()),
            {"ridge__alpha": ALPHAS},
            scoring="r2",
            cv=PredefinedSplit(fold_ids[fold_ids != 0]),
        ).fit(x_train, y_train[:, unit])
        np.testing.assert_allclose(got.details["alpha"][0, wanted], search.best_params_["ridge__alpha"], rtol=1e-5)


def test_gcv_is_its_definition(sides, fold_ids, reference):
    """Golub, Heath & Wahba 1979, with the hat matrix written out."""
    folds, _ = reference
    got = sp.align(*sides, metrics=sp.metrics.Ridge(alphas=ALPHAS, selection="gcv"), folds=fold_ids)["ridge"]
    for fold, (x_train, y_train, _, _) in enumerate(folds):
        x = StandardScaler().fit_transform(x_train)
        y = (y_train - y_train.mean(axis=0)) / y_train.std(axis=0)
        n = len(x)
        errors = []
        for alpha in ALPHAS:
            hat = x @ np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T)
            errors.append(np.sum((y - hat @ y) ** 2) / (n - np.trace(hat) - 1) ** 2)
        np.testing.assert_allclose(got.details["alpha"][fold], ALPHAS[np.argmin(errors)], rtol=1e-5)


def test_two_folds_and_none_fall_back_on_gcv(sides):
    for folds in (2, None):
        score = sp.align(*sides, metrics="ridge", folds=folds)["ridge"]
        assert 0.5 < float(score.mean) <= 1
        assert np.isfinite(score.folds).all()


def test_masks_are_removal(sides, fold_ids, scores):
    masks = live(sides, fold_ids)
    removed = sp.align(*(side[:, mask] for side, mask in zip(sides, masks, strict=True)), folds=fold_ids)
    for name, score in scores.items():
        np.testing.assert_allclose(score.folds, removed[name].folds, atol=1e-5)
        np.testing.assert_allclose(np.asarray(score.units)[:, masks[1]], removed[name].units, atol=1e-4)
        assert np.isnan(np.asarray(score.units)[:, ~masks[1]]).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_permuting_and_scaling_units_changes_nothing(sides, fold_ids, scores, seed):
    rng = np.random.default_rng(seed)
    moved = [side[:, rng.permutation(side.shape[1])] * rng.uniform(0.1, 10, side.shape[1]) for side in sides]
    for name, score in sp.align(*moved, folds=fold_ids).items():
        np.testing.assert_allclose(score.folds, scores[name].folds, atol=1e-4)


def test_alignment_with_itself_is_one(sides, fold_ids):
    for name, score in sp.align(sides[0], sides[0], folds=fold_ids).items():
        np.testing.assert_allclose(score.folds, 1, atol=1e-3, err_msg=name)


def test_symmetric_metrics_are_symmetric(sides, fold_ids, scores):
    swapped = sp.align(*sides[::-1], folds=fold_ids)
    for metric in sp.metrics.resolve(sp.metrics.names()):
        same = np.allclose(swapped[metric.name].folds, scores[metric.name].folds, atol=1e-4)
        assert same == metric.symmetric, metric.name


def test_noise_stays_at_zero():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 30)), rng.normal(size=(2000, 40))
    for name, score in sp.align(x, y).items():
        assert abs(float(score.mean)) < 5 / np.sqrt(2000 * 40), name


def test_a_rotation_lowers_matching_but_not_ridge():
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(3000, 10))
    rotation, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    scores = sp.align(z, z @ rotation)
    np.testing.assert_allclose(scores["ridge"].mean, 1, atol=1e-3)
    assert float(scores["semi_match"].mean) < 0.9
    assert float(scores["soft_match"].mean) < 0.9


def test_feature_recovery_is_the_highest_correlation():
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(1000, 4))
    units = np.stack([z[:, 2], z[:, 0] + z[:, 1], np.zeros(1000)], axis=1)
    moments = sp.moments.update(sp.moments.init(3, 4, 1), units, z, 0)
    got = sp.metrics.feature_recovery(moments)
    np.testing.assert_allclose(got, pearson(units[:, :2], z).max(axis=0), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-11, 1e10])
def test_scores_do_not_depend_on_the_units_of_measurement(sides, fold_ids, scores, scale):
    for scaled in ((sides[0] * np.float32(scale), sides[1]), (sides[0], sides[1] * np.float32(scale))):
        for name, score in sp.align(*scaled, folds=fold_ids).items():
            np.testing.assert_allclose(score.folds, scores[name].folds, atol=1e-4, err_msg=name)


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    alone = rng.normal(size=(90, 4))
    twice = np.c_[alone, alone[:, 0]]  # two equal units: an eigenvector has no gradient here, and a best match no unique one
    y = alone[:, :2] @ rng.normal(size=(2, 3)) + rng.normal(size=(90, 3))
    ridge = sp.metrics.Ridge(alphas=(5.0,))
    for metric, x in ((ridge, alone), (ridge, twice), (sp.metrics.SemiMatch(), alone), (sp.metrics.SoftMatch(), alone)):
        direction = rng.normal(size=x.shape)
        value = jax.jit(lambda x, metric=metric: sp.align(x, y, metrics=metric, folds=np.arange(90) % 3)[metric.name].mean)
        gradient = jax.grad(value)(x.astype(np.float32))
        numeric = (value(x + 2e-3 * direction) - value(x - 2e-3 * direction)) / 4e-3
        np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=0.02, atol=2e-4, err_msg=metric.name)


def test_correlations_stay_below_one_for_collinear_units():
    rng = np.random.default_rng(0)
    base, other = rng.normal(size=(2, 200, 1))
    x = np.c_[base, base + 1e-3 * other]
    score = sp.align(x, other, metrics=sp.metrics.Ridge(alphas=(1e-8,)))["ridge"]
    assert np.abs(score.folds).max() <= 1


def test_metrics_are_hashable_and_named():
    assert len({sp.metrics.Ridge(), sp.metrics.Ridge(), sp.metrics.Ridge(per_target=True)}) == 2
    assert set(sp.metrics.names()) >= {"semi_match", "soft_match", "ridge"}
    both = sp.metrics.resolve(["ridge", sp.metrics.Ridge(per_target=True, name="each")])
    assert [metric.name for metric in both] == ["ridge", "each"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("nonsense", "got 'nonsense'"),
        (["ridge", sp.metrics.Ridge()], "'ridge' twice"),
        ([], "empty"),
        ([3], "got 3"),
    ],
)
def test_bad_metrics(metrics, message):
    with pytest.raises(ValueError, match=message):
        sp.metrics.resolve(metrics)


@pytest.mark.parametrize("settings", [{"alphas": ()}, {"alphas": (0.0, 1.0)}, {"alphas": (np.nan,)}, {"selection": "loo"}])
def test_bad_ridge(settings):
    with pytest.raises(ValueError, match="must be"):
        sp.metrics.Ridge(**settings)


def test_nothing_calls_the_host(sides, fold_ids):
    jaxpr = str(jax.make_jaxpr(lambda x, y: sp.align(x, y, folds=fold_ids))(*sides))
    assert "callback" not in jaxpr

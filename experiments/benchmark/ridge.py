"""The `ridge` suite, and ridge regression by other packages."""

from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments.benchmark.timing import Alternative, Work

ALPHAS = np.logspace(-8, 8, 17)  # those of sp.metrics.Ridge


def ridge_suite(config: ConfigDict) -> list[Work]:
    """Ridge regression of a layer of a network on recorded sites: alpha by inner folds, and by one decomposition."""
    rng = np.random.default_rng(config.seed)
    x, y = representations(rng, *config.large_ridge)
    ids = rng.permutation(np.arange(len(x)) % config.n_folds)
    shape = "{:,} x {:,} to {:,}".format(*config.large_ridge)

    def work(selection, models):
        metric = sp.metrics.Ridge(alphas=ALPHAS, selection=selection)
        others = [
            Alternative(name, partial(outer_folds, model, x, y, ids, config.outer_folds), 3, **slow(config))
            for name, model in models.items()
        ]
        ours = lambda: np.asarray(sp.align(x, y, metric, folds=ids)["ridge"].folds)  # noqa: E731
        return Work(f"ridge {shape}, {selection}", ours, others)

    return [
        work("gcv", {"scikit-learn RidgeCV, leave-one-out": sklearn_loo}),
        work("folds", {"scikit-learn RidgeCV, folds": sklearn_cv, "himalaya RidgeCV, folds": himalaya_cv}),
    ]


def slow(config) -> dict[str, Any]:
    """What is said of an alternative of which only some outer folds are timed."""
    note = f"{config.outer_folds} of {config.n_folds} outer folds timed once, multiplied up"
    return {"times": config.n_folds / config.outer_folds, "note": note}


def representations(rng: np.random.Generator, n_samples: int, n_source: int, n_target: int) -> list[np.ndarray]:
    """Two sides that share half as many latent variables as they have units, with noise: float32 `(n_samples, units)`."""
    latent = rng.standard_normal((n_samples, min(n_source, n_target) // 2 + 1), np.float32)
    sides = []
    for units in (n_source, n_target):
        mixed = latent @ (rng.standard_normal((latent.shape[1], units), np.float32) / np.sqrt(np.float32(latent.shape[1])))
        mixed += 0.5 * rng.standard_normal(mixed.shape, np.float32)
        sides.append(mixed)
    return sides


def outer_folds(model, x, y, ids, n):
    """The score of each of the first `n` outer folds: `model(splits)` is an estimator that chooses alpha by inner ones."""
    return np.array([_ridge_fold(model, x, y, ids, fold) for fold in range(n)])


def _ridge_fold(model, x, y, ids, fold):
    """The score of one outer fold; alpha by cross-validation over the other folds."""
    from sklearn.model_selection import PredefinedSplit
    from sklearn.preprocessing import StandardScaler

    train, test, scaler = ids != fold, ids == fold, StandardScaler()
    fitted = model(PredefinedSplit(ids[train])).fit(scaler.fit_transform(x[train]), y[train])
    a, b = fitted.predict(scaler.transform(x[test])), y[test]
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.mean(np.sum(a * b, axis=0) / np.sqrt(np.sum(a * a, axis=0) * np.sum(b * b, axis=0)))


def sklearn_cv(splits):
    """scikit-learn's, by inner folds."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(ALPHAS, cv=splits)


def sklearn_loo(_):
    """scikit-learn's, by leaving one out."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(ALPHAS)


def himalaya_cv(splits):
    """himalaya's, by inner folds."""
    from himalaya.ridge import RidgeCV
    from himalaya.scoring import r2_score

    # As ours: one alpha for all targets. It makes a matrix of test by training samples for each alpha: one at a time.
    solver = {"local_alpha": False, "score_func": r2_score, "n_alphas_batch": 1}
    return RidgeCV(ALPHAS, fit_intercept=True, solver_params=solver, cv=splits)


def on_gram_matrices(x, y, ids, n_folds):
    """What a careful engineer would write: one pass over the samples, then everything from the sums of each fold."""
    n = x.shape[1]
    count, mean, scatter = [], [], []
    for k in range(n_folds):
        both = np.concatenate([x[ids == k], y[ids == k]], axis=1)
        count.append(len(both))
        mean.append(both.mean(axis=0))
        both -= mean[-1]
        scatter.append(both.T @ both)
    count, mean, scatter = np.array(count), np.array(mean, np.float64), np.array(scatter, np.float64)

    def solve(parts, alphas):
        """Weights for every alpha `(alphas, n, m)`, and the means of the parts together."""
        centre = count[parts] @ mean[parts] / count[parts].sum()
        away = mean[parts] - centre
        moments = scatter[parts].sum(axis=0) + (away.T * count[parts]) @ away
        std = np.sqrt(np.diagonal(moments)[:n, None] / count[parts].sum())
        values, vectors = np.linalg.eigh(moments[:n, :n] / (std * std.T))
        shrunk = (vectors.T @ (moments[:n, n:] / std)) / (values[:, None] + alphas[:, None, None])
        return (vectors / std) @ shrunk, centre

    def r2(parts, k):
        weights, centre = solve(parts, ALPHAS)
        shift = (mean[k] - centre)[n:] - (mean[k] - centre)[:n] @ weights
        rest = np.sum(weights * (scatter[k, :n, :n] @ weights - 2 * scatter[k, :n, n:]), axis=1) + count[k] * shift**2
        return -np.mean(rest / np.diagonal(scatter[k])[n:], axis=1)

    scores = []
    for fold in range(n_folds):
        train = [k for k in range(n_folds) if k != fold]
        quality = np.mean([r2([other for other in train if other != k], k) for k in train], axis=0)
        (weights,), _ = solve(train, ALPHAS[[np.argmax(quality)]])
        variance = np.sum(weights * (scatter[fold, :n, :n] @ weights), axis=0) * np.diagonal(scatter[fold])[n:]
        scores.append(np.mean(np.sum(weights * scatter[fold, :n, n:], axis=0) / np.sqrt(variance)))
    return np.array(scores)

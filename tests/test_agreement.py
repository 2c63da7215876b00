"""Every metric against independent packages on the same numbers: see references.py."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from references import ALPHAS, MASS, N_COMPONENTS, REFERENCES, K

import superpos as sp

CONFIGURED = {
    "ridge": sp.metrics.Ridge(alphas=ALPHAS),
    "pls": sp.metrics.PLS(n_components=N_COMPONENTS),
    "partial_soft_match": sp.metrics.PartialSoftMatch(mass=MASS),
    "mutual_knn": sp.metrics.MutualKNN(k=K),
}


@dataclasses.dataclass
class Fold:
    """One fold's training and test part, live units only, and the training part's own folds."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    inner: np.ndarray


def shared(n, n_source, n_target, seed=0, rank=6, noise=0.5):
    """Two representations that share latent variables, noisy, neither centred nor of one scale."""
    rng = np.random.default_rng(seed)
    latent = rng.exponential(size=(n, rank))
    sides = [latent @ rng.normal(size=(rank, units)) + noise * rng.normal(size=(n, units)) for units in (n_source, n_target)]
    return [side * rng.uniform(0.2, 5, side.shape[1]) + rng.normal(size=side.shape[1]) for side in sides]


def awkward():
    """Dead units, a duplicated one, one that is constant in a single fold, unequal numbers."""
    x, y = shared(403, 9, 7)
    x[:, 3] = 2.0
    x[:, 5] = 4 * x[:, 2]  # equal after rounding to float32 too
    y[:, 1] = 0.0
    y[np.arange(403) % 5 == 2, 6] = -1.0
    return x, y


def correlated():
    """500 strongly correlated source units: singular values fall from 1 to 1/900."""
    rng = np.random.default_rng(3)
    u, _ = np.linalg.qr(rng.normal(size=(2500, 500)))
    v, _ = np.linalg.qr(rng.normal(size=(500, 500)))
    x = (u * np.logspace(0, np.log10(1 / 900), 500)) @ v * 50
    return x, x @ rng.normal(size=(500, 4)) + 0.5 * rng.normal(size=(2500, 4))


MOMENTS = {"soft_match", "ridge", "ols", "cka", "procrustes"}
DOUBLE = {"ridge", "ols", "pls", "cka", "procrustes", "rsa"}  # of the wide case, in float64
# Every metric on awkward units; elsewhere those whose computation depends on the case, for each case is compiled anew.
CASES = {
    "awkward": (awkward, set(REFERENCES)),
    # More units than samples, on both sides. (A perfect non-negative fit is not unique, nor are canonical directions there.)
    "wide": (lambda: shared(60, 90, 70, seed=2), {*MOMENTS, "partial_soft_match", "pls", "debiased_cka", "rsa", "rsa_kendall"}),
    "equal": (lambda: shared(300, 8, 8, seed=1), {"soft_match", "permutation_match"}),
    "single": (lambda: shared(30, 1, 1, seed=4, rank=1), {*MOMENTS, "nnls"}),
    "many samples": (lambda: shared(100_000, 6, 5, seed=5), {*MOMENTS, "pls"}),
    "many units": (correlated, {"semi_match", "ols", "cka", "procrustes", "nnls"}),
}


@functools.cache
def problem(case):
    """Both sides, rounded to float32 so that both precisions see the same numbers, and fold ids."""
    x, y = (side.astype(np.float32).astype(np.float64) for side in CASES[case][0]())
    ids = np.arange(len(x)) % 5
    return x, y, ids


@functools.cache
def folds(case):
    x, y, ids = problem(case)
    x, y = (side[:, np.all([np.ptp(side[ids == f], axis=0) > 0 for f in range(5)], axis=0)] for side in (x, y))
    return [Fold(x[ids != f], y[ids != f], x[ids == f], y[ids == f], ids[ids != f]) for f in range(5)]


@functools.cache
def scores(case, x64):
    x, y, ids = problem(case)
    metrics = [CONFIGURED.get(name, name) for other, precision, name in TABLE if (other, precision) == (case, x64)]
    # As users run them, see conftest.py; and one that runs longer than it compiles.
    optimised = not x64 and case in ("awkward", "many units")
    jax.config.update("jax_disable_most_optimizations", not optimised)
    try:
        with jax.enable_x64(x64):
            return jax.tree.map(np.asarray, sp.align(x, y, metrics=metrics, folds=ids))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def expected(case, name):
    return np.array([REFERENCES[name](fold) for fold in folds(case)])


# float64 on two cases, the moment form and the Gram form: each is compiled anew.
TABLE = [
    (case, x64, name)
    for case, (_, names) in CASES.items()
    for x64 in ((False, True) if case in ("awkward", "wide") else (False,))
    for name in REFERENCES
    if name in names and not (case == "wide" and x64 and name not in DOUBLE)
]


@pytest.mark.parametrize(
    ("case", "x64", "name"),
    [pytest.param(*row, marks=pytest.mark.slow if row[1] or row[0] not in ("awkward", "single") else ()) for row in TABLE],
    ids=lambda value: {True: "float64", False: "float32"}.get(value, value),
)
def test_agreement(case, x64, name):
    tolerance = 1e-10 if x64 else 1e-4
    if name == "procrustes_bures":  # in the units of the data: beside their size
        tolerance *= np.sqrt(sum(np.var(side, axis=0).sum() for side in problem(case)[:2]))
    np.testing.assert_allclose(scores(case, x64)[name].folds, expected(case, name), rtol=0, atol=tolerance)


def test_masked_units_have_no_score():
    """What they do to the other units' scores, nothing, is shown above: the references leave them out."""
    _, y, ids = problem("awkward")
    live = np.all([np.ptp(y[ids == fold], axis=0) > 0 for fold in range(5)], axis=0)
    for name, score in scores("awkward", False).items():
        if score.units is not None:
            assert np.isnan(score.units[:, ~live]).all(), name
            assert name in ("permutation_match", "partial_soft_match", "mcc") or np.isfinite(score.units[:, live]).all(), name

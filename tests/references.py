"""Every metric by independent packages or by its published formula, in float64: live units only, one fold at a time."""

import numpy as np
import ot
from scipy.optimize import linear_sum_assignment, nnls
from scipy.spatial.distance import cdist, pdist
from scipy.stats import kendalltau, spearmanr
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ALPHAS = tuple(np.logspace(-1, 5, 7))
MASS = 0.7
N_COMPONENTS = 3
K = 4


def centred(*arrays):
    return [array - array.mean(axis=0) for array in arrays]


def pearson(a, b):
    a, b = centred(a, b)
    return (a / np.linalg.norm(a, axis=0)).T @ (b / np.linalg.norm(b, axis=0))


def per_unit(predicted, y):
    predicted, y = centred(predicted, y)
    norms = np.linalg.norm(predicted, axis=0) * np.linalg.norm(y, axis=0)
    return np.sum(predicted * y, axis=0) / np.where(norms > 0, norms, 1)


def uniform(r):
    return [np.full(n, 1 / n) for n in r.shape]


def semi_match(fold):
    r = pearson(fold.x, fold.y)
    return pearson(fold.x_test, fold.y_test)[r.argmax(axis=0), np.arange(r.shape[1])].mean()


def soft_match(fold):
    r = pearson(fold.x, fold.y)
    return np.sum(ot.emd(*uniform(r), 1 - r) * pearson(fold.x_test, fold.y_test))


def soft_match_distance(fold):
    """From tuning curves as points, with POT's own squared Euclidean distances."""
    points = [v / np.linalg.norm(v, axis=0) for v in centred(fold.x, fold.y)]
    tested = [v / np.linalg.norm(v, axis=0) for v in centred(fold.x_test, fold.y_test)]
    cost = ot.dist(points[0].T, points[1].T)
    return np.sqrt(np.sum(ot.emd(*uniform(cost), cost) * ot.dist(tested[0].T, tested[1].T)))


def partial_soft_match(fold):
    r = pearson(fold.x, fold.y)
    plan = ot.partial.partial_wasserstein(*uniform(r), 1 - r, m=MASS)
    return np.sum(plan * pearson(fold.x_test, fold.y_test)) / MASS


def permutation_match(fold):
    return pearson(fold.x_test, fold.y_test)[linear_sum_assignment(-pearson(fold.x, fold.y))].mean()


def ridge(fold):
    # RidgeCV standardises nothing: a pipeline in a grid search is the same choice with scaling inside each inner fold.
    steps = make_pipeline(StandardScaler(), SklearnRidge())
    squares = np.var(np.concatenate([fold.y, fold.y_test]), axis=0)
    error = lambda model, x, y: -np.sum((model.predict(x).reshape(y.shape) - y) ** 2 / squares)  # noqa: E731
    search = GridSearchCV(steps, {"ridge__alpha": ALPHAS}, scoring=error, cv=PredefinedSplit(fold.inner))
    return per_unit(search.fit(fold.x, fold.y).predict(fold.x_test).reshape(fold.y_test.shape), fold.y_test).mean()


def ols(fold):
    # scipy's lstsq cuts off at eps, which keeps what rounding leaves of duplicated units: NumPy's takes the cut-off.
    x_mean, y_mean = fold.x.mean(axis=0), fold.y.mean(axis=0)
    weights = np.linalg.lstsq(fold.x - x_mean, fold.y - y_mean, rcond=1e-7)[0]
    if fold.x.shape[1] < 100 and np.linalg.matrix_rank(fold.x - x_mean, rtol=1e-7) == fold.x.shape[1]:
        np.testing.assert_allclose(weights, LinearRegression().fit(fold.x, fold.y).coef_.T, atol=1e-8)
    return per_unit((fold.x_test - x_mean) @ weights, fold.y_test).mean()


def non_negative(fold):
    x, y = centred(fold.x, fold.y)
    weights = np.stack([nnls(x, unit)[0] for unit in y.T], axis=1)
    return per_unit(fold.x_test @ weights, fold.y_test).mean()


def pls(fold):
    n_components = min(N_COMPONENTS, fold.x.shape[1])
    model = PLSRegression(n_components, scale=False, tol=1e-30, max_iter=100_000)
    return per_unit(model.fit(fold.x, fold.y).predict(fold.x_test).reshape(fold.y_test.shape), fold.y_test).mean()


def cka(fold):
    x, y = centred(fold.x_test, fold.y_test)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic(k, m):
    """The unbiased estimator of Song et al. 2012 from Gram matrices with zero diagonals."""
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    n = len(k)
    return np.sum(k * m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(axis=0) @ m.sum(axis=0)


def debiased_cka(fold):
    k, m = (v @ v.T for v in (fold.x_test, fold.y_test))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def sampled_cka(fold):
    """Pairs of different units, one after the other (Chun et al. 2025)."""

    def mean(x, y, same):
        grams = [[np.outer(v, v) for v in side.T] for side in (x, y)]
        return np.mean([hsic(k, m) for i, k in enumerate(grams[0]) for j, m in enumerate(grams[1]) if not (same and i == j)])

    x, y = fold.x_test, fold.y_test
    return mean(x, y, False) / np.sqrt(mean(x, x, True) * mean(y, y, True))


def procrustes(fold):
    x, y = centred(fold.x, fold.y)
    u, s, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    rotation = (u * (s > 1e-6 * s[0])) @ vt
    x, y = centred(fold.x_test, fold.y_test)
    return np.sum((x @ rotation) * y) / (np.linalg.norm(x) * np.linalg.norm(y))


def procrustes_angular(fold):
    return np.arccos(procrustes(fold))


def procrustes_bures(fold):
    x, y = centred(fold.x_test, fold.y_test)
    a, b = np.linalg.norm(x), np.linalg.norm(y)
    return np.sqrt((a**2 + b**2 - 2 * procrustes(fold) * a * b) / len(x))


def canonical(fold, variance=1.0, projection_weighted=False):
    """By orthonormal bases of both sides (Björck & Golub 1973) instead of whitened covariances."""

    def basis(values):
        u, s, vt = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        rank = np.sum(s > 1e-5 * s[0]) if variance == 1 else np.searchsorted(share, variance) + 1
        return u[:, :rank], vt[:rank].T / s[:rank]

    (qx, to_x), (qy, to_y) = basis(fold.x), basis(fold.y)
    u, s, vt = np.linalg.svd(qx.T @ qy, full_matrices=False)
    a, b = to_x @ u, to_y @ vt.T
    weights = np.abs((fold.x - fold.x.mean(axis=0)).T @ qx @ u).sum(axis=0) if projection_weighted else np.ones(len(s))
    return np.sum(weights * per_unit(fold.x_test @ a, fold.y_test @ b)) / weights.sum()


def svcca(fold):
    return canonical(fold, variance=0.99)


def pwcca(fold):
    return canonical(fold, projection_weighted=True)


def rsa(fold):
    return np.corrcoef(pdist(fold.x_test, "correlation"), pdist(fold.y_test, "correlation"))[0, 1]


def rsa_spearman(fold):
    return spearmanr(pdist(fold.x_test, "correlation"), pdist(fold.y_test, "correlation"))[0]


def rsa_kendall(fold):
    return kendalltau(pdist(fold.x_test, "correlation"), pdist(fold.y_test, "correlation"))[0]


def mutual_knn(fold):
    near = []
    for side in (fold.x_test, fold.y_test):
        distances = NearestNeighbors(metric="cosine", algorithm="brute").fit(side)
        near.append(distances.kneighbors(n_neighbors=K, return_distance=False))  # without arguments a point is not its own
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(*near, strict=True)])


def jaccard(fold):
    x, y = fold.x_test > 0, fold.y_test > 0
    return (1 - cdist(x.T, y[:, y.any(axis=0)].T, "jaccard")).max(axis=0).mean()


def feature_recovery(fold):
    return pearson(fold.x_test, fold.y_test).max(axis=0).mean()


def mcc(fold):
    r = np.abs(pearson(fold.x_test, fold.y_test))
    return r[linear_sum_assignment(-r)].mean()


def uniqueness(fold):
    best = pearson(fold.x_test, fold.y_test).argmax(axis=0)
    return np.mean(np.bincount(best)[best] == 1)


REFERENCES = {
    "semi_match": semi_match,
    "soft_match": soft_match,
    "permutation_match": permutation_match,
    "partial_soft_match": partial_soft_match,
    "soft_match_distance": soft_match_distance,
    "ridge": ridge,
    "ols": ols,
    "nnls": non_negative,
    "pls": pls,
    "cka": cka,
    "debiased_cka": debiased_cka,
    "sampled_cka": sampled_cka,
    "procrustes": procrustes,
    "procrustes_angular": procrustes_angular,
    "procrustes_bures": procrustes_bures,
    "cca": canonical,
    "svcca": svcca,
    "pwcca": pwcca,
    "rsa": rsa,
    "rsa_spearman": rsa_spearman,
    "rsa_kendall": rsa_kendall,
    "mutual_knn": mutual_knn,
    "jaccard": jaccard,
    "feature_recovery": feature_recovery,
    "mcc": mcc,
    "uniqueness": uniqueness,
}

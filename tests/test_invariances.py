"""Every metric under the maps that its table says it is invariant to, over random data with dead and repeated units."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import superpos as sp

NAMES = tuple(name for name in sp.metrics.names() if not name.startswith("cumulant_"))  # need samples: test_cumulants.py
OF_UNITS = {
    *("semi_match", "soft_match", "permutation_match", "partial_soft_match", "soft_match_distance", "jaccard"),
    *("feature_recovery", "mcc", "uniqueness", "ridge", "nnls"),
}
WHITENED = {"whitened_cokurtosis"}
ROTATES = {
    "cokurtosis",
    *WHITENED,
    "cka",
    "debiased_cka",
    "procrustes",
    "procrustes_angular",
    "procrustes_bures",
    "cca",
    "svcca",
    "mutual_knn",
}
INVARIANT = {
    "positive factors of source units": OF_UNITS | WHITENED | {"ols", "cca"},
    "positive factors of target units": OF_UNITS | WHITENED | {"ols", "cca", "pwcca"},
    "one factor for all": set(NAMES) - {"procrustes_bures"},
    "constants": set(NAMES) - {"rsa", "rsa_spearman", "rsa_kendall", "mutual_knn", "jaccard"},
    "order of units": set(NAMES),
    "rotated source": ROTATES | {"ols", "pls"},
    "rotated target": ROTATES | {"pwcca"},
    "mixed source": WHITENED | {"ols", "cca"},
}
# With fewer samples than units a least norm is one of the units at hand, a non-negative fit is not unique, and directions that
# whiten do not exist.
NARROW_ONLY = {"ols", "nnls"}
SIGNED = {"cokurtosis", "whitened_cokurtosis"}  # of few samples, sides may have cumulants of two signs
UNDEFINED = {"cca", "pwcca"}


def sides(seed, n_samples, n_source, n_target):
    """Two sides that share five features; a unit of each is silent, another one repeated."""
    rng = np.random.default_rng(seed)
    latent = rng.exponential(size=(n_samples, 5))
    x, y = (latent @ rng.normal(size=(5, n)) + 0.5 * rng.normal(size=(n_samples, n)) for n in (n_source, n_target))
    x[:, 1], y[:, 2] = x[:, 0], 0
    return x, y


def moved(rng, x, y):
    """Every map of the table, of two sides."""
    factors = [10 ** rng.uniform(-3, 3, v.shape[1]) for v in (x, y)]
    turns = [np.linalg.qr(rng.normal(size=(v.shape[1],) * 2))[0] for v in (x, y)]
    shift = [rng.uniform(-50, 50, v.shape[1]) for v in (x, y)]
    mix = turns[0] * rng.uniform(1, 3, x.shape[1])
    return {
        "positive factors of source units": (x * factors[0], y),
        "positive factors of target units": (x, y * factors[1]),
        "one factor for all": (x * 1e3, y * 1e-3),
        "constants": (x + shift[0], y + shift[1]),
        "order of units": (x[:, rng.permutation(x.shape[1])], y[:, rng.permutation(y.shape[1])]),
        "rotated source": (x @ turns[0], y),
        "rotated target": (x, y @ turns[1]),
        "mixed source": (x @ mix, y),
    }


@pytest.mark.parametrize(("n_samples", "n_folds", "x64"), [(120, 5, False), (36, 3, False), (120, 2, True)])
def test_scores_do_not_change(n_samples, n_folds, x64):
    ids = np.arange(n_samples) % n_folds
    names = [name for name in NAMES if not (name == "mutual_knn" and n_samples // n_folds <= 12)]
    dtype, tolerance = (np.float64, 1e-8) if x64 else (np.float32, 1e-4)
    with jax.enable_x64(x64):
        score = jax.jit(lambda x, y: {name: s.mean for name, s in sp.align(x, y, names, folds=ids).items()})

        wide = n_samples < 40

        @settings(max_examples=2, deadline=None, derandomize=True)
        @given(st.integers(0, 2**31))
        def check(seed):
            rng = np.random.default_rng(seed)
            x, y = sides(seed, n_samples, *((45, 40) if wide else (7, 6)))
            plain = score(x.astype(dtype), y.astype(dtype))
            undefined = {name for name in names if np.isnan(plain[name])}
            assert undefined - SIGNED - {"svcca"} == (UNDEFINED if wide else set())
            names_here = set(names) - {name for name in SIGNED if abs(plain[name]) > 1}  # a ratio of two that are nearly 0
            for kind, (a, b) in moved(rng, x, y).items():
                got = score(a.astype(dtype), b.astype(dtype))
                for name in (INVARIANT[kind] & names_here) - (NARROW_ONLY if wide else set()):
                    np.testing.assert_allclose(got[name], plain[name], atol=tolerance, err_msg=f"{name}: {kind}")

        check()

"""Inputs at the edges that recordings reach: ties, offsets, scales, containers, and nearly nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, rankdata, spearmanr

import superpos as sp
from superpos.rsa import rank_correlation

RANKS = {kind: sp.metrics.RSA(kind, name=kind) for kind in ("spearman", "rho_a", "kendall", "tau_a")}
N = 60
X = np.random.default_rng(0).normal(size=(N, 4))
Y = X @ np.random.default_rng(1).normal(size=(4, 3)) + np.random.default_rng(2).normal(size=(N, 3))


def tau_a(a, b):
    i, j = np.triu_indices(len(a), 1)
    return np.mean(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]))


def rho_a(a, b, n_draws=4000):
    """The mean over random orders of what ties."""
    rng = np.random.default_rng(0)
    n = len(a)
    orders = [[np.argsort(np.lexsort((rng.random(n), v))) for v in (a, b)] for _ in range(n_draws)]
    return np.mean([np.corrcoef(*pair)[0, 1] for pair in orders])


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_rank_correlations_of_what_ties_are_scipys(seed, n_levels):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, n_levels, 40).astype(np.float32) / 7 for _ in range(2))
    b = np.where(rng.random(40) < 0.5, a, b)
    noisy = [v + rng.uniform(-3e-7, 3e-7, 40).astype(np.float32) for v in (a, b)]  # equal formulas, other last digits
    of = jax.jit(rank_correlation, static_argnums=0)
    for kind, expected in (
        ("spearman", spearmanr(a, b).statistic),
        ("kendall", kendalltau(a, b).statistic),
        ("tau_a", tau_a(a, b)),
        ("rho_a", 12 * np.sum((rankdata(a) - 20.5) * (rankdata(b) - 20.5)) / (40**3 - 40)),
    ):
        got = of(kind, *map(jnp.asarray, noisy), jnp.ones(40, bool), (2e-6, 2e-6))
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=kind)


def test_rho_a_is_the_mean_over_orders_of_the_tied():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 12).astype(float), rng.integers(0, 4, 12).astype(float)
    got = rank_correlation("rho_a", jnp.asarray(a), jnp.asarray(b), jnp.ones(12, bool))
    np.testing.assert_allclose(got, rho_a(a, b), atol=0.02)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 3), st.floats(0.1, 5))
def test_patterns_with_equal_distances_are_alike_wherever_they_lie(seed, n_hot, constant):
    x = np.zeros((N, 20), np.float32)
    for row, order in zip(x, np.random.default_rng(seed).permuted(np.tile(np.arange(20), (N, 1)), axis=1), strict=True):
        row[order[:n_hot]] = 1
    scores = sp.align(x, x + np.float32(constant), [RANKS["spearman"], RANKS["kendall"]], folds=None)
    for kind, score in scores.items():
        np.testing.assert_allclose(score.mean, 1, atol=1e-5, err_msg=kind)


@pytest.mark.parametrize("sign", [False, True])
def test_collinear_patterns(sign):
    """Distances are 0, or 0 and 2: a matrix without variation, and one of two values."""
    x = np.outer(np.random.default_rng(0).normal(size=N), np.random.default_rng(1).normal(size=7))
    x = x if sign else np.abs(x)
    scores = sp.align(x, 3 * x + 0.7, [*RANKS.values(), sp.metrics.RSA()], folds=None)
    for kind in ("spearman", "kendall", "rsa"):
        np.testing.assert_allclose(scores[kind].mean, float(sign), atol=1e-5, err_msg=kind)


def test_debiased_cka_is_bounded_and_nan_without_four_samples():
    of = lambda x, y, folds: float(sp.align(x, y, "debiased_cka", folds=folds)["debiased_cka"].mean)  # noqa: E731
    assert of(np.eye(12), np.eye(12), None) == 0  # all equally far apart
    with pytest.warns(RuntimeWarning, match="debiased_cka needs 4 samples in each fold, and is NaN: the smallest has 3"):
        assert np.isnan(of(X[:9], Y[:9], 3))
    for seed in range(20):
        x, y = np.random.default_rng(seed).normal(size=(2, 5, 30))
        assert -1 <= of(x, y, None) <= 1


@pytest.mark.parametrize(
    "name",
    ["ridge", "cka", "soft_match", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ols", "cca", "procrustes"))],
)
def test_offsets_of_double_precision_do_not_matter(name):
    plain = sp.align(X, Y, name)[name].mean
    far = sp.align(X + 1e8, Y - [1e8, 0, 3e9], name)[name].mean
    np.testing.assert_allclose(far, plain, atol=1e-4)
    stamps = np.round(X * 1000).astype(np.int64) + 1_700_000_000_000
    np.testing.assert_allclose(sp.align(stamps, Y, name)[name].mean, plain, atol=2e-3)


def test_maps_are_those_of_the_data_as_it_came():
    (score,) = sp.align(X + 1e6, Y - 1e5, sp.metrics.OLS(weights=True), folds=None).values()
    design = np.c_[X, np.ones(N)]
    weights = np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(score.details["weights"][0], weights[:-1], atol=1e-4)
    np.testing.assert_allclose(score.details["intercept"][0], weights[-1] - 1e5 - weights[:-1].sum(axis=0) * 1e6, rtol=1e-5)


@pytest.mark.slow
def test_intervals_and_null_have_the_same_precision():
    far = X + 1e9
    for of in (lambda x: sp.stats.jackknife(x, Y, "ridge", n_blocks=2), lambda x: sp.stats.permutation_test(x, Y, "ridge")):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), of(far)["ridge"], of(X)["ridge"])


def test_digits_that_single_precision_has_lost_are_told():
    far = (X + 1e5).astype(np.float32)
    with pytest.warns(RuntimeWarning, match=r"source has 4 units whose variation float32 holds to fewer than three digits"):
        sp.align(far, Y, "cka")
    with pytest.warns(RuntimeWarning, match="source has 4 units"):  # rsa is not that of centred units
        sp.align(X + 1e5, Y, ("rsa", "ridge"))


def containers():
    pandas = pytest.importorskip("pandas")
    import xarray

    labels = [f"image {i}" for i in range(N)]
    yield "list", X.tolist()
    yield "big-endian", X.astype(">f4")
    yield "read-only", np.frombuffer(X.astype(np.float32).tobytes(), np.float32).reshape(X.shape)
    yield "not contiguous", np.asfortranarray(np.repeat(X, 2, axis=0))[::2]
    yield "data frame", pandas.DataFrame(X, index=labels)
    yield "nullable", pandas.DataFrame(X).astype("Float64")
    yield "labelled", xarray.DataArray(X, dims=("image", "unit"), coords={"image": labels})
    yield "no mask", np.ma.masked_array(X, np.zeros(X.shape, bool))
    yield "jax", jnp.asarray(X)


def test_containers_are_read_for_what_they_hold():
    plain = sp.align(X, Y, "cka")["cka"].mean
    for name, value in containers():
        np.testing.assert_allclose(sp.align(value, Y, "cka")["cka"].mean, plain, atol=1e-6, err_msg=name)
    for dtype in (np.float16, jnp.bfloat16):
        half = X.astype(dtype)
        expected = sp.align(half.astype(np.float64), Y, "cka")["cka"].mean
        np.testing.assert_allclose(sp.align(half, Y, "cka")["cka"].mean, expected, atol=1e-6)


def test_tensors_are_read_for_what_they_hold():
    torch = pytest.importorskip("torch")
    plain = sp.align(X, Y, "cka")["cka"].mean
    for tensor in (torch.tensor(X, requires_grad=True), torch.tensor(X).bfloat16()):
        np.testing.assert_allclose(sp.align(tensor, Y, "cka")["cka"].mean, plain, atol=1e-2)


def test_containers_that_would_be_read_for_something_else_are_refused():
    pandas = pytest.importorskip("pandas")
    labels = [f"image {i}" for i in range(N)]
    frame, holed = pandas.DataFrame(X, index=labels), pandas.DataFrame(X).astype("Float64")
    holed.iloc[3, 1] = pandas.NA
    for value, message in (
        (np.ma.masked_array(X, X > 2), "source must not have masked entries, got"),
        (scipy.sparse.csr_array(X), "source must be a dense array, got a sparse csr_array: pass its toarray"),
        (holed, "source must be finite in float32, got 1 NaN"),
        (frame.iloc[::-1], "label the same samples in different orders: reindex"),
        (frame.add_prefix("unit ").set_axis([f"trial {i}" for i in range(N)]), "share only 0 of 120 labels"),
        (frame.rename(index={"image 3": "image 1000"}), "share only 59 of 61 labels"),
        (X.astype(complex), "source must hold real numbers"),
        (X.astype(object), "source must hold real numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sp.align(value, pandas.DataFrame(Y, index=labels), "cka")


def test_shuffled_rows_are_refused_beside_numbered_ones():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X)
    sp.align(frame, pandas.DataFrame(Y, index=[f"image {i}" for i in range(N)]), "cka")  # names beside numbers say nothing
    with pytest.raises(ValueError, match="label the same samples in different orders"):
        sp.align(frame, frame.iloc[::-1], "cka")


def test_offsets_of_repeats_and_patterns_do_not_matter():
    rng = np.random.default_rng(0)
    repeats = rng.normal(size=(40, 1, 3)) + rng.normal(size=(40, 4, 3))
    for of in (sp.reliability.split_half, sp.brain.ncsnr, sp.rsa.crossvalidated):
        np.testing.assert_allclose(of(repeats + 1e8), of(repeats), atol=1e-3)
    for distance in ("correlation", "euclidean", "squared"):
        np.testing.assert_allclose(sp.rsa.dissimilarities(X + 1e8, distance), sp.rsa.dissimilarities(X, distance), atol=1e-4)


def test_a_metric_that_depends_on_means_says_that_they_leave_nothing():
    with pytest.raises(ValueError, match="4 units that are constant in float32 beside their means, on which rsa depends"):
        sp.align(X + 1e9, Y, ("cka", "rsa"))


def test_a_comparison_reads_containers_too():
    pandas = pytest.importorskip("pandas")
    labels = [f"image {i}" for i in range(N)]
    settings = {"comparisons": ("neuron->neuron",), "metrics": "semi_match", "n_blocks": None, "split": 0}
    order = np.random.default_rng(0).permutation(N)
    frames = pandas.DataFrame(X, index=labels), pandas.DataFrame(Y, index=labels).iloc[order]
    by_label, plain = (sp.compare(*sides, **settings).summary()[0]["mean"] for sides in (frames, (X, Y)))
    assert by_label == pytest.approx(plain, abs=1e-5)  # samples are paired by their labels
    for value, message in (
        (np.ma.masked_array(X, X > 2), "source must not have masked entries"),
        (scipy.sparse.csr_array(X), "source must be a dense array"),
    ):
        with pytest.raises(ValueError, match=message):
            sp.compare(value, Y, **settings)
    with pytest.warns(RuntimeWarning, match="source has 4 units whose variation float32 holds"):
        sp.compare(X + 1e6, Y, **settings)


@pytest.mark.parametrize(
    "read", [lambda x: sp.selectivity.d_prime(x, np.arange(N) % 2, 2), lambda x: sp.reliability.split_half(x[:, None])]
)
def test_other_functions_refuse_masks(read):
    with pytest.raises(ValueError, match="must not have masked entries"):
        read(np.ma.masked_array(X, X > 2))


@pytest.mark.slow
def test_nearly_nothing():
    """A unit that varies by next to nothing, one unit a side, and as few samples as there can be."""
    faint = np.c_[X, 7e-9 * np.random.default_rng(3).normal(size=N)]
    for name in ("ridge", "cka", "procrustes", "soft_match", "rsa"):
        score = float(sp.align(faint, Y, name)[name].mean)
        assert np.isfinite(score), name
        if name in ("cka", "procrustes"):
            np.testing.assert_allclose(score, sp.align(X, Y, name)[name].mean, atol=1e-5)
    r = np.corrcoef(X[:, 0], Y[:, 0])[0, 1]
    for name in ("semi_match", "ols", "cca"):
        score = sp.align(X[:, :1], Y[:, :1] * np.sign(r), name, folds=None)[name].mean
        np.testing.assert_allclose(score, abs(r), atol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="source has 5 scored samples in 5 folds, one of which has 1: use fewer folds"):
        sp.align(X[:5], Y[:5], "ridge", folds=5)
    assert float(sp.align(X[:2], Y[:2], "semi_match", folds=None)["semi_match"].mean) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_rotation_is_no_distance(n):
    """Down to rounding, not to its root."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(200, n)).astype(np.float32)
    turned = (x @ np.linalg.qr(rng.normal(size=(n, n)))[0]).astype(np.float32)
    assert sp.align(x, turned * 2 + 1, "procrustes_angular")["procrustes_angular"].mean < 1e-5
    assert sp.align(x, turned, "procrustes_bures")["procrustes_bures"].mean < 1e-5 * np.sqrt(n)
    order = rng.permutation(n)
    assert sp.align(x, 3 * x[:, order] - 1, "soft_match_distance")["soft_match_distance"].mean < 1e-5

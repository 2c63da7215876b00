"""What all metrics promise: see test_agreement.py for their values, and a file of its own for what is special to a family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import REFERENCES

import superpos as sp

NAMES = sp.metrics.names()
CONFIGURED = {
    "pls": sp.metrics.PLS(n_components=3),  # with all components it is OLS
    "cumulant_cca": sp.metrics.CumulantCCA(n_features=(3, 3)),  # few samples do not tell how many
}
METRICS = [CONFIGURED.get(name, name) for name in NAMES]
MAPPED = tuple(name for name in NAMES if not name.startswith("cumulant_"))  # need samples: test_cumulants.py
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
    "one factor for all": set(MAPPED) - {"procrustes_bures"},
    "constants": set(MAPPED) - {"rsa", "rsa_spearman", "rsa_kendall", "mutual_knn", "jaccard"},
    "order of units": set(MAPPED),
    "rotated source": ROTATES | {"ols", "pls"},
    "rotated target": ROTATES | {"pwcca"},
    "mixed source": WHITENED | {"ols", "cca"},
}
# With fewer samples than units a least norm is one of the units at hand, a non-negative fit is not unique, and directions that
# whiten do not exist.
NARROW_ONLY = {"ols", "nnls"}
SIGNED = {"cokurtosis", "whitened_cokurtosis"}  # of few samples, sides may have cumulants of two signs
UNDEFINED = {"cca", "pwcca"}


# A metric without a reference is held to what all promise; one with a reference to the table of invariances, too.
SCALE_INVARIANT = INVARIANT["positive factors of source units"] & INVARIANT["positive factors of target units"]
ROTATION_INVARIANT = INVARIANT["rotated source"] & INVARIANT["rotated target"]


def scored(x, y):
    """Scores of each fold; all problems here are padded to 9 and 7 units, so that they are compiled once."""
    x = np.pad(x, ((0, 0), (0, 9 - x.shape[1])))
    scores = sp.align(x.astype(np.float32), y.astype(np.float32), metrics=METRICS, folds=np.arange(403) % 5)
    return {name: np.asarray(score.folds) for name, score in scores.items()}


@pytest.fixture(scope="module")
def pair(sides):
    """Seven live units on each side, no two of them alike."""
    rng = np.random.default_rng(1)
    x, y = sides[0][:, [0, 1, 2, 4, 6, 7, 8]], sides[1].copy()
    y[:, [1, 6]] = (x @ rng.normal(size=(7, 2)) + rng.normal(size=(403, 2))).astype(np.float32)
    return x, y


@pytest.fixture(scope="module")
def plain(pair):
    return scored(*pair)


def related(seed, n_samples, n_source, n_target):
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


@pytest.mark.parametrize(
    ("n_samples", "n_folds", "x64"),
    [(403, 5, False), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((36, 3, False), (120, 2, True)))],
)
def test_scores_do_not_change_under_the_maps_of_the_table(n_samples, n_folds, x64):
    names = [name for name in MAPPED if not (name == "mutual_knn" and n_samples // n_folds <= 12)]
    dtype, tolerance, wide = np.float64 if x64 else np.float32, 1e-8 if x64 else 1e-4, n_samples < 40

    @jax.jit
    def means(x, y):
        return {name: s.mean for name, s in sp.align(x, y, names, folds=np.arange(n_samples) % n_folds).items()}

    def score(x, y):
        if n_samples == 403:  # whose program is that of other tests
            return {name: folds.mean() for name, folds in scored(x, y).items()}
        return means(x.astype(dtype), y.astype(dtype))

    @settings(max_examples=2, deadline=None, derandomize=True)
    @given(st.integers(0, 2**31))
    def check(seed):
        rng = np.random.default_rng(seed)
        x, y = related(seed, n_samples, *((45, 40) if wide else (7, 7)))
        plain = score(x, y)
        undefined = {name for name in names if np.isnan(plain[name])}
        assert undefined - SIGNED - {"svcca"} == (UNDEFINED if wide else set())
        names_here = set(names) - {name for name in SIGNED if abs(plain[name]) > 1}  # a ratio of two that are nearly 0
        for kind, (a, b) in moved(rng, x, y).items():
            got = score(a, b)
            for name in (INVARIANT[kind] & names_here) - (NARROW_ONLY if wide else set()):
                np.testing.assert_allclose(got[name], plain[name], atol=tolerance, err_msg=f"{name}: {kind}")

    with jax.enable_x64(x64):
        check()


def test_other_transformations_change_scores(pair, plain):
    """The table of invariances is not larger than it says."""
    rng = np.random.default_rng(0)
    scaled = scored(*(side * rng.uniform(0.2, 5, 7) for side in pair))
    turned = scored(*(side @ np.linalg.qr(rng.normal(size=(7, 7)))[0] for side in pair))
    for name in REFERENCES:
        assert name in SCALE_INVARIANT or not np.allclose(scaled[name], plain[name], atol=1e-3), name
        assert name in ROTATION_INVARIANT or not np.allclose(turned[name], plain[name], atol=1e-3), name


def test_alignment_with_itself_is_perfect(pair):
    folds = scored(pair[0], pair[0])
    # Three components do not hold seven units, and few units resemble all of them less than they do themselves.
    for name in REFERENCES.keys() - {"pls", "sampled_cka"}:
        values = folds[name]
        distance = sp.metrics.resolve(name)[0].distance
        np.testing.assert_allclose(values, 0 if distance else 1, atol=1e-4, err_msg=name)


def test_symmetric_metrics_are_symmetric(pair, plain):
    swapped = scored(*pair[::-1])
    for metric in sp.metrics.resolve(METRICS):
        if metric.symmetric:
            np.testing.assert_allclose(swapped[metric.name], plain[metric.name], atol=2e-4, rtol=1e-4, err_msg=metric.name)
        elif metric.name in REFERENCES:
            assert not np.allclose(swapped[metric.name], plain[metric.name], atol=1e-3), metric.name


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e3]))
def test_scores_stay_within_bounds(seed, scale):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(403, 1)) * rng.exponential()
    x, y = (scale * (shared + rng.normal(size=(403, n)) * rng.exponential(size=n)) for n in (9, 7))
    scores = scored(x, y)
    for name in REFERENCES.keys() - {"sampled_cka"}:  # which is not cut
        folds = scores[name]
        high = {"procrustes_angular": np.pi, "soft_match_distance": 2, "procrustes_bures": np.inf}.get(name, 1)
        low = 0 if name in ("cka", "mutual_knn", "jaccard", "mcc", "uniqueness") or high > 1 else -1
        assert (folds >= low - 1e-6).all(), name
        assert (folds <= high + 1e-6).all(), name


def test_noise_stays_at_zero():
    """Of every score whose chance level is zero."""
    x, y = np.random.default_rng(0).normal(size=(2, 403, 7))
    folds = scored(x, y)
    names = ("semi_match", "soft_match", "permutation_match", "partial_soft_match", "ridge", "ols", "nnls", "pls")
    for name in (*names, "debiased_cka", "procrustes", "cca", "rsa"):
        assert abs(folds[name].mean()) < 4 / np.sqrt(403 * 7), name


def test_a_rotation_lowers_matching_but_not_the_others():
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(403, 7))
    folds = scored(z, z @ np.linalg.qr(rng.normal(size=(7, 7)))[0])
    for name in ("semi_match", "soft_match", "permutation_match", "partial_soft_match"):
        assert folds[name].mean() < 0.9, name
    for name in ("ridge", "ols", "cka", "procrustes", "cca"):
        np.testing.assert_allclose(folds[name], 1, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("scale", [1e-11, 1e10])
def test_scores_do_not_depend_on_the_units_of_measurement(pair, plain, scale):
    for scaled in ((pair[0] * scale, pair[1]), (pair[0], pair[1] * scale)):
        folds = scored(*scaled)
        for name in REFERENCES.keys() - {"procrustes_bures", "pls"}:
            np.testing.assert_allclose(folds[name], plain[name], atol=2e-4, err_msg=name)


def test_lanes_of_a_vmap_are_the_problems_alone(pair, plain):
    names = (*FEW, "nnls", "mutual_knn")
    ids = np.arange(403) % 5
    lanes = jax.jit(jax.vmap(lambda x: sp.align(x, pair[1], metrics=names, folds=ids)))(np.stack([pair[0][::-1], pair[0]]))
    for name in names:
        np.testing.assert_allclose(lanes[name].folds[1], plain[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_moment_form_and_gram_form_agree():
    """With more units than samples `align` takes the Gram form; moments fed by hand stay what they are."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(60, 8))
    x, y = (latent @ rng.normal(size=(8, n)) + rng.normal(size=(60, n)) for n in (75, 65))
    x[:, 4] = 1
    ids = np.arange(60) % 5
    ridge = sp.metrics.Ridge(weights=True), sp.metrics.Ridge(selection="gcv", per_target=True, weights=True, name="gcv")
    linear = sp.metrics.OLS(weights=True), sp.metrics.PLS(3, weights=True)
    metrics = [*ridge, *linear, "cka", "procrustes", "procrustes_bures", sp.metrics.CCA(variance=0.6)]
    moments = sp.moments.update(sp.moments.init(75, 65, 5), x, y, ids)
    by_moments = jax.jit(lambda m: sp.score(m, metrics))(moments)
    by_gram = sp.align(x, y, metrics=metrics, folds=ids)
    for name, score in by_gram.items():
        np.testing.assert_allclose(score.folds, by_moments[name].folds, atol=2e-4, rtol=1e-4, err_msg=name)
        for part in {"weights", "intercept", "alpha", "r2"} & (set(score.details) if name != "cca" else set()):
            np.testing.assert_allclose(score.details[part], by_moments[name].details[part], atol=2e-3, err_msg=f"{name} {part}")
    for name in ("ridge", "gcv"):  # one of the candidates, not a neighbour that rounding has chosen
        np.testing.assert_array_equal(by_gram[name].details["alpha"], by_moments[name].details["alpha"])


SMOOTH = [metric for metric in sp.metrics.resolve(NAMES) if metric.differentiable]
FEW = ["soft_match", "ridge", "procrustes", "cca", "rsa"]  # one of each kind of computation
# Not of so few units: see test_cumulants.py and test_geometry.py.
ALL_AT_ONCE = [metric for metric in SMOOTH if not metric.name.startswith(("cumulant_", "sampled_"))]


@pytest.mark.parametrize("names", [FEW, pytest.param(None, marks=pytest.mark.slow)], ids=["few", "all"])
def test_gradients_are_those_of_finite_differences(names):
    """Of every metric, with a unit on each side that is dead; finite where sides are equal, and where patterns are constant."""
    several = sp.metrics.resolve(names) if names else ALL_AT_ONCE
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(90, 5))
    y = x[:, :3] @ rng.normal(size=(3, 5)) + rng.exponential(size=(90, 5))
    x, y = np.c_[x, np.full(90, 2.0)], np.c_[y, np.zeros(90)]
    moves = [rng.normal(size=v.shape) * (np.ptp(v, axis=0) > 0) for v in (x, y)]
    with jax.enable_x64(True):

        def means(x, y):
            scores = sp.align(x, y, several, folds=np.arange(90) % 3)
            return (stacked := jnp.stack([scores[metric.name].mean for metric in several])), stacked

        gradients = jax.jit(jax.jacrev(means, (0, 1), has_aux=True))  # one program for all, for it is large
        found, of_equal, of_constant = (
            gradients(*sides)[0] for sides in ((x, y), (x, x), (np.where(np.arange(90)[:, None] < 12, 1.0, x), y))
        )
        ends = [gradients(*(v + sign * 1e-5 * move for v, move in zip((x, y), moves, strict=True)))[1] for sign in (1, -1)]
    slopes = sum(np.sum(np.asarray(of_side) * move, axis=(1, 2)) for of_side, move in zip(found, moves, strict=True))
    for metric, slope, after, before in zip(several, slopes, *ends, strict=True):
        np.testing.assert_allclose(slope, (after - before) / 2e-5, rtol=1e-5, atol=1e-8, err_msg=metric.name)
        assert slope != 0, metric.name
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(np.isfinite(leaf), True), (found, of_equal, of_constant))


@pytest.mark.slow
def test_gradients_of_more_units_than_samples_are_those_of_finite_differences():
    """Of what reads principal components, where all of them have one variance."""
    x, y = np.eye(12, 20), np.random.default_rng(0).normal(size=(12, 15))
    move = np.random.default_rng(1).normal(size=x.shape)
    with jax.enable_x64(True):
        score = jax.jit(lambda x: jnp.stack([s.mean for s in sp.align(x, y, ("cka", "procrustes"), folds=None).values()]))
        gradient = jax.jit(jax.jacrev(score))(x)
        numeric = (score(x + 1e-5 * move) - score(x - 1e-5 * move)) / 2e-5
    np.testing.assert_allclose(np.sum(gradient * move, axis=(1, 2)), numeric, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "jaccard" else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
        if not sp.metrics.resolve(name)[0].differentiable
    ],
)
def test_what_has_no_gradient_says_so(name):
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    score = lambda a: sp.align(a, x, (name, "semi_match"), folds=None)  # noqa: E731
    with pytest.raises(ValueError, match=f"{name} has no gradient: it counts or ranks"):
        jax.grad(lambda a: score(a)[name].mean)(x)
    with pytest.raises(ValueError, match=f"{name} has no gradient"):
        jax.grad(lambda a: score(a)[name].folds.sum())(x)
    assert np.isfinite(jax.jvp(lambda a: score(a)["semi_match"].mean, (x,), (x,))[1])
    assert np.isfinite(jax.grad(lambda a: score(a)["semi_match"].mean)(x)).all()  # another one's beside it


def test_metrics_are_hashable_and_named():
    assert len({sp.metrics.Ridge(), sp.metrics.Ridge(), sp.metrics.Ridge(per_target=True)}) == 2
    both = sp.metrics.resolve(["ridge", sp.metrics.Ridge(per_target=True, name="each")])
    assert [metric.name for metric in both] == ["ridge", "each"]
    assert [metric.name for metric in sp.metrics.resolve(NAMES)] == list(NAMES)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("nonsense", "is called 'nonsense'"),
        (["ridge", sp.metrics.Ridge()], "'ridge' twice"),
        ([], "empty"),
        ([3], "got 3"),
        (sp.metrics.Ridge, "got <class"),
    ],
)
def test_bad_metrics(metrics, message):
    with pytest.raises(ValueError, match=message):
        sp.metrics.resolve(metrics)


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        ("Ridge", {"alphas": ()}),
        ("Ridge", {"alphas": (0.0, 1.0)}),
        ("Ridge", {"alphas": (np.nan,)}),
        ("Ridge", {"selection": "loo"}),
        ("PLS", {"n_components": 0}),
        ("PLS", {"n_components": 2.5}),
        ("OLS", {"rcond": -1}),
        ("PartialSoftMatch", {"mass": 0.0}),
        ("PartialSoftMatch", {"mass": 1.1}),
        ("Procrustes", {"kind": "cosine"}),
        ("CCA", {"variance": 0.0}),
        ("CCA", {"n_components": 0}),
        ("RSA", {"kind": "cosine"}),
        ("MutualKNN", {"k": 0}),
        ("CumulantCKA", {"components": 0}),
        ("CumulantCCA", {"n_features": (0, 3)}),
    ],
)
def test_bad_settings(metric, settings):
    with pytest.raises(ValueError, match="must be"):
        getattr(sp.metrics, metric)(**settings)


@pytest.mark.slow
def test_nothing_calls_the_host(sides, fold_ids):
    jaxpr = str(jax.make_jaxpr(lambda x, y: sp.align(x, y, metrics=NAMES, folds=fold_ids))(*sides))
    assert "callback" not in jaxpr

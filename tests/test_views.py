"""Views: what all of them promise, and what each is known to do."""

import dataclasses
import functools
import pickle
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import superpos as sp
from superpos import views
from superpos.views import VIEWS, Rows
from superpos.views.base import which

N_UNITS, N_FEATURES, N_SAMPLES = 6, 8, 64
RNG = np.random.default_rng(0)
Z = jnp.asarray(np.where(RNG.random((N_SAMPLES, N_FEATURES)) < 0.4, RNG.random((N_SAMPLES, N_FEATURES)), 0), jnp.float32)
A = jnp.asarray(RNG.normal(size=(N_FEATURES, N_UNITS)), jnp.float32)
X = Z @ A  # samples that fit views
HELD_OUT = jnp.asarray(RNG.normal(size=(N_SAMPLES, N_UNITS)), jnp.float32)
TRUTH = Rows(Z)
KEYS = jax.random.split(jax.random.key(1), 2)
PLAIN = {"normalize": "none", "bias": "zero", "dead": "none"}  # compiles in half the time
SAE = views.SAE(expansion=2, k=2, steps=3, batch_size=8, options=PLAIN)
VANILLA = sp.sae.Vanilla(N_UNITS, 10, **PLAIN, l1=0.1)
LOADED = views.Loaded(VANILLA, VANILLA.init(jax.random.key(5)))


def square(x):
    return x**2


# Fast ones; what the others read of an SAE has a test of its own.
SETTINGS = {
    "topk_pca": {"k": 2},
    "ica": {"max_iter": 1},  # of Gaussian samples it does not converge: rounding grows from step to step
    "cumulant": {"n_features": 3, "polish": 2, "steps": 10},
    "sae": {name: getattr(SAE, name) for name in ("expansion", "k", "steps", "batch_size", "options")},
    "random_sae": {"of": LOADED, "k": 2},
    "reconstruction": {"of": views.TopKPCA(k=2)},
    "both": {"of": views.PCA()},
    "top": {"of": views.PCA(), "m": 3},
    "loaded": {"autoencoder": VANILLA, "params": LOADED.params},
    "oracle": {"arrangement": A, "truth": TRUTH, "steps": 10, "penalties": (0.03, 0.3), "ridge_ratios": (0.0, 1.0)},
    "supervised": {"truth": TRUTH, "width": 8, "steps": 3, "batch_size": 8},
    "given": {"function": square},
}
SMALL = {name: view(**SETTINGS.get(name, {})) for name, view in VIEWS.items()}
BY_IDENTITY = ("loaded", "random_sae", "oracle", "supervised")  # they hold arrays, or what does


def correlations(x, y):
    return np.corrcoef(np.asarray(x, np.float64).T, np.asarray(y, np.float64).T)[: x.shape[1], x.shape[1] :]


@functools.cache
def fitted(view):
    """Fits of two keys, in one program."""
    params = jax.jit(jax.vmap(lambda key: view.fit(key, Rows(X))))(KEYS)
    return [jax.tree.map(lambda leaf: leaf[i], params) for i in range(2)]  # noqa: B023


def keeps_the_promises(view):
    """What is read off fits of two keys in one program, and of one alone."""
    fits = fitted(view)
    alone = view.fit(KEYS[0], Rows(X))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), fits[0], alone)

    encode = jax.jit(view.encode)
    units = [np.asarray(encode(fit, HELD_OUT)) for fit in fits]
    np.testing.assert_allclose(units[0], view.encode(fits[0], HELD_OUT), rtol=1e-4, atol=1e-5)
    assert units[0].shape == (N_SAMPLES, view.size(N_UNITS)) == (N_SAMPLES, views.View.size(view, N_UNITS))
    assert (np.abs(units[0] - units[1]).max() > 1e-3) == view.random

    # Row by row: other samples do not matter, and one that is not known is not read as one that is.
    half = N_SAMPLES // 2
    other = np.asarray(encode(fits[0], HELD_OUT.at[half:].multiply(-3).at[0].set(jnp.nan)))
    np.testing.assert_allclose(other[1:half], units[0][1:half], rtol=1e-4, atol=1e-5)
    assert np.isnan(other[0]).all()
    assert not np.isnan(other[1:]).any()

    described = jax.eval_shape(view.describe, fits[0], HELD_OUT)
    assert all(value.ndim == 0 for value in described.values())
    doubts = view.doubts({name: 0.0 for name in described})
    assert all(doubt[0].isupper() and doubt.endswith(".") for doubt in doubts)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_pure_and_reads_row_by_row(name):
    keeps_the_promises(SMALL[name])


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_lowers_for_accelerators(name):
    view = SMALL[name]
    read = jax.jit(jax.vmap(lambda key: view.encode(view.fit(key, Rows(X)), HELD_OUT)))
    exported = jax.export.export(read, platforms=("cuda", "tpu"))(KEYS)
    assert exported.out_avals[0].shape == (2, N_SAMPLES, view.size(N_UNITS))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_a_small_value(name):
    view = SMALL[name]
    hash(view)
    again = pickle.loads(pickle.dumps(view))
    assert (again == view) == (name not in BY_IDENTITY)
    again.check(N_UNITS)
    assert re.match(rf"{type(view).__name__}\(.*\)$", repr(view))
    assert len(repr(view)) < 700
    assert jax.tree.unflatten(jax.tree.structure(view), jax.tree.leaves(view)).label == view.label != ""


def test_figures_tell_views_apart():
    for looks in ("label", "colour", "marker"):
        assert len({getattr(view, looks) for view in VIEWS.values()}) == len(VIEWS), looks


def test_an_autoencoder_is_trained_once_for_all_views_of_it(monkeypatch):
    fits, fit = [], views.SAE._fit
    monkeypatch.setattr(views.SAE, "_fit", lambda *args: fits.append(1) or fit(*args))
    of_it = {"random_sae": views.Untrained, "reconstruction": views.Reconstruction, "both": views.Both, "top": views.Top}
    several = (
        SMALL | {name: view(SAE) for name, view in of_it.items()} | {"top_of_pca": views.Top(views.PCA(n_components=4), m=3)}
    )
    params = jax.eval_shape(lambda key: views.fit_all(several, key, Rows(X)), jax.random.key(0))
    assert len(fits) == 1
    assert params.keys() == {*several, "top_of_pca.of"}
    read = jax.eval_shape(functools.partial(views.encode_all, several), params, HELD_OUT)
    assert {name: units.shape[1] for name, units in read.items()} == {
        name: view.size(N_UNITS) for name, view in several.items()
    }


def test_a_further_view_changes_none_of_the_others(key):
    some = {"rotation": views.Rotation(), "top": views.Top(views.Rotation(), m=2)}
    found = [
        views.encode_all(chosen, views.fit_all(chosen, key, Rows(X)), HELD_OUT)
        for chosen in (some, {"pca": views.PCA(), **some})
    ]
    for name in some:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert set(map(bytes, np.asarray(found[0]["top"].T))) < set(map(bytes, np.asarray(found[0]["rotation"].T)))


def test_sources_of_one_key_give_the_same_samples(key):
    few, many, endless = Rows(X), Rows(jnp.tile(X, (2, 1))), lambda key, n: jax.random.normal(key, (n, N_UNITS))
    np.testing.assert_array_equal(few(*which(few, key, n=N_SAMPLES)), X)
    np.testing.assert_array_equal(many(*which(many, key, n=9)), many(*which(many, jax.random.key(7), n=9)))
    np.testing.assert_array_equal(many(*which(many, key, n=9, every=True)), many.array)
    np.testing.assert_array_equal(Rows(2 * X)(key, 9), 2 * Rows(X)(key, 9))
    assert endless(*which(endless, key, n=9)).shape == (9, N_UNITS)
    np.testing.assert_array_equal(endless(*which(endless, key, key, n=9)), endless(key, 9))


# What each is known to do.


def test_layer_norm_is_that_of_numpy():
    x = np.asarray(HELD_OUT, np.float64)
    expected = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    np.testing.assert_allclose(SMALL["layer_norm"].encode({}, HELD_OUT), expected, atol=1e-5)
    assert not np.any(views.LayerNorm().encode({}, jnp.full((2, 3), 0.1)))


def test_rotations_are_orthogonal_and_uniform():
    keys = jax.random.split(jax.random.key(3), 2000)
    q = np.asarray(jax.jit(jax.vmap(lambda key: views.Rotation().fit(key, Rows(X), 3)["rotation"]))(keys))
    np.testing.assert_allclose(q @ q.transpose(0, 2, 1), np.broadcast_to(np.eye(3), q.shape), atol=1e-5)
    # Of Haar's measure: entries of mean 0 and variance 1/n, and as many reflections as rotations.
    np.testing.assert_allclose(q.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(q.var(axis=0), 1 / 3, atol=0.04)
    assert abs(np.linalg.det(q).mean()) < 0.1
    assert abs(np.trace(q, axis1=1, axis2=2).var() - 1) < 0.15


def test_components_are_those_of_scikit_learn(key):
    from sklearn.decomposition import PCA

    for whiten in (False, True):
        reference = PCA(whiten=whiten).fit(X)
        view = views.PCA(whiten=whiten)
        params = view.fit(key, Rows(X))
        expected = reference.transform(np.asarray(HELD_OUT)) * np.where(
            np.take_along_axis(reference.components_, np.abs(reference.components_).argmax(axis=1)[:, None], 1) < 0, -1, 1
        ).reshape(1, -1)
        np.testing.assert_allclose(view.encode(params, HELD_OUT), expected, atol=1e-3)
        np.testing.assert_allclose(view.reconstruct(params, HELD_OUT), HELD_OUT, atol=1e-4)
    view = views.PCA(n_components=2)
    described = view.describe(view.fit(key, Rows(X)), X)
    np.testing.assert_allclose(described["explained"], PCA(2).fit(X).explained_variance_ratio_.sum(), atol=1e-4)


def test_components_without_variance_lose_nothing_unless_they_are_whitened(key):
    few = Rows(X[:3])  # two directions vary
    plain, white = (views.PCA(whiten=whiten).fit(key, few) for whiten in (False, True))
    lengths = np.linalg.norm(views.PCA().encode(plain, HELD_OUT), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(HELD_OUT - X[:3].mean(axis=0), axis=1), rtol=1e-4)
    assert (np.asarray(views.PCA(whiten=True).encode(white, HELD_OUT)) != 0).any(axis=0).sum() == 2


@pytest.mark.parametrize("expansion", [0.2, 1.0, 1.5, 4.0])
def test_signed_components_are_those_of_scikit_learn_split_by_sign(key, expansion):
    from sklearn.decomposition import PCA

    view = views.SignedPCA(expansion=expansion)
    found = np.asarray(view.encode(view.fit(key, Rows(X)), HELD_OUT))
    projected = PCA(min(N_UNITS, max(1, round(expansion * N_UNITS) // 2))).fit(X).transform(HELD_OUT)
    expected = np.concatenate([np.maximum(projected, 0), np.maximum(-projected, 0)], axis=1)
    assert found.shape == expected.shape == (N_SAMPLES, view.size(N_UNITS))
    n = found.shape[1] // 2
    for i in range(n):  # a sign is free: it swaps the two halves of a component
        pair = expected[:, [i, n + i]]
        swapped = pair if found[:, i] @ pair[:, 0] > found[:, i] @ pair[:, 1] else pair[:, ::-1]
        np.testing.assert_allclose(found[:, [i, n + i]], swapped, atol=1e-4)
    assert views.PCA(expansion=expansion, signed=True).size(N_UNITS) == view.size(N_UNITS)


def test_the_largest_components_are_the_best_k_terms(key):
    pca, signed = views.PCA(), views.PCA(signed=True)
    params = pca.fit(key, Rows(X))
    of_all = np.asarray(pca.encode(params, HELD_OUT))
    weights = views.TopKPCA(pca, k=2).weights({"base": params, "own": {}})
    found = np.asarray(views.TopKPCA(pca, k=2).apply(weights, HELD_OUT))
    assert ((found != 0).sum(axis=1) == 2).all()
    # No other two components of an orthonormal basis are nearer: their squares are the largest.
    np.testing.assert_allclose((found**2).sum(axis=1), np.sort(of_all**2, axis=1)[:, -2:].sum(axis=1), rtol=1e-5)
    halves = np.asarray(views.TopKPCA(signed, k=2).apply(weights, HELD_OUT))
    np.testing.assert_allclose(halves[:, :N_UNITS] - halves[:, N_UNITS:], found)
    described = views.TopKPCA(pca, k=2).describe({"base": params, "own": {}}, HELD_OUT)
    left = ((of_all - found) ** 2).sum() / ((HELD_OUT - HELD_OUT.mean(axis=0)) ** 2).sum()
    np.testing.assert_allclose(described["explained"], 1 - left, rtol=1e-4)
    assert described["l0"] == 2


@pytest.mark.parametrize("fun", ["logcosh", "cube"])
def test_independent_components_are_those_of_scikit_learn_and_of_the_world(fun):
    from sklearn.decomposition import FastICA

    rng = np.random.default_rng(0)
    sources = rng.laplace(size=(5000, N_UNITS)).astype(np.float32)
    x = sources @ rng.normal(size=(N_UNITS, N_UNITS)).astype(np.float32) + 3
    view = views.ICA(fun=fun, tolerance=1e-6)
    params = jax.jit(lambda key: view.fit(key, Rows(x)))(jax.random.key(2))
    found = np.asarray(view.encode(params, jnp.asarray(x)))
    assert params["converged"]
    assert view.doubts(view.describe(params, jnp.asarray(x))) == []
    np.testing.assert_allclose(np.cov(found.T), np.eye(N_UNITS), atol=2e-3)
    assert (np.mean(found**3, axis=0) >= -1e-3).all()
    reference = FastICA(fun=fun, whiten="unit-variance", random_state=0, tol=1e-6, max_iter=500).fit_transform(x)
    for other, least in ((reference, 0.999), (sources, 0.95)):
        r = np.abs(correlations(found, other))
        assert (r.max(axis=0) > least).all()
        assert (r.max(axis=1) > least).all()


def test_independent_components_leave_out_what_does_not_vary(key):
    rng = np.random.default_rng(1)
    x = rng.laplace(size=(500, 3)).astype(np.float32) @ rng.normal(size=(3, N_UNITS)).astype(np.float32)
    view = views.ICA(signed=True)
    found = np.asarray(view.encode(view.fit(key, Rows(x)), jnp.asarray(x)))
    assert found.shape == (500, 2 * N_UNITS)
    assert (found >= 0).all()
    assert (found.var(axis=0) > 0.1).sum() == 2 * 3


def test_fits_are_doubted():
    view = SMALL["ica"]
    described = view.describe(fitted(view)[0], HELD_OUT)
    assert described["iterations"] == 1
    assert view.doubts(described)[0].startswith("The fit of ICA did not converge in 1 iterations")
    assert view.doubts({"converged": np.array([0.0, 1.0])})[0].startswith("1 of 2 fits of ICA")
    assert "none of the variance" in SAE.doubts({"dead": 0.1, "explained": -1.0})[0]
    assert SAE.doubts({"dead": np.array([0.9, 0.7]), "explained": 0.5})[0].startswith("80% of the SAE latents")
    assert SAE.doubts({"dead": 0.1, "explained": 0.5}) == []


def test_top_takes_the_units_that_vary_most_or_match_best(key):
    x = HELD_OUT * jnp.array([1.0, 5.0, 2.0, 0.0, 4.0, 3.0])
    view = views.Top(m=3)
    np.testing.assert_array_equal(view.encode(view.fit(key, Rows(x)), x), x[:, [1, 4, 5]])
    matching = views.Top(m=2, by="alignment", target=Rows(-x[:, [2, 0]] + 0.01 * x[:, 4:]))
    assert set(np.asarray(matching.fit(key, Rows(x))["own"]["chosen"]).tolist()) == {0, 2}


def test_views_of_an_autoencoder_read_its_fit():
    some = {"sae": SAE, "random": views.Untrained(SAE), "rest": views.Reconstruction(SAE), "both": views.Both(SAE)}
    fits = {"sae": fitted(SAE)[0], "random": {}, "rest": {}, "both": {}}
    read = jax.jit(functools.partial(views.encode_all, some))(fits, HELD_OUT)
    sae, trained, start = SAE.sae(N_UNITS), fits["sae"]["trained"], fits["sae"]["untrained"]
    np.testing.assert_allclose(read["sae"], sae.encode(trained, HELD_OUT), atol=1e-5)
    np.testing.assert_allclose(read["random"], sae.encode(start, HELD_OUT), atol=1e-5)
    np.testing.assert_allclose(read["rest"], sae.decode(trained, read["sae"]), atol=1e-5)
    np.testing.assert_array_equal(read["both"], jnp.concatenate([read["sae"], HELD_OUT], axis=1))
    np.testing.assert_allclose(start["W_enc"], sae.init(KEYS[0])["W_enc"], atol=1e-6)
    assert np.abs(trained["W_enc"] - start["W_enc"]).max() > 1e-3
    described = SAE.describe(fits["sae"], HELD_OUT)
    left = ((read["rest"] - HELD_OUT) ** 2).sum() / ((HELD_OUT - HELD_OUT.mean(axis=0)) ** 2).sum()
    np.testing.assert_allclose(described["explained"], 1 - left, rtol=1e-4)
    np.testing.assert_allclose(described["l0"], (read["sae"] > 0).sum(axis=1).mean(), rtol=1e-5)
    # Before and after training are one program.
    programs = [str(jax.make_jaxpr(some[name].apply)(start, HELD_OUT)) for name in ("sae", "random")]
    assert programs[0] == programs[1]


def test_training_takes_as_many_rows_as_it_is_told(key, monkeypatch):
    drawn = []
    monkeypatch.setattr(sp.training, "start", lambda sae, key, batch: batch())
    monkeypatch.setattr(sp.training, "fit", lambda sae, key, draw, **_: drawn.append(draw(None, None)) or (None, None))
    dataclasses.replace(SAE, share=0.25).fit(key, Rows(X))
    np.testing.assert_array_equal(drawn[0], X[: N_SAMPLES // 4])


def test_a_loaded_autoencoder_and_its_control(key, tmp_path):
    params = VANILLA.init(key) | {"b_enc": jnp.full(10, -0.5)}
    sp.sae.save(tmp_path / "sae", VANILLA, params)
    loaded = views.Loaded(tmp_path / "sae")
    np.testing.assert_array_equal(loaded.encode(loaded.fit(key, Rows(X)), HELD_OUT), VANILLA.encode(params, HELD_OUT))
    assert repr(loaded).startswith("Loaded(autoencoder=Vanilla(")
    assert str(tmp_path) in repr(loaded)

    some = {"loaded": loaded, "random": views.Untrained(loaded), "rest": views.Reconstruction(loaded), "top": views.Top(loaded)}
    some = views.prepare_all(some, Rows(X))
    l0 = float((np.asarray(VANILLA.encode(params, X)) > 0).sum(axis=1).mean())
    assert some["random"].k == round(l0)
    assert some["loaded"] is loaded is some["random"].of
    assert 1 < l0 < 9
    fits = views.fit_all(some, key, Rows(X))
    read = views.encode_all(some, fits, HELD_OUT)
    np.testing.assert_allclose(read["rest"], VANILLA.reconstruct(params, HELD_OUT), atol=1e-5)
    assert read["top"].shape == HELD_OUT.shape
    # As the experiments had it: an untrained TopK with as many latents, calibrated on the samples that fit views.
    control = sp.sae.TopK(N_UNITS, 10, round(l0))
    expected = sp.training.start(control, jax.random.fold_in(key, views.base._number("random")), lambda: X)
    np.testing.assert_array_equal(read["random"], control.encode(expected, HELD_OUT))
    assert ((np.asarray(read["random"]) > 0).sum(axis=1) <= round(l0)).all()
    assert (np.asarray(read["random"]) > 0).sum(axis=1).mean() > round(l0) - 1  # of 10 latents not always so many are positive
    with pytest.raises(ValueError, match="k of Untrained must be known for a Loaded: call prepare"):
        views.Untrained(loaded).fit(key, Rows(X))


def test_an_oracle_with_an_orthonormal_arrangement_soft_thresholds(key):
    q = sp.views.rotation.orthogonal(key, N_FEATURES)
    view = views.Oracle(q, penalty=0.2, upper=0.7, steps=50)
    found = view.encode(view.fit(key, Rows(Z @ q)), Z @ q)
    np.testing.assert_allclose(found, np.clip(Z - 0.2, 0, 0.7), atol=1e-5)


@pytest.fixture(scope="module")
def study():
    """A toy model of the experiments' settings, at a size of seconds: its settings, params, features and source of samples."""
    from experiments import toys

    config = toys.get_config()
    config.features.n_features = N_FEATURES
    config.supervised.update({"width": 8, "steps": 5, "batch_size": 16})
    config.oracle.update({"steps": 10, "n_samples": 128})
    toy, features = toys.toy(config, N_UNITS), toys.features(config)
    params = toy.init(jax.random.key(4))
    return config, params, features, lambda key, n: toy.encode(params, features.sample(key, n))


def test_the_oracle_is_that_of_the_toy_experiment(key, study):
    config, params, features, draw = study
    view = views.Oracle(params["W"], truth=features.sample, rectified=True, **config.oracle)
    found = view.fit(jax.random.key(9), draw, data_key=key)

    def infer(x, penalty, ridge):
        steps = config.oracle.steps
        return sp.sparse_coding.fista(x, params["W"], penalty, ridge=ridge, upper=1.0, rectified=True, steps=steps)

    units, z = (source(key, config.oracle.n_samples) for source in (draw, features.sample))
    pairs = [(penalty, penalty * ratio) for penalty in config.oracle.penalties for ratio in config.oracle.ridge_ratios]
    recovered = [sp.align(infer(units, *pair), z, "feature_recovery", folds=None)["feature_recovery"].mean for pair in pairs]
    best = pairs[int(np.argmax(recovered))]
    np.testing.assert_allclose((found["penalty"], found["ridge"]), best, rtol=1e-6)
    x = draw(jax.random.key(1), 32)
    np.testing.assert_allclose(view.encode(found, x), infer(x, *best), atol=1e-6)


def test_an_arrangement_may_be_traced(key):
    def read(arrangement):
        view = views.Top(views.Oracle(arrangement, penalty=0.1, steps=5), m=2)
        return view.encode(view.fit(key, Rows(X)), HELD_OUT)

    both = jax.jit(jax.vmap(read))(jnp.stack([A, -A]))
    np.testing.assert_allclose(both[1], read(-A), atol=1e-5)
    assert len(jax.tree.leaves(views.Top(SMALL["oracle"]))) == 2  # the arrangement and the ridge


def test_the_supervised_network_is_that_of_the_toy_experiment(key, study):
    config, _, features, draw = study
    settings = config.supervised
    sizes = {"steps": settings.steps, "batch_size": settings.batch_size}
    view = views.Supervised(features.sample, width=settings.width, learning_rate=settings.learning_rate, **sizes)
    expected, _ = sp.fit(
        sp.probe.Probe(N_UNITS, N_FEATURES, settings.width),
        key,
        lambda key, n: (draw(key, n), features.sample(key, n)),
        data_key=jax.random.key(8),
        optimizer=optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps)),
        **sizes,
    )
    found = view.fit(key, draw, data_key=jax.random.key(8))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_supervision_reads_features_that_the_units_tell(key):
    features = sp.features.SparseFeatures(4, 0.3)
    mixing = views.rotation.orthogonal(key, 4)
    view = views.Supervised(features.sample, width=32, steps=400, batch_size=128, learning_rate=1e-2)
    params = jax.jit(lambda key: view.fit(key, lambda key, n: features.sample(key, n) @ mixing))(key)
    z = features.sample(jax.random.key(1), 2000)
    assert (np.diag(correlations(view.encode(params, z @ mixing), z)) > 0.99).all()


# What does not fit.


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (views.PCA(7), "n_components of PCA must be between 1 and the 6 units, got 7"),
        (views.PCA(2, expansion=1.0), "n_components of PCA takes the place of expansion, got 2 and 1.0"),
        (views.PCA(expansion=0.0), "expansion of PCA must be above 0, got 0.0"),
        (views.TopKPCA(k=7), "k of TopKPCA must be between 1 and the 6 components, got 7"),
        (views.TopKPCA(views.Neuron()), "of of TopKPCA must be a PCA, got a Neuron"),
        (views.ICA(fun="exp"), "fun of ICA must be one of logcosh, cube, got 'exp'"),
        (views.ICA(0), "n_components of ICA must be between 1 and the 6 units, got 0"),
        (views.ICA(max_iter=0), "max_iter of ICA must be at least 1, got 0"),
        (views.ICA(tolerance=0.0), "tolerance of ICA must be above 0, got 0.0"),
        (views.ICA(max_samples=5), "max_samples of ICA must be at least the 6 components, got 5"),
        (views.SAE("sae"), "architecture must be one of vanilla, .*, got 'sae'"),
        (views.SAE(options={"depth": 2}), "options of topk must be among .*, got 'depth'"),
        (views.SAE(k=99), "k must be a whole number between 1 and n_latents = 24, got 99"),
        (views.SAE(steps=0), "steps of an SAE must be at least 1, got 0"),
        (views.SAE(share=0.0), "share of an SAE must be above 0 and at most 1, got 0.0"),
        (views.Untrained(views.PCA()), "of of Untrained must be an SAE or a Loaded, got a PCA"),
        (views.Untrained(SAE, k=13), "k of Untrained must be between 1 and the 12 latents, got 13"),
        (views.Both(views.SAE("sae")), "architecture must be one of"),
        (views.Reconstruction(views.ICA()), "of of Reconstruction must have a reconstruct, .* got a ICA"),
        (views.Top(m=7), "m of Top must be between 1 and the 6 units that there are, got 7"),
        (views.Top(by="size"), "by of Top must be variance or alignment, got 'size'"),
        (views.Top(by="alignment"), "target of Top must draw the other side's samples"),
        (views.Loaded(VANILLA), "params of Loaded must be of one"),
        (views.Loaded(sp.sae.TopK(5, 9, k=1)), "autoencoder of Loaded must read 6 units, got 5"),
        (views.Loaded(3), "autoencoder of Loaded must be a folder or a sparse autoencoder, got 3"),
        (views.Oracle(A), "truth of Oracle must draw features to choose a penalty by, got none: give it, or a penalty"),
        (views.Oracle(A.T, penalty=0.1), r"arrangement of Oracle must be \(n_features, 6\), got \(6, 8\)"),
        (views.Oracle(A, penalty=0.1, steps=0), "steps of Oracle must be at least 1, got 0"),
        (views.Oracle(A, truth=TRUTH, penalties=()), "Oracle needs at least one of penalties"),
        (views.Supervised(), "truth of Supervised must draw the features of the samples, got none"),
        (views.Supervised(TRUTH, width=0), "width of Supervised must be at least 1, got 0"),
        (views.Given(3), r"function of Given must take samples \(n, 6\), got 3"),
        (views.Given(jnp.sum), r"function of Given must give \(n, k\) of samples \(n, 6\), got \(\) of n = 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(view, message):
    with pytest.raises(ValueError, match=message) as error:
        view.check(N_UNITS)
    assert "\n" not in str(error.value)


def test_sides_that_do_not_fit_are_refused(key):
    with pytest.raises(ValueError, match="n_units of LayerNorm must be at least 2, got 1"):
        views.LayerNorm().check(1)
    with pytest.raises(ValueError, match="n_components of ICA must be at most the 5 samples that there are to fit on, got 6"):
        views.ICA().fit(key, Rows(X[:5]))
    with pytest.raises(ValueError, match="at least 2 rows to fit PCA on, got 1"):
        views.PCA().fit(key, Rows(X[:1]))
    with pytest.raises(FileNotFoundError):
        views.Loaded("no such folder")


def test_the_guide_to_a_new_view_is_true(monkeypatch, tmp_path):
    guide = (Path(__file__).parents[1] / ".github" / "CONTRIBUTING.md").read_text()
    section = guide.split("## Add a view")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "z_score.py").write_text("\n".join(line[3:] for line in code.split("\n")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "z_score", raising=False)
    import z_score

    assert '"z_score": ZScore' in section
    monkeypatch.setitem(VIEWS, "z_score", z_score.ZScore)
    view = VIEWS["z_score"]()
    keeps_the_promises(view)
    units = np.asarray(view.encode(view.fit(jax.random.key(0), Rows(X)), X))
    np.testing.assert_allclose([units.mean(axis=0), units.std(axis=0)], np.repeat([[0.0], [1.0]], N_UNITS, 1), atol=1e-5)

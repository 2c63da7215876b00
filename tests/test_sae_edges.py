"""Training of sparse autoencoders at its edges: precisions, promotion, optimizers, settings of any type, what is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import of_architectures

import superpos as sp
from superpos.sae.kernels import geometric_median

SPARSITY = {"k": 2, "l1": 0.1, "l0": 0.1}
some = of_architectures(sp.sae.ARCHITECTURES)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.exponential(size=(256, 6)) * (RNG.random((256, 6)) < 0.3), jnp.float32)


def build(name, **options):
    kind = sp.sae.ARCHITECTURES[name]
    return kind(6, 12, **{kind.ladder[0]: SPARSITY[kind.ladder[0]]}, **options)


def draw(key, n):
    return X[jax.random.randint(key, (n,), 0, len(X), jnp.int32)]


def trained(sae, params=None, steps=20, optimizer=None):
    fit = functools.partial(sp.fit, sae, sample=draw, steps=steps, batch_size=32, optimizer=optimizer)
    params = sae.calibrate(sae.init(jax.random.key(0)), X) if params is None else params
    return jax.jit(lambda params: fit(jax.random.key(1), params=params))(params)


@some
def test_half_precision_trains_as_single_does(name):
    """Counters, scales and thresholds go on in float32: a counter of bfloat16 would stop at 256."""
    sae = build(name, dead_after=300) if name != "nonnegative" else build(name)
    start = sae.calibrate(sae.init(jax.random.key(0)), X)
    start["silent_for"] = start["silent_for"] + 280
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start)
    params, history = trained(sae, half)
    for leaf, value in params.items():
        assert value.dtype == (jnp.float32 if leaf in sae.precise else jnp.bfloat16), leaf
    if name in ("topk", "jumprelu", "nonnegative"):
        ends = [float(h["mse"][-5:].mean()) for h in (history, trained(sae, start)[1])]
        assert ends[0] == pytest.approx(ends[1], rel=0.1)
    assert np.isfinite(history["mse"]).all()
    latents = np.asarray(sae.encode(params, X), np.float32)
    assert (latents >= 0).all()
    silent = np.asarray(params["silent_for"])
    assert set(silent[silent > 20].astype(int)) <= {300}  # latents that stayed silent are counted in every step


def test_thresholds_of_half_precision_move():
    sae = build("jumprelu")
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), sae.calibrate(sae.init(jax.random.key(0)), X))
    params, _ = trained(sae, start)
    assert (np.asarray(params["log_threshold"]) != np.asarray(start["log_threshold"], np.float32)).any()


def test_what_cannot_train_is_refused():
    sae = build("topk")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), sae.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="params are float16, in which Adam's epsilon of 1e-8 is 0"):
        trained(sae, half)
    with pytest.raises(ValueError, match=r"normalize takes layer_norm for at least 2 inputs"):
        sp.sae.TopK(1, 3, k=1, normalize="layer_norm")


@some
def test_single_precision_trains_where_double_is_enabled(name):
    options = {} if name == "archetypal" else {"dead": "resample", "resample_every": 5}
    with jax.enable_x64(True):
        sae = build(name, **options)
        start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), sae.init(jax.random.key(0)))
        params, _ = trained(sae, start)
        assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
        assert np.isfinite(float(sp.evaluation.evaluate(sae, params, X).fvu))
    assert np.isfinite(
        sp.sparse_coding.fista(jnp.ones((3, 4), jnp.bfloat16), jnp.ones((5, 4), jnp.bfloat16)).astype(float)
    ).all()


@some
def test_nothing_leans_on_implicit_promotion(name):
    with jax.numpy_dtype_promotion("strict"):
        trained(build(name), steps=2, optimizer=optax.sgd(1e-3))  # Adam of optax does


OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "momentum": optax.sgd(1e-3, momentum=0.9),
    "masked": optax.masked(
        optax.adam(1e-3), {"W_enc": True, "W_dec": True, "b_enc": True, "b_dec": False, "silent_for": False, "scale": False}
    ),
    "partition": optax.partition(
        {"a": optax.adam(1e-3), "b": optax.rmsprop(1e-3)},
        {"W_enc": "a", "W_dec": "a", "b_enc": "b", "b_dec": "b", "silent_for": "b", "scale": "b"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resampling_starts_the_moments_of_dead_latents_afresh(name):
    sae = build("topk", dead="resample", resample_every=1, dead_after=5)
    params = sae.calibrate(sae.init(jax.random.key(0)), X)
    state = OPTIMIZERS[name].init(params)
    ones = jax.tree.map(lambda leaf: jnp.ones_like(leaf) if jnp.ndim(leaf) else leaf, state)
    dead = jnp.arange(12) % 3 == 0
    aux = sae.loss(params, X)[1] | {"buffers": {"silent_for": jnp.where(dead, 9.0, 0.0)}}
    after, forgot = sae.after_step(params, ones, aux, key=jax.random.key(2), step=0)
    moved = np.abs(np.asarray(after["W_dec"] - params["W_dec"])).max(axis=1) > 1e-3
    assert (moved == np.asarray(dead)).all()
    moments = [leaf for leaf in jax.tree.leaves(forgot) if jnp.shape(leaf) in ((6, 12), (12, 6))]
    assert moments
    for leaf in moments:
        of_latent = np.asarray(leaf) if leaf.shape == (12, 6) else np.asarray(leaf).T
        assert (of_latent[dead] == 0).all()
        assert (of_latent[~np.asarray(dead)] == 1).all()


def test_resampling_refuses_an_optimizer_whose_state_has_other_shapes():
    sae = sp.sae.TopK(130, 140, k=2, dead="resample")  # adafactor factors matrices that are larger than 128
    params = sae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"optimizer keeps \(\d+,\) for W_\w+ .*such as Adam"):
        sp.fit(
            sae,
            jax.random.key(0),
            lambda key, n: jax.random.normal(key, (n, 130)),
            params=params,
            steps=2,
            batch_size=8,
            optimizer=optax.adafactor(1e-3),
        )


def test_numbers_of_any_type_are_settings():
    exact = sp.sae.TopK(6, 12, k=2)
    params = exact.init(jax.random.key(0))
    for k in (np.int64(2), np.float32(2), jnp.int32(2), jnp.float32(2.0)):
        np.testing.assert_array_equal(sp.sae.TopK(6, 12, k=k).encode(params, X), exact.encode(params, X))
    by_grid = jax.vmap(lambda k: sp.sae.TopK(6, 12, k=k).encode(params, X))(jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(by_grid[0], exact.encode(params, X), atol=1e-6)
    assert not sp.sae.Vanilla(6, 12, l1=0.1, sparsity_warmup=0.0)._warms
    for settings, message in (
        ({"l1": np.float32(-1)}, "l1 must be at least 0, got -1"),
        ({"l1": 0.1, "sparsity_warmup": jnp.float32(-2)}, "sparsity_warmup must be at least 0"),
        ({"l1": 0.1, "resample_every": True}, "resample_every must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            sp.sae.Vanilla(6, 12, **settings)
    with pytest.raises(ValueError, match=r"steps must be an integer of at least 1, got 2\.5"):
        trained(exact, steps=2.5)


@pytest.mark.parametrize("name", sp.sae.ARCHITECTURES)
def test_what_is_not_finite_is_no_code(name):
    sae = build(name)
    params = sae.calibrate(sae.init(jax.random.key(0)), X)
    holed = X.at[3, 2].set(jnp.nan).at[5, 1].set(jnp.inf)
    with pytest.raises(ValueError, match="inputs must be finite, got 2 NaN or infinite values"):
        sae.encode(params, holed)
    traced = np.asarray(jax.jit(sae.encode)(params, holed))
    assert np.isnan(traced[[3, 5]]).all()
    assert np.isfinite(np.delete(traced, [3, 5], axis=0)).all()


def test_a_report_of_what_is_not_finite_is_nan():
    sae = build("topk")
    params = sae.calibrate(sae.init(jax.random.key(0)), X)
    report = jax.jit(lambda params, x: sp.evaluation.evaluate(sae, params, x))(params, X.at[3, 2].set(jnp.nan))
    assert np.isnan(report.l0)
    assert np.isnan(report.fvu)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_a_running_threshold_goes_on(name):
    sae = build(name)
    params, _ = trained(sae)
    params["threshold"] = params["threshold"] + 1
    again, _ = trained(sae, params, steps=1)
    before = params["threshold"] - 1
    assert float(again["threshold"]) == pytest.approx(float(params["threshold"]), abs=0.02)
    assert float(again["threshold"]) > float(before) + 0.9


def test_layer_norm_is_undone():
    """Also of samples that hardly vary: a code that holds all reconstructs them."""
    sae = sp.sae.TopK(6, 12, k=12, normalize="layer_norm", decoder_norm="free", bias="zero")
    params = sae.init(jax.random.key(0))
    params |= {"W_enc": jnp.eye(6, 12) - jnp.eye(6, 12, 6), "W_dec": (jnp.eye(6, 12) - jnp.eye(6, 12, 6)).T}
    small = 1e-5 * (X + jnp.arange(6))
    np.testing.assert_allclose(sae.reconstruct(params, small), small, atol=1e-11)


def test_the_geometric_median_of_rows_of_which_half_coincide():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.full((60, 4), 3.0), rng.normal(size=(58, 4)) * 5]).astype(np.float32)
    np.testing.assert_allclose(geometric_median(jnp.asarray(x)), 3, atol=0.02)


def test_samples_that_were_not_asked_for_are_refused():
    sae = build("topk")
    with pytest.raises(ValueError, match=r"sample must give the 8 samples that it is asked for, got shape \(7, 6\)"):
        sp.fit(sae, jax.random.key(0), lambda key, n: jnp.ones((n - 1, 6)), steps=1, batch_size=8)
    for batch, message in (
        (np.zeros((0, 6), np.float32), r"got ndarray of float32\[0, 6\]"),
        (np.zeros((8, 6), np.complex64), r"got ndarray of complex64\[8, 6\]"),
        (np.ma.masked_array(np.asarray(X[:8]), np.asarray(X[:8]) > 1), "batch 0 has masked entries"),
    ):
        with pytest.raises(ValueError, match=message):
            sp.fit_stream(sae, jax.random.key(0), [batch], steps=1)
    with pytest.raises(ValueError, match=r"importance must be a number or \(5,\), got \(5, 1\)"):
        sp.toy.ToyModel(5, 2, importance=np.ones((5, 1)))

"""Sparse autoencoders against their papers' equations in NumPy and float64, and what each promises."""

import dataclasses
import functools
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import of_architectures
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.cluster import KMeans
from sklearn.linear_model import Lasso

import superpos as sp
from superpos.sae.archetypal import centroids
from superpos.sae.batch_topk import largest_mask
from superpos.sae.jumprelu import jump, step
from superpos.sae.kernels import top_k_mask

N, LATENTS, BATCH, K = 6, 12, 32, 3
PENALTY, WEIGHT, BANDWIDTH, DEAD_AFTER, DEAD_K = 0.3, 0.4, 0.3, 4, 2
PREFIXES = (2, 5, 12)
REVIVED = {"dead": "auxiliary", "dead_weight": WEIGHT, "dead_after": DEAD_AFTER, "dead_k": DEAD_K}
SAES = {
    "vanilla": sp.sae.Vanilla(N, LATENTS, PENALTY, decoder_norm="ball", **REVIVED),
    "topk": sp.sae.TopK(N, LATENTS, K, **REVIVED),
    "batch_topk": sp.sae.BatchTopK(N, LATENTS, K, **REVIVED),
    "jumprelu": sp.sae.JumpReLU(N, LATENTS, PENALTY, bandwidth=BANDWIDTH, decoder_norm="free", centered=False, **REVIVED),
    "gated": sp.sae.Gated(N, LATENTS, PENALTY, **REVIVED),
    "matryoshka": sp.sae.Matryoshka(N, LATENTS, K, prefixes=PREFIXES, **REVIVED),
    "matching_pursuit": sp.sae.MatchingPursuit(N, LATENTS, K, **REVIVED),
    "archetypal": sp.sae.Archetypal(N, LATENTS, K, n_points=16, **REVIVED),
    "nonnegative": sp.sae.NonNegative(N, LATENTS, PENALTY, steps=1000, dead_after=DEAD_AFTER),
}
BUFFERS = ("silent_for", "scale", "threshold", "C")  # no gradient learns them
each = pytest.mark.parametrize("name", SAES)
some = of_architectures(SAES)


def test_what_is_tested_goes_by_its_name():
    assert {name: type(sae) for name, sae in SAES.items()}.items() <= sp.sae.ARCHITECTURES.items()


# The papers' equations. Their losses sum over inputs; ours are divided by n_inputs.


class Paper(NamedTuple):
    pre: np.ndarray
    h: np.ndarray
    dictionary: np.ndarray
    error: np.ndarray
    loss: float


def relu(x):
    return np.maximum(x, 0)


def squared(error):
    return np.mean(np.sum(error**2, axis=1))


def largest(x, count):
    """The positive ones of the `count` largest entries of a vector, zero elsewhere."""
    kept = np.zeros_like(x)
    chosen = np.argsort(-x)[:count]
    kept[chosen] = relu(x[chosen])
    return kept


def linear_sae(p, x, activation, centre=True):
    pre = (x - p["b_dec"] * centre) @ p["W_enc"] + p["b_enc"]
    h = activation(pre)
    error = x - (h @ p["W_dec"] + p["b_dec"])
    return Paper(pre, h, p["W_dec"], error, squared(error))


def per_sample(x):
    return np.apply_along_axis(largest, 1, x, K)


def vanilla(p, x, fixed):
    """Bricken et al. 2023, with the norms of Conerly et al. 2024."""
    found = linear_sae(p, x, relu)
    return found._replace(loss=found.loss + PENALTY * np.mean(found.h @ np.linalg.norm(p["W_dec"], axis=1)))


def topk(p, x, fixed):
    """Gao et al. 2024, with the rectification of their code."""
    return linear_sae(p, x, per_sample)


def batch_topk(p, x, fixed):
    """Bussmann et al. 2024."""
    return linear_sae(p, x, lambda pre: largest(pre.ravel(), K * len(x)).reshape(pre.shape))


def matryoshka(p, x, fixed):
    """Bussmann et al. 2025, who sum over prefixes: ours is the mean."""
    found = batch_topk(p, x, fixed)
    losses = [squared(x - p["b_dec"] - found.h[:, :m] @ p["W_dec"][:m]) for m in PREFIXES]
    return found._replace(loss=sum(losses) / len(PREFIXES))


def jumprelu(p, x, fixed):
    """Rajamanoharan et al. 2024 (JumpReLU), equations 9 and 10."""
    threshold = np.exp(p["log_threshold"])
    found = linear_sae(p, x, lambda pre: pre * (pre > threshold), centre=False)
    return found._replace(loss=found.loss + PENALTY * np.mean(np.sum(found.pre > threshold, axis=1)))


def gated(p, x, fixed):
    """Rajamanoharan et al. 2024 (Gated). Their decoders have norm 1: those of others weigh the L1 here, fixed."""
    gate = (x - p["b_dec"]) @ p["W_enc"] + p["b_gate"]
    magnitude = (x - p["b_dec"]) @ (p["W_enc"] * np.exp(p["r_mag"])) + p["b_mag"]
    h = (gate > 0) * relu(magnitude)
    error = x - (h @ p["W_dec"] + p["b_dec"])
    penalty = np.mean(relu(gate) @ np.linalg.norm(fixed["W_dec"], axis=1))
    frozen = x - (relu(gate) @ fixed["W_dec"] + fixed["b_dec"])
    return Paper(gate, h, p["W_dec"], error, squared(error) + PENALTY * penalty + squared(frozen))


def matching_pursuit(p, x, fixed):
    """Costa et al. 2025. Ours never takes a latent that is negatively correlated with what is left."""
    h, pre = np.zeros((len(x), LATENTS)), (x - p["b_dec"]) @ p["W_dec"].T
    for sample, row in enumerate(x):
        left = row - p["b_dec"]
        for _ in range(K):
            j = np.argmax(p["W_dec"] @ left)
            gain = max(p["W_dec"][j] @ left, 0)
            h[sample, j] += gain
            left = left - gain * p["W_dec"][j]
    error = x - (h @ p["W_dec"] + p["b_dec"])
    return Paper(pre, h, p["W_dec"], error, squared(error))


def archetypal(p, x, fixed):
    """Fel et al. 2025, equations 3 and 4: D = exp(m) (A C + Λ); C are data, and no parameters."""
    dictionary = np.exp(p["log_multiplier"]) * (p["A"] @ fixed["C"] + p["relax"])
    return linear_sae({**p, "W_dec": dictionary}, x, per_sample)


def nonnegative(p, x, fixed):
    """Hoyer 2002: alternates between codes, the positive Lasso here, and a dictionary that reduces the error for these codes.

    The loss is what the dictionary learns from, without the penalty on the code, which is held fixed.
    """
    lasso = Lasso(PENALTY / N, positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    h = np.stack([lasso.fit(fixed["W_dec"].T, row).coef_ for row in x])
    error = x - (h @ p["W_dec"] + p["b_dec"])
    return Paper(h, h, p["W_dec"], error, squared(error))


PAPERS = [vanilla, topk, batch_topk, jumprelu, gated, matryoshka, matching_pursuit, archetypal, nonnegative]
PAPERS = {paper.__name__: paper for paper in PAPERS}


def dead_latents(p, h):
    return (p["silent_for"] + 1 >= DEAD_AFTER) & ~(h > 0).any(axis=0)


def whole_loss(name, p, x, fixed=None, kind="auxiliary"):
    """The paper's loss and what revives dead latents; what takes no gradient is computed from `fixed`."""
    fixed = p if fixed is None else fixed
    found, held = PAPERS[name](p, x, fixed), PAPERS[name](fixed, x, fixed)
    dead = dead_latents(p, found.h)
    if kind == "auxiliary":  # Gao et al. 2024, appendix A.2
        z = np.apply_along_axis(largest, 1, found.pre * dead, DEAD_K)
        revive = squared(held.error - z @ found.dictionary)
    elif kind == "reanimate":  # Fel et al. 2025: the mean over samples and latents, here in units of our loss
        revive = -N * np.mean(found.pre * dead)
    else:
        revive = 0
    return found.loss + WEIGHT * revive * dead.any(), found, dead


def drawn(name, seed=0):
    """Random parameters, all biases nonzero; the first three latents have long been silent and stay so where they can."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(SAES[name].init, jax.random.key(0))
    p = {key: 0.5 * rng.normal(size=value.shape) for key, value in shapes.items()}
    first = np.arange(LATENTS) < 3
    p["silent_for"] = np.where(first, 5.0, rng.integers(0, 2, LATENTS))
    p["scale"] = np.array(1.7)
    if "W_enc" in p:  # weak but positive: never among the largest, below thresholds
        p["W_enc"] = np.where(first, 0.02, 1) * p["W_enc"]
        bias = "b_gate" if name == "gated" else "b_enc"
        p[bias] = np.where(first, 0.1, p[bias] + 1.5 * hasattr(SAES[name], "k"))
    if name == "gated":
        p["b_mag"] = np.where(first, -9, p["b_mag"])
    if name in ("batch_topk", "matryoshka"):
        p["threshold"] = np.array(0.4)
    if name == "jumprelu":
        p["log_threshold"] = np.log(rng.uniform(0.3, 0.7, LATENTS))
    if name == "archetypal":
        p["A"] = np.abs(p["A"]) / np.abs(p["A"]).sum(axis=1, keepdims=True)
    if name == "matching_pursuit":
        p["W_dec"][:3] = -np.abs(p["W_dec"][:3])
        p["W_dec"] /= np.linalg.norm(p["W_dec"], axis=1, keepdims=True)
    if name == "nonnegative":
        eye = np.eye(N)  # atoms far from parallel, so that FISTA converges
        p["W_dec"], p["b_dec"] = 0.2 * np.abs(p["W_dec"]) + np.vstack([eye, eye + np.roll(eye, 1, axis=1)]), np.zeros(N)
    x = rng.exponential(size=(BATCH, N)) - 0.5
    return {key: np.float32(value) for key, value in p.items()}, np.float32(x)


@functools.cache
def program(name):
    """All that an architecture computes of one batch, compiled once."""
    sae = SAES[name]

    @jax.jit
    def run(params, x):
        (loss, aux), grads = jax.value_and_grad(sae.loss, has_aux=True)(params, x)
        h = sae.encode(params, x)
        alone = jax.lax.map(lambda row: sae.encode(params, row[None])[0], x[:4])
        return {"loss": loss, "aux": aux, "grads": grads, "h": h, "alone": alone, "y": sae.decode(params, h)}

    return lambda params, x: SimpleNamespace(**jax.device_get(run(params, x)))


@functools.cache
def found(name):
    """What ours computes at random parameters, and these with the normalised inputs in float64."""
    params, x = drawn(name)
    p = {key: value.astype(np.float64) for key, value in params.items()}
    return program(name)(params, x), p, x / p["scale"]


@each
def test_equations_of_the_paper(name):
    run, p, x = found(name)
    loss, paper, dead = whole_loss(name, p, x)
    h = paper.pre * (paper.pre > p["threshold"]) if "threshold" in p else paper.h  # inference has no batch to choose from
    np.testing.assert_allclose(run.h, h, atol=1e-5)
    np.testing.assert_allclose(run.y, (h @ paper.dictionary + p["b_dec"]) * p["scale"], atol=1e-5)
    np.testing.assert_allclose(N * run.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(run.aux["l0"], np.sum(paper.h > 0, axis=1).mean(), rtol=1e-6)
    np.testing.assert_allclose(run.aux["dead"], dead.mean(), rtol=1e-6)
    np.testing.assert_array_equal(run.aux["buffers"]["silent_for"], np.where((paper.h > 0).any(axis=0), 0, p["silent_for"] + 1))
    revived = loss - whole_loss(name, p, x, kind="none")[0]
    # Without a threshold, a gate or a rank to pass, latents are silent only where there is nothing to scale up.
    assert (revived != 0) == (name not in ("vanilla", "nonnegative"))


@each
def test_gradients_are_differences_of_the_papers_loss(name):
    """Central differences in float64, away from ties and thresholds."""
    run, p, x = found(name)
    rng = np.random.default_rng(1)
    for key, gradient in run.grads.items():
        if key in BUFFERS:
            assert not gradient.any(), key
        elif key != "log_threshold":
            direction = rng.normal(size=gradient.shape)
            ends = [whole_loss(name, {**p, key: p[key] + sign * 1e-6 * direction}, x, fixed=p)[0] for sign in (1, -1)]
            scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
            assert scale > 0, key
            np.testing.assert_allclose(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-6 / N, atol=1e-5 * scale, rtol=0)


def test_thresholds_learn_by_the_papers_pseudo_derivatives():
    """Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 11 and 12, with a rectangle kernel."""
    run, p, x = found("jumprelu")
    _, paper, _ = whole_loss("jumprelu", p, x)
    threshold = np.exp(p["log_threshold"])
    kernel = (np.abs((paper.pre - threshold) / BANDWIDTH) < 0.5).astype(float)
    assert (kernel.sum(axis=0) > 0).sum() > 6
    error_by_h = -2 * paper.error @ p["W_dec"].T
    by_threshold = np.mean(error_by_h * -threshold / BANDWIDTH * kernel - PENALTY / BANDWIDTH * kernel, axis=0)
    np.testing.assert_allclose(run.grads["log_threshold"], by_threshold * threshold / N, atol=1e-6)


def test_pseudo_derivatives_are_right_on_average():
    """Over inputs of density p, E[H(x - θ)] falls by p(θ) with θ, and E[x H(x - θ)] by θ p(θ)."""
    quantiles = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    x = np.float32(np.stack([quantiles] * 3))
    threshold = np.float32([[0.3], [1.0], [1.7]])

    @jax.jit
    def run(x, threshold):
        return [
            jax.grad(lambda x, t, f=f: jnp.sum(jnp.mean(f(x, t, 0.05), axis=1)), argnums=(0, 1))(x, threshold)
            for f in (step, jump)
        ]

    (step_by_x, step_by_threshold), (jump_by_x, jump_by_threshold) = run(x, threshold)
    density = norm.pdf(threshold)
    np.testing.assert_allclose(step_by_threshold, -density, rtol=3e-3)
    np.testing.assert_allclose(jump_by_threshold, -threshold * density, rtol=3e-3)
    assert not step_by_x.any()
    np.testing.assert_allclose(x.shape[1] * jump_by_x, x > threshold, rtol=1e-6)


def test_gates_learn_from_their_own_terms_only():
    run, p, x = found("gated")
    _, paper, dead = whole_loss("gated", p, x)
    gate_open = paper.pre > 0
    # π meets the L1 penalty and the frozen decoder; nothing comes through 1[π > 0]. Dead gates also predict what is left.
    frozen_error = x - (relu(paper.pre) @ p["W_dec"] + p["b_dec"])
    by_gate = gate_open * (PENALTY * np.linalg.norm(p["W_dec"], axis=1) - 2 * frozen_error @ p["W_dec"].T)
    np.testing.assert_allclose(run.grads["b_gate"][~dead], by_gate.mean(axis=0)[~dead] / N, atol=1e-6)
    # The decoder learns from the reconstruction alone: neither from the frozen one nor from the penalty.
    by_decoder = -2 * paper.h.T @ paper.error / len(x) / N
    np.testing.assert_allclose(run.grads["W_dec"][~dead], by_decoder[~dead], atol=1e-6)


def test_reanimation():
    params, x = drawn("topk")
    _, p, normalised = found("topk")
    loss, _ = jax.jit(dataclasses.replace(SAES["topk"], dead="reanimate").loss)(params, x)
    np.testing.assert_allclose(N * loss, whole_loss("topk", p, normalised, kind="reanimate")[0], rtol=1e-5)


def published_loss(params, x, k, weight):
    """The loss of the code published with arXiv 2510.03186."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = np.asarray(x, np.float64)
    pre = x @ p["W_enc"] + p["b_enc"]
    h = np.maximum(pre, 0)
    h[h < np.sort(h, axis=1)[:, -k][:, None]] = 0
    residual = x - (h @ p["W_dec"] + p["b_dec"])
    silent = (h == 0).all(axis=0)
    predicted = (pre * silent) @ p["W_dec"] + p["b_dec"]
    return np.mean(residual**2) + weight * np.mean((residual - predicted) ** 2), silent


def test_loss_is_the_published_one():
    sae = sp.sae.TopK(6, 20, 3, **sp.sae.PUBLISHED | {"dead_weight": 0.3})
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(300, 6)))
    weights = {"W_enc": 0.3 * rng.normal(size=(6, 20)), "W_dec": 0.3 * rng.normal(size=(20, 6))}
    run = jax.jit(jax.value_and_grad(sae.loss, has_aux=True))
    for shift in (0.0, -2.0):
        bias = np.where(np.arange(20) < 8, shift, 0.1)  # a shift that silences some latents
        params = {**weights, "b_enc": bias, "b_dec": np.linspace(-1, 1, 6), "silent_for": np.zeros(20)}
        params = {name: np.float32(value) for name, value in params.items()}
        (loss, aux), grads = run(params, x)
        expected, silent = published_loss(params, x, 3, 0.3)
        assert silent.any() == (shift < 0)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(aux["dead"], silent.mean())

        # Central differences in float64 of the NumPy rendering, away from ties.
        del params["silent_for"]
        for name, value in params.items():
            direction = rng.normal(size=value.shape)
            ends = [
                published_loss({**params, name: np.asarray(value, np.float64) + sign * 1e-6 * direction}, x, 3, 0.3)[0]
                for sign in (1, -1)
            ]
            np.testing.assert_allclose(np.sum(grads[name] * direction), (ends[0] - ends[1]) / 2e-6, rtol=2e-3, atol=1e-4)


# Sparsity.


@each
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), hnp.arrays(np.int8, (BATCH, N), elements=st.integers(-3, 3)), st.floats(0.01, 100))
def test_code_is_as_sparse_as_promised(name, seed, x, scale):
    params, _ = drawn(name, seed)
    if "W_enc" in params:
        params["W_enc"] = np.round(params["W_enc"], 1)  # ties
    run = program(name)(params, np.float32(scale * x))
    active = run.h > 0
    assert (run.h >= 0).all()
    assert np.isfinite(run.h).all()
    if name in ("topk", "archetypal", "matching_pursuit"):
        assert (active.sum(axis=1) <= K).all()
    if name in ("batch_topk", "matryoshka"):
        assert run.aux["l0"] <= K
        assert (run.h[active] > params["threshold"]).all()
    if name == "jumprelu":
        assert (run.h > np.exp(params["log_threshold"]))[active].all()
    if name == "gated":
        gate = (scale * x / params["scale"] - params["b_dec"]) @ params["W_enc"] + params["b_gate"]
        assert (gate[active] > -1e-3 * scale).all()


@each
def test_a_code_does_not_depend_on_its_batch(name):
    run, _, _ = found(name)
    assert (run.alone > 0).any()
    np.testing.assert_allclose(run.alone, run.h[:4], rtol=1e-5, atol=1e-6)


@functools.cache
def masks():
    return jax.jit(top_k_mask), jax.jit(largest_mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), hnp.arrays(np.float32, (5, 8), elements=st.integers(-3, 3).map(np.float32)))
def test_mask_marks_what_a_stable_sort_selects(k, x):
    chosen = np.argsort(-x, axis=1, kind="stable")[:, :k]  # takes the first of equal values, as promised here
    expected = np.zeros(x.shape, bool)
    np.put_along_axis(expected, chosen, True, axis=1)
    np.testing.assert_array_equal(masks()[0](x.T, k).T, expected & (x > 0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 45),
    hnp.arrays(np.float32, (5, 8), elements=st.floats(-1, 1, width=32, allow_subnormal=False) | st.integers(-2, 2)),
)
def test_largest_mask_marks_what_a_sort_selects(count, x):
    falling = np.sort(x[x > 0])[::-1]
    edge = falling[count] if count < len(falling) else 0.0  # of those equal to the first that is too much, none
    mask = np.asarray(masks()[1](x, count))
    np.testing.assert_array_equal(mask, x > edge)
    assert mask.sum() <= count


def test_k_may_be_traced_and_mapped_over():
    x = np.random.default_rng(0).normal(size=(600, 3)).round(2)
    ks = (1, 7, 200)

    @jax.jit
    def run(x, traced):  # many units and a static k: `lax.top_k`
        mapped = [jax.vmap(mask, (None, 0))(x, traced) for mask in (top_k_mask, largest_mask)]
        return *mapped, jnp.stack([top_k_mask(x, k) for k in ks]), jnp.stack([largest_mask(x, k) for k in ks])

    rows, whole, rows_static, whole_static = run(x, np.array(ks))
    np.testing.assert_array_equal(rows, rows_static)
    np.testing.assert_array_equal(whole, whole_static)
    assert (rows.sum(axis=1) == np.array(ks)[:, None]).all()


# One alone and among others.

MEMBERS, MEMBER = 64, 37
SPARSITY = {name: next(s for s in ("k", "l1", "l0") if hasattr(sae, s)) for name, sae in SAES.items()}
DATA = relu(np.random.default_rng(0).normal(size=(4096, 8)) - 0.5) @ np.random.default_rng(1).normal(size=(8, N))


def sample(key, n):
    """The cheapest to compile: a run of rows."""
    first = jax.random.key_data(key)[0] % np.uint32(len(DATA) - n)
    return jax.lax.dynamic_slice_in_dim(jnp.float32(DATA), first.astype(int), n)


@functools.cache
def trained(name):
    """Sixty-four with a seed, a sparsity and a weight each, one of them alone with plain numbers, and their histories."""
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    members = np.arange(MEMBERS)
    sparsity = 1 + members % 4 if SPARSITY[name] == "k" else np.linspace(0.02, 0.2, MEMBERS)
    weight = np.linspace(0, 1, MEMBERS)
    starts: Any = None
    options: dict[str, Any] = {}
    optimizer = optax.adam(1e-2)
    if name == "nonnegative":
        options["steps"] = 20
    elif name != "topk":
        options["dead"] = "reanimate"
    if name != "topk":  # that one does all that `fit` does, from the start, which would take half of the time to compile
        starts = jax.tree.map(lambda *leaves: np.stack(leaves), *(drawn(name, seed)[0] for seed in members))
        optimizer = optax.sgd(0.1)

    def train(key, params, sparsity, weight):
        most = {"most": 4} if name == "matching_pursuit" and not isinstance(sparsity, int) else {}
        own = {SPARSITY[name]: sparsity, "dead_weight": weight, "dead_after": 2}
        sae = dataclasses.replace(SAES[name], **own, **options, **most)
        settings = {"steps": 50, "batch_size": BATCH, "optimizer": optimizer}
        return sp.fit(sae, key, sample, data_key=jax.random.key(1), params=params, **settings)

    together = jax.jit(jax.vmap(train))(keys, starts, sparsity, weight)
    start = jax.tree.map(lambda leaf: leaf[MEMBER], starts)
    alone = jax.jit(lambda key, params: train(key, params, sparsity[MEMBER].item(), weight[MEMBER].item()))(keys[MEMBER], start)
    return jax.device_get((together, alone))


@some
def test_one_alone_equals_the_same_among_64(name):
    """Up to rounding: sums are added up in another order. Seeds, sparsities and weights of dead latents are all mapped over."""
    (params, history), (alone, alone_history) = trained(name)
    for key, value in alone.items():
        np.testing.assert_allclose(params[key][MEMBER], value, atol=2e-6, rtol=1e-5, err_msg=key)
        assert key in ("scale", "b_dec", "C", "silent_for") or np.abs(params[key][MEMBER] - params[key][0]).max() > 1e-3
    # Beside the size of the terms, not of the loss: what revives dead latents is subtracted, and may leave little.
    size = alone_history["mse"] + np.abs(alone_history["loss"] - alone_history["mse"])
    np.testing.assert_allclose(history["loss"][MEMBER] / size, alone_history["loss"] / size, rtol=0, atol=1e-5)
    assert (history["mse"][:, -10:].mean(axis=1) < history["mse"][:, :3].mean(axis=1)).mean() > 0.9


@each
def test_dictionaries_stay_what_they_may_be(name):
    (params, _), _ = trained(name)
    if name == "archetypal":
        assert (params["A"] >= 0).all()
        np.testing.assert_allclose(params["A"].sum(axis=-1), 1, atol=1e-6)
        assert (np.linalg.norm(params["relax"], axis=-1) <= 1 + 1e-6).all()
        return
    norms = np.linalg.norm(params["W_dec"], axis=-1)
    kind = SAES[name].decoder_norm
    if kind == "unit":
        np.testing.assert_allclose(norms, 1, atol=1e-6)
    if kind == "ball":
        assert (norms <= 1 + 1e-6).all()
        assert (norms < 0.99).any()
    if kind == "free":
        assert (norms > 1.01).any()
    if name == "nonnegative":
        assert (params["W_dec"] >= 0).all()
        assert not params["b_dec"].any()


def test_fit_calibrates_and_calls_after_step():
    class Counter:
        def init(self, key):
            return {"steps": jnp.zeros(()), "seen": jnp.zeros(3)}

        def calibrate(self, params, x):
            return {**params, "seen": x[0]}

        def loss(self, params, x, *, key, step):
            return jnp.sum(params["seen"]), {"twice": 2.0 * step, "buffers": {"arrays": x}}

        def after_step(self, params, opt_state, aux, *, key, step):
            return {**params, "steps": params["steps"] + aux["twice"]}, opt_state

    def batch(key, n):
        return jnp.tile(jnp.arange(3.0), (n, 1))

    params, history = sp.fit(Counter(), jax.random.key(0), batch, steps=4, batch_size=5, optimizer=optax.sgd(0.5))
    assert params["steps"] == 0 + 2 + 4 + 6
    np.testing.assert_allclose(params["seen"], np.arange(3) - 4 * 0.5)
    assert set(history) == {"loss", "twice"}


# Options that all share.


@each
def test_start(name):
    sae = SAES[name]
    params = sae.init(jax.random.key(0))
    dictionary = np.asarray(sae.dictionary(params))
    if sae.decoder_norm != "free":
        np.testing.assert_allclose(np.linalg.norm(dictionary, axis=1), 1, rtol=1e-5)
    if "W_enc" in params:  # tied, up to length
        cosines = np.sum(params["W_enc"].T * dictionary, axis=1) / np.linalg.norm(dictionary, axis=1)
        np.testing.assert_allclose(cosines, np.linalg.norm(params["W_enc"], axis=0), rtol=1e-5)
    for bias in {"b_enc", "b_dec", "b_gate", "b_mag", "r_mag", "silent_for"} & params.keys():
        assert not params[bias].any()
    if name == "jumprelu":
        np.testing.assert_allclose(np.exp(params["log_threshold"]), sae.start, rtol=1e-6)
    if name == "nonnegative":
        assert (dictionary >= 0).all()


def test_untied_encoders_are_drawn_on_their_own():
    params = jax.jit(dataclasses.replace(SAES["topk"], n_latents=2000, tied=False).init)(jax.random.key(0))
    np.testing.assert_allclose(params["W_enc"].std(), (2 / (N + 2000)) ** 0.5, rtol=0.03)  # Xavier-normal
    cosines = np.sum(params["W_enc"] * params["W_dec"].T, axis=0) / np.linalg.norm(params["W_enc"], axis=0)
    assert abs(cosines.mean()) < 5 / np.sqrt(2000 * N)


@functools.cache
def calibrated(normalize):
    params, x = drawn("topk")
    sae = dataclasses.replace(SAES["topk"], normalize=normalize)

    @jax.jit
    def run(params, x):
        start = sae.calibrate(params, x)
        return start, sae.encode(start, x), sae.reconstruct(start, x)

    return functools.partial(run, params), x


def test_a_batch_without_variance_leaves_the_scale():
    params = SAES["topk"].init(jax.random.key(0))
    for x in (jnp.full((8, N), 3.3), jnp.full((1, N), 1e4), jnp.zeros((8, N))):
        assert SAES["topk"].calibrate(params, x)["scale"] == 1


def test_calibrates_half_precision_as_single():
    x = 3 + np.random.default_rng(0).normal(size=(4096, N))
    params = SAES["topk"].init(jax.random.key(0))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    found, exact = (SAES["topk"].calibrate(p, jnp.asarray(x, p["b_dec"].dtype)) for p in (half, params))
    for name in ("b_dec", "scale"):
        assert found[name].dtype == (jnp.bfloat16 if name == "b_dec" else jnp.float32)  # a scale is kept exact
        np.testing.assert_allclose(np.float32(found[name]), exact[name], rtol=1e-2)
    assert SAES["topk"].encode(params, jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_scale_makes_codes_invariant_and_reconstructions_equivariant():
    run, x = calibrated("scale")
    (start, h, y), (scaled, h_scaled, y_scaled) = run(x), run(20 * x)
    np.testing.assert_allclose(h_scaled, h, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(y_scaled, 20 * y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled["scale"], 20 * start["scale"], rtol=1e-5)
    # The root mean square distance from the median is 1, and b_dec the median.
    normalised = x / start["scale"]
    np.testing.assert_allclose(np.mean((normalised - start["b_dec"]) ** 2), 1, rtol=1e-4)
    constant, *_ = run(np.ones_like(x))
    assert constant["scale"] == 1


def test_layer_norm_takes_every_sample_apart_from_its_mean_and_deviation():
    run, x = calibrated("layer_norm")
    rng = np.random.default_rng(0)
    gain, shift = np.float32(rng.uniform(2, 5, (BATCH, 1))), np.float32(rng.normal(size=(BATCH, 1)))
    (_, h, y), (_, h_moved, y_moved) = run(x), run(gain * x + shift)
    np.testing.assert_allclose(h_moved, h, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(y_moved, gain * y + shift, rtol=1e-3, atol=1e-3)


def test_geometric_median():
    x = np.random.default_rng(0).exponential(size=(80, 3)) ** 2

    def total(point):
        return np.linalg.norm(x - point, axis=1).sum()

    best = minimize(total, x.mean(axis=0), method="BFGS", tol=1e-9)
    median = jax.jit(sp.sae.geometric_median)(jnp.asarray(x))
    np.testing.assert_allclose(total(np.asarray(median)), best.fun, rtol=1e-6)
    np.testing.assert_allclose(median, best.x, atol=2e-3)
    assert np.linalg.norm(x.mean(axis=0) - best.x) > 0.3


def test_points_are_k_means_centroids():
    x = np.random.default_rng(0).normal(size=(200, 3))
    model = KMeans(5, init=x[:5], n_init=1, max_iter=10, tol=0, algorithm="lloyd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged
        expected = model.fit(x).cluster_centers_
    np.testing.assert_allclose(jax.jit(centroids, static_argnums=1)(jnp.asarray(x), 5), expected, atol=1e-5)


ENCODERS = {"W_enc": 1, "b_enc": 0, "b_gate": 0, "r_mag": 0, "b_mag": 0, "log_threshold": 0}  # the axis of the latents


@pytest.mark.parametrize("name", ["topk", "jumprelu", "gated", "matching_pursuit", "nonnegative"])
def test_resampling(name):
    """Bricken et al. 2023: dead latents become samples, drawn by the squares of their losses; Adam forgets them."""
    sae = dataclasses.replace(SAES[name], dead="resample", resample_every=10)
    params, x = drawn(name)
    params["b_dec"] = np.zeros(N, np.float32)
    x = np.abs(x)
    rng = np.random.default_rng(0)
    opt_state = jax.tree.map(lambda leaf: np.float32(rng.uniform(1, 2, leaf.shape)), optax.adam(1e-3).init(params))
    dead = params["silent_for"] >= DEAD_AFTER
    error = np.float32(np.select([np.arange(BATCH) == 5, np.arange(BATCH) == 9], [1, 2]))  # 1 and 2, others are explained
    aux = {"buffers": {"silent_for": params["silent_for"]}, "x": x.T, "error": error}

    @jax.jit
    def run(params, opt_state, aux, step):
        keys = jax.random.split(jax.random.key(0), 300)
        return jax.vmap(lambda key: sae.after_step(params, opt_state, aux, key=key, step=step))(keys)

    (found, forgotten), (kept, remembered) = jax.device_get([run(params, opt_state, aux, step) for step in (19, 20)])
    for moment, old in ((forgotten[0].mu, opt_state[0].mu), (forgotten[0].nu, opt_state[0].nu)):
        for key in ENCODERS.keys() & params.keys() | {"W_dec"}:
            axis = ENCODERS.get(key, 0) + 1
            assert not np.compress(dead, moment[key], axis).any()
            np.testing.assert_array_equal(np.compress(~dead, moment[key][:1], axis)[0], np.compress(~dead, old[key], axis - 1))
        np.testing.assert_array_equal(moment["b_dec"][0], old["b_dec"])
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[0], old), remembered, opt_state)

    for key in params.keys() - {"W_dec"}:  # which is normalised
        np.testing.assert_array_equal(kept[key][0], params[key])
        if key in ENCODERS:
            axis = ENCODERS[key]
            np.testing.assert_array_equal(np.compress(~dead, found[key][0], axis), np.compress(~dead, params[key], axis))
            fresh = np.log(SAES[name].start) if key == "log_threshold" else 0
            assert key == "W_enc" or (found[key][:, dead] == np.float32(fresh)).all()
    np.testing.assert_array_equal(found["W_dec"][:, ~dead], kept["W_dec"][:, ~dead])
    assert not found["silent_for"][:, dead].any()
    directions = x[[5, 9]] / np.linalg.norm(x[[5, 9]], axis=1, keepdims=True)
    new = found["W_dec"][:, dead]
    similarity = new @ directions.T
    np.testing.assert_allclose(similarity.max(axis=-1), 1, atol=1e-5)
    assert abs(np.mean(similarity.argmax(axis=-1)) - 4 / 5) < 0.06  # 900 draws: four and a half standard errors
    if "W_enc" in params:
        length = 0.2 * np.linalg.norm(params["W_enc"][:, ~dead], axis=0).mean()
        np.testing.assert_allclose(found["W_enc"][:, :, dead], length * new.swapaxes(1, 2), rtol=1e-4, atol=1e-6)


def test_threshold_is_the_running_mean_of_the_smallest_kept():
    sae = SAES["batch_topk"]
    params, _ = drawn("batch_topk")
    x = np.random.default_rng(3).normal(size=(20, BATCH, N)).astype(np.float32)
    x[7] = -100 * np.sign(params["W_enc"].sum(axis=1))
    params["b_enc"][:] = 0
    params["threshold"] = np.float32(0)  # where a mean begins

    def advance(params, batch):
        i, x = batch
        _, aux = sae.loss(params, x, step=i)
        params, _ = sae.after_step(params, (), aux, key=jax.random.key(0), step=i)
        return params, params["threshold"]

    _, thresholds = jax.jit(lambda p: jax.lax.scan(advance, p, (jnp.arange(20), x)))(params)
    # `after_step` normalises the decoder, which the code does not depend on.
    expected = []
    for batch in x:
        pre = (batch / 1.7 - params["b_dec"]) @ params["W_enc"]
        smallest = np.sort(pre.ravel())[::-1][: K * BATCH].min()
        smallest = smallest if smallest > 0 else pre[pre > 0].min(initial=np.inf)
        mean = smallest if not expected else expected[-1] + 0.01 * (smallest - expected[-1])
        expected.append(mean if np.isfinite(smallest) else expected[-1])
    np.testing.assert_allclose(thresholds, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["vanilla", "topk"])
def test_sparsity_warms_up(name):
    params, x = drawn(name)
    if name == "topk":
        params["b_enc"] += 100  # all are positive

    @jax.jit
    def run(params, x, start, steps):
        def loss(start, step):
            sae = dataclasses.replace(SAES[name], dead="none", sparsity_warmup=10, sparsity_start=start)
            return sae.loss(params, x, step=step)

        return jax.vmap(jax.vmap(loss, (None, 0)), (0, None))(start, steps)

    loss, aux = run(params, x, np.array([0.0, 3.0]), np.array([0, 5, 10, 20]))
    if name == "topk":  # k divided by 0, ½ and 1, and by 3, 2 and 1
        np.testing.assert_allclose(aux["l0"], [[12, 6, 3, 3], [1, 2, 3, 3]], rtol=1e-6)
    else:
        _, paper, _ = whole_loss(name, *found(name)[1:])
        penalty = (paper.loss - squared(paper.error)) / N
        np.testing.assert_allclose(loss - aux["mse"], penalty * np.array([[0, 0.5, 1, 1], [3, 2, 1, 1]]), atol=1e-6)


@pytest.mark.parametrize("name", ["vanilla", "gated", "matryoshka"])
def test_of_silent_units_a_rectified_loss_asks_only_that_they_stay_silent(name):
    sae = dataclasses.replace(SAES[name], rectified=True, dead="none", centered=False)
    params, x = drawn(name)
    x = np.where(np.arange(N) == 0, 0, np.abs(x))
    run = jax.jit(lambda params, x, bias: sae.loss({**params, "b_dec": params["b_dec"].at[0].set(bias)}, x)[0])
    below, lower, above = (run(params, x, bias) for bias in (-20.0, -40.0, 5.0))
    np.testing.assert_allclose(below, lower, rtol=1e-6)
    assert above > below + 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *[
            (name, {"k": k}, f"k must be a whole number between 1 and n_latents = 12, got {k!r}")
            for name in ("topk", "batch_topk", "matryoshka", "matching_pursuit", "archetypal")
            for k in (0, 13)
        ],
        *[("topk", {"k": k}, "k must be a whole number") for k in (2.5, True, np.int64(13), np.nan)],
        ("topk", {"n_inputs": 0}, "n_inputs must be a whole number of at least 1, got 0"),
        ("topk", {"n_latents": 0}, "n_latents must be a whole number of at least 1, got 0"),
        ("topk", {"resample_every": 0}, "resample_every must be a whole number of at least 1, got 0"),
        ("topk", {"decoder_norm": "sphere"}, "decoder_norm of TopK takes unit, ball, free, got 'sphere'"),
        ("topk", {"normalize": "batch"}, "normalize of TopK takes none, scale, layer_norm, got 'batch'"),
        ("topk", {"bias": "mean"}, "bias of TopK takes zero, median, got 'mean'"),
        ("topk", {"dead": "ignore"}, "dead of TopK takes reanimate, auxiliary, signed, resample, none, got 'ignore'"),
        ("topk", {"dead_k": 13}, "dead_k must be between 1 and n_latents = 12, or None, got 13"),
        ("topk", {"dead_weight": -1}, "dead_weight must be at least 0, got -1"),
        *[(name, {"l1": -0.1}, "l1 must be at least 0, got -0.1") for name in ("vanilla", "gated", "nonnegative")],
        ("jumprelu", {"l0": np.nan}, "l0 must be at least 0, got nan"),
        ("jumprelu", {"bandwidth": 0}, "bandwidth must be above 0, got 0"),
        ("jumprelu", {"start": 0.0}, "start must be above 0, got 0.0"),
        ("matryoshka", {"prefixes": ()}, r"prefixes must rise from at least 1 to n_latents = 12, got \(\)"),
        ("matryoshka", {"prefixes": (4, 4, 12)}, r"prefixes must rise from at least 1 to n_latents = 12, got \(4, 4, 12\)"),
        ("matryoshka", {"prefixes": (4, 8)}, "prefixes must rise"),
        ("matryoshka", {"prefixes": (0, 12)}, "prefixes must rise"),
        ("matching_pursuit", {"decoder_norm": "free"}, "decoder_norm of MatchingPursuit takes unit, got 'free'"),
        ("matching_pursuit", {"tied": False}, "tied of MatchingPursuit takes True, got False"),
        ("matching_pursuit", {"centered": False}, "centered of MatchingPursuit takes True, got False"),
        ("matching_pursuit", {"most": 2}, "most must be at least k = 3, got 2"),
        ("matching_pursuit", {"sparsity_warmup": 5}, "most must give the largest k"),
        ("archetypal", {"n_points": 11}, "n_points must be at least n_latents = 12, got 11"),
        ("archetypal", {"decoder_norm": "unit"}, "decoder_norm of Archetypal takes free, got 'unit'"),
        ("archetypal", {"dead": "resample"}, "dead of Archetypal takes reanimate, auxiliary, signed, none, got"),
        ("nonnegative", {"bias": "median"}, "bias of NonNegative takes zero, got 'median'"),
        ("nonnegative", {"dead": "reanimate"}, "dead of NonNegative takes none, resample, got 'reanimate'"),
        ("nonnegative", {"decoder_norm": "free"}, "decoder_norm of NonNegative takes unit, ball, got 'free'"),
        ("nonnegative", {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SAES[name], **options)


@pytest.mark.parametrize("method", ["encode", "loss", "calibrate"])
def test_bad_inputs(method):
    with pytest.raises(ValueError, match=r"inputs must be \(n, 6\), got \(32, 7\)"):
        getattr(SAES["topk"], method)({}, jnp.zeros((BATCH, 7)))


def test_decode_refuses_latents_of_another_shape():
    with pytest.raises(ValueError, match=r"latents must be \(n, 12\), got \(32, 6\)"):
        SAES["topk"].decode({}, jnp.zeros((BATCH, N)))


@pytest.mark.parametrize("name", sorted(SAES.keys() - {"archetypal"}))
def test_a_start_along_lines_has_them_in_its_decoder(name):
    sae = SAES[name]
    params = sae.init(jax.random.key(0))
    lines = jax.random.normal(jax.random.key(1), (2, sae.n_inputs))
    started = sae.init_from(params, 3 * lines)
    decoder = np.asarray(started["W_dec"])
    cosines = np.sum(decoder[:2] * lines, axis=1) / np.linalg.norm(decoder[:2], axis=1) / np.linalg.norm(lines, axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(decoder, axis=1), np.linalg.norm(params["W_dec"], axis=1), rtol=1e-5)
    np.testing.assert_array_equal(decoder[2:], params["W_dec"][2:])
    with pytest.raises(ValueError, match="directions must be at most"):
        sae.init_from(params, lines[:, :1])


def test_an_sae_without_a_decoder_of_its_own_refuses_lines():
    sae = SAES["archetypal"]
    with pytest.raises(ValueError, match="Archetypal has no decoder of its own"):
        sae.init_from(sae.init(jax.random.key(0)), jnp.ones((1, sae.n_inputs)))

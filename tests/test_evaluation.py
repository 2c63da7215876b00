import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import pearson
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics import r2_score

import superpos as sp
from superpos import evaluation

HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32) / 2


UPDATE, MERGE = jax.jit(evaluation.update), jax.jit(evaluation.merge)
STABILITY = jax.jit(jax.vmap(evaluation.stability))


def evaluate(sae, params, x, **settings):
    return jax.jit(lambda params: evaluation.evaluate(sae, params, x, **settings))(params)


def close(got, wanted, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_an_orthogonal_dictionary_that_reconstructs_exactly_up_to_its_length():
    """Both signs and a dead latent, in numbers that float32 holds exactly, and inputs with mean 0."""
    rng = np.random.default_rng(0)
    signed = rng.integers(-3, 4, (150, 4)).astype(np.float32)
    signed = np.concatenate([signed, -signed])
    x, z = signed @ HADAMARD, np.maximum(np.concatenate([signed, -signed], axis=1), 0)
    sae = sp.sae.TopK(4, 9, 9, **sp.sae.PUBLISHED)
    dictionary = jnp.concatenate([HADAMARD, -HADAMARD, jnp.zeros((1, 4))])
    params = {"W_enc": dictionary.T, "b_enc": jnp.zeros(9), "b_dec": jnp.zeros(4), "silent_for": jnp.zeros(9)}

    def run(length):
        return evaluation.evaluate(sae, params | {"W_dec": length * dictionary}, x, z, batch_size=64)

    length = np.array([1, 0.5, 0.25])
    found = jax.jit(jax.vmap(run))(length)
    np.testing.assert_allclose(found.shrinkage, length, rtol=1e-6)
    np.testing.assert_allclose(found.fvu, (1 - length) ** 2, rtol=1e-5, atol=0)
    np.testing.assert_allclose(found.l0, np.tile((z > 0).sum(axis=1).mean(), 3), rtol=1e-6)
    np.testing.assert_allclose(found.density, np.tile([*(z > 0).mean(axis=0), 0], (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.dead, np.full(3, 1 / 9), rtol=1e-6)
    np.testing.assert_allclose(found.effective, np.full(3, np.exp(entropy(z.sum(axis=0)))), rtol=1e-5)
    assert len(found.recovery) == 3
    for score in found.recovery.values():
        np.testing.assert_allclose(score.mean, np.ones(3), rtol=1e-5)


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(1)
    z = rng.exponential(size=(1003, 5)) * (rng.random((1003, 5)) < 0.4)
    x = z @ rng.normal(size=(5, 3)) + 2
    h = np.maximum(z @ rng.normal(size=(5, 7)) - 1, 0)
    h[:, 2] = 0
    return [array.astype(np.float32) for array in (x, h, 0.7 * x + 0.5 * rng.normal(size=x.shape), z)]


@pytest.fixture(scope="module")
def whole(noisy):
    return evaluation.report(UPDATE(evaluation.init(3, 7, 5), *noisy))


def test_agrees_with_other_packages(noisy, whole):
    x, h, reconstruction, z = noisy
    np.testing.assert_allclose(whole.fvu, 1 - r2_score(x, reconstruction, multioutput="variance_weighted"), rtol=1e-5)
    scale = np.linalg.lstsq(reconstruction.reshape(-1, 1), x.ravel())[0]  # what to multiply reconstructions by
    np.testing.assert_allclose(whole.shrinkage, 1 / scale[0], rtol=1e-5)
    np.testing.assert_allclose(whole.l0, np.count_nonzero(h, axis=1).mean(), rtol=1e-6)
    r = pearson(np.delete(h, 2, axis=1).astype(np.float64), z.astype(np.float64))
    np.testing.assert_allclose(whole.recovery["feature_recovery"].mean, r.max(axis=0).mean(), rtol=1e-4)
    np.testing.assert_allclose(whole.recovery["mcc"].mean, np.abs(r)[linear_sum_assignment(-np.abs(r))].mean(), rtol=1e-4)
    partners = list(r.argmax(axis=0))
    np.testing.assert_allclose(whole.recovery["uniqueness"].mean, np.mean([partners.count(i) == 1 for i in partners]))


def test_streamed_and_merged_equals_at_once(noisy, whole):
    parts = [evaluation.init(3, 7, 5), evaluation.init(3, 7, 5)]
    for i in range(17):
        parts[i % 2] = UPDATE(parts[i % 2], *(array[59 * i : 59 * (i + 1)] for array in noisy))
    close(evaluation.report(MERGE(*parts)), whole, rtol=1e-5)


def test_the_batch_size_does_not_matter(noisy):
    x = noisy[0][:101]
    sae = sp.sae.BatchTopK(3, 10, 2, normalize="layer_norm")
    params = sae.init(jax.random.key(2))
    wanted = evaluate(sae, params, x)
    assert 0 < wanted.l0 < 10
    for batch_size in (10, 101):
        close(evaluate(sae, params, x, batch_size=batch_size), wanted, rtol=1e-4)


def test_all_seeds_and_settings_at_once_are_each_alone(noisy):
    x = noisy[0][:50]

    def run(key, k):
        sae = sp.sae.TopK(3, 10, k)
        params = sae.init(key)
        return evaluation.evaluate(sae, params | {"b_enc": params["b_enc"] + 100}, x, batch_size=20)

    keys, k = jax.random.split(jax.random.key(2), 3), jnp.array([1, 3, 7])
    together, alone = jax.jit(jax.vmap(run))(keys, k), jax.jit(run)
    np.testing.assert_allclose(together.l0, k, rtol=1e-6)  # the bias leaves all latents positive
    for seed in range(3):
        got = [leaf[seed] for leaf in jax.tree.leaves(together)]
        close(got, jax.tree.leaves(alone(keys[seed], k[seed])), rtol=1e-4, atol=1e-4)


def test_two_million_samples_far_from_zero_keep_their_digits():
    """A naive float32 sum of squares would lose everything: the mean is 1000 standard deviations."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(2_000_000, 2))).astype(np.float32)
    reconstruction = (0.9999 * x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
    h = (x[:, :1] > 1004).astype(np.float32)

    def add(sums, batch):
        return evaluation.update(sums, *batch), None

    batches = [array.reshape(500, 4000, -1) for array in (x, h, reconstruction)]
    found = evaluation.report(jax.jit(lambda batches: jax.lax.scan(add, evaluation.init(2, 1), batches)[0])(batches))
    x, reconstruction = x.astype(np.float64), reconstruction.astype(np.float64)
    np.testing.assert_allclose(found.fvu, 1 - r2_score(x, reconstruction, multioutput="variance_weighted"), rtol=1e-5)
    np.testing.assert_allclose(found.shrinkage, (reconstruction**2).sum() / (reconstruction * x).sum(), rtol=1e-6)
    np.testing.assert_allclose(found.density, h.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_density_histogram():
    histogram = jax.jit(evaluation.density_histogram)
    counts, never = histogram(np.float32([0, 1e-9, 3e-3, 0.02, 0.5, 0, 1, 0.9]), np.float32([-4, -2, -1, 0]))
    assert counts.tolist() == [2, 1, 3]
    assert never == 2
    counts, never = jax.vmap(histogram)(np.float32([[0.2, 0.2], [0, 2e-7]]))  # bins of half a decade, from 1e-7
    assert np.argwhere(counts).tolist() == [[0, 12], [1, 0]]
    assert counts[0, 12] == 2
    assert never.tolist() == [0, 1]


def test_decoder_cosine_is_that_of_the_nearest_latent():
    angle = 0.3
    dictionary = np.float32([[3 * np.cos(angle), 3 * np.sin(angle)], [0, 0]])
    cosine = jax.jit(evaluation.decoder_cosine)
    found = cosine(dictionary, np.float32([[2, 0], [0, 5], [-1, 0], [0, 0]]))
    np.testing.assert_allclose(found, [np.cos(angle), np.sin(angle), -np.cos(angle), np.nan], rtol=1e-6)
    assert np.isnan(cosine(np.zeros_like(dictionary), np.eye(4, 2, dtype=np.float32))).all()


@pytest.fixture(scope="module")
def dictionaries():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 9, 3)).astype(np.float32)
    a[:, 7:] = 0
    a[1, 2], b[1, 4], b[2, 3:], b[3] = 0, 0, 0, 0  # fewer latents of b than of a; none at all
    return a, b


def test_stability_is_the_optimal_assignment(dictionaries):
    found = STABILITY(*dictionaries)
    for pair in range(3):
        a, b = (side[pair][(side[pair] != 0).any(axis=1)].astype(np.float64) for side in dictionaries)
        cosine = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
        np.testing.assert_allclose(found[pair], cosine[linear_sum_assignment(-cosine)].mean(), atol=1e-6)
    assert np.isnan(found[3])


def test_stability_sees_neither_order_nor_length_nor_a_common_rotation(dictionaries):
    rng = np.random.default_rng(1)
    a, b = dictionaries[0][0], dictionaries[1][0]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    changed = (rng.uniform(0.1, 10, (9, 1)).astype(np.float32) * a)[rng.permutation(9)]
    found = STABILITY(np.stack([a, changed @ rotation, b, a]), np.stack([b, b @ rotation, a, changed]))
    np.testing.assert_allclose(found[1:3], found[0], atol=1e-6)
    np.testing.assert_allclose(found[3], 1, atol=1e-6)


def test_refuses_shapes_that_do_not_fit(noisy):
    x, h, reconstruction, z = noisy
    sums, sae = evaluation.init(3, 7), sp.sae.TopK(3, 7, 2)
    params = sae.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"x, h and reconstruction must have shapes \(n, 3\), \(n, 7\) and \(n, 3\)"):
        evaluation.update(sums, x, h[:, :6], reconstruction)
    with pytest.raises(ValueError, match="z must be as init was told, None"):
        evaluation.update(sums, x, h, reconstruction, z)
    with pytest.raises(ValueError, match=r"z must be as init was told, \(1003, 5\), got None"):
        evaluation.update(evaluation.init(3, 7, 5), x, h, reconstruction)
    with pytest.raises(ValueError, match="a and b must have the same numbers"):
        evaluation.merge(sums, evaluation.init(3, 7, 5))
    with pytest.raises(ValueError, match=r"x must be \(n_samples, 3\), at least 1 sample, got \(0, 3\)"):
        evaluation.evaluate(sae, params, x[:0])
    with pytest.raises(ValueError, match=r"z must be \(1003, n_features\), got \(1002, 5\)"):
        evaluation.evaluate(sae, params, x, z[1:])
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        evaluation.evaluate(sae, params, x, batch_size=0)
    with pytest.raises(ValueError, match=r"dictionary and directions must be matrices with as many inputs, got \(7, 3\)"):
        evaluation.decoder_cosine(params["W_dec"], jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="a and b must be matrices"):
        evaluation.stability(params["W_dec"], jnp.ones(3))
    with pytest.raises(ValueError, match="density and edges must be"):
        evaluation.density_histogram(jnp.ones(3), [0.0])

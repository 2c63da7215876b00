"""Few of many latents are decoded from their rows: as the dense product does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos.sae.kernels import _by_passes, _by_ranks, _by_sorting, sparse_linear

SAE = sp.sae.TopK(12, 600, 4, dead_after=1)


class Dense(sp.sae.TopK):
    def _code(self, params, x, step):
        return super()._code(params, x, step)._replace(positions=None)


@pytest.mark.parametrize("n", [48, 17])
def test_equals_the_dense_product_with_its_gradients(n):
    keys = jax.random.split(jax.random.key(0), 3)
    positions = jnp.argsort(jax.random.uniform(keys[0], (n, 600)), axis=1)[:, :4]
    h = jnp.zeros((n, 600)).at[jnp.arange(n)[:, None], positions].set(jax.random.normal(keys[1], (n, 4)))
    weights = jax.random.normal(keys[2], (600, 12))
    y, backward = jax.vjp(lambda h, weights: sparse_linear(h, positions, weights), h, weights)
    by_h, by_weights = backward(jnp.sin(y))
    np.testing.assert_allclose(y, h @ weights, atol=1e-5)
    np.testing.assert_allclose(by_weights, h.T @ jnp.sin(y), atol=1e-5)
    np.testing.assert_allclose(by_h, jnp.where(h != 0, jnp.sin(y) @ weights.T, 0), atol=1e-5)


def test_losses_and_gradients_are_those_of_the_dense_code(key):
    x = jax.random.normal(jax.random.key(1), (3, 40, 12))
    params = jax.vmap(SAE.init)(jax.random.split(key, 3))
    dense = Dense(12, 600, 4, dead_after=1)
    assert SAE._code(jax.tree.map(lambda leaf: leaf[0], params), x[0].T, 0).positions.shape == (40, 4)

    def both(sae):
        return jax.jit(jax.vmap(jax.value_and_grad(lambda p, x: sae.loss(p, x)[0])))(params, x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both(SAE), both(dense))


def test_accelerators_multiply():
    def slope(h, positions, weights):
        return jax.grad(lambda h, weights: jnp.sum(sparse_linear(h, positions, weights) ** 2), (0, 1))(h, weights)

    shapes = [jax.ShapeDtypeStruct(*s) for s in (((32, 600), jnp.float32), ((32, 4), jnp.int32), ((600, 12), jnp.float32))]
    traced = jax.jit(slope).trace(*shapes)
    assert "gather" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "gather" not in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_ranks_mark_what_passes_mark(k):
    x = jax.random.randint(jax.random.key(k), (8, 500), 0, 6).astype(float)  # many are equal, many are 0
    marked = _by_ranks(x, k)
    np.testing.assert_array_equal(marked, _by_passes(x, k))
    np.testing.assert_array_equal(marked, _by_sorting(jnp.maximum(x, 0), k))
    np.testing.assert_array_equal(marked.sum(axis=0), np.minimum(k, (x > 0).sum(axis=0)))


def test_no_step_waits_for_the_host_of_an_accelerator():
    """A loop whose end the data decide: its condition is more than a comparison with a number."""
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    for mask in (sp.sae.kernels.top_k_mask, sp.sae.batch_topk.largest_mask):
        traced = jax.jit(lambda x, mask=mask: mask(x, 7)).trace(x)
        conditions = {
            platform: re.findall(
                r"stablehlo.while.*?cond \{(.*?)\} do", traced.lower(lowering_platforms=(platform,)).as_text(), re.S
            )
            for platform in ("cpu", "cuda", "tpu")
        }
        open_ended = {
            platform: [text for text in found if len(re.findall(r"= stablehlo\.(?!constant)", text)) > 1 or "call" in text]
            for platform, found in conditions.items()
        }
        assert open_ended["cpu"]
        assert not open_ended["cuda"]
        assert not open_ended["tpu"]


def test_the_largest_of_a_batch_and_of_equal_ones_at_the_edge_none():
    x = jnp.array([[3.0, -1.0, 2.0], [2.0, 5.0, 0.0]])
    for count, smallest in ((1, 5.0), (2, 3.0), (3, 3.0), (4, 2.0), (6, 2.0)):
        np.testing.assert_array_equal(sp.sae.batch_topk.largest_mask(x, count), x >= smallest)


def test_bisection_ends_alike_on_all_platforms(monkeypatch):
    x = jnp.round(jax.random.normal(jax.random.key(0), (30, 40)), 1)  # many are equal
    counts = (1, 7, 100, 1200, 2000)
    expected = [sp.sae.batch_topk.largest_mask(x, count) for count in counts]
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    for count, mask in zip(counts, expected, strict=True):
        np.testing.assert_array_equal(sp.sae.batch_topk.largest_mask(x, count), mask)

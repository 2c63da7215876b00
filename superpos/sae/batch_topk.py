"""The BatchTopK sparse autoencoder."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from superpos.sae.base import Code, register
from superpos.sae.options import Params
from superpos.sae.topk import TopK, warm_k


@register("batch_topk")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchTopK(TopK):
    """Keeps the n k largest rectified latents of a batch of n samples, so that samples may differ in how many they use.

    At inference a sample must not depend on its batch: latents above a threshold are kept, the running mean of the smallest
    latent that was kept in training. So k is the mean number of active latents, in training at most.

    Source: Bussmann, Leask & Nanda 2024 (arXiv 2412.06410).

    Attributes:
        k: mean number of active latents; may be traced.

    Params: those of `SparseAutoencoder`, and `"threshold": ()`.

    >>> sae = BatchTopK(n_inputs=3, n_latents=6, k=2)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    def calibrate(self, params: Params, x: Float[Array, "n inputs"]) -> Params:
        """The start with what it takes from data: the scale of the inputs, b_dec, and the threshold."""
        params = super().calibrate(params, x)
        afresh = {**params, "threshold": jnp.zeros_like(params["threshold"])}
        return {**params, "threshold": self._code(afresh, self._columns(params, x)[0], 0).buffers["threshold"]}

    def _buffers(self) -> Params:
        return {**super()._buffers(), "threshold": jnp.zeros((), jnp.float32)}

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        pre = self._pre(params, x)
        mask = largest_mask(lax.stop_gradient(pre), warm_k(self, step) * x.shape[1])
        h = jnp.where(mask, pre, 0)
        old = lax.stop_gradient(params["threshold"])
        old = old.astype(jnp.promote_types(old.dtype, jnp.float32))
        smallest = jnp.min(jnp.where(mask, lax.stop_gradient(pre), jnp.inf)).astype(old.dtype)
        rate = jnp.where(old == 0, 1, _RATE)  # 0 is where it starts, and the mean begins
        threshold = jnp.where(jnp.isfinite(smallest), old + rate * (smallest - old), old)
        return Code(pre, h, buffers={"threshold": threshold})

    def _infer(self, params: Params, x: Array) -> Array:
        pre = self._pre(params, x)
        return jnp.where(pre > jnp.maximum(params["threshold"], 0), pre, 0)


_RATE = 0.01  # of the running mean


def largest_mask(x: Float[Array, "units n"], count: ArrayLike) -> Bool[Array, "units n"]:
    """Marks the `count` largest positive entries of all; of equal ones at the edge none.

    Bisects on the bits of the numbers, which sort as positive numbers do.
    """
    bits = lax.bitcast_convert_type(jnp.maximum(x, 0), {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize])
    zero = jnp.zeros((), bits.dtype)

    # At least `count` entries lie above low, at most as many above high.
    def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        count_above = jnp.sum(bits > middle)
        return jnp.where(count_above >= count, middle, low), jnp.where(count_above <= count, middle, high)

    def unfinished(ends):
        return ends[1] - ends[0] > 1

    def until_they_meet(*ends):
        return lax.while_loop(unfinished, halve, ends)

    def as_often_as_bits(*ends):
        return lax.fori_loop(0, 8 * x.dtype.itemsize, lambda _, ends: halve(ends), ends)

    # Ends meet as soon as exactly `count` entries lie above: about half of the passes that all bits would take. But an
    # accelerator's host would have to look after each of them.
    _, high = lax.platform_dependent(zero - 1, jnp.max(bits), cpu=until_they_meet, default=as_often_as_bits)
    return (bits > high) & (bits > 0)

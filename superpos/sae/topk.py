"""The TopK sparse autoencoder."""

import dataclasses
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from superpos.sae.base import Code, SparseAutoencoder, register
from superpos.sae.kernels import is_sparse, top_k_mask
from superpos.sae.options import Params, is_number

# Options of the code published with Longon, Klindt & Khosla (arXiv 2510.03186).
PUBLISHED: dict[str, Any] = {
    "tied": False,
    "centered": False,
    "decoder_norm": "free",
    "normalize": "none",
    "bias": "zero",
    "dead": "signed",
    "dead_after": 1,
    "dead_weight": 0.1,
}


@register("topk")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK(SparseAutoencoder):
    """Keeps the k largest rectified latents of each sample: h = topk(relu((x - b_dec) W_enc + b_enc)).

    Source: Makhzani & Frey 2013 (k-sparse autoencoders); Gao et al. 2024 (arXiv 2406.04093). With the options `PUBLISHED` it is
    that of Longon, Klindt & Khosla (arXiv 2510.03186).

    Attributes:
        k: latents that may be active in one sample; may be traced where there are few latents.

    See `SparseAutoencoder` for the options and parameters that all share.

    Raises:
        ValueError: k is not a whole number in 1..n_latents.

    >>> sae = TopK(n_inputs=3, n_latents=6, k=2)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    k: ArrayLike

    ladder: ClassVar = ("k", (3, 4, 6))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", checked_k(self.k, self.n_latents))

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        pre = self._pre(params, x)
        fixed, k = lax.stop_gradient(pre), warm_k(self, step)
        # The compiler merges this with the same in `top_k_mask`.
        positions = lax.top_k(fixed.T, k)[1] if is_sparse(k, self.n_latents) else None
        return Code(pre, jnp.where(top_k_mask(fixed, k), pre, 0), positions=positions)


def checked_k(k: Any, n_latents: int) -> Any:
    """k, a plain int unless it is traced, and then a whole number, which cannot be checked."""
    if isinstance(k, jax.core.Tracer):
        return k if jnp.issubdtype(k.dtype, jnp.integer) else jnp.round(k).astype(jnp.int32)
    if is_number(k) and not isinstance(k, numbers.Number):
        k = k.item()
    if not isinstance(k, numbers.Number | str):  # what trees of other things hold in its place
        return k
    number: Any = k
    if isinstance(k, str | bool | complex) or number != number // 1 or not 1 <= number <= n_latents:
        raise ValueError(f"k must be a whole number between 1 and n_latents = {n_latents}, got {k!r}.")
    return int(number)


def warm_k(sae: Any, step: ArrayLike) -> Any:
    """The k of a step."""
    if not sae._warms:
        return sae.k
    k = jnp.round(sae.k / jnp.maximum(sae._warm(step), 1e-6)).astype(int)
    return jnp.clip(k, 1, sae.n_latents)

"""The ReLU sparse autoencoder with an L1 penalty."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from superpos.sae.base import Code, SparseAutoencoder, register
from superpos.sae.options import COEFFICIENT, Params


@register("vanilla")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vanilla(SparseAutoencoder):
    """Rectified latents with an L1 penalty: h = relu((x - b_dec) W_enc + b_enc), |x - x̂|² + l1 Σ_i h_i |d_i|.

    Source: Bricken et al. 2023, "Towards monosemanticity"; weighing latents by the norms of their decoder rows d_i, which
    matters where those are free: Conerly et al. 2024, "Update on how we train SAEs".

    Attributes:
        l1: coefficient of the penalty, in units of the normalised inputs.

    See `SparseAutoencoder` for the options and parameters that all share.

    >>> sae = Vanilla(n_inputs=3, n_latents=6, l1=0.1)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    l1: ArrayLike = dataclasses.field(metadata=COEFFICIENT)

    ladder: ClassVar = ("l1", (1.0, 1.5, 2.5))

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        pre = self._pre(params, x)
        h = jax.nn.relu(pre)
        cost = jnp.sum(jnp.mean(h, axis=1) * jnp.linalg.norm(params["W_dec"], axis=1))
        return Code(pre, h, self._warm(step) * self.l1 * cost / self.n_inputs)

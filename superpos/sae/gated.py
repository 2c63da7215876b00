"""The gated sparse autoencoder."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from superpos.sae.base import Code, SparseAutoencoder, register
from superpos.sae.kernels import linear, mean_square
from superpos.sae.options import COEFFICIENT, Params


@register("gated")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gated(SparseAutoencoder):
    """One linear map decides which latents are active, a rescaled one how much: the L1 penalty shrinks only the former.

    π = (x - b_dec) W_enc + b_gate; h = 1[π > 0] relu((x - b_dec) W_enc exp(r_mag) + b_mag). To |x - x̂|² come l1 Σ relu(π), and
    |x - relu(π) D - b_dec|² with the decoder held fixed, which teaches the gates.

    Source: Rajamanoharan et al. 2024 (arXiv 2404.16014), equations 3 to 8.

    Attributes:
        l1: coefficient of the penalty, in units of the normalised inputs.

    Params: those of `SparseAutoencoder`, with `"b_gate"`, `"r_mag"` and `"b_mag"`, each `(n_latents,)`, in place of `"b_enc"`.

    >>> sae = Gated(n_inputs=3, n_latents=6, l1=0.1)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    l1: ArrayLike = dataclasses.field(metadata=COEFFICIENT)

    ladder: ClassVar = ("l1", (1.5, 3.0, 6.0))
    of_latents: ClassVar = SparseAutoencoder.of_latents | {"b_gate", "r_mag", "b_mag"}

    def init(self, key: Key[Array, ""]) -> Params:
        """As all start; gates and magnitudes agree."""
        params = super().init(key)
        bias = params.pop("b_enc")
        return {**params, "b_gate": bias, "r_mag": jnp.zeros_like(bias), "b_mag": bias}

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        gate = self._pre({**params, "b_enc": params["b_gate"]}, x)
        rescale, shift = jnp.exp(params["r_mag"]), params["b_mag"] - jnp.exp(params["r_mag"]) * params["b_gate"]
        magnitude = gate * rescale[:, None] + shift[:, None]
        h = jnp.where(gate > 0, jax.nn.relu(magnitude), 0)
        open_gates = jax.nn.relu(gate)
        fixed = lax.stop_gradient((self.dictionary(params), params["b_dec"]))
        taught = mean_square(self._residual(x, linear(open_gates, *fixed)))
        cost = jnp.sum(jnp.mean(open_gates, axis=1) * lax.stop_gradient(jnp.linalg.norm(params["W_dec"], axis=1)))
        return Code(gate, h, self._warm(step) * self.l1 * cost / self.n_inputs + taught)

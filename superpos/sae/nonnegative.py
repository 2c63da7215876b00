"""The non-negative sparse autoencoder: sparse non-negative matrix factorisation."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import sparse_coding
from superpos.sae.base import Code, SparseAutoencoder, register
from superpos.sae.options import COEFFICIENT, STATIC, WHOLE, Params, choice


@register("nonnegative")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NonNegative(SparseAutoencoder):
    """Non-negative sparse coding: h = argmin over h ≥ 0 of ½|x - h D|² + l1 Σ h. No encoder: FISTA infers the code.

    The dictionary learns with the code held fixed. If it is non-negative too (NMF), parts of non-negative inputs add up and
    cannot cancel; `signed` (semi-NMF) it may be anything. Of rectified units it learns best `signed` and `rectified`, with a
    sparsity that starts high (`sparsity_start=10`), so that atoms are single features before they share samples.

    Source: Hoyer 2002, "Non-negative sparse coding"; Lee & Seung 1999; Ding, Li & Jordan 2010 (semi-NMF).

    Attributes:
        l1: coefficient of the penalty, in units of the normalised inputs.
        signed: whether the dictionary may have negative entries; static.
        steps: of inference; static. So few stop short of the minimum where atoms are alike.

    Params: those of `SparseAutoencoder` without `"W_enc"` and `"b_enc"`; `"b_dec"` stays 0.

    Raises:
        ValueError: an option that this architecture does not have.

    >>> sae = NonNegative(n_inputs=3, n_latents=6, l1=0.1)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    l1: ArrayLike = dataclasses.field(metadata=COEFFICIENT)
    _: dataclasses.KW_ONLY
    signed: bool = dataclasses.field(default=False, metadata=STATIC)
    steps: int = dataclasses.field(default=30, metadata=WHOLE)
    # No encoder to start or to push; an atom that may grow makes its penalty small instead of its code sparse.
    tied: bool = choice(True)
    centered: bool = choice(False)
    bias: str = choice("zero")
    decoder_norm: str = choice("unit", "ball")
    dead: str = choice("none", "resample")

    ladder: ClassVar = ("l1", (0.1, 0.2, 0.4))

    def init(self, key: Key[Array, ""]) -> Params:
        """Random directions."""
        params = super().init(key)
        params = {name: value for name, value in params.items() if name not in ("W_enc", "b_enc")}
        return {**params, "W_dec": self.constrain(params["W_dec"] if self.signed else jnp.abs(params["W_dec"]))}

    def constrain(self, decoder: Float[Array, "latents inputs"], start: bool = False) -> Float[Array, "latents inputs"]:
        """The decoder of the norms and signs that it may have."""
        return super().constrain(decoder if start or self.signed else jnp.maximum(decoder, 0), start)

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        decoder = lax.stop_gradient(params["W_dec"])
        l1 = self._warm(step) * self.l1
        code = sparse_coding.fista(x.T, decoder, l1, rectified=self.rectified, steps=self.steps)
        h = lax.stop_gradient(code.T).astype(x.dtype)
        return Code(h, h, buffers={"b_dec": jnp.zeros_like(params["b_dec"])})

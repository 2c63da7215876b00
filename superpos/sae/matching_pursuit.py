"""The matching-pursuit sparse autoencoder."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from superpos.sae.base import Code, SparseAutoencoder, register
from superpos.sae.kernels import linear, top_k_mask
from superpos.sae.options import STATIC, Params, choice
from superpos.sae.topk import checked_k, warm_k


@register("matching_pursuit")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MatchingPursuit(SparseAutoencoder):
    """The encoder is k steps of matching pursuit with the dictionary: take the latent that explains most of what is left.

    r = x - b_dec; k times: j = argmax_i r·d_i, h_j += r·d_j, r -= (r·d_j) d_j. A latent may be taken twice. Here latents stay
    non-negative, a sample where no latent is positively correlated with the rest ends early, and decoder rows have norm 1.

    Source: Costa et al. 2025 (arXiv 2506.03093), "From flat to hierarchical".

    Attributes:
        k: latents that may be active in one sample; may be traced.
        most: steps, where k is traced or falls in a warm-up and may be less; by default k. Static.

    Params: those of `SparseAutoencoder` without `"W_enc"` and `"b_enc"`.

    Raises:
        ValueError: k is not in 1..n_latents, or an option that this architecture does not have.

    >>> sae = MatchingPursuit(n_inputs=3, n_latents=6, k=2)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    k: ArrayLike
    _: dataclasses.KW_ONLY
    most: int | None = dataclasses.field(default=None, metadata=STATIC)
    # There is no encoder to choose; atoms of other norms would be matched by their lengths.
    tied: bool = choice(True)
    centered: bool = choice(True)
    decoder_norm: str = choice("unit")

    ladder: ClassVar = ("k", (3, 4, 6))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", checked_k(self.k, self.n_latents))
        if self.most is None and (self._warms or not isinstance(self.k, int)):
            raise ValueError("most must give the largest k, where k is no plain int or sparsity warms up.")
        if self.most is not None and isinstance(self.k, int) and self.most < self.k:
            raise ValueError(f"most must be at least k = {self.k}, got {self.most}.")

    def init(self, key: Key[Array, ""]) -> Params:
        """Random directions, no encoder."""
        params = super().init(key)
        return {name: value for name, value in params.items() if name not in ("W_enc", "b_enc")}

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        decoder, k = self.dictionary(params), warm_k(self, step)
        left = x - params["b_dec"][:, None]
        start = linear(left, decoder.T)

        def pursue(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            left, h = state
            scores = linear(left, decoder.T)
            best = top_k_mask(lax.stop_gradient(scores), 1)
            gain = jnp.where(best & (i < k), scores, 0)
            return (left - linear(gain, decoder), h + gain), None

        steps = jnp.arange(self.k if self.most is None else self.most)
        (_, h), _ = lax.scan(pursue, (left, jnp.zeros_like(start)), steps)
        return Code(start, h)

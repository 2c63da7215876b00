"""The TopK sparse autoencoder."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

Params = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k largest rectified latents of each sample: x̂ = topk(relu(x W_enc + b_enc)) W_dec + b_dec.

    Source: Makhzani & Frey 2013 (k-sparse autoencoders); Gao et al. 2024 (arXiv 2406.04093); the auxiliary loss is that of
    the code published with Longon, Klindt & Khosla, arXiv 2510.03186.

    Attributes:
        n_inputs: number of units that are disentangled; static.
        n_latents: number of latents; static.
        k: latents that may be active in one sample; static.
        aux_weight: weight of the auxiliary loss, which gives latents that are silent in a whole batch a gradient.

    Params: `{"W_enc": (n_inputs, n_latents), "b_enc": (n_latents,), "W_dec": (n_latents, n_inputs), "b_dec": (n_inputs,)}`.

    Raises:
        ValueError: k is not in 1..n_latents.
    """

    n_inputs: int = dataclasses.field(metadata={"static": True})
    n_latents: int = dataclasses.field(metadata={"static": True})
    k: int = dataclasses.field(metadata={"static": True})
    aux_weight: ArrayLike = 0.1

    def __post_init__(self):
        if not 1 <= self.k <= self.n_latents:
            raise ValueError(f"k must be between 1 and n_latents = {self.n_latents}, got {self.k}.")

    def init(self, key: Key[Array, ""]) -> Params:
        """Xavier-normal encoder and decoder (not truncated), zero biases."""
        enc_key, dec_key = jax.random.split(key)
        scale = (2 / (self.n_inputs + self.n_latents)) ** 0.5
        return {
            "W_enc": scale * jax.random.normal(enc_key, (self.n_inputs, self.n_latents)),
            "b_enc": jnp.zeros(self.n_latents),
            "W_dec": scale * jax.random.normal(dec_key, (self.n_latents, self.n_inputs)),
            "b_dec": jnp.zeros(self.n_inputs),
        }

    def encode(self, params: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n latents"]:
        """Inputs to latents, at most k of them positive in each sample, the others 0."""
        pre = _pre_activations(params, x)
        return jnp.where(top_k_mask(lax.stop_gradient(pre), self.k), pre, 0)

    def decode(self, params: Params, h: Float[Array, "n latents"]) -> Float[Array, "n inputs"]:
        """Latents to reconstructed inputs."""
        return h @ params["W_dec"] + params["b_dec"]

    def loss(
        self, params: Params, x: Float[Array, "n inputs"], *, key: Array | None = None, step: ArrayLike = 0
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Mean squared error, plus `aux_weight` times that of predicting the residual from the silent latents.

        The silent latents enter with their signed pre-activations, and gradients flow through the residual too.
        """
        del key, step
        # As everywhere here, samples run along the last axis in memory: on CPU that makes every pass and matmul fast.
        pre = _pre_activations(params, x)
        active = top_k_mask(lax.stop_gradient(pre), self.k).T
        x, pre = x.T, pre.T
        silent = jnp.max(jnp.where(active, lax.stop_gradient(pre), 0), axis=1, keepdims=True) == 0
        # A latent is either active somewhere or silent: one matmul decodes both, into columns of their own.
        rows, bias = params["W_dec"], params["b_dec"][:, None]
        decoder = jnp.concatenate([jnp.where(silent, 0, rows), jnp.where(silent, rows, 0)], axis=1)
        decoded = decoder.T @ jnp.where(active | silent, pre, 0)
        residual = x - (decoded[: self.n_inputs] + bias)
        aux_residual = residual - (decoded[self.n_inputs :] + bias)
        mse, aux_mse = (jnp.mean(jnp.mean(error**2, axis=1)) for error in (residual, aux_residual))  # axis by axis: vectorises
        return mse + self.aux_weight * aux_mse, {"mse": mse, "silent": jnp.mean(silent, dtype=x.dtype)}


def _pre_activations(params, x):
    """x W_enc + b_enc, with samples along the last axis in memory."""
    return (params["W_enc"].T @ x.T + params["b_enc"][:, None]).T


def top_k_mask(x: Float[Array, "n units"], k: int) -> Bool[Array, "n units"]:
    """Marks the k largest positive entries of each row; among equal ones the first.

    k - 1 passes, each lowering a threshold to the next smaller value: many times faster than `lax.top_k` on CPU, where that
    sorts. Samples run along the last axis meanwhile, so that the passes vectorise.
    """
    columns = jnp.maximum(x.T, 0)

    def lower(_, threshold):
        return _fold(jnp.maximum, jnp.where(columns < threshold, columns, 0))

    threshold = lax.fori_loop(0, k - 1, lower, _fold(jnp.maximum, columns))
    mask = (columns >= threshold) & (columns > 0)

    # Equal values can leave too many: drop the last of the smallest until k remain. Almost always no iteration.
    def crowded(mask):
        return _fold(jnp.add, mask.astype(jnp.int32)) > k

    def drop(mask):
        smallest = mask & (columns == jnp.min(jnp.where(mask, columns, jnp.inf), axis=0))
        position = jnp.arange(len(columns))[:, None]
        victim = position == jnp.max(jnp.where(smallest, position, -1), axis=0)
        return mask & ~(crowded(mask) & victim)

    return lax.while_loop(lambda mask: jnp.any(crowded(mask)), drop, mask).T


def _fold(combine, rows):
    """Reduces the first axis by halves: on CPU one vectorised pass, where a reduction would write its input out first."""
    for _ in range(6):  # each doubles the length of the compiled pass
        if len(rows) % 2 == 0:
            rows = combine(*jnp.split(rows, 2))
    return combine.reduce(rows, axis=0)

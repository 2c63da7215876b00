"""What is done for latents that have gone silent."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from superpos.sae.kernels import linear, mean_square, top_k_mask
from superpos.sae.options import COEFFICIENT, STATIC, WHOLE, Decoder, Params, choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revival(Decoder):
    """What is done for latents that have gone silent.

    Attributes:
        dead: what is done for latents that have been silent for `dead_after` steps; static. "auxiliary": of each sample the
            `dead_k` of them with the largest positive pre-activations predict what the others leave unexplained (Gao et al.
            2024, arXiv 2406.04093); "signed": all of them do, with signed pre-activations and the bias, and gradients flow
            through what is predicted too (the code published with arXiv 2510.03186); "resample": from time to time they are
            set to badly explained samples (Bricken et al. 2023); "reanimate": their pre-activations are pushed up (Fel et al.
            2025, arXiv 2502.12892); or "none".
        dead_after: steps (batches) of silence after which a latent counts as dead; 1: silent in the batch at hand.
        dead_weight: weight of the auxiliary loss or of reanimation.
        dead_k: dead latents of a sample in the auxiliary loss; by default half of n_inputs. Static.
        resample_every: steps between resamplings; static.
    """

    dead: str = choice("reanimate", "auxiliary", "signed", "resample", "none")
    dead_after: ArrayLike = dataclasses.field(default=10, metadata=COEFFICIENT)
    dead_weight: ArrayLike = dataclasses.field(default=0.1, metadata=COEFFICIENT)
    dead_k: int | None = dataclasses.field(default=None, metadata=STATIC)
    resample_every: int = dataclasses.field(default=1000, metadata=WHOLE)

    of_latents: ClassVar[frozenset[str]] = frozenset({"b_enc", "silent_for"})  # parameters with one number a latent

    def _revive(
        self, params: Params, residual: Float[Array, "inputs n"], pre: Float[Array, "latents n"], dead: Bool[Array, " latents"]
    ) -> Float[Array, ""]:
        """What dead latents add to the loss, by their pre-activations and what is left to explain."""
        weight: Any = self.dead_weight
        decoder = self.dictionary(params)
        if self.dead == "signed":
            return weight * mean_square(residual - linear(jnp.where(dead[:, None], pre, 0), decoder, params["b_dec"]))
        if self.dead == "reanimate":
            return -weight * jnp.mean(jnp.where(dead[:, None], pre, 0))
        if self.dead != "auxiliary":
            return jnp.zeros((), residual.dtype)

        def predict() -> Array:
            k = min(max(self.n_inputs // 2, 1), self.n_latents) if self.dead_k is None else self.dead_k
            chosen = jnp.where(dead[:, None], jax.nn.relu(pre), 0)
            chosen = jnp.where(top_k_mask(lax.stop_gradient(chosen), k), chosen, 0)
            return weight * mean_square(lax.stop_gradient(residual) - linear(chosen, decoder))

        # Under vmap all models compute both branches; one model alone skips this while every latent is alive.
        return lax.cond(jnp.any(dead), predict, lambda: jnp.zeros((), residual.dtype))

    def _resampled(
        self,
        params: Params,
        opt_state: Any,
        aux: dict[str, Any],
        init: Callable[[Key[Array, ""]], Params],
        key: Key[Array, ""],
        step: ArrayLike,
    ) -> tuple[Params, Any]:
        """Parameters and state of the optimizer, resampled if that is due; what has one number a latent is as in `init`."""
        due = (jnp.asarray(step) + 1) % self.resample_every == 0
        fresh_key, draw_key = jax.random.split(key)
        fresh = {name: value for name, value in init(fresh_key).items() if name in self.of_latents}
        return lax.cond(due, _resample, lambda p, o, *_: (p, o), params, opt_state, aux, self.dead_after, fresh, draw_key)


def _resample(
    params: Params, opt_state: Any, aux: dict[str, Any], dead_after: ArrayLike, fresh: Params, key: Key[Array, ""]
) -> tuple[Params, Any]:
    """Dead latents become badly explained samples (Bricken et al. 2023, "Towards monosemanticity").

    Samples are drawn in proportion to the square of their loss; the encoder's direction is 0.2 times the mean norm of the
    living ones'; what has one number a latent starts afresh; moments of the optimizer are set to zero.
    """
    dead = aux["buffers"]["silent_for"] >= dead_after
    chosen = jax.random.categorical(key, 2 * jnp.log(aux["error"] + 1e-30), shape=dead.shape)
    directions = aux["x"][:, chosen].T - params["b_dec"]
    directions = directions / jnp.maximum(jnp.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    new = {**fresh, "W_dec": directions}
    if "W_enc" in params:
        norms = jnp.linalg.norm(params["W_enc"], axis=0)
        alive = jnp.sum(jnp.where(dead, 0, norms)) / jnp.maximum(jnp.sum(~dead), 1)
        new["W_enc"] = 0.2 * jnp.where(jnp.any(~dead), alive, 1.0) * directions.T

    def reset(old: dict[str, Any], values: Callable[[str, Array], Array]) -> dict[str, Any]:
        """The values, where a latent is dead; a matrix has latents along the axis that W_enc or W_dec has."""
        return {
            name: jnp.where(dead[:, None] if name == "W_dec" else dead, values(name, leaf), leaf).astype(leaf.dtype)
            if name in new and hasattr(leaf, "dtype")
            else leaf
            for name, leaf in old.items()
        }

    def is_moment(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == params.keys()

    def forget(node: Any) -> Any:
        if not is_moment(node):
            return node
        for name, leaf in node.items():  # what an optimizer masks has no shape
            if name in new and hasattr(leaf, "dtype") and jnp.shape(leaf) != params[name].shape:
                raise ValueError(
                    f"optimizer keeps {jnp.shape(leaf)} for {name} {params[name].shape}, and resampling cannot tell what is of "
                    "a latent: take one whose moments have the shape of the parameters, such as Adam, or another dead=."
                )
        return reset(node, lambda _, leaf: jnp.zeros_like(leaf))

    opt_state = jax.tree.map(forget, opt_state, is_leaf=is_moment)
    return reset(params, lambda name, _: new[name]), opt_state

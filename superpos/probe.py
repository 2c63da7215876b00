"""Supervised read-out: what a network that is shown the true features can tell from the units."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

Params = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """A network with one hidden layer that predicts features from units: ẑ = relu(y W_in + b_in) W_out + b_out.

    The mean squared error makes it approach E[z | y], which no other function of the units correlates better with. What it
    reads is thus about the most that any disentangler could; like the sparse inference of `superpos.sparse_coding` it is a
    control, since it knows what a sparse autoencoder has to find out.

    Attributes:
        n_inputs: number of units; static.
        n_features: number of features; static.
        width: hidden units of the probe; static.

    Params: `{"W_in": (n_inputs, width), "b_in": (width,), "W_out": (width, n_features), "b_out": (n_features,)}`.

    Raises:
        ValueError: a size that is not positive.
    """

    n_inputs: int = dataclasses.field(metadata={"static": True})
    n_features: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(default=256, metadata={"static": True})

    def __post_init__(self) -> None:
        for name in ("n_inputs", "n_features", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def init(self, key: Key[Array, ""]) -> Params:
        """He-normal weights (not truncated), zero biases."""
        in_key, out_key = jax.random.split(key)
        return {
            "W_in": (2 / self.n_inputs) ** 0.5 * jax.random.normal(in_key, (self.n_inputs, self.width)),
            "b_in": jnp.zeros(self.width),
            "W_out": (1 / self.width) ** 0.5 * jax.random.normal(out_key, (self.width, self.n_features)),
            "b_out": jnp.zeros(self.n_features),
        }

    def encode(self, params: Params, y: Float[Array, "n inputs"]) -> Float[Array, "n features"]:
        """Units to predicted features.

        Raises:
            ValueError: units of another shape.
        """
        if y.ndim != 2 or y.shape[1] != self.n_inputs:
            raise ValueError(f"units must be (n, {self.n_inputs}), got {y.shape}.")
        # Samples run along the last axis in memory, as everywhere here.
        hidden = jax.nn.relu(params["W_in"].T @ y.T + params["b_in"][:, None])
        return (params["W_out"].T @ hidden + params["b_out"][:, None]).T

    def loss(
        self,
        params: Params,
        batch: tuple[Float[Array, "n inputs"], Float[Array, "n features"]],
        *,
        key: Array | None = None,
        step: ArrayLike = 0,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Mean squared error of a batch of units and the features behind them, `(y, z)`.

        Raises:
            ValueError: units or features of another shape.
        """
        del key, step
        y, z = batch
        if z.shape != (len(y), self.n_features):
            raise ValueError(f"features must be ({len(y)}, {self.n_features}), got {z.shape}.")
        return jnp.mean(jnp.mean((self.encode(params, y).T - z.T) ** 2, axis=1)), {}

"""Toy models of superposition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

Params = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyModel:
    """An autoencoder with tied weights and fewer hidden units than features: h = relu(z W), ẑ = relu(h Wᵀ + b).

    Source: Elhage et al. 2022, "Toy models of superposition", with rectified hidden units as in Longon, Klindt & Khosla,
    arXiv 2510.03186.

    Attributes:
        n_features: number of features; static.
        n_hidden: number of hidden units; static.
        importance: weight of each feature's error in the loss, scalar or `(n_features,)`.

    Raises:
        ValueError: a size that is not positive.

    Params: `{"W": (n_features, n_hidden), "b": (n_features,)}`; W is the model's superposition arrangement.
    """

    n_features: int = dataclasses.field(metadata={"static": True})
    n_hidden: int = dataclasses.field(metadata={"static": True})
    importance: ArrayLike = 1.0

    def __post_init__(self) -> None:
        if self.n_features < 1 or self.n_hidden < 1:
            raise ValueError(f"n_features and n_hidden must be at least 1, got {self.n_features} and {self.n_hidden}.")
        shape = getattr(self.importance, "shape", ())
        if (
            isinstance(shape, tuple)
            and shape not in ((), (self.n_features,))
            and not isinstance(self.importance, jax.core.Tracer)
        ):
            raise ValueError(f"importance must be a number or ({self.n_features},), got {shape}.")

    def init(self, key: Key[Array, ""]) -> Params:
        """Xavier-normal W (not truncated), zero b."""
        scale = (2 / (self.n_features + self.n_hidden)) ** 0.5
        weights = scale * jax.random.normal(key, (self.n_features, self.n_hidden))
        return {"W": weights, "b": jnp.zeros(self.n_features)}

    def encode(self, params: Params, z: Float[Array, "*n features"]) -> Float[Array, "*n hidden"]:
        """Features to hidden units.

        Raises:
            ValueError: features of another shape.
        """
        _check("features", z, self.n_features)
        return jax.nn.relu(z @ params["W"])

    def decode(self, params: Params, h: Float[Array, "*n hidden"]) -> Float[Array, "*n features"]:
        """Hidden units to reconstructed features.

        Raises:
            ValueError: hidden units of another shape.
        """
        _check("hidden units", h, self.n_hidden)
        return jax.nn.relu(h @ params["W"].T + params["b"])

    def loss(
        self, params: Params, z: Float[Array, "n features"], *, key: Array | None = None, step: ArrayLike = 0
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Importance-weighted mean squared error: mean(importance * (z - ẑ)²).

        Fastest on batches whose features are rows in memory, as `SparseFeatures` draws them. Derivatives in reverse mode only.

        Raises:
            ValueError: features of another shape.
        """
        del key, step
        _check("features", z, self.n_features)
        # Samples run along the last axis: on CPU all five matmuls of a step are then fast, also those of few hidden units,
        # and reducing one axis at a time vectorises.
        z, w = z.T, params["W"]
        error = jax.nn.relu(_matmul(w, jax.nn.relu(w.T @ z)) + params["b"][:, None]) - z
        return jnp.mean(self.importance * jnp.mean(error**2, axis=1)), {}


def _check(name: str, array: Any, size: int) -> None:
    if jnp.shape(array)[-1:] != (size,):
        raise ValueError(f"{name} must be (n, {size}), got {jnp.shape(array)}.")


@jax.custom_vjp
def _matmul(a: Array, b: Array) -> Array:
    """`a @ b` of few rows and many columns. Autodiff would compute b's gradient transposed: on CPU up to ten times slower."""
    return a @ b


def _matmul_backward(factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = factors
    # The barrier keeps XLA from folding the transpose into the product.
    return gradient @ b.T, lax.optimization_barrier(a.T) @ gradient


_matmul.defvjp(lambda a, b: (a @ b, (a, b)), _matmul_backward)

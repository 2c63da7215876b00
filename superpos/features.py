"""Distributions of sparse ground-truth features."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseFeatures:
    """Independent features, each active with a probability and then uniform on (0, 1).

    Source: Elhage et al. 2022, "Toy models of superposition"; Longon, Klindt & Khosla, arXiv 2510.03186.

    Attributes:
        n_features: number of features; static.
        probability: of a feature being active, scalar or `(n_features,)`; may be traced and vmapped.

    Raises:
        ValueError: no feature, or a probability outside 0 to 1.

    >>> SparseFeatures(n_features=64, probability=0.1).sample(jax.random.key(0), 1000).shape
    (1000, 64)
    """

    n_features: int = dataclasses.field(metadata={"static": True})
    probability: ArrayLike = 0.1

    def __post_init__(self):
        if self.n_features < 1:
            raise ValueError(f"n_features must be at least 1, got {self.n_features}.")
        if isinstance(self.probability, (int, float)) and not 0 <= self.probability <= 1:  # traced ones can't be checked
            raise ValueError(f"probability must be between 0 and 1, got {self.probability}.")

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n features"]:
        """Draws `n` samples, `(n, n_features)`."""
        # One draw decides both: given u < p, u / p is uniform. 32 bits keep it fine-grained for small p.
        # Features are rows in memory: the layout that models train fastest on.
        bits = jax.random.bits(key, (self.n_features, n), jnp.uint32).T
        uniform = bits.astype(jnp.result_type(float)) * 2.0**-32
        return jnp.where(uniform < self.probability, uniform / self.probability, 0.0)


def power_law(n_features: int, exponent: ArrayLike = 2.0) -> Float[Array, " features"]:
    """Importance of each feature, x_i ** -exponent with x_i = 1 + 2 i / n_features: `(n_features,)`.

    Source: Longon, Klindt & Khosla, arXiv 2510.03186, toy models.
    """
    return (1 + 2 * jnp.arange(n_features) / n_features) ** -jnp.asarray(exponent)

"""Units as they are."""

import dataclasses

import jax
import jax.numpy as jnp

from superpos import linalg
from superpos.views.base import Params, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Neuron(View):
    """The identity: what every other view is compared with, and the reading of which superposition lowers the scores.

    >>> Neuron().encode({}, jnp.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    fits = False
    label = "neurons"
    colour = "#000000"
    marker = "o"

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The samples themselves."""
        del weights
        return x

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """Over how many directions the variance is spread: `dimensions`, the participation ratio of the covariance."""
        del params
        centred = x - jnp.mean(x, axis=0)
        covariance = linalg.matmul(centred.T, centred)
        return {"dimensions": jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)}

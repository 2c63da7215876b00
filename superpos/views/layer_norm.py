"""Units of each sample on one scale."""

import dataclasses

import jax
import jax.numpy as jnp

from superpos.views.base import Params, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerNorm(View):
    """The units of each sample, shifted and scaled to mean 0 and variance 1; `(n, units)`.

    It controls for normalisation: a network that reads its units through a layer norm, or an SAE that normalises its inputs,
    does not see how strong a sample is as a whole, and scores can rise for that alone. The variance is over units, without
    correction and without an epsilon. A sample whose units are all equal is read as 0. Source: Ba, Kiros & Hinton 2016, without
    gains and biases.

    Raises:
        ValueError: fewer than 2 units.

    >>> LayerNorm().encode({}, jnp.array([[1.0, 3.0], [5.0, 5.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """

    fits = False
    label = "layer-normed neurons"
    colour = "#E69F00"
    marker = "v"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for a single unit."""
        if n_units < 2:
            raise ValueError(f"n_units of LayerNorm must be at least 2, got {n_units}: a single unit would always be 0.")

    def size(self, n_units: int) -> int:
        """As many as there are."""
        return n_units

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The normalised units."""
        del weights
        centred = x - jnp.mean(x, axis=1, keepdims=True)
        deviation = jnp.std(x, axis=1, keepdims=True)
        # What equal units differ by is rounding errors. A comparison with NaN is false, so that NaN stays.
        flat = deviation <= 1e-6 * jnp.max(jnp.abs(x), axis=1, keepdims=True)
        return jnp.where(flat, 0, centred / jnp.where(flat, 1, deviation))

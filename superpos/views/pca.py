"""Principal components, as they are and split by their sign."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from superpos import linalg
from superpos.views.base import STATIC, Draw, Params, View, explained, split_signs, which


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PCA(View):
    """The first principal components of the samples that fit views; `(n, components)`, twice as many units where signed.

    It controls for the basis and for lost variance: components are a rotation of the neurons that is fitted to data, as a
    dictionary is, without sparsity or overcompleteness. With fewer of them it loses variance as an SAE does. Split by sign it
    also has up to two non-negative units for each of the side's, so that it controls for their number. Every component is kept
    where nothing else is said, also those in which the samples do not vary, so that nothing is lost.

    The entry of a direction with the largest size is positive. A finite source is read whole, whatever the key.

    Attributes:
        n_components: components that are kept, by default all.
        expansion: in place of `n_components`: as many units for each of the side's, rounded to whole units, as far as there
            are components: e of n units are min(n, max(1, round(e n))) components, and min(n, max(1, round(e n) // 2)) that
            are split in two where signed.
        signed: whether each component becomes two units, max(z, 0) and max(-z, 0), all of the first before all of the second.
        whiten: whether components are scaled to variance 1. Those in which the samples do not vary are then 0.

    Params: `{"mean": (units,), "directions": (units, components), "scale": (components,)}`.

    Raises:
        ValueError: both sizes, or one that does not fit the units.

    >>> from superpos.views.base import Rows
    >>> x = jnp.array([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]])
    >>> view = PCA(n_components=1)
    >>> view.encode(view.fit(jax.random.key(0), Rows(x)), x).tolist()
    [[-2.0], [0.0], [2.0]]
    """

    n_components: int | None = dataclasses.field(default=None, metadata=STATIC)
    _: dataclasses.KW_ONLY
    expansion: float | None = dataclasses.field(default=None, metadata=STATIC)
    signed: bool = dataclasses.field(default=False, metadata=STATIC)
    whiten: bool = dataclasses.field(default=False, metadata=STATIC)

    label = "principal components"
    colour = "#999999"
    marker = "X"

    def components(self, n_units: int) -> int:
        """How many components are kept of so many units."""
        if self.n_components is not None:
            return self.n_components
        if self.expansion is None:
            return n_units
        wanted = round(self.expansion * n_units)
        return min(n_units, max(1, wanted // 2 if self.signed else wanted))

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if self.n_components is not None and self.expansion is not None:
            raise ValueError(f"n_components of PCA takes the place of expansion, got {self.n_components} and {self.expansion}.")
        if self.n_components is not None and not 1 <= self.n_components <= n_units:
            raise ValueError(f"n_components of PCA must be between 1 and the {n_units} units, got {self.n_components}.")
        if self.expansion is not None and not self.expansion > 0:
            raise ValueError(f"expansion of PCA must be above 0, got {self.expansion}.")
        if n_samples is not None and n_samples < 2:
            raise ValueError(f"draw must have at least 2 rows to fit PCA on, got {n_samples}.")

    def size(self, n_units: int) -> int:
        """The components, twice where signed."""
        return self.components(n_units) * (2 if self.signed else 1)

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del base
        mean, directions, variance = principal(draw(*which(draw, key, data_key, every=True)))
        kept = self.components(n_units)
        scale = jnp.ones(n_units)
        if self.whiten:
            scale = linalg.inverse_deviation(variance)
        return {"mean": mean, "directions": directions[:, :kept], "scale": scale[:kept]}

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The components."""
        z = linalg.matmul(x - weights["mean"], weights["directions"]) * weights["scale"]
        return split_signs(z) if self.signed else z

    def decode(self, weights: Params, units: jax.Array) -> jax.Array:
        """The side's own units as components show them."""
        n = weights["scale"].shape[0]
        z = units[:, :n] - units[:, n:] if self.signed else units
        z = jnp.where(weights["scale"] > 0, z / jnp.where(weights["scale"] > 0, weights["scale"], 1), 0)
        return linalg.matmul(z, weights["directions"].T) + weights["mean"]

    def reconstruct(self, weights: Params, x: jax.Array) -> jax.Array:
        """What is left of the units where components are."""
        return self.decode(weights, self.apply(weights, x))

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """The share of variance `explained`."""
        return {"explained": explained(x, self.reconstruct(self.weights(params), x))}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SignedPCA(PCA):
    """`PCA` with each component split by its sign, as `PCA(signed=True)`: up to two non-negative units for each of the side's.

    It controls for the number and the sign of units: as many as the latents of an SAE of twice the units, non-negative, and
    each 0 in about half of the samples, but read off a rotation.

    >>> from superpos.views.base import Rows
    >>> x = jnp.array([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]])
    >>> view = SignedPCA(n_components=1)
    >>> view.encode(view.fit(jax.random.key(0), Rows(x)), x).tolist()
    [[0.0, 2.0], [0.0, 0.0], [2.0, 0.0]]
    """

    _: dataclasses.KW_ONLY
    signed: bool = dataclasses.field(default=True, metadata=STATIC)

    label = "components by sign"
    colour = "#555555"
    marker = "h"


def principal(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean, the principal directions in columns, and the variance along each, the largest first.

    The largest entry of each direction is positive, so that the sign does not depend on the decomposition.
    """
    mean = jnp.mean(x, axis=0)
    centred = x - mean
    variance, directions = linalg.eigh(linalg.matmul(centred.T, centred) / max(len(x) - 1, 1))
    variance, directions = jnp.maximum(variance[::-1], 0), directions[:, ::-1]
    largest = jnp.take_along_axis(directions, jnp.argmax(jnp.abs(directions), axis=0)[None], axis=0)
    return mean, directions * jnp.where(largest < 0, -1, 1), variance

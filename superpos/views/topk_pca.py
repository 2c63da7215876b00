"""The largest principal components of each sample."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from superpos.sae.kernels import top_k_mask
from superpos.views.base import STATIC, Params, View, explained, keep_nan
from superpos.views.pca import PCA


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopKPCA(View):
    """Of each sample the k components that are largest in size, the others 0; `(n, components)`.

    It controls for sparsity: as many units are active as latents in a sparse autoencoder, and what they keep of a sample is the
    most that k of these components can, but there is no dictionary, and no more directions than units.

    Attributes:
        of: the components, of `PCA`; with `PCA(signed=True)` the result is not negative.
        k: components of a sample that are kept.

    Raises:
        ValueError: a k that does not fit the components.

    >>> from superpos.views import Rows
    >>> x = jnp.array([[-9.0, 0.0], [9.0, 0.0], [0.0, -1.0], [0.0, 1.0], [3.0, 1.0]])
    >>> view = TopKPCA(k=1)
    >>> (view.encode(view.fit(jax.random.key(0), Rows(x)), x) != 0).sum(axis=1).tolist()
    [1, 1, 1, 1, 1]
    """

    of: Any = PCA()  # noqa: RUF009
    k: int = dataclasses.field(default=8, metadata=STATIC)

    label = "largest components"
    colour = "#DDCC77"
    marker = "8"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if not isinstance(self.of, PCA):
            raise ValueError(f"of of TopKPCA must be a PCA, got a {type(self.of).__name__}.")
        self.of.check(n_units, n_samples)
        if not 1 <= self.k <= self.of.components(n_units):
            there = self.of.components(n_units)
            raise ValueError(f"k of TopKPCA must be between 1 and the {there} components, got {self.k}.")

    def size(self, n_units: int) -> int:
        """As many as those of the components."""
        return self.of.size(n_units)

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The components that are kept, and zeros."""
        z = self.of.apply(weights, x)
        return keep_nan(jnp.where(top_k_mask(jnp.abs(z).T, self.k).T, z, 0), x)

    def reconstruct(self, weights: Params, x: jax.Array) -> jax.Array:
        """What is left of the units where these components are."""
        return self.of.decode(weights, self.apply(weights, x))

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """The share of variance `explained`, and `l0`, the components that are not 0 in a sample."""
        weights = self.weights(params)
        z = self.apply(weights, x)
        active = jnp.mean(jnp.sum(z != 0, axis=1, dtype=jnp.float32))
        return {"explained": explained(x, self.of.decode(weights, z)), "l0": active}

"""Units as another view shows them."""

import dataclasses
from typing import Any

import jax

from superpos.views.base import Params, View
from superpos.views.sae import SAE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruction(View):
    """The units as an autoencoder's latents show them; `(n, units)`.

    It controls for lost variance: an autoencoder drops what it cannot reconstruct, and a comparison can rise because noise or
    what two sides do not share is dropped. It has the units' own number and basis, but no more than the latents show.

    Attributes:
        of: a view with a `reconstruct`: `SAE`, `Loaded`, `PCA`, `TopKPCA`.

    Raises:
        ValueError: it is of a view without one.

    >>> from superpos.views.base import Rows
    >>> sae = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> Reconstruction(sae).encode(Reconstruction(sae).fit(jax.random.key(1), Rows(x)), x).shape
    (32, 4)
    """

    of: Any = SAE()  # noqa: RUF009

    fits = False
    label = "reconstructions"
    colour = "#AA4499"
    marker = "P"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if not hasattr(self.of, "reconstruct"):
            raise ValueError(f"of of Reconstruction must have a reconstruct, as SAE and PCA, got a {type(self.of).__name__}.")
        self.of.check(n_units, n_samples)

    def size(self, n_units: int) -> int:
        """As many as there are."""
        return n_units

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The reconstructed units."""
        return self.of.reconstruct(weights, x)

"""What a view reads, beside the units themselves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from superpos.views.base import Params, View
from superpos.views.sae import SAE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Both(View):
    """What a view reads, then the units themselves; `(n, k + units)`.

    It asks whether a view adds anything to the units: where a regression on both is no better than one on units, what the view
    reads was there for a linear map. It controls for lost variance too, for nothing is lost.

    Attributes:
        of: the view.

    >>> from superpos.views.base import Rows
    >>> sae = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> Both(sae).encode(Both(sae).fit(jax.random.key(1), Rows(x)), x).shape
    (32, 12)
    """

    of: Any = SAE()  # noqa: RUF009

    fits = False
    label = "latents and neurons"
    colour = "#56B4E9"
    marker = "D"

    def size(self, n_units: int) -> int:
        """The view's, and as many as there are."""
        return self.of.size(n_units) + n_units

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The view's units, then the side's own."""
        return jnp.concatenate([self.of.apply(weights, x), x], axis=1)

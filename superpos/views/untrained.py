"""Latents of a sparse autoencoder that has learned nothing."""

import dataclasses
from typing import Any, Self

import jax

from superpos.views.base import STATIC, Draw, Params, View, keep_nan
from superpos.views.sae import SAE, Autoencoder, report


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Untrained(View):
    """Latents of an autoencoder that has learned nothing, the control of `SAE` and `Loaded`; `(n, latents)`.

    It controls for number and sparsity: it has as many latents, non-negative, of which as many are active, and more directions
    than units, but these are random. What it leaves of a gain is due to what the autoencoder has learned.

    For an `SAE` it is what training started from, and runs the same program; of architectures without a k, latents are as
    sparse as chance has it. For a `Loaded` it is an untrained TopK. Where nothing else is
    fitted, its k, scale and median come from the samples that are scored.

    Attributes:
        of: the autoencoder.
        k: active latents of a sample, where `of` is a `Loaded`; by default `prepare` measures it.

    Raises:
        ValueError: it is of a view that is no autoencoder.

    >>> from superpos.views.base import Rows
    >>> sae = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> Untrained(sae).encode(Untrained(sae).fit(jax.random.key(1), Rows(x)), x).shape
    (32, 8)
    """

    of: Any = SAE()  # noqa: RUF009
    k: int | None = dataclasses.field(default=None, metadata=STATIC)

    random = True
    fits = False
    label = "untrained latents"
    colour = "#D55E00"
    marker = "^"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if not isinstance(self.of, Autoencoder):
            raise ValueError(f"of of Untrained must be an SAE or a Loaded, got a {type(self.of).__name__}.")
        self.of.check(n_units, n_samples)
        if self.k is not None and not 1 <= self.k <= self.of.size(n_units):
            raise ValueError(f"k of Untrained must be between 1 and the {self.of.size(n_units)} latents, got {self.k}.")

    def prepare(self, draw: Draw) -> Self:
        """The view with the number of active latents, where its autoencoder does not fix it."""
        view = super().prepare(draw)
        k = view.of.active(draw) if view.k is None else None
        return view if k is None else dataclasses.replace(view, k=k)

    def size(self, n_units: int) -> int:
        """The latents."""
        return self.of.size(n_units)

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del base, data_key
        return self.of.fit_control(key, draw, n_units, self.k)

    def weights(self, params: Params) -> Params:
        """Those of the control."""
        return self.of.control_weights(params["base"], params["own"])

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The latents."""
        return keep_nan(self.of.control(x.shape[1], self.k).encode(weights, x), x)

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """As that of the view that it is of."""
        return report(self.of.control(x.shape[1], self.k), self.weights(params), x)

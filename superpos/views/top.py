"""As many units on both sides: the best of another view's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from superpos.views.base import STATIC, Draw, Params, View
from superpos.views.neuron import Neuron

SAMPLES = 16_384  # at most, on which units are chosen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Top(View):
    """The m units of another view that vary most, or that match another side best, on the samples that fit views.

    A view with more units has more chances to match; with as many as there are neurons it has not.

    Attributes:
        of: the view whose units are chosen from.
        m: units that are kept; by default as many as the side has.
        by: "variance", or "alignment": the highest |r| with any unit of `target`.
        target: for "alignment": draws the other side's samples, the same ones as `draw` for the same key.

    >>> x = jnp.array([[0.0, 0.0, 1.0], [1.0, 9.0, 3.0]])
    >>> from superpos.views.base import Rows
    >>> Top(Neuron(), m=2).encode(Top(Neuron(), m=2).fit(jax.random.key(0), Rows(x)), x).tolist()
    [[0.0, 1.0], [9.0, 3.0]]
    """

    of: Any = dataclasses.field(default=Neuron(), metadata=STATIC)
    m: int | None = dataclasses.field(default=None, metadata=STATIC)
    by: str = dataclasses.field(default="variance", metadata=STATIC)
    target: Any = dataclasses.field(default=None, metadata=STATIC)

    label = "as many units"
    colour = "#332288"
    marker = "<"

    @property
    def random(self) -> bool:
        """As the view that it is of."""
        return self.of.random

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        self.of.check(n_units, n_samples)
        if self.by not in ("variance", "alignment"):
            raise ValueError(f"by of Top must be variance or alignment, got {self.by!r}.")
        if self.by == "alignment" and self.target is None:
            raise ValueError("target of Top must draw the other side's samples where units are chosen by alignment.")
        if self.m is not None and self.m < 1:
            raise ValueError(f"m of Top must be at least 1, got {self.m}.")

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        samples_key = jax.random.fold_in(key, 1) if data_key is None else data_key
        samples = draw(samples_key, SAMPLES)
        units = self.of.encode(base, samples)
        m = n_units if self.m is None else self.m
        if m > units.shape[1]:
            raise ValueError(f"m of Top must be at most the {units.shape[1]} units that there are, got {m}.")
        merit = jnp.var(units, axis=0)
        if self.by == "alignment":
            merit = jnp.where(merit > 0, jnp.max(jnp.abs(_correlations(units, self.target(samples_key, SAMPLES))), axis=1), -1)
        return {"chosen": jnp.argsort(-merit)[:m]}

    def weights(self, params: Params) -> Params:
        """Those of the view that it is of, and which units are chosen."""
        return {"of": self.of.weights(params["base"]), "chosen": params["own"]["chosen"]}

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The chosen units, the best first."""
        return self.of.apply(weights["of"], x)[:, weights["chosen"]]


def _correlations(x: jax.Array, y: jax.Array) -> jax.Array:
    a, b = ((side - side.mean(axis=0)) / jnp.maximum(side.std(axis=0), 1e-12) for side in (x, y))
    return a.T @ b / len(a)

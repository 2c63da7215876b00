"""As many units on both sides: the best of another view's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from superpos.views.base import STATIC, Draw, Params, View, which
from superpos.views.neuron import Neuron


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Top(View):
    """The m units of another view that vary most, or that match another side best, on the samples that fit views; `(n, m)`.

    It controls for the number of units: a view with more of them has more chances to match, and more rare units that are hard
    to match. With as many on both sides it has neither.

    Attributes:
        of: the view whose units are chosen from.
        m: units that are kept; by default as many as the side has.
        by: "variance", or "alignment": the highest |r| with any unit of `target`.
        target: for "alignment": draws the other side's samples, the same ones as `draw` for the same key.

    Params: `{"chosen": (m,)}`, the units, the best first.

    Raises:
        ValueError: more units than there are, or settings that do not fit.

    >>> x = jnp.array([[0.0, 0.0, 1.0], [1.0, 9.0, 3.0]])
    >>> from superpos.views.base import Rows
    >>> Top(Neuron(), m=2).encode(Top(Neuron(), m=2).fit(jax.random.key(0), Rows(x)), x).tolist()
    [[0.0, 1.0], [9.0, 3.0]]
    """

    of: Any = Neuron()  # noqa: RUF009
    m: int | None = dataclasses.field(default=None, metadata=STATIC)
    by: str = dataclasses.field(default="variance", metadata=STATIC)
    target: Any = dataclasses.field(default=None, metadata=STATIC)

    label = "as many units"
    colour = "#CC6677"
    marker = "<"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        self.of.check(n_units, n_samples)
        if self.by not in ("variance", "alignment"):
            raise ValueError(f"by of Top must be variance or alignment, got {self.by!r}.")
        if self.by == "alignment" and self.target is None:
            raise ValueError("target of Top must draw the other side's samples where units are chosen by alignment.")
        m, there = self._m(n_units), self.of.size(n_units)
        if not 1 <= m <= there:
            raise ValueError(f"m of Top must be between 1 and the {there} units that there are, got {m}.")

    def size(self, n_units: int) -> int:
        """The units that are kept."""
        return self._m(n_units)

    def _m(self, n_units: int) -> int:
        return n_units if self.m is None else self.m

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        asked = which(draw, key, data_key)
        units = self.of.encode(base, draw(*asked))
        merit = jnp.var(units, axis=0)
        if self.by == "alignment":
            merit = jnp.where(merit > 0, jnp.max(jnp.abs(_correlations(units, self.target(*asked))), axis=1), -1)
        return {"chosen": jnp.argsort(-merit)[: self._m(n_units)]}

    def weights(self, params: Params) -> Params:
        """Those of the view that it is of, and which units are chosen."""
        return {"of": self.of.weights(params["base"]), "chosen": params["own"]["chosen"]}

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The chosen units, the best first."""
        return self.of.apply(weights["of"], x)[:, weights["chosen"]]


def _correlations(x: jax.Array, y: jax.Array) -> jax.Array:
    a, b = ((side - side.mean(axis=0)) / jnp.maximum(side.std(axis=0), 1e-12) for side in (x, y))
    return a.T @ b / len(a)

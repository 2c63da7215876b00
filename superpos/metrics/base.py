"""What a metric is, and what it returns."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from superpos.moments import Moments


class Score(NamedTuple):
    """The score of one metric.

    Attributes:
        mean: scalar, mean over folds; NaN where a side has no live unit.
        folds: `(n_folds,)`, held-out score of each fold.
        units: `(n_folds, n_target)`, score of each target unit, NaN where masked; None where a metric has none.
        details: what was fitted: the metric's docstring names it.
    """

    mean: Float[Array, ""]
    folds: Float[Array, " folds"]
    units: Float[Array, "folds target"] | None
    details: dict[str, Any]


@runtime_checkable
class Metric(Protocol):
    """A metric: hashable, so that it can be a static argument of `jit`."""

    @property
    def name(self) -> str:
        """Its key in the result of `sp.align` and `sp.score`."""

    @property
    def reads(self) -> frozenset[str]:
        """The moments that it needs, out of `sp.moments.READS`."""

    @property
    def symmetric(self) -> bool:
        """Whether swapping source and target leaves the score as it is."""

    def __call__(self, moments: Moments, /) -> Score:
        """Scores moments."""


def correlations(moments: Moments) -> Float[Array, "folds source target"]:
    """Pearson correlation of every source unit with every target unit in each fold; 0 where one is constant."""
    norms = jnp.sqrt(moments.x.squares)[:, :, None] * jnp.sqrt(moments.y.squares)[:, None, :]
    return safe_divide(moments.xy, norms)


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is not positive; gradients stay finite."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def from_units(units: Float[Array, "folds target"], live: Bool[Array, " target"], details: dict[str, Any]) -> Score:
    """A score that is the mean over live target units, then over folds."""
    folds = jnp.sum(jnp.where(live, units, 0), axis=1) / jnp.sum(live)  # 0 / 0 is NaN: no live unit
    return Score(jnp.mean(folds), folds, jnp.where(live, units, jnp.nan), details)

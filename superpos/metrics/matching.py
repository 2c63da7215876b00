"""Metrics that match units to units: invariant to permuting units and to scaling them by positive factors.

Superposition deflates them: a unit that mixes features matches no unit that mixes them otherwise.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from superpos import transport
from superpos.metrics.base import Score, correlations, from_units
from superpos.moments import Moments, training


@dataclasses.dataclass(frozen=True)
class SemiMatch:
    """Semi-matching: each target unit takes the source unit that correlates best with it on the training part.

    score = mean over live target units j of r_test(x_{argmax_i r_train(x_i, y_j)}, y_j). Not symmetric: several targets
    may take the same source. Source: Li et al. 2015, "Convergent learning"; Longon, Klindt & Khosla, arXiv 2510.03186.

    Details: `partner`, `(folds, n_target)`, the source unit that each target takes.
    """

    name: str = "semi_match"
    reads: ClassVar[frozenset[str]] = frozenset({"xy"})
    symmetric: ClassVar[bool] = False

    def __call__(self, moments: Moments) -> Score:
        """Scores moments."""
        source, target = moments.live()
        fitted = jnp.where(source[:, None], correlations(training(moments)), -jnp.inf)
        partner = jnp.argmax(fitted, axis=1)
        units = jnp.take_along_axis(correlations(moments), partner[:, None, :], axis=1)[:, 0]
        return from_units(units, target & jnp.any(source), {"partner": partner})


@dataclasses.dataclass(frozen=True)
class SoftMatch:
    """Soft-matching: optimal transport between uniform masses on the live units of both sides.

    T maximises Σ T ∘ r_train over plans that give each live source unit mass 1 / n_source and each live target unit
    1 / n_target; score = Σ T ∘ r_test. Symmetric. A unit's score is its share of the sum, times n_target. Solved exactly (see
    `superpos.transport`). Source: Khosla & Williams 2024, arXiv 2311.09466.

    Details: `plan`, `(folds, n_source, n_target)`; `gap`, `(folds,)`, the duality gap on the training part, which bounds
    how far the plan is from optimal.
    """

    name: str = "soft_match"
    reads: ClassVar[frozenset[str]] = frozenset({"xy"})
    symmetric: ClassVar[bool] = True

    def __call__(self, moments: Moments) -> Score:
        """Scores moments."""
        source, target = moments.live()
        masses = transport.uniform_masses(source, target)
        solved = jax.vmap(lambda r: transport.exact(-r, *masses))(correlations(training(moments)))
        units = jnp.sum(solved.plan * correlations(moments), axis=1) * jnp.sum(target)
        return from_units(units, target & jnp.any(source), {"plan": solved.plan, "gap": solved.gap})

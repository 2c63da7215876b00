"""How much of the ground truth a representation shows: the target units are the true features.

Nothing is fitted: each held-out part is scored alone, so that `folds=None` or moments of one fold score all samples. The best
of many units is above chance in few samples; a permutation null (`sp.stats.permutation_test`) says by how much.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from superpos import transport
from superpos.metrics.base import Metric, Score, correlations, from_units
from superpos.metrics.registry import register
from superpos.moments import Moments


@dataclasses.dataclass(frozen=True)
class FeatureRecovery(Metric):
    """Feature recovery: for each feature its highest Pearson correlation with any unit.

    Source: Longon, Klindt & Khosla, arXiv 2510.03186, feature recovery of the toy models.

    Details: `partner`, `(folds, n_features)`, the unit of the highest correlation.

    >>> import superpos as sp
    >>> metric = sp.metrics.FeatureRecovery()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["feature_recovery"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['partner'])
    """

    name: str = "feature_recovery"

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The highest correlation of each feature."""
        del fitted
        source, target = evidence.live()
        r = jnp.where(source[:, None], correlations(evidence), -jnp.inf)
        return from_units(jnp.max(r, axis=1), target & jnp.any(source), {"partner": jnp.argmax(r, axis=1)})


@dataclasses.dataclass(frozen=True)
class MeanCorrelation(Metric):
    """Mean correlation coefficient (MCC): mean |r| over an exact one-to-one matching of units and features.

    The matching maximises the sum of |r|; the mean is over min(n_units, n_features) pairs. Source: Hyvärinen & Morioka 2016.

    Attributes:
        signed: match and average r itself, for features whose sign means something.
        name: its key in the result.

    Details: `partner`, `(folds, n_features)`, the unit of each feature, -1 where it has none.

    >>> import superpos as sp
    >>> metric = sp.metrics.MeanCorrelation()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["mcc"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['partner'])
    """

    signed: bool = False
    name: str = "mcc"
    symmetric: ClassVar[bool] = True

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The correlation of each matched pair."""
        del fitted
        source, target = evidence.live()
        r = correlations(evidence)
        r = r if self.signed else jnp.abs(r)
        partner = jax.vmap(lambda r: transport.assignment(-r, source, target).source_of)(jax.lax.stop_gradient(r))
        units = jnp.take_along_axis(r, jnp.maximum(partner, 0)[:, None, :], axis=1)[:, 0]
        return from_units(units, target & jnp.any(source) & (partner >= 0), {"partner": partner})


@dataclasses.dataclass(frozen=True)
class Uniqueness(Metric):
    """Uniqueness: the share of features whose best unit is the best unit of no other feature.

    1 where every feature has a unit to itself; low in superposition, and at most n_units / n_features where units are fewer.
    Best is highest Pearson correlation, as in `FeatureRecovery`. The definition is ours.

    A unit's score is 1 or 0. No gradient.

    >>> import superpos as sp
    >>> metric = sp.metrics.Uniqueness()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["uniqueness"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['partner'])
    """

    name: str = "uniqueness"
    differentiable: ClassVar[bool] = False

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """Whether each feature has its best unit to itself."""
        del fitted
        source, target = evidence.live()
        r = correlations(evidence)
        r = jnp.where(source[:, None], r, -jnp.inf)
        # Of units that are repeated the first: which of them rounding favours must not decide whether features share one.
        partner = jnp.argmax(r >= jnp.max(r, axis=1, keepdims=True) - 16 * jnp.finfo(r.dtype).eps, axis=1)
        shared = (partner[:, :, None] == partner[:, None, :]) & target & ~jnp.eye(target.size, dtype=bool)
        alone = (~jnp.any(shared, axis=2)).astype(r.dtype)
        return from_units(alone, target & jnp.any(source), {"partner": partner})


register(FeatureRecovery(), MeanCorrelation(), Uniqueness())

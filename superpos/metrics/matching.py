"""Metrics that match units to units: invariant to permuting units and to scaling them by positive factors.

Superposition deflates them most: a unit that mixes features matches no unit that mixes them otherwise, and even as many units
as features do not help. Other metrics are deflated too, each by its own law (`superpos.theory.laws`).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from superpos import transport
from superpos.linalg import matmul
from superpos.metrics.base import (
    Metric,
    Samples,
    Score,
    correlations,
    from_folds,
    from_units,
    safe_divide,
    safe_norm,
    safe_sqrt,
)
from superpos.metrics.registry import register
from superpos.moments import Moments, training


@dataclasses.dataclass(frozen=True)
class SemiMatch(Metric):
    """Semi-matching: each target unit takes the source unit that correlates best with it on the training part.

    score = mean over live target units j of r_test(x_{argmax_i r_train(x_i, y_j)}, y_j). Not symmetric: several targets
    may take the same source. Source: Li et al. 2015, "Convergent learning"; Longon, Klindt & Khosla, arXiv 2510.03186.

    Details: `partner`, `(folds, n_target)`, the source unit that each target takes.

    >>> import superpos as sp
    >>> metric = sp.metrics.SemiMatch()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["semi_match"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['partner'])
    """

    name: str = "semi_match"

    def fit(self, evidence: Moments) -> Any:
        """The partner of each target unit."""
        source, _ = evidence.live()
        return jnp.argmax(jnp.where(source[:, None], correlations(training(evidence)), -jnp.inf), axis=1)

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The correlation of each target unit with its partner."""
        source, target = evidence.live()
        return from_units(_with_partner(evidence, fitted), target & jnp.any(source), {"partner": fitted})


class Solved(Metric):
    """A metric whose pairs of units an exact solver finds."""

    def room(self, n_source: int, n_target: int) -> int:
        """The solver's."""
        return transport.room(n_source, n_target)


@dataclasses.dataclass(frozen=True)
class PermutationMatch(Solved):
    """One-to-one matching: an exact assignment of source to target units on the training part.

    score = mean over the min(n_source, n_target) matched pairs of r_test, the pairs maximising the sum of r_train. Symmetric.
    Target units without a partner have no score. Source: Li et al. 2015, "Convergent learning" (there by greedy or
    maximum-weight matching); with equally many units soft_match solves the same problem.

    Details: `partner`, `(folds, n_target)`, the source unit of each target, -1 where it has none; `gap`, `(folds,)`, the
    duality gap of the sum over pairs on the training part.

    >>> import superpos as sp
    >>> metric = sp.metrics.PermutationMatch()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["permutation_match"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['gap', 'partner'])
    """

    name: str = "permutation_match"
    symmetric: ClassVar[bool] = True

    def fit(self, evidence: Moments) -> Any:
        """The assignment."""
        masks = evidence.live()
        solved = jax.vmap(lambda r: transport.assignment(-r, *masks))(lax.stop_gradient(correlations(training(evidence))))
        return solved.source_of, solved.gap

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The correlation of each matched pair."""
        source, target = evidence.live()
        partner, gap = fitted
        units = _with_partner(evidence, jnp.maximum(partner, 0))
        return from_units(units, target & jnp.any(source) & (partner >= 0), {"partner": partner, "gap": gap})


@dataclasses.dataclass(frozen=True)
class SoftMatch(Solved):
    """Soft-matching: optimal transport between uniform masses on the live units of both sides.

    T maximises Σ T ∘ r_train over plans that give each live source unit mass 1 / n_source and each live target unit
    1 / n_target; score = Σ T ∘ r_test. Symmetric. A unit's score is its share of the sum, times n_target. Solved exactly (see
    `superpos.transport`). Source: Khosla & Williams 2024, arXiv 2311.09466.

    Details: `plan`, `(folds, n_source, n_target)`; `gap`, `(folds,)`, the duality gap on the training part, which bounds
    how far the plan is from optimal.

    >>> import superpos as sp
    >>> metric = sp.metrics.SoftMatch()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["soft_match"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['gap', 'plan'])
    """

    name: str = "soft_match"
    symmetric: ClassVar[bool] = True

    def fit(self, evidence: Moments) -> Any:
        """The transport plan and its duality gap."""
        return _transport(-correlations(training(evidence)), evidence)

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The correlations that the plan pairs."""
        source, target = evidence.live()
        plan, gap = fitted
        units = jnp.sum(plan * correlations(evidence), axis=1) * jnp.sum(target)
        return from_units(units, target & jnp.any(source), {"plan": plan, "gap": gap})


@dataclasses.dataclass(frozen=True)
class SoftMatchDistance(Solved):
    """The soft-matching distance: the 2-Wasserstein distance between the two sets of tuning curves.

    d = √(Σ T ∘ C_test), C_ij = |x_i - y_j|², T the transport plan that minimises Σ T ∘ C_train. With `normalise` each unit is
    centred and scaled to norm 1, so that C = 2 - 2 r and d = √(2 - 2 soft_match); without, units are centred and C is the
    mean square over samples. A metric on representations when fitted and evaluated on the same samples (`folds=None`).
    Symmetric; 0 for equal sides, by `sp.align` down to rounding, from moments alone (`sp.score`) down to √eps. Source: Khosla
    & Williams 2024, arXiv 2311.09466.

    Attributes:
        normalise: scale each unit to norm 1; otherwise the distance is not invariant to scaling units.
        name: its key in the result.

    Details: `plan` and `gap` as in `SoftMatch`, the gap being that of d².

    >>> import superpos as sp
    >>> metric = sp.metrics.SoftMatchDistance()
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["soft_match_distance"]  # traced alone, to be quick
    >>> score.folds.shape, sorted(score.details)
    ((5,), ['gap', 'plan'])
    """

    normalise: bool = True
    name: str = "soft_match_distance"
    symmetric: ClassVar[bool] = True
    distance: ClassVar[bool] = True
    second_pass: ClassVar[bool] = True  # small distances are differences of samples, not of moments

    def fit(self, evidence: Moments) -> Any:
        """The transport plan and its duality gap."""
        return _transport(self._cost(training(evidence)), evidence)

    def evaluate(self, fitted: Any, evidence: Moments | Samples) -> Score:
        """The distance under the plan."""
        plan, gap = fitted
        if isinstance(evidence, Samples):
            cost, live = self._cost_of_samples(plan, evidence), (evidence.source, evidence.target)
        else:
            cost, live = self._cost(evidence), evidence.live()
        squared = jnp.sum(jnp.where(plan > 0, plan * cost, 0), axis=(1, 2))
        return from_folds(safe_sqrt(squared), live, {"plan": plan, "gap": gap})

    def _cost_of_samples(self, plan: Array, samples: Samples) -> Array:
        """The cost in each fold: of a target unit's partners from their differences, of other pairs from their products."""
        n_source, n_target = plan.shape[1:]
        n_partners = min(n_source, -(-n_source // n_target) + 1)  # as many have mass, but for a few units

        def of_fold(inputs: tuple[Array, Array]) -> Array:
            fold, plan = inputs
            x, y, count = samples.centred(fold)
            if self.normalise:
                x, y = (v * safe_divide(jnp.ones_like(v[0]), safe_norm(v, axis=0)) for v in (x, y))
                count = jnp.ones_like(count)
            squares = [jnp.sum(v**2, axis=0) for v in (x, y)]
            cost = squares[0][:, None] + squares[1] - 2 * matmul(x.T, y)
            _, partners = lax.top_k(plan.T, n_partners)
            exact = lax.map(lambda partner: jnp.sum((x[:, partner] - y) ** 2, axis=0), partners.T)
            return cost.at[partners.T, jnp.arange(n_target)].set(exact) / count

        return lax.map(of_fold, (jnp.arange(samples.n_folds), plan))

    def _cost(self, moments: Moments) -> Array:
        if self.normalise:
            return 2 - 2 * correlations(moments)
        squares = moments.x.squares[:, :, None] + moments.y.squares[:, None, :] - 2 * moments.xy
        return squares / moments.count[:, None, None]


@dataclasses.dataclass(frozen=True)
class PartialSoftMatch(Solved):
    """Partial soft-matching: optimal transport of a share of the mass, so that units without a counterpart stay unmatched.

    T maximises Σ T ∘ r_train over plans that take at most 1 / n_source from each live source unit, bring at most 1 / n_target
    to each live target unit, and move mass s in all; score = Σ T ∘ r_test / s. A target unit's score is the mean correlation
    over the mass that it receives; it has none where it stays unmatched. Symmetric. Source: Kapoor, Williams & Khosla, ICLR
    2026, arXiv 2602.19331.

    Attributes:
        mass: s, between 0 and 1; None chooses it by an L-curve on the training part: of s = 1/20, 2/20, ..., 1 the one at
            which the curve of transport cost Σ T ∘ (1 - r_train) against s lies farthest below its chord. The source names
            the L-curve; this rule for its elbow is ours.
        name: its key in the result.

    Details: `mass`, `(folds,)`, s, to the precision of the solver's integers; `source_mass`, `(folds, n_source)`, and
    `target_mass`, `(folds, n_target)`, how much of each unit is matched, 1 being all of it; `plan`, `(folds, n_source,
    n_target)`; `gap`, `(folds,)`.

    Raises:
        ValueError: a mass outside (0, 1].

    >>> import superpos as sp
    >>> metric = sp.metrics.PartialSoftMatch(mass=0.5)
    >>> x, y = jnp.zeros((30, 3)), jnp.zeros((30, 2))
    >>> score = jax.eval_shape(lambda x, y: sp.align(x, y, metric), x, y)["partial_soft_match"]  # traced alone, to be quick
    >>> score.units.shape, sorted(score.details)
    ((5, 2), ['gap', 'mass', 'plan', 'source_mass', 'target_mass'])
    """

    mass: float | None = None
    name: str = "partial_soft_match"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mass is not None and not 0 < self.mass <= 1:
            raise ValueError(f"mass must be above 0 and at most 1, got {self.mass}.")

    def room(self, n_source: int, n_target: int) -> int:
        """The solver's, and the plans of the L-curve."""
        return super().room(n_source, n_target) + (0 if self.mass else 20 * 4 * n_source * n_target)

    def fit(self, evidence: Moments) -> Any:
        """The transport plan, the mass it moves, and its duality gap."""
        masks = evidence.live()

        def solve(r: Array, mass: Any) -> tuple[Array, Array, Array]:
            solved, moved = transport.partial(-r, *masks, mass)
            return solved.plan, moved, solved.gap

        def of_fold(r: Array) -> Any:
            if self.mass is not None:
                return solve(r, self.mass)
            masses = jnp.arange(1, 21) / 20
            plans = lax.map(lambda mass: solve(r, mass), masses)
            cost = jnp.sum(jnp.where(plans[0] > 0, plans[0] * (1 - r), 0), axis=(1, 2))
            chord = cost[0] + (cost[-1] - cost[0]) * (masses - masses[0]) / (masses[-1] - masses[0])
            return jax.tree.map(lambda leaf: leaf[jnp.argmax(chord - cost)], plans)

        return jax.vmap(of_fold)(lax.stop_gradient(correlations(training(evidence))))

    def evaluate(self, fitted: Any, evidence: Moments) -> Score:
        """The correlations that the plan pairs."""
        plan, mass, gap = fitted
        source, target = evidence.live()
        paired = jnp.sum(plan * correlations(evidence), axis=1)
        received = jnp.sum(plan, axis=1)
        folds = jnp.where(jnp.any(source) & jnp.any(target), jnp.sum(paired, axis=1) / mass, jnp.nan)
        matched = received > 0.5 * jnp.finfo(plan.dtype).eps
        details = {
            "mass": mass,
            "source_mass": jnp.sum(plan, axis=2) * jnp.sum(source),
            "target_mass": received * jnp.sum(target),
            "plan": plan,
            "gap": gap,
        }
        return Score(jnp.mean(folds), folds, jnp.where(matched, safe_divide(paired, received), jnp.nan), details)

    def weigh(self, score: Score, weights: Float[Array, "*folds target"]) -> Score:
        """The score in which units count by their weights times the mass that they receive, which they count by without."""
        return super().weigh(score, weights * score.details["target_mass"])


def _with_partner(moments: Moments, partner: Array) -> Array:
    return jnp.take_along_axis(correlations(moments), partner[:, None, :], axis=1)[:, 0]


def _transport(cost: Array, evidence: Moments) -> tuple[Array, Array]:
    """The optimal plan of each fold between uniform masses on live units, and its duality gap."""
    masses = transport.uniform_masses(*evidence.live())
    solved = jax.vmap(lambda c: transport.exact(c, *masses))(cost)
    return solved.plan, solved.gap


register(SemiMatch(), SoftMatch(), PermutationMatch(), PartialSoftMatch(), SoftMatchDistance())

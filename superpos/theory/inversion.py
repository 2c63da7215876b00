"""The overlap that a score implies, and the range that the score cannot tell apart."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from superpos.theory.laws import RANDOM, Family, _checked, _equal, expected, random_cumulant_cka


class Implied(NamedTuple):
    """An overlap, from a score alone.

    Attributes:
        overlap: ρ if both arrangements are random and independent; 1 where the score is higher than such arrangements give.
        low: ρ if shared features are arranged alike on both sides.
        high: ρ if nothing is known of the arrangements: that of independent ones. Between low and high the score does not tell.
        beyond: whether the score is higher than independent arrangements of the same features give: then they are not
        independent.
    """

    overlap: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    beyond: Array


def invert(metric: str, score: Any, n_source: int, n_target: int, dimension: Any, *, family: Family = "gaussian") -> Implied:
    """The overlap ρ that a score implies, of two sides with `dimension` features each.

    Every law grows with ρ: it is solved by bisection. The range is that between the same features in other arrangements and
    fewer features in the same arrangement. With as many units on both sides; otherwise low is NaN.

    Args:
        metric: a name out of `RANDOM`.
        score: of an endless sample: undo noise and samples first (`superpos.theory.finite`).
        n_source, n_target, dimension, family: as in `random_cka`.

    Raises:
        ValueError: a score outside 0 to 1 (jaccard: 1/3 to 1), and what the laws refuse.

    >>> implied = invert("cka", 0.25, 16, 16, 64, family="tight")
    >>> round(float(implied.low), 2), round(float(implied.high), 2)
    (0.43, 1.0)
    """
    least = 1 / 3 if metric == "jaccard" else 0.0
    if not isinstance(score, jax.core.Tracer) and not least <= score <= 1:
        raise ValueError(f"score of {metric} must be between {least:.3g} and 1, got {score}.")
    expected(metric, (n_source, n_target), dimension, family=family)  # says what is wrong
    return _implied(metric, family, score, float(n_source), float(n_target), dimension, n_source == n_target)


@partial(jax.jit, static_argnums=(0, 1, 6))
def _implied(metric: str, family: Family, score: Any, n_source: Any, n_target: Any, dimension: Any, alike: bool) -> Implied:
    sizes = {"dimension": dimension, "family": family}
    overlap, beyond = _solve(lambda rho: expected(metric, (n_source, n_target), overlap=rho, **sizes), score)
    low = jnp.full((), jnp.nan)
    if alike:
        low = _solve(lambda rho: same_arrangement(metric, n_source, overlap=rho, **sizes), score)[0]
    return Implied(overlap, jnp.minimum(low, overlap), overlap, beyond)


def _solve(law: Callable[[Any], Array], score: Any) -> tuple[Array, Array]:
    """Where a growing function of 0..1 reaches a score, and whether it stays below it."""

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = law(middle) < score
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    top = law(jnp.ones(()))
    low, high = jax.lax.fori_loop(0, 24, halve, (jnp.zeros(()), jnp.ones(())))
    beyond = jnp.asarray(score) > top * (1 + 1e-5)
    return jnp.where(jnp.asarray(score) >= top, 1.0, (low + high) / 2), beyond


def same_arrangement(
    metric: str, n_units: int, dimension: Any, *, overlap: Any = 1.0, family: Family = "gaussian"
) -> Float[Array, ""]:
    """The expected score where the shared features have one and the same arrangement, and private ones random ones.

    With t = n / d: procrustes ρ, exact; cka ρ (ρ d + n + 1) / (d + n + 1) (Gaussian), (t ρ + ρ² - t ρ²) (tight), ols the root
    of the latter, as free probability has tr (p e p e) of a projection cut to shared features; cca and its kin ρ, and
    matching ρ, each unit with its own copy, to leading order, but at least as much as other arrangements give; rsa as cka.

    Raises:
        ValueError: as the laws.

    >>> round(float(same_arrangement("cka", 16, 64, overlap=0.5, family="tight")), 3)
    0.312
    """
    if metric not in RANDOM:
        expected(metric, n_units, dimension)
    (n, m), d, rho = _checked(n_units, dimension, overlap, family)
    _equal("same_arrangement", n, m)
    t = jnp.minimum(n / d, 1)
    free = t * rho + rho**2 - t * rho**2
    if metric in ("cka", "debiased_cka", "rsa"):
        gaussian = rho * (rho * d + n + 1) / (d + n + 1)
        return gaussian if family == "gaussian" else free
    if metric in ("ols", "ridge", "pls"):
        return jnp.sqrt(free)
    if metric in ("procrustes", "cca", "svcca", "pwcca"):
        return rho
    if metric == "jaccard":
        angle = jnp.arcsin(rho) / (2 * jnp.pi)
        alone = (0.25 + angle) / (0.75 - angle)
    elif metric == "cumulant_cka":
        # |K_xy|² is that of K_xx over shared features: squares of interference count once more.
        whole = random_cumulant_cka(n_units, dimension, family=family)
        return rho * (whole + rho * (1 - whole))
    else:
        alone = rho
    return jnp.maximum(alone, expected(metric, n_units, dimension, overlap=overlap, family=family))

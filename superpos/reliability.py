"""Noise ceilings: how well repeated responses agree with themselves, and scores corrected for it.

Repeated responses are `(n_stimuli, n_repeats, n_units)` everywhere, or an xarray.DataArray whose dims say which axis is which.
"""

import functools
import warnings
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos.checks import repeated
from superpos.metrics.base import Score, positive_integer, safe_divide, safe_sqrt


def spearman_brown(r: ArrayLike, factor: ArrayLike = 2.0) -> Array:
    """Reliability of a measurement `factor` times as long as those that correlate with `r`: factor r / (1 + (factor - 1) r).

    Source: Spearman 1910; Brown 1910.

    >>> round(float(spearman_brown(0.5)), 3)
    0.667
    """
    r, factor = jnp.asarray(r), jnp.asarray(factor)
    return factor * r / (1 + (factor - 1) * r)


def split_half(responses: Any, key: Key[Array, ""] | None = None, n_splits: int = 100) -> Float[Array, " units"]:
    """Reliability of each unit's mean response over repeats, from random halves of the repeats.

    In each split every stimulus's repeats are halved at random (one is left out where their number is odd), the halves
    averaged, and correlated over stimuli; the mean correlation over splits is extrapolated by the Spearman-Brown formula from
    the number of repeats in a half to that in the mean response. The square root of the result is the noise ceiling: the
    highest correlation with the mean response that a perfect model can be expected to reach.

    Args:
        responses: `(n_stimuli, n_repeats, n_units)`, NaN where a repeat is missing; or with named axes, see
            `superpos.checks.repeated`.
        key: draws the splits; by default `jax.random.key(0)`.
        n_splits: number of splits; static.

    Returns:
        `(n_units,)`, at most 1, NaN for constant units; negative where halves disagree. A unit that is silent in a half of
        some splits has the mean of the others, and a warning says of how many splits.

    Raises:
        ValueError: as in `superpos.checks.repeated`; fewer than two repeats in all, or of one stimulus and unit.

    >>> signal = jax.random.normal(jax.random.key(0), (50, 2))
    >>> print(split_half(np.stack([signal, signal], axis=1), n_splits=5).round(3))  # without noise
    [1. 1.]
    """
    positive_integer("n_splits", n_splits)
    responses = repeated(responses)
    if responses.shape[1] < 2:
        raise ValueError(f"responses must be (n_stimuli, n_repeats, n_units), at least 2 repeats, got {responses.shape}.")
    if not isinstance(responses, jax.core.Tracer) and ((~np.isnan(responses)).sum(axis=1) < 2).any():
        stimulus, unit = np.argwhere((~np.isnan(responses)).sum(axis=1) < 2)[0]
        raise ValueError(
            f"responses has fewer than two repeats of stimulus {stimulus} for unit {unit}: leave that stimulus out."
        )
    # Of its own: noise that was simulated with the same key would decide which half a repeat is in.
    key = jax.random.fold_in(jax.random.key(0) if key is None else key, zlib.crc32(b"split_half"))
    found, defined = _split_half(jnp.asarray(responses), key, n_splits)
    if not isinstance(defined, jax.core.Tracer):
        partly = np.flatnonzero((np.asarray(defined) > 0) & (np.asarray(defined) < n_splits))
        if len(partly):
            warnings.warn(
                f"responses has units that are silent in a half of some splits: {len(partly)} of {len(defined)}, first "
                f"unit {partly[0]}; their reliability is the mean of {np.asarray(defined)[partly].min()} of {n_splits} splits, "
                "or of more.",
                RuntimeWarning,
                stacklevel=2,
            )
    return found


@functools.partial(jax.jit, static_argnames="n_splits")
def _split_half(responses: Array, key: Array, n_splits: int) -> tuple[Array, Array]:
    """The reliability of each unit, and in how many splits both of its halves vary."""
    there = ~jnp.isnan(responses)
    values = jnp.where(there, responses, 0)
    values = values - jnp.sum(values, axis=(0, 1)) / jnp.sum(there, axis=(0, 1))  # digits, not the result, depend on it
    values = jnp.where(there, values, 0)
    repeats = jnp.sum(there, axis=1)
    half = repeats // 2

    def correlation(key: Array) -> tuple[Array, Array]:
        drawn = jnp.where(there, jax.random.uniform(key, responses.shape), jnp.inf)
        rank = jnp.argsort(jnp.argsort(drawn, axis=1), axis=1)
        halves = (rank < half[:, None]), (rank >= half[:, None]) & (rank < 2 * half[:, None])
        a, b = (jnp.sum(jnp.where(inside, values, 0), axis=1) / half for inside in halves)
        varies = (jnp.ptp(a, axis=0) > 0) & (jnp.ptp(b, axis=0) > 0)
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        return safe_divide(jnp.sum(a * b, axis=0), safe_sqrt(jnp.sum(a**2, axis=0)) * safe_sqrt(jnp.sum(b**2, axis=0))), varies

    r, varies = lax.map(correlation, jax.random.split(key, n_splits))
    defined = jnp.sum(varies, axis=0)
    r = jnp.sum(jnp.where(varies, r, 0), axis=0) / defined  # 0 / 0 is NaN: a constant unit
    # Noise goes down as one over the number of repeats, and its variances add up over stimuli.
    return spearman_brown(r, jnp.mean(1 / half, axis=0) / jnp.mean(1 / repeats, axis=0)), defined


class Ceiling(NamedTuple):
    """The most that a perfect model can be expected to reach for each unit, in the two ways in which scores are told.

    Attributes:
        r: `(units,)`, of a correlation with the mean response: √reliability.
        share: `(units,)`, of the share of its variance (r²): the reliability itself.
    """

    r: Float[Array, " units"]
    share: Float[Array, " units"]


def ceiling(reliability: ArrayLike) -> Ceiling:
    """What noise leaves of a perfect score, as r and as a share of variance: never compare a score with the other one.

    Args:
        reliability: `(units,)`, from `split_half`, or a recording's `noise_ceiling`, which is that share; what is below 0
            counts as 0.

    >>> ceiling([0.25])
    Ceiling(r=Array([0.5], dtype=float32), share=Array([0.25], dtype=float32))
    """
    share = jnp.maximum(jnp.asarray(reliability), 0)
    return Ceiling(jnp.sqrt(share), share)


def disattenuate(score: Score, reliability: ArrayLike, minimum: float = 0.1) -> Score:
    """A score corrected for attenuation: unit correlations are divided by the target units' noise ceiling, r / √reliability.

    Source: Spearman 1904, "The proof and measurement of association between two things", with a source that is free of noise.

    Args:
        score: of a metric whose units are correlations: matching or regression.
        reliability: `(n_target,)`, for instance from `split_half`.
        minimum: units whose reliability is lower, or NaN, are left out: their correction would be mostly noise.

    Returns:
        The corrected score: `mean` and `folds` over the units that remain, NaN in `units` for the others. Values above 1 are
        possible, since reliability is an estimate. `details` gain `n_excluded`, the number of live units left out.

    Raises:
        ValueError: a score without units, a reliability of another shape, or a minimum that is not positive.

    >>> score = Score(jnp.array(0.5), jnp.array([0.5]), jnp.array([[0.5, 0.5]]), {})
    >>> disattenuate(score, jnp.array([1.0, 0.25])).units.tolist()
    [[0.5, 1.0]]
    """
    if score.units is None:
        raise ValueError("score must have a value for each target unit, got one without units.")
    reliability = jnp.asarray(reliability)
    if reliability.shape != score.units.shape[1:]:
        raise ValueError(f"reliability must have shape {score.units.shape[1:]}, one a target unit, got {reliability.shape}.")
    if not minimum > 0:
        raise ValueError(f"minimum must be positive, got {minimum}.")
    reliable = reliability >= minimum  # False for NaN
    live = ~jnp.isnan(score.units)
    units = jnp.where(live & reliable, score.units / safe_sqrt(jnp.where(reliable, reliability, 1)), jnp.nan)
    count = jnp.sum(live & reliable, axis=1)
    folds = jnp.sum(jnp.where(live & reliable, units, 0), axis=1) / count
    details = {**score.details, "n_excluded": jnp.sum(jnp.any(live, axis=0) & ~reliable)}
    return Score(jnp.mean(folds), folds, units, details)

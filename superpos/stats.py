"""Confidence intervals, chance levels and paired comparisons.

What an interval is over must be named: seeds (`over_pairs`, `over_seeds`), target units (`over_units`) or samples
(`over_samples`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import alignment
from superpos import metrics as metrics_lib
from superpos import moments as moments_lib
from superpos.alignment import Metrics
from superpos.checks import as_array, floating, is_concrete, positive_integer
from superpos.folds import deal
from superpos.metrics import Metric, Score
from superpos.moments import Moments


def over_pairs(
    scores: Float[np.ndarray, "seeds seeds"], *, symmetric: bool = False, present: ArrayLike | None = None
) -> dict[str, Any]:
    """Mean, spread and confidence interval of a score over pairs of seeds, the seeds being the sample.

    Pairs share seeds and so are not independent: each seed in turn is left out with all of its pairs, and the jackknife
    variance of the mean (Efron & Stein 1981) is scaled by Student's t with n_seeds - 1 degrees of freedom.

    Args:
        scores: `(n_seeds, n_seeds)`, the score of each ordered pair; the diagonal is ignored.
        symmetric: count unordered pairs once.
        present: `(n_seeds, n_seeds)`, which pairs there are, by default all.

    Returns:
        `mean`, `std` over pairs, `ci95` (two numbers; None with fewer than 3 seeds, which leave nothing to estimate it from),
        `n_seeds`, `n_pairs`.

    Raises:
        ValueError: fewer than 2 seeds, or not a square.
    """
    scores = np.atleast_1d(np.asarray(scores, np.float64))
    n_seeds = len(scores)
    if scores.shape != (n_seeds, n_seeds) or n_seeds < 2:
        raise ValueError(f"scores must be a square of at least 2 seeds, got shape {scores.shape}.")
    used = np.triu(np.ones_like(scores, bool), 1) if symmetric else ~np.eye(n_seeds, dtype=bool)
    used = used if present is None else used & np.asarray(present, bool)
    if not used.any():
        raise ValueError("present must leave at least one pair of two different seeds.")
    pairs = scores[used]
    interval = None
    if n_seeds > 2:
        seeds = np.arange(n_seeds)
        kept = [used & (seeds[:, None] != left_out) & (seeds != left_out) for left_out in seeds]
        replicates = np.array([scores[some].mean() if some.any() else np.nan for some in kept])
        error = np.sqrt((n_seeds - 1) * np.mean((replicates - replicates.mean()) ** 2))
        interval = _students_interval(pairs.mean(), error, n_seeds - 1)
    return {
        "mean": pairs.mean(),
        "std": pairs.std(ddof=1) if len(pairs) > 1 else 0.0,
        "ci95": interval,
        "n_seeds": n_seeds,
        "n_pairs": len(pairs),
    }


def square(scores: Float[np.ndarray, " pairs"], source: ArrayLike, target: ArrayLike, n: int) -> Float[np.ndarray, "n n"]:
    """Scores of pairs as a square for `over_pairs`, NaN for pairs that are not there.

    Args:
        scores: `(pairs,)`.
        source, target: `(pairs,)`, the numbers of the seeds of each.
        n: seeds.

    >>> square(np.array([0.5]), [0], [1], 2).tolist()
    [[nan, 0.5], [nan, nan]]
    """
    values = np.full((n, n), np.nan)
    values[np.asarray(source), np.asarray(target)] = scores
    return values


def over_seeds(values: Float[np.ndarray, " seeds"]) -> dict[str, Any]:
    """Mean, spread and confidence interval of independent values, one a seed: keys as in `over_pairs`, without `n_pairs`.

    Raises:
        ValueError: no value, or more than one axis.
    """
    from scipy.stats import sem

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be a list of at least one value, got shape {values.shape}.")
    n_seeds = len(values)
    return {
        "mean": values.mean(),
        "std": values.std(ddof=1) if n_seeds > 1 else 0.0,
        "ci95": _students_interval(values.mean(), sem(values), n_seeds - 1) if n_seeds > 2 else None,
        "n_seeds": n_seeds,
    }


def over_units(score: Score) -> dict[str, Any]:
    """Mean, spread and confidence interval of a score over target units, each averaged over folds.

    The target units stand for a population of such units; the source units and the samples are as they are. The scores of
    soft and one-to-one matching depend on all target units together: there the interval leaves that dependence out.

    Args:
        score: of a metric that scores units.

    Returns:
        Keys as in `over_seeds`, with `n_units` for `n_seeds`.

    Raises:
        ValueError: a score without units, or without a live one.
    """
    if score.units is None:
        raise ValueError("score must have a value for each target unit, got one without units.")
    units = np.asarray(score.units, np.float64)
    units = units[:, ~np.isnan(units).all(axis=0)]
    if units.size == 0:
        raise ValueError("score has no live target unit.")
    summary = over_seeds(np.nanmean(units, axis=0))
    summary["n_units"] = summary.pop("n_seeds")
    return summary


class Jackknife(NamedTuple):
    """The score of one metric, and what it is without some of the held-out samples.

    Attributes:
        mean: scalar, the score.
        replicates: `(n_folds, n_blocks)`, the score where one block of one fold's held-out samples is left out, the fitted maps
            fixed.
        units: `(n_folds, n_target)`, score of each target unit, all samples in, as in `sp.metrics.Score`.
        folds: `(n_folds,)`, score of each fold, likewise.
    """

    mean: Float[Array, ""]
    replicates: Float[Array, "folds blocks"]
    units: Float[Array, "folds target"] | None = None
    folds: Float[Array, " folds"] | None = None


def jackknife(
    source: ArrayLike,
    target: ArrayLike,
    metrics: Metrics = alignment.DEFAULT,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    key: Key[Array, ""] | None = None,
    groups: ArrayLike | None = None,
    n_blocks: int = 10,
    weights: ArrayLike | None = None,
) -> dict[str, Jackknife]:
    """Scores, and what they are without each of some blocks of held-out samples: for `over_samples` and `paired`.

    Maps are fitted on the whole training parts, and held-out samples are left out only where they are scored: resampling
    before the split would put copies of a sample on both sides of it. Holds the moments of n_folds x n_blocks parts.

    Args:
        source, target, metrics, folds, n_folds, key, groups: as in `sp.align`. The groups of a fold stay together in its
            blocks.
        n_blocks: blocks in each fold, at least 2; static.
        weights: `(n_target,)`, not negative: how much each target unit counts in the score and in every replicate, which are
            then weighted means over live units; by default all count alike. Fixed, whatever samples are left out. Metrics
            without a score for each unit ignore them.

    Raises:
        ValueError: as `sp.align`; fewer than 2 blocks, or fewer groups in a fold than blocks; weights of another shape, that
            are negative or not finite, or all 0.

    >>> x = jax.random.normal(jax.random.key(0), (60, 3))
    >>> scores = jackknife(x, x + 1, metrics="cka", folds=2, n_blocks=3)
    >>> scores["cka"].replicates.shape
    (2, 3)
    """
    found: dict[str, Jackknife] = {}
    for some, x, y, _ in alignment.in_precision(source, target, metrics_lib.resolve(metrics)):
        x, y, ids, count, largest = alignment.check(x, y, folds, n_folds, key, groups)
        alignment.warn_of_small_folds(ids, some)
        positive_integer("n_blocks", n_blocks, least=2)
        checked = None if weights is None else _checked_weights(weights, y.shape[1])
        blocks = deal(ids, count, n_blocks, jax.random.key(0) if key is None else key, groups)
        found |= _jackknife(x, y, ids, blocks, checked, some, count, largest, n_blocks)
    return found


def _checked_weights(weights: ArrayLike, n_target: int) -> Array:
    """The weights of the target units, if they are that."""
    array = as_array(weights)
    if array.shape != (n_target,) or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"weights must be numbers ({n_target},), one a target unit, got {array.dtype} {array.shape}.")
    if is_concrete(array) and not (np.isfinite(array).all() and (array >= 0).all() and array.any()):
        raise ValueError("weights must be finite, not negative and not all 0.")
    return jnp.asarray(array, floating(array.dtype))


@functools.partial(jax.jit, static_argnames=("metrics", "n_folds", "largest_fold", "n_blocks"))
def _jackknife(
    x: Array,
    y: Array,
    ids: Array,
    blocks: Array,
    weights: Array | None,
    metrics: tuple[Metric, ...],
    n_folds: int,
    largest_fold: int,
    n_blocks: int,
) -> dict[str, Jackknife]:
    own: Any = np.kron(np.eye(n_folds, dtype=bool), np.ones(n_blocks, bool))  # (folds, parts)
    block = jnp.arange(n_folds * n_blocks) % n_blocks
    results = {}
    gathered = alignment.gather(x, y, ids, metrics, n_folds, largest_fold, blocks, n_blocks)
    for metric, reading in zip(metrics, gathered, strict=True):
        evidence = reading.evidence
        whole = moments_lib.pool(evidence, own) if isinstance(evidence, Moments) else evidence
        fitted = reading._replace(evidence=whole).fit(metric)
        if metric.second_pass:
            evidence = whole = reading.samples

        def score(evidence: Any, metric: Metric = metric, fitted: Any = fitted) -> Score:
            unweighted = metric.score(fitted, evidence)
            return unweighted if weights is None else metric.weigh(unweighted, weights)

        def replicate(left_out: Array, evidence: Any = evidence, whole: Any = whole, score: Any = score) -> Array:
            if isinstance(evidence, Moments):
                rest = moments_lib.pool(evidence, own & (block != left_out))
                live = {  # units stay live or masked as they are in the whole
                    side: dataclasses.replace(getattr(rest, side), low=getattr(whole, side).low, high=getattr(whole, side).high)
                    for side in ("x", "y")
                }
                rest = dataclasses.replace(rest, **live)
            else:
                rest = dataclasses.replace(evidence, fold_ids=jnp.where(blocks == left_out, -1, ids))
            return score(rest).folds

        full = score(whole)
        changed = lax.map(replicate, jnp.arange(n_blocks))  # (blocks, folds)
        results[metric.name] = Jackknife(full.mean, full.mean + (changed - full.folds).T / n_folds, full.units, full.folds)
    return results


def over_samples(jackknifed: Jackknife) -> dict[str, Any]:
    """Score with standard error and confidence interval over samples, for the fitted maps at hand.

    The delete-a-block jackknife within each fold (Efron & Stein 1981), scaled by Student's t with n_folds (n_blocks - 1)
    degrees of freedom. Samples, or groups of them, are taken as independent.

    Args:
        jackknifed: from `jackknife`.

    Returns:
        `mean`, `standard_error`, `ci95` (two numbers, None where the score is not defined), `n_blocks` in all.
    """
    return _over_blocks(jackknifed.mean, jackknifed.replicates)


def paired(a: Jackknife, b: Jackknife) -> dict[str, Any]:
    """The difference a - b of two alignments of the same samples, with its interval over samples.

    Args:
        a, b: from `jackknife`, with the same number of samples, folds, key, groups and n_blocks, so that blocks are the same
            samples.

    Returns:
        Keys as in `over_samples`, and `p_value`, two-sided, that the difference is 0.

    Raises:
        ValueError: different numbers of folds or blocks.
    """
    from scipy.stats import t

    if a.replicates.shape != b.replicates.shape:
        raise ValueError(f"a and b must have the same folds and blocks, got {a.replicates.shape} and {b.replicates.shape}.")
    summary = _over_blocks(a.mean - b.mean, a.replicates - b.replicates)
    n_folds, n_blocks = a.replicates.shape
    difference, error = abs(summary["mean"]), summary["standard_error"]
    ratio = 0.0 if difference == 0 == error else np.divide(difference, error)  # NaN stays NaN
    return {**summary, "p_value": float(2 * t.sf(ratio, n_folds * (n_blocks - 1)))}


def _over_blocks(estimate: Array, replicates: Any) -> dict[str, Any]:
    """The summary of `over_samples`, from a score and what it is without each block."""
    replicates = np.asarray(replicates, np.float64)
    n_folds, n_blocks = replicates.shape
    spread = np.sum((replicates - replicates.mean(axis=1, keepdims=True)) ** 2)
    error = float(np.sqrt((n_blocks - 1) / n_blocks * spread))
    interval = _students_interval(float(estimate), error, n_folds * (n_blocks - 1))
    return {"mean": float(estimate), "standard_error": error, "ci95": interval, "n_blocks": n_folds * n_blocks}


class PermutationTest(NamedTuple):
    """The score of one metric beside its permutation null.

    Attributes:
        score: scalar, samples paired as they are.
        null: `(n_permutations,)`, scores with the target's samples in random order.
        p_value: scalar, fraction of the null, and of the score itself, that is at least as aligned as the score; NaN where that
            is.
    """

    score: Float[Array, ""]
    null: Float[Array, " permutations"]
    p_value: Float[Array, ""]


def permutation_test(
    source: ArrayLike,
    target: ArrayLike,
    metrics: Metrics = alignment.DEFAULT,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    key: Key[Array, ""] | None = None,
    groups: ArrayLike | None = None,
    n_permutations: int = 100,
) -> dict[str, PermutationTest]:
    """The chance level of each metric for the samples and numbers of units at hand: a permutation null.

    Both sides keep what they are, masked units too; only which sample of one belongs to which of the other is lost. Whole
    groups change places.

    Args:
        source, target, metrics, folds, n_folds, key, groups: as in `sp.align`. All groups must have equally many samples.
        n_permutations: at least 1, static; as many alignments are computed, one after the other.

    Raises:
        ValueError: as `sp.align`; groups of different sizes, or traced ones; samples left out by a fold of -1.
    """
    found: dict[str, PermutationTest] = {}
    for some, x, y, _ in alignment.in_precision(source, target, metrics_lib.resolve(metrics)):
        checked = alignment.check(x, y, folds, n_folds, key, groups)
        alignment.warn_of_small_folds(checked[2], some)
        found |= _permuted(checked, some, key, groups, n_permutations)
    return found


def _permuted(
    checked: tuple[Array, Array, Array, int, int], metrics: tuple[Metric, ...], key: Any, groups: Any, n_permutations: int
) -> dict[str, PermutationTest]:
    x, y, ids, n_folds, largest = checked
    n_samples = x.shape[0]
    positive_integer("n_permutations", n_permutations)
    if isinstance(groups, jax.core.Tracer):
        raise ValueError("groups is traced, which permutation_test does not take: pass a concrete array.")
    if not isinstance(ids, jax.core.Tracer) and (np.asarray(ids) < 0).any():
        raise ValueError("folds leaves samples out with -1, which permutation_test does not take: drop them beforehand.")
    by_group = jnp.arange(n_samples)[:, None]
    if groups is not None:
        _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        if len(set(counts.tolist())) > 1:
            got = f"{np.min(counts)} to {np.max(counts)}"
            raise ValueError(f"groups must have equally many samples to change places, got {got}.")
        by_group = jnp.asarray(np.argsort(index, kind="stable").reshape(len(counts), -1))
    key = jax.random.key(0) if key is None else key
    return _permutation_test(x, y, ids, by_group, key, metrics, n_folds, largest, n_permutations)


@functools.partial(jax.jit, static_argnames=("metrics", "n_folds", "largest_fold", "n_permutations"))
def _permutation_test(
    x: Array,
    y: Array,
    ids: Array,
    by_group: Array,
    key: Key[Array, ""],
    metrics: tuple[Metric, ...],
    n_folds: int,
    largest_fold: int,
    n_permutations: int,
) -> dict[str, PermutationTest]:
    masks = alignment.live_units(x, ids, n_folds), alignment.live_units(y, ids, n_folds)

    def scores(target: Array) -> dict[str, Array]:
        gathered = alignment.gather(x, target, ids, metrics, n_folds, largest_fold, masks=masks)
        return {metric.name: reading.score(metric).mean for metric, reading in zip(metrics, gathered, strict=True)}

    def shuffled(key: Key[Array, ""]) -> dict[str, Array]:
        moved = jax.random.permutation(key, by_group)
        return scores(y[jnp.zeros(len(y), jnp.int32).at[by_group.ravel()].set(moved.ravel())])

    observed = scores(y)
    null = lax.map(shuffled, jax.random.split(key, n_permutations))
    results = {}
    for metric in metrics:
        sign = -1 if metric.distance else 1
        as_aligned = jnp.sum(~(sign * null[metric.name] < sign * observed[metric.name]))  # an undefined one counts as aligned
        p_value = jnp.where(jnp.isnan(observed[metric.name]), jnp.nan, (1 + as_aligned) / (1 + n_permutations))
        results[metric.name] = PermutationTest(observed[metric.name], null[metric.name], p_value)
    return results


def _students_interval(estimate: float, error: float, degrees: int) -> list[float] | None:
    """Interval of 95 % by Student's t, None where it is not defined; of no width where there is no error."""
    from scipy.stats import t

    half = t.ppf(0.975, degrees) * error
    return [float(estimate - half), float(estimate + half)] if np.isfinite([half, estimate]).all() else None

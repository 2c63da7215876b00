"""Confidence intervals, chance levels and paired comparisons.

What an interval is over must be named: seeds (`over_pairs`, `over_seeds`), target units (`over_units`) or samples
(`over_samples`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

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
    """The score of one metric, and what it is without some of the samples.

    Attributes:
        mean: scalar, the score.
        replicates: `(n_folds, n_blocks)`, the score where one block of one fold's held-out samples is left out, the fitted maps
            fixed.
        units: `(n_folds, n_target)`, score of each target unit, all samples in, as in `sp.metrics.Score`.
        folds: `(n_folds,)`, score of each fold, likewise.
        crossed: `(n_parts, n_parts)`, the score where maps are fitted again without the part of samples that the row names, and
            scored without the part that the column names; None where maps were not fitted again.
        details: as in `sp.metrics.Score`, of a metric that has doubts of its own; else None.
    """

    mean: Float[Array, ""]
    replicates: Float[Array, "folds blocks"]
    units: Float[Array, "folds target"] | None = None
    folds: Float[Array, " folds"] | None = None
    crossed: Float[Array, "parts parts"] | None = None
    details: dict[str, Any] | None = None


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
    n_parts: int | None = 5,
) -> dict[str, Jackknife]:
    """Scores, and what they are without each of some blocks of samples: for `over_samples` and `paired`.

    In `replicates` maps are fitted on the whole training parts, and held-out samples are left out only where they are scored:
    resampling before the split would put copies of a sample on both sides of it. In `crossed` maps are fitted again without
    each of a few parts of the samples, their choices (such as ridge's alpha) kept. Holds the moments of n_folds x n_blocks
    parts.

    Args:
        source, target, metrics, folds, n_folds, key, groups: as in `sp.align`. The groups of a fold stay together in its
            blocks.
        n_blocks: blocks in each fold, at least 2; static.
        weights: `(n_target,)`, not negative: how much each target unit counts in the score and in every replicate, which are
            then weighted means over live units; by default all count alike. Fixed, whatever samples are left out. Metrics
            without a score for each unit ignore them.
        n_parts: parts that maps are fitted again without, at least 2 and at most n_blocks (more are as many); None: never, so
            that there are only intervals for the maps at hand. Static.

    Raises:
        ValueError: as `sp.align`; fewer than 2 blocks or parts, or fewer groups in a fold than blocks; weights of another
            shape, that are negative or not finite, or all 0.

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
        if n_parts is not None:
            positive_integer("n_parts", n_parts, least=2)
        checked = None if weights is None else _checked_weights(weights, y.shape[1])
        blocks = deal(ids, count, n_blocks, jax.random.key(0) if key is None else key, groups)
        found |= _jackknife(x, y, ids, blocks, checked, some, count, largest, n_blocks, n_parts)
    return found


def _checked_weights(weights: ArrayLike, n_target: int) -> Array:
    """The weights of the target units, if they are that."""
    array = as_array(weights)
    if array.shape != (n_target,) or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"weights must be numbers ({n_target},), one a target unit, got {array.dtype} {array.shape}.")
    if is_concrete(array) and not (np.isfinite(array).all() and (array >= 0).all() and array.any()):
        raise ValueError("weights must be finite, not negative and not all 0.")
    return jnp.asarray(array, floating(array.dtype))


@functools.partial(jax.jit, static_argnames=("metrics", "n_folds", "largest_fold", "n_blocks", "n_parts"))
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
    n_parts: int | None,
) -> dict[str, Jackknife]:
    gathered = alignment.gather(x, y, ids, metrics, n_folds, largest_fold, blocks, n_blocks)
    n_parts = None if n_parts is None else min(n_parts, n_blocks)
    return {
        metric.name: _left_out(metric, reading, blocks, weights, n_folds, n_blocks, n_parts)
        for metric, reading in zip(metrics, gathered, strict=True)
    }


def _left_out(
    metric: Metric, reading: Any, blocks: Array, weights: Array | None, n_folds: int, n_blocks: int, n_parts: int | None
) -> Jackknife:
    """The score of one metric, without blocks of each fold, and with maps fitted without parts of the samples."""
    own: Any = np.kron(np.eye(n_folds, dtype=bool), np.ones(n_blocks, bool))  # (folds, parts)
    of_moment = jnp.arange(n_folds * n_blocks) % n_blocks
    evidence = reading.evidence
    whole = moments_lib.pool(evidence, own) if isinstance(evidence, Moments) else evidence

    def without(outside: Any, evidence: Any) -> Any:
        """The evidence without some blocks: a function of their numbers says of which."""
        if not isinstance(evidence, Moments):
            return dataclasses.replace(evidence, fold_ids=jnp.where(outside(blocks), -1, evidence.fold_ids))
        rest = moments_lib.pool(evidence, own & ~outside(of_moment))
        live = {  # units stay live or masked as they are in the whole
            side: dataclasses.replace(getattr(rest, side), low=getattr(whole, side).low, high=getattr(whole, side).high)
            for side in ("x", "y")
        }
        return dataclasses.replace(rest, **live)

    def score(fitted: Any, evidence: Any) -> Score:
        unweighted = metric.score(fitted, evidence)
        return unweighted if weights is None else metric.weigh(unweighted, weights)

    fitted = reading._replace(evidence=whole).fit(metric)
    scored = reading.samples if metric.second_pass else evidence
    full = score(fitted, scored if metric.second_pass else whole)
    changed = lax.map(lambda left: score(fitted, without(lambda block: block == left, scored)).folds, jnp.arange(n_blocks))
    replicates = full.mean + (changed - full.folds).T / n_folds  # (folds, blocks)
    found = Jackknife(full.mean, replicates, full.units, full.folds, details=full.details if metric.has_doubts else None)
    if n_parts is None:
        return found
    if not jax.tree.leaves(fitted):  # nothing is fitted, and nothing fitted again
        return found._replace(crossed=jnp.zeros((n_parts, n_parts), full.mean.dtype))
    rests = lax.map(lambda part: without(lambda block: block % n_parts == part, evidence), jnp.arange(n_parts))

    def again(part: Array) -> Any:
        if isinstance(evidence, Moments):
            return metric.refit(fitted, jax.tree.map(lambda leaf: leaf[part], rests))
        return metric.refit(fitted, dataclasses.replace(evidence, fits=blocks % n_parts != part))

    maps = lax.map(again, jnp.arange(n_parts))

    def cross(pair: Array) -> Array:
        chosen = [jax.tree.map(lambda leaf, i=i: leaf[i], of) for of, i in zip((maps, rests), pair, strict=True)]
        return score(*chosen).mean

    pairs = jnp.stack(jnp.divmod(jnp.arange(n_parts**2), n_parts), axis=1)
    return found._replace(crossed=lax.map(cross, pairs).reshape(n_parts, n_parts))


def over_samples(jackknifed: Jackknife) -> dict[str, Any]:
    """Score with standard error and confidence interval over samples, maps being fitted anew with them.

    Two samples of different folds meet twice, since each helps to fit the map that the other is scored by. The variance for
    the maps at hand (`over_samples_given_maps`) counts both meetings as independent. Added is their covariance, from
    `crossed`: over pairs of parts, the product of what one does to the score as training for the other, and the reverse. It is
    between 0 and the first variance (Cauchy & Schwarz): for unrelated sides it is all of it, so that the standard error is √2
    times that for the maps at hand; for maps that are known well it is near 0. Student's t has n_folds (n_blocks - 1) degrees
    of freedom. Samples, or groups of them, are taken as independent. The share of a covariance between folds is that of Nadeau
    & Bengio 2003, "Inference for the generalization error", who take it to be known; here it is measured.

    Args:
        jackknifed: from `jackknife`.

    Returns:
        `mean`, `standard_error`, `ci95` (two numbers, None where the score is not defined), `degrees` of freedom, `n_blocks` in
        all.

    Raises:
        ValueError: maps were not fitted again.
    """
    if jackknifed.crossed is None:
        raise ValueError("jackknifed has maps that were not fitted again: use n_parts=5, or over_samples_given_maps.")
    given, degrees = _given_maps(jackknifed)
    crossed = np.asarray(jackknifed.crossed, np.float64)
    effects = crossed - crossed.mean(axis=0) - crossed.mean(axis=1, keepdims=True) + crossed.mean()
    met = np.sum(effects * effects.T) * ((len(crossed) - 1) / len(crossed)) ** 2
    error = float(np.sqrt(given + np.clip(met, 0, given)))
    interval = _students_interval(float(jackknifed.mean), error, degrees)
    counts = {"degrees": degrees, "n_blocks": jackknifed.replicates.size}
    return {"mean": float(jackknifed.mean), "standard_error": error, "ci95": interval, **counts}


def over_samples_given_maps(jackknifed: Jackknife) -> dict[str, Any]:
    """The interval over held-out samples for the fitted maps at hand: too narrow for anything that is said of other maps.

    The delete-a-block jackknife within each fold (Efron & Stein 1981), scaled by Student's t with n_folds (n_blocks - 1)
    degrees of freedom. Of unrelated sides 10 to 20 % of these intervals leave out 0.

    Args:
        jackknifed: from `jackknife`; or of a `difference`.

    Returns:
        `mean`, `standard_error_given_maps`, `ci95_given_maps`, `n_blocks`.
    """
    variance, degrees = _given_maps(jackknifed)
    error, mean = float(np.sqrt(variance)), float(jackknifed.mean)
    named = {"standard_error_given_maps": error, "ci95_given_maps": _students_interval(mean, error, degrees)}
    return {"mean": mean, **named, "n_blocks": jackknifed.replicates.size}


def _given_maps(jackknifed: Jackknife) -> tuple[float, int]:
    """The jackknife variance for the maps at hand, and its degrees of freedom."""
    replicates = np.asarray(jackknifed.replicates, np.float64)
    n_folds, n_blocks = replicates.shape
    spread = np.sum((replicates - replicates.mean(axis=1, keepdims=True)) ** 2)
    return (n_blocks - 1) / n_blocks * spread, n_folds * (n_blocks - 1)


def difference(a: Jackknife, b: Jackknife) -> Jackknife:
    """The difference a - b of two alignments of the same samples, block by block.

    Args:
        a, b: from `jackknife`, with the same number of samples, folds, key, groups, n_blocks and n_parts, so that blocks are
            the same samples.

    Raises:
        ValueError: different numbers of folds, blocks or parts.
    """
    shapes = [(one.replicates.shape, None if one.crossed is None else one.crossed.shape) for one in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"a and b must have the same folds and blocks, got {shapes[0]} and {shapes[1]}.")
    crossed = None if a.crossed is None or b.crossed is None else a.crossed - b.crossed
    return Jackknife(a.mean - b.mean, a.replicates - b.replicates, crossed=crossed)


def average(listed: Sequence[Jackknife]) -> Jackknife:
    """The mean of several alignments, or differences, of the same samples, block by block: such as over settings.

    Args:
        listed: at least one, with the same numbers of folds, blocks and parts.
    """
    kept = [(one.mean, one.replicates, one.crossed) for one in listed]
    mean, replicates, crossed = jax.tree.map(lambda *leaves: np.mean(np.array(leaves), axis=0), *kept)
    return Jackknife(mean, replicates, crossed=crossed)


def partition(a: Jackknife, b: Jackknife, both: Jackknife) -> dict[str, dict[str, Any]]:
    """Variance that two sources explain of one target: each alone, both together, each beyond the other, and what they share.

    Commonality analysis, of shares of variance that do not fall with more units, held out. Source: Mood 1971, "Partitioning
    variance in multiple regression analyses as a tool for developing learning models".

    Args:
        a, b: from `jackknife` by a metric whose score is a share of variance: `sp.metrics.Ridge(share=True)`.
        both: the same of both sources side by side (the view `both`, of neurons and latents).

    Returns:
        Rows as of `tested` by name: `a`, `b`, `both`, `only_a` (both - b), `only_b` (both - a), `shared` (a + b - both).

    Raises:
        ValueError: as `difference`.
    """
    only_a, only_b = difference(both, b), difference(both, a)
    parts = {"a": a, "b": b, "both": both, "only_a": only_a, "only_b": only_b, "shared": difference(a, only_a)}
    return {name: tested(part) for name, part in parts.items()}


def over_sessions(means: Float[np.ndarray, " sessions"], errors: Float[np.ndarray, " sessions"]) -> dict[str, Any]:
    """Mean over sessions (or animals) that differ by more than their samples do: a random effect of the session.

    Each counts by its own error and by the variance between sessions (DerSimonian & Laird 1986); the interval is that of
    Hartung & Knapp 2001, Student's with one degree of freedom less than there are sessions.

    Args:
        means, errors: `(sessions,)`, score or difference of each, and its standard error, such as those of `over_samples`.

    Returns:
        `mean`, `ci95` (None with one session), `between`, the standard deviation between sessions, `n_sessions`.

    Raises:
        ValueError: not one error, above 0, for each mean.
    """
    means, errors = np.asarray(means, np.float64), np.asarray(errors, np.float64)
    if means.ndim != 1 or means.shape != errors.shape or not means.size or not (errors > 0).all():
        raise ValueError(f"errors must be above 0, one for each of the means, got shapes {means.shape} and {errors.shape}.")
    n, weights = len(means), errors**-2.0
    fixed = np.average(means, weights=weights)
    heterogeneity = np.sum(weights * (means - fixed) ** 2)
    scale = weights.sum() - np.sum(weights**2) / weights.sum()
    between = max(0.0, (heterogeneity - (n - 1)) / scale) if n > 1 else 0.0
    weights = 1 / (errors**2 + between)
    mean = float(np.average(means, weights=weights))
    spread = np.sum(weights * (means - mean) ** 2) / ((n - 1) * weights.sum()) if n > 1 else np.nan
    interval = _students_interval(mean, float(np.sqrt(spread)), n - 1) if n > 1 else None
    return {"mean": mean, "ci95": interval, "between": float(np.sqrt(between)), "n_sessions": n}


def paired(a: Jackknife, b: Jackknife) -> dict[str, Any]:
    """The difference a - b of two alignments of the same samples, with its interval over samples, maps fitted anew.

    Args:
        a, b: as for `difference`.

    Returns:
        Keys as in `over_samples`, and `p`, two-sided, that the difference is 0.

    Raises:
        ValueError: different numbers of folds, blocks or parts; maps were not fitted again.
    """
    return tested(difference(a, b))


def tested(jackknifed: Jackknife) -> dict[str, Any]:
    """`over_samples` of a `difference`, with `p`, two-sided, that it is 0; NaN where it is not defined."""
    from scipy.stats import t

    summary = over_samples(jackknifed)
    error, mean = summary["standard_error"], summary["mean"]
    if not np.isfinite([mean, error]).all():
        return {**summary, "p": float("nan")}
    ratio = abs(mean) / error if error > 0 else np.inf if mean else 0.0
    return {**summary, "p": float(2 * t.sf(ratio, _given_maps(jackknifed)[1]))}


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
    circular: bool = False,
) -> dict[str, PermutationTest]:
    """The chance level of each metric for the samples and numbers of units at hand: a permutation null.

    Both sides keep what they are, masked units too; only which sample of one belongs to which of the other is lost. Whole
    groups change places. Maps are fitted anew in each permutation, so that p holds its level. The same permutations are of all
    metrics of one call: see `max_permutation`.

    Args:
        source, target, metrics, folds, n_folds, key, groups: as in `sp.align`. All groups must have equally many samples.
        n_permutations: at least 1, static; as many alignments are computed, one after the other.
        circular: shift the target's samples by a random number of places, those at the end to the beginning, instead of
            shuffling them: for samples in an order in which neighbours resemble each other.

    Raises:
        ValueError: as `sp.align`; groups of different sizes, or traced ones; samples left out by a fold of -1.
    """
    found: dict[str, PermutationTest] = {}
    for some, x, y, _ in alignment.in_precision(source, target, metrics_lib.resolve(metrics)):
        checked = alignment.check(x, y, folds, n_folds, key, groups)
        alignment.warn_of_small_folds(checked[2], some)
        found |= _permuted(checked, some, key, groups, n_permutations, circular)
    return found


def _permuted(
    checked: tuple[Array, Array, Array, int, int],
    metrics: tuple[Metric, ...],
    key: Any,
    groups: Any,
    n_permutations: int,
    circular: bool,
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
    return _permutation_test(x, y, ids, by_group, key, metrics, n_folds, largest, n_permutations, circular)


@functools.partial(jax.jit, static_argnames=("metrics", "n_folds", "largest_fold", "n_permutations", "circular"))
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
    circular: bool,
) -> dict[str, PermutationTest]:
    masks = alignment.live_units(x, ids, n_folds), alignment.live_units(y, ids, n_folds)

    def scores(target: Array) -> dict[str, Array]:
        gathered = alignment.gather(x, target, ids, metrics, n_folds, largest_fold, masks=masks)
        return {metric.name: reading.score(metric).mean for metric, reading in zip(metrics, gathered, strict=True)}

    def shuffled(key: Key[Array, ""]) -> dict[str, Array]:
        if circular:
            moved = jnp.roll(by_group, jax.random.randint(key, (), 1, len(by_group)), axis=0)
        else:
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


def block_bootstrap(
    values: Float[np.ndarray, " samples"], length: int, *, n_draws: int = 2_000, seed: int = 0
) -> dict[str, Any]:
    """Mean of a series and its interval over samples that resemble their neighbours: the circular block bootstrap.

    Source: Politis & Romano 1992.

    Args:
        values: `(samples,)`, in the order in which they were recorded: such as scores of frames.
        length: of a block, longer than samples resemble each other.
        n_draws: resamples.
        seed: of them.

    Returns:
        `mean`, `standard_error`, `ci95`: percentiles of the resampled means.

    Raises:
        ValueError: values of more than one axis, or a length outside 1 to their number.

    >>> row = block_bootstrap(np.random.default_rng(0).normal(size=400), length=1)
    >>> round(row["standard_error"] * 20, 1)
    1.0
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not 1 <= length <= values.size:
        raise ValueError(f"length must be between 1 and the number of values of one axis, {values.shape}, got {length}.")
    n = values.size
    starts = np.random.default_rng(seed).integers(n, size=(n_draws, -(-n // length)))
    around = np.concatenate([values, values])
    sums = np.concatenate([[0.0], np.cumsum(around)])
    means = np.mean(sums[starts + length] - sums[starts], axis=1) / length
    interval = np.percentile(means, [2.5, 97.5]).tolist()
    return {"mean": float(values.mean()), "standard_error": float(means.std(ddof=1)), "ci95": interval}


def lag_one(
    source: Float[np.ndarray, "n source"], target: Float[np.ndarray, "n target"], order: Int[np.ndarray, " n"] | None = None
) -> tuple[float, float]:
    """How alike neighbouring residuals are: what shuffled folds leak of dependent samples, such as frames of a video.

    Residuals are those of ridge regression on all samples, the source standardised and alpha a tenth of their number.

    Args:
        source, target: the same samples, in the order in which they were recorded.
        order: of each sample, ascending: neighbours are those that are 1 apart; by default all are.

    Returns:
        The lag-1 autocorrelation, mean over target units, and the standard error that it has for independent samples and one
        unit; NaN where there are no neighbours.

    >>> steps = np.cumsum(np.random.default_rng(0).normal(size=(200, 2)), axis=0)
    >>> lag_one(np.random.default_rng(1).normal(size=(200, 3)), steps)[0] > 0.9
    True
    """
    x, y = (side - side.mean(axis=0) for side in (np.asarray(source, np.float64), np.asarray(target, np.float64)))
    scale = x.std(axis=0)
    x = x[:, scale > 0] / scale[scale > 0]
    n, n_units = x.shape
    if n_units < n:
        fitted = x @ np.linalg.solve(x.T @ x + 0.1 * n * np.eye(n_units), x.T @ y)
    else:
        gram = x @ x.T
        fitted = gram @ np.linalg.solve(gram + 0.1 * n * np.eye(n), y)
    rest = y - fitted
    after = np.flatnonzero(np.diff(np.arange(n) if order is None else order) == 1)
    squares = np.mean(rest**2, axis=0)
    live = squares > 0
    if not len(after) or not live.any():
        return float("nan"), float("nan")
    products = np.mean(rest[after] * rest[after + 1], axis=0)
    return float(np.mean(products[live] / squares[live])), len(after) ** -0.5


def corrected(p: ArrayLike | Sequence[float], method: str = "holm") -> Float[np.ndarray, " tests"]:
    """p-values of a family of tests, corrected for their number.

    Args:
        p: `(tests,)`, from any source; NaN is a test that is not defined, and does not count.
        method: "holm": the chance of any false finding is held, however the tests depend on each other (Holm 1979); or
            "benjamini_hochberg": the expected share of false ones among the findings is, for tests that are independent or
            positively dependent (Benjamini & Hochberg 1995).

    Raises:
        ValueError: values outside 0 to 1, or an unknown method.

    >>> corrected([0.01, 0.04, 0.03]).tolist(), corrected([0.01, 0.04, 0.03], "benjamini_hochberg").tolist()
    ([0.03, 0.06, 0.06], [0.03, 0.04, 0.04])
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p, np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(f"p must be a list of numbers between 0 and 1, got shape {p.shape}.")
    if method not in ("holm", "benjamini_hochberg"):
        raise ValueError(f"method must be holm or benjamini_hochberg, got {method!r}.")
    result, known = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    if method == "benjamini_hochberg" and len(known):
        result[known] = false_discovery_control(p[known])
    else:
        order = known[np.argsort(p[known])]
        result[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return result


def max_permutation(
    observed: Float[np.ndarray, " tests"], null: Float[np.ndarray, "permutations tests"]
) -> Float[np.ndarray, " tests"]:
    """p-values of a family of tests, corrected by the largest statistic that a permutation finds in any of them.

    Less strict than Holm's where tests depend on each other, since permutations do so too. Each test is put on one scale, by
    the mean and deviation of its null. Source: Westfall & Young 1993, single step.

    Args:
        observed: `(tests,)`, the larger the more there is; for two-sided tests absolute values.
        null: `(permutations, tests)`, the same of permuted samples, each permutation being of all tests at once: such as those
            that `permutation_test` has for several metrics.

    Raises:
        ValueError: shapes that do not fit.

    >>> max_permutation(np.array([3.0, 0.0]), np.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])).tolist()
    [0.25, 1.0]
    """
    observed, null = np.asarray(observed, np.float64), np.asarray(null, np.float64)
    if null.ndim != 2 or observed.shape != null.shape[1:] or not len(null):
        raise ValueError(f"null must be (permutations, {observed.size}), got {null.shape}.")
    mean, scale = null.mean(axis=0), null.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    largest = ((null - mean) / scale).max(axis=1)
    return (1 + np.sum(largest[:, None] >= (observed - mean) / scale, axis=0)) / (1 + len(null))


def joint(summary: dict[str, Any], values: Float[np.ndarray, " seeds"]) -> list[float] | None:
    """The interval of a mean over seeds, or target units, that counts samples and these, each drawn anew.

    The variances of both add up, as those of two crossed random effects; Student's t has the degrees of freedom that
    Satterthwaite 1946 gives their sum. What is of one sample and one seed or unit alone is counted in both, so that the
    interval is a little too wide where that is most of the noise.

    Args:
        summary: of `over_samples`, of the mean over seeds or units.
        values: `(seeds or units,)`, the score of each.

    Returns:
        Two numbers; None with fewer than 3 values, or where a score is not defined.
    """
    from scipy.stats import sem

    values = np.asarray(values, np.float64)
    if len(values) < 3:
        return None
    variances = np.array([summary["standard_error"], sem(values)]) ** 2
    degrees = np.array([summary["degrees"], len(values) - 1])
    total = variances.sum()
    freedom = total**2 / np.sum(variances**2 / degrees) if total > 0 else degrees.sum()
    return _students_interval(summary["mean"], float(np.sqrt(total)), freedom)


def _students_interval(estimate: float, error: float, degrees: float) -> list[float] | None:
    """Interval of 95 % by Student's t, None where it is not defined; of no width where there is no error."""
    from scipy.stats import t

    half = t.ppf(0.975, degrees) * error
    return [float(estimate - half), float(estimate + half)] if np.isfinite([half, estimate]).all() else None

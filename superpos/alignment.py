"""Alignment of two representations: arrays in, scores out."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Key

from superpos import metrics as metrics_lib
from superpos import moments as moments_lib
from superpos import storage
from superpos.checks import SIDES, as_array, check_labels, check_live, check_pair, is_concrete, offsets
from superpos.folds import assign_folds
from superpos.linalg import eigh, matmul
from superpos.metrics import Metric, Samples, Score, Scores
from superpos.moments import Moments, Side

Metrics = Sequence[str | Metric] | str | Metric
DEFAULT = ("semi_match", "soft_match", "ridge")


def align(
    source: ArrayLike,
    target: ArrayLike,
    metrics: Metrics = DEFAULT,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    key: Key[Array, ""] | None = None,
    groups: ArrayLike | None = None,
) -> Scores:
    """Scores how well `source` predicts `target`, cross-validated. `jit` and `vmap` it freely.

    A unit that is constant in any fold is masked in all of them. Values are checked where the arrays are concrete; under
    a transformation a side without a live unit scores NaN.

    Args:
        source: `(n_samples, n_source)`.
        target: `(n_samples, n_target)`, the same samples in the same order.
        metrics: names (`sp.metrics.names()`) or configured metrics (`sp.metrics.Ridge(per_target=True)`).
        folds: number of folds, shuffled by `key`; or the fold of each sample, integers `(n_samples,)`, -1 for a sample that
            is left out; or None: fit and score on all samples.
        n_folds: number of folds, where `folds` is traced.
        key: shuffles the folds; by default `jax.random.key(0)`.
        groups: `(n_samples,)` integers; samples of one group share a fold (patches of an image, repeats of a stimulus).

    Returns:
        A `Score` for each metric's name: `mean`, `folds` `(n_folds,)`, `units` `(n_folds, n_target)`, `details`. The dictionary
        prints one line a metric, and has `to_dataframe()`.

    Warns:
        RuntimeWarning: folds with fewer samples than a metric needs; what a metric finds to doubt in its own score.

    Raises:
        ValueError: arrays that are not numeric, two-dimensional, finite and of equal length; a side without a live unit; an
            unknown metric; folds that are empty, or that a group straddles; moments that do not fit into memory.

    >>> x = jax.random.normal(jax.random.key(0), (200, 5))
    >>> round(float(align(x, x[:, ::-1] * 2, metrics="cka")["cka"].mean), 4)
    1.0
    """
    resolved = metrics_lib.resolve(metrics)
    scores: dict[str, Score] = {}
    for some, x, y, means in in_precision(source, target, resolved):
        x, y, ids, count, largest = check(x, y, folds, n_folds, key, groups)
        warn_of_small_folds(ids, some)
        _check_room(x, y, some, count)
        with jax.debug_nans(False):  # NaN is an answer here: of a unit that is masked or has no counterpart
            scores |= _align(x, y, ids, some, count, largest)
        if is_concrete(x, y, ids):
            for doubt in itertools.chain(*(metric.doubts(scores[metric.name]) for metric in some)):
                warnings.warn(doubt, RuntimeWarning, stacklevel=2)
        for details in (scores[metric.name].details for metric in some):
            if means is not None and "intercept" in details:
                details["intercept"] += means[1] - matmul(means[0], details["weights"])
    return Scores((metric.name, scores[metric.name]) for metric in resolved)


def warn_of_small_folds(ids: Array, metrics: tuple[Metric, ...]) -> None:
    """Warns of folds with fewer samples than a metric needs, where folds are known."""
    if not is_concrete(ids):
        return
    smallest = int(np.min(np.bincount(np.asarray(ids)[np.asarray(ids) >= 0])))
    for metric in metrics:
        if smallest < metric.least:
            message = f"{metric.name} needs {metric.least} samples in each fold, and is NaN: the smallest has {smallest}."
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def in_precision(source: Any, target: Any, metrics: tuple[Metric, ...]) -> list[tuple[tuple[Metric, ...], Any, Any, Any]]:
    """Both sides for each of the metrics: `(metrics, source, target, means)`, the means being what was taken off both sides.

    Units whose means are far larger than their variation, such as times or raw counts of a converter, are centred before they
    are cast to float32, for metrics that a constant leaves as they are.
    """
    check_labels(source, target)
    sides = [as_array(value, name) for value, name in zip((source, target), SIDES, strict=True)]
    means = [offsets(side) for side in sides]
    if all(mean is None for mean in means) or any(side.ndim != 2 for side in sides):
        return [(metrics, *sides, None)]
    centred = [side if mean is None else side - mean for side, mean in zip(sides, means, strict=True)]
    known = [np.zeros(side.shape[1]) if mean is None else mean for side, mean in zip(sides, means, strict=True)]
    parts: list[Any] = []
    for name, side, mean in zip(SIDES, sides, means, strict=True):
        lost = mean is not None and (np.ptp(side, axis=0) > 0) & (np.ptp(side.astype(np.float32), axis=0) == 0)
        if np.any(lost) and (of := [metric.name for metric in metrics if not metric.centres]):
            raise ValueError(
                f"{name} has {np.sum(lost)} units that are constant in float32 beside their means, on which {', '.join(of)} "
                "depends: subtract the means, or enable x64."
            )
    for centres in (True, False):
        if some := tuple(metric for metric in metrics if metric.centres == centres):
            parts.append((some, *centred, known) if centres else (some, *sides, None))
    return parts


def check(
    source: ArrayLike, target: ArrayLike, folds: Any, n_folds: int | None, key: Key[Array, ""] | None, groups: Any
) -> tuple[Array, Array, Array, int, int]:
    """Both sides, fold ids, the number of folds and of samples in the largest: see `align` for the arguments and errors."""
    x, y = check_pair(source, target)
    ids, n_folds = assign_folds(x.shape[0], folds, n_folds, key, groups)
    for name, array in zip(SIDES, (x, y), strict=True):
        if is_concrete(array, ids):
            check_live(name, array, ids, n_folds)
    largest = x.shape[0]  # a bound, where it cannot be known
    if is_concrete(ids):
        largest = int(np.max(np.bincount(np.asarray(ids)[np.asarray(ids) >= 0])))
    elif groups is None and isinstance(folds, (int, np.integer)):
        largest = -(-largest // n_folds)
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(ids), n_folds, largest


def score(moments: Moments, metrics: Metrics = DEFAULT) -> Scores:
    """Scores moments that were accumulated with `sp.moments`.

    Args:
        moments: at least the moments that the metrics read: `sp.moments.init(..., reads=sp.reads(metrics))`.
        metrics: as in `sp.align`.

    Raises:
        ValueError: an unknown metric, or one that reads moments that were not kept.

    >>> x = jax.random.normal(jax.random.key(0), (30, 3))
    >>> kept = moments_lib.init(3, 3, n_folds=2, reads=reads("cka"))
    >>> kept = moments_lib.update(kept, x, 2 * x, jnp.arange(30) % 2)  # as many times as there are batches
    >>> round(float(jax.jit(score, static_argnums=1)(kept, "cka")["cka"].mean), 4)
    1.0
    """
    resolved = of_moments(metrics)
    holds = {"xx": moments.x.scatter, "yy": moments.y.scatter, "norms": moments.norms, "active": moments.active}
    kept = {"xy"} | {name for name, content in holds.items() if content is not None}
    for metric in resolved:
        if missing := metric.reads - kept:
            raise ValueError(f"moments must hold {', '.join(sorted(missing))} for {metric.name}: see init(reads=...).")
    return Scores((metric.name, metric(moments)) for metric in resolved)


def reads(metrics: Metrics) -> frozenset[str]:
    """The moments that some metrics read: what to pass to `sp.moments.init`."""
    return frozenset().union(*(metric.reads for metric in metrics_lib.resolve(metrics))) - {"samples"}


def of_moments(metrics: Metrics) -> tuple[Metric, ...]:
    """The metrics, which must read moments alone."""
    resolved = metrics_lib.resolve(metrics)
    for metric in resolved:
        if "samples" in metric.reads:
            raise ValueError(f"{metric.name} reads samples, which moments do not hold: use sp.align.")
    return resolved


def _check_room(x: Array, y: Array, metrics: tuple[Metric, ...], n_folds: int) -> None:
    """Refuses sides whose moments, and what is solved of them, do not fit into memory, before anything is compiled."""
    n, n_source, n_target = *x.shape, y.shape[1]
    entries, solved = 0, max(metric.room(n_source, n_target) for metric in metrics)
    for metric in metrics:
        if "samples" in metric.reads or (metric.wide and n < n_source):
            continue
        a = min(n, n_source) if "source" in metric.rotates else n_source
        b = min(n, n_target) if "target" in metric.rotates else n_target
        sizes = {"xx": a * a, "yy": b * b}
        entries = max(entries, a * b + sum(size for name, size in sizes.items() if name in metric.reads))
    n_bytes = n_folds * (entries * x.dtype.itemsize + solved)
    if n_bytes > 2**30:
        try:
            storage.check_room(n_bytes)
        except ValueError as error:
            most = max(metrics, key=lambda metric: metric.room(n_source, n_target))
            what = f"moments, and what {most.name} solves," if solved else "moments"
            shapes = f"source {x.shape} and target {y.shape} must have {what} that fit into memory"
            raise ValueError(f"{shapes}, but {error}: compare fewer units.") from None


@functools.partial(jax.jit, static_argnames=("metrics", "n_folds", "largest_fold"))
def _align(x: Array, y: Array, ids: Array, metrics: tuple[Metric, ...], n_folds: int, largest_fold: int) -> dict[str, Score]:
    scores = {}
    for metric, reading in zip(metrics, gather(x, y, ids, metrics, n_folds, largest_fold), strict=True):
        basis = reading.basis
        score = reading.score(metric)
        if basis is not None and "weights" in score.details and metric.rotates == {"source"}:
            # Weights on principal components, as weights on the units.
            score.details["weights"] = matmul(basis.components, score.details["weights"])
            score.details["intercept"] -= matmul(basis.mean, score.details["weights"])
        scores[metric.name] = score
    return scores


class Basis(NamedTuple):
    """Principal components of all samples of a side: `(n_units, n_samples)` and the mean `(n_units,)`."""

    components: Array
    mean: Array


class Reading(NamedTuple):
    """What a metric reads: its evidence, the samples that this is of, and the basis of the source where it is rotated."""

    evidence: Moments | Samples
    samples: Samples
    basis: Basis | None

    def fit(self, metric: Metric) -> Any:
        """What the metric fits, mended by a second pass over the samples."""
        return metric.polish(metric.fit(self.evidence), self.samples)

    def score(self, metric: Metric) -> Score:
        """Fits and evaluates."""
        return metric.score(self.fit(metric), self.samples if metric.second_pass else self.evidence)


def gather(
    x: Array,
    y: Array,
    ids: Array,
    metrics: tuple[Metric, ...],
    n_folds: int,
    largest_fold: int,
    blocks: Any = None,
    n_blocks: int = 1,
    masks: tuple[Array, Array] | None = None,
) -> list[Reading]:
    """What each metric reads, from one pass over the samples for all metrics that read the same.

    Where there are fewer samples than units, metrics that a rotation leaves unchanged read the moments of the principal
    components of the samples, n of them, in place of those of the units: the n × n Gram matrix holds the same numbers.

    Args:
        x, y: `(n_samples, units)`.
        ids: `(n_samples,)` fold of each sample.
        metrics, n_folds, largest_fold: static.
        blocks: `(n_samples,)` block of each sample within its fold: moments are then of n_folds · n_blocks parts, those of a
            fold together.
        n_blocks: static.
        masks: of live units, where they are not to be taken from the samples.

    Returns:
        What each metric reads.
    """
    n_samples = x.shape[0]
    wide = {side for side, array in zip(SIDES, (x, y), strict=True) if n_samples < array.shape[1]}
    # The sums of fourth powers that debiased metrics read are taken apart from the others, of rescaled data.
    kinds = [
        "samples" if "samples" in m.reads or (m.wide and "source" in wide) else (m.rotates & wide) | (m.reads & {"norms"})
        for m in metrics
    ]
    parts = ids if blocks is None else jnp.where((ids >= 0) & (ids < n_folds), ids * n_blocks + blocks, -1)
    source, target = (live_units(x, ids, n_folds), live_units(y, ids, n_folds)) if masks is None else masks
    masked = jnp.where(source, x, 0), jnp.where(target, y, 0)
    inside = (ids >= 0) & (ids < n_folds)
    readings: dict[Any, Reading] = {}
    for kind in dict.fromkeys(kinds):
        if kind == "samples":
            samples = Samples(*masked, ids, source, target, n_folds, largest_fold)
            readings[kind] = Reading(samples, samples, None)
            continue
        read = frozenset().union(*(m.reads for m, k in zip(metrics, kinds, strict=True) if k == kind))
        a, b = masked if kind else (x, y)  # moments know masked units by themselves, principal components and norms do not
        basis = None
        if "source" in kind:
            a, basis = _principal(a, inside)
        if "target" in kind:
            b, _ = _principal(b, inside)
        if "norms" in kind:
            a, b = _unit_size(a, inside), _unit_size(b, inside)
        empty = moments_lib.init(a.shape[1], b.shape[1], n_folds * n_blocks, read, jnp.result_type(x, y))
        moments = moments_lib.update(empty, a, b, parts)
        # Principal components are not units: none of them is masked where a unit is live.
        x_live = jnp.broadcast_to(jnp.any(source), a.shape[1:]) if "source" in kind else source
        y_live = jnp.broadcast_to(jnp.any(target), b.shape[1:]) if "target" in kind else target
        if "source" in kind or masks is not None:
            moments = dataclasses.replace(moments, x=_marked(moments.x, x_live))
        if "target" in kind or masks is not None:
            moments = dataclasses.replace(moments, y=_marked(moments.y, y_live))
        readings[kind] = Reading(moments, Samples(a, b, ids, x_live, y_live, n_folds, largest_fold), basis)
    return [readings[kind] for kind in kinds]


def live_units(values: Array, ids: Array, n_folds: int) -> Bool[Array, " units"]:
    """Mask of the units that are constant in no fold."""

    def varies(fold: Array) -> Array:
        inside = (ids == fold)[:, None]
        return jnp.max(jnp.where(inside, values, -jnp.inf), axis=0) > jnp.min(jnp.where(inside, values, jnp.inf), axis=0)

    return jnp.all(lax.map(varies, jnp.arange(n_folds)), axis=0)


def _marked(side: Side, live: Array) -> Side:
    """Moments whose live units are those named, whatever their samples say."""
    low = jnp.zeros_like(side.low)
    return dataclasses.replace(side, low=low, high=low + live)


def _centred(values: Array, inside: Array) -> tuple[Array, Array]:
    """Samples less the mean of those inside, 0 for the others, and that mean."""
    mean = jnp.sum(jnp.where(inside[:, None], values, 0), axis=0) / jnp.maximum(jnp.sum(inside), 1)
    return jnp.where(inside[:, None], values - mean, 0), mean


def _unit_size(values: Array, inside: Array) -> Array:
    """Values about 0 and of size 1 over all units, so that their fourth powers stay within float32's range."""
    centred, _ = _centred(values, inside)
    largest = jnp.max(jnp.abs(centred))
    return centred / jnp.where(largest > 0, largest, 1)


def _principal(values: Array, inside: Array) -> tuple[Array, Basis]:
    """Scores of the samples on their principal components, `(n_samples, n_samples)`, through their Gram matrix."""
    centred, mean = _centred(values, inside)
    fixed = lax.stop_gradient(centred)
    eigenvalues, vectors = eigh(matmul(fixed, fixed.T))
    kept = eigenvalues > len(eigenvalues) * jnp.finfo(values.dtype).eps * eigenvalues[-1]
    root = jnp.sqrt(jnp.where(kept, eigenvalues, 1))
    components = jnp.where(kept, matmul(fixed.T, vectors) / root, 0)
    # Products of samples change as those of their scores do while the components stay, also where eigenvalues are equal.
    scores = jnp.where(kept, vectors * root, 0) + matmul(centred - fixed, components)
    return scores, Basis(components, mean)

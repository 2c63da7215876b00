"""Every comparison of what views read on two sides: `score` and `score_batches` are pure, `compare` is for arrays and files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import alignment, stats, training
from superpos import metrics as metrics_lib
from superpos import moments as moments_lib
from superpos.alignment import Metrics
from superpos.moments import Moments

Units = Mapping[str, Float[Array, "n _"]]  # what each view reads in the same samples


def ends(comparison: str) -> tuple[str, str]:
    """The view of the source and that of the target of a comparison "source->target".

    Raises:
        ValueError: not two names with an arrow between them.

    >>> ends("sae->neuron")
    ('sae', 'neuron')
    """
    source, arrow, target = comparison.partition("->")
    if not (source and arrow and target) or "->" in target:
        raise ValueError(f"A comparison must be two views with an arrow between them, such as sae->neuron, got {comparison!r}.")
    return source, target


def score_batches(
    encode: Callable[[Array], tuple[Units, Units]],
    n_batches: int,
    comparisons: Sequence[str],
    metrics: Metrics = alignment.DEFAULT,
    n_folds: int = 5,
) -> tuple[dict[str, Float[Array, " comparisons"]], Float[Array, ""]]:
    """Scores every comparison over samples that are made batch by batch, for programs that hold no sample longer than needed.

    Views of one side may have any number of units: all comparisons are padded to one shape and compiled once.

    Args:
        encode: `encode(i)` gives batch i as its views read it, on both sides: `{view: (n, units)}` each. Batches are
            independent samples; batch i is of fold i mod n_folds.
        n_batches: static; a multiple of n_folds makes folds equally large.
        comparisons: such as "sae->neuron".
        metrics: those that read moments.
        n_folds: static.

    Returns:
        The mean score of each comparison by metric, and the largest gap that an exact transport problem left.
    """
    sides = [ends(comparison) for comparison in comparisons]
    resolved = metrics_lib.resolve(metrics)
    moments, layouts = batch_moments(encode, n_batches, n_folds, alignment.reads(resolved))
    columns = [[layout.columns(name) for name, layout in zip(pair, layouts, strict=True)] for pair in sides]
    widths = [max(len(pair[end]) for pair in columns) for end in range(2)]
    padded = [np.array([layout.padded(pair[end], widths[end]) for pair in columns]) for end, layout in enumerate(layouts)]

    def compare(units: tuple[Array, Array]) -> tuple[dict[str, Array], Array]:
        scores = alignment.score(moments_lib.select(moments, *units), resolved)
        gaps = [jnp.max(score.details["gap"]) for score in scores.values() if "gap" in score.details]
        return {metric: score.mean for metric, score in scores.items()}, jnp.max(jnp.stack([jnp.zeros(()), *gaps]))

    # One after the other: compiled once, and memory stays small.
    scores, gaps = lax.map(compare, tuple(map(jnp.asarray, padded)))
    return scores, jnp.max(gaps)


class Layout:
    """Which columns belong to which view, where what several views read stands side by side."""

    def __init__(self, widths: Mapping[str, int]):
        self.first, self.widths, self.total = {}, dict(widths), 0
        for name, width in widths.items():
            self.first[name] = self.total
            self.total += width

    def columns(self, name: str) -> np.ndarray:
        """The columns of a view."""
        return np.arange(self.first[name], self.first[name] + self.widths[name])

    def padded(self, columns: np.ndarray, width: int) -> np.ndarray:
        """With columns that are not there, which `moments.select` takes as silent units."""
        return np.concatenate([columns, np.full(width - len(columns), self.total)])


def batch_moments(
    encode: Callable[[Array], tuple[Units, Units]], n_batches: int, n_folds: int, reads: frozenset[str]
) -> tuple[Moments, tuple[Layout, Layout]]:
    """Moments of all that views read on both sides, side by side, over batches that are made one after the other.

    Args:
        encode, n_batches, n_folds: as in `score_batches`.
        reads: the sums to keep, see `sp.reads`.

    Returns:
        The moments, and where in them each view stands on either side.
    """
    shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct((), jnp.int32))
    source, target = (Layout({name: units.shape[1] for name, units in side.items()}) for side in shapes)
    tick = training.loop(n_batches)

    def add(moments: Moments, i: Array) -> tuple[Moments, None]:
        x, y = (
            jnp.concatenate([side[name] for name in layout.widths], axis=1)
            for side, layout in zip(encode(i), (source, target), strict=True)
        )
        tick(i)
        return moments_lib.update(moments, x, y, i % n_folds), None

    empty = moments_lib.init(source.total, target.total, n_folds, reads)
    return lax.scan(add, empty, jnp.arange(n_batches))[0], (source, target)


WEIGHTS: dict[str, Callable[[Array], Array] | None] = {
    "uniform": None,
    "variance": lambda units: jnp.var(units, axis=0),
    "density": lambda units: jnp.mean(units != 0, axis=0),
}


def score(
    x: Float[Array, "n source"],
    y: Float[Array, "n target"],
    metrics: Metrics = alignment.DEFAULT,
    folds: int | ArrayLike | None = 5,
    n_folds: int | None = None,
    *,
    groups: ArrayLike | None = None,
    n_blocks: int | None = 10,
    weights: str = "uniform",
    key: Key[Array, ""] | None = None,
) -> dict[str, dict[str, Array]]:
    """Scores one pair of representations, with what an interval over samples needs. Pure: `jit` and `vmap` it.

    Args:
        x, y: what views read in the same samples.
        metrics, folds, n_folds, groups: as in `sp.align`.
        n_blocks: parts of a fold that are left out in turn; None: no replicates.
        weights: how target units are averaged: "uniform"; by "variance"; or by "density", the share of samples in which a unit
            is not 0. Only metrics with a score for each unit are weighted.
        key: deals samples to blocks.

    Returns:
        By metric: `mean` (), `folds` (n_folds,), `units` (n_folds, target) with 0 and `live` false where a unit is masked, and
        `replicates` (n_folds, n_blocks), the scores without each block, maps fixed. Those that a metric does not have are left
        out.
    """
    measure = WEIGHTS[weights]
    given = None if measure is None else measure(y)
    if n_blocks is None and given is None:
        scored: Any = alignment.align(x, y, metrics, folds, n_folds, groups=groups)
    else:
        scored = stats.jackknife(x, y, metrics, folds, n_folds, key=key, groups=groups, n_blocks=n_blocks or 2, weights=given)
    scores: dict[str, dict[str, Array]] = {}
    for metric, found in scored.items():
        scores[metric] = {"mean": found.mean, "folds": found.folds}
        if found.units is not None:
            live = ~jnp.isnan(found.units)
            scores[metric] |= {"units": jnp.where(live, found.units, 0), "live": live}
        if n_blocks is not None:
            scores[metric]["replicates"] = found.replicates
    return scores

"""The pure half of a comparison: scores of arrays, and of batches that are made in the program."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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


def rivals(comparison: str, base: str, names: Iterable[str]) -> list[str]:
    """What could explain the gain of a comparison over its base: other views in place of its own, at the ends that it changes.

    Views that were told the truth are no rivals.

    >>> rivals("sae->sae", "neuron->neuron", ["sae->neuron", "random_sae->sae", "ica->ica", "oracle->oracle"])
    ['ica->ica']
    """

    def of_end(mine: str, basic: str, other: str) -> bool:
        return other == mine if mine == basic else other not in (mine, basic, "oracle", "supervised")

    return [name for name in names if all(map(of_end, ends(comparison), ends(base), ends(name)))]


def views_of(comparisons: Sequence[str]) -> list[str]:
    """The views that comparisons read, each once.

    >>> views_of(["sae->neuron", "sae->sae"])
    ['sae', 'neuron']
    """
    return list(dict.fromkeys(name for comparison in comparisons for name in ends(comparison)))


def whole_batches(n_samples: int, batch_size: int, n_folds: int) -> int:
    """Batches for so many samples, or a few more: each fold is made of whole ones, and all have equally many.

    Samples are independent, so that folds which are runs of batches are as good as shuffled ones.

    >>> whole_batches(n_samples=100, batch_size=8, n_folds=5)
    15
    """
    return n_folds * -(-n_samples // (n_folds * batch_size))


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
    resolved = metrics_lib.resolve(metrics)
    moments = batch_moments(encode, n_batches, comparisons, n_folds, alignment.reads(resolved), alike=True)

    def compare(moments: Moments) -> tuple[dict[str, Array], Array]:
        scores = alignment.score(moments, resolved)
        gaps = [jnp.max(score.details["gap"]) for score in scores.values() if "gap" in score.details]
        return {metric: score.mean for metric, score in scores.items()}, jnp.max(jnp.stack([jnp.zeros(()), *gaps]))

    # One after the other: compiled once, and memory stays small.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(moments[comparison] for comparison in comparisons))
    scores, gaps = lax.map(compare, stacked)
    return scores, jnp.max(gaps)


def recover_batches(encode: Callable[[Array], tuple[Units, Array]], n_batches: int) -> dict[str, Float[Array, " features"]]:
    """Each true feature's highest correlation with any unit of each view, over samples that are made batch by batch.

    Args:
        encode: `encode(i)` gives batch i as views read it, `{view: (n, units)}`, and its features `(n, n_features)`.
        n_batches: static.
    """

    def sides(i: Array) -> tuple[Units, Units]:
        units, z = encode(i)
        return units, {"feature": z}

    names = jax.eval_shape(encode, jax.ShapeDtypeStruct((), jnp.int32))[0]
    recovery = metrics_lib.FeatureRecovery()
    moments = batch_moments(sides, n_batches, [f"{name}->feature" for name in names], 1, recovery.reads)
    scores = {name: recovery(moments[f"{name}->feature"]) for name in names}
    return {name: score.units[0] for name, score in scores.items() if score.units is not None}


def batch_moments(
    encode: Callable[[Array], tuple[Units, Units]],
    n_batches: int,
    comparisons: Sequence[str],
    n_folds: int,
    reads: frozenset[str],
    *,
    alike: bool = False,
) -> dict[str, Moments]:
    """Moments of the two views of each comparison, over batches that are made one after the other.

    Views that are compared with each other, or with a third, stand side by side: what a comparison needs are columns of the
    moments of all of them. Views that have nothing in common share no products.

    Args:
        encode, n_batches, comparisons, n_folds: as in `score_batches`.
        reads: the sums to keep, see `sp.reads`.
        alike: whether moments of all comparisons have one shape, with silent units in place of those that are not there.

    Returns:
        The moments of each comparison.
    """
    shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct((), jnp.int32))
    pairs = {comparison: ends(comparison) for comparison in comparisons}
    sizes = {comparison: [shapes[end][pair[end]].shape[1] for end in range(2)] for comparison, pair in pairs.items()}
    widest = [max(size[end] for size in sizes.values()) for end in range(2)]
    # Squared lengths of samples are those of all units together, and so of one comparison only.
    apart = "norms" in reads
    groups = [[comparison] for comparison in pairs] if apart else _related(pairs)
    members = [[list(dict.fromkeys(pairs[comparison][end] for comparison in group)) for end in range(2)] for group in groups]

    def beside(units: Units, names: Sequence[str], end: int) -> Array:
        x = jnp.concatenate([units[name] for name in names], axis=1)
        return jnp.pad(x, ((0, 0), (0, widest[end] - x.shape[1]))) if apart and alike else x

    def columns(names: Sequence[str], name: str, end: int) -> Array:
        first = sum(shapes[end][other].shape[1] for other in names[: names.index(name)])
        size = shapes[end][name].shape[1]
        missing = (widest[end] - size) * alike  # `select` takes an index that is out of range as a silent unit
        return jnp.concatenate([jnp.arange(first, first + size), jnp.full(missing, jnp.iinfo(jnp.int32).max)])

    tick = training.loop(n_batches)

    def add(sums: list[Moments], i: Array) -> tuple[list[Moments], None]:
        source, target = encode(i)
        tick(i)
        both = [(beside(source, names[0], 0), beside(target, names[1], 1)) for names in members]
        return [moments_lib.update(old, x, y, i % n_folds) for old, (x, y) in zip(sums, both, strict=True)], None

    def width(names: Sequence[str], end: int) -> int:
        return widest[end] if apart and alike else sum(shapes[end][name].shape[1] for name in names)

    empty = [moments_lib.init(width(names[0], 0), width(names[1], 1), n_folds, reads) for names in members]
    sums, _ = lax.scan(add, empty, jnp.arange(n_batches))
    if apart:
        return dict(zip(pairs, sums, strict=True))
    return {
        comparison: moments_lib.select(old, *(columns(names[end], pairs[comparison][end], end) for end in range(2)))
        for old, names, group in zip(sums, members, groups, strict=True)
        for comparison in group
    }


def _related(pairs: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    """Comparisons in groups, so that those which share a source or a target are together."""
    groups: list[list[str]] = []
    for comparison, pair in pairs.items():
        mine = [group for group in groups if any(pair[end] == pairs[other][end] for other in group for end in range(2))]
        groups = [group for group in groups if group not in mine] + [[*itertools.chain(*mine), comparison]]
    return groups


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
        `replicates` (n_folds, n_blocks), the scores without each block, maps fixed, and `crossed`, with maps fitted again: see
        `sp.stats.Jackknife`; `details`, of metrics that have doubts of their own. Those that a metric does not have are left
        out.
    """
    resolved, measure = metrics_lib.resolve(metrics), WEIGHTS[weights]
    given = None if measure is None else measure(y)
    if n_blocks is None and given is None:
        scored: Any = alignment.align(x, y, metrics, folds, n_folds, groups=groups)
    else:
        blocks: Any = {"n_blocks": n_blocks} if n_blocks else {"n_blocks": 2, "n_parts": None}
        scored = stats.jackknife(x, y, metrics, folds, n_folds, key=key, groups=groups, weights=given, **blocks)
    scores: dict[str, dict[str, Any]] = {}
    for metric, found in scored.items():
        scores[metric] = {"mean": found.mean, "folds": found.folds}
        if found.units is not None:
            live = ~jnp.isnan(found.units)
            scores[metric] |= {"units": jnp.where(live, found.units, 0), "live": live}
        if any(of.name == metric and of.has_doubts for of in resolved):
            scores[metric]["details"] = {k: v for k, v in found.details.items() if k not in ("weights", "intercept")}
        if n_blocks is not None:
            scores[metric] |= {"replicates": found.replicates, "crossed": found.crossed}
    return scores

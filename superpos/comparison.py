"""Every comparison of what views read on two sides: `score` and `score_batches` are pure, `compare` is for arrays and files."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from superpos import alignment, training
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

"""Every comparison of what views read on two sides: `score` and `score_batches` are pure, `compare` is for arrays and files."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from superpos import alignment
from superpos.activations import Side
from superpos.alignment import Metrics
from superpos.comparison.batches import (
    Units,
    batch_moments,
    ends,
    recover_batches,
    rivals,
    score,
    score_batches,
    views_of,
    whole_batches,
)
from superpos.comparison.layers import Layers, layers_of_files, layers_of_seeds, read_layers, simulated_brain
from superpos.comparison.plan import DEFAULT_COMPARISONS, Plan, default_views
from superpos.comparison.result import Comparison
from superpos.views import View

__all__ = [
    "DEFAULT_COMPARISONS",
    "Comparison",
    "Layers",
    "Plan",
    "Units",
    "batch_moments",
    "compare",
    "compare_sides",
    "default_views",
    "ends",
    "layers_of_files",
    "layers_of_seeds",
    "read_layers",
    "recover_batches",
    "rivals",
    "score",
    "score_batches",
    "simulated_brain",
    "views_of",
    "whole_batches",
]


def compare_sides(
    sides: Mapping[str, Side],
    pairs: Mapping[str, Sequence[tuple[str, str]]] | Sequence[tuple[str, str]],
    views: Mapping[str, View] | None = None,
    comparisons: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    metrics: Metrics = alignment.DEFAULT,
    folds: int | ArrayLike | str | os.PathLike | None = 5,
    groups: ArrayLike | None = None,
    split: float = 0.5,
    pool: str | None = None,
    gap: int | None = None,
    weights: str = "uniform",
    n_seeds: int = 1,
    n_blocks: int | str | None = "auto",
    settings: Mapping[str, Sequence[Any]] | None = None,
    key: Key[Array, ""] | None = None,
    workdir: str | os.PathLike | None = None,
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Comparison:
    """Compares any number of systems: a side's views are fitted once, then every comparison of every pair is scored.

    Sides of one shape are fitted and scored by the same compiled programs. Whatever can be refused is refused before anything
    trains; `Plan` is this function without its last step.

    Args:
        sides: by name, all of the same images: see `Side`.
        pairs: of names, source first; or lists of pairs by label. The pairs of one label are summarised together.
        views: by name; by default those of `default_views`.
        comparisons: such as "sae->neuron", of the names of views; by default `DEFAULT_COMPARISONS`.
            Or those of each label.
        metrics: as in `sp.align`.
        folds, groups, split, pool, gap: see `superpos.activations.divide`.
        weights: how target units are averaged, "uniform", "variance" or "density": an unweighted mean gives rare latents the
            same say as common ones.
        n_seeds: fits of each view that is random.
        n_blocks: parts of a fold that are left out in turn, for intervals over samples; "auto": ten, or as many as a fold has
            samples (or groups); None: no such intervals.
        settings: values of fields of the SAE among the views, such as {"k": (4, 16), "expansion": (1, 4)}: every combination of
            them is compared too, and `Comparison.curve` shows them all. See `superpos.comparison.settings.spread`.
        key: of everything that is drawn; by default `jax.random.key(0)`.
        workdir, chunk, devices: see `Plan.run`.

    Raises:
        ValueError: one sentence, before anything trains, that names what is wrong.
    """
    plan = Plan(
        sides,
        pairs,
        views,
        comparisons,
        metrics=metrics,
        folds=folds,
        groups=groups,
        split=split,
        pool=pool,
        gap=gap,
        weights=weights,
        n_seeds=n_seeds,
        n_blocks=n_blocks,
        settings=settings,
        key=key,
    )
    return plan.run(workdir, chunk=chunk, devices=devices)


def compare(
    source: Any,
    target: Any,
    views: Mapping[str, View] | None = None,
    comparisons: Sequence[str] | None = None,
    *,
    train: tuple[Any, Any] = (None, None),
    **settings: Any,
) -> Comparison:
    """Compares two systems as they are and as views read them, each comparison with its interval: `sp.compare`.

    Args:
        source: the side that predicts, `(samples, units)` or `(images, positions, units)`: an array, a path, or a `Side`.
        target: the side that is predicted, the same samples in the same order (or with names that pair them).
        views, comparisons: as in `compare_sides`.
        train: samples of each side that views are fitted on, instead of a part of its own.
        **settings: as in `compare_sides`.

    Returns:
        A `Comparison`: `summary()`, `differences()`, `describe()`, `scores`, `plot()`.

    >>> from superpos.views import ICA, Neuron
    >>> x = jax.random.laplace(jax.random.key(0), (400, 3))
    >>> mixed = x @ jax.random.orthogonal(jax.random.key(1), 3)
    >>> found = compare(x, mixed, {"neuron": Neuron(), "ica": ICA()}, ("neuron->neuron", "ica->ica"), metrics="semi_match")
    >>> [row["comparison"] for row in found.summary() if row["mean"] > 0.9]
    ['ica->ica']
    """
    if not isinstance(train, tuple | list) or len(train) != 2:
        raise ValueError(f"train must be a pair, samples of the source and of the target, got {type(train).__name__}.")
    for name, side, own in zip(("source", "target"), (source, target), train, strict=True):
        if isinstance(side, Side) and own is not None:
            raise ValueError(f"train of {name} must be given to its Side, which is given.")
    given = [
        side if isinstance(side, Side) else Side(side, train=own) for side, own in zip((source, target), train, strict=True)
    ]
    sides = dict(zip(("source", "target"), given, strict=True))
    return compare_sides(sides, [("source", "target")], views, comparisons, **settings)

"""Folds for cross-validation, and blocks of samples within them; a group of samples never straddles two. Splits in two."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from superpos.checks import as_array, is_concrete

BLOCKS = "blocks"  # folds that are runs of samples


def contiguous(n_samples: int, n_folds: int = 5, gap: int = 0, groups: Any = None) -> Int[np.ndarray, " samples"]:
    """Folds that are runs of samples in the order in which they were recorded, for samples that resemble their neighbours.

    Shuffled folds put the neighbours of a held-out sample, such as frames of one video, into its training part, where they give
    it away. Source: Burman, Chow & Nolan 1994, "A cross-validatory method for dependent data".

    Args:
        n_samples: static.
        n_folds: at least 2.
        gap: samples (or groups) that are left out between two folds: at least as many as resemble each other.
        groups: `(n_samples,)` integers, which no fold divides: runs of them.

    Returns:
        The fold of each sample, -1 where it is left out: what `folds` of `sp.align` and others takes.

    Raises:
        ValueError: a gap that leaves an empty fold, fewer than 2 folds, or groups that are not runs.

    >>> contiguous(10, 2, gap=2).tolist()
    [0, 0, 0, 0, -1, -1, 1, 1, 1, 1]
    """
    groups = np.arange(n_samples) if groups is None else np.cumsum(np.diff(groups, prepend=groups[0]) != 0)
    n = int(groups[-1]) + 1
    size = (n - gap * (n_folds - 1)) / n_folds
    if n_folds < 2 or gap < 0 or size < 1:
        raise ValueError(
            f"gap must leave samples in each of at least 2 folds, got {gap} between {n_folds} folds of {n} samples."
        )
    starts = np.round(np.arange(n_folds) * (size + gap)).astype(int)
    stops = np.round(np.arange(n_folds) * (size + gap) + size).astype(int)
    ids = np.full(n, -1)
    for fold, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        ids[start:stop] = fold
    return ids[groups]


def runs(ids: Int[np.ndarray, " samples"], n_runs: int) -> Int[np.ndarray, " samples"]:
    """Each fold's samples as so many runs of equal length, numbered: groups for intervals over samples that are dependent.

    >>> runs(np.array([0, 0, 0, 0, -1, 1, 1, 1, 1]), 2).tolist()
    [0, 0, 1, 1, -1, 2, 2, 3, 3]
    """
    ids = np.asarray(ids)
    numbered = np.full(len(ids), -1)
    for fold in np.unique(ids[ids >= 0]):
        inside = np.flatnonzero(ids == fold)
        numbered[inside] = fold * n_runs + np.arange(len(inside)) * n_runs // len(inside)
    return numbered


def assign_folds(
    n_samples: int,
    folds: int | ArrayLike | str | None = 5,
    n_folds: int | None = None,
    key: Key[Array, ""] | None = None,
    groups: Any = None,
) -> tuple[Int[Array, " samples"], int]:
    """The fold of each sample, `(n_samples,)`, and the number of folds: see `sp.align` for the arguments and errors."""
    if isinstance(folds, str):
        if folds != BLOCKS:
            raise ValueError(f'folds must be an int, None, "{BLOCKS}" or integers ({n_samples},), got {folds!r}.')
        folds = contiguous(n_samples, 5 if n_folds is None else n_folds, groups=groups)
    groups = None if groups is None else as_array(groups)
    if groups is not None and (groups.shape != (n_samples,) or not jnp.issubdtype(groups.dtype, jnp.integer)):
        raise ValueError(f"groups must be integers of shape ({n_samples},), got {groups.dtype} {groups.shape}.")
    if key is not None and not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be a JAX key, such as jax.random.key(0), got {key!r}.")
    if folds is None and n_folds not in (None, 1):
        raise ValueError(f"n_folds must be left out where folds is None, got {n_folds}.")
    if folds is None:
        return jnp.zeros(n_samples, jnp.int32), 1
    if isinstance(folds, (int, np.integer)):
        if n_folds not in (None, folds):
            raise ValueError(f"n_folds must be left out or equal folds={folds}, got {n_folds}.")
        return _shuffled_folds(n_samples, int(folds), key, groups), int(folds)

    ids = as_array(folds)
    if ids.shape != (n_samples,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"folds must be an int, None or integers ({n_samples},), got {ids.dtype} {ids.shape}.")
    if not is_concrete(ids):
        if n_folds is None:
            raise ValueError("folds is traced: pass n_folds, the number of folds.")
        return ids, n_folds
    n_folds = int(ids.max()) + 1 if n_folds is None else n_folds
    if n_folds > n_samples:  # before that many are counted
        raise ValueError(f"folds must number 0 to n_folds - 1, none empty, got {n_samples} samples for {n_folds} folds.")
    ids = np.where(ids < 0, -1, ids)
    if ids.max() >= n_folds:
        raise ValueError(f"folds must be below n_folds={n_folds}, got {ids.max()}.")
    counts = np.bincount(ids[(ids >= 0) & (ids < n_folds)], minlength=n_folds)
    if n_folds < 2 or (counts == 0).any():
        raise ValueError(f"folds must number 0 to n_folds - 1, at least 2 and none empty, got counts {counts.tolist()}.")
    if groups is not None and is_concrete(groups):
        pairs = np.unique(np.stack([groups, ids]), axis=1)
        if len(np.unique(pairs[0])) < pairs.shape[1]:
            raise ValueError("folds splits a group: all samples of one group must be in one fold.")
    return jnp.asarray(ids), n_folds


def _shuffled_folds(n_samples: int, n_folds: int, key: Key[Array, ""] | None, groups: Any) -> Int[Array, " samples"]:
    key = jax.random.key(0) if key is None else key
    groups, n_groups = _number(groups, n_samples)
    if n_folds < 2 or (n_groups is not None and n_groups < n_folds):
        unit = "samples" if n_groups == n_samples else "groups"
        raise ValueError(f"folds must be between 2 and the number of {unit}, {n_groups}, got {n_folds}.")
    # Groups in random order are dealt out to the folds like cards; slots of groups that don't exist come last.
    slots = n_samples if n_groups is None else n_groups
    dealt = jax.random.uniform(key, (slots,), jnp.float32)  # the same folds with x64
    if n_groups is None:
        dealt = jnp.where(jnp.arange(slots) <= jnp.max(groups), dealt, jnp.inf)
    return (jnp.argsort(jnp.argsort(dealt)) % n_folds)[groups]


def deal(ids: Array, n_folds: int, n_blocks: int, key: Key[Array, ""], groups: Any = None) -> Int[Array, " samples"]:
    """Divides each fold into blocks of equally many groups: the block of each sample, `(n_samples,)`.

    Raises:
        ValueError: fewer groups in a fold than blocks.
    """
    groups, n_groups = _number(groups if groups is None else as_array(groups), ids.shape[0])
    slots = ids.shape[0] if n_groups is None else n_groups
    fold = jnp.full(slots, n_folds).at[groups].set(jnp.where((ids >= 0) & (ids < n_folds), ids, n_folds))  # of each group
    counts = jnp.sum(fold[:, None] == jnp.arange(n_folds), axis=0)
    if is_concrete(counts) and counts.min() < n_blocks:
        raise ValueError(
            f"n_blocks must be at most the number of samples, or groups, in a fold, {counts.min()}, got {n_blocks}."
        )
    order = jnp.lexsort((jax.random.uniform(jax.random.fold_in(key, 1), (slots,), jnp.float32), fold))
    first = jnp.concatenate([jnp.zeros(1, counts.dtype), jnp.cumsum(counts)])
    position = jnp.zeros(slots, counts.dtype).at[order].set(jnp.arange(slots, dtype=counts.dtype)) - first[fold]
    return (position % n_blocks)[groups]


def split(
    groups: Int[np.ndarray, " rows"], share: float, key: Key[Array, ""]
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " scored"]]:
    """Rows that fit views, group by group in random order, and rows that are scored, in ascending order.

    Args:
        groups: of each row.
        share: of the groups whose rows fit views.
        key: shuffles the groups.

    Raises:
        ValueError: a share that leaves nothing on one side.
    """
    names, groups = np.unique(groups, return_inverse=True)
    n_scored = round((1 - share) * len(names)) if 0 < share < 1 else 0
    if not 1 <= n_scored < len(names):
        raise ValueError(
            f"split must be above 0 and below 1, and leave some of the {len(names)} groups on both sides, got {share}."
        )
    rank = np.argsort(np.asarray(jax.random.permutation(key, len(names))))  # of each group in random order
    fitted = np.flatnonzero(rank[groups] >= n_scored)
    return fitted[np.argsort(rank[groups[fitted]], kind="stable")], np.flatnonzero(rank[groups] < n_scored)


def split_stratified(
    labels: Int[np.ndarray, " rows"], share: float, seed: int
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " scored"]]:
    """Rows that fit and rows that are scored, where each category has its share of both; in ascending order.

    The rows of each category are dealt out in random order, one category after the other: on either side it has its share, up
    to one row.

    Args:
        labels: the category of each row.
        share: of the rows that fit.
        seed: of the random order.

    Raises:
        ValueError: a share that leaves nothing on one side.

    >>> fitted, scored = split_stratified(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.5, seed=0)
    >>> (fitted >= 4).sum(), (scored >= 4).sum(), sorted([*fitted, *scored]) == list(range(8))
    (np.int64(2), np.int64(2), True)
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fits = np.diff(np.floor(np.arange(len(labels) + 1) * share)) > 0 if 0 < share < 1 else np.ones(len(labels), bool)
    if fits.all() or not fits.any():
        raise ValueError(f"share must be above 0 and below 1, and leave some of {len(labels)} rows on both sides, got {share}.")
    return np.sort(order[fits]), np.sort(order[~fits])


def _number(groups: Any, n_samples: int) -> tuple[Int[Array, " samples"], int | None]:
    """Groups numbered from 0, and how many, None where they are traced; each sample its own where there are none."""
    if groups is None:
        return jnp.arange(n_samples), n_samples
    if is_concrete(groups):
        groups = np.unique(groups, return_inverse=True)[1]
        return jnp.asarray(groups), int(groups.max()) + 1
    return jnp.unique(groups, return_inverse=True, size=n_samples)[1], None

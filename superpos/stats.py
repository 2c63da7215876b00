"""Summaries with confidence intervals."""

from typing import Any

import numpy as np
from jaxtyping import Float


def over_pairs(scores: Float[np.ndarray, "seeds seeds"], *, symmetric: bool = False) -> dict[str, Any]:
    """Mean, spread and confidence interval of a score over pairs of seeds, the seeds being the sample.

    Pairs share seeds and so are not independent: each seed in turn is left out with all of its pairs, and the jackknife
    variance of the mean (Efron & Stein 1981) is scaled by Student's t with n_seeds - 1 degrees of freedom.

    Args:
        scores: `(n_seeds, n_seeds)`, the score of each ordered pair; the diagonal is ignored.
        symmetric: count unordered pairs once.

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
    pairs = scores[used]
    interval = None
    if n_seeds > 2:
        seeds = np.arange(n_seeds)
        without = [used & (seeds[:, None] != left_out) & (seeds != left_out) for left_out in seeds]
        interval = _jackknife_interval(pairs.mean(), [scores[kept].mean() for kept in without])
    return {
        "mean": pairs.mean(),
        "std": pairs.std(ddof=1) if len(pairs) > 1 else 0.0,
        "ci95": interval,
        "n_seeds": n_seeds,
        "n_pairs": len(pairs),
    }


def over_seeds(values: Float[np.ndarray, " seeds"]) -> dict[str, Any]:
    """Mean, spread and confidence interval of independent values, one a seed: keys as in `over_pairs`, without `n_pairs`.

    Raises:
        ValueError: no value, or more than one axis.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be a list of at least one value, got shape {values.shape}.")
    n_seeds = len(values)
    interval = None
    if n_seeds > 2:
        interval = _jackknife_interval(values.mean(), [np.delete(values, seed).mean() for seed in range(n_seeds)])
    return {
        "mean": values.mean(),
        "std": values.std(ddof=1) if n_seeds > 1 else 0.0,
        "ci95": interval,
        "n_seeds": n_seeds,
    }


def _jackknife_interval(estimate, without):
    """Delete-one jackknife interval of 95 % from the estimates with one seed left out."""
    from scipy.stats import t

    without = np.asarray(without)
    n_seeds = len(without)
    error = np.sqrt((n_seeds - 1) * np.mean((without - without.mean()) ** 2))
    half = t.ppf(0.975, n_seeds - 1) * error
    if not np.isfinite(half):
        return None
    return [float(estimate - half), float(estimate + half)]

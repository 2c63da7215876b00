"""Samples of arrangements, beside what theory says of them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from superpos import alignment, arrangements, stats, transport
from superpos import features as features_lib
from superpos import moments as moments_lib
from superpos.linalg import matmul
from superpos.moments import Moments
from superpos.theory.laws import RANDOM
from superpos.theory.weights import Arrangement, population

# Units that `measure` samples: y = z A, and y = relu(z A).
UNITS = ("linear", "rectified")


def measure(
    a: Arrangement,
    b: Arrangement,
    features: Any,
    key: Key[Array, ""],
    *,
    n_batches: int,
    batch_size: int,
    n_rsa: int,
    width: int,
    n_folds: int = 3,
    tick: Callable[[Any], None] = lambda i: None,
) -> dict[str, Any]:
    """The moments of two arrangements, of an endless sample and of samples of each of `UNITS`, and the rsa of other samples.

    Args:
        a, b: arrangements of the same features, `(n_features, n_units)` each; a is the source.
        features: any of `sp.features`; may be traced.
        key: of the samples.
        n_batches, batch_size: of the samples, which are made one batch after the other; batch i is of fold i mod n_folds.
        n_rsa: samples of the rsa, which moments do not give.
        width: of the moments on both sides, filled with silent units, so that scores of several n_units compile once.
        n_folds: static.
        tick: is told the number of each batch.

    Returns:
        `moments`, leaves `(1 + len(UNITS), ...)`, those of `population` first; `rsa`, `(len(UNITS), n_folds)`.

    >>> a, b = arrangements.varied_pair(jax.random.key(0), 6, 2)
    >>> z = features_lib.SparseFeatures(6, 0.5)
    >>> measured = measure(a, b, z, jax.random.key(1), n_batches=3, batch_size=64, n_rsa=96, width=2)
    >>> measured["rsa"].shape, measured["moments"].xy.shape
    ((2, 3), (3, 3, 2, 2))
    """

    def sides(i: Any, n: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        z = features.sample(jax.random.fold_in(key, i), n)
        x, y = (matmul(side.T, z.T).T for side in (a, b))  # samples last in memory
        return (x, y), (jax.nn.relu(x), jax.nn.relu(y))

    def add(sums: list[Moments], i: Array) -> tuple[list[Moments], None]:
        tick(i)
        both = zip(sums, sides(i, batch_size), strict=True)
        return [moments_lib.update(old, x, y, i % n_folds) for old, (x, y) in both], None

    empty = moments_lib.init(a.shape[1], b.shape[1], n_folds, ("xx", "xy", "yy"))
    sampled, _ = jax.lax.scan(add, [empty] * len(UNITS), jnp.arange(n_batches))
    kinds = (population(a, b, features_lib.covariance(features), n_folds), *sampled)
    units = jnp.arange(width)
    moments = [moments_lib.select(kind, units, units) for kind in kinds]
    ids = np.arange(n_rsa) % n_folds
    rsa = [alignment.align(x, y, "rsa", ids)["rsa"].folds for x, y in sides(n_batches, n_rsa)]
    return {"moments": jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments), "rsa": jnp.stack(rsa)}


def simulate_random(key: Key[Array, ""], n_features: int, n_units: int) -> dict[str, Float[Array, ""]]:
    """The scores of an endless sample of two Gaussian arrangements of features of equal variance: what `RANDOM` expects.

    Args:
        key: draws both arrangements.
        n_features, n_units: static sizes.
    """
    sides = (arrangements.gaussian(side, n_features, n_units) for side in jax.random.split(key))
    a, b = (arrangements.directions(side.T) for side in sides)  # units of norm 1: products are correlations
    r = matmul(a, b.T)
    return {"semi_match": jnp.mean(jnp.max(r, axis=0)), "permutation_match": -transport.assignment(-r).objective / n_units}


def agreement(predicted: Float[np.ndarray, "pairs folds"], measured: Float[np.ndarray, "pairs folds"]) -> dict[str, float]:
    """Measured less predicted scores of many pairs, beside the standard error of one measured score.

    The error is that of the mean over folds, which are independent samples, from their spread; root mean square over pairs.

    Returns:
        `mean_difference`, `rms_difference`, `largest_difference`, `sampling_error`, `n_pairs`.
    """
    predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    error = (measured - predicted).mean(axis=1)
    return {
        "mean_difference": error.mean(),
        "rms_difference": np.sqrt(np.mean(error**2)),
        "largest_difference": np.abs(error).max(),
        "sampling_error": np.sqrt(np.mean(measured.var(axis=1, ddof=1) / measured.shape[1])),
        "n_pairs": len(error),
    }


def summary(predicted: Float[np.ndarray, "pairs folds"], measured: Float[np.ndarray, "pairs folds"]) -> dict[str, Any]:
    """Scores of many pairs, predicted and measured, and how far they are apart.

    Returns:
        `predicted`, the mean; of what is measured `mean`, `std` and `ci95`, over `n_pairs` independent pairs;
        `mean_difference` and `largest_difference`, as `agreement` has them.

    >>> told = summary(np.zeros((3, 2)), np.array([[0.0, 0.2], [0.1, 0.1], [0.1, 0.1]]))
    >>> round(float(told["mean"]), 3), told["n_pairs"], round(float(told["largest_difference"]), 3)
    (0.1, 3, 0.1)
    """
    predicted, values = (np.asarray(scores, np.float64).mean(axis=1) for scores in (predicted, measured))
    over, error = stats.over_seeds(values), values - predicted
    over["n_pairs"] = over.pop("n_seeds")
    differences = {"mean_difference": error.mean(), "largest_difference": np.abs(error).max()}
    return {"predicted": predicted.mean(), **over, **differences}


def agreement_of_random(simulated: Float[np.ndarray, " pairs"], n_features: int, n_units: int, metric: str) -> dict[str, float]:
    """The `formula` of `RANDOM` beside the `mean` of simulations, its `standard_error`, and the `relative_difference`.

    Args:
        simulated: `(pairs,)`, scores of pairs of random arrangements, at least 2.
        n_features, n_units: of the arrangements.
        metric: a name out of `RANDOM`.
    """
    simulated = np.asarray(simulated, np.float64)
    mean, formula = simulated.mean(), float(RANDOM[metric](n_units, n_features))
    return {
        "formula": formula,
        "mean": mean,
        "standard_error": simulated.std(ddof=1) / math.sqrt(len(simulated)),
        "relative_difference": formula / mean - 1,
        "n_pairs": len(simulated),
    }

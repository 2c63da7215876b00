"""What a number of samples and noise do to a score, so that a measured one can be held against a law."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from superpos.metrics.base import positive_integer


class PlugIn(NamedTuple):
    """What to pass to a law, instead of the features' own.

    Attributes:
        dimension: d' = d N / (N + d).
        overlap: ρ' = (ρ N + d) / (N + d).
    """

    dimension: Array
    overlap: Array


def plug_in(dimension: Any, overlap: Any, n_samples: int) -> PlugIn:
    """The dimension and the overlap that N samples seem to have, to a score that is fitted and evaluated on the same samples.

    In a sample even unrelated features correlate, by 1 / √N. Its covariance Σ̂ has (tr Σ̂)² / tr Σ̂² = d N / (N + d) effective
    dimensions, and of them private features look shared. So with `seen = plug_in(d, ρ, N)` the plug-in cka is about
    `random_cka(n, seen.dimension, overlap=seen.overlap)`, with its bias towards 1 as units outnumber samples. Likewise, with
    `folds=None`, procrustes, and, 5 % too high where d is near N, cca. Gaussian features and arrangements; asymptotic, for N
    above the number of units. Heavy tails, as of sparse features, add to it.

    Args:
        dimension, overlap: d and ρ, as in `random_cka`.
        n_samples: N.

    Raises:
        ValueError: an `n_samples` below 1, an overlap outside 0 to 1, a dimension that is not positive.

    >>> seen = plug_in(64, overlap=0.0, n_samples=64)
    >>> float(seen.dimension), float(seen.overlap)
    (32.0, 0.5)
    """
    positive_integer("n_samples", n_samples)
    _between("overlap", overlap)
    if not isinstance(dimension, jax.core.Tracer) and not dimension > 0:
        raise ValueError(f"dimension must be above 0, got {dimension}.")
    d, overlap = (jnp.asarray(value, jnp.result_type(float)) for value in (dimension, overlap))
    return PlugIn(d * n_samples / (n_samples + d), (overlap * n_samples + d) / (n_samples + d))


def held_out_ols(score: Any, n_source: int, n_samples: int) -> Float[Array, ""]:
    """What ols scores on held-out samples when it is fitted to N: r² / √(r² + (1 - r²) n / (N - n - 2)).

    r is that of endless samples. The map is unbiased, and its error has (1 - r²) n / (N - n - 2) of the target's variance
    (Gaussian sources, an intercept), which predictions have too much. Asymptotic, as a mean of a ratio.

    Args:
        score: r, as of `random_ols`; between 0 and 1.
        n_source: source units.
        n_samples: N, of the training part; at least n_source + 3.

    Raises:
        ValueError: a score outside 0 to 1, or too few samples: there the solution of minimum norm has another law.

    >>> round(float(held_out_ols(0.5, n_source=16, n_samples=100)), 3)
    0.397
    """
    _between("score", score)
    if n_samples < n_source + 3:
        raise ValueError(f"n_samples must be at least n_source + 3 = {n_source + 3}, got {n_samples}.")
    squared = jnp.asarray(score, jnp.result_type(float)) ** 2
    error = (1 - squared) * n_source / (n_samples - n_source - 2)
    return jnp.where(squared > 0, squared / jnp.sqrt(jnp.maximum(squared + error, 1e-30)), 0.0)


# Whether noise divides the root of the variance of each side, or the variance.
_POWER = {
    **dict.fromkeys(
        ("semi_match", "permutation_match", "soft_match", "mcc", "ols", "ridge", "procrustes", "cca", "pwcca"), 0.5
    ),
    "cka": 1.0,
    "cokurtosis": 0.0,
    "cumulant_cka": 0.0,  # white noise does not turn a flat spectrum, and a cosine has no scale
}


def noisy(metric: str, score: Any, source: Any, target: Any) -> Float[Array, ""]:
    """What is left of a score under noise that is independent on both sides, of one variance in all units.

    With reliabilities s and t, the shares of variance that are signal: √(s t) of matching, ols, cca and procrustes, s t of
    cka, all of cokurtosis. Gaussian noise has no fourth cumulant; cumulant_cka, which whitens, keeps all too. Exact for tight
    frames, whose spectra are flat. With others noise takes weak directions first: for given arrangements `predict(...,
    noise=)` is exact.

    Args:
        metric: a name.
        score: without noise.
        source, target: reliabilities, between 0 and 1.

    Raises:
        ValueError: a metric without a rule, a reliability outside 0 to 1.

    >>> round(float(noisy("cka", 0.5, 0.8, 0.5)), 3), round(float(noisy("cokurtosis", 0.5, 0.8, 0.5)), 3)
    (0.2, 0.5)
    """
    if metric not in _POWER:
        raise ValueError(
            f"metric must be one of {', '.join(_POWER)}, got {metric!r}: add noise to samples, and score them by sp.align."
        )
    _between("source", source)
    _between("target", target)
    return jnp.asarray(score) * (jnp.asarray(source, jnp.result_type(float)) * target) ** _POWER[metric]


def _between(name: str, value: Any) -> None:
    if not isinstance(value, jax.core.Tracer) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}.")

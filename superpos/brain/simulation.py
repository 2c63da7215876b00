"""A simulated brain, whose features, mixing and noise are known."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos.arrangements import Arrangement
from superpos.brain.recording import Recording
from superpos.features import SparseFeatures
from superpos.linalg import matmul


class Truth(NamedTuple):
    """What a simulated recording was made of.

    Attributes:
        features: `(n_stimuli, n_features)`.
        mixing: `(n_features, n_units)`, an arrangement: `features @ mixing` is what units would say without noise.
        clean: `(n_stimuli, n_units)`, that product.
        reliability: `(n_units,)`, share of the variance of averaged responses that is signal; its root is the noise ceiling.
        ncsnr: `(n_units,)`, standard deviation of the signal over that of the noise in one repeat.
    """

    features: Float[Array, "stimuli features"]
    mixing: Arrangement
    clean: Float[Array, "stimuli units"]
    reliability: Float[Array, " units"]
    ncsnr: Float[Array, " units"]


def simulate(
    key: Key[Array, ""],
    n_stimuli: int = 1000,
    n_units: int = 100,
    n_repeats: int = 4,
    *,
    reliability: ArrayLike = 0.7,
    features: Any = None,
    mixing: int | Arrangement = 4,
) -> tuple[Recording, Truth]:
    """A recording of units that mix sparse features, with Gaussian noise in each repeat; a function of the key.

    Args:
        key: draws features, mixing and noise.
        n_stimuli, n_units, n_repeats: sizes.
        reliability: of the responses averaged over repeats, above 0 and up to 1, scalar or `(n_units,)`: the share of their
            variance that is signal, for the stimuli drawn.
        features: any of `sp.features`; by default 64 that are active with probability 0.1.
        mixing: how many features a unit mixes, drawn at random and with weights N(0, 1); or an arrangement
            `(n_features, n_units)`, such as one of `sp.arrangements` or the `W` of a toy model.

    Returns:
        The recording, with repeats, and its `Truth`.

    Raises:
        ValueError: a size that is not positive, a reliability or a mixing that does not fit.

    >>> recording, truth = simulate(jax.random.key(0), n_stimuli=200, n_units=10, n_repeats=3)
    >>> recording.repeats.shape, truth.mixing.shape
    ((200, 3, 10), (64, 10))
    """
    for name, size in (("n_stimuli", n_stimuli), ("n_units", n_units), ("n_repeats", n_repeats)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    wanted = np.asarray(reliability, np.float32)
    if wanted.shape not in ((), (n_units,)) or not ((wanted > 0) & (wanted <= 1)).all():
        raise ValueError(f"reliability must be above 0 and at most 1, a number or ({n_units},), got {reliability}.")
    features = SparseFeatures(64, 0.1) if features is None else features
    n_mixed = mixing if isinstance(mixing, int) else None
    if n_mixed is not None and not 1 <= n_mixed <= features.n_features:
        raise ValueError(f"mixing must be between 1 and n_features = {features.n_features}, got {n_mixed}.")
    if n_mixed is None and np.shape(mixing) != (features.n_features, n_units):
        raise ValueError(f"mixing must be {(features.n_features, n_units)}, features by units, got {np.shape(mixing)}.")
    share = np.broadcast_to(wanted, (n_units,))
    repeats, truth = _draw(key, features, mixing if n_mixed is None else None, share, n_stimuli, n_repeats, n_mixed)
    return Recording(repeats=np.asarray(repeats)), truth


@functools.partial(jax.jit, static_argnames=("n_stimuli", "n_repeats", "n_mixed"))
def _draw(
    key: Array, features: Any, mixing: Any, share: Any, n_stimuli: int, n_repeats: int, n_mixed: Any
) -> tuple[Array, Truth]:
    feature_key, mixing_key, noise_key = jax.random.split(key, 3)
    n_units = len(share)
    if mixing is None:
        order_key, weight_key = jax.random.split(mixing_key)
        drawn = jax.random.uniform(order_key, (features.n_features, n_units))
        chosen = jnp.argsort(jnp.argsort(drawn, axis=0), axis=0) < n_mixed
        mixing = jnp.where(chosen, jax.random.normal(weight_key, drawn.shape), 0)
    values = features.sample(feature_key, n_stimuli)
    clean = matmul(values, mixing)
    # The signal's variance over these very stimuli, so that the truth is exact for them.
    noise = jnp.std(clean, axis=0) * jnp.sqrt(n_repeats * (1 / share - 1))
    repeats = clean[:, None] + noise * jax.random.normal(noise_key, (n_stimuli, n_repeats, n_units))
    return repeats, Truth(values, mixing, clean, share, jnp.sqrt(share / (n_repeats * (1 - share))))

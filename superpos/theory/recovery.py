"""When features can be recovered from units that hold them in superposition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from superpos import arrangements
from superpos.metrics.base import positive_integer
from superpos.theory.weights import Arrangement


def recoverable_sparsity(arrangement: Arrangement) -> Float[Array, ""]:
    """Features that may be active at once so that sparse inference surely finds them: fewer than (1 + 1/μ) / 2.

    μ is the mutual coherence. Below this number the sparsest solution is unique, and basis pursuit and orthogonal matching
    pursuit find it; then units of any two such arrangements, disentangled, match perfectly. Sufficient, far from necessary.
    Sources: Donoho & Elad 2003, theorem 7 and corollary 1; Tropp 2004, "Greed is good", theorem B.
    """
    return (1 + 1 / arrangements.coherence(arrangement)) / 2


def feature_limit(n_units: int) -> int:
    """The most features whose lines the quadricovariance can hold: n (n + 1) / 2, its rank over pairs of units.

    Beyond it more features are no more lines, and directions cannot be told from fourth cumulants, however many samples there
    are. It limits what *directions* can be found, by `sp.cumulants`; how sparse *codes* must be for directions that are known
    is `recoverable_sparsity` (surely) and `phase_transition` (typically). In 16 units: 136 lines; of 64 features in random
    directions 6 may be active at once typically, and only 1 surely. Well before it the score of `cumulant_cka` halves: see
    `random_cumulant_cka`. Source: De Lathauwer, Castaing & Cardoso 2007, "Fourth-order cumulant-based blind identification of
    underdetermined mixtures", which finds up to about as many.

    Raises:
        ValueError: an `n_units` that is not a positive integer.

    >>> feature_limit(16)
    136
    """
    positive_integer("n_units", n_units)
    return n_units * (n_units + 1) // 2


def isometry_recovers(constant: float) -> bool:
    """Whether a restricted isometry constant δ_2s guarantees that basis pursuit recovers all s-sparse features: δ_2s < √2 - 1.

    Source: Candès 2008, "The restricted isometry property and its implications for compressed sensing", theorem 1.2. As
    `arrangements.restricted_isometry` is a lower bound of the constant, it can rule the guarantee out, not prove it.
    """
    return constant < math.sqrt(2) - 1


def phase_transition(compression: ArrayLike) -> Array:
    """The share of features that may be active for sparse inference to find them in a large random arrangement.

    Below it, the least sum of non-negative features that explains the units is typically the true one; above it, typically
    not. The weak threshold ε = ρ δ of Donoho and Tanner for non-negative signals, in the form of approximate message passing:
    min over τ of ε (1 + τ²) + (1 - ε) E[(Z - τ)₊²] = δ, Z standard normal. At the minimum ε = g / (τ + g) with
    g = E[(Z - τ)₊] = φ(τ) - τ Φ(-τ), so that τ is a parameter of the curve, found by bisection. Exact for many features, with
    Gaussian or uniformly random directions and linear units; for few it is passed gradually.

    Sources: Donoho & Tanner 2005, "Neighborliness of randomly projected simplices in high dimensions"; Donoho, Maleki &
    Montanari 2009, "Message-passing algorithms for compressed sensing".

    Args:
        compression: δ = n_units / n_features, between 0 and 1, of any shape; may be traced, but has no gradient.

    Returns:
        ε, as many values, NaN outside 0 to 1. n_features ε features may be active at once, ρ = ε / δ of the number of units.

    >>> round(float(phase_transition(0.5)), 3)
    0.279
    """
    compression = jnp.asarray(compression, jnp.result_type(float))

    def curve(tau: Array) -> tuple[Array, Array]:
        density, tail = norm.pdf(tau), norm.cdf(-tau)
        excess = jnp.maximum(density - tau * tail, 0)
        share = excess / (tau + excess)
        return share, share * (1 + tau**2) + (1 - share) * ((1 + tau**2) * tail - tau * density)

    def halve(_: Any, ends: Any) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        falls = curve(middle)[1] > compression  # δ falls from 1 at τ = 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    low, high = jnp.zeros_like(compression), jnp.full_like(compression, 8.0)
    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    return jnp.where((compression >= 0) & (compression <= 1), curve((low + high) / 2)[0], jnp.nan)

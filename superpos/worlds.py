"""Worlds: pairs of systems made in the program, whose shared features are known."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import arrangements

STATIC = {"static": True}


class Pair(NamedTuple):
    """Two systems in the same samples.

    Attributes:
        x, y: units, `(n, n_units)`.
        z, w: features of each, `(n, n_features)`; the first ones are the same.
        a, b: arrangements, `(n_features, n_units)`.
    """

    x: Float[Array, "n units"]
    y: Float[Array, "n units"]
    z: Float[Array, "n features"]
    w: Float[Array, "n features"]
    a: Float[Array, "features units"]
    b: Float[Array, "features units"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
    """Two systems, each with features of its own and some in common, in random arrangements of its own.

    x = f(z A) + noise, y = f(w B) + noise; w and z have the first `overlap` · n_features features in common. Features are
    active with a probability and then uniform on (0.3, 1). Directions have unit norm, times lognormal norms where `norms`
    is above 0; with as many units as features they can be orthogonal. Fields that are no shapes may be traced and vmapped.

    Attributes:
        n_features: of each system; static.
        n_units: of each system; static.
        overlap: the share of features that both have, ρ.
        probability: of a feature being active.
        norms: standard deviation of the logarithm of the features' norms, drawn for each system.
        noise: standard deviation of Gaussian noise, in units of that of the units.
        noise_spread: standard deviation of the logarithm of the noise's strength, which both systems have in common.
        gain: standard deviation of the logarithm of a gain that all features of a sample have in common, in both systems.
        density: standard deviation of the logarithm of the probability, which a sample's features have in common likewise.
        group: features that are active together, within a system. Shared features are grouped alike in both.
        across: whether the k-th groups of both systems are active together, though their strengths are their own.
        rectified: f is relu.
        orthogonal: static.

    >>> pair = World(n_features=8, n_units=4, overlap=0.5).sample(jax.random.key(0), 100)
    >>> pair.x.shape, bool(jnp.all(pair.z[:, :4] == pair.w[:, :4]))
    ((100, 4), True)
    """

    n_features: int = dataclasses.field(default=40, metadata=STATIC)
    n_units: int = dataclasses.field(default=20, metadata=STATIC)
    overlap: ArrayLike = 0.5
    _: dataclasses.KW_ONLY
    probability: ArrayLike = 0.05
    norms: ArrayLike = 0.0
    noise: ArrayLike = 0.0
    noise_spread: ArrayLike = 0.0
    gain: ArrayLike = 0.0
    density: ArrayLike = 0.0
    group: ArrayLike = 1
    across: ArrayLike = False
    rectified: ArrayLike = False
    orthogonal: bool = dataclasses.field(default=False, metadata=STATIC)

    def __post_init__(self) -> None:
        if self.n_features < 1 or self.n_units < 1:
            raise ValueError(f"n_features and n_units must be at least 1, got {self.n_features} and {self.n_units}.")
        if isinstance(self.group, int) and (self.group < 1 or self.n_features % self.group):
            raise ValueError(f"group must divide the {self.n_features} features, got {self.group}.")
        if self.orthogonal and self.n_units != self.n_features:
            raise ValueError(f"orthogonal needs as many units as features, got {self.n_units} and {self.n_features}.")
        for name in ("overlap", "probability"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 <= value <= 1:  # traced ones can't be checked
                raise ValueError(f"{name} must be between 0 and 1, got {value}.")

    def sample(self, key: Key[Array, ""], n: int) -> Pair:
        """Two systems and n samples of them."""
        keys = iter(jax.random.split(key, 10))

        def lognormal(spread: ArrayLike) -> Array:
            return jnp.exp(spread * jax.random.normal(next(keys), (n, 1)))

        probability = jnp.clip(self.probability * lognormal(self.density), 0, 1)
        gain, strength = lognormal(self.gain), lognormal(self.noise_spread)
        group_of = jnp.arange(self.n_features) // self.group
        active_key, value_key, noise_key, a_key, b_key, *_ = keys

        def features(which: int) -> Array:
            drawing_key = jax.random.fold_in(active_key, jnp.where(self.across, 0, which))
            drawn = jax.random.uniform(drawing_key, (n, self.n_features)) < probability
            active = jnp.take(drawn, group_of, axis=1)
            values = jax.random.uniform(jax.random.fold_in(value_key, which), active.shape, minval=0.3)
            return gain * jnp.where(active, values, 0)

        z = features(0)
        common = jnp.arange(self.n_features) < jnp.round(jnp.asarray(self.overlap) * self.n_features)
        w = jnp.where(common, z, features(1))

        def units(key: Array, features: Array, which: int) -> tuple[Array, Array]:
            direction_key, norm_key = jax.random.split(key)
            if self.orthogonal:
                directions = arrangements.orthogonal(direction_key, self.n_units)
            else:
                directions = arrangements.unit_norm(direction_key, self.n_features, self.n_units)
            arrangement = directions * jnp.exp(self.norms * jax.random.normal(norm_key, (self.n_features, 1)))
            mixed = features @ arrangement
            mixed = jnp.where(jnp.asarray(self.rectified), jax.nn.relu(mixed), mixed)
            drawn = jax.random.normal(jax.random.fold_in(noise_key, which), mixed.shape)
            return mixed + self.noise * jnp.std(mixed) * strength * drawn, arrangement

        (x, a), (y, b) = units(a_key, z, 0), units(b_key, w, 1)
        return Pair(x, y, z, w, a, b)

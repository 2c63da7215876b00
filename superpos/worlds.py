"""Worlds: pairs of systems made in the program, whose shared features are known."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from superpos import arrangements
from superpos.linalg import matmul, safe_divide

STATIC = {"static": True}
# How features lie in units, by the name that `World.arrangement` takes.
ARRANGEMENTS = {
    "unit_norm": arrangements.unit_norm,
    "tight": arrangements.harmonic,
    "antipodal": arrangements.antipodal,
    "monosemantic": arrangements.monosemantic,
}


class Truth(NamedTuple):
    """What two systems have in common: each is 0 where they share nothing, and 1 where they are made of the same.

    Each is Σ over shared features of √(w_x w_y), over the root of Σ w_x Σ w_y of all features of each side.

    Attributes:
        variance: w is the variance that a feature gives to the units, var(z) |a|².
        count: w is 1 for a feature that varies and has a direction.
        kurtosis: w is the square of the excess fourth cumulant that it gives, (κ |a|⁴)²; what cokurtosis estimates, where
            shared features have cumulants of one sign.
    """

    variance: Float[Array, ""]
    count: Float[Array, ""]  # type: ignore[assignment]  # a tuple's own is not wanted
    kurtosis: Float[Array, ""]


class Pair(NamedTuple):
    """Two systems in the same samples.

    Attributes:
        x, y: units, `(n, n_units)`.
        z, w: features of each, `(n, n_features)`.
        a, b: arrangements, `(n_features, n_units)`, of the units before they are bent.
        shared: `(n_features,)`, those that are the same in both.
    """

    x: Float[Array, "n units_x"]
    y: Float[Array, "n units_y"]
    z: Float[Array, "n features"]
    w: Float[Array, "n features"]
    a: Float[Array, "features units_x"]
    b: Float[Array, "features units_y"]
    shared: Bool[Array, " features"]

    def truth(self) -> Truth:
        """What the systems have in common, of these samples' features."""

        def moments(features: Array, arrangement: Array) -> tuple[Array, Array]:
            centred = features - jnp.mean(features, axis=0)
            variance = jnp.mean(centred**2, axis=0)
            squared = jnp.sum(arrangement**2, axis=1)
            return variance * squared, (jnp.mean(centred**4, axis=0) - 3 * variance**2) * squared**2

        (x, kurtosis_x), (y, kurtosis_y) = moments(self.z, self.a), moments(self.w, self.b)

        def share(x: Array, y: Array) -> Array:
            both = jnp.sum(jnp.where(self.shared, jnp.sqrt(x) * jnp.sqrt(y), 0))
            return safe_divide(both, jnp.sqrt(jnp.sum(x)) * jnp.sqrt(jnp.sum(y)))

        return Truth(share(x, y), share((x > 0) * 1.0, (y > 0) * 1.0), share(kurtosis_x**2, kurtosis_y**2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
    """Two systems, each with features of its own and some in common, in arrangements of its own.

    x = f(z A) + noise, y = f(w B) + noise; w and z have the first `overlap` · n_features features in common. Features are
    active with a probability and then uniform on (0.3, 1). All is a pure function of a key: `vmap` it over keys, and over
    every field that is not static. Where a field is at its default, it changes nothing.

    Attributes:
        n_features: of each system; static.
        n_units: of each system, or of the two; static.
        overlap: the share of features that both have, ρ by count.

    Features:
        probability: of a feature being active.
        gain: standard deviation of the logarithm of a gain that all features of a sample have in common, in both systems.
        density: the same of the probability.
        group: features that are active together, within a system. Shared features are grouped alike in both.
        across: whether the k-th groups of both systems are active together, though their strengths are their own.
        hierarchy: probability with which every second feature is active where the one before it is: nowhere else; 0: none.
        anchored: correlation of each feature's activity with that of the first.
        exactly: so many features are active in every sample; 0: chance decides.
        dense: so many features, the last ones, are standard normal in place of sparse, far stronger than all others.
        signed: whether features have either sign.
        conjunctions: whether w holds the products of z's features with their neighbours, in place of anything that is shared.

    Arrangements:
        arrangement: "unit_norm", random directions of unit norm; "tight", orthogonal for as many units as features;
            "antipodal"; "monosemantic", a unit for each feature; static.
        given: (A, B), in place of these.
        norms: standard deviation of the logarithm of the features' norms, drawn for each system.
        power: variances of features fall as rank to the power of minus this, in an order that both systems have.
        condition: units are stretched from 1 to one over this number, along random axes.
        scales: standard deviation of the logarithm of the scales of units.

    Units:
        rectified: f is relu.
        threshold: what relu takes off, in standard deviations of the units.
        saturation: f is tanh, of units scaled to this many standard deviations; 0: it is not.
        layer_norm: each sample's units are centred and brought to length 1.

    Observation:
        recorded: of the units, the first ones; all where None; static.
        noise: standard deviation of Gaussian noise, in units of that of the units.
        noise_spread: standard deviation of the logarithm of the noise's strength, which both systems have in common.
        heavy: the noise is Laplace's.
        drift: the same as noise of one Gaussian variable that both systems read, each along a direction of its own.
        outliers: the probability of a sample of either system whose noise has ten times the deviation of the units.
        counts: mean of Poisson counts of rectified units; 0: units are read as they are.

    Raises:
        ValueError: sizes or numbers that do not fit.

    >>> pair = World(n_features=8, n_units=4, overlap=0.5).sample(jax.random.key(0), 100)
    >>> pair.x.shape, bool(jnp.all(pair.z[:, :4] == pair.w[:, :4])), round(float(pair.truth().count), 3)
    ((100, 4), True, 0.5)
    """

    n_features: int = dataclasses.field(default=40, metadata=STATIC)
    n_units: int | tuple[int, int] = dataclasses.field(default=20, metadata=STATIC)
    overlap: ArrayLike = 0.5
    _: dataclasses.KW_ONLY
    probability: ArrayLike = 0.05
    gain: ArrayLike = 0.0
    density: ArrayLike = 0.0
    group: ArrayLike = 1
    across: ArrayLike = False
    hierarchy: ArrayLike = 0.0
    anchored: ArrayLike = 0.0
    exactly: ArrayLike = 0
    dense: ArrayLike = 0
    signed: ArrayLike = False
    conjunctions: ArrayLike = False
    arrangement: str = dataclasses.field(default="unit_norm", metadata=STATIC)
    given: tuple[Array, Array] | None = None
    norms: ArrayLike = 0.0
    power: ArrayLike = 0.0
    condition: ArrayLike = 1.0
    scales: ArrayLike = 0.0
    rectified: ArrayLike = False
    threshold: ArrayLike = 0.0
    saturation: ArrayLike = 0.0
    layer_norm: ArrayLike = False
    recorded: int | None = dataclasses.field(default=None, metadata=STATIC)
    noise: ArrayLike = 0.0
    noise_spread: ArrayLike = 0.0
    heavy: ArrayLike = False
    drift: ArrayLike = 0.0
    outliers: ArrayLike = 0.0
    counts: ArrayLike = 0.0

    def __post_init__(self) -> None:
        sizes = (self.n_units, self.n_units) if isinstance(self.n_units, int) else self.n_units
        if self.n_features < 1 or len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"n_features and n_units must be at least 1, got {self.n_features} and {self.n_units}.")
        if isinstance(self.group, int) and (self.group < 1 or self.n_features % self.group):
            raise ValueError(f"group must divide the {self.n_features} features, got {self.group}.")
        if self.arrangement not in ARRANGEMENTS:
            raise ValueError(f"arrangement must be one of {', '.join(ARRANGEMENTS)}, got {self.arrangement!r}.")
        if self.recorded is not None and not 1 <= self.recorded <= min(sizes):
            raise ValueError(f"recorded must be between 1 and the {min(sizes)} units, got {self.recorded}.")
        for name in ("overlap", "probability", "hierarchy", "anchored", "outliers"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 <= value <= 1:  # traced ones can't be checked
                raise ValueError(f"{name} must be between 0 and 1, got {value}.")
        if isinstance(self.condition, int | float) and not self.condition >= 1:
            raise ValueError(f"condition must be at least 1, got {self.condition}.")

    def sample(self, key: Key[Array, ""], n: int) -> Pair:
        """Two systems and n samples of them."""
        keys = iter(jax.random.split(key, 10))

        def lognormal(spread: ArrayLike) -> Array:
            return jnp.exp(spread * jax.random.normal(next(keys), (n, 1)))

        probability = jnp.clip(self.probability * lognormal(self.density), 0, 1)
        gain, strength = lognormal(self.gain), lognormal(self.noise_spread)
        active_key, value_key, noise_key, a_key, b_key, order_key, drift_key = keys

        z = gain * self._features(active_key, value_key, 0, probability)
        w = gain * self._features(active_key, value_key, 1, probability)
        shared = jnp.arange(self.n_features) < jnp.round(jnp.asarray(self.overlap) * self.n_features)
        shared &= ~jnp.asarray(self.conjunctions, bool)
        w = jnp.where(shared, z, jnp.where(jnp.asarray(self.conjunctions), z * jnp.roll(z, 1, axis=1), w))
        rank = jax.random.permutation(order_key, self.n_features)
        norms = (1.0 + rank) ** (-jnp.asarray(self.power) / 2)
        drift = jax.random.normal(drift_key, (n, 1))
        x, a = self._units(jax.random.fold_in(noise_key, 0), a_key, z, 0, norms, strength, drift)
        w, a = lax.optimization_barrier((w, a))  # one after the other: orthogonal matrices made side by side can hang jaxlib
        y, b = self._units(jax.random.fold_in(noise_key, 1), b_key, w, 1, norms, strength, drift)
        return Pair(x, y, z, w, a, b, shared)

    def _features(self, active_key: Array, value_key: Array, which: int, probability: Array) -> Array:
        """The features of one system, `(n, n_features)`."""
        shape, place = (len(probability), self.n_features), jnp.arange(self.n_features)
        drawn = jax.random.uniform(jax.random.fold_in(active_key, jnp.where(self.across, 0, which)), shape)
        first = drawn[:, :1] < probability  # P(both active) = p² + c p (1 - p)
        correlated = jnp.where(first, probability + self.anchored * (1 - probability), probability * (1 - self.anchored))
        active = drawn < jnp.where(place == 0, probability, correlated)
        active = jnp.take(active, place // self.group, axis=1)
        child = jnp.roll(active, 1, axis=1) & (drawn < self.hierarchy)
        active = jnp.where((jnp.asarray(self.hierarchy) > 0) & (place % 2 == 1), child, active)
        least = jnp.take(jnp.sort(drawn, axis=1), jnp.maximum(jnp.asarray(self.exactly, int), 1) - 1, axis=1)[:, None]
        active = jnp.where(jnp.asarray(self.exactly) > 0, drawn <= least, active)
        own_key = jax.random.fold_in(value_key, which)
        values = jax.random.uniform(own_key, shape, minval=0.3)
        sign_key, dense_key = (jax.random.fold_in(own_key, i) for i in (1, 2))
        signs = jnp.where(jnp.asarray(self.signed), jax.random.rademacher(sign_key, shape, values.dtype), 1)
        dense = place >= self.n_features - jnp.asarray(self.dense)
        return jnp.where(dense, jax.random.normal(dense_key, shape), jnp.where(active, values * signs, 0))

    def _units(
        self, noise_key: Array, key: Array, features: Array, which: int, norms: Array, strength: Array, drift: Array
    ) -> tuple[Array, Array]:
        """The units of one system, and how features lie in them."""
        n_units = self.n_units if isinstance(self.n_units, int) else self.n_units[which]
        direction_key, norm_key, axes_key, scale_key = jax.random.split(key, 4)
        if self.given is None:
            directions = ARRANGEMENTS[self.arrangement](direction_key, self.n_features, n_units)
        else:
            directions = jnp.asarray(self.given[which])
        own = jnp.exp(self.norms * jax.random.normal(norm_key, (self.n_features,)))
        axes = arrangements.rotation(axes_key, n_units)
        stretch = jnp.asarray(self.condition) ** -jnp.linspace(0.0, 1.0, n_units)
        scales = jnp.exp(self.scales * jax.random.normal(scale_key, (n_units,)))
        arrangement = directions * (own * norms)[:, None]
        # Along the axes only where asked for: they would turn units that are monosemantic.
        turned = matmul(matmul(arrangement, axes) * stretch, axes.T)
        arrangement = jnp.where(jnp.asarray(self.condition) > 1, turned, arrangement) * scales
        arrangement = arrangement[:, : self.recorded]
        units = features @ arrangement
        size = jnp.std(units)
        units = jnp.where(jnp.asarray(self.rectified), jax.nn.relu(units - self.threshold * size), units)
        bend = jnp.asarray(self.saturation)
        units = jnp.where(bend > 0, jnp.tanh(bend * units / size) * size / jnp.where(bend > 0, bend, 1), units)
        centred = units - jnp.mean(units, axis=1, keepdims=True)
        length = jnp.linalg.norm(centred, axis=1, keepdims=True)
        units = jnp.where(jnp.asarray(self.layer_norm), safe_divide(centred, length), units)
        if not (isinstance(self.counts, int | float) and self.counts == 0):  # counts are slow to draw
            positive = jax.nn.relu(units)
            rate = self.counts * positive / jnp.mean(positive)
            counted = jax.random.poisson(jax.random.fold_in(noise_key, 4), rate).astype(units.dtype)
            units = jnp.where(jnp.asarray(self.counts) > 0, counted, units)
        keys = [jax.random.fold_in(noise_key, i) for i in range(4)]
        size = jnp.std(units)
        laplace = jax.random.laplace(keys[1], units.shape) / jnp.sqrt(2.0)
        noise = self.noise * strength * jnp.where(jnp.asarray(self.heavy), laplace, jax.random.normal(keys[0], units.shape))
        noise += self.drift * drift * jax.random.normal(keys[2], units.shape[1:])
        outlying = jax.random.uniform(keys[3], (len(units), 1)) < self.outliers
        noise += 10 * outlying * jax.random.normal(jax.random.fold_in(keys[3], 1), units.shape)
        return units + size * noise, arrangement

"""Distributions of sparse ground-truth features: active or not, and uniform on (0, 1) where active.

All have `sample(key, n) -> (n, n_features)`, and `joint`: the probability that two features are active together, `(n_features,
n_features)`, with each feature's own on the diagonal. `covariance` follows from it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseFeatures:
    """Independent features, each active with a probability and then uniform on (0, 1).

    Source: Elhage et al. 2022, "Toy models of superposition"; Longon, Klindt & Khosla, arXiv 2510.03186.

    Attributes:
        n_features: number of features; static.
        probability: of a feature being active, scalar or `(n_features,)`; may be traced and vmapped.

    Raises:
        ValueError: no feature, or a probability outside 0 to 1.

    >>> SparseFeatures(n_features=64, probability=0.1).sample(jax.random.key(0), 1000).shape
    (1000, 64)
    """

    n_features: int = dataclasses.field(metadata={"static": True})
    probability: ArrayLike = 0.1

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ValueError(f"n_features must be at least 1, got {self.n_features}.")
        if isinstance(self.probability, (int, float)) and not 0 <= self.probability <= 1:  # traced ones can't be checked
            raise ValueError(f"probability must be between 0 and 1, got {self.probability}.")

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n features"]:
        """Draws `n` samples, `(n, n_features)`."""
        # One draw decides both: given u < p, u / p is uniform. 32 bits keep it fine-grained for small p.
        # Features are rows in memory: the layout that models train fastest on.
        bits = jax.random.bits(key, (self.n_features, n), jnp.uint32).T
        uniform = bits.astype(jnp.result_type(float)) * 2.0**-32
        return jnp.where(uniform < self.probability, uniform / self.probability, 0.0)

    @property
    def joint(self) -> Float[Array, "features features"]:
        """P(both active): see the module."""
        p = jnp.broadcast_to(jnp.asarray(self.probability, jnp.result_type(float)), (self.n_features,))
        return _with_diagonal(jnp.outer(p, p), p)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupedFeatures:
    """Groups of features that are active together, or of which at most one is; groups are independent.

    Source: Elhage et al. 2022, "Toy models of superposition", correlated and anti-correlated feature sets.

    Attributes:
        n_groups: number of groups; static. Feature i belongs to group i // size.
        size: features in each; static.
        exclusive: at most one of a group is active (anti-correlated), rather than all or none (correlated); static.
        probability: of a feature being active; may be traced and vmapped.

    Raises:
        ValueError: a size that is not positive, or a probability outside 0 to 1 (exclusive: to 1 / size).

    >>> active = GroupedFeatures(n_groups=4, size=2).sample(jax.random.key(0), 100) > 0
    >>> bool(jnp.all(active[:, 0] == active[:, 1]))
    True
    """

    n_groups: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    exclusive: bool = dataclasses.field(default=False, metadata={"static": True})
    probability: ArrayLike = 0.1

    def __post_init__(self) -> None:
        if self.n_groups < 1 or self.size < 1:
            raise ValueError(f"n_groups and size must be at least 1, got {self.n_groups} and {self.size}.")
        most = 1 / self.size if self.exclusive else 1
        if isinstance(self.probability, (int, float)) and not 0 <= self.probability <= most:
            raise ValueError(f"probability must be between 0 and {most:.3g}, got {self.probability}.")

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.n_groups * self.size

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n features"]:
        """Draws `n` samples, `(n, n_features)`."""
        group_key, value_key = jax.random.split(key)
        u = jax.random.uniform(group_key, (n, self.n_groups, 1))
        # Exclusive: the unit interval is cut into a piece for each feature of the group, and one for none.
        first = jnp.arange(self.size) * self.probability if self.exclusive else jnp.zeros(self.size)
        active = (u >= first) & (u < first + self.probability)
        return _values(value_key, active.reshape(n, self.n_features))

    @property
    def joint(self) -> Float[Array, "features features"]:
        """P(both active): see the module."""
        p = jnp.asarray(self.probability, jnp.result_type(float))
        group = jnp.arange(self.n_features) // self.size
        together = 0.0 if self.exclusive else p
        return _with_diagonal(jnp.where(group[:, None] == group, together, p**2), jnp.full(self.n_features, p))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnchoredFeatures:
    """Feature 0, and others that correlate with it, each in its own degree; given feature 0 they are independent.

    The published generator (Longon, Klindt & Khosla, arXiv 2510.03186, arrangement consistency): with u uniform, a feature of
    correlation c > 0 is active where feature 0 is and u ≤ c, or where u ≤ p - p c; one of c < 0 is silent where feature 0 is
    active and u ≤ -c, or silent and u > p - p² c. Its correlation is not c: see `activity_correlation`. The exact one has
    P(11) = p² + c p (1 - p), which exists from c = -p / (1 - p) on.

    Attributes:
        correlations: with feature 0, `(n_features - 1,)`, from -1 to 1; may be traced and vmapped.
        probability: of feature 0 being active, and of all in the exact generator.
        exact: which generator; static.

    A correlation that the exact generator cannot give makes `conditional`, `joint` and the covariance NaN; `sample` leaves the
    feature silent.

    Raises:
        ValueError: correlations that are no list of numbers from -1 to 1, or a probability outside 0 to 1.

    >>> print(AnchoredFeatures(jnp.array([0.5, -0.1]), exact=True).activity_correlation.round(3))
    [ 0.5 -0.1]
    """

    correlations: ArrayLike
    probability: ArrayLike = 0.1
    exact: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        if isinstance(self.correlations, list | tuple | np.ndarray):  # traced ones can't be checked
            values = np.asarray(self.correlations, float)
            if values.ndim < 1 or not (np.abs(values) <= 1).all():
                raise ValueError(f"correlations must be a list of numbers from -1 to 1, got {self.correlations}.")
        if isinstance(self.probability, int | float) and not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, got {self.probability}.")

    @property
    def n_features(self) -> int:
        """Number of features."""
        return 1 + jnp.shape(self.correlations)[0]

    @property
    def conditional(self) -> tuple[Float[Array, " others"], Float[Array, " others"]]:
        """P(active) of each other feature, given that feature 0 is silent, and that it is active; NaN where c is infeasible."""
        c, p = jnp.asarray(self.correlations, jnp.result_type(float)), jnp.asarray(self.probability, jnp.result_type(float))
        if self.exact:
            feasible = p + c * (1 - p) >= -1e-6
            silent, active = p * (1 - c), jnp.maximum(p + c * (1 - p), 0)
            return jnp.where(feasible, silent, jnp.nan), jnp.where(feasible, active, jnp.nan)
        positive = p - p * c
        silent = jnp.where(c > 0, positive, jnp.where(c < 0, jnp.minimum(p - p**2 * c, 1), p))
        active = jnp.where(c > 0, jnp.maximum(c, positive), jnp.where(c < 0, 1 + c, p))
        return silent, active

    @property
    def activity_correlation(self) -> Float[Array, " others"]:
        """The correlation of being active with feature 0's being active that each other feature really has."""
        joint = self.joint
        p = jnp.diagonal(joint)
        return (joint[0, 1:] - p[0] * p[1:]) / jnp.sqrt(p[0] * (1 - p[0]) * p[1:] * (1 - p[1:]))

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n features"]:
        """Draws `n` samples, `(n, n_features)`."""
        first_key, other_key, value_key = jax.random.split(key, 3)
        first = jax.random.uniform(first_key, (n, 1)) < self.probability
        silent, active = self.conditional
        others = jax.random.uniform(other_key, (n, self.n_features - 1)) < jnp.where(first, active, silent)
        return _values(value_key, jnp.concatenate([first, others], axis=1))

    @property
    def joint(self) -> Float[Array, "features features"]:
        """P(both active): see the module."""
        p = jnp.asarray(self.probability, jnp.result_type(float))
        silent, active = (
            jnp.concatenate([jnp.array([own]), given]) for own, given in zip((0.0, 1.0), self.conditional, strict=True)
        )
        return _with_diagonal(
            p * jnp.outer(active, active) + (1 - p) * jnp.outer(silent, silent), p * active + (1 - p) * silent
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HierarchicalFeatures:
    """Parents, and children that can be active only where their parent is; everything else is independent.

    Features are ordered parents first, then the children of parent 0, of parent 1, ...

    Attributes:
        n_parents: number of parents; static.
        n_children: of each parent; static.
        probability: of a parent being active; may be traced and vmapped.
        child_probability: of a child being active where its parent is; likewise.

    Raises:
        ValueError: a size that is not positive, or a probability outside 0 to 1.

    >>> active = HierarchicalFeatures(n_parents=1, n_children=2).sample(jax.random.key(0), 100) > 0
    >>> bool(jnp.all(active[:, 1:] <= active[:, :1]))  # no child without its parent
    True
    """

    n_parents: int = dataclasses.field(metadata={"static": True})
    n_children: int = dataclasses.field(metadata={"static": True})
    probability: ArrayLike = 0.2
    child_probability: ArrayLike = 0.5

    def __post_init__(self) -> None:
        if self.n_parents < 1 or self.n_children < 1:
            raise ValueError(f"n_parents and n_children must be at least 1, got {self.n_parents} and {self.n_children}.")
        for name in ("probability", "child_probability"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}.")

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.n_parents * (1 + self.n_children)

    def sample(self, key: Key[Array, ""], n: int) -> Float[Array, "n features"]:
        """Draws `n` samples, `(n, n_features)`."""
        parent_key, child_key, value_key = jax.random.split(key, 3)
        parents = jax.random.uniform(parent_key, (n, self.n_parents)) < self.probability
        drawn = jax.random.uniform(child_key, (n, self.n_parents, self.n_children)) < self.child_probability
        children = (parents[..., None] & drawn).reshape(n, -1)
        return _values(value_key, jnp.concatenate([parents, children], axis=1))

    @property
    def joint(self) -> Float[Array, "features features"]:
        """P(both active): see the module."""
        p, q = (jnp.asarray(value, jnp.result_type(float)) for value in (self.probability, self.child_probability))
        children = jnp.arange(self.n_parents * self.n_children) // self.n_children
        family = jnp.concatenate([jnp.arange(self.n_parents), children])
        given = jnp.concatenate([jnp.ones(self.n_parents), jnp.full(len(children), q)])
        marginal = p * given
        return _with_diagonal(jnp.where(family[:, None] == family, p, p**2) * jnp.outer(given, given), marginal)


def covariance(features: Any) -> Float[Array, "features features"]:
    """The exact covariance of a distribution of features: active ones are independent and uniform on (0, 1).

    E[z_i z_j] = P(both active) / 4 and E[z_i²] = P(active) / 3. `features` is any class of this module.

    >>> print(jnp.diagonal(covariance(SparseFeatures(2, probability=0.1))).round(4))
    [0.0308 0.0308]
    """
    joint = features.joint
    p = jnp.diagonal(joint)
    return joint / 4 + jnp.diag(p) / 12 - jnp.outer(p, p) / 4


def power_law(n_features: int, exponent: ArrayLike = 2.0) -> Float[Array, " features"]:
    """Importance of each feature, x_i ** -exponent with x_i = 1 + 2 i / n_features: `(n_features,)`.

    Source: Longon, Klindt & Khosla, arXiv 2510.03186, toy models.

    >>> print(power_law(4).round(3))
    [1.    0.444 0.25  0.16 ]
    """
    return (1 + 2 * jnp.arange(n_features) / n_features) ** -jnp.asarray(exponent)


def geometric(n_features: int, ratio: ArrayLike = 0.9) -> Float[Array, " features"]:
    """Importance of each feature, ratio ** i: `(n_features,)`. Source: Elhage et al. 2022, "Toy models of superposition".

    >>> geometric(3, ratio=0.5).tolist()
    [1.0, 0.5, 0.25]
    """
    return jnp.asarray(ratio) ** jnp.arange(n_features)


def _values(key: Array, active: Array) -> Array:
    """Uniform on (0, 1) where active."""
    return jnp.where(active, jax.random.uniform(key, active.shape), 0.0)


def _with_diagonal(matrix: Array, diagonal: Array) -> Array:
    return jnp.where(jnp.eye(len(diagonal), dtype=bool), diagonal, matrix)

"""Superposition arrangements: families of mixing weights, operations on them, and their geometry.

An arrangement is an array A `(n_features, n_units)`: features z `(n_samples, n_features)` become units y = z A, so row i is
the direction of feature i. That of a trained toy model is its `W`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from superpos.linalg import eigh, matmul

Arrangement = Float[Array, "features units"]


def monosemantic(key: Key[Array, ""], n_features: int, n_units: int) -> Arrangement:
    """Every unit carries one feature of its own, drawn at random; features or units that are left over carry nothing.

    Raises:
        ValueError: a size that is not positive. The same holds for all families.

    >>> int(jnp.sum(monosemantic(jax.random.key(0), 6, 4) != 0))
    4
    """
    _check(n_features, n_units)
    feature_key, unit_key = jax.random.split(key)
    features, units = jax.random.permutation(feature_key, n_features), jax.random.permutation(unit_key, n_units)
    n = min(n_features, n_units)
    return jnp.zeros((n_features, n_units)).at[features[:n], units[:n]].set(1.0)


def gaussian(key: Key[Array, ""], n_features: int, n_units: int) -> Arrangement:
    """A Gaussian frame: independent entries N(0, 1 / n_units), so that features have norm 1 on average.

    >>> gaussian(jax.random.key(0), n_features=6, n_units=4).shape
    (6, 4)
    """
    _check(n_features, n_units)
    return jax.random.normal(key, (n_features, n_units)) / math.sqrt(n_units)


def unit_norm(key: Key[Array, ""], n_features: int, n_units: int) -> Arrangement:
    """Features drawn uniformly from the unit sphere.

    >>> print(feature_norms(unit_norm(jax.random.key(0), 3, 2)).round(3))
    [1. 1. 1.]
    """
    return directions(gaussian(key, n_features, n_units))


def antipodal(key: Key[Array, ""], n_features: int, n_units: int) -> Arrangement:
    """Digons: units carry two features each, with opposite signs; one where there are fewer than 2 n_units features.

    Source: Elhage et al. 2022, "Toy models of superposition", whose models of sparse features prefer them.

    Raises:
        ValueError: more than 2 n_units features.

    >>> sorted(antipodal(jax.random.key(0), 4, 2).sum(axis=1).tolist())
    [-1.0, -1.0, 1.0, 1.0]
    """
    _check(n_features, n_units)
    if n_features > 2 * n_units:
        raise ValueError(f"antipodal pairs hold at most 2 n_units = {2 * n_units} features, got {n_features}.")
    feature_key, unit_key = jax.random.split(key)
    order = jnp.arange(n_features)
    units = jax.random.permutation(unit_key, n_units)[order % n_units]
    signs = jnp.where(order < n_units, 1.0, -1.0)
    rows = jnp.zeros((n_features, n_units)).at[order, units].set(signs)
    return jax.random.permutation(feature_key, rows)


def harmonic(key: Key[Array, ""], n_features: int, n_units: int) -> Arrangement:
    """A real harmonic frame, tight and of unit norm: features are the samples of sines and cosines; rotated at random.

    Row j is √(2/n_units) (cos 2πj f/n, sin 2πj f/n) over n_units / 2 frequencies f, and for odd n_units also a constant.
    Source: Goyal, Kovačević & Kelner 2001, "Quantized frame expansions with erasures", harmonic tight frames.

    Raises:
        ValueError: fewer features than units.

    >>> frame = harmonic(jax.random.key(0), 6, 4)
    >>> bool(jnp.allclose(frame.T @ frame, 6 / 4 * jnp.eye(4), atol=1e-5))  # tight
    True
    """
    _check(n_features, n_units)
    if n_features < n_units:
        raise ValueError(f"a harmonic frame needs at least n_units = {n_units} features, got {n_features}.")
    pairs = n_units // 2
    # With n features the frequencies 1 .. (n - 1) / 2 are orthogonal; odd sizes add the constant, of frequency 0.
    angle = 2 * jnp.pi * jnp.outer(jnp.arange(n_features), jnp.arange(1, pairs + 1)) / n_features
    columns = [math.sqrt(2) * jnp.cos(angle), math.sqrt(2) * jnp.sin(angle)]
    if n_units % 2:
        columns.append(jnp.ones((n_features, 1)))
    elif n_features == n_units:  # the highest frequency has no sine: its cosine alone, and the constant
        columns = [math.sqrt(2) * jnp.cos(angle[:, :-1]), math.sqrt(2) * jnp.sin(angle[:, :-1])]
        columns += [jnp.cos(angle[:, -1:]), jnp.ones((n_features, 1))]
    rows = jnp.concatenate(columns, axis=1) / math.sqrt(n_units)
    feature_key, unit_key = jax.random.split(key)
    return jax.random.permutation(feature_key, rows) @ orthogonal(unit_key, n_units)


def equiangular(key: Key[Array, ""], n_features: int, n_units: int) -> Arrangement:
    """Unit vectors of which any two have the same |cosine|, the least that there can be (Welch bound); rotated at random.

    There are such frames for n_features ≤ n_units (orthogonal), n_units + 1 (the simplex), and 2 n_units where
    n_features - 1 is a prime that leaves 1 when divided by 4 (Paley's conference matrices). Real ones of other sizes are rare.
    Source: Strohmer & Heath 2003, "Grassmannian frames with applications to coding and communication", section 2.3 and 3.

    Raises:
        ValueError: none of these sizes.

    >>> round(float(coherence(equiangular(jax.random.key(0), 6, 3))), 3), round(welch_bound(6, 3), 3)
    (0.447, 0.447)
    """
    _check(n_features, n_units)
    q = n_features - 1
    if n_features <= n_units:
        gram = jnp.eye(n_features)
    elif n_features == n_units + 1:
        gram = (jnp.eye(n_features) * (1 + 1 / n_units)) - 1 / n_units
    elif n_features == 2 * n_units and q % 4 == 1 and all(q % i for i in range(2, math.isqrt(q) + 1)):
        squares = jnp.zeros(q).at[jnp.arange(1, q) ** 2 % q].set(1)
        legendre = jnp.where(jnp.arange(q) == 0, 0, 2 * squares - 1)
        inner = legendre[(jnp.arange(q)[:, None] - jnp.arange(q)) % q]
        conference = jnp.ones((n_features, n_features)).at[1:, 1:].set(inner).at[0, 0].set(0)
        gram = jnp.eye(n_features) + conference / math.sqrt(q)
    else:
        raise ValueError(
            f"no equiangular frame of {n_features} features in {n_units} units is known here: take n_features up to "
            "n_units + 1, or 2 n_units with n_features - 1 a prime such as 5, 13, 17, 29."
        )
    values, vectors = eigh(gram)
    rows = (vectors * jnp.sqrt(jnp.maximum(values, 0)))[:, -min(n_features, n_units) :]
    rows = jnp.pad(rows, ((0, 0), (0, n_units - rows.shape[1])))
    feature_key, unit_key = jax.random.split(key)
    return jax.random.permutation(feature_key, rows) @ orthogonal(unit_key, n_units)


def block(
    key: Key[Array, ""], n_features: int, n_units: int, n_blocks: int, family: Callable[..., Arrangement] = unit_norm
) -> Arrangement:
    """Features mix within blocks only: each of n_blocks groups of features has units of its own, in an arrangement of `family`.

    Raises:
        ValueError: n_blocks does not divide both sizes.

    >>> int(jnp.sum(block(jax.random.key(0), 6, 4, n_blocks=2) != 0))
    12
    """
    _check(n_features, n_units)
    if n_blocks < 1 or n_features % n_blocks or n_units % n_blocks:
        raise ValueError(f"n_blocks must divide n_features = {n_features} and n_units = {n_units}, got {n_blocks}.")
    keys = jax.random.split(key, n_blocks + 2)
    blocks = [family(block_key, n_features // n_blocks, n_units // n_blocks) for block_key in keys[2:]]
    rows = jax.scipy.linalg.block_diag(*blocks)
    return jax.random.permutation(keys[1], jax.random.permutation(keys[0], rows), axis=1)


def orthogonal(key: Key[Array, ""], n_units: int) -> Float[Array, "units units"]:
    """An orthogonal matrix, uniformly distributed (Haar).

    >>> turn = orthogonal(jax.random.key(0), 3)
    >>> bool(jnp.allclose(turn @ turn.T, jnp.eye(3), atol=1e-5))
    True
    """
    return jax.random.orthogonal(key, n_units)


def rotation(key: Key[Array, ""], n_units: int, fraction: ArrayLike = 1.0) -> Float[Array, "units units"]:
    """The rotation at a fraction of a random geodesic that starts at the identity: expm(fraction · S), S skew-symmetric.

    S has Gaussian entries, scaled so that the largest angle of expm(S) tends to π, as far as a geodesic stays a shortest path.
    `A @ rotation(key, n_units, t)` therefore is A for t = 0, and further from it the larger t. May be traced and vmapped in t.

    >>> bool(jnp.allclose(rotation(jax.random.key(0), 3, fraction=0.0), jnp.eye(3)))
    True
    """
    entries = jax.random.normal(key, (n_units, n_units))
    # Eigenvalues of (G - Gᵀ)/√2 fill a semicircle of radius 2 √n on the imaginary axis.
    generator = (entries - entries.T) * (math.pi / (2 * math.sqrt(2 * n_units)))
    # Scaling and squaring by products alone, of expm - 1 for the sake of small angles; exact to float32's rounding up to 8.
    # `jax.scipy.linalg.expm` solves linear systems, in batched LAPACK kernels that hang on CPU: see `superpos.linalg`.
    small = jnp.asarray(fraction) / 16 * generator
    turned = jnp.zeros_like(small)
    for power in range(12, 0, -1):
        turned = matmul(small, jnp.eye(n_units) + turned) / power
    for _ in range(4):
        turned = 2 * turned + matmul(turned, turned)
    return jnp.eye(n_units) + turned


def permute_units(key: Key[Array, ""], arrangement: Arrangement) -> Arrangement:
    """The same units in a random order.

    >>> sorted(permute_units(jax.random.key(0), jnp.array([[1.0, 2.0, 3.0]]))[0].tolist())
    [1.0, 2.0, 3.0]
    """
    return jax.random.permutation(key, arrangement, axis=1)


def scale_units(key: Key[Array, ""], arrangement: Arrangement, spread: ArrayLike = 1.0) -> Arrangement:
    """The same units, each multiplied by a positive factor: exp of a normal variable with standard deviation `spread`.

    >>> bool(jnp.all(scale_units(jax.random.key(0), jnp.array([[1.0, -2.0]])) * jnp.array([1, -1]) > 0))
    True
    """
    return arrangement * jnp.exp(spread * jax.random.normal(key, (arrangement.shape[1],)))


def varied_pair(
    key: Key[Array, ""], n_features: int, n_units: int, fraction: ArrayLike = jnp.inf, spread: ArrayLike = 0.0
) -> tuple[Arrangement, Arrangement]:
    """Two Gaussian arrangements: the second is the first rotated, its units in another order and scaled; or a new one.

    Args:
        key: draws all of it.
        n_features, n_units: static sizes.
        fraction: of a `rotation`, may be traced; infinite: the second is new.
        spread: of `scale_units`.

    >>> a, b = varied_pair(jax.random.key(0), 6, 4, fraction=0.0)
    >>> bool(jnp.allclose(jnp.sort(a, axis=1), jnp.sort(b, axis=1)))
    True
    """
    keys = jax.random.split(key, 5)
    a, new = (gaussian(key, n_features, n_units) for key in keys[:2])
    turned = permute_units(keys[3], matmul(a, rotation(keys[2], n_units, fraction)))
    return a, jnp.where(jnp.isinf(fraction), new, scale_units(keys[4], turned, spread))


# Geometry


def feature_norms(arrangement: Arrangement) -> Float[Array, " features"]:
    """Length of each feature's direction: how much of it is represented.

    >>> feature_norms(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    return jnp.linalg.norm(arrangement, axis=1)


def directions(arrangement: Arrangement) -> Arrangement:
    """Features scaled to length 1; those of no length stay 0.

    >>> directions(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    norms = feature_norms(arrangement)
    return arrangement / jnp.where(norms > 0, norms, 1)[:, None]


def dimensionality(arrangement: Arrangement) -> Float[Array, " features"]:
    """The share of a dimension that each feature has: |a_i|² / Σ_j (â_i · a_j)², 0 for features of no length.

    1: a dimension of its own; 1/2: an antipodal pair. Source: Elhage et al. 2022, "Toy models of superposition".

    >>> dimensionality(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])).tolist()
    [0.5, 0.5, 1.0]
    """
    squared = jnp.sum(arrangement**2, axis=1)
    crowd = jnp.sum(matmul(arrangement, arrangement.T) ** 2, axis=1)
    return jnp.where(squared > 0, squared**2 / jnp.where(crowd > 0, crowd, 1), 0)


def interference(arrangement: Arrangement) -> Float[Array, " features"]:
    """How much other features reach into each feature's direction: Σ_{j≠i} (â_i · a_j)², 0 for features of no length.

    Source: Elhage et al. 2022, "Toy models of superposition", superposition of a feature.

    >>> interference(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])).tolist()
    [1.0, 1.0, 0.0]
    """
    squared = jnp.sum(arrangement**2, axis=1)
    gram = matmul(arrangement, arrangement.T)
    crowd = jnp.sum(gram**2, axis=1) - squared**2
    return jnp.where(squared > 0, jnp.maximum(crowd, 0) / jnp.where(squared > 0, squared, 1), 0)


def coherence(arrangement: Arrangement) -> Float[Array, ""]:
    """Mutual coherence: the largest |cosine| between two features. At least `welch_bound`; features of no length count as 0.

    >>> float(coherence(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])))
    1.0
    """
    rows = directions(arrangement)
    cosines = jnp.abs(matmul(rows, rows.T))
    return jnp.max(jnp.where(jnp.eye(len(cosines), dtype=bool), 0, cosines), initial=0)


def welch_bound(n_features: int, n_units: int) -> float:
    """The least coherence that so many features can have in so many units: √((n - m) / (m (n - 1))). Source: Welch 1974.

    >>> welch_bound(n_features=4, n_units=3)  # the simplex
    0.3333333333333333
    """
    _check(n_features, n_units)
    return math.sqrt(max(0, n_features - n_units) / (n_units * max(1, n_features - 1)))


def restricted_isometry(key: Key[Array, ""], arrangement: Arrangement, sparsity: int, n_draws: int = 1000) -> Float[Array, ""]:
    """A lower bound of the restricted isometry constant δ_s of the normalised features: the largest of random supports.

    δ_s is the least δ with (1 - δ)|z|² ≤ |z Â|² ≤ (1 + δ)|z|² for all z with s features active; the exact value needs all
    supports. Source: Candès & Tao 2005, "Decoding by linear programming".

    Raises:
        ValueError: sparsity is not in 1..n_features, or no draw.

    >>> round(float(restricted_isometry(jax.random.key(0), jnp.eye(4), sparsity=2, n_draws=5)), 3)
    0.0
    """
    n_features = arrangement.shape[0]
    if n_draws < 1:
        raise ValueError(f"n_draws must be at least 1, got {n_draws}.")
    if not 1 <= sparsity <= n_features:
        raise ValueError(f"sparsity must be between 1 and n_features = {n_features}, got {sparsity}.")
    features = directions(arrangement)

    def draw(key: Array) -> Array:
        rows = features[jax.random.choice(key, n_features, (sparsity,), replace=False)]
        return matmul(rows, rows.T)

    values, _ = jax.vmap(eigh)(jax.vmap(draw)(jax.random.split(key, n_draws)))
    return jnp.max(jnp.abs(values - 1))


def polysemanticity(arrangement: Arrangement) -> Float[Array, " units"]:
    """The effective number of features in each unit, (Σ_i a_i²)² / Σ_i a_i⁴: 1 where monosemantic, 0 where silent.

    The participation ratio of squared weights.

    >>> polysemanticity(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])).tolist()
    [2.0, 1.0]
    """
    squared = arrangement**2
    total, fourth = jnp.sum(squared, axis=0), jnp.sum(squared**2, axis=0)
    return jnp.where(fourth > 0, total**2 / jnp.where(fourth > 0, fourth, 1), 0)


def norm_products(a: Arrangement, b: Arrangement) -> Float[Array, " features"]:
    """How much two models both represent each feature: the product of its norms. From 1 on the paper calls it shared.

    Source: Longon, Klindt & Khosla, arXiv 2510.03186, toy models.

    Raises:
        ValueError: arrangements of different numbers of features.

    >>> norm_products(jnp.eye(2), jnp.array([[3.0, 4.0], [0.0, 0.5]])).tolist()
    [5.0, 0.5]
    """
    _same_features(a, b)
    return feature_norms(a) * feature_norms(b)


def semi_match(a: Arrangement, b: Arrangement, shared: Bool[Array, " features"] | None = None) -> Float[Array, ""]:
    """How alike units mix features: the highest Pearson correlation of weights with any unit of a, mean over units of b.

    1 for arrangements that are equal up to the order and a positive scale of their units. Source: Longon, Klindt & Khosla,
    arXiv 2510.03186, toy models.

    Args:
        a, b: arrangements of the same features.
        shared: the features that correlations are over, `(n_features,)`; by default all.

    Returns:
        Scalar. Units whose weights do not vary over these features are left out. NaN where none varies, or where there are
        fewer than 3 features: any two units correlate perfectly over 2.

    Raises:
        ValueError: arrangements, or a mask, of different numbers of features.

    >>> a = gaussian(jax.random.key(0), 6, 4)
    >>> round(float(semi_match(a, 2 * a[:, ::-1])), 3)
    1.0
    """
    _same_features(a, b)
    if shared is not None and (jnp.shape(shared) != (len(a),) or not jnp.issubdtype(jnp.result_type(shared), jnp.bool_)):
        raise ValueError(
            f"shared must be a mask ({len(a)},) of the features, got {jnp.result_type(shared)} {jnp.shape(shared)}."
        )
    shared = jnp.ones(a.shape[0], bool) if shared is None else shared
    n_shared = jnp.sum(shared)

    def standardise(weights: Array) -> tuple[Array, Array]:
        inside = jnp.where(shared[:, None], weights, jnp.nan)
        live = (n_shared >= 3) & (jnp.nanmax(inside, axis=0) > jnp.nanmin(inside, axis=0))
        centred = jnp.where(shared[:, None], weights - jnp.nanmean(inside, axis=0), 0)
        return jnp.where(live, centred / jnp.linalg.norm(centred, axis=0), 0), live

    (a, source), (b, target) = standardise(a), standardise(b)
    best = jnp.max(jnp.where(source[:, None], matmul(a.T, b), -jnp.inf), axis=0)
    scored = target & jnp.any(source)
    return jnp.sum(jnp.where(scored, best, 0)) / jnp.sum(scored)  # 0 / 0 is NaN


def _same_features(a: Arrangement, b: Arrangement) -> None:
    if jnp.ndim(a) != 2 or jnp.ndim(b) != 2 or len(a) != len(b):
        raise ValueError(f"a and b must be (n_features, n_units) of the same features, got {jnp.shape(a)} and {jnp.shape(b)}.")


def _check(n_features: int, n_units: int) -> None:
    if n_features < 1 or n_units < 1:
        raise ValueError(f"n_features and n_units must be at least 1, got {n_features} and {n_units}.")

"""What units stand for: how well each tells a category, how many of them share one, and which samples drive a unit most.

Neurons and latents are units alike. With d′ of all units at hand, `d > 1` summed over units counts those that a category uses,
summed over categories those that a unit responds to; `participation_ratio` does the same without a threshold. Such counts
depend on how many units there are and how many are active at once: compare latents with those of untrained SAEs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from superpos.linalg import matmul
from superpos.metrics.base import positive_integer


def d_prime(
    units: Float[Array, "samples units"], labels: Int[Array, " samples"], n_categories: int
) -> Float[Array, "categories units"]:
    """Selectivity index of each unit for each category: d′ = (μ_in - μ_out) / √((σ²_in + σ²_out) / 2).

    "in" are the samples of a category, "out" all others; variances are unbiased. Invariant to scaling units by positive
    factors and shifting them. For Gaussians of equal variance the area under the ROC curve is Φ(d′ / √2). A unit that is
    silent outside a category and in a share 1 - p of it, else of one value, has d′ = √(2 p / (1 - p)): 1 where p = 1/3, so
    that a latent which stands for a part of a category is not selective for the whole of it.

    Twice the memory of `units`, whatever the number of categories; `jit` and `vmap` it.

    Source: Green & Swets 1966; of units against categories of images, Afraz, Kiani & Esteky 2006.

    Args:
        units: `(n_samples, n_units)`, activations.
        labels: `(n_samples,)`, the category of each sample, 0 to n_categories - 1.
        n_categories: at least 2; static.

    Returns:
        `(n_categories, n_units)`: 0 for constant units, which tell nothing; infinite where a unit separates a category without
        any variance; NaN for units with NaN or infinity, and for categories with fewer than two samples inside or outside.

    Raises:
        ValueError: shapes that do not fit, or labels that are no whole numbers or out of range.

    >>> units = jnp.array([[1.0, 5.0], [3.0, 5.0], [4.0, 5.0], [6.0, 5.0]])
    >>> print(d_prime(units, jnp.array([0, 0, 1, 1]), 2).round(3))
    [[-2.121  0.   ]
     [ 2.121  0.   ]]
    """
    units = jnp.asarray(units)
    given = labels if isinstance(labels, jax.core.Tracer) else np.asarray(labels)
    if units.ndim != 2 or given.shape != units.shape[:1]:
        raise ValueError(
            f"units and labels must be (n_samples, n_units) and (n_samples,), got {units.shape} and {given.shape}."
        )
    positive_integer("n_categories", n_categories, least=2)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"labels must be whole numbers, got {given.dtype}.")
    if isinstance(given, np.ndarray) and given.size and not 0 <= given.min() <= given.max() < n_categories:
        raise ValueError(f"labels must be 0 to {n_categories - 1}, got {given.min()} to {given.max()}.")
    return _d_prime(units.astype(jnp.promote_types(units.dtype, jnp.float32)), jnp.asarray(given), n_categories)


@functools.partial(jax.jit, static_argnames="n_categories")
def _d_prime(units: Array, labels: Array, n_categories: int) -> Array:
    spread = jnp.max(units, axis=0) - jnp.min(units, axis=0)
    constant = spread == 0  # False for NaN
    x = units / jnp.where(constant, 1, spread)  # squares stay in range
    x = x - jnp.mean(x, axis=0)
    belongs = jax.nn.one_hot(labels, n_categories, axis=0, dtype=x.dtype)
    counts = jnp.sum(belongs, axis=1)
    means = matmul(belongs, x) / jnp.maximum(counts, 1)[:, None]
    scatter = matmul(belongs, (x - means[labels]) ** 2)  # about each category's own mean, so that nothing cancels

    def of_category(category: Array) -> Array:
        others = jnp.arange(n_categories) != category
        rest = jnp.where(others, counts, 0)
        n_in, n_out = counts[category], jnp.sum(rest)
        mean_out = matmul(rest, means) / n_out
        scatter_out = matmul(others.astype(x.dtype), scatter) + matmul(rest, (means - mean_out) ** 2)
        variance = (scatter[category] / (n_in - 1) + scatter_out / (n_out - 1)) / 2
        d = (means[category] - mean_out) / jnp.sqrt(variance)
        return jnp.where((n_in > 1) & (n_out > 1), jnp.where(constant, 0, d), jnp.nan)

    return lax.map(of_category, jnp.arange(n_categories))


def most_selective(
    choose: Float[Array, "categories units"], measure: Float[Array, "categories units"]
) -> tuple[Int[Array, " categories"], Float[Array, " categories"]]:
    """The most selective unit of each category, and how selective it is on other samples than it was chosen on.

    The largest of many noisy d′ is too large, the more so the more units there are: where there are four times as many latents
    as neurons, this alone would make latents look better.

    Args:
        choose: `(n_categories, n_units)`, d′ on some samples.
        measure: the same, on others.

    Returns:
        The unit of each category, `(n_categories,)`, and its d′ in `measure`, `(n_categories,)`.

    Raises:
        ValueError: not two matrices of one shape.

    >>> units, d = most_selective(jnp.array([[0.5, 2.0], [1.0, 0.0]]), jnp.array([[0.4, 1.5], [1.1, 0.2]]))
    >>> units.tolist(), d.tolist()
    ([1, 0], [1.5, 1.100000023841858])
    """
    choose, measure = jnp.asarray(choose), jnp.asarray(measure)
    if choose.ndim != 2 or choose.shape != measure.shape:
        raise ValueError(f"choose and measure must both be (n_categories, n_units), got {choose.shape} and {measure.shape}.")
    units = jnp.argmax(choose, axis=1)
    return units, jnp.take_along_axis(measure, units[:, None], axis=1)[:, 0]


def participation_ratio(d: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """How many units a category is spread over (axis -1), or how many categories a unit responds to (axis 0).

    The participation ratio (Σ w)² / Σ w² of w = max(d′, 0)²: 1 where one unit has it all, n where n have equal shares. Squares,
    because d′² of independent units add up to that of an ideal observer of all (Green & Swets 1966), and because noise in d′,
    of variance near 1/n_in + 1/n_out, then weighs little. It weighs nonetheless: many units that tell nothing count for some.

    Source: participation ratio over a population, Treves & Rolls 1991; the weights are ours.

    Args:
        d: d′, `(n_categories, n_units)`; infinite ones count as 10⁶.
        axis: that is counted over.

    Returns:
        The shape of `d` without the axis; 0 where no d′ is positive.

    >>> participation_ratio(jnp.array([[2.0, 2.0, -1.0], [0.0, 3.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    weights = jnp.clip(d, 0, 1e6) ** 2
    squares = jnp.sum(weights**2, axis=axis)
    return jnp.where(squares == 0, 0, jnp.sum(weights, axis=axis) ** 2 / jnp.where(squares == 0, 1, squares))


def top(units: Float[Array, "samples units"], n: int, groups: ArrayLike | None = None) -> Int[Array, "units n"]:
    """The samples with the largest activations of each unit, largest first; of equal ones the first.

    Args:
        units: `(n_samples, n_units)`, activations; finite.
        n: how many; static.
        groups: `(n_samples,)`, whole numbers: of samples that belong together, such as the patches of one image, only the one
            with the largest activation counts.

    Returns:
        `(n_units, n)`, indices of samples; -1 where traced groups are fewer than n.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or fewer samples or groups than n.

    >>> units = jnp.array([[0.1], [0.9], [0.8], [0.3]])
    >>> top(units, 2).tolist(), top(units, 2, groups=jnp.array([0, 1, 1, 2])).tolist()
    ([[1, 2]], [[1, 3]])
    """
    units = jnp.asarray(units)
    positive_integer("n", n)
    if units.ndim != 2 or (groups is not None and jnp.shape(groups) != units.shape[:1]):
        got = f"{units.shape}" + ("" if groups is None else f" and {jnp.shape(groups)}")
        raise ValueError(f"units must be (n_samples, n_units), and groups (n_samples,), got {got}.")
    if not isinstance(units, jax.core.Tracer) and not jnp.isfinite(units).all():
        raise ValueError(f"units must be finite, got {int(jnp.sum(~jnp.isfinite(units)))} NaN or infinite values.")
    groups = np.arange(len(units)) if groups is None else groups
    if not isinstance(groups, jax.core.Tracer) and len(np.unique(groups)) < n:
        raise ValueError(f"n must be at most the number of samples, or of groups of them, {len(np.unique(groups))}, got {n}.")
    return _top(units, n, jnp.asarray(groups))


@functools.partial(jax.jit, static_argnames="n")
def _top(units: Array, n: int, groups: Array) -> Array:
    def step(left: Array, _: None) -> tuple[Array, Array]:
        best = jnp.argmax(left, axis=0)
        some = jnp.max(left, axis=0) > -jnp.inf
        return jnp.where(groups[:, None] == groups[best], -jnp.inf, left), jnp.where(some, best, -1)

    return lax.scan(step, units.astype(jnp.promote_types(units.dtype, jnp.float32)), length=n)[1].T

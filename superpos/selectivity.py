"""What units stand for: how well each tells a category, how many of them share one, and which samples drive a unit most.

Neurons and latents are units alike. With d′ of all units at hand, `d > 1` summed over units counts those that a category uses,
summed over categories those that a unit responds to; `participation_ratio` does the same without a threshold. `summary` has all
of these in numbers, from d′ on two halves of the images; `of_views` measures what views read, and `table` sums it up. Such
counts depend on how many units there are and how many are active at once: compare latents with those of untrained SAEs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from superpos import alignment, stats
from superpos.checks import as_array, positive_integer
from superpos.folds import split_stratified
from superpos.linalg import matmul
from superpos.metrics import Ridge
from superpos.views import Rows, View, encode_all, fit_all, params_of

# By name of a set of categories: the category of each image, and the names of all.
Sets = Mapping[str, tuple[Int[np.ndarray, " images"], tuple[str, ...]]]


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
    units = jnp.asarray(as_array(units, "units"))
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


def halve(sets: Sets, seed: int) -> tuple[Int[np.ndarray, " half"], Int[np.ndarray, " half"]]:
    """Divides images into two halves, each with its share of every category of the first set.

    What is chosen on one half is measured on the other, see `most_selective`.

    Args:
        sets: by name of a set of categories, the category of each image, `(n_images,)`, and the names of all.
        seed: of the random order in which the images of a category are dealt out.

    Returns:
        The indices of the images of each half, ascending.

    Raises:
        ValueError: a category of any set with fewer than 2 images in a half, of which there is no d′.

    >>> [half.tolist() for half in halve({"animal": (np.array([0, 0, 0, 0, 1, 1, 1, 1]), ("cat", "dog"))}, seed=0)]
    [[0, 2, 4, 5], [1, 3, 6, 7]]
    """
    halves = split_stratified(next(iter(sets.values()))[0], 0.5, seed)[::-1]
    for labels, names in sets.values():
        counts = np.min([np.bincount(labels[half], minlength=len(names)) for half in halves], axis=0)
        if np.min(counts) < 2:
            got = f"{np.min(counts)} of {names[np.argmin(counts)]!r} in one"
            raise ValueError(f"halves must have at least 2 images of each category in each half, got {got}.")
    return halves


def d_prime_of_halves(
    units: Float[Array, "images positions units"],
    labels: Any,
    n_categories: int,
    halves: Sequence[Any],
) -> Float[Array, "halves categories units"]:
    """d′ of each unit on each of two halves of the images, where each position of an image is a sample of its category.

    Args:
        units: `(n_images, n_positions, n_units)`, activations.
        labels: `(n_images,)`, the category of each image, 0 to n_categories - 1.
        n_categories: at least 2; static.
        halves: the indices of the images of each, as `halve` gives them.

    Returns:
        `(2, n_categories, n_units)`, as of `d_prime`.

    >>> units = jnp.array([[1.0], [3.0], [1.0], [3.0], [4.0], [6.0], [14.0], [16.0]])[:, None]
    >>> labels, halves = jnp.repeat(jnp.arange(2), 4), (jnp.array([0, 1, 4, 5]), jnp.array([2, 3, 6, 7]))
    >>> d_prime_of_halves(units, labels, 2, halves)[:, 1, 0].round(2).tolist()
    [2.119999885559082, 9.1899995803833]
    """
    n_positions, n_units = units.shape[1:]

    def of(half: Any) -> Array:
        return d_prime(units[half].reshape(-1, n_units), labels[half].repeat(n_positions), n_categories)

    return jnp.stack([of(half) for half in halves])


def of_views(
    views: Mapping[str, View],
    key: Key[Array, ""],
    training: Float[Array, "images positions units"],
    scored: Float[Array, "images positions units"],
    sets: Sets,
    halves: Sequence[ArrayLike],
) -> dict[str, Any]:
    """Fits views to one system, and measures how selective the units of each are. Pure: `jit` it, `sp.sweep` it over keys.

    Args:
        views: by name.
        key: of the fits.
        training: `(n_training_images, n_positions, n_units)`, which fit the views, each position as a sample.
        scored: `(n_images, n_positions, n_units)`.
        sets: of categories of the scored images, as of `halve`; static.
        halves: of the scored images, as `halve` gives them.

    Returns:
        `fits`, as of `views.fit_all`; `described`, what each view has to say of its fit on the scored samples; and `d`, by view
        and set: `(2, n_categories, k)`, as of `d_prime_of_halves`.
    """
    samples = scored.reshape(-1, scored.shape[-1])
    fits = fit_all(views, key, Rows(training.reshape(-1, training.shape[-1])))
    d = {}
    for name, units in encode_all(views, fits, samples).items():
        units = units.reshape(*scored.shape[:2], -1)
        d[name] = {of: d_prime_of_halves(units, labels, len(names), halves) for of, (labels, names) in sets.items()}
    described = {name: view.describe(params_of(views, fits, name), samples) for name, view in views.items()}
    return {"fits": fits, "described": described, "d": d}


def summary(halves: Float[Array, "halves categories units"], threshold: float = 1.0) -> dict[str, Float[Array, ""]]:
    """How selective units are for the categories of one set, in five numbers.

    Args:
        halves: d′ on two halves of the images, `(2, n_categories, n_units)`, of `d_prime_of_halves`.
        threshold: of d′, above which a unit counts as selective for a category; may be traced.

    Returns:
        `best`: d′ of the most selective unit of a category, on the half that it was not chosen on; mean over both halves and
        all categories. The others are of d′ averaged over halves. `above`: units above the threshold, mean over categories.
        `effective`: over how many units a category is spread, see `participation_ratio`; mean over categories. `selective`:
        share of the units that are above the threshold for any category. `categories`: how many these are so for, mean over
        them; NaN where there are none.

    >>> d = jnp.array([[2.0, 0.0, 0.0, 1.5], [0.0, 3.0, 0.0, 1.5]])
    >>> {name: round(float(value), 2) for name, value in summary(jnp.stack([d, d])).items()}
    {'best': 2.5, 'above': 2.0, 'effective': 1.66, 'selective': 0.75, 'categories': 1.33}
    """
    crossed = jnp.stack([most_selective(*pair)[1] for pair in ((halves[0], halves[1]), (halves[1], halves[0]))])
    d = jnp.mean(halves, axis=0)
    above = d > threshold
    n_selective = jnp.sum(jnp.any(above, axis=0))
    return {
        "best": jnp.mean(crossed),
        "above": jnp.mean(jnp.sum(above, axis=1)),
        "effective": jnp.mean(participation_ratio(d)),
        "selective": n_selective / d.shape[1],
        "categories": jnp.where(n_selective > 0, jnp.sum(above) / jnp.maximum(n_selective, 1), jnp.nan),
    }


def table(
    d: Mapping[str, Mapping[str, Float[np.ndarray, "seeds halves categories units"]]], threshold: float = 1.0
) -> list[dict[str, Any]]:
    """A row for each set of categories and view: the numbers of `summary`, mean and 95 % interval over seeds.

    Args:
        d: by view and set, d′ on two halves of the images, `(n_seeds, 2, n_categories, n_units)`.
        threshold: as of `summary`.

    Returns:
        Rows with `set`, `units` (the view), `n_units`, `n_seeds`, and for each number its mean and `<number>_ci95`, None below
        three seeds.

    >>> (row,) = table({"neuron": {"animal": np.ones((3, 2, 4, 5))}})
    >>> row["set"], row["units"], row["n_units"], float(row["best"]), row["n_seeds"]
    ('animal', 'neuron', 5, 1.0, 3)
    """
    rows = []
    for name in dict.fromkeys(name for of_sets in d.values() for name in of_sets):
        for view, of_sets in d.items():
            row: dict[str, Any] = {"set": name, "units": view, "n_units": of_sets[name].shape[-1]}
            for number, values in jax.vmap(lambda one: summary(one, threshold))(of_sets[name]).items():
                over = stats.over_seeds(np.asarray(values))
                row |= {number: over["mean"], f"{number}_ci95": over["ci95"]}
            rows.append({**row, "n_seeds": len(of_sets[name])})
    return rows


def curves(d: Mapping[str, Float[np.ndarray, "seeds halves categories units"]], n: int = 60) -> dict[str, Any]:
    """How many units are above any threshold of d′, mean over categories: `above` of `summary` as a curve.

    Args:
        d: by view, as one set of `table`.
        n: thresholds, from 0 to the largest d′ of all.

    Returns:
        `thresholds`, `(n,)`; and `above`, by view `(n_seeds, n)`. Lists, to be written.

    >>> curves({"neuron": np.array([[[[2.0, 0.5, 1.0]], [[2.0, 0.5, 1.0]]]])}, n=3)
    {'thresholds': [0.0, 1.0, 2.0], 'above': {'neuron': [[3.0, 1.0, 0.0]]}}
    """
    means = {view: np.mean(of_seeds, axis=1) for view, of_seeds in d.items()}
    thresholds = np.linspace(0, max(mean[np.isfinite(mean)].max() for mean in means.values()), n)
    above = {
        view: [[float((one > threshold).sum(axis=1).mean()) for threshold in thresholds] for one in of_seeds]
        for view, of_seeds in means.items()
    }
    return {"thresholds": thresholds.tolist(), "above": above}


def most_driven(
    halves: Float[Array | np.ndarray, "halves categories units"],
    units: Float[Array | np.ndarray, "images positions units"],
    n: int,
) -> tuple[Int[Array, " categories"], Float[Array, " categories"], Int[Array, "categories n"]]:
    """The most selective unit of each category, chosen on one half of the images, and what drives it in the other half.

    Args:
        halves: d′ on both halves, `(2, n_categories, n_units)`; the first chooses.
        units: `(n_images, n_positions, n_units)`, activations to the images of the second half; finite.
        n: images of a unit, at most; static.

    Returns:
        The unit of each category; its d′ on the second half; and the images that drive it most by its largest activation at
        any position, `(n_categories, min(n, n_images))`, largest first: -1 where fewer have an activation above 0.

    >>> units = jnp.array([[[0.1], [0.0]], [[0.0], [0.9]], [[0.0], [0.0]]])
    >>> chosen, d, images = most_driven(jnp.array([[[1.0]], [[2.0]]]), units, 3)
    >>> chosen.tolist(), d.tolist(), images.tolist()
    ([0], [2.0], [[1, 0, -1]])
    """
    chosen, d = most_selective(halves[0], halves[1])
    strongest = jnp.max(jnp.asarray(units)[:, :, chosen], axis=1)
    images = top(strongest, min(n, len(strongest)))
    return chosen, d, jnp.where(jnp.take_along_axis(strongest.T, images, axis=1) > 0, images, -1)


def examples(
    sets: Sets,
    d: Mapping[str, Float[np.ndarray, "halves categories units"]],
    units: Mapping[str, Float[Array, "images positions units"]],
    half: Int[np.ndarray, " images"],
    n_categories: int = 5,
    n: int = 10,
) -> list[dict[str, Any]]:
    """A row for each of some categories of the first set and each view: its most selective unit, and what drives that.

    Args:
        sets: as of `halve`.
        d: by view, d′ on both halves for the first set.
        units: by view, activations to the images of the second half.
        half: the indices of these.
        n_categories: how many, evenly spaced, at most all.
        n: images, as of `most_driven`.

    Returns:
        Rows with `category`, `kind` (the view), `unit`, its `d_prime` on the second half, `images` (indices, of those that
        drive it most, and at all), and of how many of these the category is, `hits`.
    """
    labels, names = next(iter(sets.values()))
    shown = np.unique(np.linspace(0, len(names) - 1, min(n_categories, len(names))).round().astype(int))
    rows = []
    for view, read in units.items():
        chosen = map(np.asarray, most_driven(d[view][:, shown], read, n))
        for category, unit, value, top_images in zip(shown, *chosen, strict=True):
            images = half[top_images[top_images >= 0]]
            row = {"category": names[category], "kind": view, "unit": int(unit), "d_prime": float(value)}
            rows.append({**row, "hits": int(np.sum(labels[images] == category)), "images": images.tolist()})
    return sorted(rows, key=lambda row: names.index(row["category"]))


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
    units = jnp.asarray(as_array(units, "units"))
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


class Explained(NamedTuple):
    """Which units of one side explain those of another most.

    Attributes:
        chosen: `(n,)`, the units, the one that explains most first.
        share: `(n,)`, of the sum of squared weights, all units with standard deviation 1.
        weights: `(n, n_target)`, the standardised weights of those units.
    """

    chosen: Int[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, "n target"]


def explain(source: ArrayLike, target: ArrayLike, n: int = 8) -> Explained:
    """The units that explain another side most, by the weights of ridge regression on all samples.

    Args:
        source: `(n_samples, n_source)`, such as latents.
        target: `(n_samples, n_target)`, such as recorded sites.
        n: units that are named.

    Raises:
        ValueError: as `sp.align`.

    >>> x = jax.random.normal(jax.random.key(0), (100, 3))
    >>> explain(x, x[:, [1]], n=2).chosen[0].item()
    1
    """
    x, y = jnp.asarray(source), jnp.asarray(target)
    score = alignment.align(x, y, Ridge(weights=True), folds=None)["ridge"]
    weights = np.asarray(score.details["weights"][0] * jnp.std(x, axis=0)[:, None] / jnp.std(y, axis=0))
    share = (weights**2).sum(axis=1) / (weights**2).sum()
    chosen = np.argsort(-share)[:n]
    return Explained(chosen, share[chosen], weights[chosen])


def explanations(source: ArrayLike, target: ArrayLike, n: int = 8, n_targets: int = 4) -> list[dict[str, Any]]:
    """`explain` as a table: a row for each of the units that explain another side most.

    Args:
        source, target, n: as in `explain`.
        n_targets: units of the other side that a row names.

    Returns:
        Rows with `unit`; `share_of_weights`, of squared ones; `active`, the share of samples in which the unit is not 0; and
        `targets`, those with the largest weights.

    Raises:
        ValueError: as `sp.align`.

    >>> x = jax.random.normal(jax.random.key(0), (100, 3))
    >>> [(row["unit"], row["targets"]) for row in explanations(x, x[:, [1]], n=1)]
    [(1, '0 (+1.00)')]
    """
    active, rows = np.mean(np.asarray(source) != 0, axis=0), []
    for unit, share, weights in zip(*explain(source, target, n), strict=True):
        targets = ", ".join(f"{at} ({weights[at]:+.2f})" for at in np.argsort(-np.abs(weights))[:n_targets])
        row = {"unit": int(unit), "share_of_weights": float(share), "active": float(active[unit])}
        rows.append({**row, "targets": targets})
    return rows

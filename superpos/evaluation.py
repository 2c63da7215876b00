"""How good a sparse autoencoder is: what it reconstructs, how sparsely, with which latents, and how much of the truth it found.

`evaluate` takes arrays. Data that come in batches: `init`, `update` with each batch, `merge`, and `report`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from superpos import arrangements, moments, transport
from superpos.checks import as_array, is_concrete, positive_integer
from superpos.linalg import matmul
from superpos.metrics import FeatureRecovery, MeanCorrelation, Score, Uniqueness
from superpos.moments import Moments
from superpos.sae import SparseAutoencoder
from superpos.sae.base import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """All that a `Report` needs to know about the samples.

    Attributes:
        samples: moments, of one fold, of the inputs x and of three numbers a sample: |x - x̂|², |x̂|² and x̂·x.
        active: `(n_latents,)`, the number of samples in which each latent is not 0; exact up to 2³¹.
        mass: `(n_latents,)`, Σ|h|.
        recovery: moments, of one fold, of the latents and the true features; None where these are not known.
    """

    samples: Moments
    active: Int[Array, " latents"]
    mass: Float[Array, " latents"]
    recovery: Moments | None


class Report(NamedTuple):
    """How good a sparse autoencoder is.

    Attributes:
        fvu: scalar, fraction of variance unexplained, Σ|x - x̂|² / Σ|x - x̄|²: 0 at best, 1 for the mean as reconstruction;
            NaN for inputs that do not vary.
        l0: scalar, latents that are not 0 in a sample, on average.
        dead: scalar, share of the latents that are 0 in every sample.
        density: `(n_latents,)`, share of the samples in which each latent is not 0. Source: Bricken et al. 2023, "Towards
            monosemanticity", feature density; see `density_histogram`.
        shrinkage: scalar, relative reconstruction bias γ = Σ|x̂|² / Σ x̂·x, by which reconstructions must be divided to lie
            nearest to the inputs: below 1 where they are too small. Not centred, as in the source, so that a mean far from 0
            hides it; NaN for reconstructions that are 0. Source: Rajamanoharan et al. 2024 (arXiv 2404.16014), equation 10.
        effective: scalar, effective number of features exp(-Σ p log p), where p is a latent's share of Σ|h|: with n_inputs
            orthogonal features that are equally strong, n_inputs. Divided by n_inputs it measures superposition; it grows with
            the number of active latents, so compare SAEs of equal l0, and with an untrained one. NaN where no latent is active.
            Source: Bereska et al. 2025 (arXiv 2512.13568).
        recovery: the `Score` of "feature_recovery", "mcc" and "uniqueness" (`sp.metrics.FeatureRecovery`, `MeanCorrelation`,
            `Uniqueness`) over all samples, latents as units; empty where the true features are not known.
    """

    fvu: Float[Array, ""]
    l0: Float[Array, ""]
    dead: Float[Array, ""]
    density: Float[Array, " latents"]
    shrinkage: Float[Array, ""]
    effective: Float[Array, ""]
    recovery: dict[str, Score]

    def __repr__(self) -> str:
        """A number a line; of what is known of each latent, the range."""
        numbers = {name: getattr(self, name) for name in ("fvu", "l0", "dead", "shrinkage", "effective")}
        numbers |= {name: score.mean for name, score in self.recovery.items()}
        if not is_concrete(*numbers.values(), self.density) or np.ndim(self.fvu):
            return f"Report of {self.fvu if np.ndim(self.fvu) == 0 else np.shape(self.fvu)}"
        low, high = np.min(self.density), np.max(self.density)
        lines = [f"{name:18}{float(number):.3f}" for name, number in numbers.items()]
        return "\n".join([*lines, f"{'density':18}{low:.3f} to {high:.3f} of {len(self.density)} latents"])


def evaluate(
    sae: SparseAutoencoder, params: Params, x: ArrayLike, z: ArrayLike | None = None, *, batch_size: int = 4096
) -> Report:
    """Evaluates a sparse autoencoder on samples, a batch at a time. `jit` it, and `vmap` it over `params`.

    Args:
        sae: the architecture.
        params: its parameters.
        x: `(n_samples, n_inputs)`, samples that it was not trained on.
        z: `(n_samples, n_features)`, the true features of the samples, where they are known.
        batch_size: samples that are encoded at once, which bounds the memory; static.

    Raises:
        ValueError: shapes that do not fit, no sample, or a batch size that is not positive.

    >>> sae = SparseAutoencoder(2, 3)
    >>> evaluate(sae, sae.init(jax.random.key(0)), jnp.ones((5, 3)))
    Traceback (most recent call last):
    ValueError: x must be (n_samples, 2), at least 1 sample, got (5, 3).
    """
    positive_integer("batch_size", batch_size)
    x, z = jnp.asarray(as_array(x, "x")), None if z is None else jnp.asarray(as_array(z, "z"))
    if x.ndim != 2 or x.shape[1] != sae.n_inputs or len(x) < 1:
        raise ValueError(f"x must be (n_samples, {sae.n_inputs}), at least 1 sample, got {x.shape}.")
    if z is not None and (z.ndim != 2 or len(z) != len(x)):
        raise ValueError(f"z must be ({len(x)}, n_features), got {z.shape}.")

    def add(sums: Any, batch: Any) -> tuple[Any, None]:
        x, z = batch
        h = sae.encode(params, x)
        return update(sums, x, h, sae.decode(params, h, x), z), None

    whole = len(x) // batch_size * batch_size
    batches = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, batch_size, leaf.shape[1]), (x, z))
    sums, _ = lax.scan(add, init(sae.n_inputs, sae.n_latents, None if z is None else z.shape[1]), batches)
    if whole < len(x):
        sums, _ = add(sums, jax.tree.map(lambda leaf: leaf[whole:], (x, z)))
    return report(sums)


def evaluate_batches(
    sae: SparseAutoencoder,
    params: Params,
    batch: Callable[[Array], tuple[Float[Array, "n inputs"], Float[Array, "n features"] | None]],
    n_batches: int,
) -> Report:
    """`evaluate` on samples that are made batch by batch in the program. `jit` it, and `vmap` it over `params`.

    Args:
        sae, params: as in `evaluate`.
        batch: `batch(i)` gives samples, and their true features, or None where these are not known.
        n_batches: static.

    >>> from superpos.sae import Vanilla
    >>> sae = Vanilla(2, 3, l1=0.1)
    >>> def batch(i):
    ...     return jax.random.normal(jax.random.key(i), (4, 2)), None
    >>> evaluate_batches(sae, sae.init(jax.random.key(0)), batch, 2).density.shape
    (3,)
    """
    _, z = jax.eval_shape(batch, jax.ShapeDtypeStruct((), jnp.int32))

    def add(sums: Sums, i: Array) -> tuple[Sums, None]:
        x, z = batch(i)
        h = sae.encode(params, x)
        return update(sums, x, h, sae.decode(params, h, x), z), None

    sums = init(sae.n_inputs, sae.n_latents, None if z is None else z.shape[1])
    return report(lax.scan(add, sums, jnp.arange(n_batches))[0])


def init(n_inputs: int, n_latents: int, n_features: int | None = None) -> Sums:
    """Sums over no samples.

    Args:
        n_inputs, n_latents: static sizes.
        n_features: number of true features; None where they are not known. Static.
    """
    recovery = None if n_features is None else moments.init(n_latents, n_features, 1, "xy")
    samples = moments.init(n_inputs, 3, 1, "xy")
    return Sums(samples, jnp.zeros(n_latents, jnp.int32), jnp.zeros(n_latents, samples.xy.dtype), recovery)


def update(
    sums: Sums,
    x: Float[Array, "n inputs"],
    h: Float[Array, "n latents"],
    reconstruction: Float[Array, "n inputs"],
    z: Float[Array, "n features"] | None = None,
) -> Sums:
    """Adds samples: a batch at a time, for samples one by one would each round the running means.

    Args:
        sums: so far, from `init` or an earlier update.
        x: `(n, n_inputs)`.
        h: `(n, n_latents)`, latents of the same samples.
        reconstruction: `(n, n_inputs)`.
        z: `(n, n_features)`, the true features, where `init` was told their number.

    Raises:
        ValueError: shapes that do not fit, or true features in one of `init` and `update` only.
    """
    x, h, reconstruction = jnp.asarray(x), jnp.asarray(h), jnp.asarray(reconstruction)
    n_inputs, n = sums.samples.xy.shape[1], len(x)
    if x.shape != (n, n_inputs) or h.shape != (n, sums.active.size) or reconstruction.shape != x.shape:
        raise ValueError(
            f"x, h and reconstruction must have shapes (n, {n_inputs}), (n, {sums.active.size}) and (n, {n_inputs}), "
            f"got {x.shape}, {h.shape} and {reconstruction.shape}."
        )
    expected = None if sums.recovery is None else (n, sums.recovery.xy.shape[2])
    if (None if z is None else jnp.shape(z)) != expected:
        raise ValueError(f"z must be as init was told, {expected}, got {None if z is None else jnp.shape(z)}.")
    # Only the variance of x is centred: the rest are means of terms without cancellation, which moments keep as well.
    lengths = [jnp.sum(terms, axis=1) for terms in ((x - reconstruction) ** 2, reconstruction**2, reconstruction * x)]
    fold = jnp.zeros((), jnp.int32)
    return Sums(
        samples=moments.update(sums.samples, x, jnp.stack(lengths, axis=1), fold),
        active=sums.active + jnp.sum(h != 0, axis=0, dtype=jnp.int32),
        mass=sums.mass + jnp.sum(jnp.abs(h), axis=0),
        recovery=None if sums.recovery is None or z is None else moments.update(sums.recovery, h, z, fold),
    )


def merge(a: Sums, b: Sums) -> Sums:
    """The sums over both sets of samples.

    Raises:
        ValueError: different numbers of inputs, latents or features.
    """
    if jax.tree.map(jnp.shape, a) != jax.tree.map(jnp.shape, b):
        raise ValueError("a and b must have the same numbers of inputs, latents and features.")
    recovery = None if a.recovery is None or b.recovery is None else moments.merge(a.recovery, b.recovery)
    return Sums(moments.merge(a.samples, b.samples), a.active + b.active, a.mass + b.mass, recovery)


@jax.jit
def report(sums: Sums) -> Report:
    """What the sums say; NaN where there are no samples."""
    count = sums.samples.count[0]
    error, squares, product = sums.samples.y.mean[0]
    density = jnp.where(jnp.isnan(sums.mass), jnp.nan, sums.active / count)  # NaN latents are not active ones
    total = jnp.sum(sums.samples.x.squares)
    metrics = () if sums.recovery is None else (FeatureRecovery(), MeanCorrelation(), Uniqueness())
    return Report(
        fvu=jnp.where(total > 0, error * count / total, jnp.nan),
        l0=jnp.sum(density),
        dead=jnp.mean(density == 0, where=count > 0, dtype=density.dtype),
        density=density,
        shrinkage=squares / product,
        effective=jnp.exp(jnp.sum(jax.scipy.special.entr(sums.mass / jnp.sum(sums.mass)))),
        recovery={metric.name: metric(sums.recovery) for metric in metrics},
    )


def density_histogram(
    density: Float[Array, " latents"], edges: ArrayLike | Sequence[float] = tuple(i / 2 for i in range(-14, 1))
) -> tuple[Float[Array, " bins"], Float[Array, ""]]:
    """The histogram of log10 density, in which latents of ultralow density stand apart from the others.

    Source: Bricken et al. 2023, "Towards monosemanticity", feature density histograms.

    Args:
        density: `(n_latents,)`, from a `Report`.
        edges: `(n_bins + 1,)`, increasing, in log10; by default two bins a decade, 10⁻⁷ to 1.

    Returns:
        The number of latents in each bin, `(n_bins,)`, those beyond an edge in the bin next to it; and the number of latents of
        density 0, which are in no bin.

    Raises:
        ValueError: arrays that are not one-dimensional, or fewer than two edges.
    """
    density, edges = jnp.asarray(density), jnp.asarray(edges)
    if density.ndim != 1 or edges.ndim != 1 or len(edges) < 2:
        raise ValueError(f"density and edges must be (n_latents,) and (n_bins + 1,), got {density.shape} and {edges.shape}.")
    alive = density > 0
    logarithm = jnp.clip(jnp.log10(jnp.where(alive, density, 1)), edges[0], edges[-1])
    counts, _ = jnp.histogram(logarithm, edges, weights=alive.astype(density.dtype))
    return counts, jnp.sum(~alive, dtype=density.dtype)


def decoder_cosine(
    dictionary: Float[Array, "latents inputs"], directions: Float[Array, "features inputs"]
) -> Float[Array, " features"]:
    """The largest cosine of each feature's true direction with the direction of any latent.

    Its mean is the mean max cosine similarity (MMCS). Source: Sharkey, Braun & Millidge 2022, "Taking features out of
    superposition with sparse autoencoders".

    Args:
        dictionary: `(n_latents, n_inputs)`, `sae.dictionary(params)`; rows of 0 are no latents.
        directions: `(n_features, n_inputs)`, the arrangement, such as W of a toy model.

    Returns:
        `(n_features,)`, NaN for features of no length, which the model does not represent, and where every latent is 0.

    Raises:
        ValueError: not two matrices with the same number of inputs.
    """
    cosines, latents, features = _cosines("dictionary", dictionary, "directions", directions)
    best = jnp.max(jnp.where(latents[:, None], cosines, -jnp.inf), axis=0, initial=-jnp.inf)
    return jnp.where(features & jnp.any(latents), best, jnp.nan)


@jax.jit
def stability(a: Float[Array, "latents_a inputs"], b: Float[Array, "latents_b inputs"]) -> Float[Array, ""]:
    """How alike the dictionaries of two seeds are: the mean cosine over an exact one-to-one matching of their latents.

    The matching maximises the sum of cosines; the mean is over as many pairs as the smaller dictionary has latents. `vmap` it
    over pairs of seeds. Random dictionaries are above 0 by chance, the more so the more latents there are.

    Source: Fel et al. 2025 (arXiv 2502.12892), stability; the matching also in Paulo & Belrose 2025 (arXiv 2501.16615).

    Args:
        a, b: `(n_latents, n_inputs)`, `sae.dictionary(params)`. Rows of 0 are no latents: they have no pair and no weight, so
            that latents that are to be left out, such as dead ones, can be set to 0.

    Returns:
        Scalar, 1 for dictionaries that are equal up to order and length of their rows; NaN where one is all 0.

    Raises:
        ValueError: not two matrices with the same number of inputs.
    """
    cosines, live_a, live_b = _cosines("a", a, "b", b)
    partner = transport.assignment(-lax.stop_gradient(cosines), live_a, live_b).target_of
    matched = jnp.take_along_axis(cosines, jnp.maximum(partner, 0)[:, None], axis=1)[:, 0]
    return jnp.mean(matched, where=live_a & (partner >= 0))


def _cosines(name_a: str, a: Any, name_b: str, b: Any) -> tuple[Array, Array, Array]:
    """Cosines between the rows of two matrices, and which rows are not 0."""
    a, b = (jnp.asarray(value, jnp.promote_types(jnp.asarray(value).dtype, jnp.float32)) for value in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"{name_a} and {name_b} must be matrices with as many inputs, got {a.shape} and {b.shape}.")
    return matmul(arrangements.directions(a), arrangements.directions(b).T), jnp.any(a != 0, axis=1), jnp.any(b != 0, axis=1)

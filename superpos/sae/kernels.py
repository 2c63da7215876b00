"""Products and selections that sparse autoencoders are made of. Most take columns: see `linear`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int


def linear(
    x: Float[Array, "inputs n"], weights: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"] | None = None
) -> Float[Array, "outputs n"]:
    """W'x + b, of columns.

    Columns, because most autoencoders here have few units and many samples: with samples along the last axis every pass over
    latents vectorises on CPU. The product with large weights is faster with rows, and the compiler lets the rest follow.
    """
    if weights.size > _SMALL:
        y = x.T @ weights
        return (y if bias is None else y + bias).T
    y = weights.T @ x
    return y if bias is None else y + bias[:, None]


_SMALL = 2**16  # weights


@jax.custom_vjp
def sparse_linear(
    h: Float[Array, "n latents"], positions: Int[Array, "n k"], weights: Float[Array, "latents outputs"]
) -> Float[Array, "n outputs"]:
    """h W of an h that is zero but at `positions`, no two of a sample the same; to h there, and there alone, gradients flow.

    On CPU it reads k rows of W a sample, which takes a tenth of the time of the product where k is a hundredth of the latents.
    Accelerators multiply faster than they gather.
    """
    return lax.platform_dependent(h, positions, weights, cpu=_gathered, default=lambda h, _, weights: h @ weights)


def is_sparse(k: ArrayLike, n_latents: int) -> bool:
    """Whether k of so many latents are few enough for `sparse_linear` to be faster than the dense product."""
    return isinstance(k, int) and n_latents > max(512, 32 * k)


def _gathered(h: Array, positions: Array, weights: Array) -> Array:
    def rows(block: tuple[Array, ...]) -> Array:
        values, at = block
        return jnp.einsum("nk,nko->no", values, weights[at])

    values = jnp.take_along_axis(h, positions, axis=1)
    return jnp.concatenate(lax.map(rows, _blocks(values, positions)))


def _scattered(h: Array, positions: Array, weights: Array, slope: Array) -> tuple[Array, Array]:
    def rows(total: Array, block: tuple[Array, ...]) -> tuple[Array, Array]:
        values, at, slope = block
        return total.at[at].add(values[:, :, None] * slope[:, None]), jnp.einsum("no,nko->nk", slope, weights[at])

    values = jnp.take_along_axis(h, positions, axis=1)
    by_weights, by_values = lax.scan(rows, jnp.zeros_like(weights), _blocks(values, positions, slope))
    by_h = jnp.put_along_axis(jnp.zeros_like(h), positions, jnp.concatenate(by_values), axis=1, inplace=False)
    return by_h, by_weights


def _multiplied(h: Array, positions: Array, weights: Array, slope: Array) -> tuple[Array, Array]:
    del positions
    return slope @ weights.T, h.T @ slope


def _blocks(*arrays: Array) -> tuple[Array, ...]:
    """Few samples at a time: what is gathered for them stays in the cache."""
    size = math.gcd(len(arrays[0]), 16)
    return tuple(a.reshape(-1, size, a.shape[1]) for a in arrays)


def _forward(h: Array, positions: Array, weights: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return sparse_linear(h, positions, weights), (h, positions, weights)


def _backward(saved: tuple[Array, Array, Array], slope: Array) -> tuple[Array, None, Array]:
    by_h, by_weights = lax.platform_dependent(*saved, slope, cpu=_scattered, default=_multiplied)
    return by_h, None, by_weights


sparse_linear.defvjp(_forward, _backward)


def mean_square(error: Float[Array, "units n"]) -> Float[Array, ""]:
    """Mean of squares, axis by axis, which vectorises."""
    return jnp.mean(jnp.mean(error**2, axis=1))


def top_k_mask(x: Float[Array, "units n"], k: ArrayLike) -> Bool[Array, "units n"]:
    """Marks the k largest positive entries of each column; among equal ones the first. A traced k may be mapped over.

    Many units: `lax.top_k`. Few: on CPU k - 1 passes over them, many times faster than `lax.top_k`, which sorts there. On
    a GPU `lax.top_k` is the fastest for few units too; a traced k, which it does not take, goes by ranks.
    """
    few, passes = len(x) <= 512, functools.partial(_by_passes, k=k)
    if isinstance(k, int):
        sorting = functools.partial(_by_sorting, k=k)
        return lax.platform_dependent(jnp.maximum(x, 0), cpu=passes, default=sorting) if few else sorting(x)
    # Ranks are the square of the units in operations.
    return lax.platform_dependent(jnp.maximum(x, 0), cpu=passes, default=functools.partial(_by_ranks, k=k) if few else passes)


def _by_sorting(x: Array, k: int) -> Array:
    values, positions = lax.top_k(x.T, min(k, len(x)))
    samples = jnp.arange(x.shape[1])[:, None]
    return jnp.zeros(x.T.shape, bool).at[samples, positions].set(values > 0, unique_indices=True).T


def _by_passes(x: Array, k: ArrayLike) -> Array:
    """Each pass lowers a threshold to the next smaller value."""

    def lower(_, threshold):
        return _fold(jnp.maximum, jnp.where(x < threshold, x, 0))

    threshold = lax.fori_loop(0, k - 1, lower, _fold(jnp.maximum, x))
    mask = (x >= threshold) & (x > 0)

    # Equal values can leave too many: drop the last of the smallest until k remain. Almost always no iteration.
    def crowded(mask):
        return _fold(jnp.add, mask.astype(jnp.int32)) > k

    def drop(mask):
        smallest = mask & (x == jnp.min(jnp.where(mask, x, jnp.inf), axis=0))
        position = jnp.arange(len(x))[:, None]
        victim = position == jnp.max(jnp.where(smallest, position, -1), axis=0)
        return mask & ~(crowded(mask) & victim)

    return lax.while_loop(lambda mask: jnp.any(crowded(mask)), drop, mask)


def _by_ranks(x: Array, k: ArrayLike) -> Array:
    """The rank of an entry is the number of those that are larger, or as large and come before."""
    i = jnp.arange(len(x))
    before = (x[:, None] > x) | ((x[:, None] == x) & (i[:, None] < i)[:, :, None])
    return (jnp.sum(before, axis=0, dtype=jnp.int32) < k) & (x > 0)


def _fold(combine: Any, rows: Array) -> Array:
    """Reduces the first axis by halves: on CPU one vectorised pass, where a reduction would write its input out first."""
    for _ in range(6):  # each doubles the length of the compiled pass
        if len(rows) % 2 == 0:
            rows = combine(*jnp.split(rows, 2))
    return combine.reduce(rows, axis=0)


def geometric_median(x: Float[Array, "n units"], steps: int = 500) -> Float[Array, " units"]:
    """The point with the least sum of distances to all samples, by Weiszfeld's iteration, until it rests or `steps` are over.

    Less drawn to outliers than the mean. Source: Weiszfeld 1937.
    """

    def move(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        median, _, i = state
        distance = jnp.linalg.norm(x - median, axis=1, keepdims=True)
        size = jnp.mean(distance)
        weights = 1 / jnp.maximum(distance, 1e-6 * size + 1e-12)
        moved = jnp.sum(weights * x, axis=0) / jnp.sum(weights)
        return moved, jnp.linalg.norm(moved - median) > 1e-5 * size, i + 1

    going = lambda state: state[1] & (state[2] < steps)  # noqa: E731
    return lax.while_loop(going, move, (jnp.mean(x, axis=0), jnp.array(True), jnp.int32(0)))[0]

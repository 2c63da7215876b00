"""Networks of several seeds, and what their layers make of images that nobody has to store."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from superpos import training

BATCH = 256  # images that are made, or pass through networks, at once


def trainer(
    model: Any, task: Any, *, steps: int, batch_size: int, learning_rate: float, n_test: int = 2_000
) -> Callable[..., dict[str, Any]]:
    """`train(key, data_key)` for `sp.sweep`: one network's `params`, and its `accuracy` on images of their own.

    Args:
        model: a `Classifier`.
        task: images and their classes, `task.sample(key, n)`.
        steps, batch_size, learning_rate: of AdamW, whose rate rises over a twentieth of the steps and decays with a cosine.
        n_test: images that the accuracy is of.
    """
    rate = optax.warmup_cosine_decay_schedule(0, learning_rate, max(1, steps // 20), steps)

    def train(key: Key[Array, ""], data_key: Key[Array, ""]) -> dict[str, Any]:
        train_key, test_key = jax.random.split(data_key)
        params, _ = training.fit(
            model,
            key,
            task.sample,
            data_key=train_key,
            steps=steps,
            batch_size=batch_size,
            optimizer=optax.adamw(rate, weight_decay=0.01),
        )
        return {"params": params, "accuracy": model.accuracy(params, *task.sample(test_key, n_test))}

    return train


def activations(
    model: Any,
    task: Any,
    params: Any,
    key: Key[Array, ""],
    n: int,
    layers: Sequence[str],
    positions: int | str,
) -> dict[str, Float[Array, "networks images positions units"]]:
    """What networks make of `n` images of a task, by layer.

    Args:
        model: their `Classifier`.
        task: the images, `image_batch` by `image_batch`.
        params: of the networks, `(n_networks, ...)`.
        key: of the images and positions.
        n: images.
        layers: names.
        positions: of the layer's grid: "all", their "mean", or a number of them, others in each image but alike for every
            network. All where the layer has no more.
    """

    def batch(i: Array) -> dict[str, Array]:
        images, _ = image_batch(task, key, i)
        position_key = jax.random.fold_in(jax.random.fold_in(key, i), 2)
        read = jax.vmap(lambda network: model.activations(network, images, tuple(layers)))(params)
        return {layer: take(values, position_key) for layer, values in read.items()}

    def take(values: Array, position_key: Array) -> Array:
        cells = values.reshape(*values.shape[:2], -1, values.shape[-1])
        n_cells = cells.shape[2]
        if positions == "mean":
            return cells.mean(axis=2, keepdims=True)
        if positions == "all" or int(positions) >= n_cells:
            return cells
        scattered = jax.random.uniform(jax.random.fold_in(position_key, n_cells), cells.shape[1:3])
        chosen = jnp.argsort(scattered, axis=1)[:, : int(positions)]
        return jnp.take_along_axis(cells, chosen[None, ..., None], axis=2)

    batches = jax.lax.map(batch, jnp.arange(-(-n // BATCH)))  # (batches, networks, images, positions, units)
    return {layer: v.swapaxes(0, 1).reshape(v.shape[1], -1, *v.shape[3:])[:, :n] for layer, v in batches.items()}


def parts(
    model: Any,
    task: Any,
    params: Any,
    key: Key[Array, ""],
    sizes: Sequence[int],
    layers: Sequence[str],
    positions: int | str,
) -> list[dict[str, Float[Array, "networks images positions units"]]]:
    """`activations` to several parts of a key's images, such as those that fit views and those that are scored.

    Args:
        model, task, params, layers, positions: as in `activations`.
        key: of all parts; part i has the images that `part_key(key, i)` makes.
        sizes: images of each part.
    """
    return [activations(model, task, params, part_key(key, i), n, layers, positions) for i, n in enumerate(sizes)]


def part_key(key: Key[Array, ""], i: int) -> Key[Array, ""]:
    """The key of the images of one of the `parts`."""
    return jax.random.fold_in(key, i)


@functools.partial(jax.jit, static_argnums=0)
def image_batch(task: Any, key: Key[Array, ""], i: Any) -> tuple[Array, Array]:
    """The i-th `BATCH` of the images that a key makes, and their classes."""
    return task.sample(jax.random.fold_in(jax.random.fold_in(key, i), 1), BATCH)


@functools.partial(jax.jit, static_argnums=(0, 2))
def classes(task: Any, key: Key[Array, ""], n: int) -> Int[Array, " images"]:
    """The classes of the `n` images that a key makes, in the order of `activations`, without drawing them."""
    return jax.lax.map(lambda i: image_batch(task, key, i)[1], jnp.arange(-(-n // BATCH))).reshape(-1)[:n]


def images(task: Any, key: Key[Array, ""], numbers: Iterable[int]) -> dict[int, Float[np.ndarray, "height width 3"]]:
    """Some of the images that a key makes, by their number in `activations`; each batch that holds any is made once."""
    wanted = sorted(set(numbers))
    batches = {i: np.asarray(image_batch(task, key, i)[0]) for i in dict.fromkeys(number // BATCH for number in wanted)}
    return {number: batches[number // BATCH][number % BATCH] for number in wanted}

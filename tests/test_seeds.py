import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import networks
from superpos.networks import seeds

TASK = networks.ShapesAndTextures(16, ("disc",), ("plain", "stripes"))  # with noise, so that no two positions are alike
EASY = networks.ShapesAndTextures(16, ("disc",), ("plain", "stripes"), noise=0.0, clutter=0.0)
MODEL = networks.Classifier(networks.CNN(2, widths=(8,)), (16, 16, 3))
KEY = jax.random.key(3)
N = seeds.BATCH + 44


@pytest.fixture(scope="module")
def params():
    """Two networks that have not learned."""
    return jax.jit(jax.vmap(MODEL.init))(jax.random.split(jax.random.key(0), 2))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def look(params, positions, n=N, layers=("stem", "block1")):
    return seeds.activations(MODEL, TASK, params, KEY, n, layers, positions)


@pytest.fixture(scope="module")
def everywhere(params):
    return look(params, "all")


def test_activations_are_those_of_each_network_to_each_image(params, everywhere):
    second = jax.tree.map(lambda leaf: leaf[1], params)
    images = jnp.stack(list(seeds.images(TASK, KEY, (0, N - 1)).values()))
    for layer, values in MODEL.activations(second, images).items():
        assert everywhere[layer].shape == (2, N, 64, 8)
        np.testing.assert_allclose(everywhere[layer][1][jnp.array([0, N - 1])], values.reshape(2, 64, 8), rtol=1e-4, atol=1e-5)


def test_the_mean_is_over_positions_of_the_layers_that_are_asked_for(params, everywhere):
    fewer = look(params, "mean", 5, ("stem",))
    assert list(fewer) == ["stem"]
    np.testing.assert_allclose(fewer["stem"][:, :, 0], everywhere["stem"][:, :5].mean(axis=2), rtol=1e-4, atol=1e-5)


def test_positions_differ_between_images_and_are_alike_for_every_network(params, everywhere):
    """Where a sample comes from is told by its values: each is one position of its image, the same of every network."""
    taken = {}
    for layer, values in look(params, 3).items():
        assert values.shape == (2, N, 3, 8)
        apart = jnp.abs(values[:, :, :, None] - everywhere[layer][:, :, None]).max(axis=-1)  # networks, images, taken, cells
        assert apart.min(axis=-1).max() < 1e-4
        cells = jnp.argmin(apart.sum(axis=0), axis=-1)
        assert jnp.take_along_axis(apart, cells[None, ..., None], axis=-1).max() < 1e-4
        taken[layer] = np.asarray(cells)
    np.testing.assert_array_equal(taken["stem"], taken["block1"])  # grids of one size
    assert len(np.unique(taken["stem"], axis=0)) > N / 2


def test_classes_are_those_of_the_images():
    found = seeds.classes(TASK, KEY, N)
    np.testing.assert_array_equal(found, jnp.concatenate([seeds.image_batch(TASK, KEY, i)[1] for i in range(2)])[:N])
    images = seeds.images(TASK, KEY, (seeds.BATCH + 7, 7, 7))
    assert list(images) == [7, seeds.BATCH + 7]
    np.testing.assert_array_equal(images[seeds.BATCH + 7], seeds.image_batch(TASK, KEY, 1)[0][7])
    assert np.abs(images[7] - images[seeds.BATCH + 7]).max() > 0.01  # batches differ


@pytest.mark.slow
def test_networks_of_several_seeds_learn():
    train = seeds.trainer(MODEL, EASY, steps=150, batch_size=32, learning_rate=5e-3, n_test=400)
    keys = jax.random.split(jax.random.key(1), 2)
    found = sp.sweep(train, {}, keys, data_key=jax.random.key(2)).load()
    assert found["accuracy"].shape == (2,)
    assert (found["accuracy"] > 0.5 + 4 * (0.25 / 400) ** 0.5).all()  # chance, and four standard errors of it
    first, second = (jax.tree.map(lambda leaf: leaf[i], found["params"]) for i in range(2))  # noqa: B023
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)) > 0.01


def test_sets_name_what_a_class_is_made_of():
    task = networks.ShapesAndTextures()
    labels = np.arange(task.n_classes)
    sets = task.sets(labels)
    for i in labels:
        shape, texture = (sets[name][1][sets[name][0][i]] for name in ("shape", "texture"))
        assert sets["class"][1][i] == f"{shape}, {texture}"

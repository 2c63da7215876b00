import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import networks

TASK = networks.ShapesAndTextures(size=16)
NETS = {
    "cnn": networks.CNN(TASK.n_classes, widths=(8, 12)),
    "vit": networks.ViT(TASK.n_classes, patch=4, width=8, depth=2, heads=2),
}
SHALLOW = {  # their training is compiled faster
    "cnn": networks.CNN(TASK.n_classes, widths=(8,)),
    "vit": networks.ViT(TASK.n_classes, patch=8, width=8, depth=1, heads=2),
}
each = pytest.mark.parametrize("name", NETS)
SHAPES = {
    "cnn": {"stem": (8, 8, 8), "block1": (8, 8, 8), "block2": (4, 4, 12)},
    "vit": {"block1.mlp": (4, 4, 16), "block1": (4, 4, 8), "block2.mlp": (4, 4, 16), "block2": (4, 4, 8)},
}


SAMPLE = jax.jit(TASK.sample, static_argnums=1)  # one program is compiled faster than its steps one by one


def classifier(name):
    return networks.Classifier(NETS[name], (16, 16, 3))


@functools.cache
def params_of(name):
    return jax.jit(classifier(name).init)(jax.random.key(0))


@functools.cache
def looking(name):
    return jax.jit(classifier(name).activations)


def start(net, shape=(32, 32, 3)):
    return networks.Classifier(net, shape).init(jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return SAMPLE(jax.random.key(3), 20)[0][:4]


def test_images_are_in_range_and_differ():
    images, labels = SAMPLE(jax.random.key(0), 300)
    assert images.shape == (300, 16, 16, 3)
    assert images.dtype == jnp.float32
    assert labels.dtype == jnp.int32
    assert 0 <= images.min() < images.max() <= 1
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300
    assert len(TASK.classes) == len(set(TASK.classes)) == TASK.n_classes == 15


def test_classes_are_balanced_and_nuisances_tell_nothing_of_them():
    factors = jax.device_get(jax.jit(lambda key: TASK.sample_factors(key, 30_000))(jax.random.key(1)))
    label = factors["shape"] * len(TASK.textures) + factors["texture"]
    counts = np.bincount(label, minlength=15)
    assert ((counts - 2000) ** 2 / 2000).sum() < 36.1  # the 0.1 % tail of chi-square with 14 degrees of freedom
    for name in ("radius", "rotation", "direction", "wavelength", "contrast"):
        means = [factors[name][label == i].mean() for i in range(15)]
        assert np.std(means) < 2 * np.std(factors[name]) / 2000**0.5


@pytest.mark.slow
def test_sampling_is_render_of_factors_and_is_pure():
    key = jax.random.key(7)
    images, labels = SAMPLE(key, 20)
    factors_key, render_key = jax.random.split(key)
    again = jax.jit(TASK.render)(render_key, jax.jit(lambda key: TASK.sample_factors(key, 20))(factors_key))
    np.testing.assert_allclose(again, images, atol=1e-5)
    several, several_labels = jax.jit(jax.vmap(lambda key: TASK.sample(key, 20)))(jnp.stack([jax.random.key(8), key]))
    np.testing.assert_allclose(several[1], images, atol=1e-5)
    np.testing.assert_array_equal(several_labels[1], labels)


def test_what_is_drawn_is_what_the_factors_say():
    """A shape without texture, clutter and noise has the area and the centre that geometry gives, in its colour."""
    task = networks.ShapesAndTextures(64, textures=("plain",), noise=0, clutter=0)
    factors = jax.jit(lambda key: task.sample_factors(key, 50))(jax.random.key(2))
    images = jax.jit(task.render)(jax.random.key(0), factors)
    # In multiples of the squared radius.
    areas = {
        "disc": np.pi * 0.85**2,
        "square": 1.42**2,
        "triangle": 3 * 3**0.5 * 0.5**2,
        "ring": np.pi * (1 - 0.5**2),
        "cross": 2 * 1.9 * 0.6 - 0.6**2,
    }
    axis = (2 * np.arange(64) + 1) / 64 - 1
    for i in range(50):
        ground, color = np.asarray(factors["ground"][i]), np.asarray(factors["color"][i])
        inside = (images[i] - ground) @ (color - ground) / ((color - ground) ** 2).sum()
        radius, name = float(factors["radius"][i]), task.shapes[int(factors["shape"][i])]
        assert inside.sum() * (2 / 64) ** 2 == pytest.approx(areas[name] * radius**2, rel=0.03)
        centre = [(inside.sum(axis=1 - j) * axis).sum() / inside.sum() for j in range(2)]
        np.testing.assert_allclose(centre, factors["place"][i], atol=0.02)


@pytest.mark.parametrize(("texture", "expected"), [("stripes", 1), ("checks", 2)])
def test_a_texture_is_as_many_waves_as_its_name_says(texture, expected):
    """The spectrum of a texture that fills the image: peaks at one wavelength, each with its mirror image."""
    task = networks.ShapesAndTextures(64, ("disc", "square"), (texture,), noise=0, clutter=0, contrast=0.1)
    factors = jax.jit(lambda key: task.sample_factors(key, 8))(jax.random.key(0))
    fill = {"radius": jnp.full(8, 9.0), "place": jnp.zeros((8, 2)), "color": jnp.full((8, 3), 0.5)}
    fill |= {"wavelength": jnp.full(8, 8.0), "direction": jnp.zeros(8), "contrast": jnp.full(8, 0.1)}
    images = jax.jit(task.render)(jax.random.key(1), {**factors, **fill})[..., 0]
    assert images.std(axis=(1, 2)) == pytest.approx(0.1, rel=1e-3)
    power = np.abs(np.fft.fft2(images - 0.5)) ** 2
    assert (np.sum(power > 1e-3 * power.max(axis=(1, 2), keepdims=True), axis=(1, 2)) == 2 * expected).all()
    assert power[:, 8, 0] == pytest.approx(power.max(axis=(1, 2)), rel=1e-3)  # 64 pixels / 8 downwards


def test_numeric_fields_are_traced_and_mapped():
    def spread(noise):
        task = dataclasses.replace(TASK, noise=noise, clutter=0.0)
        return task.sample(jax.random.key(0), 10)[0]

    noisy = jax.jit(jax.vmap(spread))(jnp.array([0.0, 0.02]))
    np.testing.assert_allclose(noisy[0], jax.jit(spread)(0.0), atol=1e-5)
    assert jnp.std(noisy[1] - noisy[0]) == pytest.approx(0.02, rel=0.05)


@each
def test_shapes_at_every_layer(name, images):
    model, params = classifier(name), params_of(name)
    found = looking(name)(params, images)
    assert {layer: values.shape[1:] for layer, values in found.items()} == SHAPES[name]
    assert model.layers == tuple(SHAPES[name])
    assert list(model.activations(params, images, ["block2"])) == ["block2"]
    assert model.logits(params, images).shape == (4, 15)
    if name == "cnn":
        assert all((values >= 0).all() and (values > 0).any() for values in found.values())


@each
def test_images_do_not_know_of_each_other(name, images):
    params = params_of(name)
    others = looking(name)(params, images.at[:2].set(0.5).at[3].set(0.1))
    for layer, values in looking(name)(params, images).items():
        np.testing.assert_array_equal(values[2], others[layer][2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_one_seed_alone_equals_the_same_among_others(name):
    model, data_key = networks.Classifier(SHALLOW[name], (16, 16, 3)), jax.random.key(5)
    keys = jax.random.split(jax.random.key(0), 3)

    def run(key):
        return sp.fit(model, key, TASK.sample, data_key=data_key, steps=5, batch_size=8)

    params, history = jax.jit(jax.vmap(run))(keys)
    single = jax.jit(run)
    alone, alone_history = single(keys[1])
    again, _ = single(keys[1])
    jax.tree.map(np.testing.assert_array_equal, alone, again)
    np.testing.assert_allclose(history["loss"][1], alone_history["loss"], rtol=1e-5)
    assert set(history) == {"loss", "accuracy"}
    logits = jax.jit(lambda params: model.logits(params, TASK.sample(data_key, 8)[0]))
    np.testing.assert_allclose(logits(jax.tree.map(lambda x: x[1], params)), logits(alone), atol=1e-4)
    assert np.abs(history["loss"][1] - history["loss"][0]).max() > 1e-3


@pytest.mark.slow
def test_it_learns_and_reports_its_accuracy():
    task = networks.ShapesAndTextures(16, ("disc",), ("plain", "stripes"), noise=0.0, clutter=0.0)
    model = networks.Classifier(networks.CNN(2, widths=(8,)), (16, 16, 3))
    run = jax.jit(lambda key: sp.fit(model, key, task.sample, steps=150, batch_size=32))
    params, history = run(jax.random.key(0))
    images, labels = jax.jit(lambda key: task.sample(key, 200))(jax.random.key(9))
    accuracy = jax.jit(model.accuracy)(params, images, labels)
    assert accuracy > 0.5 + 4 * (0.25 / 200) ** 0.5  # chance, and four standard errors of it
    assert accuracy == np.mean(np.argmax(jax.jit(model.logits)(params, images), axis=1) == labels)
    assert history["accuracy"][-20:].mean() > history["accuracy"][:20].mean() + 0.1


def test_the_convolution_is_that_of_xla():
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    for stride in (1, 2):
        layer = networks.models._Convolution(5, stride)
        params = layer.init(jax.random.key(1), images)
        kernel = jax.tree.leaves(params)[0].reshape(3, 3, 3, 5)
        expected = jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(layer.apply(params, images), expected, atol=1e-5)


def test_activations_of_the_cnn_move_with_the_image():
    """A pattern amid grey moves by four pixels: activations of the first block move by two, where the edge is out of reach."""
    model = networks.Classifier(networks.CNN(2, widths=(8,)), (40, 40, 3))
    params = model.init(jax.random.key(0))
    pattern = jax.random.uniform(jax.random.key(1), (8, 8, 3))
    still, moved = (jnp.full((40, 40, 3), 0.5).at[at : at + 8, at : at + 8].set(pattern) for at in (14, 18))
    found = model.activations(params, jnp.stack([still, moved]))
    for values in found.values():
        np.testing.assert_allclose(values[0, 4:14, 4:14], values[1, 6:16, 6:16], atol=1e-5)
        assert jnp.std(values[0, 4:14, 4:14]) > 0.1


def test_the_vit_without_positions_permutes_with_its_patches(images):
    model, params = classifier("vit"), params_of("vit")
    blind = {**params, "positions": jnp.zeros_like(params["positions"])}
    order = np.random.default_rng(0).permutation(16)

    def permute(x, patch):
        cells = x.reshape(4, 4, patch, 4, patch, -1).swapaxes(2, 3).reshape(4, 16, patch, patch, -1)[:, order]
        return cells.reshape(4, 4, 4, patch, patch, -1).swapaxes(2, 3).reshape(x.shape)

    shuffled = permute(images, 4)
    moved = looking("vit")(blind, shuffled)
    for layer, values in looking("vit")(blind, images).items():
        np.testing.assert_allclose(moved[layer], permute(values, 1), atol=1e-5)
    np.testing.assert_allclose(model.logits(blind, shuffled), model.logits(blind, images), atol=1e-5)
    assert np.abs(model.logits(params, shuffled) - model.logits(params, images)).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: networks.ShapesAndTextures(4), "size must be at least 8 pixels, got 4"),
        (lambda: networks.ShapesAndTextures(shapes=("disk",)), "shapes takes .* disc, square, .* got \\('disk',\\)"),
        (lambda: networks.ShapesAndTextures(textures="plain"), "textures takes a tuple"),
        (lambda: networks.ShapesAndTextures(shapes=("disc",), textures=("plain",)), "at least two classes"),
        (lambda: networks.ShapesAndTextures(noise=-1.0), "noise must be at least 0, got -1"),
        (lambda: start(networks.ViT(2), (30, 32, 3)), "patch must divide .* 30 and 32, got 8"),
        (lambda: start(networks.ViT(2, width=9, heads=2)), "heads must divide the width, 9, got 2"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_and_images_that_are_not_there(images):
    model, params = classifier("vit"), params_of("vit")
    with pytest.raises(ValueError, match=r"got 'block1\.mpl'; near it: block1\.mlp"):
        model.activations(params, images, ["block1", "block1.mpl"])
    with pytest.raises(ValueError, match=r"got 'xyz'; there are: block1.mlp, block1"):
        model.activations(params, images, ["xyz"])
    with pytest.raises(ValueError, match=r"images must be \(n, 16, 16, 3\), got \(4, 16, 8, 3\)"):
        model.logits(params, images[:, :, :8])


def test_superpos_loads_without_flax():
    code = "import sys, superpos; assert 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

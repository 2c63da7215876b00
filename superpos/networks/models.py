"""A small residual CNN and a small vision transformer, and the classifier that `sp.fit` trains."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

STATIC = {"static": True}


class CNN(nn.Module):
    """A residual CNN: a convolution at half the resolution, then one block of two 3 × 3 convolutions a width.

    Each block but the first halves the resolution. Group normalisation, so that no image knows of another. All layers are
    rectified: "stem", "block1", "block2", ..., each `(n, height, width, channels)`.

    Source: He et al. 2016, arXiv 1512.03385, with the normalisation of Wu & He 2018, arXiv 1803.08494.

    Attributes:
        n_classes: number of classes.
        widths: channels of each block; the stem has those of the first.

    >>> CNN(n_classes=10, widths=(16, 32)).layers
    ('stem', 'block1', 'block2')
    """

    n_classes: int
    widths: tuple[int, ...] = (16, 32, 64)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order of depth."""
        return ("stem", *(f"block{i + 1}" for i in range(len(self.widths))))

    @nn.compact
    def __call__(self, images: Float[Array, "n height width channels"]) -> tuple[Array, dict[str, Array]]:
        """Images in 0 to 1 to logits `(n, n_classes)`, and the activations of each layer."""
        x = nn.relu(_normalized(_Convolution(self.widths[0], 2)(2 * images - 1)))
        activations = {"stem": x}
        for i, width in enumerate(self.widths):
            stride = 1 if i == 0 else 2
            y = nn.relu(_normalized(_Convolution(width, stride)(x)))
            y = _normalized(_Convolution(width)(y))
            if y.shape != x.shape:
                x = _normalized(nn.Dense(width, use_bias=False)(x[:, ::stride, ::stride]))
            x = activations[f"block{i + 1}"] = nn.relu(x + y)
        return nn.Dense(self.n_classes)(x.mean(axis=(1, 2))), activations


class ViT(nn.Module):
    """A vision transformer: patches are tokens, normalised before attention and MLP, and averaged at the end.

    Two layers a block, each on the grid of patches, `(n, rows, columns, channels)`: "block1.mlp", the hidden units of its MLP
    after their GELU, and "block1", the residual stream after it. The stream has no preferred axes: nothing in the network
    tells its units from a rotation of them, but for the weights of layer normalisation.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; averaged tokens, and sines and cosines that the embedding of positions
    starts from, as in Beyer et al. 2022, arXiv 2205.01580.

    Attributes:
        n_classes: number of classes.
        patch: height and width of a patch, pixels. Halving it costs four times as much.
        width: channels of the residual stream.
        depth: number of blocks.
        heads: of attention; they divide the width.
        expansion: hidden units of an MLP, as a multiple of the width.

    Raises (when called):
        ValueError: images that are no whole number of patches, or heads that do not divide the width.

    >>> ViT(n_classes=10, depth=1).layers
    ('block1.mlp', 'block1')
    """

    n_classes: int
    patch: int = 8
    width: int = 64
    depth: int = 4
    heads: int = 4
    expansion: int = 2

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order of depth."""
        return tuple(f"block{i + 1}{part}" for i in range(self.depth) for part in (".mlp", ""))

    @nn.compact
    def __call__(self, images: Float[Array, "n height width channels"]) -> tuple[Array, dict[str, Array]]:
        """Images in 0 to 1 to logits `(n, n_classes)`, and the activations of each layer."""
        n, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch must divide the images' height and width, {height} and {width}, got {self.patch}.")
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width, {self.width}, got {self.heads}.")
        rows, columns = height // self.patch, width // self.patch
        patches = (2 * images - 1).reshape(n, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        x = nn.Dense(self.width)(patches.reshape(n, rows * columns, -1))
        x = x + self.param("positions", lambda key: _grid_waves(rows, columns, self.width))
        activations = {}
        for i in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(self.expansion * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
            for name, tokens in ((f"block{i + 1}.mlp", hidden), (f"block{i + 1}", x)):
                activations[name] = tokens.reshape(n, rows, columns, -1)
        return nn.Dense(self.n_classes)(nn.LayerNorm()(x).mean(axis=1)), activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network that learns to tell the classes of images: what `sp.fit` trains, on batches `(images, labels)`.

    Attributes:
        net: a Flax module, hashable: `CNN`, `ViT`, or one that has `layers` and returns logits and a dictionary of activations
            as they do; static.
        shape: of an image, (height, width, channels); static.

    Params: those of the Flax module.

    >>> from superpos import networks
    >>> task = networks.ShapesAndTextures()
    >>> classifier = networks.Classifier(networks.CNN(task.n_classes))
    >>> classifier.layers
    ('stem', 'block1', 'block2', 'block3')
    """

    net: Any = dataclasses.field(metadata=STATIC)
    shape: tuple[int, int, int] = dataclasses.field(default=(32, 32, 3), metadata=STATIC)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order of depth."""
        return self.net.layers

    def init(self, key: Key[Array, ""]) -> Any:
        """Parameters to start from."""
        return self.net.init(key, jnp.zeros((1, *self.shape)))["params"]

    def loss(
        self, params: Any, batch: tuple[Array, Array], *, key: Array | None = None, step: ArrayLike = 0
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The mean cross-entropy of a batch in nats, and its `accuracy`."""
        del key, step
        images, labels = batch
        logits = self.logits(params, images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, {"accuracy": (logits.argmax(axis=-1) == labels).mean()}

    def logits(self, params: Any, images: Float[Array, "n height width channels"]) -> Float[Array, "n classes"]:
        """Log-odds of each class, up to a constant.

        Raises:
            ValueError: images of another shape.
        """
        return self._apply(params, images)[0]

    def accuracy(
        self, params: Any, images: Float[Array, "n height width channels"], labels: Int[Array, " n"]
    ) -> Float[Array, ""]:
        """Share of images whose class has the largest logit.

        Raises:
            ValueError: images of another shape.
        """
        return (self.logits(params, images).argmax(axis=-1) == labels).mean()

    def activations(
        self, params: Any, images: Float[Array, "n height width channels"], layers: Iterable[str] | None = None
    ) -> dict[str, Float[Array, "n ..."]]:
        """What layers pass on, `(n, rows, columns, channels)` each, by name; of all layers by default.

        Raises:
            ValueError: an unknown layer, or images of another shape.
        """
        names = self.layers if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
        for name in names:
            if name not in self.layers:
                near = difflib.get_close_matches(name, self.layers, n=3, cutoff=0.4)
                hint = f"near it: {', '.join(near)}" if near else f"there are: {', '.join(self.layers)}"
                raise ValueError(f"layers must be layers of the network, got {name!r}; {hint}.")
        activations = self._apply(params, images)[1]
        return {name: activations[name] for name in names}

    def _apply(self, params: Any, images: Array) -> tuple[Array, dict[str, Array]]:
        if jnp.shape(images)[1:] != self.shape:
            raise ValueError(f"images must be (n, {', '.join(map(str, self.shape))}), got {jnp.shape(images)}.")
        return self.net.apply({"params": params}, images)


class _Convolution(nn.Module):
    """A 3 × 3 convolution without bias, zeros around the image: one matmul with the nine shifted images side by side.

    In a compiled loop on CPU ten times faster than XLA's convolution, alone and mapped over weights, where that is grouped.
    """

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        padded, stride = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), self.stride
        shifted = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
        return nn.Dense(self.width, use_bias=False)(jnp.concatenate(shifted, axis=-1))


def _normalized(x: Array) -> Array:
    return nn.GroupNorm(num_groups=math.gcd(8, x.shape[-1]))(x)


def _grid_waves(rows: int, columns: int, width: int) -> Array:
    """Sines and cosines of each patch's row and column, `(rows * columns, width)`."""
    row, column = (axis.reshape(-1, 1) for axis in jnp.indices((rows, columns)))
    rate = 10_000.0 ** -jnp.linspace(0, 1, -(-width // 4))
    waves = [wave(axis * rate) for axis in (row, column) for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate(waves, axis=-1)[:, :width]

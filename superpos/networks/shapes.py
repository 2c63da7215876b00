"""Images that are made inside the program from a key: a textured shape on a cluttered ground, its class to be told."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

STATIC = {"static": True}

SHAPES = ("disc", "square", "triangle", "ring", "cross")
TEXTURES = ("plain", "stripes", "checks", "noise")

# A texture is a sum of this many plane waves of one wavelength and contrast, in evenly spaced directions.
_WAVES = 8
_N_WAVES = {"plain": 0, "stripes": 1, "checks": 2, "noise": _WAVES}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShapesAndTextures:
    """Coloured images of one shape, filled with one texture: every pair of the two is a class.

    Place, size, rotation (by up to 0.4 radians), both colours, contrast of the texture, its wavelength, direction and phase
    vary between images and tell nothing of the class. The ground is filled with random waves, and noise is added to every
    pixel.

    Attributes:
        size: height and width, pixels; static.
        shapes: which there are, of `SHAPES`; static.
        textures: which there are, of `TEXTURES`; static. Class = shape * number of textures + texture. "noise" is hard to tell
            from the others, and needs more training than the default three.
        noise: standard deviation of the noise of pixels, which are 0 to 1.
        clutter: standard deviation of the pattern of the ground.
        contrast: of the texture, standard deviation: each image has between half of it and all of it.

    Raises:
        ValueError: a size below 8, an unknown name, fewer than two classes, or a negative number.

    >>> images, labels = ShapesAndTextures().sample(jax.random.key(0), 10)
    >>> images.shape, labels.shape
    ((10, 32, 32, 3), (10,))
    """

    size: int = dataclasses.field(default=32, metadata=STATIC)
    shapes: tuple[str, ...] = dataclasses.field(default=SHAPES, metadata=STATIC)
    textures: tuple[str, ...] = dataclasses.field(default=("plain", "stripes", "checks"), metadata=STATIC)
    noise: ArrayLike = 0.05
    clutter: ArrayLike = 0.05
    contrast: ArrayLike = 0.25

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ValueError(f"size must be at least 8 pixels, got {self.size}.")
        for name, known in (("shapes", SHAPES), ("textures", TEXTURES)):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not given or not set(given) <= set(known) or len(set(given)) < len(given):
                raise ValueError(f"{name} takes a tuple of different names out of {', '.join(known)}, got {given!r}.")
        if self.n_classes < 2:
            raise ValueError(f"shapes and textures must make at least two classes, got {self.shapes} and {self.textures}.")
        for name in ("noise", "clutter", "contrast"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value >= 0:  # traced ones cannot be checked
                raise ValueError(f"{name} must be at least 0, got {value}.")

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.shapes) * len(self.textures)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, such as "disc, stripes"."""
        return tuple(f"{shape}, {texture}" for shape in self.shapes for texture in self.textures)

    def sets(self, labels: Any) -> dict[str, tuple[Any, tuple[str, ...]]]:
        """The sets that classes `(n,)` belong to, `class`, `shape` and `texture`: the category of each, and the names of all.

        >>> ShapesAndTextures().sets(np.array([0, 4]))["texture"]
        (array([0, 1]), ('plain', 'stripes', 'checks'))
        """
        n = len(self.textures)
        return {"class": (labels, self.classes), "shape": (labels // n, self.shapes), "texture": (labels % n, self.textures)}

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n size size 3"], Int[Array, " n"]]:
        """Draws `n` images, float32 in 0 to 1, and their classes, int32; all classes are equally likely."""
        factors_key, render_key = jax.random.split(key)
        factors = self.sample_factors(factors_key, n)
        return self.render(render_key, factors), factors["shape"] * len(self.textures) + factors["texture"]

    def sample_factors(self, key: Key[Array, ""], n: int) -> dict[str, Array]:
        """Draws what makes `n` images: a dictionary of the ground truth.

        Returns:
            `shape` and `texture`, positions in the lists; `place` `(n, 2)` of the centre, down and right, where the image
            is -1 to 1; `radius` in the same units; `rotation` and `direction` of the texture, radians; `wavelength` of the
            texture, pixels; `color` and `ground` `(n, 3)`; `contrast` of the texture. `(n,)` where nothing is said.
        """
        keys = iter(jax.random.split(key, 10))

        def uniform(low: float, high: float, *shape: int) -> Array:
            return jax.random.uniform(next(keys), (n, *shape), minval=low, maxval=high)

        radius = uniform(0.5, 0.85)
        return {
            "shape": jax.random.randint(next(keys), (n,), 0, len(self.shapes)),
            "texture": jax.random.randint(next(keys), (n,), 0, len(self.textures)),
            "radius": radius,
            "place": uniform(-1, 1, 2) * (1 - radius[:, None]),  # the whole shape is in view
            "rotation": uniform(-0.4, 0.4),
            "direction": uniform(0, 2 * np.pi),
            "wavelength": uniform(5, 9),
            "color": uniform(0.1, 0.9, 3),
            "ground": uniform(0.1, 0.9, 3),
            "contrast": uniform(0.5, 1) * self.contrast,
        }

    def render(self, key: Key[Array, ""], factors: dict[str, Array]) -> Float[Array, "n size size 3"]:
        """The images of ground-truth factors; the key draws phases, the pattern of the ground, and noise."""
        n = len(factors["shape"])
        phase_key, angle_key, ground_key, noise_key = jax.random.split(key, 4)
        axis = (2 * jnp.arange(self.size) + 1) / self.size - 1
        # Coordinates within the shape: its radius is 1.
        down, right = (
            (axis - place[:, None]) / factors["radius"][:, None] for place in (factors["place"][:, 0], factors["place"][:, 1])
        )
        cos, sin = (turn(factors["rotation"])[:, None, None] for turn in (jnp.cos, jnp.sin))
        u = cos * down[:, :, None] + sin * right[:, None, :]
        v = cos * right[:, None, :] - sin * down[:, :, None]
        depths = [_DEPTHS[name](u, v) for name in self.shapes]
        depth = sum(jnp.where(factors["shape"][:, None, None] == i, inner, 0.0) for i, inner in enumerate(depths))
        inside = jnp.clip(0.5 + depth * factors["radius"][:, None, None] * self.size / 2, 0, 1)  # edges one pixel wide

        directions = np.zeros((len(self.textures), _WAVES), np.float32)
        weights = np.zeros_like(directions)
        for i, name in enumerate(self.textures):
            used = _N_WAVES[name]
            if used:
                directions[i, :used] = np.pi * np.arange(used) / used
                weights[i, :used] = (2 / used) ** 0.5
        angle = jnp.asarray(directions)[factors["texture"]] + factors["direction"][:, None]
        texture = self._waves(phase_key, angle, factors["wavelength"], jnp.asarray(weights)[factors["texture"]])
        ground_angle = jax.random.uniform(angle_key, (n, _WAVES), maxval=2 * np.pi)
        ground = self._waves(ground_key, ground_angle, factors["wavelength"], jnp.full((n, _WAVES), (2 / _WAVES) ** 0.5))

        shaded = factors["color"][:, None, None] + (factors["contrast"][:, None, None] * texture)[..., None]
        around = factors["ground"][:, None, None] + self.clutter * ground[..., None]
        images = around + inside[..., None] * (shaded - around)
        noise = self.noise * jax.random.normal(noise_key, images.shape)
        return jnp.clip(images + noise, 0, 1).astype(jnp.float32)

    def _waves(self, key: Array, angle: Array, wavelength: Array, weights: Array) -> Array:
        """Sums of plane waves of random phases, `(n, size, size)`."""
        pixels = jnp.arange(self.size) * (2 * np.pi / wavelength)[:, None]
        down = jnp.cos(angle)[:, :, None] * pixels[:, None] + jax.random.uniform(key, angle.shape, maxval=2 * np.pi)[..., None]
        right = jnp.sin(angle)[:, :, None] * pixels[:, None]
        # cos(a + b) is separable: no cosine of every pixel.
        pairs = jnp.stack([jnp.cos(down), -jnp.sin(down)]), jnp.stack([jnp.cos(right), jnp.sin(right)])
        return jnp.einsum("pnwi,pnwj,nw->nij", *pairs, weights)


# How far inside of each shape a point is, where the shape just fits into a circle of radius 1. Negative outside.
_DEPTHS = {
    "disc": lambda u, v: 0.85 - jnp.hypot(u, v),
    "square": lambda u, v: 0.71 - jnp.maximum(jnp.abs(u), jnp.abs(v)),
    "triangle": lambda u, v: 0.5 - jnp.maximum(v, jnp.abs(u) * 0.75**0.5 - v / 2),
    "ring": lambda u, v: 0.25 - jnp.abs(jnp.hypot(u, v) - 0.75),
    "cross": lambda u, v: jnp.minimum(0.3 - jnp.minimum(jnp.abs(u), jnp.abs(v)), 0.95 - jnp.maximum(jnp.abs(u), jnp.abs(v))),
}

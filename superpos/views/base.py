"""What all views share: one interface, and fits that are shared."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

Params = Any
# `draw(key, n)` gives n samples `(n, units)`. A finite source has a length too, and `draw(None, None)` gives its rows in order.
Draw = Callable[[Any, int | None], Float[Array, "n units"]]
STATIC = {"static": True}  # fields that set shapes or branches, and so cannot be traced


SAMPLES = 16_384  # on which views are fitted that are not trained, where a source has no end


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of an array as a source of samples: `draw(key, n)` takes n of them with replacement.

    It has a length, as every finite source. The same key takes the same rows of two arrays. One is equal to itself only.

    >>> Rows(jnp.eye(3))(jax.random.key(0), 5).shape, Rows(jnp.eye(3))(None, None).shape
    ((5, 3), (3, 3))
    """

    array: Float[Array, "rows units"] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.array)

    def __call__(self, key: Any, n: int | None) -> Float[Array, "n units"]:
        """n rows, or every row in order."""
        if n is None:
            return jnp.asarray(self.array)
        return jnp.asarray(self.array)[jax.random.randint(key, (n,), 0, len(self.array))]


class View:
    """One way to read a representation: fitted on samples that are not scored, applied to those that are, row by row.

    A view is a frozen dataclass, registered with JAX. It defines `apply`, and `_fit` where there is something to fit. All is
    pure: `jit` it, and `vmap` it over keys and over sides. A view that reads the fit of another names it in a field `of`; its
    params are then `{"base": params of that view, "own": its own}`. A sample that holds NaN is read as NaN.

    Attributes:
        of: the view whose fit this one shares, or None.
        fits: whether the view itself learns anything from samples; the view that it is of answers for its own fit.
        costly: whether reading takes so long that no other view should wait for it: it then has programs of its own.
        label, colour, marker: how figures show it.
    """

    of: "View | None" = None
    fits: ClassVar[bool] = True
    costly: ClassVar[bool] = False
    label: ClassVar[str] = ""
    colour: ClassVar[str] = "#777777"
    marker: ClassVar[str] = "o"

    # The interface.

    @property
    def random(self) -> bool:
        """Whether two keys give two fits of a finite source. Views that are not random are fitted once for all seeds."""
        return self.of is not None and self.of.random

    def fit(
        self,
        key: Key[Array, ""],
        draw: Draw,
        n_units: int | None = None,
        *,
        base: Params = None,
        data_key: Key[Array, ""] | None = None,
    ) -> Params:
        """Fits the view to one side.

        Args:
            key: of everything that is drawn; under `vmap` each seed has its own.
            draw: `draw(key, n)` gives samples `(n, n_units)`. A finite source, such as `Rows`, has a length too, and
                `draw(None, None)` gives its rows in order. Views that are not random read these, and no key.
            n_units: of the side; by default taken from `draw`.
            base: params of the view `of`, where that is fitted already.
            data_key: draws the batches of a view that is trained; left unbatched under `vmap`, all seeds see the same ones.

        Returns:
            A pytree of arrays, for `encode`.

        Raises:
            ValueError: settings that do not fit the number of units.
        """
        n_units = width(draw) if n_units is None else n_units
        self.check(n_units, length(draw))
        if self.of is None:
            return self._fit(key, draw, n_units, None, data_key)
        base = self.of.fit(key, draw, n_units, data_key=data_key) if base is None else base
        return {"base": base, "own": self._fit(key, draw, n_units, base, data_key)}

    def encode(self, params: Params, x: Float[Array, "n units"]) -> Float[Array, "n k"]:
        """What the view reads in samples, row by row: `(n, k)`, where k follows from the settings and the number of units."""
        return self.apply(self.weights(params), x)

    def describe(self, params: Params, x: Float[Array, "n units"]) -> dict[str, Array]:
        """What is worth knowing of a fit, on samples that it has not seen: scalars by name."""
        del params, x
        return {}

    def doubts(self, description: Mapping[str, ArrayLike]) -> list[str]:
        """What a description, of one fit or of several along an axis, gives reason to doubt: a sentence each; on the host."""
        del description
        return []

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError where the settings do not fit a side of so many units, or of so many samples to fit on."""
        if self.of is not None:
            self.of.check(n_units, n_samples)

    def prepare(self, draw: Draw) -> Self:
        """The view with what it must know of a side before programs are built, such as a number of active latents.

        It reads samples, on the host.
        """
        if self.of is None:
            return self
        of = self.of.prepare(draw)
        return self if of is self.of else dataclasses.replace(self, of=of)  # type: ignore[type-var]

    def size(self, n_units: int) -> int:
        """How many units the view gives of a side that has so many."""

        def read(key):
            params = self.fit(key, lambda _, n: jnp.zeros((n or 2, n_units)), n_units)
            return self.encode(params, jnp.zeros((1, n_units)))

        return jax.eval_shape(read, jax.random.key(0)).shape[1]

    # For views.

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del key, draw, n_units, base, data_key
        return {}

    def weights(self, params: Params) -> Params:
        """The part of the params that `apply` reads; of a view of another that other's, for one that learns nothing itself.

        Views with the same `apply` share one compiled program.
        """
        return params if self.of is None else self.of.weights(params["base"])

    def apply(self, weights: Params, x: Float[Array, "n units"]) -> Float[Array, "n k"]:
        """The reading itself."""
        raise NotImplementedError


def width(draw: Draw) -> int:
    """How many units the samples of a source have.

    Raises:
        ValueError: they are not an array `(n, units)`.
    """
    drawn = jax.eval_shape(lambda key: draw(key, 1), jax.random.key(0))
    if not hasattr(drawn, "shape") or len(drawn.shape) != 2:
        raise ValueError(f"draw must give samples (n, units), got {getattr(drawn, 'shape', type(drawn).__name__)}.")
    return drawn.shape[1]


def length(draw: Draw) -> int | None:
    """How many rows a source has; None for one without end."""
    return len(draw) if hasattr(draw, "__len__") else None


def which(draw: Draw, key: Any, data_key: Any = None, n: int = SAMPLES, *, every: bool = False) -> tuple[Any, int | None]:
    """What to ask a source for, to fit a view that is not trained: `draw(*which(...))`.

    Of a finite source all rows, or n of them where there are more, the same ones for every key; of another n samples, drawn
    by `data_key`, or by `key` where that is None. Two sources asked for the same give the same samples.

    Args:
        draw: the source.
        key, data_key: as in `View.fit`.
        n: samples.
        every: take all rows, however many there are.
    """
    rows = length(draw)
    if rows is None:
        return jax.random.fold_in(key, 1) if data_key is None else data_key, n
    return (None, None) if every or rows <= n else (jax.random.key(0), n)


def keep_nan(units: Float[Array, "n k"], x: Float[Array, "n units"]) -> Float[Array, "n k"]:
    """The units of samples, or NaN where a sample holds one: what is selected by size would turn it into 0."""
    return jnp.where(jnp.any(jnp.isnan(x), axis=1, keepdims=True), jnp.nan, units)


def explained(x: Float[Array, "n units"], reconstruction: Float[Array, "n units"]) -> Float[Array, ""]:
    """The share of the variance of samples that a reconstruction shows."""
    total = jnp.sum((x - jnp.mean(x, axis=0)) ** 2)
    return 1 - jnp.sum((x - reconstruction) ** 2) / jnp.where(total > 0, total, jnp.nan)


def split_signs(units: Float[Array, "n k"]) -> Float[Array, "n 2*k"]:
    """Each unit as two that are not negative: max(z, 0) of all, then max(-z, 0) of all."""
    return jnp.concatenate([jnp.maximum(units, 0), jnp.maximum(-units, 0)], axis=1)


def shared(views: Mapping[str, View]) -> dict[str, View]:
    """Every distinct view once, each after the one that it is of.

    A view that only others are `of`, and that has no name itself, is called "<name>.of".
    """
    order: dict[str, View] = {}

    def add(name: str, view: View) -> None:
        if view.of is not None and name_of(order, view.of) is None:
            named = [other for other, candidate in views.items() if candidate is view.of or candidate == view.of]
            add(named[0] if named else f"{name}.of", view.of)
        if name not in order:
            order[name] = view

    for name, view in views.items():
        add(name, view)
    return order


def prepare_all(views: Mapping[str, View], draw: Draw) -> dict[str, View]:
    """Every view with what it must know of a side before programs are built; on the host."""
    return {name: view.prepare(draw) for name, view in views.items()}


def name_of(views: Mapping[str, View], wanted: View) -> str | None:
    """Under which name a view stands, or one that is equal to it."""
    for name, view in views.items():
        if view is wanted or view == wanted:
            return name
    return None


def fit_all(
    views: Mapping[str, View],
    key: Key[Array, ""] | Mapping[str, Any],
    draw: Draw,
    n_units: int | None = None,
    *,
    data_key: Key[Array, ""] | Mapping[str, Any] | None = None,
) -> dict[str, Params]:
    """Fits every distinct view once: a view that several others are `of` is not fitted again.

    Args:
        views: by name.
        key: from which each view takes its own, by its name, so that a further view changes none of the others; or a key for
            each name.
        draw, n_units, data_key: as in `View.fit`; `data_key` may be one for each name too.

    Returns:
        What each view learned itself, by name, for `encode_all` and `params_of`. Nothing is in it twice.
    """
    order = shared(views)
    fits: dict[str, Params] = {}
    for name, view in order.items():
        own_key = key[name] if isinstance(key, Mapping) else jax.random.fold_in(key, _number(name))
        batches = data_key[name] if isinstance(data_key, Mapping) else data_key
        if batches is not None and not isinstance(data_key, Mapping):
            batches = jax.random.fold_in(batches, _number(name))
        base = None if view.of is None else params_of(order, fits, name_of(order, view.of))
        fitted = view.fit(own_key, draw, n_units, base=base, data_key=batches)
        fits[name] = fitted if view.of is None else fitted["own"]
    return fits


def params_of(views: Mapping[str, View], fits: Mapping[str, Params], name: str | None) -> Params:
    """The params of one view, out of what `fit_all` returned."""
    order = shared(views)
    view = order[name or ""]
    if view.of is None:
        return fits[name or ""]
    return {"base": params_of(order, fits, name_of(order, view.of)), "own": fits[name or ""]}


def encode_all(
    views: Mapping[str, View], fits: Mapping[str, Params], x: Float[Array, "n units"]
) -> dict[str, Float[Array, "n _"]]:
    """What each view reads in samples, by name."""
    return {name: view.encode(params_of(views, fits, name), x) for name, view in views.items()}


def _number(name: str) -> int:
    return zlib.crc32(name.encode())

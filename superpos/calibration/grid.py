"""The worlds that instruments are judged on: a designed sample of pairs of systems that differ in one thing at a time."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from superpos import arrangements, toy, training
from superpos.features import SparseFeatures
from superpos.worlds import Pair, World

N_FEATURES = 32
N_SAMPLES = 4096  # scored, and as many to fit on, unless a world has fewer
OVERLAPS = (0.0, 0.5, 1.0)
FINELY = (0.0, 0.25, 0.5, 0.75, 1.0)
TOY_STEPS = 2000
# How features lie in units, by name: see `arranged`.
ARRANGED = ("unit_norm", "tight", "monosemantic", "rotated", "antipodal", "recorded", "half", "quarter", "narrow", "toy")
# Families of the default grid: one for each cause, and those that are known to mislead cokurtosis.
DEFAULT = (
    *("monosemantic", "monosemantic, rotated", "superposed", "superposed, half as many units", "superposed, toy"),
    *(
        "superposed, p 0.2",
        "superposed, normed",
        "superposed, rectified",
        "superposed, common gain",
        "superposed, groups across",
    ),
    *("superposed, strong noise", "superposed, 640 samples"),
)
SETTINGS = tuple(
    field.name for field in dataclasses.fields(World) if not field.metadata.get("static") and field.name != "given"
)


class Spec(NamedTuple):
    """One world: what it is called, its shape, and how it differs from independent features in random directions.

    Attributes:
        family: worlds of one family differ in the overlap only.
        units: of the two systems.
        cause: what sets the family apart from the one that it is `of`: "basis", "number", "normalisation", "sparsity",
            "arrangement", "units", "features", "noise", "samples"; "" for a family that others are compared with.
        of: the family that it is compared with.
        settings: fields of `sp.worlds.World`, beside `arrangement`, a name out of `ARRANGED`, and `samples`, how many are
            scored and fitted on.
    """

    family: str
    units: tuple[int, int]
    cause: str
    of: str
    settings: Mapping[str, Any]


def worlds(grid: str = "default") -> list[Spec]:
    """The worlds of a grid: "default"; "full", all families at five overlaps, of 16 and of 32 units; or "small", for tests.

    Every family is made at overlaps of 0, ½ and 1; superposition, of two widths, at ¼ and ¾ too.

    Raises:
        ValueError: an unknown grid.

    >>> len(worlds()), len({spec.family for spec in worlds()}), len({spec.family for spec in worlds("full")})
    (40, 12, 100)
    """
    if grid not in ("default", "full", "small"):
        raise ValueError(f'grid must be "default", "full" or "small", got {grid!r}.')
    made: list[Spec] = []

    def family(name: str, n: int, cause: str = "", of: str = "", overlaps: Any = OVERLAPS, **own: Any) -> None:
        if grid == "default" and name not in DEFAULT:
            return
        overlaps = FINELY if grid == "full" and len(overlaps) > 1 else overlaps
        suffix = "" if n == 16 or grid == "small" else f" ({n} units)"
        made.extend(Spec(name + suffix, (n, n), cause, of and of + suffix, {**own, "overlap": overlap}) for overlap in overlaps)

    if grid == "small":
        family("8 units", 8)
        family("8 units, noise", 8, "noise", "8 units", noise=1.0)
        return made
    for n in (16, 32) if grid == "full" else (16,):
        _families(n, family)
    return made


def _families(n: int, family: Callable[..., None]) -> None:
    """All that there is of systems of n units."""

    def varied(cause: str, base: str, **families: Mapping[str, Any]) -> None:
        for name, own in families.items():
            family(f"{base}, {name.replace('_', ' ')}", n, cause, base, **own)

    alone, turned = {"arrangement": "monosemantic"}, {"arrangement": "rotated"}
    family("monosemantic", n, **alone)
    varied("normalisation", "monosemantic", scaled={**alone, "scales": 0.5}, normed={**alone, "layer_norm": True})
    varied("sparsity", "monosemantic", **{"p 0.2": {**alone, "probability": 0.2}})
    varied("basis", "monosemantic", rotated=turned)
    base = "monosemantic, rotated"
    varied("noise", base, noise={**turned, "noise": 1.0})
    varied("units", base, rectified={**turned, "rectified": True}, ill_conditioned={**turned, "condition": 10.0, "noise": 0.25})
    base = "superposed"
    family(base, n, overlaps=FINELY)
    varied("number", base, half_as_many_units={"arrangement": "half", "overlaps": FINELY})
    varied("number", base, half_on_one_side={"arrangement": "narrow"}, quarter_as_many_units={"arrangement": "quarter"})
    varied("arrangement", base, **{name: {"arrangement": name} for name in ("tight", "antipodal", "toy", "recorded")})
    varied("sparsity", base, **{f"p {p:g}": {"probability": p} for p in (0.02, 0.1, 0.2, 0.4)})
    varied("normalisation", base, scaled={"scales": 0.5}, normed={"layer_norm": True})
    varied(
        "units",
        base,
        rectified={"rectified": True},
        biased={"rectified": True, "threshold": 0.5},
        toy_rectified={"arrangement": "toy", "rectified": True},
        saturated={"saturation": 2.0},
    )
    varied(
        "features",
        base,
        unequal_norms={"norms": 0.5},
        power_law={"power": 1.0},
        common_gain={"gain": 0.5},
        common_density={"density": 0.7},
        groups={"group": 2},
        groups_across={"group": 2, "across": True},
        hierarchy={"hierarchy": 0.5},
        anchored={"anchored": 0.3},
        fixed_number={"exactly": 2},
        one_dense={"dense": 1},
        signed={"signed": True},
        conjunctions={"conjunctions": True, "probability": 0.2, "overlaps": (0.0,)},
    )
    varied(
        "noise",
        base,
        noise={"noise": 0.5},
        strong_noise={"noise": 1.0},
        heavy_noise={"noise": 1.0, "heavy": True},
        common_noise={"noise": 1.0, "noise_spread": 0.5},
        shared_drift={"drift": 0.5},
        outliers={"outliers": 0.01},
        counts={"counts": 2.0, "rectified": True},
    )
    varied("samples", base, **{f"{samples} samples": {"samples": samples} for samples in (640, 1200)})
    few = {"arrangement": "half"}
    base = f"{base}, half as many units"
    varied("units", base, rectified={**few, "rectified": True})
    varied("noise", base, noise={**few, "noise": 1.0})
    varied("sparsity", base, **{"p 0.2": {**few, "probability": 0.2}})


def rows(specs: Sequence[Spec]) -> np.ndarray:
    """Worlds of any shapes as numbers, `(n_worlds, fields)`, for programs that take them as arguments."""
    names = (*SETTINGS, "arrangement", "samples")  # and which draw: a family's own, whatever others there are
    defaults = {**{name: getattr(World(), name) for name in SETTINGS}, "arrangement": "unit_norm", "samples": N_SAMPLES}
    table = np.zeros((len(specs), len(names) + 1), np.float32)
    for i, spec in enumerate(specs):
        if unknown := set(spec.settings) - set(names):
            raise ValueError(f"worlds take the settings {', '.join(names)}, got {sorted(unknown)[0]!r}.")
        values = {**defaults, **spec.settings}
        values["arrangement"] = ARRANGED.index(values["arrangement"])
        draw = zlib.crc32(spec.family.encode()) % 2**24  # what float32 holds
        table[i] = [*(float(values[name]) for name in names), draw]
    return table


def arranged(
    key: Key[Array, ""], units: tuple[int, int], *, learned: bool = True
) -> list[Float[Array, "kinds features units"]]:
    """For each of two systems, how features can lie in its units, in the order of `ARRANGED`.

    Every system has 32 features. "monosemantic": every second feature has a unit, as far as they go, and the others none;
    "rotated": the same, turned: a basis, and no superposition. "half", "quarter": random directions in so many of the units,
    of which the others are silent; "narrow": so on the second side only. "recorded": the first units of an orthogonal system
    of as many units as features. "toy": what a toy model learns of features as sparse as these, or, where nothing is
    `learned`, random directions.
    """

    def side(place: int, own: Array) -> Array:
        size = units[place]
        square, turn = (arrangements.orthogonal(jax.random.fold_in(own, i), m) for i, m in ((1, N_FEATURES), (2, size)))
        digons = arrangements.antipodal if 2 * size >= N_FEATURES else arrangements.unit_norm  # more fit in no other way

        def within(n_units: int) -> Array:
            return jnp.pad(arrangements.unit_norm(own, N_FEATURES, n_units), ((0, 0), (0, size - n_units)))

        order = jnp.concatenate([jnp.arange(0, N_FEATURES, 2), jnp.arange(1, N_FEATURES, 2)])
        alone = jnp.zeros((N_FEATURES, size)).at[order[:size], jnp.arange(min(size, N_FEATURES))].set(1.0)
        alone = arrangements.permute_units(jax.random.fold_in(own, 3), alone)
        found = {
            "unit_norm": within(size),
            "tight": square[:, :size] * (N_FEATURES / size) ** 0.5,
            "monosemantic": alone,
            "rotated": alone @ turn,
            "antipodal": digons(own, N_FEATURES, size),
            "recorded": square[:, :size],
            "half": within(max(1, size // 2)),
            "quarter": within(max(1, size // 4)),
            "narrow": within(max(1, size // 2) if place else size),
            "toy": _learner(size)(own) if learned else within(size),
        }
        return jnp.stack([found[name] for name in ARRANGED])

    return [side(place, own) for place, own in enumerate(jax.random.split(jax.random.fold_in(key, 2)))]


@functools.cache
def _learner(size: int) -> Any:
    """Trains a toy model of so many units: a program for all keys."""
    learn = functools.partial(training.fit, toy.ToyModel(N_FEATURES, size), steps=TOY_STEPS, batch_size=256)
    return jax.jit(lambda key: learn(key, SparseFeatures(N_FEATURES, 0.05).sample, optimizer=optax.adam(3e-3))[0]["W"])


class Made(NamedTuple):
    """Two systems as instruments see them, and what is known of them.

    Attributes:
        x, y, x_train, y_train: units, scored and to fit on.
        folds: `(n,)`, of the scored samples; -1 for those that are left out.
        rolled: y of other samples: nothing is in common with x.
        pair, train: everything, with the features.
    """

    x: Float[Array, "n units_x"]
    y: Float[Array, "n units_y"]
    x_train: Float[Array, "n units_x"]
    y_train: Float[Array, "n units_y"]
    folds: Any
    rolled: Float[Array, "n units_y"]
    pair: Pair
    train: Pair


def make(
    row: Float[Array, " fields"], key: Key[Array, ""], given: Sequence[Array], n: int = N_SAMPLES, n_folds: int = 2
) -> Made:
    """One world out of its row: pure. Worlds of one family are the same draws at other overlaps; each family has its own.

    Args:
        row: of `rows`.
        key: of the worlds.
        given: of `arranged`.
        n, n_folds: static.
    """
    settings: dict[str, Any] = dict(zip((*SETTINGS, "arrangement", "samples", "draw"), row, strict=True))
    key = jax.random.fold_in(key, settings.pop("draw").astype(int))
    kind, n_here = (settings.pop(name).astype(int) for name in ("arrangement", "samples"))
    n_here = jnp.minimum(n_here, n)
    settings |= {name: settings[name].astype(int) for name in ("group", "exactly", "dense")}
    settings |= {name: settings[name] > 0 for name in ("across", "signed", "conjunctions", "rectified", "layer_norm", "heavy")}
    a, b = (arrangement[kind] for arrangement in given)
    both = World(N_FEATURES, (a.shape[1], b.shape[1]), given=(a, b), **settings).sample(key, 2 * n)
    place = jnp.arange(n)

    def part(start: int, index: Array) -> Pair:
        x, y, z, w = (value[start : start + n][index] for value in both[:4])
        return Pair(x, y, z, w, *both[4:])

    scored, train = part(0, place), part(n, place % n_here)  # where there are fewer, they come again
    folds = jnp.where(place < n_here, place % n_folds, -1)
    rolled = scored.y[jnp.where(place < n_here, (place + n_here // 2) % n_here, place)]
    return Made(scored.x, scored.y, train.x, train.y, folds, rolled, scored, train)

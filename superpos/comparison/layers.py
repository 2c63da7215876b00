"""Layers of networks as the sides of a comparison: from files, and of seeds."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from superpos import brain, views
from superpos.activations import Side, superposed
from superpos.features import SparseFeatures


class Layers(NamedTuple):
    """What `compare_sides` takes.

    Attributes:
        sides: layers of all networks, by name.
        pairs: by layer, the names of the sides that are compared.
    """

    sides: dict[str, Side]
    pairs: dict[str, list[tuple[str, str]]]

    def only(self, layers: Sequence[str]) -> "Layers":
        """Some of the layers.

        >>> sorted(layers_of_seeds({"a": [[0.0], [1.0]], "b": [[0.0], [1.0]]}).only(["a"]).sides)
        ['a 0', 'a 1']
        """
        pairs = {name: self.pairs[name] for name in layers}
        needed = {side for listed in pairs.values() for pair in listed for side in pair}
        return Layers({name: side for name, side in self.sides.items() if name in needed}, pairs)


def layer_names(given: Sequence[str], files: Sequence[str], others: Sequence[str] = ()) -> tuple[str, ...]:
    """What layers are called: as given, else as their files; with those of the other network where files are called alike.

    Args:
        given: names, or none.
        files: one a layer.
        others: of another network, the same layers.

    Raises:
        ValueError: other than one name a layer, or names that do not tell the layers apart.

    >>> layer_names((), ["a/x.npy", "a/y.npy"]), layer_names((), ["a/x.npy", "b/x.npy"], ["c.npy", "d.npy"])
    (('x.npy', 'y.npy'), ('x.npy → c.npy', 'x.npy → d.npy'))
    """
    names = tuple(given) or tuple(Path(path).name for path in files)
    if others and len(set(names)) < len(files):
        names = tuple(f"{Path(a).name} → {Path(b).name}" for a, b in zip(files, others, strict=True))
    if len(set(names)) < len(names):
        raise ValueError(f"layers must name the layers, for their files are called alike: {', '.join(names)}.")
    if len(names) != len(files):
        raise ValueError(f"layers must name each of the {len(files)} files, got {names}.")
    return names


def read_layers(files: Sequence[str], names: Sequence[str] = (), train: Sequence[str] = ()) -> dict[str, Side]:
    """Layers of one network as sides, a file each, which are read when they are compared.

    Args:
        files: one a layer.
        names: of the layers, by default those of the files.
        train: files of other images, to fit views on: as many a layer, those of the first layer first.

    Raises:
        ValueError: no file, as `layer_names`, or a number of other files that is no multiple of the number of layers.

    >>> {name: side.train for name, side in read_layers(["a.npy", "b.npy"], train=["c.npy", "d.npy"]).items()}
    {'a.npy': ['c.npy'], 'b.npy': ['d.npy']}
    """
    if not files:
        raise ValueError("files names no file.")
    names = layer_names(names, files)
    n, rest = divmod(len(train), len(files))
    if rest:
        raise ValueError(
            f"train must name as many files as there are layers, {len(files)}, or twice, three times as many, those of the "
            f"first layer first, got {len(train)}."
        )
    layers = enumerate(zip(names, files, strict=True))
    return {name: Side(path, train=list(train[i * n :][:n]) or None) for i, (name, path) in layers}


def layers_of_files(
    source: Sequence[str],
    target: Sequence[str],
    source_train: Sequence[str] = (),
    target_train: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Layers:
    """The layers of two networks, a file each: the first layer of one is compared with the first of the other, and so on.

    Args:
        source: files of the network that predicts, one a layer.
        target: those of the network that is predicted.
        source_train, target_train: of other images, to fit views on, one a layer; or none.
        names: of the layers, by default those of the files.

    Raises:
        ValueError: not as many files of each kind, or as `layer_names`.

    >>> layers_of_files(["a.npy"], ["b.npy"]).pairs
    {'a.npy': [('source', 'target')]}
    """
    files = {"source": source, "target": target, "source_train": source_train, "target_train": target_train}
    counts = {kind: len(paths) for kind, paths in files.items() if paths or kind in ("source", "target")}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
        raise ValueError(f"source and target must name as many files of each kind, one a layer, got {listed}.")
    names = layer_names(names, source, target)
    layers = Layers({}, {})
    for i, name in enumerate(names):
        pair = (f"source {name}", f"target {name}") if len(names) > 1 else ("source", "target")
        for side, x, train in zip(pair, (source, target), (source_train, target_train), strict=True):
            layers.sides[side] = Side(x[i], train=train[i] if train else None)
        layers.pairs[name] = [pair]
    return layers


def layers_of_seeds(
    scored: Mapping[str, Float[np.ndarray, "seeds images positions units"]],
    training: Mapping[str, Float[np.ndarray, "seeds images positions units"]] | None = None,
) -> Layers:
    """Layers of networks of several seeds, each compared with the same layer of every other seed, in both directions.

    Args:
        scored: by layer, what the networks of all seeds make of the same images.
        training: the same of other images, to fit views on; by default a part of those that are scored.

    >>> layers_of_seeds({"a": [[0.0], [1.0]]}).pairs
    {'a': [('a 0', 'a 1'), ('a 1', 'a 0')]}
    """
    sides = {
        f"{layer} {seed}": Side(x, train=None if training is None else training[layer][seed])
        for layer, of_seeds in scored.items()
        for seed, x in enumerate(of_seeds)
    }
    members = {layer: [f"{layer} {seed}" for seed in range(len(of_seeds))] for layer, of_seeds in scored.items()}
    return Layers(sides, {layer: list(itertools.permutations(names, 2)) for layer, names in members.items()})


def simulated_brain(
    key: Key[Array, ""],
    *,
    n_stimuli: int = 1000,
    n_features: int = 64,
    probability: float = 0.05,
    n_units: Sequence[int] = (16, 32),
    n_sites: int = 100,
    mixing: int = 4,
    n_repeats: int = 4,
    reliability: tuple[float, float] = (0.05, 0.95),
    penalty: float = 0.01,
) -> tuple[brain.Recording, dict[str, Side]]:
    """A recording whose sites mix sparse features, and layers that carry all of these in superposition.

    Args:
        key: of everything that is drawn.
        n_stimuli, n_features, n_sites, n_repeats: sizes.
        probability: of a feature being active.
        n_units: of each layer: the fewer, the more superposed.
        mixing: features that a site mixes.
        reliability: of the first and the last site; those between are evenly spaced.
        penalty: of the oracle that is a view of each layer.

    Returns:
        The recording, and the sides "16 units", ..., with the view `oracle`, and "features", with the view `feature`.

    Raises:
        ValueError: as `superpos.brain.simulate`.

    >>> recording, sides = simulated_brain(jax.random.key(0), n_stimuli=20, n_units=(8,), n_sites=5)
    >>> recording.responses.shape, {name: side.x.shape for name, side in sides.items()}
    ((20, 5), {'8 units': (20, 8), 'features': (20, 64)})
    """
    recording, truth = brain.simulate(
        key,
        n_stimuli,
        n_sites,
        n_repeats,
        reliability=np.linspace(*reliability, n_sites),
        features=SparseFeatures(n_features, probability),
        mixing=mixing,
    )
    z = truth.features
    sides = {f"{n} units": superposed(jax.random.fold_in(key, n), z, n, penalty=penalty) for n in n_units}
    return recording, {**sides, "features": Side(np.asarray(z), views={"feature": views.Neuron()})}

"""Are two vision networks more alike when latents of sparse autoencoders stand in for their neurons?

Trains networks of one architecture from several seeds, on images that are made in the program, or takes files of activations
of two networks to the same images, one a layer. Trains SAEs on each layer, on images that are not scored, and scores neurons,
latents, and latents of untrained SAEs. Look at sae->sae against neuron->neuron, and at two controls of as many units: untrained
SAEs (random_sae->random_sae), of whose latents as many are active, but which have learned nothing; and principal components,
split into their signs (pca->pca), which know the data, but nothing of sparsity. The curves vary one setting of the SAEs at a
time. There are no more than two components a unit: with an expansion above 2 they are fewer than latents.

Intervals are over seeds of the networks where these are trained here; with files there are two networks, and intervals are
over images, for the maps and SAEs at hand.
"""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import superpos as sp
from experiments import COMPARISONS, align, command
from superpos import plotting
from superpos.results import Run

FILES = ("source", "target", "source_train", "target_train")
PCA = "pca->pca"  # principal components, each split into its two signs: as many as latents, at most two a unit
KINDS = ("neuron->neuron", PCA, "latent->neuron", "latent->latent")
NAMES = (*COMPARISONS, PCA)
PARTS = ("training", "scored")  # images that train SAEs, and those that are scored
BATCH = 256  # images that are made, or pass through networks, at once
VARY = ("share", "k", "expansion", "architecture", "normalize")
# What is subtracted from what.
DIFFERENCES = (
    ("sae->sae", "neuron->neuron"),
    ("sae->neuron", "neuron->neuron"),
    ("sae->sae", "random_sae->random_sae"),
    ("sae->neuron", "random_sae->neuron"),
    ("sae->sae", PCA),
)


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.source = ()  # files of the network that predicts, one a layer; without any, networks are trained here
    config.target = ()  # files of the network that is predicted: the same samples in the same order
    config.source_train = ()  # to train the SAEs on, a file a layer, instead of a part of the images
    config.target_train = ()
    config.train_fraction = 0.5  # of the images of the files, whose samples train the SAEs and are not scored
    config.network = "cnn"  # or vit
    config.layers = ()  # of the network, or names for those of the files; by default all that have axes of their own
    config.n_seeds = 8  # networks, each with an SAE a layer; with files: SAEs of each network
    config.seed = 0  # of all keys
    config.chunk = 8  # models, or pairs of them, in flight at once; 0: as many as fit into memory
    config.metrics = sp.alignment.DEFAULT
    config.n_folds = 5
    config.n_blocks = 10  # parts of a fold, left out in turn for intervals over images
    config.training = ConfigDict({"steps": 3_000, "batch_size": 32, "learning_rate": 2e-3})  # of networks; AdamW, cosine decay
    # Images that train the SAEs and that are scored, and positions of the grid taken from each.
    config.images = ConfigDict({"n_train": 8_192, "n_scored": 2_000, "positions": 4})
    config.sae = ConfigDict(
        {
            "architecture": "topk",  # of sp.sae, of those that take k
            "expansion": 4.0,  # latents for each unit
            "k": 8,
            "normalize": "scale",
            "share": 1.0,  # of the samples that train SAEs, image by image in random order
            "steps": 4_000,
            "batch_size": 1024,
            "learning_rate": 3e-3,  # cosine decay
        }
    )
    # One setting of `sae` at a time takes these values, in one layer: by default the last.
    config.vary = ConfigDict({"layer": "", "share": (), "k": (), "expansion": (), "architecture": (), "normalize": ()})
    return config


class Keys(NamedTuple):
    """What is drawn: networks, the images they learn from, those they are looked at with, SAEs, and folds."""

    networks: Any
    task: Any
    images: Any
    saes: Any
    folds: Any


def keys(config: ConfigDict) -> Keys:
    """A key for each."""
    return Keys(*jax.random.split(jax.random.key(config.seed), len(Keys._fields)))


def images_key(config: ConfigDict, part: str) -> Any:
    """Of one of the `PARTS` of the images that networks are looked at with."""
    return jax.random.fold_in(keys(config).images, PARTS.index(part))


def classifier(config: ConfigDict) -> Any:
    """The network and its task, as `config.network` names it.

    Raises:
        ValueError: another name.
    """
    from superpos import networks

    task = networks.ShapesAndTextures()
    nets = {"cnn": networks.CNN, "vit": networks.ViT}
    if config.network not in nets:
        raise ValueError(f"config.network must be {' or '.join(nets)}, got {config.network!r}.")
    return networks.Classifier(nets[config.network](task.n_classes), (task.size, task.size, 3)), task


def network(model: Any, task: Any, settings: ConfigDict) -> Callable[[Any, Any], dict[str, Any]]:
    """`train(key, data_key)` for `sp.sweep`: one network's `params`, and its `accuracy` on 2,000 images of their own."""
    rate = optax.warmup_cosine_decay_schedule(0, settings.learning_rate, max(1, settings.steps // 20), settings.steps)

    def train(key, data_key):
        train_key, test_key = jax.random.split(data_key)
        params, _ = sp.fit(
            model,
            key,
            task.sample,
            data_key=train_key,
            steps=settings.steps,
            batch_size=settings.batch_size,
            optimizer=optax.adamw(rate, weight_decay=0.01),
        )
        return {"params": params, "accuracy": model.accuracy(params, *task.sample(test_key, 2_000))}

    return train


def look(
    model: Any, task: Any, params: Any, key: Any, n: int, layers: tuple[str, ...], positions: int | str
) -> dict[str, jax.Array]:
    """What networks make of `n` images of a task: for each layer `(n_networks, n, positions, units)`.

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

    def batch(i):
        images, _ = image_batch(task, key, i)
        position_key = jax.random.fold_in(jax.random.fold_in(key, i), 2)
        found = jax.vmap(lambda one: model.activations(one, images, layers))(params)
        return {layer: take(values, position_key) for layer, values in found.items()}

    def take(values, position_key):
        cells = values.reshape(*values.shape[:2], -1, values.shape[-1])
        n_cells = cells.shape[2]
        if positions == "mean":
            return cells.mean(axis=2, keepdims=True)
        if positions == "all" or positions >= n_cells:
            return cells
        scattered = jax.random.uniform(jax.random.fold_in(position_key, n_cells), cells.shape[1:3])
        chosen = jnp.argsort(scattered, axis=1)[:, :positions]
        return jnp.take_along_axis(cells, chosen[None, ..., None], axis=2)

    found = jax.lax.map(batch, jnp.arange(-(-n // BATCH)))  # (batches, networks, images, positions, units)
    return {layer: v.swapaxes(0, 1).reshape(v.shape[1], -1, *v.shape[3:])[:, :n] for layer, v in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def image_batch(task: Any, key: Any, i: Any) -> tuple[jax.Array, jax.Array]:
    """The i-th `BATCH` of the images that a key makes, and their classes."""
    return task.sample(jax.random.fold_in(jax.random.fold_in(key, i), 1), BATCH)


class Study:
    """The data, and pure functions of it: `train` the SAE of one side and layer, `compare` two representations.

    A side's samples of a layer are `(n_networks, n_samples, units)`. With files the sides are two networks with an SAE a seed;
    networks that are trained here are one side, compared with itself, each with one SAE. A member is an SAE and its network.
    """

    def __init__(self, config: ConfigDict, layers: dict[str, dict[str, Any]], sides: tuple[str, ...]):
        self.config, self.sides = config, sides
        self.metrics = sp.metrics.resolve(config.metrics)
        self.names = tuple(layers)
        self.groups = {layer: found["groups"] for layer, found in layers.items()}
        self.data = {
            part: {side: {layer: found[part][side] for layer, found in layers.items()} for side in sides}
            for part in ("training", "scored")
        }
        self.folds = {
            layer: sp.assign_folds(len(groups), config.n_folds, key=keys(config).folds, groups=groups)[0]
            for layer, groups in self.groups.items()
        }

    def sae(self, units: int, changed: dict[str, Any]) -> sp.sae.SparseAutoencoder:
        """The SAE of a layer."""
        return make_sae({**self.config.sae, **changed}, units)

    def train(self, member, data, side, layer, **changed):
        """One SAE before (`random_sae`) and after (`sae`) training, and what each makes of the scored samples."""
        settings = {**self.config.sae, **changed}
        samples, held_out = (_of_member(data[part][side][layer], member) for part in ("training", "scored"))
        sae = self.sae(samples.shape[1], changed)
        key = jax.random.fold_in(jax.random.fold_in(keys(self.config).saes, member), self.sides.index(side))
        n = jnp.maximum(1, jnp.int32(settings["share"] * len(samples)))  # those of the first images
        start, params = align.disentangle(sae, key, samples, settings, n)
        found = {"params": {"sae": params, "random_sae": start}, "dimensions": _dimensions(held_out)}
        for name, one in found["params"].items():
            report = sp.evaluation.evaluate(sae, one, held_out)
            found[name] = {
                "explained": 1 - report.fvu,
                "active": report.l0,
                "dead": report.dead,
                "superposition": report.effective / sae.n_inputs,
            }
        return found

    def compare(self, which, data, layer, kind, **changed):
        """Scores for sides of a kind; `which`: the variant, then member and kind of SAE of the source and of the target."""
        ends = []
        for end, what in enumerate(kind.split("->")):
            side = self.sides[min(end, len(self.sides) - 1)]
            member, trained = which[1 + 2 * end], which[2 + 2 * end]
            units = _of_member(data["pca" if what == "pca" else "scored"][side][layer], member)
            if what == "latent":
                params = jax.tree.map(lambda leaf: leaf[which[0], trained, member], data["saes"][side][layer])  # noqa: B023
                units = self.sae(units.shape[1], changed).encode(params, units)
            ends.append(units)
        settings = {"metrics": self.metrics, "folds": self.folds[layer], "n_folds": self.config.n_folds}
        if len(self.sides) == 1:
            return {name: score.mean for name, score in sp.align(*ends, **settings).items()}
        found = sp.stats.jackknife(*ends, **settings, groups=self.groups[layer], n_blocks=self.config.n_blocks)
        return {name: {"mean": score.mean, "replicates": score.replicates} for name, score in found.items()}

    def principal_components(self) -> dict[str, dict[str, np.ndarray]]:
        """Of each side and layer, as many as latents, at most two a unit: `(n_networks, n_samples, n_components)`."""
        found: dict[str, dict[str, np.ndarray]] = {side: {} for side in self.sides}
        for side, layer in itertools.product(self.sides, self.names):
            parts = [np.asarray(self.data[part][side][layer]) for part in ("training", "scored")]
            n = round(self.config.sae.expansion * parts[0].shape[-1])
            found[side][layer] = np.stack([principal_components(train, score, n) for train, score in zip(*parts, strict=True)])
        return found

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Members that are compared: all pairs of networks, or SAEs of the same seed."""
        members = range(self.config.n_seeds)
        if len(self.sides) == 1:
            return [(a, b) for a in members for b in members if a != b]
        return [(a, a) for a in members]


def _of_member(array, member):
    return array[jnp.minimum(member, len(array) - 1)]


def principal_components(training: np.ndarray, scored: np.ndarray, n: int) -> np.ndarray:
    """Scored samples `(n_samples, units)` on the first components of the training samples, as `n` rectified units."""
    mean = training.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov((training - mean).T))
    projected = (scored - mean) @ directions[:, ::-1][:, : max(1, n // 2)]
    return np.concatenate([np.maximum(projected, 0), np.maximum(-projected, 0)], axis=1).astype(np.float32)


def _dimensions(units):
    """Participation ratio of the covariance: how many directions the variance is spread over."""
    centred = units - units.mean(axis=0)
    covariance = sp.linalg.matmul(centred.T, centred)
    return jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)


def read(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The layers of two networks from files, each as `align.read` gives it, with training images in random order.

    Raises:
        ValueError: files that are missing, or do not fit each other.
    """
    counts = {side: len(config[side]) for side in FILES if config[side] or side in align.SIDES}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {side}" for side, count in counts.items())
        raise ValueError(f"config must name as many files of each kind, one a layer, got {listed}.")
    names = config.layers or tuple(Path(path).name for path in config.source)
    if len(set(names)) < len(config.source):
        names = tuple(f"{Path(a).name} → {Path(b).name}" for a, b in zip(config.source, config.target, strict=True))
    if len(set(names)) < len(names):
        raise ValueError(f"config.layers must name the layers, for their files are called alike: {', '.join(names)}.")
    for side in align.SIDES:
        align.refuse_scored(f"{side}_train", config[f"{side}_train"], config[side])
    if len(names) != len(config.source):
        raise ValueError(f"config.layers must name each of the {len(config.source)} files, got {names}.")
    layers = {}
    for i, name in enumerate(names):
        one = align.get_config()
        one.update({side: config[side][i] for side in FILES if config[side]})
        one.update({"seed": config.seed, "train_fraction": config.train_fraction})
        found = align.read(one)
        for side, samples in found["training"].items():
            groups = found["training_groups"][side]
            # The same images of both sides first, for these are what a share of them takes.
            rank = np.random.default_rng(config.seed).permutation(groups.max() + 1)
            found["training"][side] = samples[np.argsort(rank[groups], kind="stable")]
        layers[name] = {
            "groups": found["groups"],
            "n_images": len(np.unique(found["training_groups"]["source"])),
            **{part: {side: array[None] for side, array in found[part].items()} for part in ("training", "scored")},
        }
    return layers


def make(config: ConfigDict, run: Run) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Layers of networks that are trained here, and the accuracy of each."""
    model, task = classifier(config)
    layers = tuple(config.layers) or model.layers
    settings = config.images
    n_images = {"training": settings.n_train, "scored": settings.n_scored}
    found = jax.eval_shape(
        lambda key: model.activations(model.init(key), jnp.zeros((1, *model.shape)), layers), keys(config).networks
    )
    units = {layer: found[layer].shape[-1] for layer in layers}
    groups = np.arange(settings.n_scored)
    check(config, {layer: [width] for layer, width in units.items()}, dict.fromkeys(layers, groups))
    run.claim()
    seeds = jax.random.split(keys(config).networks, config.n_seeds)
    train, folder = network(model, task, config.training), run.path / "networks"
    trained = sp.sweep(train, {}, seeds, data_key=keys(config).task, chunk=config.chunk or None, workdir=folder).load()

    looked = {}
    for part, n in n_images.items():
        every = jax.jit(functools.partial(look, model, task, n=n, layers=layers, positions=settings.positions))
        looked[part] = jax.device_get(every(trained["params"], images_key(config, part)))
    made = {
        layer: {
            "groups": np.repeat(np.arange(settings.n_scored), looked["scored"][layer].shape[2]),
            "n_images": settings.n_train,
            **{part: {"network": looked[part][layer].reshape(config.n_seeds, -1, units[layer])} for part in n_images},
        }
        for layer in layers
    }
    accuracy = trained["accuracy"].astype(float)
    row = {"network": config.network, **sp.stats.over_seeds(accuracy), "least": accuracy.min(), "most": accuracy.max()}
    return made, [{**row, "seeds": ", ".join(f"{one:.2f}" for one in accuracy)}]


def make_sae(settings: dict[str, Any], units: int) -> sp.sae.SparseAutoencoder:
    """The SAE of so many units that settings describe.

    Raises:
        ValueError: settings that do not fit.
    """
    known = {name: kind for name, kind in sp.sae.ARCHITECTURES.items() if "k" in kind.__dataclass_fields__}
    if settings["architecture"] not in known:
        listed = ", ".join(known)
        raise ValueError(f"config.sae.architecture must be one of {listed}, got {settings['architecture']!r}.")
    kind: Any = known[settings["architecture"]]
    return kind(units, max(1, round(settings["expansion"] * units)), settings["k"], normalize=settings["normalize"])


def check(config: ConfigDict, units: dict[str, list[int]], groups: dict[str, np.ndarray]) -> None:
    """Refuses, before anything is trained, settings that do not fit the units of each layer's sides and the scored images."""
    least = {"training.steps": 2, "training.batch_size": 1, "sae.steps": 1, "sae.batch_size": 1, "n_blocks": 2}
    least |= {"images.n_train": 1, "images.n_scored": 1, "images.positions": 1}
    for name, number in least.items():
        value = functools.reduce(lambda found, part: found[part], name.split("."), config)
        if value < number:
            raise ValueError(f"config.{name} must be at least {number}, got {value}.")
    for layer, of_layer in groups.items():
        folds, _ = sp.assign_folds(len(of_layer), config.n_folds, key=keys(config).folds, groups=of_layer)
        fewest = min(len(np.unique(of_layer[np.asarray(folds) == fold])) for fold in range(config.n_folds))
        if config.source and fewest < config.n_blocks:
            raise ValueError(
                f"config.n_blocks must be at most the {fewest} images in a fold of {layer}, got {config.n_blocks}."
            )
    if config.vary.layer and config.vary.layer not in units:
        raise ValueError(f"config.vary.layer must be one of {', '.join(units)}, got {config.vary.layer!r}.")
    varied_layer = config.vary.layer or list(units)[-1]
    for changed in [{}, *({name: value} for name, values in _varied(config).items() for value in values)]:
        settings = {**config.sae, **changed}
        if settings["expansion"] != round(settings["expansion"]) and changed:
            raise ValueError(f"config.vary.expansion must hold whole numbers, got {settings['expansion']}.")
        if not 0 < settings["share"] <= 1:
            raise ValueError(f"config.sae.share must be above 0 and at most 1, got {settings['share']}.")
        for layer, widths in units.items():
            for width in widths:
                if not changed or layer == varied_layer:
                    make_sae(settings, width)


def _varied(config):
    """The values that each setting takes beside the one that it has in `sae`."""
    values = {name: tuple(value for value in config.vary[name] if value != config.sae[name]) for name in VARY}
    return {name: found for name, found in values.items() if found}


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Gets the activations, trains SAEs, scores all comparisons, and tabulates them."""
    with_files = any(config[side] for side in FILES)
    if config.n_seeds < (1 if with_files else 2):
        raise ValueError(f"config.n_seeds must be at least {1 if with_files else 2}, got {config.n_seeds}.")
    sp.metrics.resolve(config.metrics)
    started = time.perf_counter()
    networks: list[dict[str, Any]] = []
    if with_files:
        layers = read(config)
        units = {layer: [part.shape[-1] for part in found["scored"].values()] for layer, found in layers.items()}
        check(config, units, {layer: found["groups"] for layer, found in layers.items()})
        run.claim()
    else:
        layers, networks = make(config, run)
    study = Study(config, layers, align.SIDES if with_files else ("network",))
    varied_layer = config.vary.layer or study.names[-1]
    varied = _varied(config)
    made_at = time.perf_counter()

    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    differences, saes = [], []
    for name, values in {"": (None,), **varied}.items():
        # Shares of the images change no shapes: they are variants of one program.
        for batch in [values] if name in ("", "share") else [(value,) for value in values]:
            chosen = (varied_layer,) if name else study.names
            found, described = _measure(study, run, name, batch, chosen)
            for layer in chosen:
                for i, value in enumerate(batch):
                    at = {"layer": layer, **({"setting": name, "value": value} if name else {})}
                    share = value if name == "share" else config.sae.share
                    n_images = round(share * layers[layer]["n_images"])
                    saes += [{**at, "n_images": n_images, **row} for row in described[layer, i]]
                    for metric in (metric.name for metric in study.metrics):
                        scores = {c: found[layer, i, metric, c] for c in NAMES if (layer, i, metric, c) in found}
                        for comparison, score in scores.items():
                            if not np.isfinite(jax.tree.leaves(score)[0]).all():
                                raise ValueError(f"{comparison} of {layer} has no live unit on one side.")
                            row = {"metric": metric, "comparison": comparison, **_summary(study, score)}
                            (curves if name else rows).append({**at, **row})
                        for a, b in () if name else DIFFERENCES:
                            difference = _difference(study, scores[a], scores[b])
                            differences.append({**at, "metric": metric, "difference": f"{a} - {b}", **difference})
    seconds = {"activations": made_at - started, "saes and scores": time.perf_counter() - made_at}
    tables = {"networks": networks} if networks else {}
    return run.finish(rows, seconds, differences=differences, saes=saes, **({"curves": curves} if curves else {}), **tables)


def _measure(study, run, name, values, layers):
    """SAEs with some values of one setting: scores by (layer, value, metric, comparison), and what the SAEs are like."""
    config, members = study.config, np.arange(study.config.n_seeds)
    grid = {"side": study.sides, "layer": layers, **({name: values} if name else {})}
    folder = run.path / "saes" / "-".join([name or "base", *(map(str, values) if name not in ("", "share") else ())])
    trained = sp.sweep(study.train, grid, members, data_key=study.data, chunk=config.chunk or None, workdir=folder)
    states = {
        (side, layer): [trained.load(side=side, layer=layer, **({name: value} if name else {})) for value in values]
        for side in study.sides
        for layer in layers
    }
    described = {}
    for layer in layers:
        for i in range(len(values)):
            described[layer, i] = [describe(side, states[side, layer][i]) for side in study.sides]

    def stack(states):  # leaves (values, kinds of SAE, members, ...)
        kinds = [
            jax.tree.map(lambda *leaves: np.stack(leaves), *(state["params"][kind] for kind in align.SAES)) for state in states
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *kinds)

    stacked = {side: {layer: stack(states[side, layer]) for layer in layers} for side in study.sides}
    data = {"scored": study.data["scored"], "saes": stacked}
    found = {}
    for kind in KINDS[2:] if name else KINDS:  # the others know nothing of SAEs
        listed = [
            (comparison, i, pair)
            for comparison in NAMES
            if align.kind_of(comparison) == kind
            for i in range(len(values))
            for pair in (study.pairs if kind not in KINDS[:2] or len(study.sides) == 1 else study.pairs[:1])
        ]
        which = np.array([_which(*one) for one in listed])
        grid = {"kind": (kind,), "layer": layers, **({name: values[:1]} if name and name != "share" else {})}
        where = folder.parent.parent / "scores" / folder.name / kind.replace("->", "_")
        of_kind = {"pca": study.principal_components()} if kind == PCA else data
        scored = sp.sweep(study.compare, grid, which, data_key=of_kind, chunk=config.chunk or None, workdir=where)
        for layer in layers:
            for metric, scores in scored.load(layer=layer).items():
                for comparison, i in dict.fromkeys(one[:2] for one in listed):
                    at = np.array([one[:2] == (comparison, i) for one in listed])
                    of_pairs = jax.tree.map(lambda leaf: np.asarray(leaf)[at], scores)  # noqa: B023
                    found[layer, i, metric, comparison] = of_pairs
    return found, described


def _which(comparison, value, pair):
    kinds = [align.index_of(what) for what in comparison.split("->")]
    return value, pair[0], kinds[0], pair[1], kinds[1]


def describe(side, state):
    """What the SAEs of one side and layer are like on the scored samples, mean over members."""
    units, latents = state["params"]["sae"]["W_enc"].shape[-2:]
    row = {"side": side, "units": units, "latents": latents, "dimensions": float(np.mean(state["dimensions"]))}
    for kind in align.SAES:
        row |= {f"{kind}_{name}": float(np.mean(values)) for name, values in state[kind].items()}
    return row | {"superposition_ci95": sp.stats.over_seeds(state["sae"]["superposition"])["ci95"]}


def _square(study, values):
    """Scores of pairs as a matrix of members."""
    matrix = np.full((study.config.n_seeds, study.config.n_seeds), np.nan)
    matrix[tuple(np.array(study.pairs).T)] = values
    return matrix


def _over_saes(score):
    """The jackknifed score of all SAEs together."""
    return sp.stats.Jackknife(score["mean"].mean(), score["replicates"].mean(axis=0))


def over_images(score: dict[str, Any]) -> dict[str, Any]:
    """Mean and spread of SAEs, and the interval over images, of jackknifed scores whose leaves are (SAEs, ...)."""
    summary, n = sp.stats.over_samples(_over_saes(score)), len(score["mean"])
    std = float(np.std(score["mean"], ddof=1)) if n > 1 else 0.0
    return {"mean": summary["mean"], "std": std, "ci95": summary["ci95"], "n_seeds": n, "n_pairs": n}


def paired_over_images(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The difference of two such scores, and its test."""
    found = sp.stats.paired(_over_saes(a), _over_saes(b))
    return {name: found[name] for name in ("mean", "ci95", "p_value")}


def _summary(study, score):
    """Mean, spread and interval: over seeds of networks that were trained here, over images of files."""
    return sp.stats.over_pairs(_square(study, score)) if len(study.sides) == 1 else over_images(score)


def _difference(study, a, b):
    """The same of a difference."""
    return sp.stats.over_pairs(_square(study, a - b)) if len(study.sides) == 1 else paired_over_images(a, b)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment by layer, a panel a metric; below, a row for each setting that was varied."""
    rows, curves = results["rows"], results.get("curves", [])
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in curves))
    figure, axes = plotting.panels(1 + len(settings), len(metrics), (3.6 * len(metrics), 3.4 + 2.6 * len(settings)))
    for axis, metric in zip(axes[0], metrics, strict=True):
        plotting.grouped_bars(axis, [row for row in rows if row["metric"] == metric], "layer")
        axis.set_title(plotting.metric_title(metric))
    axes[0, 0].set_ylabel("held-out Pearson r")
    for line, setting in zip(axes[1:], settings, strict=True):
        points = [row for row in curves if row["setting"] == setting]
        layer = points[0]["layer"]
        # The bars have a value of this setting too.
        points += [{**row, "setting": setting, "value": run.config["sae"][setting]} for row in rows if row["layer"] == layer]
        if setting == "share":
            n_images = {
                row.get("value", run.config["sae"]["share"]): row["n_images"]
                for row in results["saes"]
                if row.get("setting", setting) == setting
            }
            points = [{**row, "value": n_images[row["value"]]} for row in points]
        for axis, metric in zip(line, metrics, strict=True):
            _curve(axis, setting, [row for row in points if row["metric"] == metric])
        line[0].set_ylabel(f"{layer}\nheld-out Pearson r")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) if len(metrics) > 2 else 2, fontsize=8, frameon=False
    )
    over = "images, for the networks and SAEs at hand" if run.config["source"] else f"{rows[0]['n_seeds']} networks"
    figure.suptitle(f"Bars and bands: 95 % confidence interval over {over}", fontsize=9, color="#444444")
    plotting.save(figure, run.figure)


def _curve(axis, setting, rows):
    """Scores against a setting, a line a comparison; those that know nothing of SAEs as a line across."""
    values = list(dict.fromkeys(row["value"] for row in rows))
    numeric = not isinstance(values[0], str)
    values = sorted(values) if numeric else values
    for comparison in NAMES:
        line = sorted((row for row in rows if row["comparison"] == comparison), key=lambda row: values.index(row["value"]))
        colour = plotting.COLOURS[comparison]
        if len(line) == 1:
            axis.axhline(line[0]["mean"], color=colour, linewidth=1)
            axis.axhspan(*(line[0]["ci95"] or [line[0]["mean"]] * 2), color=colour, alpha=0.15, linewidth=0)
            continue
        at = [row["value"] if numeric else values.index(row["value"]) for row in line]
        style = "" if not numeric else ":" if comparison.startswith("random") else "-"
        axis.errorbar(
            at, plotting.means(line), plotting.errors(line), color=colour, linestyle=style, marker="o", markersize=3, capsize=2
        )
    if numeric:
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
    else:
        axis.set_xticks(range(len(values)), values, rotation=20)
    axis.set_xlabel("images that train the SAEs" if setting == "share" else setting)


if __name__ == "__main__":
    command.main("network_alignment", get_config(), compute, draw, files=FILES)

"""Are two vision networks more alike when latents of sparse autoencoders stand in for their neurons?

Trains networks of one architecture from several seeds, on images that are made in the program, or takes files of activations
of two networks to the same images, one a layer. Fits SAEs and controls on each layer, on images that are not scored, and scores
what they read. Look at sae->sae against neuron->neuron, and at the controls: untrained latents (random_sae->random_sae), of
which as many are active, but which have learned nothing; principal components, split into their signs (signed_pca->signed_pca),
which know the data, but nothing of sparsity; independent components (ica->ica), another basis that cannot undo superposition.
The curves vary one setting of the SAEs at a time. There are at most two signed components a unit.

Intervals are over seeds of the networks where these are trained here; with files there are two networks, and intervals are
over images, for the maps and SAEs at hand.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import plotting, views
from superpos.activations import Side
from superpos.comparison import Plan, default_views
from superpos.results import Run

FILES = ("source", "target", "source_train", "target_train")
PARTS = ("training", "scored")  # images that fit views, and those that are scored
COMPARISONS = (
    "neuron->neuron",
    "signed_pca->signed_pca",
    "ica->ica",
    "sae->neuron",
    "sae->sae",
    "random_sae->neuron",
    "random_sae->sae",
    "random_sae->random_sae",
)
VARY = ("share", "k", "expansion", "architecture", "normalize")
# What is subtracted from what.
DIFFERENCES = (
    ("sae->sae", "neuron->neuron"),
    ("sae->neuron", "neuron->neuron"),
    ("sae->sae", "random_sae->random_sae"),
    ("sae->neuron", "random_sae->neuron"),
    ("sae->sae", "signed_pca->signed_pca"),
    ("sae->sae", "ica->ica"),
)


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.source = ()  # files of the network that predicts, one a layer; without any, networks are trained here
    config.target = ()  # files of the network that is predicted: the same samples in the same order
    config.source_train = ()  # to fit the views on, a file a layer, instead of a part of the images
    config.target_train = ()
    config.train_fraction = 0.5  # of the images of the files, whose samples fit the views and are not scored
    config.network = "cnn"  # or vit
    config.layers = ()  # of the network, or names for those of the files; by default all that have axes of their own
    config.n_seeds = 8  # networks, each with an SAE a layer; with files: SAEs of each network
    config.seed = 0  # of all keys
    config.chunk = 8  # models, or pairs of them, in flight at once; 0: as many as fit into memory
    config.metrics = sp.alignment.DEFAULT
    config.n_folds = 5
    config.n_blocks = 10  # parts of a fold, left out in turn for intervals over images
    config.training = ConfigDict({"steps": 3_000, "batch_size": 32, "learning_rate": 2e-3})  # of networks; AdamW, cosine decay
    # Images that fit the views and that are scored, and positions of the grid taken from each.
    config.images = ConfigDict({"n_train": 8_192, "n_scored": 2_000, "positions": 4})
    config.sae = ConfigDict(
        {
            "architecture": "topk",  # of sp.sae
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
    """What is drawn: networks, the images they learn from, those they are looked at with, and what the comparison draws."""

    networks: Any
    task: Any
    images: Any
    comparison: Any


class Material(NamedTuple):
    """What is compared: sides by name, and pairs of them by layer."""

    sides: dict[str, Side]
    pairs: dict[str, list[tuple[str, str]]]


def read(config: ConfigDict) -> Material:
    """The layers of two networks, from files.

    Raises:
        ValueError: not as many files of each kind, or names that do not tell the layers apart.
    """
    counts = {side: len(config[side]) for side in FILES if config[side] or side in ("source", "target")}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {side}" for side, count in counts.items())
        raise ValueError(f"config must name as many files of each kind, one a layer, got {listed}.")
    names = config.layers or tuple(Path(path).name for path in config.source)
    if len(set(names)) < len(config.source):
        names = tuple(f"{Path(a).name} → {Path(b).name}" for a, b in zip(config.source, config.target, strict=True))
    if len(set(names)) < len(names):
        raise ValueError(f"config.layers must name the layers, for their files are called alike: {', '.join(names)}.")
    if len(names) != len(config.source):
        raise ValueError(f"config.layers must name each of the {len(config.source)} files, got {names}.")
    material = Material({}, {})
    for i, name in enumerate(names):
        pair = (f"source {name}", f"target {name}") if len(names) > 1 else ("source", "target")
        for side, kind in zip(pair, ("source", "target"), strict=True):
            train = config[f"{kind}_train"]
            material.sides[side] = Side(config[kind][i], train=train[i] if train else None)
        material.pairs[name] = [pair]
    return material


def make(config: ConfigDict, run: Run) -> tuple[Material, list[dict[str, Any]]]:
    """Layers of networks that are trained here, and the accuracy of each."""
    from superpos import networks
    from superpos.networks import seeds

    task = networks.ShapesAndTextures()
    kinds = {"cnn": networks.CNN, "vit": networks.ViT}
    if config.network not in kinds:
        raise ValueError(f"config.network must be {' or '.join(kinds)}, got {config.network!r}.")
    model = networks.Classifier(kinds[config.network](task.n_classes), (task.size, task.size, 3))
    keys = Keys(*jax.random.split(jax.random.key(config.seed), len(Keys._fields)))
    layers, settings = tuple(config.layers) or model.layers, config.images
    shapes = jax.eval_shape(lambda key: model.activations(model.init(key), jnp.zeros((1, *model.shape)), layers), keys.networks)
    for layer in layers:
        for view in chosen_views(config).values():
            view.check(shapes[layer].shape[-1])
    sp.assign_folds(settings.n_scored, config.n_folds)
    run.claim()
    train = seeds.trainer(model, task, **config.training)
    each = jax.random.split(keys.networks, config.n_seeds)
    trained = sp.sweep(train, {}, each, data_key=keys.task, chunk=config.chunk or None, workdir=run.path / "networks").load()
    looked = {}
    for i, (part, n) in enumerate(zip(PARTS, (settings.n_train, settings.n_scored), strict=True)):
        look = functools.partial(seeds.activations, model, task, n=n, layers=layers, positions=settings.positions)
        looked[part] = jax.device_get(jax.jit(look)(trained["params"], jax.random.fold_in(keys.images, i)))
    sides = {
        f"{layer} {seed}": Side(looked["scored"][layer][seed], train=looked["training"][layer][seed])
        for layer in layers
        for seed in range(config.n_seeds)
    }
    members = range(config.n_seeds)
    pairs = {layer: [(f"{layer} {a}", f"{layer} {b}") for a in members for b in members if a != b] for layer in layers}
    accuracy = trained["accuracy"].astype(float)
    row = {"network": config.network, **sp.stats.over_seeds(accuracy), "least": accuracy.min(), "most": accuracy.max()}
    return Material(sides, pairs), [{**row, "seeds": ", ".join(f"{value:.2f}" for value in accuracy)}]


def chosen_views(config: ConfigDict, **changed: Any) -> dict[str, views.View]:
    """Neurons, the SAE and its controls."""
    settings = {**config.sae, **changed}
    return default_views(views.SAE(options={"normalize": settings.pop("normalize")}, **settings))


def planned(config: ConfigDict, material: Material, layers: Sequence[str] | None = None, **changed: Any) -> Plan:
    """The comparison of all layers; of some with other settings of the SAE, only what reads them."""
    pairs = material.pairs if layers is None else {name: material.pairs[name] for name in layers}
    needed = {side for listed in pairs.values() for pair in listed for side in pair}
    comparisons = tuple(name for name in COMPARISONS if not changed or "sae" in name)
    with command.naming(config, split="train_fraction", folds="n_folds", share="sae.share", architecture="sae.architecture"):
        return Plan(
            {name: side for name, side in material.sides.items() if name in needed},
            pairs,
            chosen_views(config, **changed),
            comparisons,
            metrics=config.metrics,
            folds=config.n_folds,
            split=config.train_fraction,
            n_seeds=config.n_seeds if config.source else 1,
            n_blocks=config.n_blocks if config.source else None,
            key=jax.random.split(jax.random.key(config.seed), len(Keys._fields))[-1],
        )


def varied(config: ConfigDict) -> list[tuple[str, Any]]:
    """Each setting with each value that it takes beside the one that it has in `sae`."""
    return [(name, value) for name in VARY for value in config.vary[name] if value != config.sae[name]]


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Gets the activations, fits views, scores all comparisons, and tabulates them."""
    with_files, started = any(config[side] for side in FILES), time.perf_counter()
    least = {"n_seeds": 1 if with_files else 2, "training.steps": 2, "images.n_train": 1, "images.n_scored": 1}
    command.at_least(config, {**least, "images.positions": 1, "n_blocks": 2})
    material, networks = (read(config), []) if with_files else make(config, run)
    layer = config.vary.layer or list(material.pairs)[-1]
    if layer not in material.pairs:
        raise ValueError(f"config.vary.layer must be one of {', '.join(material.pairs)}, got {layer!r}.")
    plan = planned(config, material)
    variants = {(name, value): planned(config, material, (layer,), **{name: value}) for name, value in varied(config)}
    run.claim()
    made_at = time.perf_counter()

    chunk = config.chunk or None
    compared = plan.run(run.path / "comparison", chunk=chunk)
    compared.refuse_missing()
    rows = [command.renamed(row, pair="layer") for row in compared.summary()]
    differences = [command.renamed(row, pair="layer") for row in compared.differences(DIFFERENCES)]
    described, curves = compared.describe(), []
    for number, ((name, value), variant) in enumerate(variants.items()):
        other = variant.run(run.path / f"{name}_{number}", chunk=chunk)
        at = {"setting": name, "value": value}
        curves += [{**at, **command.renamed(row, pair="layer")} for row in other.summary()]
        described += [{**at, **row} for row in other.describe() if row["view"] != "neuron"]
    seconds = {"activations": made_at - started, "views and scores": time.perf_counter() - made_at}
    tables = {"differences": differences, "views": described, "curves": curves, "networks": networks}
    return run.finish(rows, seconds, **{name: table for name, table in tables.items() if table})


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment by layer, a panel a metric; below, a row for each setting that was varied."""
    rows, varied_rows = results["rows"], results.get("curves", [])
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    settings = list(dict.fromkeys(row["setting"] for row in varied_rows))
    figure, axes = plotting.panels(1 + len(settings), len(metrics), (4.2 * len(metrics), 3.4 + 2.6 * len(settings)))
    for axis, metric in zip(axes[0], metrics, strict=True):
        plotting.grouped_bars(axis, [row for row in rows if row["metric"] == metric], "layer")
        axis.set(title=plotting.metric_title(metric), ylabel="held-out score")
    for line, setting in zip(axes[1:], settings, strict=True):
        points = [row for row in varied_rows if row["setting"] == setting]
        # The bars have a value of this setting too.
        names = {row["comparison"] for row in points}
        own = [row for row in rows if row["layer"] == points[0]["layer"] and row["comparison"] in names]
        points += [{**row, "value": run.config["sae"][setting]} for row in own]
        numbers = all(isinstance(row["value"], int | float) for row in points)
        for axis, metric in zip(line, metrics, strict=True):
            chosen = [row for row in points if row["metric"] == metric]
            if numbers:
                plotting.curves(axis, chosen, "value", log=2)
            else:
                plotting.grouped_bars(axis, chosen, "value")
            axis.set(xlabel=f"{setting} of the SAEs, {points[0]['layer']}", ylabel="held-out score")
    over = "images, for the networks and views at hand" if run.config["source"] else f"{rows[0]['n_seeds']} networks"
    plotting.finish(figure, f"Bars: 95 % confidence interval over {over}")
    plotting.save(figure, run.figure)


if __name__ == "__main__":
    command.main("network_alignment", get_config(), compute, draw, files=FILES)

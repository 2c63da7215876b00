"""Are two vision networks more alike when latents of sparse autoencoders stand in for their neurons?

Trains networks of one architecture from several seeds, on images that are made in the program, or takes files of activations
of two networks to the same images, one a layer. Fits SAEs and controls on each layer, on images that are not scored, and scores
what they read. Look at sae->sae against neuron->neuron, and at the controls: untrained latents (random_sae->random_sae), of
which as many are active, but which have learned nothing; principal components, split into their signs (signed_pca->signed_pca),
which know the data, but nothing of sparsity; independent components (ica->ica), another basis that cannot undo superposition.
The curves vary one setting of the SAEs at a time. There are at most two signed components a unit.

Intervals are over seeds of the networks where these are trained here; with files there are two networks, and intervals are
over images, for the SAEs at hand, maps fitted again.
"""

import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import superpos as sp
from experiments import WITH_BASES as COMPARISONS
from experiments import command
from superpos import plotting, views
from superpos.comparison import Layers, Plan, default_views, layers_of_files, layers_of_seeds
from superpos.results import Run

FILES = ("source", "target", "source_train", "target_train")
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


def keys_of(config: ConfigDict) -> Keys:
    """All keys of a configuration."""
    return Keys(*jax.random.split(jax.random.key(config.seed), len(Keys._fields)))


def read(config: ConfigDict) -> Layers:
    """The layers of two networks, from files."""
    with command.naming(config):
        return layers_of_files(**{side: config[side] for side in FILES}, names=config.layers)


def make(config: ConfigDict, run: Run) -> tuple[Layers, list[dict[str, Any]]]:
    """Layers of networks that are trained here, and the accuracy of each."""
    from superpos import networks
    from superpos.networks import seeds

    kinds = {"cnn": networks.CNN, "vit": networks.ViT}
    if config.network not in kinds:
        raise ValueError(f"config.network must be {' or '.join(kinds)}, got {config.network!r}.")
    task, keys, settings = networks.ShapesAndTextures(), keys_of(config), config.images
    model = networks.Classifier(kinds[config.network](task.n_classes), (task.size, task.size, 3))
    layers = tuple(config.layers) or model.layers
    shapes = jax.eval_shape(lambda key: model.activations(model.init(key), jnp.zeros((1, *model.shape)), layers), keys.networks)
    for layer, view in itertools.product(layers, chosen_views(config).values()):
        view.check(shapes[layer].shape[-1])
    sp.assign_folds(settings.n_scored, config.n_folds)
    run.claim()
    train, each = seeds.trainer(model, task, **config.training), jax.random.split(keys.networks, config.n_seeds)
    trained = sp.sweep(train, {}, each, data_key=keys.task, chunk=config.chunk or None, workdir=run.path / "networks").load()
    sizes = (settings.n_train, settings.n_scored)
    look = functools.partial(seeds.parts, model, task, sizes=sizes, layers=layers, positions=settings.positions)
    training, scored = jax.device_get(jax.jit(look)(trained["params"], keys.images))
    accuracy = trained["accuracy"].astype(float)
    row = {"network": config.network, **sp.stats.over_seeds(accuracy), "least": accuracy.min(), "most": accuracy.max()}
    return layers_of_seeds(scored, training), [{**row, "seeds": ", ".join(f"{value:.2f}" for value in accuracy)}]


def chosen_views(config: ConfigDict, **changed: Any) -> dict[str, views.View]:
    """Neurons, the SAE and its controls."""
    settings = {**config.sae, **changed}
    return default_views(views.SAE(options={"normalize": settings.pop("normalize")}, **settings))


def planned(config: ConfigDict, layers: Layers, **changed: Any) -> Plan:
    """The comparison of some layers; with other settings of the SAE, only what reads it."""
    with command.naming(config, split="train_fraction", folds="n_folds", share="sae.share", architecture="sae.architecture"):
        return Plan(
            *layers,
            chosen_views(config, **changed),
            tuple(name for name in COMPARISONS if not changed or "sae" in name),
            metrics=config.metrics,
            folds=config.n_folds,
            split=config.train_fraction,
            n_seeds=config.n_seeds if config.source else 1,
            n_blocks=config.n_blocks if config.source else None,
            key=keys_of(config).comparison,
        )


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Gets the activations, fits views, scores all comparisons, and tabulates them."""
    with_files, started = any(config[side] for side in FILES), time.perf_counter()
    least = {"n_seeds": 1 if with_files else 2, "training.steps": 2, "images.n_train": 1, "images.n_scored": 1}
    command.at_least(config, {**least, "images.positions": 1, "n_blocks": 2})
    layers, networks = (read(config), []) if with_files else make(config, run)
    layer, chunk = config.vary.layer or list(layers.pairs)[-1], config.chunk or None
    if layer not in layers.pairs:
        raise ValueError(f"config.vary.layer must be one of {', '.join(layers.pairs)}, got {layer!r}.")
    plan = planned(config, layers)
    # Each setting with each value that it takes beside the one that it has in `sae`.
    varied = [(name, value) for name in VARY for value in config.vary[name] if value != config.sae[name]]
    variants = [planned(config, layers.only([layer]), **{name: value}) for name, value in varied]
    run.claim()
    made_at = time.perf_counter()

    compared = plan.run(run.path / "comparison", chunk=chunk)
    compared.refuse_missing()
    rows = command.renamed(compared.summary(), pair="layer")
    differences = command.renamed(compared.differences(DIFFERENCES), pair="layer")
    described, curves = compared.describe(), []
    for number, ((name, value), variant) in enumerate(zip(varied, variants, strict=True)):
        other = variant.run(run.path / f"{name}_{number}", chunk=chunk)
        at = {"setting": name, "value": value}
        curves += [{**at, **row} for row in command.renamed(other.summary(), pair="layer")]
        described += [{**at, **row} for row in other.describe() if row["view"] != "neuron"]
    seconds = {"activations": made_at - started, "views and scores": time.perf_counter() - made_at}
    tables: dict[str, Any] = {"differences": differences, "views": described, "curves": curves, "networks": networks}
    tables |= {"doubts": command.doubts(compared), "answer": compared.answer(DIFFERENCES)}
    return run.finish(rows, seconds, **{name: table for name, table in tables.items() if table})


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment by layer, a panel a metric; below, a row for each setting that was varied."""
    rows, varied = results["rows"], results.get("curves", [])
    metrics, settings = plotting.column(rows, "metric"), plotting.column(varied, "setting")
    figure, axes = plotting.panels(1 + len(settings), len(metrics), (4.2 * len(metrics), 3.4 + 2.6 * len(settings)))
    plotting.grouped_panels(axes[0], plotting.by_metric(rows), "layer")
    for line, setting in zip(axes[1:], settings, strict=True):
        points = plotting.where(varied, setting=setting)
        # The bars have a value of this setting too.
        layer, names, value = points[0]["layer"], plotting.column(points, "comparison"), run.config["sae"][setting]
        points += [{**row, "value": value} for row in plotting.where(rows, layer=layer) if row["comparison"] in names]
        for axis, metric in zip(line, metrics, strict=True):
            plotting.over_setting(axis, plotting.where(points, metric=metric), "value")
            axis.set(xlabel=f"{setting} of the SAEs, {layer}", ylabel="held-out score")
    over = (
        "images, for the networks and views at hand, maps fitted again"
        if run.config["source"]
        else f"{rows[0]['n_seeds']} networks"
    )
    plotting.finish(figure, f"Bars: 95 % confidence interval over {over}", path=run.figure)


if __name__ == "__main__":
    command.main("network_alignment", get_config(), compute, draw, files=FILES)

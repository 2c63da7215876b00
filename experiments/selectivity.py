"""What do single units stand for: are the latents of sparse autoencoders more selective for categories than neurons are?

Trains small networks to name textured shapes, and fits an SAE and its controls to a layer of each, on other images than are
scored. Or takes activations of yours: --config.activations=FILE with --config.images=FOLDER, of one folder a category, or
--config.labels=FILE. Of each view: how well the best unit tells a category from all others (d', chosen on one half of the
images and measured on the other), how many units do so with a d' above a threshold, over how many units a category is spread,
and to how many categories a selective unit responds. top_images.png shows what drives the best.

Latents are several times as many as neurons, and few are active at once: look at what the untrained SAE (random_sae), of which
the same is true, leaves of the difference, and at components (signed_pca, ica), another basis of the same units. A latent that
stands for a part of a category has a low d' for the whole of it.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import plotting, views
from superpos.activations import read_labelled
from superpos.comparison import default_views
from superpos.folds import split_stratified
from superpos.images import Images
from superpos.networks import CNN, Classifier, ShapesAndTextures, seeds
from superpos.results import Run

FILES = ("activations", "images", "labels")
SHOWN = {"neuron": "neuron", "sae": "latent"}  # in top_images.png
TASK = ShapesAndTextures()


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.activations = ""  # file.npy, file.npz:key or a Zarr folder, instead of networks that are trained here
    config.axes = ""  # names of its axes where they are not samples,...,units; a sample is one image
    config.images = ""  # folder or zip, whose sorted names are the samples, as `experiments.extract` has them
    config.labels = ""  # whole numbers, one an image; by default the folder in which an image lies is its category
    config.train_fraction = 0.5  # of the images of the activations, which fit the views and are not scored
    config.seed = 0  # of all keys
    config.n_seeds = 3  # networks, each with fits of its own; or fits to the activations
    config.chunk = 1  # networks, and fits, in flight at once; 0: as many as fit into memory
    config.views = ("neuron", "sae", "random_sae", "signed_pca", "ica")  # and rotation; ica is slow with thousands of units
    config.threshold = 1.0  # d' above which a unit counts as selective
    config.n_categories = 5  # in top_images.png
    config.n_top = 10  # images of a unit there
    config.network = ConfigDict(
        {
            "widths": (16, 32, 64),  # channels of each block
            "layer": "block3",  # stem, block1, block2, ...
            "position": "mean",  # over the positions of the layer; or all of them, as samples of one image
            "steps": 2_000,
            "batch_size": 32,
            "learning_rate": 2e-3,  # AdamW, cosine decay
            "n_train": 8_192,  # images that fit the views
            "n_scored": 6_000,
        }
    )
    # Few latents are active, since the layer's mean has hardly more dimensions than there are classes. The rate decays to 0.
    optimisation = {"steps": 2_000, "batch_size": 512, "learning_rate": 3e-3}
    config.sae = ConfigDict({"architecture": "topk", "expansion": 4.0, "k": 4, **optimisation})
    return config


class Material(NamedTuple):
    """Activations `(networks, images, positions, units)`, of the scored images the categories, and their numbers among all."""

    training: Any
    scored: Any
    sets: sp.selectivity.Sets
    numbers: np.ndarray


def keys_of(config: ConfigDict) -> Any:
    """Of networks, of what they learn from, of the images that they are looked at with, and of views."""
    return jax.random.split(jax.random.key(config.seed), 4)


def read(config: ConfigDict) -> Material:
    """Activations from a file, as of one network; images are divided category by category."""
    axes = [name.strip() for name in config.axes.split(",")] if config.axes else None
    with command.naming(config, share="train_fraction"):
        told = read_labelled(config.activations, labels=config.labels or None, images=config.images or None, axes=axes)
        fitted, scored = split_stratified(told.labels, config.train_fraction, config.seed)
    training, of_scored, sets = told.units[fitted], told.units[scored], {"category": (told.labels[scored], told.categories)}
    return Material(training[None], of_scored[None], sets, scored)


def make(config: ConfigDict, run: Run) -> tuple[Material, list[dict[str, Any]]]:
    """A layer of networks that are trained here, and their accuracy."""
    settings, (networks_key, task_key, images_key, _) = config.network, keys_of(config)
    if settings.position not in ("mean", "all"):
        raise ValueError(f"config.network.position must be mean or all, got {settings.position!r}.")
    model, each = Classifier(CNN(TASK.n_classes, tuple(settings.widths))), jax.random.split(networks_key, config.n_seeds)
    train = seeds.trainer(model, TASK, **{name: settings[name] for name in ("steps", "batch_size", "learning_rate")})
    training_key, scored_key = (jax.random.fold_in(images_key, i) for i in range(2))

    def look(params: Any) -> dict[str, Any]:
        see = functools.partial(seeds.activations, layers=(settings.layer,), positions=settings.position)
        parts = {"training": (training_key, settings.n_train), "scored": (scored_key, settings.n_scored)}
        return {part: see(model, TASK, params, *images)[settings.layer] for part, images in parts.items()}

    with command.naming(config, layers="network.layer"):
        shapes = jax.eval_shape(lambda: look(jax.vmap(train, (0, None))(each, task_key)["params"]))
    sets = TASK.sets(np.asarray(seeds.classes(TASK, scored_key, settings.n_scored)))
    known: dict[str, Any] = {"sets": sets, "numbers": np.arange(settings.n_scored)}
    planned(config, Material(**shapes, **known))  # what is wrong with the settings shows before anything is written
    run.claim()
    trained = sp.sweep(train, {}, each, data_key=task_key, chunk=config.chunk or None, workdir=run.path / "networks").load()
    return Material(**jax.jit(look)(trained["params"]), **known), [sp.stats.over_seeds(trained["accuracy"])]


def planned(config: ConfigDict, material: Material) -> tuple[dict[str, views.View], tuple[np.ndarray, ...]]:
    """The views, and both halves of the scored images: what is chosen on the first is measured and shown on the second."""
    known = {**default_views(views.SAE(**config.sae)), "rotation": views.Rotation()}
    if not config.views or not set(config.views) <= set(known):
        raise ValueError(f"config.views must be some of {', '.join(known)}, got {', '.join(config.views) or 'none'}.")
    chosen, (_, n_images, n_positions, n_units) = {name: known[name] for name in config.views}, material.training.shape
    fields = {name: f"sae.{name}" for name in config.sae} | {"n_components": "views: n_components"}
    fields["halves"] = "train_fraction: halves" if config.activations else "network.n_scored: halves"
    with command.naming(config, **fields):
        for view in chosen.values():
            view.check(n_units, n_images * n_positions)
        return chosen, sp.selectivity.halve(material.sets, config.seed + 1)


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Gets the activations, fits views, and tabulates how selective their units are."""
    command.at_least(config, {"n_seeds": 1, "n_categories": 1, "n_top": 1, "network.steps": 2, "network.n_scored": 1})
    started = time.perf_counter()
    material, accuracy = (read(config), []) if any(config[field] for field in FILES) else make(config, run)
    chosen, halves = planned(config, material)
    run.claim()
    made_at, n_networks = time.perf_counter(), len(material.scored)

    def measure(seed: Any, data: dict[str, Any]) -> dict[str, Any]:
        training, scored = (data[part][jnp.minimum(seed, n_networks - 1)] for part in ("training", "scored"))
        return sp.selectivity.of_views(chosen, jax.random.fold_in(data["key"], seed), training, scored, material.sets, halves)

    data = {"key": keys_of(config)[3], "training": material.training, "scored": material.scored}
    options: dict[str, Any] = {"chunk": config.chunk or None, "workdir": run.path / "views"}
    swept = sp.sweep(measure, {}, np.arange(config.n_seeds), data_key=data, **options).load()
    # A view that is not random has one fit to the activations of one network.
    n_fits = {name: config.n_seeds if view.random else n_networks for name, view in chosen.items()}
    d = {name: {of: one[: n_fits[name]] for of, one in swept["d"][name].items()} for name in chosen}
    of_first = {name: of_sets[next(iter(material.sets))] for name, of_sets in d.items()}
    fits, shown = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), swept["fits"]), jnp.asarray(material.scored[0][halves[1]])
    flat, of_shown = shown.reshape(-1, shown.shape[-1]), {name: chosen[name] for name in SHOWN if name in chosen}
    units = {name: k.reshape(*shown.shape[:2], -1) for name, k in views.encode_all(of_shown, fits, flat).items()}
    first = {name: of_seeds[0] for name, of_seeds in of_first.items()}
    top = sp.selectivity.examples(material.sets, first, units, halves[1], config.n_categories, config.n_top)
    described = {name: jax.tree.map(lambda values: float(values.mean()), told) for name, told in swept["described"].items()}
    return run.finish(
        sp.selectivity.table(d, config.threshold),
        {"activations": made_at - started, "views and measures": time.perf_counter() - made_at},
        views=[{"units": name, **told} for name, told in described.items() if told],
        **({"accuracy": accuracy} if accuracy else {}),
        curves=sp.selectivity.curves(of_first),
        top={"rows": [{**row, "images": material.numbers[row["images"]].tolist()} for row in top]},
        n_scored=len(material.numbers),
    )


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: units above any threshold, the best unit, and how many a category is spread over; and the top images."""
    rows, config, curves = results["rows"], ConfigDict(run.config), results["curves"]
    figure, ((left, *others),) = plotting.panels(1, 3, (11, 4), width_ratios=(1.3, 1, 1))
    plotting.lines(left, curves["thresholds"], curves["above"])
    left.axvline(config.threshold, color="#999999", linewidth=0.8, linestyle=":")
    left.set(xlabel="threshold of d'", ylabel=f"units above it, a {rows[0]['set']}", xlim=0, yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    labels = {"best": "d' of the best unit, held out", "effective": "units that a category is spread over"}
    for axis, (number, label) in zip(others, labels.items(), strict=True):
        bars = [{**row, "mean": row[number], "ci95": row[f"{number}_ci95"]} for row in rows]
        plotting.grouped_bars(axis, bars, "set", "units")
        axis.set(ylabel=label, xlabel="categories")
    plotting.finish(figure, f"{results['n_scored']} images; {plotting.caption(rows)}", path=run.figure)
    if config.activations and not config.images:
        return
    top, key = results["top"]["rows"], seeds.part_key(keys_of(config)[2], 1)
    made = {} if config.images else seeds.images(TASK, key, (number for row in top for number in row["images"]))
    image = Images(config.images).thumbnail if config.images else made.__getitem__
    plotting.image_grid(
        [[image(number) for number in row["images"]] for row in top],
        [f"{row['category']}\n{SHOWN[row['kind']]} {row['unit']}: d' {row['d_prime']:.1f}, {row['hits']} fit" for row in top],
        run.figure.with_stem("top_images"),
        title="images that drive the best neuron and latent most (chosen on other images), and how many are of the category",
        colours=[plotting.COLOURS[row["kind"]] for row in top],
    )


if __name__ == "__main__":
    command.main("selectivity", get_config(), compute, draw, files=FILES)

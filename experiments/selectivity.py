"""What do single units stand for: are the latents of sparse autoencoders more selective for categories than neurons are?

Trains small networks to name textured shapes, and a TopK SAE on a layer of each, with other images than are scored. Or takes
activations of yours: --config.activations=FILE with --config.images=FOLDER, of one folder a category, or --config.labels=FILE.
Compares neurons, latents, and latents of the same SAE untrained: how well the best unit tells a category from all others (d',
chosen on one half of the images and measured on the other), how many units do so with a d' above a threshold, over how many
units a category is spread, and to how many categories a selective unit responds. top_images.png shows what drives the best.

Latents are several times as many as neurons, and few are active at once: look at what the untrained SAE, of which the same is
true, leaves of the difference. A latent that stands for a part of a category has a low d' for the whole of it.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import align, command, network_alignment
from superpos import data as readers
from superpos import plotting
from superpos.images import Images
from superpos.networks import CNN, Classifier, ShapesAndTextures
from superpos.results import Run

KINDS = ("neuron", "sae", "random_sae")
FILES = ("activations", "images", "labels")
TASK = ShapesAndTextures()


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.activations = ""  # file.npy, file.npz:key or a Zarr folder, instead of networks that are trained here
    config.axes = ""  # names of its axes where they are not samples,...,units; a sample is one image
    config.images = ""  # folder or zip, whose sorted names are the samples, as `experiments.extract` has them
    config.labels = ""  # whole numbers, one an image; by default the folder in which an image lies is its category
    config.train_fraction = 0.5  # of the images of the activations, which train the SAEs and are not scored
    config.seed = 0  # of all keys
    config.n_seeds = 3  # networks, each with an SAE; or SAEs of the activations
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
            "n_train": 8_192,  # images that train the SAEs
            "n_scored": 6_000,
        }
    )
    config.sae = ConfigDict(
        {
            "expansion": 4,  # latents for each unit
            "k": 4,  # a few, since the layer's mean has hardly more dimensions than there are classes
            "steps": 2_000,
            "batch_size": 512,
            "learning_rate": 3e-3,  # cosine decay
        }
    )
    return config


class Labelled(NamedTuple):
    """The images that are scored, and what they are.

    Attributes:
        labels: by name of a set of categories, the category of each image, `(n_images,)`.
        names: of the categories of each set.
        numbers: of the images among all that there are, `(n_images,)`.
    """

    labels: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]
    numbers: np.ndarray


def made(config: ConfigDict) -> Labelled:
    """The scored images of the built-in task, with three sets of categories."""
    key, n_images = network_alignment.images_key(config, "scored"), config.network.n_scored
    batches = range(math.ceil(n_images / network_alignment.BATCH))
    made = [network_alignment.image_batch(TASK, key, i)[1] for i in batches]
    classes = np.concatenate([np.zeros(0, int), *made])[:n_images]
    shapes, textures = np.divmod(classes, len(TASK.textures))
    return Labelled(
        {"class": classes, "shape": shapes, "texture": textures},
        {"class": TASK.classes, "shape": TASK.shapes, "texture": TASK.textures},
        np.arange(n_images),
    )


def images(config: ConfigDict) -> Callable[[int], Any] | None:
    """From the number of an image to the image, for figures; None where there are none."""
    if config.images:
        found = Images(config.images)

        def small(number):
            image = found[number]
            image.thumbnail((128, 128))
            return image

        return small
    key, size = network_alignment.images_key(config, "scored"), network_alignment.BATCH
    batch = functools.cache(lambda i: jax.device_get(network_alignment.image_batch(TASK, key, i)[0]))
    return None if config.activations else lambda number: batch(number // size)[number % size]


def read(config: ConfigDict) -> tuple[Labelled, dict[str, np.ndarray]]:
    """The scored images of files; and activations `(1, images, positions, units)`, `training` those of SAEs, and `scored`.

    Raises:
        ValueError: files that are missing, or do not fit each other.
    """
    axes = [name.strip() for name in config.axes.split(",")] if config.axes else None
    flat, groups = readers.flatten(_load(config, "activations"), axes)
    n_images = len(flat) if groups is None else groups[-1] + 1
    units = flat.reshape(n_images, -1, flat.shape[1]).astype(np.float32)
    if not np.isfinite(units).all():
        raise ValueError(f"config.activations holds {np.size(units) - np.isfinite(units).sum()} NaN or infinite values.")
    if not config.images and not config.labels:
        raise ValueError("config.activations needs categories: pass --config.labels=FILE, or --config.images=FOLDER.")
    found = Images(config.images) if config.images else None
    names = found.names if found else []
    if config.images and len(names) != n_images:
        raise ValueError(f"config.images must be the {n_images} samples of config.activations, got {len(names)} images.")
    if config.labels:
        field, given = "labels", np.asarray(_load(config, "labels"))
        if given.shape != (n_images,) or given.dtype.kind not in "iu":
            got = f"{given.dtype} of shape {given.shape}"
            raise ValueError(f"config.labels must be {n_images} whole numbers, one a sample of config.activations, got {got}.")
    else:
        field, given = "images", np.array(found.folders if found else [])
    values, labels = np.unique(given, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"config.{field} must have at least 2 categories (of images: folders that they lie in), got 1.")
    if not 0 < config.train_fraction < 1:
        raise ValueError(f"config.train_fraction must be above 0 and below 1, got {config.train_fraction}.")
    # Dealt out category by category, so that each has its share of both sides.
    order = _by_category(labels, config.seed)
    scored = np.sort(order[np.diff(np.floor(np.arange(n_images + 1) * config.train_fraction)) == 0])
    if len(scored) == n_images:
        raise ValueError(f"config.train_fraction={config.train_fraction} of {n_images} images leaves none to train the SAEs.")
    labelled = Labelled({"category": labels[scored]}, {"category": tuple(map(str, values))}, scored)
    return labelled, {"training": np.delete(units, scored, axis=0)[None], "scored": units[scored][None]}


def _load(config, field):
    try:
        return readers.load(config[field])
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{field}: {error}") from error


def _by_category(labels, seed):
    """Indices sorted by label, in random order within each."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


class Study:
    """The pure functions: `represent` images, `disentangle` a layer and measure its units."""

    def __init__(self, config: ConfigDict, labelled: Labelled):
        self.config, self.labelled = config, labelled
        self.classifier = Classifier(CNN(TASK.n_classes, tuple(config.network.widths)))
        order = _by_category(next(iter(labelled.labels.values())), config.seed + 1)
        self.halves = np.sort(order[::2]), np.sort(order[1::2])  # of the images
        for name, labels in labelled.labels.items():
            names = labelled.names[name]
            fewest = np.min([np.bincount(labels[half], minlength=len(names)) for half in self.halves], axis=0)
            if fewest.min() < 2:
                n, which = np.sum(labels == fewest.argmin()), names[fewest.argmin()]
                raise ValueError(f"{name} {which!r} must have at least 2 scored images in each half, got {n} in all.")

    def represent(self, networks):
        """Activations of networks to the images that train SAEs and to those that are scored, as `read` has them."""
        settings, found = self.config.network, {}
        for part, n in zip(network_alignment.PARTS, (settings.n_train, settings.n_scored), strict=True):
            key = network_alignment.images_key(self.config, part)
            found[part] = network_alignment.look(self.classifier, TASK, networks, key, n, (settings.layer,), settings.position)
        return {part: layers[settings.layer] for part, layers in found.items()}

    def sae(self, n_units):
        """The SAE of a layer of so many units."""
        return sp.sae.TopK(n_units, self.config.sae.expansion * n_units, self.config.sae.k)

    def disentangle(self, seed, data):
        """One SAE before and after training, and how good it is on the scored images."""
        network = jnp.minimum(seed, len(data["scored"]) - 1)
        n_units = data["scored"].shape[-1]
        training, scored = (data[part][network].reshape(-1, n_units) for part in ("training", "scored"))
        sae = self.sae(n_units)
        start, trained = align.disentangle(sae, jax.random.fold_in(data["key"], seed), training, self.config.sae)
        report = sp.evaluation.evaluate(sae, trained, scored)
        return {
            "sae": trained,
            "random_sae": start,
            "explained": 1 - report.fvu,
            "l0": report.l0,
            "dead": report.dead,
        }

    def encode(self, params, units):
        """Latents of activations whose last axis is units."""
        flat = units.reshape(-1, units.shape[-1])
        return self.sae(flat.shape[1]).encode(params, flat).reshape(*units.shape[:-1], -1)

    def d_primes(self, units):
        """By set of categories, d' of `(images, positions, units)` on each half of the images, `(2, categories, units)`."""
        units, found = np.asarray(units), {}
        for name, labels in self.labelled.labels.items():
            n = len(self.labelled.names[name])
            parts = [(units[half], np.repeat(labels[half], units.shape[1])) for half in self.halves]
            halves = [sp.selectivity.d_prime(part.reshape(-1, part.shape[-1]), of_part, n) for part, of_part in parts]
            found[name] = np.stack(halves)
        return found


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains networks and SAEs, and tabulates how selective units are."""
    for field in ("n_seeds", "n_categories", "n_top"):
        if config[field] < 1:
            raise ValueError(f"config.{field} must be at least 1, got {config[field]}.")
    if not config.activations and (config.images or config.labels):
        raise ValueError("config.images and config.labels go with --config.activations=FILE, which is empty.")
    if config.network.position not in ("mean", "all"):
        raise ValueError(f"config.network.position must be mean or all, got {config.network.position!r}.")
    labelled, data = read(config) if config.activations else (made(config), {})
    study = Study(config, labelled)
    train = network_alignment.network(study.classifier, TASK, config.network)
    keys = network_alignment.keys(config)
    seeds = jax.random.split(keys.networks, config.n_seeds)
    # Whatever is wrong with the settings shows here, before anything is written.
    shapes = data or jax.eval_shape(lambda: study.represent(jax.vmap(train, (0, None))(seeds, keys.task)["params"]))
    jax.eval_shape(study.disentangle, 0, {**shapes, "key": keys.saes})
    run.claim()

    started, tables = time.perf_counter(), {}
    if not config.activations:
        networks = sp.sweep(train, {}, seeds, data_key=keys.task, chunk=1, workdir=run.path / "networks").load()
        tables["accuracy"] = [sp.stats.over_seeds(networks["accuracy"])]
        data = jax.jit(study.represent)(networks["params"])
    represented = time.perf_counter()
    found = sp.sweep(
        study.disentangle,
        {},
        np.arange(config.n_seeds),
        data_key={**data, "key": keys.saes},
        chunk=1,
        workdir=run.path / "saes",
    ).load()
    tables["variance_explained"] = [
        {**sp.stats.over_seeds(found["explained"]), **{name: float(np.mean(found[name])) for name in ("l0", "dead")}}
    ]
    disentangled, encode = time.perf_counter(), jax.jit(study.encode)
    layers = list(data["scored"])  # one a network
    measured = {"neuron": [study.d_primes(layer) for layer in layers]}
    for kind in KINDS[1:]:
        saes = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], found[kind]) for seed in range(config.n_seeds)]
        measured[kind] = [study.d_primes(encode(sae, layers[min(i, len(layers) - 1)])) for i, sae in enumerate(saes)]
    d_primes = {kind: jax.tree.map(lambda *seeds: np.stack(seeds), *found) for kind, found in measured.items()}
    seconds = {
        "networks": represented - started,
        "saes": disentangled - represented,
        "measures": time.perf_counter() - disentangled,
    }
    return run.finish(
        tabulate(labelled, d_primes, config.threshold),
        seconds,
        **tables,
        curves=curves(d_primes),
        top={"rows": most_driven(study, d_primes, np.asarray(data["scored"][0]), found["sae"])},
        n_scored=len(labelled.numbers),
    )


def tabulate(labelled: Labelled, d_primes: dict[str, dict[str, np.ndarray]], threshold: float) -> list[dict[str, Any]]:
    """A row for each set of categories and kind of units, of means over categories or units.

    `best`: d' of the most selective unit of a category, on the half that it was not chosen on; of d' averaged over halves:
    `above`, units of a category above the threshold; `effective`, over how many units a category is spread; `selective`, share
    of units above the threshold for any category; `categories`, how many they are so for.
    """
    rows = []
    for name in labelled.names:
        for kind in KINDS:
            measured: dict[str, list[Any]] = {}
            for halves in d_primes[kind][name]:  # of each seed
                crossed = [sp.selectivity.most_selective(*pair)[1] for pair in (halves, halves[::-1])]
                d = halves.mean(axis=0)
                above = d > threshold
                selective = above.any(axis=0)
                values = {
                    "best": np.mean(crossed),
                    "above": above.sum(axis=1).mean(),
                    "effective": np.mean(sp.selectivity.participation_ratio(d)),
                    "selective": selective.mean(),
                    "categories": above.sum(axis=0)[selective].mean() if selective.any() else math.nan,
                }
                for measure, value in values.items():
                    measured.setdefault(measure, []).append(value)
            row = {"set": name, "units": kind, "n_units": d.shape[1]}
            for measure, of_seeds in measured.items():
                summary = sp.stats.over_seeds(np.array(of_seeds))
                row |= {measure: summary["mean"], f"{measure}_ci95": summary["ci95"]}
            rows.append({**row, "n_seeds": summary["n_seeds"]})
    return rows


def curves(d_primes: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Units of a category of the first set above each of many `thresholds`: of each kind, `(seeds, thresholds)`."""
    ds = {kind: next(iter(of_sets.values())).mean(axis=1) for kind, of_sets in d_primes.items()}
    thresholds = np.linspace(0, max(d[np.isfinite(d)].max() for d in ds.values()), 60)
    above = {kind: [[float((d > t).sum(axis=1).mean()) for t in thresholds] for d in of_seeds] for kind, of_seeds in ds.items()}
    return {"thresholds": thresholds.tolist(), "above": above}


def most_driven(
    study: Study, d_primes: dict[str, Any], scored: np.ndarray, saes: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """What drives the best neuron and latent of some categories, of the first seed: chosen on one half, shown on the other.

    Returns a row of the figure each: `images` are the numbers of those that drive the unit most, no more than do so at all, of
    which `hits` belong to the category.
    """
    labelled, config = study.labelled, study.config
    name, names = next(iter(labelled.names.items()))
    shown = np.unique(np.linspace(0, len(names) - 1, min(config.n_categories, len(names))).round().astype(int))
    _, half = study.halves
    groups = np.repeat(np.arange(len(half)), scored.shape[1])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), saes)
    units = {"neuron": scored[half], "sae": np.asarray(study.encode(params, jnp.asarray(scored[half])))}
    rows = []
    for kind, found in units.items():
        activations = found.reshape(len(groups), -1)
        chosen, d = (np.asarray(found)[shown] for found in sp.selectivity.most_selective(*d_primes[kind][name][0]))
        top = sp.selectivity.top(activations[:, chosen], min(config.n_top, len(half)), groups)
        for category, unit, value, samples in zip(shown, chosen, d, np.asarray(top), strict=True):
            images = half[groups[samples[activations[samples, unit] > 0]]]
            hits = int(np.sum(labelled.labels[name][images] == category))
            row = {"category": names[category], "kind": kind, "unit": int(unit), "d_prime": float(value), "hits": hits}
            rows.append({**row, "images": labelled.numbers[images].tolist()})
    return sorted(rows, key=lambda row: names.index(row["category"]))


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: units above any threshold, the best unit, and how many a category is spread over; and the top images."""
    rows, colours = results["rows"], plotting.COLOURS
    sets = list(dict.fromkeys(row["set"] for row in rows))
    labels = {"neuron": "neurons", "sae": "latents", "random_sae": "latents, untrained SAE"}
    figure, ((left, middle, right),) = plotting.panels(1, 3, (11, 3.8), width_ratios=(1.5, 1, 1))
    for kind, of_seeds in results["curves"]["above"].items():
        for seed, above in enumerate(of_seeds):
            left.plot(results["curves"]["thresholds"], above, color=colours[kind], label=labels[kind] if seed == 0 else None)
    threshold = run.config["threshold"]
    left.axvline(threshold, color="#999999", linewidth=0.8, linestyle=":")
    left.set(xlabel=f"threshold of d' ({sets[0]})", ylabel=f"units above it, a {sets[0]}", xlim=0, yscale="log")
    left.legend(fontsize=8, frameon=False)
    left.yaxis.set_major_formatter("{x:g}")
    for axis, measure in ((middle, "best"), (right, "effective")):
        for i, kind in enumerate(KINDS):
            chosen = [{**row, "mean": row[measure], "ci95": row[f"{measure}_ci95"]} for row in rows if row["units"] == kind]
            axis.bar(
                np.arange(len(sets)) + 0.27 * (i - 1),
                plotting.means(chosen),
                0.25,
                yerr=plotting.errors(chosen),
                color=colours[kind],
                error_kw={"capsize": 2, "ecolor": "#777777"},
            )
        axis.set_xticks(range(len(sets)), sets)
        axis.set_ylim(bottom=0)
    middle.set(ylabel="d' of the best unit, held out", xlabel="categories")
    right.set(ylabel="units that a category is spread over", xlabel="categories")
    seeds = plotting.caption([row for row in rows if row["units"] == "sae"])
    figure.suptitle(f"{results['n_scored']} images, {seeds}", fontsize=9, color="#444444")
    plotting.save(figure, run.figure)

    image, top = images(ConfigDict(run.config)), results["top"]["rows"]
    if image is None:
        return
    units = {"neuron": "neuron", "sae": "latent"}
    plotting.image_grid(
        [[image(number) for number in row["images"]] for row in top],
        [f"{row['category']}\n{units[row['kind']]} {row['unit']}: d' {row['d_prime']:.1f}, {row['hits']} fit" for row in top],
        run.path / "top_images.png",
        title="images that drive the best neuron and latent most (chosen on other images), and how many are of the category",
        colours=[colours[row["kind"]] for row in top],
    )


if __name__ == "__main__":
    command.main("selectivity", get_config(), compute, draw, files=FILES)

"""Do latents of sparse autoencoders predict a brain's responses better than the neurons of a network do?

Takes a recording and activations of a network to the same images, one file a layer; or simulates both, from known features.
Fits SAEs and controls on each layer and on the recording, on images that are not scored, and scores what they read against
recorded sites. Look at sae->site against neuron->site, and at the controls: random_sae->site, untrained latents, of which as
many are active; pca->site, principal components split into their two signs, and ica->site, independent components: other bases,
which cannot undo superposition. `few_sae` and `few_random_sae` have only as many latents as there are neurons: those that vary
most over the images that fit views. sae->sae has an SAE of the sites on the other side; its control is random_sae->random_sae.
Latents and components of several positions are averaged over an image before they predict its sites.

`ci95` is over images and `ci95_units` over sites, both for the views at hand. `corrected` is the mean over sites of r divided
by √reliability, without sites of low reliability (`n_excluded`), where every stimulus has repeats. Sites of the simulation mix
known features: feature->site is what these say, and oracle->site sparse inference that knows how the neurons mix them.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import data as readers
from superpos import plotting, views
from superpos.activations import Side, recorded
from superpos.brain import Recording
from superpos.comparison import Comparison, Plan, default_views
from superpos.images import Images
from superpos.results import Run

FILES = ("activations", "train", "path", "folds", "sessions", "stimulus_set")
BRAIN, FEATURES = "recording", "features"
SITES = ("neuron", "sae", "random_sae", "pca", "ica", "few_sae", "few_random_sae")
LATENTS = ("sae->sae", "random_sae->random_sae")
# What is subtracted from what.
DIFFERENCES = (
    ("sae->site", "neuron->site"),
    ("sae->site", "random_sae->site"),
    ("sae->site", "pca->site"),
    ("sae->site", "ica->site"),
    ("few_sae->site", "neuron->site"),
    ("few_sae->site", "few_random_sae->site"),
    ("sae->sae", "neuron->site"),
    ("sae->sae", "random_sae->random_sae"),
)


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.recording = "simulated"  # or v4, nsd, algonauts, brainscore, array: see the readers of sp.brain
    config.path = ""  # of the recording: a folder, or a file of brainscore and array
    config.session = ""  # of v4
    config.subject = 1  # of nsd and algonauts
    config.axes = "stimuli,units"  # of array
    config.sessions = ""  # of array: a file with the session's number of each stimulus; sites are z-scored within sessions
    config.time_bin = ""  # of brainscore, where there are several: its number, from 0
    config.stimulus_set = ""  # of brainscore: a CSV that names the image of each stimulus
    config.images = ""  # folder or zip of nsd, brainscore and array, whose images the figures show
    config.select = ""  # sites, by their metadata, such as region=IT
    # Files, one a layer: (images, units) or (images, positions, units), in the recording's order; those of experiments.extract
    # are brought into it.
    config.activations = ()
    config.layers = ()  # their names, by default those of the files
    config.train = ()  # of other images, to fit views on instead of a part of the images; one file a layer, or more
    config.train_fraction = 0.5  # of the images, which fit views and are not scored; 0 with `train`: no SAEs of sites
    config.folds = ""  # file of the fold of each image, -1 for one that is left out
    config.n_folds = 5  # where no file gives them
    config.n_blocks = 10  # parts of a fold, left out in turn for intervals over images
    config.n_seeds = 3  # SAEs of each layer
    config.seed = 0  # of all keys
    config.chunk = 8  # fits, or comparisons, in flight at once
    config.metrics = ("ridge", "semi_match", "soft_match")
    config.minimum = 0.1  # reliability that a site must have to be corrected for noise
    config.n_top = 8  # latents that are shown of each layer, and images of each
    config.sae = ConfigDict(
        {
            "architecture": "topk",  # of sp.sae
            "expansion": 4.0,  # latents for each unit
            "k": 8,
            "share": 1.0,  # of the samples that train SAEs, image by image in random order
            "steps": 2_000,
            "batch_size": 512,
            "learning_rate": 3e-3,  # cosine decay
        }
    )
    config.simulation = ConfigDict(
        {
            "n_stimuli": 4_000,
            "n_features": 64,
            "probability": 0.05,  # of a feature being active
            "n_units": (16, 32),  # of each layer, whose neurons carry all features: the fewer, the more superposed
            "n_sites": 60,
            "mixing": 4,  # features that a site mixes
            "n_repeats": 4,
            "reliability": (0.05, 0.95),  # of the first and the last site; those between are evenly spaced
            "penalty": 0.01,  # of the oracle
        }
    )
    return config


def load(config: ConfigDict) -> Recording:
    """The recording that `config.recording` names.

    Raises:
        ValueError: unknown, not there, or not what its reader takes; a selection that fits no site.
    """
    if config.recording not in sp.brain.RECORDINGS:
        known = ", ".join(["simulated", *sp.brain.RECORDINGS])
        raise ValueError(f"config.recording must be one of {known}, got {config.recording!r}.")
    taken = sp.brain.options(config.recording)
    for field in ("path", "session") if "session" in taken else ("path",):
        if not config[field]:
            raise ValueError(f"config.{field} is empty, but {config.recording} needs one: pass --config.{field}=...")
    given: dict[str, Any] = {name: config[name] or None for name in taken if name in config}
    if config.time_bin and not config.time_bin.isdecimal():
        raise ValueError(f"config.time_bin must be a number from 0, got {config.time_bin!r}.")
    given |= {"time_bin": int(config.time_bin) if config.time_bin else None} if "time_bin" in taken else {}
    try:
        recording = sp.brain.load(config.recording, config.path, **given)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.path: {error}") from error
    with command.naming(config):
        return recording.where(config.select) if config.select else recording


def simulate(config: ConfigDict) -> tuple[Recording, dict[str, Side]]:
    """A recording, its features, and layers of which each carries these in superposition."""
    settings, key = config.simulation, jax.random.split(jax.random.key(config.seed), 5)[1]
    recording, truth = sp.brain.simulate(
        key,
        settings.n_stimuli,
        settings.n_sites,
        settings.n_repeats,
        reliability=np.linspace(*settings.reliability, settings.n_sites),
        features=sp.features.SparseFeatures(settings.n_features, settings.probability),
        mixing=settings.mixing,
    )
    sides = {}
    for n_units in settings.n_units:
        mixing = sp.arrangements.unit_norm(jax.random.fold_in(key, n_units), settings.n_features, n_units)
        oracle = views.Oracle(mixing, penalty=settings.penalty, upper=np.inf, steps=500)
        sides[f"{n_units} units"] = Side(np.asarray(sp.linalg.matmul(truth.features, mixing)), views={"oracle": oracle})
    sides[FEATURES] = Side(np.asarray(truth.features), views={"feature": views.Neuron()})
    return recording, sides


def read(config: ConfigDict) -> tuple[Recording, dict[str, Side]]:
    """The recording, sites z-scored, and the sides by name: the recording, layers, and of a simulation its features.

    Raises:
        ValueError: a file that is missing, or files and settings that do not fit each other.
    """
    files, others = tuple(config.activations), tuple(config.train)
    if config.recording == "simulated":
        if files or others or config.path:
            known = ", ".join(sp.brain.RECORDINGS)
            raise ValueError(f"config.recording is simulated, which takes no files: name one of {known} with them.")
        recording, sides = simulate(config)
    else:
        recording = load(config)
        if not files:
            raise ValueError("config.activations names no file: pass --config.activations=\"('layer.npy',)\".")
        names = tuple(config.layers) or tuple(Path(path).name for path in files)
        if len(set(names)) != len(files):
            raise ValueError(f"config.layers must name each of the {len(files)} files, and none alike, got {names}.")
        n, rest = divmod(len(others), len(files))
        if rest:
            raise ValueError(
                f"config.train must name as many files as config.activations, {len(files)}, or twice, three times as many, "
                f"those of the first layer first, got {len(others)}."
            )
        layers = zip(names, files, strict=True)
        sides = {name: Side(path, train=others[i * n :][:n] or None) for i, (name, path) in enumerate(layers)}
    try:
        recording = recording.zscored()
    except ValueError as error:
        raise ValueError(f"config.recording: {error}") from error
    with command.naming(config):
        return recording, {BRAIN: recorded(recording, config.minimum, views={"site": views.Neuron()}), **sides}


def plan(config: ConfigDict, recording: Recording, sides: dict[str, Side]) -> Plan:
    """What is compared, read and checked."""
    if not (0 if config.train else np.finfo(float).tiny) <= config.train_fraction < 1:
        raise ValueError(
            f"config.train_fraction must be above 0 (without config.train) and below 1, got {config.train_fraction}."
        )
    sae = views.SAE(**config.sae)
    known = default_views(sae)
    known |= {"pca": known.pop("signed_pca"), "few_sae": views.Top(sae), "few_random_sae": views.Top(views.Untrained(sae))}
    named = [f"{name}->site" for name in SITES if not name.startswith("few") or config.sae.expansion >= 1]
    wanted = [*named, *(["oracle->site"] if FEATURES in sides else []), *(LATENTS if config.train_fraction else ())]
    layers = [name for name in sides if name != BRAIN]
    with command.naming(config, split="train_fraction"):
        return Plan(
            sides,
            {name: [(name, BRAIN)] for name in layers},
            known,
            {name: ["feature->site"] if name == FEATURES else wanted for name in layers},
            metrics=config.metrics,
            folds=np.asarray(readers.load(config.folds)) if config.folds else config.n_folds,
            groups=recording.groups(sides[BRAIN].hashes),
            split=config.train_fraction,
            pool="mean",
            n_seeds=config.n_seeds,
            n_blocks=config.n_blocks,
            key=jax.random.key(config.seed),
        )


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Gets recording and activations, fits views, scores all comparisons, and tabulates them."""
    command.at_least(config, {"n_seeds": 1, "n_top": 1})
    started = time.perf_counter()
    recording, sides = read(config)
    planned = plan(config, recording, sides)
    run.claim()
    seconds = {"reading": time.perf_counter() - started}
    compared = planned.run(run.path / "comparison", chunk=config.chunk)
    compared.refuse_missing()
    rows = [command.renamed(row, pair="layer") for row in compared.over_units(config.minimum)]
    tested = [pair for pair in DIFFERENCES if set(pair) <= set(planned.comparisons)]
    differences = [command.renamed(row, pair="layer") for row in compared.differences(tested)]
    of_latents = [row for row in rows if row["comparison"] == "sae->site" and row["metric"] == planned.metrics[0].name]
    best = max(of_latents, key=lambda row: row["mean"])["layer"]
    latents, top = explain(config, compared, recording, best)
    tables = {"differences": differences, "views": compared.describe(), "latents": latents}
    seconds |= compared.seconds
    return run.finish(rows, seconds, **tables, top=top, sites=sites(compared), n_scored=compared.n_scored)


def sites(compared: Comparison) -> dict[str, Any]:
    """The score of each site by the first metric, mean over folds and SAEs; and its reliability."""
    metric, reliability = compared.plan.metrics[0].name, compared.plan.sides[BRAIN].reliability
    scores: dict[str, dict[str, Any]] = {}
    for layer, comparisons in compared.plan.of_label.items():
        for name in comparisons:
            score = compared.score(layer, name, metric)
            if name.endswith("site") and score is not None and score.units is not None:
                scores.setdefault(layer, {})[name] = np.nanmean(score.units, axis=0).tolist()
    return {
        "metric": metric,
        "scores": scores,
        "reliability": None if reliability is None else np.asarray(reliability).tolist(),
    }


def explain(
    config: ConfigDict, compared: Comparison, recording: Recording, layer: str
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The latents of a layer's first SAE that explain the sites: a row each, and the images that activate each most.

    `share_of_weights` is of squared weights, `active` the share of the images, `sites` those with the largest weights.
    """
    latents = compared.encode(layer, "sae")
    explained = sp.selectivity.explain(latents, compared.encode(BRAIN, "site"), config.n_top)
    rows = []
    for latent, share, weights in zip(*explained, strict=True):
        driven = ", ".join(f"{site} ({weights[site]:+.2f})" for site in np.argsort(-np.abs(weights))[:4])
        row = {"layer": layer, "latent": int(latent), "share_of_weights": float(share)}
        rows.append({**row, "active": float(np.mean(latents[:, latent] != 0)), "sites": driven})
    if recording.images is None:
        return rows, None
    top = np.asarray(sp.selectivity.top(latents[:, explained.chosen], min(config.n_top, len(latents))))
    shown = np.asarray(recording.images)[compared.plan.divided.images]
    return rows, {"source": str(recording.image_source), "images": shown[top].tolist()}


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment by layer, a panel a metric, and each site's score by latents against that by neurons."""
    rows, of_sites = results["rows"], results["sites"]["scores"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first, title = rows[0]["metric"], plotting.metric_title(rows[0]["metric"])
    corrected = [
        {**row, "mean": row["corrected"], "ci95": row["corrected_ci95_units"]}
        for row in rows
        if row["metric"] == first and row["corrected"] is not None
    ]
    groups = [(f"{title},\ncorrected for noise, over sites", corrected)] if corrected else []
    groups += [(plotting.metric_title(metric), [row for row in rows if row["metric"] == metric]) for metric in metrics]
    scattered = [layer for layer, scores in of_sites.items() if "sae->site" in scores]
    n = len(groups) + len(scattered)
    columns = min(3, n)
    figure, axes = plotting.panels(-(-n // columns), columns, (4.2 * columns, 3.4 * -(-n // columns)))
    for axis in axes.ravel()[n:]:
        axis.set_visible(False)
    for axis, (name, chosen) in zip(axes.ravel(), groups, strict=False):
        plotting.grouped_bars(axis, chosen, "layer")
        axis.set(title=name, ylabel="held-out score")
    for axis, layer in zip(axes.ravel()[len(groups) :], scattered, strict=False):
        for comparison in ("random_sae->site", "sae->site"):
            look = plotting.style(comparison)
            axis.scatter(of_sites[layer]["neuron->site"], of_sites[layer][comparison], s=9, color=look["color"], linewidths=0)
        axis.axline((0, 0), slope=1, color="#999999", linewidth=0.8)
        axis.set(xlabel="neuron->site", ylabel="from latents", title=f"{layer}: {results['sites']['metric']} of each site")
    over = f"{results['n_scored']} images" + (" (corrected for noise: over sites)" if corrected else "")
    plotting.finish(figure, f"Bars: 95 % confidence interval over {over}, for the views at hand")
    plotting.save(figure, run.figure)
    if results["top"] is not None:
        images = Images(results["top"]["source"])
        where = {name: i for i, name in enumerate(images.names)}
        plotting.image_grid(
            [[images[where[name]] for name in names] for names in results["top"]["images"]],
            [f"latent {row['latent']}\n{row['share_of_weights']:.1%} of weights" for row in results["latents"]],
            run.path / "top_images.png",
            title=f"{results['latents'][0]['layer']}: images that activate most the latents which explain the sites",
        )


if __name__ == "__main__":
    command.main("brain_alignment", get_config(), compute, draw, files=FILES)

"""Do latents of sparse autoencoders predict a brain's responses better than the neurons of a network do?

Takes a recording and activations of a network to the same images, one file a layer; or simulates both, from known features.
Fits SAEs and controls on each layer and on the recording, on images that are not scored, and scores what they read against
recorded sites. Look at sae->site against neuron->site, and at the controls: random_sae->site, untrained latents, of which as
many are active; pca->site, principal components split into their two signs, and ica->site, independent components: other bases,
which cannot undo superposition. `few_sae` and `few_random_sae` have only as many latents as there are neurons: those that vary
most over the images that fit views. sae->sae has an SAE of the sites on the other side; its control is random_sae->random_sae.
Latents and components of several positions are averaged over an image before they predict its sites.

`ci95` is over images, maps fitted again, and `ci95_units` over sites; `given` names what is held. `corrected` is the mean over
sites of r divided by √reliability, without sites of low reliability (`n_excluded`), where every stimulus has repeats. Sites of
the simulation mix known features: feature->site is what these say, and oracle->site sparse inference that knows how the neurons
mix them.
"""

import time
from typing import Any

import jax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import plotting, views
from superpos.activations import Side, recorded
from superpos.brain import Recording
from superpos.comparison import Plan, default_views, read_layers, simulated_brain
from superpos.results import Run

FILES = ("activations", "train", "path", "folds", "sessions", "stimulus_set")
BRAIN, FEATURES = "recording", "features"
SITES = ("neuron", "sae", "random_sae", "pca", "ica", "few_sae", "few_random_sae")
LATENTS = ("sae->sae", "random_sae->random_sae")
# What is subtracted from what.
DIFFERENCES = (
    *(("sae->site", f"{name}->site") for name in ("neuron", "random_sae", "pca", "ica")),
    *(("few_sae->site", f"{name}->site") for name in ("neuron", "few_random_sae")),
    *(("sae->sae", name) for name in ("neuron->site", "random_sae->random_sae")),
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
    # Further values of the SAE: every combination is compared too, and the curve of all is printed. Off by default, since each
    # trains SAEs of its own: such as --config.settings.k="(4,8)" --config.settings.expansion="(1.0,4.0)".
    config.settings = ConfigDict({"k": (), "expansion": ()})
    return config


def read(config: ConfigDict) -> tuple[Recording, dict[str, Side]]:
    """The recording, sites z-scored, and the sides by name: the recording, layers, and of a simulation its features."""
    known = ["simulated", *sp.brain.RECORDINGS]
    if config.recording not in known:
        raise ValueError(f"config.recording must be one of {', '.join(known)}, got {config.recording!r}.")
    if config.recording == "simulated":
        if config.activations or config.train or config.path:
            raise ValueError(
                f"config.recording is simulated, which takes no files: name one of {', '.join(known[1:])} for them."
            )
        recording, sides = simulated_brain(jax.random.split(jax.random.key(config.seed), 5)[1], **config.simulation)
    else:
        if not config.path:
            raise ValueError(f"config.path is empty, but {config.recording} needs one: pass --config.path=...")
        with command.naming(config, otherwise="path"):
            given = {name: config[name] for name in sp.brain.options(config.recording) if config.get(name)}
            recording = sp.brain.load(config.recording, config.path, **given)
            recording = recording.where(config.select) if config.select else recording
        with command.naming(config, files="activations"):
            sides = read_layers(config.activations, config.layers, config.train)
    with command.naming(config, otherwise="recording"):
        recording = recording.zscored()
        return recording, {BRAIN: recorded(recording, config.minimum, views={"site": views.Neuron()}), **sides}


def plan(config: ConfigDict, recording: Recording, sides: dict[str, Side]) -> Plan:
    """What is compared, read and checked."""
    share = config.train_fraction
    if not 0 <= share < 1 or not (share or config.train):
        raise ValueError(f"config.train_fraction must be above 0 (without config.train) and below 1, got {share}.")
    sae = views.SAE(**config.sae)
    known = default_views(sae)
    known |= {"pca": known.pop("signed_pca"), "few_sae": views.Top(sae), "few_random_sae": views.Top(views.Untrained(sae))}
    named = [f"{name}->site" for name in SITES if not name.startswith("few") or config.sae.expansion >= 1]
    wanted = [*named, *(["oracle->site"] if FEATURES in sides else []), *(LATENTS if share else ())]
    layers = [name for name in sides if name != BRAIN]
    with command.naming(config, split="train_fraction"):
        return Plan(
            sides,
            {name: [(name, BRAIN)] for name in layers},
            known,
            {name: ["feature->site"] if name == FEATURES else wanted for name in layers},
            metrics=config.metrics,
            folds=config.folds or config.n_folds,
            groups=recording.groups(sides[BRAIN].hashes),
            split=share,
            pool="mean",
            n_seeds=config.n_seeds,
            n_blocks=config.n_blocks,
            settings=command.settings(config),
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
    rows = command.renamed(compared.over_units(config.minimum), pair="layer")
    tested = [pair for pair in DIFFERENCES if set(pair) <= set(planned.comparisons)]
    differences = command.renamed(compared.differences(tested), pair="layer")
    metric, distance = planned.metrics[0].name, planned.metrics[0].distance
    scored = plotting.where(rows, comparison="sae->site", metric=metric)
    best = min(scored, key=lambda row: row["mean"] * (1 if distance else -1))["layer"]
    explained = compared.explanations(best, "sae->site", config.n_top)
    images = [row.pop("samples") for row in explained]
    latents = [{"layer": best, **row} for row in command.renamed(explained, unit="latent", targets="sites")]
    tables: dict[str, Any] = {"differences": differences, "views": compared.describe(), "latents": latents}
    top = None if recording.images is None else {"source": str(recording.image_source), "images": images}
    # Of each site the score by the first metric, mean over folds and SAEs.
    sites = {"metric": metric, "scores": compared.of_units(metric), "reliability": sides[BRAIN].reliability}
    tables |= {name: command.renamed(table, pair="layer") for name, table in command.curve(compared, tested).items()}
    tables |= {"doubts": command.doubts(compared), "answer": compared.answer(tested)}
    return run.finish(rows, seconds | compared.seconds, **tables, top=top, sites=sites, n_scored=compared.n_scored)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment by layer, a panel a metric, and each site's score by latents against that by neurons."""
    rows, sites, top = results["rows"], results["sites"], results["top"]
    first, chosen = next(iter(plotting.by_metric(rows).items()))
    corrected = plotting.of_column(chosen, "corrected", "corrected_ci95_units")
    groups = {f"{first},\ncorrected for noise, over sites": corrected} if corrected else {}
    groups |= plotting.by_metric(rows)
    scattered = [layer for layer, scores in sites["scores"].items() if "sae->site" in scores]
    figure, axes = plotting.grid(len(groups) + len(scattered))
    plotting.grouped_panels(axes[: len(groups)], groups, "layer")
    for axis, layer in zip(axes[len(groups) :], scattered, strict=True):
        plotting.scatter(axis, sites["scores"][layer], "neuron->site", ("random_sae->site", "sae->site"))
        axis.set(ylabel="from latents", title=f"{layer}: {sites['metric']} of each site")
    over = f"{results['n_scored']} images" + (" (corrected for noise: over sites)" if corrected else "")
    plotting.finish(figure, f"Bars: 95 % confidence interval over {over}, for the views at hand", path=run.figure)
    if top is not None:
        plotting.image_grid(
            top["images"],
            [f"latent {row['latent']}\n{row['share_of_weights']:.1%} of weights" for row in results["latents"]],
            run.figure.with_stem("top_images"),
            title=f"{results['latents'][0]['layer']}: images that activate most the latents which explain the sites",
            source=top["source"],
        )


if __name__ == "__main__":
    command.main("brain_alignment", get_config(), compute, draw, files=FILES)

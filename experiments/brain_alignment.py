"""Do latents of sparse autoencoders predict a brain's responses better than the neurons of a network do?

Takes a recording and activations of a network to the same images, one file a layer; or simulates both, from known features.
Trains SAEs on each layer and on the recording, on images that are not scored, and scores neurons, latents, and latents of
untrained SAEs against recorded sites. Look at sae->site against neuron->site, and at random_sae->site: an untrained SAE has as
many latents, of which as many are active, but has learned nothing. pca->site has principal components, each split into its
two signs, at most two a unit. `matched` has only as many latents as there are neurons: those that vary most over some samples
that train SAEs, which cannot stand for more features than there are neurons. sae->sae has an SAE of the sites on the other
side; its control is random_sae->random_sae. Latents and components of several positions are averaged over an image before they
predict its sites.

`ci95` is over images and `ci95_sites` over sites, both for the SAEs at hand. `corrected` is the mean over sites of r divided by
√reliability, without sites of low reliability (`n_excluded`), where every stimulus has repeats. Of the simulation, whose sites
mix known features, feature->site is what the features themselves say, and oracle->site sparse inference that knows how the
neurons mix them.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import align, command, network_alignment
from experiments.align import SAES
from experiments.network_alignment import describe, over_images, paired_over_images
from superpos import data as readers
from superpos import plotting
from superpos.brain import Recording
from superpos.images import Images
from superpos.metrics import Score
from superpos.networks.io import manifest
from superpos.results import Run

FILES = ("activations", "train", "path", "folds", "sessions", "stimulus_set")
SIDES = ("network", "recording")
# Comparisons, and the kind of program that each is a case of: those of one kind have equal shapes.
KINDS = {
    "neuron->site": "few->site",
    "sae->site": "latent->site",
    "random_sae->site": "latent->site",
    "pca->site": "pca->site",
    "oracle->site": "known->site",
    "feature->site": "known->site",
    "sae->sae": "latent->latent",
    "random_sae->random_sae": "latent->latent",
}
INDEX = {"sae": 0, "random_sae": 1, "oracle": 0, "feature": 1}  # on the first axis of what a program reads, else 0
MATCHED = ("sae->site", "random_sae->site")
# What is subtracted from what.
DIFFERENCES = (
    ("sae->site", "neuron->site"),
    ("sae->site", "random_sae->site"),
    ("sae->site", "pca->site"),
    ("sae->sae", "neuron->site"),
    ("sae->sae", "random_sae->random_sae"),
)
RECORDINGS = ("simulated", "v4", "nsd", "algonauts", "brainscore", "array")


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
    config.train = ()  # of other images, to train the SAEs on instead of a part of the images; one file a layer, or more
    config.train_fraction = 0.5  # of the images, which train SAEs and are not scored; 0 with `train`: no SAEs of sites
    config.folds = ""  # file of the fold of each image, -1 for one that is left out
    config.n_folds = 5  # where no file gives them
    config.n_blocks = 10  # parts of a fold, left out in turn for intervals over images
    config.n_seeds = 3  # SAEs of each layer
    config.seed = 0  # of all keys
    config.chunk = 8  # SAEs, or comparisons, in flight at once
    config.metrics = ("ridge", "semi_match", "soft_match")
    config.minimum = 0.1  # reliability that a site must have to be corrected for noise
    config.n_top = 8  # latents that are shown of each layer, and images of each
    config.sae = network_alignment.get_config().sae
    config.sae.update({"k": 4, "steps": 2_000, "batch_size": 512})  # the simulation has 3 features active; layers have more
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


class Material(NamedTuple):
    """What is compared.

    Attributes:
        scored: the recording of the stimuli that are scored, sites z-scored.
        groups: `(n_stimuli,)` of these: copies of one image are one group.
        folds: `(n_stimuli,)` of these, and n_folds.
        layers: by name, their activations, `(n_stimuli, positions, units)`.
        training: samples that train the SAEs of each layer, `(n_samples, units)`, in random order of images.
        trained: responses that train the SAEs of the sites, `(n_others, n_sites)`; None without any.
        known: of a simulation, by layer: what the oracle infers and the true features, `(2, n_stimuli, n_features)`.
    """

    scored: Recording
    groups: np.ndarray
    folds: Any
    n_folds: int
    layers: dict[str, np.ndarray]
    training: dict[str, np.ndarray]
    trained: np.ndarray | None
    known: dict[str, Any]


def load(config: ConfigDict) -> Recording:
    """The recording that `config.recording` names.

    Raises:
        ValueError: unknown, not there, or not what its reader takes; a selection that fits no site.
    """
    if config.recording not in RECORDINGS[1:]:
        raise ValueError(f"config.recording must be one of {', '.join(RECORDINGS)}, got {config.recording!r}.")
    for field in ("path", "session") if config.recording == "v4" else ("path",):
        if not config[field]:
            raise ValueError(f"config.{field} is empty, but {config.recording} needs one: pass --config.{field}=...")
    images = config.images or None
    try:
        match config.recording:
            case "v4":
                recording = sp.brain.load_v4(config.path, config.session)
            case "nsd":
                recording = sp.brain.load_nsd(config.path, config.subject, images)
            case "algonauts":
                recording = sp.brain.load_algonauts(config.path, config.subject)
            case "brainscore":
                if config.time_bin and not config.time_bin.isdecimal():
                    raise ValueError(f"time_bin must be a number from 0, got {config.time_bin!r}.")
                time_bin = int(config.time_bin) if config.time_bin else None
                table = config.stimulus_set or None
                recording = sp.brain.load_brainscore(config.path, time_bin=time_bin, images=images, stimulus_set=table)
            case _:
                sessions = readers.load(config.sessions) if config.sessions else None
                recording = sp.brain.load_array(config.path, config.axes, sessions=sessions, images=images)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.path: {error}") from error
    if config.select:
        name, _, value = config.select.partition("=")
        named = recording.units.get(name)
        chosen = None if named is None else named.astype(str) == value
        if chosen is None or not chosen.any():
            known = ", ".join(recording.units) if named is None else ", ".join(np.unique(named.astype(str))[:10])
            raise ValueError(
                f"config.select must be name=value of some sites, got {config.select!r}; there are {known or 'none'}."
            )
        recording = recording.select(units=chosen)
    return recording


def activations(field: str, path: str) -> np.ndarray:
    """Activations of one file, `(images, positions, units)`.

    Raises:
        ValueError: no such file, or not an array of finite numbers with two or three axes.
    """
    try:
        array = np.asarray(readers.load(path), np.float32)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{field}: {error}") from error
    if array.ndim not in (2, 3):
        raise ValueError(
            f"config.{field} must be (images, units) or (images, positions, units), but {path} has shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"config.{field}: {path} holds {array.size - np.isfinite(array).sum()} NaN or infinite values.")
    return array.reshape(len(array), -1, array.shape[-1])


def line_up(array: np.ndarray, path: str, recording: Recording, hashes: np.ndarray | None) -> np.ndarray:
    """Rows in the order of the recording, by the names of the images where `experiments.extract` left them beside the file.

    `hashes` are those of the recording's images, None where it has none.

    Raises:
        ValueError: an image of the recording is not among those names, or is another; or there are not as many as rows.
    """
    try:
        told = manifest(path)
        if told is None or hashes is None:
            return array
        rows = recording.rows(told["images"])
    except ValueError as error:
        raise ValueError(f"config.activations: {path}: {error}") from error
    differ = np.flatnonzero(np.array(told["image_sha256"])[rows] != hashes)
    if len(differ):  # every session of V4 has an image0001.jpg
        raise ValueError(
            f"config.activations must be of the recording's images, but {path} was extracted from others: {len(differ)} of "
            f"{len(rows)} differ, first {recording.images[differ[0]]}."
        )
    return array[rows]


def simulate(config: ConfigDict) -> tuple[Recording, dict[str, np.ndarray], Any]:
    """A recording, layers of which each carries its features in superposition, and the truth: features and arrangements."""
    settings, key = config.simulation, network_alignment.keys(config).task
    low, high = settings.reliability
    features = sp.features.SparseFeatures(settings.n_features, settings.probability)
    recording, truth = sp.brain.simulate(
        key,
        settings.n_stimuli,
        settings.n_sites,
        settings.n_repeats,
        reliability=np.linspace(low, high, settings.n_sites),
        features=features,
        mixing=settings.mixing,
    )
    mixed = {
        f"{n_units} units": sp.arrangements.unit_norm(jax.random.fold_in(key, n_units), settings.n_features, n_units)
        for n_units in settings.n_units
    }
    layers = {name: np.asarray(sp.linalg.matmul(truth.features, mixing))[:, None] for name, mixing in mixed.items()}
    return recording, layers, (truth.features, mixed)


def read(config: ConfigDict) -> Material:
    """The recording and the layers, divided into what trains SAEs and what is scored.

    Raises:
        ValueError: a file that is missing, or files and settings that do not fit each other.
    """
    files, others, truth, copies = tuple(config.activations), tuple(config.train), None, None
    least = 0 if others else np.finfo(float).tiny
    if not least <= config.train_fraction < 1:
        raise ValueError(
            f"config.train_fraction must be above 0 (without config.train) and below 1, got {config.train_fraction}."
        )
    if config.recording == "simulated":
        if files or others or config.path:
            raise ValueError(
                f"config.recording is simulated, which takes no files: name one of {', '.join(RECORDINGS[1:])} with them."
            )
        recording, layers, truth = simulate(config)
    else:
        recording = load(config)
        if not files:
            raise ValueError("config.activations names no file: pass --config.activations=\"('layer.npy',)\".")
        names = tuple(config.layers) or tuple(Path(path).name for path in files)
        if len(set(names)) != len(files):
            raise ValueError(f"config.layers must name each of the {len(files)} files, and none alike, got {names}.")
        # Copies of one image neither straddle folds nor are both trained on and scored.
        copies = None if recording.images is None else sp.brain.image_hashes(recording)
        layers = {
            name: line_up(activations("activations", path), path, recording, copies)
            for name, path in zip(names, files, strict=True)
        }
    n = len(recording.stimuli)
    for name, array in layers.items():
        if len(array) != n:
            hint = " Put images first." if n in array.shape[1:] else ""
            raise ValueError(
                f"config.activations must have a row for each of the recording's {n} stimuli, in its order, "
                f"but {name} has {len(array)}.{hint}"
            )
    if len(others) % max(len(files), 1):
        raise ValueError(
            f"config.train must name as many files as config.activations, {len(files)}, or twice, three times as many, "
            f"those of the first layer first, got {len(others)}."
        )
    try:
        recording = recording.zscored()
    except ValueError as error:
        raise ValueError(f"config.recording: {error}") from error

    training, scored = np.arange(0), np.arange(n)
    if config.train_fraction:
        training, scored = recording.split(1 - config.train_fraction, network_alignment.keys(config).images, copies)
    given = None
    if config.folds:
        try:
            given = np.asarray(readers.load(config.folds))
        except (ValueError, OSError) as error:
            raise ValueError(f"config.folds: {error}") from error
        if given.shape != (n,) or given.dtype.kind not in "iu":
            raise ValueError(
                f"config.folds must be whole numbers ({n},), one a stimulus: {config.folds} has {given.dtype} {given.shape}."
            )
        scored = scored[given[scored] >= 0]
    align.refuse_scored("train", others, files, None if copies is None else copies[scored])
    groups = recording.groups(copies)[scored]
    folds, n_folds = sp.assign_folds(
        len(scored),
        config.n_folds if given is None else given[scored],
        None if given is None else int(given.max()) + 1,
        key=network_alignment.keys(config).folds,
        groups=groups,
    )

    training = np.asarray(np.random.default_rng(config.seed).permutation(training))
    samples = {name: array[training].reshape(-1, array.shape[-1]) for name, array in layers.items()}
    n_others = len(others) // max(len(layers), 1)
    for i, (name, array) in enumerate(layers.items() if others else ()):
        paths = others[i * n_others : (i + 1) * n_others]
        parts = [activations("train", path) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if part.shape[-1] != array.shape[-1]:
                raise ValueError(f"config.train must have {array.shape[-1]} units for {name}, but {path} has {part.shape[-1]}.")
            if part.shape[1] != (n_positions := parts[0].shape[1]):
                raise ValueError(f"config.train must have {n_positions} positions for {name}, but {path} has {part.shape[1]}.")
        other = np.random.default_rng(config.seed).permutation(np.concatenate(parts))
        samples[name] = other.reshape(-1, array.shape[-1])
    layers = {name: array[scored] for name, array in layers.items()}
    known = {}
    if truth is not None:
        features, mixed = truth
        infer = jax.jit(lambda units, mixing: sp.sparse_coding.fista(units, mixing, config.simulation.penalty))
        known = {name: np.stack([infer(array[:, 0], mixed[name]), features[scored]]) for name, array in layers.items()}
    trained = recording.responses[training] if len(training) else None
    return Material(recording.select(stimuli=scored), groups, folds, n_folds, layers, samples, trained, known)


class Study(network_alignment.Study):
    """The data, and pure functions of it: `train` the SAE of a layer or of the sites, `compare` a layer with the sites."""

    def __init__(self, config: ConfigDict, material: Material):
        self.config, self.sides = config, SIDES
        self.metrics = sp.metrics.resolve(config.metrics)
        self.fold_ids, self.n_folds, self.layers = material.folds, material.n_folds, tuple(material.layers)
        # In the form in which the study of networks holds them.
        layers = {name: array.reshape(1, -1, array.shape[-1]) for name, array in material.layers.items()}
        self.data = {
            "training": {"network": {name: array[None] for name, array in material.training.items()}},
            "scored": {"network": layers, "recording": {"sites": material.scored.responses[None]}},
        }
        if material.trained is not None:
            self.data["training"]["recording"] = {"sites": material.trained[None]}
        self.known, self.stimuli = material.known, material.groups

    def train(self, member, data, side, layer, **changed):
        """One SAE before and after training: its `latents` of the scored images, and which to keep, as many as units."""
        found = super().train(member, data, side, layer, **changed)
        samples, scored = (data[part][side][layer][0] for part in ("training", "scored"))
        sae = self.sae(samples.shape[1], changed)
        for name in ("latents", "kept"):
            found[name] = {}
        for kind, params in found["params"].items():
            found["latents"][kind] = self.of_images(data, sae.encode(params, scored))
            some = samples[:: -(-len(samples) // 4096)]  # of many images
            found["kept"][kind] = jnp.argsort(-jnp.var(sae.encode(params, some), axis=0))[: sae.n_inputs]
        return found

    def compare(self, which, data, layer, kind):
        """Scores of a layer against the sites; `which`: kind of source and of target, member, and whether it is matched."""
        source, target = kind.split("->")
        if source == "known":
            x = data["known"][layer][which[0]]
        elif source == "pca":
            x = data["pca"][layer]
        else:
            state = jax.tree.map(lambda leaf: leaf[which[0], which[2]], data["saes"][layer])
            x = state["latents"]
            if source == "few":
                x = jnp.where(which[3], x[:, state["kept"]], data["neurons"][layer])
        y = data["sites"]
        if target == "latent":
            y = data["saes"]["sites"]["latents"][which[1], which[2]]
        found = sp.stats.jackknife(
            x, y, self.metrics, self.fold_ids, self.n_folds, groups=self.stimuli, n_blocks=self.config.n_blocks
        )
        # Of latents as targets, dead ones would be NaN, and are not told apart.
        return {name: (score._replace(units=None) if target == "latent" else score)._asdict() for name, score in found.items()}

    def components(self, layer):
        """The scored samples of a layer on principal components, each split into its signs."""
        training, scored = (np.asarray(self.data[part]["network"][layer][0]) for part in ("training", "scored"))
        n = round(self.config.sae.expansion * scored.shape[1])
        return network_alignment.principal_components(training, scored, n)

    def of_images(self, data, units):
        """The mean over the positions of each image."""
        return units.reshape(len(data["scored"]["recording"]["sites"][0]), -1, units.shape[-1]).mean(axis=1)


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Gets recording and activations, trains SAEs, scores all comparisons, and tabulates them."""
    for field in ("n_seeds", "n_top"):
        if config[field] < 1:
            raise ValueError(f"config.{field} must be at least 1, got {config[field]}.")
    sp.metrics.resolve(config.metrics)
    started = time.perf_counter()
    material = read(config)
    study = Study(config, material)
    reliability = reliabilities(material.scored, config.minimum)
    # What can fail fails here, before anything is trained: dead layers, too few images for folds and blocks, an unfit k.
    sp.folds.deal(study.fold_ids, study.n_folds, config.n_blocks, jax.random.key(0), study.stimuli)
    for array in material.layers.values():
        sp.alignment.check(array.mean(axis=1), material.scored.responses, study.fold_ids, None, None, None)
        study.sae(array.shape[-1], {})
    if material.trained is not None:
        study.sae(material.trained.shape[-1], {})
    if not 0 < config.sae.share <= 1:
        raise ValueError(f"config.sae.share must be above 0 and at most 1, got {config.sae.share}.")
    run.claim()
    read_at = time.perf_counter()

    states = train(study, run)
    trained_at = time.perf_counter()
    found = measure(study, states, run)
    rows: list[dict[str, Any]] = []
    matched: list[dict[str, Any]] = []
    differences = []
    for layer in study.layers:
        for metric in (metric.name for metric in study.metrics):
            scores = {
                comparison: found[layer, metric, comparison] for comparison in KINDS if (layer, metric, comparison) in found
            }
            few = {comparison: found[layer, metric, f"matched {comparison}"] for comparison in MATCHED}
            at = {"layer": layer, "metric": metric}
            for table, of in ((rows, scores), (matched, few)):
                for comparison, score in of.items():
                    table.append({**at, "comparison": comparison, **summary(score, comparison, reliability, config.minimum)})
            for a, b in DIFFERENCES:
                for label, of in (("", scores), (" (matched)", {**scores, **few})):
                    if a in of and (not label or a in MATCHED):
                        tested = difference(of[a], of[b], a.endswith("site") and b.endswith("site"))
                        differences.append({**at, "difference": f"{a} - {b}{label}", **tested})
    best = max(study.layers, key=lambda layer: found[layer, study.metrics[0].name, "sae->site"]["mean"].mean())
    latents, top = explain(config, states[best], material.scored, best)
    per_site = sites(found, study, reliability)
    seconds = {"reading": read_at - started, "saes": trained_at - read_at, "scores": time.perf_counter() - trained_at}
    saes = [
        {"layer": layer, **describe("network" if layer in study.layers else "recording", state)}
        for layer, state in states.items()
    ]
    tables = {"matched": matched, "differences": differences, "saes": saes, "latents": latents}
    return run.finish(rows, seconds, **tables, top=top, sites=per_site, n_scored=len(material.scored.stimuli))


def reliabilities(recording: Recording, minimum: float) -> np.ndarray | None:
    """Reliability of each site's response; None unless every stimulus has two repeats or more, for it would be too high.

    Raises:
        ValueError: no site is as reliable as `minimum`.
    """
    if recording.repeats is None or (recording.n_repeats < 2).any():
        return None
    if not 0 < minimum < 1:
        raise ValueError(f"config.minimum must be between 0 and 1, got {minimum}.")
    found = np.asarray(recording.reliability())
    if not (found >= minimum).any():
        raise ValueError(f"config.minimum must be at most the highest reliability of a site, {found.max():.3g}, got {minimum}.")
    return found


def train(study: Study, run: Run) -> dict[str, Any]:
    """The SAEs of all layers, and of the sites if there are responses to train them on: by name, leaves (seeds, ...)."""
    states: dict[str, Any] = {}
    members = np.arange(study.config.n_seeds)
    for side, layers in study.data["training"].items():
        grid = {"side": (side,), "layer": tuple(layers)}
        swept = sp.sweep(
            study.train, grid, members, data_key=study.data, chunk=study.config.chunk, workdir=run.path / "saes" / side
        )
        states |= {layer: swept.load(side=side, layer=layer) for layer in layers}
    return states


def measure(study: Study, states: dict[str, Any], run: Run) -> dict[tuple[str, str, str], Any]:
    """Scores by layer, metric and comparison, leaves (seeds, ...); those of fewer latents are named "matched sae->site"."""
    saes = {  # leaves (kinds of SAE, seeds, ...)
        layer: {
            name: jax.tree.map(lambda *leaves: np.stack(leaves), *(state[name][kind] for kind in SAES))
            for name in ("latents", "kept")
        }
        for layer, state in states.items()
    }
    scored = study.data["scored"]
    neurons = {layer: study.of_images(study.data, units[0]) for layer, units in scored["network"].items()}
    data = {"neurons": neurons, "sites": scored["recording"]["sites"][0], "known": study.known, "saes": saes}
    data["pca"] = {layer: study.of_images(study.data, study.components(layer)) for layer in neurons}
    wanted = {f"matched {comparison}": "few->site" for comparison in MATCHED} | KINDS
    without = [kind for kind, there in (("known->site", study.known), ("latent->latent", "sites" in states)) if not there]
    found = {}
    for kind in dict.fromkeys(kind for kind in wanted.values() if kind not in without):
        comparisons = [comparison for comparison, one in wanted.items() if one == kind]
        listed = [(one, member) for one in comparisons for member in range(study.config.n_seeds if "sae" in one else 1)]
        which = np.array([_which(*one) for one in listed])
        grid = {"kind": (kind,), "layer": study.layers}
        where = run.path / "scores" / kind.replace("->", "_")
        swept = sp.sweep(study.compare, grid, which, data_key=data, chunk=study.config.chunk, workdir=where)
        for layer in study.layers:
            for metric, scores in swept.load(layer=layer).items():
                for comparison in comparisons:
                    at = np.array([one == comparison for one, _ in listed])
                    found[layer, metric, comparison] = jax.tree.map(lambda leaf: np.asarray(leaf)[at], scores)  # noqa: B023
    return found


def _which(comparison, member):
    name = comparison.removeprefix("matched ")
    return *(INDEX.get(end, 0) for end in name.split("->")), member, comparison != name


def summary(score: Any, comparison: str, reliability: np.ndarray | None, minimum: float) -> dict[str, Any]:
    """Mean of the SAEs with intervals over images and over sites, and the same corrected for noise."""
    row = over_images(score) | dict.fromkeys(("ci95_sites", "n_sites", "corrected", "corrected_ci95_sites", "n_excluded"))
    if score.get("units") is not None and comparison.endswith("site"):
        of_sites = _of_units(score["units"].mean(axis=0))
        found = sp.stats.over_units(of_sites)
        row |= {"ci95_sites": found["ci95"], "n_sites": found["n_units"]}
        if reliability is not None:
            corrected = sp.reliability.disattenuate(of_sites, reliability, minimum)
            found = sp.stats.over_units(corrected)
            row |= {"corrected": found["mean"], "corrected_ci95_sites": found["ci95"]}
            row["n_excluded"] = int(corrected.details["n_excluded"])
    return row


def difference(a: Any, b: Any, same_sites: bool) -> dict[str, Any]:
    """A difference with its test over images, and its interval over sites where both sides are of the same."""
    row = paired_over_images(a, b)
    if not same_sites or a.get("units") is None:
        return {**row, "ci95_sites": None}
    of_sites = sp.stats.over_units(_of_units(a["units"].mean(axis=0) - b["units"].mean(axis=0)))
    return {**row, "ci95_sites": of_sites["ci95"]}


def _of_units(units):
    return Score(np.nanmean(units), np.nanmean(units, axis=1), units, {})


def sites(found: dict[tuple[str, str, str], Any], study: Study, reliability: np.ndarray | None) -> dict[str, Any]:
    """The score of each site by the first metric that has one, mean over folds and SAEs; and its reliability."""
    metrics = [
        metric.name for metric in study.metrics if found[study.layers[0], metric.name, "neuron->site"].get("units") is not None
    ]
    if not metrics:
        return {}
    scores = {
        layer: {
            comparison: found[layer, metrics[0], comparison]["units"].mean(axis=(0, 1)).tolist()
            for comparison in KINDS
            if comparison.endswith("site") and (layer, metrics[0], comparison) in found
        }
        for layer in study.layers
    }
    return {"metric": metrics[0], "scores": scores, "reliability": None if reliability is None else reliability.tolist()}


def explain(
    config: ConfigDict, state: Any, recording: Recording, layer: str
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The latents of a layer's first SAE that explain the sites, by ridge regression on all scored images: a row each.

    `share`: of the sum over latents and sites of squared weights, all with standard deviation 1; `active`: share of the images;
    `sites`: those with the largest weights. And the names of the images that activate each most, where the recording has any.
    """
    latents = jnp.asarray(state["latents"]["sae"][0])
    score = sp.align(latents, recording.responses, sp.metrics.Ridge(weights=True), folds=None)["ridge"]
    weights = np.asarray(score.details["weights"][0] * jnp.std(latents, axis=0)[:, None]) / recording.responses.std(axis=0)
    share = (weights**2).sum(axis=1) / (weights**2).sum()
    chosen = np.argsort(-share)[: config.n_top]
    rows = []
    for latent in chosen:
        driven = np.argsort(-np.abs(weights[latent]))[:4]
        row = {
            "layer": layer,
            "latent": int(latent),
            "share": float(share[latent]),
            "active": float(jnp.mean(latents[:, latent] != 0)),
        }
        rows.append({**row, "sites": ", ".join(f"{site} ({weights[latent, site]:+.2f})" for site in driven)})
    if recording.images is None:
        return rows, None
    top = np.asarray(sp.selectivity.top(latents[:, chosen], min(config.n_top, len(latents))))
    return rows, {"source": str(recording.image_source), "images": recording.images[top].tolist()}


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment by layer, a panel a metric, and each site's score by latents against that by neurons."""
    rows, sites = results["rows"], results["sites"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    corrected = [
        {**row, "mean": row["corrected"], "ci95": row["corrected_ci95_sites"]}
        for row in rows
        if row["metric"] == metrics[0] and row["corrected"] is not None
    ]
    few = [row for row in rows if row["comparison"] == "neuron->site"] + results["matched"]
    title = plotting.metric_title(metrics[0])
    groups = [(f"{title},\ncorrected for noise, over sites", corrected)] if corrected else []
    groups += [(plotting.metric_title(metric), [row for row in rows if row["metric"] == metric]) for metric in metrics]
    groups.append((f"{title},\nas many latents as neurons", [row for row in few if row["metric"] == metrics[0]]))
    n_panels = len(groups) + (len(layers) if sites else 0)
    lines = -(-n_panels // 4)
    figure, axes = plotting.panels(lines, min(4, n_panels), (3.3 * min(4, n_panels), 3.3 * lines))
    for axis in axes.ravel()[n_panels:]:
        axis.set_visible(False)
    for axis, (name, chosen) in zip(axes.ravel(), groups, strict=False):
        plotting.grouped_bars(axis, chosen, "layer")
        axis.set_title(name)
        axis.set_ylabel("held-out score")
    for axis, layer in zip(axes.ravel()[len(groups) :], layers if sites else (), strict=False):
        _scatter(axis, layer, sites)
    handles, labels = axes.ravel()[int(bool(corrected))].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    over = f"{results['n_scored']} images (corrected for noise: over sites)" if corrected else f"{results['n_scored']} images"
    figure.suptitle(f"Bars: 95 % confidence interval over {over}, for the SAEs at hand", fontsize=9, color="#444444")
    plotting.save(figure, run.figure)
    if results["top"] is not None:
        _grid(results, run)


def _scatter(axis, layer, sites):
    """Each site: by latents, trained and not, against by neurons."""
    scores = sites["scores"][layer]
    neuron = np.array(scores["neuron->site"], float)
    for comparison in ("random_sae->site", "sae->site"):
        values = np.array(scores[comparison], float)
        axis.scatter(neuron, values, s=9, color=plotting.COLOURS[comparison], label=comparison, linewidths=0)
    ends = [min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])]
    axis.plot(ends, ends, color="#999999", linewidth=0.8)
    axis.set(xlabel="neuron->site", ylabel="from latents", title=f"{layer}: {sites['metric']} of each site")
    axis.set_aspect("equal")


def _grid(results, run):
    """The images that activate most the latents which explain the sites."""
    top = results["top"]
    images = Images(top["source"])
    where = {name: i for i, name in enumerate(images.names)}
    rows = results["latents"]
    plotting.image_grid(
        [[images[where[name]] for name in names] for names in top["images"]],
        [f"latent {row['latent']}\n{row['share']:.1%} of weights" for row in rows],
        run.path / "top_images.png",
        title=f"{rows[0]['layer']}: images that activate most the latents which explain the sites",
    )


if __name__ == "__main__":
    command.main("brain_alignment", get_config(), compute, draw, files=FILES)

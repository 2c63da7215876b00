"""How alike are two representations, before and after each is disentangled with a sparse autoencoder?

Takes two files of activations to the same samples, trains TopK SAEs on each side (or takes one that somebody has trained), and
scores neurons, latents and the latents of untrained SAEs on samples that no SAE trained here saw (what one that you bring
has seen, only you know). Look at sae->sae against neuron->neuron, and at what the random_sae controls leave of the difference:
an untrained SAE has as many latents, of which as many are active, but has learned nothing.
"""

import functools
import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import superpos as sp
from experiments import COMPARISONS, command
from superpos import data as readers
from superpos import plotting
from superpos.networks.io import manifest
from superpos.results import Run

SIDES = ("source", "target")
FILES = ("source", "target", "source_train", "target_train", "source_sae", "target_sae")
SAES = ("sae", "random_sae")


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.source = ""  # file.npy, or file.npz:key: activations of the side that predicts
    config.target = ""  # the same for the side that is predicted: the same samples in the same order
    config.source_axes = ""  # names of the axes where they are not samples,...,units: such as units,samples
    config.target_axes = ""
    config.source_train = ""  # activations to train the SAEs of a side on, with axes as above, instead of a part of its samples
    config.target_train = ""
    config.source_sae = ""  # folder of a trained SAE, as SAELens or `sp.sae.save` write it, instead of training one
    config.target_sae = ""
    config.train_fraction = 0.5  # of the groups, whose samples train the SAEs and are not scored
    config.seed = 0  # of all keys
    config.n_seeds = 3  # SAEs of each side
    config.n_folds = 5
    config.metrics = sp.alignment.DEFAULT
    config.sae = ConfigDict(
        {
            "expansion": 4.0,  # latents for each unit
            "k": 16,
            "steps": 4_000,
            "batch_size": 1024,
            "learning_rate": 3e-3,  # cosine decay
        }
    )
    return config


def read(config: ConfigDict) -> dict[str, Any]:
    """Both sides: for each the scored and the training samples; the groups of both.

    A group is the samples that share an index on the first axis. Groups are split between training and scoring.

    Raises:
        ValueError: files that are missing or no arrays, or files and settings that do not fit each other.
    """
    sides, groups = {}, None
    for side in SIDES:
        if not config[side]:
            raise ValueError(f"config.{side} names no file: pass --config.{side}=activations.npy.")
        sides[side], side_groups = _read_one(config, side, config[side])
        if side_groups is not None and groups is not None and not np.array_equal(groups, side_groups):
            raise ValueError(
                f"config.source and config.target must pair the same samples, got {len(sides['source'])} in groups of "
                f"{np.bincount(groups)[0]} and {len(sides['target'])} in groups of {np.bincount(side_groups)[0]}: name their "
                "axes with --config.source_axes and --config.target_axes, such as units,samples,positions."
            )
        groups = side_groups if groups is None else groups
    source, target = sides["source"], sides["target"]
    if len(source) != len(target):
        swapped = [side for side, other in (("source", target), ("target", source)) if sides[side].shape[1] == len(other)]
        hint = f" Try --config.{swapped[-1]}_axes=units,samples." if swapped else ""
        raise ValueError(
            f"config.source and config.target must have the same samples, got {len(source)} and {len(target)} "
            f"(as samples x units, with further axes counted as samples: {source.shape} and {target.shape}).{hint}"
        )
    groups = np.arange(len(source)) if groups is None else groups
    _check_pairing(config.source, config.target)

    train_files = {side: config[f"{side}_train"] for side in sides}
    for side, path in train_files.items():
        refuse_scored(f"{side}_train", [path] if path else [], [config[side]])
    scored = np.ones(len(source), bool)
    if not all(train_files[side] or config[f"{side}_sae"] for side in SIDES):
        if not 0 < config.train_fraction < 1:
            raise ValueError(f"config.train_fraction must be above 0 and below 1, got {config.train_fraction}.")
        n_groups = groups.max() + 1
        order = np.random.default_rng(config.seed).permutation(n_groups)
        scored = ~np.isin(groups, order[: round(config.train_fraction * n_groups)])
        if scored.all() or not scored.any():
            raise ValueError(f"config.train_fraction={config.train_fraction} of {n_groups} groups leaves nothing on one side.")
    training, training_groups = {}, {}
    for side, array in sides.items():
        # With SAEs for both sides all samples are scored; untrained ones take no more than scale and median from them.
        used = scored if scored.all() else ~scored
        training[side], training_groups[side] = array[used], groups[used]
        if train_files[side]:
            training[side], own = _read_one(config, side, train_files[side])
            training_groups[side] = np.arange(len(training[side])) if own is None else own
        if training[side].shape[1] != array.shape[1]:
            raise ValueError(f"config.{side}_train must have {array.shape[1]} units, got {training[side].shape[1]}.")
    return {
        "scored": {side: array[scored] for side, array in sides.items()},
        "groups": groups[scored],
        "training": training,
        "training_groups": training_groups,
    }


def _told(field, path):
    try:
        return manifest(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{field}: {error}") from error


def _hashes(field, path):
    return (_told(field, path) or {}).get("image_sha256", ())


def _check_pairing(source, target):
    """Refuses two files of `experiments.extract` whose rows are of other images or other positions."""
    a, b = _told("source", source), _told("target", target)
    if a is None or b is None:
        return
    if a["image_sha256"] != b["image_sha256"]:
        raise ValueError(f"config.source and config.target must be of the same images, but {source} and {target} are not.")
    where = [(side["position"], side["seed"], tuple(side["array"]["grid"])) for side in (a, b)]
    one_an_image = all(position in ("mean", "center", "class") for position, *_ in where)
    if where[0] != where[1] and not one_an_image:
        raise ValueError(
            "config.source and config.target must be of the same positions (position, seed and grid), but "
            f"{source} has {where[0]} and {target} {where[1]}."
        )


def refuse_scored(field: str, training: Iterable[str], scored: Iterable[str], hashes: Iterable[str] | None = None) -> None:
    """Refuses files that train SAEs where they are scored, or hold images that are, as far as `experiments.extract` tells.

    Args:
        field: of the configuration, which names the files that train.
        training: these files.
        scored: the files that are scored.
        hashes: of the images that are scored; by default all of the scored files.

    Raises:
        ValueError: it names the file.
    """
    training, scored = list(training), list(scored)
    files = {Path(path).resolve() for path in scored}
    for path in training:
        if Path(path).resolve() in files:
            raise ValueError(f"config.{field} must hold images that are not scored, got {path}, which is scored too.")
    if hashes is None:
        hashes = itertools.chain.from_iterable(_hashes(field, path) for path in scored if training)
    images = set(hashes)
    for path in training:
        if shared := images.intersection(_hashes(field, path)):
            raise ValueError(f"config.{field} must hold images that are not scored, but {path} has {len(shared)} that are.")


def _read_one(config, side, path):
    axes = [name.strip() for name in config[f"{side}_axes"].split(",")] if config[f"{side}_axes"] else None
    try:
        array, groups = readers.flatten(readers.load(path), axes)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{side}: {error}") from error
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"config.{side}: {path} holds {np.size(array) - np.isfinite(array).sum()} NaN or infinite values.")
    return array, groups


class Study:
    """The pure functions: `train` the SAE of one side, `compare` two representations."""

    def __init__(self, config: ConfigDict, training: dict[str, np.ndarray]):
        self.config = config
        self.metrics = sp.metrics.resolve(config.metrics)
        self.saes: dict[str, sp.sae.SparseAutoencoder] = {}
        self.controls: dict[str, sp.sae.SparseAutoencoder] = {}
        self.loaded: dict[str, dict[str, jax.Array]] = {}
        for side, samples in training.items():
            path, settings, units = config[f"{side}_sae"], config.sae, samples.shape[1]
            if not path:
                self.saes[side] = self.controls[side] = sp.sae.TopK(
                    units, max(1, round(settings.expansion * units)), settings.k
                )
                continue
            try:
                self.saes[side], self.loaded[side] = sp.sae.load(path)
            except (ValueError, OSError) as error:
                raise ValueError(f"config.{side}_sae: {error}") from error
            if self.saes[side].n_inputs != units:
                raise ValueError(f"config.{side}_sae must read {units} units, got {self.saes[side].n_inputs} in {path}.")
            # Untrained, others than TopK are as sparse as chance has it, and the scale of inputs may be in trained weights.
            sae = self.saes[side]
            k = round(float(jax.jit(functools.partial(sp.evaluation.evaluate, sae))(self.loaded[side], samples).l0))
            self.controls[side] = sp.sae.TopK(units, sae.n_latents, min(max(k, 1), sae.n_latents))

    def train(self, key, data, side):
        """One SAE before (`random_sae`) and after (`sae`) training, and what it `explained` of the scored samples' variance.

        One that was loaded is trained already; its control is an untrained TopK with as many active latents, `l0`.
        """
        sae, control = self.saes[side], self.controls[side]
        samples, held_out = (jnp.asarray(data[part][side]) for part in ("training", "scored"))
        key = jax.random.fold_in(key, side == "target")
        if side in self.loaded:
            params = self.loaded[side]
            start = sp.training.start(control, jax.random.split(key)[0], lambda: samples)
        else:
            start, params = disentangle(sae, key, samples, self.config.sae)
        trained, untrained = sp.evaluation.evaluate(sae, params, held_out), sp.evaluation.evaluate(control, start, held_out)
        found = {"explained": 1 - trained.fvu, "l0": trained.l0, "random_l0": untrained.l0}
        return {"sae": params, "random_sae": start, **found}

    def compare(self, which, data, kind):
        """Mean score of every metric for sides of a kind; `which` picks the SAEs: kind of source, of target, and seed."""
        sides = []
        for i, (side, what) in enumerate(zip(SIDES, kind.split("->"), strict=True)):
            units = data["scored"][side]
            if what == "latent":
                units = self.encode(side, data["saes"][side], units, which[i], which[2])
            sides.append(units)
        scores = sp.align(*sides, metrics=self.metrics, folds=data["fold_ids"], n_folds=self.config.n_folds)
        return {name: score.mean for name, score in scores.items()}

    def encode(self, side, saes, units, kind, seed):
        """Latents of the trained or the untrained SAE of a seed, by the index of its kind, which is traced."""
        if self.saes[side] is self.controls[side]:  # one program
            both = jax.tree.map(lambda *leaves: jnp.stack(leaves)[kind, seed], *saes)
            return self.saes[side].encode(both, units)
        trained, start = (jax.tree.map(lambda leaf: leaf[seed], params) for params in saes)
        return jnp.where(kind == 0, self.saes[side].encode(trained, units), self.controls[side].encode(start, units))

    def n_seeds(self, comparison):
        """How many seeds there are to tell apart: one of neurons, and of SAEs that were loaded."""
        ends = zip(SIDES, comparison.split("->"), strict=True)
        random = [what == "random_sae" or (what == "sae" and side not in self.loaded) for side, what in ends]
        return self.config.n_seeds if any(random) else 1


def disentangle(sae: sp.sae.SparseAutoencoder, key: Any, samples: Any, settings: Any, n: Any = None) -> tuple[Any, Any]:
    """Parameters of an SAE before and after training: the control, and what is scored.

    Args:
        sae: the architecture.
        key: of the start and the batches.
        samples: `(n_samples, n_inputs)`.
        settings: `steps`, `batch_size`, and `learning_rate`, which decays with a cosine.
        n: train on the first so many samples; may be traced. By default on all.
    """
    init_key, key, start_key = jax.random.split(key, 3)
    size, steps = settings["batch_size"], settings["steps"]

    def draw(key, size):
        return samples[jax.random.randint(key, (size,), 0, len(samples) if n is None else n)]

    start = sp.training.start(sae, init_key, lambda: samples if n is None else draw(start_key, size))
    optimizer = optax.adam(optax.cosine_decay_schedule(settings["learning_rate"], steps))
    return start, sp.fit(sae, key, draw, params=start, steps=steps, batch_size=size, optimizer=optimizer)[0]


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains the SAEs, scores all comparisons, and tabulates them."""
    if config.n_seeds < 1:
        raise ValueError(f"config.n_seeds must be at least 1, got {config.n_seeds}.")
    sp.metrics.resolve(config.metrics)
    loaded = read(config)
    scored = loaded["scored"]
    # What can fail fails here, before anything is trained: too few groups for the folds, dead sides, a k that does not fit.
    fold_key = jax.random.key(config.seed)
    fold_ids, _ = sp.assign_folds(len(loaded["groups"]), config.n_folds, key=fold_key, groups=loaded["groups"])
    sp.align(scored["source"], scored["target"], metrics="semi_match", folds=fold_ids)
    study = Study(config, loaded["training"])
    data = {"training": loaded["training"], "scored": scored}
    run.claim()

    started = time.perf_counter()
    keys = jax.random.split(jax.random.key(config.seed), config.n_seeds)
    trained = sp.sweep(study.train, {"side": SIDES}, keys, data_key=data, workdir=run.path / "saes")
    trained_at = time.perf_counter()
    saes = {side: trained.load(side=side) for side in SIDES}
    explained = [
        {
            "side": side,
            **sp.stats.over_seeds(saes[side]["explained"][: 1 if side in study.loaded else None]),
            **{name: float(np.mean(saes[side][name])) for name in ("l0", "random_l0")},
        }
        for side in SIDES
    ]
    data = {
        "scored": scored,
        "fold_ids": fold_ids,
        "saes": {side: tuple(saes[side][name] for name in SAES) for side in SIDES},
    }
    rows = []
    # Trained and untrained SAEs are alike to the compiler: one program a kind. Two comparisons at once, to spare memory.
    for kind in ("neuron->neuron", "latent->neuron", "latent->latent"):
        comparisons = [name for name in COMPARISONS if kind_of(name) == kind]
        listed = [(name, seed) for name in comparisons for seed in range(study.n_seeds(name))]
        which = np.array([[*(index_of(end) for end in name.split("->")), seed] for name, seed in listed])
        workdir = run.path / "scores" / kind.replace("->", "_")
        found = sp.sweep(study.compare, {"kind": [kind]}, which, data_key=data, chunk=1, workdir=workdir)
        rows += _rows(found.load(), [name for name, _ in listed])
    names = [metric.name for metric in study.metrics]
    rows.sort(key=lambda row: (names.index(row["metric"]), COMPARISONS.index(row["comparison"])))
    seconds = {"training": trained_at - started, "scoring": time.perf_counter() - trained_at}
    return run.finish(rows, seconds, variance_explained=explained, n_scored=len(loaded["groups"]))


def kind_of(comparison: str) -> str:
    """The kind of a comparison, which tells trained and untrained SAEs not apart."""
    return comparison.replace("random_sae", "latent").replace("sae", "latent")


def index_of(units: str) -> int:
    """Which of `SAES` gives the units; 0 for neurons, where it does not matter."""
    return SAES.index(units) if units in SAES else 0


def _rows(scores, listed):
    """A row for each metric and comparison; `listed` names the comparison of each value."""
    rows = []
    for metric, values in scores.items():
        for comparison in dict.fromkeys(listed):
            of_seeds = values[np.array(listed) == comparison]
            if not np.isfinite(of_seeds).all():
                raise ValueError(f"{comparison} has no live unit on one side: every unit is constant in some fold.")
            rows.append({"metric": metric, "comparison": comparison, **sp.stats.over_seeds(of_seeds), "n_pairs": len(of_seeds)})
    return rows


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a panel a metric, a bar a comparison."""
    config = run.config
    title = " → ".join(Path(config[side]).name for side in SIDES)
    plotting.alignment_bars(results["rows"], title, run.figure)


if __name__ == "__main__":
    command.main("align", get_config(), compute, draw, files=FILES)

"""How alike are two representations, before and after each is disentangled with a sparse autoencoder?

Takes two files of activations to the same samples, trains TopK SAEs on each side, and scores neurons, latents and the latents
of untrained SAEs on samples that no SAE saw. Look at sae->sae against neuron->neuron, and at what the random_sae controls
leave of the difference: an untrained SAE has as many latents and is as sparse, but has learned nothing.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import COMPARISONS, command
from superpos import data, plotting, sweeps
from superpos.results import Run


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.source = ""  # file.npy, or file.npz:key: activations of the side that predicts
    config.target = ""  # the same for the side that is predicted: the same samples in the same order
    config.source_axes = ""  # names of the axes where they are not samples,...,units: such as units,samples
    config.target_axes = ""
    config.source_train = ""  # activations to train the SAEs of a side on, with axes as above, instead of a part of its samples
    config.target_train = ""
    config.train_fraction = 0.5  # of the groups, whose samples train the SAEs and are not scored
    config.seed = 0  # of all keys
    config.n_seeds = 3  # SAEs of each side
    config.n_folds = 5
    config.metrics = sp.alignment.DEFAULT
    config.sae = ConfigDict(
        {
            "expansion": 4,  # latents for each unit
            "k": 16,
            "aux_weight": 0.1,
            "steps": 4_000,
            "batch_size": 1024,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
        }
    )
    return config


def read(config: ConfigDict) -> dict[str, Any]:
    """Both sides: for each the scored and the training samples; the groups of the scored samples.

    A group is the samples that share an index on the first axis. Groups are split between training and scoring.

    Raises:
        ValueError: files that are missing or no arrays, or files and settings that do not fit each other.
    """
    sides, groups = {}, None
    for side in ("source", "target"):
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

    train_files = {side: config[f"{side}_train"] for side in sides}
    scored = np.ones(len(source), bool)
    if not all(train_files.values()):
        if not 0 < config.train_fraction < 1:
            raise ValueError(f"config.train_fraction must be between 0 and 1, got {config.train_fraction}.")
        n_groups = groups.max() + 1
        order = np.random.default_rng(config.seed).permutation(n_groups)
        scored = ~np.isin(groups, order[: round(config.train_fraction * n_groups)])
        if scored.all() or not scored.any():
            raise ValueError(f"config.train_fraction={config.train_fraction} of {n_groups} groups leaves nothing on one side.")
    training = {}
    for side, array in sides.items():
        training[side] = _read_one(config, side, train_files[side])[0] if train_files[side] else array[~scored]
        if training[side].shape[1] != array.shape[1]:
            raise ValueError(f"config.{side}_train must have {array.shape[1]} units, got {training[side].shape[1]}.")
    return {"scored": {side: array[scored] for side, array in sides.items()}, "training": training, "groups": groups[scored]}


def _read_one(config, side, path):
    axes = [name.strip() for name in config[f"{side}_axes"].split(",")] if config[f"{side}_axes"] else None
    try:
        array, groups = data.flatten(data.load(path), axes)
    except (ValueError, OSError) as error:
        raise ValueError(f"config.{side}: {error}") from error
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"config.{side}: {path} holds {np.size(array) - np.isfinite(array).sum()} NaN or infinite values.")
    return array, groups


def train(sae: sp.sae.TopK, samples: jax.Array, keys: jax.Array, config: ConfigDict, report=None) -> dict[str, Any]:
    """SAEs on one side, a leading axis of seeds: before (`random_sae`) and after (`sae`) training."""
    optimizer = optax.adamw(config.sae.learning_rate, weight_decay=config.sae.weight_decay)

    def one(key):
        init_key, key = jax.random.split(key)
        start = sae.init(init_key)
        params, _ = sp.fit(
            sae,
            key,
            lambda key, n: samples[jax.random.randint(key, (n,), 0, samples.shape[0])],
            params=start,
            steps=config.sae.steps,
            batch_size=config.sae.batch_size,
            optimizer=optimizer,
            report=report,
        )
        return {"sae": params, "random_sae": start}

    return jax.vmap(one)(keys)


def disentangle(
    side: str, config: ConfigDict, training: np.ndarray, scored: np.ndarray, run: Run, report=None
) -> tuple[dict[str, jax.Array], np.ndarray]:
    """Representations of the scored samples, `(seeds, samples, units)` each, and the variance that each SAE explains there.

    SAEs that an earlier run with this configuration trained are used again.
    """
    sae = _sae(config, scored.shape[1])
    # One scale for all units, so that learning rate and loss mean the same whatever the activations' units are.
    center, scale = training.mean(axis=0), max(float(training.std(axis=0).mean()), 1e-12)
    inputs = jnp.asarray((training - center) / scale)
    held_out = jnp.asarray((scored - center) / scale)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), side == "target"), config.n_seeds)
    fit = jax.jit(lambda inputs, keys: train(sae, inputs, keys, config, report))
    trained = run.load(f"{side}_saes", jax.eval_shape(fit, inputs, keys))
    if trained is None:
        trained = jax.block_until_ready(fit(inputs, keys))
        run.save(f"{side}_saes", trained)
    encode = jax.jit(jax.vmap(sae.encode, (0, None)))
    codes = {name: encode(params, held_out) for name, params in trained.items()}
    error = held_out - jax.vmap(sae.decode)(trained["sae"], codes["sae"])
    unexplained = jnp.mean(error**2, axis=(1, 2)) / jnp.mean((held_out - held_out.mean(axis=0)) ** 2)
    return {"neuron": jnp.asarray(scored)[None], **codes}, 1 - np.asarray(unexplained)


def _sae(config, n_units):
    return sp.sae.TopK(n_units, config.sae.expansion * n_units, config.sae.k, config.sae.aux_weight)


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains the SAEs, scores all comparisons, and tabulates them."""
    metrics = sp.metrics.resolve(config.metrics)
    if config.n_seeds < 1:
        raise ValueError(f"config.n_seeds must be at least 1, got {config.n_seeds}.")
    loaded = read(config)
    scored = loaded["scored"]
    # What can fail fails here, before anything is trained: too few groups for the folds, dead sides, a k that does not fit.
    fold_key = jax.random.key(config.seed)
    fold_ids, _ = sp.assign_folds(len(loaded["groups"]), config.n_folds, key=fold_key, groups=loaded["groups"])
    sp.align(scored["source"], scored["target"], metrics="semi_match", folds=fold_ids)
    for array in scored.values():
        _sae(config, array.shape[1])
    run.claim()

    started = time.perf_counter()
    units, explained = {}, []
    with sweeps.progress(2 * config.sae.steps, "training SAEs") as reporter:
        for side in scored:
            units[side], variance = disentangle(side, config, loaded["training"][side], scored[side], run, reporter())
            explained.append({"side": side, **sp.stats.over_seeds(variance)})
    trained_at = time.perf_counter()

    rows = []
    with sweeps.progress(len(COMPARISONS), "scoring") as reporter:
        report = reporter()
        for done, comparison in enumerate(COMPARISONS, 1):
            source, target = (units[side][name] for side, name in zip(units, comparison.split("->"), strict=True))
            rows += _score(source, target, metrics, fold_ids, config.n_folds, comparison)
            report(done)
    rows.sort(key=lambda row: [metric.name for metric in metrics].index(row["metric"]))
    seconds = {"training": trained_at - started, "scoring": time.perf_counter() - trained_at}
    return run.finish(rows, seconds, variance_explained=explained, n_scored=len(loaded["groups"]))


def _score(source, target, metrics, fold_ids, n_folds, comparison):
    """Rows of one comparison: a score for each seed of the SAEs, one only where no SAE takes part."""
    n_seeds = max(len(source), len(target))

    def one(seed):
        x, y = (side[jnp.minimum(seed, len(side) - 1)] for side in (source, target))
        scores = sp.align(x, y, metrics=metrics, folds=fold_ids, n_folds=n_folds)
        return {name: score.mean for name, score in scores.items()}

    scores = jax.jit(lambda: lax.map(one, jnp.arange(n_seeds)))()
    rows = []
    for metric in metrics:
        values = np.asarray(scores[metric.name], np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{comparison} has no live unit on one side: every unit is constant in some fold.")
        rows.append({"metric": metric.name, "comparison": comparison, **sp.stats.over_seeds(values), "n_pairs": n_seeds})
    return rows


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a panel a metric, a bar a comparison."""
    config = run.config
    title = " → ".join(Path(config[side]).name for side in ("source", "target"))
    plotting.alignment_bars(results["rows"], title, run.figure)


if __name__ == "__main__":
    command.main("align", get_config(), compute, draw, files=("source", "target", "source_train", "target_train"))

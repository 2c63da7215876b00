"""How much of each true feature does any one unit show: neurons, latents, or what could be read at most?

Trains the models of `toy_alignment` and takes each feature's highest correlation with any unit. Look at where histograms have
two heaps: a model represents some features and leaves the others out, and an SAE finds some of the former. Where the oracle
(sparse inference with the true weights) and the supervised network (which was shown the features) are low too, the feature is
hardly in the hidden units; where they are high and the SAE is low, the SAE missed it.

Source: Longon, Klindt & Khosla, arXiv 2510.03186, feature recovery of the toy models.
"""

import itertools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import command, toy_alignment
from superpos import plotting
from superpos.results import Run


def get_config() -> ConfigDict:
    """Every setting: those of `toy_alignment` that training takes."""
    config = toy_alignment.get_config()
    del config.metrics
    return config


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains all models, and tabulates how each feature is recovered."""
    study = toy_alignment.Study(config)
    if config.n_seeds < 1:
        raise ValueError(f"config.n_seeds must be at least 1, got {config.n_seeds}.")
    key, data_key, _ = jax.random.split(jax.random.key(config.seed), 3)  # the models of toy_alignment
    for n_hidden in config.n_hidden:
        jax.eval_shape(lambda key, n_hidden=n_hidden: study.train(key, key, n_hidden), key)
    run.claim()
    found = sp.sweep(
        study.train,
        {"n_hidden": config.n_hidden},
        jax.random.split(key, config.n_seeds),
        data_key=data_key,
        chunk=config.chunk or None,
        workdir=run.path / "sweep",
    )
    recovery = {name: found.states[f"recovery.{name}"] for name in study.representations}
    features = {  # (seeds, features)
        name: {str(n_hidden): values.sel(n_hidden=n_hidden).values.tolist() for n_hidden in config.n_hidden}
        for name, values in recovery.items()
    }
    rows = toy_alignment.recovery_rows(study, found.states)
    return run.finish(rows, found.seconds, features=features, n_scored=study.eval_batches * config.eval.batch_size)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a histogram for each width and read-out, over features and seeds."""
    features, widths = results["features"], list(dict.fromkeys(row["n_hidden"] for row in results["rows"]))
    size = (1 + 2.6 * len(widths), 0.9 + 1.15 * len(features))
    figure, axes = plotting.panels(len(features), len(widths), size, sharex=True, sharey=True)
    tallest = 0.0
    for line, (name, by_width) in zip(axes, features.items(), strict=True):
        for axis, n_hidden in zip(line, widths, strict=True):
            values = np.ravel(by_width[str(n_hidden)])
            weights = np.full(values.size, 100 / values.size)
            heights, *_ = axis.hist(values, np.linspace(0, 1, 21), weights=weights, color=plotting.COLOURS[name])
            tallest = max(tallest, *heights)
        line[0].set_ylabel(f"{name}\n% of features")
    axes[0, 0].set_ylim(0, 1.5 * tallest)
    axes[0, 0].set_yticks([0, 50])  # above the bars stand the means
    rows = {(row["units"], row["n_hidden"]): row for row in results["rows"]}
    for (i, name), (j, n_hidden) in itertools.product(enumerate(features), enumerate(widths)):
        row, axis, height = rows[name, n_hidden], axes[i, j], 1.12 * tallest
        axis.errorbar(row["mean"], height, xerr=plotting.errors([row]), fmt="|", color="#555555", capsize=3, markersize=9)
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axis.annotate(f"mean {row['mean']:.2f}", (row["mean"], height), **place)
    for axis, n_hidden in zip(axes[0], widths, strict=True):
        axis.set_title(f"{n_hidden} hidden units")
    for axis in axes[-1]:
        axis.set_xlim(0, 1)
        axis.set_xlabel("highest correlation with a unit (r)")
    n_features = np.shape(features["neuron"][str(widths[0])])[1]
    note = f"{n_features} features of each model; marked: mean; {plotting.caption(results['rows'])}"
    figure.suptitle(note, fontsize=9, color="#444444")
    plotting.save(figure, run.figure)


if __name__ == "__main__":
    command.main("feature_recovery", get_config(), compute, draw)

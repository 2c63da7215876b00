"""How much of each true feature does any one unit show: neurons, latents, or what could be read at most?

Trains the models of `toy_alignment` and takes each feature's highest correlation with any unit. Look at where histograms have
two heaps: a model represents some features and leaves the others out, and an SAE finds some of the former. Where the oracle
(sparse inference with the true weights) and the supervised network (which was shown the features) are low too, the feature is
hardly in the hidden units; where they are high and the SAE is low, the SAE missed it.

Source: Longon, Klindt & Khosla, arXiv 2510.03186, feature recovery of the toy models.
"""

from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import command, toys
from superpos import plotting
from superpos.results import Run


def get_config() -> ConfigDict:
    """Every setting: those of `toy_alignment` that training takes."""
    config = toys.get_config()
    config.views = ("neuron", "sae", "random_sae", "oracle", "supervised")  # out of superpos.views.VIEWS
    return config


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains all models, and tabulates how each feature is recovered."""
    toys.check(config, n_seeds=1)
    names = [name for name in config.views if name != "supervised" or config.supervised.steps]
    found = toys.sweep(config, run, partial(toys.train, config, names), {"n_hidden": config.n_hidden})
    recovery = {name: found.states[f"recovery.{name}"] for name in names}
    values = {  # (seeds, features)
        name: {str(n_hidden): recovered.sel(n_hidden=n_hidden).values.tolist() for n_hidden in config.n_hidden}
        for name, recovered in recovery.items()
    }
    rows = toys.recovery_rows(config, names, found.states)
    return run.finish(rows, found.seconds, features=values, n_scored=toys.n_batches(config) * config.eval.batch_size)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a histogram for each width and view, over features and seeds."""
    rows, features = results["rows"], results["features"]
    widths = list(dict.fromkeys(row["n_hidden"] for row in rows))
    size = (1 + 2.6 * len(widths), 0.9 + 1.15 * len(features))
    figure, axes = plotting.panels(len(features), len(widths), size, sharex=True, sharey=True)
    tallest = 0.0
    for line, (name, by_width) in zip(axes, features.items(), strict=True):
        look = plotting.style(name)
        for axis, n_hidden in zip(line, widths, strict=True):
            values = np.ravel(by_width[str(n_hidden)])
            weights = np.full(values.size, 100 / values.size)
            tallest = max(tallest, *axis.hist(values, np.linspace(0, 1, 21), weights=weights, color=look["color"])[0])
        line[0].set_ylabel(f"{look['label']}\n% of features")
    for row in rows:  # above the bars stand the means
        axis = axes[list(features).index(row["units"]), widths.index(row["n_hidden"])]
        height = 1.12 * tallest
        axis.errorbar(row["mean"], height, xerr=plotting.errors([row]), fmt="|", color="#555555", capsize=3, markersize=9)
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axis.annotate(f"mean {row['mean']:.2f}", (row["mean"], height), **place)
    axes[0, 0].set(xlim=(0, 1), ylim=(0, 1.5 * tallest), yticks=[0, 50])
    for axis, n_hidden in zip(axes[0], widths, strict=True):
        axis.set_title(f"{n_hidden} hidden units")
    for axis in axes[-1]:
        axis.set_xlabel("highest correlation with a unit (r)")
    n_features = np.shape(next(iter(features.values()))[str(widths[0])])[1]
    plotting.finish(figure, f"{n_features} features of each model; marked: mean; {plotting.caption(rows)}", path=run.figure)


if __name__ == "__main__":
    command.main("feature_recovery", get_config(), compute, draw)

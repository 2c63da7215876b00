"""Do toy models of superposition look more alike once their hidden units are disentangled?

Trains toy models of several widths and seeds on the same features, and a TopK SAE on the hidden units of each; scores every
pair of seeds on features that none was trained on. Look at whether sae->sae rises above neuron->neuron, and above its controls:
random_sae, an SAE at its initialisation; ica and signed_pca, other bases of the same units (independent components, and
principal components split by their sign), which undo a mixing but no superposition. Feature recovery says how much the SAE
found: where it found little (8 hidden units), matching latents is no better than matching neurons. What could be found at most
is shown by two read-outs that know what an SAE does not: the oracle, sparse inference with the true weights, and a supervised
network.

Protocol: Longon, Klindt & Khosla, arXiv 2510.03186, toy models, as in their published code.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

import superpos as sp
from experiments import COMPARISONS, command, toys
from superpos import plotting
from superpos.comparison import ends, rivals, views_of
from superpos.results import Run

# The published protocol; by default there are fewer seeds and samples, and no supervised network, so that it ends in minutes.
FULL = {"n_seeds": 8, "eval.n_samples": 204_800, "supervised.steps": 4_000}


def get_config() -> ConfigDict:
    """Every setting: models and SAEs as published, but fewer of them, unless `FULL` is put in."""
    config = toys.get_config()
    config.update_from_flattened_dict({"n_seeds": 4, "eval.n_samples": 51_200, "supervised.steps": 0})
    config.metrics = sp.alignment.DEFAULT
    # Views of the source and of the target, out of superpos.views.VIEWS.
    config.comparisons = (*COMPARISONS, "oracle->oracle", "ica->ica", "signed_pca->signed_pca")
    return config


def views(config: ConfigDict) -> list[str]:
    """All views that are compared, and the supervised network, which only recovers features."""
    return list(dict.fromkeys([*views_of(config.comparisons), *["supervised"] * bool(config.supervised.steps)]))


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains and scores all models, and tabulates."""
    toys.check(config)
    if not config.comparisons:
        raise ValueError("config.comparisons is empty: name at least one, such as sae->sae.")
    names, metrics = views(config), sp.metrics.resolve(config.metrics)
    key = jax.random.key(config.seed)
    widest = jax.eval_shape(partial(toys.train, config, names, n_hidden=max(config.n_hidden)), key, key)

    def train(key, data_key, n_hidden):
        return toys.widen(toys.train(config, names, key, data_key, n_hidden), widest, names)

    def score(a, b, eval_key):
        return toys.score(config, config.comparisons, config.metrics, a, b, eval_key)

    found = toys.sweep(config, run, train, {"n_hidden": config.n_hidden}, score)
    rows = []
    for n_hidden in config.n_hidden:
        scores = found.scores.sel(n_hidden=n_hidden)
        for metric in metrics:
            for i, comparison in enumerate(config.comparisons):
                source, target = ends(comparison)
                values = scores[metric.name].transpose("source", "target", ...).values[..., i]
                summary = sp.stats.over_pairs(values, symmetric=metric.symmetric and source == target)
                rows.append({"n_hidden": n_hidden, "metric": metric.name, "comparison": comparison, **summary})
    return run.finish(
        rows,
        found.seconds,
        recovery=toys.recovery_rows(config, names, found.states),
        largest_duality_gap=float(found.scores["gap"].max()),
        n_scored=toys.n_batches(config) * config.eval.batch_size,
        answer=answer(rows),
    )


def answer(rows: Sequence[dict[str, Any]]) -> str:
    """A sentence a width: latents beside neurons and the best control, by the first metric; empty where one is not compared."""
    sentences, metric = [], rows[0]["metric"]
    for n_hidden in plotting.column(rows, "n_hidden"):
        means = {row["comparison"]: row["mean"] for row in plotting.where(rows, n_hidden=n_hidden, metric=metric)}
        asked = [means.get(f"{name}->{name}") for name in ("sae", "neuron")]
        controls = rivals("sae->sae", "neuron->neuron", means)
        if None in asked or not controls:
            continue
        best = (min if sp.metrics.resolve(metric)[0].distance else max)(controls, key=means.__getitem__)
        latents, neurons = (f"{mean:.2f}" for mean in asked)
        sentences.append(
            f"With {n_hidden} hidden units latents have {latents} ({metric}), neurons {neurons}, "
            f"and the best control, {best}, {means[best]:.2f} (means over {rows[0]['n_seeds']} seeds)."
        )
    return "\n".join(sentences)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment, a panel a metric, and feature recovery, against width."""
    rows, recovery = results["rows"], results["recovery"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure, (axes,) = plotting.panels(1, len(metrics) + 1, (2 + 3.4 * (len(metrics) + 1), 4.6))
    for axis, metric in zip(axes, metrics, strict=False):
        plotting.curves(axis, [row for row in rows if row["metric"] == metric], "n_hidden", log=2)
        axis.set_title(plotting.metric_title(metric))
    plotting.curves(axes[-1], recovery, "n_hidden", "units", log=2)
    axes[-1].set_title("Feature recovery")
    axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for axis in axes:
        axis.set_xlabel("hidden units")
        axis.set_ylim(min(0, axis.get_ylim()[0]), 1)
    axes[0].set_ylabel("mean over pairs of seeds, held out")
    axes[-1].set_ylabel("highest correlation with any unit")
    plotting.finish(figure, plotting.caption(rows), path=run.figure)


if __name__ == "__main__":
    command.main("toy_alignment", get_config(), compute, draw, presets={"full": FULL})

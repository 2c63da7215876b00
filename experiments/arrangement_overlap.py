"""Do toy models represent the same features, and do they arrange them alike?

Trains toy models of several widths and seeds on the same features: with the same settings they are the models of
toy_alignment. For each pair of seeds, a feature's overlap is the product of the norms of its weights in both models; it counts
as shared from 1 on. Over the shared features alone, each neuron's weights are compared with those of all neurons of the other
seed: Pearson correlation, best partner, mean over neurons. Look at how many features lie beyond the line in the upper row, and
in the lower at whether neurons match better than the control, in which one model's shared features have changed places at
random: so well does the best of several neurons match by chance.

Pairs that share fewer than 3 features have no match; where any pair has none, neither has the mean of its width (null).

Source: Longon, Klindt & Khosla, arXiv 2510.03186, toy models.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import command, toys
from superpos import plotting
from superpos.results import Run

# What is tabulated of each pair, and whether it is the same in both directions.
SYMMETRIC = {
    "n_shared": True,
    "n_shared_chance": True,
    "semi_match": False,
    "semi_match_chance": False,
    "semi_match_excess": False,
    "semi_match_all": False,
}
# The histograms of the lower row.
MATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "semi_match": ("shared features", {"color": "#0072B2", "alpha": 0.75}),
    "semi_match_chance": (
        "control: those of one model permuted",
        {"color": "#D55E00", "histtype": "step", "linewidth": 1.6},
    ),
}


def get_config() -> ConfigDict:
    """Every setting; those of features and toy models as in toy_alignment."""
    config = toys.get_config()
    del config.sae, config.oracle, config.supervised, config.options, config.eval
    return config


def train(config: ConfigDict, key: Any, data_key: Any, n_hidden: int) -> dict[str, Any]:
    """The weights of one model, and its last losses."""
    params, history = toys.train_toy(config, key, data_key, n_hidden)
    return {**params, "loss": history["loss"][-100:].mean(), "bits": jax.random.bits(key)}


def score(state_a: Any, state_b: Any, eval_key: Any) -> dict[str, Any]:
    """What both models share, and how alike they arrange it."""
    a, b = state_a["W"], state_b["W"]
    overlap = sp.arrangements.norm_products(a, b)
    shared = overlap >= 1
    norms_a, norms_b = (sp.arrangements.feature_norms(weights) for weights in (a, b))
    key = jax.random.fold_in(jax.random.fold_in(eval_key, state_a["bits"]), state_b["bits"])  # one of this pair
    match = sp.arrangements.semi_match(a, b, shared)
    chance = sp.arrangements.semi_match(a[shuffled(key, shared)], b, shared)
    return {
        "overlap": overlap,
        "n_shared": jnp.sum(shared, dtype=a.dtype),
        # Expected where which features have which norms is unrelated in the two models.
        "n_shared_chance": jnp.sum(jnp.outer(norms_a, norms_b) >= 1) / len(a),
        "semi_match": match,
        "semi_match_chance": chance,
        "semi_match_excess": match - chance,
        "semi_match_all": sp.arrangements.semi_match(a, b),
    }


def shuffled(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Indices `(n,)` that put the masked positions into random order, and leave the others where they are."""
    order = jnp.argsort(jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0), stable=True)
    return jnp.zeros(len(mask), order.dtype).at[jnp.argsort(~mask, stable=True)].set(order)


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains all models as one program, and tabulates what pairs of them share."""
    toys.check(config)
    found = toys.sweep(config, run, partial(train, config), {"n_hidden": config.n_hidden}, score)
    rows, values = [], {}
    pairs = ~np.eye(config.n_seeds, dtype=bool)
    for n_hidden in config.n_hidden:
        scores = found.scores.sel(n_hidden=n_hidden).transpose("source", "target", ...)
        for name, symmetric in SYMMETRIC.items():
            summary = sp.stats.over_pairs(scores[name].values, symmetric=symmetric)
            rows.append({"n_hidden": n_hidden, "statistic": name, **summary})
        own = {name: scores[name].values[pairs].tolist() for name in MATCHES}
        values[str(n_hidden)] = {"overlap": scores["overlap"].values[np.triu(pairs)].ravel().tolist(), **own}
    return run.finish(rows, found.seconds, values=values)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: histograms over pairs of seeds, a column a width; above overlap, below the match of neurons."""
    rows, values = results["rows"], results["values"]
    figure, (upper, lower) = plotting.panels(2, len(values), (3.4 * len(values), 5.6), sharex="row", sharey="row")
    overlaps = [value for own in values.values() for value in own["overlap"]]
    bins = np.geomspace(max(min(overlaps), 1e-4), max(*overlaps, 2), 49)
    matches = [value for own in values.values() for name in MATCHES for value in own[name] if value is not None]
    match_bins = np.linspace(min(matches), max(matches), 25) if matches else np.linspace(0, 1, 2)
    for top, bottom, (n_hidden, own) in zip(upper, lower, values.items(), strict=True):
        summary = {row["statistic"]: row for row in rows if str(row["n_hidden"]) == n_hidden}
        n_pairs = summary["n_shared"]["n_pairs"]
        top.hist(np.clip(own["overlap"], bins[0], bins[-1]), bins, weights=[1 / n_pairs] * len(own["overlap"]), color="#0072B2")
        top.axvline(1, color="black", linestyle="--", linewidth=1)
        top.set_xscale("log")
        top.set_title(f"{n_hidden} hidden units")
        note = f"shared: {summary['n_shared']['mean']:.1f}\nif unrelated: {summary['n_shared_chance']['mean']:.1f}"
        top.annotate(note, (0.03, 0.98), xycoords="axes fraction", va="top", fontsize=8)
        top.set_xlabel("overlap: product of a feature's norms")
        for name, (label, style) in MATCHES.items():
            defined = [value for value in own[name] if value is not None]
            bottom.hist(defined, match_bins, weights=[1 / len(own[name])] * len(defined), label=label, **style)
        bottom.set_xlabel("match of neurons' weights (Pearson r)")
        # Means with their intervals, above the bars.
        for height, (name, (_, style)) in zip((1.06, 1.02), MATCHES.items(), strict=True):
            row = [summary[name]]
            bottom.errorbar(
                plotting.means(row),
                [height],
                xerr=plotting.errors(row),
                color=style["color"],
                marker="o",
                markersize=3.5,
                capsize=2,
                transform=bottom.get_xaxis_transform(),
                clip_on=False,
            )
    upper[0].set_ylim(0, 1.25 * upper[0].get_ylim()[1])  # room for the notes
    upper[0].set_ylabel("features per pair of models")
    lower[0].set_ylabel("share of pairs")
    n_seeds = rows[0]["n_seeds"]
    interval = "dots: mean with 95 % confidence interval over seeds" if n_seeds > 2 else "dots: mean; no interval"
    legend = lower[0].get_legend_handles_labels()[0]
    plotting.finish(figure, f"All pairs of {n_seeds} seeds; {interval}", legend, path=run.figure)


if __name__ == "__main__":
    command.main("arrangement_overlap", get_config(), compute, draw)

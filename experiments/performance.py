"""Does a model that reconstructs better disentangle better?

The question that Longon, Klindt & Khosla, arXiv 2510.03186, leave open. Toy models of several widths, sparsities of the
features and lengths of training; of each the reconstruction error (fvu, fraction of variance unexplained), how well an SAE
and the oracle (sparse inference with the true weights) recover the features, and how alike models of other seeds look before
and after disentangling. Look at whether lines rise to the left, where reconstruction is good: along a line only the length of
training changes, between lines width and sparsity do. The table of rank correlations says the same for each of the three, the
others held fixed, with intervals over seeds.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.stats import rankdata

import superpos as sp
from experiments import command, toys
from superpos import plotting
from superpos.results import Run

METRIC = "soft_match"
VIEWS = ("neuron", "sae", "oracle")
COMPARISONS = tuple(f"{name}->{name}" for name in VIEWS)
AXES = ("n_hidden", "probability", "toy_steps")


def get_config() -> ConfigDict:
    """Every setting: those of `toy_alignment`, several sparsities and lengths of training."""
    config = toys.get_config()
    config.n_seeds = 4
    config.probabilities = (0.03, 0.1, 0.2)  # of a feature being active; the SAE's k is a tenth more than are active on average
    config.toy_steps = (300, 1_000, 3_000, 10_000)  # lengths of training
    del config.features.probability, config.sae.k, config.toy.steps, config.supervised, config.options
    config.sae.steps = 4_000
    config.eval.n_samples = 40_960
    return config


def variant(config: ConfigDict, probability: float) -> ConfigDict:
    """The settings of toy models of one sparsity, which train for the longest time.

    Raises:
        ValueError: no sparsity, or lengths of training that are not numbers of steps.
    """
    if not config.toy_steps or min(config.toy_steps) < 1:
        raise ValueError(f"config.toy_steps must list numbers of steps, each at least 1, got {config.toy_steps}.")
    own = ConfigDict({**config.to_dict(), "options": {}, "supervised": {"steps": 0}})
    own.features.probability = probability
    own.sae.k = max(1, round(1.1 * probability * config.features.n_features))
    own.toy.steps = max(config.toy_steps)
    toys.check(own)
    return own


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains and scores all models, and tabulates error, recovery and alignment."""
    if not config.probabilities:
        raise ValueError("config.probabilities is empty: name at least one.")
    variants = {str(probability): variant(config, probability) for probability in config.probabilities}
    key = jax.random.key(config.seed)
    widest = jax.eval_shape(lambda: toys.train(next(iter(variants.values())), VIEWS, key, key, max(config.n_hidden)))

    def train(key, data_key, n_hidden, probability, toy_steps):
        """One model and its views, and its fvu: the share of the features' variance that it does not reconstruct."""
        own = variants[probability]
        state, toy = toys.train(own, VIEWS, key, data_key, n_hidden, toy_steps), toys.toy(own, n_hidden)
        z = toys.features(own).sample(jax.random.fold_in(data_key, 1), 16_384)
        error, _ = toy.loss(state["toy"], z)
        variance = jnp.mean(toy.importance * jnp.diagonal(sp.features.covariance(toys.features(own))))
        return {**toys.widen(state, widest, VIEWS), "fvu": error / variance}

    def score(a, b, eval_key, probability):
        return toys.score(variants[probability], COMPARISONS, METRIC, a, b, eval_key)[METRIC]

    steps = [float(steps) for steps in config.toy_steps]
    grid = dict(zip(AXES, (config.n_hidden, list(variants), steps), strict=True))
    found = toys.sweep(config, run, train, grid, score)
    measures = {"fvu": found.states["fvu"]}
    for name in ("sae", "oracle"):
        recovery = found.states[f"recovery.{name}"]
        measures[f"recovery {name}"] = recovery.mean(recovery.dims[-1])
    measures |= {comparison: found.scores["value"][..., i] for i, comparison in enumerate(COMPARISONS)}
    arrays = {name: values.transpose(*AXES, ...).values for name, values in measures.items()}
    points = itertools.product(config.n_hidden, config.probabilities, config.toy_steps)
    indices = np.ndindex(*(len(values) for values in grid.values()))
    rows = [
        {**dict(zip(AXES, point, strict=True)), "measure": name, **_summary(values[index])}
        for point, index in zip(points, indices, strict=True)
        for name, values in arrays.items()
    ]
    return run.finish(rows, found.seconds, rank_correlations=correlate(arrays))


def correlate(measures: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Spearman's correlation of reconstruction (-fvu) with each measure along one axis, mean over the values of the others.

    For scores of pairs of seeds the reconstruction is the mean of the two models'. Intervals are over seeds.

    Args:
        measures: `(n_hidden, probability, toy_steps, seeds)`, or with `(..., seeds, seeds)` for scores of pairs.
    """
    fvu = measures["fvu"]
    rows = []
    for i, name in itertools.product(range(len(AXES)), [name for name in measures if name != "fvu"]):
        values = measures[name]
        if values.shape[i] < 2:
            continue
        error = fvu if values.ndim == fvu.ndim else (fvu[..., :, None] + fvu[..., None, :]) / 2
        ranks = [rankdata(side, axis=i) for side in (-error, values)]
        ranks = [side - side.mean(axis=i, keepdims=True) for side in ranks]
        with np.errstate(invalid="ignore"):  # undefined where all are equal
            rho = np.sum(ranks[0] * ranks[1], axis=i) / np.sqrt(np.prod([np.sum(side**2, axis=i) for side in ranks], axis=0))
        rows.append({"along": AXES[i], "measure": name, **_summary(rho.mean(axis=(0, 1)))})
    return rows


def _summary(values):
    """Over seeds, or over unordered pairs of them: all measures of pairs are symmetric."""
    return sp.stats.over_seeds(values) if values.ndim == 1 else sp.stats.over_pairs(values, symmetric=True)


TITLES = {
    "recovery sae": "Feature recovery, SAE",
    "recovery oracle": "Feature recovery, oracle",
    "neuron->neuron": "Soft-matching, neuron->neuron",
    "sae->sae": "Soft-matching, sae->sae",
}


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: recovery and alignment against reconstruction error; a line is one width and sparsity, along training."""
    from matplotlib.ticker import LogLocator, NullLocator

    rows = {(*(row[name] for name in AXES), row["measure"]): row for row in results["rows"]}
    widths, probabilities, lengths = (list(dict.fromkeys(row[name] for row in results["rows"])) for name in AXES)
    figure, (axes,) = plotting.panels(1, len(TITLES), (3.3 * len(TITLES), 4.2), sharex=True, sharey=True)
    colours = dict(zip(widths, itertools.cycle(("#3B0F70", "#B73779", "#FC8961", "#777777", "#000000")), strict=False))
    markers = dict(zip(probabilities, itertools.cycle("os^Dv"), strict=False))
    sizes = np.linspace(12, 60, len(lengths)) if len(lengths) > 1 else [40]
    for axis, (measure, title) in zip(axes, TITLES.items(), strict=True):
        for n_hidden, probability in itertools.product(widths, probabilities):
            line = [rows[n_hidden, probability, length, measure] for length in lengths]
            x, y = plotting.means([rows[n_hidden, probability, length, "fvu"] for length in lengths]), plotting.means(line)
            axis.errorbar(x, y, yerr=plotting.errors(line), color=colours[n_hidden], linewidth=1, capsize=2)
            axis.scatter(x, y, s=sizes, color=colours[n_hidden], marker=markers[probability], zorder=3)
        axis.set_title(title)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("variance not reconstructed\n(share, weighted by importance; better: left)")
    axes[0].set(ylim=(0, 1.03), ylabel="mean correlation (Pearson r)")
    for n_hidden, colour in colours.items():
        axes[0].scatter([], [], color=colour, label=f"{n_hidden} hidden units")
    for probability, marker in markers.items():
        axes[0].scatter([], [], color="grey", marker=marker, label=f"features active with p = {probability:g}")
    steps = ", ".join(f"{length:,}" for length in lengths)
    caption = f"Larger marks: trained for longer ({steps} steps); {plotting.caption(results['rows'])}"
    plotting.finish(figure, caption, path=run.figure)


if __name__ == "__main__":
    command.main("performance", get_config(), compute, draw)

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
from experiments import command, toy_alignment
from superpos import plotting
from superpos.results import Run

METRIC = "soft_match"
COMPARISONS = ("neuron->neuron", "sae->sae", "oracle->oracle")
AXES = ("n_hidden", "probability", "toy_steps")


def get_config() -> ConfigDict:
    """Every setting: those of `toy_alignment`, several sparsities and lengths of training."""
    config = toy_alignment.get_config()
    del config.metrics
    config.n_seeds = 4
    config.probabilities = (0.03, 0.1, 0.2)  # of a feature being active; the SAE's k is a tenth more than are active on average
    config.toy_steps = (300, 1_000, 3_000, 10_000)  # lengths of training
    del config.features.probability, config.sae.k, config.toy.steps, config.supervised
    config.sae.steps = 4_000
    config.eval.n_samples = 40_960
    return config


class Study:
    """The pure functions: `train` and `score` those of `toy_alignment`, for each sparsity."""

    def __init__(self, config: ConfigDict):
        if not config.toy_steps or min(config.toy_steps) < 1:
            raise ValueError(f"config.toy_steps must list numbers of steps, each at least 1, got {config.toy_steps}.")
        if not config.probabilities:
            raise ValueError("config.probabilities is empty: name at least one.")
        self.studies = {}
        for probability in config.probabilities:
            variant = ConfigDict({**config.to_dict(), "metrics": METRIC, "supervised": {"steps": 0}})
            variant.features.probability = probability
            variant.sae.k = max(1, round(1.1 * probability * config.features.n_features))
            variant.toy.steps = max(config.toy_steps)
            self.studies[str(probability)] = toy_alignment.Study(variant, COMPARISONS)

    def train(self, key, data_key, n_hidden, probability, toy_steps):
        """One model and what disentangles it, and its fvu: the share of the features' variance that it does not reconstruct."""
        study = self.studies[probability]
        state = study.train(key, data_key, n_hidden, toy_steps)
        z = study.features.sample(jax.random.fold_in(data_key, 1), 16_384)
        error, _ = study.toy(study.width).loss(state["toy"], z)
        variance = jnp.mean(study.importance * jnp.diagonal(sp.features.covariance(study.features)))
        return {**state, "fvu": error / variance}

    def score(self, a, b, eval_key, probability):
        """Soft-matching of one pair of models, `(comparisons,)`."""
        return self.studies[probability].score(a, b, eval_key)[METRIC]


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains and scores all models, and tabulates error, recovery and alignment."""
    study = Study(config)
    if config.n_seeds < 2:
        raise ValueError(f"config.n_seeds must be at least 2, to have a pair to compare, got {config.n_seeds}.")
    key, data_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    for n_hidden, probability in itertools.product(config.n_hidden, study.studies):
        jax.eval_shape(lambda key, n=n_hidden, p=probability: study.train(key, key, n, p, 1.0), key)
    run.claim()
    values = (config.n_hidden, list(study.studies), [float(steps) for steps in config.toy_steps])
    grid = dict(zip(AXES, values, strict=True))
    found = sp.sweep(
        study.train,
        grid,
        jax.random.split(key, config.n_seeds),
        score=study.score,
        data_key=data_key,
        eval_key=eval_key,
        chunk=config.chunk or None,
        workdir=run.path / "sweep",
    )
    measures = {"fvu": found.states["fvu"]}
    for name in ("sae", "oracle"):
        recovery = found.states[f"recovery.{name}"]
        measures[f"recovery {name}"] = recovery.mean(recovery.dims[-1])
    scores = found.scores["value"]
    measures |= {comparison: scores[..., i] for i, comparison in enumerate(COMPARISONS)}
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


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: recovery and alignment against reconstruction error; a line is one width and sparsity, along training."""
    from matplotlib.ticker import LogLocator, NullLocator

    rows = {(*(row[name] for name in AXES), row["measure"]): row for row in results["rows"]}
    widths, probabilities, lengths = (list(dict.fromkeys(row[name] for row in results["rows"])) for name in AXES)
    titles = {
        "recovery sae": "Feature recovery, SAE",
        "recovery oracle": "Feature recovery, oracle",
        "neuron->neuron": "Soft-matching, neuron->neuron",
        "sae->sae": "Soft-matching, sae->sae",
    }
    figure, (axes,) = plotting.panels(1, len(titles), (3.3 * len(titles), 4.2), sharex=True, sharey=True)
    colours = dict(zip(widths, itertools.cycle(("#3B0F70", "#B73779", "#FC8961", "#777777", "#000000")), strict=False))
    markers = dict(zip(probabilities, itertools.cycle("os^Dv"), strict=False))
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for n_hidden, probability in itertools.product(widths, probabilities):
            found = [rows[n_hidden, probability, length, measure] for length in lengths]
            x = plotting.means([rows[n_hidden, probability, length, "fvu"] for length in lengths])
            axis.errorbar(
                x, plotting.means(found), yerr=plotting.errors(found), color=colours[n_hidden], linewidth=1, capsize=2
            )
            sizes = np.linspace(12, 60, len(lengths)) if len(lengths) > 1 else [40]
            axis.scatter(x, plotting.means(found), s=sizes, color=colours[n_hidden], marker=markers[probability], zorder=3)
        axis.set_title(title)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("variance not reconstructed\n(share, weighted by importance; better: left)")
    axes[0].set_ylim(0, 1.03)
    axes[0].set_ylabel("mean correlation (Pearson r)")
    for n_hidden, colour in colours.items():
        axes[0].scatter([], [], color=colour, label=f"{n_hidden} hidden units")
    for probability, marker in markers.items():
        axes[0].scatter([], [], color="grey", marker=marker, label=f"features active with p = {probability:g}")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    steps = ", ".join(f"{length:,}" for length in lengths)
    figure.suptitle(
        f"Larger marks: trained for longer ({steps} steps); {plotting.caption(results['rows'])}",
        fontsize=9,
        color="#444444",
    )
    plotting.save(figure, run.figure)


if __name__ == "__main__":
    command.main("performance", get_config(), compute, draw)

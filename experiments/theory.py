"""How much do superposition arrangements alone deflate alignment, and can it be predicted without a sample?

Pairs of Gaussian arrangements of the very same sparse features: y = z A (linear units) and y = relu(z A) (rectified units). The
score of linear units follows from the two arrangements and the features' covariance (`superpos.theory`), and is compared with
what a million samples give, for several compressions n_units / n_features, sparsities, and rotations of one arrangement by a
fraction t of a geodesic. All pairs share the samples. Features are the same on both sides, so 1 - score is all deflation.
A second table holds the expected score of two random arrangements against simulations of up to 4096 features.

Look at whether linear units lie on the diagonal, and how far the rectified ones fall off it; at matching, which falls with t,
where cka, procrustes and regression of linear units do not see a rotation at all; and at sparsity, which linear units do not
feel. Arrangements equal up to order and positive scale ("equal" in the table) match perfectly. soft_match is permutation_match
here, since both sides have equally many units, but for rectified ones that never fire (some do not at probability 1).
Row-normalised RSA (`rsa`) depends on more than covariances: it is measured, not predicted.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import arrangements, plotting, theory, transport
from superpos.linalg import matmul
from superpos.results import Run

UNITS = ("linear", "rectified")
NOTE = {"xycoords": "axes fraction", "ha": "right", "va": "top", "fontsize": 8, "color": "#444444"}
FORMULAS = {  # of random arrangements; with equally many units on both sides soft matching is one to one
    "semi_match": theory.random_semi_match,
    "permutation_match": theory.random_permutation_match,
    "soft_match": theory.random_permutation_match,
}
N_FOLDS = 3  # the fewest that ridge chooses its alpha with
COLOURS = {
    "semi_match": "#000000",
    "soft_match": "#0072B2",
    "permutation_match": "#56B4E9",
    "ridge": "#D55E00",
    "ols": "#E69F00",
    "cka": "#009E73",
    "procrustes": "#CC79A7",
    "rsa": "#777777",
}
MARKERS = dict(zip(COLOURS, "osdv^DPX", strict=True))


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.metrics = theory.PREDICTED  # out of these; rsa is measured beside them
    config.n_features = 64
    config.n_units = (4, 8, 16, 32)  # compressions n_units / n_features
    config.probability = 0.1  # of a feature being active, where it is not varied
    config.probabilities = (0.01, 0.03, 0.1, 0.3, 1.0)
    config.fractions = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # t, of a rotation
    config.n_units_fixed = 16  # where probabilities and rotations are varied
    config.n_pairs = ConfigDict({"compression": 100, "fixed": 25})  # of arrangements, where n_units is varied, and where not
    # n_samples is rounded up, so that each fold is made of whole batches; rsa, which moments do not give, is of fewer samples.
    config.eval = ConfigDict({"n_samples": 1_000_000, "batch_size": 1024, "n_rsa": 12_288})
    # Simulations of random arrangements with n_features / one_in units: n_pairs of 64 features, of more ones fewer, at least 4.
    config.random = ConfigDict({"n_features": (64, 256, 1024, 4096), "one_in": (8, 4, 2), "n_pairs": 4096})
    config.chunk = 32  # pairs in flight at once: so many fit into a CPU's cache; 0: into memory
    return config


class Study:
    """The pure functions: `train` one pair of arrangements, `score` it, and `simulate` one of any size."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.n_batches = N_FOLDS * -(-config.eval.n_samples // (N_FOLDS * config.eval.batch_size))
        self.widest = max(*config.n_units, config.n_units_fixed)

    def points(self, group: str) -> list[dict[str, Any]]:
        """What is varied at each width of a group, and its settings; no `fraction` where both arrangements are independent."""
        config = self.config
        fixed = {"probability": config.probability, "fraction": None}
        if group == "compression":
            return [{"varied": "compression", **fixed}]
        return [
            *({**fixed, "varied": "sparsity", "probability": p} for p in config.probabilities),
            *({**fixed, "varied": "rotation", "fraction": t} for t in config.fractions),
            {**fixed, "varied": "equal", "fraction": 0.0},  # up to the order of units and positive scale
        ]

    def arrange(self, key, n_units, fraction, spread):
        """Two arrangements: the second is the first turned, in another order and scaled; or new, with an infinite fraction."""
        keys = jax.random.split(key, 5)
        a, new = (arrangements.gaussian(key, self.config.n_features, n_units) for key in keys[:2])
        b = matmul(a, arrangements.rotation(keys[2], n_units, fraction))
        b = arrangements.scale_units(keys[4], arrangements.permute_units(keys[3], b), spread)
        return a, jnp.where(jnp.isinf(fraction), new, b)

    def train(self, key, data_key, n_units, group):
        """One pair of arrangements for each point of a group: see `measure`; leaves `(points, ...)`."""
        points = self.points(group)
        probability = jnp.array([point["probability"] for point in points])
        fraction = jnp.array([math.inf if point["fraction"] is None else point["fraction"] for point in points])
        spread = jnp.array([float(point["varied"] == "equal") for point in points])
        tick = sp.training.loop(len(points) * self.n_batches)

        def one(point):
            # One after the other: the probability is the same for all pairs in flight, and so are the samples.
            i, probability, fraction, spread = point
            a, b = self.arrange(key, n_units, fraction, spread)
            return self.measure(a, b, probability, data_key, lambda batch: tick(i * self.n_batches + batch))

        return lax.map(one, (jnp.arange(len(points)), probability, fraction, spread))

    def measure(self, a, b, probability, data_key, tick):
        """The moments of two arrangements, predicted and of samples of each of `UNITS`, and their measured rsa."""
        n_features, n_units = a.shape
        features = sp.features.SparseFeatures(n_features, probability)

        def sides(i, n):
            z = features.sample(jax.random.fold_in(data_key, i), n)
            x, y = (matmul(side.T, z.T).T for side in (a, b))  # samples last in memory
            return (x, y), (jax.nn.relu(x), jax.nn.relu(y))

        def add(moments, i):
            tick(i)
            both = zip(moments, sides(i, self.config.eval.batch_size), strict=True)
            return [sp.moments.update(old, x, y, i % N_FOLDS) for old, (x, y) in both], None

        empty = sp.moments.init(n_units, n_units, N_FOLDS, ("xx", "xy", "yy"))
        sampled, _ = lax.scan(add, [empty] * len(UNITS), jnp.arange(self.n_batches))
        predicted = theory.population(a, b, sp.features.covariance(features), N_FOLDS)
        units = np.arange(self.widest)  # silent ones up to the largest width, so that `score` is compiled once
        moments = [sp.moments.select(kind, units, units) for kind in (predicted, *sampled)]
        n_rsa = self.config.eval.n_rsa
        rsa = [sp.align(x, y, "rsa", np.arange(n_rsa) % N_FOLDS)["rsa"].folds for x, y in sides(self.n_batches, n_rsa)]
        return {"moments": jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments), "rsa": jnp.stack(rsa)}

    def score(self, row, moments):
        """Scores of each fold, predicted and of each of `UNITS`: `{metric: (3, folds)}`."""
        one = jax.tree.map(lambda leaf: leaf[row], moments)
        return lax.map(lambda kind: {name: score.folds for name, score in sp.score(kind, self.config.metrics).items()}, one)

    @staticmethod
    def simulate(key, data_key, n_features, one_in):
        """Population scores of two Gaussian arrangements of features of equal variance."""
        del data_key
        n_units = n_features // one_in
        sides = (arrangements.gaussian(side, n_features, n_units) for side in jax.random.split(key))
        a, b = (arrangements.directions(side.T) for side in sides)  # units of norm 1: products are correlations
        r = matmul(a, b.T)
        matched = transport.assignment(-r)
        return {"semi_match": jnp.mean(jnp.max(r, axis=0)), "permutation_match": -matched.objective / n_units}


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Measures, predicts and simulates, and tabulates."""
    _check(config)
    study = Study(config)
    key, data_key, random_key = jax.random.split(jax.random.key(config.seed), 3)
    chunk = config.chunk or None
    widths = {"compression": config.n_units, "fixed": (config.n_units_fixed,)}
    for group in widths:
        jax.eval_shape(lambda key, group=group: study.train(key, key, study.widest, group), key)
    run.claim()
    sweeps, states, points = [], [], []
    for group, n_units in widths.items():
        keys, grid = jax.random.split(key, config.n_pairs[group]), {"n_units": n_units, "group": [group]}
        sweeps.append(sp.sweep(study.train, grid, keys, data_key=data_key, chunk=chunk, workdir=run.path / "sweep" / group))
        for n in n_units:
            state = sweeps[-1].load(n_units=n)  # leaves (pairs, points, ...)
            for i, point in enumerate(study.points(group)):
                states.append(jax.tree.map(lambda leaf, i=i: leaf[:, i], state))
                points.append({"varied": point["varied"], "n_units": n, **point})
    owners = np.repeat(np.arange(len(points)), [len(state["rsa"]) for state in states])
    states = jax.tree.map(lambda *leaves: np.concatenate(leaves), *states)
    numbers, workdir = np.arange(len(owners)), run.path / "sweep" / "score"
    sweeps.append(sp.sweep(study.score, {}, numbers, data_key=states["moments"], chunk=chunk, workdir=workdir))
    nothing = np.full_like(states["rsa"][:, :1], math.nan)
    scored = sweeps[-1].load()
    scores = {name: scored[name] for name in config.metrics} | {"rsa": np.concatenate([nothing, states["rsa"]], axis=1)}
    rows = tabulate(points, owners, scores, config.n_features)
    random = []
    for n_features in config.random.n_features:
        keys = jax.random.split(random_key, max(4, config.random.n_pairs * 64**2 // n_features**2))
        grid = {"n_features": [n_features], "one_in": config.random.one_in}
        workdir = run.path / "sweep" / f"random_{n_features}"
        sweeps.append(sp.sweep(study.simulate, grid, keys, workdir=workdir))
        random += tabulate_random(sweeps[-1], n_features, config.random.one_in)
    seconds = {name: sum(sweep.seconds[name] for sweep in sweeps) for name in ("compile", "run")}
    n_scored = study.n_batches * config.eval.batch_size
    return run.finish(
        rows, seconds, agreement=agreement(scores), random=random, n_features=config.n_features, n_scored=n_scored
    )


def _check(config):
    if not config.metrics or not set(config.metrics) <= set(theory.PREDICTED):
        raise ValueError(f"config.metrics takes names out of {', '.join(theory.PREDICTED)}, got {config.metrics}.")
    if config.n_features < 2 or not config.n_units or min(*config.n_units, config.n_units_fixed) < 2:
        raise ValueError("config.n_features, config.n_units and config.n_units_fixed must be at least 2.")
    if not config.probabilities or not all(0 < p <= 1 for p in (config.probability, *config.probabilities)):
        raise ValueError("config.probability and config.probabilities must be above 0 and at most 1.")
    if not config.fractions:
        raise ValueError("config.fractions is empty: name at least one.")
    for varied, n_pairs in config.n_pairs.items():
        if n_pairs < 3:
            raise ValueError(f"config.n_pairs.{varied} must be at least 3, got {n_pairs}.")
    if min(config.eval.n_samples // N_FOLDS, config.eval.batch_size, config.eval.n_rsa // N_FOLDS) < 10:
        raise ValueError(f"config.eval needs at least 10 samples in each batch and each of {N_FOLDS} folds.")
    sizes = [n // one_in for n in config.random.n_features for one_in in config.random.one_in if one_in > 0]
    if not sizes or min(config.random.one_in) < 1 or min(sizes) < 3:
        raise ValueError("config.random needs at least 3 units: n_features // one_in.")
    if config.chunk < 0:
        raise ValueError(f"config.chunk must be at least 0, got {config.chunk}.")
    lists = {
        "metrics": config.metrics,
        "n_units": config.n_units,
        "probabilities": config.probabilities,
        "fractions": config.fractions,
    }
    for name, values in (lists | {f"random.{name}": config.random[name] for name in ("n_features", "one_in")}).items():
        if len(set(values)) < len(values):
            raise ValueError(f"config.{name} has a value twice: {values}.")


def tabulate(
    points: list[dict[str, Any]], owners: np.ndarray, scores: dict[str, np.ndarray], n_features: int
) -> list[dict[str, Any]]:
    """A row a point, metric and kind of units: predicted and measured means over pairs, and how far they are apart.

    Args:
        points: what was varied, and settings.
        owners: `(pairs,)`, the number of the point that each pair is of.
        scores: `(pairs, 3, folds)` of each metric, predicted and of each of `UNITS`.
        n_features: for `formula`, the expected score of random arrangements, where compression is varied.
    """
    rows = []
    for i, point in enumerate(points):
        for metric, found in scores.items():
            random = FORMULAS.get(metric) if point["varied"] == "compression" else None
            formula = random and float(random(point["n_units"], n_features))
            predicted, *measured = np.moveaxis(found[owners == i].astype(np.float64).mean(axis=2), 1, 0)
            for units, values in zip(UNITS, measured, strict=True):
                summary = sp.stats.over_seeds(values)
                n_pairs = summary.pop("n_seeds")
                error = values - predicted
                row = {**point, "metric": metric, "units": units, "predicted": predicted.mean(), **summary, "n_pairs": n_pairs}
                row |= {"mean_difference": error.mean(), "largest_difference": np.abs(error).max(), "formula": formula}
                rows.append(row)
    return rows


def agreement(scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Measured less predicted over all pairs of all points, beside the standard error of one measured score.

    The error is that of the mean over folds, which are independent samples, from their spread; root mean square over pairs.
    """
    rows = []
    for metric in (name for name in scores if name != "rsa"):
        folds = scores[metric].astype(np.float64)
        for i, units in enumerate(UNITS, 1):
            error = (folds[:, i] - folds[:, 0]).mean(axis=1)
            rows.append(
                {
                    "metric": metric,
                    "units": units,
                    "mean_difference": error.mean(),
                    "rms_difference": np.sqrt(np.mean(error**2)),
                    "largest_difference": np.abs(error).max(),
                    "sampling_error": np.sqrt(np.mean(folds[:, i].var(axis=1, ddof=1) / N_FOLDS)),
                    "n_pairs": len(error),
                }
            )
    return rows


def tabulate_random(found: sp.sweeps.Results, n_features: int, one_in: Any) -> list[dict[str, Any]]:
    """A row a size and metric: the formula for random arrangements, and simulations with their standard error."""
    rows = []
    for share in one_in:
        n_units = n_features // share
        for metric, values in found.load(one_in=share).items():
            expected, values = float(FORMULAS[metric](n_units, n_features)), values.astype(np.float64)
            simulated = values.mean()
            size = {"n_features": n_features, "n_units": n_units, "metric": metric, "formula": expected}
            error = values.std(ddof=1) / math.sqrt(len(values))
            off = {"relative_difference": expected / simulated - 1, "n_pairs": len(values)}
            rows.append({**size, "mean": simulated, "standard_error": error, **off})
    return rows


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: predicted against measured, how far apart, random arrangements; then compression, sparsity, rotation."""
    rows, n_features = results["rows"], results["n_features"]
    figure, ((against, differences, random), curves) = plotting.panels(2, 3, (12.6, 8.4))
    _against(against, [row for row in rows if row["predicted"] is not None])
    _differences(differences, results["agreement"])
    _random(random, results["random"])
    settings = {"compression": "n_units", "sparsity": "probability", "rotation": "fraction"}
    for axis, (varied, setting) in zip(curves, settings.items(), strict=True):
        line = [row for row in rows if row["varied"] == varied]
        at = sorted({row[setting] for row in line})
        if varied != "rotation":
            axis.set_xscale("log")
            axis.set_xticks(at, [f"{x / n_features if varied == 'compression' else x:.3g}" for x in at])
            axis.minorticks_off()
        _curves(axis, line, setting)
        axis.set_ylim(min(0, axis.get_ylim()[0]), 1.03)
        axis.set_title("Rotated arrangement" if varied == "rotation" else "Independent arrangements")
    fixed = next(row["n_units"] for row in rows if row["varied"] == "sparsity")
    curves[0].plot([], [], ":", color="#999999", linewidth=2.5, label="formula for random arrangements")
    curves[0].legend(fontsize=8, frameon=False, loc="upper left")
    curves[0].set_ylabel("score, all below 1 is deflation")
    curves[0].set_xlabel(f"units / {n_features} features (left: more compressed)")
    curves[1].set_xlabel(f"probability that a feature is active ({fixed} units)")
    curves[2].set_xlabel(f"fraction t of a rotation ({fixed} units)")
    figure.legend(handles=_key(rows), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    curves[2].annotate("cka, ridge, procrustes of linear units: all 1", (0.98, 0.06), **NOTE)
    curves[1].annotate("ols is ridge, permutation_match soft_match", (0.98, 0.98), **NOTE)
    caption = f"Two arrangements of the same {n_features} features; measured on {results['n_scored']:,} samples"
    figure.suptitle(f"{caption}; bars: 95 % confidence interval over pairs", fontsize=9, color="#444444")
    plotting.save(figure, run.figure)


def _key(rows):
    from matplotlib.lines import Line2D

    metrics = [Line2D([], [], label=name, **_style(name)) for name in dict.fromkeys(row["metric"] for row in rows)]
    units = [Line2D([], [], label=f"{name} units", **{**_style("semi_match", name), "color": "#444444"}) for name in UNITS]
    return [*metrics, *units]


def _style(metric, units="linear"):
    """Linear units are filled and solid, rectified ones open and dashed."""
    rectified = {"markerfacecolor": "white", "linestyle": "--"}
    return {"color": COLOURS[metric], "marker": MARKERS[metric], "markersize": 5} | (rectified if units == "rectified" else {})


def _against(axis, rows):
    for row in sorted(rows, key=lambda row: row["units"] == "linear"):  # on top
        axis.plot(row["predicted"], row["mean"], **{**_style(row["metric"], row["units"]), "linestyle": "none"})
    axis.axline((0, 0), slope=1, color="#777777", linewidth=0.8, zorder=0)
    axis.set_xlabel("predicted for linear units")
    axis.set_ylabel("measured")
    axis.set_title("Predicted and measured, mean over pairs")


def _differences(axis, rows):
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    for row in rows:
        where = metrics.index(row["metric"])
        axis.plot(row["largest_difference"], where, **_style(row["metric"], row["units"]))
        if row["units"] == "linear":
            axis.plot(row["sampling_error"], where, "|", color="#444444", markersize=12)
    axis.axvline(0.003, color="#777777", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_yticks(range(len(metrics)), metrics)
    axis.invert_yaxis()
    axis.set_xlabel("|measured - predicted| (bar: standard error; dots: 0.003)")
    axis.set_title(f"Largest difference in {rows[0]['n_pairs']} pairs")


def _random(axis, rows):
    shares = sorted({row["n_units"] / row["n_features"] for row in rows})
    markers = dict(zip(shares, itertools.cycle("v^os"), strict=False))
    for metric, colour in (("semi_match", COLOURS["semi_match"]), ("permutation_match", COLOURS["soft_match"])):
        for share, marker in markers.items():
            line = [row for row in rows if (row["metric"], row["n_units"] / row["n_features"]) == (metric, share)]
            x, formula, means, errors = ([row[k] for row in line] for k in ("n_features", "formula", "mean", "standard_error"))
            axis.plot(x, formula, color=colour, linewidth=1)
            axis.errorbar(x, means, yerr=errors, fmt=marker, color=colour, markersize=5, markerfacecolor="white")
        axis.plot([], [], color=colour, label="semi_match" if metric == "semi_match" else "permutation_match = soft_match")
    for share, marker in markers.items():
        axis.plot([], [], marker, color="#444444", markerfacecolor="white", label=f"units / features = {share:g}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    sizes = sorted({row["n_features"] for row in rows})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("features")
    axis.set_ylabel("expected score of random arrangements")
    worst = max(abs(row["relative_difference"]) for row in rows)
    axis.set_title(f"Formula (lines) and simulation: within {100 * worst:.1f} %")
    axis.legend(fontsize=8, frameon=False)


def _curves(axis, rows, setting):
    """The measured score of each metric against a setting, and the formula; a metric that equals another here is left out."""
    metrics = dict.fromkeys(row["metric"] for row in rows)
    for metric in metrics:
        if {"permutation_match": "soft_match", "ols": "ridge"}.get(metric) in metrics:
            continue
        for units in UNITS:
            line = [row for row in rows if (row["metric"], row["units"]) == (metric, units)]
            x, means, errors = [row[setting] for row in line], plotting.means(line), plotting.errors(line)
            axis.errorbar(x, means, yerr=errors, capsize=2, linewidth=1.2, **_style(metric, units))
            if units == "linear" and line[0]["formula"] is not None:
                axis.plot(x, [row["formula"] for row in line], ":", color="#999999", linewidth=2.5, zorder=5)


if __name__ == "__main__":
    command.main("theory", get_config(), compute, draw)

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
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import arrangements, plotting, theory
from superpos.linalg import matmul
from superpos.results import Run

UNITS = ("linear", "rectified")
N_FOLDS = 3  # the fewest that ridge chooses its alpha with


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


def points(config: ConfigDict, group: str) -> Iterator[dict[str, Any]]:
    """What is varied at each width of a group, and its settings; no `fraction` where both arrangements are independent."""
    fixed = {"probability": config.probability, "fraction": None}
    if group == "compression":
        yield {"varied": "compression", **fixed}
        return
    yield from ({"varied": "sparsity", **fixed, "probability": p} for p in config.probabilities)
    yield from ({"varied": "rotation", **fixed, "fraction": t} for t in config.fractions)
    yield {"varied": "equal", **fixed, "fraction": 0.0}  # up to the order of units and positive scale


def arrange(config: ConfigDict, key: Any, n_units: int, fraction: Any, spread: Any) -> tuple[Any, Any]:
    """Two arrangements: the second is the first turned, in another order and scaled; or new, with an infinite fraction."""
    keys = jax.random.split(key, 5)
    a, new = (arrangements.gaussian(key, config.n_features, n_units) for key in keys[:2])
    b = matmul(a, arrangements.rotation(keys[2], n_units, fraction))
    b = arrangements.scale_units(keys[4], arrangements.permute_units(keys[3], b), spread)
    return a, jnp.where(jnp.isinf(fraction), new, b)


def n_batches(config: ConfigDict) -> int:
    """So many that each fold has as many samples as are asked for, or more."""
    return N_FOLDS * -(-config.eval.n_samples // (N_FOLDS * config.eval.batch_size))


def train(config: ConfigDict, key: Any, data_key: Any, n_units: int, group: str) -> dict[str, Any]:
    """One pair of arrangements for each point of a group: see `measure`; leaves `(points, ...)`."""
    settings = list(points(config, group))
    probability = jnp.array([point["probability"] for point in settings])
    fraction = jnp.array([math.inf if point["fraction"] is None else point["fraction"] for point in settings])
    spread = jnp.array([float(point["varied"] == "equal") for point in settings])
    tick = sp.training.loop(len(settings) * n_batches(config))

    def one(point):
        # One after the other: the probability is the same for all pairs in flight, and so are the samples.
        i, probability, fraction, spread = point
        a, b = arrange(config, key, n_units, fraction, spread)
        return measure(config, a, b, probability, data_key, lambda batch: tick(i * n_batches(config) + batch))

    return lax.map(one, (jnp.arange(len(settings)), probability, fraction, spread))


def measure(config: ConfigDict, a: Any, b: Any, probability: Any, data_key: Any, tick: Any) -> dict[str, Any]:
    """The moments of two arrangements, predicted and of samples of each of `UNITS`, and their measured rsa."""
    features = sp.features.SparseFeatures(config.n_features, probability)

    def sides(i, n):
        z = features.sample(jax.random.fold_in(data_key, i), n)
        x, y = (matmul(side.T, z.T).T for side in (a, b))  # samples last in memory
        return (x, y), (jax.nn.relu(x), jax.nn.relu(y))

    def add(moments, i):
        tick(i)
        both = zip(moments, sides(i, config.eval.batch_size), strict=True)
        return [sp.moments.update(old, x, y, i % N_FOLDS) for old, (x, y) in both], None

    empty = sp.moments.init(a.shape[1], a.shape[1], N_FOLDS, ("xx", "xy", "yy"))
    sampled, _ = lax.scan(add, [empty] * len(UNITS), jnp.arange(n_batches(config)))
    predicted = theory.population(a, b, sp.features.covariance(features), N_FOLDS)
    units = jnp.arange(max(*config.n_units, config.n_units_fixed))  # silent ones up to the largest width: `score` compiles once
    moments = [sp.moments.select(kind, units, units) for kind in (predicted, *sampled)]
    ids = np.arange(config.eval.n_rsa) % N_FOLDS
    rsa = [sp.align(x, y, "rsa", ids)["rsa"].folds for x, y in sides(n_batches(config), config.eval.n_rsa)]
    return {"moments": jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments), "rsa": jnp.stack(rsa)}


def score(config: ConfigDict, row: Any, moments: Any) -> dict[str, Any]:
    """Scores of each fold, predicted and of each of `UNITS`: `{metric: (3, folds)}`."""
    one = jax.tree.map(lambda leaf: leaf[row], moments)
    return lax.map(lambda kind: {name: score.folds for name, score in sp.score(kind, config.metrics).items()}, one)


def simulate(key: Any, data_key: Any, n_features: int, one_in: int) -> dict[str, Any]:
    """Scores of one random pair."""
    del data_key
    return theory.simulate_random(key, n_features, n_features // one_in)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be computed, before anything is written."""
    lists = {name: config[name] for name in ("metrics", "n_units", "probabilities", "fractions")}
    for name, values in (lists | {f"random.{name}": config.random[name] for name in ("n_features", "one_in")}).items():
        if not values or len(set(values)) < len(values):
            raise ValueError(f"config.{name} must list different values, at least one, got {values}.")
    least = min(config.eval.n_samples // N_FOLDS, config.eval.batch_size, config.eval.n_rsa // N_FOLDS)
    simulated = min(config.random.n_features) // max(1, *config.random.one_in)
    for holds, rule in (
        (set(config.metrics) <= set(theory.PREDICTED), f"metrics takes names out of {', '.join(theory.PREDICTED)}"),
        (min(config.n_features, config.n_units_fixed, *config.n_units) > 1, "n_features and n_units must be at least 2"),
        (all(0 < p <= 1 for p in (config.probability, *config.probabilities)), "probabilities must be above 0 and at most 1"),
        (min(config.n_pairs.values()) > 2, "n_pairs.compression and n_pairs.fixed must be at least 3"),
        (least > 9, f"eval needs at least 10 samples in each batch and each of {N_FOLDS} folds"),
        (min(config.random.one_in) > 0 and simulated > 2, "random needs at least 3 units: n_features // one_in"),
        (config.chunk >= 0, "chunk must be at least 0"),
    ):
        if not holds:
            raise ValueError(f"config.{rule}.")


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Measures, predicts and simulates, and tabulates."""
    check(config)
    key, data_key, random_key = jax.random.split(jax.random.key(config.seed), 3)
    groups = {"compression": config.n_units, "fixed": (config.n_units_fixed,)}
    for group in groups:
        jax.eval_shape(lambda group=group: train(config, key, key, config.n_units_fixed, group))
    run.claim()
    seconds = {"compile": 0.0, "run": 0.0}

    def sweep(name, function, grid, keys, **options):
        table = sp.sweep(function, grid, keys, workdir=run.path / "sweep" / name, **options)
        seconds.update({stage: seconds[stage] + table.seconds[stage] for stage in seconds})
        return table

    chunk, states, settings = config.chunk or None, [], []
    for group, n_units in groups.items():
        grid, keys = {"n_units": n_units, "group": [group]}, jax.random.split(key, config.n_pairs[group])
        pairs = sweep(group, partial(train, config), grid, keys, data_key=data_key, chunk=chunk)
        for n, (i, point) in itertools.product(n_units, enumerate(points(config, group))):
            states.append(jax.tree.map(lambda leaf, i=i: leaf[:, i], pairs.load(n_units=n)))  # of (pairs, points, ...)
            settings.append({"varied": point["varied"], "n_units": n, **point})
    owners = np.repeat(np.arange(len(settings)), [len(state["rsa"]) for state in states])
    state = jax.tree.map(lambda *leaves: np.concatenate(leaves), *states)
    scored = sweep("score", partial(score, config), {}, np.arange(len(owners)), data_key=state["moments"], chunk=chunk).load()
    nothing = np.full_like(state["rsa"][:, :1], math.nan)
    scores = {name: scored[name] for name in config.metrics} | {"rsa": np.concatenate([nothing, state["rsa"]], axis=1)}
    rows = [
        row
        for (i, point), (metric, values) in itertools.product(enumerate(settings), scores.items())
        for row in tabulate(point, metric, values[owners == i], config.n_features)
    ]
    agreement = [
        {"metric": metric, "units": units, **theory.agreement(scores[metric][:, 0], scores[metric][:, i])}
        for metric, (i, units) in itertools.product(config.metrics, enumerate(UNITS, 1))
    ]
    random = []
    for n_features in config.random.n_features:
        keys = jax.random.split(random_key, max(4, config.random.n_pairs * 64**2 // n_features**2))
        grid = {"n_features": [n_features], "one_in": config.random.one_in}
        simulated = sweep(f"random_{n_features}", simulate, grid, keys)
        for one_in in config.random.one_in:
            for metric, values in simulated.load(one_in=one_in).items():
                size = {"n_features": n_features, "n_units": n_features // one_in, "metric": metric}
                random.append({**size, **theory.agreement_of_random(values, **size)})
    sizes = {"n_features": config.n_features, "n_scored": n_batches(config) * config.eval.batch_size}
    return run.finish(rows, seconds, agreement=agreement, random=random, **sizes)


def tabulate(point: dict[str, Any], metric: str, scores: np.ndarray, n_features: int) -> Iterator[dict[str, Any]]:
    """A row a kind of units: predicted and measured means over pairs, how far they are apart, and the formula for random ones.

    Args:
        point: what was varied, and settings.
        metric: of the scores.
        scores: `(pairs, 3, folds)`, predicted and of each of `UNITS`.
        n_features: for the formula, where compression is varied.
    """
    formula = theory.RANDOM.get(metric) if point["varied"] == "compression" else None
    expected = formula and float(formula(point["n_units"], n_features))
    predicted, *measured = np.moveaxis(scores.astype(np.float64).mean(axis=2), 1, 0)
    for units, values in zip(UNITS, measured, strict=True):
        summary, error = sp.stats.over_seeds(values), values - predicted
        summary["n_pairs"] = summary.pop("n_seeds")
        differences = {"mean_difference": error.mean(), "largest_difference": np.abs(error).max()}
        row = {**point, "metric": metric, "units": units, "predicted": predicted.mean(), **summary}
        yield {**row, **differences, "formula": expected}


SETTINGS = {  # what is varied: its column, and what an axis of it is called
    "compression": ("n_units", "units (left: more compressed)"),
    "sparsity": ("probability", "probability that a feature is active"),
    "rotation": ("fraction", "fraction t of a rotation"),
}
EQUAL = {"permutation_match": "soft_match", "ols": "ridge"}  # curves that would hide each other here
OPEN: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "--"}  # rectified units


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: predicted against measured, how far apart, random arrangements; then compression, sparsity, rotation."""
    rows, n_features = results["rows"], results["n_features"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure, ((against, differences, random), curves) = plotting.panels(2, 3, (12.6, 8.6))

    def look(row):
        rectified = OPEN if row["units"] == "rectified" else {}
        return {**plotting.style(row["metric"], metrics), **rectified, "linestyle": "none", "label": None, "markersize": 5}

    for row in sorted(rows, key=lambda row: row["units"] == "linear"):  # on top
        if row["predicted"] is not None:
            against.plot(row["predicted"], row["mean"], **look(row))
    for row in results["agreement"]:
        differences.plot([row["largest_difference"]], [row["metric"]], **look(row))
        if row["units"] == "linear":
            differences.plot([row["sampling_error"]], [row["metric"]], "|", color="#444444", markersize=12)
    against.axline((0, 0), slope=1, color="#777777", linewidth=0.8, zorder=0)
    against.set(title="Predicted and measured, mean over pairs", xlabel="predicted for linear units", ylabel="measured")
    differences.axvline(0.003, color="#777777", linewidth=0.8, linestyle=":")
    differences.set(xscale="log", xlabel="|measured - predicted| (bar: standard error; dots: 0.003)")
    differences.set_title(f"Largest difference in {results['agreement'][0]['n_pairs']} pairs")
    worst = max(abs(row["relative_difference"]) for row in results["random"])
    simulated = [
        {
            **row,
            "line": f"{row['metric']}, {row['n_units'] / row['n_features']:g} units a feature",
            "ci95": [row["mean"] + side * row["standard_error"] for side in (-2, 2)],
        }
        for row in results["random"]
    ]
    formulas = [{**row, "mean": row["formula"], "ci95": None} for row in simulated]
    plotting.curves(random, simulated, "n_features", "line", log=2, linestyle="none", markerfacecolor="white")
    plotting.curves(random, formulas, "n_features", "line", log=2, marker="", label=None)
    worst = max(abs(row["relative_difference"]) for row in simulated)
    random.set(yscale="log", xlabel="features", ylabel="expected score of random arrangements")
    random.set_title(f"Formula (lines) and simulation: within {100 * worst:.1f} %")
    random.legend(fontsize=7, frameon=False)
    for axis, (varied, (x, label)) in zip(curves, SETTINGS.items(), strict=True):
        log = None if varied == "rotation" else 2
        shown = [row for row in rows if row["varied"] == varied and EQUAL.get(row["metric"]) not in metrics]
        for units, options in (("linear", {"linestyle": "-"}), ("rectified", {**OPEN, "label": None})):
            line = [row for row in shown if row["units"] == units]
            plotting.curves(axis, line, x, "metric", log=log, among=metrics, **options)
        expected = [{**row, "mean": row["formula"], "ci95": None} for row in shown if row["formula"] is not None]
        if expected:
            dots: dict[str, Any] = {"color": "#999999", "linestyle": ":", "linewidth": 2.5, "marker": ""}
            plotting.curves(axis, expected, x, "metric", log=log, **dots, label="formula for random arrangements")
        fixed = "" if varied == "compression" else f" ({next(row['n_units'] for row in shown)} units)"
        axis.set(ylim=(min(0, axis.get_ylim()[0]), 1.03), xlabel=label + fixed)
        axis.set_title("Rotated arrangement" if varied == "rotation" else "Independent arrangements")
    curves[0].set_ylabel("score, all below 1 is deflation")
    curves[1].plot([], [], color="#444444", marker="o", label="linear units")
    curves[1].plot([], [], color="#444444", marker="o", **OPEN, label="rectified units")
    same = "; ".join(f"{metric} is {other}" for metric, other in EQUAL.items() if {metric, other} <= set(metrics))
    caption = f"Two arrangements of the same {n_features} features; measured on {results['n_scored']:,} samples"
    plotting.finish(figure, f"{caption}; bars: 95 % confidence interval over pairs; below, {same}")
    plotting.save(figure, run.figure)


if __name__ == "__main__":
    command.main("theory", get_config(), compute, draw)

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
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import arrangements, plotting, theory
from superpos.comparison import whole_batches
from superpos.results import Run
from superpos.theory import UNITS

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


def train(config: ConfigDict, key: Any, data_key: Any, n_units: int, group: str) -> dict[str, Any]:
    """One pair of arrangements for each point of a group: see `theory.measure`; leaves `(points, ...)`."""
    settings, n = list(points(config, group)), whole_batches(config.eval.n_samples, config.eval.batch_size, N_FOLDS)
    probability = jnp.array([point["probability"] for point in settings])
    fraction = jnp.array([math.inf if point["fraction"] is None else point["fraction"] for point in settings])
    spread = jnp.array([float(point["varied"] == "equal") for point in settings])
    # Silent units up to the largest width: `score` compiles once.
    width, tick = max(*config.n_units, config.n_units_fixed), sp.training.loop(len(settings) * n)
    sizes = {"n_batches": n, "batch_size": config.eval.batch_size, "n_rsa": config.eval.n_rsa, "width": width}

    def measure(i, probability, fraction, spread):
        a, b = arrangements.varied_pair(key, config.n_features, n_units, fraction, spread)
        features = sp.features.SparseFeatures(config.n_features, probability)
        return theory.measure(a, b, features, data_key, **sizes, n_folds=N_FOLDS, tick=lambda batch: tick(i * n + batch))

    # One after the other: the probability is the same for all pairs in flight, and so are the samples.
    return jax.lax.map(lambda point: measure(*point), (jnp.arange(len(settings)), probability, fraction, spread))


def score(config: ConfigDict, row: Any, moments: Any) -> dict[str, Any]:
    """Scores of each fold, predicted and of each of `UNITS`: `{metric: (3, folds)}`."""
    one = jax.tree.map(lambda leaf: leaf[row], moments)
    return jax.lax.map(lambda kind: {name: score.folds for name, score in sp.score(kind, config.metrics).items()}, one)


def simulate(key: Any, data_key: Any, n_features: int, one_in: int) -> dict[str, Any]:
    """Scores of one random pair."""
    del data_key
    return theory.simulate_random(key, n_features, n_features // one_in)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be computed, before anything is written."""
    command.check(config)
    sizes = {"n_features": 2, "n_units": 2, "n_units_fixed": 2, "n_pairs.compression": 3, "n_pairs.fixed": 3, "fractions": 0}
    # At least 10 samples in each batch and each fold, and 3 units.
    samples = {"eval.n_samples": 10 * N_FOLDS, "eval.n_rsa": 10 * N_FOLDS, "eval.batch_size": 10}
    one_in = {"random.one_in": 1, "random.n_features": 3 * max(config.random.one_in, default=1)}
    command.at_least(config, sizes | samples | one_in)
    if not config.metrics or not set(config.metrics) <= set(theory.PREDICTED):
        raise ValueError(f"config.metrics takes names out of {', '.join(theory.PREDICTED)}.")
    if not config.probabilities or not all(0 < p <= 1 for p in (config.probability, *config.probabilities)):
        raise ValueError("config.probabilities must be above 0 and at most 1.")


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
    rows = []
    for (i, point), (metric, values) in itertools.product(enumerate(settings), scores.items()):
        formula = theory.RANDOM.get(metric) if point["varied"] == "compression" else None
        predicted, *measured = np.moveaxis(values[owners == i], 1, 0)
        for units, of_pairs in zip(UNITS, measured, strict=True):
            row = {**point, "metric": metric, "units": units, **theory.summary(predicted, of_pairs)}
            rows.append({**row, "formula": formula and float(formula(point["n_units"], config.n_features))})
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
            size = {"n_features": n_features, "n_units": n_features // one_in}
            for metric, values in simulated.load(one_in=one_in).items():
                random.append({**size, "metric": metric, **theory.agreement_of_random(values, **size, metric=metric)})
    n_scored = whole_batches(config.eval.n_samples, config.eval.batch_size, N_FOLDS) * config.eval.batch_size
    return run.finish(rows, seconds, agreement=agreement, random=random, n_features=config.n_features, n_scored=n_scored)


SETTINGS = {  # what is varied: its column, what an axis of it is called, and the base of a logarithmic one
    "compression": ("n_units", "units (left: more compressed)", 2),
    "sparsity": ("probability", "probability that a feature is active", 2),
    "rotation": ("fraction", "fraction t of a rotation", None),
}
EQUAL = {"permutation_match": "soft_match", "ols": "ridge"}  # curves that would hide each other here
OPEN: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "--"}  # rectified units
DOTS: dict[str, Any] = {"color": "#999999", "linestyle": ":", "linewidth": 2.5, "marker": ""}  # formulas


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: predicted against measured, how far apart, random arrangements; then compression, sparsity, rotation."""
    rows, n_features, metrics = results["rows"], results["n_features"], plotting.column(results["rows"], "metric")
    figure, ((against, differences, random), curves) = plotting.panels(2, 3, (12.6, 8.6))
    plotting.agreement((against, differences), rows, results["agreement"], {"rectified": OPEN})
    against.set_xlabel("predicted for linear units")
    plotting.formulas(random, results["random"])
    for axis, (varied, (x, label, log)) in zip(curves, SETTINGS.items(), strict=True):
        shown = [row for row in plotting.where(rows, varied=varied) if EQUAL.get(row["metric"]) not in metrics]
        for units, options in (("linear", {"linestyle": "-"}), ("rectified", {**OPEN, "label": None})):
            plotting.curves(axis, plotting.where(shown, units=units), x, "metric", log=log, among=metrics, **options)
        if expected := plotting.of_column(shown, "formula"):
            plotting.curves(axis, expected, x, "metric", log=log, **DOTS, label="formula for random arrangements")
        fixed = "" if varied == "compression" else f" ({shown[0]['n_units']} units)"
        axis.set(ylim=(min(0, axis.get_ylim()[0]), 1.03), xlabel=label + fixed)
        axis.set_title("Rotated arrangement" if varied == "rotation" else "Independent arrangements")
    curves[0].set_ylabel("score, all below 1 is deflation")
    curves[1].plot([], [], color="#444444", marker="o", label="linear units")
    curves[1].plot([], [], color="#444444", marker="o", **OPEN, label="rectified units")
    same = "; ".join(f"{metric} is {other}" for metric, other in EQUAL.items() if {metric, other} <= set(metrics))
    caption = f"Two arrangements of the same {n_features} features; measured on {results['n_scored']:,} samples"
    plotting.finish(figure, f"{caption}; bars: 95 % confidence interval over pairs; below, {same}", path=run.figure)


if __name__ == "__main__":
    command.main("theory", get_config(), compute, draw)

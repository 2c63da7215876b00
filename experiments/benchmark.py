"""How fast is it, beside code that does the same with the usual libraries? In one run, on the same arrays and cores.

Both sides read the same float32 arrays; making them and compiling (a column of its own) are not counted, but for work of ours
that takes over a minute and runs once, compiling included. `ratio` is their median time over ours, above 1 where ours is
faster, and `difference` the largest between their scores (or losses) and ours. In `--config.suite=training` times are those of
one step of one model, and a ratio to the large matmul is the share of its rate that the model's own five matmuls reach.
Alternatives that take minutes a fold are timed on `outer_folds` of the folds, and their time is multiplied up: the `note` says
so.

Run it on an idle machine: where a core is taken, OpenBLAS with a thread a core can take ten times as long. The alternatives
therefore get one thread, or one a core as XLA has, whichever is faster when their turn comes: `theirs_threads`.
"""

import dataclasses
import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import superpos as sp
from experiments import command
from superpos import plotting, transport
from superpos.results import Run

# And the packages that they are beside.
SUITES = {"metrics": ("sklearn", "himalaya", "ot"), "ridge": ("sklearn", "himalaya"), "training": ("torch",)}
LONG = 60  # seconds: what takes longer runs once, its compilation counted in
ALPHAS = np.logspace(-8, 8, 17)  # those of sp.metrics.Ridge


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.suite = "metrics"  # what is timed: a name out of SUITES; `training` reads its settings from config.training
    config.seed = 0  # of the data
    config.repeats = 3  # runs of each side, slow alternatives excepted
    config.n_samples = 2_048_000
    config.n_units = 64  # of each side
    config.n_folds = 5
    config.outer_folds = 1  # folds that slow alternatives are timed on
    config.few_samples = 20_000  # for himalaya, whose memory grows with training times test samples
    config.transport_batch = 500  # problems solved at once
    config.transport_size = 64  # units of each side in each
    config.large_transport = (1000, 2000)  # units of the sides of one large problem
    config.large_ridge = (10_000, 4096, 1000)  # samples, source and target units of suite=ridge
    config.training = ConfigDict(
        {
            "n_hidden": (8, 16, 32),  # of the toy models; the first is the one of the figure
            "sae_inputs": 16,
            "large_sae": (512, 4096, 32),  # inputs, latents and k of a large one, trained alone
            "large_batch": 4096,
            "large_steps": 5,
            "n_seeds": 32,  # models trained beside PyTorch
            "most_seeds": 256,  # of ours, for the figure
            "steps": 100,
            "batch_size": 1024,
            "chunk": 0,  # models in flight, see sp.sweep; 0: four for each core, all on an accelerator
            "matmul": 4096,  # rows and columns of the large product
        }
    )
    return config


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Another way to the same scores.

    Attributes:
        name: for the table.
        run: returns the first of our scores, or all of them.
        target: how many times faster than this we mean to be; None where it is there for orientation.
        times: what the time is multiplied with, where `run` does only a part of the work. It then runs once.
        note: what to know of it.
    """

    name: str
    run: Callable[[], np.ndarray]
    target: float | None = None
    times: float = 1
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time: `ours` returns scores as a NumPy array, so that nothing is left to wait for."""

    name: str
    ours: Callable[[], np.ndarray]
    alternatives: Sequence[Alternative]


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Times every work of the suite beside its alternatives."""
    if config.suite not in SUITES:
        raise ValueError(f"config.suite takes a name out of {', '.join(SUITES)}, got {config.suite!r}.")
    if config.repeats < 1:
        raise ValueError(f"config.repeats must be at least 1, got {config.repeats}.")
    # XLA's own: one for each core that this process may use.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for package in SUITES[config.suite]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"config.suite={config.suite} needs {package}: pip install -e '.[benchmark]'.") from error
    if config.suite == "training":
        from experiments import benchmark_training

        return benchmark_training.compute(config, run, threads)
    started = time.perf_counter()
    if config.n_folds < 3 or not 1 <= config.outer_folds <= config.n_folds:
        raise ValueError(
            f"config.n_folds must be at least 3 and config.outer_folds between 1 and n_folds, "
            f"got {config.n_folds} and {config.outer_folds}."
        )
    works = {"metrics": metrics_suite, "ridge": ridge_suite}[config.suite](config)
    n_units = {"metrics": config.n_units, "ridge": config.large_ridge[2]}[config.suite]
    made = time.perf_counter()
    run.claim()
    rows: list[dict[str, Any]] = []
    with tqdm(total=sum(len(work.alternatives) for work in works), desc="benchmark", disable=None) as bar:
        for work in works:
            scores, (first,) = clock(work.ours, 1)
            ours = [first]
            if first < LONG:
                scores, ours = clock(work.ours, config.repeats)
            for other in work.alternatives:
                timed = _beside(other, scores, ours, threads, n_units)
                rows.append({"work": work.name, **timed, "compile_s": max(first - min(ours), 0), "note": other.note})
                bar.update()
    seconds = {"data": made - started, "timing": time.perf_counter() - made}
    return run.finish(rows, seconds, threads=threads)


def _beside(other, scores, ours, threads, n_units):
    """Times an alternative: its part of the row."""
    limit = _faster(threads, n_units)
    with _threads(limit):
        found, theirs = clock(other.run, len(ours) if other.times == 1 else 1)
    theirs = [other.times * spent for spent in theirs]
    ratio = statistics.median(theirs) / statistics.median(ours)
    return {
        "against": other.name,
        "ours_s": statistics.median(ours),
        "theirs_s": statistics.median(theirs),
        "ratio": ratio,
        "target": other.target,
        "met": None if other.target is None else ratio >= other.target,
        "difference": float(np.max(np.abs(scores[: len(found)] - found))),
        "ours_min_s": min(ours),
        "theirs_min_s": min(theirs),
        "theirs_threads": limit,
    }


def _threads(limit):
    """BLAS and OpenMP with so many threads."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limit)


def _faster(threads, n_units):
    """`threads` or 1, whichever multiplies so many units faster just now."""
    a, b = np.random.default_rng(0).standard_normal((2, 20_000, n_units), np.float32)

    def spent(limit):
        with _threads(limit):
            return statistics.median(clock(lambda: a.T @ b, 5)[1])

    return min((threads, 1), key=spent)


def clock(function: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    """What the last of some calls returned, and the seconds that each took."""
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        spent.append(time.perf_counter() - started)
    return result, spent


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a bar an alternative; of training the speed against the number of models."""
    if "seeds" in results:
        settings, n_hidden = run.config["training"], results["n_hidden"]
        chosen = [row for row in results["rows"] if row["work"] == f"toy, {n_hidden} hidden"]
        levels = {row["against"].replace("vmap", f"vmap of {settings['n_seeds']}"): 1e6 / row["theirs_us"] for row in chosen}
        what = f"Toy model, 64 features, {n_hidden} hidden units, batch of {settings['batch_size']:,}"
        where = f"{results['environment']['device'].split(': ')[-1]}, {results['threads']} threads"
        _curve(results["seeds"], levels, f"{what}\n{where}", run.figure)
        return
    theirs = " or ".join(str(limit) for limit in sorted({row["theirs_threads"] for row in results["rows"]}))
    where = f"{results['environment']['device'].split(': ')[-1]}; threads: ours {results['threads']}, theirs {theirs}"
    _bars(results["rows"], run.config["repeats"], where, run.figure)


# suite=metrics


def metrics_suite(config: ConfigDict) -> list[Work]:
    """`sp.align` beside NumPy, scikit-learn and himalaya; exact transport beside POT."""
    rng = np.random.default_rng(config.seed)
    x, y = representations(rng, config.n_samples, config.n_units, config.n_units)
    ids = rng.permutation(np.arange(config.n_samples) % config.n_folds)
    everything, few = slice(None), slice(config.few_samples)

    def ours(metric, part=everything):
        return np.asarray(sp.align(x[part], y[part], metric, folds=ids[part])[metric].folds)

    def matched(match, correlate):
        both = [[correlate(x[part], y[part]) for part in (ids != k, ids == k)] for k in range(config.n_folds)]
        return np.array([match(*pair) for pair in both])

    def fold_by_fold(model, part=everything):
        return _ridge_folds(model, x[part], y[part], ids[part], config.outer_folds)

    slow = _slow(config)
    ways = (("np.corrcoef", _by_corrcoef, "float64 inside"), ("z-scores, matmul", _by_matmul, "float32"))
    works = [
        Work(
            name,
            partial(ours, name),
            [Alternative(f"{way}, {then}", partial(matched, match, by), 5, note=note) for way, by, note in ways],
        )
        for name, match, then in (("semi_match", _semi_match, "argmax"), ("soft_match", _soft_match, "ot.emd"))
    ]
    ridge = [
        Alternative("scikit-learn RidgeCV", partial(fold_by_fold, _sklearn), 50, **slow),
        Alternative("NumPy on Gram matrices", partial(_gram_ridge, x, y, ids, config.n_folds)),
    ]
    himalaya = Alternative("himalaya RidgeCV", partial(fold_by_fold, _himalaya, few), **slow)
    works.append(Work("ridge", partial(ours, "ridge"), ridge))
    works.append(Work(f"ridge, {len(x[few]):,} samples", partial(ours, "ridge", few), [himalaya]))
    sizes = [(config.transport_size, config.transport_size)] * config.transport_batch
    works.append(_transport(np.stack([_costs(rng, *size) for size in sizes])))
    works.append(_transport(_costs(rng, *config.large_transport)[None]))
    return works


def ridge_suite(config: ConfigDict) -> list[Work]:
    """Ridge regression of a layer of a network on recorded sites: alpha by inner folds, and by one decomposition."""
    rng = np.random.default_rng(config.seed)
    x, y = representations(rng, *config.large_ridge)
    ids = rng.permutation(np.arange(len(x)) % config.n_folds)
    shape = "{:,} x {:,} to {:,}".format(*config.large_ridge)

    def work(selection, models):
        metric = sp.metrics.Ridge(alphas=ALPHAS, selection=selection)
        others = [
            Alternative(name, partial(_ridge_folds, model, x, y, ids, config.outer_folds), 3, **_slow(config))
            for name, model in models.items()
        ]
        ours = lambda: np.asarray(sp.align(x, y, metric, folds=ids)["ridge"].folds)  # noqa: E731
        return Work(f"ridge {shape}, {selection}", ours, others)

    return [
        work("gcv", {"scikit-learn RidgeCV, leave-one-out": _sklearn_efficient}),
        work("folds", {"scikit-learn RidgeCV, folds": _sklearn, "himalaya RidgeCV, folds": _himalaya}),
    ]


def _slow(config) -> dict[str, Any]:
    """What is said of an alternative of which only some outer folds are timed."""
    note = f"{config.outer_folds} of {config.n_folds} outer folds timed once, multiplied up"
    return {"times": config.n_folds / config.outer_folds, "note": note}


def representations(rng: np.random.Generator, n_samples: int, n_source: int, n_target: int) -> list[np.ndarray]:
    """Two sides that share half as many latent variables as they have units, with noise: float32 `(n_samples, units)`."""
    latent = rng.standard_normal((n_samples, min(n_source, n_target) // 2 + 1), np.float32)
    sides = []
    for units in (n_source, n_target):
        mixed = latent @ (rng.standard_normal((latent.shape[1], units), np.float32) / np.sqrt(np.float32(latent.shape[1])))
        mixed += 0.5 * rng.standard_normal(mixed.shape, np.float32)
        sides.append(mixed)
    return sides


def _costs(rng, n_source, n_target):
    return -_by_matmul(*representations(rng, 500, n_source, n_target))


def _transport(costs):
    """Objectives of a batch of problems `(problems, n, m)`, beside POT in the float64 that it computes in."""
    problems, n, m = costs.shape
    masses = transport.uniform_masses(jnp.ones(n, bool), jnp.ones(m, bool))
    ours, theirs = jnp.asarray(costs), costs.astype(np.float64)
    solve = jax.jit(jax.vmap(lambda cost: transport.exact(cost, *masses).objective))
    loop = Alternative("ot.emd" + " in a loop" * (problems > 1), lambda: np.array([_emd(cost, cost) for cost in theirs]), 0.2)
    name = f"transport, {problems} of {n} x {m}" if problems > 1 else f"transport, {n} x {m}"
    return Work(name, lambda: np.asarray(solve(ours)), [loop])


def _emd(train, test):
    """Cost under the plan that is optimal on the training part. In one thread: a network simplex goes step by step."""
    import ot

    return np.sum(ot.emd([], [], train.astype(np.float64, copy=False), numItermax=10**8) * test)


def _by_corrcoef(x, y):
    return np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]


def _by_matmul(x, y):
    a, b = ((side - side.mean(axis=0)) / side.std(axis=0) for side in (x, y))
    return a.T @ b / len(a)


def _semi_match(train, test):
    return test[np.argmax(train, axis=0), np.arange(test.shape[1])].mean()


def _soft_match(train, test):
    return -_emd(-train, -test)


def _ridge_folds(model, x, y, ids, n):
    return np.array([_ridge_fold(model, x, y, ids, fold) for fold in range(n)])


def _ridge_fold(model, x, y, ids, fold):
    """The score of one outer fold; alpha by cross-validation over the other folds."""
    from sklearn.model_selection import PredefinedSplit
    from sklearn.preprocessing import StandardScaler

    train, test, scaler = ids != fold, ids == fold, StandardScaler()
    fitted = model(PredefinedSplit(ids[train])).fit(scaler.fit_transform(x[train]), y[train])
    a, b = fitted.predict(scaler.transform(x[test])), y[test]
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.mean(np.sum(a * b, axis=0) / np.sqrt(np.sum(a * a, axis=0) * np.sum(b * b, axis=0)))


def _sklearn(splits):
    from sklearn.linear_model import RidgeCV

    return RidgeCV(ALPHAS, cv=splits)


def _sklearn_efficient(_):
    from sklearn.linear_model import RidgeCV

    return RidgeCV(ALPHAS)


def _himalaya(splits):
    from himalaya.ridge import RidgeCV
    from himalaya.scoring import r2_score

    # As ours: one alpha for all targets. It makes a matrix of test by training samples for each alpha: one at a time.
    solver = {"local_alpha": False, "score_func": r2_score, "n_alphas_batch": 1}
    return RidgeCV(ALPHAS, fit_intercept=True, solver_params=solver, cv=splits)


def _gram_ridge(x, y, ids, n_folds):
    """What a careful engineer would write: one pass over the samples, then everything from the sums of each fold."""
    n = x.shape[1]
    count, mean, scatter = [], [], []
    for k in range(n_folds):
        both = np.concatenate([x[ids == k], y[ids == k]], axis=1)
        count.append(len(both))
        mean.append(both.mean(axis=0))
        both -= mean[-1]
        scatter.append(both.T @ both)
    count, mean, scatter = np.array(count), np.array(mean, np.float64), np.array(scatter, np.float64)

    def solve(parts, alphas):
        """Weights for every alpha `(alphas, n, m)`, and the means of the parts together."""
        centre = count[parts] @ mean[parts] / count[parts].sum()
        away = mean[parts] - centre
        moments = scatter[parts].sum(axis=0) + (away.T * count[parts]) @ away
        std = np.sqrt(np.diagonal(moments)[:n, None] / count[parts].sum())
        values, vectors = np.linalg.eigh(moments[:n, :n] / (std * std.T))
        shrunk = (vectors.T @ (moments[:n, n:] / std)) / (values[:, None] + alphas[:, None, None])
        return (vectors / std) @ shrunk, centre

    def r2(parts, k):
        weights, centre = solve(parts, ALPHAS)
        shift = (mean[k] - centre)[n:] - (mean[k] - centre)[:n] @ weights
        rest = np.sum(weights * (scatter[k, :n, :n] @ weights - 2 * scatter[k, :n, n:]), axis=1) + count[k] * shift**2
        return -np.mean(rest / np.diagonal(scatter[k])[n:], axis=1)

    scores = []
    for fold in range(n_folds):
        train = [k for k in range(n_folds) if k != fold]
        quality = np.mean([r2([other for other in train if other != k], k) for k in train], axis=0)
        (weights,), _ = solve(train, ALPHAS[[np.argmax(quality)]])
        variance = np.sum(weights * (scatter[fold, :n, :n] @ weights), axis=0) * np.diagonal(scatter[fold])[n:]
        scores.append(np.mean(np.sum(weights * scatter[fold, :n, n:], axis=0) / np.sqrt(variance)))
    return np.array(scores)


def _bars(rows: Sequence[dict[str, Any]], repeats: int, where: str, path: Path) -> None:
    """Times faster than each alternative, a bar each from 1 on a log axis, with marks at the targets.

    Args:
        rows: rows of `experiments.benchmark`: `work`, `against`, `ours_s`, `theirs_s`, `ratio`, `target`, `met`.
        repeats: number of runs that the medians are over.
        where: device and number of threads.
        path: of the PNG to write.
    """
    import matplotlib.ticker

    figure, ((axis,),) = plotting.panels(1, 1, (8.5, 1.6 + 0.42 * len(rows)))
    colours = {True: "#0072B2", False: "#D55E00", None: "#999999"}
    labels = {True: "target met", False: "target missed", None: "no target"}
    for met in labels:
        chosen = [(i, row) for i, row in enumerate(rows) if row["met"] is met]
        if chosen:
            positions, ratios = [i for i, _ in chosen], [row["ratio"] for _, row in chosen]
            axis.barh(positions, [ratio - 1 for ratio in ratios], left=1, height=0.6, color=colours[met], label=labels[met])
    aims = [(row["target"], i) for i, row in enumerate(rows) if row["target"] is not None]
    axis.scatter(*zip(*aims, strict=True), marker="|", s=320, color="black", linewidth=2.2, label="target", zorder=3)
    for i, row in enumerate(rows):
        end = max(1, row["ratio"], row["target"] or 0)
        text = f"{_short(row['ratio'])}×  (ours {_seconds(row['ours_s'])}, theirs {_seconds(row['theirs_s'])})"
        axis.annotate(text, (end, i), (7, 0), textcoords="offset points", va="center", fontsize=10)
    axis.set_xscale("log")
    low = min(1, *(row["ratio"] for row in rows), *(target for target, _ in aims))
    high = max(1, *(row["ratio"] for row in rows), *(target for target, _ in aims))
    axis.set_xlim(low / 1.3, high * (high / low) ** 0.75)  # room for the numbers
    axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda ratio, _: f"{ratio:,.10g}"))
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), [f"{row['work']}\nvs {row['against']}" for row in rows], fontsize=10)
    axis.invert_yaxis()
    axis.set_xlabel(f"times faster than the alternative (median of {repeats} runs)", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    axis.set_title(where, fontsize=11, color="#444444")
    plotting.save(figure, path)


def _curve(rows: Sequence[dict[str, Any]], levels: dict[str, float], title: str, path: Path) -> None:
    """Model-steps per second against the number of models trained at once, on log axes, with the ceiling.

    Args:
        rows: `n_seeds` and `model_steps_per_s`.
        levels: model-steps per second of the alternatives by name; what starts with "large matmul" is the ceiling.
        title: above it.
        path: of the PNG to write.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, ((axis,),) = plotting.panels(1, 1, (7, 4.6))
    seeds = [row["n_seeds"] for row in rows]
    axis.plot(seeds, [row["model_steps_per_s"] for row in rows], "o-", color="#0072B2", label="superpos")
    styles = iter([("#D55E00", "--"), ("#E69F00", "-."), ("#999999", ":")])
    for name, level in levels.items():
        ceiling = name.startswith("large matmul")
        colour, dashes = ("black", "-") if ceiling else next(styles)
        axis.axhline(level, color=colour, linestyle=dashes, linewidth=1.4)
        text = "ceiling: its five matmuls at the rate of a large one" if ceiling else name
        axis.annotate(text, (seeds[0], level), (0, 4), textcoords="offset points", color=colour, fontsize=9)
    axis.annotate(
        "superpos", (seeds[0], rows[0]["model_steps_per_s"]), (9, -5), textcoords="offset points", color="#0072B2", fontsize=9
    )
    axis.set_xscale("log", base=2)
    axis.set_xticks(seeds, [str(n) for n in seeds])
    axis.minorticks_off()
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_xlabel("models (seeds) trained at once")
    axis.set_ylabel("model-steps per second")
    axis.set_title(title)
    plotting.save(figure, path)


def _seconds(value):
    return f"{_short(value)} s" if value >= 1 else f"{_short(1000 * value)} ms"


def _short(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    command.main("benchmark", get_config(), compute, draw)

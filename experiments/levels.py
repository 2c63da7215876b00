"""Do intervals over samples hold their level, and which way of making them does so?

Draws many worlds in which all is known: two sources and a target with noise of their own, either unrelated or related, with
independent samples or in groups of five that resemble each other. Scores each source against the target, and the second less
the first, with intervals. The truth is the score that such worlds have on average, maps fitted anew in each: that of all
worlds drawn, and of as many more as `truth` samples make.

Look at `left_out`, the percentage of 95 % intervals that leave out the truth (5 is right; for unrelated sides this is how often
something is found that is not there), beside the same of the intervals for the maps at hand (`left_out_given_maps`) and of the
corrected resampled t-test over folds (`left_out_corrected_t`; Nadeau & Bengio 2003). `error` is the mean standard error over
the spread of scores between worlds: 1 is right, below 1 is too narrow.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict
from scipy.stats import t

import superpos as sp
from experiments import command
from superpos import plotting
from superpos.results import Run

GROUP = 5  # samples in a group
UNITS = (8, 6)  # of a source and of the target


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_worlds = 400
    config.n_samples = (100, 600, 5_000)
    config.related = (False, True)
    config.grouped = (False, True)
    config.truth = 2_000_000  # samples of further worlds that tell the truth; 0: the worlds' own mean is taken for it
    config.metrics = ("ridge", "ols", "semi_match", "soft_match", "permutation_match", "cka", "cca", "procrustes")
    config.n_folds = 5
    config.n_blocks = 10
    config.n_parts = 5
    return config


def world(
    key: Key[Array, ""], n_samples: int, *, related: bool | Array, grouped: bool
) -> tuple[Float[Array, "n source"], Float[Array, "n source"], Float[Array, "n target"]]:
    """Two sources and a target. The target mixes what the sources share where they are related; the second has more noise."""
    keys = jax.random.split(key, 5)

    def noise(key: Array, n_units: int) -> Array:
        own, common = jax.random.split(key)
        values = jax.random.normal(own, (n_samples, n_units))
        if not grouped:
            return values
        of_groups = jax.random.normal(common, (n_samples // GROUP, n_units))
        return 0.6 * values + 0.8 * jnp.repeat(of_groups, GROUP, axis=0)

    shared = noise(keys[0], UNITS[0])
    first = shared + 0.5 * noise(keys[1], UNITS[0])
    second = shared + (0.5 + 0.5 * related) * noise(keys[2], UNITS[0])
    mixing = jax.random.normal(jax.random.key(0), UNITS) / UNITS[0] ** 0.5  # of all worlds
    return first, second, noise(keys[3], UNITS[1]) + related * 0.6 * shared @ mixing


@functools.partial(jax.jit, static_argnames=("n_samples", "metrics", "grouped", "sizes"))
def measure(keys: Array, related: Array, n_samples: int, metrics: Any, grouped: bool, sizes: Any) -> dict[str, list[Any]]:
    """Of each key's world the alignment of both sources, with replicates where `sizes` has blocks and parts."""
    groups = jnp.arange(n_samples) // GROUP if grouped else None
    n_folds, blocks = sizes

    def of_world(key: Array) -> dict[str, list[Any]]:
        *sources, target = world(key, n_samples, related=related, grouped=grouped)
        if blocks is None:
            scores = [sp.align(x, target, metrics, n_folds, key=key, groups=groups) for x in sources]
            return {name: [score[name].mean for score in scores] for name in scores[0]}
        ids, _ = sp.assign_folds(n_samples, n_folds, None, key, groups)
        whole: Any = {"groups": groups, "n_blocks": blocks[0], "n_parts": blocks[1]}
        found = [sp.stats.jackknife(x, target, metrics, ids, n_folds, key, **whole) for x in sources]
        return {name: [one[name]._replace(units=None) for one in found] for name in found[0]}

    return lax.map(of_world, keys)


def judge(jackknifed: list[sp.stats.Jackknife], truth: float) -> dict[str, Any]:
    """How often intervals leave the truth out, and how large their errors are."""
    summaries = [sp.stats.tested(one) for one in jackknifed]
    given = [sp.stats.over_samples_given_maps(one) for one in jackknifed]
    means = np.array([row["mean"] for row in summaries])
    folds = np.array([one.folds for one in jackknifed])
    n_folds, spread = folds.shape[1], folds.var(axis=1, ddof=1)
    corrected = t.ppf(0.975, n_folds - 1) * np.sqrt((1 / n_folds + 1 / (n_folds - 1)) * spread)

    def outside(ends: Any) -> float:
        low, high = np.array(ends).T
        return 100 * float(np.mean((truth < low) | (high < truth)))

    return {
        "truth": truth,
        "left_out": outside([row["ci95"] for row in summaries]),
        "left_out_given_maps": outside([row["ci95_given_maps"] for row in given]),
        "left_out_corrected_t": outside(np.stack([means - corrected, means + corrected], axis=1)),
        "error": np.mean([row["standard_error"] for row in summaries]) / means.std(),
        "error_given_maps": np.mean([row["standard_error_given_maps"] for row in given]) / means.std(),
    }


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Draws the worlds and judges all intervals."""
    command.at_least(config, {"n_worlds": 2, "n_samples": 2 * GROUP * config.n_folds, "truth": 0})
    metrics, rows, started = sp.metrics.resolve(config.metrics), [], time.perf_counter()
    run.claim()
    for related, grouped, n_samples in ((r, g, n) for r in config.related for g in config.grouped for n in config.n_samples):
        n_blocks = min(config.n_blocks, n_samples // (GROUP if grouped else 1) // config.n_folds)
        keys = jax.random.split(jax.random.key(config.seed), config.n_worlds + -(-config.truth // n_samples))
        setting = {"related": jnp.float32(related), "n_samples": n_samples, "metrics": metrics, "grouped": grouped}
        blocks = n_blocks, config.n_parts
        found = jax.device_get(measure(keys[: config.n_worlds], **setting, sizes=(config.n_folds, blocks)))
        nothing: Any = {name: [np.zeros(0), np.zeros(0)] for name in found}
        further = config.truth and measure(keys[config.n_worlds :], **setting, sizes=(config.n_folds, None))
        more = jax.device_get(further or nothing)
        for name, (first, second) in found.items():
            less = jax.tree.map(np.subtract, second, first)
            rests = [*more[name], more[name][1] - more[name][0]]
            for what, drawn, rest in zip(("first", "second", "difference"), (first, second, less), rests, strict=True):
                each = [jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in range(config.n_worlds)]
                truth = float(np.concatenate([drawn.mean, rest]).mean())
                at = {"metric": name, "related": related, "grouped": grouped, "n_samples": n_samples, "score": what}
                rows.append({**at, **judge(each, truth)})
    return run.finish(rows, {"run": time.perf_counter() - started})


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: what intervals leave out, a panel a kind of world, three ways to make them."""
    rows = results["rows"]
    ways = {
        "left_out": "maps fitted again",
        "left_out_given_maps": "given maps",
        "left_out_corrected_t": "corrected t, over folds",
    }
    kinds = [(related, grouped) for related in run.config["related"] for grouped in run.config["grouped"]]
    figure, axes = plotting.panels(1, len(kinds), (3.2 * len(kinds), 3.6), sharey=True)
    metrics = plotting.column(rows, "metric")
    for axis, (related, grouped) in zip(axes[0], kinds, strict=True):
        chosen = [row for row in rows if row["related"] == related and row["grouped"] == grouped]
        axis.axhspan(2, 8, color="0.9", zorder=0)
        for shift, (way, label) in enumerate(ways.items()):
            at = [metrics.index(row["metric"]) + 0.25 * (shift - 1) for row in chosen]
            axis.plot(at, [row[way] for row in chosen], ".", label=label, alpha=0.7)
        axis.set_xticks(range(len(metrics)), metrics, rotation=45, ha="right")
        axis.set_title(f"{'related' if related else 'unrelated'}, {'groups' if grouped else 'independent samples'}")
    axes[0][0].set_ylabel("intervals without the truth, %")
    axes[0][0].legend()
    plotting.finish(figure, "95 % intervals: 5 % is right, the grey band is 2 to 8 %", path=run.figure)


if __name__ == "__main__":
    command.main("levels", get_config(), compute, draw)

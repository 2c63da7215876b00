"""Which features do two systems share, or how are they arranged: what can a score tell?

The expected score of two random arrangements (`superpos.theory.laws`) over the overlap ρ, the share of features that both have,
and the compression n / d, units a feature: a map a metric, with lines of equal score. The thick line is the score of systems
that share *all* features, in other arrangements at n / d = 1/4. Follow it to the top: at n / d = 1 systems with that much less
overlap score the same. So do systems that share fewer features in the *same* arrangement: the dashed line says at which ρ. A
metric that sees overlap and nothing else has lines that are vertical: cokurtosis.

The second table is the question of Liu et al. (arXiv 2604.00208): two systems with all features in common, beside two with half
of them and one arrangement. Where `reversed` is true, fewer features score higher.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import command
from superpos import plotting, theory
from superpos.results import Run


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = 0  # nothing is drawn
    config.n_features = 64  # of each system
    config.n_units = 16  # of the system that shares all features, and of the second table
    config.family = "unit_norm"  # of arrangements: unit_norm, gaussian or tight
    config.metrics = (
        *("semi_match", "soft_match", "ols", "cka", "rsa", "procrustes", "cca", "svcca"),
        *("jaccard", "mcc", "cumulant_cka", "cokurtosis"),
    )
    config.n_overlaps = 33  # ρ from 0 to 1
    config.widths = (4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of units that are mapped
    return config


def check(config: ConfigDict) -> None:
    """Refuses what cannot be computed, before anything is written."""
    command.at_least(config, {"n_features": 2, "n_units": 2, "n_overlaps": 3, "widths": 2})
    if max(*config.widths, config.n_units) > config.n_features:
        raise ValueError(f"config.widths and n_units must be at most n_features = {config.n_features}, got {config.widths}.")
    if not config.metrics or not set(config.metrics) <= set(theory.RANDOM):
        raise ValueError(f"config.metrics takes names out of {', '.join(theory.RANDOM)}.")
    if config.family not in ("gaussian", "unit_norm", "tight"):
        raise ValueError(f"config.family must be gaussian, unit_norm or tight, got {config.family!r}.")


@partial(jax.jit, static_argnums=(0, 1))
def scores(metric: str, family: Any, n_units: Any, dimension: Any, overlaps: Any) -> Any:
    """The law of a metric at each width and overlap, `(widths, overlaps)`."""
    law = partial(theory.expected, metric, family=family)
    return jax.lax.map(lambda n: jax.lax.map(lambda rho: law(n, dimension, overlap=rho), overlaps), n_units)


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Laws on a grid, and both pairs of systems."""
    check(config)
    run.claim()
    start, d, n = time.perf_counter(), float(config.n_features), config.n_units
    overlaps = np.linspace(0, 1, config.n_overlaps)
    rows, confusion = [], []
    for metric in config.metrics:
        widths = jnp.asarray(config.widths, float)
        found = np.asarray(scores(metric, config.family, widths, d, jnp.asarray(overlaps, widths.dtype)))
        for width, values in zip(config.widths, found, strict=True):
            rows += [
                {"metric": metric, "n_units": width, "overlap": float(rho), "score": float(score)}
                for rho, score in zip(overlaps, values, strict=True)
            ]
        other = float(theory.expected(metric, n, config.n_features, family=config.family))
        half = float(theory.same_arrangement(metric, n, config.n_features, overlap=0.5, family=config.family))
        implied = theory.invert(metric, min(other, 1.0), n, n, config.n_features, family=config.family)
        told = {"all_other_arrangement": other, "half_same_arrangement": half, "reversed": half > other}
        confusion.append({"metric": metric, **told, "as_much_as_same_arrangement": float(implied.low)})
    return run.finish(
        rows, {"compile": 0.0, "run": time.perf_counter() - start}, confusion=confusion, n_features=config.n_features, n_units=n
    )


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a map a metric, of overlap and compression."""
    metrics, d = plotting.column(results["rows"], "metric"), results["n_features"]
    overlaps = np.array(plotting.column(results["rows"], "overlap"))
    widths = np.array(plotting.column(results["rows"], "n_units"))
    figure, axes = plotting.grid(len(metrics), 4, (3.0, 2.7))
    for axis, metric in zip(axes, metrics, strict=False):
        own = np.array([row["score"] for row in plotting.where(results["rows"], metric=metric)]).reshape(len(widths), -1)
        levels = np.linspace(1 / 3 if metric == "jaccard" else 0, 1, 11)
        axis.contourf(overlaps, widths / d, own, levels, cmap="Blues", alpha=0.8)
        lines = axis.contour(overlaps, widths / d, own, levels[1:-1], colors="#444444", linewidths=0.6)
        axis.clabel(lines, fontsize=6, fmt="%.2g")
        (row,) = plotting.where(results["confusion"], metric=metric)
        axis.contour(overlaps, widths / d, own, [row["all_other_arrangement"] * 0.9999], colors="#aa3377", linewidths=2.2)
        axis.axvline(row["as_much_as_same_arrangement"], color="#aa3377", linestyle="--", linewidth=1.2)
        axis.plot([1], [results["n_units"] / d], "o", color="#aa3377", markersize=6, clip_on=False, zorder=5)
        axis.set_yscale("log", base=2)
        axis.set(title=metric, xlabel="overlap ρ", ylabel="units a feature, n / d", xlim=(0, 1), ylim=(widths[0] / d, 1))
    caption = (
        f"Expected score of random arrangements of {d} features. Dot and thick line: all features shared, in "
        f"{results['n_units']} units, and what scores the same. Dashed: the overlap that does in one and the same arrangement"
    )
    plotting.finish(figure, caption, path=run.figure)


if __name__ == "__main__":
    command.main("overlap", get_config(), compute, draw)

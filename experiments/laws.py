"""Are the laws of random arrangements right? Each against an independent simulation.

The expected score of two random arrangements that share all features or a part (`superpos.theory.laws`), beside arrangements
that NumPy draws and scores by its own few lines, from 32 to 1,024 features and from 1/16 unit to a unit a feature. Nothing of
superpos is used for the simulation; rsa alone needs samples, of Gaussian features.

Look at the table of the largest errors by metric: they should be within 3 %, or two standard errors of the simulation.
"""

import itertools
import math
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from experiments import command
from superpos import plotting, theory
from superpos.results import Run

FAMILIES = ("gaussian", "unit_norm", "tight")


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = 0
    config.n_features = (32, 64, 256, 1024)
    config.one_in = (16, 8, 4, 2, 1)  # a unit in so many features
    config.overlaps = (1.0, 0.5)
    config.families = FAMILIES
    config.metrics = tuple(name for name in theory.RANDOM if name not in ("soft_match", "ridge", "debiased_cka", "pls"))
    config.n_pairs = 16_000  # divided by the number of units: so many pairs, but 3 to 8,000
    config.n_rsa = 4000  # likewise, of rsa: at least 60, where there are as many
    config.n_samples = 4000  # of rsa, and 16 for each unit
    return config


def arrangement(rng: np.random.Generator, family: str, n_features: int, n_units: int) -> np.ndarray:
    """One arrangement, `(n_features, n_units)`."""
    drawn = rng.standard_normal((n_features, n_units))
    if family == "tight":
        q, r = np.linalg.qr(drawn)  # LAPACK's signs are not random
        return q * np.sign(np.diag(r)) * math.sqrt(n_features / n_units)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) if family == "unit_norm" else drawn


def canonical(x: np.ndarray, y: np.ndarray, cross: np.ndarray, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Canonical correlations of leading components with a share of the variance, and the source's directions."""
    roots = []
    for covariance in (x, y):
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        n = len(values) if share == 1 else int(np.searchsorted(np.cumsum(values) / values.sum(), share - 1e-9)) + 1
        roots.append(vectors[:, :n] / np.sqrt(values[:n]))
    left, correlations, _ = np.linalg.svd(roots[0].T @ cross @ roots[1], full_matrices=False)
    return np.minimum(correlations, 1), roots[0] @ left


def simulate(a: np.ndarray, b: np.ndarray, shared: int) -> dict[str, float]:
    """The scores of an endless sample of one pair, whose first features are shared."""
    x, y, cross = a.T @ a, b.T @ b, a[:shared].T @ b[:shared]
    r = cross / np.sqrt(np.outer(np.diag(x), np.diag(y)))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    correlations, directions = canonical(x, y, cross)
    weights = np.abs(x @ directions).sum(axis=0)
    explained = np.einsum("ij,ij->j", cross, np.linalg.solve(x, cross)) / np.diag(y)
    best = r.max(axis=0)
    angle = np.arcsin(np.minimum(best, 1)) / (2 * np.pi)  # of two Gaussian units with this correlation
    found = {
        "semi_match": best.mean(),
        "permutation_match": r[linear_sum_assignment(-r)].mean(),
        "mcc": np.abs(r)[linear_sum_assignment(-np.abs(r))].mean(),
        "jaccard": ((0.25 + angle) / (0.75 - angle)).mean(),
        "ols": np.sqrt(np.clip(explained, 0, 1)).mean(),
        "cka": (cross**2).sum() / np.linalg.norm(x) / np.linalg.norm(y),
        "procrustes": np.linalg.svd(cross, compute_uv=False).sum() / size,
        "cca": correlations.mean(),
        "svcca": canonical(x, y, cross, 0.99)[0].mean(),
        "pwcca": (weights[: len(correlations)] * correlations).sum() / weights[: len(correlations)].sum(),
    }
    energy = [(side**2).sum(axis=1) for side in (a, b)]
    found["cokurtosis"] = (energy[0] * energy[1])[:shared].sum() / np.linalg.norm(energy[0]) / np.linalg.norm(energy[1])
    projections = [side @ np.linalg.solve(own, side.T) for side, own in ((a, x), (b, y))]
    pairs = [p**2 - np.outer(np.diag(p), np.diag(p)) / side.shape[1] for p, side in zip(projections, (a, b), strict=True)]
    inner = (pairs[0] * pairs[1])[:shared, :shared].sum()
    found["cumulant_cka"] = inner / np.linalg.norm(pairs[0]) / np.linalg.norm(pairs[1]) if len(x) > 1 else math.nan
    return found


def rsa(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, shared: int, n: int) -> float:
    """By two halves, whose errors are independent: the correlation over pairs of stimuli of two similarity matrices."""
    z, w = rng.standard_normal((2, n, len(a)), dtype=np.float32)
    w[:, :shared] = z[:, :shared]
    sides = [z @ a.astype(np.float32), w @ b.astype(np.float32)]
    sides = [side - side.mean(axis=1, keepdims=True) for side in sides]
    halves = [np.split(side / np.linalg.norm(side, axis=1, keepdims=True), [n // 2]) for side in sides]

    def covariance(i: int, j: int) -> float:
        first, second = (halves[i][k].T @ halves[j][k] / len(halves[i][k]) for k in (0, 1))
        return float((first * second).sum())

    return covariance(0, 1) / math.sqrt(covariance(0, 0) * covariance(1, 1))


def check(config: ConfigDict) -> None:
    """Refuses what cannot be computed, before anything is written."""
    command.at_least(config, {"n_features": 2, "one_in": 1, "n_pairs": 1, "n_samples": 100})
    for name, known in (("families", FAMILIES), ("metrics", theory.RANDOM)):
        if not config[name] or not set(config[name]) <= set(known):
            raise ValueError(f"config.{name} takes names out of {', '.join(known)}.")
    if not config.overlaps or not all(0 < overlap <= 1 for overlap in config.overlaps):
        raise ValueError("config.overlaps must be above 0 and at most 1.")


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Laws and simulations at each size."""
    check(config)
    run.claim()
    start, rng, rows = time.perf_counter(), np.random.default_rng(config.seed), []
    sizes = itertools.product(config.n_features, config.one_in, config.families, config.overlaps)
    for n_features, one_in, family, overlap in sizes:
        n, shared = n_features // one_in, round(overlap * n_features)
        if n < 2:
            continue
        drawn = []
        for i in range(min(8000, max(3, config.n_pairs // n))):
            a, b = (arrangement(rng, family, n_features, n) for _ in "ab")
            drawn.append(simulate(a, b, shared))
            if "rsa" in config.metrics and i < max(60, config.n_rsa // n):
                drawn[-1]["rsa"] = rsa(rng, a, b, shared, config.n_samples + 16 * n)
        for metric in config.metrics:
            values = np.array([scores[metric] for scores in drawn if metric in scores])
            law = float(theory.expected(metric, n, n_features, overlap=shared / n_features, family=family))
            mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
            size = {"n_features": n_features, "n_units": n, "family": family, "overlap": overlap, "metric": metric}
            told = {"law": law, "mean": mean, "standard_error": error, "error": law / mean - 1, "noise": error / mean}
            rows.append({**size, **told, "n_pairs": len(values)})
    return run.finish(rows, {"compile": 0.0, "run": time.perf_counter() - start}, largest=largest(rows))


def largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each metric the largest error, where it is, its standard error, and how much is left beyond two of them."""
    found = []
    for metric in plotting.column(rows, "metric"):
        own = plotting.where(rows, metric=metric)
        worst = max(own, key=lambda row: abs(row["error"]))
        beyond = max(0.0, *(abs(row["error"]) - 2 * row["noise"] for row in own))
        place = {name: worst[name] for name in ("n_features", "n_units", "family", "overlap", "error", "noise")}
        rms = math.sqrt(np.mean([row["error"] ** 2 for row in own]))
        found.append(
            {"metric": metric, "rms_error": rms, "beyond_noise": beyond, **{f"worst_{k}": v for k, v in place.items()}}
        )
    return found


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: errors of all laws, a panel a metric, against units a feature."""
    groups = plotting.by_metric(results["rows"])
    figure, axes = plotting.grid(len(groups), 4, (3.1, 2.5))
    for axis, (metric, rows) in zip(axes, groups.items(), strict=False):
        for i, family in enumerate(dict.fromkeys(row["family"] for row in rows)):
            own = plotting.where(rows, family=family)
            x = [row["n_units"] / row["n_features"] * 1.12 ** (i - 1) for row in own]
            y, bars = ([100 * row[name] for row in own] for name in ("error", "noise"))
            label = family.replace("_", " ") if axis is axes[0] else None
            axis.errorbar(x, y, np.multiply(2, bars), fmt="os^"[i], markersize=3, linewidth=0.7, alpha=0.7, label=label)
        axis.axhspan(-3, 3, color="#dddddd", zorder=0)
        axis.set(xscale="log", ylim=(-8, 8), title=metric, xlabel="units a feature", ylabel="law - simulation, %")
        ticks = sorted({row["n_units"] / row["n_features"] for row in rows})
        axis.set_xticks(ticks, [f"1/{1 / tick:.0f}" for tick in ticks])
        axis.set_xticks([], minor=True)
    features = sorted({row["n_features"] for row in results["rows"]})
    caption = f"{features[0]} to {features[-1]} features; bars: two standard errors of the simulation; grey: within 3 %"
    plotting.finish(figure, caption, path=run.figure)


if __name__ == "__main__":
    command.main("laws", get_config(), compute, draw)

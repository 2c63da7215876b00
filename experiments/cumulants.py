"""Do fourth-order cumulants see through superposition, and do they find features without training?

Pairs of systems, and of trained toy models, with features in common are scored by cumulants and by usual metrics. On the
diagonal superposition is undone, and nothing was trained (worlds that break it: `experiments.calibration`). Where eigenvalues
that other samples confirm end, features end. Last, how much of each feature is recovered, beside nine SAEs and their time.

`truth` of a world is the share of features that both systems have. That of toy models is what the formula of the cokurtosis
makes of their weights, Σ κ |a|² |b|² over shared features, as if their units were not rectified.

Sources: Cardoso 1991 (quadricovariance); Kileel & Pereira 2019, arXiv 1912.04007 (directions); Bereska et al. 2025, arXiv
2512.13568 (entropy of an SAE).
"""

import itertools
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command, toys
from superpos import plotting, views
from superpos.results import Run

METRICS = ("cokurtosis", "cumulant_cka", "cumulant_cca", "cka", "cca", "ridge", "soft_match")
PARTS, SHARES = ("linear", "hidden"), ("all", "half")  # of cumulant_cka; of the features of toy models


def get_config() -> ConfigDict:
    """Every setting; toy models are those of `toy_alignment`."""
    config = toys.get_config()
    config.n_seeds = 3  # pairs of systems, or of toy models, of each kind
    config.n_units = (32, 16, 8, 4)  # of systems of 32 features
    config.overlap = (0.0, 0.25, 0.5, 0.75, 1.0)
    config.probability = 0.05  # of a feature being active in a world
    config.n_samples = 16_000
    config.metrics = METRICS
    config.architectures = tuple(sp.sae.ARCHITECTURES)  # of the SAEs, each in the middle of its ladder
    config.recovery = ConfigDict({"n_hidden": (16, 32), "n_samples": 65_536})  # samples that lines are found in
    config.sae.steps = 2000
    config.chunk = 1
    return config


def overlaps(config: ConfigDict, key: Any, data_key: Any, n_units: int, overlap: Any) -> dict[str, Any]:
    """Scores of a pair of systems."""
    made = sp.worlds.World(32, n_units, overlap, probability=config.probability)
    pair = made.sample(jax.random.fold_in(key, n_units), config.n_samples)
    return measured(config, pair.x, pair.y)


def measured(config: ConfigDict, x: Any, y: Any) -> dict[str, Any]:
    """A number for each metric, and the parts of cumulant CKA."""
    scores = sp.align(x, y, config.metrics)
    parts = scores["cumulant_cka"].details if "cumulant_cka" in scores else {}
    return {**{name: scores[name].mean for name in config.metrics}, **{name: parts[name].mean() for name in PARTS if parts}}


def trained(config: ConfigDict, key: Any, data_key: Any, n_hidden: int) -> dict[str, Any]:
    """A pair of toy models, and their scores where they see the same features, and where every other one is in common."""
    first, second = (toys.train_toy(config, jax.random.fold_in(key, i), data_key, n_hidden)[0] for i in (0, 1))
    model, half = toys.toy(config, n_hidden), jnp.arange(config.features.n_features) % 2 == 0
    z, other = (toys.features(config).sample(jax.random.fold_in(key, i), config.n_samples) for i in (2, 3))
    norms = [jnp.sum(params["W"] ** 2, axis=1) for params in (first, second)]

    def scored(shared: Any) -> dict[str, Any]:
        w = jnp.where(shared, z, other)
        truth = jnp.sum(shared * norms[0] * norms[1]) / jnp.linalg.norm(norms[0]) / jnp.linalg.norm(norms[1])
        return {"truth": truth, **measured(config, model.encode(first, z), model.encode(second, w))}

    shares = lax.map(scored, jnp.stack([half | True, half]))
    return {"W": first["W"], "scores": {name: jax.tree.map(lambda leaf, i=i: leaf[i], shares) for i, name in enumerate(SHARES)}}


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Scores all pairs, counts, and recovers."""
    toys.check(config, n_seeds=1)
    if set(config.recovery.n_hidden) - set(config.n_hidden):
        raise ValueError(f"config.recovery.n_hidden must be out of n_hidden, got {config.recovery.n_hidden}.")
    command.at_least(config, {"n_samples": 100})
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    keys, started = jax.random.split(init_key, config.n_seeds), time.perf_counter()
    run.claim()
    options = {"data_key": data_key, "chunk": config.chunk or None}
    rows, metrics = [], [*config.metrics, *(PARTS if "cumulant_cka" in config.metrics else ())]
    grid = {"n_units": config.n_units, "overlap": list(map(float, config.overlap))}
    found = sp.sweep(partial(overlaps, config), grid, keys, workdir=run.path / "units", **options).states
    for n_units, overlap in itertools.product(*grid.values()):
        told = {"part": "units", "n_units": n_units, "world": "independent", "truth": overlap}
        of_point = {metric: found[metric].sel(n_units=n_units, overlap=overlap).values for metric in metrics}
        rows += [{**told, "metric": metric, **summary(values)} for metric, values in of_point.items()]
    models = sp.sweep(partial(trained, config), {"n_hidden": config.n_hidden}, keys, workdir=run.path / "toys", **options)
    for n_hidden in config.n_hidden:
        for share, scores in models.load(n_hidden=n_hidden)["scores"].items():
            told = {"part": "toys", "n_units": n_hidden, "world": share, "truth": float(np.mean(scores["truth"]))}
            rows += [{**told, "metric": metric, **summary(scores[metric])} for metric in metrics]
    counts, spectra = counted(config, init_key)
    recovery = recovered(config, {n: models.load(n_hidden=n)["W"] for n in config.recovery.n_hidden}, data_key)
    return run.finish(rows, {"run": time.perf_counter() - started}, recovery=recovery, counts=counts, spectra=spectra)


def summary(values: Any) -> dict[str, Any]:
    """Mean and spread over the seeds of which a score is defined, and of how many it is not."""
    told = values[np.isfinite(values)]
    found: dict[str, Any] = sp.stats.over_seeds(told) if told.size else dict.fromkeys(("mean", "std", "ci95"))
    return {**found, "n_seeds": values.size, "undefined": values.size - told.size}


def counted(config: ConfigDict, key: Any) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """How many features systems of 20 units seem to hold, of the 40 that are there, by three counts; and their eigenvalues."""
    rows, spectra = [], {}
    view = views.SAE("topk", n_latents=80, k=4, steps=config.sae.steps, batch_size=config.sae.batch_size)
    fit = jax.jit(lambda x: view.fit(key, views.Rows(x), 20))
    for probability in (0.05, 0.1, 0.2):
        pair = sp.worlds.World(40, 20, probability=probability).sample(key, config.n_samples)
        count = sp.cumulants.count_features(pair.x, key)
        lines = sp.cumulants.directions(pair.x, 40, key)
        cosines = jnp.abs(sp.arrangements.directions(pair.a) @ lines.T)
        told = {
            "sae_entropy": 20 * view.describe(fit(pair.x), pair.x)["superposition"],
            "participation_ratio": sp.theory.effective_dimension(jnp.cov(pair.x.T)),
            "found": jnp.mean(jnp.max(cosines, axis=1) > 0.95),
        }
        known = {"probability": probability, "count": count.count, "ci95": list(count.ci95), "reason": count.reason}
        rows.append(known | {name: float(value) for name, value in told.items()})
        spectra[f"p = {probability}"] = {name: getattr(count, name)[:80].tolist() for name in ("eigenvalues", "held_out")}
    return rows, spectra


def recovered(config: ConfigDict, weights: dict[int, np.ndarray], data_key: Any) -> list[dict[str, Any]]:
    """How well features are recovered from one toy model of each width, and the seconds of each fit, compiling left out."""
    rows, fit_key = [], jax.random.fold_in(data_key, 3)
    z = toys.features(config).sample(jax.random.fold_in(data_key, 4), config.n_samples)
    for n_hidden, matrices in weights.items():
        params = {"W": jnp.asarray(matrices[0]), "b": jnp.zeros(config.features.n_features)}

        def units(key: Any, n: int, params: Any = params, n_hidden: int = n_hidden) -> Any:
            return toys.toy(config, n_hidden).encode(params, toys.features(config).sample(key, n))

        scored = toys.toy(config, n_hidden).encode(params, z)
        cumulant = {"rectified": True, "max_samples": config.recovery.n_samples}
        tried: dict[str, Any] = {
            "lines": views.Cumulant(n_hidden, polish=0, **cumulant),
            "lines, polished": views.Cumulant(n_hidden, **cumulant),
            "oracle": toys.views(config, ["oracle"], params["W"])["oracle"],
        }

        sizes = {"n_latents": config.sae.n_latents, "batch_size": config.sae.batch_size, "steps": config.sae.steps}
        tried |= {name: views.SAE.at(name, **sizes) for name in config.architectures}
        for name, view in tried.items():
            compiled = jax.jit(lambda key, v=view, u=units, n=n_hidden: v.fit(key, u, n)).lower(fit_key).compile()
            started = time.perf_counter()
            fitted = jax.block_until_ready(compiled(fit_key))
            seconds = time.perf_counter() - started
            recovery = sp.align(view.encode(fitted, scored), z, "feature_recovery", folds=None)["feature_recovery"].mean
            rows.append({"n_hidden": n_hidden, "units": name, "recovery": float(recovery), "seconds": seconds})
    return rows


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: scores against the truth, by compression; eigenvalues; recovery against time."""
    rows = results["rows"]
    shown = [name for name in METRICS if name != "cca" and any(row["metric"] == name for row in rows)]
    widths = list(dict.fromkeys(row["n_units"] for row in rows if row["part"] == "units"))
    figure, axes = plotting.panels(2, max(len(widths), 4), (3.4 * max(len(widths), 4), 7.4))
    for axis, n_units in zip(axes[0], widths, strict=False):
        of_width = plotting.where(rows, part="units", n_units=n_units)
        chosen = [row for row in of_width if row["mean"] is not None and row["metric"] in shown]
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
        if chosen:
            plotting.curves(axis, chosen, "truth", "metric", among=shown)
        axis.set(title=f"32 features in {n_units} units", xlabel="features in common", ylabel="score", ylim=(-0.1, 1.1))
    spectra, *times = axes[1]
    for name, values in results["spectra"].items():
        place = np.arange(1, len(values["held_out"]) + 1)
        (line,) = spectra.plot(place, np.sign(values["eigenvalues"]) * values["held_out"], label=name)
        spectra.plot(place, np.abs(values["eigenvalues"]), color=line.get_color(), linewidth=0.8, alpha=0.5)
    spectra.axvline(40, color="#999999", linewidth=1, linestyle=":")
    spectra.set(title="40 features in 20 units", xlabel="direction", ylabel="fourth cumulant (faint: same samples)")
    spectra.set_yscale("symlog", linthresh=0.1)
    spectra.legend(frameon=False, fontsize=8, title="confirmed by others", title_fontsize=8)
    for axis, n_hidden in zip(times, dict.fromkeys(row["n_hidden"] for row in results["recovery"]), strict=False):
        for row in plotting.where(results["recovery"], n_hidden=n_hidden):
            colour = "#332288" if "lines" in row["units"] else "#009E73" if row["units"] == "oracle" else "#777777"
            axis.plot(row["seconds"], row["recovery"], "o", color=colour, markersize=5)
            style = {"fontsize": 6.5, "xytext": (4, 2), "textcoords": "offset points", "color": colour}
            axis.annotate(row["units"], (row["seconds"], row["recovery"]), **style)
        title = f"Toy model, {n_hidden} hidden units"
        axis.set(title=title, xscale="log", xlabel="seconds of a fit", ylabel="feature recovery (r)")
    caption = f"Mean and 95 % interval over {rows[0]['n_seeds']} pairs; dotted: the truth"
    plotting.finish(figure, caption, axes[0, 0].get_legend_handles_labels()[0], path=run.figure)


if __name__ == "__main__":
    command.main("cumulants", get_config(), compute, draw)

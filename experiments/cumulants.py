"""Do fourth-order cumulants see through superposition, what breaks them, and do they find features without training?

Pairs of systems with known features in common (`sp.worlds`), and pairs of trained toy models, are scored by cumulants and by
the usual metrics. Look at whether points lie on the diagonal at every compression: then superposition is undone, and nothing
was trained. Look next at the worlds that break the assumptions, at an overlap of 0 most of all: whatever stands far above 0
there believes in alignment that is not there. Then at the eigenvalues: where those that other samples confirm end, features
end. And at how much of each feature of a toy model is recovered, beside nine SAEs and the time that each takes.

`truth` of a world is the share of features that both systems have. That of toy models is what the formula of the cokurtosis
makes of their weights, Σ κ |a|² |b|² over shared features, as if their units were not rectified.

Sources: Cardoso 1991 (quadricovariance); Kileel & Pereira 2019, arXiv 1912.04007 (directions); the metrics are ours.
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

# Settings of `sp.worlds.World` that differ from independent features without noise.
WORLDS: dict[str, dict[str, Any]] = {
    "independent": {},
    "noise as strong": {"noise": 1.0},
    "noise of common strength": {"noise": 1.0, "noise_spread": 0.5},
    "common gain": {"gain": 0.5},
    "common density": {"density": 0.7},
    "unequal norms": {"norms": 0.5},
    "groups of two": {"group": 2},
    "groups across sides": {"group": 2, "across": True},
    "rectified": {"rectified": True},
}
METRICS = ("cokurtosis", "cumulant_cka", "cumulant_cca", "cka", "cca", "ridge", "soft_match")
PARTS = ("linear", "hidden")  # of cumulant_cka


def get_config() -> ConfigDict:
    """Every setting; toy models are those of `toy_alignment`."""
    config = toys.get_config()
    config.n_seeds = 3  # pairs of systems, or of toy models, of each kind
    config.n_units = (32, 16, 8, 4)  # of systems of 32 features
    config.overlap = (0.0, 0.25, 0.5, 0.75, 1.0)
    config.probability = 0.05  # of a feature being active in a world
    config.n_samples = 16_000
    config.metrics = METRICS
    config.worlds = tuple(WORLDS)  # those of 16 units that are made, at three overlaps
    config.architectures = tuple(sp.sae.ARCHITECTURES)  # of the SAEs, each in the middle of its ladder
    config.recovery = ConfigDict({"n_hidden": (16, 32), "n_samples": 65_536})  # samples that lines are found in
    config.starts = (200, 2000)  # steps of TopK SAEs that start at random, and along lines
    config.sae.steps = 2000
    config.chunk = 1
    return config


def overlaps(config: ConfigDict, key: Any, data_key: Any, n_units: int, overlap: Any, world: Any = 0.0) -> dict[str, Any]:
    """Scores of a pair of systems; `world` is the place of its name, so that all worlds are one program."""
    fields = dict.fromkeys(name for settings in WORLDS.values() for name in settings)
    table = {
        name: jnp.array([settings.get(name, getattr(sp.worlds.World(), name)) for settings in WORLDS.values()])
        for name in fields
    }
    settings: dict[str, Any] = {name: values[jnp.asarray(world, int)] for name, values in table.items()}
    made = sp.worlds.World(32, n_units, overlap, probability=config.probability, **settings)
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
    n, model = config.features.n_features, toys.toy(config, n_hidden)
    z, other = (toys.features(config).sample(jax.random.fold_in(key, i), config.n_samples) for i in (2, 3))
    half = jnp.arange(n) % 2 == 0
    norms = [jnp.sum(params["W"] ** 2, axis=1) for params in (first, second)]

    def scored(shared: Any) -> dict[str, Any]:
        w = jnp.where(shared, z, other)
        truth = jnp.sum(shared * norms[0] * norms[1]) / jnp.linalg.norm(norms[0]) / jnp.linalg.norm(norms[1])
        return {"truth": truth, **measured(config, model.encode(first, z), model.encode(second, w))}

    shares = lax.map(scored, jnp.stack([jnp.ones(n, bool), half]))
    found = {name: jax.tree.map(lambda leaf, i=i: leaf[i], shares) for i, name in enumerate(("all", "half"))}
    return {"W": first["W"], "scores": found}


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Scores all pairs, counts, and recovers."""
    toys.check(config, n_seeds=1)
    if unknown := set(config.worlds) - WORLDS.keys():
        raise ValueError(f"config.worlds takes names out of {', '.join(WORLDS)}, got {', '.join(sorted(unknown))}.")
    if set(config.recovery.n_hidden) - set(config.n_hidden):
        raise ValueError(f"config.recovery.n_hidden must be out of n_hidden, got {config.recovery.n_hidden}.")
    command.at_least(config, {"n_samples": 100})
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    keys = jax.random.split(init_key, config.n_seeds)
    run.claim()
    started = time.perf_counter()
    options = {"data_key": data_key, "chunk": config.chunk or None}
    rows = []
    metrics = [*config.metrics, *(PARTS if "cumulant_cka" in config.metrics else ())]
    names, at_overlaps = list(WORLDS), list(map(float, config.overlap))
    of_worlds = [float(names.index(world)) for world in config.worlds]
    for kind, grid in (
        ("units", {"n_units": config.n_units, "overlap": at_overlaps}),
        ("worlds", {"n_units": (16,), "overlap": [0.0, 0.5, 1.0], "world": of_worlds}),
    ):
        found = sp.sweep(partial(overlaps, config), grid, keys, workdir=run.path / kind, **options).states
        for point in itertools.product(*grid.values()):
            at = dict(zip(grid, point, strict=True))
            told = {"part": kind, **at, "world": names[int(at.get("world", 0))], "truth": at["overlap"]}
            rows += [{**told, "metric": metric, **summary(found[metric].sel(at).values)} for metric in metrics]
    models = sp.sweep(partial(trained, config), {"n_hidden": config.n_hidden}, keys, workdir=run.path / "toys", **options)
    for n_hidden in config.n_hidden:
        scores = models.load(n_hidden=n_hidden)["scores"]
        for share, of_share in scores.items():
            for metric in metrics:
                known = {"part": "toys", "n_units": n_hidden, "world": share, "truth": float(np.mean(of_share["truth"]))}
                rows.append({**known, "metric": metric, **summary(of_share[metric])})
    counts, spectra = counted(config, init_key)
    weights = {n_hidden: models.load(n_hidden=n_hidden)["W"] for n_hidden in config.recovery.n_hidden}
    recovery = recovered(config, weights, data_key)
    return run.finish(rows, {"run": time.perf_counter() - started}, recovery=recovery, counts=counts, spectra=spectra)


def summary(values: Any) -> dict[str, Any]:
    """Mean and spread over the seeds of which a score is defined, and of how many it is not."""
    values = np.ravel(values)
    told = values[np.isfinite(values)]
    empty: dict[str, Any] = {"mean": None, "std": None, "ci95": None}
    return {**(sp.stats.over_seeds(told) if told.size else empty), "n_seeds": values.size, "undefined": values.size - told.size}


def counted(config: ConfigDict, key: Any) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """How many features systems of 20 units seem to hold, of the 40 that are there; and their eigenvalues."""
    rows, spectra = [], {}
    for probability, n_samples in ((0.05, config.n_samples), (0.1, config.n_samples), (0.2, config.n_samples)):
        pair = sp.worlds.World(40, 20, probability=probability).sample(key, n_samples)
        count = sp.cumulants.count_features(pair.x, key)
        lines = sp.cumulants.directions(pair.x, 40, key)
        cosines = jnp.abs(sp.arrangements.directions(pair.a) @ lines.T)
        rows.append(
            {
                "probability": probability,
                "n_samples": n_samples,
                "count": count.count,
                "ci95": list(count.ci95),
                "reason": count.reason,
                "found": float(jnp.mean(jnp.max(cosines, axis=1) > 0.95)),
            }
        )
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
        # As many lines as units: antipodal pairs of features share one. And none to see what the lines alone give.
        cumulant = {"rectified": True, "max_samples": config.recovery.n_samples}
        tried: dict[str, Any] = {
            "lines": views.Cumulant(n_hidden, polish=0, **cumulant),
            "lines, polished": views.Cumulant(n_hidden, **cumulant),
            "oracle": toys.views(config, ["oracle"], params["W"])["oracle"],
        }

        def sae(name: str, steps: int, n_hidden: int = n_hidden, **start: Any) -> views.SAE:
            field, ladder = sp.sae.ARCHITECTURES[name].ladder
            sparsity: dict[str, Any] = {"k": ladder[1]} if field == "k" else {"options": {field: ladder[1]}}
            sizes = {"n_latents": config.sae.n_latents, "batch_size": config.sae.batch_size}
            return views.SAE(name, steps=steps, **sparsity, **sizes, **start)

        tried |= {name: sae(name, config.sae.steps) for name in config.architectures}
        for steps in config.starts:
            tried[f"topk, {steps} steps"] = sae("topk", steps)
            tried[f"topk from lines, {steps} steps"] = sae("topk", steps, init_from=tried["lines"])
        for name, view in tried.items():
            fit = jax.jit(lambda key, view=view, units=units, n_hidden=n_hidden: view.fit(key, units, n_hidden))
            compiled = fit.lower(fit_key).compile()
            started = time.perf_counter()
            fitted = jax.block_until_ready(compiled(fit_key))
            seconds = time.perf_counter() - started
            recovery = sp.align(view.encode(fitted, scored), z, "feature_recovery", folds=None)["feature_recovery"].mean
            rows.append({"n_hidden": n_hidden, "units": name, "recovery": float(recovery), "seconds": seconds})
    return rows


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: scores against the truth, by compression; worlds that break them; eigenvalues; recovery against time."""
    rows = results["rows"]
    shown = [name for name in METRICS if name != "cca" and any(row["metric"] == name for row in rows)]
    widths = list(dict.fromkeys(row["n_units"] for row in rows if row["part"] == "units"))
    figure, axes = plotting.panels(2, max(len(widths), 4), (3.4 * max(len(widths), 4), 7.4))
    for axis, n_units in zip(axes[0], widths, strict=False):
        chosen = [row for row in rows if row["part"] == "units" and row["n_units"] == n_units]
        chosen = [row for row in chosen if row["metric"] in shown and row["mean"] is not None]
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
        if chosen:
            plotting.curves(axis, chosen, "truth", "metric", among=shown)
        axis.set(title=f"32 features in {n_units} units", xlabel="features in common", ylabel="score", ylim=(-0.1, 1.1))
    breaks, spectra, *times = axes[1]
    at_zero = [row for row in rows if row["part"] == "worlds" and row["truth"] == 0 and row["mean"] is not None]
    for metric in shown[:3]:
        chosen = [row for row in at_zero if row["metric"] == metric]
        look = {"markersize": 6, **plotting.style(metric, shown), "linestyle": ""}
        breaks.plot([row["mean"] for row in chosen], [row["world"] for row in chosen], **look)
    breaks.axvline(0, color="#999999", linewidth=1)
    breaks.set(title="Nothing in common, 32 features in 16 units", xlabel="score")
    for name, values in results["spectra"].items():
        place = np.arange(1, len(values["held_out"]) + 1)
        signs = np.sign(values["eigenvalues"])
        (line,) = spectra.plot(place, signs * values["held_out"], label=name)
        spectra.plot(place, np.abs(values["eigenvalues"]), color=line.get_color(), linewidth=0.8, alpha=0.5)
    spectra.axvline(40, color="#999999", linewidth=1, linestyle=":")
    spectra.set(title="40 features in 20 units", xlabel="direction", ylabel="fourth cumulant (faint: same samples)")
    spectra.set_yscale("symlog", linthresh=0.1)
    spectra.legend(frameon=False, fontsize=8, title="confirmed by others", title_fontsize=8)
    for axis, n_hidden in zip(times, dict.fromkeys(row["n_hidden"] for row in results["recovery"]), strict=False):
        for row in results["recovery"]:
            if row["n_hidden"] == n_hidden:
                colour = "#332288" if "lines" in row["units"] else "#009E73" if row["units"] == "oracle" else "#777777"
                axis.plot(row["seconds"], row["recovery"], "o", color=colour, markersize=5)
                at = (row["seconds"], row["recovery"])
                axis.annotate(row["units"], at, fontsize=6.5, xytext=(4, 2), textcoords="offset points", color=colour)
        axis.set_xscale("log")
        axis.set(title=f"Toy model, {n_hidden} hidden units", xlabel="seconds of a fit", ylabel="feature recovery (r)")
    caption = f"Mean and 95 % interval over {rows[0]['n_seeds']} pairs; dotted: the truth"
    plotting.finish(figure, caption, axes[0, 0].get_legend_handles_labels()[0], path=run.figure)


if __name__ == "__main__":
    command.main("cumulants", get_config(), compute, draw)

"""Which sparse autoencoder finds the features of toy models, at which sparsity?

Trains SAEs of every architecture, over a ladder of sparsities, on the hidden units of the same toy models (those of
`toy_alignment`), with one budget of data and no supervision; all see the same features in the same order. Look at feature
recovery against the number of active latents, beside what could be read at most (the oracle, sparse inference with the true
weights, and a network trained on the true features) and what the same SAEs show untrained (dashed; those that are given k are
as sparse as the trained ones, the others as chance has it); at the share of variance that is left unexplained, which an SAE
can lower without finding features; and at whether latents of two seeds match (sae->sae), which is what disentangling is for.

The ladders that architectures name, and the options below, are the best of those tried with the models of seed 0; the study's
eight include these models.

Sources: of each architecture in its docstring (`python -m pydoc superpos.sae.topk`); of the models Longon, Klindt & Khosla,
arXiv 2510.03186.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command, toys
from superpos import plotting
from superpos.results import Run, did_you_mean

KINDS = {"sae": "", "random_sae": "random_"}  # trained and not; what stands before the names of its columns
LABELS = {"recovery": "feature recovery (r)", "fvu": "variance unexplained", "soft_match": "soft-matching of seeds (r)"}


def get_config() -> ConfigDict:
    """Every setting; toy models, oracle, supervised network and published SAE are those of `toy_alignment`."""
    config = toys.get_config()
    config.n_hidden = (16, 32)  # widths
    config.metrics = ("soft_match",)  # of alignment between latents
    config.architectures = (*sp.sae.ARCHITECTURES, "topk_rectified")  # of `sp.sae`, or variants: see options
    config.n_latents = (64,)
    # How sparse, from the ladder of each architecture; a variant has that of its architecture. All have as many rungs.
    config.sparsity = ConfigDict({name: kind.ladder[1] for name, kind in sp.sae.ARCHITECTURES.items()})
    # Options that differ from the defaults of `sp.sae`, but that sparsity_warmup is a share of the steps; a variant names its
    # architecture too. Hidden units of these models are rectified, and reconstructions may be.
    config.options = ConfigDict(
        {
            "nonnegative": {"signed": True, "rectified": True, "sparsity_warmup": 0.75, "sparsity_start": 10.0},
            "topk_rectified": {"architecture": "topk", "rectified": True},
        }
    )
    config.published = config.sae
    config.sae = ConfigDict({"steps": 8_000, "batch_size": 1024, "learning_rate": 3e-3, "warmup": 0})  # cosine decay
    config.eval.n_samples = 51_200
    return config


def ladder(config: ConfigDict, architecture: str) -> tuple[float, ...]:
    """The sparsities of an architecture or a variant of one."""
    of = config.options.get(architecture, {}).get("architecture", architecture)
    if of not in sp.sae.ARCHITECTURES:
        near = did_you_mean(of, sp.sae.ARCHITECTURES)
        raise ValueError(f"config names the architecture {of!r}{near}; there are {', '.join(sp.sae.ARCHITECTURES)}.")
    return config.sparsity.get(architecture, config.sparsity.get(of, ()))


def sae(config: ConfigDict, n_hidden: int, architecture: str, n_latents: int, rung: Any) -> sp.sae.SparseAutoencoder:
    """The SAE at a rung of its ladder, which may be traced; a plain number is checked."""
    values = ladder(config, architecture)
    sparsity = values[rung] if isinstance(rung, int) else jnp.asarray(values)[jnp.asarray(rung, int)]
    options, most = config.options.get(architecture, ConfigDict()).to_dict(), max(values)
    if "sparsity_warmup" in options:
        options["sparsity_warmup"] *= config.sae.steps
    return sp.sae.build(options.pop("architecture", architecture), n_hidden, n_latents, sparsity, most=most, **options)


def train(config: ConfigDict, seed: Any, data: Any, n_hidden: int, architecture: str, n_latents: int, rung: Any) -> Any:
    """The SAE of one toy model, trained and before, and how good each is."""
    settings, rate = config.sae, config.sae.learning_rate
    params = jax.tree.map(lambda leaf: leaf[seed], data["toys"][str(n_hidden)])
    model = sae(config, n_hidden, architecture, n_latents, rung)
    init_key, fit_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(data["keys"][seed], n_hidden), n_latents))

    def sample(key, n):
        return toys.toy(config, n_hidden).encode(params, toys.features(config).sample(key, n))

    start = sp.training.start(model, init_key, lambda: sample(jax.random.fold_in(data["start_key"], seed), settings.batch_size))
    schedule = optax.warmup_cosine_decay_schedule(0.0 if settings.warmup else rate, rate, settings.warmup, settings.steps)
    options = {"steps": settings.steps, "batch_size": settings.batch_size, "optimizer": optax.adam(schedule)}
    trained, _ = sp.fit(model, fit_key, sample, data_key=data["sae_key"], params=start, **options)

    def batch(i):
        z = toys.batch(config, data["measure_key"], i)
        return toys.toy(config, n_hidden).encode(params, z), z

    def measure(params):
        report = sp.evaluation.evaluate_batches(model, params, batch, toys.n_batches(config))
        recovered = report.recovery["feature_recovery"].mean
        return {"recovery": recovered, "l0": report.l0, "fvu": report.fvu, "dead": report.dead}

    saes = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained, start)  # in the order of KINDS
    return {"toy": params, "saes": saes, **lax.map(measure, saes)}


def score(
    config: ConfigDict, a: Any, b: Any, eval_key: Any, n_hidden: int, architecture: str, n_latents: int, rung: Any
) -> Any:
    """Alignment of the latents of two seeds: `{metric: (kinds,)}`, and the largest duality gap."""
    model = sae(config, n_hidden, architecture, n_latents, rung)

    def see(state, z):
        x = toys.toy(config, n_hidden).encode(state["toy"], z)
        return {kind: model.encode(jax.tree.map(lambda leaf, i=i: leaf[i], state["saes"]), x) for i, kind in enumerate(KINDS)}

    return toys.score(config, [f"{kind}->{kind}" for kind in KINDS], config.metrics, a, b, eval_key, see)


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains toy models, then all SAEs on them, and tabulates."""
    toys.check(config)
    rungs = {len(ladder(config, name)) for name in config.architectures}
    for name, n_latents in itertools.product(config.architectures, config.n_latents):
        for rung in range(len(ladder(config, name))):
            sae(config, 1, name, n_latents, rung)
    if len(rungs) != 1 or not min(rungs):
        raise ValueError("config.sparsity needs a ladder of the same length for each of config.architectures, at least one.")
    init_key, data_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)  # the models of toy_alignment
    keys, own = jax.random.split(init_key, config.n_seeds), jax.random.split(jax.random.fold_in(data_key, 6), 3)
    data: dict[str, Any] = {"keys": keys, "sae_key": own[0], "start_key": own[1], "measure_key": own[2]}
    names = ["neuron", "sae", "random_sae", "oracle", *["supervised"] * bool(config.supervised.steps)]
    study = ConfigDict({**config.to_dict(), "sae": config.published.to_dict(), "options": {}})
    grid = {"n_hidden": config.n_hidden, "architecture": config.architectures, "n_latents": config.n_latents}
    # Whatever is wrong with the settings shows here, before anything is written.
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for point in points:
        blank = jax.tree.map(lambda leaf: leaf[None], toys.toy(config, point["n_hidden"]).init(init_key))
        data["toys"] = {str(point["n_hidden"]): blank}
        state = jax.eval_shape(partial(train, config, **point, rung=0.0), 0, data)
        jax.eval_shape(partial(score, config, **point, rung=0.0), state, state, eval_key)
    widths = {"n_hidden": config.n_hidden}
    models = toys.sweep(study, run, partial(toys.train, study, names), widths, workdir=run.path / "models")
    data["toys"] = {str(n_hidden): models.load(n_hidden=n_hidden)["toy"] for n_hidden in config.n_hidden}
    grid["rung"] = [float(rung) for rung in range(min(rungs))]
    options: dict[str, Any] = {"data_key": data, "eval_key": eval_key, "chunk": config.chunk or None}
    options |= {"score": partial(score, config), "pairs": "unordered", "workdir": run.path / "saes"}
    saes = sp.sweep(partial(train, config), grid, np.arange(config.n_seeds), **options)
    rows = []
    for point, rung in itertools.product(points, range(min(rungs))):
        at, sparsity = {**point, "rung": float(rung)}, ladder(config, point["architecture"])[rung]
        row = tabulate(config, saes.load(**at), saes.scores.sel(at))
        rows.append({**point, "sparsity": sparsity, **row, "n_seeds": config.n_seeds})
    seconds = {stage: models.seconds[stage] + saes.seconds[stage] for stage in ("compile", "run")}
    recovery = toys.recovery_rows(config, names, models.states)
    return run.finish(rows, seconds, recovery=recovery, n_scored=toys.n_batches(config) * config.eval.batch_size)


def tabulate(config: ConfigDict, state: Any, scores: Any) -> dict[str, Any]:
    """Mean over seeds of what is measured of one SAE, over pairs of what is measured of two, with intervals."""
    row: dict[str, Any] = {}
    for i, (kind, prefix) in enumerate(KINDS.items()):
        summaries = {"recovery": sp.stats.over_seeds(state["recovery"][:, i])}
        for metric in sp.metrics.resolve(config.metrics):
            pairs = scores[metric.name].transpose("pair", ...)
            square = sp.stats.square(pairs.values[..., i], pairs.source, pairs.target, config.n_seeds)
            summaries[metric.name] = sp.stats.over_pairs(square, symmetric=True)
        row[f"{prefix}l0"] = float(np.mean(state["l0"][:, i]))
        if kind == "sae":
            row["dead"] = float(np.mean(state["dead"][:, i]))
            summaries["fvu"] = sp.stats.over_seeds(state["fvu"][:, i])
        for name, summary in summaries.items():
            row |= {prefix + name: summary["mean"], f"{prefix}{name}_ci95": summary["ci95"]}
    return row


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: recovery, unexplained variance and alignment against active latents, a column a width."""
    rows, widths = results["rows"], plotting.column(results["rows"], "n_hidden")
    several = len(plotting.column(rows, "n_latents")) > 1
    rows = [{**row, "line": row["architecture"] + f", {row['n_latents']} latents" * several} for row in rows]
    names = ["recovery", "fvu", *(metric.name for metric in sp.metrics.resolve(run.config["metrics"]))]
    figure, axes = plotting.panels(len(names), len(widths), (1 + 3.6 * len(widths), 0.9 + 2.6 * len(names)), sharex="col")
    small: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "marker": ".", "markersize": 3, "label": None}
    for (line, name), (i, n_hidden) in itertools.product(zip(axes, names, strict=True), enumerate(widths)):
        axis, chosen = line[i], plotting.where(rows, n_hidden=n_hidden)
        plotting.curves(axis, plotting.of_column(chosen, name, f"{name}_ci95"), "l0", "line", log=2, linestyle="-")
        if f"random_{name}" in chosen[0]:
            plotting.curves(axis, plotting.of_column(chosen, f"random_{name}"), "random_l0", "line", log=2, **small)
        if name == "recovery":
            others = [row for row in plotting.where(results["recovery"], n_hidden=n_hidden) if row["units"] != "random_sae"]
            plotting.across(axis, others, {"sae": "published SAE"})
            axis.set_title(f"{n_hidden} hidden units")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(ylim=(0, None), xlabel="active latents a sample (L0)" if name == names[-1] else "")
        line[0].set_ylabel(LABELS.get(name, name))
    plotting.finish(figure, plotting.caption(rows), path=run.figure)


if __name__ == "__main__":
    command.main("sae_sweep", get_config(), compute, draw)

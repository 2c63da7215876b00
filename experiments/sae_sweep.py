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
from superpos import comparison, plotting
from superpos.results import Run

KINDS = {"sae": "", "random_sae": "random_"}  # trained and not; what stands before the names of its columns


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
    return config.sparsity.get(architecture, config.sparsity.get(of, ()))


def sae(config: ConfigDict, n_hidden: int, architecture: str, n_latents: int, sparsity: Any) -> sp.sae.SparseAutoencoder:
    """The SAE of a sparsity, which may be traced."""
    options = {"architecture": architecture, **config.options.get(architecture, {})}
    name = options.pop("architecture")
    if name not in sp.sae.ARCHITECTURES:
        raise ValueError(f"config names the architecture {name!r}; there are {', '.join(sp.sae.ARCHITECTURES)}.")
    kind = sp.sae.ARCHITECTURES[name]
    if "sparsity_warmup" in options:
        options["sparsity_warmup"] *= config.sae.steps
    if "most" in kind.__dataclass_fields__:  # the largest of all k, where k is traced
        options["most"] = max(ladder(config, architecture))
    return kind(n_hidden, n_latents, **{kind.ladder[0]: sparsity}, **options)


def rung_of(config: ConfigDict, architecture: str, rung: Any) -> Any:
    """The sparsity at a rung, which may be traced."""
    return jnp.asarray(ladder(config, architecture))[jnp.asarray(rung, int)]


def train(config: ConfigDict, seed: Any, data: Any, n_hidden: int, architecture: str, n_latents: int, rung: Any) -> Any:
    """The SAE of one toy model, trained and before, and how good each is."""
    settings = config.sae
    params = jax.tree.map(lambda leaf: leaf[seed], data["toys"][str(n_hidden)])
    model = sae(config, n_hidden, architecture, n_latents, rung_of(config, architecture, rung))
    key = jax.random.fold_in(jax.random.fold_in(data["keys"][seed], n_hidden), n_latents)
    init_key, fit_key = jax.random.split(key)
    start_key = jax.random.fold_in(data["start_key"], seed)

    def sample(key, n):
        return toys.toy(config, n_hidden).encode(params, toys.features(config).sample(key, n))

    start = sp.training.start(model, init_key, lambda: sample(start_key, settings.batch_size))
    schedule = optax.warmup_cosine_decay_schedule(
        settings.learning_rate if settings.warmup == 0 else 0.0, settings.learning_rate, settings.warmup, settings.steps
    )
    trained, _ = sp.fit(
        model,
        fit_key,
        sample,
        data_key=data["sae_key"],
        params=start,
        steps=settings.steps,
        batch_size=settings.batch_size,
        optimizer=optax.adam(schedule),
    )
    saes = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained, start)  # in the order of KINDS
    measures = lax.map(lambda one: measure(config, model, one, params, data["measure_key"]), saes)
    return {"toy": params, "saes": saes, **measures}


def measure(config: ConfigDict, model: sp.sae.SparseAutoencoder, params: Any, toy: Any, key: Any) -> dict[str, Any]:
    """Recovery, active latents, unexplained variance and dead latents of one SAE: a number each."""

    def add(sums, i):
        z = toys.batch(config, key, i)
        x = toys.toy(config, model.n_inputs).encode(toy, z)
        h = model.encode(params, x)
        return sp.evaluation.update(sums, x, h, model.decode(params, h, x), z), None

    sums = sp.evaluation.init(model.n_inputs, model.n_latents, config.features.n_features)
    report = sp.evaluation.report(lax.scan(add, sums, jnp.arange(toys.n_batches(config)))[0])
    return {"recovery": report.recovery["feature_recovery"].mean, "l0": report.l0, "fvu": report.fvu, "dead": report.dead}


def score(
    config: ConfigDict, a: Any, b: Any, eval_key: Any, n_hidden: int, architecture: str, n_latents: int, rung: Any
) -> dict[str, Any]:
    """Alignment of the latents of two seeds: `{metric: (kinds,)}`."""
    model = sae(config, n_hidden, architecture, n_latents, rung_of(config, architecture, rung))

    def read(state, z):
        x = toys.toy(config, n_hidden).encode(state["toy"], z)
        saes = [jax.tree.map(lambda leaf, i=i: leaf[i], state["saes"]) for i in range(len(KINDS))]
        return {kind: model.encode(params, x) for kind, params in zip(KINDS, saes, strict=True)}

    def encode(i):
        z = toys.batch(config, eval_key, i)
        return read(a, z), read(b, z)

    comparisons = [f"{kind}->{kind}" for kind in KINDS]
    return comparison.score_batches(encode, toys.n_batches(config), comparisons, config.metrics, config.eval.n_folds)[0]


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains toy models, then all SAEs on them, and tabulates."""
    toys.check(config)
    rungs = {len(ladder(config, name)) if ladder(config, name) else 0 for name in config.architectures}
    for name, n_latents in itertools.product(config.architectures, config.n_latents):
        for sparsity in ladder(config, name) or (1,):  # as plain numbers, which are checked
            sae(config, 1, name, n_latents, sparsity)
    if len(rungs) != 1 or not min(rungs):
        raise ValueError("config.sparsity needs a ladder of the same length for each of config.architectures, at least one.")
    init_key, data_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)  # the models of toy_alignment
    sae_key, start_key, measure_key = jax.random.split(jax.random.fold_in(data_key, 6), 3)
    keys = jax.random.split(init_key, config.n_seeds)
    data = {"keys": keys, "sae_key": sae_key, "start_key": start_key, "measure_key": measure_key}
    names = ["neuron", "sae", "random_sae", "oracle", *["supervised"] * bool(config.supervised.steps)]
    of_models = ConfigDict({**config.to_dict(), "sae": config.published.to_dict(), "options": {}})
    grid = {"n_hidden": config.n_hidden, "architecture": config.architectures, "n_latents": config.n_latents}
    # Whatever is wrong with the settings shows here, before anything is written.
    for values in itertools.product(*grid.values()):
        point = {**dict(zip(grid, values, strict=True)), "rung": 0.0}
        blank = jax.tree.map(lambda leaf: leaf[None], toys.toy(config, point["n_hidden"]).init(init_key))
        state = jax.eval_shape(partial(train, config, **point), 0, {**data, "toys": {str(point["n_hidden"]): blank}})
        jax.eval_shape(partial(score, config, **point), state, state, eval_key)
    widths = {"n_hidden": config.n_hidden}
    models = toys.sweep(of_models, run, partial(toys.train, of_models, names), widths, workdir=run.path / "models")
    data["toys"] = {str(n_hidden): models.load(n_hidden=n_hidden)["toy"] for n_hidden in config.n_hidden}
    saes = sp.sweep(
        partial(train, config),
        {**grid, "rung": [float(rung) for rung in range(min(rungs))]},
        np.arange(config.n_seeds),
        score=partial(score, config),
        pairs="unordered",
        data_key=data,
        eval_key=eval_key,
        chunk=config.chunk or None,
        workdir=run.path / "saes",
    )
    rows = []
    for values, rung in itertools.product(itertools.product(*grid.values()), range(min(rungs))):
        point = dict(zip(grid, values, strict=True))
        at = {**point, "rung": float(rung)}
        row = tabulate(config, saes.load(**at), saes.scores.sel(at))
        rows.append({**point, "sparsity": ladder(config, point["architecture"])[rung], **row, "n_seeds": config.n_seeds})
    return run.finish(
        rows,
        {stage: models.seconds[stage] + saes.seconds[stage] for stage in ("compile", "run")},
        recovery=toys.recovery_rows(config, names, models.states),
        n_scored=toys.n_batches(config) * config.eval.batch_size,
    )


def tabulate(config: ConfigDict, state: Any, scores: Any) -> dict[str, Any]:
    """Mean over seeds of what is measured of one SAE, over pairs of what is measured of two, with intervals."""
    row: dict[str, Any] = {}
    for i, (kind, prefix) in enumerate(KINDS.items()):
        summaries = {"recovery": sp.stats.over_seeds(state["recovery"][:, i])}
        for metric in sp.metrics.resolve(config.metrics):
            square = np.full((config.n_seeds, config.n_seeds), np.nan)
            pairs = scores[metric.name].transpose("pair", ...)
            square[pairs.source, pairs.target] = pairs.values[..., i]
            summaries[metric.name] = sp.stats.over_pairs(square, symmetric=True)
        row[f"{prefix}l0"] = float(np.mean(state["l0"][:, i]))
        if kind == "sae":
            row["dead"] = float(np.mean(state["dead"][:, i]))
            summaries["fvu"] = sp.stats.over_seeds(state["fvu"][:, i])
        for name, summary in summaries.items():
            row |= {prefix + name: summary["mean"], f"{prefix}{name}_ci95": summary["ci95"]}
    return row


LABELS = {"recovery": "feature recovery (r)", "fvu": "variance unexplained", "soft_match": "soft-matching of seeds (r)"}


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: recovery, unexplained variance and alignment against active latents, a column a width."""
    widths = list(dict.fromkeys(row["n_hidden"] for row in results["rows"]))
    several = len({row["n_latents"] for row in results["rows"]}) > 1
    rows = [
        {**row, "line": row["architecture"] + (f", {row['n_latents']} latents" if several else "")} for row in results["rows"]
    ]
    metrics = run.config["metrics"]
    names = ["recovery", "fvu", *([metrics] if isinstance(metrics, str) else metrics)]
    figure, axes = plotting.panels(len(names), len(widths), (1 + 3.6 * len(widths), 0.9 + 2.6 * len(names)), sharex="col")
    for (line, name), (axis_number, n_hidden) in itertools.product(zip(axes, names, strict=True), enumerate(widths)):
        axis = line[axis_number]
        chosen = [row for row in rows if row["n_hidden"] == n_hidden]
        shown = [{**row, "mean": row[name], "ci95": row[f"{name}_ci95"]} for row in chosen]
        plotting.curves(axis, shown, "l0", "line", log=2, linestyle="-")
        if f"random_{name}" in chosen[0]:
            untrained = [{**row, "mean": row[f"random_{name}"], "ci95": None} for row in chosen]
            small: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "marker": ".", "markersize": 3, "label": None}
            plotting.curves(axis, untrained, "random_l0", "line", log=2, **small)
        if name == "recovery":
            _across(axis, [row for row in results["recovery"] if row["n_hidden"] == n_hidden and row["units"] != "random_sae"])
            axis.set_title(f"{n_hidden} hidden units")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("active latents a sample (L0)" if name == names[-1] else "")
        line[0].set_ylabel(LABELS.get(name, name))
    plotting.finish(figure, plotting.caption(rows))
    plotting.save(figure, run.figure)


def _across(axis, rows):
    """A line across for each way to read the same models, with its name at the right."""
    rows = sorted(rows, key=lambda row: row["mean"], reverse=True)
    apart, above = 0.035 * rows[0]["mean"], float("inf")  # names of lines that lie closer than this stand below each other
    for row in rows:
        look = plotting.style(row["units"])
        axis.axhline(row["mean"], color=look["color"], linestyle=":", linewidth=1)
        above = min(row["mean"], above - apart)
        name = "published SAE" if row["units"] == "sae" else look["label"]
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axis.annotate(name, (1, above), (2, -2), fontsize=7, color="#444444", **place)


if __name__ == "__main__":
    command.main("sae_sweep", get_config(), compute, draw)

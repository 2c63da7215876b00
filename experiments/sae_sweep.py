"""Which sparse autoencoder finds the features of toy models, at which sparsity?

Trains SAEs of every architecture, over a ladder of sparsities, on the hidden units of the same toy models (those of
`toy_alignment`), with one budget of data and no supervision; all see the same features in the same order. Look at feature
recovery against the number of active latents, beside what could be read at most (the oracle, sparse inference with the true
weights, and a network trained on the true features) and what the same SAEs show untrained (dashed; those that are given k are
as sparse as the trained ones, the others as chance has it); at the share of variance that is left unexplained, which an SAE
can lower without finding features; and at whether latents of two seeds match (sae->sae), which is what disentangling is for.

The ladders, which are those of the classes (`sp.sae.TopK.ladder`), and the options below are the best of those tried with the
models of seed 0; the study's eight include these models.

Sources: of each architecture in its docstring (`python -m pydoc superpos.sae.topk`); of the models Longon, Klindt & Khosla,
arXiv 2510.03186.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command, toy_alignment
from superpos import plotting
from superpos.results import Run

KINDS = ("sae", "random_sae")


def get_config() -> ConfigDict:
    """Every setting; toy models, oracle, supervised network and published SAE are those of `toy_alignment`."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_seeds = 8  # models of each width, each with an SAE of every kind
    config.n_hidden = (16, 32)  # widths
    config.chunk = 0  # models in flight at once; 0: as many as fit into memory
    config.metrics = ("soft_match",)  # of alignment between latents
    config.architectures = (*sp.sae.ARCHITECTURES, "topk_rectified")  # of `sp.sae`, or variants: see options
    config.n_latents = (64,)
    # How sparse: k, or the coefficient of the penalty; every ladder has as many rungs.
    config.sparsity = ConfigDict(
        {name: kind.ladder[1] for name, kind in sp.sae.ARCHITECTURES.items()} | {"topk_rectified": sp.sae.TopK.ladder[1]}
    )
    # Options that differ from the defaults of `sp.sae`, but that sparsity_warmup is a share of the steps; a variant names its
    # architecture too. Hidden units of these models are rectified, and reconstructions may be.
    config.options = ConfigDict(
        {
            "nonnegative": {"signed": True, "rectified": True, "sparsity_warmup": 0.75, "sparsity_start": 10.0},
            "topk_rectified": {"architecture": "topk", "rectified": True},
        }
    )
    config.sae = ConfigDict({"steps": 8_000, "batch_size": 1024, "learning_rate": 3e-3, "warmup": 0})  # cosine decay
    # n_samples is rounded up, so that each fold is made of whole batches.
    config.eval = ConfigDict({"n_samples": 51_200, "batch_size": 512, "n_folds": 5})
    defaults = toy_alignment.get_config()
    config.features, config.toy = defaults.features, defaults.toy
    config.published = defaults.sae
    config.oracle, config.supervised = defaults.oracle, defaults.supervised
    return config


class Study:
    """The pure functions: `train` one SAE on one toy model, `score` two of a kind."""

    def __init__(self, config: ConfigDict):
        self.config = config
        settings = ConfigDict({**config.to_dict(), "sae": config.published.to_dict()})
        self.toys = toy_alignment.Study(settings)
        self.kinds = {name: self._kind(name) for name in config.architectures}
        self.rungs = np.array([len(config.sparsity.get(name, ())) for name in self.kinds])
        if not len(self.rungs) or len(set(self.rungs)) > 1 or not self.rungs[0]:
            raise ValueError(
                "config.sparsity needs a ladder of the same length for each of config.architectures, at least one."
            )
        for (name, kind), n_latents in itertools.product(self.kinds.items(), config.n_latents):
            for sparsity in config.sparsity[name]:  # as plain numbers, which are checked
                kind(1, n_latents, **{kind.ladder[0]: sparsity})

    def _kind(self, name):
        """The class of an architecture or a variant of one."""
        architecture = self.config.options.get(name, {}).get("architecture", name)
        if architecture not in sp.sae.ARCHITECTURES:
            raise ValueError(f"config names the architecture {architecture!r}; there are {', '.join(sp.sae.ARCHITECTURES)}.")
        return sp.sae.ARCHITECTURES[architecture]

    def sae(self, n_hidden: int, architecture: str, n_latents: int, rung: Any) -> sp.sae.SparseAutoencoder:
        """The SAE at a rung of its ladder, which may be traced."""
        ladder = self.config.sparsity[architecture]
        options = dict(self.config.options.get(architecture, {}))
        options.pop("architecture", None)
        if "sparsity_warmup" in options:
            options["sparsity_warmup"] *= self.config.sae.steps
        kind = self.kinds[architecture]
        if "most" in kind.__dataclass_fields__:  # a k that is traced has a bound
            options["most"] = max(ladder)
        options[kind.ladder[0]] = jnp.asarray(ladder)[jnp.asarray(rung, int)]
        return kind(n_hidden, n_latents, **options)

    def train(self, seed, data, n_hidden, architecture, n_latents, rung):
        """The SAE of one toy model, before (`random_sae`) and after (`sae`) training, and how good each is."""
        settings = self.config.sae
        toy = jax.tree.map(lambda leaf: leaf[seed], data["toys"][str(n_hidden)])
        sae = self.sae(n_hidden, architecture, n_latents, rung)
        key = jax.random.fold_in(data["keys"][seed], n_hidden)
        init_key, fit_key = jax.random.split(jax.random.fold_in(key, n_latents))

        start_key = jax.random.fold_in(data["start_key"], seed)

        def sample(key, n):
            return self.toys.toy(n_hidden).encode(toy, self.toys.features.sample(key, n))

        start = sp.training.start(sae, init_key, lambda: sample(start_key, settings.batch_size))
        schedule = optax.warmup_cosine_decay_schedule(
            settings.learning_rate if settings.warmup == 0 else 0.0, settings.learning_rate, settings.warmup, settings.steps
        )
        trained, _ = sp.fit(
            sae,
            fit_key,
            sample,
            data_key=data["sae_key"],
            params=start,
            steps=settings.steps,
            batch_size=settings.batch_size,
            optimizer=optax.adam(schedule),
        )
        saes = jax.tree.map(lambda *leaves: jnp.stack(leaves), trained, start)  # in the order of KINDS
        return {"toy": toy, "saes": saes, **lax.map(lambda params: self.measure(sae, params, toy, data["measure_key"]), saes)}

    def measure(self, sae, params, toy, key):
        """Recovery, active latents, unexplained variance and dead latents of one SAE: a number each."""

        def add(sums, i):
            z = self.toys.features.sample(jax.random.fold_in(key, i), self.config.eval.batch_size)
            x = self.toys.toy(sae.n_inputs).encode(toy, z)
            h = sae.encode(params, x)
            return sp.evaluation.update(sums, x, h, sae.decode(params, h, x), z), None

        sums = sp.evaluation.init(sae.n_inputs, sae.n_latents, self.toys.features.n_features)
        report = sp.evaluation.report(lax.scan(add, sums, jnp.arange(self.toys.eval_batches))[0])
        return {"recovery": report.recovery["feature_recovery"].mean, "l0": report.l0, "fvu": report.fvu, "dead": report.dead}

    def score(self, state_a, state_b, eval_key, n_hidden, architecture, n_latents, rung):
        """Alignment of the latents of two seeds: `{metric: (kinds,)}`."""
        sae, toy = self.sae(n_hidden, architecture, n_latents, rung), self.toys.toy(n_hidden)
        metrics = self.config.metrics

        def compare(saes):
            def both(z):
                return tuple(
                    sae.encode(params, toy.encode(state["toy"], z))
                    for params, state in zip(saes, (state_a, state_b), strict=True)
                )

            scores = sp.score(self.toys.moments(eval_key, both, sp.reads(metrics)), metrics)
            return {name: score.mean for name, score in scores.items()}

        return lax.map(compare, (state_a["saes"], state_b["saes"]))


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains toy models, then all SAEs on them, and tabulates."""
    if config.n_seeds < 2:
        raise ValueError(f"config.n_seeds must be at least 2, to have a pair to compare, got {config.n_seeds}.")
    study = Study(config)
    init_key, data_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)  # the models of toy_alignment
    keys = jax.random.split(init_key, config.n_seeds)
    sae_key, start_key, measure_key = jax.random.split(jax.random.fold_in(data_key, 6), 3)
    grid = {
        "n_hidden": config.n_hidden,
        "architecture": config.architectures,
        "n_latents": config.n_latents,
        "rung": [float(rung) for rung in range(study.rungs[0])],
    }
    # Whatever is wrong with the settings shows here, before anything is written.
    data = {"keys": keys, "sae_key": sae_key, "start_key": start_key, "measure_key": measure_key}
    for n_hidden, architecture, n_latents in itertools.product(config.n_hidden, config.architectures, config.n_latents):
        jax.eval_shape(lambda n_hidden=n_hidden: study.toys.train(keys[0], data_key, n_hidden))
        point = {"n_hidden": n_hidden, "architecture": architecture, "n_latents": n_latents, "rung": 0.0}
        blank = study.toys.toy(n_hidden).init(init_key)
        toys = {str(n_hidden): jax.tree.map(lambda leaf: leaf[None], blank)}
        state = jax.eval_shape(functools.partial(study.train, **point), 0, {**data, "toys": toys})
        jax.eval_shape(functools.partial(study.score, **point), state, state, eval_key)
    run.claim()

    models = sp.sweep(
        study.toys.train,
        {"n_hidden": config.n_hidden},
        keys,
        data_key=data_key,
        chunk=config.chunk or None,
        workdir=run.path / "models",
    )
    data["toys"] = {}
    for n_hidden in config.n_hidden:
        toy = models.load(n_hidden=n_hidden)["toy"]
        data["toys"][str(n_hidden)] = {**toy, "W": toy["W"][..., :n_hidden]}  # without the silent units that fill it up
    found = sp.sweep(
        study.train,
        grid,
        np.arange(config.n_seeds),
        score=study.score,
        pairs="unordered",
        data_key=data,
        eval_key=eval_key,
        chunk=config.chunk or None,
        workdir=run.path / "saes",
    )
    recovery = toy_alignment.recovery_rows(study.toys, models.states)
    seconds = {stage: models.seconds[stage] + found.seconds[stage] for stage in ("compile", "run")}
    n_scored = study.toys.eval_batches * config.eval.batch_size
    return run.finish(tabulate(study, found), seconds, recovery=recovery, n_scored=n_scored)


def tabulate(study: Study, found: sp.sweeps.Results) -> list[dict[str, Any]]:
    """A row for each point: mean over seeds of what is measured of one SAE, over pairs of what is measured of two."""
    config, rows = study.config, []
    metrics = sp.metrics.resolve(config.metrics)
    for n_hidden, architecture, n_latents in itertools.product(config.n_hidden, config.architectures, config.n_latents):
        for rung, sparsity in enumerate(config.sparsity[architecture]):
            point = {"n_hidden": n_hidden, "architecture": architecture, "n_latents": n_latents}
            state = found.load(**point, rung=float(rung))
            scores = found.scores.sel(**point, rung=float(rung))
            row = {**point, "sparsity": sparsity}
            for i, (kind, prefix) in enumerate(zip(KINDS, ("", "random_"), strict=True)):
                summaries = {"recovery": sp.stats.over_seeds(state["recovery"][:, i])}
                for metric in metrics:
                    values = np.full((config.n_seeds, config.n_seeds), np.nan)
                    pairs = scores[metric.name].transpose("pair", ...)
                    values[pairs.source, pairs.target] = pairs.values[..., i]
                    summaries[metric.name] = sp.stats.over_pairs(values, symmetric=True)
                row[f"{prefix}l0"] = float(np.mean(state["l0"][:, i]))
                if kind == "sae":
                    row["dead"] = float(np.mean(state["dead"][:, i]))
                    summaries["fvu"] = sp.stats.over_seeds(state["fvu"][:, i])
                for name, summary in summaries.items():
                    row |= {prefix + name: summary["mean"], f"{prefix}{name}_ci95": summary["ci95"]}
            rows.append({**row, "n_seeds": config.n_seeds})
    return rows


# Okabe & Ito's palette, and markers, so that nine lines can be told apart.
STYLES = {
    "vanilla": ("#999999", "o"),
    "topk": ("#0072B2", "s"),
    "batch_topk": ("#56B4E9", "D"),
    "jumprelu": ("#E69F00", "^"),
    "gated": ("#D55E00", "v"),
    "matryoshka": ("#F0C75E", "P"),
    "matching_pursuit": ("#CC79A7", "X"),
    "archetypal": ("#000000", "*"),
    "nonnegative": ("#009E73", "h"),
    "topk_rectified": ("#5C3D99", "p"),
}


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: recovery, unexplained variance and alignment against active latents, a column a width."""
    rows, recovery = results["rows"], results["recovery"]
    widths = list(dict.fromkeys(row["n_hidden"] for row in rows))
    metrics = run.config["metrics"]
    names = ["recovery", "fvu", *([metrics] if isinstance(metrics, str) else metrics)]
    labels = {"recovery": "feature recovery (r)", "fvu": "variance unexplained", "soft_match": "soft-matching of seeds (r)"}
    figure, axes = plotting.panels(len(names), len(widths), (1 + 3.6 * len(widths), 0.9 + 2.6 * len(names)), sharex="col")
    for (line, name), (j, n_hidden) in itertools.product(zip(axes, names, strict=True), enumerate(widths)):
        axis = line[j]
        for architecture, n_latents in dict.fromkeys((row["architecture"], row["n_latents"]) for row in rows):
            chosen = [
                {**row, "mean": row[name], "ci95": row[f"{name}_ci95"]}
                for row in rows
                if (row["n_hidden"], row["architecture"], row["n_latents"]) == (n_hidden, architecture, n_latents)
            ]
            chosen.sort(key=lambda row: row["l0"])
            colour, marker = STYLES.get(architecture, ("#444444", "."))
            several = len({row["n_latents"] for row in rows}) > 1
            axis.errorbar(
                [row["l0"] for row in chosen],
                plotting.means(chosen),
                yerr=plotting.errors(chosen),
                label=f"{architecture}, {n_latents} latents" if several else architecture,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.2,
                capsize=2,
            )
            if f"random_{name}" in chosen[0]:
                chosen.sort(key=lambda row: row["random_l0"])
                untrained = [[row[f"random_{measure}"] for row in chosen] for measure in ("l0", name)]
                axis.plot(*untrained, color=colour, linestyle="--", linewidth=0.8, marker=".", markersize=3)
        if name == "recovery":
            lines = [row for row in recovery if row["n_hidden"] == n_hidden and row["units"] != "random_sae"]
            lines.sort(key=lambda row: row["mean"], reverse=True)
            apart = 0.035 * lines[0]["mean"]  # names of lines that lie closer than this stand below each other
            above = float("inf")
            for row in lines:
                units = "published SAE" if row["units"] == "sae" else row["units"]
                axis.axhline(row["mean"], color=plotting.COLOURS[row["units"]], linestyle=":", linewidth=1)
                above = min(row["mean"], above - apart)
                axis.annotate(units, (1, above), (2, -2), xycoords=("axes fraction", "data"), **_SMALL)
            axis.set_title(f"{n_hidden} hidden units")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylim(bottom=0)
        if j == 0:
            axis.set_ylabel(labels.get(name, name))
    for axis in axes[-1]:
        axis.set_xlabel("active latents a sample (L0)")
    handles, found = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, found, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(plotting.caption(rows), fontsize=9, color="#444444")
    plotting.save(figure, run.figure)


_SMALL = {"textcoords": "offset points", "fontsize": 7, "color": "#444444"}


if __name__ == "__main__":
    command.main("sae_sweep", get_config(), compute, draw)

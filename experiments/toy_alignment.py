"""Do toy models of superposition look more alike once their hidden units are disentangled?

Trains toy models of several widths and seeds on the same features, and a TopK SAE on the hidden units of each; scores every
pair of seeds on features that none was trained on. Look at whether sae->sae rises above neuron->neuron, at the random_sae
controls (an SAE at its initialisation), and at feature recovery, which says how much the SAE found: where it found little
(8 hidden units), matching latents is no better than matching neurons.

Protocol: Longon, Klindt & Khosla, arXiv 2510.03186, toy models, as in their published code.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import COMPARISONS, command
from superpos import plotting, sweeps
from superpos.results import Run
from superpos.training import tick

REPRESENTATIONS = ("neuron", "sae", "random_sae")


def get_config() -> ConfigDict:
    """Every setting, with the published protocol as default."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_seeds = 8  # models of each width
    config.n_hidden = (8, 16, 32)  # widths
    config.metrics = sp.alignment.DEFAULT
    config.features = ConfigDict({"n_features": 64, "probability": 0.1, "importance_exponent": 2.0})
    config.toy = ConfigDict({"steps": 10_000, "batch_size": 1024, "learning_rate": 1e-3, "weight_decay": 0.01})
    config.sae = ConfigDict(
        {
            "n_latents": 64,
            "k": 7,
            "aux_weight": 0.1,
            "steps": 8_000,
            "batch_size": 1024,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
        }
    )
    # n_samples is rounded up, so that each fold is made of whole batches.
    config.eval = ConfigDict({"n_samples": 204_800, "batch_size": 4096, "n_folds": 5})
    return config


class Study:
    """The pure functions of one width: `train` one model, `score` one pair, `recover` the features from one model."""

    def __init__(self, config: ConfigDict, n_hidden: int):
        settings = config.features
        self.config = config
        self.n_hidden = n_hidden
        self.features = sp.features.SparseFeatures(settings.n_features, settings.probability)
        importance = sp.features.power_law(settings.n_features, settings.importance_exponent)
        self.toy = sp.toy.ToyModel(settings.n_features, n_hidden, importance)
        self.sae = sp.sae.TopK(n_hidden, config.sae.n_latents, config.sae.k, config.sae.aux_weight)
        # Each fold is a run of batches of its own: samples are independent, so any split is as good as a shuffled one.
        n_folds, batch_size = config.eval.n_folds, config.eval.batch_size
        if n_folds < 2 or batch_size < 2 or config.eval.n_samples < 2 * n_folds:
            raise ValueError("config.eval needs at least 2 folds, and at least 2 samples in each fold and batch.")
        self.eval_batches = n_folds * -(-config.eval.n_samples // (n_folds * batch_size))

    def train(self, key, data_key, reports=(None, None)):
        """One toy model, an SAE on its hidden units, and that SAE as it was before training."""
        toy_key, init_key, sae_key = jax.random.split(key, 3)
        toy_data, sae_data = jax.random.split(data_key)
        toy, toy_history = sp.fit(
            self.toy,
            toy_key,
            self.features.sample,
            data_key=toy_data,
            report=reports[0],
            **_optimisation(self.config.toy),
        )
        random_sae = self.sae.init(init_key)
        sae, sae_history = sp.fit(
            self.sae,
            sae_key,
            lambda key, n: self.toy.encode(toy, self.features.sample(key, n)),
            data_key=sae_data,
            params=random_sae,
            report=reports[1],
            **_optimisation(self.config.sae),
        )
        losses = {"toy_loss": toy_history["loss"][-100:].mean(), "sae_loss": sae_history["loss"][-100:].mean()}
        return {"toy": toy, "sae": sae, "random_sae": random_sae, **losses}

    def represent(self, state, z):
        """All representations of one model side by side, `(samples, n_hidden + 2 n_latents)`: see `units`."""
        hidden = self.toy.encode(state["toy"], z)
        codes = [self.sae.encode(state[name], hidden) for name in ("sae", "random_sae")]
        return jnp.concatenate([hidden, *codes], axis=1)

    def units(self, name):
        """Which columns of `represent` belong to a representation, padded to one length with indices out of range."""
        sizes = {"neuron": self.n_hidden, "sae": self.sae.n_latents, "random_sae": self.sae.n_latents}
        first = sum(sizes[earlier] for earlier in REPRESENTATIONS[: REPRESENTATIONS.index(name)])
        padding = np.full(max(sizes.values()) - sizes[name], sum(sizes.values()))
        return np.concatenate([np.arange(first, first + sizes[name]), padding])

    def score(self, state_a, state_b, eval_key, report=None):
        """Mean score of one pair of models: `{metric: (comparisons,)}`, and the largest duality gap."""
        moments = self._moments(
            eval_key,
            lambda z: (self.represent(state_a, z), self.represent(state_b, z)),
            sp.reads(self.config.metrics),
            report,
        )

        def compare(units):
            scores = sp.score(sp.moments.select(moments, *units), self.config.metrics)
            gaps = [jnp.max(score.details["gap"]) for score in scores.values() if "gap" in score.details]
            return {metric: score.mean for metric, score in scores.items()}, jnp.max(jnp.stack([jnp.zeros(()), *gaps]))

        sides = np.array([[self.units(name) for name in comparison.split("->")] for comparison in COMPARISONS])
        scores, gaps = lax.map(compare, jnp.asarray(sides))  # one after the other: compiled once, and memory stays small
        return scores, jnp.max(gaps)

    def recover(self, state, eval_key):
        """Mean over features of the highest correlation with any unit: `{representation: scalar}`."""
        moments = self._moments(eval_key, lambda z: (self.represent(state, z), z), {"xy"})
        moments = sp.moments.pool(moments, jnp.ones((1, moments.n_folds), bool))
        features = np.arange(self.features.n_features)
        recovery = sp.metrics.FeatureRecovery()
        return {name: recovery(sp.moments.select(moments, self.units(name), features)).mean for name in REPRESENTATIONS}

    def _moments(self, eval_key, sides, reads, report=None):
        """Moments of both sides over the evaluation samples."""
        n_folds = self.config.eval.n_folds

        def add(moments, i):
            z = self.features.sample(jax.random.fold_in(eval_key, i), self.config.eval.batch_size)
            moments = sp.moments.update(moments, *sides(z), i % n_folds)
            tick(report, i, self.eval_batches, 5)
            return moments, None

        x, y = jax.eval_shape(sides, jax.ShapeDtypeStruct((1, self.features.n_features), jnp.result_type(float)))
        empty = sp.moments.init(x.shape[1], y.shape[1], n_folds, reads)
        return lax.scan(add, empty, jnp.arange(self.eval_batches))[0]


def _optimisation(settings):
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay),
    }


def build(config: ConfigDict, reporter: Callable[[], Callable[[int], None] | None] = lambda: None) -> Callable[[Any], Any]:
    """The whole study as one pure function of a key: a dict for each width, with leading axes of seeds or pairs."""
    sp.metrics.resolve(config.metrics)
    studies = [Study(config, n_hidden) for n_hidden in config.n_hidden]

    def everything(key):
        init_key, data_key, eval_key, recovery_key = jax.random.split(key, 4)
        results = []
        for study in studies:
            reports = reporter(), reporter()
            scored = reporter()
            seeds = jax.random.split(jax.random.fold_in(init_key, study.n_hidden), config.n_seeds)
            train = functools.partial(study.train, reports=reports)
            score = functools.partial(study.score, report=scored)
            states = sweeps.map_seeds(train, seeds, data_key)
            # Nested, so that what depends on one model only is computed once a model, not once a pair.
            scores, gap = sweeps.map_seeds(jax.vmap(score, (None, 0, None)), states, states, eval_key)
            recovery = sweeps.map_seeds(study.recover, states, recovery_key)
            results.append({"states": states, "scores": scores, "gap": jnp.max(gap), "recovery": recovery})
        return results

    return everything


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Compiles and runs the study, and tabulates it."""
    if config.n_seeds < 2:
        raise ValueError(f"config.n_seeds must be at least 2, to have a pair to compare, got {config.n_seeds}.")
    if not config.n_hidden:
        raise ValueError("config.n_hidden is empty: name at least one width.")
    study = Study(config, config.n_hidden[0])
    steps = config.toy.steps + config.sae.steps + study.eval_batches
    with sweeps.progress(len(config.n_hidden) * steps, "toy_alignment") as reporter:
        started = time.perf_counter()
        print("Compiling the study, about half a minute; then training.", file=sys.stderr)
        lowered = jax.jit(build(config, reporter)).lower(jax.random.key(config.seed))
        run.claim()
        program = lowered.compile()
        compiled = time.perf_counter()
        results = jax.block_until_ready(program(jax.random.key(config.seed)))
        jax.effects_barrier()
        finished = time.perf_counter()
    run.save("states", {str(n): result["states"] for n, result in zip(config.n_hidden, results, strict=True)})
    rows, recovery = tabulate(config, results)
    gap = max(float(result["gap"]) for result in results)
    seconds = {"compile": compiled - started, "run": finished - compiled}
    n_scored = study.eval_batches * config.eval.batch_size
    return run.finish(rows, seconds, recovery=recovery, largest_duality_gap=gap, n_scored=n_scored)


def tabulate(config: ConfigDict, results: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of alignment and of feature recovery, statistics over seeds."""
    rows, recovery = [], []
    for n_hidden, result in zip(config.n_hidden, results, strict=True):
        for metric in sp.metrics.resolve(config.metrics):
            for i, comparison in enumerate(COMPARISONS):
                source, target = comparison.split("->")
                scores = np.asarray(result["scores"][metric.name])[..., i]
                summary = sp.stats.over_pairs(scores, symmetric=metric.symmetric and source == target)
                rows.append({"n_hidden": n_hidden, "metric": metric.name, "comparison": comparison, **summary})
        for units in REPRESENTATIONS:
            summary = sp.stats.over_seeds(result["recovery"][units])
            recovery.append({"n_hidden": n_hidden, "units": units, **summary})
    return rows, recovery


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment and recovery against width."""
    plotting.alignment_by_width(results["rows"], results["recovery"], run.figure)


if __name__ == "__main__":
    command.main("toy_alignment", get_config(), compute, draw)

"""Do toy models of superposition look more alike once their hidden units are disentangled?

Trains toy models of several widths and seeds on the same features, and a TopK SAE on the hidden units of each; scores every
pair of seeds on features that none was trained on. Look at whether sae->sae rises above neuron->neuron, at the random_sae
controls (an SAE at its initialisation), and at feature recovery, which says how much the SAE found: where it found little
(8 hidden units), matching latents is no better than matching neurons.

Protocol: Longon, Klindt & Khosla, arXiv 2510.03186, toy models, as in their published code.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

import superpos as sp
from experiments import COMPARISONS, command
from superpos import plotting
from superpos.results import Run

REPRESENTATIONS = ("neuron", "sae", "random_sae")


def get_config() -> ConfigDict:
    """Every setting, with the published protocol as default."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_seeds = 8  # models of each width
    config.n_hidden = (8, 16, 32)  # widths
    config.chunk = 0  # models, and pairs of models, in flight at once; 0: as many as fit into memory
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
    """The pure functions of the study: `train` one model of a width, `score` one pair of a width."""

    def __init__(self, config: ConfigDict):
        settings = config.features
        self.config = config
        self.metrics = sp.metrics.resolve(config.metrics)
        self.features = sp.features.SparseFeatures(settings.n_features, settings.probability)
        self.importance = sp.features.power_law(settings.n_features, settings.importance_exponent)
        self.width = max(config.n_hidden)
        # Each fold is a run of batches of its own: samples are independent, so any split is as good as a shuffled one.
        n_folds, batch_size = config.eval.n_folds, config.eval.batch_size
        if n_folds < 2 or batch_size < 2 or config.eval.n_samples < 2 * n_folds:
            raise ValueError("config.eval needs at least 2 folds, and at least 2 samples in each fold and batch.")
        self.eval_batches = n_folds * -(-config.eval.n_samples // (n_folds * batch_size))

    def toy(self, n_hidden: int) -> sp.toy.ToyModel:
        """The toy model of a width."""
        return sp.toy.ToyModel(self.config.features.n_features, n_hidden, self.importance)

    def sae(self, n_hidden: int) -> sp.sae.TopK:
        """The SAE on its hidden units."""
        return sp.sae.TopK(n_hidden, self.config.sae.n_latents, self.config.sae.k, self.config.sae.aux_weight)

    def train(self, key, data_key, n_hidden):
        """One toy model, an SAE on its hidden units before and after training, and how well all recover the features."""
        toy, sae = self.toy(n_hidden), self.sae(n_hidden)
        toy_key, init_key, sae_key = jax.random.split(jax.random.fold_in(key, n_hidden), 3)
        toy_data, sae_data, recovery_data = jax.random.split(data_key, 3)
        params, toy_history = sp.fit(toy, toy_key, self.features.sample, data_key=toy_data, **_optimisation(self.config.toy))
        random_sae = sae.init(init_key)
        trained_sae, sae_history = sp.fit(
            sae,
            sae_key,
            lambda key, n: toy.encode(params, self.features.sample(key, n)),
            data_key=sae_data,
            params=random_sae,
            **_optimisation(self.config.sae),
        )
        state = self.widen({"toy": params, "sae": trained_sae, "random_sae": random_sae})
        losses = {"toy_loss": toy_history["loss"][-100:].mean(), "sae_loss": sae_history["loss"][-100:].mean()}
        return {**state, **losses, "recovery": self.recover(state, recovery_data)}

    def widen(self, state):
        """The same models with silent hidden units added up to the largest width.

        So that models of all widths have one shape, and `score` is compiled once. Metrics mask units that are constant.
        """

        def pad(array, axis):
            widths = [(0, self.width - size if i == axis else 0) for i, size in enumerate(array.shape)]
            return jnp.pad(array, widths)

        hidden_axes = {"W": 1, "W_enc": 0, "W_dec": 1, "b_dec": 0}
        return {
            model: {name: pad(array, hidden_axes[name]) if name in hidden_axes else array for name, array in params.items()}
            for model, params in state.items()
        }

    def represent(self, state, z):
        """All representations of one model side by side, `(samples, width + 2 n_latents)`: see `units`."""
        hidden = self.toy(self.width).encode(state["toy"], z)
        codes = [self.sae(self.width).encode(state[name], hidden) for name in ("sae", "random_sae")]
        return jnp.concatenate([hidden, *codes], axis=1)

    def units(self, name):
        """Which columns of `represent` belong to a representation, padded to one length with indices out of range."""
        sizes = {"neuron": self.width, "sae": self.config.sae.n_latents, "random_sae": self.config.sae.n_latents}
        first = sum(sizes[earlier] for earlier in REPRESENTATIONS[: REPRESENTATIONS.index(name)])
        padding = np.full(max(sizes.values()) - sizes[name], sum(sizes.values()))
        return np.concatenate([np.arange(first, first + sizes[name]), padding])

    def score(self, state_a, state_b, eval_key):
        """Mean score of one pair of models: `{metric: (comparisons,)}`, and the largest duality gap."""
        reads = sp.reads(self.config.metrics)
        moments = self.moments(eval_key, lambda z: (self.represent(state_a, z), self.represent(state_b, z)), reads)

        def compare(units):
            scores = sp.score(sp.moments.select(moments, *units), self.config.metrics)
            gaps = [jnp.max(score.details["gap"]) for score in scores.values() if "gap" in score.details]
            return {metric: score.mean for metric, score in scores.items()}, jnp.max(jnp.stack([jnp.zeros(()), *gaps]))

        sides = np.array([[self.units(name) for name in comparison.split("->")] for comparison in COMPARISONS])
        scores, gaps = lax.map(compare, jnp.asarray(sides))  # one after the other: compiled once, and memory stays small
        return {**scores, "gap": jnp.max(gaps)}

    def recover(self, state, eval_key):
        """Mean over features of the highest correlation with any unit: `{representation: scalar}`."""
        moments = self.moments(eval_key, lambda z: (self.represent(state, z), z), {"xy"})
        moments = sp.moments.pool(moments, jnp.ones((1, moments.n_folds), bool))
        features = np.arange(self.features.n_features)
        recovery = sp.metrics.FeatureRecovery()
        return {name: recovery(sp.moments.select(moments, self.units(name), features)).mean for name in REPRESENTATIONS}

    def moments(self, eval_key, sides, reads):
        """Moments of both sides over the evaluation samples."""
        n_folds = self.config.eval.n_folds
        tick = sp.training.loop(self.eval_batches)

        def add(moments, i):
            z = self.features.sample(jax.random.fold_in(eval_key, i), self.config.eval.batch_size)
            tick(i)
            return sp.moments.update(moments, *sides(z), i % n_folds), None

        x, y = jax.eval_shape(sides, jax.ShapeDtypeStruct((1, self.features.n_features), jnp.result_type(float)))
        empty = sp.moments.init(x.shape[1], y.shape[1], n_folds, reads)
        return lax.scan(add, empty, jnp.arange(self.eval_batches))[0]


def _optimisation(settings):
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay),
    }


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Runs the study and tabulates it."""
    if config.n_seeds < 2:
        raise ValueError(f"config.n_seeds must be at least 2, to have a pair to compare, got {config.n_seeds}.")
    if not config.n_hidden:
        raise ValueError("config.n_hidden is empty: name at least one width.")
    if config.chunk < 0:
        raise ValueError(f"config.chunk must be at least 0, got {config.chunk}.")
    study = Study(config)
    init_key, data_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    # Whatever is wrong with the settings shows here, before anything is written.
    for n_hidden in config.n_hidden:
        state = jax.eval_shape(functools.partial(study.train, n_hidden=n_hidden), init_key, data_key)
    jax.eval_shape(study.score, state, state, eval_key)
    run.claim()
    found = sp.sweep(
        study.train,
        {"n_hidden": config.n_hidden},
        jax.random.split(init_key, config.n_seeds),
        score=study.score,
        data_key=data_key,
        eval_key=eval_key,
        chunk=config.chunk or None,
        workdir=run.path / "sweep",
    )
    rows, recovery = tabulate(config, found)
    n_scored = study.eval_batches * config.eval.batch_size
    return run.finish(
        rows, found.seconds, recovery=recovery, largest_duality_gap=float(found.scores["gap"].max()), n_scored=n_scored
    )


def tabulate(config: ConfigDict, found: sp.sweeps.Results) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of alignment and of feature recovery, statistics over seeds."""
    rows, recovery = [], []
    for n_hidden in config.n_hidden:
        scores, states = found.scores.sel(n_hidden=n_hidden), found.states.sel(n_hidden=n_hidden)
        for metric in sp.metrics.resolve(config.metrics):
            for i, comparison in enumerate(COMPARISONS):
                source, target = comparison.split("->")
                values = scores[metric.name].transpose("source", "target", ...).values[..., i]
                summary = sp.stats.over_pairs(values, symmetric=metric.symmetric and source == target)
                rows.append({"n_hidden": n_hidden, "metric": metric.name, "comparison": comparison, **summary})
        for units in REPRESENTATIONS:
            summary = sp.stats.over_seeds(states[f"recovery.{units}"].values)
            recovery.append({"n_hidden": n_hidden, "units": units, **summary})
    return rows, recovery


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment and recovery against width."""
    plotting.alignment_by_width(results["rows"], results["recovery"], run.figure)


if __name__ == "__main__":
    command.main("toy_alignment", get_config(), compute, draw)

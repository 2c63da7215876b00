"""Do toy models of superposition look more alike once their hidden units are disentangled?

Trains toy models of several widths and seeds on the same features, and a TopK SAE on the hidden units of each; scores every
pair of seeds on features that none was trained on. Look at whether sae->sae rises above neuron->neuron, at the random_sae
controls (an SAE at its initialisation), and at feature recovery, which says how much the SAE found: where it found little
(8 hidden units), matching latents is no better than matching neurons. What could be found at most is shown by two read-outs
that know what an SAE does not: the oracle, sparse inference with the true weights, and a supervised network.

Protocol: Longon, Klindt & Khosla, arXiv 2510.03186, toy models, as in their published code.
"""

import functools
from collections.abc import Sequence
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

# The last two are controls that know more than an SAE: the oracle the true weights, the supervised network the true features.
REPRESENTATIONS = ("neuron", "sae", "random_sae", "oracle", "supervised")


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
            **sp.sae.PUBLISHED,
            "n_latents": 64,
            "k": 7,
            "steps": 8_000,
            "batch_size": 1024,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
        }
    )
    # Sparse inference: elastic net with features in 0 to 1. Of these penalties, and ridges in these ratios to them, those are
    # taken that recover features best from samples of their own.
    config.oracle = ConfigDict(
        {"steps": 100, "penalties": (0.003, 0.03, 0.1, 0.3), "ridge_ratios": (0.0, 1.0, 3.0), "n_samples": 4096}
    )
    # A network that is trained on the true features; 0 steps: none.
    config.supervised = ConfigDict({"width": 256, "steps": 4_000, "batch_size": 1024, "learning_rate": 3e-3})
    # n_samples is rounded up, so that each fold is made of whole batches.
    config.eval = ConfigDict({"n_samples": 204_800, "batch_size": 512, "n_folds": 5})
    return config


class Toys:
    """The toy models of a configuration's `features` and `toy`, for every experiment that asks about them."""

    def __init__(self, config: ConfigDict):
        settings = config.features
        self.config = config
        self.features = sp.features.SparseFeatures(settings.n_features, settings.probability)
        self.importance = sp.features.power_law(settings.n_features, settings.importance_exponent)

    def toy(self, n_hidden: int) -> sp.toy.ToyModel:
        """The toy model of a width."""
        return sp.toy.ToyModel(self.config.features.n_features, n_hidden, self.importance)

    def train_toy(self, key, data_key, n_hidden, stop=None):
        """Params and history of one model, the same in all experiments; it learns for `stop` steps, by default for all."""
        toy_key, *_ = jax.random.split(jax.random.fold_in(key, n_hidden), 3)
        toy_data, *_ = jax.random.split(data_key, 5)
        sample = self.features.sample
        return sp.fit(self.toy(n_hidden), toy_key, sample, data_key=toy_data, **_optimisation(self.config.toy, stop))


class Study(Toys):
    """The pure functions of the study: `train` one model of a width, `score` one pair of a width."""

    def __init__(self, config: ConfigDict, comparisons: Sequence[str] = (*COMPARISONS, "oracle->oracle")):
        if not config.n_hidden:
            raise ValueError("config.n_hidden is empty: name at least one width.")
        if config.chunk < 0:
            raise ValueError(f"config.chunk must be at least 0, got {config.chunk}.")
        if not 0 < config.features.probability <= 1:
            raise ValueError(f"config.features.probability must be above 0 and at most 1, got {config.features.probability}.")
        super().__init__(config)
        self.comparisons = comparisons
        self.width = max(config.n_hidden)
        self.representations = [name for name in REPRESENTATIONS if name != "supervised" or config.supervised.steps]
        # Each fold is a run of batches of its own: samples are independent, so any split is as good as a shuffled one.
        n_folds, batch_size = config.eval.n_folds, config.eval.batch_size
        if n_folds < 2 or batch_size < 2 or config.eval.n_samples < 2 * n_folds:
            raise ValueError("config.eval needs at least 2 folds, and at least 2 samples in each fold and batch.")
        if (
            config.oracle.steps < 1
            or config.oracle.n_samples < 2
            or not config.oracle.penalties
            or not config.oracle.ridge_ratios
        ):
            raise ValueError("config.oracle needs at least 1 step, 2 samples, a penalty and a ridge ratio.")
        self.eval_batches = n_folds * -(-config.eval.n_samples // (n_folds * batch_size))

    def sae(self, n_hidden: int) -> sp.sae.TopK:
        """The SAE on its hidden units."""
        settings = self.config.sae
        return sp.sae.TopK(n_hidden, settings.n_latents, settings.k, **{name: settings[name] for name in sp.sae.PUBLISHED})

    def probe(self, n_hidden: int) -> sp.probe.Probe:
        """The supervised read-out of its hidden units."""
        return sp.probe.Probe(n_hidden, self.config.features.n_features, self.config.supervised.width)

    def train(self, key, data_key, n_hidden, toy_steps=None):
        """One toy model and all that disentangles its hidden units; how well each recovers every feature.

        The toy model stops learning after `toy_steps` steps, which may be traced; by default after all.
        """
        toy, sae = self.toy(n_hidden), self.sae(n_hidden)
        params, toy_history = self.train_toy(key, data_key, n_hidden, toy_steps)
        # The first of each is `train_toy`'s.
        _, init_key, sae_key = jax.random.split(jax.random.fold_in(key, n_hidden), 3)
        _, sae_data, recovery_data, oracle_data, probe_data = jax.random.split(data_key, 5)

        def sample(key, n):
            return toy.encode(params, self.features.sample(key, n))

        def sample_both(key, n):
            z = self.features.sample(key, n)
            return toy.encode(params, z), z

        batch = functools.partial(sample, jax.random.fold_in(sae_data, self.config.sae.steps), self.config.sae.batch_size)
        random_sae = sp.training.start(sae, init_key, batch)
        trained_sae, sae_history = sp.fit(
            sae, sae_key, sample, data_key=sae_data, params=random_sae, **_optimisation(self.config.sae)
        )
        models = {"toy": params, "sae": trained_sae, "random_sae": random_sae}
        if "supervised" in self.representations:
            settings = self.config.supervised
            models["supervised"], _ = sp.fit(
                self.probe(n_hidden),
                jax.random.fold_in(init_key, 1),
                sample_both,
                data_key=probe_data,
                steps=settings.steps,
                batch_size=settings.batch_size,
                optimizer=optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps)),
            )
        state = {
            **self.widen(models),
            "oracle": self.tune_oracle(params, *sample_both(oracle_data, self.config.oracle.n_samples)),
        }
        losses = {"toy_loss": toy_history["loss"][-100:].mean(), "sae_loss": sae_history["loss"][-100:].mean()}
        return {**state, **losses, "recovery": self.recover(state, recovery_data)}

    def widen(self, state):
        """The same models with silent hidden units added up to the largest width.

        So that models of all widths have one shape, and `score` is compiled once. Metrics mask units that are constant.
        """

        def pad(array, axis):
            widths = [(0, self.width - size if i == axis else 0) for i, size in enumerate(array.shape)]
            return jnp.pad(array, widths)

        hidden_axes = {"W": 1, "W_enc": 0, "W_dec": 1, "b_dec": 0, "W_in": 0}
        return {
            model: {name: pad(array, hidden_axes[name]) if name in hidden_axes else array for name, array in params.items()}
            for model, params in state.items()
        }

    def infer(self, params, settings, hidden):
        """The features that sparse inference finds behind hidden units, with the toy model's own weights."""
        steps = self.config.oracle.steps
        penalty, ridge = settings["penalty"], settings["ridge"]
        return sp.sparse_coding.fista(hidden, params["W"], penalty, ridge=ridge, upper=1.0, rectified=True, steps=steps)

    def tune_oracle(self, params, hidden, z):
        """The penalty and ridge that recover features best from some samples."""
        pairs = [
            (penalty, ratio * penalty) for penalty in self.config.oracle.penalties for ratio in self.config.oracle.ridge_ratios
        ]
        candidates = dict(zip(("penalty", "ridge"), jnp.array(pairs).T, strict=True))

        def recovery(settings):
            moments = sp.moments.init(z.shape[1], z.shape[1], 1, {"xy"})
            return sp.metrics.FeatureRecovery()(sp.moments.update(moments, self.infer(params, settings, hidden), z, 0)).mean

        best = jnp.argmax(lax.map(recovery, candidates))
        return jax.tree.map(lambda values: values[best], candidates)

    def represent(self, state, z, kinds):
        """Representations of one model side by side, `(samples, units)`: see `units`."""
        hidden = self.toy(self.width).encode(state["toy"], z)
        read = {
            "neuron": lambda: hidden,
            "sae": lambda: self.sae(self.width).encode(state["sae"], hidden),
            "random_sae": lambda: self.sae(self.width).encode(state["random_sae"], hidden),
            "oracle": lambda: self.infer(state["toy"], state["oracle"], hidden),
            "supervised": lambda: self.probe(self.width).encode(state["supervised"], hidden),
        }
        return jnp.concatenate([read[kind]() for kind in kinds], axis=1)

    def units(self, name, kinds):
        """Which columns of `represent` belong to a representation, padded to one length with indices out of range."""
        n_latents, n_features = self.config.sae.n_latents, self.config.features.n_features
        every = dict(zip(REPRESENTATIONS, (self.width, n_latents, n_latents, n_features, n_features), strict=True))
        sizes = [every[kind] for kind in kinds]
        at = kinds.index(name)
        first = sum(sizes[:at])
        return np.concatenate([np.arange(first, first + sizes[at]), np.full(max(sizes) - sizes[at], sum(sizes))])

    def score(self, state_a, state_b, eval_key):
        """Mean score of one pair of models: `{metric: (comparisons,)}`, and the largest duality gap."""
        sides = [comparison.split("->") for comparison in self.comparisons]
        kinds = [kind for kind in self.representations if any(kind in side for side in sides)]
        reads = sp.reads(self.config.metrics)
        both = lambda z: (self.represent(state_a, z, kinds), self.represent(state_b, z, kinds))  # noqa: E731
        moments = self.moments(eval_key, both, reads)

        def compare(units):
            scores = sp.score(sp.moments.select(moments, *units), self.config.metrics)
            gaps = [jnp.max(score.details["gap"]) for score in scores.values() if "gap" in score.details]
            return {metric: score.mean for metric, score in scores.items()}, jnp.max(jnp.stack([jnp.zeros(()), *gaps]))

        columns = np.array([[self.units(name, kinds) for name in side] for side in sides])
        scores, gaps = lax.map(compare, jnp.asarray(columns))  # one after the other: compiled once, and memory stays small
        return {**scores, "gap": jnp.max(gaps)}

    def recover(self, state, eval_key):
        """Each feature's highest correlation with any unit: `{representation: (n_features,)}`."""
        kinds = self.representations
        moments = self.moments(eval_key, lambda z: (self.represent(state, z, kinds), z), {"xy"})
        moments = sp.moments.pool(moments, jnp.ones((1, moments.n_folds), bool))
        features = np.arange(self.features.n_features)
        recovery = sp.metrics.FeatureRecovery()
        columns = {name: self.units(name, kinds) for name in kinds}
        return {name: recovery(sp.moments.select(moments, units, features)).units[0] for name, units in columns.items()}

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


def _optimisation(settings, stop=None):
    rate = settings.learning_rate
    # Steps at a rate of 0 leave the model as it is, decay included.
    schedule = rate if stop is None else lambda count: jnp.where(count < stop, rate, 0.0)
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "optimizer": optax.adamw(schedule, weight_decay=settings.weight_decay),
    }


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Runs the study and tabulates it."""
    study = Study(config)
    if config.n_seeds < 2:
        raise ValueError(f"config.n_seeds must be at least 2, to have a pair to compare, got {config.n_seeds}.")
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
    rows, recovery = tabulate(study, found), recovery_rows(study, found.states)
    n_scored = study.eval_batches * config.eval.batch_size
    return run.finish(
        rows, found.seconds, recovery=recovery, largest_duality_gap=float(found.scores["gap"].max()), n_scored=n_scored
    )


def tabulate(study: Study, found: sp.sweeps.Results) -> list[dict[str, Any]]:
    """Rows of alignment, statistics over pairs of seeds."""
    rows = []
    for n_hidden in study.config.n_hidden:
        scores = found.scores.sel(n_hidden=n_hidden)
        for metric in sp.metrics.resolve(study.config.metrics):
            for i, comparison in enumerate(study.comparisons):
                source, target = comparison.split("->")
                values = scores[metric.name].transpose("source", "target", ...).values[..., i]
                summary = sp.stats.over_pairs(values, symmetric=metric.symmetric and source == target)
                rows.append({"n_hidden": n_hidden, "metric": metric.name, "comparison": comparison, **summary})
    return rows


def recovery_rows(study: Study, states: Any) -> list[dict[str, Any]]:
    """Rows of feature recovery, statistics over seeds of the mean over features; `states` are those of a sweep of `train`."""
    rows = []
    for n_hidden in study.config.n_hidden:
        for units in study.representations:
            recovery = states[f"recovery.{units}"].sel(n_hidden=n_hidden)
            rows.append({"n_hidden": n_hidden, "units": units, **sp.stats.over_seeds(recovery.mean(recovery.dims[-1]).values)})
    return rows


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: alignment and recovery against width."""
    plotting.alignment_by_width(results["rows"], results["recovery"], run.figure)


if __name__ == "__main__":
    command.main("toy_alignment", get_config(), compute, draw)

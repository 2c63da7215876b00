"""What experiments with toy models share: settings, how models are trained and read, and how what is read is scored.

With the same settings every experiment has the same models: keys are derived here, and nowhere else.
"""

import inspect
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import comparison
from superpos.results import Run, did_you_mean
from superpos.views import SAE, VIEWS, View, encode_all, fit_all, shared

# Views that read units which are always silent as if they were not there: weights of 0 for them change nothing.
BLIND = frozenset(("neuron", "sae", "random_sae", "oracle", "supervised", "ica", "pca", "signed_pca", "reconstruction", "both"))


def get_config() -> ConfigDict:
    """The settings that experiments share, with the published protocol as default."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_seeds = 8  # models of each width
    config.n_hidden = (8, 16, 32)  # widths
    config.chunk = 0  # models, and pairs of models, in flight at once; 0: as many as fit into memory
    config.features = ConfigDict({"n_features": 64, "probability": 0.1, "importance_exponent": 2.0})
    config.toy = ConfigDict({"steps": 10_000, "batch_size": 1024, "learning_rate": 1e-3, "weight_decay": 0.01})
    config.sae = ConfigDict({**sp.sae.PUBLISHED, "n_latents": 64, "k": 7, **config.toy.to_dict(), "steps": 8_000})
    # Sparse inference: elastic net with features in 0 to 1. Of these penalties, and ridges in these ratios to them, those are
    # taken that recover features best from samples of their own.
    tried = {"penalties": (0.003, 0.03, 0.1, 0.3), "ridge_ratios": (0.0, 1.0, 3.0)}
    config.oracle = ConfigDict({"steps": 100, "n_samples": 4096, **tried})
    # A network that is trained on the true features; 0 steps: none.
    config.supervised = ConfigDict({"width": 256, "steps": 4_000, "batch_size": 1024, "learning_rate": 3e-3})
    # Settings of other views that differ from their defaults, by name of the view.
    config.options = ConfigDict({"ica": {"max_samples": 16_384}})
    # n_samples is rounded up, so that each fold is made of whole batches.
    config.eval = ConfigDict({"n_samples": 204_800, "batch_size": 512, "n_folds": 5})
    return config


def check(config: ConfigDict, n_seeds: int = 2) -> None:
    """Refuses settings that no experiment with toy models takes, before anything is traced."""
    command.at_least(config, {"n_seeds": n_seeds, "chunk": 0})  # two, to have a pair to compare
    if not config.n_hidden:
        raise ValueError("config.n_hidden is empty: name at least one width.")
    if not 0 < config.features.get("probability", 1) <= 1:
        raise ValueError(f"config.features.probability must be above 0 and at most 1, got {config.features.probability}.")
    scored = config.get("eval")
    if scored and (min(scored.n_folds, scored.batch_size) < 2 or scored.n_samples < 2 * scored.n_folds):
        raise ValueError("config.eval needs at least 2 folds, and at least 2 samples in each fold and batch.")


def features(config: ConfigDict) -> sp.features.SparseFeatures:
    """What all models represent."""
    return sp.features.SparseFeatures(config.features.n_features, config.features.probability)


def toy(config: ConfigDict, n_hidden: int) -> sp.toy.ToyModel:
    """The toy model of a width."""
    n_features, exponent = config.features.n_features, config.features.importance_exponent
    return sp.toy.ToyModel(n_features, n_hidden, sp.features.power_law(n_features, exponent))


def train_toy(config: ConfigDict, key: Any, data_key: Any, n_hidden: int, stop: Any = None) -> tuple[Any, Any]:
    """Params and history of one toy model; it learns for `stop` steps, which may be traced, by default for all."""
    settings, rate = config.toy, config.toy.learning_rate
    # Steps at a rate of 0 leave the model as it is, decay included.
    schedule = rate if stop is None else lambda count: jnp.where(count < stop, rate, 0.0)
    return sp.fit(
        toy(config, n_hidden),
        jax.random.split(jax.random.fold_in(key, n_hidden), 3)[0],
        features(config).sample,
        data_key=jax.random.split(data_key, 5)[0],
        steps=settings.steps,
        batch_size=settings.batch_size,
        optimizer=optax.adamw(schedule, weight_decay=settings.weight_decay),
    )


def views(config: ConfigDict, names: Sequence[str], weights: Any) -> dict[str, View]:
    """The views of a toy model with these weights `(n_features, n_hidden)`; refuses a name that no view has."""
    settings = config.sae.to_dict()
    options = {name: settings.pop(name) for name in sp.sae.PUBLISHED}
    sae = SAE(**settings, options=options, cosine=False)
    truth = features(config).sample
    given = {"oracle": {"arrangement": weights, "rectified": True, "truth": truth}, "supervised": {"truth": truth}}
    made: dict[str, View] = {}
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"config names the view {name!r}{did_you_mean(name, VIEWS)}; there are {', '.join(VIEWS)}.")
        own = {**given.get(name, {}), **config.options.get(name, {}), **(config[name] if name in given else {})}
        of = {"of": sae} if isinstance(VIEWS[name].of, SAE) else {}
        made[name] = sae if name == "sae" else VIEWS[name](**of, **own)
    return made


def train(config: ConfigDict, names: Sequence[str], key: Any, data_key: Any, n_hidden: int, stop: Any = None) -> dict[str, Any]:
    """One toy model, the fits of its views, and how well each of them recovers every feature."""
    params, history = train_toy(config, key, data_key, n_hidden, stop)
    init_key = jax.random.split(jax.random.fold_in(key, n_hidden), 3)[1]
    _, sae_data, recovery_data, oracle_data, supervised_data = jax.random.split(data_key, 5)
    made = views(config, names, params["W"])
    numbers = {name: zlib.crc32(name.encode()) for name in shared(made)}
    keys, data_keys = ({name: jax.random.fold_in(own, i) for name, i in numbers.items()} for own in (init_key, sae_data))
    keys |= {"sae": init_key, "supervised": jax.random.fold_in(init_key, 1)}
    data_keys |= {"sae": sae_data, "supervised": supervised_data, "oracle": oracle_data}

    def units(key, n):
        return toy(config, n_hidden).encode(params, features(config).sample(key, n))

    def encode(i):
        z = batch(config, recovery_data, i)
        return read(config, names, state, z), z

    fits = fit_all(made, keys, units, n_hidden, data_key=data_keys)
    learned = {name: fit for name, fit in fits.items() if jax.tree.leaves(fit)}  # what a checkpoint keeps
    state = {"toy": params, "views": learned, "toy_loss": history["loss"][-100:].mean()}
    return {**state, "recovery": comparison.recover_batches(encode, n_batches(config))}


def read(config: ConfigDict, names: Sequence[str], state: Any, z: Any) -> dict[str, Any]:
    """What views read in the hidden units of one model that is shown features."""
    weights = state["toy"]["W"]
    hidden = toy(config, weights.shape[1]).encode(state["toy"], z)
    made = views(config, names, weights)
    return encode_all(made, {**{name: {} for name in shared(made)}, **state["views"]}, hidden)


def n_batches(config: ConfigDict) -> int:
    """How many batches are scored."""
    return comparison.whole_batches(config.eval.n_samples, config.eval.batch_size, config.eval.n_folds)


def batch(config: ConfigDict, key: Any, i: Any) -> Any:
    """Features of one batch of the samples that are scored."""
    return features(config).sample(jax.random.fold_in(key, i), config.eval.batch_size)


def score(
    config: ConfigDict, comparisons: Sequence[str], metrics: Any, a: Any, b: Any, eval_key: Any, see: Callable | None = None
) -> dict[str, Any]:
    """Mean score of a pair, `{metric: (comparisons,)}`, and the largest duality gap; `see(state, z)` reads views, as `read`."""
    see = see or partial(read, config, comparison.views_of(comparisons))

    def encode(i):
        z = batch(config, eval_key, i)
        return see(a, z), see(b, z)

    scores, gap = comparison.score_batches(encode, n_batches(config), comparisons, metrics, config.eval.n_folds)
    return {**scores, "gap": gap}


def widen(state: Any, widest: Any, names: Sequence[str]) -> Any:
    """The same model with silent hidden units, which metrics mask, up to the largest width: `score` is compiled once for all.

    Where a view is not blind to silent units, nothing is added.
    """

    def pad(leaf, wide):
        return jnp.pad(leaf, [(0, size - own) for own, size in zip(leaf.shape, wide.shape, strict=True)]) if leaf.ndim else leaf

    return jax.tree.map(pad, state, widest) if BLIND.issuperset(names) else state


def sweep(
    config: ConfigDict, run: Run, train: Callable, grid: Mapping[str, Any], score: Callable | None = None, **options: Any
) -> sp.sweeps.Results:
    """Trains and scores all models as one program. What is wrong with the settings shows before anything is written."""
    init_key, data_key, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    for values in itertools.product(*(values[:1] if isinstance(values[0], float) else values for values in grid.values())):
        point = dict(zip(grid, values, strict=True))
        state = jax.eval_shape(partial(train, **point), init_key, data_key)
    if score is not None:
        asked = {name: value for name, value in point.items() if name in inspect.signature(score).parameters}
        jax.eval_shape(partial(score, **asked), state, state, eval_key)
    run.claim()
    own = {"data_key": data_key, "eval_key": eval_key, "chunk": config.chunk or None, "workdir": run.path / "sweep"}
    return sp.sweep(train, grid, jax.random.split(init_key, config.n_seeds), score=score, **{**own, **options})


def recovery_rows(config: ConfigDict, names: Sequence[str], states: Any) -> list[dict[str, Any]]:
    """Rows of feature recovery, statistics over seeds of the mean over features; `states` are those of a sweep of `train`."""
    rows = []
    for n_hidden, name in itertools.product(config.n_hidden, names):
        recovery = states[f"recovery.{name}"].sel(n_hidden=n_hidden)
        rows.append({"n_hidden": n_hidden, "units": name, **sp.stats.over_seeds(recovery.mean(recovery.dims[-1]).values)})
    return rows

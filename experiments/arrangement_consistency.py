"""Do correlations between features decide which superposition arrangement a model learns?

Three features in two neurons: features 2 and 3 correlate with feature 1, each in a degree of its own, from -1 to 1. For every
pair of degrees several seeds are trained, and each neuron's weights are compared with those of all neurons of another seed:
Pearson correlation over the features, best partner, mean over neurons and pairs of seeds. Look at where the map is bright:
there the correlations force one arrangement on all seeds.

The published generator (Longon, Klindt & Khosla, arXiv 2510.03186) does not give the correlations that it names: the ticks say
which it really gives. The second map is of a generator that does; a correlation that cannot be had at this sparsity is blank.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import plotting
from superpos.results import Run

GENERATORS = ("published", "exact")


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_seeds = 10  # models of each pair of correlations
    config.n_steps = 9  # correlations from -1 to 1, on both axes
    config.n_hidden = 2
    config.probability = 0.1  # of feature 1 being active
    config.chunk = 200  # models, and pairs of models, in flight at once: so many fit into a CPU's cache; 0: into memory
    config.toy = ConfigDict({"steps": 10_000, "batch_size": 1024, "learning_rate": 1e-3, "weight_decay": 0.01})
    return config


def distribution(config: ConfigDict, second: Any, third: Any, generator: str) -> sp.features.AnchoredFeatures:
    """The features, with the correlations of the second and the third with the first."""
    return sp.features.AnchoredFeatures(jnp.stack([second, third]), config.probability, generator == "exact")


def train(config: ConfigDict, key: Any, data_key: Any, generator: str, second: Any, third: Any) -> dict[str, Any]:
    """The weights of one model, and its last losses."""
    settings = config.toy
    params, history = sp.fit(
        sp.toy.ToyModel(3, config.n_hidden),
        key,
        distribution(config, second, third, generator).sample,
        data_key=data_key,
        steps=settings.steps,
        batch_size=settings.batch_size,
        optimizer=optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay),
    )
    return {**params, "loss": history["loss"][-100:].mean()}


def score(a: Any, b: Any, eval_key: Any) -> Any:
    """How alike the weights of two models' neurons are; NaN where all weights are equal."""
    del eval_key
    return sp.arrangements.semi_match(a["W"], b["W"])


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Trains all models as one program, and tabulates how consistent they are."""
    if config.n_seeds < 2 or config.n_steps < 2:
        raise ValueError(f"config.n_seeds and config.n_steps must be at least 2, got {config.n_seeds} and {config.n_steps}.")
    command.at_least(config, {"chunk": 0})
    if not 0 < config.probability < 1:
        raise ValueError(f"config.probability must be between 0 and 1, got {config.probability}.")
    correlations = np.linspace(-1, 1, config.n_steps).tolist()
    key, data_key = jax.random.split(jax.random.key(config.seed))
    jax.eval_shape(lambda: train(config, key, data_key, "exact", jnp.zeros(()), jnp.zeros(())))
    run.claim()
    found = sp.sweep(
        partial(train, config),
        {"generator": GENERATORS, "second": correlations, "third": correlations},
        jax.random.split(key, config.n_seeds),
        score=score,
        data_key=data_key,
        chunk=config.chunk or None,
        workdir=run.path / "sweep",
    )
    rows = []
    for generator, second, third in itertools.product(GENERATORS, correlations, correlations):
        at = {"generator": generator, "second": second, "third": third}
        features = distribution(config, jnp.float32(second), jnp.float32(third), generator)
        realised = np.asarray(features.activity_correlation, np.float64).tolist()
        summary: dict[str, Any] = {"mean": None, "std": None, "ci95": None, "n_seeds": config.n_seeds, "n_pairs": 0}
        if np.isfinite(features.conditional).all():  # the correlations can be had
            summary = sp.stats.over_pairs(found.scores["value"].sel(at).transpose("source", "target").values)
        rows.append({**at, "realised_second": realised[0], "realised_third": realised[1], **summary})
    return run.finish(rows, found.seconds, n_models=len(found.layout.configs) * found.layout.shape("train")[0])


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a map for each generator."""
    rows = results["rows"]
    generators = list(dict.fromkeys(row["generator"] for row in rows))
    figure, (axes,) = plotting.panels(1, len(generators), (5.6 * len(generators), 4.6))
    ticks = sorted({row["second"] for row in rows})
    for axis, generator in zip(axes, generators, strict=True):
        chosen = {(row["second"], row["third"]): row for row in rows if row["generator"] == generator}
        means = [plotting.means([chosen[x, y] for x in ticks]) for y in ticks]
        image = axis.imshow(means, origin="lower", vmin=0, vmax=1, cmap="cividis")
        realised = [chosen[x, x]["realised_second"] for x in ticks]
        labels = [
            f"{x:+.2f}\n(none)" if got is None else f"{x:+.2f}\n({got:+.2f})" for x, got in zip(ticks, realised, strict=True)
        ]
        axis.set_xticks(range(len(ticks)), labels, fontsize=7)
        axis.set_yticks(range(len(ticks)), [label.replace("\n", " ") for label in labels], fontsize=7)
        axis.set_facecolor("#DDDDDD")
        axis.set_xlabel("correlation of feature 2 with feature 1: named (realised)")
        axis.set_ylabel("of feature 3 with feature 1")
        axis.set_title(f"{generator} generator")
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_label("best correlation of a neuron's weights\nwith another seed's (Pearson r)")
    plotting.finish(figure, f"3 features in 2 neurons, mean over ordered pairs of {rows[0]['n_seeds']} seeds", path=run.figure)


if __name__ == "__main__":
    command.main("arrangement_consistency", get_config(), compute, draw)

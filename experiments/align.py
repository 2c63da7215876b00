"""How alike are two representations, before and after each is disentangled with a sparse autoencoder?

Takes two files of activations to the same samples, trains SAEs on each side (or takes one that somebody has trained), and
scores neurons, latents and controls on samples that no view was fitted on. What an SAE that you bring has seen, only you know.

Look at sae->sae against neuron->neuron, and at what the controls have of the difference. Untrained latents (random_sae) are as
many, of which as many are active, but have learned nothing. Principal components by sign (signed_pca) and independent
components (ica) are another basis of the same units, and cannot undo superposition.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import superpos as sp
from experiments import WITH_BASES as COMPARISONS
from experiments import command
from superpos import plotting, views
from superpos.activations import Side
from superpos.comparison import Plan, default_views, ends
from superpos.results import Run

SIDES = ("source", "target")
FILES = ("source", "target", "source_train", "target_train", "source_sae", "target_sae")


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.source = ""  # file.npy, or file.npz:key: activations of the side that predicts
    config.target = ""  # the same for the side that is predicted: the same samples in the same order
    config.source_axes = ""  # names of the axes where they are not samples,...,units: such as units,samples
    config.target_axes = ""
    config.source_train = ""  # activations to fit the views of a side on, with axes as above, instead of a part of its samples
    config.target_train = ""
    config.source_sae = ""  # folder of a trained SAE, as SAELens or `sp.sae.save` write it, instead of training one
    config.target_sae = ""
    config.train_fraction = 0.5  # of the groups, whose samples fit the views and are not scored
    config.seed = 0  # of all keys
    config.n_seeds = 3  # SAEs of each side
    config.n_folds = 5
    config.chunk = 1  # fits, and comparisons, in flight at once
    config.metrics = sp.alignment.DEFAULT
    config.comparisons = COMPARISONS  # of views, by their names in sp.views.VIEWS
    config.sae = ConfigDict(
        {
            "architecture": "topk",  # of sp.sae
            "expansion": 4.0,  # latents for each unit
            "k": 8,
            "steps": 4_000,
            "batch_size": 1024,
            "learning_rate": 3e-3,  # cosine decay
        }
    )
    # Further values of the SAE: every combination is compared too, and the curve of all is printed. Off by default, since each
    # trains SAEs of its own: such as --config.settings.k="(4,8)" --config.settings.expansion="(1.0,4.0)".
    config.settings = ConfigDict({"k": (), "expansion": ()})
    return config


def plan(config: ConfigDict) -> Plan:
    """What is compared, read and checked."""
    own: dict[str, dict[str, views.View]] = {side: {} for side in SIDES}
    settings = command.settings(config)
    if settings and (given := [f"config.{side}_sae" for side in SIDES if config[f"{side}_sae"]]):
        raise ValueError(f"config.settings must be empty where an SAE is given, got {', '.join(settings)} beside {given[0]}.")
    for side in SIDES:
        if config[f"{side}_sae"]:
            loaded = views.Loaded(config[f"{side}_sae"])
            own[side] = {"sae": loaded, "random_sae": views.Untrained(loaded)}
    sides = {
        side: Side(
            config[side],
            train=config[f"{side}_train"] or None,
            views=own[side],
            axes=[name.strip() for name in config[f"{side}_axes"].split(",")] if config[f"{side}_axes"] else None,
        )
        for side in SIDES
    }
    named = [name for comparison in config.comparisons for name in ends(comparison)]
    with command.naming(config, split="train_fraction", folds="n_folds"):
        return Plan(
            sides,
            [SIDES],
            default_views(views.SAE(**config.sae), named),
            config.comparisons,
            metrics=config.metrics,
            folds=config.n_folds,
            split=config.train_fraction,
            n_seeds=config.n_seeds,
            settings=settings,
            key=jax.random.key(config.seed),
        )


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Fits the views, scores all comparisons, and tabulates them."""
    planned = plan(config)
    run.claim()
    compared = planned.run(run.path / "comparison", chunk=config.chunk or None)
    compared.refuse_missing()
    tables = {"differences": compared.differences(), "views": compared.describe(), **command.curve(compared)}
    tables = {name: command.renamed(table) for name, table in tables.items()}
    said = {"doubts": command.doubts(compared), "answer": compared.answer()}
    return run.finish(command.renamed(compared.summary()), compared.seconds, **tables, **said, n_scored=compared.n_scored)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a panel a metric, a bar a comparison."""
    title = " → ".join(Path(run.config[side]).name for side in SIDES)
    plotting.alignment_bars(results["rows"], title, run.figure)


if __name__ == "__main__":
    command.main("align", get_config(), compute, draw, files=FILES)

"""The settings of all suites, and what runs and draws each."""

import importlib
import os
import time
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmark import alignment, figures, ridge, timing
from experiments.benchmark.accelerator import runner, table
from superpos.results import Run

# And the packages that they are beside.
SUITES = {
    "metrics": ("sklearn", "himalaya", "ot"),
    "ridge": ("sklearn", "himalaya"),
    "training": ("torch",),
    "accelerator": (),
}


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.suite = "metrics"  # what is timed: a name out of SUITES; `training` reads its settings from config.training
    config.limit_s = 420  # seconds for all of suite=accelerator
    config.size = ""  # of suite=accelerator: full, small, or what suits the device
    config.parts = ()  # of suite=accelerator: names of those to run, all by default
    config.seed = 0  # of the data
    config.repeats = 3  # runs of each side, slow alternatives excepted
    config.n_samples = 2_048_000
    config.n_units = 64  # of each side
    config.n_folds = 5
    config.outer_folds = 1  # folds that slow alternatives are timed on
    config.few_samples = 20_000  # for himalaya, whose memory grows with training times test samples
    config.transport_batch = 500  # problems solved at once
    config.transport_size = 64  # units of each side in each
    config.large_transport = (1000, 2000)  # units of the sides of one large problem
    config.large_ridge = (10_000, 4096, 1000)  # samples, source and target units of suite=ridge
    config.training = ConfigDict(
        {
            "n_hidden": (8, 16, 32),  # of the toy models; the first is the one of the figure
            "sae_inputs": 16,
            "large_sae": (512, 4096, 32),  # inputs, latents and k of a large one, trained alone
            "large_batch": 4096,
            "large_steps": 5,
            "n_seeds": 32,  # models trained beside PyTorch
            "most_seeds": 256,  # of ours, for the figure
            "steps": 100,
            "batch_size": 1024,
            "chunk": 0,  # models in flight, see sp.sweep; 0: four for each core, all on an accelerator
            "matmul": 4096,  # rows and columns of the large product
        }
    )
    return config


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Times every work of the suite beside its alternatives."""
    if config.suite not in SUITES:
        raise ValueError(f"config.suite takes a name out of {', '.join(SUITES)}, got {config.suite!r}.")
    if config.repeats < 1:
        raise ValueError(f"config.repeats must be at least 1, got {config.repeats}.")
    # XLA's own: one for each core that this process may use.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for package in SUITES[config.suite]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"config.suite={config.suite} needs {package}: pip install -e '.[benchmark]'.") from error
    if config.suite == "accelerator":
        run.claim()
        found = runner.run(run.path / "accelerator", config.limit_s, config.size, config.parts)
        rows = [{name: row.get(name) for name in table.COLUMNS} for row in found["rows"]]
        return run.finish(rows, {"all parts": found["seconds"]}, parts=found["parts"], card=found["device"])
    if config.suite == "training":
        from experiments.benchmark import training

        return training.compute(config, run, threads)
    started = time.perf_counter()
    if config.n_folds < 3 or not 1 <= config.outer_folds <= config.n_folds:
        raise ValueError(
            f"config.n_folds must be at least 3 and config.outer_folds between 1 and n_folds, "
            f"got {config.n_folds} and {config.outer_folds}."
        )
    works = {"metrics": alignment.metrics_suite, "ridge": ridge.ridge_suite}[config.suite](config)
    n_units = {"metrics": config.n_units, "ridge": config.large_ridge[2]}[config.suite]
    made = time.perf_counter()
    run.claim()
    rows = timing.rows(works, config.repeats, threads, n_units)
    seconds = {"data": made - started, "timing": time.perf_counter() - made}
    return run.finish(rows, seconds, threads=threads)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a bar an alternative; of training the speed against the number of models, of a card expected seconds."""
    if "card" in results:
        figures.limits(results["rows"], results["card"]["name"], run.figure)
        return
    if "seeds" in results:
        settings, n_hidden = run.config["training"], results["n_hidden"]
        chosen = [row for row in results["rows"] if row["work"] == f"toy, {n_hidden} hidden"]
        levels = {row["against"].replace("vmap", f"vmap of {settings['n_seeds']}"): 1e6 / row["theirs_us"] for row in chosen}
        what = f"Toy model, 64 features, {n_hidden} hidden units, batch of {settings['batch_size']:,}"
        where = f"{results['environment']['device'].split(': ')[-1]}, {results['threads']} threads"
        figures.curve(results["seeds"], levels, f"{what}\n{where}", run.figure)
        return
    theirs = " or ".join(str(limit) for limit in sorted({row["theirs_threads"] for row in results["rows"]}))
    where = f"{results['environment']['device'].split(': ')[-1]}; threads: ours {results['threads']}, theirs {theirs}"
    figures.bars(results["rows"], run.config["repeats"], where, run.figure)

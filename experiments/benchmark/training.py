"""The `training` suite: many small models at once, beside PyTorch and the device's own matmul."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from tqdm import tqdm

import superpos as sp
from experiments.benchmark.modules import Published, TopK, Toy, Vanilla
from experiments.benchmark.race import Race, Timed
from superpos.results import Run
from superpos.storage import read_json

N_BATCHES = 16  # that the models see in turn; the large one a quarter of them
LOOP, VMAP, MATMUL = "PyTorch, one by one", "torch.func.vmap", "large matmul"
# Times faster than each alternative; than a large matmul's rate: the share of it.
# Of toys by their hidden units, of SAEs by "sae", of the large one by "large".
TARGETS: dict[str, dict[int | str, float]] = {
    LOOP: {8: 10, 16: 10, 32: 10, "sae": 10, "large": 1.5},
    VMAP: {8: 3, 16: 3, 32: 3},
    MATMUL: {8: 0.35, 32: 0.6},
}

COMPILE_TARGET = 30  # seconds, at most


def compute(config: ConfigDict, run: Run, threads: int) -> dict[str, Any]:
    """Times the steps of each model, and of 1, 2, 4, ... models at once."""
    settings = config.training
    for name in ("n_seeds", "most_seeds", "steps", "batch_size", "matmul", "sae_inputs", "large_steps", "large_batch"):
        if settings[name] < 1:
            raise ValueError(f"config.training.{name} must be at least 1, got {settings[name]}.")
    large = ConfigDict(
        {**settings, "n_seeds": 1, "chunk": 1, "steps": settings.large_steps, "batch_size": settings.large_batch}
    )
    run.claim()
    started = time.perf_counter()
    features = sp.features.SparseFeatures(64)
    keys = jax.random.split(jax.random.key(config.seed), N_BATCHES)
    z = jax.jit(jax.vmap(lambda key: features.sample(key, settings.batch_size)))(keys)
    hidden = sp.toy.ToyModel(64, settings.sae_inputs)
    x = hidden.encode(hidden.init(keys[0]), z)
    inputs, latents, k = settings.large_sae
    many = _mixed(keys[: N_BATCHES // 4], large.batch_size, inputs)
    made = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        toys = {n: Race(settings, sp.toy.ToyModel(64, n, sp.features.power_law(64)), Toy, z) for n in settings.n_hidden}
        width = settings.sae_inputs
        names: dict[str, tuple[Race, int | str]] = {f"toy, {n} hidden": (race, n) for n, race in toys.items()}
        names |= {
            "TopK SAE": (Race(settings, sp.sae.TopK(width, 64, 7, **sp.sae.PUBLISHED), Published, x), "sae"),
            "TopK SAE, default": (Race(settings, sp.sae.TopK(width, 64, 4), TopK, x), "sae"),
            "Vanilla SAE, default": (Race(settings, sp.sae.Vanilla(width, 64, 0.1), Vanilla, x), "sae"),
            f"TopK SAE, {inputs} -> {latents}": (Race(large, sp.sae.TopK(inputs, latents, k), TopK, many), "large"),
        }
        timed: dict[str, dict[str, list[Timed]]] = {}
        rates, limits = [], {}
        bar = tqdm(total=len(names), desc="benchmark", disable=None)
        for name, (race, _) in names.items():
            sides = {"ours": race.ours, LOOP: race.loop} | ({VMAP: race.vmapped} if race.module.maps else {})
            timed[name] = {side: [] for side in sides}
            for _ in range(config.repeats):  # in turns, so that what else the machine does meets all alike
                rates.append((_matmul(_jax_square(settings.matmul)), _matmul(_torch_square(settings.matmul))))
                for side, function in sides.items():
                    if side != "ours":
                        limits[name, side] = race.set_threads(function, threads)
                    timed[name][side].append(function(race.settings.n_seeds))
            bar.update()
        bar.close()
        seeds = _curve(settings, toys[settings.n_hidden[0]], config.repeats)
    best = [max(rate) for rate in zip(*rates, strict=True)]
    rows = []
    for name, (race, kind) in names.items():
        if isinstance(kind, int):
            timed[name][MATMUL] = [(None, race.flops * settings.n_seeds * settings.steps / best[0])]
        rows += [
            {**_row(name, kind, side, timed[name], race.settings), "theirs_threads": limits.get((name, side), threads)}
            for side in timed[name]
            if side != "ours"
        ]
    compilation = _compilation()
    matmul = [{"by": by, "gflops": rate / 1e9} for by, rate in zip(("jnp.matmul", "torch"), best, strict=True)]
    seconds = {"data": made - started, "timing": time.perf_counter() - made}
    n_hidden = settings.n_hidden[0]
    return run.finish(rows, seconds, seeds=seeds, matmul=matmul, compilation=compilation, threads=threads, n_hidden=n_hidden)


def _row(name, kind, side, timed, settings):
    """One alternative beside ours, in microseconds a step of one model."""
    models = settings.n_seeds * settings.steps
    ours, theirs = ([1e6 * seconds / models for _, seconds in timed[which]] for which in ("ours", side))
    losses, found = timed["ours"][-1][0], timed[side][-1][0]
    ratio = statistics.median(theirs) / statistics.median(ours)
    target = TARGETS[side].get(kind)
    return {
        "work": name,
        "against": side,
        "ours_us": statistics.median(ours),
        "theirs_us": statistics.median(theirs),
        "ratio": ratio,
        "target": target,
        "met": None if target is None else ratio >= target,
        "difference": None if found is None else float(np.max(np.abs(losses - found))),
        "ours_min_us": min(ours),
        "theirs_min_us": min(theirs),
    }


def _compilation():
    """Rows: seconds that the full `toy_alignment` takes to compile, in a process of its own; its steps do not matter."""
    rows = []
    short = (
        ["--preset=full"] + [f"--config.{field}=10" for field in ("toy.steps", "sae.steps")] + ["--config.eval.n_samples=20480"]
    )
    with tempfile.TemporaryDirectory() as folder:
        for cache, target in (("empty", COMPILE_TARGET), ("filled", None)):
            workdir = Path(folder) / cache
            subprocess.run(
                [sys.executable, "-m", "experiments.toy_alignment", *short, f"--workdir={workdir}"],
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla", "TQDM_DISABLE": "1"},
                check=True,
                capture_output=True,
            )
            spent = read_json(workdir / "results.json")["seconds"]["compile"]
            met = None if target is None else spent <= target
            rows.append({"program": "toy_alignment", "cache": cache, "seconds": spent, "target": target, "met": met})
    return rows


def _curve(settings, race, repeats):
    """Rows of 1, 2, 4, ... models: seconds for one step of all of them."""
    rows = []
    for n_seeds in (2**i for i in range(settings.most_seeds.bit_length())):
        spent = statistics.median(race.ours(n_seeds)[1] for _ in range(repeats)) / settings.steps
        rows.append({"n_seeds": n_seeds, "step_us": 1e6 * spent, "model_steps_per_s": n_seeds / spent})
    return rows


def _mixed(keys, batch_size, inputs):
    """Batches of sparse features in random directions, twice as many as inputs; ten active a sample."""
    features = sp.features.SparseFeatures(2 * inputs, min(5 / inputs, 1.0))
    directions = jax.random.normal(keys[0], (2 * inputs, inputs)) / inputs**0.5
    return jax.jit(lambda keys: jax.lax.map(lambda key: features.sample(key, batch_size) @ directions, keys))(keys)


def _matmul(multiply):
    """FLOP/s of the best of three products of square matrices."""
    size = multiply()
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        multiply()
        spent.append(time.perf_counter() - started)
    return 2 * size**3 / min(spent)


def _jax_square(size):
    x = jnp.full((size, size), 0.5)
    return lambda: jnp.matmul(x, x).block_until_ready().shape[0]


def _torch_square(size):
    x = torch.full((size, size), 0.5, device="cuda" if torch.cuda.is_available() else "cpu")

    def multiply():
        y = x @ x
        if y.is_cuda:
            torch.cuda.synchronize()
        return len(y)

    return multiply

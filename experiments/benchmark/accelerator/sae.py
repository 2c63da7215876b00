"""One large SAE beside PyTorch's, and the ways to find the largest latents of a sample.

A step is five products, 10 B n m operations for B samples, n units and m latents; it passes about ten times over `(B, m)`.
"""

import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import superpos as sp
from experiments.benchmark.accelerator.cards import best
from superpos.sae.batch_topk import largest_mask
from superpos.sae.kernels import _by_passes, _by_ranks, _by_sorting, top_k_mask

SIZES: dict[str, Any] = {
    "full": {"inputs": 512, "latents": 16_384, "k": 32, "batch_size": 4096, "steps": 50},
    "small": {"inputs": 16, "latents": 128, "k": 4, "batch_size": 64, "steps": 2},
}


def run(size: dict[str, int], report) -> None:
    """A row a precision, and a row for each way to the k largest."""
    inputs, latents, k = size["inputs"], size["latents"], size["k"]
    batch_size, steps = size["batch_size"], size["steps"]
    model = sp.sae.TopK(inputs, latents, k)
    batches = jax.random.laplace(jax.random.key(0), (4, batch_size, inputs))
    counts = {"flops": 10 * batch_size * inputs * latents * steps, "bytes": 40 * batch_size * latents * steps}
    note = None
    try:
        race, theirs = _torch(model, batches, size)
    except ImportError as error:
        race, theirs, note = None, {}, f"no PyTorch beside it: {error}"
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            spent, compiled = _ours(model, batches, steps)
        other = theirs.get(precision)
        report.row(
            f"TopK SAE {inputs} -> {latents:,}, k {k}, {steps} steps of {batch_size:,}, {precision}",
            spent,
            counts={**counts, "tf32": precision == "default"},
            rate=steps / spent,
            unit="steps/s",
            against="PyTorch, eager" if other else None,
            ratio=other / (spent / steps) if other else None,
            compile_s=compiled,
            note=note,
        )
    del race
    pre = jax.random.normal(jax.random.key(1), (latents, batch_size))
    ways: dict[str, Any] = {
        "lax.top_k": lambda x: lax.top_k(x.T, k)[0],
        "top_k_mask": partial(top_k_mask, k=k),
        "largest_mask, bisection over the batch": partial(largest_mask, count=k * batch_size),
        "64 units: by ranks": lambda x: _by_ranks(jnp.maximum(x[:64], 0), 7),
        "64 units: by passes": lambda x: _by_passes(jnp.maximum(x[:64], 0), 7),
        "64 units: lax.top_k": lambda x: lax.top_k(x[:64].T, 7)[0],
        "64 units: by sorting": lambda x: _by_sorting(x[:64], 7),
    }
    for name, way in ways.items():
        selected = jax.jit(way)
        _, spent = best(lambda: selected(pre))  # noqa: B023
        share = 64 / latents if name.startswith("64") else 1
        work = f"the largest of {latents:,} x {batch_size:,}: {name}"
        report.row(work, spent, counts={"bytes": 2 * share * pre.nbytes})


def _ours(model, batches, steps):
    """Seconds of the steps, and of compiling."""

    def train(key, batches):
        batch = lambda key, n: batches[jax.random.key_data(key)[-1] % len(batches)]  # noqa: E731
        return sp.fit(model, key, batch, steps=steps, batch_size=batches.shape[1])[1]["loss"]

    started = time.perf_counter()
    compiled = jax.jit(train).lower(jax.random.key(0), batches).compile()
    took = time.perf_counter() - started
    return best(lambda: compiled(jax.random.key(0), batches), 2)[1], took


def _torch(model, batches, size):
    """Seconds of one step of PyTorch's in each precision."""
    import torch

    from experiments.benchmark.modules import TopK
    from experiments.benchmark.race import Race

    steps = max(2, size["steps"] // 5)
    race = Race(SimpleNamespace(n_seeds=1, steps=steps, batch_size=size["batch_size"], chunk=1), model, TopK, batches)
    found = {}
    for precision, theirs in (("highest", "highest"), ("default", "high")):
        torch.set_float32_matmul_precision(theirs)
        race.loop(1, 2)
        found[precision] = race.loop(1)[1] / steps
    torch.set_float32_matmul_precision("highest")
    return race, found

"""Data that stay on the host: moments of two sides as they come, and SAE steps on batches that are fed."""

import itertools
import time
from typing import Any

import jax
import numpy as np

import superpos as sp
from experiments.benchmark.accelerator.cards import best

SIZES: dict[str, Any] = {
    "full": {
        "samples": 400_000,
        "units": 512,
        "latents": 4096,
        "batch_size": 4096,
        "steps": 100,
        "metrics": {"semi_match": 1, "cka": 3},
    },
    "small": {"samples": 600, "units": 8, "latents": 16, "batch_size": 64, "steps": 4, "metrics": {"semi_match": 1}},
}


def run(size: dict[str, Any], report) -> None:
    """A row for the moments, for a stream of batches, and for the same steps without a stream."""
    n, units = size["samples"], size["units"]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, units), np.float32)
    y = x[:, ::-1] + rng.standard_normal((n, units), np.float32)
    batch_size = size["batch_size"]
    # Each call compiles. From a cache that takes as long in a long call as in a short one, so that the difference is the work.
    jax.config.update("jax_compilation_cache_dir", str(report.file.parent / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    fewer = n // 4
    for metric, products in size["metrics"].items():  # and of matrices, how many
        sp.align_stream(x[:fewer], y[:fewer], metric, batch_size=batch_size)
        spent = -_clock(lambda: sp.align_stream(x[:fewer], y[:fewer], metric, batch_size=batch_size))  # noqa: B023
        spent += _clock(lambda: sp.align_stream(x, y, metric, batch_size=batch_size))  # noqa: B023
        n_bytes = 0.75 * (x.nbytes + y.nbytes)
        report.row(
            f"align_stream, {n:,} samples of {units} and {units} units: {metric}",
            _positive(spent),
            counts={"link": n_bytes, "flops": products * 1.5 * n * units**2},
            rate=n_bytes / spent if spent > 0 else None,
            unit="B/s",
        )
    steps = size["steps"]
    batches = x[: len(x) // batch_size * batch_size].reshape(-1, batch_size, units)
    sae = sp.sae.TopK(units, size["latents"], 4)

    def draw(start):
        return (batches[i % len(batches)] for i in itertools.count(start))

    sp.fit_stream(sae, jax.random.key(0), draw, steps=2)
    streamed = -_clock(lambda: sp.fit_stream(sae, jax.random.key(0), draw, steps=steps))
    streamed += _clock(lambda: sp.fit_stream(sae, jax.random.key(0), draw, steps=3 * steps))
    resident = jax.device_put(batches[0])
    fit = jax.jit(lambda key, x: sp.fit(sae, key, lambda _, n: x, steps=2 * steps, batch_size=batch_size)[1]["loss"])
    _, spent = best(lambda: fit(jax.random.key(0), resident), 1)
    report.row(
        f"fit_stream, {2 * steps} steps of {batch_size:,} x {units}",
        _positive(streamed),
        counts={"link": 2 * steps * batches[0].nbytes, "flops": 20 * steps * batch_size * units * size["latents"]},
        rate=2 * steps * batches[0].nbytes / streamed if streamed > 0 else None,
        unit="B/s",
        against="sp.fit, data on the device",
        ratio=spent / streamed if streamed > 0 else None,
    )


def _positive(seconds):
    """None where compiling varied by more than the work took."""
    return seconds if seconds > 0 else None


def _clock(function):
    """The seconds of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started

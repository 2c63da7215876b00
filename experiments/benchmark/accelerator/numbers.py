"""Is it right there? Every registered metric, and a fit of every SAE architecture, beside the same on the CPU.

In float32 with `Precision.HIGHEST`, and as JAX multiplies by default, which is TF32 on NVIDIA cards: 10 bits of 23.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import superpos as sp

SIZES: dict[str, Any] = {
    "full": {
        "samples": 2000,
        "units": (24, 20),
        "steps": 20,
        "threads": 16,
        "metrics": sp.metrics.names(),
        "saes": tuple(sp.sae.ARCHITECTURES),
    },
    "small": {"samples": 120, "units": (6, 5), "steps": 3, "threads": 2, "metrics": ("cka",), "saes": ("topk",)},
}
TOLERANCES = {"highest": 1e-3, "default": 2e-2}
REQUIRED = {"k": 4, "l1": 0.3, "l0": 0.2}  # what architectures may require beside their sizes


def run(size: dict[str, Any], report) -> None:
    """A row a metric and precision, and a row an architecture and precision."""
    host = jax.devices("cpu")[0]
    latent = np.random.default_rng(0).exponential(size=(size["samples"], 12))
    x, y = (
        (latent @ rng.normal(size=(12, n)) + 0.5 * rng.normal(size=(len(latent), n))).astype(np.float32)
        for n, rng in zip(size["units"], map(np.random.default_rng, (1, 2)), strict=True)
    )
    programs = {name: _align(name, x, y) for name in size["metrics"]}
    programs |= {f"fit of {name}": _fit(name, x, size["steps"]) for name in size["saes"]}

    def one(work):
        program = programs[work]
        expected = _compute(program, "highest", host)[0]
        for precision, tolerance in TOLERANCES.items():
            found, spent = _compute(program, precision, jax.devices()[0])
            scale = max(1.0, np.max(np.abs(expected)))
            difference = float(np.max(np.abs(found - expected)) / scale)
            precise = {"highest": "HIGHEST", "default": "default (TF32 on NVIDIA)"}[precision]
            report.row(
                f"{work}, {precise}",
                difference=difference,
                compile_s=spent,
                goal=f"difference < {tolerance:g}",
                met=difference < tolerance,  # NaN is not
            )

    # Compiling takes the time, and threads do that side by side.
    failed = []
    with ThreadPoolExecutor(size["threads"]) as pool:
        for work, job in {work: pool.submit(one, work) for work in programs}.items():
            try:
                job.result()
            except Exception as error:  # whatever XLA makes of one program; the others count
                failed.append(work)
                report.row(work, met=False, note=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _compute(program, precision, device):
    """What a program finds on a device, and the seconds that it takes with compiling."""
    function, arguments = program
    started = time.perf_counter()
    with jax.default_matmul_precision(precision):
        found = function(*jax.device_put(arguments, device))
    return np.asarray(found, np.float64), time.perf_counter() - started


def _align(name, x, y):
    ids = np.arange(len(x), dtype=np.int32) % 3
    return jax.jit(lambda x, y, ids: sp.align(x, y, name, folds=ids, n_folds=3)[name].folds), (x, y, ids)


def _fit(name, x, steps):
    """Losses: of one fit, on batches that are drawn alike everywhere."""
    kind = sp.sae.ARCHITECTURES[name]
    given = {field: value for field, value in REQUIRED.items() if field in kind.__dataclass_fields__}
    sae = kind(x.shape[1], 4 * x.shape[1], **given)

    def losses(x):
        batch = lambda key, n: jnp.take(x, jax.random.randint(key, (n,), 0, len(x)), axis=0)  # noqa: E731
        return sp.fit(sae, jax.random.key(0), batch, steps=steps, batch_size=min(256, len(x)))[1]["loss"]

    return jax.jit(losses), (x,)

"""What device JAX sees, and what it does at best: the rates that all other parts are held against."""

import dataclasses
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.accelerator.cards import Card, best, known

SIZES: dict[str, Any] = {"full": {"matmul": 8192, "bytes": 2**31}, "small": {"matmul": 1024, "bytes": 2**25}}


def run(size: dict[str, int], report) -> None:
    """Names the device, multiplies, copies, and sends; writes the card's rates, measured where no data sheet is known."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        size = SIZES["small"]
    stats = device.memory_stats() or {}
    limit = f", {stats['bytes_limit'] / 2**30:.0f} GiB for JAX" if "bytes_limit" in stats else ""
    note = f"jax {jax.__version__}, {jax.device_count()} device(s){limit}"
    report.row(f"{device.platform}: {device.device_kind}", platform=device.platform, kind=device.device_kind, note=note)

    n = size["matmul"]
    x = jax.random.normal(jax.random.key(0), (n, n))
    rates = {}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            _, spent = best(lambda: _multiply(x))
        rates[precision] = 2 * n**3 / spent
    copied = jax.random.normal(jax.random.key(0), (size["bytes"] // 4,))
    _, spent = best(lambda: _negative(copied))
    bandwidth = 2 * copied.nbytes / spent
    host = np.ones(size["bytes"] // 8, np.float32)
    link = host.nbytes / _send(host)
    card = known(device.device_kind)
    if card is None:
        card = Card(device.device_kind, rates["highest"], rates["default"], bandwidth, link, launch=0, source="measured")
    (report.file.parent / "card.json").write_text(json.dumps(dataclasses.asdict(card)))
    report.card = card
    found = (
        (f"matmul of {n}, highest precision", rates["highest"], 2 * n**3, "FLOP/s", {"flops": 2 * n**3}),
        (f"matmul of {n}, default precision", rates["default"], 2 * n**3, "FLOP/s", {"flops": 2 * n**3, "tf32": True}),
        ("read and write", bandwidth, 2 * copied.nbytes, "B/s", {"bytes": 2 * copied.nbytes}),
        ("host to device", link, host.nbytes, "B/s", {"link": host.nbytes}),
    )
    for work, rate, amount, unit, counts in found:
        report.row(work, amount / rate, counts=counts, rate=rate, unit=unit, note=f"expected: {card.source}")


@jax.jit
def _multiply(x):
    return x @ x


@jax.jit
def _negative(x):
    return -x


def _send(array):
    """Least seconds of three."""
    spent = []
    for _ in range(4):
        started = time.perf_counter()
        # Without a copy the CPU would take the host's memory as its own.
        jax.block_until_ready(jnp.copy(jax.device_put(array)))
        spent.append(time.perf_counter() - started)
    return min(spent[1:])

"""Exact transport inside of jit: many small problems in step, and a large one.

Its loops have as many steps as the data ask for, so that the host looks at a flag after each: some 20 microseconds a pivot.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.accelerator.cards import best
from superpos import transport

KERNELS = 25  # a step of the loops
SIZES: dict[str, Any] = {
    "full": ((500, 64, 64), (20_000, 16, 16), (1, 1000, 2000)),
    "small": ((3, 5, 6),),
}


def run(size: tuple[tuple[int, int, int], ...], report) -> None:
    """A row a shape; `difference` is the largest share of the costs' range by which an objective differs from the CPU's."""
    host = jax.devices("cpu")[0]
    for problems, n, m in size:
        costs = np.random.default_rng(0).normal(size=(problems, n, m)).astype(np.float32)
        masses = jax.device_get(transport.uniform_masses(jnp.ones(n, bool), jnp.ones(m, bool)))
        solve = jax.jit(jax.vmap(lambda cost: transport.exact(cost, *masses)[3:]))  # noqa: B023
        few = costs[:100]
        (expected, *_), theirs = best(lambda: solve(jax.device_put(few, host)), 1)  # noqa: B023
        put = jax.device_put(costs, jax.devices()[0])
        (objective, gap, pivots), spent = best(lambda: solve(put), 2)  # noqa: B023
        difference = float(np.max(np.abs(np.asarray(objective)[: len(few)] - expected)) / np.ptp(costs))
        steps = 2 * (n + m) + int(np.max(pivots))
        report.row(
            f"{problems:,} problems of {n} x {m}",
            spent,
            counts={"bytes": 4 * problems * n * m * (4 + int(np.max(pivots))), "launches": KERNELS * steps},
            rate=problems / spent,
            unit="problems/s",
            against="the same on the CPU",
            ratio=theirs / len(few) / (spent / problems),
            difference=difference,
            goal="difference < 1e-5",
            met=difference < 1e-5,
            note=f"{int(np.max(pivots))} pivots; gap {float(np.max(gap)):.1g}{_pot(costs, objective)}",
        )


def _pot(costs, objective):
    """What POT makes of the first problem."""
    try:
        import ot
    except ImportError:
        return "; POT is not installed"
    theirs = np.sum(ot.emd([], [], costs[0].astype(np.float64), numItermax=10**7) * costs[0])
    return f"; from POT's {abs(theirs - float(objective[0])):.1g}"

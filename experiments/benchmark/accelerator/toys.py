"""Many toy models at once, beside a PyTorch loop and `torch.func.vmap` on the same card.

The step of a model is five products of matrices, 10 B d n operations for B samples, d features and n hidden units. Bytes are
those of its activations: five passes over `(B, d)` and nine over `(B, n)`, since XLA fuses what stands between the products.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

import superpos as sp

FEATURES, HIDDEN, KERNELS = 64, 16, 25  # kernels a step
SIZES: dict[str, Any] = {
    "full": {
        "steps": {1024: 10_000, 8: 2000, 64: 2000, 8192: 500},
        "goal": 1024,
        "stated": True,
        "batch_size": 1024,
        "loop": (4, 100),
        "vmap_steps": 20,
    },
    "small": {"steps": {4: 10, 2: 10}, "goal": 4, "stated": False, "batch_size": 64, "loop": (1, 5), "vmap_steps": 2},
}


def run(size: dict[str, Any], report) -> None:
    """A row for each number of models and each way to train them."""
    features = sp.features.SparseFeatures(FEATURES)
    keys = jax.random.split(jax.random.key(0), 16)
    z = jax.jit(jax.vmap(lambda key: features.sample(key, size["batch_size"])))(keys)
    model = sp.toy.ToyModel(FEATURES, HIDDEN, sp.features.power_law(FEATURES))
    try:
        loop, vmapped, note = _torch(model, z, size)
    except ImportError as error:
        loop, vmapped, note = None, None, f"no PyTorch beside it: {error}"
    for n, steps in size["steps"].items():
        for precision in ("highest", "default") if n == size["goal"] else ("highest",):
            with jax.default_matmul_precision(precision):
                _ours(model, z, n, steps, precision, loop, size, report, note)
        if vmapped is not None and n <= 1024:
            rate = vmapped(n)
            report.row(f"{n} models", rate=rate, unit="model-steps/s", note="torch.func.vmap, its eager optimiser")


def _ours(model, z, n, steps, precision, loop, size, report, note):
    batch_size = z.shape[1]

    def train(key, data):
        batch = lambda key, n: data["z"][jax.random.key_data(key)[-1] % len(z)].T  # noqa: E731
        given = {"data_key": data["key"], "steps": steps, "batch_size": batch_size}
        return {"loss": sp.fit(model, key, batch, **given)[1]["loss"][-1]}

    # Features are rows in memory, as `SparseFeatures` draws them.
    data = {"z": jnp.array(z.swapaxes(1, 2)), "key": jax.random.key(1)}
    found = sp.sweep(train, {}, jax.random.split(jax.random.key(2), n), data_key=data, chunk=n, progress=False)
    spent = found.seconds["run"]
    flops = 10 * batch_size * FEATURES * HIDDEN * n * steps
    counts = {
        "flops": flops,
        "bytes": 4 * batch_size * (5 * FEATURES + 9 * HIDDEN) * n * steps,
        "launches": KERNELS * steps,
        "tf32": precision == "default",
    }
    rate, of_limit = n * steps / spent, flops / report.card.flops / spent
    ratio = rate / loop if loop else None
    goal = met = None
    if size["stated"] and n == size["goal"] and precision == "highest":
        goal = "within 5 x the fp32 FLOP limit, 1,000 x the loop"
        met = of_limit >= 0.2 and (ratio or 0) >= 1000
    report.row(
        f"{n} models, {steps} steps, {precision}",
        spent,
        counts=counts,
        rate=rate,
        unit="model-steps/s",
        against="PyTorch loop" if loop else None,
        ratio=ratio,
        compile_s=found.seconds["compile"],
        goal=goal,
        met=met,
        note=f"{100 * of_limit:.0f} % of the fp32 FLOP limit; {note}",
    )


def _torch(model, z, size):
    """Model-steps a second of a loop over models, a function that finds the same under `torch.func.vmap`, and what to know."""
    from experiments.benchmark.modules import Toy
    from experiments.benchmark.race import Race

    models, steps = size["loop"]
    race = Race(SimpleNamespace(n_seeds=models, steps=steps, batch_size=z.shape[1], chunk=models), model, Toy, z)
    race.loop(1, 2)  # what PyTorch does once
    losses, spent = race.loop(models)
    ours, _ = race.ours(models)
    differ = float(abs(losses - ours).max())
    note = f"the loop is timed on {models} models and multiplied up; losses differ by {differ:.1g}"

    def vmapped(n):
        race.vmapped(n, 2)
        return n * size["vmap_steps"] / race.vmapped(n, size["vmap_steps"])[1]

    return models * steps / spent, vmapped, note

"""All pairs of models, scored in one program: matching, exact transport and ridge."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import superpos as sp

FEATURES, FOLDS = 64, 5
SIZES: dict[str, Any] = {
    "full": {"models": 64, "hidden": 32, "batch_size": 512, "batches": 40, "metrics": (("semi_match",), sp.alignment.DEFAULT)},
    "small": {"models": 3, "hidden": 4, "batch_size": 64, "batches": 5, "metrics": (("semi_match",),)},
}


def run(size: dict[str, Any], report) -> None:
    """A row for the sums over samples alone, and one for the scores of the default metrics too."""
    models, n, batch_size = size["models"], size["hidden"], size["batch_size"]
    toy, features = sp.toy.ToyModel(FEATURES, n), sp.features.SparseFeatures(FEATURES)
    samples = size["batches"] * batch_size
    # Of a pair the cross products, of a model its own and its units.
    flops = models**2 * 2 * samples * n * n + 2 * models * 2 * samples * n * (n + FEATURES)

    def train(key, data_key):
        return toy.init(key)

    def score(metrics):
        def one(a, b, eval_key):
            def add(moments, i):
                z = features.sample(jax.random.fold_in(eval_key, i), batch_size)
                return sp.moments.update(moments, toy.encode(a, z), toy.encode(b, z), i % FOLDS), None

            empty = sp.moments.init(n, n, FOLDS, sp.reads(metrics))
            moments = lax.scan(add, empty, jnp.arange(size["batches"]))[0]
            return {name: found.mean for name, found in sp.score(moments, metrics).items()}

        return one

    for metrics in size["metrics"]:
        keys = jax.random.split(jax.random.key(0), models)
        found = sp.sweep(train, {}, keys, score=score(metrics), progress=False)
        spent = found.seconds["run"]
        own = found.rows["score"][0][metrics[0]][0].diagonal()
        report.row(
            f"{models**2:,} pairs of {n} units, {samples:,} samples: {', '.join(metrics)}",
            spent,
            counts={"flops": flops, "bytes": 8 * models**2 * FOLDS * n * n * size["batches"]},
            rate=models**2 / spent,
            unit="pairs/s",
            difference=float(abs(own - 1).max()),
            compile_s=found.seconds["compile"],
            note="difference: of a model with itself from 1" + "; expected: the sums alone" * (len(metrics) > 1),
        )

"""The `metrics` suite: `sp.align` and exact transport beside what one would write with the usual libraries."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments.benchmark import ridge
from experiments.benchmark.timing import Alternative, Work
from superpos import transport


def metrics_suite(config: ConfigDict) -> list[Work]:
    """`sp.align` beside NumPy, scikit-learn and himalaya; exact transport beside POT."""
    rng = np.random.default_rng(config.seed)
    x, y = ridge.representations(rng, config.n_samples, config.n_units, config.n_units)
    ids = rng.permutation(np.arange(config.n_samples) % config.n_folds)
    everything, few = slice(None), slice(config.few_samples)

    def ours(metric, part=everything):
        return np.asarray(sp.align(x[part], y[part], metric, folds=ids[part])[metric].folds)

    def matched(match, correlate):
        both = [[correlate(x[part], y[part]) for part in (ids != k, ids == k)] for k in range(config.n_folds)]
        return np.array([match(*pair) for pair in both])

    def fold_by_fold(model, part=everything):
        return ridge.outer_folds(model, x[part], y[part], ids[part], config.outer_folds)

    slow = ridge.slow(config)
    ways = (("np.corrcoef", _by_corrcoef, "float64 inside"), ("z-scores, matmul", _by_matmul, "float32"))
    works = [
        Work(
            name,
            partial(ours, name),
            [Alternative(f"{way}, {then}", partial(matched, match, by), 5, note=note) for way, by, note in ways],
        )
        for name, match, then in (("semi_match", _semi_match, "argmax"), ("soft_match", _soft_match, "ot.emd"))
    ]
    regressions = [
        Alternative("scikit-learn RidgeCV", partial(fold_by_fold, ridge.sklearn_cv), 50, **slow),
        Alternative("NumPy on Gram matrices", partial(ridge.on_gram_matrices, x, y, ids, config.n_folds)),
    ]
    himalaya = Alternative("himalaya RidgeCV", partial(fold_by_fold, ridge.himalaya_cv, few), **slow)
    works.append(Work("ridge", partial(ours, "ridge"), regressions))
    works.append(Work(f"ridge, {len(x[few]):,} samples", partial(ours, "ridge", few), [himalaya]))
    sizes = [(config.transport_size, config.transport_size)] * config.transport_batch
    works.append(_transport(np.stack([_costs(rng, *size) for size in sizes])))
    works.append(_transport(_costs(rng, *config.large_transport)[None]))
    return works


def _costs(rng, n_source, n_target):
    return -_by_matmul(*ridge.representations(rng, 500, n_source, n_target))


def _transport(costs):
    """Objectives of a batch of problems `(problems, n, m)`, beside POT in the float64 that it computes in."""
    problems, n, m = costs.shape
    masses = transport.uniform_masses(jnp.ones(n, bool), jnp.ones(m, bool))
    ours, theirs = jnp.asarray(costs), costs.astype(np.float64)
    solve = jax.jit(jax.vmap(lambda cost: transport.exact(cost, *masses).objective))
    loop = Alternative("ot.emd" + " in a loop" * (problems > 1), lambda: np.array([_emd(cost, cost) for cost in theirs]), 0.2)
    name = f"transport, {problems} of {n} x {m}" if problems > 1 else f"transport, {n} x {m}"
    return Work(name, lambda: np.asarray(solve(ours)), [loop])


def _emd(train, test):
    """Cost under the plan that is optimal on the training part. In one thread: a network simplex goes step by step."""
    import ot

    return np.sum(ot.emd([], [], train.astype(np.float64, copy=False), numItermax=10**8) * test)


def _by_corrcoef(x, y):
    return np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]


def _by_matmul(x, y):
    a, b = ((side - side.mean(axis=0)) / side.std(axis=0) for side in (x, y))
    return a.T @ b / len(a)


def _semi_match(train, test):
    return test[np.argmax(train, axis=0), np.arange(test.shape[1])].mean()


def _soft_match(train, test):
    return -_emd(-train, -test)

"""The pure half of the comparison: scores of samples that are made batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import comparison

N_BATCHES, SIZE = 6, 40
SIZES = {"neuron": 3, "sae": 5, "ica": 2}
COMPARISONS = ("neuron->neuron", "sae->neuron", "sae->sae", "ica->ica")


def read(i, side):
    z = jax.random.exponential(jax.random.fold_in(jax.random.key(0), i), (SIZE, 4))
    keys = jax.random.split(jax.random.key(side), len(SIZES))
    mixed = {name: z @ jax.random.normal(key, (4, n)) for key, (name, n) in zip(keys, SIZES.items(), strict=True)}
    return {**mixed, "sae": jax.nn.relu(mixed["sae"])}


def encode(i):
    return read(i, 1), read(i, 2)


def whole(side):
    batches = [read(i, side) for i in range(N_BATCHES)]
    return {name: jnp.concatenate([batch[name] for batch in batches]) for name in SIZES}


IDS = np.repeat(np.arange(N_BATCHES) % 3, SIZE)


@pytest.mark.parametrize("metrics", [("semi_match",), pytest.param((sp.metrics.CKA(debiased=True),), marks=pytest.mark.slow)])
def test_scores_are_those_of_align_on_the_same_samples(metrics):
    """Views of different widths are padded to one shape, and where a metric reads squared lengths those of its own units."""
    scores, gap = jax.jit(lambda: comparison.score_batches(encode, N_BATCHES, COMPARISONS, metrics, 3))()
    assert gap == 0
    source, target = whole(1), whole(2)
    for i, pair in enumerate(COMPARISONS):
        a, b = comparison.ends(pair)
        expected = sp.align(source[a], target[b], metrics, folds=IDS)
        for metric in expected:
            np.testing.assert_allclose(scores[metric][i], expected[metric].mean, atol=1e-4, err_msg=f"{metric} of {pair}")


def test_views_that_have_nothing_in_common_share_no_products():
    pairs = {name: comparison.ends(name) for name in ("a->b", "c->d", "c->b", "e->e")}
    assert comparison.batches._related(pairs) == [["a->b", "c->d", "c->b"], ["e->e"]]


def test_recovery_is_the_highest_correlation_with_any_unit():
    def both(i):
        units = read(i, 1)
        return units, units["neuron"]

    found = comparison.recover_batches(both, N_BATCHES)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(SIZES, (3,))
    np.testing.assert_allclose(found["neuron"], 1, atol=1e-5)
    units = whole(1)
    r = np.corrcoef(units["ica"].T, units["neuron"].T)[:2, 2:]
    np.testing.assert_allclose(found["ica"], r.max(axis=0), atol=1e-4)

import numpy as np
import pytest
from scipy import stats

from superpos.stats import over_pairs, over_seeds


def test_independent_seeds_give_students_interval():
    values = np.random.default_rng(0).normal(size=7)
    summary = over_seeds(values)
    interval = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    np.testing.assert_allclose(summary["ci95"], interval)
    np.testing.assert_allclose([summary["mean"], summary["std"]], [values.mean(), values.std(ddof=1)])


@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_that_add_seed_effects_are_as_uncertain_as_the_seeds(symmetric):
    """Score a_i + a_j: the mean over pairs is twice the mean of a, however many pairs there are."""
    effects = np.random.default_rng(1).normal(size=8)
    summary = over_pairs(effects[:, None] + effects, symmetric=symmetric)
    interval = stats.t.interval(0.95, 7, 2 * effects.mean(), 2 * stats.sem(effects))
    np.testing.assert_allclose(summary["ci95"], interval)
    assert summary["n_pairs"] == (28 if symmetric else 56)


def test_interval_covers_the_truth():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        effects = rng.normal(size=8)
        noise = 0.5 * rng.normal(size=(8, 8))
        low, high = over_pairs(effects[:, None] + effects + noise)["ci95"]
        covered += low < 0 < high
    assert 0.92 < covered / 400 < 0.985


def test_the_diagonal_and_few_seeds():
    scores = np.array([[9.0, 1.0], [3.0, 9.0]])
    assert over_pairs(scores) == {"mean": 2.0, "std": np.sqrt(2), "ci95": None, "n_seeds": 2, "n_pairs": 2}
    with pytest.raises(ValueError, match="at least 2 seeds"):
        over_pairs(np.ones((1, 1)))

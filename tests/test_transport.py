import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from superpos import transport

SHAPE = (9, 7)  # one shape for all: compiled once


@jax.jit
def solve(cost, source_mask, target_mask):
    return transport.exact(cost, *transport.uniform_masses(source_mask, target_mask))


def by_pot(cost, source_mask, target_mask):
    live = np.asarray(cost, np.float64)[source_mask][:, target_mask]
    n, m = live.shape
    return np.sum(ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), live) * live)


def check(cost, source_mask, target_mask, solved):
    plan = np.asarray(solved.plan, np.float64)
    np.testing.assert_allclose(solved.objective, by_pot(cost, source_mask, target_mask), atol=1e-5)
    np.testing.assert_allclose(plan.sum(axis=1), source_mask / source_mask.sum(), atol=1e-6)
    np.testing.assert_allclose(plan.sum(axis=0), target_mask / target_mask.sum(), atol=1e-6)
    assert plan.min() >= 0
    assert abs(float(solved.gap)) < 1e-5
    slack = np.asarray(cost) - np.asarray(solved.source_dual)[:, None] - np.asarray(solved.target_dual)
    assert slack[np.ix_(source_mask, target_mask)].min() > -1e-5


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["uniform", "normal", "ties", "equal"]))
def test_any_problem_is_solved_as_pot_solves_it(seed, kind):
    rng = np.random.default_rng(seed)
    cost = {
        "uniform": lambda: rng.random(SHAPE),
        "normal": lambda: rng.normal(size=SHAPE),
        "ties": lambda: rng.integers(0, 3, SHAPE),
        "equal": lambda: np.full(SHAPE, 0.5),
    }[kind]().astype(np.float32)
    masks = [np.arange(n) < rng.integers(1, n + 1) for n in SHAPE]
    masks = [rng.permutation(mask) for mask in masks]
    check(cost, *masks, solve(cost, *masks))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (64, 64), (60, 61), (33, 16)])
def test_sizes(shape):
    rng = np.random.default_rng(1)
    cost = -np.corrcoef(rng.normal(size=(50, sum(shape))).T)[: shape[0], shape[0] :].astype(np.float32)
    masks = [np.ones(n, bool) for n in shape]
    check(cost, *masks, solve(cost, *masks))


def test_square_problems_are_assignments():
    cost = np.random.default_rng(2).random((20, 20)).astype(np.float32)
    solved = solve(cost, np.ones(20, bool), np.ones(20, bool))
    rows, cols = linear_sum_assignment(cost)
    np.testing.assert_array_equal(np.argmax(solved.plan, axis=1), cols[rows.argsort()])


def test_lanes_of_a_vmap_are_the_problems_alone():
    rng = np.random.default_rng(3)
    cost = rng.random((6, *SHAPE)).astype(np.float32)
    masks = [rng.random((6, n)) < 0.8 for n in SHAPE]
    together = jax.jit(jax.vmap(solve))(cost, *masks)
    for i in range(6):
        check(cost[i], masks[0][i], masks[1][i], jax.tree.map(lambda leaf, i=i: leaf[i], together))


def test_unequal_masses():
    rng = np.random.default_rng(4)
    source, target = np.array([3, 0, 5, 4]), np.array([2, 9, 1])
    cost = rng.random((4, 3)).astype(np.float32)
    solved = transport.exact(cost, source, target)
    plan = ot.emd(source / 12, target / 12, cost.astype(np.float64))
    np.testing.assert_allclose(solved.objective, np.sum(plan * cost), atol=1e-6)
    np.testing.assert_allclose(solved.plan.sum(axis=1), source / 12, atol=1e-6)


def test_scale_of_costs_does_not_matter():
    cost = np.random.default_rng(5).random(SHAPE).astype(np.float32)
    masks = [np.ones(n, bool) for n in SHAPE]
    plans = [np.asarray(solve(scale * cost, *masks).plan) for scale in (1e-4, 1.0, 1e4)]
    np.testing.assert_allclose(plans[0], plans[1], atol=1e-6)
    np.testing.assert_allclose(plans[2], plans[1], atol=1e-6)


def test_an_offset_costs_no_digits():
    cost = np.random.default_rng(6).random(SHAPE).astype(np.float32).round(2)
    masks = [np.ones(n, bool) for n in SHAPE]
    moved = solve(cost + np.float32(1024), *masks)
    assert abs(float(moved.gap)) < 1e-4  # 1024 leaves four decimals
    np.testing.assert_allclose(moved.objective - 1024, by_pot(cost, *masks), atol=5e-4)


def test_what_is_masked_may_be_nan():
    cost = np.random.default_rng(7).random(SHAPE).astype(np.float32)
    masks = [np.arange(9) != 2, np.arange(7) != 4]
    cost[2], cost[:, 4] = np.nan, np.inf
    solved = solve(cost, *masks)
    np.testing.assert_allclose(solved.objective, by_pot(cost, *masks), atol=1e-5)
    assert abs(float(solved.gap)) < 1e-5


def test_nothing_calls_the_host():
    jaxpr = str(jax.make_jaxpr(solve)(jnp.zeros(SHAPE), jnp.ones(9, bool), jnp.ones(7, bool)))
    assert "callback" not in jaxpr


def test_no_live_unit_is_nan_and_ends():
    assert np.isnan(solve(np.zeros(SHAPE, np.float32), np.zeros(9, bool), np.ones(7, bool)).plan).all()

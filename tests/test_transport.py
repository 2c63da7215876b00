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


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (20, 20), (60, 61)])
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
    solved = jax.jit(transport.exact)(cost, source, target)
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


def test_large_problems_are_priced_by_blocks():
    rng = np.random.default_rng(8)
    shape = (300, 450)
    assert shape[0] * shape[1] > transport._BLOCK
    latent = rng.normal(size=(400, 20))
    x, y = (latent @ rng.normal(size=(20, n)) + rng.normal(size=(400, n)) for n in shape)
    cost = -np.corrcoef(x.T, y.T)[: shape[0], shape[0] :].astype(np.float32)
    masks = [rng.random(n) < 0.9 for n in shape]
    check(cost, *masks, solve(cost, *masks))


def test_double_precision():
    with jax.enable_x64(True):
        cost = np.random.default_rng(9).normal(size=(40, 30))
        solved = jax.jit(transport.exact)(cost, *transport.uniform_masses(np.ones(40, bool), np.ones(30, bool)))
        by = by_pot(cost, np.ones(40, bool), np.ones(30, bool))
        np.testing.assert_allclose(solved.objective, by, atol=1e-10)
        assert abs(float(solved.gap)) < 1e-10


def bound(cost, u, v, a, b, moved):
    """The dual objective of `superpos.transport`'s docstring, after the check that the potentials are feasible."""
    live = a > 0, b > 0
    u, v = np.asarray(u, np.float64)[live[0]], np.asarray(v, np.float64)[live[1]]
    cost, a, b = np.asarray(cost, np.float64)[np.ix_(*live)], a[live[0]], b[live[1]]
    assert (cost - u[:, None] - v).min() > -1e-5
    return u @ a + v @ b - (a.sum() - moved) * u.max() - (b.sum() - moved) * v.max()


assign = jax.jit(transport.assignment)
assign_lanes = jax.jit(jax.vmap(transport.assignment))


def check_assignment(cost, source_mask, target_mask, solved):
    live = np.asarray(cost, np.float64)[source_mask][:, target_mask]
    pairs = min(live.shape)
    rows, cols = linear_sum_assignment(live)
    target_of, source_of = np.asarray(solved.target_of), np.asarray(solved.source_of)
    matched = np.flatnonzero(target_of >= 0)
    assert len(matched) == pairs == np.sum(source_of >= 0)
    assert source_mask[matched].all()
    assert target_mask[target_of[matched]].all()
    np.testing.assert_array_equal(source_of[target_of[matched]], matched)
    least = live[rows, cols].sum()
    np.testing.assert_allclose(np.asarray(cost, np.float64)[matched, target_of[matched]].sum(), least, atol=2e-5)
    np.testing.assert_allclose(solved.objective, least, atol=2e-5)
    dual = bound(cost, solved.source_dual, solved.target_dual, source_mask.astype(float), target_mask.astype(float), pairs)
    np.testing.assert_allclose(least - dual, solved.gap, atol=3e-5)
    assert abs(float(solved.gap)) < 2e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["uniform", "normal", "ties", "equal"]))
def test_any_assignment_is_as_cheap_as_by_scipy(seed, kind):
    rng = np.random.default_rng(seed)
    cost = {
        "uniform": lambda: rng.random(SHAPE),
        "normal": lambda: rng.normal(size=SHAPE),
        "ties": lambda: rng.integers(-2, 3, SHAPE),
        "equal": lambda: np.full(SHAPE, -0.5),
    }[kind]().astype(np.float32)
    masks = [rng.permutation(np.arange(n) < rng.integers(1, n + 1)) for n in SHAPE]
    check_assignment(cost, *masks, assign(cost, *masks))


@pytest.mark.parametrize("shape", [(1, 1), (25, 40)])
def test_assignment_without_masks(shape):
    cost = np.random.default_rng(10).normal(size=shape).astype(np.float32)
    check_assignment(cost, *(np.ones(n, bool) for n in shape), assign(cost))


def test_assignments_in_a_vmap():
    rng = np.random.default_rng(11)
    cost = rng.random((6, *SHAPE)).astype(np.float32)
    masks = [rng.random((6, n)) < 0.7 for n in SHAPE]
    together = assign_lanes(cost, *masks)
    for i in range(6):
        check_assignment(cost[i], masks[0][i], masks[1][i], jax.tree.map(lambda leaf, i=i: leaf[i], together))


def test_assignment_with_an_empty_side_matches_nothing():
    solved = assign(np.ones(SHAPE, np.float32), np.ones(9, bool), np.zeros(7, bool))
    assert (np.asarray(solved.target_of) == -1).all()
    assert (np.asarray(solved.source_of) == -1).all()
    assert float(solved.objective) == 0


part = jax.jit(transport.partial)


@pytest.mark.parametrize("kind", ["normal", "ties", "positive"])
@pytest.mark.parametrize("mass", [0.05, 0.3, 0.5, 0.77, 0.99])
def test_partial_transport_costs_what_pot_says(kind, mass):
    rng = np.random.default_rng(12)
    for _ in range(4):
        cost = {
            "normal": lambda: rng.normal(size=SHAPE),
            "ties": lambda: rng.integers(0, 3, SHAPE) / 2,
            "positive": lambda: 1 + rng.random(SHAPE),
        }[kind]().astype(np.float32)
        masks = [rng.permutation(np.arange(n) < rng.integers(2, n + 1)) for n in SHAPE]
        solved, moved = part(cost, *masks, mass)
        a, b = (mask / mask.sum() for mask in masks)
        plan = np.asarray(solved.plan, np.float64)
        np.testing.assert_allclose(moved, mass, atol=1e-6)
        np.testing.assert_allclose(plan.sum(), mass, atol=1e-6)
        assert (plan.sum(axis=1) <= a + 1e-6).all()
        assert (plan.sum(axis=0) <= b + 1e-6).all()
        assert plan.min() >= 0
        live = cost[masks[0]][:, masks[1]].astype(np.float64)
        live = live - live.min()  # POT's dummies cost 0 and no cost may be below that
        by = ot.partial.partial_wasserstein(a[masks[0]], b[masks[1]], live, m=mass)
        cheapest = np.sum(by * (live + cost[masks[0]][:, masks[1]].min()))
        np.testing.assert_allclose(solved.objective, cheapest, atol=1e-5)
        dual = bound(cost, solved.source_dual, solved.target_dual, a, b, float(moved))
        np.testing.assert_allclose(cheapest - dual, 0, atol=1e-5)
        assert abs(float(solved.gap)) < 1e-5


def test_partial_transport_of_all_mass_is_exact():
    rng = np.random.default_rng(13)
    cost = rng.normal(size=SHAPE).astype(np.float32)
    masks = [rng.random(n) < 0.8 for n in SHAPE]
    solved, moved = part(cost, *masks, 1.0)
    whole = solve(cost, *masks)
    assert float(moved) == 1
    np.testing.assert_allclose(solved.plan, whole.plan, atol=1e-6)
    check(cost, *masks, solved)


def test_masses_of_a_vmap_are_nested_in_cost():
    rng = np.random.default_rng(14)
    cost = rng.random(SHAPE).astype(np.float32)
    masses = np.linspace(0.1, 1, 6).astype(np.float32)
    solved, moved = jax.jit(jax.vmap(lambda mass: part(cost, np.ones(9, bool), np.ones(7, bool), mass)))(masses)
    np.testing.assert_allclose(moved, masses, atol=1e-6)
    assert (np.diff(solved.objective, n=2) > -1e-5).all()  # convex in the mass
    assert np.abs(solved.gap).max() < 1e-5


def test_nothing_calls_the_host():
    jaxpr = str(jax.make_jaxpr(solve)(jnp.zeros(SHAPE), jnp.ones(9, bool), jnp.ones(7, bool)))
    assert "callback" not in jaxpr


def test_no_live_unit_is_nan_and_ends():
    assert np.isnan(solve(np.zeros(SHAPE, np.float32), np.zeros(9, bool), np.ones(7, bool)).plan).all()

"""Exact optimal transport as JAX ops, masked and batched.

A transportation simplex whose spanning tree is held as bit sets, so that a pivot is a handful of vector operations on
`n + m` nodes and one dense pricing of the cost matrix: nothing walks the tree. All lanes of a `vmap` run the same short
loop, and the number of pivots varies little between them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Transport(NamedTuple):
    """An optimal plan and its certificate.

    Attributes:
        plan: `(n, m)`, mass moved from source to target; sums to 1.
        source_dual: `(n,)` potentials u.
        target_dual: `(m,)` potentials v, with u_i + v_j <= cost_ij on units that carry mass.
        objective: sum of plan times cost.
        gap: objective minus the dual objective: an upper bound on how far the plan is from optimal.
        pivots: simplex pivots after the start.
    """

    plan: Float[Array, "n m"]
    source_dual: Float[Array, " n"]
    target_dual: Float[Array, " m"]
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    pivots: Int[Array, ""]


def uniform_masses(source_mask: Bool[Array, " n"], target_mask: Bool[Array, " m"]) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    """Smallest integer masses that are uniform over the live units of each side and have equal sums."""
    n_source, n_target = jnp.sum(source_mask, dtype=jnp.int32), jnp.sum(target_mask, dtype=jnp.int32)
    divisor = jnp.maximum(jnp.gcd(n_source, n_target), 1)
    return (
        jnp.where(source_mask, n_target // divisor, 0),
        jnp.where(target_mask, n_source // divisor, 0),
    )


def exact(cost: Float[Array, "n m"], source_mass: Int[Array, " n"], target_mass: Int[Array, " m"]) -> Transport:
    """Solves min <plan, cost> over plans with the given marginals, exactly.

    The transportation simplex of Dantzig (1951) with most-negative pricing. It starts from a greedy tree on the costs
    reduced by a few Sinkhorn iterations (Cuturi 2013), which leaves about one pivot per unit. Masses are perturbed
    in the classical way (Orden 1956: one extra quantum on each source, all of them on the last target), so that no basis
    is degenerate and the method cannot cycle; the plan returned is that of the optimal tree at the masses given.

    Exact to rounding: the objective is within about 16 eps of the range of the costs.

    Args:
        cost: `(n, m)`, finite where both units carry mass. Gradients do not flow through the solver: the plan is piecewise
            constant in the cost.
        source_mass: `(n,)` non-negative integers; a unit of mass 0 is masked.
        target_mass: `(m,)` likewise, with the same sum. `(n + 1)` times the largest mass must stay below 2**31.

    Returns:
        A `Transport`; its plan is NaN where no unit carries mass.
    """
    cost = lax.stop_gradient(jnp.asarray(cost))
    source_mass, target_mass = jnp.asarray(source_mass), jnp.asarray(target_mass)
    n, m = cost.shape
    n_nodes = n + m
    n_words = -(-(n_nodes - 1) // 32)
    n_slots = 32 * n_words  # every arc of the tree occupies one slot, and one bit of a node's path
    rows, cols, slots = jnp.arange(n), jnp.arange(m), jnp.arange(n_slots, dtype=jnp.int32)
    nodes, words = jnp.arange(n_nodes), jnp.arange(n_words)
    infinity = jnp.array(jnp.inf, cost.dtype)

    source_live, target_live = source_mass > 0, target_mass > 0
    live = source_live[:, None] & target_live[None, :]
    n_live = jnp.sum(source_live, dtype=jnp.int32)
    n_arcs = n_live + jnp.sum(target_live, dtype=jnp.int32) - 1
    last = jnp.max(jnp.where(target_live, cols, -1))
    supply = jnp.where(source_live, (n + 1) * source_mass + 1, 0).astype(jnp.int32)
    demand = ((n + 1) * target_mass + jnp.where(cols == last, n_live, 0)).astype(jnp.int32)
    lowest = jnp.min(jnp.where(live, cost, infinity))
    cost = jnp.where(live, cost - lowest, 0)  # an offset changes no plan, only costs digits
    priced = jnp.where(live, cost, infinity)
    tolerance = 16 * jnp.finfo(cost.dtype).eps * jnp.max(cost)

    def bit(slot):
        one = jnp.uint32(1) << (slot % 32).astype(jnp.uint32)
        return jnp.where(words == slot // 32, one, jnp.uint32(0))

    def unpack(sets):
        bits = (sets[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        return bits.reshape(*sets.shape[:-1], n_slots).astype(bool)

    # 1. A greedy tree: each step fills the cheapest remaining cell and exhausts exactly one unit.
    reduced = priced - _sinkhorn_potential(priced, source_live, target_live)[:, None]
    reduced = reduced - jnp.where(target_live, jnp.min(reduced, axis=0), 0)

    def fill(state):
        k, supply, demand, row, col, flow, child_is_row = state
        open_ = jnp.where((supply > 0)[:, None], reduced, infinity)
        j = jnp.argmin(jnp.where(demand > 0, jnp.min(open_, axis=0), infinity))
        i = jnp.argmin(jnp.where(supply > 0, reduced[:, j], infinity))
        amount, here = jnp.minimum(supply[i], demand[j]), slots == k
        return (
            k + 1,
            jnp.where(rows == i, supply - amount, supply),
            jnp.where(cols == j, demand - amount, demand),
            jnp.where(here, i.astype(jnp.int32), row),
            jnp.where(here, j.astype(jnp.int32), col),
            jnp.where(here, amount, flow),
            jnp.where(here, supply[i] < demand[j], child_is_row),
        )

    none = jnp.zeros(n_slots, jnp.int32)
    start = (jnp.int32(0), supply, demand, none, none, none, jnp.zeros(n_slots, bool))
    *_, row, col, flow, child_is_row = lax.while_loop(lambda state: state[0] < n_arcs, fill, start)

    # 2. Root the tree at the unit that was exhausted last. paths[v] holds the arcs between the root and node v.
    def hang(t, state):
        paths, u, v = state
        k = n_slots - 1 - t
        i, j, is_row, used = row[k], col[k], child_is_row[k], k < n_arcs
        child, parent = jnp.where(is_row, i, n + j), jnp.where(is_row, n + j, i)
        paths = jnp.where((used & (nodes == child))[:, None], paths[parent] | bit(k), paths)
        new_u, new_v = cost[i, j] - v[j], cost[i, j] - u[i]
        u = jnp.where(used & is_row & (rows == i), new_u, u)
        v = jnp.where(used & ~is_row & (cols == j), new_v, v)
        return paths, u, v

    forest = (jnp.zeros((n_nodes, n_words), jnp.uint32), jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype))
    paths, u, v = lax.fori_loop(0, n_slots, hang, forest)

    # 3. Pivot until no arc has a negative reduced cost.
    def price(u, v):
        column = jnp.min(priced - u[:, None], axis=0) - v
        j = jnp.argmin(column)
        i = jnp.argmin(priced[:, j] - u)
        return i.astype(jnp.int32), j.astype(jnp.int32), column[j]

    def pivot(state):
        paths, flow, child_is_row, row, col, u, v, (i, j, excess), count = state
        from_i, from_j = paths[i], paths[n + j]
        cycle = from_i ^ from_j
        i_side, j_side = unpack(from_i & ~from_j), unpack(from_j & ~from_i)
        falling = (i_side & child_is_row) | (j_side & ~child_is_row)
        leaving = jnp.argmin(jnp.where(falling, flow, jnp.iinfo(jnp.int32).max)).astype(jnp.int32)
        amount, here, on_i_side = flow[leaving], slots == leaving, i_side[leaving]
        flow = jnp.where(falling, flow - amount, jnp.where(i_side | j_side, flow + amount, flow))
        # What hung below the leaving arc hangs from the entering one now: its paths change by the cycle.
        moved = ((paths[:, leaving // 32] >> (leaving % 32).astype(jnp.uint32)) & 1).astype(bool)
        child = jnp.where(child_is_row, row, n + col)
        turned = jnp.where(on_i_side, i_side, j_side) & moved[child] & ~here
        paths = paths ^ jnp.where(moved[:, None], cycle & ~bit(leaving), jnp.uint32(0))
        shift = jnp.where(on_i_side, excess, -excess)
        u, v = u + jnp.where(moved[:n], shift, 0), v - jnp.where(moved[n:], shift, 0)
        return (
            paths,
            jnp.where(here, amount, flow),
            jnp.where(here, on_i_side, child_is_row ^ turned),
            jnp.where(here, i, row),
            jnp.where(here, j, col),
            u,
            v,
            price(u, v),
            count + 1,
        )

    def improvable(state):
        *_, (_, _, excess), count = state
        return (excess < -tolerance) & (count < 50 * n_nodes)  # the bound only guards against non-finite costs

    tree = (paths, flow, child_is_row, row, col, u, v, price(u, v), jnp.int32(0))
    paths, _, _, row, col, u, v, _, pivots = lax.while_loop(improvable, pivot, tree)

    # 4. The optimal tree at the masses given: an arc carries the net mass of what hangs below it.
    net = jnp.concatenate([source_mass, -target_mass]).astype(jnp.int32)
    carried = jnp.where(slots < n_arcs, jnp.abs(net @ unpack(paths).astype(jnp.int32)), 0).astype(cost.dtype)
    from_row = jnp.where(row[:, None] == rows, carried[:, None], 0)
    to_col = (col[:, None] == cols).astype(cost.dtype)
    total = jnp.sum(source_mass).astype(cost.dtype)
    plan = jnp.matmul(from_row.T, to_col, precision=lax.Precision.HIGHEST) / total

    # Rounding may leave the potentials infeasible by a few ulps: mend the target's, so that the gap is a certificate.
    v = jnp.where(target_live, jnp.min(priced - u[:, None], axis=0), 0)
    u = jnp.where(source_live, u, 0)
    objective = jnp.sum(plan * cost)
    dual = (jnp.sum(u * source_mass) + jnp.sum(v * target_mass)) / total
    return Transport(plan, jnp.where(source_live, u + lowest, 0), v, objective + lowest, objective - dual, pivots)


def _sinkhorn_potential(priced, source_live, target_live, iterations=20):
    """Source potentials of entropic transport: a cheap estimate of the dual solution, for the greedy start only."""
    infinity = jnp.array(jnp.inf, priced.dtype)
    u = jnp.where(source_live, jnp.min(priced, axis=1), 0)
    v = jnp.where(target_live, jnp.min(priced - u[:, None], axis=0), 0)
    spread = priced - u[:, None] - v
    largest = jnp.max(jnp.where(spread < infinity, spread, 0))
    epsilon = jnp.maximum(0.025 * largest, jnp.finfo(priced.dtype).tiny)
    kernel = jnp.exp(-spread / epsilon)
    a = source_live / jnp.maximum(jnp.sum(source_live), 1)
    b = target_live / jnp.maximum(jnp.sum(target_live), 1)

    def iterate(_, state):
        _, y = state
        x = jnp.where(source_live, a / jnp.maximum(kernel @ y, 1e-30), 0).astype(priced.dtype)
        y = jnp.where(target_live, b / jnp.maximum(x @ kernel, 1e-30), 0).astype(priced.dtype)
        return x, y

    x, _ = lax.fori_loop(0, iterations, iterate, (a.astype(priced.dtype), b.astype(priced.dtype)))
    return u + epsilon * jnp.log(jnp.where(source_live, jnp.maximum(x, 1e-30), 1))

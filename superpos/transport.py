"""Optimal transport as JAX ops, masked and batched: exact, one to one, partial, and entropic where exact is too slow.

The exact solver is a transportation simplex whose spanning tree is held as bit sets, so that a pivot is a handful of vector
operations on `n + m` nodes and one pricing of a block of the cost matrix: nothing walks the tree. All lanes of a `vmap` run
the same short loop, and the number of pivots varies little between them.

Every result holds potentials that are feasible, so that its `gap` proves how good it is. For any u_i + v_j <= cost_ij, a plan
that moves mass s out of marginals a and b of mass A and B costs at least

    <u, a> + <v, b> - (A - s) max u - (B - s) max v,

where the last two terms vanish when all the mass moves.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 2**16  # cells priced at once: all of a small problem, about 20 microseconds of a large one


class Transport(NamedTuple):
    """A plan and its certificate.

    Attributes:
        plan: `(n, m)`, mass moved from source to target; sums to 1 (to the mass moved, where transport is partial).
        source_dual: `(n,)` potentials u.
        target_dual: `(m,)` potentials v, with u_i + v_j <= cost_ij on units that carry mass.
        objective: sum of plan times cost.
        gap: objective minus the dual objective: an upper bound on how far the plan is from optimal.
        pivots: simplex pivots after the start, or Sinkhorn iterations.
    """

    plan: Float[Array, "n m"]
    source_dual: Float[Array, " n"]
    target_dual: Float[Array, " m"]
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    pivots: Int[Array, ""]


class Assignment(NamedTuple):
    """An optimal one-to-one matching and its certificate.

    Attributes:
        target_of: `(n,)` the target matched to each source, or -1.
        source_of: `(m,)` the source matched to each target, or -1.
        source_dual: `(n,)` potentials u.
        target_dual: `(m,)` potentials v, with u_i + v_j <= cost_ij on live units.
        objective: sum of the costs of the matched pairs.
        gap: objective minus the dual objective: an upper bound on how far the matching is from optimal.
        pivots: simplex pivots after the start.
    """

    target_of: Int[Array, " n"]
    source_of: Int[Array, " m"]
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

    The transportation simplex of Dantzig (1951), priced a block of rows at a time. It starts from a greedy tree on the costs
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
    words = jnp.arange(n_words)
    infinity = jnp.array(jnp.inf, cost.dtype)

    source_live, target_live = source_mass > 0, target_mass > 0
    n_live = jnp.sum(source_live, dtype=jnp.int32)
    n_arcs = n_live + jnp.sum(target_live, dtype=jnp.int32) - 1
    last = jnp.max(jnp.where(target_live, cols, -1))
    supply = jnp.where(source_live, (n + 1) * source_mass + 1, 0).astype(jnp.int32)
    demand = ((n + 1) * target_mass + jnp.where(cols == last, n_live, 0)).astype(jnp.int32)
    cost, priced, lowest = _shifted(cost, source_live, target_live)
    tolerance = 16 * jnp.finfo(cost.dtype).eps * jnp.max(cost)

    def bit(slot):
        one = jnp.uint32(1) << (slot % 32).astype(jnp.uint32)
        return jnp.where(words == slot // 32, one, jnp.uint32(0))

    def unpack(sets):
        bits = (sets[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        return bits.reshape(*sets.shape[:-1], n_slots).astype(bool)

    # 1. A greedy tree: each step fills the cheapest remaining cell and exhausts exactly one unit.
    total = jnp.sum(source_mass).astype(cost.dtype)
    a, b = source_mass / total, target_mass / total
    u, v, largest = _tight(priced, source_live, target_live)
    for k in range(1 if n * m <= _BLOCK else 4):
        u, v, _ = _scale(priced, a, b, u, v, 0.025 * 0.4**k * largest, 20)
    reduced = priced - u[:, None]
    by_col = (reduced - jnp.where(target_live, jnp.min(reduced, axis=0), 0)).T

    def fill(state):
        k, supply, demand, best, cell, flow, child_is_row = state
        j = _argmin(best)
        line = jnp.where(supply > 0, by_col[j], infinity)
        i = _argmin(line)
        current = ~(line[i] > best[j])  # else the row that was cheapest is exhausted: this step only looks up the next one
        amount, here = jnp.where(current, jnp.minimum(supply[i], demand[j]), 0), current & (slots == k)
        ends_row = supply[i] < demand[j]
        following = jnp.min(jnp.where(current & ends_row & (rows == i), infinity, line))
        return (
            k + current,
            jnp.where(rows == i, supply - amount, supply),
            jnp.where(cols == j, demand - amount, demand),
            jnp.where(cols == j, jnp.where(current & ~ends_row, infinity, following), best),
            jnp.where(here, i * m + j, cell),
            jnp.where(here, amount, flow),
            jnp.where(here, ends_row, child_is_row),
        )

    none = jnp.zeros(n_slots, jnp.int32)
    start = (jnp.int32(0), supply, demand, jnp.min(by_col, axis=1), none, none, none > 0)
    *_, cell, flow, child_is_row = lax.while_loop(lambda state: state[0] < n_arcs, fill, start)

    # 2. Root the tree at the unit that was exhausted last. paths[v] holds the arcs between the root and node v.
    def hang(t, state):
        paths, u, v = state
        k = n_slots - 1 - t
        i, j, is_row, used = cell[k] // m, cell[k] % m, child_is_row[k], k < n_arcs
        child, parent = jnp.where(is_row, i, n + j), jnp.where(is_row, n + j, i)
        paths = paths.at[child].set(jnp.where(used, paths[parent] | bit(k), paths[child]))
        new_u, new_v = cost[i, j] - v[j], cost[i, j] - u[i]
        u = jnp.where(used & is_row & (rows == i), new_u, u)
        v = jnp.where(used & ~is_row & (cols == j), new_v, v)
        return paths, u, v

    forest = (jnp.zeros((n_nodes, n_words), jnp.uint32), jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype))
    paths, u, v = lax.fori_loop(0, n_slots, hang, forest)

    # 3. Pivot until no arc has a negative reduced cost. Large problems are priced a block of rows at a time, in turn.
    height = min(n, max(1, _BLOCK // m))

    def scan(first, u, v):
        start, block = jnp.int32(0), priced
        if height < n:
            start = jnp.minimum(first, n - height)
            block, u = (lax.dynamic_slice_in_dim(x, start, height) for x in (priced, u))
        column = jnp.min(block - u[:, None], axis=0) - v
        j = _argmin(column)
        return start + _argmin(block[:, j] - u), j, column[j]

    def price(first, u, v):
        if height == n:
            return first, *scan(first, u, v)

        def look(state):
            first, looked, *_ = state
            return jnp.where(first + height < n, first + height, 0), looked + height, *scan(first, u, v)

        nothing = (first, jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.zeros((), cost.dtype))
        first, _, *found = lax.while_loop(lambda state: (state[-1] >= -tolerance) & (state[1] < n + height), look, nothing)
        return first, *found

    def pivot(state):
        paths, flow, child_is_row, cell, u, v, (first, i, j, excess), count = state
        from_i, from_j = paths[i], paths[n + j]
        cycle = from_i ^ from_j
        i_side, j_side = unpack(from_i & ~from_j), unpack(from_j & ~from_i)
        falling = (i_side & child_is_row) | (j_side & ~child_is_row)
        leaving = _argmin(jnp.where(falling, flow, jnp.iinfo(jnp.int32).max))
        amount, here, on_i_side = flow[leaving], slots == leaving, i_side[leaving]
        flow = jnp.where(falling, flow - amount, jnp.where(i_side | j_side, flow + amount, flow))
        # What hung below the leaving arc hangs from the entering one now: its paths change by the cycle, and the arcs
        # between the two turn over.
        moved = ((paths[:, leaving // 32] >> (leaving % 32).astype(jnp.uint32)) & 1).astype(bool)
        above = paths[jnp.where(child_is_row[leaving], cell[leaving] // m, n + cell[leaving] % m)]
        turned = unpack(jnp.where(on_i_side, from_i, from_j) & ~above)
        paths = paths ^ jnp.where(moved[:, None], cycle & ~bit(leaving), jnp.uint32(0))
        shift = jnp.where(on_i_side, excess, -excess)
        u, v = u + jnp.where(moved[:n], shift, 0), v - jnp.where(moved[n:], shift, 0)
        return (
            paths,
            jnp.where(here, amount, flow),
            jnp.where(here, on_i_side, child_is_row ^ turned),
            jnp.where(here, i * m + j, cell),
            u,
            v,
            price(first, u, v),
            count + 1,
        )

    def improvable(state):
        *_, (*_, excess), count = state
        return (excess < -tolerance) & (count < 50 * n_nodes)  # the bound only guards against non-finite costs

    tree = (paths, flow, child_is_row, cell, u, v, price(jnp.int32(0), u, v), jnp.int32(0))
    paths, _, _, cell, u, v, _, pivots = lax.while_loop(improvable, pivot, tree)

    # 4. The optimal tree at the masses given: an arc carries the net mass of what hangs below it.
    net = jnp.concatenate([source_mass, -target_mass]).astype(jnp.int32)
    below = jnp.sum(jnp.where(unpack(paths), net[:, None], 0), axis=0)
    carried = jnp.where(slots < n_arcs, jnp.abs(below), 0).astype(cost.dtype)
    plan = jnp.zeros(n * m, cost.dtype).at[cell].add(carried).reshape(n, m) / total

    u, v, dual = _bound(priced, u, a, b)
    objective = jnp.sum(plan * cost)
    return Transport(plan, jnp.where(source_live, u + lowest, 0), v, objective + lowest, objective - dual, pivots)


def assignment(
    cost: Float[Array, "n m"],
    source_mask: Bool[Array, " n"] | None = None,
    target_mask: Bool[Array, " m"] | None = None,
) -> Assignment:
    """Matches as many live units as there are on the smaller side, one to one, at the least total cost.

    Transport of one quantum a unit, by `exact`; a dummy unit takes what the larger side has over. The least cost is exact to
    rounding, and which of several optimal matchings is returned is not specified.

    Args:
        cost: `(n, m)`, finite where both units are live; may be negative (pass similarities with a minus sign).
        source_mask: `(n,)`, the live sources; all by default.
        target_mask: `(m,)`, the live targets; all by default.

    Returns:
        An `Assignment`; with no live unit on a side nothing is matched (with none on either, the objective is NaN).
    """
    source = jnp.ones(cost.shape[0], bool) if source_mask is None else jnp.asarray(source_mask)
    target = jnp.ones(cost.shape[1], bool) if target_mask is None else jnp.asarray(target_mask)
    pairs = jnp.minimum(jnp.sum(source, dtype=jnp.int32), jnp.sum(target, dtype=jnp.int32))
    solved = _unbalanced(cost, source.astype(jnp.int32), target.astype(jnp.int32), pairs, 1)
    chosen = solved.plan > 0.5
    return Assignment(
        jnp.where(jnp.any(chosen, axis=1), jnp.argmax(chosen, axis=1), -1),
        jnp.where(jnp.any(chosen, axis=0), jnp.argmax(chosen, axis=0), -1),
        *solved[1:],
    )


def partial(
    cost: Float[Array, "n m"],
    source_mask: Bool[Array, " n"],
    target_mask: Bool[Array, " m"],
    mass: Float[Array, ""] | float,
) -> tuple[Transport, Float[Array, ""]]:
    """Moves a share of the mass between uniform masses on live units, exactly: the cheapest plan, wherever it leaves the rest.

    min <P, cost> over P >= 0 with row sums at most 1 / n_live, column sums at most 1 / m_live, and sum(P) = mass. Balanced
    transport with a dummy unit a side that takes what stays (Chapel, Alaya & Gasso 2020, arXiv 2002.08276), by `exact`.

    `source_dual` and `target_dual` are feasible for u_i + v_j <= cost_ij, and `gap` is the objective minus the bound of the
    module's docstring with A = B = 1 and s the mass moved. It certifies optimality among plans that move exactly that mass
    within the marginals; it says nothing about other masses.

    Args:
        cost: `(n, m)`, finite where both units are live.
        source_mask: `(n,)`, the live sources.
        target_mask: `(m,)`, the live targets.
        mass: in [0, 1], may be traced; rounded to a multiple of 1 / (k lcm), where lcm is the least common multiple of the
            live counts and k the largest integer with `(n + 2) * k * lcm` below 2**31.

    Returns:
        A `Transport` whose plan sums to the mass moved, and that mass, which is `mass` after rounding. With `mass` 1 it is
        `exact`. NaN where no unit is live. Where `(n + 2) * lcm` is 2**31 or more (1300 by 1299 live units, say), masses are
        uniform only to one part in `2**31 / (n + 2) / n_live`.
    """
    source, target = uniform_masses(source_mask, target_mask)
    total = jnp.sum(source)
    most = (2**31 - 1) // (cost.shape[0] + 2)
    quanta = most // jnp.maximum(total, 1)
    fits = quanta > 0
    source = jnp.where(fits, source * quanta, _spread(source_mask, most))
    target = jnp.where(fits, target * quanta, _spread(target_mask, most))
    total = jnp.where(fits, total * quanta, jnp.where(total > 0, most, 0))
    # What stays is rounded, not what moves: so mass 1 leaves nothing, though float32 may not hold the total.
    stays = jnp.clip(jnp.round((1 - jnp.asarray(mass)) * total).astype(jnp.int32), 0, total)
    solved = _unbalanced(cost, source, target, total - stays, total)
    return solved, (total - stays) / total.astype(solved.plan.dtype)


def sinkhorn(
    cost: Float[Array, "n m"],
    source_weights: Float[Array, " n"],
    target_weights: Float[Array, " m"],
    epsilon: Float[Array, ""] | float,
    *,
    tolerance: float = 1e-3,
    iterations: int = 2000,
) -> Transport:
    """Entropic transport, min <P, cost> + epsilon <P, log P>, rounded to the marginals: for problems too large for `exact`.

    Sinkhorn iterations (Cuturi 2013) with potentials absorbed into the kernel and epsilon lowered by steps (Schmitzer 2019,
    arXiv 1610.06519), until the marginals are met to `tolerance` in the L1 norm. The plan is rounded to the exact marginals
    (Altschuler, Weed & Rigollet 2017, arXiv 1705.09634), and the potentials are made feasible by c-transforms: so `gap` bounds
    how far the plan is from the optimum *without* entropy, converged or not. It shrinks with epsilon, like epsilon log(n m).

    Gradients flow to the plan, and to all that is computed from it, by implicit differentiation at the fixed point (exact only
    there: lower `tolerance` for accurate ones). They are those of the entropic problem, and none flow through the potentials.

    Args:
        cost: `(n, m)`, finite where both units carry mass.
        source_weights: `(n,)` non-negative, scaled to sum to 1; a unit of weight 0 is masked.
        target_weights: `(m,)` likewise.
        epsilon: strength of the entropy, in units of the cost; may be traced. In float32 at least 1e-4 of the costs' range.
        tolerance: on the L1 distance of the marginals before rounding.
        iterations: at most this many, in tens; when they end before epsilon is reached, the plan is that of the last epsilon.

    Returns:
        A `Transport`; its plan is NaN where no unit carries mass on a side.
    """
    cost = jnp.asarray(cost)
    a, b = (jnp.asarray(w, cost.dtype) / jnp.sum(jnp.asarray(w, cost.dtype)) for w in (source_weights, target_weights))
    epsilon = jnp.asarray(epsilon, cost.dtype)
    live = (a > 0)[:, None] & (b > 0)
    cost, priced, lowest = _shifted(cost, a > 0, b > 0)
    fixed, fixed_a, fixed_b, last = lax.stop_gradient((priced, a, b, epsilon))
    log_a, log_b = jnp.log(_or_one(fixed_a)), jnp.log(_or_one(fixed_b))

    def unfinished(state):
        _, _, error, current, count = state
        return ((current > last) | (error > tolerance) | (count == 0)) & (count < iterations)

    def improve(state):
        u, v, error, current, count = state
        # Lowered before it has converged, epsilon leaves masses to move that take time in proportion to 1 / epsilon.
        current = jnp.where(error < max(tolerance, 1e-3), jnp.maximum(current / 4, last), current)
        # One iteration in the log domain, where nothing underflows; the kernel that it leaves has columns of the right sum.
        u = jnp.where(a > 0, current * (log_a - logsumexp((v - fixed) / current, axis=1)), 0)
        v = jnp.where(b > 0, current * (log_b - logsumexp((u[:, None] - fixed) / current, axis=0)), 0)
        return *_scale(fixed, fixed_a, fixed_b, u, v, current, 10), current, count + 10

    u, v, largest = _tight(fixed, a > 0, b > 0)
    start = (u, v, jnp.zeros((), cost.dtype), jnp.maximum(largest, last), jnp.int32(0))
    u, v, _, current, count = lax.while_loop(unfinished, improve, start)
    epsilon = jnp.where(current > last, current, epsilon)

    # The marginals are met at the fixed point whatever the inputs: that defines the derivative of (u, v) / epsilon. Its
    # value is 0, as the right-hand side is: the solver runs for gradients only.
    plan = jnp.where(live, jnp.exp((u[:, None] + v - cost) / epsilon), 0)
    held = lax.stop_gradient(plan)
    sums = held.sum(axis=1), held.sum(axis=0)
    error = (plan.sum(axis=1) - a, plan.sum(axis=0) - b)
    (du, dv), _ = cg(
        lambda x: (sums[0] * x[0] + held @ x[1], x[0] @ held + sums[1] * x[1]),
        jax.tree.map(lambda x: x - lax.stop_gradient(x), error),
        M=lambda x: jax.tree.map(lambda y, z: y / _or_one(z), x, sums),
        tol=1e-6,
    )
    plan = plan * (1 - du[:, None] - dv)

    plan = plan * jnp.minimum(a / _or_one(plan.sum(axis=1)), 1)[:, None]
    plan = plan * jnp.minimum(b / _or_one(plan.sum(axis=0)), 1)
    short_a, short_b = jnp.maximum(a - plan.sum(axis=1), 0), jnp.maximum(b - plan.sum(axis=0), 0)
    plan = plan + short_a[:, None] * (short_b / _or_one(short_b.sum()))

    v = jnp.where(b > 0, jnp.min(fixed - u[:, None], axis=0), 0)
    u, v, dual = _bound(fixed, jnp.min(fixed - v, axis=1), fixed_a, fixed_b)
    objective = jnp.sum(plan * cost)
    return Transport(plan, jnp.where(a > 0, u + lowest, 0), v, objective + lowest, objective - dual, count)


def _spread(mask, total):
    """Integer masses that are as nearly uniform over live units as a total allows."""
    count = jnp.maximum(jnp.sum(mask), 1)
    return jnp.where(mask, total // count + (jnp.cumsum(mask) <= total % count), 0).astype(jnp.int32)


def _unbalanced(cost, source_mass, target_mass, moved, unit):
    """`exact` where only the integer mass `moved` leaves the sources and arrives; masses are returned in units of `unit`."""
    n, m = cost.shape
    cost, _, lowest = _shifted(lax.stop_gradient(jnp.asarray(cost)), source_mass > 0, target_mass > 0)
    # No cost is negative now: mass from dummy to dummy would cost more than it saves, at any positive price.
    largest = jnp.max(cost)
    padded = jnp.pad(cost, ((0, 1), (0, 1))).at[n, m].set(jnp.where(largest > 0, largest, 1))
    stays, lacks = jnp.sum(source_mass) - moved, jnp.sum(target_mass) - moved
    solved = exact(padded, jnp.append(source_mass, lacks), jnp.append(target_mass, stays))
    plan = solved.plan[:n, :m] * ((jnp.sum(source_mass) + lacks) / unit).astype(cost.dtype)
    gap, potentials = jnp.sum(plan * cost), (solved.source_dual[:n], solved.target_dual[:m])
    for u, mass, left in zip(potentials, (source_mass, target_mass), (stays, lacks), strict=True):
        highest = jnp.max(jnp.where(mass > 0, u, -jnp.inf))
        gap = gap - jnp.sum(u * mass) / unit + jnp.where(left > 0, highest * left / unit, 0)
    u = jnp.where(source_mass > 0, potentials[0] + lowest, 0)
    objective = jnp.sum(plan * cost) + lowest * (moved / unit)
    return Transport(plan, u, potentials[1], objective, gap, solved.pivots)


def _shifted(cost, source_live, target_live):
    """Costs less the lowest, with 0 and with infinity where masked: an offset changes no plan, only costs digits."""
    live = source_live[:, None] & target_live
    lowest = lax.stop_gradient(jnp.min(jnp.where(live, cost, jnp.inf)))
    lowest = jnp.where(jnp.any(live), lowest, 0)
    cost = jnp.where(live, cost - lowest, 0)
    return cost, jnp.where(live, cost, jnp.inf), lowest


def _bound(priced, u, a, b):
    """Potentials that are feasible in spite of rounding, and the dual objective, which is a bound because they are."""
    u = jnp.where(a > 0, u, 0)
    v = jnp.where(b > 0, jnp.min(priced - u[:, None], axis=0), 0)
    return u, v, (jnp.sum(u * a) + jnp.sum(v * b)).astype(priced.dtype)


def _tight(priced, source_live, target_live):
    """Feasible potentials that touch every unit, and the largest reduced cost that they leave."""
    u = jnp.where(source_live, jnp.min(priced, axis=1), 0)
    v = jnp.where(target_live, jnp.min(priced - u[:, None], axis=0), 0)
    spread = priced - u[:, None] - v
    largest = jnp.max(jnp.where(jnp.isfinite(spread), spread, 0))
    return u, v, jnp.maximum(largest, jnp.finfo(priced.dtype).tiny ** 0.5)


def _scale(priced, a, b, u, v, epsilon, iterations):
    """Sinkhorn iterations on a kernel that holds the potentials so far; returns the new ones and the error left in `a`.

    Where a factor comes near overflow, the potentials are returned as they were.
    """
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    a, b = a.astype(priced.dtype), b.astype(priced.dtype)
    kernel = jnp.exp((u[:, None] + v - priced) / epsilon)

    def iterate(_, state):
        x = a / jnp.maximum(dot(kernel, state[1]), 1e-30)
        return x, b / jnp.maximum(dot(x, kernel), 1e-30)

    x, y = lax.fori_loop(0, iterations, iterate, (a, (b > 0).astype(priced.dtype)))
    error = jnp.sum(jnp.abs(x * dot(kernel, y) - a))
    log_x, log_y = jnp.log(jnp.where(a > 0, x, 1)), jnp.log(jnp.where(b > 0, y, 1))
    safe = (jnp.max(jnp.abs(log_x)) < 46) & (jnp.max(jnp.abs(log_y)) < 46)
    return u + jnp.where(safe, epsilon * log_x, 0), v + jnp.where(safe, epsilon * log_y, 0), jnp.where(safe, error, jnp.inf)


def _or_one(x):
    return jnp.where(x > 0, x, 1)


def _argmin(x):
    """`jnp.argmin` of a vector, in two reductions that XLA vectorises on CPU, where argmin is one slow scalar loop."""
    at = jnp.where(x == jnp.min(x), jnp.arange(x.size, dtype=jnp.int32), x.size - 1)
    return jnp.min(at)

"""Optimal transport as JAX ops, masked and batched: exact, one to one, and partial.

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

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

_BLOCK = 2**16  # cells priced at once: all of a small problem, about 20 microseconds of a large one


class Transport(NamedTuple):
    """A plan and its certificate.

    Attributes:
        plan: `(n, m)`, mass moved from source to target; sums to 1 (to the mass moved, where transport is partial).
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


def room(n: int, m: int, itemsize: int = 4) -> int:
    """About how many bytes a problem of n by m units takes while it is solved: seven cost matrices and two trees.

    >>> room(60, 10_000) // 2**20
    40
    """
    return 7 * n * m * itemsize + 2 * (n + m) * 4 * _n_words(n, m)


def uniform_masses(source_mask: Bool[Array, " n"], target_mask: Bool[Array, " m"]) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    """Smallest integer masses that are uniform over the live units of each side and have equal sums.

    >>> [mass.tolist() for mass in uniform_masses(jnp.ones(2, bool), jnp.ones(4, bool))]
    [[2, 2], [1, 1, 1, 1]]
    """
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

    >>> cost = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> solved = exact(cost, jnp.array([1, 1]), jnp.array([1, 1]))
    >>> solved.plan.tolist(), float(solved.objective), float(solved.gap)
    ([[0.0, 0.5], [0.5, 0.0]], 0.0, 0.0)
    """
    cost = lax.stop_gradient(jnp.asarray(cost))
    source_mass, target_mass = jnp.asarray(source_mass), jnp.asarray(target_mass)
    n, m = cost.shape
    source_live, target_live = source_mass > 0, target_mass > 0
    n_live = jnp.sum(source_live, dtype=jnp.int32)
    n_arcs = n_live + jnp.sum(target_live, dtype=jnp.int32) - 1
    cost, priced, lowest = _shifted(cost, source_live, target_live)
    total = jnp.sum(source_mass).astype(cost.dtype)
    a, b = source_mass / total, target_mass / total

    last = jnp.max(jnp.where(target_live, jnp.arange(m), -1))
    supply = jnp.where(source_live, (n + 1) * source_mass + 1, 0).astype(jnp.int32)
    demand = ((n + 1) * target_mass + jnp.where(jnp.arange(m) == last, n_live, 0)).astype(jnp.int32)
    arcs = _greedy(_reduced(priced, a, b), supply, demand, n_arcs)
    tree = _rooted(cost, arcs, n_arcs)
    tree, pivots = _improved(priced, tree, 16 * jnp.finfo(cost.dtype).eps * jnp.max(cost))
    plan = _carried(tree, source_mass, target_mass, n_arcs).astype(cost.dtype) / total

    u, v, dual = _bound(priced, tree.u, a, b)
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

    >>> similarity = jnp.array([[0.1, 0.9], [0.8, 0.2]])
    >>> assignment(-similarity).target_of.tolist()
    [1, 0]
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

    >>> cost = jnp.array([[0.0, 3.0], [3.0, 2.0]])
    >>> solved, moved = partial(cost, jnp.ones(2, bool), jnp.ones(2, bool), 0.5)
    >>> solved.plan.tolist(), float(moved)
    ([[0.5, 0.0], [0.0, 0.0]], 0.5)
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


class _Arcs(NamedTuple):
    """Arcs of a spanning tree, one a slot; those after the last are empty.

    Attributes:
        cell: i * m + j, for the arc between source i and target j.
        flow: mass on it, perturbed.
        child_is_row: whether the source is the lower end, further from the root.
    """

    cell: Int[Array, " slots"]
    flow: Int[Array, " slots"]
    child_is_row: Bool[Array, " slots"]


class _Tree(NamedTuple):
    """A rooted spanning tree, sources before targets.

    Attributes:
        arcs: its arcs.
        paths: of each node the arcs between it and the root, a bit a slot.
        u: potentials of the sources,
        v: and of the targets: u_i + v_j = cost_ij on all arcs.
    """

    arcs: _Arcs
    paths: UInt[Array, "nodes words"]
    u: Float[Array, " n"]
    v: Float[Array, " m"]


class _Entering(NamedTuple):
    """The cell that enters the tree next.

    Attributes:
        first: first row of the block that is priced next.
        i: source of the cell,
        j: and its target.
        excess: its reduced cost.
    """

    first: Int[Array, ""]
    i: Int[Array, ""]
    j: Int[Array, ""]
    excess: Float[Array, ""]


class _Filling(NamedTuple):
    """A greedy tree that is being built.

    Attributes:
        n_arcs: how many arcs it has.
        supply: mass that is left at each source,
        demand: and missing at each target.
        best: a lower bound on the cheapest remaining cell of each target; infinite where it is exhausted.
        arcs: the arcs so far.
    """

    n_arcs: Int[Array, ""]
    supply: Int[Array, " n"]
    demand: Int[Array, " m"]
    best: Float[Array, " m"]
    arcs: _Arcs


def _reduced(priced: Array, a: Array, b: Array) -> Float[Array, "m n"]:
    """Costs reduced by a few Sinkhorn iterations, target by source; infinite where masked."""
    u, v, largest = _tight(priced, a > 0, b > 0)
    for k in range(1 if priced.size <= _BLOCK else 4):
        u, v = _scale(priced, a, b, u, v, 0.025 * 0.4**k * largest, 20)
    reduced = priced - u[:, None]
    return (reduced - jnp.where(b > 0, jnp.min(reduced, axis=0), 0)).T


def _greedy(by_col: Float[Array, "m n"], supply: Array, demand: Array, n_arcs: Array) -> _Arcs:
    """The arcs of a greedy tree: each fills the cheapest remaining cell and exhausts exactly one unit."""
    m, n = by_col.shape
    n_slots = 32 * _n_words(n, m)
    rows, cols, slots = jnp.arange(n), jnp.arange(m), jnp.arange(n_slots, dtype=jnp.int32)
    infinity = jnp.array(jnp.inf, by_col.dtype)

    def fill(state: _Filling) -> _Filling:
        k, supply, demand, best, arcs = state
        j = _argmin(best)
        line = jnp.where(supply > 0, by_col[j], infinity)
        i = _argmin(line)
        current = ~(line[i] > best[j])  # else the row that was cheapest is exhausted: this step only looks up the next one
        amount, here = jnp.where(current, jnp.minimum(supply[i], demand[j]), 0), current & (slots == k)
        ends_row = supply[i] < demand[j]
        following = jnp.min(jnp.where(current & ends_row & (rows == i), infinity, line))
        return _Filling(
            k + current,
            jnp.where(rows == i, supply - amount, supply),
            jnp.where(cols == j, demand - amount, demand),
            jnp.where(cols == j, jnp.where(current & ~ends_row, infinity, following), best),
            _Arcs(
                jnp.where(here, i * m + j, arcs.cell),
                jnp.where(here, amount, arcs.flow),
                jnp.where(here, ends_row, arcs.child_is_row),
            ),
        )

    none = jnp.zeros(n_slots, jnp.int32)
    start = _Filling(jnp.int32(0), supply, demand, jnp.min(by_col, axis=1), _Arcs(none, none, none > 0))
    return lax.while_loop(lambda state: state.n_arcs < n_arcs, fill, start).arcs


def _rooted(cost: Float[Array, "n m"], arcs: _Arcs, n_arcs: Array) -> _Tree:
    """The tree of arcs that `_greedy` made, its root the unit that was exhausted last."""
    n, m = cost.shape
    n_words = _n_words(n, m)
    rows, cols = jnp.arange(n), jnp.arange(m)

    def hang(t: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        paths, u, v = state
        k = 32 * n_words - 1 - t
        i, j, is_row, used = arcs.cell[k] // m, arcs.cell[k] % m, arcs.child_is_row[k], k < n_arcs
        child, parent = jnp.where(is_row, i, n + j), jnp.where(is_row, n + j, i)
        paths = paths.at[child].set(jnp.where(used, paths[parent] | _bit(k, n_words), paths[child]))
        new_u, new_v = cost[i, j] - v[j], cost[i, j] - u[i]
        u = jnp.where(used & is_row & (rows == i), new_u, u)
        v = jnp.where(used & ~is_row & (cols == j), new_v, v)
        return paths, u, v

    forest = (jnp.zeros((n + m, n_words), jnp.uint32), jnp.zeros(n, cost.dtype), jnp.zeros(m, cost.dtype))
    return _Tree(arcs, *lax.fori_loop(0, 32 * n_words, hang, forest))


def _improved(priced: Float[Array, "n m"], tree: _Tree, tolerance: Array) -> tuple[_Tree, Array]:
    """The tree after pivots until no arc has a negative reduced cost, and how many there were."""

    def improvable(state: tuple[_Tree, _Entering, Array]) -> Array:
        _, entering, count = state
        return (entering.excess < -tolerance) & (count < 50 * sum(priced.shape))  # the bound is for non-finite costs only

    def step(state: tuple[_Tree, _Entering, Array]) -> tuple[_Tree, _Entering, Array]:
        tree, entering, count = state
        tree = _pivoted(tree, entering)
        return tree, _price(priced, tree, entering.first, tolerance), count + 1

    start = (tree, _price(priced, tree, jnp.int32(0), tolerance), jnp.int32(0))
    tree, _, count = lax.while_loop(improvable, step, start)
    return tree, count


def _price(priced: Float[Array, "n m"], tree: _Tree, first: Array, tolerance: Array) -> _Entering:
    """A cell of negative reduced cost, if there is one; large problems are priced a block of rows at a time, in turn."""
    n, m = priced.shape
    height = min(n, max(1, _BLOCK // m))
    if height == n:
        return _Entering(first, *_least_reduced(priced, tree.u, tree.v))

    def look(state: tuple[_Entering, Array]) -> tuple[_Entering, Array]:
        (first, *_), looked = state
        start = jnp.minimum(first, n - height)
        block, u = (lax.dynamic_slice_in_dim(x, start, height) for x in (priced, tree.u))
        i, j, excess = _least_reduced(block, u, tree.v)
        following = jnp.where(first + height < n, first + height, 0)
        return _Entering(following, start + i, j, excess), looked + height

    def unsettled(state: tuple[_Entering, Array]) -> Array:
        entering, looked = state
        return (entering.excess >= -tolerance) & (looked < n + height)

    nothing = _Entering(first, jnp.int32(0), jnp.int32(0), jnp.zeros((), priced.dtype))
    return lax.while_loop(unsettled, look, (nothing, jnp.int32(0)))[0]


def _least_reduced(priced: Float[Array, "n m"], u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Row, column and reduced cost of the cell where it is least."""
    column = jnp.min(priced - u[:, None], axis=0) - v
    j = _argmin(column)
    return _argmin(priced[:, j] - u), j, column[j]


def _pivoted(tree: _Tree, entering: _Entering) -> _Tree:
    """The tree with the entering cell in the place of the arc of its cycle that runs empty first."""
    (cell, flow, child_is_row), paths, u, v = tree
    _, i, j, excess = entering
    n, m, n_words = len(u), len(v), paths.shape[1]
    from_i, from_j = paths[i], paths[n + j]
    cycle = from_i ^ from_j
    i_side, j_side = _unpack(from_i & ~from_j), _unpack(from_j & ~from_i)
    falling = (i_side & child_is_row) | (j_side & ~child_is_row)
    leaving = _argmin(jnp.where(falling, flow, jnp.iinfo(jnp.int32).max))
    amount, here, on_i_side = flow[leaving], jnp.arange(len(flow), dtype=jnp.int32) == leaving, i_side[leaving]
    flow = jnp.where(falling, flow - amount, jnp.where(i_side | j_side, flow + amount, flow))
    # What hung below the leaving arc hangs from the entering one now: its paths change by the cycle, and the arcs
    # between the two turn over.
    moved = ((paths[:, leaving // 32] >> (leaving % 32).astype(jnp.uint32)) & 1).astype(bool)
    above = paths[jnp.where(child_is_row[leaving], cell[leaving] // m, n + cell[leaving] % m)]
    turned = _unpack(jnp.where(on_i_side, from_i, from_j) & ~above)
    shift = jnp.where(on_i_side, excess, -excess)
    return _Tree(
        _Arcs(
            jnp.where(here, i * m + j, cell),
            jnp.where(here, amount, flow),
            jnp.where(here, on_i_side, child_is_row ^ turned),
        ),
        paths ^ jnp.where(moved[:, None], cycle & ~_bit(leaving, n_words), jnp.uint32(0)),
        u + jnp.where(moved[:n], shift, 0),
        v - jnp.where(moved[n:], shift, 0),
    )


def _carried(tree: _Tree, source_mass: Array, target_mass: Array, n_arcs: Array) -> Int[Array, "n m"]:
    """The plan of a tree at the masses given: an arc carries the net mass of what hangs below it."""
    n, m = len(source_mass), len(target_mass)
    net = jnp.concatenate([source_mass, -target_mass]).astype(jnp.int32)

    def of_word(word: Array) -> Array:  # all words at once would be (n + m)^2 numbers
        return jnp.sum(jnp.where(_unpack(word[:, None]), net[:, None], 0), axis=0, dtype=jnp.int32)

    below = lax.map(of_word, tree.paths.T).ravel()
    mass = jnp.where(jnp.arange(len(below)) < n_arcs, jnp.abs(below), 0)
    return jnp.zeros(n * m, jnp.int32).at[tree.arcs.cell].add(mass).reshape(n, m)


def _n_words(n: int, m: int) -> int:
    """Words that hold a bit for each of the n + m - 1 arcs of a tree."""
    return -(-(n + m - 1) // 32)


def _bit(slot: Array, n_words: int) -> UInt[Array, " words"]:
    """The set of one slot."""
    bit = jnp.uint32(1) << jnp.asarray(slot % 32, jnp.uint32)  # a plain number without jit
    return jnp.where(jnp.arange(n_words) == slot // 32, bit, jnp.uint32(0))


def _unpack(sets: UInt[Array, "... words"]) -> Bool[Array, "... slots"]:
    """Sets of slots as masks."""
    bits = (sets[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(*sets.shape[:-1], -1).astype(bool)


def _spread(mask: Array, total: Array | int) -> Array:
    """Integer masses that are as nearly uniform over live units as a total allows."""
    count = jnp.maximum(jnp.sum(mask), 1)
    return jnp.where(mask, total // count + (jnp.cumsum(mask) <= total % count), 0).astype(jnp.int32)


def _unbalanced(cost: Array, source_mass: Array, target_mass: Array, moved: Array, unit: Array | int) -> Transport:
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


def _shifted(cost: Array, source_live: Array, target_live: Array) -> tuple[Array, Array, Array]:
    """Costs less the lowest, with 0 and with infinity where masked: an offset changes no plan, only costs digits."""
    live = source_live[:, None] & target_live
    lowest = jnp.min(jnp.where(live, cost, jnp.inf))
    lowest = jnp.where(jnp.any(live), lowest, 0)
    cost = jnp.where(live, cost - lowest, 0)
    return cost, jnp.where(live, cost, jnp.inf), lowest


def _bound(priced: Array, u: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Potentials that are feasible in spite of rounding, and the dual objective, which is a bound because they are."""
    u = jnp.where(a > 0, u, 0)
    v = jnp.where(b > 0, jnp.min(priced - u[:, None], axis=0), 0)
    return u, v, (jnp.sum(u * a) + jnp.sum(v * b)).astype(priced.dtype)


def _tight(priced: Array, source_live: Array, target_live: Array) -> tuple[Array, Array, Array]:
    """Feasible potentials that touch every unit, and the largest reduced cost that they leave."""
    u = jnp.where(source_live, jnp.min(priced, axis=1), 0)
    v = jnp.where(target_live, jnp.min(priced - u[:, None], axis=0), 0)
    spread = priced - u[:, None] - v
    largest = jnp.max(jnp.where(jnp.isfinite(spread), spread, 0))
    return u, v, jnp.maximum(largest, jnp.finfo(priced.dtype).tiny ** 0.5)


def _scale(priced: Array, a: Array, b: Array, u: Array, v: Array, epsilon: Array, iterations: int) -> tuple[Array, Array]:
    """The potentials after Sinkhorn iterations on a kernel that holds those so far.

    Where a factor comes near overflow, the potentials are returned as they were.
    """
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    a, b = a.astype(priced.dtype), b.astype(priced.dtype)
    kernel = jnp.exp((u[:, None] + v - priced) / epsilon)

    def iterate(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x = a / jnp.maximum(dot(kernel, state[1]), 1e-30)
        return x, b / jnp.maximum(dot(x, kernel), 1e-30)

    x, y = lax.fori_loop(0, iterations, iterate, (a, (b > 0).astype(priced.dtype)))
    log_x, log_y = jnp.log(jnp.where(a > 0, x, 1)), jnp.log(jnp.where(b > 0, y, 1))
    safe = (jnp.max(jnp.abs(log_x)) < 46) & (jnp.max(jnp.abs(log_y)) < 46)
    return u + jnp.where(safe, epsilon * log_x, 0), v + jnp.where(safe, epsilon * log_y, 0)


def _argmin(x: Array) -> Int[Array, ""]:
    """`jnp.argmin` of a vector, in two reductions that XLA vectorises on CPU, where argmin is one slow scalar loop."""
    at = jnp.where(x == jnp.min(x), jnp.arange(x.size, dtype=jnp.int32), x.size - 1)
    return jnp.min(at)

"""Several devices: what they send each other, as predicted on paper and as XLA compiled it, and whether results stay the same.

On a CPU eight devices are made of its cores. With one accelerator there is nothing to split, and the row says so.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import superpos as sp
from superpos import moments as moments_lib
from superpos import training
from superpos.sweeps.plan import Plan
from superpos.sweeps.program import Bar, Program
from superpos.sweeps.table import Layout

SIZES: dict[str, Any] = {
    "full": {"units": 4096, "samples": 4096, "inputs": 512, "latents": 4096, "steps": 200},
    "small": {"units": 32, "samples": 64, "inputs": 16, "latents": 64, "steps": 3},
}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}


def run(size: dict[str, int], report) -> None:
    """A row a program: bytes that each device receives in a step, predicted and compiled."""
    jax.config.update("jax_num_cpu_devices", 8)
    devices = jax.devices()
    if len(devices) % 2:
        report.row(f"{len(devices)} device(s)", note="nothing to split over an odd number of devices")
        return
    for work in (sweep, batches, moments_by_units, moments_by_samples):
        found, predicted, difference = work(size, devices)
        counted = sum(found.values())
        report.row(
            f"{work.__name__}, {len(devices)} devices",
            rate=counted,
            unit="bytes",
            predicted=predicted,
            collectives=found,
            difference=difference,
            goal=f"{predicted:,} bytes",
            met=0
            <= counted - predicted
            <= 20 * (size["inputs"] + size["latents"]) * (predicted > 0),  # what is small comes on top
            note="; ".join((work.__doc__ or "").split("\n")[:1]),
        )


def collectives(compiled: Any) -> dict[str, int]:
    """Bytes of the results of each kind of collective in a compiled program; those of a loop's body count once."""
    found: dict[str, int] = {}
    for shapes, kind, start in re.findall(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", compiled.as_text()):
        sizes = [BYTES[of] * math.prod(int(n) for n in dims.split(",") if n) for of, dims in _SHAPE.findall(shapes)]
        if start and kind == "all-gather":  # whose result names what goes in beside what comes out
            sizes = sizes[len(sizes) // 2 :]
        found[kind] = found.get(kind, 0) + sum(sizes)
    return found


_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def sweep(size, devices):
    """Seeds of a sweep are strangers: nothing is sent while they train."""
    toy, features = sp.toy.ToyModel(16, 4), sp.features.SparseFeatures(16)

    def train(key, data_key):
        return sp.fit(toy, key, features.sample, data_key=data_key, steps=size["steps"], batch_size=32)[0]

    keys = jax.random.split(jax.random.key(0), 2 * len(devices))
    plan = Plan(train, None, Layout((), len(keys), None), keys, jax.random.key(1), jax.random.key(2))
    sizes = plan.sizes(math.inf, math.inf, len(devices))
    program = Program(plan.branches(sizes, heard=False), plan.shared, devices, Bar(False, ""))
    (piece,) = plan.pieces(sizes)
    alone = jax.jit(train)(keys[3], jax.random.key(1))
    difference = _difference(jax.tree.map(lambda leaf: leaf[3], plan.do(piece, program, sizes)), alone)
    return collectives(program.compiled), 0, difference


def batches(size, devices):
    """fit_stream splits batches: each step sends the gradient, and how often each latent was active."""
    n, m = size["inputs"], size["latents"]
    sae, optimizer = sp.sae.JumpReLU(n, m, 0.1, normalize="none", bias="zero"), optax.adam(1e-3)
    mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = NamedSharding(mesh, PartitionSpec("devices")), NamedSharding(mesh, PartitionSpec())
    params = sae.init(jax.random.key(0))
    state, key = (params, optimizer.init(params)), jax.random.key(1)
    batch = jax.random.normal(key, (4 * len(devices), n))

    def step(state, batch):
        return training._update(sae, optimizer, state, batch, key, 0)

    compiled = jax.jit(step, in_shardings=(whole, split), out_shardings=whole).lower(state, batch).compile()
    found = compiled(jax.device_put(state, whole), jax.device_put(batch, split))[0][0]
    learned = [value.size for name, value in params.items() if name != "silent_for"]
    # On top come five numbers a latent or unit and the scalars of the history, all of them small.
    return collectives(compiled), 4 * (sum(learned) + m), _difference(found, jax.jit(step)(state, batch)[0][0])


def moments_by_units(size, devices):
    """Moments on a mesh of rows x columns: each device receives its rows' and its columns' units of a batch, no more."""
    rows, columns = 2, len(devices) // 2
    mesh = jax.make_mesh((rows, columns), ("row", "column"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    n, samples = size["units"], size["samples"]
    x, y = (jax.random.normal(jax.random.key(i), (samples, n)) for i in (0, 1))
    # Targets in the order of columns, so that what a column needs lies side by side.
    source, target = (NamedSharding(mesh, PartitionSpec(None, axes)) for axes in (("row", "column"), ("column", "row")))
    block, whole = NamedSharding(mesh, PartitionSpec(None, "row", "column")), NamedSharding(mesh, PartitionSpec())
    empty = sp.moments.init(n, n, 2, {"xy"})
    at = dataclasses.replace(
        jax.tree.map(lambda leaf: {1: whole, 2: source, 3: block}[leaf.ndim], empty),
        y=jax.tree.map(lambda _: target, empty.y),
    )
    compiled = _add(at, (source, target), whole, empty, x, y)
    valid, fold = jnp.ones(samples, bool), jnp.int32(0)
    alone = jax.jit(moments_lib.update_fold)(empty, x, y, valid, fold)
    found = compiled(jax.device_put(empty, at), *jax.device_put((x, y), (source, target)), valid, fold)
    # A batch, and how far its means lie from those so far.
    return collectives(compiled), 4 * (samples + 1) * (n // rows + n // columns), _difference(found.xy, alone.xy)


def moments_by_samples(size, devices):
    """Moments of samples that are split: every batch sends all sums, so that only few units are worth it."""
    mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
    n, samples = size["units"], size["samples"]
    x, y = (jax.random.normal(jax.random.key(i), (samples, n)) for i in (0, 1))
    split, whole = NamedSharding(mesh, PartitionSpec("devices")), NamedSharding(mesh, PartitionSpec())
    empty = sp.moments.init(n, n, 2, {"xy"})
    compiled = _add(whole, (split, split), split, empty, x, y)
    valid = jax.device_put(jnp.ones(samples, bool), split)
    alone = jax.jit(moments_lib.update_fold)(empty, x, y, valid, jnp.int32(0))
    found = compiled(jax.device_put(empty, whole), *jax.device_put((x, y), split), valid, jnp.int32(0))
    # The products, and of each side sum, squares, least and greatest value.
    return collectives(compiled), 4 * (n * n + 2 * 4 * n), _difference(found.xy, alone.xy)


def _add(at, sides, valid, empty, x, y):
    """The compiled step that adds a batch of one fold."""
    mesh_whole = NamedSharding(valid.mesh, PartitionSpec())
    add = jax.jit(moments_lib.update_fold, in_shardings=(at, *sides, valid, mesh_whole), out_shardings=at, donate_argnums=0)
    return add.lower(empty, x, y, jnp.ones(len(x), bool), jnp.int32(0)).compile()


def _difference(found, expected):
    """The largest, of all leaves."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return float(max(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))) for a, b in pairs))

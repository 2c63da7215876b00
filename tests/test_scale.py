"""What the guide says of 100,000 units, a billion samples and 64 hosts: sizes, operations, and what devices send each other."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from superpos import moments

ROOT = Path(__file__).parents[1]
UNITS, BATCH, SEEDS = 100_000, 4096, 10_000


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("reads", "matrices"), [({"xy"}, 1), ({"xx", "xy", "yy"}, 3)])
def test_moments_are_a_matrix_of_units_for_each_fold_and_product(reads, matrices):
    sums = jax.eval_shape(partial(moments.init, UNITS, UNITS, 5, reads))
    vectors = 4 * 5 * (2 * 4 * UNITS + 1)
    assert size(sums) == 4 * 5 * matrices * UNITS**2 + vectors  # 200 GB a product, beside 16 MB


def test_a_batch_costs_two_operations_a_sample_and_pair_of_units():
    sums = jax.eval_shape(partial(moments.init, UNITS, UNITS, 5, {"xy"}))
    side = jax.ShapeDtypeStruct((BATCH, UNITS), jnp.float32)
    valid, fold = jax.ShapeDtypeStruct((BATCH,), bool), jax.ShapeDtypeStruct((), jnp.int32)
    flops = jax.jit(moments.update_fold).lower(sums, side, side, valid, fold).cost_analysis()["flops"]
    assert flops == pytest.approx(2 * BATCH * UNITS**2, rel=0.01)


def test_seeds_hold_little():
    toy, sae = sp.toy.ToyModel(64, 16), sp.sae.TopK(16, 64, 7)
    states = jax.eval_shape(jax.vmap(lambda key: (toy.init(key), sae.init(key))), jax.random.split(jax.random.key(0), SEEDS))
    a_model = 64 * 16 + 64 + 2 * 16 * 64 + 64 + 16 + 64 + 1  # W, b; both matrices, both biases, silent_for, scale
    assert size(states) == 4 * SEEDS * a_model  # 131 MB


def test_a_step_of_a_dense_sae_is_five_products():
    sae = sp.sae.Vanilla(512, 16_384, 0.1)
    params = jax.eval_shape(sae.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((BATCH, 512), jnp.float32)
    step = jax.jit(jax.grad(lambda params, x: sae.loss(params, x)[0]))
    flops = step.lower(params, batch).cost_analysis()["flops"]
    assert flops == pytest.approx(10 * BATCH * 512 * 16_384, rel=0.02)


@pytest.mark.slow
def test_eight_devices_send_what_was_predicted(tmp_path):
    part = "experiments.benchmark.accelerator"
    command = [sys.executable, "-m", f"{part}.part", f"{part}.mesh", str(tmp_path), "small"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    rows = {row["work"].split(",")[0]: row for row in map(json.loads, (tmp_path / "mesh.jsonl").read_text().splitlines())}
    assert set(rows) == {"sweep", "batches", "moments_by_units", "moments_by_samples"}
    for row in rows.values():
        assert row["met"], row
        assert row["difference"] < 1e-4
    assert rows["sweep"]["collectives"] == {}
    assert set(rows["batches"]["collectives"]) == {"all-reduce"}
    assert rows["moments_by_units"]["collectives"] == {"all-gather": rows["moments_by_units"]["predicted"]}
    # 32 units, 64 samples: two rows and four columns of devices receive 16 and 8 units of 64 samples, and of a mean.
    assert rows["moments_by_units"]["predicted"] == 4 * (64 + 1) * (16 + 8)
    assert np.isclose(rows["moments_by_samples"]["predicted"], 4 * (32 * 32 + 8 * 32))

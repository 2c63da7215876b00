import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.format import open_memmap
from test_data import store

import superpos as sp
from superpos import data

NAMES = ("semi_match", "soft_match", "cka", "ridge")


def close(found, wanted):
    """Of samples as well conditioned as these, a second pass over them (ridge) changes no more than rounding does."""
    for name, score in wanted.items():
        np.testing.assert_allclose(found[name].mean, score.mean, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[name].folds, score.folds, atol=1e-5, err_msg=name)
        if score.units is not None:
            np.testing.assert_allclose(found[name].units, score.units, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def whole(sides):
    return sp.align(*sides, metrics=NAMES, key=jax.random.key(3))


@pytest.mark.parametrize("batch_size", [7, 4096])
def test_equals_align_whatever_the_batches(sides, whole, batch_size):
    close(sp.align_stream(*sides, metrics=NAMES, key=jax.random.key(3), batch_size=batch_size), whole)


def test_samples_that_are_left_out_do_not_matter(sides):
    x, y = sides
    ids = np.where(np.arange(403) < 100, -1, np.arange(403) % 3)
    moved = np.where(ids[:, None] < 0, 1e6 + x, x)
    found = sp.align_stream(moved, y, "semi_match", ids, batch_size=50)
    close(found, sp.align(x, y, "semi_match", ids))


def test_files_of_all_kinds_and_images_whose_positions_stay_together(sides, tmp_path, key):
    x, y = (side[:400].reshape(100, 4, -1).astype(np.float16) for side in sides)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "y.npz", other=x, y=y.reshape(50, 2, 2, 2, 7).reshape(100, 2, 2, 7))
    zarr = store(tmp_path / "y.zarr", y)
    groups = np.repeat(np.arange(100), 4)
    flat = x.reshape(400, -1), y.reshape(400, -1)
    wanted = sp.align(*flat, metrics="semi_match", key=key, groups=groups)
    assert abs(wanted["semi_match"].mean - sp.align(*flat, metrics="semi_match", key=key)["semi_match"].mean) > 1e-4
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for source, target in ((f"{tmp_path}/x.npy", zarr), (mapped, f"{tmp_path}/y.npz:y"), (flat[0], data.load(zarr))):
        close(sp.align_stream(source, target, "semi_match", key=key, batch_size=30), wanted)
    found = sp.align_stream(x, jnp.asarray(y), "semi_match", key=key, groups=np.arange(400) // 8)
    close(found, sp.align(*flat, metrics="semi_match", key=key, groups=np.arange(400) // 8))


@pytest.mark.slow
def test_encoding_on_the_way_is_encoding_beforehand(sides):
    x, y = sides
    sae = sp.sae.TopK(n_inputs=9, n_latents=12, k=4)
    params = jax.jit(sae.init)(jax.random.key(0))
    latents, encode = jax.jit(sae.encode)(params, x), functools.partial(sae.encode, params)
    close(sp.align_stream(x, y, "semi_match", encode=(encode, None), batch_size=50), sp.align(latents, y, "semi_match"))
    found = sp.align_stream(y, x, "semi_match", encode=(lambda y: y > 0, encode))
    close(found, sp.align(y > 0, latents, "semi_match"))


def test_the_bar_counts_samples(sides, capsys):
    sp.align_stream(*sides, "semi_match", folds=np.arange(403) % 3 - 1, progress=True)
    assert "403/403" in capsys.readouterr().err
    sp.align_stream(*sides, "semi_match")  # no terminal
    assert capsys.readouterr().err == ""


X, Y = np.random.default_rng(0).normal(size=(2, 60, 4)).astype(np.float32)
BAD = X.copy()
BAD[41, 2] = np.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ("semi_match", "rsa")}, "rsa reads samples, which moments do not hold: use sp.align"),
        ({"metrics": "cosine"}, "metrics takes names out of"),
        ({"target": Y[:40]}, r"must have the same samples, got 60 and 40 \(shapes \(60, 4\) and \(40, 4\)\)"),
        ({"target": Y.T}, "axes of one of them swapped"),
        ({"source": X.reshape(20, 3, 4), "target": Y.reshape(30, 2, 4)}, r"got shapes \(20, 3, 4\) and \(30, 2, 4\)"),
        ({"source": X[:0], "target": Y[:0]}, r"source must be a non-empty .* got shape \(0, 4\)"),
        ({"source": X[:, 0]}, r"source must have at least two axes, rows and units, got shape \(60,\)"),
        ({"target": Y * 1j}, "target must hold real numbers, got an array of complex64"),
        ({"target": [[1.0]]}, "must be arrays or paths of them, but target is a list"),
        ({"source": X[:3], "target": Y[:3]}, "folds must be between 2 and the number of samples, 3, got 5"),
        ({"groups": np.arange(60) % 3}, "number of groups, 3, got 5"),
        ({"source": X.reshape(3, 20, 4)}, "number of groups, 3, got 5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"encode": jnp.abs}, "encode must be a pair of functions, None for a side"),
        ({"encode": (None, 3)}, "encode must be a pair of functions"),
        ({"encode": (None, lambda y: y.sum(axis=1))}, r"encode must give \(batch, latents\), but of target \(12, 4\) it gives"),
        ({"encode": (None, lambda y: y / 0)}, "encode must give finite latents, got NaN or infinity for target"),
        ({"source": BAD}, "source has NaN or infinity, as float32, in 1 of its rows 36 to 47, first in row 41"),
        ({"target": np.full((60, 4), 1e300)}, "target has NaN or infinity, as float32, in 12 of its rows 0 to 11"),
        ({"source": X * 1e18}, "source must have values below 1e15"),
        ({"target": np.ones_like(Y)}, "target has no live unit: each of its 4 units is constant in some fold"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sp.align_stream(**{"source": X, "target": Y, "metrics": "semi_match", **arguments})


def test_files_are_named(tmp_path):
    np.save(tmp_path / "bad.npy", BAD)
    with pytest.raises(ValueError, match=r"bad.npy has NaN or infinity, as float32, .* first in row 41"):
        sp.align_stream(X, f"{tmp_path}/bad.npy", "semi_match")
    with pytest.raises(FileNotFoundError, match=r"gone.npy is not there"):
        sp.align_stream(f"{tmp_path}/gone.npy", Y)


def test_under_jit():
    with pytest.raises(ValueError, match=r"call it outside of jit and vmap, or use sp.align"):
        jax.jit(lambda x: sp.align_stream(x, Y))(X)


MEMORY = """
    import resource, sys
    import superpos as sp

    for folder in sys.argv[1:]:
        sp.align_stream(f"{folder}/x.npy", f"{folder}/y.npy", ("semi_match", "cka"))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    block = np.random.default_rng(0).normal(size=(25_000, 128)).astype(np.float16)
    for name, n_blocks in (("short", 1), ("long", 16)):
        (tmp_path / name).mkdir()
        for side in ("x", "y"):
            file = open_memmap(tmp_path / name / f"{side}.npy", "w+", np.float16, (n_blocks * len(block), 128))
            for i in range(n_blocks):
                file[i * len(block) : (i + 1) * len(block)] = block
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "short"), str(tmp_path / "long")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    short, long = (int(line) / 1024 for line in done.stdout.split())  # MiB
    assert long - short < 40  # the files are 98 MiB each; as float32 195

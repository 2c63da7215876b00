"""What a newcomer meets first: the package's docstring, and the errors of a first day."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import superpos as sp
from superpos.networks import io


def test_the_docstring_names_every_module_and_function():
    named = {module.name for module in pkgutil.iter_modules(sp.__path__)} | set(sp.__all__)
    assert not [name for name in named if f"`{name}`" not in sp.__doc__]


def test_without_the_wanted_device_a_command_ends_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.theory", f"--workdir={tmp_path}/run"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX finds no device for JAX_PLATFORMS=abacus: unset it")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_sweep_out_of_memory_asks_for_a_smaller_chunk():
    def train(key, data_key):  # holds more than there are addresses
        return jax.lax.sort(jnp.full(2**46, 1.0) * jax.random.uniform(key))[0]

    keys = jax.random.split(jax.random.key(0), 8)
    with pytest.raises(MemoryError, match="Out of memory with chunk=8: take a smaller one, such as 4"):
        sp.sweep(train, {}, keys, chunk=8)


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch, tmp_path):
    (tmp_path / "0.png").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"torch is not installed: pip install 'superpos\[torch\]'"):
        io.extract("torchvision:resnet18", tmp_path, ["layer3"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_model_or_of_several_are_refused(key):
    sae, x = sp.sae.TopK(4, 8, k=2), jnp.ones((5, 4))
    stacked = jax.tree.map(lambda struct: jnp.zeros((3, *struct.shape)), jax.eval_shape(sae.init, key))  # of three seeds
    with pytest.raises(ValueError, match=r"params must have b_dec \(4,\), got \(3, 4\): .* vmap over several"):
        sae.encode(stacked, x)
    with pytest.raises(ValueError, match=r"params must have b_dec \(4,\), got None"):
        sae.encode(sp.toy.ToyModel(4, 8).init(key), x)


def test_features_of_another_number_are_refused(key):
    toy = sp.toy.ToyModel(6, 2)
    params = toy.init(key)
    with pytest.raises(ValueError, match=r"features must be \(n, 6\), got \(5, 4\)"):
        toy.encode(params, jnp.ones((5, 4)))
    with pytest.raises(ValueError, match=r"features must be \(n, 6\), got \(5, 4\)"):
        toy.loss(params, jnp.ones((5, 4)))
    with pytest.raises(ValueError, match=r"hidden units must be \(n, 2\), got \(5, 4\)"):
        toy.decode(params, jnp.ones((5, 4)))

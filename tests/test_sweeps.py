import subprocess
import sys

from superpos import sweeps

PROGRAM = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 3)
import superpos as sp
from superpos import sweeps

toy, features = sp.toy.ToyModel(12, 4), sp.features.SparseFeatures(12)

def run(key, data_key):
    return sp.fit(toy, key, features.sample, data_key=data_key, steps=20, batch_size=32)[0]["W"]

for n_seeds, n_devices in ((6, 3), (4, 2), (5, 1)):
    keys = jax.random.split(jax.random.key(0), n_seeds)
    mapped = jax.jit(lambda keys, data_key: sweeps.map_seeds(run, keys, data_key))(keys, jax.random.key(1))
    assert len(mapped.sharding.device_set) == n_devices, mapped.sharding
    plain = jax.vmap(run, (0, None))(keys, jax.random.key(1))
    np.testing.assert_allclose(mapped, plain, atol=1e-5)
"""


def test_results_do_not_depend_on_the_number_of_devices():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_progress_counts_each_step_once_however_often_it_is_reported(monkeypatch):
    counted = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda self, n: counted.append(n))
    with sweeps.progress(20, "steps") as reporter:
        first, second = reporter(), reporter()
        for step in (5, 5, 10, 7):  # two devices report the same loop, one of them late
            first(step)
        second(10)
    assert sum(counted) == 20

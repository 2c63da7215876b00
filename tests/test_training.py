import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import superpos as sp

FEATURES = sp.features.SparseFeatures(12, 0.2)
TOY = sp.toy.ToyModel(12, 4)
SETTINGS = {"steps": 60, "batch_size": 64, "optimizer": optax.adamw(1e-2, weight_decay=0.01)}


@pytest.fixture(scope="module")
def batch_of_seeds():
    data_key = jax.random.key(5)
    run = jax.jit(jax.vmap(lambda key: sp.fit(TOY, key, FEATURES.sample, data_key=data_key, **SETTINGS)))
    return run(jax.random.split(jax.random.key(0), 3)), data_key, run


def test_one_seed_alone_is_that_seed_among_others(batch_of_seeds):
    (params, history), data_key, _ = batch_of_seeds
    keys = jax.random.split(jax.random.key(0), 3)
    alone, alone_history = jax.jit(lambda key: sp.fit(TOY, key, FEATURES.sample, data_key=data_key, **SETTINGS))(keys[1])
    np.testing.assert_allclose(params["W"][1], alone["W"], atol=1e-5)
    np.testing.assert_allclose(history["loss"][1], alone_history["loss"], atol=1e-6)


def test_the_same_twice(batch_of_seeds):
    (params, _), _, run = batch_of_seeds
    again, _ = run(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(params["W"], again["W"])


def test_equals_a_loop_written_by_hand(batch_of_seeds):
    (_, history), data_key, _ = batch_of_seeds
    init_key, _ = jax.random.split(jax.random.split(jax.random.key(0), 3)[0])
    params = TOY.init(init_key)
    # AdamW as Loshchilov & Hutter write it, in NumPy.
    first = {name: np.zeros(value.shape) for name, value in params.items()}
    second = {name: np.zeros(value.shape) for name, value in params.items()}
    losses = []
    for i in range(10):
        z = FEATURES.sample(jax.random.fold_in(data_key, i), 64)
        loss, grads = jax.value_and_grad(lambda p, z=z: TOY.loss(p, z)[0])(params)
        losses.append(float(loss))
        for name, grad in grads.items():
            grad = np.asarray(grad, np.float64)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            step = first[name] / (1 - 0.9 ** (i + 1)) / (np.sqrt(second[name] / (1 - 0.999 ** (i + 1))) + 1e-8)
            params[name] = jnp.asarray(params[name] - 1e-2 * (step + 0.01 * params[name]), jnp.float32)
    np.testing.assert_allclose(history["loss"][0, :10], losses, rtol=1e-4)


def test_orbax_keeps_what_was_trained(batch_of_seeds, tmp_path):
    import orbax.checkpoint as ocp

    (params, _), *_ = batch_of_seeds
    with ocp.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "models", params)
        keeper.wait_until_finished()
        restored = keeper.restore(tmp_path / "models", params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_it_learns(batch_of_seeds):
    (_, history), _, _ = batch_of_seeds
    assert (history["loss"][:, -5:].mean(axis=1) < 0.8 * history["loss"][:, :5].mean(axis=1)).all()


def test_numeric_settings_vmap():
    def run(rate):
        optimizer = optax.adamw(rate, weight_decay=0.01)
        return sp.fit(TOY, jax.random.key(0), FEATURES.sample, steps=5, batch_size=8, optimizer=optimizer)[0]["W"]

    swept = jax.jit(jax.vmap(run))(jnp.array([1e-2, 1e-3]))
    np.testing.assert_allclose(swept[1], run(1e-3), atol=1e-6)


def test_progress_is_reported_once_a_loop_not_once_a_seed():
    seen, lengths = [], []
    keys = jax.random.split(jax.random.key(0), 3)

    def run(key):
        return sp.fit(TOY, key, FEATURES.sample, data_key=jax.random.key(1), steps=250, batch_size=8)

    def listener(steps):
        lengths.append(steps)
        return lambda done: seen.append(int(done))

    with sp.training.listen(listener):
        mapped = jax.jit(jax.vmap(run)).lower(keys).compile()
    jax.block_until_ready(mapped(keys))
    jax.effects_barrier()
    assert lengths == [250]
    assert sorted(seen) == list(range(2, 251, 2))


def test_starts_from_given_parameters():
    start = TOY.init(jax.random.key(9))
    params, _ = sp.fit(TOY, jax.random.key(0), FEATURES.sample, params=start, steps=1, batch_size=8, optimizer=optax.sgd(0.0))
    np.testing.assert_array_equal(params["W"], start["W"])


def test_batches_and_loss_draw_from_different_keys():
    class Nosy:
        def init(self, key):
            return jax.random.normal(key, (3,))

        def loss(self, params, x, *, key, step):
            same = (x == jax.random.normal(key, x.shape)) | (x == params)
            return jnp.sum(0 * params) + jnp.mean(same), {}

    _, history = sp.fit(Nosy(), jax.random.key(0), lambda key, n: jax.random.normal(key, (n, 3)), steps=2, batch_size=5)
    assert (history["loss"] == 0).all()


@pytest.mark.parametrize("name", ["steps", "batch_size"])
def test_bad_settings(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        sp.fit(TOY, jax.random.key(0), FEATURES.sample, **{"steps": 1, "batch_size": 1, name: 0})

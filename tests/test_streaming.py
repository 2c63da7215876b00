import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import superpos as sp
from superpos import data

KEY = jax.random.key(0)
ROWS = np.asarray(sp.features.SparseFeatures(6, 0.3).sample(jax.random.key(1), 200))
BATCHES = data.Batches(ROWS, 16, block_size=8, buffer_size=64)


class Model:
    """A linear autoencoder whose loss, calibration and hook after each step depend on all that they are given."""

    def init(self, key):
        return {"W": jax.random.uniform(key, (6, 3)), "mean": jnp.zeros(6)}

    def calibrate(self, params, batch):
        return params | {"mean": batch.mean(axis=0)}

    def loss(self, params, x, *, key, step):
        noisy = x + 0.1 * jax.random.uniform(key, x.shape)
        error = (noisy - params["mean"]) @ params["W"] @ params["W"].T + params["mean"] - x
        loss = jnp.mean(error**2)
        return loss, {"decayed": loss / (1 + step), "not a scalar": error}

    def after_step(self, params, opt_state, aux, *, key, step):
        noise = jax.random.uniform(key, params["W"].shape)
        return params | {"W": params["W"] + 1e-3 * noise}, opt_state


class Plain:
    """One that compiles fast."""

    def init(self, key):
        return jnp.ones(6)

    def loss(self, params, x, *, key, step):
        return jnp.mean((x - params) ** 2), {}


SETTINGS = {"steps": 30, "optimizer": optax.adam(optax.exponential_decay(1e-2, 10, 0.9))}


def equal(one, other):
    """Leaves equal to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def whole():
    return sp.fit_stream(Model(), KEY, BATCHES, **SETTINGS)


def test_the_batches_of_fit_give_what_fit_gives():
    data_key = jax.random.key(5)

    def sample(key, n):
        return jax.random.uniform(key, (n, 6))

    drawn = [sample(jax.random.fold_in(data_key, i), 16) for i in range(30)]
    calibrated = Model().calibrate(Model().init(jax.random.split(KEY, 3)[0]), drawn[0])
    params, history = sp.fit(Model(), KEY, sample, data_key=data_key, params=calibrated, batch_size=16, **SETTINGS)
    streamed, found = sp.fit_stream(Model(), KEY, drawn, **SETTINGS)
    assert set(found) == set(history) == {"loss", "decayed"}
    for name, values in found.items():
        assert isinstance(values, np.ndarray)
        assert (values.shape, values.dtype) == ((30,), np.float32)
        np.testing.assert_allclose(values, history[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), streamed, params)


def test_a_stream_that_fails_goes_on_as_if_it_had_not(whole, tmp_path):
    starts = []

    def failing(at):
        def batches(start):
            starts.append(start)
            for i, batch in enumerate(BATCHES(start), start):
                if i == at:
                    raise ConnectionError("gone")
                yield batch

        return batches

    with pytest.raises(ConnectionError, match="gone"):
        sp.fit_stream(Model(), KEY, failing(17), workdir=tmp_path, save_every=5, **SETTINGS)
    assert equal(sp.fit_stream(Model(), KEY, failing(99), workdir=tmp_path, save_every=4, **SETTINGS), whole)
    assert starts == [0, 0, 16]  # the first batch, and the last one before, tell whether the data are the same
    assert equal(sp.fit_stream(Model(), KEY, failing(1), workdir=tmp_path, **SETTINGS), whole)  # finished
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_an_iterator_is_drawn_again(tmp_path):
    whole = sp.fit_stream(Plain(), KEY, BATCHES, steps=30)
    drawn = [batch for batch, _ in zip(BATCHES(), range(30), strict=False)]
    with pytest.raises(ValueError, match="batches ended after 11 of 30 steps"):
        sp.fit_stream(Plain(), KEY, iter(drawn[:11]), workdir=tmp_path, steps=30)
    with pytest.raises(ValueError, match="batches ended after 10 of 30 steps"):
        sp.fit_stream(Plain(), KEY, iter(drawn[:9]), workdir=tmp_path, steps=30)
    assert equal(sp.fit_stream(Plain(), KEY, iter(drawn), workdir=tmp_path, steps=30), whole)


def test_other_data_after_the_first_batch_are_noticed(tmp_path):
    drawn = [batch for batch, _ in zip(BATCHES(), range(9), strict=False)]
    with pytest.raises(ValueError, match="batches ended after 5 of 9 steps"):
        sp.fit_stream(Plain(), KEY, drawn[:5], workdir=tmp_path, steps=9)
    others = [drawn[0], *(batch + 1 for batch in drawn[1:])]
    for batches in (others, lambda start: iter(others[start:])):
        with pytest.raises(ValueError, match=r"batches must be those that .* was trained on, but batch 4 is another"):
            sp.fit_stream(Plain(), KEY, batches, workdir=tmp_path, steps=9)
    assert equal(sp.fit_stream(Plain(), KEY, drawn, workdir=tmp_path, steps=9), sp.fit_stream(Plain(), KEY, drawn, steps=9))


SCRIPT = """
    import sys, time
    import numpy as np
    sys.path.insert(0, {tests!r})
    from test_streaming import BATCHES, KEY, SETTINGS, Model, sp

    def slow(start):
        for batch in BATCHES(start):
            time.sleep(0.3)
            yield batch

    print("ready", flush=True)
    sp.fit_stream(Model(), KEY, slow, workdir=sys.argv[1], save_every=1, **SETTINGS)
"""


def test_a_process_that_is_killed_goes_on_bit_for_bit(whole, tmp_path):
    script = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent)))
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], env=os.environ)
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run" / "checkpoints").glob("step-*3.safetensors")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    starts = []

    def batches(start):
        starts.append(start)
        return BATCHES(start)

    assert equal(sp.fit_stream(Model(), KEY, batches, workdir=tmp_path / "run", **SETTINGS), whole)
    assert 2 <= starts[-1] < 30


def test_another_run_is_refused(tmp_path):
    start, _ = sp.fit_stream(Model(), KEY, BATCHES, steps=1)  # on the devices already
    before = jax.device_get(start)
    settings = {"model": Model(), "key": KEY, "batches": BATCHES, "params": start, "steps": 2, "optimizer": optax.sgd(0.1)}
    sp.fit_stream(**settings, workdir=tmp_path)

    class Other(Model):
        def after_step(self, params, opt_state, aux, *, key, step):
            return params, opt_state

    others = {
        "model": Other(),
        "key": jax.random.key(1),
        "batches": data.Batches(ROWS, 16, seed=1, block_size=8, buffer_size=64),
        "params": start | {"mean": jnp.zeros(6)},
        "steps": 3,
        "optimizer": optax.sgd(0.2),
    }
    names = {"model": "program", "optimizer": "program", "batches": "first_batch"}
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"holds a run with another configuration \({names.get(name, name)}\)"):
            sp.fit_stream(**settings | {name: other}, workdir=tmp_path)
    found, _ = sp.fit_stream(**settings, workdir=tmp_path)
    assert equal(start, before)  # the caller's are left alone
    assert not equal(start, found)


def test_keys_and_copies_in_the_optimizer_state(tmp_path):
    """Typed keys are saved; what is in the state twice is not given away twice."""
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(2)), optax.contrib.schedule_free_sgd(1e-2))
    settings = {"model": Plain(), "key": KEY, "optimizer": noisy, "steps": 6}
    straight = sp.fit_stream(batches=BATCHES, **settings)
    with pytest.raises(ValueError, match="ended after 4 of 6"):
        sp.fit_stream(batches=itertools.islice(BATCHES(), 4), workdir=tmp_path, **settings)
    assert equal(sp.fit_stream(batches=BATCHES, workdir=tmp_path, **settings), straight)


class Slow(Plain):
    """One whose step takes long enough for JAX to return before it has run."""

    def loss(self, params, x, *, key, step):
        turned = jax.lax.fori_loop(0, 300, lambda _, a: a @ TURN, jax.lax.stop_gradient(x @ jnp.ones((6, 100))))
        return jnp.mean((x - params + 0 * turned[:, :6]) ** 2), {}


TURN = jnp.eye(100)[::-1]


def test_the_host_draws_no_more_than_two_batches_ahead():
    drawn = []

    def batches(start):
        for batch in BATCHES(start):
            drawn.append(time.perf_counter())
            yield np.tile(batch, (20, 1))

    sp.fit_stream(Slow(), KEY, batches, steps=22, optimizer=optax.sgd(0.1))
    # All but the first were drawn after compiling; the last when at most three of the other 20 steps were left to do.
    assert drawn[-1] - drawn[2] > 0.6 * (time.perf_counter() - drawn[2])


def test_what_steps_record_is_fetched_many_at_once(monkeypatch):
    fetched, fetch = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(tree)) or fetch(tree))
    _, history = sp.fit_stream(Plain(), KEY, BATCHES, steps=205)
    assert fetched == [100, 100, 5]
    assert (history["loss"] > 0).all()


def test_an_iterator_may_fill_one_array_again_and_again():
    room = np.empty(320 * 6 * 4 + 64, np.uint8)
    room = room[-room.ctypes.data % 64 :][: 320 * 6 * 4]  # aligned as JAX wants it, which would take it without a copy

    def refilled():
        array = room.view(np.float32).reshape(320, 6)
        for batch in BATCHES():
            array[:] = np.tile(batch, (20, 1))
            yield array
            array[:] = np.nan

    settings = {"steps": 5, "optimizer": optax.sgd(0.1)}
    found = sp.fit_stream(Slow(), KEY, refilled(), **settings)
    assert equal(found, sp.fit_stream(Slow(), KEY, (np.tile(batch, (20, 1)) for batch in BATCHES()), **settings))


DEVICES = """
    import sys
    import jax
    jax.config.update("jax_num_cpu_devices", 4)
    sys.path.insert(0, {tests!r})
    import numpy as np
    from test_streaming import BATCHES, KEY, SETTINGS, Model, sp

    def fit(batches, devices):
        return sp.fit_stream(Model(), KEY, batches, workdir={workdir!r}, devices=devices, **SETTINGS)

    def refused(*arguments):
        try:
            fit(*arguments)
        except ValueError as error:
            return str(error)

    assert "16 samples cannot be split equally over 3" in refused(BATCHES, jax.devices()[1:])
    assert "ended after 5 of 30" in refused([batch for batch, _ in zip(BATCHES(), range(5))], jax.devices()[2:])
    params, history = fit(BATCHES, None)
    assert params["W"].sharding.is_fully_replicated and params["W"].sharding.device_set == set(jax.devices())
    np.savez({file!r}, **params, loss=history["loss"])
"""


@pytest.mark.slow
def test_devices_that_share_the_batches_come_to_the_same(whole, tmp_path):
    places = {"tests": str(Path(__file__).parent), "workdir": str(tmp_path / "run"), "file": str(tmp_path / "found.npz")}
    command = [sys.executable, "-c", textwrap.dedent(DEVICES.format(**places))]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, value in (whole[0] | {"loss": whole[1]["loss"]}).items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_the_bar_counts_all_steps(capsys):
    sp.fit_stream(Plain(), KEY, BATCHES, steps=30, progress=True)
    assert "30.0/30.0" in capsys.readouterr().err
    sp.fit_stream(Plain(), KEY, BATCHES, steps=30)  # no terminal
    assert capsys.readouterr().err == ""


BATCH = np.ones((16, 6), np.float32)


@pytest.mark.parametrize(
    ("batches", "settings", "message"),
    [
        ([], {}, "batches ended after 0 of 30 steps"),
        ([BATCH, BATCH[:8]], {}, r"the first is float32\[16, 6\], batch 1 float32\[8, 6\]"),
        ([BATCH, BATCH.astype(np.float16)], {}, r"batch 1 float16\[16, 6\]"),
        ([BATCH, BATCH * np.array([1, 1, np.inf, 1, np.nan, 1], np.float32)], {}, "batch 1 holds 32 NaN or infinite values"),
        (BATCH, {}, r"got an array: use superpos.data.Batches\(array, n\)"),
        ([3.0], {}, "must give arrays of real numbers with samples along the first axis, got float"),
        ("rows.npy", {}, "must give arrays of real numbers with samples along the first axis, got str"),
        ([BATCH], {"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ([BATCH], {"save_every": 0}, "save_every must be an integer of at least 1, got 0"),
        ([BATCH], {"devices": []}, "devices must list at least one device"),
    ],
)
def test_bad_input(batches, settings, message):
    with pytest.raises(ValueError, match=message):
        sp.fit_stream(Plain(), KEY, batches, **{"steps": 30, "optimizer": optax.sgd(0.1), **settings})


def test_under_jit():
    with pytest.raises(ValueError, match="call it outside of jit and vmap"):
        jax.vmap(lambda key: sp.fit_stream(Plain(), key, BATCHES, steps=1))(jax.random.split(KEY))

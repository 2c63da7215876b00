"""The training loop: over samples that are drawn in the compiled program, or over batches from the host."""

import collections
import contextlib
import contextvars
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from superpos import results
from superpos.checks import positive_integer


class Model(Protocol):
    """What `fit` trains: a toy model, a sparse autoencoder, or a user's own.

    Three further methods are called where a model has them:

    - `calibrate(params, batch) -> params`: what the start takes from data, such as scales and medians; before the first step.
    - `prepared(params) -> params`: what a caller's parameters need before they are trained on, such as precise counters.
    - `after_step(params, opt_state, aux, *, key, step) -> (params, opt_state)`: what gradients do not do, such as norm
      constraints, running thresholds and resampling; after each step. `aux` is that of the loss.
    """

    def init(self, key: Array, /) -> Any:
        """Parameters to start from."""

    def loss(self, params: Any, x: Any, /, *, key: Array, step: Array) -> tuple[Array, dict[str, Array]]:
        """The loss of one batch, and what else is worth recording."""
        ...


def fit(
    model: Model,
    key: Key[Array, ""],
    sample: Callable[[Array, int], Any],
    *,
    data_key: Key[Array, ""] | None = None,
    params: Any = None,
    steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Any, dict[str, Array]]:
    """Trains one model for a number of steps, as a pure function of its keys: `jit` and `vmap` it.

    NaN in the data trains NaN, which the history shows: a pure function cannot refuse it, `fit_stream` does.

    Under `vmap` over `key` with `data_key` unbatched, all models see the same batches, drawn once.

    Args:
        model: has `init(key) -> params` and `loss(params, batch, *, key, step) -> (scalar, aux)`.
        key: initialises the parameters, and is passed on to the loss and to `after_step`.
        sample: `sample(key, batch_size) -> batch`.
        data_key: draws the batches; by default derived from `key`.
        params: to start from; by default `start(model, key, batch)` with a batch of its own.
        steps: number of optimizer steps; static.
        batch_size: samples in a batch; static.
        optimizer: an optax transformation; by default `optax.adam(1e-3)`.

    Returns:
        The trained parameters, and a history: `{"loss": (steps,)}` with the scalar entries of `aux`, each `(steps,)`.

    Raises:
        ValueError: steps or batch_size is not positive.

    >>> from superpos.toy import ToyModel
    >>> model = ToyModel(n_features=3, n_hidden=2)
    >>> params, history = fit(model, jax.random.key(0), lambda key, n: jax.random.uniform(key, (n, 3)), steps=5, batch_size=4)
    >>> params["W"].shape, history["loss"].shape
    ((3, 2), (5,))
    """
    positive_integer("steps", steps)
    positive_integer("batch_size", batch_size)
    if not callable(sample):
        got = type(sample).__name__
        raise ValueError(
            f"sample must be a function (key, n) -> batch, got {got}: sp.fit_stream takes superpos.data.Batches(array, n)."
        )
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    init_key, loss_key, spare_key = jax.random.split(key, 3)
    data_key = spare_key if data_key is None else data_key

    def draw(i: Any) -> Any:
        batch = sample(jax.random.fold_in(data_key, i), batch_size)
        if all(jnp.shape(leaf)[:1] != (batch_size,) for leaf in jax.tree.leaves(batch)):  # some may be of the whole batch
            shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(batch))
            raise ValueError(f"sample must give the {batch_size} samples that it is asked for, got shape {shapes}.")
        return batch

    params = start(model, init_key, lambda: draw(2**32 - 1)) if params is None else prepared(model, params)
    tick = loop(steps)

    def step(state: Any, i: Array) -> tuple[Any, dict[str, Array]]:
        batch = draw(i)
        state, record = _update(model, optimizer, state, batch, jax.random.fold_in(loss_key, i), i)
        tick(i)
        return state, record

    (params, _), history = lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params, history


def fit_stream(
    model: Model,
    key: Key[Array, ""],
    batches: Callable[[int], Iterable[Any]] | Iterable[Any],
    *,
    params: Any = None,
    steps: int,
    optimizer: optax.GradientTransformation | None = None,
    workdir: str | os.PathLike | None = None,
    save_every: int = 1000,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Trains one model on batches from the host, such as those of `superpos.data.Batches`: data need not fit into memory.

    Each step is that of `fit`: with the batches that `fit` draws it comes to the same parameters. No more than two batches
    are on their way at once. With a `workdir` a run that was killed goes on when it is called again, and ends with the
    parameters and history that it would have had, bit for bit on the same devices.

    Args:
        model: as in `fit`. Where it has a `calibrate`, that sees the first batch, which is then trained on too.
        key: as in `fit`.
        batches: arrays, all of one shape with samples along the first axis. Either a function that iterates over them from a
            number on, `batches(start)`, or any iterable; of an iterable, a run that goes on draws again and drops what it was
            trained on, so pass one that starts anew.
        params: to start from; by default `start(model, key, batch)`.
        steps: number of optimizer steps, one a batch.
        optimizer: an optax transformation; by default `optax.adam(1e-3)`.
        workdir: a folder that keeps the last two checkpoints. What makes a run the same: key, params, steps, the first batch
            and the last that it was trained on, and what model and optimizer compute.
        save_every: steps from one checkpoint to the next. The last step is saved too, and what was trained when `batches`
            raises, ends or gives a batch that is refused.
        devices: split each batch; by default all of this process.
        progress: whether to show a bar on standard error; by default in a terminal or a notebook, unless TQDM_DISABLE is set.

    Returns:
        The trained parameters, on all the devices, and the history as in `fit`, in float32 NumPy arrays.

    Raises:
        ValueError: steps or save_every is not positive; devices that do not fit; batches that end early, differ in shape or
            hold NaN or infinity; a workdir of another run, or with a damaged checkpoint.
        OSError: a checkpoint could not be saved.

    >>> from superpos import data
    >>> from superpos.toy import ToyModel
    >>> rows = np.random.default_rng(0).uniform(size=(40, 3)).astype(np.float32)
    >>> model = ToyModel(n_features=3, n_hidden=2)
    >>> batches = data.Batches(rows, 8)
    >>> params, history = fit_stream(model, jax.random.key(0), batches, steps=5, devices=jax.local_devices()[:1])
    >>> params["W"].shape, history["loss"].shape
    ((3, 2), (5,))
    """
    from tqdm import tqdm

    devices = jax.local_devices() if devices is None else list(devices)
    _check_request(key, batches, steps, save_every, devices)
    stream = iter(batches(0) if callable(batches) else batches)
    first = _draw(stream, 0, steps)
    if len(first) % len(devices):
        raise ValueError(f"devices must divide a batch: {len(first)} samples cannot be split equally over {len(devices)}.")
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = NamedSharding(mesh, PartitionSpec("devices")), NamedSharding(mesh, PartitionSpec())
    given, init_key, loss_key = jax.device_put((params, *jax.random.split(key, 3)[:2]), whole)

    def begin(params: Any, key: Array, batch: Array) -> Any:
        params = start(model, key, lambda: batch) if params is None else prepared(model, params)
        # Copies, because each step overwrites its state, and the caller's parameters are the caller's.
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype, copy=True), (params, optimizer.init(params)))

    def step(state: Any, key: Array, batch: Array, i: Array) -> tuple[Any, dict[str, Array]]:
        return _update(model, optimizer, state, batch, jax.random.fold_in(key, i), i)

    # Of shapes alone: arrays bring the devices that they lie on into what is traced, and a run may go on with others.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (given, init_key, loss_key))
    begun, struct = jax.make_jaxpr(begin, return_shape=True)(*shapes[:2], first)
    stepped, (_, records) = jax.make_jaxpr(step, return_shape=True)(struct, shapes[2], first, np.int32(0))
    run: Any = None
    done = 0
    if workdir is not None:
        described = {
            "steps": steps,
            "key": results.digest([results.raw(key)[0]]),
            "params": results.digest(jax.tree.leaves(results.raw(params)[0])),
            "first_batch": results.digest([first]),
            "program": results.fingerprint([begun, stepped]),
        }
        run = results.Run(workdir, "fit_stream", described)
        run.claim()
    state = jax.jit(begin, out_shardings=whole)(given, init_key, jax.device_put(first, split))
    history = {name: np.zeros(steps, np.float32) for name in records}
    if run is not None and (saved := run.checkpoints()):
        plain, wrap = results.raw(state)
        last, records, done, seen = run.load(saved[-1], (plain, history, done, _digest(first)))
        state, done = jax.device_put(wrap(last), whole), int(done)
        history = {name: np.array(values) for name, values in records.items()}
        if done > 1:  # drawn again, to see whether the data are the same
            stream = iter(batches(done - 1)) if callable(batches) else itertools.islice(stream, done - 2, None)
        if not np.array_equal(_digest(_draw(stream, done - 1, steps, first) if done > 1 else first), seen):
            raise ValueError(f"batches must be those that {run.path} was trained on, but batch {done - 1} is another.")
    running: collections.deque = collections.deque()  # numbers and records of steps that are not in the history yet

    def settle(n_running: int = 0) -> None:
        finished = [running.popleft() for _ in range(len(running) - n_running)]
        # All at once: a transfer a step would cost an accelerator more than many a step.
        for (i, _), record in zip(finished, jax.device_get([record for _, record in finished]), strict=True):
            for name, value in record.items():
                history[name][i] = value

    def save(done: int) -> None:
        settle()
        run.save(f"step-{done:012}", (results.raw(state)[0], history, done, _digest(batch)), keep=2)

    advance = jax.jit(step, donate_argnums=0, out_shardings=whole)
    progress = results.shows_progress(progress)
    bar = tqdm(total=steps, initial=done, desc="fit_stream", unit="step", unit_scale=True, disable=not progress)
    with bar, contextlib.ExitStack() as after:
        if run is not None:
            after.callback(run.release)
        for i in range(done, steps):
            try:
                batch = first if i == 0 else _draw(stream, i, steps, first)
            except BaseException:
                if run is not None and i > done:
                    save(i)
                raise
            if len(running) > 1:
                jax.block_until_ready(running[-2][1])  # JAX would run ahead and pile up batches
            state, record = advance(state, loss_key, jax.device_put(batch, split), np.int32(i))
            running.append((i, record))
            if len(running) > _FETCHED:
                settle(1)
            bar.update()
            if run is not None and ((i + 1) % save_every == 0 or i + 1 == steps):
                save(i + 1)
        settle()
    return state[0], history


_FETCHED = 100  # steps whose records `fit_stream` fetches at once


def _check_request(key: Any, batches: Any, steps: int, save_every: int, devices: Sequence[jax.Device]) -> None:
    """Refuses what `fit_stream` cannot be asked for, before a batch is drawn."""
    positive_integer("steps", steps)
    positive_integer("save_every", save_every)
    if isinstance(key, jax.core.Tracer):
        raise ValueError("sp.fit_stream feeds a compiled step from the host: call it outside of jit and vmap, or use sp.fit.")
    if getattr(batches, "ndim", 3) < 3:
        raise ValueError("batches must give one batch after the other, got an array: use superpos.data.Batches(array, n).")
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"devices must list at least one device, and none twice, got {devices}.")


def _digest(batch: np.ndarray) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(results.digest([batch])), np.uint8)


def _draw(stream: Iterator[Any], number: int, steps: int, like: np.ndarray | None = None) -> np.ndarray:
    """The next batch."""
    values = next(stream, None)
    if values is None:
        raise ValueError(f"batches ended after {number} of {steps} steps.")
    if np.ma.is_masked(values):
        raise ValueError(f"batch {number} has masked entries: leave the samples that they are in out.")
    batch = np.array(values)  # a copy: an iterator may fill one array again while a device still reads it
    if batch.ndim < 1 or batch.size == 0 or batch.dtype.kind in "OUSc":
        got = f"{type(values).__name__} of {batch.dtype}{list(batch.shape)}"
        raise ValueError(f"batches must give arrays of real numbers with samples along the first axis, got {got}.")
    if like is not None and (batch.shape, batch.dtype) != (like.shape, like.dtype):
        shapes = [f"{array.dtype}{list(array.shape)}" for array in (like, batch)]
        raise ValueError(f"batches must all be alike: the first is {shapes[0]}, batch {number} {shapes[1]}.")
    if not np.isfinite(batch).all():
        raise ValueError(f"batch {number} holds {np.size(batch) - np.isfinite(batch).sum()} NaN or infinite values.")
    return batch


def start(model: Model, key: Key[Array, ""], batch: Callable[[], Any]) -> Any:
    """The parameters that training starts from: `model.init`, calibrated on a batch where the model has a `calibrate`."""
    params = model.init(key)
    return model.calibrate(params, batch()) if hasattr(model, "calibrate") else params


def prepared(model: Model, params: Any) -> Any:
    """Parameters that a caller starts from, as the model's training takes them."""
    return model.prepared(params) if hasattr(model, "prepared") else params


Listener = Callable[[int], Callable[[Any], None]]
# Who wants to know how far the loops are that are being traced: `sp.sweep`, for its progress bar.
_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("listener", default=None)
_counter = itertools.count()


@contextlib.contextmanager
def listen(listener: Listener | None) -> Iterator[None]:
    """While a function is traced inside this context, `listener(steps) -> report` hears of each of its loops.

    When the compiled loop runs, `report` is called on the host with the number of steps done, about a hundred times.
    """
    token = _listener.set(listener)
    try:
        if listener is None:
            yield
        else:  # a mark that no other trace has: an inner `jit` would bring back what it has traced for somebody else
            with set_xla_metadata(listener=str(next(_counter))):
                yield
    finally:
        _listener.reset(token)


def loop(steps: int) -> Callable[[Array], None]:
    """A `tick(i)` to call in each step of a compiled loop, so that the progress bar of `sp.sweep` counts it.

    Call `loop` before the loop and `tick` inside, with the number of the step, which no `vmap` may batch. `fit` does both.
    """
    listener = _listener.get()
    if listener is None:
        return lambda i: None
    report, every = listener(steps), max(1, steps // 100)

    def tick(i: Array) -> None:
        due = ((i + 1) % every == 0) | (i + 1 == steps)
        lax.cond(due, lambda: jax.debug.callback(report, i + 1), lambda: None)

    return tick


def _update(
    model: Any, optimizer: optax.GradientTransformation, state: Any, batch: Any, key: Array, step: Array
) -> tuple[Any, dict[str, Array]]:
    """One optimizer step: the state after it, and its scalars."""
    params, opt_state = state
    (loss, aux), grads = jax.value_and_grad(model.loss, has_aux=True)(params, batch, key=key, step=step)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    if hasattr(model, "after_step"):
        after_key = jax.random.fold_in(key, 0x5AE)  # no key should serve twice
        params, opt_state = model.after_step(params, opt_state, aux, key=after_key, step=step)
    scalars = {name: value for name, value in aux.items() if not isinstance(value, dict) and jnp.ndim(value) == 0}
    return (params, opt_state), {"loss": loss, **scalars}

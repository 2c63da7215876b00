"""The training loop."""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Key


class Model(Protocol):
    """What `fit` trains: a toy model, a sparse autoencoder, or a user's own.

    Two further methods are called where a model has them:

    - `calibrate(params, batch) -> params`: what the start takes from data, such as scales and medians; before the first step.
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
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    init_key, loss_key, spare_key = jax.random.split(key, 3)
    data_key = spare_key if data_key is None else data_key
    if params is None:
        params = start(model, init_key, lambda: sample(jax.random.fold_in(data_key, 2**32 - 1), batch_size))
    tick = loop(steps)

    def step(state, i):
        batch = sample(jax.random.fold_in(data_key, i), batch_size)
        state, record = _update(model, optimizer, state, batch, jax.random.fold_in(loss_key, i), i)
        tick(i)
        return state, record

    (params, _), history = lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return params, history


def start(model: Model, key: Key[Array, ""], batch: Callable[[], Any]) -> Any:
    """The parameters that training starts from: `model.init`, calibrated on a batch where the model has a `calibrate`."""
    params = model.init(key)
    return model.calibrate(params, batch()) if hasattr(model, "calibrate") else params


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

    def tick(i):
        due = ((i + 1) % every == 0) | (i + 1 == steps)
        lax.cond(due, lambda: jax.debug.callback(report, i + 1), lambda: None)

    return tick


def _update(model, optimizer, state, batch, key, step):
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

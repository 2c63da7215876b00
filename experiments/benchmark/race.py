"""One kind of model, trained by us and by PyTorch."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

import superpos as sp
from experiments.benchmark.modules import Module

RATE = 1e-3

Timed = tuple[np.ndarray | None, float]  # losses (models, steps), and seconds for all of them


class Race:
    """One kind of model, trained by us and by PyTorch from the same parameters on the same batches.

    Args:
        settings: has `n_seeds`, `steps`, `batch_size` and `chunk`, as `config.training` has.
        model: ours.
        module: theirs: `module(model, params)`, whose `forward` is the loss.
        batches: `(n_batches, batch_size, inputs)`.
    """

    def __init__(self, settings: Any, model: Any, module: type[Module], batches: jax.Array):
        self.settings, self.model, self.module = settings, model, module
        inputs = batches.shape[-1]
        self.flops = 5 * 2 * settings.batch_size * inputs * getattr(model, "n_hidden", 0)
        # Each side's batches lie in memory as it draws them itself: ours with a row a feature, see `SparseFeatures`.
        self.batches = jnp.array(batches.swapaxes(1, 2))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tensors = torch.tensor(np.asarray(batches), device=self.device)
        self.key = jax.random.key(0)
        order = jax.vmap(lambda i: self._batch(jax.random.fold_in(self.key, i)))(jnp.arange(settings.steps))
        self.order = order.tolist()

    def ours(self, n_seeds: int) -> Timed:
        """`sp.sweep`; what it reports as `run` is without compilation."""

        def train(key, data):
            return sp.fit(
                self.model,
                key,
                lambda key, n: data["batches"][self._batch(key)].T,
                data_key=data["key"],
                params=self.model.init(key),
                steps=self.settings.steps,
                batch_size=self.settings.batch_size,
                optimizer=optax.adamw(RATE, weight_decay=self.module.decay),
            )[1]["loss"]

        data = {"key": self.key, "batches": self.batches}
        # Four models a core at a time: their activations stay in its cache.
        chunk = self.settings.chunk or (4 * jax.device_count() if jax.default_backend() == "cpu" else None)
        found = sp.sweep(train, {}, self._keys(n_seeds), data_key=data, chunk=chunk, progress=False)
        return found.rows["train"][0], found.seconds["run"]

    def set_threads(self, side: Callable[..., Timed], threads: int) -> int:
        """PyTorch gets so many, or 1 where that is faster just now: where a core is taken, its threads wait for each other."""

        def spent(limit):
            torch.set_num_threads(limit)
            return min(side(self.settings.n_seeds, 3)[1] for _ in range(3))

        limit = min((threads, 1), key=spent) if self.settings.n_seeds > 1 else threads  # one large model needs them all
        torch.set_num_threads(limit)
        return limit

    def loop(self, n_seeds: int, steps: int | None = None) -> Timed:
        """One model after the other, as the published code trains them."""
        losses = []
        modules = self._modules(n_seeds)
        started = time.perf_counter()
        for module in modules:
            optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=self.module.decay)
            for i in self.order[:steps]:
                optimizer.zero_grad()
                loss = module(self.tensors[i])
                loss.backward()
                optimizer.step()
                module.after_step()
                losses.append(loss.detach())
        found = torch.stack(losses).reshape(n_seeds, -1).cpu().numpy()  # waits for the device
        return found, time.perf_counter() - started

    def vmapped(self, n_seeds: int, steps: int | None = None) -> Timed:
        """All models at once."""
        losses = []
        modules = self._modules(n_seeds)
        params, _ = stack_module_state(modules)
        optimizer = torch.optim.AdamW(params.values(), lr=RATE, weight_decay=self.module.decay)
        step = vmap(grad_and_value(lambda params, x: functional_call(modules[0], params, (x,))), (0, None))
        started = time.perf_counter()
        for i in self.order[:steps]:
            grads, loss = step({name: value.detach() for name, value in params.items()}, self.tensors[i])
            for name, value in params.items():
                value.grad = grads[name]
            optimizer.step()
            losses.append(loss)
        found = torch.stack(losses, 1).cpu().numpy()
        return found, time.perf_counter() - started

    def _batch(self, key):
        """Which batch a step reads: as random as its key."""
        return jax.random.key_data(key)[-1] % len(self.batches)

    def _keys(self, n_seeds):
        return jax.random.split(jax.random.key(1), n_seeds)

    def _modules(self, n_seeds):
        params = jax.tree.map(np.asarray, jax.vmap(self.model.init)(self._keys(n_seeds)))
        return [
            self.module(self.model, {name: value[i] for name, value in params.items()}).to(self.device) for i in range(n_seeds)
        ]

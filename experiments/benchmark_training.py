"""The `training` suite of `experiments.benchmark`: many small models at once, beside PyTorch and the device's own matmul."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from ml_collections import ConfigDict
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from tqdm import tqdm

import superpos as sp
from superpos.results import Run, read_json

N_BATCHES = 16  # that the models see in turn; the large one a quarter of them
RATE, DECAY = 1e-3, 0.01
LOOP, VMAP, MATMUL = "PyTorch, one by one", "torch.func.vmap", "large matmul"
# Times faster than each alternative; than a large matmul's rate: the share of it.
# Of toys by their hidden units, of SAEs by "sae", of the large one by "large".
TARGETS: dict[str, dict[int | str, float]] = {
    LOOP: {8: 10, 16: 10, 32: 10, "sae": 10, "large": 1.5},
    VMAP: {8: 3, 16: 3, 32: 3},
    MATMUL: {8: 0.35, 32: 0.6},
}

COMPILE_TARGET = 30  # seconds, at most

Timed = tuple[np.ndarray | None, float]  # losses (models, steps), and seconds for all of them


def compute(config: ConfigDict, run: Run, threads: int) -> dict[str, Any]:
    """Times the steps of each model, and of 1, 2, 4, ... models at once."""
    settings = config.training
    for name in ("n_seeds", "most_seeds", "steps", "batch_size", "matmul", "sae_inputs", "large_steps", "large_batch"):
        if settings[name] < 1:
            raise ValueError(f"config.training.{name} must be at least 1, got {settings[name]}.")
    large = ConfigDict(
        {**settings, "n_seeds": 1, "chunk": 1, "steps": settings.large_steps, "batch_size": settings.large_batch}
    )
    run.claim()
    started = time.perf_counter()
    features = sp.features.SparseFeatures(64)
    keys = jax.random.split(jax.random.key(config.seed), N_BATCHES)
    z = jax.jit(jax.vmap(lambda key: features.sample(key, settings.batch_size)))(keys)
    hidden = sp.toy.ToyModel(64, settings.sae_inputs)
    x = hidden.encode(hidden.init(keys[0]), z)
    inputs, latents, k = settings.large_sae
    many = _mixed(keys[: N_BATCHES // 4], large.batch_size, inputs)
    made = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        toys = {n: Race(settings, sp.toy.ToyModel(64, n, sp.features.power_law(64)), Toy, z) for n in settings.n_hidden}
        width = settings.sae_inputs
        names: dict[str, tuple[Race, int | str]] = {f"toy, {n} hidden": (race, n) for n, race in toys.items()}
        names |= {
            "TopK SAE": (Race(settings, sp.sae.TopK(width, 64, 7, **sp.sae.PUBLISHED), Published, x), "sae"),
            "TopK SAE, default": (Race(settings, sp.sae.TopK(width, 64, 4), TopK, x), "sae"),
            "Vanilla SAE, default": (Race(settings, sp.sae.Vanilla(width, 64, 0.1), Vanilla, x), "sae"),
            f"TopK SAE, {inputs} -> {latents}": (Race(large, sp.sae.TopK(inputs, latents, k), TopK, many), "large"),
        }
        timed: dict[str, dict[str, list[Timed]]] = {}
        rates, limits = [], {}
        bar = tqdm(total=len(names), desc="benchmark", disable=None)
        for name, (race, _) in names.items():
            sides = {"ours": race.ours, LOOP: race.loop} | ({VMAP: race.vmapped} if race.module.maps else {})
            timed[name] = {side: [] for side in sides}
            for _ in range(config.repeats):  # in turns, so that what else the machine does meets all alike
                rates.append((_matmul(_jax_square(settings.matmul)), _matmul(_torch_square(settings.matmul))))
                for side, function in sides.items():
                    if side != "ours":
                        limits[name, side] = race.set_threads(function, threads)
                    timed[name][side].append(function(race.settings.n_seeds))
            bar.update()
        bar.close()
        seeds = _curve(settings, toys[settings.n_hidden[0]], config.repeats)
    best = [max(rate) for rate in zip(*rates, strict=True)]
    rows = []
    for name, (race, kind) in names.items():
        if isinstance(kind, int):
            timed[name][MATMUL] = [(None, race.flops * settings.n_seeds * settings.steps / best[0])]
        rows += [
            {**_row(name, kind, side, timed[name], race.settings), "theirs_threads": limits.get((name, side), threads)}
            for side in timed[name]
            if side != "ours"
        ]
    compilation = _compilation()
    matmul = [{"by": by, "gflops": rate / 1e9} for by, rate in zip(("jnp.matmul", "torch"), best, strict=True)]
    seconds = {"data": made - started, "timing": time.perf_counter() - made}
    n_hidden = settings.n_hidden[0]
    return run.finish(rows, seconds, seeds=seeds, matmul=matmul, compilation=compilation, threads=threads, n_hidden=n_hidden)


def _row(name, kind, side, timed, settings):
    """One alternative beside ours, in microseconds a step of one model."""
    models = settings.n_seeds * settings.steps
    ours, theirs = ([1e6 * seconds / models for _, seconds in timed[which]] for which in ("ours", side))
    losses, found = timed["ours"][-1][0], timed[side][-1][0]
    ratio = statistics.median(theirs) / statistics.median(ours)
    target = TARGETS[side].get(kind)
    return {
        "work": name,
        "against": side,
        "ours_us": statistics.median(ours),
        "theirs_us": statistics.median(theirs),
        "ratio": ratio,
        "target": target,
        "met": None if target is None else ratio >= target,
        "difference": None if found is None else float(np.max(np.abs(losses - found))),
        "ours_min_us": min(ours),
        "theirs_min_us": min(theirs),
    }


def _compilation():
    """Rows: seconds that the default `toy_alignment` takes to compile, in a process of its own; its steps do not matter."""
    rows = []
    short = [f"--config.{field}=10" for field in ("toy.steps", "sae.steps")] + ["--config.eval.n_samples=20480"]
    with tempfile.TemporaryDirectory() as folder:
        for cache, target in (("empty", COMPILE_TARGET), ("filled", None)):
            workdir = Path(folder) / cache
            subprocess.run(
                [sys.executable, "-m", "experiments.toy_alignment", *short, f"--workdir={workdir}"],
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla", "TQDM_DISABLE": "1"},
                check=True,
                capture_output=True,
            )
            spent = read_json(workdir / "results.json")["seconds"]["compile"]
            met = None if target is None else spent <= target
            rows.append({"program": "toy_alignment", "cache": cache, "seconds": spent, "target": target, "met": met})
    return rows


def _curve(settings, race, repeats):
    """Rows of 1, 2, 4, ... models: seconds for one step of all of them."""
    rows = []
    for n_seeds in (2**i for i in range(settings.most_seeds.bit_length())):
        spent = statistics.median(race.ours(n_seeds)[1] for _ in range(repeats)) / settings.steps
        rows.append({"n_seeds": n_seeds, "step_us": 1e6 * spent, "model_steps_per_s": n_seeds / spent})
    return rows


class Race:
    """One kind of model, trained by us and by PyTorch from the same parameters on the same batches.

    Args:
        settings: `config.training`.
        model: ours.
        module: theirs: `module(model, params)`, whose `forward` is the loss.
        batches: `(n_batches, batch_size, inputs)`.
    """

    def __init__(self, settings: ConfigDict, model: Any, module: type["_Module"], batches: jax.Array):
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


class _Module(torch.nn.Module):
    decay = DECAY  # of the weights
    maps = True  # under torch.func.vmap: no state, no branches

    def __init__(self, model, params):
        super().__init__()
        self.model = model
        for name, value in params.items():
            tensor = torch.tensor(value)
            if name in ("silent_for", "scale"):
                self.register_buffer(name, tensor)
            else:
                setattr(self, name, torch.nn.Parameter(tensor))

    def after_step(self):
        """What gradients do not do."""


class Toy(_Module):
    """The loss of `sp.toy.ToyModel`."""

    W: torch.Tensor
    b: torch.Tensor
    importance: torch.Tensor

    def __init__(self, model, params):
        super().__init__(model, params)
        self.register_buffer("importance", torch.tensor(np.asarray(model.importance)))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        reconstructed = torch.relu(torch.relu(z @ self.W) @ self.W.T + self.b)
        return (self.importance * (z - reconstructed) ** 2).mean()


class Published(_Module):
    """The loss of `sp.sae.TopK` with the options `PUBLISHED`."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        pre = x @ self.W_enc + self.b_enc
        latents = torch.relu(pre)
        kept = latents * (latents >= torch.topk(latents, self.model.k, dim=-1).values[..., -1:])
        residual = x - (kept @ self.W_dec + self.b_dec)
        silent = (kept == 0).all(dim=0)
        predicted = (pre * silent) @ self.W_dec + self.b_dec
        return (residual**2).mean() + self.model.dead_weight * ((residual - predicted) ** 2).mean()


class _SAE(_Module):
    """The loss of SAEs with the options that they have by default; dead latents are reanimated."""

    decay = 0.0
    maps = False
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    scale: torch.Tensor
    silent_for: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        x = x / self.scale
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        h, penalty = self.code(pre)
        residual = x - (h @ self.W_dec + self.b_dec)
        loss = (residual**2).mean() + penalty
        with torch.no_grad():
            self.silent_for += 1
            self.silent_for[(h > 0).any(dim=0)] = 0
            dead = self.silent_for >= self.model.dead_after
        return loss - self.model.dead_weight * (pre * dead).mean()

    def code(self, pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Latents, and what they cost."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self):
        """Decoder rows of norm 1."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)


class TopK(_SAE):
    """The loss of `sp.sae.TopK`."""

    def code(self, pre):
        """The k largest."""
        return _largest(torch.relu(pre), self.model.k), 0.0


class Vanilla(_SAE):
    """The loss of `sp.sae.Vanilla`."""

    def code(self, pre):
        """All, with an L1 penalty."""
        h = torch.relu(pre)
        return h, self.model.l1 * (h.mean(dim=0) * self.W_dec.norm(dim=1)).sum() / self.model.n_inputs


def _largest(latents, k):
    values, positions = torch.topk(latents, k, dim=-1)
    return torch.zeros_like(latents).scatter(-1, positions, values)


def _mixed(keys, batch_size, inputs):
    """Batches of sparse features in random directions, twice as many as inputs; ten active a sample."""
    features = sp.features.SparseFeatures(2 * inputs, min(5 / inputs, 1.0))
    directions = jax.random.normal(keys[0], (2 * inputs, inputs)) / inputs**0.5
    return jax.jit(lambda keys: jax.lax.map(lambda key: features.sample(key, batch_size) @ directions, keys))(keys)


def _matmul(multiply):
    """FLOP/s of the best of three products of square matrices."""
    size = multiply()
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        multiply()
        spent.append(time.perf_counter() - started)
    return 2 * size**3 / min(spent)


def _jax_square(size):
    x = jnp.full((size, size), 0.5)
    return lambda: jnp.matmul(x, x).block_until_ready().shape[0]


def _torch_square(size):
    x = torch.full((size, size), 0.5, device="cuda" if torch.cuda.is_available() else "cpu")

    def multiply():
        y = x @ x
        if y.is_cuda:
            torch.cuda.synchronize()
        return len(y)

    return multiply

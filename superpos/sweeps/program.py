"""One compiled program with a branch for everything that a sweep does; its devices, memory and progress."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from superpos import training
from superpos.sweeps.processes import gather

Tree = Any


class Branch(NamedTuple):
    """One part of the program.

    Attributes:
        call: `call(inputs, shared) -> outputs`, batched, on each device's part.
        inputs: shapes over all devices.
        outputs: the same.
        split_inputs: the axis of each input that devices split, None where each gets the whole; a prefix of `inputs`.
        split_outputs: the axis of all outputs.
        runs: how often it will be called.
    """

    call: Callable[[Tree, Tree], Tree]
    inputs: Tree
    outputs: Tree
    split_inputs: Tree
    split_outputs: int
    runs: int


class Program:
    """Branches that share one executable: `lax.switch` picks the one to run.

    Args:
        branches: what it can do.
        shared: arrays that every branch reads.
        devices: that split the work.
        bar: is told of the loops inside.
    """

    def __init__(self, branches: Sequence[Branch], shared: Tree, devices: Sequence[jax.Device], bar: "Bar"):
        self.branches, self.bar = list(branches), bar
        self.mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
        specs = [jax.tree.map(_spec, branch.split_inputs, is_leaf=_is_none) for branch in self.branches]
        out_specs = [_spec(branch.split_outputs) for branch in self.branches]
        self.shardings = [jax.tree.map(self._sharding, spec, is_leaf=_is_spec) for spec in specs]
        whole = self._sharding(PartitionSpec())
        self.shared = _place(shared, jax.tree.map(lambda _: whole, shared))
        # What is passed for the branches that do not run.
        self.idle = [
            _place(jax.tree.map(lambda struct: np.zeros(struct.shape, struct.dtype), branch.inputs), sharding)
            for branch, sharding in zip(self.branches, self.shardings, strict=True)
        ]
        bar.loops.clear()

        def sweep(which: Any, inputs: Any, shared: Any) -> Any:
            blank = [self._local_zeros(branch) for branch in self.branches]

            def choice(i: int) -> Callable[[], list[Any]]:
                def run() -> list[Any]:
                    with training.listen(bar.listener(i)):
                        outputs = self.branches[i].call(inputs[i], shared)
                    return [*blank[:i], outputs, *blank[i + 1 :]]

                return run

            choices = [choice(i) for i in range(len(self.branches))]
            return choices[0]() if len(choices) == 1 else lax.switch(which, choices)

        mapped = jax.shard_map(
            sweep, mesh=self.mesh, in_specs=(PartitionSpec(), specs, PartitionSpec()), out_specs=out_specs, check_vma=False
        )
        self.compiled = jax.jit(mapped).lower(jnp.int32(0), self.idle, self.shared).compile()

    @property
    def memory(self) -> int:
        """Bytes that a call takes, on all devices of this process together."""
        analysis = self.compiled.memory_analysis()
        if analysis is None:
            return 0
        sizes = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        n_local = sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)
        return sizes * n_local

    def __call__(self, which: int, inputs: Tree) -> Tree:
        """Runs one branch: NumPy arrays in and out, on every process."""
        arguments = list(self.idle)
        arguments[which] = _place(inputs, self.shardings[which])
        self.bar.start(which)
        outputs = self.compiled(jnp.int32(which), arguments, self.shared)[which]
        outputs = jax.block_until_ready(outputs)
        self.bar.finish(which)
        return gather(outputs)

    def _sharding(self, spec: Any) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _local_zeros(self, branch: Any) -> Any:
        def zeros(struct: Any) -> Array:
            shape = list(struct.shape)
            shape[branch.split_outputs] //= self.mesh.size
            return jnp.zeros(shape, struct.dtype)

        return jax.tree.map(zeros, branch.outputs)


class Bar:
    """Progress over all calls of all branches, counted in steps of the loops inside them and one for each call.

    Args:
        active: whether there are callbacks in the program that move it.
        description: in front of it.
        shown: whether this process shows it.
    """

    def __init__(self, active: bool, description: str, shown: bool = True):
        self.active, self.description, self.shown = active, description, active and shown
        self.tqdm: Any = None
        self.loops: dict[int, list[list[int]]] = {}

    def listener(self, branch: int) -> Callable[[int], Callable[[Any], None]] | None:
        """For `training.listen` while a branch is traced."""
        if not self.active:
            return None

        def listen(steps: int) -> Callable[[Any], None]:
            loop = [steps, 0]  # length, done
            self.loops.setdefault(branch, []).append(loop)

            def report(done: Any) -> None:
                # Devices report the same loop, and callbacks may arrive late.
                self._advance(max(int(done) - loop[1], 0))
                loop[1] = max(int(done), loop[1])

            return report

        return listen

    def open(self, runs: Sequence[int]) -> None:
        """Shows it: `runs` are the calls of each branch to come."""
        from tqdm import tqdm

        total = sum(n * (1 + sum(steps for steps, _ in self.loops.get(branch, []))) for branch, n in enumerate(runs))
        self.tqdm = tqdm(
            total=total, desc=self.description, unit="step", unit_scale=True, disable=not self.shown, smoothing=0.05
        )

    def start(self, branch: int) -> None:
        """A call begins."""
        for loop in self.loops.get(branch, []):
            loop[1] = 0

    def finish(self, branch: int) -> None:
        """A call has ended."""
        if self.active:
            jax.effects_barrier()
            for loop in self.loops.get(branch, []):
                self._advance(loop[0] - loop[1])
                loop[1] = loop[0]
            self._advance(1)

    def close(self) -> None:
        """Leaves it as it is."""
        if self.tqdm is not None:
            self.tqdm.close()

    def _advance(self, steps: int) -> None:
        if self.tqdm is not None:
            self.tqdm.update(steps)


def free_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes that this process may use on its devices: half of what is free on CPU, 80 % of it on an accelerator."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if all(device and "bytes_limit" in device for device in stats):
        return int(0.8 * sum(device["bytes_limit"] - device.get("bytes_in_use", 0) for device in stats))
    import psutil

    free = psutil.virtual_memory().available
    limits = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current")]  # of a container or a batch job
    if all(file.is_file() for file in limits):
        most, used = (file.read_text().strip() for file in limits)
        free = min(free, int(most) - int(used)) if most.isdigit() else free
    return max(1, free // 2)


def _place(tree: Any, shardings: Any) -> Any:
    """Host arrays on the devices, which may belong to several processes; `shardings` is a prefix of the tree."""

    def put(sharding: Any, part: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at]), part)

    return jax.tree.map(put, shardings, tree)


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "devices")


def _is_none(tree: Any) -> bool:
    return tree is None


def _is_spec(tree: Any) -> bool:
    return isinstance(tree, PartitionSpec)

"""What a sweep has to do and what of it is done: rows of models, blocks of pairs, and where they are kept."""

import hashlib
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from superpos.results import Run, fingerprint, raw
from superpos.sweeps.processes import broadcast
from superpos.sweeps.program import Branch, Program
from superpos.sweeps.table import Layout, path_name

Tree = Any


class Piece(NamedTuple):
    """What one call of the program does: `block` is the part of the results that it fills, one (first, end) an axis."""

    stage: str
    config: int
    block: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """The name of its checkpoint."""
        return "-".join([self.stage, str(self.config), *(f"{first}-{end}" for first, end in self.block)])

    @classmethod
    def named(cls, name: str) -> "Piece":
        """The piece that a checkpoint holds.

        Raises:
            ValueError: not a checkpoint of a sweep.
        """
        if not re.fullmatch(r"(train|score)-\d+(-\d+-\d+)+", name):
            raise ValueError(f"Checkpoint {name} is not one of a sweep: remove it, or name another workdir.")
        stage, config, *ends = name.split("-")
        numbers = [int(end) for end in ends]
        return cls(stage, int(config), tuple(zip(numbers[::2], numbers[1::2], strict=True)))

    @property
    def where(self) -> tuple[slice, ...]:
        """The block as an index."""
        return tuple(slice(*ends) for ends in self.block)


class Sizes(NamedTuple):
    """How much one call does: rows of models; points, sources and targets of ordered pairs, or listed pairs.

    `split` is the axis of the pairs that devices share.
    """

    rows: int
    pairs: tuple[int, ...]
    split: int


class Stage:
    """The results of one stage: for each combination of unrolled settings arrays on the host, and which of it is done."""

    def __init__(self, structs: Sequence[Tree], shape: tuple[int, ...]):
        self.structs, self.shape = structs, shape
        self.trees = [jax.tree.map(lambda s: np.zeros((*shape, *s.shape), s.dtype), struct) for struct in structs]
        self.done = [np.zeros(shape, bool) for _ in structs]

    def fill(self, piece: Piece, tree: Tree) -> None:
        """Puts in what one call found."""

        def put(into: Any, values: Any) -> None:
            into[piece.where] = values

        jax.tree.map(put, self.trees[piece.config], tree)
        self.done[piece.config][piece.where] = True

    def restore(self, piece: Piece, load: Callable[[Tree], Tree]) -> None:
        """Fills in a piece that an earlier run finished; `load(like)` reads its checkpoint.

        Raises:
            ValueError: its checkpoint is damaged, or not of this sweep.
        """
        inside = len(piece.block) == len(self.shape) and all(
            0 <= first < end <= size for (first, end), size in zip(piece.block, self.shape, strict=True)
        )
        if inside and piece.config < len(self.structs):
            struct = self.structs[piece.config]
            tree = load(struct)
            shape = tuple(end - first for first, end in piece.block)
            shapes = [(*shape, *leaf.shape) for leaf in jax.tree.leaves(struct)]
            alike = str(jax.tree.structure(tree)) == str(jax.tree.structure(struct))
            if alike and [leaf.shape for leaf in jax.tree.leaves(tree)] == shapes:
                self.fill(piece, tree)
                return
        raise ValueError(f"Checkpoint {piece.name} does not belong to this sweep: remove it, or name another workdir.")


def read(run: Run, layout: Layout, names: Sequence[str]) -> dict[str, Stage]:
    """All that a finished sweep has saved.

    Raises:
        ValueError: it is not finished, or a checkpoint is damaged.
    """
    # As nested dicts throughout, whatever containers there were: some have an order of their own.
    trees = {Piece.named(name): run.load(name) for name in run.checkpoints()}
    stages = {}
    for name in names:
        structs, first = [], (0,) * len(layout.shape(name))
        for config in range(len(layout.configs)):
            mine = [tree for piece, tree in trees.items() if (piece.stage, piece.config) == (name, config)]
            if not mine:
                raise ValueError(f"The sweep in {run.path} is not finished: run it again, it goes on where it stopped.")
            structs.append(_take(mine[0], first))
        stage = Stage(structs, layout.shape(name))
        for piece, tree in trees.items():
            if piece.stage == name:
                stage.restore(piece, partial(lambda tree, like: tree, tree))
        if not all(done.all() for done in stage.done):
            raise ValueError(f"The sweep in {run.path} is not finished: run it again, it goes on where it stopped.")
        stages[name] = stage
    return stages


class Plan:
    """All of a sweep: `pieces` names what is left to do, `do` does one of them.

    Args:
        train: as in `sp.sweep`.
        score: as there.
        layout: its points, seeds and pairs.
        keys: as there.
        data_key: as there.
        eval_key: as there.
    """

    def __init__(
        self,
        train: Callable[..., Tree],
        score: Callable[..., Tree] | None,
        layout: Layout,
        keys: Any,
        data_key: Tree,
        eval_key: Tree,
    ):
        self.layout, self.configs, self.points = layout, layout.configs, layout.points
        self.keys, wrap_key = raw(keys)
        self.shared, wrap_shared = raw((data_key, eval_key))

        def trainer(config: dict[str, Any]) -> Callable[..., Any]:
            return lambda key, point, shared: train(wrap_key(key), wrap_shared(shared)[0], **config, **point)

        key, point, shared = (
            _struct(self.keys[0]),
            _struct({name: array[0] for name, array in self.points.items()}),
            _struct(self.shared),
        )
        self.trainers = [trainer(config) for config in self.configs]
        traced = [jax.make_jaxpr(one, return_shape=True)(key, point, shared) for one in self.trainers]
        for _, struct in traced:
            for path, leaf in jax.tree_util.tree_leaves_with_path(struct):
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    raise ValueError(f"train returns a typed key in {path_name(path)!r}: return its jax.random.key_data.")
        self.traced = {"train": traced}
        self.scorers: list[Any] = []
        self.stages = {"train": Stage([struct for _, struct in traced], layout.shape("train"))}
        if score is not None:
            self._add_scores(score, wrap_shared, point, shared)

    def _add_scores(self, score: Any, wrap_shared: Any, point: Any, shared: Any) -> None:
        wanted = _named_parameters(score, [axis.name for axis in self.layout.axes])

        def scorer(config: dict[str, Any]) -> Callable[..., Any]:
            def scored(a: Any, b: Any, point: Any, shared: Any) -> Any:
                point = {name: value for name, value in point.items() if name in wanted}
                return score(a, b, wrap_shared(shared)[1], **config, **point)

            return scored

        # Where models are alike and `score` asks for nothing that differs, one branch serves several settings.
        self.scorer_of: list[int] = []
        known: dict[str, int] = {}
        traced: list[Any] = []
        for i, (config, struct) in enumerate(zip(self.configs, self.stages["train"].structs, strict=True)):
            asked = {name: value for name, value in config.items() if name in wanted}
            at = self.layout.index(i)
            alike = str(([at[name] for name in asked], jax.tree.structure(struct), jax.tree.leaves(struct)))
            if alike not in known:
                known[alike] = len(self.scorers)
                self.scorers.append((scorer(asked), struct))
                traced.append(jax.make_jaxpr(self.scorers[-1][0], return_shape=True)(struct, struct, point, shared))
            self.scorer_of.append(known[alike])
        self.traced["score"] = traced
        self.stages["score"] = Stage([traced[i][1] for i in self.scorer_of], self.layout.shape("score"))

    def describe(self) -> dict[str, Any]:
        """What makes two sweeps the same: arguments by value or digest, functions by the digest of what they compute."""
        return {
            "grid": {axis.name: axis.labels for axis in self.layout.axes},
            "vmapped": [axis.name for axis in self.layout.vmapped],
            "n_seeds": self.layout.n_seeds,
            "pairs": None if self.layout.pairs is None else self.layout.pairs.tolist(),
            "stages": list(self.stages),
            "points": _digest(self.points),
            "keys": _digest(self.keys),
            "data_key": _digest(self.shared[0]),
            "eval_key": _digest(self.shared[1]),
            **{name: fingerprint([jaxpr for jaxpr, _ in traced]) for name, traced in self.traced.items()},
        }

    def sizes(self, models: float, pairs: float, n_devices: int) -> Sizes:
        """The largest calls with no more than so many models or pairs in flight, but at least one a device."""
        rows = _chunk(self.layout.shape("train")[0], models, n_devices)
        shape = self.layout.shape("score")
        if self.layout.pairs is not None:
            return Sizes(rows, (_chunk(shape[0], pairs, n_devices),), 0)
        targets = shape[2] if pairs >= shape[1] * shape[2] else _chunk(shape[2], max(1, pairs / n_devices), 1)
        sources, points = _chunk(shape[1], max(1, pairs / targets), 1), 1
        if sources == shape[1]:
            points = _chunk(shape[0], pairs / (targets * sources), 1)
        # Devices share the points or the sources, whichever leaves fewer of them idle.
        choices = [(_round_up(points, n_devices), sources), (points, _round_up(sources, n_devices))]
        split = min((0, 1), key=lambda axis: math.prod(choices[axis]))
        return Sizes(rows, (*choices[split], targets), split)

    def branches(self, sizes: Sizes, *, heard: bool) -> list[Branch]:
        """What the program must be able to do.

        Args:
            sizes: of its calls.
            heard: whether loops inside report progress: then functions are traced anew, for those that hear it.
        """
        trainers, scorers = self.trainers, [score for score, _ in self.scorers]
        if not heard:
            trainers, scorers = ([_replay(*traced) for traced in self.traced.get(stage, ())] for stage in ("train", "score"))
        branches: list[Branch] = []
        inputs: Tree
        split_inputs: Tree
        runs = {stage: [0] * len(self.configs) for stage in self.stages}
        for piece in self.pieces(sizes):
            runs[piece.stage][piece.config] += 1
        key, point = _struct(self.keys[0]), _struct({name: array[0] for name, array in self.points.items()})
        for config, train in enumerate(trainers):

            def train_rows(inputs: Any, shared: Any, train: Any = train) -> Any:
                return _each(lambda key, point: train(key, point, shared), *inputs)

            outputs = _batch(self.stages["train"].structs[config], sizes.rows)
            branches.append(Branch(train_rows, _batch((key, point), sizes.rows), outputs, 0, 0, runs["train"][config]))
        if "score" not in self.stages:
            return branches
        for i, (score, (_, state)) in enumerate(zip(scorers, self.scorers, strict=True)):
            if self.layout.pairs is not None:

                def score_listed(inputs: Any, shared: Any, score: Any = score) -> Any:
                    return _each(lambda a, b, point: score(a, b, point, shared), *inputs)

                call: Any = score_listed
                inputs, split_inputs = _batch((state, state, point), sizes.pairs[0]), 0
            else:

                def score_blocks(inputs: Any, shared: Any, score: Any = score) -> Any:
                    # Nested, so that what depends on one model only is computed once a model, not once a pair.
                    nested = jax.vmap(jax.vmap(score, (None, 0, None, None)), (0, None, None, None))
                    return jax.vmap(nested, (0, 0, 0, None))(*inputs, shared)

                call = score_blocks
                points, sources, targets = sizes.pairs
                inputs = (_batch(state, points, sources), _batch(state, points, targets), _batch(point, points))
                split_inputs = (0, 0, 0) if sizes.split == 0 else (1, None, None)
            config = self.scorer_of.index(i)
            outputs = _batch(self.stages["score"].structs[config], *sizes.pairs)
            n_runs = sum(n for n, of in zip(runs["score"], self.scorer_of, strict=True) if of == i)
            branches.append(Branch(call, inputs, outputs, split_inputs, sizes.split, n_runs))
        return branches

    def pieces(self, sizes: Sizes, stages: Sequence[str] = ("train", "score")) -> Iterator[Piece]:
        """What is left to do, models first."""
        for name in stages:
            size = (sizes.rows,) if name == "train" else sizes.pairs
            for config, done in enumerate(self.stages[name].done if name in self.stages else ()):
                for block in _blocks(done, size):
                    yield Piece(name, config, block)

    def do(self, piece: Piece, program: Program, sizes: Sizes) -> Tree:
        """Runs one piece: its results, as they belong into its block."""
        n_seeds, pairs = self.layout.n_seeds, self.layout.pairs
        inputs: Tree
        if piece.stage == "train":
            rows = _indices(piece.block[0], sizes.rows)
            point, seed = np.divmod(rows, n_seeds)
            inputs = (_take(self.keys, seed), _take(self.points, point))
            which = piece.config
        else:
            which = len(self.configs) + self.scorer_of[piece.config]
            states = self.stages["train"].trees[piece.config]
            indices = [_indices(ends, size) for ends, size in zip(piece.block, sizes.pairs, strict=True)]
            if pairs is not None:
                point, pair = np.divmod(indices[0], len(pairs))
                a, b = (point * n_seeds + pairs[pair, end] for end in (0, 1))
            else:
                point = indices[0]
                a, b = (point[:, None] * n_seeds + index for index in indices[1:])
            inputs = (_take(states, a), _take(states, b), _take(self.points, point))
        outputs = program(which, inputs)
        kept = tuple(slice(end - first) for first, end in piece.block)
        return jax.tree.map(lambda leaf: leaf[kept], outputs)

    def fill(self, piece: Piece, outputs: Tree) -> None:
        """Keeps what one piece found."""
        self.stages[piece.stage].fill(piece, outputs)

    def restore(self, run: Run) -> None:
        """Reads back what an earlier run of the same sweep finished.

        Raises:
            ValueError: a checkpoint that is damaged, or not of this sweep.
        """
        for name in run.checkpoints():
            piece = Piece.named(name)
            if piece.stage not in self.stages:
                raise ValueError(f"Checkpoint {name} does not belong to this sweep: remove it, or name another workdir.")
            stage = self.stages[piece.stage]
            stage.restore(piece, partial(run.load, piece.name))

    def broadcast(self) -> None:
        """Gives all processes what the first one has read."""
        for stage in self.stages.values():
            stage.done = [broadcast(done) for done in stage.done]
            if any(done.any() for done in stage.done):
                stage.trees = jax.tree.map(broadcast, stage.trees)


def _blocks(done: np.ndarray, size: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Blocks of at most `size` that cover what is not done; along one axis as few and as equal as that allows."""
    if done.ndim == 1:
        edges = np.flatnonzero(np.diff(np.concatenate([[True], done, [True]]).astype(int)))
        runs = [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
        yield from (((at, min(at + size[0], end)),) for first, end in runs for at in range(first, end, size[0]))
        return
    starts = [range(0, n, s) for n, s in zip(done.shape, size, strict=True)]
    for corner in itertools.product(*starts):
        block = tuple((at, min(at + s, n)) for at, s, n in zip(corner, size, done.shape, strict=True))
        if not done[tuple(slice(*ends) for ends in block)].all():
            yield block


def _chunk(total: int, limit: float, multiple: int) -> int:
    """The size of equal parts of at most `limit` each, rounded up to a multiple."""
    parts = math.ceil(total / max(1, min(total, limit)))
    return _round_up(math.ceil(total / parts), multiple)


def _round_up(size: float, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _each(function: Callable[..., Any], *inputs: Any) -> Any:
    """The function of each along the first axis; of one alone not mapped, which compiles to faster code."""
    if len(jax.tree.leaves(inputs)[0]) > 1:
        return jax.vmap(function)(*inputs)
    return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], inputs)))


def _replay(traced: Any, struct: Any) -> Callable[..., Any]:
    """The function that was traced: tracing it anew would take as long again."""
    evaluate, structure = jaxpr_as_fun(traced), jax.tree.structure(struct)
    return lambda *arguments: jax.tree.unflatten(structure, evaluate(*jax.tree.leaves(arguments)))


def _indices(ends: tuple[int, int], size: int) -> np.ndarray:
    """Indices first .. end - 1, the last repeated up to `size`."""
    return np.minimum(np.arange(ends[0], ends[0] + size), ends[1] - 1)


def _take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _struct(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _batch(tree: Any, *sizes: int) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*sizes, *leaf.shape), leaf.dtype), tree)


def _named_parameters(function: Callable[..., Any], names: Iterable[str]) -> set[str]:
    """Which of the names are parameters of a function, beyond its first three."""
    return set(list(inspect.signature(function).parameters)[3:]) & set(names)


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{path_name(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()

"""A run's folder: `config.json`, `results.json`, `figure.png` and checkpoints."""

import glob
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


class Run:
    """A folder for one experiment with one configuration; nothing is written before `claim`.

    Args:
        workdir: made if it does not exist.
        experiment: name of the experiment.
        config: its configuration, JSON-serialisable.
        keeps: whether this process writes; of several processes with one run only the first should.

    Raises:
        ValueError: the folder holds another experiment or configuration, or is not this class's.
    """

    def __init__(self, workdir: str | os.PathLike, experiment: str, config: dict[str, Any], *, keeps: bool = True):
        self.path, self.keeps = Path(workdir), keeps
        self.config = json.loads(json.dumps(_finite(config, str)))
        self.experiment = experiment
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"workdir must be a folder, but {self.path} is a file.")
        if self._config_file.exists():
            self._check_config()
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"workdir {self.path} is neither empty nor a run's folder: name another workdir.")

    @property
    def figure(self) -> Path:
        """Where the figure belongs."""
        return self.path / "figure.png"

    def claim(self) -> None:
        """Makes the folder this run's: call it when the input is known to be good, before the work begins.

        Raises:
            ValueError: another run has claimed it meanwhile.
            OSError: it cannot be written to.
        """
        if not self.keeps:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._config_file.exists():
            write_json(self._config_file, self._described())
        self._check_config()

    def finished(self) -> dict[str, Any] | None:
        """The results that an earlier run with this configuration wrote, if it came to its end."""
        file = self.path / "results.json"
        return read_json(file) if file.exists() else None

    def finish(self, rows: list[dict[str, Any]], seconds: dict[str, float], **tables: Any) -> dict[str, Any]:
        """Writes `results.json` and returns what it holds; `tables` are further entries beside `rows`.

        There null stands for NaN, and lists for arrays.
        """
        results = {
            "experiment": self.experiment,
            "rows": rows,
            **tables,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "environment": environment(),
        }
        if not self.keeps:
            return results
        self.claim()
        write_json(self.path / "results.json", results)
        return read_json(self.path / "results.json")

    def save(self, name: str, tree: Any, *, keep: int | None = None) -> None:
        """Saves a pytree of arrays as a checkpoint of this run, whole or not at all.

        Args:
            name: of the checkpoint.
            tree: what it holds.
            keep: how many checkpoints to keep, the last by name, this one among them; by default all. Others go when this one
                is whole.

        Raises:
            OSError: it could not be written: a full disk, for example.
        """
        import jax
        import orbax.checkpoint as ocp

        self.claim()
        # Leaves go by number: names may be alike, and containers sort them in their own ways.
        arrays = [(path, np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        leaves = [leaf for _, leaf in arrays]
        seal = {
            "run": self._described(),
            "name": name,
            "sha256": digest(leaves),
            "leaves": [[_plain_path(path), str(leaf.dtype), list(leaf.shape)] for path, leaf in arrays],
        }
        try:
            self._clear(name)  # what a killed run left of it
            with self._checkpointer() as checkpointer:
                parts = ocp.args.Composite(tree=ocp.args.StandardSave(_numbered(leaves)), seal=ocp.args.JsonSave(seal))
                checkpointer.save(self._checkpoint(name), parts, force=True)
        except Exception as error:  # of the operating system, or of a library below that has its own
            self._clear(name)
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            reason = "the disk is full" if "No space left" in str(error) else reason
            raise OSError(
                f"Checkpoint {name} could not be saved in {self.path} ({reason}); what was saved before is kept, and the same "
                "run goes on from there."
            ) from error
        if keep is not None:
            for superfluous in self.checkpoints()[:-keep]:
                shutil.rmtree(self._checkpoint(superfluous), ignore_errors=True)

    def load(self, name: str, like: Any = None) -> Any | None:
        """The checkpoint `name`, None where there is none; `like` gives its structure, by default dicts and lists.

        Raises:
            ValueError: the checkpoint is damaged, or of another run.
        """
        import jax
        import orbax.checkpoint as ocp

        if not self._saved(self._checkpoint(name)):
            return None
        advice = f"remove {self._checkpoint(name)} to compute it anew, or name another workdir."
        try:
            with self._checkpointer() as checkpointer:
                parts = ocp.args.Composite(tree=ocp.args.StandardRestore(), seal=ocp.args.JsonRestore())
                restored = checkpointer.restore(self._checkpoint(name), parts)
            tree, seal = restored.tree, restored.seal
            leaves = [
                np.zeros(shape, dtype) if 0 in shape else np.asarray(tree[str(i)])
                for i, (_, dtype, shape) in enumerate(seal["leaves"])
            ]
            whole = seal["sha256"] == digest(leaves)
        except Exception:  # whatever Orbax and what lies below it make of a torn file
            raise ValueError(f"Checkpoint {name} in {self.path} cannot be read: {advice}") from None
        if (seal["run"], seal["name"]) != (self._described(), name):
            raise ValueError(f"Checkpoint {name} in {self.path} belongs to another run: {advice}")
        if not whole:
            raise ValueError(f"Checkpoint {name} in {self.path} is damaged: {advice}")
        if like is None:
            return _nested([(path, leaf) for (path, _, _), leaf in zip(seal["leaves"], leaves, strict=True)])
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that were saved whole."""
        folder = self._checkpoint("")
        return sorted(part.name for part in folder.iterdir() if self._saved(part)) if folder.is_dir() else []

    @staticmethod
    def _saved(folder: Path) -> bool:
        from orbax.checkpoint.utils import is_checkpoint_finalized

        # A run that was killed while it saved leaves a temporary folder behind.
        return folder.is_dir() and is_checkpoint_finalized(folder)

    def _checkpointer(self) -> Any:
        import jax
        import orbax.checkpoint as ocp

        options = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:  # only the process that keeps the run writes: it waits for no other
            me = jax.process_index()
            options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix="run")
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=options),
            tree=ocp.StandardCheckpointHandler(multiprocessing_options=options),
            seal=ocp.JsonCheckpointHandler(multiprocessing_options=options),
        )
        return ocp.Checkpointer(handler, multiprocessing_options=options)

    def _clear(self, name: str) -> None:
        for part in self._checkpoint("").glob(f"{glob.escape(name)}.*"):
            shutil.rmtree(part, ignore_errors=True)

    @property
    def _config_file(self) -> Path:
        return self.path / "config.json"

    def _described(self) -> dict[str, Any]:
        return {"experiment": self.experiment, "config": self.config}

    def _check_config(self) -> None:
        theirs, mine = read_json(self._config_file), self._described()
        if theirs == mine:
            return
        there = theirs.get("config", {}) if isinstance(theirs, dict) else {}
        differing = [name for name in {**mine["config"], **there} if there.get(name) != mine["config"].get(name)]
        where = f" ({', '.join(differing)})" if differing and theirs.get("experiment") == self.experiment else ""
        raise ValueError(f"workdir {self.path} holds a run with another configuration{where}: name another workdir.")

    def _checkpoint(self, name: str) -> Path:
        return (self.path / "checkpoints" / name).absolute()


def shows_progress(progress: bool | None) -> bool:
    """Whether to show a bar; by default (None) in a terminal or a notebook, unless TQDM_DISABLE is set."""
    seen = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
    return seen and not os.environ.get("TQDM_DISABLE") if progress is None else progress


def environment() -> dict[str, Any]:
    """Versions, device and git commit that a result was made with."""
    import jax

    packages = ("superpos", "jax", "jaxlib", "optax", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    command = ["git", "describe", "--always", "--dirty"]
    try:
        folder = Path(__file__).parent
        git = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        git = ""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "git": git or None,
    }


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): name another workdir.") from error


def digest(leaves: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays: their types, shapes and values."""
    sha = hashlib.sha256()
    for leaf in leaves:
        sha.update(f"{leaf.dtype}{leaf.shape}".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()


def fingerprint(jaxprs: Iterable[Any]) -> str:
    """SHA-256 of what functions compute: their jaxprs, with all constants, but without addresses in memory."""
    import jax

    config: Any = jax.config
    settings = [jax.__version__, config.jax_enable_x64, config.jax_threefry_partitionable]
    sha = hashlib.sha256(json.dumps(settings).encode())
    for jaxpr in jaxprs:
        sha.update(re.sub(r"0x[0-9a-f]+", "", str(jaxpr)).encode())
        for constant in _constants(jaxpr):
            sha.update(np.ascontiguousarray(raw(constant)[0]).tobytes())
    return sha.hexdigest()


def raw(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A pytree of arrays as NumPy arrays, and a function that turns what were typed keys in it into keys again."""
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    typed = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    kinds = [jax.random.key_impl(leaf) if key else None for leaf, key in zip(leaves, typed, strict=True)]
    plain = [np.asarray(jax.random.key_data(leaf) if key else leaf) for leaf, key in zip(leaves, typed, strict=True)]

    def wrap(tree: Any) -> Any:
        wrapped = [
            leaf if kind is None else jax.random.wrap_key_data(leaf, impl=kind)
            for leaf, kind in zip(jax.tree.leaves(tree), kinds, strict=True)
        ]
        return jax.tree.unflatten(structure, wrapped)

    return jax.tree.unflatten(structure, plain), wrap


def _constants(part: Any) -> Iterator[Any]:
    """Arrays that a jaxpr, or part of one, closes over, its inner ones too."""
    from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

    if isinstance(part, ClosedJaxpr):
        yield from part.consts
        part = part.jaxpr
    if isinstance(part, Jaxpr):
        for equation in part.eqns:
            yield from (at.val for at in equation.invars if isinstance(at, Literal) and np.ndim(at.val))
            for parameter in equation.params.values():
                yield from _constants(parameter)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _constants(inner)


def _numbered(leaves: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves as a dict by number; Orbax takes neither empty arrays nor nothing at all."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size} or {"none": np.zeros(1)}


def _plain_path(path: Any) -> list[int | str]:
    """The keys of a leaf: numbers in sequences, text in everything else."""
    return [key.idx if hasattr(key, "idx") else str(getattr(key, "key", getattr(key, "name", key))) for key in path]


def _nested(leaves: list[Any]) -> Any:
    """Leaves by their keys, in dicts and lists."""
    if len(leaves) == 1 and not leaves[0][0]:
        return leaves[0][1]
    groups: dict[Any, list[Any]] = {}
    for (first, *rest), leaf in leaves:
        groups.setdefault(first, []).append((rest, leaf))
    inner = {key: _nested(group) for key, group in groups.items()}
    return list(inner.values()) if inner and all(isinstance(key, int) for key in inner) else inner


def write_json(file: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    part.replace(file)


def _finite(content: Any, instead: Callable[[float], Any] = lambda value: None) -> Any:
    """The same with something instead of NaN and infinity, which JSON does not know; arrays are lists."""
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if isinstance(content, dict):
        return {key: _finite(value, instead) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value, instead) for value in content]
    return instead(content) if isinstance(content, float) and not math.isfinite(content) else content


def check_settings(settings: Iterable[tuple[str, Any]]) -> None:
    """Refuses what no configuration takes: numbers below 0 or infinite, lists with words among numbers, or a value twice.

    Args:
        settings: the name of each, dotted where nested, and its value.

    Raises:
        ValueError: one sentence that names the setting.

    >>> check_settings([("widths", (8, 8))])
    Traceback (most recent call last):
    ValueError: config.widths has a value twice, got (8, 8).
    """
    for name, value in settings:
        values = value if isinstance(value, tuple | list) else (value,)
        numbers = [number for number in values if isinstance(number, int | float)]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"config.{name} must be finite and at least 0, got {value}.")
        if numbers and len(numbers) < len(values):
            raise ValueError(f"config.{name} must hold numbers only, got {value}.")
        if len(set(values)) < len(values):
            raise ValueError(f"config.{name} has a value twice, got {value}.")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The names that are near to a slip, as the end of a sentence; nothing where there are none.

    >>> did_you_mean("ridg", ("ridge", "cka"))
    ' (near it: ridge)'
    """
    import difflib

    near = difflib.get_close_matches(str(name), list(known))
    return f" (near it: {', '.join(near)})" if near else ""

"""A run's folder: `config.json`, `results.json`, the figure and checkpoints."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from superpos import storage
from superpos.storage import digest, read_json, write_json

FORMATS = ("png", "pdf", "svg")  # of figures
_ENDING = ".safetensors"  # of a checkpoint
_BEGUN = {".lock", "config.json.part"}  # what a run leaves that was killed while it began


class Run:
    """A folder for one experiment with one configuration; nothing is written before `claim`.

    Args:
        workdir: made if it does not exist.
        experiment: name of the experiment.
        config: its configuration, JSON-serialisable.
        keeps: whether this process writes; of several processes with one run only the first should.
        figure_format: png, pdf or svg, which says nothing of the configuration.

    Raises:
        ValueError: the folder holds another experiment or configuration, or is not this class's; or no such format.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        experiment: str,
        config: dict[str, Any],
        *,
        keeps: bool = True,
        figure_format: str = "png",
    ):
        if figure_format not in FORMATS:
            raise ValueError(f"config.format must be {', '.join(FORMATS)}, got {figure_format!r}.")
        self.path, self.keeps = Path(workdir).absolute(), keeps
        self.figure = self.path / f"figure.{figure_format}"  # where it belongs
        self.config = json.loads(json.dumps(storage.finite(config, str)))
        self.experiment = experiment
        self._lock = storage.Lock(self.path)
        weakref.finalize(self, self._lock.release)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"workdir must be a folder, but {self.path} is a file.")
        if self._config_file.exists():
            self._check_config()
        elif self.path.exists() and {file.name for file in self.path.iterdir()} - _BEGUN:
            raise ValueError(f"workdir {self.path} is neither empty nor a run's folder: name another workdir.")

    def claim(self) -> None:
        """Makes the folder this run's: call it when the input is known to be good, before the work begins.

        It is this process's then, until `release` or the end of this object: another one is refused.

        Raises:
            ValueError: another run has claimed it meanwhile, or another process works there.
            OSError: it cannot be written to.
        """
        if not self.keeps:
            return
        storage.make_folder(self.path)
        self._lock.acquire()
        if not self._config_file.exists():
            write_json(self._config_file, self._described())
        self._check_config()

    def release(self) -> None:
        """Lets other processes work in the folder."""
        self._lock.release()

    def finished(self) -> dict[str, Any] | None:
        """The results that an earlier run with this configuration wrote, if it came to its end.

        Raises:
            ValueError: they were changed since, are of another configuration, or were made from other states than are there.
        """
        file = self.path / "results.json"
        if not file.exists():
            return None
        results = read_json(file)
        advice = f"remove {file} to make them anew, or name another workdir."
        seal = results.get("seal") if isinstance(results, dict) else None
        if not isinstance(seal, dict):
            raise ValueError(f"{file} holds results without a seal, by hand or of an earlier version: {advice}")
        if seal.pop("sha256", None) != storage.seal(results):
            raise ValueError(f"{file} was changed after the run had written it: {advice}")
        if seal["config"] != storage.seal(self._described()):
            raise ValueError(f"{file} is of another configuration than {self._config_file.name} beside it: {advice}")
        there = self._states()
        if other := [name for name, sha256 in seal["states"].items() if there.get(name, sha256) != sha256]:
            raise ValueError(f"{file} was made from other states than {other[0]} is now: {advice}")
        return results

    def finish(self, rows: list[dict[str, Any]], seconds: dict[str, float], **tables: Any) -> dict[str, Any]:
        """Writes `results.json` and returns what it holds; `tables` are further entries beside `rows`.

        There null stands for NaN, and lists for arrays. Its `seal` has hashes of the configuration, of the states that are
        saved in the workdir, and of all of it.
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
        results = json.loads(json.dumps(storage.finite(results)))
        results["seal"] = {"config": storage.seal(self._described()), "states": self._states()}
        results["seal"]["sha256"] = storage.seal(results)
        write_json(self.path / "results.json", results)
        return results

    def _states(self) -> dict[str, str]:
        """The SHA-256 of each checkpoint in the workdir, those of runs inside it too, as they themselves tell it."""
        states = {}
        for folder, _, names in sorted(os.walk(self.path)):
            if os.path.basename(folder) == "checkpoints":
                for name in sorted(name for name in names if name.endswith(_ENDING)):
                    file = Path(folder, name)
                    states[str(file.relative_to(self.path))] = _told(file)["sha256"]
        return states

    def save(self, name: str, tree: Any, *, keep: int | None = None) -> None:
        """Saves a pytree of arrays as a checkpoint of this run, a file of safetensors, whole or not at all.

        Args:
            name: of the checkpoint.
            tree: what it holds.
            keep: how many checkpoints to keep, the last by name, this one among them; by default all. Others go when this one
                is on disk.

        Raises:
            OSError: it could not be written: a full disk, for example.
        """
        import jax
        from safetensors.numpy import save_file

        self.claim()
        # Leaves go by number: names may be alike, and containers sort them in their own ways.
        arrays = [(path, np.asarray(leaf, order="C")) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        leaves = [leaf for _, leaf in arrays]
        seal = {
            "run": self._described(),
            "name": name,
            "leaves": [[_plain_path(path), str(leaf.dtype), list(leaf.shape)] for path, leaf in arrays],
            "sha256": digest(leaves),
        }
        told = {"seal": json.dumps(seal), "sha256": storage.seal(seal)}
        tensors = {str(i): _plain(leaf) for i, leaf in enumerate(leaves)}
        try:
            storage.make_folder(self._checkpoints)
            storage.replace(self._checkpoint(name), lambda part: save_file(tensors, part, told))
        except OSError as error:
            reason = storage.why(error.__cause__ or error)
            raise storage.NotWrittenError(
                f"Checkpoint {name} could not be saved in {self.path} ({reason}); what was saved before is kept, and the same "
                "run goes on from there."
            ) from error
        if keep is not None:
            for superfluous in self.checkpoints()[:-keep]:
                self._checkpoint(superfluous).unlink(missing_ok=True)

    def load(self, name: str, like: Any = None) -> Any | None:
        """The checkpoint `name`, None where there is none; `like` gives its structure, by default dicts and lists.

        Raises:
            ValueError: the checkpoint is damaged, or of another run.
        """
        import jax
        from safetensors import safe_open

        file = self._checkpoint(name)
        if not file.exists():
            return None
        advice = f"remove {file} to compute it anew, or name another workdir."
        try:
            seal = _told(file)
            with safe_open(file, framework="numpy") as content:
                leaves = [_unplain(content.get_tensor(str(i)), *of) for i, (_, *of) in enumerate(seal["leaves"])]
            whole = seal["sha256"] == digest(leaves)
        except Exception:  # whatever the library makes of a torn file
            raise ValueError(f"Checkpoint {name} in {self.path} cannot be read: {advice}") from None
        if not whole:
            raise ValueError(f"Checkpoint {name} in {self.path} is damaged: {advice}")
        if (seal["run"], seal["name"]) != (self._described(), name):
            raise ValueError(f"Checkpoint {name} in {self.path} belongs to another run: {advice}")
        if like is None:
            return _nested([(path, leaf) for (path, _, _), leaf in zip(seal["leaves"], leaves, strict=True)])
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that were saved whole.

        Raises:
            ValueError: some are of an earlier version.
        """
        entries = list(self._checkpoints.iterdir()) if self._checkpoints.is_dir() else []
        if folders := [entry.name for entry in entries if entry.is_dir()]:
            raise ValueError(
                f"{self._checkpoints} holds {folders[0]}, of an earlier version of superpos: name another workdir."
            )
        return sorted(entry.name.removesuffix(_ENDING) for entry in entries if entry.name.endswith(_ENDING))

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

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _checkpoint(self, name: str) -> Path:
        return self._checkpoints / f"{name}{_ENDING}"


def shows_progress(progress: bool | None) -> bool:
    """Whether to show a bar; by default (None) in a terminal or a notebook, unless TQDM_DISABLE is set."""
    seen = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
    return seen and not os.environ.get("TQDM_DISABLE") if progress is None else progress


def environment() -> dict[str, Any]:
    """Versions, device, git commit and date that a result was made with."""
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
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


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


def _told(file: Path) -> dict[str, Any]:
    """What a checkpoint tells of itself.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import safe_open

    with storage.reading(file, "a checkpoint"):
        with safe_open(file, framework="numpy") as content:
            told = content.metadata()
        seal = json.loads(told["seal"])
        if told["sha256"] != storage.seal(seal):
            raise ValueError("damaged")
    return seal


def _plain(leaf: np.ndarray) -> np.ndarray:
    """A leaf as safetensors takes it from NumPy: bytes, where it is neither of whole numbers nor of common floats."""
    return leaf if leaf.dtype.kind in "iufb" and leaf.dtype.isbuiltin else leaf.reshape(-1).view(np.uint8)


def _unplain(values: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    """The leaf that `_plain` was given."""
    return values if str(values.dtype) == dtype else values.view(np.dtype(dtype)).reshape(shape)


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

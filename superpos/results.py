"""A run's folder: `config.json`, `results.json`, `figure.png` and checkpoints."""

import json
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


class Run:
    """A folder for one experiment with one configuration; nothing is written before `claim`.

    Args:
        workdir: made if it does not exist.
        experiment: name of the experiment.
        config: its configuration, JSON-serialisable.

    Raises:
        ValueError: the folder holds another experiment or configuration, or is not this class's.
    """

    def __init__(self, workdir: str | os.PathLike, experiment: str, config: dict[str, Any]):
        self.path = Path(workdir)
        self.config = json.loads(json.dumps(config))
        self.experiment = experiment
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"workdir must be a folder, but {self.path} is a file.")
        if self._config_file.exists():
            self._check_config()
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"workdir {self.path} is neither empty nor a run's folder: name another --workdir.")

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
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._config_file.exists():
            _write_json(self._config_file, self._described())
        self._check_config()

    def finished(self) -> dict[str, Any] | None:
        """The results that an earlier run with this configuration wrote, if it came to its end."""
        file = self.path / "results.json"
        return read_json(file) if file.exists() else None

    def finish(self, rows: list[dict[str, Any]], seconds: dict[str, float], **tables: Any) -> dict[str, Any]:
        """Writes `results.json` and returns what it holds (null for NaN); `tables` are further entries beside `rows`."""
        results = {
            "experiment": self.experiment,
            "rows": rows,
            **tables,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "environment": environment(),
        }
        self.claim()
        _write_json(self.path / "results.json", results)
        return read_json(self.path / "results.json")

    def save(self, name: str, tree: Any) -> None:
        """Saves a pytree of arrays as a checkpoint of this run."""
        import orbax.checkpoint as ocp

        self.claim()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._checkpoint(name), tree, force=True)

    def load(self, name: str, like: Any = None) -> Any | None:
        """The checkpoint `name`, None where there is none; `like` gives structure, shapes and dtypes, by default as saved."""
        import orbax.checkpoint as ocp

        if not self._checkpoint(name).exists():
            return None
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self._checkpoint(name), like)

    @property
    def _config_file(self):
        return self.path / "config.json"

    def _described(self):
        return {"experiment": self.experiment, "config": self.config}

    def _check_config(self):
        if read_json(self._config_file) != self._described():
            raise ValueError(f"workdir {self.path} holds a run with another configuration: name another --workdir.")

    def _checkpoint(self, name):
        return (self.path / "checkpoints" / name).absolute()


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
        raise ValueError(f"{file} is not valid JSON ({error}): name another --workdir.") from error


def _write_json(file, content):
    """Writes a file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    part.replace(file)


def _finite(content):
    """The same with null for NaN and infinity, which JSON does not know."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

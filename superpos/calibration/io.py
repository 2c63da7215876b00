"""The published table: a file of the package."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from superpos.storage import read_json, write_json

VERSION = 2  # of the published table: one more whenever it is made again
FILE = Path(__file__).parent / "published.json"


def published() -> Any:
    """The scores of instruments on worlds that nothing was chosen on, as `sp.calibration.run` gives them.

    Its `attrs` say the version of the table, and the command, the commit and the day that made it.

    Raises:
        ValueError: the file is damaged.

    >>> "cka on neurons" in published().instrument
    True
    """
    return load(FILE)


def load(path: str | PathLike) -> Any:
    """A table of `save`."""
    import xarray

    content = read_json(Path(path))
    arrays = {}
    for name, (dims, values) in content["variables"].items():
        array = np.asarray(values)
        arrays[name] = (dims, array.astype(float) if array.dtype == object else array)  # null is NaN
    arrays.setdefault("seed", ("world", np.ones(len(arrays["family"][1]), int)))  # the first version has one seed
    return xarray.Dataset(arrays, content["coordinates"], content["attrs"])


def save(table: Any, path: str | PathLike, **attrs: Any) -> None:
    """Writes a table of `sp.calibration.run` as JSON, scores in four digits.

    Args:
        table: of `run`.
        path: of the file.
        attrs: what to say of it.
    """
    variables = {}
    for name, values in table.data_vars.items():
        array = np.asarray(values.values)
        content = np.round(array.astype(float), 4).tolist() if array.dtype.kind == "f" else array.tolist()
        variables[name] = (list(values.dims), content)
    coordinates = {name: values.values.tolist() for name, values in table.coords.items()}
    write_json(Path(path), {"variables": variables, "coordinates": coordinates, "attrs": json.loads(json.dumps(attrs))})

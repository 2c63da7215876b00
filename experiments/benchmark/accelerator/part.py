"""One part in a process of its own: `python -m experiments.benchmark.accelerator.part MODULE FOLDER SIZE`.

Rows go to `FOLDER/NAME.jsonl` as they are found. The last line on standard error is the reason, where the part fails.
"""

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from experiments.benchmark.accelerator.cards import Card


class Report:
    """Where a part writes what it finds.

    Args:
        folder: of the run; `card.json` in it holds the card's rates once they are known.
        name: of the part.
    """

    def __init__(self, folder: Path, name: str):
        self.file, card = folder / f"{name}.jsonl", folder / "card.json"
        self.name, self.card = name, Card(**json.loads(card.read_text())) if card.exists() else None

    def row(self, work: str, seconds: float | None = None, *, counts: dict[str, Any] | None = None, **found: Any) -> None:
        """Writes a row.

        Args:
            work: what was done.
            seconds: that it took.
            counts: what `Card.expect` takes.
            **found: further columns; see `COLUMNS` of table.py.
        """
        row: dict[str, Any] = {"part": self.name, "work": work, "seconds": seconds}
        if counts and self.card:
            row["expected_s"], row["bound"] = self.card.expect(**counts)
            row["share"] = row["expected_s"] / seconds if seconds else None
        row |= {name: value for name, value in found.items() if value is not None}
        # JSON knows neither NaN nor infinity.
        row = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        with self.file.open("a") as out:
            out.write(json.dumps(row | {"memory_gib": memory()}) + "\n")


def memory() -> float | None:
    """GiB of the device that this process had in use at most; None where it uses none, or the device does not tell."""
    if "jax" not in sys.modules:
        return None
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def main(module: str, folder: str, size: str) -> None:
    """Runs a part."""
    part = importlib.import_module(module)
    part.run(part.SIZES[size], Report(Path(folder), module.split(".")[-1]))


if __name__ == "__main__":
    main(*sys.argv[1:])

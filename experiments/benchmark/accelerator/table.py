"""The table that is printed."""

from typing import Any

from tabulate import tabulate

COLUMNS = (
    *("part", "work", "seconds", "expected_s", "bound", "share", "rate", "unit", "against", "ratio"),
    *("goal", "met", "difference", "compile_s", "memory_gib", "note"),
)


def text(results: dict[str, Any]) -> str:
    """Every row in the order of `COLUMNS`, and what did not come to its end."""
    rows = results["rows"]
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    body = [[_readable(row.get(name)) for name in columns] for row in rows]
    reasons = [f"{part['part']}: {part['reason']}" for part in results["parts"] if part["reason"]]
    return "\n".join([tabulate(body, columns, disable_numparse=True), *([""] if reasons else []), *reasons])


def _readable(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)[:90]

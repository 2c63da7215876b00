"""The lab book, experiments/README.md, and the results in README.md: sentences from pages, numbers from results.

    python .github/docs/lab_book.py                              # writes both anew
    python .github/docs/lab_book.py --check                      # or says whether they are up to date
    python .github/docs/lab_book.py --keep results/theory theory # takes a run's results, settings and figure into the book

A page is a file in .github/lab_book/, in the order of their names; what a run found is in .github/lab_book/results/. In a page
`{{ expression }}` stands for a number or a table: see `NAMES`. README.md has what its blocks say, `<!-- book: PAGE -->` to
`<!-- end -->`, from .github/lab_book/readme/.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOOK = ROOT / ".github" / "lab_book"
HEAD = """# Lab book

What the experiments found, question by question: the claim, what else could explain it, the table, the figure and the command.
This file is made by `python .github/docs/lab_book.py` from the pages in `.github/lab_book/`; edit those.

"""


def results(name: str) -> dict[str, Any]:
    """What a run found."""
    return json.loads((BOOK / "results" / f"{name}.json").read_text())


def select(name: str, of: str = "rows", **values: Any) -> list[dict[str, Any]]:
    """The rows of a table that have these values in these columns."""
    return [row for row in results(name)[of] if values.items() <= row.items()]


def row(name: str, of: str = "rows", **values: Any) -> dict[str, Any]:
    """The one row that has these values."""
    (found,) = select(name, of, **values)
    return found


def number(name: str, column: str = "mean", digits: int = 2, **values: Any) -> str:
    """One number."""
    return _number(row(name, **values)[column], digits)


def interval(name: str, digits: int = 2, **values: Any) -> str:
    """A mean with its interval."""
    return _cell(row(name, **values), digits)


def table(
    name: str,
    lines: Sequence[str] | Mapping[str, str],
    columns: str,
    shown: Sequence[str] = (),
    digits: int = 2,
    with_interval: bool = True,
    **values: Any,
) -> str:
    """A line for each value of `lines` together, a column for each value of `columns`; means, with intervals.

    Args:
        name: of the results.
        lines: columns of the rows that tell lines apart, and what they are called.
        columns: the column of the rows whose values are the columns of the table.
        shown: of these values; by default all.
        digits: behind the point.
        with_interval: whether intervals are shown.
        values: of rows that are left in.
    """
    lines = lines if isinstance(lines, Mapping) else dict(zip(lines, lines, strict=True))
    rows = select(name, **values)
    shown = shown or list(dict.fromkeys(row[columns] for row in rows))
    found: dict[tuple[Any, ...], dict[str, str]] = {}
    for one in rows:
        cell = _cell(one, digits) if with_interval else _number(one["mean"], digits)
        found.setdefault(tuple(one[line] for line in lines), {})[one[columns]] = cell
    head = [*lines.values(), *(f"`{name}`" if columns == "metric" else name for name in shown)]
    body = [[*map(str, line), *(cells.get(name, "") for name in shown)] for line, cells in found.items()]
    return _markdown(head, body)


def printed(name: str, of: str = "rows") -> str:
    """A table as it is."""
    rows = results(name)[of]
    return _markdown(list(rows[0]), [list(row.values()) for row in rows])


def stamp(name: str) -> str:
    """How a result was made: the command, how long it took, the commit and the date."""
    found = results(name)
    if "transcribed" in found:
        return f"*`{found['command']}`; numbers {found['transcribed']}.*"
    seconds, environment = sum(found["seconds"].values()), found["environment"]
    took = f"{seconds:.0f} s on {environment['cores']} cores"
    when = f"JAX {environment['jax']}, commit {environment['git']}, {environment['date']}"
    return f"*`{found['command']}`; {took}, {when}{'; ' + found['note'] if found.get('note') else ''}.*"


def _number(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _cell(row: Mapping[str, Any], digits: int) -> str:
    mean = _number(row["mean"], digits)
    return mean + (" ({:.{d}f} to {:.{d}f})".format(*row["ci95"], d=digits) if row.get("ci95") else "")


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


# What expressions in pages may call.
NAMES = {call.__name__: call for call in (interval, number, printed, results, row, select, stamp, table)}


def render(page: Path) -> str:
    """A page with its numbers."""
    return re.sub(r"\{\{(.+?)\}\}", lambda found: str(eval(found[1], dict(NAMES))), page.read_text(), flags=re.DOTALL)


def documents() -> dict[Path, str]:
    """What each file should hold."""
    pages = sorted(BOOK.glob("*.md"))
    titles = [page.read_text().split("\n", 1)[0].lstrip("# ") for page in pages]
    contents = "\n".join(f"- [{title}](#{re.sub(r'[^a-z0-9 _-]', '', title.lower()).replace(' ', '-')})" for title in titles)
    readme = ROOT / "README.md"

    def block(found: re.Match) -> str:
        return f"{found[1]}\n{render(BOOK / 'readme' / f'{found[2]}.md').strip()}\n<!-- end -->"

    front = re.sub(r"(<!-- book: (\w+) -->)\n.*?<!-- end -->", block, readme.read_text(), flags=re.DOTALL)
    return {ROOT / "experiments" / "README.md": HEAD + contents + "\n\n" + "\n".join(map(render, pages)), readme: front}


def keep(run: Path, name: str, command: str, note: str) -> None:
    """Takes the results, settings and figure of a finished run into the book."""
    found = json.loads((run / "results.json").read_text())
    config = json.loads((run / "config.json").read_text())["config"]
    content = {**found, "config": config, "command": command or f"superpos {found['experiment']}", "note": note}
    (BOOK / "results" / f"{name}.json").write_text(json.dumps(content) + "\n")
    shutil.copy(run / "figure.png", ROOT / ".github" / f"{name}.png")


def main() -> None:
    """Writes the book, checks it, or keeps a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a file is not up to date")
    parser.add_argument("--keep", nargs=2, metavar=("RUN", "NAME"), help="a run's folder, and its name in the book")
    parser.add_argument("--command", default="", help="that made the run to keep, if it had settings")
    parser.add_argument("--note", default="", help="what is to be known of the run to keep")
    arguments = parser.parse_args()
    if arguments.keep:
        keep(Path(arguments.keep[0]), arguments.keep[1], arguments.command, arguments.note)
    stale = [path for path, text in documents().items() if not path.exists() or path.read_text() != text]
    if arguments.check and stale:
        sys.exit(f"not up to date: {', '.join(str(path.relative_to(ROOT)) for path in stale)}; python .github/docs/lab_book.py")
    for path, text in documents().items():
        path.write_text(text)


if __name__ == "__main__":
    main()

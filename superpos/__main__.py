"""The command `superpos`: every experiment by its name, with or without a clone of the repository.

    superpos list                                  # what there is
    superpos toy_alignment --config.n_seeds=4      # one of them; --help lists its settings
    superpos align a.npy b.npy                     # two files of activations

In a clone, `superpos NAME` and `python -m experiments.NAME` are the same.
"""

import ast
import os
import re
import runpy
import sys
from pathlib import Path

from superpos import __version__
from superpos.results import did_you_mean

# Where the package `experiments` is: in the wheel beside this file, otherwise in the clone.
SHARE = Path(__file__).parent / "share"
ROOT = SHARE if SHARE.is_dir() else Path(__file__).parents[1]


def experiments() -> dict[str, str]:
    """The question that each experiment asks, the first sentence of its docstring, by name; nothing is imported."""
    files = [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/*/__main__.py")]
    questions = {}
    for file in sorted(files):
        text = file.read_text()
        if re.search(r"^    command\.main\(", text, re.MULTILINE):
            name = file.parent.name if file.stem == "__main__" else file.stem
            docstring = ast.get_docstring(ast.parse(text)) or ""
            questions[name] = re.split(r"(?<=[.?]) |\n\n", docstring)[0].replace("\n", " ")
    return questions


def main() -> None:
    """Runs `superpos NAME ...`; a name that is not known ends in one line and exit status 2."""
    name, *arguments = sys.argv[1:] or ["--help"]
    known = experiments()
    if name in ("--help", "-h", "help", "list"):
        if name != "list":
            print(f"{__doc__}\nExperiments:\n")
        width = max(map(len, known), default=0)
        for experiment, question in known.items():
            print(f"  {experiment:{width}}  {question}")
        return
    if name == "--version":
        print(f"superpos {__version__}")
        return
    if name not in known:
        near = did_you_mean(name, known)
        print(f"error: superpos knows no experiment {name!r}{near}; superpos list names all.", file=sys.stderr)
        sys.exit(2)
    # Of some experiments parts run in processes of their own, which find them by the environment.
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    sys.argv = [f"superpos {name}", *arguments]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

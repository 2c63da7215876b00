"""The API pages: `python .github/docs/api.py [FOLDER]`, by pdoc from the docstrings; a warning is an error.

They have a search, the examples of the docstrings, and the source of everything.
"""

import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Writes the pages of every module but the command."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "api"
    warnings.simplefilter("error")
    pdoc.render.configure(docformat="google", math=True, search=True, footer_text="superpos, Apache-2.0")
    pdoc.pdoc("superpos", "!superpos.__main__", output_directory=folder)
    print(f"{folder}/index.html")


if __name__ == "__main__":
    main()

"""The documents: short where they must be, with links that lead somewhere, and numbers that are those of the results."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "superpos/README.md", "experiments/README.md", "colab/README.md")]
DOCUMENTS += sorted((ROOT / ".github").glob("*.md"))


def anchors(path):
    """What links to the headings of a file end in."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_front_page_is_one():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 400


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http", "mailto")):
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else path.parent / file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_numbers_in_documents_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location("lab_book", ROOT / ".github" / "docs" / "lab_book.py")
    book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(book)
    for path, text in book.documents().items():
        assert path.read_text() == text, f"{path.name} is not up to date: python .github/docs/lab_book.py"

"""The notebooks in colab/: what they must have, and that they run from the first cell to the last."""

from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "colab").glob("*.ipynb"))
SMALL = {
    "quickstart": {"N_FEATURES": 12, "WIDTHS": [4], "N_SEEDS": 3, "STEPS": 20, "N_SAMPLES": 200, "METRICS": ["semi_match"]},
    "seed_sweep": {"N_SEEDS": 6, "N_FEATURES": 12, "WIDTHS": [4], "STEPS": 20, "BATCH_SIZE": 32, "N_SAMPLES": 200},
    "your_activations": {
        "N_SAMPLES": 403,
        "EXPANSION": 2,
        "K": 4,
        "KS": [2, 4],
        "N_SEEDS": 2,
        "STEPS": 20,
        "METRICS": ["semi_match"],
        "EXTRACT": False,
    },
    "without_training": {"N_FEATURES": 12, "WIDTH": 6, "STEPS": 20, "N_SAMPLES": 600},
    "brain": {
        "N_STIMULI": 200,
        "N_OTHER": 500,
        "N_SITES": 8,
        "N_REPEATS": 3,
        "N_FEATURES": 12,
        "N_UNITS": 4,
        "N_SEEDS": 2,
        "STEPS": 20,
    },
}
INSTALL = """try:
    import superpos as sp
except ImportError:
    import shutil

    cuda = "jax[cuda12]" if shutil.which("nvidia-smi") else ""  # so that pip keeps JAX and its CUDA plugin of one version
    %pip install -q "superpos @ git+https://github.com/superpos/superpos" $cuda
    import superpos as sp"""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_every_notebook_is_run_here():
    assert {path.stem for path in NOTEBOOKS} == SMALL.keys()


@each
def test_opens_from_its_badge_and_installs_first(path):
    title = nbformat.read(path, 4).cells[0]
    assert title.cell_type == "markdown"
    assert f"https://colab.research.google.com/github/superpos/superpos/blob/main/colab/{path.name}" in title.source
    assert code(path)[0].source == INSTALL


@each
def test_has_one_cell_of_parameters_all_of_which_are_set_here(path):
    cells = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", ())]
    assert len(cells) == 1
    names: dict = {}
    exec(cells[0].source, names)
    assert {name for name in names if name.isupper()} == SMALL[path.stem].keys()


@each
def test_was_run_whole_and_in_order_and_shows_figures(path):
    cells = code(path)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in NOTEBOOKS],
)
def test_runs_from_the_first_cell_to_the_last(path, tmp_path):
    out = tmp_path / path.name
    papermill.execute_notebook(path, out, SMALL[path.stem], cwd=tmp_path, progress_bar=False)
    figures = [sum("image/png" in o.get("data", {}) for cell in code(p) for o in cell.outputs) for p in (path, out)]
    assert figures[0] == figures[1]

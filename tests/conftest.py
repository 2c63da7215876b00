import compiling  # noqa: F401 (before JAX, whose environment it sets)

# isort: split
import gc

import jax
import jaxtyping
import numpy as np
import pytest

# Shapes in the annotations are checked at test time, where all arrays are JAX's; superpos is not imported before this.
CHECKED = ["superpos.features", "superpos.toy", "superpos.sae", "superpos.metrics.base", "superpos.metrics.matching"]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption("--deep", action="store_true", help="every crash, and thousands of damaged files: hours")


@pytest.fixture
def deep(request):
    """Whether to try all, not a few."""
    return request.config.getoption("--deep")


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Lets go of a file's programs: each holds maps of memory, and XLA crashes at Linux's limit of 65,530."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def sides():
    """Two representations of 403 samples that share latent variables, with dead, duplicated and scaled units."""
    rng = np.random.default_rng(0)
    latent = rng.exponential(size=(403, 6))
    x = latent @ rng.normal(size=(6, 9)) + 0.5 * rng.normal(size=(403, 9))
    y = latent @ rng.normal(size=(6, 7)) + 0.5 * rng.normal(size=(403, 7))
    x[:, 3] = 2.0  # dead
    x[:, 5] = 4 * x[:, 2]  # duplicated up to scale
    y[:, 1] = 0.0
    y[:200, 6] = -1.0  # constant in some folds only where folds are runs of samples
    return x.astype(np.float32), y.astype(np.float32)


@pytest.fixture(scope="session")
def fold_ids():
    from sklearn.model_selection import KFold

    ids = np.zeros(403, int)
    for fold, (_, test) in enumerate(KFold(5, shuffle=True, random_state=42).split(ids)):
        ids[test] = fold
    return ids


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Ten images of 12 x 12, in two folders, with names that sort otherwise than they were written."""
    from PIL import Image

    path = tmp_path_factory.mktemp("images")
    (path / "inner").mkdir()
    rng = np.random.default_rng(0)
    for i in reversed(range(10)):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / ("inner" if i % 3 == 0 else ".") / f"{i}.png")
    (path / "notes.txt").write_text("no image")
    (path / ".hidden.png").write_text("no image")
    return path


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def conduct(tmp_path_factory):
    """Runs an experiment of a configuration, and draws its figure: `conduct(experiment, config) -> (run, results)`."""
    from superpos.results import Run

    def conduct(experiment, config):
        name = experiment.__name__.split(".")[-1]
        run = Run(tmp_path_factory.mktemp(name) / "run", name, config.to_dict())
        results = experiment.compute(config, run)
        experiment.draw(results, run)
        assert run.figure.stat().st_size > 10_000
        return run, results

    return conduct

import json

import jax.numpy as jnp
import numpy as np
import pytest

from superpos.results import Run

CONFIG = {"seed": 0, "n_hidden": (8, 16)}


def test_a_run_is_written_once_and_found_again(tmp_path):
    run = Run(tmp_path / "run", "toy", CONFIG)
    assert run.finished() is None
    assert not run.path.exists()  # claimed only when the work begins
    run.finish([{"metric": "ridge", "mean": np.float64(0.5)}], {"compile": 1.234, "run": 2.0}, recovery=[])
    again = Run(tmp_path / "run", "toy", CONFIG).finished()
    assert again["rows"] == [{"metric": "ridge", "mean": 0.5}]
    assert again["seconds"] == {"compile": 1.23, "run": 2.0}
    assert again["environment"]["jax"]
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {
        "experiment": "toy",
        "config": {"seed": 0, "n_hidden": [8, 16]},
    }


def test_a_score_that_is_nan_is_null_not_lost(tmp_path):
    results = Run(tmp_path, "toy", CONFIG).finish([{"mean": float("nan"), "ci95": None}], {})
    assert results["rows"] == [{"mean": None, "ci95": None}]


@pytest.mark.parametrize(("experiment", "config"), [("toy", {"seed": 1}), ("other", CONFIG)])
def test_another_configuration_is_refused(tmp_path, experiment, config):
    Run(tmp_path, "toy", CONFIG).finish([], {})
    with pytest.raises(ValueError, match="another configuration"):
        Run(tmp_path, experiment, config)


def test_two_runs_that_start_in_one_empty_folder(tmp_path):
    first, second = Run(tmp_path, "toy", {"a": 1}), Run(tmp_path, "toy", {"a": 2})
    first.claim()
    with pytest.raises(ValueError, match="another configuration"):
        second.claim()


def test_results_are_written_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Run(tmp_path, "toy", CONFIG).finish([], {})["environment"]["git"] is None


def test_a_foreign_folder_and_a_torn_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="neither empty nor a run's folder"):
        Run(tmp_path, "toy", CONFIG)
    (tmp_path / "config.json").write_text('{"experi')
    with pytest.raises(ValueError, match="not valid JSON"):
        Run(tmp_path, "toy", CONFIG)
    with pytest.raises(ValueError, match="is a file"):
        Run(tmp_path / "thesis.tex", "toy", CONFIG)


def test_checkpoints(tmp_path):
    run = Run(tmp_path, "toy", CONFIG)
    tree = {"W": jnp.arange(6.0).reshape(2, 3), "deep": {"b": jnp.ones(2)}}
    assert run.load("states", tree) is None
    run.save("states", tree)
    loaded = Run(tmp_path, "toy", CONFIG).load("states", tree)
    np.testing.assert_array_equal(loaded["W"], tree["W"])
    np.testing.assert_array_equal(loaded["deep"]["b"], tree["deep"]["b"])

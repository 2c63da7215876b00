import pytest
from test_experiments import assert_refused

from experiments import cumulants

pytestmark = pytest.mark.slow  # a whole study


@pytest.fixture(scope="module")
def results(conduct):
    config = cumulants.get_config()
    config.n_seeds, config.n_samples, config.n_units, config.n_hidden = 2, 600, (20,), (8,)
    config.overlap, config.architectures = (0.0, 1.0), ()
    config.recovery.update({"n_hidden": (8,), "n_samples": 600})
    config.metrics = ("cokurtosis", "cka")
    config.toy.update({"steps": 5, "batch_size": 32})
    config.sae.update({"steps": 3, "batch_size": 32})
    config.oracle.update({"steps": 5, "n_samples": 100})
    return conduct(cumulants, config)[1]


def test_every_point_has_a_row_for_each_metric(results):
    names = {"cokurtosis", "cka"}
    told = {(row["part"], row["world"], row["truth"] if row["part"] != "toys" else None) for row in results["rows"]}
    assert told == {
        *(("units", "independent", overlap) for overlap in (0.0, 1.0)),
        *(("toys", share, None) for share in ("all", "half")),
    }
    assert len(results["rows"]) == len(told) * len(names)
    for row in results["rows"]:
        assert row["metric"] in names
        assert row["undefined"] <= row["n_seeds"] == 2
        assert 0 <= row["truth"] <= 1 + 1e-6
    assert {row["units"] for row in results["recovery"]} == {
        *("lines", "lines, polished", "oracle"),
    }
    assert all(row["seconds"] > 0 for row in results["recovery"])
    assert [row["probability"] for row in results["counts"]] == [0.05, 0.1, 0.2]
    assert all(0 < row["participation_ratio"] <= 20 < row["sae_entropy"] * 20 for row in results["counts"])


def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path):
    cases = {
        ("--config.recovery.n_hidden=(7,)",): "config.recovery.n_hidden must be out of n_hidden",
        ("--config.n_samples=50",): "config.n_samples must be at least 100, got 50",
    }
    assert_refused("cumulants", cases, tmp_path / "run")

import sys

import pytest

pytest.importorskip("himalaya", reason="pip install -e '.[benchmark]'")

from experiments.benchmark import suites as benchmark
from superpos.results import Run


def small():
    config = benchmark.get_config()
    config.update({"n_samples": 600, "few_samples": 600, "n_units": 6, "n_folds": 3, "repeats": 1, "outer_folds": 2})
    config.update({"transport_batch": 3, "transport_size": 5, "large_transport": (6, 9)})
    return config


def test_both_sides_do_the_same_work(tmp_path):
    run = Run(tmp_path / "run", "benchmark", small().to_dict())
    results = benchmark.compute(small(), run)
    benchmark.draw(results, run)
    rows = results["rows"]
    assert {row["work"] for row in rows} >= {"semi_match", "soft_match", "ridge", "transport, 3 of 5 x 5", "transport, 6 x 9"}
    for row in rows:
        assert row["difference"] < 1e-3, row
        assert row["ratio"] == pytest.approx(row["theirs_s"] / row["ours_s"])
        assert 0 < row["ours_min_s"] <= row["ours_s"]
        assert 0 < row["theirs_min_s"] <= row["theirs_s"]
        assert row["met"] == (None if row["target"] is None else row["ratio"] >= row["target"])
    assert {row["target"] for row in rows} == {5, 50, 0.2, None}
    assert all("2 of 3 outer folds" in row["note"] for row in rows if "RidgeCV" in row["against"])
    assert {row["theirs_threads"] for row in rows} <= {1, results["threads"]}
    assert run.figure.stat().st_size > 10_000


def test_both_sides_regress_alike(tmp_path):
    config = small()
    config.update({"suite": "ridge", "large_ridge": (600, 9, 4)})
    rows = benchmark.compute(config, Run(tmp_path / "run", "benchmark", config.to_dict()))["rows"]
    assert [row["against"].split(",")[0] for row in rows] == ["scikit-learn RidgeCV"] * 2 + ["himalaya RidgeCV"]
    assert all(row["difference"] < 1e-3 for row in rows)
    assert {row["work"] for row in rows} == {"ridge 600 x 9 to 4, gcv", "ridge 600 x 9 to 4, folds"}


def test_models_are_trained_alike_by_all_sides(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="pip install -e '.[benchmark]'")
    config = small()
    config.suite = "training"
    monkeypatch.setattr("experiments.benchmark.training._compilation", list)  # half a minute
    config.training.update({"n_hidden": (8,), "n_seeds": 3, "most_seeds": 2, "steps": 14, "batch_size": 128, "matmul": 64})
    config.training.update({"large_sae": (12, 600, 4), "large_batch": 128, "large_steps": 8})
    run = Run(tmp_path / "run", "benchmark", config.to_dict())
    results = benchmark.compute(config, run)
    benchmark.draw(results, run)
    rows = {(row["work"], row["against"]): row for row in results["rows"]}
    torch_ways = ("PyTorch, one by one", "torch.func.vmap")
    others = {("toy, 8 hidden", way) for way in (*torch_ways, "large matmul")} | {("TopK SAE", way) for way in torch_ways}
    loops = ("TopK SAE, default", "Vanilla SAE, default", "TopK SAE, 12 -> 600")
    others |= {(name, torch_ways[0]) for name in loops}
    assert set(rows) == others
    for (_, way), row in rows.items():
        assert row["ratio"] == pytest.approx(row["theirs_us"] / row["ours_us"])
        assert row["met"] == (None if row["target"] is None else row["ratio"] >= row["target"])
        assert row["difference"] is None if way == "large matmul" else row["difference"] < 1e-5
    assert [rows["toy, 8 hidden", way]["target"] for way in (*torch_ways, "large matmul")] == [10, 3, 0.35]
    assert [rows[name, torch_ways[0]]["target"] for name in ("TopK SAE", *loops)] == [10, 10, 10, 1.5]
    assert [row["n_seeds"] for row in results["seeds"]] == [1, 2]
    assert run.figure.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"suite": "all"}, "out of metrics, ridge, training, accelerator"),
        ({"repeats": 0}, "repeats"),
        ({"outer_folds": 4}, "outer_folds"),
    ],
)
def test_bad_settings(tmp_path, setting, message):
    config = small()
    config.update(setting)
    with pytest.raises(ValueError, match=message):
        benchmark.compute(config, Run(tmp_path / "run", "benchmark", config.to_dict()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("suite", "package"), [("metrics", "himalaya"), ("training", "torch")])
def test_missing_package_is_named(tmp_path, monkeypatch, suite, package):
    monkeypatch.setitem(sys.modules, package, None)
    config = small()
    config.suite = suite
    with pytest.raises(ValueError, match=rf"needs {package}: pip install -e '.\[benchmark\]'"):
        benchmark.compute(config, Run(tmp_path / "run", "benchmark", config.to_dict()))

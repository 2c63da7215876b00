"""The suite for a lent GPU, at a small size: what its parts find, and what becomes of parts that fail."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments.benchmark.accelerator import cards, numbers, pairs, runner, stream, study, table, toys, transport
from experiments.benchmark.accelerator.part import Report
from experiments.benchmark.accelerator.runner import Part

ROOT = Path(__file__).parents[1]
CARD = cards.known("NVIDIA H100 80GB HBM3")


@pytest.fixture
def report(tmp_path):
    made = Report(tmp_path, "part")
    made.card = CARD
    return made


def rows(report):
    return [json.loads(line) for line in report.file.read_text().splitlines()]


def test_a_card_is_known_by_what_jax_calls_it():
    names = {"NVIDIA H100 PCIe": 51e12, "NVIDIA H100 NVL": 60e12, "NVIDIA H100 80GB HBM3": 67e12, "NVIDIA H200": 67e12}
    assert {name: cards.known(name).flops for name in names} == names
    assert cards.known("cpu") is None


def test_expected_seconds_are_those_of_the_scarcest():
    assert CARD.expect(flops=67e12) == (1.0, "flops")
    assert CARD.expect(flops=494e12, tf32=True) == (1.0, "flops")
    assert CARD.expect(flops=67e12, bytes=2 * 3.35e12) == (2.0, "bytes")
    assert CARD.expect(launches=2e6, link=55e9) == (3.0, "launches")


# What each of these does to a process of its own.
FATES = {
    "fine": 'report.row("first", 2.0, counts={"flops": 1e9}); report.row("second", note=size)',
    "broken": 'report.row("before", 1.0); raise ValueError("this is why")',
    "stuck": 'report.row("before", 1.0); import time; time.sleep(60)',
    "greedy": 'raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")',
    "killed": "import os; os.kill(os.getpid(), 9)",
}


def test_parts_that_fail_leave_their_reason_and_the_others_go_on(tmp_path, monkeypatch):
    for name, body in FATES.items():
        sizes = '{"small": "little", "full": "much"}'
        (tmp_path / f"{name}.py").write_text(f"SIZES = {sizes}\ndef run(size, report):\n    {body}\n")
    (tmp_path / "device.py").write_text(
        textwrap.dedent("""
        import json
        SIZES = {"small": 0, "full": 0}
        def run(size, report):
            report.row("cpu", platform="cpu")
            card = {"name": "cpu", "flops": 1e9, "tensor": 1e9, "bandwidth": 1e9, "link": 1e9}
            (report.file.parent / "card.json").write_text(json.dumps(card))
        """)
    )
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['ml_collections'] = None\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(runner, "DEVICE", Part("device", 60, package=""))
    monkeypatch.setattr(runner, "card_there", lambda: "")
    monkeypatch.setitem(sys.modules, "ml_collections", None)
    parts = [Part(name, 5 if name == "stuck" else 60, package="") for name in FATES]
    parts += [Part("needy", 60, needs=("ml_collections",), package=""), Part("late", 60, least=1e6, package="")]
    said = []
    found = runner.run(tmp_path / "run", 420, parts=parts, say=said.append)
    assert any("not installed: ml_collections (no study)" in line for line in said)
    reasons = {part["part"]: part["reason"] for part in found["parts"]}
    assert reasons["fine"] == ""
    assert reasons["broken"] == "ValueError: this is why"
    assert reasons["stuck"] == "not finished after its 5 s"
    assert reasons["greedy"].startswith("out of memory: ")
    assert reasons["killed"].startswith("ended by signal 9")
    assert reasons["needy"] == "needs ml_collections, not installed"
    assert "were left" in reasons["late"]
    by_work = {(row["part"], row["work"]): row for row in found["rows"]}
    assert set(by_work) == {("device", "cpu"), ("fine", "first"), ("fine", "second"), ("broken", "before"), ("stuck", "before")}
    assert by_work["fine", "first"]["expected_s"] == 1.0
    assert by_work["fine", "first"]["share"] == 0.5
    assert by_work["fine", "second"]["note"] == "little"
    written = json.loads((tmp_path / "run" / "accelerator.json").read_text())
    assert written == found
    assert all(text in table.text(found) for text in ("second", "stuck: not finished"))
    with pytest.raises(ValueError, match="holds results of another run"):
        runner.run(tmp_path / "run", parts=parts)


def test_a_card_that_jax_does_not_see_ends_the_run(tmp_path, monkeypatch):
    def device(part, folder, size, limit):
        (folder / "device.jsonl").write_text('{"platform": "cpu"}\n')
        (folder / "card.json").write_text("{}")
        return ""

    monkeypatch.setattr(runner, "_process", device)
    monkeypatch.setattr(runner, "card_there", lambda: "NVIDIA H100")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(ValueError, match=r"NVIDIA H100 is there, but JAX computes on the CPU: pip install 'jax\[cuda12\]'"):
        runner.run(tmp_path, parts=())


@pytest.mark.parametrize(
    ("settings", "message"), [({"size": "huge"}, "size"), ({"chosen": ["x"]}, "parts"), ({"limit_s": 0}, "limit_s")]
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        runner.run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_it_starts_without_ml_collections():
    script = """
    import sys
    sys.modules["ml_collections"] = sys.modules["ot"] = None
    import importlib, pkgutil
    from experiments.benchmark import accelerator
    from experiments.benchmark.accelerator import runner, table
    assert "jax" not in sys.modules  # the process that starts the parts leaves the card to them
    for module in pkgutil.iter_modules(accelerator.__path__):
        importlib.import_module(f"{accelerator.__name__}.{module.name}")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("part", [numbers, transport, pairs], ids=lambda part: part.__name__.split(".")[-1])
def test_parts_find_what_is_right(part, report):
    part.run(part.SIZES["small"], report)
    found = rows(report)
    assert found
    assert all(row["met"] for row in found if "met" in row)
    assert all(row["difference"] < 1e-5 for row in found if "difference" in row)
    assert all(row["seconds"] > 0 and row["expected_s"] > 0 for row in found if "share" in row)


@pytest.mark.slow
def test_streams(report):
    stream.run(stream.SIZES["small"] | {"samples": 200, "batch_size": 16}, report)
    assert [row["work"].split(",")[0] for row in rows(report)] == ["align_stream", "fit_stream"]


@pytest.mark.slow
def test_toys_beside_pytorch(report):
    pytest.importorskip("torch")
    toys.run(toys.SIZES["small"] | {"steps": {2: 3}, "goal": 2}, report)
    ours, rounded, vmapped = rows(report)
    assert (ours["unit"], vmapped["note"]) == ("model-steps/s", "torch.func.vmap, its eager optimiser")
    assert ours["expected_s"] == pytest.approx(max(4 * 64 * (5 * 64 + 9 * 16) * 2 * 3 / 3.35e12, 25 * 3 * cards.LAUNCH))
    assert "goal" not in rounded
    assert float(ours["note"].split("losses differ by ")[1]) < 1e-5


@pytest.mark.slow
def test_the_study_is_run_from_the_command_line(report, monkeypatch):
    def conduct(command, **_):
        folder = Path(command[-1].split("=")[1])
        folder.mkdir(parents=True)
        scores = [{"metric": "soft_match", "comparison": name, "mean": 0.5} for name in ("neuron->neuron", "sae->sae")]
        found = {"rows": scores, "seconds": {"compile": 1.0, "run": 2.0}, "environment": {"device": "cpu: cpu"}}
        (folder / "results.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study.subprocess, "run", conduct)
    study.run(study.SIZES["full"], report)
    (row,) = rows(report)
    assert row["met"]
    assert row["goal"] == "< 30 s, compiling included"
    assert row["note"] == "run 2.0 s; soft_match of the widest: neuron->neuron 0.500, sae->sae 0.500; on cpu: cpu"

"""The command `superpos`, and what it and `python -m experiments.NAME` take."""

import subprocess
import sys
from pathlib import Path

import pytest

import superpos as sp
from experiments import align, command, toy_alignment
from superpos import __main__ as superpos
from superpos.results import Run


@pytest.fixture
def say(monkeypatch, capsys):
    """What `superpos ARGUMENTS` prints, its errors, and its exit status."""

    def say(*arguments):
        monkeypatch.setattr(sys, "argv", ["superpos", *arguments])
        status = 0
        try:
            superpos.main()
        except SystemExit as error:
            status = error.code
        return (*capsys.readouterr(), status)

    return say


def test_every_experiment_is_listed_with_its_question(say):
    out, _, status = say("list")
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert listed.keys() >= {"toy_alignment", "align", "theory", "benchmark"}
    assert not listed.keys() & {"command", "toys", "__init__"}
    assert all(question.endswith("?") for question in listed.values())


def test_help_version_and_a_slip(say):
    assert "superpos align a.npy b.npy" in say("--help")[0]
    assert say("--version")[0] == f"superpos {sp.__version__}\n"
    out, errors, status = say("toy_alingment")
    assert (out, status) == ("", 2)
    assert errors.startswith("error: superpos knows no experiment 'toy_alingment' (near it: toy_alignment")


def test_an_experiment_runs_under_its_name(say, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delitem(sys.modules, "experiments.toy_alignment")
    out, _, status = say("toy_alignment", "--help")
    assert status == 0
    assert "--config.n_hidden=(8, 16, 32)  # widths" in out
    assert "--preset=full" in out
    assert "Example: superpos toy_alignment" in out


def test_files_are_taken_without_flags(tmp_path, capsys):
    files = [f"{tmp_path}/a.npy", f"{tmp_path}/b.npz:key"]
    for name in ("a.npy", "b.npz"):
        (tmp_path / name).touch()
    config = align.get_config()
    command._fill(config, ["source", "target"], files)
    assert [config.source, config.target] == files
    for fields, given in ((["source"], files), ([], files[:1]), (["source"], ["nothing.npy"])):
        with pytest.raises(SystemExit):
            command._fill(config, fields, given)
        assert f"unexpected argument {given[-1]!r}: " in capsys.readouterr().err


def test_flags_may_stand_behind_files(tmp_path):
    arguments = [f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", "--config.n_folds=3", f"--workdir={tmp_path}/run"]
    command = [sys.executable, "-m", "superpos", "align", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/a.npy" in done.stderr


def test_a_preset_sets_what_it_names_and_nothing_else(monkeypatch, capsys):
    default = toy_alignment.get_config().to_dict()
    for given in (["--preset=full"], ["--preset", "full"]):
        config = toy_alignment.get_config()
        monkeypatch.setattr(sys, "argv", ["main", *given, "--config.seed=1"])
        command._preset(config, {"full": toy_alignment.FULL})
        assert (config.n_seeds, config.supervised.steps, config.seed) == (8, 4000, 0)
    config.update_from_flattened_dict({"n_seeds": 4, "eval.n_samples": 51_200, "supervised.steps": 0})
    assert config.to_dict() == default
    monkeypatch.setattr(sys, "argv", ["main", "--preset=ful"])
    with pytest.raises(SystemExit):
        command._preset(config, {"full": {}})
    assert "preset takes full, got 'ful' (near it: full)" in capsys.readouterr().err


def test_the_format_of_the_figure_is_no_part_of_a_run(tmp_path):
    Run(tmp_path, "toy", {}).claim()
    assert Run(tmp_path, "toy", {}, figure_format="pdf").figure == tmp_path / "figure.pdf"
    with pytest.raises(ValueError, match=r"config.format must be png, pdf, svg, got 'jpg'"):
        Run(tmp_path, "toy", {}, figure_format="jpg")


def test_the_study_ends_with_what_it_says():
    means = {"neuron->neuron": 0.3, "sae->sae": 0.5, "ica->ica": 0.4, "random_sae->random_sae": 0.1, "oracle->oracle": 0.9}
    means["sae->neuron"] = 0.8
    rows = [{"n_hidden": 8, "metric": "ridge", "comparison": name, "mean": mean, "n_seeds": 4} for name, mean in means.items()]
    latents, rival = toy_alignment.answer(rows).split(", and ")
    assert latents == "With 8 hidden units latents have 0.50 (ridge), neurons 0.30"
    assert rival == "the best control, ica->ica, 0.40 (means over 4 seeds)."
    assert toy_alignment.answer(rows[:1]) == ""

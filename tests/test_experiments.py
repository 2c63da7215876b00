import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from experiments import align, toy_alignment, toys
from superpos.results import Run

ROOT = Path(__file__).parents[1]


def run_command(name, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# Runs many command lines in a process of their own each, forked from one that has imported what takes the time.
MANY = """
import contextlib, importlib, json, os, runpy, sys, tempfile
name, cases = json.loads(sys.stdin.read())
importlib.import_module(f"experiments.{name}")
found = []
for arguments in cases:
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if child == 0:
            del sys.modules[f"experiments.{name}"]
            os.dup2(out.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["main", *arguments]
            code = 0
            try:
                runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
            except SystemExit as error:
                code = error.code
            sys.stderr.flush()
            os._exit(code or 0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        found.append((code, out.read()))
print(json.dumps(found))
"""


def run_commands(name, cases):
    """Exit status and standard error of each."""
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        input=json.dumps([name, cases]),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def assert_refused(name, cases, workdir):
    """Each of the command lines ends in one line that holds its message, and leaves nothing behind."""
    done = run_commands(name, [[*case, f"--workdir={workdir}"] for case in cases])
    for (status, errors), message in zip(done, cases.values(), strict=True):
        assert status == 2, errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors
    assert not workdir.exists()


def small_study():
    config = toy_alignment.get_config()
    config.n_seeds = 3
    config.n_hidden = (4,)
    config.metrics = ("semi_match", "soft_match")
    config.features.n_features = 12
    config.toy.update({"steps": 40, "batch_size": 64})
    config.sae.update({"n_latents": 12, "k": 2, "steps": 30, "batch_size": 64})
    config.oracle.update({"steps": 20, "penalties": (0.01, 0.1), "ridge_ratios": (0.0,), "n_samples": 100})
    config.supervised.update({"width": 8, "steps": 30, "batch_size": 64})
    config.eval.update({"n_samples": 1000, "batch_size": 100})
    return config


@pytest.fixture(scope="module")
def swept(conduct):
    """The study, and what its calls of `sp.sweep` returned."""
    found, sweep = [], sp.sweep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sp, "sweep", lambda *args, **settings: found.append(sweep(*args, **settings)) or found[-1])
        return conduct(toy_alignment, small_study()), found


@pytest.fixture(scope="module")
def study(swept):
    return swept[0]


def test_the_study_is_one_program(swept):
    """Training of all views, and scoring of all pairs, of all seeds."""
    assert [found.programs for found in swept[1]] == [1]


def test_study_writes_what_the_contract_says(study):
    run, _ = study
    assert {file.name for file in run.path.iterdir()} >= {"config.json", "results.json", "figure.png"}
    written = json.loads((run.path / "results.json").read_text())
    assert set(written) >= {"experiment", "rows", "recovery", "seconds", "environment"}
    assert written["experiment"] == "toy_alignment"
    assert set(written["seconds"]) == {"compile", "run"}
    assert {(row["metric"], row["comparison"]) for row in written["rows"]} == {
        (metric, comparison) for metric in small_study().metrics for comparison in small_study().comparisons
    }
    for row in written["rows"]:
        assert {"n_hidden", "metric", "comparison", "mean", "std", "ci95", "n_seeds", "n_pairs"} == set(row)
        low, high = row["ci95"]
        assert low <= row["mean"] <= high
        symmetric = row["metric"] == "soft_match" and len(set(row["comparison"].split("->"))) == 1
        assert row["n_pairs"] == (3 if symmetric else 6)
    assert [row["units"] for row in written["recovery"]] == toy_alignment.views(small_study())
    assert abs(written["largest_duality_gap"]) < 1e-5


@pytest.mark.slow
def test_one_seed_alone_is_that_seed_in_the_study(study):
    run, _ = study
    config = small_study()
    together = sp.sweeps.load(run.path / "sweep").load(seed=2, n_hidden=4)
    init_key, data_key, _ = jax.random.split(jax.random.key(config.seed), 3)
    key = jax.random.split(init_key, config.n_seeds)[2]
    names = toy_alignment.views(config)
    alone = jax.jit(functools.partial(toys.train, config, names, n_hidden=4))(key, data_key)
    pairs = zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True)  # views that learn nothing leave no file
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_align_on_the_same_samples(study):
    """The study's padded, streamed path against plain arrays."""
    run, results = study
    config = small_study()
    states = sp.sweeps.load(run.path / "sweep").load(n_hidden=4)
    _, _, eval_key = jax.random.split(jax.random.key(config.seed), 3)
    batches = range(toys.n_batches(config))
    z = jnp.concatenate([toys.features(config).sample(jax.random.fold_in(eval_key, i), 100) for i in batches])
    ids = np.repeat([i % 5 for i in batches], 100)
    codes = []
    for seed in range(3):
        state = jax.tree.map(lambda leaf, seed=seed: jnp.asarray(leaf[seed]), states)
        codes.append(toys.read(config, ["sae"], state, z)["sae"])
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    scores = [sp.align(codes[a], codes[b], metrics=("semi_match", "soft_match"), folds=ids) for a, b in pairs]
    for row in results["rows"]:
        if row["comparison"] == "sae->sae":
            mean = np.mean([score[row["metric"]].mean for score in scores])
            np.testing.assert_allclose(row["mean"], mean, atol=1e-4)


@pytest.fixture(scope="module")
def activations(tmp_path_factory):
    """Files of activations: 120 images of 3 positions, both sides mixing the same sparse features."""
    folder = tmp_path_factory.mktemp("activations")
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(120, 3, 12)) * (rng.uniform(size=(120, 3, 12)) < 0.3)
    np.save(folder / "a.npy", features @ rng.normal(size=(12, 6)))
    np.save(folder / "b.npy", np.moveaxis(features @ rng.normal(size=(12, 5)), 2, 0))  # units, samples, positions
    np.savez(folder / "both.npz", a=features[:, 0] @ rng.normal(size=(12, 6)), b=features[:, 0] @ rng.normal(size=(12, 5)))
    np.save(folder / "nan.npy", np.full((120, 6), np.nan))
    np.save(folder / "dead.npy", np.ones((120, 6)))
    np.save(folder / "line.npy", np.ones(120))
    return folder


def small_align(folder):
    config = align.get_config()
    config.source, config.target = f"{folder}/a.npy", f"{folder}/b.npy"
    config.target_axes = "units,samples,positions"
    config.n_seeds = 3
    config.metrics = ("semi_match",)
    config.sae.update({"expansion": 2, "k": 2, "steps": 30, "batch_size": 32})
    return config


@pytest.mark.slow
def test_align_scores_every_comparison(activations, conduct):
    config = small_align(activations)
    run, results = conduct(align, config)
    rows = {row["comparison"]: row for row in results["rows"]}
    assert list(rows) == list(align.COMPARISONS)
    for comparison, row in rows.items():
        drawn = any(name in comparison for name in ("sae", "ica"))  # what a key changes has seeds
        assert row["n_seeds"] == (3 if drawn else 1)
    assert results["n_scored"] == 180
    assert Run(run.path, "align", config.to_dict()).finished()["rows"] == json.loads(json.dumps(results["rows"]))
    # Neurons score as `sp.align` scores them on the same samples.
    divided = align.plan(config).divided
    sides = (divided.scored[side].reshape(180, -1) for side in align.SIDES)
    expected = sp.align(*sides, "semi_match", folds=np.repeat(divided.folds, 3))["semi_match"].mean
    assert rows["neuron->neuron"]["mean"] == pytest.approx(float(expected), abs=1e-5)


def test_align_takes_a_grid_of_settings(activations):
    config = small_align(activations)
    assert not align.plan(config).settings
    config.comparisons = ("neuron->neuron", "sae->neuron")
    config.settings.k, config.settings.expansion = (1, 2), (1.0, 2.0)
    planned = align.plan(config)
    # The chosen one is k=2, expansion=2.
    assert list(planned.settings) == ["expansion=1.0 k=1", "expansion=1.0 k=2", "expansion=2.0 k=1"]
    assert len(planned.comparisons) == 5
    config.source_sae = "folder"
    with pytest.raises(ValueError, match=r"config.settings must be empty where an SAE is given, got expansion, k"):
        align.plan(config)


@pytest.mark.slow
def test_align_takes_trained_saes(activations, conduct, tmp_path):
    config = small_align(activations)
    config.comparisons = ("neuron->neuron", "sae->neuron", "random_sae->neuron")
    mixing = np.asarray(jax.random.normal(jax.random.key(3), (6, 12)))
    sae = sp.sae.Vanilla(6, 12, 0.1, normalize="none", centered=False)
    params = sae.init(jax.random.key(1)) | {"W_enc": jnp.asarray(mixing)}
    sp.sae.save(tmp_path / "it", sae, params, format="saelens")
    config.source_sae = str(tmp_path / "it")
    config.target, config.target_axes = config.source, ""
    # The other side is what these latents are: each is matched with itself.
    latents = np.maximum(np.load(config.source) @ mixing, 0)
    np.save(tmp_path / "latents.npy", latents)
    config.target = f"{tmp_path}/latents.npy"
    _, results = conduct(align, config)
    rows = {row["comparison"]: row for row in results["rows"]}
    np.testing.assert_allclose(rows["sae->neuron"]["mean"], 1, atol=1e-4)
    assert rows["neuron->neuron"]["mean"] < 0.95
    assert [row["n_seeds"] for row in results["rows"]] == [1, 1, 3]
    assert results["n_scored"] == 360  # nothing is fitted on a part of the samples

    config.target_sae = str(tmp_path / "it")
    config.comparisons = ("sae->sae",)
    with pytest.raises(ValueError, match=r"sae of target: autoencoder of Loaded must read 12 units, got 6 in"):
        align.plan(config)


BAD = [
    ([], "config.source names no file"),
    (["--config.source=missing.npy"], "missing.npy is not there"),
    (["--config.source={}/line.npy"], "at least two axes"),
    (["--config.source={}/nan.npy", "--config.target={}/nan.npy"], "source must be finite, but"),
    (["--config.source={}/dead.npy", "--config.target={}/dead.npy"], "no live unit"),
    (["--config.source={}/both.npz:c"], "no array 'c'"),
    (["--config.source={}/both.npz:a", "--config.target={}/a.npy"], "same positions, got 1 and 3"),
    (
        ["--config.source={}/a.npy", "--config.target={}/a.npy", "--config.sae.k=25"],
        "k must be a whole number between 1 and n_latents = 24",
    ),
    (["--config.source={}/a.npy", "--config.target={}/a.npy", "--config.metrics=('cosine',)"], "is called 'cosine'"),
    (["--config.source={}/a.npy", "--config.target={}/a.npy", "--config.n_folds=100"], "number of samples, 60, got 100"),
    (["--config.train_fraction=2", "--config.source={}/a.npy", "--config.target={}/a.npy"], "config.train_fraction must be"),
    (
        ["--config.source={}/a.npy", "--config.target={}/a.npy", "--config.comparisons=('sea->sae',)"],
        "got 'sea' (near it: sae)",
    ),
    (["--config.nonsense=1"], "config has no field 'nonsense'"),
    (["--config.sae.kk=1"], "config has no field 'kk' (near it: k); its fields are"),
    (["--config.sorce=a.npy"], "config has no field 'sorce' (near it: source"),
    (["--config.seed=-1"], "config.seed must be between 0 and"),
    (["--config.seed=three"], "seed"),
    (["--config.sae.learning_rate=nan"], "config.sae.learning_rate must be finite and at least 0, got nan"),
    (["stray"], "unexpected argument 'stray'"),
    (["--config.metrics=None"], "config.metrics must hold values of type str, as ('semi_match', "),
    (["--config.metrics=(1, 'cka')"], "config.metrics must hold values of type str"),
    (
        ["--config.metrics=('a',)", "--config.source={}/a.npy", "--config.target={}/a.npy", "--config.metrics=('b',)"],
        "is called 'b'",
    ),
    (["--config.sae.k=4", "--config.sae=None"], "Flag --config.sae is provided after --config.sae.k"),
    (["--config.sae={{}}"], "config.sae.architecture must be given, as 'topk' is"),
    (["--workdir={}/a.npy"], "workdir must be a folder, but"),
]


def test_bad_input_is_one_line_and_status_2(activations, tmp_path):
    cases = [[f"--workdir={tmp_path}/run", *(argument.format(activations) for argument in arguments)] for arguments, _ in BAD]
    for (status, errors), (arguments, message) in zip(run_commands("align", cases), BAD, strict=True):
        assert status == 2, (arguments, errors)
        assert message in errors, arguments
        assert len(errors.strip().splitlines()) == 1, errors
    assert not (tmp_path / "run").exists()


def test_bad_settings_of_the_study(tmp_path):
    fields = [
        "eval.n_folds=0",
        "eval.batch_size=0",
        "n_hidden=(0,)",
        "n_hidden=()",
        "n_seeds=1",
        "toy.steps=0",
        "n_hidden=(8,8)",
        "chunk=-1",
        "n_hidden=(8.0,16)",
        "n_hidden=None",
        "n_hidden=(8,16",
    ]
    for status, errors in run_commands(
        "toy_alignment", [[f"--workdir={tmp_path}/run", f"--config.{field}"] for field in fields]
    ):
        assert status == 2, errors
        assert errors.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_changed_input_is_another_configuration(activations, tmp_path):
    arguments = [f"--config.source={tmp_path}/x.npy", f"--config.target={tmp_path}/x.npy", f"--workdir={tmp_path}/run"]
    arguments += ["--config.n_seeds=1", "--config.comparisons=('neuron->neuron',)", "--config.metrics=('semi_match',)"]
    np.save(tmp_path / "x.npy", np.load(activations / "both.npz")["a"])
    assert run_command("align", *arguments).returncode == 0
    again = run_command("align", *arguments)
    assert "holds this run's results already" in again.stdout
    np.save(tmp_path / "x.npy", np.load(activations / "both.npz")["b"])
    changed = run_command("align", *arguments)
    assert changed.returncode == 2
    assert "another configuration" in changed.stderr


def test_help_lists_every_field():
    done = run_command("toy_alignment", "--help")
    assert done.returncode == 0
    assert "--config.sae.k=7" in done.stdout


def test_swapped_axes_are_suggested(activations, tmp_path):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(5, 120)))
    done = run_command(
        "align", f"--config.source={activations}/both.npz:a", f"--config.target={tmp_path}/t.npy", f"--workdir={tmp_path}/run"
    )
    assert done.returncode == 2
    assert "Try axes of target: units,samples" in done.stderr


def test_importing_the_library_is_light():
    heavy = ("flax", "orbax", "matplotlib", "tensorstore", "scipy.stats", "tqdm", "xarray", "pandas")
    code = f"import superpos, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

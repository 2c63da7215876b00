import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import small_study

import superpos as sp
from experiments import sae_sweep

pytestmark = pytest.mark.slow  # a whole study


def small():
    config = sae_sweep.get_config()
    config.n_seeds, config.n_hidden, config.n_latents = 3, (4,), (12,)
    config.metrics = ("semi_match",)
    config.architectures = ("untied", "vanilla")
    config.sparsity.vanilla, config.sparsity.untied = (0.1, 5.0), (2, 5)
    config.options.untied = {"architecture": "topk", "tied": False}
    config.sae.update({"steps": 100, "batch_size": 64})
    study = small_study()
    config.published, config.features, config.toy = study.sae, study.features, study.toy
    config.oracle, config.supervised, config.eval = study.oracle, study.supervised, study.eval
    config.toy.steps, config.supervised.steps = 300, 0
    return config


@pytest.fixture(scope="module")
def sweep(conduct):
    return conduct(sae_sweep, small())


def test_a_row_for_every_point(sweep):
    _, results = sweep
    rows = {(row["architecture"], row["sparsity"]): row for row in results["rows"]}
    assert set(rows) == {("untied", 2), ("untied", 5), ("vanilla", 0.1), ("vanilla", 5.0)}
    assert [row["units"] for row in results["recovery"]] == ["neuron", "sae", "random_sae", "oracle"]
    for measure in ("l0", "random_l0"):
        assert rows["untied", 2][measure] <= 2 < rows["untied", 5][measure] <= 5
    assert rows["vanilla", 5.0]["l0"] < rows["vanilla", 0.1]["l0"]
    assert rows["vanilla", 5.0]["fvu"] > rows["vanilla", 0.1]["fvu"]
    for row in rows.values():
        low, high = row["recovery_ci95"]
        assert low <= row["recovery"] <= high
        assert 0 <= row["dead"] <= 1


def test_figures_are_those_of_the_saved_saes(sweep):
    run, results = sweep
    config = small()
    point = {"n_hidden": 4, "architecture": "untied", "n_latents": 12, "rung": 1.0}
    saved = sp.sweeps.load(run.path / "saes").load(**point)
    features = sp.features.SparseFeatures(12, 0.1)
    z = features.sample(jax.random.key(7), 20_000)
    errors = []
    for seed in range(3):
        params = {name: jnp.asarray(leaf[seed, 0]) for name, leaf in saved["saes"].items()}
        sae = sp.sae.TopK(4, 12, 5)
        x = jax.nn.relu(z @ saved["toy"]["W"][seed])
        errors.append(np.mean((x - sae.reconstruct(params, x)) ** 2) / np.mean((x - x.mean(axis=0)) ** 2))
    (row,) = [row for row in results["rows"] if (row["architecture"], row["sparsity"]) == ("untied", 5)]
    np.testing.assert_allclose(row["fvu"], np.mean(errors), rtol=0.1)  # other samples
    assert json.loads((run.path / "results.json").read_text())["n_scored"] == 1000
    assert config.eval.n_samples == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ("topk", "other")}, "'other'; there are vanilla, topk"),
        ({"architectures": ()}, "ladder of the same length"),
        ({"sparsity": {"untied": (1, 2, 3)}}, "ladder of the same length"),
        ({"sparsity": {"untied": (1, 99)}}, "k must be a whole number between 1 and n_latents = 12, got 99"),
        ({"n_seeds": 1}, "n_seeds must be at least 2"),
    ],
)
def test_bad_settings(change, message, conduct):
    config = small()
    config.update(change)
    with pytest.raises(ValueError, match=message):
        conduct(sae_sweep, config)

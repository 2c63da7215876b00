"""The experiments that train the models of `toy_alignment` and ask more of them."""

import jax
import numpy as np
import optax
import pytest
from scipy.stats import spearmanr

import superpos as sp
from experiments import feature_recovery, performance, toys

pytestmark = pytest.mark.slow  # a whole study


def shrink(config):
    config.n_hidden = (4,)
    config.features.n_features = 12
    config.toy.batch_size = 64
    config.sae.update({"n_latents": 12, "steps": 20, "batch_size": 64})
    config.oracle.update({"steps": 20, "penalties": (0.01,), "ridge_ratios": (0.0,), "n_samples": 100})
    config.eval.update({"n_samples": 1000, "batch_size": 100})
    return config


@pytest.fixture(scope="module")
def recovered(conduct):
    config = shrink(feature_recovery.get_config())
    config.n_seeds = 3
    config.toy.steps = config.supervised.steps = 30
    config.supervised.width = 8
    config.sae.k = 2
    return conduct(feature_recovery, config)[1]


def test_every_feature_of_every_model_is_there(recovered):
    assert [row["units"] for row in recovered["rows"]] == ["neuron", "sae", "random_sae", "oracle", "supervised"]
    for row in recovered["rows"]:
        values = np.array(recovered["features"][row["units"]]["4"])
        assert values.shape == (3, 12)
        assert (np.abs(values) <= 1 + 1e-6).all()
        np.testing.assert_allclose(values.mean(), row["mean"], rtol=1e-5)


@pytest.fixture(scope="module")
def performed(conduct):
    config = shrink(performance.get_config())
    config.n_seeds = 2
    config.probabilities, config.toy_steps = (0.2,), (5, 60)
    return config, *conduct(performance, config)


def test_a_model_that_stops_early_is_one_that_was_trained_so_long(performed):
    config, run, _ = performed
    state = sp.sweeps.load(run.path / "sweep").load(seed=1, n_hidden=4, probability="0.2", toy_steps=5.0)
    variant = performance.variant(config, 0.2)
    init_key, data_key, _ = jax.random.split(jax.random.key(config.seed), 3)
    toy_key = jax.random.split(jax.random.fold_in(jax.random.split(init_key, 2)[1], 4), 3)[0]
    params, _ = jax.jit(
        lambda key, data_key: sp.fit(
            toys.toy(variant, 4),
            key,
            toys.features(variant).sample,
            data_key=data_key,
            steps=5,
            batch_size=64,
            optimizer=optax.adamw(1e-3, weight_decay=0.01),
        )
    )(toy_key, jax.random.split(data_key, 5)[0])
    np.testing.assert_allclose(state["toy"]["W"], params["W"], atol=1e-6)


def test_training_longer_reconstructs_better(performed):
    _, _, results = performed
    fvu = {row["toy_steps"]: row["mean"] for row in results["rows"] if row["measure"] == "fvu"}
    assert fvu[60] < fvu[5]


def test_rank_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    measures = {"fvu": rng.uniform(size=(2, 1, 5, 3)), "recovery": rng.uniform(size=(2, 1, 5, 3))}
    measures["pairs"] = rng.uniform(size=(2, 1, 5, 3, 3))
    found = {(row["along"], row["measure"]): row for row in performance.correlate(measures)}
    assert set(found) == {(axis, name) for axis in ("n_hidden", "toy_steps") for name in ("recovery", "pairs")}
    each = [spearmanr(-measures["fvu"][w, 0, :, s], measures["recovery"][w, 0, :, s])[0] for w in range(2) for s in range(3)]
    np.testing.assert_allclose(found["toy_steps", "recovery"]["mean"], np.mean(each), atol=1e-12)
    each = [
        spearmanr(-measures["fvu"][w, 0, :, [a, b]].mean(axis=0), measures["pairs"][w, 0, :, a, b])[0]
        for w in range(2)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    np.testing.assert_allclose(found["toy_steps", "pairs"]["mean"], np.mean(each), atol=1e-12)


@pytest.mark.parametrize("field", ["probabilities", "toy_steps"])
def test_empty_axes(field, conduct):
    config = shrink(performance.get_config())
    config[field] = ()
    with pytest.raises(ValueError, match=f"config.{field}"):
        conduct(performance, config)

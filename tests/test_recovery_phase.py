import jax.numpy as jnp
import numpy as np
import pytest

from experiments import recovery_phase
from superpos.results import Run


def small_config():
    config = recovery_phase.get_config()
    config.update({"n_seeds": 2, "n_features": 16, "n_units": (2, 16), "n_active": (2,)})
    config.oracle.update({"steps": 300, "n_samples": 200})
    config.sae.update({"n_latents": 16, "steps": 300, "batch_size": 128})
    config.eval.update({"n_samples": 500})
    return config


@pytest.fixture(scope="module")
def results(conduct):
    return conduct(recovery_phase, small_config())[1]


@pytest.fixture(scope="module")
def means(results):
    return {(row["units"], row["n_active"], row["n_units"]): row["mean"] for row in results["rows"]}


def test_every_point_is_there(results, means):
    assert len(means) == len(results["rows"]) == 4 * 2
    for row in results["rows"]:
        assert 0 <= row["mean"] <= 1
        assert row["n_seeds"] == 2
        assert row["probability"] == row["n_active"] / 16
        assert row["compression"] == row["n_units"] / 16


def test_the_oracle_finds_everything_where_units_are_as_many_as_features(means):
    assert means["oracle", 2, 16] > 0.99
    assert means["oracle_exact", 2, 16] > 0.95


def test_nobody_finds_two_features_of_sixteen_in_two_units(means):
    assert means["oracle_exact", 2, 2] < 0.5
    assert max(means["oracle", 2, 2], means["sae", 2, 2]) < 0.6


def test_the_oracle_bounds_the_sae_and_training_helps(means):
    assert means["random_sae", 2, 16] < means["sae", 2, 16] <= means["oracle", 2, 16]


def test_an_sae_on_few_units_is_one_without_the_others():
    wide = {"W_enc": jnp.full((16, 16), 0.25), "W_dec": jnp.full((16, 16), 0.25)}  # 0.25² = 2 / (16 + 16)
    narrow = recovery_phase.narrow(wide, jnp.arange(16) < 4, 4.0)
    expected = np.where(np.arange(16) < 4, np.sqrt(2 / (4 + 16)), 0)
    np.testing.assert_allclose(narrow["W_enc"], np.tile(expected[:, None], 16), rtol=1e-6)
    np.testing.assert_allclose(narrow["W_dec"], np.tile(expected, (16, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n_units": (0, 8)}, "n_units"),
        ({"n_active": ()}, "n_active"),
        ({"n_active": (17,)}, "n_active"),
        ({"n_units": (8, 8)}, "n_units"),
        ({"n_seeds": 0}, "n_seeds"),
        ({"sae": {"n_latents": 1}}, "k must be"),
        ({"oracle": {"n_samples": 501}}, "oracle.n_samples"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(settings, named, tmp_path):
    config = small_config()
    config.update(settings)
    with pytest.raises(ValueError, match=named):
        recovery_phase.compute(config, Run(tmp_path / "run", "recovery_phase", config.to_dict()))
    assert not (tmp_path / "run").exists()

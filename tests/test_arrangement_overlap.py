import jax
import numpy as np
import pytest

from experiments import arrangement_overlap, toy_alignment, toys
from superpos.results import Run


def small_config():
    config = arrangement_overlap.get_config()
    config.update({"n_seeds": 3, "n_hidden": (4,)})
    config.features.update({"n_features": 12})
    config.toy.update({"steps": 20, "batch_size": 32})
    return config


@pytest.fixture(scope="module")
def results(conduct):
    return conduct(arrangement_overlap, small_config())[1]


@pytest.fixture(scope="module")
def score():
    return jax.jit(arrangement_overlap.score)


def state(weights, bits=0):
    return {"W": np.asarray(weights, np.float32), "bits": np.uint32(bits)}


def test_every_statistic_of_every_pair_is_there(results):
    rows = {row["statistic"]: row for row in results["rows"]}
    assert set(rows) == set(arrangement_overlap.SYMMETRIC)
    assert rows["n_shared"]["n_pairs"] == 3
    assert rows["semi_match"]["n_pairs"] == 6
    values = results["values"]["4"]
    assert len(values["overlap"]) == 3 * 12
    assert len(values["semi_match"]) == len(values["semi_match_chance"]) == 6
    np.testing.assert_allclose(np.sum(np.array(values["overlap"]) >= 1) / 3, rows["n_shared"]["mean"], rtol=1e-6)


def test_barely_trained_models_share_nothing_and_so_have_no_match(results):
    rows = {row["statistic"]: row for row in results["rows"]}
    assert rows["n_shared"]["mean"] < 1
    assert rows["semi_match"]["mean"] is None
    assert results["values"]["4"]["semi_match"] == [None] * 6
    assert rows["semi_match_all"]["mean"] is not None


def test_a_model_overlaps_with_itself_by_its_squared_norms(score):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(40, 6))
    found = score(state(weights), state(weights), jax.random.key(0))
    np.testing.assert_allclose(found["overlap"], np.sum(weights**2, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["semi_match"], 1, atol=1e-6)
    assert found["semi_match_chance"] < 0.8


def test_neurons_in_another_order_and_scale_are_the_same_arrangement_of_what_is_shared(score):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(40, 6))
    other = weights[:, ::-1] * rng.uniform(1, 2, 6)
    weights[30:] *= 1e-3  # not shared, and different
    other[30:] = 1e-3 * rng.normal(size=(10, 6))
    found = score(state(weights), state(other), jax.random.key(0))
    assert found["n_shared"] == 30
    np.testing.assert_allclose(found["semi_match"], 1, atol=1e-6)
    assert found["semi_match_excess"] > 0.2


def test_unrelated_models_match_as_well_as_the_control(score):
    rng = np.random.default_rng(0)
    excess = [
        score(state(rng.normal(size=(40, 6)), i), state(rng.normal(size=(40, 6)), i + 1), jax.random.key(0))[
            "semi_match_excess"
        ]
        for i in range(200)
    ]
    assert abs(np.mean(excess)) < 4 * np.std(excess) / np.sqrt(len(excess))


def test_only_masked_positions_are_shuffled():
    mask = np.array([True, False, True, True, False, True] * 20)
    order = np.asarray(arrangement_overlap.shuffled(jax.random.key(0), mask))
    np.testing.assert_array_equal(np.sort(order), np.arange(120))
    np.testing.assert_array_equal(order[~mask], np.flatnonzero(~mask))
    assert np.mean(order[mask] == np.flatnonzero(mask)) < 0.2


def test_models_are_those_of_toy_alignment():
    config = small_config()
    published = toy_alignment.get_config()
    published.features.update(config.features)
    published.toy.update(config.toy)
    published.sae.update({"n_latents": 4, "k": 1, "steps": 1, "batch_size": 2})
    published.oracle.update({"steps": 1, "penalties": (0.1,), "ridge_ratios": (0.0,), "n_samples": 2})
    published.supervised.steps = 0
    published.eval.update({"n_samples": 10, "batch_size": 2})
    published.n_hidden = (4,)
    keys = jax.random.split(jax.random.key(3))
    mine = jax.jit(lambda a, b: arrangement_overlap.train(config, a, b, 4)["W"])(*keys)
    theirs = jax.jit(lambda a, b: toys.train(published, toy_alignment.views(published), a, b, 4)["toy"]["W"])(*keys)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"), [({"n_seeds": 1}, "n_seeds"), ({"n_hidden": ()}, "n_hidden"), ({"chunk": -1}, "chunk")]
)
def test_bad_settings_are_named_before_anything_is_written(settings, named, tmp_path):
    config = small_config()
    config.update(settings)
    with pytest.raises(ValueError, match=named):
        arrangement_overlap.compute(config, Run(tmp_path / "run", "arrangement_overlap", config.to_dict()))
    assert not (tmp_path / "run").exists()

import numpy as np
import pytest

from experiments import theory
from superpos.results import Run

pytestmark = pytest.mark.slow  # a whole study

METRICS = ("semi_match", "permutation_match", "cka")
MATCHING = METRICS[:2]


def small_config():
    config = theory.get_config()
    config.update(
        {
            "n_features": 12,
            "n_units": (4,),
            "metrics": METRICS,
            "n_units_fixed": 4,
            "probabilities": (0.3, 1.0),
            "fractions": (0.0, 0.1, 0.6),
        }
    )
    config.n_pairs.update({"compression": 4, "fixed": 12})
    config.eval.update({"n_samples": 30_000, "n_rsa": 300})
    config.random.update({"n_features": (64,), "one_in": (4,), "n_pairs": 200})
    return config


@pytest.fixture(scope="module")
def results(conduct):
    return conduct(theory, small_config())[1]


def rows(results, **settings):
    found = [row for row in results["rows"] if settings.items() <= row.items()]
    assert found
    return found


def test_every_point_has_a_row_for_each_metric_and_kind_of_units(results):
    assert len(results["rows"]) == (1 + 2 + 3 + 1) * 4 * 2
    for row in results["rows"]:
        assert row["n_pairs"] == (4 if row["varied"] == "compression" else 12)
        assert -1 <= row["mean"] <= 1 + 1e-5
        assert (row["predicted"] is None) == (row["metric"] == "rsa")


def test_linear_units_measure_what_is_predicted_within_sampling_error(results):
    for row in results["agreement"]:
        if row["units"] == "linear":
            # Pairs share the samples, and a score of 1 has no error at all.
            assert row["rms_difference"] < 3 * row["sampling_error"]
            assert row["largest_difference"] < 0.03


@pytest.mark.parametrize("units", theory.UNITS)
def test_arrangements_equal_up_to_order_and_positive_scale_match_perfectly(results, units):
    for metric in MATCHING:
        for point in ({"varied": "equal"}, {"varied": "rotation", "fraction": 0.0}):
            (row,) = rows(results, metric=metric, units=units, **point)
            np.testing.assert_allclose([row["mean"], row["predicted"]], 1, atol=1e-5)
            assert row["std"] < 1e-5


def test_matching_falls_with_a_rotation_that_other_metrics_do_not_see(results):
    for metric in MATCHING:
        assert (np.diff([row["mean"] for row in rows(results, varied="rotation", metric=metric, units="linear")]) < 0).all()
    for row in rows(results, varied="rotation", metric="cka", units="linear"):
        np.testing.assert_allclose(row["mean"], 1, atol=1e-3)


def test_sparsity_does_not_touch_linear_units(results):
    for metric in METRICS:
        few, all_active = (row["predicted"] for row in rows(results, varied="sparsity", metric=metric, units="linear"))
        np.testing.assert_allclose(few, all_active, atol=1e-5)


def test_random_arrangements_score_what_the_formula_says(results):
    assert [row["n_units"] for row in results["random"]] == [16, 16]
    for row in results["random"]:
        assert abs(row["formula"] - row["mean"]) < 4 * row["standard_error"] + 0.01 * row["mean"]
        np.testing.assert_allclose(row["relative_difference"], 0, atol=0.05)


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("metrics", ("rsa",), "metrics"),
        ("n_units", (), "n_units"),
        ("probabilities", (0.0, 0.5), "probabilities"),
        ("fractions", (0.5, 0.5), "fractions"),
        ("n_pairs", {"compression": 2}, "n_pairs.compression"),
        ("eval", {"n_samples": 10}, "eval"),
        ("random", {"one_in": (0,)}, "random"),
        ("chunk", -1, "chunk"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, field, value, names):
    config = small_config()
    config.update({field: value})
    run = Run(tmp_path / "run", "theory", config.to_dict())
    with pytest.raises(ValueError, match=names):
        theory.compute(config, run)
    assert not run.path.exists()

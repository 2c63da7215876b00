"""How often intervals leave out the truth, in little."""

import jax
import numpy as np
import pytest

from experiments import levels


@pytest.mark.slow
def test_intervals_with_maps_fitted_again_leave_out_less(conduct):
    config = levels.get_config()
    config.update({"n_worlds": 30, "n_samples": (50,), "related": (False,), "grouped": (True,), "truth": 500, "n_parts": 2})
    config.metrics = ("semi_match",)
    _, results = conduct(levels, config)
    assert [row["score"] for row in results["rows"]] == ["first", "second", "difference"]
    for row in results["rows"]:
        assert abs(row["truth"]) < 0.1  # unrelated
        assert row["left_out"] <= row["left_out_given_maps"]
        assert row["error"] >= row["error_given_maps"] > 0


def test_samples_of_a_group_resemble_each_other():
    source, _, target = levels.world(jax.random.key(0), 5_000, related=True, grouped=True)
    for side in (np.asarray(source), np.asarray(target)):
        side = (side - side.mean(axis=0)) / side.std(axis=0)
        first, second, other = side[::5], side[1::5], side[5::5]
        np.testing.assert_allclose(np.mean(first * second), 0.64, atol=0.05)  # of the variance is the group's
        np.testing.assert_allclose(np.mean(first[:-1] * other), 0, atol=0.05)

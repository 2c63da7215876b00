import numpy as np
import pytest

from experiments import arrangement_consistency


@pytest.fixture(scope="module")
def results(conduct):
    config = arrangement_consistency.get_config()
    config.update({"n_seeds": 3, "n_steps": 3})
    config.toy.update({"steps": 20, "batch_size": 32})
    return conduct(arrangement_consistency, config)[1]


def test_the_grid_is_complete_and_says_what_it_realised(results):
    assert results["n_models"] == 2 * 9 * 3
    assert len(results["rows"]) == 2 * 9
    for row in results["rows"]:
        feasible = row["generator"] == "published" or min(row["second"], row["third"]) >= 0
        assert (row["mean"] is not None) == feasible
        if feasible:
            assert -1 <= row["mean"] <= 1
            assert row["n_pairs"] == 6
            expected = {-1.0: -0.11, 0.0: 0.0, 1.0: 1.0}
            np.testing.assert_allclose(row["realised_second"], expected[row["second"]], atol=0.01)
            np.testing.assert_allclose(row["realised_third"], expected[row["third"]], atol=0.01)


def test_weights_equal_up_to_order_and_scale_are_consistent():
    weights = np.array([[1.0, 0.2], [0.0, 0.7], [0.3, -0.5]], np.float32)
    swapped = {"W": 2 * weights[:, ::-1]}
    np.testing.assert_allclose(arrangement_consistency.score({"W": weights}, swapped, None), 1, atol=1e-6)
    inverted = float(arrangement_consistency.score({"W": weights}, {"W": -weights}, None))
    r = np.corrcoef(weights.T)[0, 1]
    np.testing.assert_allclose(inverted, max(-1, -r), atol=1e-6)

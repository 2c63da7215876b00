import numpy as np
from references import pearson

import superpos as sp


def test_recovery_of_known_units():
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(1000, 4))
    units = np.stack([z[:, 2], z[:, 0] + z[:, 1], -z[:, 3], np.zeros(1000)], axis=1)
    scores = sp.align(units, z, metrics=("feature_recovery", "mcc", "uniqueness"), folds=None)
    r = pearson(units[:, :3], z)
    np.testing.assert_allclose(scores["feature_recovery"].units[0], r.max(axis=0), atol=1e-5)
    assert list(scores["feature_recovery"].details["partner"][0][:3]) == [1, 1, 0]
    # One unit for features 0 and 1, of which only one can have it; feature 3 by its negative.
    mcc = scores["mcc"]
    assert list(mcc.details["partner"][0][2:]) == [0, 2]
    assert sorted(mcc.details["partner"][0][:2]) == [-1, 1]
    np.testing.assert_allclose(mcc.mean, (1 + 1 + max(r[1, 0], r[1, 1])) / 3, atol=1e-5)
    assert np.isnan(mcc.units[0][:2]).sum() == 1
    assert scores["uniqueness"].units[0][:3].tolist() == [0, 0, 1]


def test_signed_mean_correlation_does_not_take_a_negative_for_a_feature():
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(500, 2))
    units = np.stack([-z[:, 0], z[:, 1]], axis=1)
    score = sp.align(units, z, metrics=[sp.metrics.MeanCorrelation(), sp.metrics.MeanCorrelation(signed=True, name="signed")])
    np.testing.assert_allclose(score["mcc"].mean, 1, atol=1e-5)
    assert score["signed"].mean < 0.6

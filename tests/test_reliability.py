import jax
import numpy as np
import pytest

import superpos as sp


@pytest.mark.parametrize("n_repeats", [4, 7])
def test_reliability_of_simulated_repeats_is_the_truth(n_repeats):
    rng = np.random.default_rng(0)
    noise = np.linspace(0.3, 3, 20)
    responses = rng.normal(size=(20_000, 20)) + noise * rng.normal(size=(n_repeats, 20_000, 20)) + 50
    got = sp.reliability.split_half(responses, n_splits=10)
    np.testing.assert_allclose(got, 1 / (1 + noise**2 / n_repeats), atol=0.02)


def test_missing_repeats_lower_reliability_as_they_should():
    """Of 6 repeats half of the samples have 3: the mean number of repeats is 4.5."""
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(20_000, 5)) + 2 * rng.normal(size=(6, 20_000, 5))
    responses[3:, ::2] = np.nan
    mean = np.nanmean(responses, axis=0)
    truth = 1 / np.var(mean, axis=0)  # signal variance is 1
    np.testing.assert_allclose(sp.reliability.split_half(responses, n_splits=10), truth, atol=0.03)


def test_spearman_brown_undoes_averaging():
    truth, factor = 0.3, 5.0
    longer = factor * truth / (1 + (factor - 1) * truth)
    np.testing.assert_allclose(sp.reliability.spearman_brown(truth, factor), longer)
    np.testing.assert_allclose(sp.reliability.spearman_brown(longer, 1 / factor), truth, rtol=1e-6)


def test_corrected_correlation_is_that_with_noiseless_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 6))
    clean = x @ rng.normal(size=(6, 4)) + rng.normal(size=(20_000, 4))
    responses = clean + rng.normal(size=(8, 20_000, 4)) * np.array([1.0, 4.0, 8.0, 100.0])
    reliability = sp.reliability.split_half(responses, n_splits=10)
    noisy, truth = (sp.align(x, y, metrics="ols")["ols"] for y in (responses.mean(axis=0), clean))
    corrected = sp.reliability.disattenuate(noisy, reliability, minimum=0.2)
    np.testing.assert_allclose(corrected.units[:, :3].mean(axis=0), truth.units[:, :3].mean(axis=0), atol=0.02)
    assert np.isnan(corrected.units[:, 3]).all()
    assert corrected.details["n_excluded"] == 1
    np.testing.assert_allclose(corrected.mean, np.nanmean(corrected.units), atol=1e-6)
    assert corrected.mean > noisy.mean


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (np.zeros((1, 10, 2)), r"\(n_repeats, n_samples, n_units\), at least 2 repeats, got \(1, 10, 2\)"),
        (np.zeros((10, 2)), "n_repeats, n_samples, n_units"),
        (np.full((2, 10, 2), np.inf), "finite, or NaN where missing, got 40 infinite"),
        (np.where(np.arange(20).reshape(1, 10, 2) == 7, np.nan, np.ones((2, 10, 2))), "repeats of sample 3 for unit 1"),
    ],
)
def test_bad_responses(responses, message):
    with pytest.raises(ValueError, match=message):
        sp.reliability.split_half(responses)


def test_bad_corrections():
    x, y = np.random.default_rng(0).normal(size=(2, 50, 3))
    score = sp.align(x, y, metrics=("semi_match", "cka"))
    with pytest.raises(ValueError, match="without units"):
        sp.reliability.disattenuate(score["cka"], np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        sp.reliability.disattenuate(score["semi_match"], np.ones(4))
    with pytest.raises(ValueError, match="minimum must be positive"):
        sp.reliability.disattenuate(score["semi_match"], np.ones(3), minimum=0)


def test_corrections_are_jittable():
    responses = np.random.default_rng(0).normal(size=(4, 60, 3)) + np.random.default_rng(1).normal(size=(60, 3))
    ceiling = jax.jit(sp.reliability.split_half, static_argnames="n_splits")(responses, n_splits=5)
    np.testing.assert_allclose(ceiling, sp.reliability.split_half(responses, n_splits=5), atol=1e-6)

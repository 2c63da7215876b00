import jax
import numpy as np
import pytest
import xarray

import superpos as sp


@pytest.mark.parametrize("n_repeats", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_reliability_of_simulated_repeats_is_the_truth(n_repeats):
    rng = np.random.default_rng(0)
    noise = np.linspace(0.3, 3, 20)
    responses = rng.normal(size=(20_000, 1, 20)) + noise * rng.normal(size=(20_000, n_repeats, 20)) + 50
    got = sp.reliability.split_half(responses, n_splits=10)
    np.testing.assert_allclose(got, 1 / (1 + noise**2 / n_repeats), atol=0.02)


def test_missing_repeats_lower_reliability_as_they_should():
    """Of 6 repeats half of the samples have 3: the mean number of repeats is 4.5."""
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(20_000, 1, 5)) + 2 * rng.normal(size=(20_000, 6, 5))
    responses[::2, 3:] = np.nan
    mean = np.nanmean(responses, axis=1)
    truth = 1 / np.var(mean, axis=0)  # signal variance is 1
    np.testing.assert_allclose(sp.reliability.split_half(responses, n_splits=10), truth, atol=0.03)


def test_spearman_brown_undoes_averaging():
    truth, factor = 0.3, 5.0
    longer = factor * truth / (1 + (factor - 1) * truth)
    np.testing.assert_allclose(sp.reliability.spearman_brown(truth, factor), longer)
    np.testing.assert_allclose(sp.reliability.spearman_brown(longer, 1 / factor), truth, rtol=1e-6)


@pytest.mark.slow
def test_corrected_correlation_is_that_with_noiseless_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 6))
    clean = x @ rng.normal(size=(6, 4)) + rng.normal(size=(20_000, 4))
    responses = clean[:, None] + rng.normal(size=(20_000, 8, 4)) * np.array([1.0, 4.0, 8.0, 100.0])
    reliability = sp.reliability.split_half(responses, n_splits=10)
    noisy, truth = (sp.align(x, y, metrics="ols")["ols"] for y in (responses.mean(axis=1), clean))
    corrected = sp.reliability.disattenuate(noisy, reliability, minimum=0.2)
    np.testing.assert_allclose(corrected.units[:, :3].mean(axis=0), truth.units[:, :3].mean(axis=0), atol=0.02)
    assert np.isnan(corrected.units[:, 3]).all()
    assert corrected.details["n_excluded"] == 1
    np.testing.assert_allclose(corrected.mean, np.nanmean(corrected.units), atol=1e-6)
    assert corrected.mean > noisy.mean


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (np.zeros((10, 1, 2)), r"\(n_stimuli, n_repeats, n_units\), at least 2 repeats, got \(10, 1, 2\)"),
        (np.zeros((10, 2)), "n_stimuli, n_repeats, n_units"),
        (np.zeros((4, 50, 3)), r"got \(4, 50, 3\): more repeats than stimuli\. Are the first two axes swapped"),
        (np.full((10, 2, 2), np.inf), "finite, or NaN where missing, got 40 infinite"),
        (np.where(np.arange(20).reshape(10, 1, 2) == 7, np.nan, np.ones((10, 2, 2))), "repeats of stimulus 3 for unit 1"),
        (xarray.DataArray(np.zeros((4, 5, 3)), dims=("repeat", "a", "unit")), "got axes named repeat, a, unit"),
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
    responses = np.random.default_rng(0).normal(size=(60, 4, 3)) + np.random.default_rng(1).normal(size=(60, 1, 3))
    ceiling = jax.jit(sp.reliability.split_half, static_argnames="n_splits")(responses, n_splits=5)
    np.testing.assert_allclose(ceiling, sp.reliability.split_half(responses, n_splits=5), atol=1e-6)


def test_named_axes_are_taken_in_any_order():
    responses = np.random.default_rng(0).normal(size=(30, 40, 3)) + np.random.default_rng(1).normal(size=(30, 1, 3))
    named = xarray.DataArray(responses, dims=("presentation", "repetition", "neuroid"))
    got = [sp.reliability.split_half(named.transpose(*order), n_splits=3) for order in (named.dims, named.dims[::-1])]
    np.testing.assert_array_equal(*got)
    np.testing.assert_array_equal(sp.brain.ncsnr(named.transpose(*named.dims[::-1])), sp.brain.ncsnr(named))


def test_a_unit_that_is_silent_in_some_halves_has_the_mean_of_the_others():
    """One spike pair: in the splits that tear it apart both halves respond to the same stimulus, r = 1."""
    responses = np.zeros((6, 4, 2))
    responses[2, :2, 0] = 1
    responses[..., 1] = np.random.default_rng(0).normal(size=(6, 1)) + np.zeros(4)
    with pytest.warns(RuntimeWarning, match=r"1 of 2, first unit 0; .* the mean of \d+ of 50 splits, or of more"):
        got = sp.reliability.split_half(responses, n_splits=50)
    np.testing.assert_allclose(got, 1, atol=1e-6)

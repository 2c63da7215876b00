import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import superpos as sp
from superpos.brain import Recording

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def simulated():
    return sp.brain.simulate(KEY, 25_000, 8, 4, reliability=np.linspace(0.2, 0.95, 8))


@pytest.fixture
def small():
    """Trials of 30 stimuli in 3 repeats by 4 units, some missing, taken in two sessions."""
    rng = np.random.default_rng(0)
    repeats = rng.normal(size=(30, 1, 4)) + rng.normal(size=(30, 3, 4))
    repeats[::3, 2] = np.nan
    areas = np.array(["V4", "V4", "IT", "IT"])
    return Recording(repeats=repeats, units={"area": areas}, sessions=np.tile([0, 1, 1], (30, 1)))


def test_ceilings_of_a_simulated_brain_are_the_truth(simulated):
    recording, truth = simulated
    np.testing.assert_allclose(recording.reliability(n_splits=8), truth.reliability, atol=0.02)
    np.testing.assert_allclose(recording.noise_ceiling(), truth.reliability, atol=0.02)
    np.testing.assert_allclose(recording.ncsnr(), truth.ncsnr, rtol=0.05)
    one = recording.noise_ceiling(1)
    np.testing.assert_allclose(one, np.asarray(truth.ncsnr) ** 2 / (1 + np.asarray(truth.ncsnr) ** 2), atol=0.02)


def test_truth_of_a_simulated_brain_is_what_its_responses_show(simulated):
    recording, truth = simulated
    np.testing.assert_array_equal(np.sum(np.asarray(truth.mixing) != 0, axis=0), 4)
    np.testing.assert_allclose(truth.features @ truth.mixing, truth.clean, atol=1e-5)
    noise = recording.responses - np.asarray(truth.clean)
    shares = np.var(truth.clean, axis=0) / (np.var(truth.clean, axis=0) + np.var(noise, axis=0))
    np.testing.assert_allclose(shares, truth.reliability, atol=0.01)
    single = np.std(recording.repeats - np.asarray(truth.clean)[:, None], axis=(0, 1))
    np.testing.assert_allclose(np.std(truth.clean, axis=0) / single, truth.ncsnr, rtol=0.02)


def test_reliability_is_the_squared_correlation_with_what_is_noiseless(simulated):
    recording, truth = simulated
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(recording.responses.T, np.asarray(truth.clean).T, strict=True)]
    np.testing.assert_allclose(correlation, np.sqrt(truth.reliability), atol=0.02)


def test_simulation_is_a_function_of_its_key():
    mixing = sp.arrangements.unit_norm(KEY, 20, 5)
    features = sp.features.SparseFeatures(20, 0.2)
    first, second, other = (
        sp.brain.simulate(jax.random.key(i), 50, 5, 2, features=features, mixing=mixing, reliability=1) for i in (0, 0, 1)
    )
    np.testing.assert_array_equal(first[0].repeats, second[0].repeats)
    assert not np.array_equal(first[0].repeats, other[0].repeats)
    np.testing.assert_array_equal(first[1].mixing, mixing)
    np.testing.assert_allclose(first[0].repeats, np.repeat(np.asarray(first[1].clean)[:, None], 2, axis=1), atol=1e-6)


def test_ncsnr_is_as_published(small):
    """Z-scored within session; noise: the variance between presentations, averaged over images; signal: the rest."""
    recording = small.zscored()
    expected = []
    for unit in range(4):
        trials = {s: small.repeats[..., unit][small.sessions == s] for s in (0, 1)}
        z = np.empty((30, 3))
        for s, values in trials.items():
            z[small.sessions == s] = (values - np.nanmean(values)) / np.nanstd(values)
        noise = np.mean([np.var(row[~np.isnan(row)], ddof=1) for row in z])
        expected.append(np.sqrt((np.var(z[~np.isnan(z)], ddof=1) - noise) / noise))
    np.testing.assert_allclose(recording.ncsnr(), expected, rtol=1e-4)


def test_ncsnr_in_closed_form():
    """Means of 1 and -1, repeats a above and below: the noise's variance is 2 a², that of trials n (1 + a²) 2 / (2 n - 1)."""
    n, a = 10, np.array([0.1, 0.5, 0.9])
    means = np.tile([1.0, -1.0], n // 2)[:, None, None]
    repeats = 7 + means + np.array([-1.0, 1.0])[:, None] * a
    expected = np.sqrt((2 * n * (1 + a**2) / (2 * n - 1) - 2 * a**2) / (2 * a**2))
    np.testing.assert_allclose(sp.brain.ncsnr(repeats), expected, rtol=1e-4)
    assert np.isinf(sp.brain.ncsnr(np.repeat(means, 2, axis=1)))
    assert np.isnan(sp.brain.ncsnr(np.ones((4, 2, 1))))
    assert sp.brain.ncsnr(np.tile([[0.0], [1.0]], (4, 1, 1))) == 0  # all variance is between repeats


def test_noise_ceiling_in_closed_form():
    ceiling = sp.brain.noise_ceiling
    np.testing.assert_allclose(ceiling(np.array([0.0, 1.0, 2.0, np.inf]), 3), [0, 3 / 4, 12 / 13, 1])
    a, b, c, snr = 5, 3, 2, 0.7  # images with three, two and one trials, as the dataset's manual has it
    published = snr**2 / (snr**2 + (a / 3 + b / 2 + c / 1) / (a + b + c))
    np.testing.assert_allclose(ceiling(np.array([snr]), np.repeat([3, 2, 1], [a, b, c])), published, rtol=1e-6)
    np.testing.assert_allclose(ceiling(0.7, 5), sp.reliability.spearman_brown(ceiling(0.7, 1), 5), rtol=1e-6)


def test_ceilings_do_not_depend_on_scale_or_order(small):
    rng = np.random.default_rng(1)
    scaled = small.repeats * np.array([2.0, 1e-3, 50.0, 1.0]) - 3
    shuffled = scaled[rng.permutation(30)][:, rng.permutation(3)]
    np.testing.assert_allclose(sp.brain.ncsnr(shuffled), small.ncsnr(), rtol=1e-3)
    np.testing.assert_allclose(Recording(repeats=scaled).reliability(n_splits=5), small.reliability(n_splits=5), atol=1e-3)


def test_ceilings_are_jittable(small):
    found = jax.jit(lambda repeats: sp.brain.noise_ceiling(sp.brain.ncsnr(repeats), 3))(small.repeats)
    np.testing.assert_allclose(found, small.noise_ceiling(3), rtol=1e-5)


def test_responses_are_the_mean_of_the_repeats_that_are_there(small):
    np.testing.assert_allclose(small.responses, np.nanmean(small.repeats, axis=1))
    np.testing.assert_array_equal(small.n_repeats, np.where(np.arange(30) % 3, 3, 2))


def test_zscoring_undoes_what_a_session_did(small):
    scored = small.zscored()
    for session in (0, 1):
        trials = scored.repeats[scored.sessions == session]
        np.testing.assert_allclose(np.nanmean(trials, axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(np.nanstd(trials, axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(scored.responses, np.nanmean(scored.repeats, axis=1), atol=1e-6)
    gain, offset = np.array([2.0, 0.5])[small.sessions, None], np.array([-3.0, 8.0])[small.sessions, None]
    drifted = Recording(repeats=small.repeats * gain + offset, sessions=small.sessions)
    np.testing.assert_allclose(drifted.zscored().repeats, scored.repeats, atol=1e-6)
    averaged = Recording(responses=small.responses, sessions=np.arange(30) % 2).zscored()
    for session in (0, 1):
        np.testing.assert_allclose(averaged.responses[session::2].std(axis=0), 1, atol=1e-6)


def test_selection(small):
    rows = np.array([4, 2, 2])
    some = small.select(stimuli=rows, units=small.units["area"] == "IT")
    np.testing.assert_array_equal(some.responses, small.responses[rows][:, 2:])
    np.testing.assert_array_equal(some.repeats, small.repeats[rows][:, :, 2:])
    np.testing.assert_array_equal(some.stimuli, rows)
    np.testing.assert_array_equal(some.sessions, small.sessions[rows])
    assert some.units["area"].tolist() == ["IT", "IT"]


def test_reliable_units_are_kept(small):
    found = np.asarray(small.reliability(n_splits=5))
    kept = small.reliable(np.median(found), n_splits=5)
    np.testing.assert_array_equal(kept.responses, small.responses[:, found >= np.median(found)])


def test_redundant_units_are_reduced_to_one_each():
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat(np.arange(5), 6))
    curves = rng.normal(size=(200, 5))[:, kinds] * rng.uniform(0.1, 10, size=30) + rng.normal(size=30)
    recording = Recording(responses=curves + 1e-3 * rng.normal(size=curves.shape), units={"kind": kinds})
    reduced = recording.reduced(5, jax.random.key(1))
    assert sorted(reduced.units["kind"]) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(reduced.responses, recording.reduced(5, jax.random.key(1)).responses)
    copies = Recording(responses=np.repeat(curves[:, :2], 3, axis=1))
    with pytest.raises(ValueError, match="n must be at most the number of clusters that k-means"):
        copies.reduced(4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 3), min_size=1, max_size=40),
    st.floats(0.1, 0.9),
    st.integers(0, 2**31),
    st.data(),
)
def test_no_split_leaks(labels, share, seed, data):
    stimuli, images, same = np.array(labels).T
    recording = Recording(responses=np.arange(float(len(labels)))[:, None], stimuli=stimuli, images=images.astype(str))
    groups = recording.groups(same)
    # No group can be divided further: a walk along shared labels reaches all of it.
    reached = {0}
    while (
        more := {
            j for i in reached for j in range(len(labels)) if any(a == b for a, b in zip(labels[i], labels[j], strict=True))
        }
        - reached
    ):
        reached |= more
    assert set(np.flatnonzero(groups == groups[0])) == reached
    n_groups = groups.max() + 1
    if not 1 <= round(share * n_groups) < n_groups:
        with pytest.raises(ValueError, match=f"of the {n_groups} different stimuli"):
            recording.split(share, jax.random.key(seed), same)
        return
    train, test = recording.split(share, jax.random.key(seed), same)
    assert sorted([*train, *test]) == list(range(len(labels)))
    for each in (stimuli, images, same):
        assert not set(each[train]) & set(each[test])
    assert len(np.unique(groups[test])) == round(share * n_groups)


def test_folds_keep_a_stimulus_together():
    stimuli = np.repeat(np.arange(12), 2)
    recording = Recording(responses=np.random.default_rng(0).normal(size=(24, 2)), stimuli=stimuli)
    folds, _ = sp.assign_folds(24, 5, groups=recording.groups())
    assert all(len(np.unique(folds[stimuli == i])) == 1 for i in range(12))
    with pytest.raises(ValueError, match="between 2 and the number of groups, 12, got 13"):
        sp.assign_folds(24, 13, groups=recording.groups())


def test_rows_line_up_with_other_names():
    recording = Recording(responses=np.ones((3, 1)), images=["c.png", "a.png", "c.png"])
    assert recording.rows(["a.png", "b.png", "c.png"]).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"2 are not there, first c\.png"):
        recording.rows(["a.png"])
    with pytest.raises(ValueError, match="has no images"):
        Recording(responses=np.ones((3, 1))).rows(["a.png"])


def test_recordings_cannot_be_written_to(small):
    for array in (small.responses, small.repeats, small.stimuli, small.units["area"], small.sessions):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]
    with pytest.raises(TypeError):
        small.units["area"] = small.units["area"]


def holed(*at):
    repeats = np.random.default_rng(0).normal(size=(5, 2, 3))
    if at:
        repeats[at] = np.nan
    return repeats


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "responses or repeats must be given"),
        ({"responses": np.ones(3)}, r"axes \(stimuli, units\), none of them empty, got shape \(3,\)"),
        ({"responses": np.ones((0, 3))}, "none of them empty"),
        ({"repeats": np.ones((2, 3))}, r"axes \(stimuli, repeats, units\)"),
        ({"responses": np.ones((2, 3), complex)}, "responses must be real numbers, got complex128"),
        (
            {"responses": np.ones((2, 3)), "stimuli": ["a", "b", "c"]},
            r"stimuli must be .*axes of responses \(2, 3\) seem to be in another",
        ),
        (
            {"responses": np.ones((2, 3)), "stimuli": ["a"]},
            r"stimuli must be \(2,\), one for each row of responses, got \(1,\)\.",
        ),
        ({"responses": np.ones((2, 3)), "images": ["a"]}, r"images must be \(2,\)"),
        ({"responses": np.ones((2, 3)), "units": {"area": ["V4"]}}, r"units: area must be \(3,\)"),
        ({"responses": np.ones((2, 3)), "sessions": [1]}, r"sessions must be \(2,\), got \(1,\)"),
        ({"repeats": holed(), "sessions": np.ones((5, 3))}, r"sessions must be \(5,\) or \(5, 2\), got \(5, 3\)"),
        (
            {"repeats": np.ones((5, 2, 3)), "responses": np.arange(15.0).reshape(5, 3)},
            "responses must be the means of the repeats",
        ),
        ({"responses": np.ma.masked_equal([[1.0, 2.0]], 2)}, "responses must not be masked"),
        ({"repeats": holed(), "responses": np.ones((5, 2))}, r"responses must be \(5, 3\), as many"),
        (
            {"responses": holed(2, 0, 1)[:, 0], "stimuli": list("abcde")},
            r"responses must be finite .*stimulus c \(row 2\), unit 1",
        ),
        ({"repeats": np.where(holed() > 1, np.inf, 0)}, "repeats must be finite, or NaN where missing"),
        ({"repeats": holed(3, slice(None), 2)}, r"at least one for every stimulus and unit.*row 3\), unit 2"),
    ],
)
def test_bad_recordings(content, message):
    with pytest.raises(ValueError, match=message):
        Recording(**content)


def constant():
    repeats = holed()
    repeats[..., 1] = 4
    return repeats


@pytest.mark.parametrize(
    ("repeats", "act", "message"),
    [
        (holed(3, 0), lambda r: r.reliability(), r"at least two of every stimulus.*got 1: stimulus 3 \(row 3\), unit 0"),
        (holed(3, 0), lambda r: r.ncsnr(), "leave such out with select"),
        (constant(), lambda r: r.reliability(), "units must vary, but 1 are constant, first unit 1"),
        (constant(), lambda r: r.noise_ceiling(), "units must vary"),
        (constant(), lambda r: r.zscored(), "units must vary"),
        (constant(), lambda r: r.reduced(2), "units must vary"),
        (holed(), lambda r: r.reduced(4), "n must be between 1 and the number of units, 3, got 4"),
        (holed(), lambda r: r.reliable(1.5), "minimum must be at most the highest reliability"),
        (holed(), lambda r: r.select(units=[3]), "units must be indices below 3, got 3 to 3"),
        (holed(), lambda r: r.select(stimuli=[True]), r"stimuli must be a mask \(5,\) or integer indices"),
        (holed(), lambda r: r.select(units=np.zeros(3, bool)), "units must leave at least one, got none of 3"),
        (holed(), lambda r: r.noise_ceiling(0), "n must be at least one repeat, got 0"),
        (holed(), lambda r: r.groups([1]), r"same must be \(5,\)"),
        (holed(), lambda r: r.split(0.01), "test must leave some of the 5 different stimuli on both sides, got 0.01"),
    ],
)
def test_bad_use(repeats, act, message):
    with pytest.raises(ValueError, match=message):
        act(Recording(repeats=repeats))


def test_constant_in_a_session_and_averages_alone():
    responses = np.random.default_rng(0).normal(size=(6, 2))
    responses[3:, 1] = 2
    recording = Recording(responses=responses, sessions=list("aaabbb"))
    with pytest.raises(ValueError, match="1 are constant in session b, first unit 1"):
        recording.zscored()
    for ceiling in (recording.reliability, recording.ncsnr, recording.noise_ceiling):
        with pytest.raises(ValueError, match="has averaged responses only"):
            ceiling()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_units": 0}, "n_units must be at least 1"),
        ({"reliability": 0}, "reliability must be above 0 and at most 1"),
        ({"reliability": [0.5, 0.5]}, "reliability must be .*a number or"),
        ({"mixing": 65}, "mixing must be between 1 and n_features = 64, got 65"),
        ({"mixing": np.ones((3, 3))}, r"mixing must be \(64, 100\), features by units"),
    ],
)
def test_bad_simulations(arguments, message):
    with pytest.raises(ValueError, match=message):
        sp.brain.simulate(KEY, **arguments)


def test_a_session_without_a_label_is_refused():
    with pytest.raises(ValueError, match="sessions must be labels, got NaN for 1"):
        sp.brain.Recording(responses=np.ones((3, 2)), sessions=[0, 1, np.nan])

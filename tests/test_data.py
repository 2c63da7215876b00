import numpy as np
import pytest

from superpos import data


def test_arrays_come_back(tmp_path):
    a, b = np.arange(6.0).reshape(2, 3), np.ones((4, 5), np.float16)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "both.npz", a=a, b=b)
    np.savez(tmp_path / "one.npz", only=a)
    np.testing.assert_array_equal(data.load(f"{tmp_path}/a.npy"), a)
    np.testing.assert_array_equal(data.load(f"{tmp_path}/both.npz:b"), b)
    np.testing.assert_array_equal(data.load(f"{tmp_path}/one.npz"), a)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing.npy", FileNotFoundError, "missing.npy is not there"),
        ("text.npy", ValueError, "text.npy is not a .npy or .npz file"),
        ("empty.npy", ValueError, "empty.npy is not a .npy or .npz file"),
        ("objects.npy", ValueError, "objects.npy is not a .npy or .npz file of numbers"),
        ("words.npy", ValueError, "must hold real numbers"),
        ("both.npz", ValueError, "several arrays: name one as .*both.npz:KEY, KEY out of a, b"),
        ("both.npz:c", ValueError, "no array 'c'"),
        ("torn.npz:a", ValueError, "torn.npz is not a .npy or .npz file"),
    ],
)
def test_bad_files(tmp_path, path, error, message):
    (tmp_path / "text.npy").write_text("1, 2, 3")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.savez(tmp_path / "both.npz", a=np.ones(2), b=np.ones(2))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "both.npz").read_bytes()[:200])
    with pytest.raises(error, match=message):
        data.load(f"{tmp_path}/{path}")


def test_two_axes_are_left_alone():
    array = np.arange(6).reshape(2, 3)
    flat, groups = data.flatten(array)
    np.testing.assert_array_equal(flat, array)
    assert groups is None
    np.testing.assert_array_equal(data.flatten(array, ["units", "samples"])[0], array.T)


def test_further_axes_become_samples_of_a_group():
    array = np.arange(24).reshape(2, 3, 4)
    flat, groups = data.flatten(array)
    np.testing.assert_array_equal(flat[4], array[1, 1])
    np.testing.assert_array_equal(groups, [0, 0, 0, 1, 1, 1])
    flat, groups = data.flatten(array, ["units", "samples", "repeats"])
    np.testing.assert_array_equal(flat[5], array[:, 1, 1])
    np.testing.assert_array_equal(groups, np.repeat([0, 1, 2], 4))


def test_sides_that_name_their_axes_pair_the_same_samples():
    array = np.random.default_rng(0).normal(size=(5, 3, 4, 2))
    one, _ = data.flatten(array, ["samples", "time", "position", "units"])
    other, _ = data.flatten(np.swapaxes(array, 1, 2), ["samples", "position", "time", "units"])
    np.testing.assert_array_equal(one, other)


def test_fingerprint_follows_the_content(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    before = data.fingerprint(f"{tmp_path}/a.npz:a")
    assert before == data.fingerprint(f"{tmp_path}/a.npz")
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    assert before != data.fingerprint(f"{tmp_path}/a.npz:a")


@pytest.mark.parametrize("axes", [["samples"], ["samples", "neurons"], ["samples", "samples"], ["a", "b", "c"]])
def test_bad_axes(axes):
    with pytest.raises(ValueError, match="axes must name each of the 2 axes"):
        data.flatten(np.ones((2, 3)), axes)


def test_one_axis():
    with pytest.raises(ValueError, match=r"at least two axes, samples and units, got shape \(5,\)"):
        data.flatten(np.ones(5))

"""The sides of a comparison: pairing, the one split, folds, and what is refused."""

import json

import jax
import numpy as np
import pytest

import superpos as sp
from superpos.activations import Side, divide, recorded


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3, 4)).astype(np.float32), rng.normal(size=(20, 3, 5)).astype(np.float32)


def test_what_fits_and_what_is_scored_are_all_rows_once(arrays):
    x, y = arrays
    divided = divide({"a": Side(x), "b": Side(y)}, fitted=("a",), split=0.4, folds=3)
    assert divided.scored["a"].shape == (12, 3, 4)
    assert divided.training["b"].shape == (24, 5)
    np.testing.assert_array_equal(divided.scored["a"], x[divided.images])
    rows = np.concatenate([divided.scored["b"].reshape(-1, 5), divided.training["b"]])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(y.reshape(-1, 5), axis=0))
    assert np.bincount(divided.folds).tolist() == [4, 4, 4]


def test_without_views_to_fit_every_row_is_scored(arrays):
    divided = divide({"a": Side(arrays[0]), "b": Side(arrays[1])}, folds=4)
    assert len(divided.images) == 20
    assert divided.training["a"].shape == (0, 4)


def test_groups_straddle_neither_the_split_nor_folds(arrays):
    groups = np.arange(20) // 2
    divided = divide({"a": Side(arrays[0]), "b": Side(arrays[1])}, fitted=("b",), folds=2, groups=groups)
    trained = np.setdiff1d(np.arange(20), divided.images)
    assert not set(groups[trained]) & set(groups[divided.images])
    for group in np.unique(divided.groups):
        assert len(set(divided.folds[divided.groups == group])) == 1


def test_training_rows_come_image_by_image_in_one_random_order(arrays):
    x, y = arrays
    others = {"a": x + 1, "b": y + 1}
    divided = divide({"a": Side(x, train=others["a"]), "b": Side(y, train=others["b"])}, fitted=("a", "b"), folds=2)
    assert len(divided.images) == 20
    images = divided.training["a"].reshape(20, 3, 4)
    order = [int(np.flatnonzero((others["a"] == image).all(axis=(1, 2)))[0]) for image in images]
    assert sorted(order) == list(range(20)) != order
    np.testing.assert_array_equal(divided.training["b"].reshape(20, 3, 5), others["b"][order])


def test_sides_pair_by_name_with_the_first(arrays):
    x, y = arrays
    names = [f"{i}.png" for i in range(20)]
    order = np.random.default_rng(1).permutation(20)[:15]
    divided = divide(
        {"a": Side(x, names=names), "b": Side(y[order], names=[names[i] for i in order]), "c": Side(x + 1)}, folds=3
    )
    assert divided.dropped == {"a": 5, "b": 0, "c": 5}
    np.testing.assert_array_equal(divided.scored["a"], x[np.sort(order)])
    np.testing.assert_array_equal(divided.scored["b"], y[np.sort(order)])
    np.testing.assert_array_equal(divided.scored["c"], x[np.sort(order)] + 1)


def test_sides_pair_by_name_whichever_has_names(arrays):
    x, y = arrays
    names = [f"{i}.png" for i in range(20)]
    sides = {"a": Side(x), "b": Side(x, names=names), "c": Side(y[::-1], names=names[::-1])}
    divided = divide(sides, folds=2)
    np.testing.assert_array_equal(divided.scored["a"], divided.scored["b"])
    np.testing.assert_array_equal(divided.scored["c"], y)


def test_copies_join_the_groups_that_they_are_in(arrays):
    hashes = [f"{i // 2}" for i in range(20)]  # each image twice
    groups = np.repeat(np.arange(5), [1, 3, 4, 8, 4])  # straddled by the first copies
    divided = divide({"a": Side(arrays[0], hashes=hashes)}, fitted=("a",), groups=groups, folds=2)
    trained = np.setdiff1d(np.arange(20), divided.images)
    assert not {hashes[i] for i in trained} & {hashes[i] for i in divided.images}
    assert not {groups[i] for i in trained} & {groups[i] for i in divided.images}


def test_flattened_or_sparse_copies_of_scored_samples_do_not_train(arrays):
    x = np.maximum(arrays[0] - 0.3, 0)
    for train in (x, x.reshape(-1, 4), np.concatenate([x.reshape(-1, 4)[:10], 1 + x.reshape(-1, 4)])):
        with pytest.raises(ValueError, match="a_train must hold samples that are not scored"):
            divide({"a": Side(x, train=train)}, fitted=("a",))


def test_given_folds_leave_rows_out(arrays):
    ids = np.arange(20) % 3 - 1
    divided = divide({"a": Side(arrays[0]), "b": Side(arrays[1])}, folds=ids)
    np.testing.assert_array_equal(divided.images, np.flatnonzero(ids >= 0))
    np.testing.assert_array_equal(divided.folds, ids[ids >= 0])
    assert divided.n_folds == 2


def test_the_split_is_that_of_a_recording():
    """The one split: a recording's own method divides its stimuli alike for the same key."""
    recording = sp.brain.Recording(responses=np.random.default_rng(0).normal(size=(30, 4)))
    key = jax.random.key(3)
    fitted, scored = sp.folds.split(np.arange(30), 0.4, key)
    train, test = recording.split(0.6, key)
    np.testing.assert_array_equal(np.sort(fitted), train)
    np.testing.assert_array_equal(scored, test)


def test_features_go_with_the_samples_that_fit(arrays):
    x, y = arrays
    truth = np.arange(60, dtype=np.float32).reshape(20, 3, 1)
    divided = divide({"a": Side(x, truth=truth), "b": Side(y)}, fitted=("a",), folds=2)
    rows = x.reshape(60, 4)[divided.truth["a"].ravel().astype(int)]
    np.testing.assert_array_equal(divided.training["a"], rows)


def test_files_tell_their_images(arrays, tmp_path):
    x, y = arrays
    for name, array in (("x", x), ("y", y)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "layer.npy", array)
    sides = {name: Side(str(tmp_path / name / "layer.npy")) for name in ("x", "y")}

    def tell(name, **changes):
        told = {
            "images": [f"{i}.png" for i in range(20)],
            "image_sha256": [f"{i}" for i in range(20)],
            "position": 3,
            "seed": 0,
        }
        told["arrays"] = {"layer": {"file": "layer.npy", "grid": changes.pop("grid", [6, 6])}}
        (tmp_path / name / "manifest.json").write_text(json.dumps({**told, **changes}))

    pairs = [("x", "y")]
    tell("x")
    divide(sides, pairs=pairs)  # of the other nothing is known
    tell("y")
    divide(sides, pairs=pairs)
    for changes, message in (
        ({"image_sha256": [f"{i}" for i in range(1, 21)]}, "x and y must be of the same images, but 20 of 20"),
        ({"seed": 1}, r"must be of the same positions .* has \(3, 0, \(6, 6\)\) and .* \(3, 1, \(6, 6\)\)"),
        ({"grid": [3, 3]}, "must be of the same positions"),
        ({"images": ["a"]}, r"y: .* has 20 rows, but .* names 1 images"),
    ):
        tell("y", **changes)
        with pytest.raises(ValueError, match=message):
            divide(sides, pairs=pairs)
    tell("y")
    np.save(tmp_path / "others.npy", x + 1)
    with pytest.raises(
        ValueError, match=r"x_train must hold images that are not scored, got .*layer\.npy, which is scored too"
    ):
        divide({"x": Side(sides["x"].x, train=f"{tmp_path}/x/../x/layer.npy"), "y": sides["y"]}, fitted=("x",))
    told = json.loads((tmp_path / "x" / "manifest.json").read_text())
    told["arrays"]["layer"]["file"] = "others.npy"
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"others\.npy has 20 that are"):
        divide({"x": Side(sides["x"].x, train=str(tmp_path / "others.npy")), "y": sides["y"]}, fitted=("x",))


REFUSED = [
    (lambda x, y: {"a": Side(x), "b": Side(y[:19])}, {}, "a and b must have the same samples, got 20 and 19"),
    (lambda x, y: {"a": Side(x), "b": Side(np.full_like(y, np.nan))}, {}, "b must be finite, but b holds 300 NaN"),
    (lambda x, y: {"a": Side(x), "b": Side(y.astype(str))}, {}, "b must hold real numbers"),
    (lambda x, y: {"a": Side(x), "b": Side(y[:, :0])}, {}, "b must not be empty"),
    (lambda x, y: {"a": Side(x[:, 0, 0]), "b": Side(y)}, {}, "a: activations must have at least two axes"),
    (lambda x, y: {"a": Side("none.npy"), "b": Side(y)}, {}, "a: .*none.npy"),
    (lambda x, y: {"a": Side(""), "b": Side(y)}, {}, "a names no file"),
    (lambda x, y: {"a": Side(x, names=["i"]), "b": Side(y)}, {}, "names of a must be one a row, 20, got 1"),
    (lambda x, y: {"a": Side(x, names=["i"] * 20), "b": Side(y, names=range(20))}, {}, "names of a must hold each image once"),
    (lambda x, y: {"a": Side(x, names=range(20)), "b": Side(y, names=range(20, 40))}, {}, "must have images in common"),
    (
        lambda x, y: {"a": Side(x, train=x), "b": Side(y)},
        {},
        "a_train must hold samples that are not scored, but 60 of them are",
    ),
    (lambda x, y: {"a": Side(x, train=x[..., :2]), "b": Side(y)}, {}, "a_train must have 4 units, got 2"),
    (lambda x, y: {"a": Side(x), "b": Side(y)}, {"split": 1.0, "fitted": ("a",)}, "split must be above 0 and below 1"),
    (
        lambda x, y: {"a": Side(x), "b": Side(y)},
        {"pool": "means"},
        r"pool must be mean, max or None, got 'means' \(near it: mean",
    ),
    (lambda x, y: {"a": Side(x), "b": Side(y)}, {"groups": np.arange(3)}, "groups must be integers, one a row of a"),
    (
        lambda x, y: {"a": Side(x), "b": Side(y)},
        {"folds": np.zeros(3, int)},
        r"folds must be one a row, \(20,\), got shape \(3,\)",
    ),
    (
        lambda x, y: {"a": Side(x), "b": Side(y[:, :2])},
        {"pairs": [("a", "b")]},
        "a and b must have the same positions, got 3 and 2",
    ),
    (lambda x, y: {"a": Side(x, truth=y[:3]), "b": Side(y)}, {}, "truth of a must be of its rows and positions"),
    (lambda x, y: {"a": Side(x)}, {"folds": None}, "folds must be a number of folds, or the fold of each row"),
    (lambda x, y: {"a": Side(x)}, {"folds": np.full(20, -1)}, "folds must leave some rows to be scored"),
    (lambda x, y: {}, {}, "sides must hold at least one side"),
]


@pytest.mark.parametrize(("sides", "settings", "message"), REFUSED)
def test_what_is_refused_is_named(arrays, sides, settings, message):
    with pytest.raises(ValueError, match=message):
        divide(sides(*arrays), **settings)


def test_swapped_axes_are_suggested(arrays):
    x = arrays[0][:, 0]
    with pytest.raises(ValueError, match="Try axes of b: units,samples"):
        divide({"a": Side(x), "b": Side(x.T)})
    divide({"a": Side(x), "b": Side(x.T, axes=("units", "samples"))})


def test_a_stimulus_of_one_repeat_leaves_no_ceiling():
    """Reliability from the others would be that of their means of several."""
    repeats = np.random.default_rng(0).normal(size=(20, 3, 2)) + np.arange(20)[:, None, None]
    assert recorded(sp.brain.Recording(repeats=repeats)).reliability.shape == (2,)
    with pytest.raises(ValueError, match="minimum must be at most the highest reliability"):
        recorded(sp.brain.Recording(repeats=repeats), 0.9999999)
    repeats[4, 1:] = np.nan
    assert recorded(sp.brain.Recording(repeats=repeats)).reliability is None

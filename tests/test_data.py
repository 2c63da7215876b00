import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def store(path, array, driver="zarr3", chunk=4):
    import tensorstore

    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}}
    layout = tensorstore.ChunkLayout(chunk_shape=[chunk, *array.shape[1:]])
    made = tensorstore.open(spec, create=True, dtype=array.dtype, shape=array.shape, chunk_layout=layout).result()
    made.write(array).result()
    return str(path)


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_zarr_arrays_stay_on_disk_and_slice_like_numpy(tmp_path, driver):
    array = np.arange(60, dtype=np.float16).reshape(10, 3, 2)
    found = data.load(store(tmp_path / "a.zarr", array, driver))
    assert (found.shape, found.dtype, found.ndim, len(found)) == (array.shape, array.dtype, 3, 10)
    np.testing.assert_array_equal(found, array)
    for rows in (slice(3, 9), slice(None), slice(-2, None), slice(8, 99), slice(5, 2)):
        np.testing.assert_array_equal(found[rows], array[rows])
    for mine, theirs in zip(data.flatten(found), data.flatten(array), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_bad_zarr(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "group.zarr").mkdir()
    (tmp_path / "group.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    for name in ("empty", "group"):
        with pytest.raises(ValueError, match=rf"{name}.zarr is not a Zarr array \(of a group, name one of its arrays"):
            data.load(f"{tmp_path}/{name}.zarr")
    with pytest.raises(ValueError, match=r"waves.zarr must hold real numbers, got an array of complex64"):
        data.load(store(tmp_path / "waves.zarr", np.ones((2, 2), np.complex64)))
    with pytest.raises(ValueError, match="without steps"):
        data.load(store(tmp_path / "a.zarr", np.ones((2, 2))))[::2]


def test_fingerprint_of_a_folder(tmp_path):
    array = np.ones((8, 2))
    one, other = (data.fingerprint(store(tmp_path / name, array)) for name in ("a.zarr", "b.zarr"))
    assert one == other != ""
    array[7, 1] = 0
    assert data.fingerprint(store(tmp_path / "c.zarr", array)) != one
    assert data.fingerprint(f"{tmp_path}/missing.npy") == ""


def numbered(n_rows, n_units=2):
    """Rows that say which they are."""
    return np.arange(n_rows, dtype=np.float32)[:, None] + np.zeros(n_units, np.float32)


def taken(batches, n, start=0):
    return np.stack([batch for batch, _ in zip(batches(start), range(n), strict=False)])


SIZES = {"block_size": 8, "buffer_size": 64}


@settings(max_examples=30, deadline=None)
@given(n_rows=st.integers(5, 300), batch_size=st.integers(1, 64), block_size=st.integers(1, 20), start=st.integers(0, 40))
def test_each_epoch_has_every_row_once_and_any_batch_is_found_by_its_number(n_rows, batch_size, block_size, start):
    batch_size = min(batch_size, n_rows)
    batches = data.Batches(numbered(n_rows), batch_size, block_size=block_size, buffer_size=64)
    n = 2 * n_rows // batch_size + 1
    served = taken(batches, n)
    rows = served[:, :, 0].reshape(-1)
    for epoch in range(2):  # a batch may hold the end of one and the beginning of the next
        np.testing.assert_array_equal(np.sort(rows[epoch * n_rows : (epoch + 1) * n_rows]), np.arange(n_rows))
    start = min(start, n - 1)
    np.testing.assert_array_equal(taken(batches, n - start, start), served[start:])


def test_batches_mix_distant_rows_anew_each_epoch():
    batches = data.Batches(numbered(4096), 64, block_size=16, buffer_size=1024)
    blocks = taken(batches, 128)[:, :, 0] // 16
    # A buffer holds 64 blocks: 64 random rows of it are of 64 (1 - 1/e) = 40 of them, neighbours seldom among them.
    distinct = [len(np.unique(batch)) for batch in blocks]
    assert min(distinct) > 30
    first, second = (set(np.unique(part)) for part in (blocks[:16], blocks[64:80]))  # the first buffer of either epoch
    assert len(first) == len(second) == 64
    assert len(first & second) < 32  # 16 are expected of 256 blocks
    assert not np.array_equal(taken(batches, 1), taken(data.Batches(numbered(4096), 64, seed=1, **SIZES), 1))


def test_buffers_are_of_equal_size_so_that_none_holds_a_single_block():
    batches = data.Batches(numbered(9 * 8), 8, **SIZES)  # one block more than a buffer takes
    assert min(len(np.unique(batch)) for batch in taken(batches, 9)[:, :, 0] // 8) > 1


def test_sources_of_all_kinds_are_one_after_the_other(tmp_path):
    whole = numbered(96)
    np.save(tmp_path / "a.npy", whole[:24].reshape(4, 6, 2).astype(np.float16))
    np.save(tmp_path / "f.npy", np.asfortranarray(whole[24:48].reshape(8, 3, 2)))
    zarr = store(tmp_path / "b.zarr", whole[48:80].reshape(4, 4, 2, 2), chunk=1)
    part = np.load(tmp_path / "f.npy", mmap_mode="r")
    sources = [f"{tmp_path}/a.npy", part[:3], part[3:], data.load(zarr), whole[80:].astype(np.int32)]
    batches = data.Batches(sources, 12, block_size=5, buffer_size=40)
    assert (batches.n_rows, batches.n_units) == (96, 2)
    served = taken(batches, 8)
    assert served.dtype == np.float32
    np.testing.assert_array_equal(np.sort(served[:, :, 0].reshape(-1)), np.arange(96))
    np.testing.assert_array_equal(served[..., 0], served[..., 1])


def test_changes_in_a_copy_on_write_map_are_kept(tmp_path):
    np.save(tmp_path / "a.npy", numbered(32))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    mapped[:] += 100
    for _ in range(2):
        assert taken(data.Batches(mapped, 8, **SIZES), 4).min() == 100


def test_bad_values_are_named_with_file_and_row(tmp_path):
    array = numbered(40)
    array[[21, 23], 1] = np.nan
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"a.npy has NaN or infinity, as float32, in 2 of its rows 16 to 23, first in row 21"):
        taken(data.Batches(f"{tmp_path}/a.npy", 4, **SIZES), 10)
    with pytest.raises(ValueError, match=r"sources\[0\] has NaN or infinity, as float16"):
        taken(data.Batches(1e5 + numbered(8), 4, dtype=np.float16, **SIZES), 1)
    with pytest.raises(ValueError, match="dtype must be a floating one, got int64"):
        data.Batches(numbered(8), 4, dtype=np.int64, **SIZES)


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        (numbered(8), {"batch_size": 9}, "batch_size must be at most the number of rows, 8, got 9"),
        (numbered(8), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (numbered(8), {"block_size": 65}, "buffer_size must be at least as large as batch_size=4 and block_size=65, got 64"),
        (numbered(8), {"seed": -1}, "seed must be at least 0, got -1"),
        ([numbered(8), numbered(8, 3)], {}, r"as many units, got \[2, 3\]"),
        ([], {}, "one or more arrays"),
        (np.ones(8), {}, r"sources\[0\] must have at least two axes, rows and units, got shape \(8,\)"),
        (np.array([["a"]]), {}, "must hold real numbers"),
        ([3], {}, r"must be arrays or paths of them, but sources\[0\] is a int"),
    ],
)
def test_bad_sources(sources, settings, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(sources, **{"batch_size": 4, **SIZES, **settings})

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest

from superpos import brain

V4 = Path(__file__).parents[2] / "shared" / "data" / "v4"
RNG = np.random.default_rng(0)


def write_images(path, names, content=str.encode):
    """Names are all that most readers look at: the files hold their own names."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, content(name))
    else:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content(name))
    return path


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


# Macaque V4


@pytest.mark.parametrize(("session", "n_images", "n_units"), [(201025, 1200, 89), (210225, 1200, 55), (210325, 640, 50)])
def test_real_v4_sessions(session, n_images, n_units):
    if not (V4 / f"images_{session}.zip").exists():
        pytest.skip("needs the folder data/v4 with the recordings of macaque V4")
    recording = brain.load_v4(V4, session)
    averaged = np.load(V4 / f"responses_{session}.npy")
    assert recording.responses.shape == (n_images, n_units)
    np.testing.assert_allclose(recording.responses, averaged.T, atol=1e-6)  # the mean of the repeats, where there are any
    assert recording.images[[0, -1]].tolist() == ["image0001.jpg", f"image{n_images:04d}.jpg"]
    assert recording.stimuli[0] == f"{session}/image0001"
    assert len(np.unique(recording.groups(brain.image_hashes(recording)))) == n_images  # no image twice


def test_real_v4_ceilings_agree():
    if not (V4 / "responses_raw_210325.npy").exists():
        pytest.skip("needs the folder data/v4 with the single repeats of session 210325")
    recording = brain.load_v4(V4, 210325)
    assert np.bincount(recording.n_repeats).tolist() == [0, 0, 0, 0, 0, 0, 36, 261, 294, 45, 4]
    variances = np.asarray(recording.noise_ceiling())
    np.testing.assert_allclose(variances.mean(), 0.744, atol=1e-3)
    halves = recording.select(units=np.arange(0, 50, 3)).reliability(n_splits=30)
    np.testing.assert_allclose(halves, variances[::3], atol=0.02)  # another estimator of the same thing


@pytest.fixture
def v4(tmp_path):
    """A session of the same layout: 4 units, 12 images, 3 repeats, and its arrays."""
    raw = RNG.poisson(3, size=(4, 12, 3)).astype(np.float32)
    raw[:, ::2, 2] = np.nan
    averaged = np.nanmean(raw, axis=2)
    write_images(tmp_path / "images_123.zip", [f"image{i:04d}.jpg" for i in range(12, 0, -1)])
    write(tmp_path / "responses_raw_123.npy", raw)
    write(tmp_path / "responses_123.npy", averaged)
    return tmp_path, raw, averaged


def test_v4_layouts(v4, tmp_path):
    folder, raw, averaged = v4
    recording = brain.load_v4(folder, 123)
    np.testing.assert_array_equal(recording.repeats, raw.transpose(1, 2, 0))
    np.testing.assert_allclose(recording.responses, averaged.T, rtol=1e-6)
    np.testing.assert_array_equal(recording.units["area"], ["V4"] * 4)
    assert recording.images.tolist() == [f"image{i:04d}.jpg" for i in range(1, 13)]
    assert len(set(brain.image_hashes(recording))) == 12
    release = tmp_path / "release"
    (release / "images").mkdir(parents=True)
    write_images(release / "images/images_123.zip", [f"images_123/image{i:04d}.jpg" for i in range(1, 13)])
    write(release / "responses_repeat_averaged/responses_123.npy", averaged)
    other = brain.load_v4(release, "123")
    assert other.repeats is None
    np.testing.assert_allclose(other.responses, recording.responses, rtol=1e-6)
    np.testing.assert_array_equal(other.stimuli, recording.stimuli)
    write(release / "responses_raw/responses_123.npy", raw)
    np.testing.assert_array_equal(brain.load_v4(release, 123).repeats, recording.repeats)


def test_bad_v4(v4):
    folder, raw, _ = v4
    with pytest.raises(FileNotFoundError, match=r"has no images_124\.zip or images/images_124\.zip"):
        brain.load_v4(folder, 124)
    write(folder / "responses_raw_123.npy", raw.transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"image for each of 4 stimuli, but it has 12; the axes .* in another order"):
        brain.load_v4(folder, 123)
    write(folder / "responses_raw_123.npy", raw.transpose(2, 1, 0))
    with pytest.raises(ValueError, match=r"the units and images of responses_123\.npy, \(4, 12\), got \(3, 12\)"):
        brain.load_v4(folder, 123)
    write(folder / "responses_raw_123.npy", raw[:, 0])
    with pytest.raises(ValueError, match=r"must have axes units,stimuli,repeats, got shape \(4, 3\)"):
        brain.load_v4(folder, 123)
    write(folder / "responses_raw_123.npy", raw)
    write_images(folder / "images_123.zip", [f"image{i:04d}.jpg" for i in range(1, 13) if i != 5])
    with pytest.raises(ValueError, match=r"each of 12 stimuli, but image0005\.jpg is missing"):
        brain.load_v4(folder, 123)
    write_images(folder / "images_123.zip", [f"image{i:04d}.jpg" for i in range(1, 13) if i != 5] + ["maskedimage5.jpg"])
    with pytest.raises(ValueError, match=r"image0005\.jpg is missing"):
        brain.load_v4(folder, 123)
    write_images(folder / "images_123.zip", [f"image{i:04d}.jpg" for i in range(1, 13)] + ["other/image5.jpg"])
    with pytest.raises(ValueError, match=r"one image a number, but image0005\.jpg and other/image5\.jpg have the same"):
        brain.load_v4(folder, 123)


# Natural Scenes Dataset


def test_nsd_layout(tmp_path):
    betas, ids = RNG.normal(size=(5, 7)).astype(np.float32), np.array([262145, 9, 524286, 30, 4])
    write(tmp_path / "subj2.npy", betas)
    write(tmp_path / "subj2_coco_IDs.npy", ids)
    recording = brain.load_nsd(tmp_path, 2)
    np.testing.assert_array_equal(recording.responses, betas)
    np.testing.assert_array_equal(recording.stimuli, ids)
    np.testing.assert_array_equal(recording.units["subject"], [2] * 7)
    assert recording.images is None
    images = write_images(tmp_path / "images", [f"{i}.jpg" for i in (1, 262145, 524286, 30, 4)] + ["000000000009.jpg"])
    recording = brain.load_nsd(tmp_path, 2, images)
    assert recording.images.tolist() == ["262145.jpg", "000000000009.jpg", "524286.jpg", "30.jpg", "4.jpg"]
    trials = RNG.normal(size=(5, 3, 7))
    trials[1, 2] = np.nan
    write(tmp_path / "subj2.npy", trials)
    np.testing.assert_array_equal(brain.load_nsd(tmp_path, 2).n_repeats, [3, 2, 3, 3, 3])
    write(tmp_path / "subj2.npy", trials.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"\(images, repeats, voxels\), .* three times, got \(5, 7, 3\)"):
        brain.load_nsd(tmp_path, 2)


def test_bad_nsd(tmp_path):
    betas = RNG.normal(size=(5, 7))
    write(tmp_path / "subj2.npy", betas.T)
    write(tmp_path / "subj2_coco_IDs.npy", np.arange(5))
    with pytest.raises(ValueError, match=r"\(images, voxels\) for 5 COCO ids, got \(7, 5\): its axes seem"):
        brain.load_nsd(tmp_path, 2)
    write(tmp_path / "subj2.npy", betas)
    images = write_images(tmp_path / "images", ["0.jpg", "1.jpg", "2.jpg", "002.jpg"])
    with pytest.raises(ValueError, match=r"one for each stimulus, but .* has 2 for 2"):
        brain.load_nsd(tmp_path, 2, images)
    (images / "002.jpg").rename(images / "3.jpg")
    with pytest.raises(ValueError, match="has 0 for 4"):
        brain.load_nsd(tmp_path, 2, images)
    betas[3, 4] = np.nan
    write(tmp_path / "subj2.npy", betas)
    with pytest.raises(ValueError, match=r"responses must be finite .*stimulus 3 \(row 3\), unit 4"):
        brain.load_nsd(tmp_path, 2)
    write(tmp_path / "subj2_coco_IDs.npy", np.arange(5.0))
    with pytest.raises(ValueError, match=r"subj2_coco_IDs\.npy must hold integers, got float64"):
        brain.load_nsd(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"has no subj3\.npy"):
        brain.load_nsd(tmp_path, 3)


@pytest.fixture
def algonauts(tmp_path):
    """Subject 1 with 4 images, 3 vertices on the left and 2 on the right."""
    folder = tmp_path / "subj01"
    left, right = (RNG.normal(size=(4, n)).astype(np.float32) for n in (3, 2))
    write(folder / "training_split/training_fmri/lh_training_fmri.npy", left)
    write(folder / "training_split/training_fmri/rh_training_fmri.npy", right)
    write(folder / "roi_masks/lh.floc-faces_challenge_space.npy", np.array([0, 5, 1]))
    write(folder / "roi_masks/rh.floc-faces_challenge_space.npy", np.array([2.0, 0.0]))
    names = [f"train-{i + 1:04d}_nsd-{nsd:05d}.png" for i, nsd in enumerate((13, 27, 2, 72999))]
    write_images(folder / "training_split/training_images", names)
    return tmp_path, left, right


def test_algonauts_layout(algonauts):
    folder, left, right = algonauts
    recording = brain.load_algonauts(folder, 1)
    np.testing.assert_array_equal(recording.responses, np.hstack([left, right]))
    assert recording.stimuli.tolist() == ["nsd-00013", "nsd-00027", "nsd-00002", "nsd-72999"]
    assert recording.images[2] == "train-0003_nsd-00002.png"
    assert recording.units["hemisphere"].tolist() == ["lh"] * 3 + ["rh"] * 2
    assert recording.units["floc-faces"].tolist() == ["", "aTL-faces", "OFA", "FFA-1", ""]
    assert set(recording.units) == {"subject", "hemisphere", "floc-faces"}
    assert recording.select(units=recording.units["floc-faces"] == "OFA").responses.shape == (4, 1)


def test_bad_algonauts(algonauts):
    folder, _, right = algonauts
    mask = folder / "subj01/roi_masks/rh.floc-faces_challenge_space.npy"
    write(mask, np.array([6, 0]))
    with pytest.raises(ValueError, match=r"rh\.floc-faces_challenge_space\.npy must be \(2,\), 0 to 5, got \(2,\) up to 6"):
        brain.load_algonauts(folder, 1)
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"lh\.floc-faces_challenge_space\.npy is there without that of the other"):
        brain.load_algonauts(folder, 1)
    write(mask, np.array([2, 0]))
    fmri = folder / "subj01/training_split/training_fmri/rh_training_fmri.npy"
    write(fmri, right[:3])
    with pytest.raises(ValueError, match="as many images as the left hemisphere, 4, got 3"):
        brain.load_algonauts(folder, 1)
    write(fmri, right)
    next((folder / "subj01/training_split/training_images").glob("train-0002*")).unlink()
    with pytest.raises(ValueError, match=r"each of 4 stimuli, but train-0002_nsd-\*\.png is missing"):
        brain.load_algonauts(folder, 1)
    with pytest.raises(FileNotFoundError, match="subj02"):
        brain.load_algonauts(folder, 2)


# Brain-Score


@pytest.fixture
def assembly():
    """Three stimuli, two presented twice and one thrice, by four neuroids."""
    import xarray

    values = RNG.normal(size=(7, 4))
    presentations = {"image_id": list("babcacc"), "repetition": [0, 1, 1, 0, 0, 2, 1]}
    neuroids = {"neuroid_id": ["n1", "n2", "n3", "n4"], "region": ["V4", "V4", "IT", "IT"], "animal": ["Chabo"] * 4}
    coords = {name: ("presentation", labels) for name, labels in presentations.items()}
    coords |= {name: ("neuroid", labels) for name, labels in neuroids.items()}
    return xarray.DataArray(values, coords=coords, dims=("presentation", "neuroid"), name="dicarlo.Test")


def save(assembly, path):
    assembly.to_netcdf(path, engine="scipy")
    return path


def test_brainscore_layout(assembly, tmp_path):
    recording = brain.load_brainscore(save(assembly, tmp_path / "a.nc"))
    assert recording.stimuli.tolist() == ["a", "b", "c"]
    assert recording.n_repeats.tolist() == [2, 2, 3]
    values = assembly.values
    np.testing.assert_array_equal(recording.repeats[0, :2], values[[4, 1]])
    np.testing.assert_array_equal(recording.repeats[1, :2], values[[0, 2]])
    np.testing.assert_array_equal(recording.repeats[2], values[[3, 6, 5]])
    assert np.isnan(recording.repeats[:2, 2]).all()
    assert recording.units["region"].tolist() == ["V4", "V4", "IT", "IT"]
    assert recording.units["neuroid_id"].tolist() == ["n1", "n2", "n3", "n4"]


def test_brainscore_axes_and_time(assembly, tmp_path):
    expected = brain.load_brainscore(save(assembly, tmp_path / "a.nc"))
    single = brain.load_brainscore(save(assembly.expand_dims("time_bin").T, tmp_path / "single.nc"))
    np.testing.assert_array_equal(single.repeats, expected.repeats)
    import xarray

    several = xarray.concat([assembly, assembly * 2], "time_bin")
    path = save(several.rename(image_id="stimulus_id"), tmp_path / "several.nc")
    np.testing.assert_array_equal(brain.load_brainscore(path, time_bin=1).repeats, 2 * expected.repeats)
    with pytest.raises(ValueError, match=r"time_bin must be one of 0 to 1, for .*several\.nc has 2, got None"):
        brain.load_brainscore(path)
    counts = brain.load_brainscore(save(assembly.round().astype("int32")[[0, 1, 3]], tmp_path / "counts.nc"))
    assert counts.repeats is None
    np.testing.assert_array_equal(counts.responses, np.round(assembly.values[[1, 0, 3]]))


def test_brainscore_images(assembly, tmp_path):
    path = save(assembly, tmp_path / "a.nc")
    images = write_images(tmp_path / "stimuli", ["a.png", "b.png", "c.png"])
    assert brain.load_brainscore(path, images=images).images.tolist() == ["a.png", "b.png", "c.png"]
    other = write_images(tmp_path / "other", ["im1.png", "im2.png", "im3.png"])
    with pytest.raises(ValueError, match="has 0 for a"):
        brain.load_brainscore(path, images=other)
    table = tmp_path / "stimuli.csv"
    table.write_text("stimulus_id,filename,category\nc,im1.png,face\nb,im2.png,car\na,im3.png,car\n")
    found = brain.load_brainscore(path, images=other, stimulus_set=table)
    assert found.images.tolist() == ["im3.png", "im2.png", "im1.png"]
    table.write_text("stimulus_id,filename\na,im3.png\n")
    with pytest.raises(ValueError, match=r"must name all stimuli, but .* lacks 2, first b"):
        brain.load_brainscore(path, images=other, stimulus_set=table)
    table.write_text("id,filename\na,im3.png\n")
    with pytest.raises(ValueError, match="must have columns stimulus_id"):
        brain.load_brainscore(path, images=other, stimulus_set=table)


def test_bad_brainscore(assembly, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"none\.nc is not there"):
        brain.load_brainscore(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("text")
    with pytest.raises(ValueError, match=r"text\.nc is not a netCDF file"):
        brain.load_brainscore(tmp_path / "text.nc")
    (tmp_path / "four.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"four\.nc is netCDF-4, .*pip install h5netcdf"):
        brain.load_brainscore(tmp_path / "four.nc")
    with pytest.raises(
        ValueError, match="must have dimensions presentation, neuroid and perhaps time_bin, got presentation, unit"
    ):
        brain.load_brainscore(save(assembly.rename(neuroid="unit"), tmp_path / "dimensions.nc"))
    with pytest.raises(ValueError, match="must have a coordinate stimulus_id or image_id, got repetition"):
        brain.load_brainscore(save(assembly.drop_vars("image_id"), tmp_path / "coordinates.nc"))
    with pytest.raises(ValueError, match=r"two\.nc is not an assembly, one variable in netCDF"):
        brain.load_brainscore(save(assembly.to_dataset(name="a").assign(b=assembly), tmp_path / "two.nc"))


def test_netcdf_4_where_it_can_be_read(assembly, tmp_path):
    pytest.importorskip("h5netcdf")
    assembly.to_netcdf(tmp_path / "four.nc", engine="h5netcdf")
    expected = brain.load_brainscore(save(assembly, tmp_path / "three.nc"))
    np.testing.assert_array_equal(brain.load_brainscore(tmp_path / "four.nc").repeats, expected.repeats)


# Arrays


@pytest.mark.parametrize("axes", ["stimuli,units", "units, stimuli", ("repeats", "units", "stimuli"), "stimuli,repeats,units"])
def test_arrays_in_any_order_of_axes(axes, tmp_path):
    from scipy.io import savemat

    names = axes.replace(" ", "").split(",") if isinstance(axes, str) else axes
    repeats = RNG.normal(size=(6, 3, 4))
    stored = repeats if len(names) == 3 else repeats.mean(axis=1)
    standard = [name for name in ("stimuli", "repeats", "units") if name in names]
    stored = np.transpose(stored, [standard.index(name) for name in names])
    np.save(tmp_path / "a.npy", stored)
    np.savez(tmp_path / "a.npz", first=stored, second=0)
    savemat(tmp_path / "a.mat", {"first": stored, "second": "text"})
    for path in ("a.npy", "a.npz:first", "a.mat:first"):
        recording = brain.load_array(f"{tmp_path}/{path}", axes)
        np.testing.assert_allclose(recording.responses, repeats.mean(axis=1), atol=1e-12)
        assert (recording.repeats is not None) == (len(names) == 3)


def test_arrays_with_images(tmp_path):
    responses = RNG.normal(size=(3, 5))
    np.save(tmp_path / "a.npy", responses)
    images = write_images(tmp_path / "images.zip", ["y.png", "x.png", "sub/z.png"], content=lambda name: b"ab"["y" in name :])
    recording = brain.load_array(f"{tmp_path}/a.npy", images=images)
    assert recording.stimuli.tolist() == recording.images.tolist() == ["sub/z.png", "x.png", "y.png"]
    assert recording.groups(brain.image_hashes(recording)).tolist() == [0, 0, 1]  # the first two are one image
    named = brain.load_array(f"{tmp_path}/a.npy", images=images, stimuli=["x", "y", "z"], units={"area": list("aabbb")})
    assert named.images.tolist() == ["x.png", "y.png", "sub/z.png"]
    dotted = write_images(tmp_path / "dotted", ["a.1.png", "a.2.png", "a.png"])
    assert brain.load_array(f"{tmp_path}/a.npy", images=dotted, stimuli=["a.2", "a", "a.1"]).images.tolist() == [
        "a.2.png",
        "a.png",
        "a.1.png",
    ]
    with pytest.raises(ValueError, match=r"has 0 for a\.3"):
        brain.load_array(f"{tmp_path}/a.npy", images=dotted, stimuli=["a.3", "a", "a.1"])
    rows = named.rows(recording.images)
    np.testing.assert_array_equal(recording.stimuli[rows], named.images)
    folder = write_images(tmp_path / "folder", ["1.png", "2.png", "3.png"], content=lambda name: b"same")
    assert brain.load_array(f"{tmp_path}/a.npy", images=folder).groups().tolist() == [0, 1, 2]
    assert len(set(brain.image_hashes(brain.load_array(f"{tmp_path}/a.npy", images=folder)))) == 1
    with pytest.raises(ValueError, match="has no images"):
        brain.image_hashes(brain.load_array(f"{tmp_path}/a.npy"))


def test_bad_arrays(tmp_path):
    from scipy.io import savemat

    np.save(tmp_path / "a.npy", RNG.normal(size=(3, 5)))
    path = f"{tmp_path}/a.npy"
    for axes in ("stimuli", "stimuli,voxels", "stimuli,units,units"):
        with pytest.raises(ValueError, match=f"axes must name stimuli, units and perhaps repeats, each once, got {axes}"):
            brain.load_array(path, axes)
    with pytest.raises(ValueError, match=r"must have axes stimuli,units,repeats, got shape \(3, 5\)"):
        brain.load_array(path, "stimuli,units,repeats")
    with pytest.raises(
        ValueError, match="has 3 stimuli as stimuli,units, but 5 are named: its axes seem to be in another order"
    ):
        brain.load_array(path, stimuli=range(5))
    images = write_images(tmp_path / "images", ["1.png", "2.png"])
    with pytest.raises(ValueError, match=r"has 3 stimuli as stimuli,units, but 2 are named\."):
        brain.load_array(path, images=images)
    images = write_images(tmp_path / "numbered", ["1.png", "2.png", "10.png"])
    with pytest.raises(ValueError, match=r"numbered 10\.png comes before 2\.png as text and after it as a number"):
        brain.load_array(path, images=images)
    assert brain.load_array(path, images=images, stimuli=[1, 2, 10]).images.tolist() == ["1.png", "2.png", "10.png"]
    with pytest.raises(FileNotFoundError, match=r"none\.mat is not there"):
        brain.load_array(f"{tmp_path}/none.mat:a")
    savemat(tmp_path / "two.mat", {"a": np.ones((2, 2)), "b": 1, "c": {"d": 1}})
    for name, message in {"": "has several variables", ":e": "has no variable 'e'"}.items():
        with pytest.raises(ValueError, match=f"{message}: name one as .*two.mat:NAME, NAME out of a, b, c"):
            brain.load_array(f"{tmp_path}/two.mat{name}")
    with pytest.raises(ValueError, match=r"two.mat:c is not an array of numbers, but a list of arrays"):
        brain.load_array(f"{tmp_path}/two.mat:c")
    with pytest.importorskip("h5py").File(tmp_path / "new.mat", "w", userblock_size=512) as file:  # as version 7.3 writes them
        file["x"], file["word"] = np.arange(6.0).reshape(2, 3), np.arange(3, dtype=np.uint16)
        file["x"].attrs["MATLAB_class"], file["word"].attrs["MATLAB_class"] = np.bytes_("double"), np.bytes_("char")
    recording = brain.load_array(f"{tmp_path}/new.mat:x")
    np.testing.assert_array_equal(recording.responses, np.arange(6.0).reshape(2, 3).T)  # MATLAB's first axis is the last
    with pytest.raises(ValueError, match=r"new\.mat:word is not an array of numbers, but a char"):
        brain.load_array(f"{tmp_path}/new.mat:word")
    (tmp_path / "text.mat").write_text("text")
    with pytest.raises(ValueError, match=r"text\.mat is not a MATLAB file"):
        brain.load_array(f"{tmp_path}/text.mat")


# By name


def test_a_recording_by_the_name_of_its_layout(tmp_path):
    np.save(tmp_path / "a.npy", RNG.random((6, 4)))
    np.save(tmp_path / "sessions.npy", np.arange(6) // 3)
    recording = brain.load("array", tmp_path / "a.npy", sessions=tmp_path / "sessions.npy")
    np.testing.assert_array_equal(recording.responses, np.load(tmp_path / "a.npy"))
    assert recording.sessions.tolist() == [0, 0, 0, 1, 1, 1]
    assert {name: brain.options(name) for name in brain.RECORDINGS} == {
        "v4": ("session",),
        "nsd": ("subject", "images"),
        "algonauts": ("subject",),
        "brainscore": ("time_bin", "images", "stimulus_set"),
        "array": ("axes", "stimuli", "units", "sessions", "images"),
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("v1", {}, "name must be one of v4, nsd, algonauts, brainscore, array, got 'v1'"),
        ("v4", {"session": 1, "subject": 2}, "subject is no option of a recording v4, which takes session"),
        ("nsd", {"images": "coco"}, "subject must be given for a recording nsd"),
    ],
)
def test_refuses_options_that_a_layout_does_not_take(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        brain.load(name, tmp_path, **options)


def test_a_time_bin_is_a_number(assembly, tmp_path):
    with pytest.raises(ValueError, match="time_bin must be a whole number, got 'one'"):
        brain.load("brainscore", save(assembly, tmp_path / "a.nc"), time_bin="one")

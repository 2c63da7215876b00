import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest

from superpos.images import Images, LabelledImages, Preprocessing, read_images

N = 10


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_names_are_sorted_and_alike_in_a_folder_and_a_zip(image_folder, tmp_path):
    images = Images(image_folder)
    assert images.names == [*(f"{i}.png" for i in (1, 2, 4, 5, 7, 8)), *(f"inner/{i}.png" for i in (0, 3, 6, 9))]
    other = Images(zipped(image_folder, tmp_path / "images.zip"))
    assert other.names == images.names
    for i in range(N):
        np.testing.assert_array_equal(images[i], other[i])


def test_images_of_a_folder_are_a_task(image_folder, key):
    from PIL import Image

    task = read_images(image_folder, 12)
    assert (task.classes, task.n_classes) == ((".", "inner"), 2)
    np.testing.assert_array_equal(task.labels, [0] * 6 + [1] * 4)
    for i, name in enumerate(Images(image_folder).names):
        np.testing.assert_array_equal(task.images[i], np.asarray(Image.open(image_folder / name)))
    images, labels = task.sample(key, 200)
    assert (images.shape, images.dtype.name) == ((200, 12, 12, 3), "float32")
    flat, drawn = task.images.reshape(N, -1), np.round(255 * np.asarray(images)).reshape(200, -1)
    number = np.argmax((drawn[:, None] == flat).all(axis=-1), axis=1)
    np.testing.assert_array_equal(drawn, flat[number])
    np.testing.assert_array_equal(labels, task.labels[number])
    assert len(set(number)) == N
    assert read_images(image_folder, 5).images.shape == (N, 5, 5, 3)


def test_bad_images(tmp_path):
    from PIL import Image

    for name in ("empty", "some"):
        (tmp_path / name).mkdir()
    zipped(tmp_path / "empty", tmp_path / "empty.zip")
    (tmp_path / "text.zip").write_text("text")
    for name, message in {
        "empty": "at least one image .*empty has none",
        "empty.zip": "at least one image .*empty.zip has none",
        "text.zip": "a folder or a zip, but .*text.zip is neither",
    }.items():
        with pytest.raises(ValueError, match=message):
            Images(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing is not there"):
        Images(tmp_path / "missing")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("a.png", b"")
        archive.writestr("a.png", b"")
    with pytest.raises(ValueError, match=r"different names, but .* holds a\.png twice"):
        Images(tmp_path / "twice.zip")

    Image.new("RGB", (64, 64), "red").save(tmp_path / "some" / "torn.jpg")
    torn = (tmp_path / "some" / "torn.jpg").read_bytes()
    (tmp_path / "some" / "torn.jpg").write_bytes(torn[: len(torn) // 2])
    (tmp_path / "some" / "text.jpg").write_text("text")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "some" / "deep.png")
    for path in (tmp_path / "some", zipped(tmp_path / "some", tmp_path / "some.zip")):
        images = Images(path)
        with pytest.raises(ValueError, match=r"Image deep.png in .* must have 8 bits a channel"):
            images[0]
        for i, name in ((1, "text"), (2, "torn")):
            with pytest.raises(ValueError, match=rf"Image {name}.jpg in .* cannot be read"):
                images[i]


def test_preprocessing():
    from PIL import Image

    halves = np.zeros((10, 30, 3), np.uint8)
    halves[:, 15:] = (255, 128, 0)
    image = Image.fromarray(halves)
    plain = Preprocessing(size=10, mean=(0, 0, 0), std=(1, 1, 1))
    values = plain(image)
    assert (values.shape, values.dtype) == ((3, 10, 10), np.float32)
    np.testing.assert_allclose(values, halves[:, 10:20].transpose(2, 0, 1) / 255, rtol=1e-6)  # the middle, at its own size
    normalised = Preprocessing(size=10)(image)
    for channel, mean, std in zip(range(3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True):
        np.testing.assert_allclose(normalised[channel] * std + mean, values[channel], atol=1e-6)
    squeezed = Preprocessing(size=10, crop=False, interpolation="box", mean=(0, 0, 0), std=(1, 1, 1))(image)
    np.testing.assert_allclose(squeezed, halves[:, 1::3].transpose(2, 0, 1) / 255, rtol=1e-6)  # 15 divides by 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, .*, got 'cubic'"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"std": (0.5, 0.5, 0)}, "std must be three positive numbers"),
    ],
)
def test_bad_preprocessing(settings, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**settings)


@pytest.mark.parametrize(
    ("labels", "message"), [([0], r"labels must be \(2,\)"), ([0, 1], "labels must be 0 to 0, got 0 to 1")]
)
def test_labels_fit_the_images(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(np.ones((2, 4, 4, 3)), np.array(labels), ("a",))


def test_importing_loads_no_pillow():
    code = "import sys, superpos.images; assert not {'PIL', 'flax', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

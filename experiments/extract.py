"""What do the layers of a vision model say of your images? Writes their activations to files, and looks at how they are spread.

Takes a PyTorch model and a folder or zip of images, and writes an array a layer, and a manifest.json, into the workdir's
activations/, which `experiments.align` reads. Look at the left panel for how many directions carry a layer's variance: where
they are fewer than its channels (dashed), channels share them. The right one tells whether channels are selective: silent for
most images and strong for a few (excess kurtosis above 0), or mix so many things that they look Gaussian (near 0).
"""

import math
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import command
from superpos import data, plotting
from superpos.images import Preprocessing
from superpos.networks import io
from superpos.results import Run

BLOCK = 2**23  # activations that are described at once


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.model = ""  # torchvision:NAME, timm:NAME, or MODULE:CALLABLE, which returns a torch.nn.Module
    config.weights = "default"  # of torchvision and timm, or those that the model has; or random; or the file of a state dict
    config.images = ""  # a folder or a zip; their sorted names are the rows
    config.layers = ()  # names out of dict(model.named_modules())
    config.position = "mean"  # center, mean, all, class (the first token), or how many to sample
    config.seed = 0  # of sampled positions and random weights
    config.dtype = "float16"  # or float32
    config.format = "npy"  # or zarr
    config.channel_axis = 1  # or 3, for models that keep channels last, such as Swin
    config.batch_size = 32
    config.device = ""  # of PyTorch; by default a GPU where there is one
    config.preprocessing = ConfigDict(
        {
            "size": 224,  # pixels
            "interpolation": "bicubic",
            "crop": True,  # takes the square in the middle of an image that is none; otherwise it is squeezed
            "mean": "0.485,0.456,0.406",  # of red, green and blue, of images in [0, 1]
            "std": "0.229,0.224,0.225",
        }
    )
    return config


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Extracts the activations, and tabulates what each layer's are like."""
    if jax.process_count() > 1:
        raise ValueError("--distributed: extracting takes one process.")
    for field, example in (("model", "torchvision:resnet18"), ("images", "folder"), ("layers", "\"('layer3',)\"")):
        if not config[field]:
            raise ValueError(f"config.{field} is empty: pass --config.{field}={example}.")
    settings = config.to_dict()
    model, images, layers = (settings.pop(name) for name in ("model", "images", "layers"))
    given = settings.pop("preprocessing")
    for name in ("mean", "std"):
        try:
            given[name] = tuple(float(value) for value in given[name].split(","))
        except ValueError:
            raise ValueError(
                f"config.preprocessing.{name} must be three numbers like 0.5,0.5,0.5, got {given[name]!r}."
            ) from None
    settings["preprocessing"] = Preprocessing(**given)
    settings["device"] = settings["device"] or None
    if settings["position"].isdigit():
        settings["position"] = int(settings["position"])

    started = time.perf_counter()
    try:
        arrays = io.extract(model, images, layers, run.path / "activations", **settings, on_start=run.claim)
    except ImportError as error:
        raise ValueError(str(error)) from error
    extracted = time.perf_counter()
    rows, spread = [], {}
    for layer, array in arrays.items():
        row, spread[layer] = describe(array)
        rows.append({"layer": layer, **row})
    seconds = {"extraction": extracted - started, "description": time.perf_counter() - extracted}
    return run.finish(rows, seconds, spread=spread, n_images=len(arrays[layers[0]]))


def describe(array: np.ndarray | data.Store) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """How activations `(images, [positions,] channels)` are spread, in float64, in one pass and bounded memory.

    Returns:
        A row: channels; positions of an image; `dead`, how many channels are constant; `density`, the mean share of positive
        activations; `dimension`, the participation ratio (Σλ)² / Σλ² of the covariance's eigenvalues λ; `kurtosis`, the median
        over live channels of the excess kurtosis. And for the figure, by principal `components` and by `channels`, largest
        first, the cumulative share of the variance; `kurtosis` of the live channels, in ascending order.
    """
    n_channels = array.shape[-1]
    n_block = max(1, BLOCK // math.prod(array.shape[1:]))
    shift, powers, products, positive = None, np.zeros((4, n_channels)), np.zeros((n_channels, n_channels)), 0
    low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
    for at in range(0, len(array), n_block):
        x = np.asarray(array[at : at + n_block], np.float64).reshape(-1, n_channels)
        shift = x.mean(axis=0) if shift is None else shift  # near the mean, so that little cancels
        low, high = np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0))
        positive += int(np.count_nonzero(x > 0))
        x -= shift
        products += x.T @ x
        powers += [(x**power).sum(axis=0) for power in (1, 2, 3, 4)]
    n = math.prod(array.shape[:-1])
    first, second, third, fourth = powers / n
    live = high > low
    covariance = (products / n - np.outer(first, first))[np.ix_(live, live)]
    row = {
        "channels": n_channels,
        "positions": math.prod(array.shape[1:-1]),
        "dead": int(np.sum(~live)),
        "density": positive / (n * n_channels),
    }
    if not live.any():
        return {**row, "dimension": 0.0, "kurtosis": math.nan}, {"components": [], "channels": [], "kurtosis": []}
    variances = np.diag(covariance)
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance), 0)
    central = (fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4)[live]
    kurtosis = np.sort(central / variances**2 - 3)
    row |= {"dimension": float(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2)), "kurtosis": float(np.median(kurtosis))}
    shares = {
        name: np.cumsum(np.sort(values)[::-1] / values.sum()).round(6).tolist()
        for name, values in (("components", eigenvalues), ("channels", variances))
    }
    return row, {**shares, "kurtosis": kurtosis.round(4).tolist()}


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: on how many directions a layer's variance lies, and how selective its channels are."""
    import matplotlib

    spread = {layer: curves for layer, curves in results["spread"].items() if curves["channels"]}
    figure, ((left, right),) = plotting.panels(1, 2, (9, 3.8))
    colours = matplotlib.colormaps["cividis"](np.linspace(0, 0.9, max(len(spread), 1)))
    for (layer, curves), colour in zip(spread.items(), colours, strict=False):
        counts = np.arange(1, len(curves["channels"]) + 1)
        left.plot(counts, curves["components"], color=colour, label=f" {layer}")  # matplotlib hides _names
        left.plot(counts, curves["channels"], color=colour, linestyle="--")
        # From the largest, so that the curve ends where no channel is as selective.
        right.step(curves["kurtosis"], 1 - (counts - 1) / len(counts), where="pre", color=colour)
    left.set_xscale("log")
    left.set_ylim(0, 1.02)
    left.set_xlabel("principal components (solid), channels (dashed), largest first")
    left.set_ylabel("cumulative share of the variance")
    right.set_xscale("symlog", linthresh=1)
    right.set_ylim(0, 1.02)
    right.axvline(0, color="#999999", linewidth=0.8)
    right.annotate("Gaussian", (0, 0.03), xytext=(3, 0), textcoords="offset points", fontsize=8, color="#666666")
    right.set_xlabel("excess kurtosis of a channel over images and positions")
    right.set_ylabel("share of channels with at least as much")
    figure.legend(title="layer", fontsize=8, title_fontsize=8, loc="outside right center", frameon=False)
    n_images = results["n_images"]
    figure.suptitle(f"{run.config['model']}, {n_images} images, position {run.config['position']}", fontsize=9, color="#444444")
    plotting.save(figure, run.figure)


if __name__ == "__main__":
    command.main("extract", get_config(), compute, draw, files=("images",))

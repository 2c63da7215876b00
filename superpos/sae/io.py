"""Trained sparse autoencoders as folders: superpos's own, which keep everything, and those of SAELens, to exchange them.

Both are `sae_weights.safetensors` beside a `cfg.json`, from which `load` tells which of the two it is.
"""

import dataclasses
import json
import math
import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from superpos import storage
from superpos.sae.base import ARCHITECTURES, Params, SparseAutoencoder

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_VERSION = 1  # of superpos's own layout: since 1 it has hashes

# What computes the same latents in SAELens.
_COUNTERPARTS = {
    "vanilla": "standard",
    "topk": "topk",
    "archetypal": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}

# SAELens's architectures: the tensors with one number a latent, and what reads them here. Penalties are not in its folders.
_READ: dict[str, tuple[tuple[str, ...], str, dict[str, float]]] = {
    "standard": (("b_enc",), "vanilla", {"l1": 0.0}),
    "topk": (("b_enc",), "topk", {}),
    "jumprelu": (("b_enc", "threshold"), "jumprelu", {"l0": 0.0}),
    "gated": (("b_gate", "r_mag", "b_mag"), "gated", {"l1": 0.0}),
}


def save(
    path: str | os.PathLike,
    sae: SparseAutoencoder,
    params: Params,
    *,
    format: str = "superpos",
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a sparse autoencoder as a folder, whole or not at all; one that was saved there before is replaced.

    SAELens's layout holds what it takes to encode and decode, and no options of training. There

    - `Vanilla` is "standard", `TopK` and `Archetypal` (its dictionary written out) are "topk", `Gated` is "gated", `JumpReLU`,
      `BatchTopK` and `Matryoshka` (each latent with their threshold) are "jumprelu"; latents and thresholds stay the same
      numbers. The others have no counterpart: `MatchingPursuit`, `NonNegative`;
    - `normalize="scale"` is folded into the weights; `"layer_norm"` is SAELens's;
    - `centered` is `apply_b_dec_to_input`.

    Args:
        path: the folder; one that holds anything but a saved autoencoder is refused.
        sae: the autoencoder, of one of the architectures in `sp.sae.ARCHITECTURES`.
        params: its parameters; with "superpos" those of many seeds too, stacked along leading axes.
        format: "superpos", from which `load` restores every field and parameter bit for bit, or "saelens".
        metadata: what else `cfg.json` should keep under "metadata", JSON-serialisable; SAELens reads such as `model_name` and
            `hook_name`.

    Raises:
        ValueError: an unknown format, params that do not fit or are not finite, an architecture without counterpart, or a path
            that is taken.
    """
    if format not in ("superpos", "saelens"):
        raise ValueError(f"format takes superpos, saelens, got {format!r}.")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((sae, params))):
        raise ValueError("sae and params must be concrete, got traced ones: call save outside of jit and vmap.")
    name = {kind: name for name, kind in ARCHITECTURES.items()}.get(type(sae))
    if name is None:
        raise ValueError(f"sae must be one of sp.sae.ARCHITECTURES ({', '.join(ARCHITECTURES)}), got a {type(sae).__name__}.")
    if format == "saelens" and name not in _COUNTERPARTS:
        raise ValueError(f"format 'saelens' takes {', '.join(_COUNTERPARTS)}, got {name}, which SAELens cannot compute.")
    if format == "saelens" and sae.rectified:
        raise ValueError("format 'saelens' takes reconstructions that are not rectified, got rectified=True.")
    _check(params, _shapes(sae), "params", stacked=format == "superpos")
    metadata = metadata or {}
    if format == "saelens":
        config, tensors = _to_saelens(name, sae, params)
        config["metadata"] = {"sae_lens_version": "6.0.0", **metadata}  # of the layout: without it an older one is read
    else:
        values = {field.name: np.asarray(getattr(sae, field.name)).tolist() for field in dataclasses.fields(sae)}
        own = {"version": _VERSION, "architecture": name, "fields": values}
        config, tensors = {"superpos": own, "metadata": metadata}, dict(params)
    _check_finite(tensors, "params")
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON-serialisable: {error}.") from error
    _write(Path(path).absolute(), config, tensors)


def load(path: str | os.PathLike, *, scaling_factor: float | None = None) -> tuple[SparseAutoencoder, Params]:
    """Reads a sparse autoencoder from a folder of superpos or of SAELens, in its present layout or that before version 6.

    Of SAELens's architectures it reads "standard", "topk", "jumprelu" and "gated", as `Vanilla`, `TopK`, `JumpReLU` and `Gated`
    with options that leave weights as they are, in float32 or float64. The penalty, which SAELens does not record, is 0:
    replace it before you train further, `dataclasses.replace(sae, l1=...)`. Thresholds are rounded as their logarithms are.

    Args:
        path: the folder.
        scaling_factor: where SAELens's `normalize_activations` is "expected_average_only_in", what inputs were multiplied by in
            training; 1 if weights have it in them already, as those of finished runs do. By default what
            `activation_scaler.json` beside the weights says.

    Returns:
        The autoencoder and its params.

    Raises:
        FileNotFoundError: no such folder, or a file is missing from it.
        ValueError: what the folder holds is damaged, holds NaN or infinity, or is not representable here.
    """
    from safetensors import flax

    path = Path(path).absolute()
    if not path.exists() and _old(path).is_dir():  # a save was killed between its two last steps
        path = _old(path)
    for file in (path / _CONFIG, path / _WEIGHTS):
        if not file.is_file():
            raise FileNotFoundError(f"path must be a folder with {_CONFIG} and {_WEIGHTS}, but {file} is not there.")
    config = _json(path / _CONFIG)
    with storage.reading(path / _WEIGHTS, "a file of safetensors"):
        tensors = flax.load_file(path / _WEIGHTS)
    _check_finite(tensors, str(path / _WEIGHTS))
    if "float64" in str(config.get("dtype")) and jnp.asarray(0.0).dtype != jnp.float64:
        warnings.warn(f"{path} holds float64, and is read as float32: enable x64 to keep its digits.", stacklevel=2)
    if "superpos" in config:
        normalization = "none"
    else:
        config = _present(path, config)
        normalization = config["normalize_activations"]
    if normalization == "expected_average_only_in":
        scaler = path / "activation_scaler.json"
        if scaling_factor is None and scaler.is_file():
            scaling_factor = _json(scaler).get("scaling_factor")
        if scaling_factor is None:
            raise ValueError(
                f"scaling_factor must be given for {path}, which does not say what inputs were multiplied by in training (its "
                "normalize_activations is 'expected_average_only_in'); it is 1 if the weights have it in them already."
            )
        if not isinstance(scaling_factor, int | float) or not 0 < scaling_factor < math.inf:
            raise ValueError(f"scaling_factor must be positive, got {scaling_factor}.")
    elif scaling_factor is not None:
        raise ValueError(
            "scaling_factor is for folders of SAELens with normalize_activations 'expected_average_only_in', "
            f"but that of {path} is {normalization!r}."
        )
    if "superpos" in config:
        return _own(path, config, tensors)
    return _from_saelens(path, config, tensors, 1.0 if scaling_factor is None else scaling_factor)


def _to_saelens(name: str, sae: Any, params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the tensors, with the scale of inputs in the weights; arithmetic is rounded once."""
    dtype = jnp.promote_types(params["b_dec"].dtype, jnp.float32)
    exact = {key: np.asarray(value, np.float64) for key, value in params.items()}
    scale = exact["scale"] if sae.normalize == "scale" else 1.0
    architecture = _COUNTERPARTS[name]
    tensors = {
        "W_enc": exact["W_enc"] / scale,
        "W_dec": np.asarray(sae.dictionary(params), np.float64) * scale,
        "b_dec": exact["b_dec"] * scale,
        **{key: exact[key] for key in _READ[architecture][0] if key != "threshold"},
    }
    if name == "jumprelu":
        tensors["threshold"] = np.asarray(jnp.exp(params["log_threshold"]))
    elif architecture == "jumprelu":
        tensors["threshold"] = np.full(sae.n_latents, np.maximum(exact["threshold"], 0))
    config = {
        "architecture": architecture,
        "d_in": sae.n_inputs,
        "d_sae": sae.n_latents,
        "dtype": str(dtype),
        "device": "cpu",
        "apply_b_dec_to_input": sae.centered,
        "normalize_activations": "layer_norm" if sae.normalize == "layer_norm" else "none",
        "reshape_activations": "none",
    }
    if architecture == "topk":
        k = np.asarray(sae.k)
        if k.ndim or k != int(k):
            raise ValueError(f"k must be a whole number for format 'saelens', got {sae.k}.")
        config |= {"k": int(k), "rescale_acts_by_decoder_norm": False}
    return config, {key: value.astype(dtype) for key, value in tensors.items()}


def _present(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of SAELens in its present layout, checked; before version 6 keys had other names and defaults."""
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    hook = config.get("hook_name") or config.get("hook_point") or ""
    present = {
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        "reshape_activations": "hook_z" if "hook_z" in hook else "none",
        **config,
    }
    normalize = config.get("normalize_activations") or "none"
    present["normalize_activations"] = "expected_average_only_in" if normalize is True else normalize
    if activation == "topk":
        present |= {"architecture": "topk", **(config.get("activation_fn_kwargs") or {})}
    elif activation != "relu":
        raise ValueError(f"activation_fn of {path} must be relu or topk, got {activation!r}.")
    takes = {
        "architecture": tuple(_READ),
        "normalize_activations": ("none", "layer_norm", "expected_average_only_in"),
        "reshape_activations": ("none",),
        "use_error_term": (False, None),
    }
    for key, values in takes.items():
        if present.get(key) not in values:
            raise ValueError(f"{key} of {path} must be {', '.join(map(str, values))} to be read here, got {present[key]!r}.")
    for key in ("d_in", "d_sae", "k") if present["architecture"] == "topk" else ("d_in", "d_sae"):
        number = present.get(key)
        if not isinstance(number, int | float) or not 1 <= number < math.inf or number != int(number):
            raise ValueError(f"{key} of {path} must be a whole number, got {number!r}.")
    return present


def _from_saelens(path: Path, config: dict[str, Any], tensors: Params, factor: float) -> tuple[SparseAutoencoder, Params]:
    d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
    vectors, name, fields = _READ[config["architecture"]]
    if "scaling_factor" in tensors and np.allclose(tensors["scaling_factor"], 1):  # some old folders have one without use
        del tensors["scaling_factor"]
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), **dict.fromkeys(vectors, (d_sae,))}
    _check(tensors, expected, str(path / _WEIGHTS))
    exact = {key: np.asarray(value, np.float64) for key, value in tensors.items()}
    exact |= {"W_enc": exact["W_enc"] * factor, "W_dec": exact["W_dec"] / factor, "b_dec": exact["b_dec"] / factor}
    if name == "topk":
        fields = {"k": int(config["k"])}
        if config.get("rescale_acts_by_decoder_norm"):
            norms = np.maximum(np.linalg.norm(exact["W_dec"], axis=1), 1e-8)
            exact |= {key: exact[key] * norms for key in ("W_enc", "b_enc")} | {"W_dec": exact["W_dec"] / norms[:, None]}
    if name == "jumprelu":  # thresholds that let all positive latents pass become the least one
        exact["log_threshold"] = np.log(np.maximum(exact.pop("threshold"), np.finfo(np.float32).tiny))
    normalize = "layer_norm" if config["normalize_activations"] == "layer_norm" else "none"
    centered = bool(config["apply_b_dec_to_input"])
    kind: Any = ARCHITECTURES[name]
    sae = kind(d_in, d_sae, **fields, centered=centered, normalize=normalize, decoder_norm="free", bias="zero")
    dtype = jnp.promote_types(tensors["b_dec"].dtype, jnp.float32)
    return sae, {**sae._buffers(), **{key: jnp.asarray(value, dtype) for key, value in exact.items()}}


def _own(path: Path, config: dict[str, Any], tensors: Params) -> tuple[SparseAutoencoder, Params]:
    own = config["superpos"]
    if not isinstance(own, dict) or not isinstance(own.get("fields"), dict):
        raise ValueError(f"{path / _CONFIG} must have the architecture and fields of an autoencoder, got {own!r:.80}.")
    kind: Any = ARCHITECTURES.get(str(own.get("architecture")))
    version = own.get("version", 0)
    if kind is None or not isinstance(version, int) or version > _VERSION:  # of a later version
        known = f"architecture of {path} must be one of {', '.join(ARCHITECTURES)}, in layout {_VERSION} or before"
        raise ValueError(f"{known}, got {own.get('architecture')!r} in {version!r}.")
    static = {field.name for field in dataclasses.fields(kind) if field.metadata.get("static")}
    try:
        fields = {
            key: value if not isinstance(value, list) else tuple(value) if key in static else jnp.asarray(value)
            for key, value in own["fields"].items()
        }
        sae = kind(**fields)
        shapes = _shapes(sae)
    except Exception as error:  # of what somebody else has written
        raise ValueError(f"fields of {path} must be those of {kind.__name__}: {error}.") from error
    _check(tensors, shapes, str(path / _WEIGHTS), stacked=True)
    if version and own.get("sha256") != _seal(own, path / _WEIGHTS):
        raise ValueError(
            f"{path / _WEIGHTS} and {path / _CONFIG} are not what was saved: they were changed or exchanged since."
        )
    return sae, tensors


def _seal(own: dict[str, Any], weights: Path) -> str:
    """The hash of an autoencoder: of its fields and of the file of its weights."""
    return storage.seal([{key: value for key, value in own.items() if key != "sha256"}, storage.sha256(weights)])


def _shapes(sae: SparseAutoencoder) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of one model."""
    single = jax.tree.map(lambda leaf: np.ravel(leaf)[0].item(), sae)  # a field may hold a number a seed
    return {name: leaf.shape for name, leaf in jax.eval_shape(single.init, jax.random.key(0)).items()}


def _check(tensors: Params, shapes: dict[str, tuple[int, ...]], what: str, stacked: bool = False) -> None:
    """Refuses names and shapes other than these; leading axes that all share are those of a stack of models."""
    for problem, names in (("lacks", shapes.keys() - tensors.keys()), ("also has", tensors.keys() - shapes.keys())):
        if names:
            raise ValueError(f"{what} must have {', '.join(shapes)}, but {problem} {', '.join(sorted(names))}.")
    lead = np.shape(tensors["b_dec"])[:-1] if stacked else ()
    for name, shape in shapes.items():
        if np.shape(tensors[name]) != lead + shape:
            raise ValueError(f"{name} of {what} must be {lead + shape}, got {np.shape(tensors[name])}.")


def _check_finite(tensors: Any, what: str) -> None:
    for name, values in tensors.items():
        if not jnp.isfinite(values).all():
            raise ValueError(f"{name} of {what} must be finite, got NaN or infinity.")


def _old(path: Path) -> Path:
    """Where the folder that was saved before stands while another takes its place."""
    return path.with_name(f".{path.name}.old")


def _write(path: Path, config: dict[str, Any], tensors: Any) -> None:
    """Writes a hidden folder beside the path, then renames it."""
    from safetensors.numpy import save_file

    if path.exists() and not (path.is_dir() and {file.name for file in path.iterdir()} in (set(), {_CONFIG, _WEIGHTS})):
        raise ValueError(f"path {path} holds something other than a saved autoencoder: name another.")
    part, old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}"), _old(path)
    storage.make_folder(path.parent)
    if old.exists() and not path.exists():
        old.rename(path)
    try:
        part.mkdir()
        # save_file takes memory for rows one after the other, and some arrays are stored by columns.
        arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
        storage.replace(part / _WEIGHTS, lambda file: save_file(arrays, file))
        if "superpos" in config:
            own = json.loads(json.dumps(config["superpos"]))
            config["superpos"] = {**own, "sha256": _seal(own, part / _WEIGHTS)}
        text = json.dumps(config, indent=1) + "\n"
        storage.replace(part / _CONFIG, lambda file: file.write_text(text))
        with storage.unbroken():
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            part.rename(path)
            storage.sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _json(file: Path) -> dict[str, Any]:
    content = storage.read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got a {type(content).__name__}.")
    return content

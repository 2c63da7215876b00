"""Writes tests/saelens/: folders by SAELens itself, with what it encodes and decodes there. Run with sae-lens installed."""

import json
import shutil
from pathlib import Path

import numpy as np

# Architectures and options of SAELens; its classes are found by name.
CASES = {
    "standard": ("standard", {}),
    "standard_layer_norm": ("standard", {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False}),
    "standard_unfolded": ("standard", {"normalize_activations": "expected_average_only_in"}),
    "topk": ("topk", {"k": 3, "apply_b_dec_to_input": False}),
    "topk_rescaled": ("topk", {"k": 3, "rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"}),
    "topk_rescaled_unfolded": (
        "topk",
        {"k": 3, "rescale_acts_by_decoder_norm": True, "normalize_activations": "expected_average_only_in"},
    ),
    "topk_before_6": ("topk", {"k": 3, "apply_b_dec_to_input": False}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu_bfloat16": ("jumprelu", {"apply_b_dec_to_input": False}),
    "gated": ("gated", {}),
    "gated_layer_norm": ("gated", {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False}),
    "batchtopk": ("batchtopk", {"k": 3}),
}

# The layout before version 6, as its configurations on the Hugging Face hub have it.
BEFORE_6 = {
    "architecture": "standard",
    "d_in": 6,
    "d_sae": 12,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 3},
    "apply_b_dec_to_input": False,
    "finetuning_scaling_factor": False,
    "normalize_activations": False,
    "hook_name": "blocks.0.hook_resid_pre",
    "dtype": "torch.float32",
    "sae_lens_training_version": "3.0.0",
}


def write(name, path, seed=0):
    """Writes a case with random weights, and returns inputs, latents and reconstructions of SAELens."""
    import torch
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAE
    from sae_lens.training.activation_scaler import ActivationScaler
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    architecture, options = CASES[name]
    make, configure = (get_sae_training_class if architecture == "batchtopk" else get_sae_class)(architecture)
    sae = make(configure(d_in=6, d_sae=12, **options))
    for key, value in sae.named_parameters():
        value.data = 0.7 * torch.randn(value.shape)
        if key == "threshold":
            value.data[:9] = value[:9].abs()  # and some that are not positive
    if architecture == "batchtopk":
        sae.topk_threshold.fill_(0.6)
        sae.save_inference_model(path)
    else:
        sae.save_model(path)
    if name.endswith("unfolded"):  # a checkpoint of a run that goes on
        ActivationScaler(scaling_factor=0.4).save(str(path / "activation_scaler.json"))
    config, tensors = json.loads((path / "cfg.json").read_text()), load_file(path / "sae_weights.safetensors")
    if name.endswith("before_6"):
        config, tensors = BEFORE_6, {**tensors, "scaling_factor": torch.ones(12)}
    if name.endswith("bfloat16"):
        config, tensors = {**config, "dtype": "bfloat16"}, {key: value.bfloat16() for key, value in tensors.items()}
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, path / "sae_weights.safetensors")
    sae = SAE.load_from_disk(path, dtype="float32")
    if name.endswith("unfolded"):
        sae.fold_activation_norm_scaling_factor(0.4)
    x = 2 * torch.randn(8, 6) + 0.5
    with torch.no_grad():
        h = sae.encode(x)
        y = sae.decode(h)
    return {"x": x.numpy(), "h": h.numpy(), "y": y.numpy()}


if __name__ == "__main__":
    folder = Path(__file__).parent / "saelens"
    shutil.rmtree(folder, ignore_errors=True)
    for case in CASES:
        np.savez(folder / case / "expected.npz", **write(case, folder / case))

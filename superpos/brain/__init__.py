"""Real representations: recordings of brains, and simulated ones whose truth is known."""

from superpos.brain.io import image_hashes, load_algonauts, load_array, load_brainscore, load_nsd, load_v4
from superpos.brain.recording import Recording, ncsnr, noise_ceiling
from superpos.brain.simulation import Truth, simulate

__all__ = [
    "Recording",
    "Truth",
    "image_hashes",
    "load_algonauts",
    "load_array",
    "load_brainscore",
    "load_nsd",
    "load_v4",
    "ncsnr",
    "noise_ceiling",
    "simulate",
]

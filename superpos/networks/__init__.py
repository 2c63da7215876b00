"""Vision networks that are trained here and their task; `io` has PyTorch models' activations to images.

Not imported by `superpos`, because Flax takes seconds to load: `from superpos import networks`.
"""

from superpos.networks.models import CNN, Classifier, ViT
from superpos.networks.shapes import SHAPES, TEXTURES, ShapesAndTextures

__all__ = ["CNN", "SHAPES", "TEXTURES", "Classifier", "ShapesAndTextures", "ViT"]

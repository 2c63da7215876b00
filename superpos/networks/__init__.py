"""Vision networks that are trained here and their task; `io` has images from files, and PyTorch models' activations to them.

Not imported by `superpos`, because Flax takes seconds to load: `from superpos import networks`.
"""

from superpos.networks.images import SHAPES, TEXTURES, LabelledImages, ShapesAndTextures
from superpos.networks.models import CNN, Classifier, ViT

__all__ = ["CNN", "SHAPES", "TEXTURES", "Classifier", "LabelledImages", "ShapesAndTextures", "ViT"]

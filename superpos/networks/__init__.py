"""Vision networks: `io` has images from files and the activations of PyTorch models to them; here are those that are trained
in the program, and their task, whose images are made in it.

Not imported by `superpos`, because Flax takes seconds to load: `from superpos import networks`.
"""

from superpos.networks.images import SHAPES, TEXTURES, ShapesAndTextures
from superpos.networks.models import CNN, Classifier, ViT

__all__ = ["CNN", "SHAPES", "TEXTURES", "Classifier", "ShapesAndTextures", "ViT"]

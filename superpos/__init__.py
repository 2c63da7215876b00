"""Superposition and representational alignment, as pure JAX functions.

See `align` to compare two representations, `fit` to train toy models and sparse autoencoders.
"""

from superpos import alignment, features, linalg, metrics, moments, reliability, sae, stats, toy, training, transport
from superpos.alignment import align, assign_folds, reads, score
from superpos.training import fit

__all__ = [
    "align",
    "alignment",
    "assign_folds",
    "features",
    "fit",
    "linalg",
    "metrics",
    "moments",
    "reads",
    "reliability",
    "sae",
    "score",
    "stats",
    "toy",
    "training",
    "transport",
]

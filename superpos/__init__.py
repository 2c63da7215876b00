"""Superposition and representational alignment, as pure JAX functions.

See `align` to compare two representations, `fit` to train a toy model or a sparse autoencoder, `sweep` to do both many times.
"""

from superpos import (
    alignment,
    arrangements,
    evaluation,
    features,
    linalg,
    metrics,
    moments,
    probe,
    reliability,
    sae,
    selectivity,
    sparse_coding,
    stats,
    sweeps,
    theory,
    toy,
    training,
    transport,
)
from superpos.alignment import align, align_stream, assign_folds, reads, score
from superpos.sweeps import sweep
from superpos.training import fit, fit_stream

__all__ = [
    "align",
    "align_stream",
    "alignment",
    "arrangements",
    "assign_folds",
    "evaluation",
    "features",
    "fit",
    "fit_stream",
    "linalg",
    "metrics",
    "moments",
    "probe",
    "reads",
    "reliability",
    "sae",
    "score",
    "selectivity",
    "sparse_coding",
    "stats",
    "sweep",
    "sweeps",
    "theory",
    "toy",
    "training",
    "transport",
]

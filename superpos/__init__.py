"""Superposition and representational alignment, as pure JAX functions.

Representations are arrays `(n_samples, n_units)`, NumPy's or JAX's, with the same samples in the same order on both sides.
Compare two of them, disentangle one with a sparse autoencoder, and compare what comes out:

>>> import jax, superpos as sp
>>> x, y = (jax.random.normal(jax.random.key(seed), (200, 8)) for seed in (0, 1))  # your activations
>>> scores = sp.align(x, y, metrics=("soft_match", "ridge"))  # scores["ridge"].mean, .folds, .units
>>> sae = sp.sae.TopK(n_inputs=8, n_latents=16, k=4)
>>> params, history = sp.fit(sae, jax.random.key(2), lambda key, n: jax.random.choice(key, x, (n,)), steps=10, batch_size=32)
>>> sae.encode(params, x).shape  # latents, to be aligned in place of the neurons
(200, 16)

`align`, `align_stream`, `score`: alignment of arrays, of files of any size, of moments; `assign_folds`, `reads` serve them.
`compare`: two systems as they are and as views read them, each comparison beside its controls.
`fit`, `fit_stream`: train one model on samples drawn in the program, or on batches from the host.
`sweep`: train and compare a grid of settings x seeds, as one compiled program.

What there is to compare:

- `features`, `arrangements`, `toy`: sparse features, how units mix them, and models that learn to.
- `worlds`: pairs of systems whose shared features are known.
- `sae`, `evaluation`: sparse autoencoders, and how good they are.
- `brain`: recordings, read from files or simulated.
- `views`: ways to read a representation, such as an SAE and its controls.
- `activations`, `comparison`: the sides of a comparison, and every comparison of what views read on them.
- `networks`: vision networks, and activations of PyTorch models; `from superpos import networks`, as Flax is slow to load.
- `images`: images from folders, archives and arrays.
- `data`: readers of activations, such as `data.Batches` for `fit_stream`.

What is measured:

- `metrics`: all that `align` takes, `sp.metrics.names()`; `moments`, the sums over samples that most of them read.
- `stats`, `reliability`: intervals, chance levels and comparisons; noise ceilings.
- `rsa`: dissimilarity matrices, compared, with their noise ceiling.
- `cumulants`: how many features a representation holds, and along which directions, without training.
- `theory`: alignment predicted from arrangements alone.
- `calibration`: which instrument can tell what two systems share, judged on such worlds.
- `sparse_coding`, `probe`: controls that know the truth, an oracle and a supervised read-out.
- `selectivity`: what single units stand for.

What it is made of: `alignment`, `streaming`, `training` and `sweeps` (where the functions above live), `folds`, `checks` (of
what callers pass), `transport` (exact matching), `linalg`, and for programs `storage` (files), `results` (a run's
folder), `plotting` and `__main__` (the command `superpos`).
"""

from superpos import (
    activations,
    alignment,
    arrangements,
    brain,
    calibration,
    comparison,
    cumulants,
    evaluation,
    features,
    folds,
    images,
    linalg,
    metrics,
    moments,
    probe,
    reliability,
    rsa,
    sae,
    selectivity,
    sparse_coding,
    stats,
    streaming,
    sweeps,
    theory,
    toy,
    training,
    transport,
    views,
    worlds,
)
from superpos.alignment import align, reads, score
from superpos.comparison import compare
from superpos.folds import assign_folds
from superpos.streaming import align_stream
from superpos.sweeps import sweep
from superpos.training import fit, fit_stream

__version__ = "0.1.0"

__all__ = [
    "activations",
    "align",
    "align_stream",
    "alignment",
    "arrangements",
    "assign_folds",
    "brain",
    "calibration",
    "compare",
    "comparison",
    "cumulants",
    "evaluation",
    "features",
    "fit",
    "fit_stream",
    "folds",
    "images",
    "linalg",
    "metrics",
    "moments",
    "probe",
    "reads",
    "reliability",
    "rsa",
    "sae",
    "score",
    "selectivity",
    "sparse_coding",
    "stats",
    "streaming",
    "sweep",
    "sweeps",
    "theory",
    "toy",
    "training",
    "transport",
    "views",
    "worlds",
]

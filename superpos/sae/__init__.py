"""Sparse autoencoders: one file an architecture, one interface.

`init(key)`, `calibrate(params, x)`, `encode(params, x)`, `decode(params, h)`, `reconstruct(params, x)`, `loss` and
`after_step`: what `sp.fit` trains. `SparseAutoencoder` documents the options that all architectures share.
"""

from superpos.sae.archetypal import Archetypal
from superpos.sae.base import SparseAutoencoder, geometric_median
from superpos.sae.batch_topk import BatchTopK
from superpos.sae.gated import Gated
from superpos.sae.io import ARCHITECTURES, load, save
from superpos.sae.jumprelu import JumpReLU
from superpos.sae.matching_pursuit import MatchingPursuit
from superpos.sae.matryoshka import Matryoshka
from superpos.sae.nonnegative import NonNegative
from superpos.sae.topk import PUBLISHED, TopK
from superpos.sae.vanilla import Vanilla

__all__ = [
    "ARCHITECTURES",
    "PUBLISHED",
    "Archetypal",
    "BatchTopK",
    "Gated",
    "JumpReLU",
    "MatchingPursuit",
    "Matryoshka",
    "NonNegative",
    "SparseAutoencoder",
    "TopK",
    "Vanilla",
    "geometric_median",
    "load",
    "save",
]

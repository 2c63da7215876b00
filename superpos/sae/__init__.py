"""Sparse autoencoders: one file an architecture, one interface.

`init(key)`, `calibrate(params, x)`, `encode(params, x)`, `decode(params, h)`, `reconstruct(params, x)`, `loss` and
`after_step`: what `sp.fit` trains. `SparseAutoencoder` documents the options that all architectures share.

To add one: write it in a file here, and name it in `ARCHITECTURES`.
"""

from superpos.sae.archetypal import Archetypal
from superpos.sae.base import SparseAutoencoder, geometric_median
from superpos.sae.batch_topk import BatchTopK
from superpos.sae.gated import Gated
from superpos.sae.io import load, save
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

# By the names that folders and experiments know them by; `sp.sae.save` and `load` take these.
ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    "vanilla": Vanilla,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "matryoshka": Matryoshka,
    "matching_pursuit": MatchingPursuit,
    "archetypal": Archetypal,
    "nonnegative": NonNegative,
}

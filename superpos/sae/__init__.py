"""Sparse autoencoders: one file an architecture, one interface.

`init(key)`, `calibrate(params, x)`, `encode(params, x)`, `decode(params, h)`, `reconstruct(params, x)`, `loss` and
`after_step`: what `sp.fit` trains. `SparseAutoencoder` documents the options that all architectures share.

To add one: write it in a file here, as a class that is registered by name, and import it below.
"""

# isort: off
# Files name their architectures as they are imported, and ARCHITECTURES keeps this order.
from superpos.sae.base import ARCHITECTURES as ARCHITECTURES
from superpos.sae.base import SparseAutoencoder as SparseAutoencoder
from superpos.sae.base import build as build
from superpos.sae.base import register as register
from superpos.sae.kernels import geometric_median as geometric_median
from superpos.sae.vanilla import Vanilla as Vanilla
from superpos.sae.topk import PUBLISHED as PUBLISHED
from superpos.sae.topk import TopK as TopK
from superpos.sae.batch_topk import BatchTopK as BatchTopK
from superpos.sae.jumprelu import JumpReLU as JumpReLU
from superpos.sae.gated import Gated as Gated
from superpos.sae.matryoshka import Matryoshka as Matryoshka
from superpos.sae.matching_pursuit import MatchingPursuit as MatchingPursuit
from superpos.sae.archetypal import Archetypal as Archetypal
from superpos.sae.nonnegative import NonNegative as NonNegative
from superpos.sae.io import load as load
from superpos.sae.io import save as save

"""Views: one file a way to read a representation, one interface.

`fit(key, draw) -> params` on samples that are not scored, `encode(params, x) -> (n, k)` on those that are, `describe`. A
control is a view: what could explain a gain besides superposition stands beside it as one more entry of a dictionary.

To add one: write it in a file here, and name it in `VIEWS`.
"""

from superpos.views.base import Draw, Rows, View, encode_all, fit_all, params_of, prepare_all, shared
from superpos.views.both import Both
from superpos.views.cumulant import Cumulant
from superpos.views.given import Given
from superpos.views.ica import ICA
from superpos.views.layer_norm import LayerNorm
from superpos.views.loaded import Loaded
from superpos.views.neuron import Neuron
from superpos.views.oracle import Oracle
from superpos.views.pca import PCA, SignedPCA
from superpos.views.reconstruction import Reconstruction
from superpos.views.rotation import Rotation
from superpos.views.sae import SAE
from superpos.views.supervised import Supervised
from superpos.views.top import Top
from superpos.views.topk_pca import TopKPCA
from superpos.views.untrained import Untrained

__all__ = [
    "ICA",
    "PCA",
    "SAE",
    "VIEWS",
    "Both",
    "Cumulant",
    "Draw",
    "Given",
    "LayerNorm",
    "Loaded",
    "Neuron",
    "Oracle",
    "Reconstruction",
    "Rotation",
    "Rows",
    "SignedPCA",
    "Supervised",
    "Top",
    "TopKPCA",
    "Untrained",
    "View",
    "encode_all",
    "fit_all",
    "params_of",
    "prepare_all",
    "shared",
]

# By the names that comparisons and figures know them by.
VIEWS: dict[str, type[View]] = {
    "neuron": Neuron,
    "layer_norm": LayerNorm,
    "rotation": Rotation,
    "pca": PCA,
    "signed_pca": SignedPCA,
    "topk_pca": TopKPCA,
    "ica": ICA,
    "cumulant": Cumulant,
    "sae": SAE,
    "random_sae": Untrained,
    "loaded": Loaded,
    "reconstruction": Reconstruction,
    "both": Both,
    "top": Top,
    "oracle": Oracle,
    "supervised": Supervised,
    "given": Given,
}

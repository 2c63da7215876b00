"""Views: one file a way to read a representation, one interface.

`fit(key, draw) -> params` on samples that are not scored, `encode(params, x) -> (n, k)` on those that are. A control
is a view: what could explain a gain besides superposition stands beside it as one more entry of a dictionary.

To add one: write it in a file here, and name it in `VIEWS`.
"""

from superpos.views.base import Draw, Rows, View, encode_all, fit_all, params_of, shared
from superpos.views.neuron import Neuron
from superpos.views.sae import SAE, Both, Reconstruction, Untrained
from superpos.views.top import Top

__all__ = [
    "SAE",
    "VIEWS",
    "Both",
    "Draw",
    "Neuron",
    "Reconstruction",
    "Rows",
    "Top",
    "Untrained",
    "View",
    "encode_all",
    "fit_all",
    "params_of",
    "shared",
]

# By the names that comparisons and figures know them by.
VIEWS: dict[str, type[View]] = {
    "neuron": Neuron,
    "sae": SAE,
    "random_sae": Untrained,
    "reconstruction": Reconstruction,
    "both": Both,
    "top": Top,
}

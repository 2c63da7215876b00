"""How much of the ground truth a representation shows."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from superpos.metrics.matching import SemiMatch
from superpos.moments import Moments, pool


def feature_recovery(moments: Moments) -> Float[Array, " features"]:
    """For each feature its highest Pearson correlation with any unit, over all samples: `(n_features,)`.

    Source: Longon, Klindt & Khosla, arXiv 2510.03186, feature recovery of the toy models.

    Args:
        moments: source: the units of a representation; target: the features.
    """
    everything = pool(moments, jnp.ones((1, moments.n_folds), bool))
    units = SemiMatch()(everything).units
    assert units is not None
    return units[0]

"""Alignment predicted from arrangements alone, and what superposition does to each metric: no sample drawn.

- `weights`: two given arrangements: `predict`, `predict_pairs`;
- `laws`: two random arrangements that share all features or a part: `random_cka` and so on, `expected`;
- `inversion`: the overlap that a score implies: `invert`;
- `rectified`: given arrangements of rectified units;
- `finite`: what a number of samples and noise do to a score;
- `fourth`: cumulants of fourth order, which superposition does not deflate;
- `recovery`: when features can be recovered;
- `simulation`: samples beside all this.
"""

from superpos.theory.finite import PlugIn, held_out_ols, noisy, plug_in
from superpos.theory.fourth import SamplingError, cokurtosis, cokurtosis_error, energy_cumulant, feature_cumulants
from superpos.theory.inversion import Implied, invert, same_arrangement
from superpos.theory.laws import (
    RANDOM,
    effective_dimension,
    expected,
    random_cca,
    random_cka,
    random_cokurtosis,
    random_cumulant_cka,
    random_debiased_cka,
    random_jaccard,
    random_mcc,
    random_ols,
    random_permutation_match,
    random_pls,
    random_procrustes,
    random_pwcca,
    random_ridge,
    random_rsa,
    random_semi_match,
    random_soft_match,
    random_svcca,
)
from superpos.theory.recovery import feature_limit, isometry_recovers, phase_transition, recoverable_sparsity
from superpos.theory.rectified import population_rectified
from superpos.theory.simulation import UNITS, agreement, agreement_of_random, measure, simulate_random, summary
from superpos.theory.weights import (
    PREDICTED,
    correlations,
    covariances,
    endless,
    perfectly_matchable,
    population,
    predict,
    predict_pairs,
)

__all__ = [
    "PREDICTED",
    "RANDOM",
    "UNITS",
    "Implied",
    "PlugIn",
    "SamplingError",
    "agreement",
    "agreement_of_random",
    "cokurtosis",
    "cokurtosis_error",
    "correlations",
    "covariances",
    "effective_dimension",
    "endless",
    "energy_cumulant",
    "expected",
    "feature_cumulants",
    "feature_limit",
    "held_out_ols",
    "invert",
    "isometry_recovers",
    "measure",
    "noisy",
    "perfectly_matchable",
    "phase_transition",
    "plug_in",
    "population",
    "population_rectified",
    "predict",
    "predict_pairs",
    "random_cca",
    "random_cka",
    "random_cokurtosis",
    "random_cumulant_cka",
    "random_debiased_cka",
    "random_jaccard",
    "random_mcc",
    "random_ols",
    "random_permutation_match",
    "random_pls",
    "random_procrustes",
    "random_pwcca",
    "random_ridge",
    "random_rsa",
    "random_semi_match",
    "random_soft_match",
    "random_svcca",
    "recoverable_sparsity",
    "same_arrangement",
    "simulate_random",
    "summary",
]

"""Alignment metrics. Each is a small frozen dataclass that turns moments, or samples, into a `Score`.

To add one: write it in a file here that ends in `register(...)`, and import it below.
"""

from superpos.metrics.base import Metric as Metric
from superpos.metrics.base import Samples as Samples
from superpos.metrics.base import Score as Score
from superpos.metrics.base import Scores as Scores
from superpos.metrics.cumulants import Cokurtosis as Cokurtosis
from superpos.metrics.cumulants import CumulantCCA as CumulantCCA
from superpos.metrics.cumulants import CumulantCKA as CumulantCKA
from superpos.metrics.geometry import CCA as CCA
from superpos.metrics.geometry import CKA as CKA
from superpos.metrics.geometry import Jaccard as Jaccard
from superpos.metrics.geometry import MutualKNN as MutualKNN
from superpos.metrics.geometry import Procrustes as Procrustes
from superpos.metrics.matching import PartialSoftMatch as PartialSoftMatch
from superpos.metrics.matching import PermutationMatch as PermutationMatch
from superpos.metrics.matching import SemiMatch as SemiMatch
from superpos.metrics.matching import SoftMatch as SoftMatch
from superpos.metrics.matching import SoftMatchDistance as SoftMatchDistance
from superpos.metrics.recovery import FeatureRecovery as FeatureRecovery
from superpos.metrics.recovery import MeanCorrelation as MeanCorrelation
from superpos.metrics.recovery import Uniqueness as Uniqueness
from superpos.metrics.registry import names as names
from superpos.metrics.registry import register as register
from superpos.metrics.registry import resolve as resolve
from superpos.metrics.regression import NNLS as NNLS
from superpos.metrics.regression import OLS as OLS
from superpos.metrics.regression import PLS as PLS
from superpos.metrics.ridge import Ridge as Ridge
from superpos.metrics.rsa import RSA as RSA
from superpos.metrics.sampled import SampledCKA as SampledCKA

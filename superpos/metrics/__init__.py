"""Alignment metrics. Each is a small frozen dataclass that turns moments, or samples, into a `Score`.

To add one: write it in a file here, and name it in `_METRICS`.
"""

from collections.abc import Sequence

from superpos.metrics.base import Metric, Samples, Score
from superpos.metrics.geometry import CCA, CKA, RSA, Jaccard, MutualKNN, Procrustes
from superpos.metrics.matching import PartialSoftMatch, PermutationMatch, SemiMatch, SoftMatch, SoftMatchDistance
from superpos.metrics.recovery import FeatureRecovery, MeanCorrelation, Uniqueness
from superpos.metrics.regression import NNLS, OLS, PLS
from superpos.metrics.ridge import Ridge

__all__ = [
    "CCA",
    "CKA",
    "NNLS",
    "OLS",
    "PLS",
    "RSA",
    "FeatureRecovery",
    "Jaccard",
    "MeanCorrelation",
    "Metric",
    "MutualKNN",
    "PartialSoftMatch",
    "PermutationMatch",
    "Procrustes",
    "Ridge",
    "Samples",
    "Score",
    "SemiMatch",
    "SoftMatch",
    "SoftMatchDistance",
    "Uniqueness",
    "names",
    "resolve",
]

_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        SemiMatch(),
        SoftMatch(),
        PermutationMatch(),
        PartialSoftMatch(),
        SoftMatchDistance(),
        Ridge(),
        OLS(),
        NNLS(),
        PLS(),
        CKA(),
        CKA(debiased=True, name="debiased_cka"),
        Procrustes(),
        Procrustes(kind="angular", name="procrustes_angular"),
        Procrustes(kind="bures", name="procrustes_bures"),
        CCA(),
        CCA(variance=0.99, name="svcca"),
        CCA(projection_weighted=True, name="pwcca"),
        RSA(),
        RSA(kind="spearman", name="rsa_spearman"),
        RSA(kind="kendall", name="rsa_kendall"),
        MutualKNN(),
        Jaccard(),
        FeatureRecovery(),
        MeanCorrelation(),
        Uniqueness(),
    )
}


def names() -> tuple[str, ...]:
    """Every metric name that `sp.align` takes."""
    return tuple(_METRICS)


def resolve(metrics: Sequence[str | Metric] | str | Metric) -> tuple[Metric, ...]:
    """Metrics from names or configured metrics.

    Raises:
        ValueError: an unknown name, something that is not a metric, or two metrics of one name.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        metrics = (metrics,)
    resolved: list[Metric] = []
    for metric in metrics:
        if isinstance(metric, str):
            if metric not in _METRICS:
                raise ValueError(f"metrics takes names out of {', '.join(_METRICS)}, got {metric!r}.")
            metric = _METRICS[metric]
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics takes names or configured metrics, got {metric!r}.")
        if metric.name in (other.name for other in resolved):
            raise ValueError(f"metrics has {metric.name!r} twice: give one of them another name=.")
        resolved.append(metric)
    if not resolved:
        raise ValueError("metrics is empty: name at least one metric.")
    return tuple(resolved)

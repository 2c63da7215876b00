"""Alignment metrics. Each is a small frozen dataclass that turns moments into a `Score`.

To add one: write it in a file here, and name it in `_METRICS`.
"""

from collections.abc import Callable, Sequence

from superpos.metrics.base import Metric, Score
from superpos.metrics.matching import SemiMatch, SoftMatch
from superpos.metrics.recovery import feature_recovery
from superpos.metrics.regression import Ridge

__all__ = ["Metric", "Ridge", "Score", "SemiMatch", "SoftMatch", "feature_recovery", "names", "resolve"]

_METRICS: dict[str, Callable[[], Metric]] = {"semi_match": SemiMatch, "soft_match": SoftMatch, "ridge": Ridge}


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
            metric = _METRICS[metric]()
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics takes names or configured metrics, got {metric!r}.")
        if metric.name in (other.name for other in resolved):
            raise ValueError(f"metrics has {metric.name!r} twice: give one of them another name=.")
        resolved.append(metric)
    if not resolved:
        raise ValueError("metrics is empty: name at least one metric.")
    return tuple(resolved)

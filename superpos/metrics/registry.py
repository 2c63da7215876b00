"""Metrics by name."""

from collections.abc import Sequence

from superpos.metrics.base import Metric
from superpos.results import did_you_mean

_REGISTERED: dict[str, Metric] = {}


def register(*metrics: Metric) -> None:
    """Lets metrics go by their names, in `sp.align` and wherever metrics are named.

    Raises:
        ValueError: something that is not a metric, or a name that another one has.
    """
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise ValueError(f"register takes metrics, got {metric!r}.")
        if _REGISTERED.setdefault(metric.name, metric) != metric:
            raise ValueError(f"register has a metric named {metric.name!r} already: give this one another name=.")


def names() -> tuple[str, ...]:
    """Every metric name that `sp.align` takes."""
    return tuple(_REGISTERED)


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
            if metric not in _REGISTERED:
                hint = did_you_mean(metric, _REGISTERED)
                raise ValueError(f"no metric is called {metric!r}{hint}: metrics takes names out of {', '.join(_REGISTERED)}.")
            metric = _REGISTERED[metric]
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics takes names or configured metrics, got {metric!r}.")
        if metric.name in (other.name for other in resolved):
            raise ValueError(f"metrics has {metric.name!r} twice: give one of them another name=.")
        resolved.append(metric)
    if not resolved:
        raise ValueError("metrics is empty: name at least one metric.")
    return tuple(resolved)

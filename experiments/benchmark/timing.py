"""Both sides of a work, timed in turn."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

LONG = 60  # seconds: what takes longer runs once, its compilation counted in


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Another way to the same scores.

    Attributes:
        name: for the table.
        run: returns the first of our scores, or all of them.
        target: how many times faster than this we mean to be; None where it is there for orientation.
        times: what the time is multiplied with, where `run` does only a part of the work. It then runs once.
        note: what to know of it.
    """

    name: str
    run: Callable[[], np.ndarray]
    target: float | None = None
    times: float = 1
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time: `ours` returns scores as a NumPy array, so that nothing is left to wait for."""

    name: str
    ours: Callable[[], np.ndarray]
    alternatives: Sequence[Alternative]


def rows(works: Sequence[Work], repeats: int, threads: int, n_units: int) -> list[dict[str, Any]]:
    """Times every work beside its alternatives: a row each.

    Args:
        works: of a suite.
        repeats: runs of each side, slow alternatives excepted.
        threads: that XLA has.
        n_units: units of the product of matrices that tells how many threads the alternatives are better off with.
    """
    found: list[dict[str, Any]] = []
    with tqdm(total=sum(len(work.alternatives) for work in works), desc="benchmark", disable=None) as bar:
        for work in works:
            scores, (first,) = clock(work.ours, 1)
            ours = [first]
            if first < LONG:
                scores, ours = clock(work.ours, repeats)
            for other in work.alternatives:
                timed = _beside(other, scores, ours, threads, n_units)
                found.append({"work": work.name, **timed, "compile_s": max(first - min(ours), 0), "note": other.note})
                bar.update()
    return found


def _beside(other, scores, ours, threads, n_units):
    """Times an alternative: its part of the row."""
    limit = _faster(threads, n_units)
    with _threads(limit):
        found, theirs = clock(other.run, len(ours) if other.times == 1 else 1)
    theirs = [other.times * spent for spent in theirs]
    ratio = statistics.median(theirs) / statistics.median(ours)
    return {
        "against": other.name,
        "ours_s": statistics.median(ours),
        "theirs_s": statistics.median(theirs),
        "ratio": ratio,
        "target": other.target,
        "met": None if other.target is None else ratio >= other.target,
        "difference": float(np.max(np.abs(scores[: len(found)] - found))),
        "ours_min_s": min(ours),
        "theirs_min_s": min(theirs),
        "theirs_threads": limit,
    }


def _threads(limit):
    """BLAS and OpenMP with so many threads."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limit)


def _faster(threads, n_units):
    """`threads` or 1, whichever multiplies so many units faster just now."""
    a, b = np.random.default_rng(0).standard_normal((2, 20_000, n_units), np.float32)

    def spent(limit):
        with _threads(limit):
            return statistics.median(clock(lambda: a.T @ b, 5)[1])

    return min((threads, 1), key=spent)


def clock(function: Callable[[], Any], repeats: int) -> tuple[Any, list[float]]:
    """What the last of some calls returned, and the seconds that each took."""
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        spent.append(time.perf_counter() - started)
    return result, spent

"""How instruments are judged: a column a question, from their scores of worlds whose truth is known. NumPy, on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

LEVEL = 0.05  # of the test that an instrument makes of its own scores
PLAIN = ("", "number")  # the causes of worlds that maps are learned on
ENOUGH = 19  # scores of rolled samples, fewer than which there is no test at that level
CAUSES = ("basis", "number", "normalisation", "sparsity", "arrangement", "units", "features", "noise", "samples")


def judge(table: Any, n_boot: int = 200) -> Any:
    """The columns by which instruments are compared, of a table of `sp.calibration.run`.

    A score that is NaN costs points: its error is the largest that there can be, and the order of its pairs is wrong.

    Columns, of an xarray Dataset over `instrument`:
        undefined: share of worlds without a score.
        rms, bias: of score - ρ, ρ by variance, as the scores are.
        calibrated: rms error after the best increasing map from scores to ρ, learned on plain worlds of another seed, or, where
            all have one seed, on the worlds of all other families.
        calibrated_count, calibrated_kurtosis: the same for ρ by count and by kurtosis.
        disorder: share of pairs of worlds that differ in ρ only which are put in the wrong order; ties count half.
        disorder_low, disorder_high: its 95 % interval, families being the sample.
        disorder_across: of pairs of plain worlds that differ in the number of units, or in superposition, as well.
        at_zero, false_alarms: mean score at ρ = 0, and the share of these worlds whose score is above 95 % of the
            instrument's own scores of rolled samples, among worlds of the same shape, seed and number of samples; NaN where
            there are fewer than 19 of these. Families are draws of their own, so that each is one test.
        moved_by: `(instrument, cause)`, mean change of the score where only this differs, in units of its change from ρ = 0
            to 1 in plain worlds.
        moved: the mean of `moved_by` over causes: an instrument of ρ moves with ρ and with nothing else.
        error: `(instrument, family)`, mean |error| after the map.

    Args:
        table: with `score`, `null` `(instrument, world)`, `truth_variance`, `truth_count`, `truth_kurtosis`, `family`,
            `cause`, `of`, `units`, `seed` `(world,)`, of which the last seed is judged, and `distance` `(instrument,)`.
        n_boot: draws of families for intervals.
    """
    import xarray

    sign = np.where(table.distance.values, -1.0, 1.0)[:, None]
    earlier = table.isel(world=table.seed.values != table.seed.values[-1])
    table = table.isel(world=table.seed.values == table.seed.values[-1])
    learned = earlier if earlier.sizes["world"] else table
    taught = learned.family.values.astype(str) if learned is table else np.full(earlier.sizes["world"], "")
    names = [str(name) for name in table.instrument.values]
    family, units = table.family.values.astype(str), table.units.values.astype(str)
    truths = {kind: table[f"truth_{kind}"].values for kind in ("variance", "count", "kurtosis")}
    overlap, samples = table.overlap.values, table.samples.values
    scores, nulls = sign * table.score.values, sign * table.null.values
    families = list(dict.fromkeys(family))
    cause_of = {name: str(cause) for name, cause in zip(family, table.cause.values, strict=True)}
    of = {name: str(base) for name, base in zip(family, table.of.values, strict=True)}
    alike = same_but_overlap(family, truths["variance"])
    plain = np.array([cause_of[name] in ("", "number", "basis") for name in family])
    across = [
        (i, j)
        for i in np.flatnonzero(plain)
        for j in np.flatnonzero(plain)
        if family[i] != family[j] and truths["variance"][i] < truths["variance"][j] - 0.1
    ]
    zero = (overlap == 0) | (truths["variance"] == 0)
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(families), len(families)) for _ in range(n_boot)]
    columns: dict[str, list[Any]] = {}
    for score, null, lesson in zip(scores, nulls, sign * learned.score.values, strict=True):
        told = np.isfinite(score)
        known = truths["variance"]
        worst = np.maximum(known, 1 - known)
        raw = np.where(told, score - known, worst)
        row: dict[str, Any] = {
            "undefined": float(np.mean(~told)),
            "rms": float(np.sqrt(np.mean(raw**2))),
            "bias": float(np.mean(raw[told])) if told.any() else np.nan,
        }
        for kind, truth in truths.items():
            mapped = calibrated(score, family, lesson, learned[f"truth_{kind}"].values, taught)
            error = np.where(np.isfinite(mapped), np.abs(mapped - truth), np.maximum(truth, 1 - truth))
            row["calibrated" if kind == "variance" else f"calibrated_{kind}"] = float(np.sqrt(np.mean(error**2)))
            if kind == "variance":
                row["error"] = [float(np.mean(error[family == name])) for name in families]
        wrong = disorder(score, alike)
        by_family = [wrong[[family[i] == name for i, _ in alike]] for name in families]
        row["disorder"] = float(np.mean(wrong)) if len(wrong) else np.nan
        again = [np.concatenate([by_family[i] for i in drawn]) for drawn in draws]
        means = [float(np.mean(values)) for values in again if values.size]
        row["disorder_low"], row["disorder_high"] = np.percentile(means, [2.5, 97.5]) if means else (np.nan, np.nan)
        row["disorder_across"] = float(np.mean(disorder(score, across))) if across else np.nan
        at_zero = mean_of(score[zero & told])
        row["at_zero"] = at_zero
        alarms = []
        for i in np.flatnonzero(zero):
            own = null[(units == units[i]) & (samples == samples[i])]
            own = own[np.isfinite(own)]
            if own.size >= ENOUGH and told[i]:
                alarms.append(score[i] > np.quantile(own, 1 - LEVEL))
        row["false_alarms"] = float(np.mean(alarms)) if alarms else np.nan
        moved = changes(score, family, overlap, cause_of, of)
        row["moved_by"] = [moved.get(cause, np.nan) for cause in CAUSES]
        row["moved"] = float(np.nanmean(row["moved_by"])) if np.isfinite(row["moved_by"]).any() else np.nan
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    dims = {"moved_by": ("instrument", "cause"), "error": ("instrument", "family")}
    found = {name: (dims.get(name, ("instrument",)), np.asarray(values, float)) for name, values in columns.items()}
    return xarray.Dataset(found, {"instrument": names, "cause": list(CAUSES), "family": families})


def ranked(judged: Any) -> Any:
    """The places of instruments, best first: by order, then by order across widths, then by the error after the map."""
    return np.lexsort([judged[name].values for name in ("calibrated", "disorder_across", "disorder")])


def mean_of(values: Any) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(values)) if np.size(values) else np.nan


def same_but_overlap(family: Any, truth: Any) -> list[tuple[int, int]]:
    """Pairs of worlds of one family, the one that shares less first.

    >>> same_but_overlap(np.array(["a", "a", "b"]), np.array([1.0, 0.0, 0.5]))
    [(1, 0)]
    """
    n = range(len(family))
    return [(i, j) for i in n for j in n if family[i] == family[j] and truth[i] < truth[j]]


def disorder(score: Any, pairs: Any) -> Any:
    """For each pair 0 where the second scores higher, 1 where it does not, ½ for a tie; 1 where a score is NaN."""
    if not len(pairs):
        return np.zeros(0)
    lower, higher = (np.asarray(score)[[pair[i] for pair in pairs]] for i in (0, 1))
    wrong = np.where(lower < higher, 0.0, np.where(lower == higher, 0.5, 1.0))
    return np.where(np.isfinite(lower) & np.isfinite(higher), wrong, 1.0)


def calibrated(score: Any, family: Any, lesson: Any, truth: Any, lesson_family: Any) -> Any:
    """Each score as the overlap that it stands for, by the best increasing map that worlds of other families teach it.

    Source: isotonic regression (Barlow et al. 1972), interpolated between scores; NaN stays NaN.

    Args:
        score, family: of the worlds that are judged.
        lesson, truth, lesson_family: scores, overlaps and families of those that the map is learned on.
    """
    found = np.full(len(score), np.nan)
    for name in dict.fromkeys(family):
        own, others = family == name, (lesson_family != name) & np.isfinite(lesson)
        if others.sum() < 2:
            continue
        x, place = np.unique(lesson[others], return_inverse=True)
        weight = np.bincount(place)
        mean = np.bincount(place, truth[others]) / weight
        fitted = isotonic_regression(mean, weights=weight).x
        found[own] = np.where(np.isfinite(score[own]), np.interp(np.nan_to_num(score[own]), x, fitted), np.nan)
    return found


def changes(score: Any, family: Any, overlap: Any, cause_of: Any, of: Any) -> dict[str, float]:
    """By cause, the mean |change| of the score at the same overlap, in units of its change with the overlap in plain worlds."""
    at = {(name, float(rho)): value for name, rho, value in zip(family, overlap, score, strict=True)}
    plain = [name for name, cause in cause_of.items() if not cause]
    spans = [at[name, 1.0] - at[name, 0.0] for name in plain if (name, 1.0) in at and (name, 0.0) in at]
    span = np.nanmean(spans) if np.isfinite(spans).any() else np.nan
    found: dict[str, list[float]] = {}
    for (name, rho), value in at.items():
        if cause_of[name] and (of[name], rho) in at:
            found.setdefault(cause_of[name], []).append(abs(value - at[of[name], rho]))
    if not abs(span) > 1e-12:
        return {}
    means = {cause: np.asarray(values)[np.isfinite(values)] for cause, values in found.items()}
    return {cause: float(np.mean(values) / abs(span)) for cause, values in means.items() if values.size}


def gains(table: Any, metric: str, view: str, controls: tuple[str, ...], at: Callable[[Any], Any] | None = None) -> list[dict]:
    """What a metric gains by a view over neurons, and the share of it that each control gives too, by overlap.

    Args:
        table: of `sp.calibration.run`.
        metric, view, controls: names, as in "<metric> on <view>".
        at: which worlds, a mask by `table`; by default those in superposition: fewer units than features, plain.
    """
    here = superposed(table) if at is None else at(table)
    score = {name: table.score.sel(instrument=f"{metric} on {name}").values for name in ("neurons", view, *controls)}
    rows = []
    for overlap in sorted(set(table.overlap.values[here].tolist())):
        some = here & (table.overlap.values == overlap)
        mean = {name: float(np.nanmean(values[some])) for name, values in score.items()}
        gain = mean[view] - mean["neurons"]
        shares = {f"by {name}": (mean[name] - mean["neurons"]) / gain if gain > 0.01 else np.nan for name in controls}
        rows.append({"metric": metric, "view": view, "overlap": overlap, "neurons": mean["neurons"], "gain": gain, **shares})
    return rows


def superposed(table: Any) -> Any:
    """Which worlds are plain but for superposition."""
    cause, family = table.cause.values.astype(str), table.family.values.astype(str)
    return np.isin(cause, ("", "number", "arrangement")) & (family != "monosemantic")

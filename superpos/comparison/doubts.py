"""What gives reason to doubt a comparison: one check each, with a threshold and one line of text.

A check reads a finished `Comparison` and gives sentences, none where all is well. It looks at what the numbers say, not at
whether they please: the rate of false doubts over sound worlds is tested. To add one: write it here, and name it in `CHECKS`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from superpos import stats
from superpos.comparison.batches import ends
from superpos.views import Neuron, Untrained

if TYPE_CHECKING:
    from superpos.comparison.result import Comparison

EXPLAINED = 0.5  # share of the variance that an SAE should explain on samples that it was not fitted on
OVERFITTED = 0.2  # more than this of the variance is explained on training samples only
ROWS = 10  # training samples a latent
SAMPLES = 10  # groups of samples in a fold
UNITS = 1.5  # times as many units
AUTOCORRELATION = 0.1  # of neighbouring residuals


class Doubt(NamedTuple):
    """A reason to doubt a result: the name of the check that found it, and a sentence."""

    check: str
    doubt: str


def found(compared: "Comparison") -> list[Doubt]:
    """All doubts that apply, in the order of `CHECKS`."""
    return [Doubt(name, sentence) for name, check in CHECKS.items() for sentence in check(compared)]


def _views(compared: "Comparison") -> Iterator[str]:
    """What views say of themselves, such as an ICA that has not converged."""
    for side, name, view, mine in compared.described():
        yield from (f"{name} of {side}: {doubt}" for doubt in view.doubts(mine))


def _metrics(compared: "Comparison") -> Iterator[str]:
    """What metrics say of their scores, such as an alpha at the end of its grid."""
    for metric in compared.plan.metrics:
        told: dict[str, list[str]] = {}
        for (label, _, comparison), scores in compared.cells.items():
            for seed in range(len(scores[metric.name]["mean"])):
                for doubt in metric.doubts(compared.seed_score(scores[metric.name], seed)):
                    told.setdefault(doubt, []).append(f"{comparison} of {label}")
        for doubt, where in told.items():
            places = list(dict.fromkeys(where))
            yield f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {doubt}"


def _chance(compared: "Comparison") -> Iterator[str]:
    """Neurons that tell nothing of each other: rows in another order, or of another session."""
    of_label: dict[str, list[dict[str, Any]]] = {}
    distances = {metric.name for metric in compared.plan.metrics if metric.distance}  # at 0 these are alike
    for row in compared.summary():
        if row["metric"] in distances:
            continue
        source, target = (compared.plan.view(side, name) for side, name in compared.ends_of(row["pair"], row["comparison"]))
        fitted = any(
            np.any(scores.get("crossed", 0)) for scores in compared.cells_of(row["pair"], row["comparison"], row["metric"])
        )
        if isinstance(source, Neuron) and isinstance(target, Neuron) and row["ci95"] and fitted:
            of_label.setdefault(row["pair"], []).append(row)
    for label, rows in of_label.items():
        if all(row["ci95"][0] <= 0 for row in rows):
            row = rows[0]
            shown = "{:.3f}, {:.3f} to {:.3f}".format(row["mean"], *row["ci95"])
            yield (
                f"{row['comparison']} of {label} is not told from chance ({row['metric']} {shown}): are the rows of both "
                "sides the same samples, in the same order, of the same session?"
            )


def _untrained(compared: "Comparison") -> Iterator[str]:
    """Training that brought nothing."""
    rows = {(row["pair"], row["metric"], row["comparison"]): row for row in compared.summary()}
    views = compared.plan.known
    for (label, metric, comparison), row in rows.items():
        for other, (at, of, control) in ((rows[key], key) for key in rows):
            if (at, of) != (label, metric) or not _is_control(views, control, comparison):
                continue
            distance = next(one.distance for one in compared.plan.metrics if one.name == metric)
            if (row["mean"] - other["mean"]) * (-1 if distance else 1) <= 0:
                yield (
                    f"{control} of {label} ({metric} {other['mean']:.3f}) is at least as good as {comparison} "
                    f"({row['mean']:.3f}): whatever latents have, they need no training for it."
                )


def _is_control(views: Any, control: str, comparison: str) -> bool:
    """Whether a comparison is another one with untrained latents in place of trained ones."""
    pairs = list(zip(ends(control), ends(comparison), strict=True))
    changed = [(a, b) for a, b in pairs if a != b]
    return bool(changed) and all(
        a in views and b in views and isinstance(views[a], Untrained) and views[a].of == views[b] for a, b in changed
    )


def _explained(compared: "Comparison") -> Iterator[str]:
    """SAEs that explain little, or much less than of the samples that they were fitted on."""
    for side, name, view, mine in compared.described():
        if isinstance(view, Untrained) or "explained" not in mine:
            continue
        shown = float(np.mean(mine["explained"]))
        trained = float(np.mean(mine["explained_training"])) if "explained_training" in mine else None
        beside = "" if trained is None else f", and {trained:.0%} of training samples"
        if 0 < shown < EXPLAINED or (trained is not None and trained - shown > OVERFITTED):
            yield (
                f"{name} of {side} explains {shown:.0%} of the variance of samples that it was not fitted on{beside}: "
                "what it does not explain is missing from its latents. Train on more samples, or raise k."
            )


def _spread(compared: "Comparison") -> Iterator[str]:
    """Differences that are shown, but that another setting of the SAE changes by more than they are."""
    plan = compared.plan
    varied = dict.fromkeys(name for of in plan.settings.values() for name in of)
    first = plan.comparisons[0]
    for name in varied:
        if name == first or any(_root(plan.known, end, Untrained) for end in ends(name)):
            continue
        for label, curve in compared.curve(name, first).items():
            low, high = curve["rows"][0]["mean"], curve["rows"][-1]["mean"]
            chosen = curve["rows"][curve["rank"] - 1]
            shown = chosen["ci95"] is None or chosen["ci95"][0] > 0 or chosen["ci95"][1] < 0
            if shown and high - low > abs(chosen["mean"]):
                yield (
                    f"{name} - {first} of {label} is {chosen['mean']:+.3f}, and {low:+.3f} to {high:+.3f} over "
                    f"{curve['n_settings']} settings: the setting changes it by more than it is. Tell the whole curve."
                )


def _root(views: Any, name: str, kind: type) -> bool:
    """Whether a view is of a kind, or is of one that is."""
    view = views.get(name)
    while view is not None and not isinstance(view, kind):
        view = view.of
    return view is not None


def _rows(compared: "Comparison") -> Iterator[str]:
    """Few training samples a latent."""
    for side, name, view, _ in compared.described():
        latents, rows = compared.width(side, name), len(compared.plan.divided.training[side])
        if hasattr(view, "steps") and 0 < rows < ROWS * latents:
            yield f"{name} of {side} has {latents} latents, which {rows} samples trained: {ROWS} for each would be few."


def _folds(compared: "Comparison") -> Iterator[str]:
    """Few samples in a fold."""
    divided = compared.plan.divided
    least = min(len(np.unique(divided.groups[divided.folds == fold])) for fold in range(divided.n_folds))
    if least < SAMPLES:
        yield f"A fold has {least} samples, or groups of them, whose scores are mostly noise: take fewer folds, or more images."


def _dropped(compared: "Comparison") -> Iterator[str]:
    """Target units that were left out since they are constant in some fold."""
    told = set()
    for (label, pair, comparison), metrics in compared.cells.items():
        if not isinstance(compared.plan.view(pair[1], ends(comparison)[1]), Neuron):
            continue
        for metric, scores in metrics.items():
            if "live" not in scores or (label, metric) in told:
                continue
            live = scores["live"].all(axis=(0, 1))
            if not live.all():
                told.add((label, metric))
                mean = float(scores["mean"].mean())
                yield (
                    f"{live.size - live.sum()} of {live.size} target units of {label} are constant in some fold, and left out: "
                    f"with them at 0 {metric} of {comparison} would be {mean * live.mean():.3f}, not {mean:.3f}."
                )


def _unequal(compared: "Comparison") -> Iterator[str]:
    """Gains that more units alone could bring, where no other view has as many."""
    plan = compared.plan
    for label in plan.pairs:
        listed = [name for name in plan.of_label[label] if compared.cells_of(label, name, plan.metrics[0].name)]
        sizes = {name: compared.width(*compared.ends_of(label, name)[0]) for name in listed}
        read = {name: plan.view(*compared.ends_of(label, name)[0]) for name in listed}
        plain = [name for name in listed if isinstance(read[name], Neuron)]
        for name in listed:
            trained = hasattr(read[name], "steps")
            alike = [
                other
                for other in listed
                if not hasattr(read[other], "steps")
                and sizes[name] <= UNITS * sizes[other]
                and sizes[other] <= UNITS * sizes[name]
            ]
            if trained and plain and sizes[name] > UNITS * sizes[plain[0]] and not alike:
                yield (
                    f"{name} of {label} predicts from {sizes[name]} units, {plain[0]} from {sizes[plain[0]]}: compare as many, "
                    "by the view top, or beside untrained latents."
                )


def _autocorrelated(compared: "Comparison") -> Iterator[str]:
    """Neighbouring samples that resemble each other, on both sides of a shuffled split."""
    plan, divided = compared.plan, compared.plan.divided
    if plan.blocked or len(np.unique(divided.groups)) < len(divided.groups):
        return
    for label, ((source, target), *_) in plan.pairs.items():
        x, y = (np.asarray(plan._pooled(divided.scored[side]), np.float64) for side in (source, target))
        if len(x) == len(divided.images):
            r, error = stats.lag_one(x, y, divided.images)
            if r > max(AUTOCORRELATION, 3 * error):
                yield (
                    f"Neighbouring samples of {label} have residuals that correlate by {r:.2f}: shuffled folds leak between "
                    'them. Use folds="blocks" with a gap.'
                )


def _repeated(compared: "Comparison") -> Iterator[str]:
    """Copies of a sample in several folds."""
    divided = compared.plan.divided
    for side, x in divided.scored.items():
        rows = [row.tobytes() for row in np.ascontiguousarray(x.reshape(len(x), -1)) if np.ptp(row) > 0]
        varied = divided.folds[np.ptp(x.reshape(len(x), -1), axis=1) > 0]
        folds: dict[bytes, set[int]] = {}
        for row, fold in zip(rows, varied, strict=True):
            folds.setdefault(row, set()).add(int(fold))
        copies = sum(len(of) > 1 for of in folds.values())
        if copies:
            yield f"{copies} samples of {side} are in several folds: a map is scored by what it was fitted on. Give groups."


_PATCH = re.compile(r"^(.*?)[_\-/. :](?:patch|crop|tile|pos|position|p)[_\-]?\d+(?:\.\w+)?$", re.IGNORECASE)


def _patches(compared: "Comparison") -> Iterator[str]:
    """Names that look like patches of one image, which no group keeps together."""
    divided = compared.plan.divided
    names = next((side.names for side in compared.plan.sides.values() if side.names is not None), None)
    if names is None:
        return
    stems = [match[1] if (match := _PATCH.match(str(names[i]))) else None for i in divided.images]
    image, count = Counter(stem for stem in stems if stem is not None).most_common(1)[0] if any(stems) else ("", 0)
    if count > 1:
        groups = {divided.groups[i] for i, stem in enumerate(stems) if stem == image}
        if len(groups) > 1:
            yield f"{count} samples are named as parts of {image}, but are {len(groups)} groups: give groups, one an image."


def _seeds(compared: "Comparison") -> Iterator[str]:
    """Seeds too few for an interval."""
    if compared.plan.n_seeds == 2 and not compared.plan.n_blocks:
        yield "Two seeds leave nothing to estimate an interval from: use n_seeds=3 or more, or n_blocks."


CHECKS: dict[str, Callable[["Comparison"], Iterator[str]]] = {
    "views": _views,
    "metrics": _metrics,
    "chance": _chance,
    "untrained": _untrained,
    "explained": _explained,
    "spread": _spread,
    "rows": _rows,
    "folds": _folds,
    "dropped": _dropped,
    "unequal": _unequal,
    "autocorrelated": _autocorrelated,
    "repeated": _repeated,
    "patches": _patches,
    "seeds": _seeds,
}

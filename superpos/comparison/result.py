"""What a comparison found: scores, and the intervals that they have."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from superpos import reliability, selectivity, stats
from superpos.comparison import doubts
from superpos.comparison.batches import ends, rivals
from superpos.comparison.doubts import Doubt
from superpos.metrics import Score
from superpos.results import did_you_mean
from superpos.views import SAE, Loaded, Neuron, View, params_of, shared


def flat(array: Any) -> Any:
    """`(images, positions, units)` as `(samples, units)`."""
    return array.reshape(-1, array.shape[-1])


class Stack(NamedTuple):
    """Sides that share programs."""

    names: list[str]
    views: dict[str, View]
    scored: list[np.ndarray]
    training: list[np.ndarray]


class Fits(NamedTuple):
    """What a family of views learned: leaves (sides x seeds, ...)."""

    views: Mapping[str, View]
    fits: dict[str, Any]
    described: dict[str, dict[str, np.ndarray]]
    n_seeds: int

    def params(self, name: str, row: Any) -> Any:
        """The params of a view for one side and seed."""
        here = isinstance(row, int)  # else traced
        return params_of(self.views, jax.tree.map(lambda leaf: (leaf if here else jnp.asarray(leaf))[row], self.fits), name)


@dataclasses.dataclass(eq=False, repr=False)
class Comparison:
    """What a comparison found: every score, what intervals over seeds, samples, units and sides need, and what is missing.

    Attributes:
        plan: what was asked for.
        fits: what the views learned.
        cells: by label, pair and comparison, by metric: `mean` (seeds,), `folds` (seeds, folds), `units` and `live`
            (seeds, folds, units), `replicates` (seeds, folds, blocks), `crossed` (seeds, parts, parts); see `score`.
        seconds: spent on `views` and `scores`, compiling counted in.
    """

    plan: Any
    fits: list[dict[str, Fits]]
    cells: dict[tuple[str, tuple[str, str], str], dict[str, dict[str, np.ndarray]]]
    seconds: dict[str, float]

    @property
    def n_scored(self) -> int:
        """Samples that are scored: images, or positions of them where these are not pooled."""
        scored = next(iter(self.plan.divided.scored.values()))
        return len(scored) * (1 if self.plan.pool else scored.shape[1])

    def refuse_missing(self) -> None:
        """Raises a ValueError where anything that was asked for has no score."""
        for row in self.missing:
            raise ValueError(f"{row['comparison']} of {row['pair']} has no score: {row['reason']}.")

    @property
    def missing(self) -> list[dict[str, str]]:
        """What was not compared, or came to no score, and why: a row each."""
        silent = [
            {
                "pair": label,
                "comparison": comparison,
                "reason": f"NaN for {' -> '.join(pair)}: a side without a live unit, or a view that gives NaN",
            }
            for (label, pair, comparison), metrics in self.cells.items()
            if any(np.isnan(scores["mean"]).any() for scores in metrics.values())
        ]
        return [*self.plan.missing, *silent]

    def summary(self, over: str | None = None) -> list[dict[str, Any]]:
        """A row for each label, metric and comparison: `mean`, `ci95` and what it is `over`, and `std`.

        `given` names what the interval takes as it is, of maps, views (`given_saes` where they are of SAEs) and images. That
        over samples has maps fitted again. Beside it stand `ci95_seeds`, which says how much another seed of the views may
        change, and `ci95_joint`, which counts both. `std` is over seeds, or over pairs of sides.

        Args:
            over: "sides": all pairs of a label together, the sides being the sample; "seeds" of views; "samples";
                "samples_given_maps", as `ci95_given_maps`, which is too narrow; or "units" of the target. By default "sides"
                where a label has several pairs, else "samples" where there are blocks, else "seeds".

        Raises:
            ValueError: an interval that the comparison does not have the numbers for.
        """
        rows = []
        for label, listed in self.plan.pairs.items():
            for metric in self.plan.metrics:
                for comparison in self.plan.comparisons:
                    cells = [self.cells.get((label, pair, comparison)) for pair in listed]
                    if all(cell is not None for cell in cells):
                        scores = [cell[metric.name] for cell in cells if cell is not None]
                        row = {"pair": label, "metric": metric.name, "comparison": comparison}
                        steady = all(self._steady(pair, comparison) for pair in listed)
                        rows.append({**row, **self._interval(listed, scores, over, [comparison], steady)})
        return rows

    def _steady(self, pair: tuple[str, str], comparison: str) -> bool:
        """Whether the target's units are the same for every seed."""
        return not self.plan.view(pair[1], ends(comparison)[1]).random

    def differences(
        self, pairs: Sequence[tuple[str, str]] | None = None, over: str | None = None, correction: str = "holm"
    ) -> list[dict[str, Any]]:
        """Differences between comparisons, paired: `difference` names which is subtracted from which.

        Beside the columns of `summary`: `ci95_units`, the interval over target units where both have the same ones, and over
        samples `p`, and `p_corrected` for all rows together.

        Args:
            pairs: of comparisons; by default each but the first less the first.
            over: as in `summary`; over "units" where both have the same target units.
            correction: of p for the number of rows, as in `sp.stats.corrected`.
        """
        names = self.plan.comparisons
        wanted = [(name, names[0]) for name in names[1:]] if pairs is None else list(pairs)
        for name in (name for pair in wanted for name in pair):
            if name not in names:
                raise ValueError(f"differences must be of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}.")
        rows = []
        for label, listed in self.plan.pairs.items():
            for metric in self.plan.metrics:
                for a, b in wanted:
                    both = [[self.cells.get((label, pair, name)) for pair in listed] for name in (a, b)]
                    if any(cell is None for side in both for cell in side):
                        continue
                    same = ends(a)[1] == ends(b)[1] and all(self._steady(pair, a) for pair in listed)
                    scores = [_subtract(x[metric.name], y[metric.name], same) for x, y in zip(*both, strict=True)]  # type: ignore[index]
                    row = {"pair": label, "metric": metric.name, "difference": f"{a} - {b}"}
                    rows.append({**row, **self._interval(listed, scores, over, [a, b])})
                    same_units = len(listed) == 1 and "units" in scores[0]
                    rows[-1]["ci95_units"] = _over_units(scores[0])["ci95"] if same_units else None
                    if rows[-1]["over"] == "samples":
                        rows[-1]["p"] = stats.tested(_jackknife(scores[0]))["p"]
        if tested := [row for row in rows if "p" in row]:
            for row, p in zip(tested, stats.corrected([row["p"] for row in tested], correction), strict=True):
                row["p_corrected"] = float(p)
        return rows

    def _interval(
        self,
        listed: Sequence[tuple[str, str]],
        scores: Sequence[Any],
        over: str | None,
        comparisons: Sequence[str],
        steady: bool = True,
    ) -> dict[str, Any]:
        over = over or ("sides" if len(listed) > 1 else "samples" if self.plan.n_blocks else "seeds")
        if over not in OVER:
            raise ValueError(f"over must be {', '.join(OVER)}, got {over!r}{did_you_mean(over, OVER)}.")
        if over == "sides":
            names = list(dict.fromkeys(side for pair in listed for side in pair))
            square = np.full((len(names), len(names)), np.nan)
            for (a, b), score in zip(listed, scores, strict=True):
                square[names.index(a), names.index(b)] = score["mean"].mean()
            return {**stats.over_pairs(square, present=_listed(listed, names)), "over": over, "given": "given_images"}
        if len(scores) > 1:
            raise ValueError(f"over must be sides where a label has several pairs of them, got {over!r}.")
        if over == "units" and not steady and len(scores[0]["mean"]) > 1:
            # Latents of different seeds are different units: there is a mean of all, and no one sample of them.
            blank = dict.fromkeys(("std", "ci95", "n_units", "given"))
            return {"mean": scores[0]["mean"].mean(), **blank, "over": over}
        fixed = [f"given_{what}" for what in GIVEN[over]]
        if over != "seeds" and (views := self._fitted(listed[0], comparisons)):
            fixed.insert(0, "given_saes" if any(isinstance(view, SAE | Loaded) for view in views) else "given_views")
        return {**OVER[over](scores[0]), "over": over, "given": ", ".join(fixed) or None}

    def _fitted(self, pair: tuple[str, str], comparisons: Sequence[str]) -> list[View]:
        """What was fitted of the views that comparisons read, such as the SAE that some latents are of."""
        read = {end: self.plan.view(*end) for names in map(ends, comparisons) for end in zip(pair, names, strict=True)}
        return [view for view in shared({"->".join(end): view for end, view in read.items()}).values() if view.fits]

    def score(self, label: str, comparison: str, metric: str) -> Score | None:
        """The score of one pair, mean over seeds, with that of each target unit; None where there is none.

        Of latents as targets each seed has units of its own: theirs are left out.
        """
        listed = self.plan.pairs[label]
        cell = self.cells.get((label, listed[0], comparison)) if len(listed) == 1 else None
        if cell is None:
            return None
        scores = cell[metric]
        folds, units = jnp.asarray(scores["folds"].mean(axis=0)), None
        if "units" in scores and not self.plan.view(listed[0][1], ends(comparison)[1]).random:
            units = jnp.asarray(np.where(scores["live"].all(axis=0), scores["units"].mean(axis=0), np.nan))
        return Score(jnp.mean(folds), folds, units, {})

    def over_units(self, minimum: float = 0.1) -> list[dict[str, Any]]:
        """`summary`, with what each target unit's score says where all seeds have the same target units, as recorded sites.

        Args:
            minimum: reliability that a unit must have to be corrected for noise.

        Returns:
            Rows with `ci95_units`, the interval over target units, and `n_units`; and `ci95_samples_units`, over samples and
            units, each drawn anew, where there is one over samples. Where the target side has a `reliability`:
            `corrected`, the mean over units of scores divided by what noise allows, its `corrected_ci95_units`, and
            `n_excluded`, how many units are less reliable than the minimum. See `sp.reliability.disattenuate`.
        """
        rows = self.summary()
        for row in rows:
            row |= dict.fromkeys(
                ("ci95_units", "n_units", "ci95_samples_units", "corrected", "corrected_ci95_units", "n_excluded")
            )
            score = self.score(row["pair"], row["comparison"], row["metric"])
            if score is None or score.units is None:
                continue
            units = stats.over_units(score)
            row |= {"ci95_units": units["ci95"], "n_units": units["n_units"]}
            (cell,) = self.cells_of(row["pair"], row["comparison"], row["metric"])
            if "replicates" in cell:
                of_units = np.asarray(score.units, np.float64)
                of_units = np.nanmean(of_units[:, ~np.isnan(of_units).all(axis=0)], axis=0)
                row["ci95_samples_units"] = stats.joint(stats.over_samples(_jackknife(cell)), of_units)
            side = self.plan.pairs[row["pair"]][0][1]
            given, reader = self.plan.sides[side].reliability, self.plan.view(side, ends(row["comparison"])[1])
            if given is not None and isinstance(reader, Neuron):
                corrected = reliability.disattenuate(score, given, minimum)
                units = stats.over_units(corrected)
                row |= {"corrected": units["mean"], "corrected_ci95_units": units["ci95"]}
                row["n_excluded"] = int(corrected.details["n_excluded"])
        return rows

    def of_units(self, metric: str) -> dict[str, dict[str, list[float]]]:
        """The score of each target unit, mean over folds and seeds, by label and comparison, where `score` has them.

        Args:
            metric: its name.
        """
        scores: dict[str, dict[str, list[float]]] = {}
        for label, comparisons in self.plan.of_label.items():
            for comparison in comparisons:
                score = self.score(label, comparison, metric)
                if score is not None and score.units is not None:
                    scores.setdefault(label, {})[comparison] = np.nanmean(score.units, axis=0).tolist()
        return scores

    def described(self) -> Iterator[tuple[str, str, View, dict[str, np.ndarray]]]:
        """For each side and view that tells anything of itself: what it tells, of each seed."""
        for i, stack in enumerate(self.plan.stacks):
            for family in self.fits[i].values():
                for (at, side), (view, values) in itertools.product(enumerate(stack.names), family.described.items()):
                    n = len(stack.names)
                    mine = {name: leaf.reshape(n, family.n_seeds, -1)[at, :, 0] for name, leaf in values.items()}
                    if mine:
                        yield side, view, family.views[view], mine

    def describe(self) -> list[dict[str, Any]]:
        """What the views are like on the scored samples: a row for each side and view that tells, mean over seeds."""
        return [
            {"side": side, "view": view, **{name: float(of_seeds.mean()) for name, of_seeds in mine.items()}}
            for side, view, _, mine in self.described()
        ]

    @functools.cached_property
    def doubts(self) -> list[Doubt]:
        """What gives reason to doubt the result, a sentence each, such as an ICA that has not converged."""
        return doubts.found(self)

    def _chosen(self) -> list[str]:
        """The comparisons of the chosen setting."""
        varied = {name for of in self.plan.settings.values() for name in of.values()}
        return [name for name in self.plan.comparisons if name not in varied]

    def question(self, pairs: Sequence[tuple[str, str]] | None = None) -> tuple[str, str]:
        """The two comparisons that `answer` is about: the first of the pairs, or what it takes by default."""
        names = self._chosen()
        return next(iter(pairs)) if pairs else ("sae->sae" if "sae->sae" in names[1:] else names[:2][-1], names[0])

    def answer(self, pairs: Sequence[tuple[str, str]] | None = None) -> str:
        """One sentence: how the comparison of interest lies to the first one, beside its best rival.

        It is by the first metric. Rivals are the comparisons that `rivals` names. Where `settings` were compared, it says where
        in their curve the difference lies.

        Args:
            pairs: as in `differences`, the one in question first; by default "sae->sae", or else the second comparison, less
                the first.
        """
        names, metric = self._chosen(), self.plan.metrics[0]
        sign, better, worse = (-1, "below", "above") if metric.distance else (1, "above", "below")
        a, b = self.question(pairs)
        if a == b:
            return f"One comparison was made, {a}: there is nothing to compare it with."
        controls = rivals(a, b, names) or [name for name in names if name not in (a, b)]
        rows = [
            row for row in self.differences([(a, b), *((a, control) for control in controls)]) if row["metric"] == metric.name
        ]
        if not rows:
            return f"{a} and {b} have no scores that could be compared."
        curves = self.curve(a, b) if self.plan.settings else {}
        told, shown, lost = [], 0, 0
        for label in dict.fromkeys(row["pair"] for row in rows):
            first, *rest = [row for row in rows if row["pair"] == label]
            gains = [sign * end for end in first["ci95"] or (0, 0)]
            shown, lost = shown + (min(gains) > 0), lost + (max(gains) < 0)
            text = f"{label}: {_signed(first)}"
            if rest:
                rival = min(rest, key=lambda row: sign * row["mean"])
                text += f", and {_signed(rival)} from its best rival, {rival['difference'].split(' - ')[1]}"
            if label in curves:
                curve = curves[label]
                text += f", rank {curve['rank']} of {curve['n_settings']} settings, {curve['agree']:.0%} of the same sign"
            told.append(text)
        where = f" in {shown or lost} of {len(told)}" if len(told) > 1 else ""
        by = f"{metric.name}{', a distance' if metric.distance else ''}"
        how = better if shown else worse if lost else f"not shown to be {better}"
        verdict = f"{a} is {how} {b} by {by}{where}: {'; '.join(told)}"
        remarks = sorted({row["given"] for row in rows if row["given"]})
        if not curves and any(isinstance(view, SAE) for view in self._fitted(self.plan.pairs[rows[0]["pair"]][0], [a, b])):
            remarks.append("one of many settings of the SAE")
        return f"{verdict} ({'; '.join(remarks)})." if remarks else f"{verdict}."

    def curve(self, a: str, b: str, metric: str | None = None) -> dict[str, dict[str, Any]]:
        """The specification curve of a difference: it in every setting that was compared, sorted.

        Source: Simonsohn, Simmons & Nelson 2020, "Specification curve analysis".

        Args:
            a, b: comparisons of the chosen setting; the difference is a - b, and b varies too where it reads the SAE.
            metric: its name; by default the first.

        Returns:
            By label: `rows`, a row as in `differences` for each setting with its name and whether it is `chosen`; `rank` of the
            chosen one from below, and `n_settings`; `agree`, the share of settings whose difference has the sign of the chosen
            one; `mean`, `ci95` and `p` of the mean over settings, a joint test that no single setting is picked for (None
            where there is no interval over samples).
        """
        names: dict[str, dict[str, str]] = {"chosen": {}, **self.plan.settings}
        pairs = {label: (of.get(a, a), of.get(b, b)) for label, of in names.items()}
        metric = metric or self.plan.metrics[0].name
        rows = [row for row in self.differences(list(pairs.values())) if row["metric"] == metric]
        curves = {}
        for label in dict.fromkeys(row["pair"] for row in rows):
            mine = [row for row in rows if row["pair"] == label]
            listed = [
                {"setting": setting, "chosen": setting == "chosen", **row} for setting, row in zip(names, mine, strict=True)
            ]
            ordered = sorted(listed, key=lambda row: row["mean"])
            rank = next(i for i, row in enumerate(ordered) if row["chosen"])
            agree = float(np.mean([np.sign(row["mean"]) == np.sign(ordered[rank]["mean"]) for row in ordered]))
            whole: dict[str, Any] = {"mean": float(np.mean([row["mean"] for row in mine])), "ci95": None, "p": None}
            if mine[0]["over"] == "samples":
                cells = [[_jackknife(self.cells_of(label, name, metric)[0]) for name in pair] for pair in pairs.values()]
                joint = stats.tested(stats.average([stats.difference(*pair) for pair in cells]))
                whole = {name: joint[name] for name in whole}
            curves[label] = {"rows": ordered, "rank": rank + 1, "n_settings": len(ordered), "agree": agree, **whole}
        return curves

    def cells_of(self, label: str, comparison: str, metric: str) -> list[dict[str, Any]]:
        """The scores of all pairs of a label that have any."""
        cells = [self.cells.get((label, pair, comparison)) for pair in self.plan.pairs[label]]
        return [cell[metric] for cell in cells if cell is not None]

    def ends_of(self, label: str, comparison: str) -> list[tuple[str, str]]:
        """The source and the target of the first pair of a label: side and view of each."""
        return list(zip(self.plan.pairs[label][0], ends(comparison), strict=True))

    def seed_score(self, scores: Mapping[str, Any], seed: int) -> Score:
        """The score of one seed, as `sp.align` gives it."""
        details = jax.tree.map(lambda leaf: leaf[seed], scores.get("details") or {})
        return Score(scores["mean"][seed], scores["folds"][seed], None, details)

    def _fit_of(self, side: str, view: str) -> tuple[Stack, int, Fits]:
        """The stack that a side is in, its number there, and the fits of one of its views."""
        for i, stack in enumerate(self.plan.stacks):
            family = next((family for family in self.fits[i].values() if view in family.views), None)
            if side in stack.names and family is not None:
                return stack, stack.names.index(side), family
        raise ValueError(f"encode must be given a side and a view that were compared, got {side!r} and {view!r}.")

    def width(self, side: str, view: str) -> int:
        """Units that a view reads in a side."""
        stack, at, family = self._fit_of(side, view)
        x = jax.ShapeDtypeStruct((1, stack.scored[at].shape[-1]), jnp.float32)
        return jax.eval_shape(family.views[view].encode, family.params(view, at * family.n_seeds), x).shape[1]

    def encode(self, side: str, view: str, seed: int = 0, x: ArrayLike | None = None) -> np.ndarray:
        """What a view reads in a side's scored samples, pooled as they were scored: `(samples, k)`.

        Args:
            side, view: names.
            seed: of the view.
            x: samples `(n, units)` to read in place of the scored ones.
        """
        stack, at, family = self._fit_of(side, view)
        if not 0 <= seed < self.plan.n_seeds:
            raise ValueError(f"seed must be between 0 and {self.plan.n_seeds - 1}, got {seed}.")
        params = family.params(view, at * family.n_seeds + min(seed, family.n_seeds - 1))
        encode = jax.jit(family.views[view].encode)
        if x is not None:
            return np.asarray(encode(params, jnp.asarray(x)))
        scored = stack.scored[at]
        units = encode(params, flat(scored))
        return np.asarray(self.plan._pooled(units.reshape(*scored.shape[:2], units.shape[-1])))

    def explanations(self, label: str, comparison: str, n: int = 8, seed: int = 0) -> list[dict[str, Any]]:
        """The source's units that explain the target's most, by the weights of ridge regression on all scored samples.

        Args:
            label: of one pair of sides.
            comparison: whose views are read; they need not have been compared with each other.
            n: units that are named, and samples of each.
            seed: of the views.

        Returns:
            Rows as `superpos.selectivity.explanations` has them, with `samples`: the scored samples that drive the unit most,
            by number, or by name where the first side has names.
        """
        (pair, *_), names = self.plan.pairs[label], ends(comparison)
        source, target = (self.encode(side, name, seed) for side, name in zip(pair, names, strict=True))
        rows = selectivity.explanations(source, target, n)
        top = selectivity.top(jnp.asarray(source)[:, [row["unit"] for row in rows]], min(n, len(source)))
        first, images = next(iter(self.plan.sides.values())).names, self.plan.divided.images
        of_samples = np.repeat(images, len(source) // len(images))
        shown = np.asarray(top) if first is None else np.asarray(first)[of_samples[np.asarray(top)]]
        return [{**row, "samples": samples.tolist()} for row, samples in zip(rows, shown, strict=True)]

    @property
    def scores(self) -> Any:
        """All scores as an `xarray.Dataset`: `score` by pair, comparison, metric, seed and fold; `units` and `replicates`.

        What a comparison does not have is NaN: a second seed of neurons, the units of a narrower target, a missing score.
        """
        import xarray as xr

        listed = [(label, pair) for label, pairs in self.plan.pairs.items() for pair in pairs]
        metrics = [metric.name for metric in self.plan.metrics]
        leaves = [scores for cell in self.cells.values() for scores in cell.values()]
        sizes = {
            "seed": max(len(scores["mean"]) for scores in leaves),
            "fold": self.plan.divided.n_folds,
            "unit": max((scores["units"].shape[2] for scores in leaves if "units" in scores), default=0),
            "block": self.plan.n_blocks or 0,
        }
        lead = ("pair", "comparison", "metric", "seed")
        shape = (len(listed), len(self.plan.comparisons), len(metrics), sizes["seed"])
        dims = {"score": ("fold",), "units": ("fold", "unit"), "replicates": ("fold", "block")}
        arrays = {name: np.full((*shape, *(sizes[dim] for dim in own)), np.nan, np.float32) for name, own in dims.items()}
        for (label, pair, comparison), cell in self.cells.items():
            at = listed.index((label, pair)), self.plan.comparisons.index(comparison)
            for metric, scores in cell.items():
                where = (*at, metrics.index(metric), slice(len(scores["mean"])))
                arrays["score"][where] = scores["folds"]
                if "units" in scores:
                    units = np.where(scores["live"], scores["units"], np.nan)
                    arrays["units"][(*where, slice(None), slice(units.shape[2]))] = units
                if "replicates" in scores:
                    arrays["replicates"][where] = scores["replicates"]
        names = [label if len(self.plan.pairs[label]) == 1 else f"{label}: {a}->{b}" for label, (a, b) in listed]
        coordinates = {"pair": names, "comparison": list(self.plan.comparisons), "metric": metrics}
        return xr.Dataset({name: (lead + own, arrays[name]) for name, own in dims.items() if arrays[name].size}, coordinates)

    def write(self, folder: str | os.PathLike) -> None:
        """Writes tables that any program reads, with a line of names: what `scores` holds as an xarray dataset.

        `summary.csv` and `differences.csv`, a line a row of either; `folds.csv` and `units.csv`, a line for each score: of a
        fold, and of a target unit, mean over folds, with pair, comparison, metric and seed; `doubts.csv`; and `settings.csv`,
        the differences of all settings, where these were compared.
        """
        import csv
        from pathlib import Path

        folds, units = [], []
        for (label, (source, target), comparison), metrics in self.cells.items():
            for metric, scores in metrics.items():
                at = {"label": label, "source": source, "target": target, "comparison": comparison, "metric": metric}
                for seed, of_folds in enumerate(scores["folds"]):
                    folds += [{**at, "seed": seed, "fold": i, "score": float(score)} for i, score in enumerate(of_folds)]
                for seed, (of_units, live) in enumerate(zip(scores.get("units", ()), scores.get("live", ()), strict=True)):
                    mean = np.where(live, of_units, np.nan).mean(axis=0)
                    units += [{**at, "seed": seed, "unit": i, "score": float(score)} for i, score in enumerate(mean)]
        tables: dict[str, list[dict[str, Any]]] = {"summary": self.summary(), "differences": self.differences()}
        tables |= {"folds": folds, "units": units, "doubts": [doubt._asdict() for doubt in self.doubts]}
        if self.plan.settings:
            a, b = self.plan.comparisons[1], self.plan.comparisons[0]
            tables["settings"] = [row for curve in self.curve(a, b).values() for row in curve["rows"]]
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            if rows:
                with open(Path(folder) / f"{name}.csv", "w", newline="") as file:
                    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
                    writer.writeheader()
                    writer.writerows(rows)

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """The figure: a panel a metric, a bar a comparison, with intervals; written as PNG where there is a path."""
        from superpos import plotting

        rows = self.summary()
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        labels = list(dict.fromkeys(row["pair"] for row in rows))
        figure, axes = plotting.panels(len(labels), len(metrics), (2 + 3 * len(metrics), 1.2 + 2.4 * len(labels)), sharey=True)
        for line, label in zip(axes, labels, strict=True):
            for axis, metric in zip(line, metrics, strict=True):
                plotting.bars(axis, [row for row in rows if (row["pair"], row["metric"]) == (label, metric)])
                axis.set_xlabel(plotting.metric_title(metric))
            line[0].set_title(label, loc="left")
        over = "no interval" if all(row["ci95"] is None for row in rows) else f"95 % interval over {rows[0]['over']}"
        plotting.finish(figure, f"{self.n_scored} samples; bars: {over}", path=path)
        return figure

    def __repr__(self) -> str:
        rows = [
            f"{row['pair']}  {row['metric']}  {row['comparison']}  {row['mean']:.3f}"
            + (f"  {row['ci95'][0]:.3f} to {row['ci95'][1]:.3f} ({row['over']})" if row["ci95"] else "")
            for row in self.summary()
        ]
        missing = [f"missing: {row['comparison']}, {row['reason']}" for row in self.missing]
        return "\n".join(["Comparison", *rows, *missing, *(f"doubt: {doubt.doubt}" for doubt in self.doubts), self.answer()])


def _signed(row: Mapping[str, Any]) -> str:
    """A difference and its interval, as a sentence has them."""
    return f"{row['mean']:+.3f} " + ("({:+.3f} to {:+.3f})".format(*row["ci95"]) if row["ci95"] else "(no interval)")


def _jackknife(scores: Mapping[str, np.ndarray]) -> stats.Jackknife:
    """The score of all seeds together."""
    if "replicates" not in scores:
        raise ValueError("over samples needs blocks: compare with n_blocks=10.")
    mean, replicates, crossed = (jnp.asarray(scores[name].mean(axis=0)) for name in ("mean", "replicates", "crossed"))
    return stats.Jackknife(mean, replicates, crossed=crossed)


def _listed(listed: Sequence[tuple[str, str]], names: Sequence[str]) -> np.ndarray:
    """Which pairs of sides are listed: a mask of them as a square."""
    mask = np.zeros((len(names), len(names)), bool)
    for a, b in listed:
        mask[names.index(a), names.index(b)] = True
    return mask


def _over_samples(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    summary, seeds = stats.over_samples(_jackknife(scores)), _over_seeds(scores)
    further = {"ci95_seeds": seeds["ci95"], "ci95_joint": stats.joint(summary, scores["mean"])}
    return {**seeds, "mean": summary["mean"], "ci95": summary["ci95"], **further}


def _over_samples_given_maps(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    summary = stats.over_samples_given_maps(_jackknife(scores))
    return {**_over_seeds(scores), "ci95": None, "ci95_given_maps": summary["ci95_given_maps"]}


def _over_seeds(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {**stats.over_seeds(scores["mean"]), "n_pairs": len(scores["mean"])}


def _over_units(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if "units" not in scores:
        raise ValueError("over units needs a metric that scores each unit, and the same target units in a difference.")
    units = np.where(scores["live"], scores["units"], np.nan).mean(axis=0)
    return stats.over_units(Score(jnp.nanmean(units), jnp.nanmean(units, axis=1), jnp.asarray(units), {}))


OVER: dict[str, Callable[..., dict[str, Any]]] = {
    "sides": stats.over_pairs,
    "samples": _over_samples,
    "samples_given_maps": _over_samples_given_maps,
    "seeds": _over_seeds,
    "units": _over_units,
}

# What an interval takes as it is, beside the views.
GIVEN = {"samples": (), "samples_given_maps": ("maps",), "seeds": ("images",), "units": ("maps", "images")}


def _subtract(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], same_units: bool) -> dict[str, np.ndarray]:
    """The difference of two scores, seed by seed; one without seeds of its own stands beside each seed of the other.

    That of units is there where both have the same ones: the same view of the target, which no key changes.
    """
    difference = {name: a[name] - b[name] for name in ("mean", "folds", "replicates", "crossed") if name in a and name in b}
    if same_units and "units" in a and "units" in b:
        difference["units"] = a["units"] - b["units"]
        difference["live"] = a["live"] & b["live"]
    return difference

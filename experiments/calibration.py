"""Which instrument tells what two systems share, and which moves for other reasons?

Pairs of systems whose shared features are known (`sp.calibration.worlds`) are scored by every metric on neurons, and by
matching, ridge and CKA on what views read. Look first at pairs of worlds that differ in the number of units as well as in
what is shared: an instrument that superposition deflates puts them in the wrong order. Then at how far off a score is once it
is read through the best increasing map, how often it takes unrelated sides for aligned, and how far it moves for other reasons.
The map on the right says where not to use it.

Instruments marked * are shown the truth: they bound what a view can bring. Everything is judged on worlds of `seed`; maps are
learned on worlds of `map_seed`.
"""

import os
import shlex
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import calibration, plotting
from superpos.calibration.suite import KNOWS, VIEWS
from superpos.results import Run, environment

PANELS = {
    "disorder": "Wrong order:\nsame kind of world",
    "disorder_across": "Wrong order:\nwidths differ too",
    "calibrated": "rms error\nafter the map",
    "false_alarms": "False alarms,\nnothing shared",
    "moved": "Moves with\nall else",
}
BEST = 12  # so many instruments are drawn, beside those that all know
KNOWN = (
    *(f"{metric} on {view}" for metric in ("semi_match", "ridge", "cka") for view in ("neurons", "ica", "sae x4")),
    *(f"{metric} on neurons" for metric in ("soft_match", "debiased_cka", "rsa", "cca")),
    *("semi_match on oracle", "crosscoder"),
)


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = calibration.HELD_OUT  # of the worlds that are judged
    config.map_seed = calibration.CHOSEN  # of those that maps from scores to overlaps are learned on
    config.grid = "default"  # of worlds: default, full (for a machine with an accelerator), small
    config.metrics = calibration.Suite().metrics  # of neurons; () takes all
    config.views = calibration.Suite().views  # out of calibration.suite.VIEWS
    config.steps = calibration.Suite().steps  # of autoencoders and probes
    config.n_samples = calibration.Suite().n  # scored, and as many to fit on
    config.chunk = 1  # worlds in flight at once
    return config


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Scores all worlds, and judges."""
    command.at_least(config, {"n_samples": 100, "steps": 1, "chunk": 1})
    if unknown := set(config.views) - set(VIEWS):
        raise ValueError(f"config.views takes names out of {', '.join(VIEWS)}, got {sorted(unknown)[0]!r}.")
    with command.naming(config):
        specs = calibration.worlds(config.grid)
        sp.metrics.resolve(config.metrics or "cka")
    suite = calibration.Suite(tuple(config.metrics), tuple(config.views), config.steps, n=config.n_samples)
    run.claim()
    started = time.perf_counter()
    table = calibration.run(suite, specs, seeds=(config.map_seed, config.seed), workdir=run.path / "worlds", chunk=config.chunk)
    seconds = {"run": time.perf_counter() - started}
    calibration.save(table, run.path / "table.json", **_made_by(config))
    judged = calibration.judge(table)
    rows = []
    for name in judged.instrument.values[calibration.ranked(judged)]:
        own = judged.sel(instrument=name)
        told = {column: float(own[column]) for column in judged.data_vars if own[column].ndim == 0}
        interval = [told.pop("disorder_low"), told.pop("disorder_high")]
        rows.append({"instrument": str(name), "disorder": told.pop("disorder"), "ci95": interval, **told})
    moved = [{"instrument": str(i), **dict(zip(calibration.CAUSES, v, strict=True))} for i, v in _of(judged, "moved_by")]
    errors = {str(i): dict(zip(judged.family.values.tolist(), values, strict=True)) for i, values in _of(judged, "error")}
    controls = tuple(name for name in ("ica", "sae x1", "untrained x4", "topk_pca") if name in config.views)
    shown = [view for view in ("sae x4", "gated x4", "cumulant", *KNOWS) if view in config.views]
    gained = [
        row
        for metric in ("semi_match", "ridge", "cka")
        for view in shown
        if f"{metric} on neurons" in judged.instrument
        for row in calibration.gains(table, metric, view, tuple(name for name in controls if name != view))
    ]
    return run.finish(rows, seconds, moved_by=moved, gains=gained, errors=errors)


def _made_by(config: ConfigDict) -> dict[str, Any]:
    """What a table says of itself: the command, with settings that are not the default ones, the commit, versions and day."""
    default, told = get_config(), environment()
    own = [f"--config.{name}={value}" for name, value in config.items() if value != default[name]]
    flags = ["JAX_DISABLE_MOST_OPTIMIZATIONS=1"] if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") else []
    line = shlex.join([*flags, "python", "-m", "experiments.calibration", *own])
    return {"version": calibration.VERSION, "command": line, "commit": told["git"], "date": told["date"], "environment": told}


def _of(judged: Any, name: str) -> list[tuple[str, list[float]]]:
    """The rows of a column that has two axes."""
    return list(zip(judged.instrument.values, judged[name].values.tolist(), strict=True))


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: the best instruments and the best-known ones, a panel a question, and a map of where each is off."""
    errors = results["errors"]
    rows = [row for i, row in enumerate(results["rows"]) if i < BEST or row["instrument"] in KNOWN]
    names, place = [row["instrument"] for row in rows], np.arange(len(rows))
    families = list(next(iter(errors.values())))
    ratios = [1.4] * len(PANELS) + [0.5 * len(families)]
    size = (sum(ratios) + 2.8, 2.6 + 0.27 * len(rows))
    figure, (axes,) = plotting.panels(1, len(ratios), size, sharey=True, width_ratios=ratios)
    for axis, (column, title) in zip(axes, PANELS.items(), strict=False):
        values = np.array([np.nan if row[column] is None else row[column] for row in rows], float)
        widest = max(0.05, min(1.0, np.max(values[np.isfinite(values)], initial=0.0)))
        axis.barh(place, np.clip(values, 0, 1), color=[_colour(name) for name in names], height=0.7)
        for y, value in zip(place[np.isfinite(values)], values[np.isfinite(values)], strict=True):
            axis.text(min(value, 1) + 0.02 * widest, y, f"{value:.2f}", va="center", fontsize=8)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_xlim(0, 1.35 * widest)
        axis.tick_params(left=False)
        axis.spines["bottom"].set_visible(False)
    axes[0].set_yticks(place, [f"{name} *" if _knows(name) else name for name in names], fontsize=9)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    grid = np.array([[errors[name][family] for family in families] for name in names], float)
    axes[-1].imshow(grid, aspect="auto", vmin=0, vmax=0.3, cmap="RdYlGn_r", interpolation="nearest")
    for (y, x), value in np.ndenumerate(grid):
        axes[-1].text(x, y, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=8)
    axes[-1].set_xticks(range(len(families)), families, rotation=40, ha="right", fontsize=8)
    axes[-1].set_title("Mean |error| after the map, by kind of world")
    told = "0 is perfect everywhere; on the right, green: take it. Blue: neurons; orange: views; green, *: shown the truth"
    plotting.finish(figure, f"The best instruments and the best-known ones, best first. {told}", (), path=run.figure)


def _knows(name: str) -> bool:
    return any(name.endswith(f"on {view}") for view in KNOWS)


def _colour(name: str) -> str:
    return "#009E73" if _knows(name) else "#0072B2" if "neurons" in name else "#D55E00"


if __name__ == "__main__":
    command.main("calibration", get_config(), compute, draw)

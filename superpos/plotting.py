"""Figures from result tables. One colour a comparison, everywhere."""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

# Okabe & Ito's colour-blind safe palette: neurons black, SAEs blues, random controls orange and red.
COLOURS = {
    "neuron->neuron": "#000000",
    "sae->neuron": "#56B4E9",
    "sae->sae": "#0072B2",
    "random_sae->neuron": "#F0C75E",
    "random_sae->sae": "#E69F00",
    "random_sae->random_sae": "#D55E00",
    "neuron": "#000000",
    "sae": "#0072B2",
    "random_sae": "#D55E00",
}
_MARKERS = {"neuron": "o", "sae": "s", "random_sae": "^"}
_TITLES = {
    "semi_match": "Semi-matching (Pearson r)",
    "soft_match": "Soft-matching (Pearson r)",
    "ridge": "Ridge regression (Pearson r)",
}


def alignment_by_width(rows: Sequence[dict[str, Any]], recovery: Sequence[dict[str, Any]], path: str | PathLike) -> None:
    """Alignment and feature recovery against the number of hidden units, a panel a metric, with 95 % intervals.

    Args:
        rows: rows of alignment, with `n_hidden`.
        recovery: rows of feature recovery.
        path: of the PNG to write.
    """
    plt = _pyplot()
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    panels = [*metrics, "recovery"]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 4.2), layout="constrained")
    for axis, panel in zip(axes, panels, strict=True):
        chosen = recovery if panel == "recovery" else [row for row in rows if row["metric"] == panel]
        key = "units" if panel == "recovery" else "comparison"
        names = list(dict.fromkeys(row[key] for row in chosen))
        widths = sorted({row["n_hidden"] for row in chosen})
        for offset, name in enumerate(names):
            line = [row for row in chosen if row[key] == name]
            # Side by side within a width, so that intervals do not hide each other.
            shift = 2 ** (0.05 * (offset - (len(names) - 1) / 2))
            axis.errorbar(
                [row["n_hidden"] * shift for row in line],
                _means(line),
                yerr=_errors(line),
                label=name,
                color=COLOURS.get(name, "grey"),
                marker=_MARKERS[name.split("->")[-1]],
                linestyle=":" if name.startswith("random") else "-",
                capsize=2,
                markersize=5,
                linewidth=1.4,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.minorticks_off()
        axis.set_xlim(widths[0] / 1.5, widths[-1] * 1.5)
        axis.set_xlabel("hidden units")
        axis.set_ylim(min(0, axis.get_ylim()[0]), 1)
        title = "Feature recovery" if panel == "recovery" else _TITLES.get(panel, panel)
        axis.set_title(title)
    axes[0].set_ylabel("mean over pairs of seeds, held out")
    axes[-1].set_ylabel("highest correlation with any unit")
    axes[-1].legend(title="units", fontsize=8, title_fontsize=8, loc="upper left", frameon=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.suptitle(_caption(rows), fontsize=9, color="#444444")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def alignment_bars(rows: Sequence[dict[str, Any]], title: str, path: str | PathLike) -> None:
    """Alignment of one pair of representations, a panel a metric, a bar a comparison, with 95 % intervals.

    Args:
        rows: rows of alignment.
        title: names the two sides.
        path: of the PNG to write.
    """
    plt = _pyplot()
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    comparisons = list(dict.fromkeys(row["comparison"] for row in rows))
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(2 + 3 * len(metrics), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, metric in zip(axes[0], metrics, strict=True):
        chosen = [row for row in rows if row["metric"] == metric]
        positions = [comparisons.index(row["comparison"]) for row in chosen]
        axis.barh(
            positions,
            _means(chosen),
            xerr=_errors(chosen),
            color=[COLOURS.get(row["comparison"], "grey") for row in chosen],
            height=0.7,
            error_kw={"capsize": 3, "ecolor": "#777777"},
        )
        for position, row in zip(positions, chosen, strict=True):
            end = max(row["mean"] or 0, *(row["ci95"] or (0,)))
            axis.annotate(
                "no score" if row["mean"] is None else f"{row['mean']:.3f}",
                (end, position),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(comparisons)), comparisons)
        axis.invert_yaxis()
        axis.set_xlabel(_TITLES.get(metric, metric))
        axis.margins(x=0.18)  # room for the numbers
        axis.axvline(0, color="black", linewidth=0.8)
    figure.suptitle(f"{title}\n{_caption(rows)} of the SAEs, the samples held fixed", fontsize=9, color="#444444")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def speed_bars(rows: Sequence[dict[str, Any]], repeats: int, where: str, path: str | PathLike) -> None:
    """Times faster than each alternative, a bar each from 1 on a log axis, with marks at the targets.

    Args:
        rows: rows of `experiments.benchmark`: `work`, `against`, `ours_s`, `theirs_s`, `ratio`, `target`, `met`.
        repeats: number of runs that the medians are over.
        where: device and number of threads.
        path: of the PNG to write.
    """
    plt = _pyplot()
    import matplotlib.ticker

    figure, axis = plt.subplots(figsize=(8.5, 1.6 + 0.42 * len(rows)), layout="constrained")
    colours = {True: "#0072B2", False: "#D55E00", None: "#999999"}
    labels = {True: "target met", False: "target missed", None: "no target"}
    for met in labels:
        chosen = [(i, row) for i, row in enumerate(rows) if row["met"] is met]
        if chosen:
            positions, ratios = [i for i, _ in chosen], [row["ratio"] for _, row in chosen]
            axis.barh(positions, [ratio - 1 for ratio in ratios], left=1, height=0.6, color=colours[met], label=labels[met])
    aims = [(row["target"], i) for i, row in enumerate(rows) if row["target"] is not None]
    axis.scatter(*zip(*aims, strict=True), marker="|", s=320, color="black", linewidth=2.2, label="target", zorder=3)
    for i, row in enumerate(rows):
        end = max(1, row["ratio"], row["target"] or 0)
        text = f"{_short(row['ratio'])}×  (ours {_seconds(row['ours_s'])}, theirs {_seconds(row['theirs_s'])})"
        axis.annotate(text, (end, i), (7, 0), textcoords="offset points", va="center", fontsize=10)
    axis.set_xscale("log")
    low = min(1, *(row["ratio"] for row in rows), *(target for target, _ in aims))
    high = max(1, *(row["ratio"] for row in rows), *(target for target, _ in aims))
    axis.set_xlim(low / 1.3, high * (high / low) ** 0.75)  # room for the numbers
    axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda ratio, _: f"{ratio:,.10g}"))
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), [f"{row['work']}\nvs {row['against']}" for row in rows], fontsize=10)
    axis.invert_yaxis()
    axis.set_xlabel(f"times faster than the alternative (median of {repeats} runs)", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    axis.set_title(where, fontsize=11, color="#444444")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def speed_by_seeds(rows: Sequence[dict[str, Any]], levels: dict[str, float], title: str, path: str | PathLike) -> None:
    """Model-steps per second against the number of models trained at once, on log axes, with the ceiling.

    Args:
        rows: `n_seeds` and `model_steps_per_s`.
        levels: model-steps per second of the alternatives by name; what starts with "large matmul" is the ceiling.
        title: above it.
        path: of the PNG to write.
    """
    plt = _pyplot()
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    seeds = [row["n_seeds"] for row in rows]
    axis.plot(seeds, [row["model_steps_per_s"] for row in rows], "o-", color="#0072B2", label="superpos")
    styles = iter([("#D55E00", "--"), ("#E69F00", "-."), ("#999999", ":")])
    for name, level in levels.items():
        ceiling = name.startswith("large matmul")
        colour, dashes = ("black", "-") if ceiling else next(styles)
        axis.axhline(level, color=colour, linestyle=dashes, linewidth=1.4)
        text = "ceiling: its five matmuls at the rate of a large one" if ceiling else name
        axis.annotate(text, (seeds[0], level), (0, 4), textcoords="offset points", color=colour, fontsize=9)
    axis.annotate(
        "superpos", (seeds[0], rows[0]["model_steps_per_s"]), (9, -5), textcoords="offset points", color="#0072B2", fontsize=9
    )
    axis.set_xscale("log", base=2)
    axis.set_xticks(seeds, [str(n) for n in seeds])
    axis.minorticks_off()
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_xlabel("models (seeds) trained at once")
    axis.set_ylabel("model-steps per second")
    axis.set_title(title)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def consistency_maps(rows: Sequence[dict[str, Any]], path: str | PathLike) -> None:
    """Consistency of weights against the correlations of two features with a third: a map for each generator.

    Args:
        rows: `generator`, `second`, `third` (nominal), `realised_second`, `realised_third`, `mean` (None: left blank).
        path: of the PNG to write.
    """
    plt = _pyplot()
    generators = list(dict.fromkeys(row["generator"] for row in rows))
    figure, axes = plt.subplots(1, len(generators), figsize=(5.6 * len(generators), 4.6), squeeze=False, layout="constrained")
    ticks = sorted({row["second"] for row in rows})
    for axis, generator in zip(axes[0], generators, strict=True):
        chosen = {(row["second"], row["third"]): row for row in rows if row["generator"] == generator}
        means = [[math.nan if chosen[x, y]["mean"] is None else chosen[x, y]["mean"] for x in ticks] for y in ticks]
        image = axis.imshow(means, origin="lower", vmin=0, vmax=1, cmap="cividis")
        realised = [chosen[x, x]["realised_second"] for x in ticks]
        labels = [
            f"{x:+.2f}\n(none)" if got is None else f"{x:+.2f}\n({got:+.2f})" for x, got in zip(ticks, realised, strict=True)
        ]
        axis.set_xticks(range(len(ticks)), labels, fontsize=7)
        axis.set_yticks(range(len(ticks)), [label.replace("\n", " ") for label in labels], fontsize=7)
        axis.set_facecolor("#DDDDDD")
        axis.set_xlabel("correlation of feature 2 with feature 1: named (realised)")
        axis.set_ylabel("of feature 3 with feature 1")
        axis.set_title(f"{generator} generator")
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes[0], shrink=0.85)
    bar.set_label("best correlation of a neuron's weights\nwith another seed's (Pearson r)")
    n_seeds = rows[0]["n_seeds"]
    figure.suptitle(f"3 features in 2 neurons, mean over ordered pairs of {n_seeds} seeds", fontsize=9, color="#444444")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    return plt


def _means(rows):
    """Means, NaN where there is none."""
    return [math.nan if row["mean"] is None else row["mean"] for row in rows]


def _errors(rows):
    """Distances from the mean to both ends of the interval, 0 where there is none."""
    means = _means(rows)
    ends = [row["ci95"] or (mean, mean) for row, mean in zip(rows, means, strict=True)]
    return [
        [mean - low for mean, (low, _) in zip(means, ends, strict=True)],
        [high - mean for mean, (_, high) in zip(means, ends, strict=True)],
    ]


def _caption(rows):
    seeds = max(row["n_seeds"] for row in rows)
    return f"{seeds} seeds; bars: 95 % confidence interval over seeds" if seeds > 2 else f"{seeds} seeds; no interval"


def _seconds(value):
    return f"{_short(value)} s" if value >= 1 else f"{_short(1000 * value)} ms"


def _short(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

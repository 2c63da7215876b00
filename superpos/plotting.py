"""Figures from result tables: one style, and one colour a view, everywhere.

A figure is `panels`, what stands in them, and `finish`. A row is a dictionary with `mean` and `ci95`, as `sp.stats`
makes them, and with columns that say of what it is.

    figure, ((left, right),) = plotting.panels(1, 2, (8, 4))
    plotting.bars(left, rows)                         # a bar a comparison, with its number
    plotting.grouped_bars(left, rows, "layer")        # a group a value of a column, a bar a comparison
    plotting.curves(right, rows, "n_hidden", log=2)   # a line a comparison over a setting
    plotting.finish(figure, plotting.caption(rows), path=path)   # wraps what is long, one legend below; saves it

What a comparison or view looks like is `style(name)`: views say it themselves, names that nobody knows get colours from a
fixed cycle. Intervals are drawn where there are any. What belongs to a single experiment is in its `draw`.
"""

import itertools
import math
import re
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from superpos import storage
from superpos.images import Images
from superpos.views import VIEWS

# Where the two views of a comparison differ it has a colour of its own; other ones are made of the colours of both.
_MIXED = {
    "sae->neuron": "#56B4E9",
    "random_sae->neuron": "#F0C75E",
    "random_sae->sae": "#E69F00",
    "neuron->site": "#000000",
    "sae->site": "#56B4E9",
    "random_sae->site": "#F0C75E",
}
# What no view is called.
_OTHERS = {"feature": "#CC79A7", "pca": "#999999", "oracle": "#009E73", "supervised": "#CC79A7"}
# Okabe & Ito's colour-blind safe palette and Tol's muted one, so that a dozen names can be told apart.
_CYCLE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#332288", "#999933", "#882255", "#44AA99")
_MARKERS = "osD^vPXh*p<>"
_TITLES = {
    "semi_match": "Semi-matching (Pearson r)",
    "soft_match": "Soft-matching (Pearson r)",
    "ridge": "Ridge regression (Pearson r)",
}
_NOTE = {"fontsize": 9, "color": "#444444"}
_WIDTH = 0.068  # inches of a letter in small print


def style(name: str, among: Iterable[str] = ()) -> dict[str, Any]:
    """How a view, a comparison or anything else with a name looks: `color`, `marker`, `linestyle` and `label`.

    Args:
        name: of a view, "source->target", or any other.
        among: all names of the figure, so that those which no view has differ from each other.

    >>> style("sae->sae")
    {'color': '#0072B2', 'marker': 's', 'linestyle': '-', 'label': 'sae->sae'}
    """
    source, arrow, target = name.partition("->")
    others = [other for other in dict.fromkeys(among) if not set(other.split("->")) & VIEWS.keys()]
    number = others.index(name) if name in others else zlib.crc32(name.encode())
    shown = target if arrow and target != "site" else source

    def colour(view):
        known = VIEWS[view].colour if view in VIEWS else _OTHERS.get(view)
        return known or _CYCLE[number % len(_CYCLE)]

    # Of two views: a light shade of the source against neurons, else between both.
    mixed = colour(source) if shown == source else _blend(colour(source), "#FFFFFF" if shown == "neuron" else colour(shown))
    return {
        "color": _MIXED.get(name, mixed),
        "marker": VIEWS[shown].marker if shown in VIEWS else _MARKERS[number % len(_MARKERS)],
        "linestyle": ":" if name.startswith("random") else "-" if shown == source else "--",
        "label": VIEWS[name].label if name in VIEWS else name,
    }


def _blend(a, b):
    channels = [(int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(0.6 * x + 0.4 * y):02X}" for x, y in channels)


class _Colours(dict):
    """The colour of every name, asked for or not."""

    def __missing__(self, name):
        return style(name)["color"]


COLOURS: dict[str, str] = _Colours()


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure in the style of all figures here, and its axes `(rows, columns)`. Draw, `finish`, then `save`.

    Args:
        rows, columns: of panels.
        size: width and height in inches.
        options: of `matplotlib.figure.Figure.subplots`.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, whose backend is the user's: a notebook's, or one that needs a display

    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def grid(n: int, columns: int = 3, size: tuple[float, float] = (4.2, 3.4)) -> tuple[Any, list[Any]]:
    """A figure of n panels in lines of as many columns, and its axes.

    Args:
        n: panels.
        columns: at most.
        size: of one panel, in inches.

    >>> len(grid(4)[1])
    4
    """
    columns = min(columns, n)
    lines = -(-n // columns)
    figure, axes = panels(lines, columns, (size[0] * columns, size[1] * lines))
    for axis in axes.flat[n:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:n])


def finish(figure: Any, caption: str = "", legend: Sequence[Any] | None = None, *, path: str | PathLike | None = None) -> None:
    """The caption above, one legend below all panels; titles and captions that are too long are wrapped.

    Args:
        figure: from `panels`.
        caption: what bars and points are.
        legend: handles with labels; by default those of all axes without a legend of their own, each label once; () for none.
        path: where to `save` the figure then; by default nowhere.
    """
    width = figure.get_figwidth()
    figure.suptitle(textwrap.fill(caption, int(width / _WIDTH)), **_NOTE)
    if legend is None:
        axes = [axis for axis in figure.axes if axis.get_legend() is None]
        legend = [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]]
    handles: dict[str, Any] = {}
    for handle in legend:
        handles.setdefault(handle.get_label(), handle)
    if handles:
        room = _WIDTH * max(map(len, handles)) + 0.55
        columns = max(1, min(len(handles), int(width / room)))
        lines = -(-len(handles) // columns)
        options = {"ncols": -(-len(handles) // lines), "fontsize": 8, "frameon": False}
        figure.legend(handles.values(), handles, loc="outside lower center", **options)
    _take_literally(figure)
    figure.draw_without_rendering()
    for axis in figure.axes:
        room = int(axis.get_position().width * width / _WIDTH)
        for place in ("left", "center", "right"):
            axis.set_title(_wrapped(axis.get_title(place), room), loc=place)
        axis.set_xlabel(_wrapped(axis.get_xlabel(), room))
    if path is not None:
        save(figure, path)


def _wrapped(text: str, room: int) -> str:
    """Text in lines of at most so many letters, which break at spaces and behind the signs between the parts of names.

    >>> _wrapped("activations/lite0.npz:block10", 17).splitlines()
    ['activations/', 'lite0.npz:block10']
    """
    lines = []
    for line in text.splitlines():
        lines.append("")
        for part in re.findall(r".*?(?:[ /:]+|[._](?=\D))|.+", line):
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > max(room, 8):
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def save(figure: Any, path: str | PathLike) -> None:
    """Writes a figure, whole or not at all, in the format that the name of the file ends in."""
    _take_literally(figure)
    storage.replace(Path(path), lambda part: figure.savefig(part, dpi=200, format=Path(path).suffix[1:]))


def _take_literally(figure: Any) -> None:
    """Dollars in texts are dollars: names of files and layers may have them. Ticks of Matplotlib's own are formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)


def bars(axis: Any, rows: Sequence[dict[str, Any]], by: str = "comparison") -> None:
    """A horizontal bar a row, with its number and its interval.

    Args:
        axis: to draw on.
        rows: of one metric.
        by: the column that names the bars.
    """
    names = list(dict.fromkeys(row[by] for row in rows))
    positions = [names.index(row[by]) for row in rows]
    colours = [style(row[by], names)["color"] for row in rows]
    error_kw = {"capsize": 3, "ecolor": "#777777"}
    axis.barh(positions, means(rows), xerr=errors(rows), color=colours, height=0.7, error_kw=error_kw)
    for position, row in zip(positions, rows, strict=True):
        end = max(row["mean"] or 0, *(row["ci95"] or (0,)))
        number = "no score" if row["mean"] is None else f"{row['mean']:.3f}"
        axis.annotate(number, (end, position), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.margins(x=0.18)  # room for the numbers
    axis.axvline(0, color="black", linewidth=0.8)


def grouped_bars(axis: Any, rows: Sequence[dict[str, Any]], by: str, bar: str = "comparison") -> None:
    """A group of bars for each value of a column, with intervals; labelled for a legend.

    Args:
        axis: to draw on.
        rows: of one metric.
        by: the column of the groups, such as "layer".
        bar: the column of the bars within a group.
    """
    groups, names = (list(dict.fromkeys(row[column] for row in rows)) for column in (by, bar))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        chosen = [row for row in rows if row[bar] == name]
        positions = [groups.index(row[by]) + (i - (len(names) - 1) / 2) * width for row in chosen]
        axis.bar(
            positions,
            means(chosen),
            yerr=errors(chosen),
            width=0.9 * width,
            color=style(name, names)["color"],
            label=style(name)["label"],
            error_kw={"capsize": 1.5, "ecolor": "#777777", "linewidth": 0.8},
        )
    room = axis.get_position().width * axis.figure.get_figwidth() / _WIDTH / len(groups) - 1  # letters of each group
    ticks = [_wrapped(str(group), int(room)) for group in groups]
    crowded = len(groups) > 1 and max(len(line) for tick in ticks for line in tick.splitlines()) > room
    turned: dict[str, Any] = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(groups)), groups if crowded else ticks, **(turned if crowded else {}))
    axis.set_xlabel(by)
    axis.axhline(0, color="black", linewidth=0.8)
    if len(groups) == 1:
        axis.set_xlim(-0.75, 0.75)


def grouped_panels(axes: Iterable[Any], groups: Mapping[str, Sequence[dict[str, Any]]], by: str) -> None:
    """`grouped_bars` of held-out scores, a panel a group.

    Args:
        axes: to draw on, as many as groups.
        groups: rows by title, such as `by_metric` gives them.
        by: the column of the groups of bars.
    """
    for axis, (title, rows) in zip(axes, groups.items(), strict=True):
        grouped_bars(axis, rows, by)
        axis.set(title=title, ylabel="held-out score")


def curves(
    axis: Any,
    rows: Sequence[dict[str, Any]],
    x: str,
    by: str = "comparison",
    *,
    log: int | None = None,
    among: Iterable[str] = (),
    **options: Any,
) -> None:
    """A line with intervals for each value of a column, over a setting; labelled for a legend.

    Lines stand side by side within a setting, so that intervals do not hide each other; not so where each line has settings of
    its own, such as measured numbers of active latents.

    Args:
        axis: to draw on.
        rows: of one metric.
        x: the column of the setting, numbers.
        by: the column of the lines.
        log: the base of a logarithmic axis.
        among: all names of the figure, as in `style`; by default those of the lines.
        options: of `errorbar`, in place of the style of all lines.
    """
    names = list(dict.fromkeys(row[by] for row in rows))
    values = sorted({row[x] for row in rows})
    shared = len(values) <= max(sum(row[by] == name for row in rows) for name in names)
    scale, back = (lambda at: math.log(at, log), lambda at: log**at) if log else (float, float)
    step = min((scale(b) - scale(a) for a, b in itertools.pairwise(values)), default=1.0)
    for i, name in enumerate(names):
        line = sorted((row for row in rows if row[by] == name), key=lambda row: row[x])
        place = 0.35 * step * (i / max(len(names) - 1, 1) - 0.5) * shared
        look = {"capsize": 2, "markersize": 5, "linewidth": 1.3, **style(str(name), among or map(str, names)), **options}
        axis.errorbar([back(scale(row[x]) + place) for row in line], means(line), yerr=errors(line), **look)
    if log:
        axis.set_xscale("log", base=log)
    if shared:
        axis.set_xticks(values, [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values])
        axis.minorticks_off()
        axis.set_xlim(back(scale(values[0]) - step / 2), back(scale(values[-1]) + step / 2))
    axis.set_xlabel(x)


def over_setting(axis: Any, rows: Sequence[dict[str, Any]], x: str) -> None:
    """A line a comparison over a setting of numbers, on a logarithmic axis; of one of names, such as architectures, bars.

    Args:
        axis: to draw on.
        rows: of one metric.
        x: the column of the setting.
    """
    if all(isinstance(row[x], int | float) for row in rows):
        curves(axis, rows, x, log=2)
    else:
        grouped_bars(axis, rows, x)


def lines(axis: Any, x: Sequence[float], groups: dict[str, Sequence[Sequence[float]]]) -> None:
    """A line a seed for each view, without points or intervals; labelled for a legend, each view once.

    Args:
        axis: to draw on.
        x: where all lines have their values.
        groups: by view, the values of each seed, `(n_seeds, len(x))`.
    """
    for name, of_seeds in groups.items():
        look = {**style(name, groups), "marker": ""}
        for i, values in enumerate(of_seeds):
            axis.plot(x, values, **{**look, "label": look["label"] if i == 0 else None})


def scatter(axis: Any, scores: Mapping[str, Sequence[float]], x: str, names: Sequence[str]) -> None:
    """The score of each unit in some comparisons against that in another, with the diagonal.

    Args:
        axis: to draw on.
        scores: of each unit, by comparison.
        x: the comparison along the axis.
        names: the others.
    """
    for name in names:
        axis.scatter(scores[x], scores[name], s=9, color=style(name)["color"], linewidths=0)
    diagonal(axis)
    axis.set_xlabel(x)


def across(axis: Any, rows: Iterable[dict[str, Any]], labels: Mapping[str, str], by: str = "units") -> None:
    """A line across for each row, at its mean, with its name at the right.

    Args:
        axis: to draw on.
        rows: of one measure.
        labels: of names in place of what `style` calls them.
        by: the column of the names.
    """
    rows = sorted(rows, key=lambda row: row["mean"], reverse=True)
    apart, above = 0.035 * rows[0]["mean"], math.inf  # names of lines that lie closer than this stand below each other
    for row in rows:
        look = style(row[by])
        axis.axhline(row["mean"], color=look["color"], linestyle=":", linewidth=1)
        above = min(row["mean"], above - apart)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        name = labels.get(row[by], look["label"])
        axis.annotate(name, (1, above), (2, -2), fontsize=7, color="#444444", **place)


def agreement(axes: Sequence[Any], rows: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], options: Any) -> None:
    """What theory predicts against what is measured, and how far both are apart; a mark a metric.

    Args:
        axes: two.
        rows: with `metric` and `units`, and with the columns of `superpos.theory.summary`.
        found: the same two columns, and those of `superpos.theory.agreement`; the sampling error of the first units is shown.
        options: of the marks, by units.
    """
    metrics, first = column(rows, "metric"), found[0]["units"]

    def look(row: Mapping[str, Any]) -> dict[str, Any]:
        own = {**style(row["metric"], metrics), **options.get(row["units"], {})}
        return {**own, "linestyle": "none", "label": None, "markersize": 5}

    against, differences = axes
    for row in sorted(rows, key=lambda row: row["units"] == first):  # on top
        if row["predicted"] is not None:
            against.plot(row["predicted"], row["mean"], **look(row))
    diagonal(against)
    against.set(title="Predicted and measured, mean over pairs", ylabel="measured")
    for row in found:
        differences.plot([row["largest_difference"]], [row["metric"]], **look(row))
        if row["units"] == first:
            differences.plot([row["sampling_error"]], [row["metric"]], "|", color="#444444", markersize=12)
    differences.axvline(0.003, color="#777777", linewidth=0.8, linestyle=":")
    differences.set(xscale="log", xlabel="|measured - predicted| (bar: standard error; dots: 0.003)")
    differences.set_title(f"Largest difference in {found[0]['n_pairs']} pairs")


def formulas(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Expected scores of random arrangements over the number of features: simulated ones, and formulas as lines.

    Args:
        axis: to draw on.
        rows: with `n_features`, `n_units`, `metric`, and the columns of `superpos.theory.agreement_of_random`.
    """
    simulated = [
        {
            **row,
            "line": f"{row['metric']}, {row['n_units'] / row['n_features']:g} units a feature",
            "ci95": [row["mean"] + side * row["standard_error"] for side in (-2, 2)],
        }
        for row in rows
    ]
    curves(axis, simulated, "n_features", "line", log=2, linestyle="none", markerfacecolor="white")
    curves(axis, of_column(simulated, "formula"), "n_features", "line", log=2, marker="", label=None)
    worst = max(abs(row["relative_difference"]) for row in rows)
    axis.set(yscale="log", xlabel="features", ylabel="expected score of random arrangements")
    axis.set_title(f"Formula (lines) and simulation: within {100 * worst:.1f} %")
    axis.legend(fontsize=7, frameon=False)


def diagonal(axis: Any) -> None:
    """A thin line where both coordinates are equal."""
    axis.axline((0, 0), slope=1, color="#999999", linewidth=0.8, zorder=0)


def metric_title(metric: str) -> str:
    """What a panel of a metric is called."""
    return _TITLES.get(metric, metric)


def alignment_bars(rows: Sequence[dict[str, Any]], title: str, path: str | PathLike) -> None:
    """Alignment of one pair of representations, a panel a metric, a bar a comparison, with 95 % intervals.

    Args:
        rows: rows of alignment.
        title: names the two sides.
        path: of the PNG to write.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure, (axes,) = panels(1, len(metrics), (2 + 3 * len(metrics), 3.4), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        bars(axis, [row for row in rows if row["metric"] == metric])
        axis.set_xlabel(metric_title(metric))
    finish(figure, f"{title}; {caption(rows)} of the SAEs, the samples held fixed", legend=(), path=path)


def image_grid(
    images: Sequence[Sequence[Any]],
    titles: Sequence[str],
    path: str | PathLike,
    *,
    title: str = "",
    colours: Sequence[str] = (),
    source: str | PathLike | None = None,
) -> None:
    """A grid of images, such as those that drive a unit most, with a title to the left of each row.

    Args:
        images: of each row: arrays (height, width, 3) in 0 to 1, or Pillow images; None leaves a place empty. Where there is a
            source, names of its images.
        titles: of each row.
        path: of the PNG to write.
        title: of the figure.
        colours: of each row's title; by default black.
        source: a folder or zip of images.

    Raises:
        ValueError: no image, or none of such a name; or another number of titles or colours than of rows.
    """
    colours = colours or ["black"] * len(titles)
    columns = max(map(len, images), default=0)
    if not columns or not len(images) == len(titles) == len(colours):
        raise ValueError(
            f"images must have at least one, and titles and colours one a row of them, "
            f"got {len(images)} rows of up to {columns}, {len(titles)} titles and {len(colours)} colours."
        )
    if source is not None:
        named = Images(source).named
        images = [[named(name) for name in names] for names in images]
    figure, axes = panels(len(images), columns, (2 + 0.75 * columns, 0.4 + 0.75 * len(images)))
    for line, shown, name, colour in zip(axes, images, titles, colours, strict=True):
        for axis, image in zip(line, [*shown, *[None] * (columns - len(shown))], strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if image is not None:
                axis.imshow(image)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", color=colour)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure.suptitle(title, fontsize=9, color="#444444")
    save(figure, path)


def column(rows: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    """What a column holds, each value once, in the order of the rows.

    >>> column([{"layer": "b"}, {"layer": "a"}, {"layer": "b"}], "layer")
    ['b', 'a']
    """
    return list(dict.fromkeys(row[name] for row in rows))


def where(rows: Iterable[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    """The rows that have these values in these columns.

    >>> where([{"layer": "b", "mean": 0.1}, {"layer": "a", "mean": 0.2}], layer="a")
    [{'layer': 'a', 'mean': 0.2}]
    """
    return [row for row in rows if values.items() <= row.items()]


def by_metric(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each metric, by the title of its panel."""
    return {metric_title(metric): where(rows, metric=metric) for metric in column(rows, "metric")}


def of_column(rows: Iterable[dict[str, Any]], mean: str, ci95: str = "") -> list[dict[str, Any]]:
    """Rows to draw another column of: those that have a value there, as their `mean`.

    Args:
        rows: to choose from.
        mean: the column.
        ci95: the column of its interval; by default none is drawn.

    >>> of_column([{"mean": 0.1, "formula": 0.2}, {"mean": 0.3, "formula": None}], "formula")
    [{'mean': 0.2, 'formula': 0.2, 'ci95': None}]
    """
    return [{**row, "mean": row[mean], "ci95": row[ci95] if ci95 else None} for row in rows if row[mean] is not None]


def means(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The mean of each row, NaN where there is none."""
    return [math.nan if row["mean"] is None else row["mean"] for row in rows]


def errors(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Distances from the mean of each row to both ends of its interval `ci95`, NaN where it has no width: for `errorbar`."""
    ends = [row["ci95"] if row["ci95"] and row["ci95"][0] < row["ci95"][1] else (math.nan, math.nan) for row in rows]
    return [
        [mean - low for mean, (low, _) in zip(means(rows), ends, strict=True)],
        [high - mean for mean, (_, high) in zip(means(rows), ends, strict=True)],
    ]


def caption(rows: Sequence[dict[str, Any]]) -> str:
    """What the bars of a figure are: an interval over seeds, or none where there are too few."""
    seeds = max(row["n_seeds"] for row in rows)
    return f"{seeds} seeds; bars: 95 % confidence interval over seeds" if seeds > 2 else f"{seeds} seeds; no interval"

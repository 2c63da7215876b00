"""Figures from result tables: one style, and one colour a comparison, everywhere.

Figures that several experiments draw are here; one that belongs to a single experiment is in its `draw`.
"""

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
    "oracle->oracle": "#009E73",
    "pca->pca": "#999999",
    "neuron->site": "#000000",
    "sae->site": "#56B4E9",
    "random_sae->site": "#F0C75E",
    "pca->site": "#999999",
    "oracle->site": "#009E73",
    "feature->site": "#CC79A7",
    "neuron": "#000000",
    "sae": "#0072B2",
    "random_sae": "#D55E00",
    "oracle": "#009E73",
    "supervised": "#CC79A7",
}
_MARKERS = {"neuron": "o", "sae": "s", "random_sae": "^", "oracle": "D", "supervised": "v"}
_TITLES = {
    "semi_match": "Semi-matching (Pearson r)",
    "soft_match": "Soft-matching (Pearson r)",
    "ridge": "Ridge regression (Pearson r)",
}


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure in the style of all figures here, and its axes `(rows, columns)`. Draw, then `save`.

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


def save(figure: Any, path: str | PathLike) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=200)


def alignment_by_width(rows: Sequence[dict[str, Any]], recovery: Sequence[dict[str, Any]], path: str | PathLike) -> None:
    """Alignment and feature recovery against the number of hidden units, a panel a metric, with 95 % intervals.

    Args:
        rows: rows of alignment, with `n_hidden`.
        recovery: rows of feature recovery.
        path: of the PNG to write.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    titles = [*metrics, "recovery"]
    figure, (axes,) = panels(1, len(titles), (3.4 * len(titles), 4.2))
    for axis, panel in zip(axes, titles, strict=True):
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
                means(line),
                yerr=errors(line),
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
        axis.set_title("Feature recovery" if panel == "recovery" else metric_title(panel))
    axes[0].set_ylabel("mean over pairs of seeds, held out")
    axes[-1].set_ylabel("highest correlation with any unit")
    axes[-1].legend(title="units", fontsize=8, title_fontsize=8, loc="upper left", frameon=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.suptitle(caption(rows), fontsize=9, color="#444444")
    save(figure, path)


def alignment_bars(rows: Sequence[dict[str, Any]], title: str, path: str | PathLike) -> None:
    """Alignment of one pair of representations, a panel a metric, a bar a comparison, with 95 % intervals.

    Args:
        rows: rows of alignment.
        title: names the two sides.
        path: of the PNG to write.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    comparisons = list(dict.fromkeys(row["comparison"] for row in rows))
    figure, (axes,) = panels(1, len(metrics), (2 + 3 * len(metrics), 3.4), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        chosen = [row for row in rows if row["metric"] == metric]
        positions = [comparisons.index(row["comparison"]) for row in chosen]
        axis.barh(
            positions,
            means(chosen),
            xerr=errors(chosen),
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
        axis.set_xlabel(metric_title(metric))
        axis.margins(x=0.18)  # room for the numbers
        axis.axvline(0, color="black", linewidth=0.8)
    figure.suptitle(f"{title}\n{caption(rows)} of the SAEs, the samples held fixed", fontsize=9, color="#444444")
    save(figure, path)


def grouped_bars(axis: Any, rows: Sequence[dict[str, Any]], by: str) -> None:
    """A group of bars for each value of a column, a bar a comparison, with 95 % intervals; labelled for a legend.

    Args:
        axis: to draw on.
        rows: rows of alignment of one metric.
        by: the column, such as "layer".
    """
    groups = list(dict.fromkeys(row[by] for row in rows))
    comparisons = list(dict.fromkeys(row["comparison"] for row in rows))
    width = 0.8 / len(comparisons)
    for i, comparison in enumerate(comparisons):
        chosen = [row for row in rows if row["comparison"] == comparison]
        positions = [groups.index(row[by]) + (i - (len(comparisons) - 1) / 2) * width for row in chosen]
        axis.bar(
            positions,
            means(chosen),
            yerr=errors(chosen),
            width=0.9 * width,
            color=COLOURS.get(comparison, "grey"),
            label=comparison,
            error_kw={"capsize": 1.5, "ecolor": "#777777", "linewidth": 0.8},
        )
    crowded = len(groups) > 1 and max(map(len, map(str, groups))) > 8
    axis.set_xticks(range(len(groups)), groups, rotation=20 if crowded else 0)
    axis.set_xlabel(by)
    axis.axhline(0, color="black", linewidth=0.8)
    if len(groups) == 1:
        axis.set_xlim(-0.75, 0.75)


def metric_title(metric: str) -> str:
    """What a panel of a metric is called."""
    return _TITLES.get(metric, metric)


def image_grid(
    images: Sequence[Sequence[Any]],
    titles: Sequence[str],
    path: str | PathLike,
    *,
    title: str = "",
    colours: Sequence[str] = (),
) -> None:
    """A grid of images, such as those that drive a unit most, with a title to the left of each row.

    Args:
        images: of each row: arrays (height, width, 3) in 0 to 1, or Pillow images; None leaves a place empty.
        titles: of each row.
        path: of the PNG to write.
        title: of the figure.
        colours: of each row's title; by default black.

    Raises:
        ValueError: no image, or another number of titles or colours than of rows.
    """
    colours = colours or ["black"] * len(titles)
    columns = max(map(len, images), default=0)
    if not columns or not len(images) == len(titles) == len(colours):
        raise ValueError(
            f"images must have at least one, and titles and colours one a row of them, "
            f"got {len(images)} rows of up to {columns}, {len(titles)} titles and {len(colours)} colours."
        )
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


def means(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The mean of each row, NaN where there is none."""
    return [math.nan if row["mean"] is None else row["mean"] for row in rows]


def errors(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Distances from the mean of each row to both ends of its interval `ci95`, 0 where there is none: for `errorbar`."""
    centres = means(rows)
    ends = [row["ci95"] or (mean, mean) for row, mean in zip(rows, centres, strict=True)]
    return [
        [mean - low for mean, (low, _) in zip(centres, ends, strict=True)],
        [high - mean for mean, (_, high) in zip(centres, ends, strict=True)],
    ]


def caption(rows: Sequence[dict[str, Any]]) -> str:
    """What the bars of a figure are: an interval over seeds, or none where there are too few."""
    seeds = max(row["n_seeds"] for row in rows)
    return f"{seeds} seeds; bars: 95 % confidence interval over seeds" if seeds > 2 else f"{seeds} seeds; no interval"

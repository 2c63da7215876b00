"""The figures of the suites."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpos import plotting


def bars(rows: Sequence[dict[str, Any]], repeats: int, where: str, path: Path) -> None:
    """Times faster than each alternative, a bar each from 1 on a log axis, with marks at the targets.

    Args:
        rows: rows of `timing.rows`: `work`, `against`, `ours_s`, `theirs_s`, `ratio`, `target`, `met`.
        repeats: number of runs that the medians are over.
        where: device and number of threads.
        path: of the PNG to write.
    """
    import matplotlib.ticker

    figure, ((axis,),) = plotting.panels(1, 1, (8.5, 1.6 + 0.42 * len(rows)))
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
    plotting.save(figure, path)


def curve(rows: Sequence[dict[str, Any]], levels: dict[str, float], title: str, path: Path) -> None:
    """Model-steps per second against the number of models trained at once, on log axes, with the ceiling.

    Args:
        rows: `n_seeds` and `model_steps_per_s`.
        levels: model-steps per second of the alternatives by name; what starts with "large matmul" is the ceiling.
        title: above it.
        path: of the PNG to write.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, ((axis,),) = plotting.panels(1, 1, (7, 4.6))
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
    plotting.save(figure, path)


def limits(rows: Sequence[dict[str, Any]], card: str, path: Path) -> None:
    """Measured seconds of each row of the accelerator suite, and those that the card would take at best.

    Args:
        rows: `part`, `work`, `seconds`, `expected_s`; those without the last two are left out.
        card: its name.
        path: of the PNG to write.
    """
    chosen = [row for row in rows if row["seconds"] and row["expected_s"]]
    figure, ((axis,),) = plotting.panels(1, 1, (8.5, 1.6 + 0.3 * len(chosen)))
    at = range(len(chosen))
    axis.scatter([row["seconds"] for row in chosen], at, color="#0072B2", label="measured")
    axis.scatter([row["expected_s"] for row in chosen], at, marker="|", s=200, color="black", label="expected at best")
    axis.set_xscale("log")
    axis.set_yticks(at, [f"{row['part']}: {row['work']}"[:70] for row in chosen], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.set_title(card, fontsize=11, color="#444444")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    plotting.save(figure, path)


def _seconds(value):
    return f"{_short(value)} s" if value >= 1 else f"{_short(1000 * value)} ms"


def _short(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

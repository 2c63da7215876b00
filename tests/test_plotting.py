import math

import pytest

from superpos import plotting
from superpos.views import VIEWS


def row(name, at, mean, ci95):
    return {"comparison": name, "at": at, "mean": mean, "ci95": ci95, "n_seeds": 3}


def test_a_view_has_the_style_that_it_says_and_every_other_name_has_one():
    for name, view in VIEWS.items():
        style = plotting.style(name)
        assert (style["color"], style["marker"], style["label"]) == (view.colour, view.marker, view.label)
        assert plotting.style(f"{name}->{name}")["color"] == view.colour
    for name in ("nobody", "nobody->neuron", "neuron->nobody", "sae->nobody", "a->b"):
        assert plotting.COLOURS[name].startswith("#")
        assert plotting.style(name) == plotting.style(name)


def test_names_that_no_view_has_differ_within_a_figure():
    names = [f"kind {i}" for i in range(10)]
    assert len({(plotting.style(name, names)["color"], plotting.style(name, names)["marker"]) for name in names}) == 10


def test_no_bar_stands_where_there_is_no_interval():
    rows = [row("sae->sae", 1, 0.5, [0.4, 0.7]), row("sae->sae", 2, 0.5, None), row("sae->sae", 3, None, None)]
    low, high = plotting.errors(rows)
    assert (low[0], high[0]) == pytest.approx((0.1, 0.2))
    assert all(map(math.isnan, [*low[1:], *high[1:]]))


def test_long_titles_and_captions_are_inside_the_figure(tmp_path):
    rows = [row(name, at, 0.5, [0.4, 0.7]) for name in ("sae->sae", "nobody->neuron") for at in (8, 16)]
    figure, (axes,) = plotting.panels(1, 3, (9, 3))
    plotting.bars(axes[0], [one for one in rows if one["at"] == 8])
    plotting.grouped_bars(axes[1], [{**one, "layer": f"transformer.block_{one['at']}.mlp"} for one in rows], "layer")
    plotting.curves(axes[2], rows, "at", log=2)
    axes[1].set_title("transformer.blocks.3.mlp, of a network that has a name which is far too long for a panel of this width")
    plotting.finish(figure, "seeds and what they are " * 12)
    plotting.save(figure, tmp_path / "figure.png")
    figure.draw_without_rendering()
    for text in (axes[1].title, figure._suptitle):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sae->sae", "nobody->neuron"]

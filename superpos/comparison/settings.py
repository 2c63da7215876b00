"""The whole grid of settings in place of one: a specification curve (Simonsohn, Simmons & Nelson 2020)."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from superpos.comparison.batches import ends
from superpos.results import did_you_mean
from superpos.views import SAE, View


def spread(
    views: Mapping[str, View], comparisons: Sequence[str], settings: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, View], tuple[str, ...], dict[str, dict[str, str]]]:
    """Views and comparisons of every setting beside those that are chosen, to be fitted and scored by the same programs.

    Args:
        views: by name, one SAE among them; views that are of it follow its settings.
        comparisons: of the chosen setting.
        settings: values of fields of the SAE, such as {"k": (4, 16), "expansion": (1, 4)}; all combinations of them.

    Returns:
        All views, all comparisons, and by setting, such as "k=4 expansion=1", what each chosen comparison is called there.

    Raises:
        ValueError: not one SAE, or a field or value that it does not have.

    >>> views, comparisons, names = spread({"sae": SAE(k=8)}, ["sae->sae"], {"k": (4, 8)})
    >>> comparisons, names
    (('sae->sae', 'sae k=4->sae k=4'), {'k=4': {'sae->sae': 'sae k=4->sae k=4'}})
    """
    saes = [name for name, view in views.items() if isinstance(view, SAE)]
    if len(saes) != 1:
        raise ValueError(f"settings vary one SAE, but views has {len(saes)}.")
    chosen: Any = views[saes[0]]
    fields = [field.name for field in dataclasses.fields(chosen)]
    for name, values in settings.items():
        if name not in fields or isinstance(values, str) or not len(values):
            hint = did_you_mean(name, fields)
            raise ValueError(f"settings must give values of {', '.join(fields)}, got {name!r}: {values!r}{hint}.")
    all_views, all_comparisons, names = dict(views), list(comparisons), {}
    for values in itertools.product(*settings.values()):
        setting = dict(zip(settings, values, strict=True))
        other = dataclasses.replace(chosen, **setting)
        if other == chosen:
            continue
        label = " ".join(f"{name}={value}" for name, value in setting.items())
        varied = {name: changed for name, view in views.items() if (changed := _of(view, chosen, other)) != view}
        renamed = {name: f"{name} {label}" for name in varied}
        mine = {
            comparison: "->".join(renamed.get(end, end) for end in ends(comparison))
            for comparison in comparisons
            if any(end in renamed for end in ends(comparison))
        }
        read = {end for comparison in mine.values() for end in ends(comparison)}
        all_views |= {renamed[name]: view for name, view in varied.items() if renamed[name] in read}
        all_comparisons += mine.values()
        names[label] = mine
    return all_views, tuple(all_comparisons), names


def _of(view: Any, chosen: View, other: View) -> Any:
    """The view with another SAE in the place of the chosen one, however deep."""
    if view == chosen:
        return other
    of = None if view.of is None else _of(view.of, chosen, other)
    return view if of == view.of else dataclasses.replace(view, of=of)

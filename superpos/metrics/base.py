"""What a metric is, what it reads, and what it returns."""

import abc
import dataclasses
import functools
import html
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import linear_call
from jaxtyping import Array, Bool, Float, Int

from superpos.checks import is_concrete
from superpos.checks import positive_integer as positive_integer
from superpos.linalg import safe_divide as safe_divide
from superpos.linalg import safe_norm as safe_norm
from superpos.linalg import safe_sqrt as safe_sqrt
from superpos.moments import Moments


class Score(NamedTuple):
    """The score of one metric.

    Attributes:
        mean: scalar, mean over folds; NaN where a side has no live unit or a fold's score is not defined (see the metric).
        folds: `(n_folds,)`, held-out score of each fold.
        units: `(n_folds, n_target)`, score of each target unit, NaN where masked; None where a metric has none.
        details: what was fitted: the metric's docstring names it.
    """

    mean: Float[Array, ""]
    folds: Float[Array, " folds"]
    units: Float[Array, "folds target"] | None
    details: dict[str, Any]

    def to_dataframe(self) -> Any:
        """A pandas table, a row a fold and live target unit: `fold`, `unit`, `score`; a row a fold where units have none.

        >>> Score(jnp.array(0.5), jnp.array([0.25, 0.75]), None, {}).to_dataframe()["score"].tolist()
        [0.25, 0.75]
        """
        import pandas as pd

        if self.units is None:
            return pd.DataFrame({"fold": np.arange(len(self.folds)), "score": np.asarray(self.folds)})
        units = np.asarray(self.units)
        fold, unit = np.nonzero(~np.isnan(units))
        return pd.DataFrame({"fold": fold, "unit": unit, "score": units[fold, unit]})

    def cells(self) -> dict[str, str]:
        """What a table shows: the score, the range of the folds, the number of live units; of several, only their shape."""
        if not is_concrete(self.mean, self.folds):
            return {"score": str(self.mean), "folds": "", "units": ""}
        if np.ndim(self.mean):
            return {"score": f"array {np.shape(self.mean)}", "folds": "", "units": ""}
        low, high = (f"{end:.3f}" for end in (np.min(self.folds), np.max(self.folds)))
        live = "" if self.units is None else str(int(np.sum(~np.isnan(np.asarray(self.units)).all(axis=0))))
        return {"score": f"{float(self.mean):.3f}", "folds": f"{low} to {high}", "units": live}

    def __repr__(self) -> str:
        """The score in a line."""
        cells = self.cells()
        return f"Score {cells['score']}" + "".join(f", {name} {cells[name]}" for name in ("folds", "units") if cells[name])


@jax.tree_util.register_pytree_with_keys_class
class Scores(dict[str, Score]):
    """Scores by metric: a dictionary that prints one line a metric.

    >>> Scores(cka=Score(jnp.array(0.5), jnp.array([0.25, 0.75]), None, {}))
    metric  score  folds           units
    cka     0.500  0.250 to 0.750
    """

    def to_dataframe(self) -> Any:
        """A pandas table with a row a metric: `metric`, `mean`, `std` over folds, `n_folds`, `n_units` that are live."""
        import pandas as pd

        rows = []
        for name, score in self.items():
            n_units = None if score.units is None else score.to_dataframe()["unit"].nunique()
            folds = np.asarray(score.folds)
            std = folds.std(ddof=1) if len(folds) > 1 else np.nan
            rows.append({"metric": name, "mean": float(score.mean), "std": std, "n_folds": len(folds), "n_units": n_units})
        return pd.DataFrame(rows)

    def _table(self) -> list[list[str]]:
        return [["metric", "score", "folds", "units"], *([name, *score.cells().values()] for name, score in self.items())]

    def __repr__(self) -> str:
        """One line a metric."""
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in self._table()]
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def tree_flatten_with_keys(self) -> tuple[Any, tuple[str, ...]]:
        """The scores, in order, for JAX."""
        return [(jax.tree_util.DictKey(name), score) for name, score in self.items()], tuple(self)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], scores: Any) -> "Scores":
        """What JAX made of the scores."""
        return cls(zip(names, scores, strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Two representations of the same samples, for metrics that sums are not enough for.

    Attributes:
        x, y: `(samples, units)`, 0 in masked units.
        fold_ids: `(samples,)`, outside 0 to n_folds - 1 for samples that are left out.
        source, target: masks of the live units.
        n_folds: static.
        largest_fold: a static bound on the number of samples in a fold.
        fits: `(samples,)`, which samples maps may be fitted on; by default all.
    """

    x: Float[Array, "samples source"]
    y: Float[Array, "samples target"]
    fold_ids: Int[Array, " samples"]
    source: Bool[Array, " source"]
    target: Bool[Array, " target"]
    n_folds: int = dataclasses.field(metadata={"static": True})
    largest_fold: int = dataclasses.field(metadata={"static": True})
    fits: Bool[Array, " samples"] | None = None

    def held_out(self, fold: Array) -> tuple[Array, Array, Array]:
        """Both sides of one fold's samples, padded to `(largest_fold, units)`, and which rows are real."""
        rows, valid = self.rows(fold)
        return self.x[rows], self.y[rows], valid

    def centred(self, fold: Array) -> tuple[Array, ...]:
        """Both sides of one fold's samples less their means, 0 in rows that are not real and in masked units; their number."""
        x, y, valid = self.held_out(fold)
        count = jnp.sum(valid, dtype=x.dtype)
        sides = []
        for values, live in ((x, self.source), (y, self.target)):
            mean = jnp.sum(jnp.where(valid[:, None], values, 0), axis=0) / count
            sides.append(jnp.where(valid[:, None] & live, values - mean, 0))
        return *sides, count

    def rows(self, fold: Array) -> tuple[Array, Array]:
        """The indices of one fold's samples, padded to `(largest_fold,)`, and which of them are real."""
        inside = self.fold_ids == fold
        rows = jnp.argsort(~inside, stable=True)[: self.largest_fold]
        return rows, inside[rows]


class Metric(abc.ABC):
    """A metric: a frozen dataclass with a `name`, hashable, so that it can be a static argument of `jit`.

    `fit` reads the training part of each fold and `evaluate` scores the held-out part, so that held-out samples can be
    resampled with the fitted map fixed. `sp.align` and `sp.score` call both.
    """

    name: str  # its key in the result of `sp.align` and `sp.score`
    reads: ClassVar[frozenset[str]] = frozenset({"xy"})  # out of `sp.moments.READS`, or "samples"
    symmetric: ClassVar[bool] = False  # swapping source and target leaves the score as it is
    distance: ClassVar[bool] = False  # lower is more alike
    rotates: ClassVar[frozenset[str]] = frozenset()  # sides, "source" and "target", whose rotation changes nothing
    wide: ClassVar[bool] = False  # takes `Samples` too, where there are fewer of them than source units
    centres: ClassVar[bool] = True  # adding a constant to a unit changes nothing
    differentiable: ClassVar[bool] = True  # almost everywhere, with a gradient that is not always 0
    least: ClassVar[int] = 1  # samples in a fold: with fewer the score is NaN, and `sp.align` says so
    second_pass: ClassVar[bool] = False  # has a `polish`, and is evaluated on samples, where they are at hand

    def room(self, n_source: int, n_target: int) -> int:
        """About how many bytes each fold takes beside its moments, where these are not what takes most."""
        del n_source, n_target
        return 0

    def fit(self, evidence: Any) -> Any:
        """What is fitted on each fold's training part: a pytree, None where there is nothing to fit.

        Args:
            evidence: the `Moments` of all folds, or `Samples` for a metric that reads "samples".
        """
        del evidence

    def polish(self, fitted: Any, samples: "Samples") -> Any:
        """What is fitted, mended by a second pass over the samples, where they are at hand (`sp.align`).

        Args:
            fitted: from `fit` on moments.
            samples: what the moments are of.
        """
        del samples
        return fitted

    def refit(self, fitted: Any, evidence: Any) -> Any:
        """What is fitted on other samples of the same folds; a metric may keep what it chose or factorised before.

        Args:
            fitted: from `fit`, or `polish`, on all samples.
            evidence: moments without some of the samples of each fold; or all samples, of which some are not `fits`.
        """
        del fitted
        if isinstance(evidence, Samples) and evidence.fits is not None:
            evidence = dataclasses.replace(evidence, fold_ids=jnp.where(evidence.fits, evidence.fold_ids, -1), fits=None)
        return self.fit(evidence)

    @abc.abstractmethod
    def evaluate(self, fitted: Any, evidence: Any) -> Score:
        """Scores the held-out part of each fold.

        Args:
            fitted: from `fit`.
            evidence: as for `fit`, of the same folds, or of some of the samples of each.
        """

    @property
    def has_doubts(self) -> bool:
        """Whether it has doubts of its own, for which details of its scores must be kept."""
        return type(self).doubts is not Metric.doubts

    def doubts(self, score: Score) -> list[str]:
        """What a score of known values gives reason to doubt: a sentence each; on the host. `sp.align` warns of them."""
        del score
        return []

    def weigh(self, score: Score, weights: Float[Array, "*folds target"]) -> Score:
        """The score in which live target units count by their weights; a score without units stays as it is.

        Args:
            score: from `evaluate`.
            weights: not negative; NaN is the score of a fold whose live units all weigh 0.
        """
        if score.units is None:
            return score
        live = ~jnp.isnan(score.units)
        folds = jnp.sum(jnp.where(live, weights * score.units, 0), axis=1) / jnp.sum(jnp.where(live, weights, 0), axis=1)
        return score._replace(mean=jnp.mean(folds), folds=folds)

    def __call__(self, evidence: Any) -> Score:
        """Fits and evaluates."""
        return self.score(self.fit(evidence), evidence)

    def score(self, fitted: Any, evidence: Any) -> Score:
        """`evaluate`, of which a gradient is refused where there is none."""
        score = self.evaluate(fitted, evidence)
        if self.differentiable:
            return score
        parts = {part: getattr(score, part) for part in ("mean", "folds", "units") if getattr(score, part) is not None}
        of = [leaf for leaf in jax.tree.leaves(evidence) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return score._replace(**{part: _without_gradient(self.name, value, of) for part, value in parts.items()})


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _without_gradient(name: str, value: Any, of: Any) -> Any:
    """The value; whoever asks for its gradient with respect to what it is `of` is told that there is none."""
    del name, of
    return value


@_without_gradient.defjvp
def _without_gradient_jvp(name: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    def refuse(_: Any, cotangent: Any) -> Any:
        raise ValueError(f"{name} has no gradient: it counts or ranks, and does not change with small changes of its inputs.")

    change = linear_call(lambda _, moved: jnp.zeros_like(primals[0]), refuse, (), tangents[1])
    return primals[0], change


def correlations(moments: Moments) -> Float[Array, "folds source target"]:
    """Pearson correlation of every source unit with every target unit in each fold; 0 where one is constant."""
    norms = safe_sqrt(moments.x.squares)[:, :, None] * safe_sqrt(moments.y.squares)[:, None, :]
    return safe_divide(moments.xy, norms)


def from_units(units: Float[Array, "folds target"], live: Bool[Array, "*folds target"], details: dict[str, Any]) -> Score:
    """A score that is the mean over live target units, then over folds."""
    live = jnp.broadcast_to(live, units.shape)
    folds = jnp.sum(jnp.where(live, units, 0), axis=1) / jnp.sum(live, axis=1)  # 0 / 0 is NaN: no live unit
    return Score(jnp.mean(folds), folds, jnp.where(live, units, jnp.nan), details)


def from_folds(folds: Float[Array, " folds"], live: tuple[Array, Array], details: dict[str, Any] | None = None) -> Score:
    """A score without a score for each unit; NaN where a side has no live unit."""
    folds = jnp.where(jnp.any(live[0]) & jnp.any(live[1]), folds, jnp.nan)
    return Score(jnp.mean(folds), folds, None, details or {})

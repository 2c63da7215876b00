"""What sparse inference reads that knows how features are mixed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from superpos import metrics, moments, sparse_coding
from superpos.views.base import STATIC, Draw, Params, View, which


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Oracle(View):
    """Features that sparse inference finds behind the units with the true arrangement; `(n, features)`.

    It bounds what a dictionary can bring: it has the directions that an SAE has to find, so that what it does not show is not
    lost by training. The elastic net of `sp.sparse_coding.fista`, with features in the box from 0 to `upper`. An Oracle is
    equal to itself only, for arrays are not compared.

    Attributes:
        arrangement: A, `(n_features, n_units)`; may be traced.
        penalty: of the sum of features. By default that of `penalties` is taken, with the ridge of `ridge_ratios` times it,
            that recovers features best on `n_samples` samples, by the mean of `sp.metrics.FeatureRecovery`.
        ridge: of their squares, where a penalty is given.
        truth: draws the features of the samples that `draw` gives for the same key; needed where a penalty is chosen.
        rectified: y = relu(z A).
        upper: the largest value of a feature.
        steps: of the inference.
        penalties, ridge_ratios, n_samples: what is tried, and on how many samples.

    Params: `{"penalty": (), "ridge": ()}`.

    Raises:
        ValueError: an arrangement that does not fit the units, or no penalty and no truth.

    >>> view = Oracle(jnp.eye(2), penalty=0.1)
    >>> x = jnp.array([[0.5, 0.0]])
    >>> z = view.encode(view.fit(jax.random.key(0), lambda key, n: x), x)
    >>> bool(jnp.allclose(z, jnp.array([[0.4, 0.0]]), atol=1e-4))
    True
    """

    arrangement: Any = dataclasses.field(repr=False)
    _: dataclasses.KW_ONLY
    penalty: ArrayLike | None = None
    ridge: ArrayLike = 0.0
    truth: Draw | None = dataclasses.field(default=None, metadata=STATIC)
    rectified: bool = dataclasses.field(default=False, metadata=STATIC)
    upper: float = dataclasses.field(default=1.0, metadata=STATIC)
    steps: int = dataclasses.field(default=100, metadata=STATIC)
    penalties: tuple[float, ...] = dataclasses.field(default=(0.003, 0.03, 0.1, 0.3), metadata=STATIC)
    ridge_ratios: tuple[float, ...] = dataclasses.field(default=(0.0, 1.0, 3.0), metadata=STATIC)
    n_samples: int = dataclasses.field(default=4096, metadata=STATIC)

    costly = True
    label = "oracle"
    colour = "#009E73"
    marker = "H"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        shape = jnp.shape(self.arrangement)
        if len(shape) != 2 or shape[1] != n_units:
            raise ValueError(f"arrangement of Oracle must be (n_features, {n_units}), got {shape}.")
        if self.steps < 1:
            raise ValueError(f"steps of Oracle must be at least 1, got {self.steps}.")
        if self.penalty is not None:
            return
        if self.truth is None:
            raise ValueError("truth of Oracle must draw features to choose a penalty by, got none: give it, or a penalty.")
        if not self.penalties or not self.ridge_ratios or self.n_samples < 2:
            raise ValueError("Oracle needs at least one of penalties, one of ridge_ratios, and n_samples of 2.")

    def size(self, n_units: int) -> int:
        """The features."""
        return jnp.shape(self.arrangement)[0]

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del n_units, base
        if self.penalty is not None:
            return {"penalty": jnp.asarray(self.penalty, float), "ridge": jnp.asarray(self.ridge, float)}
        asked = which(draw, key, data_key, self.n_samples)
        units, z = draw(*asked), self.truth(*asked)  # type: ignore[misc]
        pairs = [(penalty, ratio * penalty) for penalty in self.penalties for ratio in self.ridge_ratios]
        candidates = dict(zip(("penalty", "ridge"), jnp.array(pairs).T, strict=True))

        def recovery(candidate):
            sums = moments.init(z.shape[1], z.shape[1], 1, {"xy"})
            return metrics.FeatureRecovery()(moments.update(sums, self.encode(candidate, units), z, 0)).mean

        best = jnp.argmax(lax.map(recovery, candidates))
        return jax.tree.map(lambda values: values[best], candidates)

    def weights(self, params: Params) -> Params:
        """The arrangement, beside the penalty and the ridge."""
        return {"arrangement": self.arrangement, **params}

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The features."""
        return sparse_coding.fista(
            x,
            weights["arrangement"],
            weights["penalty"],
            ridge=weights["ridge"],
            upper=self.upper,
            rectified=self.rectified,
            steps=self.steps,
        )

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """The `penalty` and the `ridge`."""
        del x
        return {"penalty": params["penalty"], "ridge": params["ridge"]}

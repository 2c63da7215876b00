"""Features along the lines that fourth-order cumulants show."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from superpos import cumulants, linalg, sparse_coding
from superpos.views.base import STATIC, Draw, Params, View, explained, which

BATCH, RATE, FEW = 1024, 3e-3, 30  # samples and rate of a step that polishes, and steps of its inference


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cumulant(View):
    """Sparse codes of the feature lines that fourth-order cumulants show, without training; `(n, 2 · n_features)`.

    It controls for training: it undoes superposition as an SAE does, from moments of the samples. Lines are those of
    `sp.cumulants.directions`, which says when they are found. Toy models put features into antipodal pairs that share a line,
    so that a line is read in both directions: the codes of all lines, then those against them. Codes are those of
    `sp.sparse_coding.fista`. A few gradient steps on directions polish them, as in dictionary learning (Olshausen & Field
    1997).

    Attributes:
        n_features: lines, at most n (n + 1) / 2 for n components; see `sp.cumulants.count_features`.
        both_signs: whether to read each line in both directions; otherwise in the one to which samples are skewed.
        penalty: of the sum of a code, in units of the root mean square length of the samples.
        rectified: units are y = relu(z A): a silent one says only that z A was not positive, and there is no offset.
        polish: gradient steps on directions and offset, of 1,024 samples each.
        components: principal components in which lines are looked for; by default at most 48.
        steps: of the inference.
        max_samples: rows of a finite source that are used at most, and samples of any other.

    In a comparison: `sp.compare(x, y, views={"neuron": sp.views.Neuron(), "lines": sp.views.Cumulant(20)},
    comparisons=("neuron->neuron", "lines->lines"))`.

    Params: `{"offset": (units,), "directions": (codes, units), "penalty": ()}`.

    Raises:
        ValueError: settings that do not fit.

    >>> from superpos.views.base import Rows
    >>> z = jax.random.uniform(jax.random.key(0), (500, 3)) * jax.random.bernoulli(jax.random.key(1), 0.1, (500, 3))
    >>> view = Cumulant(3, both_signs=False, polish=0)
    >>> x = z @ jnp.array([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]])
    >>> view.encode(view.fit(jax.random.key(2), Rows(x)), x).shape
    (500, 3)
    """

    n_features: int = dataclasses.field(metadata=STATIC)
    _: dataclasses.KW_ONLY
    both_signs: bool = dataclasses.field(default=True, metadata=STATIC)
    penalty: ArrayLike = 0.05
    rectified: bool = dataclasses.field(default=False, metadata=STATIC)
    polish: int = dataclasses.field(default=200, metadata=STATIC)
    components: int | None = dataclasses.field(default=None, metadata=STATIC)
    steps: int = dataclasses.field(default=100, metadata=STATIC)
    max_samples: int = dataclasses.field(default=65_536, metadata=STATIC)

    random = True
    costly = True
    label = "cumulant lines"
    colour = "#44AA99"
    marker = "x"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if self.components is not None and not 1 <= self.components <= n_units:
            raise ValueError(f"components of Cumulant must be between 1 and the {n_units} units, got {self.components}.")
        most = cumulants.n_pairs(min(n_units, 48) if self.components is None else self.components)
        if not isinstance(self.n_features, int) or not 1 <= self.n_features <= most:
            raise ValueError(f"n_features of Cumulant must be between 1 and the {most} pairs of units, got {self.n_features}.")
        if isinstance(self.penalty, int | float) and not self.penalty >= 0:
            raise ValueError(f"penalty of Cumulant must be at least 0, got {self.penalty}.")
        if self.polish < 0 or self.steps < 1:
            raise ValueError(f"Cumulant needs polish of at least 0 and steps of at least 1, got {self.polish}, {self.steps}.")

    def size(self, n_units: int) -> int:
        """The lines, twice where both signs are read."""
        return self.n_features * (2 if self.both_signs else 1)

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del n_units, base
        x = draw(*which(draw, key, data_key, self.max_samples))
        lines = cumulants.directions(x, self.n_features, jax.random.fold_in(key, 0), components=self.components)
        dictionary = jnp.concatenate([lines, -lines]) if self.both_signs else lines
        length = jnp.sqrt(jnp.mean(jnp.sum((x - jnp.mean(x, axis=0)) ** 2, axis=1)))
        penalty = self.penalty * length
        start = {"offset": jnp.zeros_like(x[0]), "directions": dictionary}
        if not self.rectified:  # samples less their codes lie about the offset
            few = x[:BATCH]
            codes = self.apply({**start, "penalty": penalty}, few)
            start["offset"] = jnp.mean(few, axis=0) - linalg.matmul(jnp.mean(codes, axis=0), dictionary)
        if not self.polish:
            return {**start, "penalty": penalty}

        def loss(params: Params, batch: Any) -> Any:
            weights = {**params, "penalty": penalty}
            codes = lax.stop_gradient(self.apply(weights, batch, FEW))
            error = linalg.matmul(codes, params["directions"]) + params["offset"] - batch
            if self.rectified:
                error = jnp.where(batch <= 0, jnp.maximum(error, 0), error)
            return jnp.mean(jnp.sum(error**2, axis=1)) / length**2

        optimizer = optax.adam(optax.cosine_decay_schedule(RATE, self.polish))

        def improve(state: Any, key: Any) -> tuple[Any, None]:
            params, moments = state
            gradient = jax.grad(loss)(params, x[jax.random.randint(key, (BATCH,), 0, len(x))])
            if self.rectified:
                gradient["offset"] = jnp.zeros_like(gradient["offset"])
            updates, moments = optimizer.update(gradient, moments)
            params = optax.apply_updates(params, updates)
            norms = jnp.linalg.norm(params["directions"], axis=1, keepdims=True)
            return ({**params, "directions": params["directions"] / jnp.maximum(norms, 1e-30)}, moments), None

        keys = jax.random.split(jax.random.fold_in(key, 1), self.polish)
        return {**lax.scan(improve, (start, optimizer.init(start)), keys)[0][0], "penalty": penalty}

    def apply(self, weights: Params, x: jax.Array, steps: int | None = None) -> jax.Array:
        """The codes."""
        return sparse_coding.fista(
            x - weights["offset"],
            weights["directions"],
            weights["penalty"],
            rectified=self.rectified,
            steps=self.steps if steps is None else steps,
        )

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """The share of the variance that codes show (`explained`), and how many of them a sample has (`l0`)."""
        codes = self.apply(params, x)
        shown = linalg.matmul(codes, params["directions"]) + params["offset"]
        shown = jnp.maximum(shown, 0) if self.rectified else shown
        return {"explained": explained(x, shown), "l0": jnp.mean(jnp.sum(codes > 0, axis=1).astype(x.dtype))}

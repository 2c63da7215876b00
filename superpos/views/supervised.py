"""What a network reads that is shown the true features."""

import dataclasses
from typing import Any

import jax
import optax

from superpos import training
from superpos.probe import Probe
from superpos.views.base import STATIC, Draw, Params, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Supervised(View):
    """Features as `sp.probe.Probe` predicts them, which is trained on the true ones; `(n, features)`.

    It bounds what any reading of the units can bring: the probe approaches E[z | y], which no other function of the units
    correlates better with. What it does not show, the units do not tell.

    Attributes:
        truth: draws the features of the samples that `draw` gives for the same key: `Rows(features)` beside `Rows(units)`.
        width: hidden units of the probe.
        steps, batch_size: of training.
        learning_rate: of Adam; it decays to 0 with a cosine.

    Params: those of the probe.

    Raises:
        ValueError: no truth, or sizes that are not positive.

    >>> import jax.numpy as jnp
    >>> from superpos.views.base import Rows
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> view = Supervised(Rows(jnp.abs(x[:, :3])), width=8, steps=3, batch_size=8)
    >>> view.encode(view.fit(jax.random.key(1), Rows(x)), x).shape
    (32, 3)
    """

    truth: Draw | None = dataclasses.field(default=None, metadata=STATIC)
    _: dataclasses.KW_ONLY
    width: int = dataclasses.field(default=256, metadata=STATIC)
    steps: int = dataclasses.field(default=4_000, metadata=STATIC)
    batch_size: int = dataclasses.field(default=1024, metadata=STATIC)
    learning_rate: float = dataclasses.field(default=3e-3, metadata=STATIC)

    random = True
    label = "supervised"
    colour = "#CC79A7"
    marker = "p"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if self.truth is None:
            raise ValueError("truth of Supervised must draw the features of the samples, got none.")
        for name in ("width", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of Supervised must be at least 1, got {getattr(self, name)}.")

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del base
        truth: Any = self.truth
        n_features = jax.eval_shape(lambda key: truth(key, 1), jax.random.key(0)).shape[1]
        params, _ = training.fit(
            Probe(n_units, n_features, self.width),
            key,
            lambda key, n: (draw(key, n), truth(key, n)),
            data_key=data_key,
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps)),
        )
        return params

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The predicted features."""
        return Probe(x.shape[1], weights["W_out"].shape[1], self.width).encode(weights, x)

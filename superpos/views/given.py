"""A function of the user's."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from superpos.views.base import STATIC, Params, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given(View):
    """What a function reads in samples: an encoder that somebody else has fitted, or a control of one line; `(n, k)`.

    What it controls for is what the function does: `Given(lambda x: jnp.abs(x))` asks whether signs matter.

    Attributes:
        function: `function(x)` takes samples `(n, units)` and gives `(n, k)`. It must be pure, and read each row by itself,
            which nobody can check. Two views are the same where their functions are the same object.

    Raises:
        ValueError: a function that does not give one row a sample.

    >>> Given(jnp.abs).encode({}, jnp.array([[1.0, -2.0]])).tolist()
    [[1.0, 2.0]]
    """

    function: Callable[[Any], Any] = dataclasses.field(metadata=STATIC)

    fits = False
    label = "given units"
    colour = "#F0E442"
    marker = "."

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for a function that gives something else."""
        if not callable(self.function):
            raise ValueError(f"function of Given must take samples (n, {n_units}), got {self.function!r}.")
        rows = 3  # another number than that of most things
        found = jax.eval_shape(self.function, jax.ShapeDtypeStruct((rows, n_units), jnp.result_type(float)))
        if getattr(found, "ndim", None) != 2 or found.shape[0] != rows:
            shape = getattr(found, "shape", type(found).__name__)
            raise ValueError(f"function of Given must give (n, k) of samples (n, {n_units}), got {shape} of n = {rows}.")

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """What the function gives."""
        del weights
        return self.function(x)

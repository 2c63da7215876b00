"""Independent components."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from superpos import linalg
from superpos.views.base import STATIC, Draw, Params, View, split_signs, which
from superpos.views.pca import principal
from superpos.views.rotation import orthogonal

# What is estimated for each source from its values: a nonlinearity, and its slope.
NONLINEARITIES = {
    "logcosh": (jnp.tanh, lambda s: 1 - jnp.tanh(s) ** 2),
    "cube": (lambda s: s**3, lambda s: 3 * s**2),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ICA(View):
    """Independent components of the samples that fit views, of variance 1; `(n, components)`, twice as many where signed.

    It controls for overcompleteness: it looks for sparse directions as an SAE does, but has no more of them than units, so that
    it undoes a mixing of features, and no superposition. Where it gains as much as an SAE, a basis was all that was missing.

    Components whose variance is rounding error are left out of the fit: as many sources are 0. Each source is turned so that
    it is skewed to the right, as a feature that is not negative. The parallel fixed point with symmetric decorrelation.
    Source: Hyvärinen 1999, "Fast and robust fixed-point algorithms for independent component analysis".

    Attributes:
        n_components: principal components that are unmixed, and so sources; by default as many as units.
        signed: whether each source becomes two units, max(s, 0) and max(-s, 0), all of the first before all of the second.
        fun: "logcosh", robust, or "cube", kurtosis.
        max_iter: iterations.
        tolerance: no direction turns by more in the last iteration, as 1 - |cosine|.
        max_samples: rows of a finite source that are used at most, and samples of any other.

    Params: `{"mean": (units,), "unmixing": (units, components), "converged": (), "iterations": ()}`.

    Raises:
        ValueError: settings that do not fit, or fewer samples than components.

    >>> from superpos.views.base import Rows
    >>> x = jax.random.laplace(jax.random.key(0), (200, 2)) @ jnp.array([[1.0, 0.5], [0.2, 1.0]])
    >>> view = ICA()
    >>> params = view.fit(jax.random.key(1), Rows(x))
    >>> view.encode(params, x).shape, bool(params["converged"])
    ((200, 2), True)
    """

    n_components: int | None = dataclasses.field(default=None, metadata=STATIC)
    _: dataclasses.KW_ONLY
    signed: bool = dataclasses.field(default=False, metadata=STATIC)
    fun: str = dataclasses.field(default="logcosh", metadata=STATIC)
    max_iter: int = dataclasses.field(default=500, metadata=STATIC)
    tolerance: float = dataclasses.field(default=1e-4, metadata=STATIC)
    max_samples: int = dataclasses.field(default=65_536, metadata=STATIC)

    random = True
    label = "independent components"
    colour = "#882255"
    marker = "*"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        if self.n_components is not None and not 1 <= self.n_components <= n_units:
            raise ValueError(f"n_components of ICA must be between 1 and the {n_units} units, got {self.n_components}.")
        if self.fun not in NONLINEARITIES:
            raise ValueError(f"fun of ICA must be one of {', '.join(NONLINEARITIES)}, got {self.fun!r}.")
        if self.max_iter < 1:
            raise ValueError(f"max_iter of ICA must be at least 1, got {self.max_iter}.")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance of ICA must be above 0, got {self.tolerance}.")
        wanted = n_units if self.n_components is None else self.n_components
        if self.max_samples < wanted:
            raise ValueError(f"max_samples of ICA must be at least the {wanted} components, got {self.max_samples}.")
        if n_samples is not None and n_samples < wanted:
            raise ValueError(
                f"n_components of ICA must be at most the {n_samples} samples that there are to fit on, got {wanted}."
            )

    def size(self, n_units: int) -> int:
        """The sources, twice where signed."""
        return (n_units if self.n_components is None else self.n_components) * (2 if self.signed else 1)

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del base
        samples = draw(*which(draw, key, data_key, self.max_samples))
        n = n_units if self.n_components is None else self.n_components
        mean, directions, variance = principal(samples)
        whitening = (directions * linalg.inverse_deviation(variance))[:, :n]
        white = linalg.matmul(samples - mean, whitening)
        start = orthogonal(jax.random.fold_in(key, 0), n)
        rotation, change, iterations = _fixed_point(
            white, start, linalg.inverse_deviation(variance)[:n] > 0, self.fun, self.max_iter, self.tolerance
        )
        skewness = jnp.mean(linalg.matmul(white, rotation) ** 3, axis=0)
        unmixing = linalg.matmul(whitening, rotation * jnp.where(skewness < 0, -1, 1))
        return {"mean": mean, "unmixing": unmixing, "converged": change < self.tolerance, "iterations": iterations}

    def weights(self, params: Params) -> Params:
        """The mean and the unmixing."""
        return {"mean": params["mean"], "unmixing": params["unmixing"]}

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The sources."""
        s = linalg.matmul(x - weights["mean"], weights["unmixing"])
        return split_signs(s) if self.signed else s

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """Whether the fit has `converged`, 1 or 0, and after how many `iterations`."""
        return {"converged": params["converged"].astype(x.dtype), "iterations": params["iterations"]}

    def doubts(self, description: Mapping[str, ArrayLike]) -> list[str]:
        """Where a fit has not converged."""
        converged = np.asarray(description["converged"])
        if np.all(converged > 0):
            return []
        of = f"{np.sum(converged == 0)} of {converged.size} fits" if converged.size > 1 else "The fit"
        return [
            f"{of} of ICA did not converge in {self.max_iter} iterations: directions are uncertain. Raise max_iter, take fewer "
            "n_components, or more samples."
        ]


def _fixed_point(white, start, used, fun, max_iter, tolerance):
    """The directions of the sources, in columns, of samples whose used components are white and whose others are 0.

    Returns:
        The directions; by how much the last iteration turned them; and the number of iterations.
    """
    g, slope = NONLINEARITIES[fun]
    unused = jnp.diag(jnp.where(used, 0.0, 1.0))
    both = used[:, None] & used

    def decorrelate(w):
        # Components that are not used are sources of their own: the matrix stays regular, and they stay out of the others.
        u, _, vt = linalg.svd(jnp.where(both, w, unused))
        return linalg.matmul(u, vt)

    def improve(state):
        w, _, i = state
        s = linalg.matmul(white, w)
        new = decorrelate(linalg.matmul(white.T, g(s)) / len(white) - w * jnp.mean(slope(s), axis=0))
        # Each direction against itself: they keep their order from one iteration to the next.
        change = jnp.max(jnp.abs(jnp.abs(jnp.sum(new * w, axis=0)) - 1))
        return new, change, i + 1

    def going(state):
        _, change, i = state
        return ~(change < tolerance) & (i < max_iter)

    found = lax.while_loop(going, improve, (decorrelate(start), jnp.asarray(jnp.inf, white.dtype), jnp.int32(0)))
    return jnp.where(both, found[0], 0), found[1], found[2]

"""Units in a random basis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from superpos import linalg
from superpos.views.base import Draw, Params, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation(View):
    """The units in a random orthonormal basis, uniform over all rotations and reflections; `(n, units)`.

    It controls for the basis: it keeps every linear relation, all variance and the number of units, and loses only what
    single units stand for. A metric that scores neurons above it finds that they are privileged; what does not fall here does
    not depend on the basis. Source: Stewart 1980, "The efficient generation of random orthogonal matrices", by QR.

    Params: `{"rotation": (units, units)}`.

    >>> x = jnp.array([[3.0, 4.0]])
    >>> view = Rotation()
    >>> round(float(jnp.linalg.norm(view.encode(view.fit(jax.random.key(0), lambda key, n: x), x))), 4)
    5.0
    """

    random = True
    fits = False
    label = "rotated neurons"
    colour = "#999933"
    marker = ">"

    def size(self, n_units: int) -> int:
        """As many as there are."""
        return n_units

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        del draw, base, data_key
        return {"rotation": orthogonal(key, n_units)}

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The rotated units."""
        return linalg.matmul(x, weights["rotation"])


def orthogonal(key: Any, n: int) -> jax.Array:
    """A random orthogonal matrix, `(n, n)`, uniform in Haar's measure."""
    return _orthogonal(jax.random.normal(key, (n, n)))[0]


def _from_gaussian(gaussian):
    q, r = jnp.linalg.qr(gaussian)  # of one, or of a batch
    # The signs of r's diagonal are left open; only with positive ones is q uniform.
    return (q * jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1)[..., None, :],)


_orthogonal = linalg._one_by_one(_from_gaussian, 1)  # batched kernels of LAPACK can wait forever: see linalg

"""The archetypal sparse autoencoder, strict and relaxed."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos import linalg
from superpos.sae.base import Code, register
from superpos.sae.options import COEFFICIENT, STATIC, Params, choice
from superpos.sae.topk import TopK


@register("archetypal")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Archetypal(TopK):
    """The dictionary is made of data: D = exp(m) (A C + Λ), A row-stochastic, C points of the data, |Λ_i| ≤ δ.

    Dictionaries that must stay near the convex hull of the data differ less from seed to seed. δ = 0 is the archetypal SAE,
    δ > 0 the relaxed one. The code is that of `TopK`; C are k-means centroids of the batch that `calibrate` is
    given, less b_dec.

    Source: Fel et al. 2025 (arXiv 2502.12892), equations 3 and 4.

    Attributes:
        n_points: points C; by default 4 n_latents; static.
        delta: largest norm of the relaxation Λ of a latent, in units of the normalised inputs.

    Params: `"A": (n_latents, n_points)`, `"C": (n_points, n_inputs)`, `"relax": (n_latents, n_inputs)`, `"log_multiplier": ()`
    in place of `"W_dec"`, and the others of `SparseAutoencoder`.

    Raises:
        ValueError: fewer points than latents, or an option that this architecture does not have.

    >>> sae = Archetypal(n_inputs=3, n_latents=6, k=2)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    _: dataclasses.KW_ONLY
    decoder_norm: str = choice("free")
    dead: str = choice("reanimate", "auxiliary", "signed", "none")  # what a latent is set to must stay near the data
    n_points: int | None = dataclasses.field(default=None, metadata=STATIC)
    delta: ArrayLike = dataclasses.field(default=1.0, metadata=COEFFICIENT)

    learned_decoder: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_points is not None and self.n_points < self.n_latents:
            raise ValueError(f"n_points must be at least n_latents = {self.n_latents}, got {self.n_points}.")

    @property
    def _points(self) -> int:
        return 4 * self.n_latents if self.n_points is None else self.n_points

    def init(self, key: Key[Array, ""]) -> Params:
        """Latents start at points of their own, drawn; the points are random, until `calibrate` is given data."""
        params = super().init(key)
        del params["W_dec"]
        points_key, choice_key = jax.random.split(jax.random.fold_in(key, 1))
        points = jax.random.normal(points_key, (self._points, self.n_inputs)) / self.n_inputs**0.5
        chosen = jax.random.permutation(choice_key, self._points)[: self.n_latents]
        return self._at({**params, "A": jax.nn.one_hot(chosen, self._points)}, points)

    def calibrate(self, params: Params, x: Float[Array, "n inputs"]) -> Params:
        """The start with what it takes from data: the scale of the inputs, b_dec, and the points."""
        params = super().calibrate(params, x)
        return self._at(params, centroids(self._columns(params, x)[0].T - params["b_dec"], self._points))

    def _at(self, params: Params, points: Array) -> Params:
        start = {
            "C": points,
            "relax": jnp.zeros((self.n_latents, self.n_inputs)),
            "log_multiplier": jnp.zeros(()),
        }
        if self.tied:
            own = linalg.matmul(params["A"], points).T
            start["W_enc"] = own / jnp.maximum(jnp.linalg.norm(own, axis=0), 1e-12)
        return {**params, **start}

    def dictionary(self, params: Params) -> Float[Array, "latents inputs"]:
        """The direction of each latent, in normalised inputs."""
        mixed = params["A"] @ lax.stop_gradient(params["C"]) + params["relax"]
        return jnp.exp(params["log_multiplier"]) * mixed

    def after_step(
        self, params: Params, opt_state: Any, aux: dict[str, Any], *, key: Key[Array, ""], step: ArrayLike
    ) -> tuple[Params, Any]:
        """Keeps A row-stochastic and Λ within its bound."""
        params, opt_state = super().after_step(params, opt_state, aux, key=key, step=step)
        mix = jax.nn.relu(params["A"])
        norms = jnp.linalg.norm(params["relax"], axis=1, keepdims=True)
        kept = {
            "A": mix / (jnp.sum(mix, axis=1, keepdims=True) + 1e-8),
            "relax": params["relax"] * jnp.minimum(1.0, self.delta / jnp.maximum(norms, 1e-12)),
        }
        return {**params, **kept}, opt_state

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        return super()._code(params, x, step)._replace(buffers={"C": params["C"]})


def centroids(x: Float[Array, "n units"], count: int, steps: int = 10) -> Float[Array, "points units"]:
    """k-means centroids by Lloyd's iteration, from the first samples, in turn where there are too few."""
    first = x[jnp.arange(count) % len(x)]

    def move(_: Any, points: Array) -> Array:
        nearest = jnp.argmin(jnp.sum(points**2, axis=1) - 2 * x @ points.T, axis=1)
        members = nearest[:, None] == jnp.arange(count)
        sizes = jnp.sum(members, axis=0, dtype=x.dtype)[:, None]
        return jnp.where(sizes > 0, members.T.astype(x.dtype) @ x / jnp.maximum(sizes, 1), points)

    return lax.fori_loop(0, steps, move, first)

"""The JumpReLU sparse autoencoder."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from superpos.sae.base import Code, SparseAutoencoder, register
from superpos.sae.options import COEFFICIENT, POSITIVE, Params


@register("jumprelu")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JumpReLU(SparseAutoencoder):
    """Each latent has a threshold to pass, and each active latent costs the same: |x - x̂|² + l0 Σ_i H(pre_i - θ_i).

    Thresholds learn by straight-through estimators: see `step` and `jump`.

    Source: Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 9 to 12.

    Attributes:
        l0: coefficient of the number of active latents, in units of the square of the normalised inputs.
        bandwidth: of the estimators, in units of the normalised inputs.
        start: threshold to start from.

    Params: those of `SparseAutoencoder`, and `"log_threshold": (n_latents,)`.

    >>> sae = JumpReLU(n_inputs=3, n_latents=6, l0=0.1)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    l0: ArrayLike = dataclasses.field(metadata=COEFFICIENT)
    _: dataclasses.KW_ONLY
    bandwidth: ArrayLike = dataclasses.field(default=0.5, metadata=POSITIVE)
    start: ArrayLike = dataclasses.field(default=0.5, metadata=POSITIVE)

    ladder: ClassVar = ("l0", (0.3, 0.6, 1.2))
    of_latents: ClassVar = SparseAutoencoder.of_latents | {"log_threshold"}

    def init(self, key: Key[Array, ""]) -> Params:
        """As all start, with equal thresholds."""
        return {**super().init(key), "log_threshold": jnp.full(self.n_latents, jnp.log(self.start), jnp.float32)}

    def _code(self, params: Params, x: Array, step_number: ArrayLike) -> Code:
        pre = self._pre(params, x)
        threshold = jnp.exp(params["log_threshold"])[:, None]
        active = jnp.sum(jnp.mean(step(pre, threshold, self.bandwidth), axis=1))
        penalty = self._warm(step_number) * self.l0 * active / self.n_inputs
        return Code(pre, jump(pre, threshold, self.bandwidth), penalty)


def step(x: Float[Array, "units n"], threshold: Float[Array, "units 1"], bandwidth: ArrayLike) -> Float[Array, "units n"]:
    """H(x - θ); its derivative by θ is taken to be -K((x - θ) / ε) / ε with a rectangle K of width 1, that by x is 0."""
    x = lax.stop_gradient(x)
    return (x > threshold).astype(x.dtype) + _through(threshold, -_kernel(x, threshold, bandwidth) / bandwidth)


def jump(x: Float[Array, "units n"], threshold: Float[Array, "units 1"], bandwidth: ArrayLike) -> Float[Array, "units n"]:
    """x H(x - θ); its derivative by θ is taken to be -θ K((x - θ) / ε) / ε, that by x is H(x - θ)."""
    slope = _through(threshold, -threshold * _kernel(x, threshold, bandwidth) / bandwidth)
    return (jnp.where(x > threshold, x, 0) + slope).astype(x.dtype)


def _kernel(x: Array, threshold: Array, bandwidth: ArrayLike) -> Array:
    return (jnp.abs(x - threshold) < bandwidth / 2).astype(threshold.dtype)


def _through(value: Array, slope: Array) -> Array:
    """Zero, with a slope."""
    return (value - lax.stop_gradient(value)) * lax.stop_gradient(slope)

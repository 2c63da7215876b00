"""The options that sparse autoencoders are composed of: each group is a few fields, and what they do.

An architecture that can use only some choices of an option declares it anew, with these.
"""

import dataclasses
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from superpos.sae.kernels import geometric_median, linear

Params = dict[str, Array]

STATIC = {"static": True}  # fields that set shapes or branches, and so cannot be traced
WHOLE = {**STATIC, "whole": True}  # whole numbers of at least 1
COEFFICIENT = {"above_zero": False}  # numbers of at least 0; traced ones are not checked
POSITIVE = {"above_zero": True}  # numbers above 0, likewise


def choice(*choices: Any, default: Any = None) -> Any:
    """A static field that takes one of these; by default the first."""
    return dataclasses.field(default=choices[0] if default is None else default, metadata={**STATIC, "choices": choices})


def is_number(value: Any) -> bool:
    """Whether a value is one number that is known: a plain one, NumPy's, or JAX's where it is not traced."""
    known = isinstance(value, numbers.Number | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    return known and np.ndim(value) == 0


def check(model: Any) -> None:
    """Raises ValueError where a field of a model is not what it was declared to take."""
    for field in dataclasses.fields(model):
        name, value, takes = field.name, getattr(model, field.name), field.metadata
        if "static" in takes and isinstance(value, jax.core.Tracer):
            raise ValueError(f"{name} of {type(model).__name__} sets shapes or branches: it must be a plain value, not traced.")
        if "whole" in takes and (not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if "choices" in takes and value not in takes["choices"]:
            listed = ", ".join(map(str, takes["choices"]))
            raise ValueError(f"{name} of {type(model).__name__} takes {listed}, got {value!r}.")
        if "above_zero" in takes and is_number(value):
            above = takes["above_zero"]
            if not (float(value) > 0 or (float(value) == 0 and not above)):
                raise ValueError(f"{name} must be {'above' if above else 'at least'} 0, got {value}.")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many inputs and latents.

    Attributes:
        n_inputs: number of units that are disentangled; static.
        n_latents: number of latents; static.
    """

    n_inputs: int = dataclasses.field(metadata=WHOLE)
    n_latents: int = dataclasses.field(metadata=WHOLE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder(Sizes):
    """How a linear encoder starts, and what it reads.

    Attributes:
        tied: start the encoder as the decoder's transpose, else both are drawn; static.
        centered: subtract b_dec from the inputs before they are encoded; static.
    """

    tied: bool = choice(True, False)
    centered: bool = choice(True, False)

    def _pre(self, params: Params, x: Array) -> Array:
        """x W_enc + b_enc, of centred inputs."""
        bias = params["b_enc"]
        if self.centered:
            bias = bias - params["b_dec"] @ params["W_enc"]
        return linear(x, params["W_enc"], bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder(Sizes):
    """The dictionary, and the norms that its rows may have.

    Attributes:
        decoder_norm: rows of the decoder are kept at norm 1 ("unit"), at most 1 ("ball"), or "free"; static.
    """

    decoder_norm: str = choice("unit", "ball", "free")

    learned_decoder: ClassVar[bool] = True  # W_dec is a parameter

    def dictionary(self, params: Params) -> Float[Array, "latents inputs"]:
        """The direction of each latent, in normalised inputs."""
        return params["W_dec"]

    def constrain(self, decoder: Float[Array, "latents inputs"], start: bool = False) -> Float[Array, "latents inputs"]:
        """The nearest decoder with norms as `decoder_norm` allows; at the start they are 1 wherever bounded."""
        if self.decoder_norm == "free":
            return decoder
        norms = jnp.linalg.norm(decoder, axis=1, keepdims=True)
        return decoder / jnp.maximum(norms, 1e-12 if self.decoder_norm == "unit" or start else 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs(Sizes):
    """What is done to inputs first, and where b_dec starts.

    Attributes:
        normalize: what is done to inputs first, and undone to reconstructions: "none"; "scale", one number for all, so that
            their root mean square from the median is 1; "layer_norm", each sample to mean 0 and standard deviation 1. Static.
        bias: b_dec starts at "zero", or at the geometric "median" of the data that `calibrate` is given; static.
    """

    normalize: str = choice("none", "scale", "layer_norm", default="scale")
    bias: str = choice("zero", "median", default="median")

    def _calibrated(self, params: Params, x: Array) -> Params:
        """The parameters with the scale of the inputs, and b_dec."""
        x, dtype = self._checked(x), params["b_dec"].dtype
        x = jnp.asarray(x, jnp.promote_types(dtype, jnp.float32))  # iterations come to rest far from the median in bfloat16
        if self.normalize == "scale":
            distance = jnp.mean((x - geometric_median(x)) ** 2) ** 0.5
            varied = distance > 1e-5 * jnp.mean(x**2) ** 0.5  # else there is nothing but rounding errors to scale by
            params = {**params, "scale": jnp.where(varied, distance, 1)}
        if self.bias == "median":
            params = {**params, "b_dec": geometric_median(self._normalized(params, x.T)[0].T).astype(dtype)}
        return params

    def _columns(self, params: Params, x: Any) -> tuple[Array, tuple[Array, Array] | None]:
        """Normalised inputs with a column a sample, in the dtype of the parameters, and the mean and deviation that undo it."""
        x = self._checked(x)
        shape = jnp.shape(params["b_dec"]) if "b_dec" in params else None
        if shape != (self.n_inputs,):
            raise ValueError(f"params must have b_dec ({self.n_inputs},), got {shape}: give this model's, vmap over several.")
        return self._normalized(params, jnp.asarray(x, params["b_dec"].dtype).T)

    def _normalized(self, params: Params, x: Array) -> tuple[Array, tuple[Array, Array] | None]:
        if self.normalize == "scale":
            return (x / lax.stop_gradient(params["scale"])).astype(x.dtype), None
        if self.normalize == "layer_norm":
            mean = jnp.mean(x, axis=0)
            deviation = jnp.std(x, axis=0, ddof=1) + 1e-5
            return (x - mean) / deviation, (mean[None], deviation[None])
        return x, None

    def _undone(self, params: Params, y: Array, x: Any) -> Array:
        """Reconstructions of normalised inputs as those of inputs; with layer_norm these must be given."""
        if self.normalize == "scale":
            return (y * params["scale"]).astype(y.dtype)
        if self.normalize == "layer_norm" and x is not None:
            undo = self._columns(params, x)[1]
            assert undo is not None
            mean, deviation = undo
            return y * deviation.T + mean.T
        return y

    def _checked(self, x: Any) -> Any:
        x = jnp.asarray(x)
        if jnp.ndim(x) != 2 or jnp.shape(x)[1] != self.n_inputs:
            raise ValueError(f"inputs must be (n, {self.n_inputs}), got {jnp.shape(x)}.")
        wrong = jnp.sum(~jnp.isfinite(x))
        if not isinstance(wrong, jax.core.Tracer) and wrong > 0:
            raise ValueError(f"inputs must be finite, got {int(wrong)} NaN or infinite values.")
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Sparsity that comes to its final value step by step.

    Attributes:
        sparsity_warmup: steps over which sparsity comes to its final value, linearly; 0: it has it from the first.
        sparsity_start: where it starts, as a factor of coefficients and a divisor of k: 0 is no penalty and all latents,
            above 1 is sparser than in the end.
    """

    sparsity_warmup: ArrayLike = dataclasses.field(default=0, metadata=COEFFICIENT)
    sparsity_start: ArrayLike = dataclasses.field(default=0.0, metadata=COEFFICIENT)

    @property
    def _warms(self) -> bool:
        """Whether sparsity may differ from step to step."""
        return not is_number(self.sparsity_warmup) or float(self.sparsity_warmup) != 0  # type: ignore[arg-type]

    def _warm(self, step: ArrayLike) -> ArrayLike:
        """The sparsity of a step, as a factor of what it is in the end."""
        progress = jnp.clip(step / jnp.maximum(self.sparsity_warmup, 1), 0.0, 1.0)
        progress = jnp.where(jnp.asarray(self.sparsity_warmup) > 0, progress, 1.0)
        return self.sparsity_start + (1 - self.sparsity_start) * progress

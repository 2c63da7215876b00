"""The sparse autoencoder that all architectures are: its interface, composed of the options that they share."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from superpos import arrangements
from superpos.linalg import safe_norm
from superpos.results import did_you_mean
from superpos.sae.kernels import linear, mean_square, sparse_linear
from superpos.sae.options import STATIC, Encoder, Inputs, Params, WarmUp, check
from superpos.sae.revival import Revival


class Code(NamedTuple):
    """What the loss of an architecture is made of, for one batch. Samples are columns: see `linear`.

    Attributes:
        pre: pre-activations, `(latents, n)`; the auxiliary loss and reanimation read those of silent latents.
        h: latents, `(latents, n)`.
        penalty: what is added to the mean squared error.
        buffers: new values of parameters that are not learned by gradients.
        positions: of the latents that may be active, `(n, k)`, where k is far below their number: see `sparse_linear`.
    """

    pre: Float[Array, "latents n"]
    h: Float[Array, "latents n"]
    penalty: Any = 0.0
    buffers: dict[str, Array] = {}  # noqa: RUF012
    positions: Int[Array, "n k"] | None = None


@dataclasses.dataclass(frozen=True)
class SparseAutoencoder(WarmUp, Revival, Inputs, Encoder):
    """The base of all architectures: x̂ = h D + b_dec, with a sparse non-negative code h of x and a dictionary D.

    An architecture defines `_code` (latents of a training batch, and what they cost) and, where inference differs, `_infer`.
    Both are given normalised inputs with a column a sample, `(n_inputs, n)`. All is computed in the dtype of the parameters.

    Options come in groups, which `superpos.sae.options` and `superpos.sae.revival` document: `Sizes` (n_inputs, n_latents),
    `Encoder` (tied, centered), `Decoder` (decoder_norm), `Inputs` (normalize, bias), `Revival` (dead, dead_after, dead_weight,
    dead_k, resample_every) and `WarmUp` (sparsity_warmup, sparsity_start). All but the sizes are keywords.

    Attributes:
        rectified: the units are rectified, so are reconstructions: x̂ = relu(h D + b_dec). Of a silent unit the loss asks only
            that h D + b_dec is not positive, so that dictionaries can tell what a unit's silence rules out. Static.
        ladder: of the class: the field that sets how sparse codes are, and three values of it to try first, here those at
            which toy models of 64 features in 16 and 32 units were recovered best.

    Params: `{"W_enc": (n_inputs, n_latents), "b_enc": (n_latents,), "W_dec": (n_latents, n_inputs), "b_dec": (n_inputs,)}`,
    with `"silent_for": (n_latents,)` steps since each latent was last active, and `"scale": ()` where inputs are scaled.

    Raises:
        ValueError: a size that is not positive, an option that the architecture does not have, or a negative coefficient.
    """

    _: dataclasses.KW_ONLY
    rectified: bool = dataclasses.field(default=False, metadata=STATIC)

    ladder: ClassVar[tuple[str, tuple[float, float, float]]]
    # Counters, scales and thresholds: in half precision they would stop where a step is below their last digit.
    precise: ClassVar[frozenset[str]] = frozenset({"silent_for", "scale", "threshold", "log_threshold"})

    def __post_init__(self) -> None:
        check(self)
        if self.normalize == "layer_norm" and self.n_inputs < 2:
            raise ValueError("normalize takes layer_norm for at least 2 inputs, got 1, which has no deviation.")
        if self.dead_k is not None and not 1 <= self.dead_k <= self.n_latents:
            raise ValueError(f"dead_k must be between 1 and n_latents = {self.n_latents}, or None, got {self.dead_k}.")

    # The interface.

    def init(self, key: Key[Array, ""]) -> Params:
        """Random directions for the decoder, the encoder tied to it or drawn alike, zero biases.

        Rows of norm 1 where the decoder's norm is bounded, else Xavier-normal (not truncated).
        """
        enc_key, dec_key = jax.random.split(key)
        scale = (2 / (self.n_inputs + self.n_latents)) ** 0.5
        decoder = self.constrain(scale * jax.random.normal(dec_key, (self.n_latents, self.n_inputs)), start=True)
        encoder = decoder.T if self.tied else scale * jax.random.normal(enc_key, (self.n_inputs, self.n_latents))
        params = {
            "W_enc": encoder,
            "b_enc": jnp.zeros(self.n_latents),
            "W_dec": decoder,
            "b_dec": jnp.zeros(self.n_inputs),
        }
        return {**params, **self._buffers()}

    def calibrate(self, params: Params, x: Float[Array, "n inputs"]) -> Params:
        """The start with what it takes from data: the scale of the inputs, and b_dec."""
        return self._calibrated(params, x)

    def init_from(self, params: Params, directions: Float[Array, "lines inputs"]) -> Params:
        """A start whose first latents look along known lines, such as those of `sp.cumulants.directions`.

        Their rows of the decoder and columns of the encoder turn, and keep their norms; biases stay.

        Args:
            params: from `init` or `calibrate`.
            directions: `(n_lines, n_inputs)`, at most as many as latents; a row of 0 leaves its latent as it is.

        Raises:
            ValueError: directions that do not fit, or an architecture without a decoder of its own, such as `Archetypal`.
        """
        directions = jnp.asarray(directions)
        shape = directions.shape
        if len(shape) != 2 or shape[1] != self.n_inputs or not 1 <= shape[0] <= self.n_latents:
            raise ValueError(f"directions must be at most {self.n_latents} rows of {self.n_inputs} inputs, got {shape}.")
        if "W_dec" not in params:
            raise ValueError(f"{type(self).__name__} has no decoder of its own to start along directions.")
        n, unit = shape[0], arrangements.directions(directions)

        def turned(rows: Array) -> Array:
            return jnp.where(jnp.any(unit != 0, axis=1, keepdims=True), unit * safe_norm(rows, axis=1), rows)

        changed = {**params, "W_dec": params["W_dec"].at[:n].set(turned(params["W_dec"][:n]))}
        if "W_enc" in params:
            changed["W_enc"] = params["W_enc"].at[:, :n].set(turned(params["W_enc"][:, :n].T).T)
        return changed

    def prepared(self, params: Params) -> Params:
        """Parameters as training takes them: in any precision, with counters, scales and thresholds in float32 at least.

        Raises:
            ValueError: parameters in float16, in which optimizers divide by an epsilon that is 0.
        """
        if params["b_dec"].dtype == jnp.float16:
            raise ValueError("params are float16, in which Adam's epsilon of 1e-8 is 0: train in bfloat16 or float32.")
        precise = lambda value: jnp.asarray(value, jnp.promote_types(value.dtype, jnp.float32))  # noqa: E731
        return {name: precise(value) if name in self.precise else value for name, value in params.items()}

    def encode(self, params: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n latents"]:
        """Inputs to latents; those of a sample that holds NaN or infinity are NaN, where it is traced.

        Raises:
            ValueError: inputs of another shape, or that hold NaN or infinity; the params of another model, or of several.
        """
        h = self._infer(params, self._columns(params, x)[0]).T
        return jnp.where(jnp.all(jnp.isfinite(jnp.asarray(x)), axis=1, keepdims=True), h, jnp.nan)

    def decode(
        self, params: Params, h: Float[Array, "n latents"], x: Float[Array, "n inputs"] | None = None
    ) -> Float[Array, "n inputs"]:
        """Latents to reconstructed inputs; with `normalize="layer_norm"` those of normalised inputs, unless `x` is given.

        Raises:
            ValueError: latents or inputs of another shape.
        """
        if jnp.ndim(h) != 2 or jnp.shape(h)[1] != self.n_latents:
            raise ValueError(f"latents must be (n, {self.n_latents}), got {jnp.shape(h)}.")
        y = jnp.asarray(h) @ self.dictionary(params) + params["b_dec"]
        return self._undone(params, jax.nn.relu(y) if self.rectified else y, x)

    def reconstruct(self, params: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n inputs"]:
        """Inputs as the latents show them."""
        return self.decode(params, self.encode(params, x), x)

    def loss(
        self, params: Params, x: Float[Array, "n inputs"], *, key: Array | None = None, step: ArrayLike = 0
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        """Mean squared error of the normalised inputs, the architecture's penalty, and what revives dead latents.

        The papers' losses sum over inputs: everything here is divided by n_inputs, coefficients keep their meaning.

        Returns:
            The loss, and `mse`, `l0` (latents active a sample), `dead` (share of latents), and arrays for `after_step`.
        """
        del key
        x, _ = self._columns(params, x)
        code = self._code(params, x, step)
        active = jnp.sum(code.h > 0, axis=1, dtype=jnp.float32)  # samples, of each latent
        before = lax.stop_gradient(params["silent_for"])
        silent_for = jnp.where(active > 0, 0, before.astype(jnp.promote_types(before.dtype, jnp.float32)) + 1)
        dead = silent_for >= self.dead_after
        mse, residual, revive = self._errors(params, x, code, dead)
        scale = {"scale": params["scale"]} if self.normalize == "scale" else {}
        aux: dict[str, Any] = {
            "mse": mse,
            "l0": jnp.sum(active) / x.shape[1],
            "dead": jnp.mean(dead, dtype=jnp.float32),
            "buffers": {"silent_for": silent_for, **scale, **code.buffers},
        }
        if self.dead == "resample":
            aux |= {"x": x, "error": lax.stop_gradient(jnp.sum(residual**2, axis=0))}
        return mse + code.penalty + revive, aux

    def after_step(
        self, params: Params, opt_state: Any, aux: dict[str, Any], *, key: Key[Array, ""], step: ArrayLike
    ) -> tuple[Params, Any]:
        """Sets what is not learned by gradients, keeps the decoder's norms, and resamples."""
        params = {**params, **lax.stop_gradient(aux["buffers"])}
        if self.dead == "resample":
            params, opt_state = self._resampled(params, opt_state, aux, self.init, key, step)
        if self.learned_decoder:
            params = {**params, "W_dec": self.constrain(params["W_dec"])}
        return params, opt_state

    # For architectures.

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        """Latents of a training batch of normalised inputs."""
        raise NotImplementedError

    def _infer(self, params: Params, x: Array) -> Array:
        """Latents of normalised inputs."""
        return self._code(params, x, jnp.inf).h

    def _buffers(self) -> Params:
        """Parameters that no gradient learns, at the start."""
        scale = {"scale": jnp.ones(())} if self.normalize == "scale" else {}
        return {"silent_for": jnp.zeros(self.n_latents, jnp.float32), **scale}

    def _errors(self, params: Params, x: Array, code: Code, dead: Bool[Array, " latents"]) -> tuple[Array, Array, Array]:
        """Mean squared error, residuals `(n_inputs, n)`, and what dead latents add to the loss."""
        decoder, bias = self.dictionary(params), params["b_dec"]
        if code.positions is None:
            y = linear(code.h, decoder, bias)
        else:
            y = (sparse_linear(code.h.T, code.positions, decoder) + bias).T
        residual = self._residual(x, y)
        return mean_square(residual), residual, self._revive(params, residual, code.pre, dead)

    def _residual(self, x: Array, y: Array) -> Array:
        """What is left to explain of normalised inputs; of silent rectified units what was predicted."""
        return x - (jnp.where(x > 0, y, jax.nn.relu(y)) if self.rectified else y)


# By the names that folders and experiments know them by; `sp.sae.save` and `load` take these.
ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {}
Kind = TypeVar("Kind", bound=type[SparseAutoencoder])


def register(name: str) -> Callable[[Kind], Kind]:
    """Gives an architecture its name, and a place in `sp.sae.ARCHITECTURES`.

    Raises:
        ValueError: the name is taken, or the class has no ladder.
    """

    def named(kind: Kind) -> Kind:
        field, values = getattr(kind, "ladder", ("", ()))
        if name in ARCHITECTURES:
            raise ValueError(f"name must be one that no architecture has, got {name!r}.")
        if field not in kind.__dataclass_fields__ or len(values) != 3:
            raise ValueError(f"{kind.__name__}.ladder must name a field and three values of it, got {(field, values)!r}.")
        ARCHITECTURES[name] = kind
        return kind

    return named


def build(name: str, n_inputs: int, n_latents: int, sparsity: Any, *, most: Any = None, **options: Any) -> Any:
    """An autoencoder of a named architecture, with a value of what its ladder varies: `k`, `l1`, or another.

    Args:
        name: out of `ARCHITECTURES`.
        n_inputs, n_latents: static sizes.
        sparsity: may be traced.
        most: the largest that it is, where it is a traced `k`.
        **options: further fields of the architecture.

    Raises:
        ValueError: no such architecture, or settings that it refuses.

    >>> from superpos.sae import TopK
    >>> build("topk", 2, 3, sparsity=1).k
    1
    """
    if name not in ARCHITECTURES:
        near = did_you_mean(name, ARCHITECTURES)
        raise ValueError(f"No architecture is called {name!r}{near}; there are {', '.join(ARCHITECTURES)}.")
    kind: Any = ARCHITECTURES[name]
    if "most" in kind.__dataclass_fields__:
        options.setdefault("most", most)
    return kind(n_inputs, n_latents, **{kind.ladder[0]: sparsity}, **options)

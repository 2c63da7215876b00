"""What all sparse autoencoders share: normalised inputs, decoder norms, the start, and latents that have gone silent."""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

Params = dict[str, Array]

_CHOICES = {
    "decoder_norm": ("unit", "ball", "free"),
    "normalize": ("none", "scale", "layer_norm"),
    "bias": ("zero", "median"),
    "dead": ("reanimate", "auxiliary", "signed", "resample", "none"),
}


STATIC = {"static": True}  # fields that set shapes or branches, and so cannot be traced


class Code(NamedTuple):
    """What the loss of an architecture is made of, for one batch.

    Attributes:
        pre: pre-activations, `(n, latents)`; the auxiliary loss and reanimation read those of silent latents.
        h: latents, `(n, latents)`.
        penalty: what is added to the mean squared error.
        buffers: new values of parameters that are not learned by gradients.
        positions: of the latents that may be active, `(n, k)`, where k is far below their number: see `sparse_linear`.
    """

    pre: Float[Array, "n latents"]
    h: Float[Array, "n latents"]
    penalty: Any = 0.0
    buffers: dict[str, Array] = {}  # noqa: RUF012
    positions: Int[Array, "n k"] | None = None


@dataclasses.dataclass(frozen=True)
class SparseAutoencoder:
    """The base of all architectures: x̂ = h D + b_dec, with a sparse non-negative code h of x and a dictionary D.

    An architecture defines `_code` (latents of a training batch, and what they cost) and, where inference differs, `_infer`.

    Attributes:
        n_inputs: number of units that are disentangled; static.
        n_latents: number of latents; static.
        tied: start the encoder as the decoder's transpose, else both are drawn; static.
        centered: subtract b_dec from the inputs before they are encoded; static.
        decoder_norm: rows of the decoder are kept at norm 1 ("unit"), at most 1 ("ball"), or "free"; static.
        normalize: what is done to inputs first, and undone to reconstructions: "none"; "scale", one number for all, so that
            their root mean square from the median is 1; "layer_norm", each sample to mean 0 and standard deviation 1. Static.
        bias: b_dec starts at "zero", or at the geometric "median" of the data that `calibrate` is given; static.
        dead: what is done for latents that have been silent for `dead_after` steps; static. "auxiliary": of each sample the
            `dead_k` of them with the largest positive pre-activations predict what the others leave unexplained (Gao et al.
            2024, arXiv 2406.04093); "signed": all of them do, with signed pre-activations and the bias, and gradients flow
            through what is predicted too (the code published with arXiv 2510.03186); "resample": from time to time they are
            set to badly explained samples (Bricken et al. 2023); "reanimate": their pre-activations are pushed up (Fel et al.
            2025, arXiv 2502.12892); or "none".
        dead_after: steps (batches) of silence after which a latent counts as dead; 1: silent in the batch at hand.
        dead_weight: weight of the auxiliary loss or of reanimation.
        dead_k: dead latents of a sample in the auxiliary loss; by default half of n_inputs. Static.
        resample_every: steps between resamplings; static.
        rectified: the units are rectified, so are reconstructions: x̂ = relu(h D + b_dec). Of a silent unit the loss asks only
            that h D + b_dec is not positive, so that dictionaries can tell what a unit's silence rules out. Static.
        sparsity_warmup: steps over which sparsity comes to its final value, linearly; 0: it has it from the first.
        sparsity_start: where it starts, as a factor of coefficients and a divisor of k: 0 is no penalty and all latents,
            above 1 is sparser than in the end.

    Params: `{"W_enc": (n_inputs, n_latents), "b_enc": (n_latents,), "W_dec": (n_latents, n_inputs), "b_dec": (n_inputs,)}`,
    with `"silent_for": (n_latents,)` steps since each latent was last active, and `"scale": ()` where inputs are scaled.

    Raises:
        ValueError: a size that is not positive, or an option that does not exist.
    """

    n_inputs: int = dataclasses.field(metadata=STATIC)
    n_latents: int = dataclasses.field(metadata=STATIC)
    _: dataclasses.KW_ONLY
    tied: bool = dataclasses.field(default=True, metadata=STATIC)
    centered: bool = dataclasses.field(default=True, metadata=STATIC)
    decoder_norm: str = dataclasses.field(default="unit", metadata=STATIC)
    normalize: str = dataclasses.field(default="scale", metadata=STATIC)
    bias: str = dataclasses.field(default="median", metadata=STATIC)
    dead: str = dataclasses.field(default="reanimate", metadata=STATIC)
    dead_after: ArrayLike = 10
    dead_weight: ArrayLike = 0.1
    dead_k: int | None = dataclasses.field(default=None, metadata=STATIC)
    resample_every: int = dataclasses.field(default=1000, metadata=STATIC)
    rectified: bool = dataclasses.field(default=False, metadata=STATIC)
    sparsity_warmup: ArrayLike = 0
    sparsity_start: ArrayLike = 0.0

    learned_decoder: ClassVar[bool] = True  # W_dec is a parameter

    def __post_init__(self):
        for name in ("n_inputs", "n_latents", "resample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} takes {', '.join(choices)}, got {getattr(self, name)!r}.")
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
        self._check(x)
        if self.normalize == "scale":
            distance = jnp.mean((x - geometric_median(x)) ** 2) ** 0.5
            params = {**params, "scale": jnp.where(distance > 0, distance, 1.0)}
        if self.bias == "median":
            params = {**params, "b_dec": geometric_median(self._inputs(params, x)[0])}
        return params

    def encode(self, params: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n latents"]:
        """Inputs to latents.

        Raises:
            ValueError: inputs of another shape.
        """
        self._check(x)
        return self._infer(params, self._inputs(params, x)[0])

    def decode(
        self, params: Params, h: Float[Array, "n latents"], x: Float[Array, "n inputs"] | None = None
    ) -> Float[Array, "n inputs"]:
        """Latents to reconstructed inputs; with `normalize="layer_norm"` those of normalised inputs, unless `x` is given."""
        y = h @ self.dictionary(params) + params["b_dec"]
        y = jax.nn.relu(y) if self.rectified else y
        if self.normalize == "scale":
            return y * params["scale"]
        if self.normalize == "layer_norm" and x is not None:
            mean, deviation = self._inputs(params, x)[1]
            return y * deviation + mean
        return y

    def reconstruct(self, params: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n inputs"]:
        """Inputs as the latents show them."""
        return self.decode(params, self.encode(params, x), x)

    def dictionary(self, params: Params) -> Float[Array, "latents inputs"]:
        """The direction of each latent, in normalised inputs."""
        return params["W_dec"]

    def loss(
        self, params: Params, x: Float[Array, "n inputs"], *, key: Array | None = None, step: ArrayLike = 0
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        """Mean squared error of the normalised inputs, the architecture's penalty, and what revives dead latents.

        The papers' losses sum over inputs: everything here is divided by n_inputs, coefficients keep their meaning.

        Returns:
            The loss, and `mse`, `l0` (latents active a sample), `dead` (share of latents), and arrays for `after_step`.
        """
        del key
        self._check(x)
        x, _ = self._inputs(params, x)
        code = self._code(params, x, step)
        active = code.h > 0
        silent_for = jnp.where(jnp.any(active, axis=0), 0.0, lax.stop_gradient(params["silent_for"]) + 1)
        dead = silent_for >= self.dead_after
        mse, residual, revive = self._errors(params, x, code, dead)
        scale = {"scale": params["scale"]} if self.normalize == "scale" else {}
        aux: dict[str, Any] = {
            "mse": mse,
            "l0": jnp.mean(jnp.sum(active, axis=1, dtype=x.dtype)),
            "dead": jnp.mean(dead, dtype=x.dtype),
            "buffers": {"silent_for": silent_for, **scale, **code.buffers},
        }
        if self.dead == "resample":
            aux |= {"x": x, "error": lax.stop_gradient(jnp.sum(residual**2, axis=1))}
        return mse + code.penalty + revive, aux

    def after_step(
        self, params: Params, opt_state: Any, aux: dict[str, Any], *, key: Key[Array, ""], step: ArrayLike
    ) -> tuple[Params, Any]:
        """Sets what is not learned by gradients, keeps the decoder's norms, and resamples."""
        params = {**params, **lax.stop_gradient(aux["buffers"])}
        if self.dead == "resample":
            due = (jnp.asarray(step) + 1) % self.resample_every == 0
            params, opt_state = lax.cond(due, _resample, lambda p, o, *_: (p, o), params, opt_state, aux, self.dead_after, key)
        if self.learned_decoder:
            params = {**params, "W_dec": self.constrain(params["W_dec"])}
        return params, opt_state

    def constrain(self, decoder: Float[Array, "latents inputs"], start: bool = False) -> Float[Array, "latents inputs"]:
        """The nearest decoder with norms as `decoder_norm` allows; at the start they are 1 wherever bounded."""
        if self.decoder_norm == "free":
            return decoder
        norms = jnp.linalg.norm(decoder, axis=1, keepdims=True)
        return decoder / jnp.maximum(norms, 1e-12 if self.decoder_norm == "unit" or start else 1.0)

    # For architectures.

    def _code(self, params: Params, x: Array, step: ArrayLike) -> Code:
        """Latents of a training batch of normalised inputs."""
        raise NotImplementedError

    def _infer(self, params: Params, x: Array) -> Array:
        """Latents of normalised inputs."""
        return self._code(params, x, jnp.inf).h

    def _pre(self, params: Params, x: Array) -> Array:
        """x W_enc + b_enc, of centred inputs."""
        bias = params["b_enc"]
        if self.centered:
            bias = bias - params["b_dec"] @ params["W_enc"]
        return linear(x, params["W_enc"], bias)

    def _warm(self, step: ArrayLike) -> ArrayLike:
        """The sparsity of a step, as a factor of what it is in the end."""
        progress = jnp.clip(step / jnp.maximum(self.sparsity_warmup, 1), 0.0, 1.0)
        progress = jnp.where(jnp.asarray(self.sparsity_warmup) > 0, progress, 1.0)
        return self.sparsity_start + (1 - self.sparsity_start) * progress

    def _buffers(self):
        """Parameters that no gradient learns, at the start."""
        scale = {"scale": jnp.ones(())} if self.normalize == "scale" else {}
        return {"silent_for": jnp.zeros(self.n_latents), **scale}

    def _errors(self, params: Params, x: Array, code: Code, dead: Bool[Array, " latents"]) -> tuple[Array, Array, Array]:
        """Mean squared error, residuals `(n, inputs)`, and what dead latents add to the loss."""
        decoder, bias = self.dictionary(params), params["b_dec"]
        sparse = code.positions is not None
        y = sparse_linear(code.h, code.positions, decoder) + bias if sparse else linear(code.h, decoder, bias)
        residual = self._residual(x, y)
        return mean_square(residual), residual, self._revive(params, residual, code, dead)

    def _residual(self, x, y):
        """What is left to explain of normalised inputs; of silent rectified units what was predicted."""
        return x - (jnp.where(x > 0, y, jax.nn.relu(y)) if self.rectified else y)

    def _revive(self, params, residual, code, dead):
        """What dead latents add to the loss."""
        weight, decoder = self.dead_weight, self.dictionary(params)
        if self.dead == "signed":
            return weight * mean_square(residual - linear(jnp.where(dead, code.pre, 0), decoder, params["b_dec"]))
        if self.dead == "reanimate":
            return -weight * jnp.mean(jnp.where(dead, code.pre, 0))
        if self.dead != "auxiliary":
            return jnp.zeros((), residual.dtype)

        def predict():
            k = min(max(self.n_inputs // 2, 1), self.n_latents) if self.dead_k is None else self.dead_k
            chosen = jnp.where(dead, jax.nn.relu(code.pre), 0)
            chosen = jnp.where(top_k_mask(lax.stop_gradient(chosen), k), chosen, 0)
            return weight * mean_square(lax.stop_gradient(residual) - linear(chosen, decoder, 0.0))

        # Under vmap all models compute both branches; one model alone skips this while every latent is alive.
        return lax.cond(jnp.any(dead), predict, lambda: jnp.zeros((), residual.dtype))

    def _inputs(self, params, x):
        """Normalised inputs, and the mean and deviation that undo it."""
        if self.normalize == "scale":
            return x / lax.stop_gradient(params["scale"]), None
        if self.normalize == "layer_norm":
            mean = jnp.mean(x, axis=1, keepdims=True)
            deviation = jnp.std(x, axis=1, keepdims=True, ddof=1)
            return (x - mean) / (deviation + 1e-5), (mean, deviation)
        return x, None

    def _check(self, x):
        if x.ndim != 2 or x.shape[1] != self.n_inputs:
            raise ValueError(f"inputs must be (n, {self.n_inputs}), got {x.shape}.")


def geometric_median(x: Float[Array, "n units"], steps: int = 20) -> Float[Array, " units"]:
    """The point with the least sum of distances to all samples, by Weiszfeld's iteration.

    Less drawn to outliers than the mean. Source: Weiszfeld 1937.
    """

    def move(_, median):
        distance = jnp.linalg.norm(x - median, axis=1, keepdims=True)
        weights = 1 / jnp.maximum(distance, 1e-6 * jnp.mean(distance) + 1e-12)
        return jnp.sum(weights * x, axis=0) / jnp.sum(weights)

    return lax.fori_loop(0, steps, move, jnp.mean(x, axis=0))


def linear(x: Float[Array, "n inputs"], weights: Float[Array, "inputs outputs"], bias: ArrayLike) -> Float[Array, "n outputs"]:
    """x W + b, with samples along the last axis in memory where that is faster: few units, many samples."""
    if weights.size > _SMALL:
        return x @ weights + bias
    return (weights.T @ x.T + jnp.reshape(bias, (-1, 1))).T


_SMALL = 2**16  # weights, up to which samples run along the last axis: on CPU every pass and matmul is then fast


@jax.custom_vjp
def sparse_linear(
    h: Float[Array, "n latents"], positions: Int[Array, "n k"], weights: Float[Array, "latents outputs"]
) -> Float[Array, "n outputs"]:
    """h W of an h that is zero but at `positions`, no two of a sample the same; to h there, and there alone, gradients flow.

    On CPU it reads k rows of W a sample, which takes a tenth of the time of the product where k is a hundredth of the latents.
    Accelerators multiply faster than they gather.
    """
    return lax.platform_dependent(h, positions, weights, cpu=_gathered, default=lambda h, _, weights: h @ weights)


def is_sparse(k: ArrayLike, n_latents: int) -> bool:
    """Whether k of so many latents are few enough for `sparse_linear` to be faster than the dense product."""
    return isinstance(k, int) and n_latents > max(512, 32 * k)


def _gathered(h, positions, weights):
    def rows(block):
        values, at = block
        return jnp.einsum("nk,nko->no", values, weights[at])

    values = jnp.take_along_axis(h, positions, axis=1)
    return jnp.concatenate(lax.map(rows, _blocks(values, positions)))


def _scattered(h, positions, weights, slope):
    def rows(total, block):
        values, at, slope = block
        return total.at[at].add(values[:, :, None] * slope[:, None]), jnp.einsum("no,nko->nk", slope, weights[at])

    values = jnp.take_along_axis(h, positions, axis=1)
    by_weights, by_values = lax.scan(rows, jnp.zeros_like(weights), _blocks(values, positions, slope))
    by_h = jnp.put_along_axis(jnp.zeros_like(h), positions, jnp.concatenate(by_values), axis=1, inplace=False)
    return by_h, by_weights


def _multiplied(h, positions, weights, slope):
    del positions
    return slope @ weights.T, h.T @ slope


def _blocks(*arrays):
    """Few samples at a time: what is gathered for them stays in the cache."""
    size = math.gcd(len(arrays[0]), 16)
    return tuple(a.reshape(-1, size, a.shape[1]) for a in arrays)


def _forward(h, positions, weights):
    return sparse_linear(h, positions, weights), (h, positions, weights)


def _backward(saved, slope):
    by_h, by_weights = lax.platform_dependent(*saved, slope, cpu=_scattered, default=_multiplied)
    return by_h, None, by_weights


sparse_linear.defvjp(_forward, _backward)


def mean_square(error: Float[Array, "n units"]) -> Float[Array, ""]:
    """Mean of squares, axis by axis, which vectorises."""
    return jnp.mean(jnp.mean(error.T**2, axis=1))


def top_k_mask(x: Float[Array, "n units"], k: ArrayLike) -> Bool[Array, "n units"]:
    """Marks the k largest positive entries of each row; among equal ones the first. A traced k may be mapped over.

    Few units: k - 1 passes, each lowering a threshold to the next smaller value, many times faster than `lax.top_k` on CPU,
    where that sorts. Samples run along the last axis meanwhile, so that the passes vectorise. Many units: `lax.top_k`.
    """
    if x.shape[1] > 512 and isinstance(k, int):
        values, positions = lax.top_k(x, k)
        rows = jnp.arange(x.shape[0])[:, None]
        return jnp.zeros(x.shape, bool).at[rows, positions].set(values > 0, unique_indices=True)
    columns = jnp.maximum(x.T, 0)

    def lower(_, threshold):
        return _fold(jnp.maximum, jnp.where(columns < threshold, columns, 0))

    threshold = lax.fori_loop(0, k - 1, lower, _fold(jnp.maximum, columns))
    mask = (columns >= threshold) & (columns > 0)

    # Equal values can leave too many: drop the last of the smallest until k remain. Almost always no iteration.
    def crowded(mask):
        return _fold(jnp.add, mask.astype(jnp.int32)) > k

    def drop(mask):
        smallest = mask & (columns == jnp.min(jnp.where(mask, columns, jnp.inf), axis=0))
        position = jnp.arange(len(columns))[:, None]
        victim = position == jnp.max(jnp.where(smallest, position, -1), axis=0)
        return mask & ~(crowded(mask) & victim)

    return lax.while_loop(lambda mask: jnp.any(crowded(mask)), drop, mask).T


def _fold(combine, rows):
    """Reduces the first axis by halves: on CPU one vectorised pass, where a reduction would write its input out first."""
    for _ in range(6):  # each doubles the length of the compiled pass
        if len(rows) % 2 == 0:
            rows = combine(*jnp.split(rows, 2))
    return combine.reduce(rows, axis=0)


def _resample(params, opt_state, aux, dead_after, key):
    """Dead latents become badly explained samples (Bricken et al. 2023, "Towards monosemanticity").

    Samples are drawn in proportion to the square of their loss; the encoder's direction is 0.2 times the mean norm of the
    living ones'; moments of the optimizer are set to zero.
    """
    dead = aux["buffers"]["silent_for"] >= dead_after
    chosen = jax.random.categorical(key, 2 * jnp.log(aux["error"] + 1e-30), shape=dead.shape)
    directions = aux["x"][chosen] - params["b_dec"]
    directions = directions / jnp.maximum(jnp.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    new = {name: jnp.zeros(dead.shape) for name in ("b_enc", "b_gate", "r_mag", "b_mag", "silent_for") if name in params}
    new["W_dec"] = directions
    if "W_enc" in params:
        norms = jnp.linalg.norm(params["W_enc"], axis=0)
        alive = jnp.sum(jnp.where(dead, 0, norms)) / jnp.maximum(jnp.sum(~dead), 1)
        new["W_enc"] = 0.2 * jnp.where(jnp.any(~dead), alive, 1.0) * directions.T

    def reset(old, values):
        """The values, where a latent is dead; a matrix has latents along the axis that W_enc or W_dec has."""
        return {
            name: jnp.where(dead[:, None] if name == "W_dec" else dead, values(name, leaf), leaf) if name in new else leaf
            for name, leaf in old.items()
        }

    def is_moment(node):
        return isinstance(node, dict) and node.keys() == params.keys()

    def forget(node):
        return reset(node, lambda _, leaf: jnp.zeros_like(leaf)) if is_moment(node) else node

    opt_state = jax.tree.map(forget, opt_state, is_leaf=is_moment)
    return reset(params, lambda name, _: new[name]), opt_state

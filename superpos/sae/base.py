"""What all sparse autoencoders share: normalised inputs, decoder norms, the start, and latents that have gone silent."""

import dataclasses
import functools
import math
import numbers
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
_COEFFICIENTS = ("dead_after", "dead_weight", "sparsity_warmup", "sparsity_start", "l1", "l0", "delta", "bandwidth", "start")
_ABOVE_0 = ("bandwidth", "start")

STATIC = {"static": True}  # fields that set shapes or branches, and so cannot be traced


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
class SparseAutoencoder:
    """The base of all architectures: x̂ = h D + b_dec, with a sparse non-negative code h of x and a dictionary D.

    An architecture defines `_code` (latents of a training batch, and what they cost) and, where inference differs, `_infer`.
    Both are given normalised inputs with a column a sample, `(n_inputs, n)`. All is computed in the dtype of the parameters.

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
        ValueError: a size that is not positive, an option that the architecture does not have, or a negative coefficient.
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
    takes: ClassVar[dict[str, tuple]] = {}  # options of which the architecture has fewer than others

    def __post_init__(self):
        for name in ("n_inputs", "n_latents", "resample_every"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        for name, choices in (_CHOICES | self.takes).items():
            if getattr(self, name) not in choices:
                listed = ", ".join(map(str, choices))
                raise ValueError(f"{name} of {type(self).__name__} takes {listed}, got {getattr(self, name)!r}.")
        for name in _COEFFICIENTS:
            value, zero = getattr(self, name, None), name not in _ABOVE_0
            if isinstance(value, int | float) and not (value > 0 or (zero and value == 0)):  # traced ones cannot be checked
                raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0, got {value}.")
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
        x, dtype = self._checked(x), params["b_dec"].dtype
        x = jnp.asarray(x, jnp.promote_types(dtype, jnp.float32))  # iterations come to rest far from the median in bfloat16
        if self.normalize == "scale":
            distance = jnp.mean((x - geometric_median(x)) ** 2) ** 0.5
            varied = distance > 1e-5 * jnp.mean(x**2) ** 0.5  # else there is nothing but rounding errors to scale by
            params = {**params, "scale": jnp.where(varied, distance, 1.0).astype(dtype)}
        if self.bias == "median":
            params = {**params, "b_dec": geometric_median(self._normalized(params, x.T)[0].T).astype(dtype)}
        return params

    def encode(self, params: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n latents"]:
        """Inputs to latents.

        Raises:
            ValueError: inputs of another shape, or the params of another model, or of several.
        """
        return self._infer(params, self._columns(params, x)[0]).T

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
        y = jax.nn.relu(y) if self.rectified else y
        if self.normalize == "scale":
            return y * params["scale"]
        if self.normalize == "layer_norm" and x is not None:
            mean, deviation = self._columns(params, x)[1]
            return y * deviation.T + mean.T
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
        x, _ = self._columns(params, x)
        code = self._code(params, x, step)
        active = jnp.sum(code.h > 0, axis=1, dtype=jnp.float32)  # samples, of each latent
        silent_for = jnp.where(active > 0, 0.0, lax.stop_gradient(params["silent_for"]) + 1)
        dead = silent_for >= self.dead_after
        mse, residual, revive = self._errors(params, x, code, dead)
        scale = {"scale": params["scale"]} if self.normalize == "scale" else {}
        aux: dict[str, Any] = {
            "mse": mse,
            "l0": jnp.sum(active) / x.shape[1],
            "dead": jnp.mean(dead, dtype=x.dtype),
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
            due = (jnp.asarray(step) + 1) % self.resample_every == 0
            fresh = {name: value for name, value in self.init(key).items() if name in _OF_LATENTS}
            params, opt_state = lax.cond(
                due, _resample, lambda p, o, *_: (p, o), params, opt_state, aux, self.dead_after, fresh, key
            )
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

    @property
    def _warms(self) -> bool:
        """Whether sparsity may differ from step to step."""
        return not (isinstance(self.sparsity_warmup, int) and self.sparsity_warmup == 0)

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
        """Mean squared error, residuals `(n_inputs, n)`, and what dead latents add to the loss."""
        decoder, bias = self.dictionary(params), params["b_dec"]
        if code.positions is None:
            y = linear(code.h, decoder, bias)
        else:
            y = (sparse_linear(code.h.T, code.positions, decoder) + bias).T
        residual = self._residual(x, y)
        return mean_square(residual), residual, self._revive(params, residual, code, dead)

    def _residual(self, x, y):
        """What is left to explain of normalised inputs; of silent rectified units what was predicted."""
        return x - (jnp.where(x > 0, y, jax.nn.relu(y)) if self.rectified else y)

    def _revive(self, params, residual, code, dead):
        """What dead latents add to the loss."""
        weight, decoder = self.dead_weight, self.dictionary(params)
        if self.dead == "signed":
            return weight * mean_square(residual - linear(jnp.where(dead[:, None], code.pre, 0), decoder, params["b_dec"]))
        if self.dead == "reanimate":
            return -weight * jnp.mean(jnp.where(dead[:, None], code.pre, 0))
        if self.dead != "auxiliary":
            return jnp.zeros((), residual.dtype)

        def predict():
            k = min(max(self.n_inputs // 2, 1), self.n_latents) if self.dead_k is None else self.dead_k
            chosen = jnp.where(dead[:, None], jax.nn.relu(code.pre), 0)
            chosen = jnp.where(top_k_mask(lax.stop_gradient(chosen), k), chosen, 0)
            return weight * mean_square(lax.stop_gradient(residual) - linear(chosen, decoder))

        # Under vmap all models compute both branches; one model alone skips this while every latent is alive.
        return lax.cond(jnp.any(dead), predict, lambda: jnp.zeros((), residual.dtype))

    def _columns(self, params, x):
        """Normalised inputs with a column a sample, in the dtype of the parameters, and the mean and deviation that undo it."""
        x = self._checked(x)
        shape = jnp.shape(params["b_dec"]) if "b_dec" in params else None
        if shape != (self.n_inputs,):
            raise ValueError(f"params must have b_dec ({self.n_inputs},), got {shape}: give this model's, vmap over several.")
        return self._normalized(params, jnp.asarray(x, params["b_dec"].dtype).T)

    def _normalized(self, params, x):
        if self.normalize == "scale":
            return x / lax.stop_gradient(params["scale"]), None
        if self.normalize == "layer_norm":
            mean = jnp.mean(x, axis=0)
            deviation = jnp.std(x, axis=0, ddof=1)
            return (x - mean) / (deviation + 1e-5), (mean[None], deviation[None])
        return x, None

    def _checked(self, x):
        if jnp.ndim(x) != 2 or jnp.shape(x)[1] != self.n_inputs:
            raise ValueError(f"inputs must be (n, {self.n_inputs}), got {jnp.shape(x)}.")
        return x


def geometric_median(x: Float[Array, "n units"], steps: int = 20) -> Float[Array, " units"]:
    """The point with the least sum of distances to all samples, by Weiszfeld's iteration.

    Less drawn to outliers than the mean. Source: Weiszfeld 1937.
    """

    def move(_, median):
        distance = jnp.linalg.norm(x - median, axis=1, keepdims=True)
        weights = 1 / jnp.maximum(distance, 1e-6 * jnp.mean(distance) + 1e-12)
        return jnp.sum(weights * x, axis=0) / jnp.sum(weights)

    return lax.fori_loop(0, steps, move, jnp.mean(x, axis=0))


def linear(
    x: Float[Array, "inputs n"], weights: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"] | None = None
) -> Float[Array, "outputs n"]:
    """W'x + b, of columns.

    Columns, because most autoencoders here have few units and many samples: with samples along the last axis every pass over
    latents vectorises on CPU. The product with large weights is faster with rows, and the compiler lets the rest follow.
    """
    if weights.size > _SMALL:
        y = x.T @ weights
        return (y if bias is None else y + bias).T
    y = weights.T @ x
    return y if bias is None else y + bias[:, None]


_SMALL = 2**16  # weights


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


def mean_square(error: Float[Array, "units n"]) -> Float[Array, ""]:
    """Mean of squares, axis by axis, which vectorises."""
    return jnp.mean(jnp.mean(error**2, axis=1))


def top_k_mask(x: Float[Array, "units n"], k: ArrayLike) -> Bool[Array, "units n"]:
    """Marks the k largest positive entries of each column; among equal ones the first. A traced k may be mapped over.

    Many units: `lax.top_k`. Few: on CPU k - 1 passes over them, many times faster than `lax.top_k`, which sorts there.
    Elsewhere their ranks: passes end where the data say, so that an accelerator's host would have to look in each step.
    """
    if len(x) > 512 and isinstance(k, int):
        values, positions = lax.top_k(x.T, k)
        samples = jnp.arange(x.shape[1])[:, None]
        return jnp.zeros(x.T.shape, bool).at[samples, positions].set(values > 0, unique_indices=True).T
    passes, ranks = functools.partial(_by_passes, k=k), functools.partial(_by_ranks, k=k)
    # Ranks are the square of the units in operations.
    return lax.platform_dependent(jnp.maximum(x, 0), cpu=passes, default=ranks if len(x) <= 512 else passes)


def _by_passes(x, k):
    """Each pass lowers a threshold to the next smaller value."""

    def lower(_, threshold):
        return _fold(jnp.maximum, jnp.where(x < threshold, x, 0))

    threshold = lax.fori_loop(0, k - 1, lower, _fold(jnp.maximum, x))
    mask = (x >= threshold) & (x > 0)

    # Equal values can leave too many: drop the last of the smallest until k remain. Almost always no iteration.
    def crowded(mask):
        return _fold(jnp.add, mask.astype(jnp.int32)) > k

    def drop(mask):
        smallest = mask & (x == jnp.min(jnp.where(mask, x, jnp.inf), axis=0))
        position = jnp.arange(len(x))[:, None]
        victim = position == jnp.max(jnp.where(smallest, position, -1), axis=0)
        return mask & ~(crowded(mask) & victim)

    return lax.while_loop(lambda mask: jnp.any(crowded(mask)), drop, mask)


def _by_ranks(x, k):
    """The rank of an entry is the number of those that are larger, or as large and come before."""
    i = jnp.arange(len(x))
    before = (x[:, None] > x) | ((x[:, None] == x) & (i[:, None] < i)[:, :, None])
    return (jnp.sum(before, axis=0, dtype=jnp.int32) < k) & (x > 0)


def _fold(combine, rows):
    """Reduces the first axis by halves: on CPU one vectorised pass, where a reduction would write its input out first."""
    for _ in range(6):  # each doubles the length of the compiled pass
        if len(rows) % 2 == 0:
            rows = combine(*jnp.split(rows, 2))
    return combine.reduce(rows, axis=0)


_OF_LATENTS = ("b_enc", "b_gate", "r_mag", "b_mag", "log_threshold", "silent_for")  # one number a latent


def _resample(params, opt_state, aux, dead_after, fresh, key):
    """Dead latents become badly explained samples (Bricken et al. 2023, "Towards monosemanticity").

    Samples are drawn in proportion to the square of their loss; the encoder's direction is 0.2 times the mean norm of the
    living ones'; what has one number a latent starts afresh; moments of the optimizer are set to zero.
    """
    dead = aux["buffers"]["silent_for"] >= dead_after
    chosen = jax.random.categorical(key, 2 * jnp.log(aux["error"] + 1e-30), shape=dead.shape)
    directions = aux["x"][:, chosen].T - params["b_dec"]
    directions = directions / jnp.maximum(jnp.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    new = {**fresh, "W_dec": directions}
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

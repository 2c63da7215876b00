"""The instruments that are judged by default: every metric on neurons, and those of views, in one pure function of a world."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from superpos import metrics as metrics_lib
from superpos import training, views
from superpos.alignment import align
from superpos.calibration.grid import N_FEATURES, N_SAMPLES, Made
from superpos.linalg import matmul, safe_divide, safe_sqrt
from superpos.sae import TopK
from superpos.views import View, encode_all, fit_all

RANKED = ("rsa_spearman", "rsa_kendall")  # rank pairs of samples: read on few of them
PAIRED = ("mutual_knn",)  # look at pairs of samples: read on some of them
KNOWS = ("oracle", "supervised")  # views that are shown the truth: bounds, and no instruments
METRICS = (
    *("semi_match", "soft_match", "ridge", "ols", "cka", "debiased_cka", "sampled_cka", "procrustes", "cca", "svcca", "pwcca"),
    *("jaccard", "rsa", "mutual_knn", "feature_recovery", "mcc", "uniqueness"),
    *("cokurtosis", "whitened_cokurtosis", "cumulant_cka", "cumulant_cca"),
)
VIEWS = (
    *("layer_norm", "rotation", "pca", "topk_pca", "ica", "cumulant"),
    *("sae x1", "sae x2", "sae x4", "gated x4", "vanilla x4", "untrained x4", "reconstruction x4", "sae x4 + neurons"),
    *KNOWS,
)
MATCHED = ("semi_match", "ridge", "cka")  # metrics of views, which read moments


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is run on every world, and how long it trains.

    Attributes:
        metrics: of neurons, by name; () takes all that are registered.
        views: of both sides, out of `VIEWS`, each with the metrics of `MATCHED`.
        steps, batch_size: of every autoencoder, of the crosscoder and of the supervised probe.
        k: active latents of a sample.
        n, n_folds: samples that are scored, and parts of them.
        n_some, n_few: samples for metrics that look at pairs of samples, and for those that rank these.
    """

    metrics: tuple[str, ...] = METRICS
    views: tuple[str, ...] = (
        *("layer_norm", "rotation", "pca", "topk_pca", "ica", "cumulant", "sae x4", "untrained x4", "reconstruction x4"),
        "oracle",
    )
    steps: int = 200
    batch_size: int = 256
    k: int = 4
    n: int = N_SAMPLES
    n_folds: int = 3  # at least, to count lines
    n_some: int = 512
    n_few: int = 128

    def names(self) -> list[str]:
        """The instruments, "<metric> on <view>"."""
        own = [*(f"{name} on neurons" for name in self.of_neurons()), "rbf_cka on neurons", "crosscoder"]
        return own + [f"{metric} on {view}" for view in self.views for metric in MATCHED]

    def of_neurons(self) -> tuple[str, ...]:
        """The metrics of neurons."""
        return self.metrics or metrics_lib.names()

    def distances(self) -> list[bool]:
        """For each instrument whether lower is more alike."""
        distance = {f"{metric.name} on neurons" for metric in metrics_lib.resolve(self.of_neurons()) if metric.distance}
        return [name in distance for name in self.names()]

    def measure(self, made: Made, key: Any) -> Float[Array, "2 instruments"]:
        """Every instrument's score of a world, and of the same with one side's samples rolled, so that nothing is in common.

        The instruments see units of samples that are scored, and of others to fit on. Pure.
        """
        few, some = (tuple(name for name in self.of_neurons() if name in part) for part in (RANKED, PAIRED))
        many = tuple(name for name in self.of_neurons() if name not in RANKED + PAIRED)
        read = self._read(made, key)

        def of(pair: tuple[Array, dict[str, Array]]) -> Array:
            y, reading = pair
            found: dict[str, Array] = {}
            for names, end in ((many, self.n), (some, self.n_some), (few, self.n_few)):
                if names:
                    scores = align(made.x[:end], y[:end], names, folds=made.folds[:end], n_folds=self.n_folds)
                    found |= {f"{name} on neurons": score.mean for name, score in scores.items()}
            valid = made.folds[: self.n_some] >= 0
            found["rbf_cka on neurons"] = rbf_cka(made.x[: self.n_some], y[: self.n_some], valid)
            found["crosscoder"] = crosscoder(self, made.x_train, reading["train"], key)
            if self.views:
                stacked = (read[0], reading["views"])

                def of_view(sides: tuple[Array, Array]) -> dict[str, Array]:
                    scores = align(*sides, MATCHED, folds=made.folds, n_folds=self.n_folds)
                    return {metric: scores[metric].mean for metric in MATCHED}

                of_views = lax.map(of_view, stacked)
                for i, view in enumerate(self.views):
                    found |= {f"{metric} on {view}": of_views[metric][i] for metric in MATCHED}
            return jnp.stack([found[name] for name in self.names()])

        n_train = len(made.y_train)
        elsewhere = made.y_train[(jnp.arange(n_train) + n_train // 2) % n_train]
        shift = jnp.sum(made.folds >= 0) // 2
        index = (jnp.arange(len(made.x)) + shift) % jnp.maximum(2 * shift, 1)
        readings = read[1][:, jnp.where(made.folds >= 0, index, jnp.arange(len(made.x)))]
        both = (
            jnp.stack([made.y, made.rolled]),
            {"train": jnp.stack([made.y_train, elsewhere]), "views": jnp.stack([read[1], readings])},
        )
        return lax.map(of, both)

    def _read(self, made: Made, key: Any) -> tuple[Array, Array]:
        """What each view reads on both sides, `(views, n, width)`, beside units that are silent."""
        if not self.views:
            return (jnp.zeros((0, len(made.x), 1)),) * 2

        def side(inputs: Any) -> Array:
            key, train, z, x, arrangement = inputs
            made_views = self.made_views(x.shape[1], z, arrangement)
            fits = fit_all(made_views, key, views.Rows(train), x.shape[1])
            read = encode_all(made_views, fits, x)
            width = max(units.shape[1] for units in read.values())
            return jnp.stack([jnp.pad(read[name], ((0, 0), (0, width - read[name].shape[1]))) for name in self.views])

        keys = jax.random.split(jax.random.fold_in(key, 0))
        own = (made.pair.a, made.pair.b)
        sides = [
            (keys[i], train, features, x, own[i])
            for i, (train, features, x) in enumerate(
                ((made.x_train, made.train.z, made.x), (made.y_train, made.train.w, made.y))
            )
        ]
        if made.x.shape == made.y.shape:  # one program for both
            read = lax.map(side, jax.tree.map(lambda *leaves: jnp.stack(leaves), *sides))
            return read[0], read[1]
        found = [side(inputs) for inputs in sides]
        width = max(units.shape[2] for units in found)
        first, second = (jnp.pad(units, ((0, 0), (0, 0), (0, width - units.shape[2]))) for units in found)
        return first, second

    def made_views(self, n_units: int, z: Array, arrangement: Array) -> dict[str, View]:
        """The views of a side, of which those of `KNOWS` are shown its features."""
        trained: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size, "k": min(self.k, n_units)}
        sae = views.SAE("topk", expansion=4, **trained)
        lines = min(N_FEATURES, n_units * (n_units + 1) // 4)
        known: dict[str, Any] = {
            "layer_norm": views.LayerNorm(),
            "rotation": views.Rotation(),
            "pca": views.PCA(),
            "topk_pca": views.TopKPCA(k=min(self.k, n_units)),
            "ica": views.ICA(max_iter=100, max_samples=4096),
            "cumulant": views.Cumulant(lines, both_signs=False, polish=0, steps=40),
            "sae x1": views.SAE("topk", expansion=1, **trained),
            "sae x2": views.SAE("topk", expansion=2, **trained),
            "sae x4": sae,
            "gated x4": views.SAE.at("gated", expansion=4, **trained),
            "vanilla x4": views.SAE.at("vanilla", expansion=4, **trained),
            "untrained x4": views.Untrained(sae),
            "reconstruction x4": views.Reconstruction(sae),
            "sae x4 + neurons": views.Both(sae),
            "oracle": views.Oracle(arrangement, steps=40, penalty=0.03),
            "supervised": views.Supervised(views.Rows(z), width=64, steps=self.steps, batch_size=self.batch_size),
        }
        return {name: known[name] for name in self.views}


def rbf_cka(x: Float[Array, "n x"], y: Float[Array, "n y"], valid: Any = True) -> Float[Array, ""]:
    """CKA of Gaussian kernels, each as wide as the median distance of its samples. Source: Kornblith et al. 2019, sec. 3.

    Args:
        x, y: units of the same samples.
        valid: `(n,)`, samples that count.

    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> round(float(rbf_cka(x, 2 * x)), 4)
    1.0
    """
    valid = jnp.broadcast_to(jnp.asarray(valid), x.shape[:1])
    pairs = valid[:, None] & valid
    centre = jnp.where(pairs, jnp.eye(len(x)) - 1 / jnp.sum(valid), 0)

    def kernel(side: Array) -> Array:
        squares = jnp.sum(side**2, axis=1)
        distances = jnp.maximum(squares[:, None] + squares - 2 * matmul(side, side.T), 0)
        apart = jnp.where(pairs & ~jnp.eye(len(side), dtype=bool), distances, jnp.nan)
        width = jnp.maximum(jnp.nanmedian(apart), 1e-30)
        return matmul(centre, jnp.exp(-distances / (2 * width)), centre)

    k, m = kernel(x), kernel(y)
    return safe_divide(jnp.sum(k * m), jnp.linalg.norm(k) * jnp.linalg.norm(m))


def crosscoder(suite: Suite, x: Float[Array, "n x"], y: Float[Array, "n y"], key: Any) -> Float[Array, ""]:
    """How much of what a sparse autoencoder of both sides at once learns is of both: Σ √(s t) over the root of Σ s Σ t.

    s and t are the variances that a latent gives to either side: those of its activity times the squared norm of its decoder
    there. It is the overlap by variance, of latents in place of features. Source: Lindsey et al. 2024, "Sparse crosscoders for
    cross-layer features and model diffing", whose relative norms of decoders these are; the sum is ours.
    """

    def scaled(side: Array) -> Array:
        centred = side - jnp.mean(side, axis=0)
        return centred / jnp.maximum(safe_sqrt(jnp.mean(jnp.sum(centred**2, axis=1))), 1e-30)

    both = jnp.concatenate([scaled(x), scaled(y)], axis=1)
    coder = TopK(both.shape[1], 2 * both.shape[1], k=min(2 * suite.k, both.shape[1]))
    draw: Callable[[Any, int], Array] = views.Rows(both)
    rate = optax.adam(optax.cosine_decay_schedule(3e-3, suite.steps))
    params, _ = training.fit(coder, key, draw, steps=suite.steps, batch_size=suite.batch_size, optimizer=rate)
    activity = jnp.var(coder.encode(params, both), axis=0)
    squares = params["W_dec"] ** 2 * activity[:, None]
    s, t = jnp.sum(squares[:, : x.shape[1]], axis=1), jnp.sum(squares[:, x.shape[1] :], axis=1)
    return safe_divide(jnp.sum(safe_sqrt(s) * safe_sqrt(t)), safe_sqrt(jnp.sum(s)) * safe_sqrt(jnp.sum(t)))

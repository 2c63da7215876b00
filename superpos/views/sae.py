"""Latents of a sparse autoencoder that is trained here, and what else can be read off the same fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from superpos import evaluation, training
from superpos.sae import ARCHITECTURES, SparseAutoencoder
from superpos.views.base import STATIC, Draw, Params, Rows, View


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SAE(View):
    """Latents of a sparse autoencoder, trained on the samples that fit views.

    Params: `{"trained": params, "untrained": the params that training started from}`, which `Untrained` reads.

    Attributes:
        architecture: a name out of `sp.sae.ARCHITECTURES`.
        expansion: latents for each unit, rounded to whole latents.
        n_latents: latents, in place of an expansion.
        k: active latents of a sample, for the architectures that have a `k`.
        options: further fields of the architecture, by name.
        steps, batch_size: of training.
        learning_rate: of Adam, or of AdamW where `weight_decay` is above 0.
        cosine: whether the rate decays to 0 with a cosine.
        share: of the rows of a finite source, the first ones, that are trained on.

    >>> view = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> view.encode(view.fit(jax.random.key(1), Rows(x)), x).shape
    (32, 8)
    """

    architecture: str = dataclasses.field(default="topk", metadata=STATIC)
    _: dataclasses.KW_ONLY
    expansion: float = dataclasses.field(default=4.0, metadata=STATIC)
    n_latents: int | None = dataclasses.field(default=None, metadata=STATIC)
    k: int = dataclasses.field(default=8, metadata=STATIC)
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata=STATIC)
    steps: int = dataclasses.field(default=4_000, metadata=STATIC)
    batch_size: int = dataclasses.field(default=1024, metadata=STATIC)
    learning_rate: float = dataclasses.field(default=3e-3, metadata=STATIC)
    weight_decay: float = dataclasses.field(default=0.0, metadata=STATIC)
    cosine: bool = dataclasses.field(default=True, metadata=STATIC)
    share: float = dataclasses.field(default=1.0, metadata=STATIC)

    random = True
    label = "SAE latents"
    colour = "#0072B2"
    marker = "s"

    def __post_init__(self) -> None:
        if isinstance(self.options, Mapping):
            object.__setattr__(self, "options", tuple(sorted(self.options.items())))

    def sae(self, n_units: int) -> SparseAutoencoder:
        """The autoencoder of so many units.

        Raises:
            ValueError: an unknown architecture, or options that it does not have.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}.")
        kind: Any = ARCHITECTURES[self.architecture]
        options = dict(self.options)
        fields = kind.__dataclass_fields__
        if unknown := [name for name in options if name not in fields]:
            raise ValueError(f"options of {self.architecture} must be among {', '.join(fields)}, got {unknown[0]!r}.")
        if "k" in fields:
            options.setdefault("k", self.k)
        n_latents = max(1, round(self.expansion * n_units)) if self.n_latents is None else self.n_latents
        return kind(n_units, n_latents, **options)

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        for name, least in (("steps", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of an SAE must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share of an SAE must be above 0 and at most 1, got {self.share}.")
        self.sae(n_units)

    def _fit(self, key: Any, draw: Draw, n_units: int, base: Params, data_key: Any) -> Params:
        sae = self.sae(n_units)
        fit_key, start_key = (jax.random.fold_in(key, 2**31 + i) for i in range(2))  # `init` splits the key itself
        if self.share < 1:
            rows = draw(None, None)
            draw = Rows(rows[: max(1, int(self.share * len(rows)))])

        def batch() -> jax.Array:
            drawn = data_key is not None
            return draw(jax.random.fold_in(data_key, self.steps) if drawn else start_key, self.batch_size)

        rate: Any = self.learning_rate
        rate = optax.cosine_decay_schedule(rate, self.steps) if self.cosine else rate
        untrained = training.start(sae, key, batch)
        trained, _ = training.fit(
            sae,
            fit_key,
            draw,
            data_key=data_key,
            params=untrained,
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=optax.adamw(rate, weight_decay=self.weight_decay) if self.weight_decay else optax.adam(rate),
        )
        return {"trained": trained, "untrained": untrained}

    def weights(self, params: Params) -> Params:
        """Those of the trained autoencoder."""
        return params["trained"]

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The latents."""
        return self.sae(x.shape[1]).encode(weights, x)

    def reconstruct(self, weights: Params, x: jax.Array) -> jax.Array:
        """The units as the latents show them."""
        return self.sae(x.shape[1]).reconstruct(weights, x)

    def report(self, weights: Params, x: jax.Array) -> dict[str, jax.Array]:
        """How good an autoencoder with these weights is: see `describe`."""
        report = evaluation.evaluate(self.sae(x.shape[1]), weights, x)
        return {
            "explained": 1 - report.fvu,
            "l0": report.l0,
            "dead": report.dead,
            "superposition": report.effective / x.shape[1],
        }

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """Share of variance `explained`, `l0` active latents a sample, share of `dead` ones, `superposition`.

        The last is the effective number of features for each unit (Bereska et al. 2025, arXiv 2512.13568).
        """
        return self.report(self.weights(params), x)

    def control(self, params: Params) -> Params:
        """Weights for `apply` that have learned nothing."""
        return params["untrained"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Untrained(View):
    """Latents of an autoencoder that has learned nothing: the control of `SAE` and `Loaded`.

    It has as many latents, of which as many are active.

    >>> sae = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> Untrained(sae).encode(Untrained(sae).fit(jax.random.key(1), Rows(x)), x).shape
    (32, 8)
    """

    of: Any = dataclasses.field(default=SAE(), metadata=STATIC)

    random = True
    label = "untrained latents"
    colour = "#D55E00"
    marker = "^"

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        self.of.check(n_units, n_samples)

    def weights(self, params: Params) -> Params:
        """Those that training started from."""
        return self.of.control(params["base"])

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The latents."""
        return self.of.apply_control(weights, x) if hasattr(self.of, "apply_control") else self.of.apply(weights, x)

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """As that of the view that it is of."""
        report = getattr(self.of, "report_control", self.of.report)
        return report(self.weights(params), x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruction(View):
    """The units as an autoencoder's latents show them: what is left of them without the variance that it loses.

    >>> sae = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> Reconstruction(sae).encode(Reconstruction(sae).fit(jax.random.key(1), Rows(x)), x).shape
    (32, 4)
    """

    of: Any = dataclasses.field(default=SAE(), metadata=STATIC)

    label = "reconstructions"
    colour = "#CC79A7"
    marker = "P"

    @property
    def random(self) -> bool:
        """As the view that it is of."""
        return self.of.random

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        self.of.check(n_units, n_samples)

    def weights(self, params: Params) -> Params:
        """Those of the autoencoder."""
        return self.of.weights(params["base"])

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The reconstructed units."""
        return self.of.reconstruct(weights, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Both(View):
    """What a view reads, beside the units themselves: whether it adds anything to them.

    >>> sae = SAE(expansion=2, k=2, steps=5, batch_size=8)
    >>> x = jax.random.normal(jax.random.key(0), (32, 4))
    >>> Both(sae).encode(Both(sae).fit(jax.random.key(1), Rows(x)), x).shape
    (32, 12)
    """

    of: Any = dataclasses.field(default=SAE(), metadata=STATIC)

    label = "latents and neurons"
    colour = "#56B4E9"
    marker = "D"

    @property
    def random(self) -> bool:
        """As the view that it is of."""
        return self.of.random

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for settings that do not fit."""
        self.of.check(n_units, n_samples)

    def weights(self, params: Params) -> Params:
        """Those of the view that it is of."""
        return self.of.weights(params["base"])

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The view's units, then the side's own."""
        return jnp.concatenate([self.of.apply(weights, x), x], axis=1)

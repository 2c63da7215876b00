"""Latents of a sparse autoencoder that is trained here."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from superpos import evaluation, training
from superpos.sae import ARCHITECTURES, SparseAutoencoder
from superpos.views.base import STATIC, Draw, Params, Rows, View, keep_nan
from superpos.views.cumulant import Cumulant


class Autoencoder(View):
    """What `SAE` and `Loaded` share, and what `Untrained`, `Reconstruction` and `Both` read of them.

    It defines `sae`, `_fit`, `weights`, and what an untrained one is: `control`, `fit_control` and `control_weights`.
    """

    def sae(self, n_units: int) -> SparseAutoencoder:
        """The autoencoder of so many units."""
        raise NotImplementedError

    def size(self, n_units: int) -> int:
        """The latents."""
        return self.sae(n_units).n_latents

    def apply(self, weights: Params, x: jax.Array) -> jax.Array:
        """The latents."""
        return keep_nan(self.sae(x.shape[1]).encode(weights, x), x)

    def reconstruct(self, weights: Params, x: jax.Array) -> jax.Array:
        """The units as the latents show them."""
        return keep_nan(self.sae(x.shape[1]).reconstruct(weights, x), x)

    def describe(self, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        """Share of variance `explained`, `l0` active latents a sample, share of `dead` ones, `superposition`.

        The last is the effective number of features for each unit (Bereska et al. 2025, arXiv 2512.13568).
        """
        return report(self.sae(x.shape[1]), self.weights(params), x)

    def doubts(self, description: Mapping[str, ArrayLike]) -> list[str]:
        """Where most latents are dead, or nothing is explained."""
        dead, shown = (float(np.mean(description[name])) for name in ("dead", "explained"))
        found = []
        if dead > 0.5:
            found.append(f"{dead:.0%} of the {self.label} are 0 in every sample: the autoencoder has fewer units than it says.")
        if not shown > 0:
            found.append(f"The {self.label} explain none of the variance of samples that they were not fitted on.")
        return found

    # The control.

    def active(self, draw: Draw) -> int | None:
        """The number of active latents that a control must be told, measured on the host; None where it need not."""
        del draw
        return None

    def control(self, n_units: int, k: int | None) -> SparseAutoencoder:
        """An autoencoder with as many latents, of which as many are active."""
        del k
        return self.sae(n_units)

    def fit_control(self, key: Any, draw: Draw, n_units: int, k: int | None) -> Params:
        """What the control has to draw that this view's own params do not have."""
        del key, draw, n_units, k
        return {}

    def control_weights(self, base: Params, own: Params) -> Params:
        """The control's weights, from this view's params and those of `fit_control`."""
        raise NotImplementedError


def report(sae: SparseAutoencoder, weights: Params, x: jax.Array) -> dict[str, jax.Array]:
    """How good an autoencoder is: see `Autoencoder.describe`."""
    found = evaluation.evaluate(sae, weights, x)
    return {
        "explained": 1 - found.fvu,
        "l0": found.l0,
        "dead": found.dead,
        "superposition": found.effective / x.shape[1],
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SAE(Autoencoder):
    """Latents of a sparse autoencoder, trained on the samples that fit views; `(n, latents)`.

    What the other views are controls for: it changes basis, number, sign and scale of units, makes them sparse, loses variance,
    and has a dictionary of more directions than units. Only that last one can undo superposition.

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
        init_from: a view of cumulant lines, along which its first latents start; by default all start at random.

    Raises:
        ValueError: an unknown architecture, options that it does not have, or settings that do not fit.

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
    init_from: Cumulant | None = dataclasses.field(default=None, metadata=STATIC)

    random = True
    label = "SAE latents"
    colour = "#0072B2"
    marker = "s"

    def __post_init__(self) -> None:
        if isinstance(self.options, Mapping):
            object.__setattr__(self, "options", tuple(sorted(self.options.items())))

    @classmethod
    def at(cls, architecture: str, rung: int = 1, **settings: Any) -> Self:
        """One of an architecture that is as sparse as a rung of its `ladder` says, by default the middle one.

        >>> SAE.at("topk").k == SAE.at("topk", 0).k
        False
        """
        field, ladder = ARCHITECTURES[architecture].ladder
        sparsity: dict[str, Any] = {"k": ladder[rung]} if field == "k" else {"options": {field: ladder[rung]}}
        return cls(architecture, **{**settings, **sparsity})

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
        if self.n_latents is None and not self.expansion > 0:
            raise ValueError(f"expansion of an SAE must be above 0, got {self.expansion}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share of an SAE must be above 0 and at most 1, got {self.share}.")
        sae, start = self.sae(n_units), self.init_from
        if start is not None:
            if not isinstance(start, Cumulant):
                raise ValueError(f"init_from of an SAE must be a view of cumulant lines, got {type(start).__name__}.")
            start.check(n_units, n_samples)
            lines = jnp.ones((start.size(n_units), n_units))
            jax.eval_shape(lambda key: sae.init_from(sae.init(key), lines), jax.random.key(0))

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
        if self.init_from is not None:
            lines = self.init_from.fit(jax.random.fold_in(start_key, 1), draw, n_units, data_key=data_key)
            untrained = sae.init_from(untrained, lines["directions"])
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

    def control_weights(self, base: Params, own: Params) -> Params:
        """What training started from: the program of a control is that of what it is a control of."""
        del own
        return base["untrained"]

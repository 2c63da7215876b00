"""Latents of a sparse autoencoder that has been trained elsewhere."""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from superpos import evaluation, training
from superpos import sae as saes
from superpos.sae import SparseAutoencoder
from superpos.views.base import STATIC, Draw, Params, which
from superpos.views.sae import Autoencoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Loaded(Autoencoder):
    """Latents of a sparse autoencoder that is trained already, by SAELens or here; `(n, latents)`.

    It controls for what was chosen in training one here: what somebody else has trained, with other settings on other samples,
    is another measurement of the same claim. Only who trained it knows which samples it has seen.

    Its own control is `Untrained(Loaded(...))`: an untrained TopK with as many latents, of which as many are active as are in
    the samples that fit views. Other architectures are at their start as sparse as chance has it, and the scale of inputs may
    be in trained weights. Loaded is equal to itself only, for arrays are not compared.

    Attributes:
        autoencoder: a folder, read by `sp.sae.load`, or the autoencoder itself.
        params: of the autoencoder, where that is no folder.
        path: the folder.

    Params: none. `weights` gives those of the autoencoder.

    Raises:
        FileNotFoundError: no such folder, or a file is missing from it.
        ValueError: what the folder holds is damaged, params are missing or of several models, or units do not fit.

    >>> sae = saes.TopK(2, 4, k=1)
    >>> view = Loaded(sae, sae.init(jax.random.key(0)))
    >>> view.encode({}, jnp.eye(2)).shape
    (2, 4)
    """

    autoencoder: Any = dataclasses.field(metadata=STATIC)
    params: Any = dataclasses.field(default=None, repr=False)
    path: str | None = dataclasses.field(default=None, metadata=STATIC)

    fits = False
    label = "loaded latents"
    colour = "#332288"
    marker = "d"

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, str | os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.autoencoder))
            autoencoder, params = saes.load(self.autoencoder)
            object.__setattr__(self, "autoencoder", autoencoder)
            object.__setattr__(self, "params", params)

    def check(self, n_units: int, n_samples: int | None = None) -> None:
        """Raises a ValueError for another number of units, or params that are not of one autoencoder."""
        where = f" in {self.path}" if self.path else ""
        if not isinstance(self.autoencoder, SparseAutoencoder):
            raise ValueError(f"autoencoder of Loaded must be a folder or a sparse autoencoder, got {self.autoencoder!r}.")
        if self.autoencoder.n_inputs != n_units:
            raise ValueError(f"autoencoder of Loaded must read {n_units} units, got {self.autoencoder.n_inputs}{where}.")
        shape = None if self.params is None else jnp.shape(self.params["b_dec"])
        if shape != (n_units,):
            raise ValueError(f"params of Loaded must be of one autoencoder, with b_dec ({n_units},), got {shape}{where}.")

    def sae(self, n_units: int) -> SparseAutoencoder:
        """The autoencoder."""
        del n_units
        return self.autoencoder

    def weights(self, params: Params) -> Params:
        """Those of the autoencoder, which no fit holds: they are the same for every key."""
        del params
        return self.params

    # The control.

    def active(self, draw: Draw) -> int:
        """Active latents in the samples that fit views, on average, rounded."""
        evaluate = jax.jit(functools.partial(evaluation.evaluate, self.autoencoder))
        l0 = evaluate(self.params, draw(*which(draw, jax.random.key(0)))).l0
        return min(max(round(float(l0)), 1), self.autoencoder.n_latents)

    def control(self, n_units: int, k: int | None) -> SparseAutoencoder:
        """A TopK with as many latents."""
        return saes.TopK(n_units, self.autoencoder.n_latents, 1 if k is None else k)

    def fit_control(self, key: Any, draw: Draw, n_units: int, k: int | None) -> Params:
        """A start of its own for each key, with scale and median of the samples that fit views.

        Raises:
            ValueError: the number of active latents is not known.
        """
        if k is None:
            raise ValueError("k of Untrained must be known for a Loaded: call prepare(draw), which measures it, or give it.")
        return training.start(self.control(n_units, k), key, lambda: draw(*which(draw, key)))

    def control_weights(self, base: Params, own: Params) -> Params:
        """Those that were drawn."""
        del base
        return own

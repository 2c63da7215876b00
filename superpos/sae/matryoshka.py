"""The Matryoshka sparse autoencoder."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from superpos.sae.base import Code, register
from superpos.sae.batch_topk import BatchTopK
from superpos.sae.kernels import linear, mean_square
from superpos.sae.options import STATIC, Params


@register("matryoshka")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """Nested dictionaries: the first m latents alone must reconstruct too, for several m. The code is that of `BatchTopK`.

    The loss is the mean over prefixes of their mean squared errors, so that general features come first and are not split.

    Source: Bussmann et al. 2025 (arXiv 2503.17547), who sum over prefixes.

    Attributes:
        prefixes: sizes of the nested dictionaries, rising to n_latents; by default n_latents halved up to four times. Static.

    Raises:
        ValueError: sizes that do not rise from 1 or more to n_latents.

    >>> sae = Matryoshka(n_inputs=3, n_latents=6, k=2)
    >>> sae.encode(sae.init(jax.random.key(0)), jax.numpy.ones((4, 3))).shape
    (4, 6)
    """

    _: dataclasses.KW_ONLY
    prefixes: tuple[int, ...] | None = dataclasses.field(default=None, metadata=STATIC)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.sizes
        if list(sizes) != sorted(set(sizes)) or sizes[:1] < (1,) or sizes[-1] != self.n_latents:
            raise ValueError(f"prefixes must rise from at least 1 to n_latents = {self.n_latents}, got {sizes}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the nested dictionaries."""
        halved = {max(self.n_latents >> i, 1) for i in range(5)}
        return tuple(sorted(halved)) if self.prefixes is None else tuple(self.prefixes)

    def _errors(self, params: Params, x: Array, code: Code, dead: Bool[Array, " latents"]) -> tuple[Array, Array, Array]:
        decoder, y, errors = params["W_dec"], params["b_dec"][:, None], []
        for start, stop in itertools.pairwise((0, *self.sizes)):
            y = y + linear(code.h[start:stop], decoder[start:stop])
            residual = self._residual(x, y)
            errors.append(mean_square(residual))
        return jnp.mean(jnp.stack(errors)), residual, self._revive(params, residual, code.pre, dead)

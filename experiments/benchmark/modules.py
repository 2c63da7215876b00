"""The models in PyTorch, with the losses of ours."""

import numpy as np
import torch

DECAY = 0.01


class Module(torch.nn.Module):
    """A model with the parameters of ours; `forward` is the loss of one batch."""

    decay = DECAY  # of the weights
    maps = True  # under torch.func.vmap: no state, no branches

    def __init__(self, model, params):
        super().__init__()
        self.model = model
        for name, value in params.items():
            tensor = torch.tensor(value)
            if name in ("silent_for", "scale"):
                self.register_buffer(name, tensor)
            else:
                setattr(self, name, torch.nn.Parameter(tensor))

    def after_step(self):
        """What gradients do not do."""


class Toy(Module):
    """The loss of `sp.toy.ToyModel`."""

    W: torch.Tensor
    b: torch.Tensor
    importance: torch.Tensor

    def __init__(self, model, params):
        super().__init__(model, params)
        self.register_buffer("importance", torch.tensor(np.asarray(model.importance)))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        reconstructed = torch.relu(torch.relu(z @ self.W) @ self.W.T + self.b)
        return (self.importance * (z - reconstructed) ** 2).mean()


class Published(Module):
    """The loss of `sp.sae.TopK` with the options `PUBLISHED`."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        pre = x @ self.W_enc + self.b_enc
        latents = torch.relu(pre)
        kept = latents * (latents >= torch.topk(latents, self.model.k, dim=-1).values[..., -1:])
        residual = x - (kept @ self.W_dec + self.b_dec)
        silent = (kept == 0).all(dim=0)
        predicted = (pre * silent) @ self.W_dec + self.b_dec
        return (residual**2).mean() + self.model.dead_weight * ((residual - predicted) ** 2).mean()


class _SAE(Module):
    """The loss of SAEs with the options that they have by default; dead latents are reanimated."""

    decay = 0.0
    maps = False
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    scale: torch.Tensor
    silent_for: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of one batch."""
        x = x / self.scale
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        h, penalty = self.code(pre)
        residual = x - (h @ self.W_dec + self.b_dec)
        loss = (residual**2).mean() + penalty
        with torch.no_grad():
            self.silent_for += 1
            self.silent_for[(h > 0).any(dim=0)] = 0
            dead = self.silent_for >= self.model.dead_after
        return loss - self.model.dead_weight * (pre * dead).mean()

    def code(self, pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Latents, and what they cost."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self):
        """Decoder rows of norm 1."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)


class TopK(_SAE):
    """The loss of `sp.sae.TopK`."""

    def code(self, pre):
        """The k largest."""
        return _largest(torch.relu(pre), self.model.k), 0.0


class Vanilla(_SAE):
    """The loss of `sp.sae.Vanilla`."""

    def code(self, pre):
        """All, with an L1 penalty."""
        h = torch.relu(pre)
        return h, self.model.l1 * (h.mean(dim=0) * self.W_dec.norm(dim=1)).sum() / self.model.n_inputs


def _largest(latents, k):
    values, positions = torch.topk(latents, k, dim=-1)
    return torch.zeros_like(latents).scatter(-1, positions, values)

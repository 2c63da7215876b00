"""Sparse autoencoders: one file an architecture, one interface (`init`, `encode`, `decode`, `loss`)."""

from superpos.sae.topk import TopK

__all__ = ["TopK"]

"""What a card can do, and how long counted work takes at best."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

LAUNCH = 1.5e-6  # seconds from one kernel of a loop to the next, too short to hide it: of 8 toy models on an H200


@dataclasses.dataclass(frozen=True)
class Card:
    """Rates of a device.

    Attributes:
        name: as JAX calls it.
        flops: operations a second in float32.
        tensor: the same of products of matrices that are rounded to TF32.
        bandwidth: bytes a second from and to its memory.
        link: bytes a second from the host.
        launch: seconds from one kernel to the next.
        source: where the rates are from.
    """

    name: str
    flops: float
    tensor: float
    bandwidth: float
    link: float
    launch: float = LAUNCH
    source: str = "data sheet"

    def expect(self, flops: float = 0, bytes: float = 0, link: float = 0, launches: float = 0, tf32: bool = False):
        """Seconds for counted work, and what they are due to: the longest of its parts."""
        parts = {
            "flops": flops / (self.tensor if tf32 else self.flops),
            "bytes": bytes / self.bandwidth,
            "link": link / self.link,
            "launches": launches * self.launch,
        }
        bound = max(parts, key=lambda name: parts[name])
        return parts[bound], bound


# Data sheets, without sparsity; PCIe 5 and 4 give some 85 % of 64 and 32 GB/s. The first name that fits counts.
KNOWN = {
    "H100 PCIe": (51e12, 378e12, 2.0e12, 55e9),
    "H100 NVL": (60e12, 418e12, 3.9e12, 55e9),
    "H100": (67e12, 494e12, 3.35e12, 55e9),
    "H200": (67e12, 494e12, 4.8e12, 55e9),
    "A100": (19.5e12, 156e12, 1.94e12, 26e9),
}


def known(name: str) -> Card | None:
    """The card of a name, None where its data sheet is not here."""
    for part, rates in KNOWN.items():
        if all(word in name for word in part.split()):
            return Card(name, *rates)
    return None


def best(function: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """What a function of JAX arrays returns, and the least seconds of some calls; one more comes first, which compiles."""
    import jax

    result, spent = jax.block_until_ready(function()), []
    for _ in range(repeats):
        started = time.perf_counter()
        result = jax.block_until_ready(function())
        spent.append(time.perf_counter() - started)
    return result, min(spent)

"""How the tests compile: that takes most of their time, and most of it is optimising. No result depends on what is set here."""

import gc
import mmap
import os
from pathlib import Path

import jaxlib


def knows(option):
    """Whether XLA has an option; it ends a process that names one which it does not have."""
    for library in Path(jaxlib.__file__).parent.glob("lib*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(option.encode()) >= 0:
                return True
    return False


os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # `test_agreement` optimises every metric once
if knows("xla_cpu_use_fusion_emitters"):  # the older generator of code takes a third of the time
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"
gc.set_threshold(100_000, 20, 100)  # tracing makes many objects that live, each of which a collection looks at

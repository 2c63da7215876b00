"""How fast is it, beside code that does the same with the usual libraries? In one run, on the same arrays and cores.

Both sides read the same float32 arrays; making them and compiling (a column of its own) are not counted, but for work of ours
that takes over a minute and runs once, compiling included. `ratio` is their median time over ours, above 1 where ours is
faster, and `difference` the largest between their scores (or losses) and ours. In `--config.suite=training` times are those of
one step of one model, and a ratio to the large matmul is the share of its rate that the model's own five matmuls reach.
Alternatives that take minutes a fold are timed on `outer_folds` of the folds, and their time is multiplied up: the `note` says
so.

Run it on an idle machine: where a core is taken, OpenBLAS with a thread a core can take ten times as long. The alternatives
therefore get one thread, or one a core as XLA has, whichever is faster when their turn comes: `theirs_threads`.

`--config.suite=accelerator` is for a lent GPU, and described in accelerator/__init__.py: it also runs where ml_collections is
missing, as `python -m experiments.benchmark.accelerator`.
"""

import os
import sys

if any("accelerator" in argument for argument in sys.argv):  # its parts need the card's memory, this process none of it
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

try:
    from experiments import command
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed; without it there is python -m experiments.benchmark.accelerator.")
from experiments.benchmark.suites import compute, draw, get_config

if __name__ == "__main__":
    command.main("benchmark", get_config(), compute, draw)

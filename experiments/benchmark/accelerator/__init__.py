"""One lent GPU, in minutes: is it right there, how fast, and how far from what the card can do?

    python -m experiments.benchmark.accelerator --limit_s=420
    python -m experiments.benchmark --config.suite=accelerator    # the same with a figure

The first needs neither ml_collections nor an installation: a clone on PYTHONPATH, JAX for the card, and optax are enough. What
else is missing is named at once. A part that needs it says so, and the others run. Only the study, `toy_alignment`, needs
ml_collections. Its wheel is a few kilobytes of plain Python and can travel with the clone: `pip download --no-deps
ml-collections`, then `pip install --no-index --no-deps --target DIR` of the file, and DIR on PYTHONPATH.

Each part runs in a process of its own with a time limit of its own, so that one that fails, hangs or runs out of memory leaves
its reason in the results, and the others go on. The most telling come first. Those that no longer fit into `limit_s` are left
out, and named. Rows are written as they are found. Without an accelerator all is small, and says little about speed.

Columns: `expected_s` is what the card would take for the operations and bytes that are counted on paper, or for the kernels it
has to start, whichever is longest (`bound`); `share` is expected over measured. So a share far below 1 contradicts the
paper, and so does one above 1. `memory_gib` is the most that the part had taken so far.
"""

"""`python -m experiments.benchmark.accelerator [--limit_s=420] [--size=small] [--parts=toys,study] [--workdir=DIR]`."""

import sys
from pathlib import Path

from absl import app, flags

from experiments.benchmark.accelerator import runner, table

LIMIT = flags.DEFINE_float("limit_s", 420, "Seconds for all parts together.")
SIZE = flags.DEFINE_enum("size", "", ["", "full", "small"], "By default what suits the device.")
PARTS = flags.DEFINE_list("parts", [], "Names of the parts to run, all by default.")
WORKDIR = flags.DEFINE_string("workdir", "results/accelerator", "Folder for accelerator.json and what the parts say.")


def main(arguments):
    """Runs the parts and prints the table."""
    del arguments
    try:
        results = runner.run(
            Path(WORKDIR.value), LIMIT.value, SIZE.value, PARTS.value, say=lambda line: print(line, flush=True)
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(table.text(results))
    print(f"\n{results['seconds']:.0f} s; {WORKDIR.value}/accelerator.json")


if __name__ == "__main__":
    app.run(main)

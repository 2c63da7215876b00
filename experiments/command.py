"""The command line that all experiments share."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tabulate import tabulate

from superpos.results import Run


def main(
    name: str,
    config: ConfigDict,
    compute: Callable[[ConfigDict, Run], dict[str, Any]],
    draw: Callable[[dict[str, Any], Run], None],
) -> None:
    """Runs an experiment: `python -m experiments.<name> [--config.<field>=<value> ...] [--workdir=DIR]`.

    Args:
        name: of the experiment, and of its default workdir under results/.
        config: every field with its default.
        compute: does the work and returns `run.finish(...)`, whose lists of rows are printed as tables.
        draw: draws the figure from these results.

    Bad input ends in one line on standard error and exit status 2.
    """
    try:
        config_flags.DEFINE_config_dict("config", config)  # reads the command line for config's fields at once
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(f"config takes {', '.join(_fields(config))}; got a field or value that does not fit: {error}")
    workdir = flags.DEFINE_string("workdir", f"results/{name}", "Folder for config.json, results.json and figure.png.")

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except (flags.Error, ValueError, TypeError, KeyError) as error:
            _fail(error)

    def start(argv):
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}: settings are given as --config.<field>=<value>.")
        try:
            run = Run(workdir.value, name, flags.FLAGS.config.to_dict())
            results = run.finished()
            if results is None:
                results = compute(flags.FLAGS.config, run)
            else:
                print(f"{run.path} holds this run's results already; name another --workdir to compute them anew.")
            draw(results, run)
        except (ValueError, OSError) as error:
            _fail(error)
        for table, rows in results.items():
            if isinstance(rows, list):
                print("" if table == "rows" else f"\n{table.replace('_', ' ')}")
                print(tabulate([_readable(row) for row in rows], headers="keys", floatfmt=".3f"))
        spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in results["seconds"].items())
        print(f"\n{spent}; results and figure in {run.path}/")

    logging.set_verbosity(logging.WARNING)  # absl would print what JAX says of backends that it did not find
    app.run(start, flags_parser=parse)


def _fields(config):
    """The names of all fields, those of nested ones with their dots."""
    for name, value in config.items():
        yield from (f"{name}.{inner}" for inner in _fields(value)) if isinstance(value, ConfigDict) else (name,)


def _readable(row):
    return {
        name: " to ".join(f"{end:.3f}" for end in value) if isinstance(value, list) else value for name, value in row.items()
    }


def _fail(error):
    lines = str(error).strip().splitlines() or [repr(error)]
    print(f"error: {lines[0]}", file=sys.stderr)
    sys.exit(2)

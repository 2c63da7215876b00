"""The command line that all experiments share."""

import contextlib
import inspect
import itertools
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tabulate import tabulate

from superpos import data, storage
from superpos.results import Run, check_settings, did_you_mean
from superpos.sweeps.processes import LOST, broadcast, is_of_a_peer, leave, start_jax


def main(
    name: str,
    config: ConfigDict,
    compute: Callable[[ConfigDict, Run], dict[str, Any]],
    draw: Callable[[dict[str, Any], Run], None],
    files: Sequence[str] = (),
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Runs an experiment: `python -m experiments.<name> [FILE ...] [--config.<field>=<value> ...] [--workdir=DIR]`.

    Args:
        name: of the experiment, and of its default workdir under results/.
        config: every field with its default.
        compute: does the work and returns `run.finish(...)`, whose lists of rows are printed as tables.
        draw: draws the figure from these results.
        files: fields that name files of input, whose content is part of the configuration too. Arguments that are no flags
            fill those that take one file each, in this order.
        presets: values of some fields, dotted where nested, by what `--preset` takes; `--config` goes before them.

    Bad input ends in one line on standard error and exit status 2, a full disk or the loss of another process in one
    and status 1. SIGINT and SIGTERM end it, with status 130 and 143, when what is being computed has been saved; a second
    one ends it at once.
    """
    of_figures = "format" not in config  # it may be that of other files
    if of_figures:
        config.format = "png"
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        _print_help(name, config, compute, presets)
        return
    defaults = dict(_fields(config))
    sys.argv[1:] = _last(sys.argv[1:])
    _preset(config, presets)
    workdir, distributed = _define_flags(name, config, presets)

    def start(argv: list[str]) -> None:
        config = flags.FLAGS.config
        _fill(config, [field for field in files if config[field] == ""], argv[1:])
        try:
            _check_types(defaults, config)
            start_jax(distributed.value)
            run = _open(name, config, files, workdir.value, of_figures)
            results = _results(run, config, compute)
            if not run.keeps:
                return
            draw(results, run)
        except Stopped as stopped:
            print(
                f"error: {stopped}: the same command goes on from what is saved in {workdir.value}.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(stopped.status)  # XLA's threads may be at work yet, and what they use must not go before they do
        except (ValueError, OSError, MemoryError) as error:
            _fail(error, 1 if storage.is_of_the_disk(error) else 2)
        except RuntimeError as error:  # JAX's and PyTorch's
            if is_of_a_peer(error):
                _fail(error)
            if "out of memory" not in str(error).lower():
                raise
            sizes = [f"config.{field}" for field, _ in _fields(config) if field.split(".")[-1] in ("chunk", "batch_size")]
            _fail(f"out of memory: lower {' or '.join(sizes) or 'the sizes in config'} ({str(error).splitlines()[0]})")
        _print(results, run)

    _handle_signals()
    logging.set_verbosity(logging.WARNING)  # absl would print what JAX says of backends that it did not find
    app.run(start, flags_parser=_parse)


def _print_help(name: str, config: ConfigDict, compute: Callable[..., Any], presets: Mapping[str, Any]) -> None:
    """What the experiment asks, its settings with their comments, and an example."""
    print(sys.modules["__main__"].__doc__)
    comments = {"format": "of the figure: png, pdf or svg", **_comments(compute)}
    for field, value in _fields(config):
        comment = comments.get(field.split(".")[-1])
        print(f"  --config.{field}={value!r}" + (f"  # {comment}" if comment else ""))
    for preset, values in presets.items():
        print(f"  --preset={preset}  # " + ", ".join(f"{field}={value}" for field, value in values.items()))
    print(f"  --workdir=results/{name}  # holds one configuration; the same command goes on where it was stopped")
    print("  --distributed=False  # several processes share the work")
    print(f"\nExample: superpos {name} --config.seed=1 --workdir=results/{name}_1")


def _preset(config: ConfigDict, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets what `--preset` names, before the fields that are given one by one."""
    for argument, following in itertools.zip_longest(sys.argv[1:], sys.argv[2:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        if flag in ("--preset", "-preset"):
            name = value if equals else following
            if name not in presets:
                takes = f"takes {', '.join(presets)}" if presets else "is for experiments that have any"
                _fail(f"preset {takes}, got {name!r}{did_you_mean(name, presets)}.")
            config.update_from_flattened_dict(presets[name])


def _fill(config: ConfigDict, fields: Sequence[str], arguments: Sequence[str]) -> None:
    """Sets fields to arguments that are no flags: files."""
    for i, argument in enumerate(arguments):
        if i >= len(fields) or not Path(argument.partition(":")[0]).exists():
            takes = f"files for {', '.join(fields)} may stand here, and this is none; " if i < len(fields) else ""
            _fail(f"unexpected argument {argument!r}: {takes}settings are given as --config.<field>=<value>.")
    config.update(dict(zip(fields, arguments, strict=False)))


def _define_flags(
    name: str, config: ConfigDict, presets: Mapping[str, Any]
) -> tuple[flags.FlagHolder[str], flags.FlagHolder[bool]]:
    """Defines the flags, --config, --workdir, --distributed and --preset; returns the second and the third."""
    try:
        config_flags.DEFINE_config_dict("config", config)  # reads the command line for config's fields at once
    except (AttributeError, KeyError) as error:  # a field that it has not
        inner = error.args[0]
        while isinstance(inner, Exception):
            inner = inner.args[0]
        unknown = str(inner).splitlines()[0].strip("\"'")  # what follows is its own hint
        known = [field for field, _ in _fields(config)]
        hint = did_you_mean(unknown, dict.fromkeys(field.split(".")[-1] for field in known))
        _fail(f"config has no field {unknown!r}{hint}; its fields are {', '.join(known)}.")
    except Exception as error:  # whatever it makes of a command line
        _fail(error)
    flags.DEFINE_string("preset", "", f"Values of several fields together: {', '.join(presets)}.")
    return (
        flags.DEFINE_string("workdir", f"results/{name}", "Folder for config.json, results.json and figure.png."),
        flags.DEFINE_boolean("distributed", False, "Several processes share the work: jax.distributed.initialize()."),
    )


def _parse(argv: list[str]) -> list[str]:
    flags.FLAGS.set_gnu_getopt()  # flags may stand behind files
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        fields = [field for field, _ in _fields(flags.FLAGS["config"].value)]
        near = [field for field in fields if field.split(".")[-1] == error.flagname]
        _fail(f"there is no flag --{error.flagname}: " + (f"it is --config.{near[0]}." if near else "--help lists all."))
    except Exception as error:  # likewise
        _fail(error)


def _last(arguments: Sequence[str]) -> list[str]:
    """The command line with the last of each setting only: tuples that are given twice would be put one behind the other.

    >>> _last(["--config.n_hidden=(8,)", "--workdir=here", "--config.n_hidden=(16,)"])
    ['--workdir=here', '--config.n_hidden=(16,)']
    """
    settings: dict[str, list[str]] = {}
    given = iter(arguments)
    for i, argument in enumerate(given):
        name, equals, _ = argument.partition("=")
        if not re.fullmatch(r"--?config\.[\w.]+", name):
            settings[str(i)] = [argument]
            continue
        name = name.lstrip("-")
        settings.pop(name, None)  # into the order of the last
        settings[name] = [argument] if equals else [argument, *itertools.islice(given, 1)]
    return [argument for setting in settings.values() for argument in setting]


def _check_types(defaults: Mapping[str, Any], config: ConfigDict) -> None:
    """Refuses settings that are of another kind than their default; whole numbers may stand for others."""
    given = dict(_fields(config))
    for name, default in defaults.items():
        value = given.get(name)
        if default is None:
            continue
        if value is None:
            raise ValueError(f"config.{name} must be given, as {default!r} is, got {value!r}.")
        several, kinds = isinstance(default, tuple | list), {type(part) for part in _parts(default)}
        if several != isinstance(value, tuple | list):
            raise ValueError(
                f"config.{name} must be {'a tuple' if several else 'one value'}, as {default!r} is, got {value!r}."
            )
        takes = kinds | {int} if float in kinds else kinds
        if len(kinds) == 1 and any(type(part) not in takes for part in _parts(value)):
            raise ValueError(
                f"config.{name} must hold values of type {kinds.pop().__name__}, as {default!r} does, got {value!r}."
            )


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


class Stopped(BaseException):
    """A signal has ended the program."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


def _handle_signals() -> None:
    """The first SIGINT or SIGTERM raises `Stopped` as soon as nothing is half done; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    # Python's handlers wait until a compiled program returns. What is written into this pipe is read at once.
    listening, telling = os.pipe()
    os.set_blocking(telling, False)

    def listen() -> None:
        while numbers := os.read(listening, 1):
            if numbers[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if heard:
                os._exit(128 + numbers[0])
            heard.append(numbers[0])
            print("Stopping when what is being computed is saved; again to stop at once.", file=sys.stderr, flush=True)

    heard: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: storage.interruptions.interrupt(Stopped(number)))
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    threading.Thread(target=listen, daemon=True).start()


def _open(name: str, config: ConfigDict, files: Sequence[str], workdir: str, of_figures: bool) -> Run:
    """The run of a configuration, if it is one."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"config.seed must be between 0 and {2**32 - 1}, got {config.seed}.")
    check(config)
    inputs = {field: data.fingerprints(config[field]) for field in files if config[field]}
    described = {**config.to_dict(), **({"sha256": inputs} if inputs else {})}
    described.pop("chunk", None)  # how it is computed, not what: a run may go on with another
    drawn = described.pop("format") if of_figures else "png"
    return Run(workdir, name, described, keeps=jax.process_index() == 0, figure_format=drawn)


def _results(run: Run, config: ConfigDict, compute: Callable[[ConfigDict, Run], dict[str, Any]]) -> Any:
    """The results of a run, computed unless it is finished; None where it is and another process keeps them."""
    results = run.finished()
    if not broadcast(np.array(results is not None)):  # where only the first process finds them
        if run.keeps:
            print(f"{run.experiment} into {run.path}: if it is stopped, the same command goes on from there.", flush=True)
        return compute(config, run)
    if run.keeps:
        print(f"{run.path} holds this run's results already; name another --workdir to compute them anew.")
    return results


def _print(results: dict[str, Any], run: Run) -> None:
    """The tables of results, how long they took, where they are, and what they say in a sentence, where there is one."""
    for table, rows in results.items():
        if isinstance(rows, list) and table != "doubts":
            print("" if table == "rows" else f"\n{table.replace('_', ' ')}")
            print(tabulate([_readable(row) for row in rows], headers="keys", floatfmt=".3f"))
    for row in results.get("doubts", ()):
        print(f"\ndoubt ({row['check']}): {row['doubt']}")
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in results["seconds"].items())
    print(f"\n{spent}; results in {run.path}/, figure in {run.figure}")
    if "answer" in results:
        print(f"\n{results['answer']}")


@contextlib.contextmanager
def naming(config: ConfigDict, otherwise: str = "", **fields: str) -> Iterator[None]:
    """Errors that the library raises inside name the field of the configuration: "split must ..." config.train_fraction.

    Args:
        config: whose own fields are named as they are.
        otherwise: the field that is to blame for whatever names none, files that cannot be read among it.
        fields: what arguments of the library are called in the configuration.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        word = (re.match(r"\w+(?=[ :])", str(error)) or [""])[0]
        field = fields.get(word, word if word in config else None)
        if field is None and not otherwise:
            raise
        raise ValueError(f"config.{field}{str(error)[len(word) :]}" if field else f"config.{otherwise}: {error}") from error


def renamed(rows: Iterable[Mapping[str, Any]], **names: str) -> list[dict[str, Any]]:
    """Rows with columns under other names, without what intervals are `over`: a table has one of them."""
    return [{names.get(name, name): value for name, value in row.items() if name != "over"} for row in rows]


def settings(config: ConfigDict) -> dict[str, tuple[Any, ...]] | None:
    """The grid of settings that a configuration names, for `Plan`; None where it names none."""
    return {name: tuple(values) for name, values in config.settings.items() if values} or None


def curve(compared: Any, pairs: Any = None) -> dict[str, list[dict[str, Any]]]:
    """The specification curve of the question as a table, sorted, where settings were compared; else no table."""
    if not compared.plan.settings:
        return {}
    shown = ("setting", "chosen", "pair", "difference", "mean", "ci95", "given")
    curves = compared.curve(*compared.question(pairs)).values()
    return {"settings": [{name: row[name] for name in shown} for found in curves for row in found["rows"]]}


def doubts(compared: Any) -> list[dict[str, str]]:
    """The doubts of a comparison as rows, which are printed as lines below the tables."""
    return [doubt._asdict() for doubt in compared.doubts]


def check(config: ConfigDict) -> None:
    """Refuses what no experiment takes: see `check_settings`. `main` does so before anything is written."""
    check_settings(_fields(config))


def at_least(config: ConfigDict, least: Mapping[str, int]) -> None:
    """Refuses fields, dotted where nested, that are below their least value, and lists of nothing or of such values."""
    for field, number in least.items():
        value = dict(_fields(config))[field]
        if min(value, default=-math.inf) < number if isinstance(value, tuple | list) else value < number:
            raise ValueError(f"config.{field} must be at least {number}, got {value}.")


def _comments(compute: Callable[..., Any]) -> dict[str, str]:
    """What the comments in `get_config` say, of the experiment and of what it imports, by the last name of the field."""
    module = sys.modules[compute.__module__]
    imported = [part for part in vars(module).values() if inspect.ismodule(part) and hasattr(part, "get_config")]
    source = "".join(inspect.getsource(part.get_config) for part in (*imported, module))
    return dict(re.findall(r'^ *(?:config\.|")(\w+)"?(?: = |: ).*?  # (.*)$', source, re.MULTILINE))


def _fields(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """The name of each field, dotted where nested, and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{inner}", value) for inner, value in _fields(value))
        else:
            yield name, value


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is printed: intervals from end to end, and of p-values those that are corrected for their number."""
    shown = {name: value for name, value in row.items() if name != "p" or "p_corrected" not in row}
    return {
        name: _p_value(value)
        if name in ("p", "p_corrected")
        else " to ".join(f"{end:.3f}" for end in value)
        if isinstance(value, list)
        else value
        for name, value in shown.items()
    }


def _p_value(p: float | None) -> str | None:
    """As papers print it: never 0.

    >>> _p_value(1e-9), _p_value(0.0314)
    ('< .001', '.031')
    """
    return None if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _fail(error: object, status: int = 2) -> NoReturn:
    if is_of_a_peer(error):
        error, status = LOST, 1
    lines = str(error).strip().splitlines() or [repr(error)]
    print(f"error: {lines[0]}", file=sys.stderr)
    leave(status)

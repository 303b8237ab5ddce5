# SPDX-License-Identifier: Apache-2.0
"""The command `fastds` with its subcommands; nothing heavy is imported before the arguments are read."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError

from fastds._misspelt import misspelt, spelled
from fastds._outputs import is_command
from fastds._parsers import parser_of_all
from fastds._sentences import internal_error, sentence_of, show_traceback, with_options
from fastds.tasks.common.command import parser_sentence

_OK, _FAILED, _INTERRUPTED = 0, 2, 130
_UNREAD = 141  # what a shell tells of programs that SIGPIPE ends


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with argv (default: sys.argv[1:]) and return 0, 2 for a user's error, 130 when interrupted, or
    141 where nobody reads what it prints."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if is_command():
        sys.unraisablehook = _unraisable
        _print_everything()
    said = misspelt(argv)
    if said is not None:
        print(said, file=sys.stderr)
        return _FAILED
    own = _OWN.get(argv[0] if argv else "")
    if own is not None:
        if own is not _info:
            _keep_freed_memory()
        return _guarded(f"fastds {argv[0]}", own, argv[1:])
    try:
        options = parser_of_all().parse_args([spelled(word) for word in argv])
    except ArgumentError as error:
        command = f"fastds {argv[0]}" if argv and argv[0] in _COMMANDS else "fastds"
        print(f"{command}: {parser_sentence(error, command, '-')}", file=sys.stderr)
        return _FAILED
    _keep_freed_memory()
    name = options.subcommand
    return _guarded(f"fastds {name}", _COMMANDS[name], options[name])


def _keep_freed_memory(keep: bool = True) -> None:
    """The command owns its process: large tensors reuse memory where the C library can (worth a third of the time)."""
    from fastds import memory

    if memory.refusal() is None:
        with contextlib.suppress(RuntimeError):  # a preloaded allocator, or a heap that cannot grow: it works as well
            memory.keep_freed_memory(keep)


def _given(options, names: Sequence[str]) -> dict:
    """Those of the named options that were given."""
    return {name: options[name] for name in names if options[name] is not None}


_READING = ("missing", "units", "start", "stop")
_DOWNSCALE = (
    "var", "tile", "halo", "threads", "precision", "device", "time_factor", "scale", "grid", "like", "members", "seed",
    "level", "static", "dynamics", "dtype", "coarsened", "smooth", *_READING,
)  # fmt: skip


def _downscale(options) -> None:
    from fastds.tasks.verbs import check_options, downscaling_task, task_function

    _check_files(options, "like", "truth")
    report = _report(options, options.input, options.output, options.like, options.truth)
    chosen = _given(options, _DOWNSCALE) | _law(options)
    task = downscaling_task(options.model, chosen)
    run = task_function(task, "downscale_file")
    check_options(run, task, chosen, set(_READING))
    form = _form(options, task)
    if _archive(options):
        _compute_archive(task, options, chosen)
        return
    if task == "fields":
        # Maps of a whole globe leave gaps in a heap that never shrinks: 3.9 GB instead of 1.7 for 721 x 1440 points.
        _keep_freed_memory(False)
    chosen |= {"model": options.model, "truth": options.truth}
    made = run(options.input, options.output, progress=True, **chosen, **form)
    print(made.summary())
    _compare(options, task, report, _reading(options))


def _compare(options, task: str, report: dict, read: dict) -> None:
    """Print the errors of what was made, where the truth is known, and write the report. read: how files are read."""
    from fastds.tasks.verbs import evaluate, task_function

    if options.truth:
        evaluate(options.output, options.truth, input=options.input, progress=True, **read, **report).print()
    elif report:
        task_function(task, "report_files")(options.output, options.input, **read, **report)


def _nowcast(options) -> None:
    from fastds.tasks.nowcast.run import nowcast_file

    _check_files(options, "truth")
    report = _report(options, options.input, options.output, options.truth, options.picture)
    names = ("steps", "lead", "start", "every", "interval", "coarsen", "block", "smooth", "quantity")
    names += ("members", "seed")
    names += ("threads", "precision", "device", "picture", "truth", "dtype", "stop")
    read = _given(options, ("var", "missing", "units")) | _law(options)
    chosen = _given(options, names) | read | _rates(options)
    form = _form(options, "nowcast")
    if _archive(options):
        _compute_archive("nowcast", options, chosen)
        return
    made = nowcast_file(options.input, options.output, model=options.model, progress=True, **chosen, **form)
    print(with_options(made.summary(), set(options.keys())))
    _compare(options, "nowcast", report, read)


_ARCHIVE = ("workers", "scheduler", "append", "keep_going")
_ALONE = ("truth", "report", "picture")  # what takes a result as a whole


def _archive(options) -> bool:
    """Whether an option of archives was given."""
    return any(options[name] is not None and options[name] is not False for name in _ARCHIVE)


def _compute_archive(task: str, options, chosen: dict) -> None:
    from fastds.archive.run import compute_archive

    alone = [name for name in _ALONE if options.get(name)]
    if alone:
        raise ValueError(f"{alone[0]} is for results that are made at once; run fastds evaluate on an archive")
    own = {name: chosen.pop(name) for name in ("dtype", "threads") if name in chosen}
    of_files = ("missing", "units", "stop") if task == "nowcast" else _READING  # start is that of a forecast
    reading = {name: chosen.pop(name) for name in of_files if name in chosen}
    form = {"model": options.model, "progress": True} | own | _given(options, _ARCHIVE)
    made = compute_archive(task, options.input, options.output, options=chosen, reading=reading, **form)
    print(with_options(made.summary(), set(options.keys())))


def _query(options) -> None:
    from fastds.tasks.fields.run import query_file

    chosen = {
        name: options[name]
        for name in ("model", "outside", "var", "static", "threads", "precision", "device", *_READING)
    }
    print(query_file(options.input, options.points, options.output, **chosen).summary())


def _evaluate(options) -> None:
    from fastds.tasks.common.inference import check_target

    files = options.prediction, options.truth
    if options.csv:
        for file in files:
            check_target(file, options.csv)
    report = _report(options, *files, options.input, options.csv)
    chosen = _given(options, ("input", "workers", "scheduler")) | _reading(options) | report
    if "workers" in chosen or "scheduler" in chosen:
        from fastds.archive.evaluation import evaluate_archive as evaluate
    else:
        from fastds.tasks.verbs import evaluate
    table = evaluate(*files, progress=True, **chosen)
    if options.csv:  # before a reader of the table may go away
        table.to_csv(options.csv)
    table.print()


def _check(options) -> int:
    from fastds.tasks.common.check import check_all

    return check_all(options, _given(options, _READING))


def _convert(options) -> None:
    from fastds.tasks.common.convert import convert

    print(convert(options, _given(options, _READING)))


def _finetune(options) -> None:
    from fastds.tasks.common.finetune import finetune, scores
    from fastds.tasks.common.verdict import verdict

    chosen = _given(options, ("max_minutes", "max_steps", "learning_rate", "threads", "device", "var", *_READING))
    best = finetune(options.model, options.data, options.output, progress=True, **chosen)
    print("\n".join(filter(None, [scores(best), verdict(best), f"wrote {best}"])))


def _demo(options) -> None:
    from fastds.tasks.radar.demo import demo

    demo(options.output, progress=True, **_given(options, ("model", "seed", "size", "threads", "device")))


def _train(argv: list[str]) -> int:
    from fastds.tasks.common.command import main as train

    return train(argv)


def _study(argv: list[str]) -> int:
    from fastds.studies.command import main as study

    return study(argv)


def _models(argv: list[str]) -> None:
    from fastds.models.listing import main as models

    models(argv)


def _export(argv: list[str]) -> None:
    from fastds.tasks.common.export import main as export

    export(argv)


def _info(argv: list[str]) -> None:
    if argv:
        wanted = "fastds info prints versions, compilers, instruction sets and devices; it takes no arguments"
        if argv[0] in ("-h", "--help"):
            print(wanted)
            return
        raise ValueError(f"{wanted}, got {argv[0]!r}")
    from fastds.info import main as info

    info()


def _law(options) -> dict:
    """The option --z-r as an argument, where it was given."""
    if options.z_r is None:
        return {}
    a, b = options.z_r
    if not min(a, b) > 0:
        raise ValueError(f"--z-r must be two positive numbers A B, got {a:g} {b:g}")
    return {"z_r": (float(a), float(b))}


def _rates(options) -> dict:
    """The option --probability as an argument, where it was given."""
    if options.probability is None:
        return {}
    if options.report:
        raise ValueError("--report draws forecasts, and --probability leaves none: give --members")
    try:
        return {"probability": [float(rate) for rate in options.probability.split(",")]}
    except ValueError:
        wanted = "--probability must be growing rain rates in mm/h such as 1,5,10"
        raise ValueError(f"{wanted}, got {options.probability!r}") from None


def _form(options, task: str) -> dict:
    """What the options say of an archive in MLCast's form as the argument origin, where one is wanted."""
    from fastds.tasks.common.convert import origin_of

    origin = origin_of(options)
    if origin is None:
        return {}
    if task not in ("radar", "nowcast"):
        raise ValueError(f"--to mlcast is for radar fields, and the model is for {task}")
    if task == "nowcast" and (options.truth or options.report):
        raise ValueError("--to mlcast leaves the starts of forecasts out, which --truth and --report need")
    if _archive(options):
        raise ValueError("--to mlcast is for results that are made at once; fastds convert makes it of an archive")
    return {"origin": origin}


def _reading(options) -> dict:
    """How observed files are read: the options --var, --z-r and those of _READING."""
    return _given(options, ("var", *_READING)) | _law(options)


def _check_files(options, *names: str) -> None:
    """Raise FileNotFoundError for a file of these options that is not there, which may be read only after a long
    computation, and ValueError for one that the output would replace."""
    from fastds.tasks.common.inference import check_target

    for name in names:
        path = options[name]
        if path is not None:
            if not Path(path).exists():
                raise FileNotFoundError(f"--{name}: no such file: {path}")
            check_target(path, options.output)


def _report(options, *files: str | None) -> dict:
    """The options --report and --model as arguments, where a report is wanted, which must be none of these files."""
    if options.report is None:
        return {}
    from fastds.report import check_report

    check_report(options.report, *files)
    return {"report": options.report, "model": options.get("model")}


def _guarded(name: str, run, options) -> int:
    """Run a subcommand; errors become one sentence, warnings one line."""
    names = set(options.keys()) if hasattr(options, "keys") else set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {with_options(str(message), names)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", UserWarning)
        try:
            status = run(options) or _OK
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
        except BrokenPipeError:
            _print_nothing()
            return _UNREAD
        except SystemExit as end:  # what rich makes of it
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            return _UNREAD
        except (ValueError, OSError, ImportError, MemoryError) as error:
            show_traceback()
            print(f"{name}: {with_options(sentence_of(error), names)}", file=sys.stderr)
            return _FAILED
        except Exception as error:  # no user's error, and still no traceback
            show_traceback()
            print(f"{name}: {with_options(internal_error(error, _read(options)), names)}", file=sys.stderr)
            return _FAILED
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return _INTERRUPTED


def _read(options) -> list[str]:
    """The files that a command reads."""
    names = ("input", "inputs", "prediction", "truth", "like", "points", "data")
    given = [options.get(name) for name in names] if hasattr(options, "get") else []
    return [file for one in given if one for file in ([one] if isinstance(one, str) else one)]


def _print_everything() -> None:
    """Let letters that a terminal or log does not have, in names of files, be printed as their codes."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")


def _print_nothing() -> None:
    """Let the rest of what is printed, whose reader has gone, go nowhere."""
    if is_command():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unraisable(error) -> None:
    """Suppress exceptions that h5netcdf and rasterio raise while closing a damaged file, whose error was reported."""
    place = str(getattr(error.object, "__module__", "") or error.object)
    if not place.startswith(("h5netcdf", "h5py", "rasterio")):
        sys.__unraisablehook__(error)


# These have argument lists of their own, with their own help.
_OWN = {"train": _train, "study": _study, "models": _models, "export": _export, "info": _info}
_COMMANDS = {
    "downscale": _downscale, "nowcast": _nowcast, "query": _query, "evaluate": _evaluate, "check": _check,
    "convert": _convert, "finetune": _finetune, "demo": _demo,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())

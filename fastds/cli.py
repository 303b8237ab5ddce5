# SPDX-License-Identifier: Apache-2.0
"""The command `fastds` with its subcommands.

The packages torch and xarray are imported only after the arguments have been parsed.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from fastds._command_arguments import (
    ARCHIVE_OPTIONS,
    READ_OPTIONS,
    WHOLE_RESULT_OPTIONS,
    collect_downscale_arguments,
    collect_nowcast_arguments,
    collect_nowcast_reading,
    collect_options,
    collect_read_options,
    is_archive_requested,
    parse_mlcast_origin,
    set_memory_retention,
)
from fastds._import_hooks import import_for_command
from fastds._messages import convert_parser_error, format_error, format_internal_error, show_traceback
from fastds._options import OptionError, use_option_names
from fastds._outputs import is_running_as_cli
from fastds._parsers import build_command_parser, build_parser, get_spellings
from fastds._unknown_names import find_unknown_name, normalise_option

_OK, _FAILED, _INTERRUPTED = 0, 2, 130
_EXIT_SIGPIPE = 141  # exit status that shells report for programs ended by SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `fastds`.

    Args:
        argv: arguments; None: sys.argv[1:].

    Returns:
        Exit status. 0: success. 2: an error, or an input of `fastds check` that no command accepts. 130: Ctrl-C.
        128 + n: signal n ended a training. 141: standard output was closed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if is_running_as_cli():
        sys.unraisablehook = _suppress_close_errors
        _escape_unprintable()
    argv, words = _split_watch(argv)
    message = find_unknown_name(argv) or (find_unknown_name(words) if words else None)
    if message is not None:
        print(message, file=sys.stderr)
        return _FAILED
    command = _SELF_PARSING_COMMANDS.get(argv[0] if argv else "")
    if command is not None:
        if not {"-h", "--help"} & set(argv) and command is not _run_models:
            _import_ops()
            if command is not _run_info:
                set_memory_retention()
        return _run_with_error_handling(f"fastds {argv[0]}", command, argv[1:])
    names = get_spellings(build_command_parser(argv[0])) if argv and argv[0] in _COMMANDS else {}
    with use_option_names(names):
        try:
            options = build_parser().parse_args([normalise_option(word) for word in argv])
        except ArgumentError as error:
            program = f"fastds {argv[0]}" if names else "fastds"
            print(f"{program}: {convert_parser_error(error)} (see {program} --help)", file=sys.stderr)
            return _FAILED
        name = options.subcommand
        if name not in _COMMANDS_WITHOUT_TORCH:
            _import_ops()
        set_memory_retention()
        if name == "watch":
            options[name]["words"] = words
        return _run_with_error_handling(f"fastds {name}", _COMMANDS[name], options[name])


def _split_watch(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line of `fastds watch` at "--" into that of watch and that of the command it runs.

    Others are not split.
    """
    if argv[:1] != ["watch"] or "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


def _import_ops() -> None:
    """Import torch and the ops, if this process is the command `fastds`."""
    if is_running_as_cli():
        import_for_command("fastds.ops")


def _run_downscale(options) -> None:
    from fastds.tasks.api import get_task_function

    _check_files(options, "like", "truth")
    report = _collect_report_options(
        options, options.input, options.output, options.like, options.truth, options.picture
    )
    task, chosen = collect_downscale_arguments(options)
    run = get_task_function(task, "downscale_file")
    form = parse_mlcast_origin(options, task)
    if is_archive_requested(options):
        _compute_archive(task, options, chosen)
        return
    if task == "fields":
        # Retained memory of global fields becomes fragmented: 3.9 GB instead of 1.7 GB for 721 x 1440 points.
        set_memory_retention(False)
    chosen |= {"model": options.model, "truth": options.truth, "picture": options.picture}
    summary = run(options.input, options.output, progress=True, **chosen, **form)
    print(summary.summary())
    _report_scores(options, task, report, collect_read_options(options))


def _report_scores(options, task: str, report: dict, read: dict) -> None:
    """Print the scores of the output if the truth is given, and write the HTML report.

    Args:
        options: parsed command line.
        task: task that computed the output.
        report: arguments of the report, see _collect_report_options.
        read: options for reading files.
    """
    from fastds.tasks.api import evaluate, get_task_function

    if options.truth:
        table = evaluate(options.output, options.truth, input=options.input, progress=True, **read, **report)
        table.print(all_scores=bool(options.get("all_scores")))
    elif report:
        get_task_function(task, "report_files")(options.output, options.input, **read, **report)


def _run_nowcast(options) -> None:
    from fastds.tasks.nowcast.run import nowcast_file

    _check_files(options, "truth")
    report = _collect_report_options(options, options.input, options.output, options.truth, options.picture)
    chosen = collect_nowcast_arguments(options)
    form = parse_mlcast_origin(options, "nowcast")
    if is_archive_requested(options):
        _compute_archive("nowcast", options, chosen)
        return
    summary = nowcast_file(options.input, options.output, model=options.model, progress=True, **chosen, **form)
    print(summary.summary())
    task = "nowcast" if options.probability is None else "probability"
    _report_scores(options, task, report, collect_nowcast_reading(options))


def _compute_archive(task: str, options, chosen: dict) -> None:
    from fastds.archive.run import compute_archive

    unsupported = [name for name in WHOLE_RESULT_OPTIONS if options.get(name)]
    if unsupported:
        raise OptionError(unsupported[0], "is for results that are made at once; run fastds evaluate on an archive")
    execution = {name: chosen.pop(name) for name in ("dtype", "threads") if name in chosen}
    # for nowcasts, start is the initialization time
    names = ("missing", "units", "array", "stop") if task == "nowcast" else READ_OPTIONS
    reading: Any = {name: chosen.pop(name) for name in names if name in chosen}
    form = {"model": options.model, "progress": True} | execution | collect_options(options, ARCHIVE_OPTIONS)
    summary = compute_archive(task, options.input, options.output, options=chosen, reading=reading, **form)
    print(summary.summary())


def _run_watch(options) -> int:
    from fastds.watch.command import run_watch

    return run_watch(options, options.words)


def _run_query(options) -> None:
    from fastds.tasks.fields.run import query_file

    names = "model", "outside", "var", "static", "height", "lapse_rate", "threads", "precision", "device", "graph"
    chosen = {name: options[name] for name in (*names, *READ_OPTIONS)}
    print(query_file(options.input, options.points, options.output, **chosen).summary())


def _run_evaluate(options) -> None:
    from fastds.inference.files import check_target

    files = options.prediction, options.truth
    if options.csv:
        for file in files:
            check_target(file, options.csv)
    report = _collect_report_options(options, *files, options.input, options.csv)
    chosen = collect_options(options, ("input", "workers", "scheduler")) | collect_read_options(options) | report
    if "workers" in chosen or "scheduler" in chosen:
        from fastds.archive.evaluation import evaluate_archive

        evaluate: Any = evaluate_archive
    else:
        from fastds.tasks.api import evaluate
    table = evaluate(*files, progress=True, **chosen)
    if options.csv:  # written first, because printing fails if standard output is closed
        table.to_csv(options.csv)
    table.print(all_scores=options.all_scores)


def _run_check(options) -> int:
    from fastds.tasks.check import check_all

    return check_all(options, collect_options(options, READ_OPTIONS))


def _run_convert(options) -> None:
    from fastds.tasks.convert import convert

    print(convert(options, collect_options(options, READ_OPTIONS)))


def _run_finetune(options) -> None:
    from fastds.tasks.finetune import finetune, format_scores
    from fastds.training.baseline_comparison import format_comparison

    chosen = collect_options(
        options,
        ("max_minutes", "max_steps", "learning_rate", "threads", "device", "var", "static", "dynamics", *READ_OPTIONS),
    )
    best = finetune(options.model, options.data, output=options.output, progress=True, **chosen)
    print("\n".join(filter(None, [format_scores(best), format_comparison(best), f"wrote {best}"])))


def _run_demo(options) -> None:
    from fastds.tasks.radar.demo import demo

    demo(options.output, progress=True, **collect_options(options, ("model", "seed", "size", "threads", "device")))


def _run_train(argv: list[str]) -> int:
    from fastds.training.command import main as train

    return train(argv)


def _run_study(argv: list[str]) -> int:
    from fastds.studies.command import main as study

    return study(argv)


def _run_models(argv: list[str]) -> None:
    from fastds.models.listing import main as models

    models(argv)


def _run_export(argv: list[str]) -> None:
    from fastds.tasks.export import main as export

    export(argv)


def _run_info(argv: list[str]) -> None:
    if argv:
        text = "fastds info prints versions, compiler, instruction sets and devices; it takes no arguments"
        if argv[0] in ("-h", "--help"):
            print(text)
            return
        raise ValueError(f"{text}, got {argv[0]!r}")
    from fastds.info import main as info

    info()


def _check_files(options, *names: str) -> None:
    """Check the files of options before a long computation.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the output would replace a file.
    """
    from fastds.inference.files import check_target

    for name in names:
        path = options[name]
        if path is not None:
            if not Path(path).exists():
                raise FileNotFoundError(f"--{name}: no such file: {path}")
            check_target(path, options.output)


def _collect_report_options(options, *files: str | None) -> dict:
    """Return --report and --model as arguments if a report was requested, otherwise an empty dict.

    The path of the report is checked; it must not replace one of `files`.
    """
    if options.report is None:
        return {}
    from fastds.report import check_report

    check_report(options.report, *files)
    return {"report": options.report, "model": options.get("model")}


def _run_with_error_handling(name: str, run, options) -> int:
    """Run a subcommand. Each error and each warning is printed as one line.

    Args:
        name: command for messages.
        run: function of the options.
        options: parsed options, or a list of arguments.

    Returns:
        Exit status.
    """

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", UserWarning)
        try:
            _check_array(options)
            status = run(options) or _OK
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
        except BrokenPipeError:
            _discard_stdout()
            return _EXIT_SIGPIPE
        except SystemExit as end:  # rich converts a BrokenPipeError to SystemExit
            if not isinstance(end.__context__, BrokenPipeError):
                raise
            return _EXIT_SIGPIPE
        except (ValueError, OSError, ImportError, MemoryError) as error:
            show_traceback()
            print(f"{name}: {format_error(error)}", file=sys.stderr)
            return _FAILED
        except Exception as error:  # a defect of fastds: reported without a traceback, too
            show_traceback()
            message = format_internal_error(error, _list_input_files(options))
            print(f"{name}: {message}", file=sys.stderr)
            return _FAILED
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return _INTERRUPTED


def _check_array(options) -> None:
    """Raise OptionError for the option --array if no input has raw binary files."""
    files = _list_input_files(options)
    if files and options.get("array") is not None and all(map(os.path.exists, files)):
        from fastds.data.formats.opening import has_plain_arrays
        from fastds.data.formats.plain_array import SUFFIXES

        if not any(map(has_plain_arrays, files)):
            raise OptionError("array", f"is for raw binary files *{', *'.join(SUFFIXES)}, got {', '.join(files)}")


def _list_input_files(options) -> list[str]:
    """Return the input files of a command."""
    names = ("input", "inputs", "prediction", "truth", "like", "points", "data")
    given = [options.get(name) for name in names] if hasattr(options, "get") else []
    return [file for one in given if one for file in ([one] if isinstance(one, str) else one)]


def _escape_unprintable() -> None:
    """Print characters that the terminal or log cannot encode as escape sequences."""
    stream: Any
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Redirect standard output, whose reader has closed it, to the null device."""
    if is_running_as_cli():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _suppress_close_errors(error) -> None:
    """Suppress exceptions that h5netcdf and rasterio raise while they close a damaged file.

    The error of the file was reported before.
    """
    place = str(getattr(error.object, "__module__", "") or error.object)
    if not place.startswith(("h5netcdf", "h5py", "rasterio")):
        sys.__unraisablehook__(error)


# Commands that parse their own arguments and print their own help.
_SELF_PARSING_COMMANDS = {
    "train": _run_train,
    "study": _run_study,
    "models": _run_models,
    "export": _run_export,
    "info": _run_info,
}
_COMMANDS = {
    "downscale": _run_downscale, "nowcast": _run_nowcast, "watch": _run_watch, "query": _run_query,
    "evaluate": _run_evaluate, "check": _run_check, "convert": _run_convert, "finetune": _run_finetune,
    "demo": _run_demo,
}  # fmt: skip
# `convert` needs no torch, and `check` imports it after it has printed the contents of a file.
_COMMANDS_WITHOUT_TORCH = {"check", "convert"}

if __name__ == "__main__":
    sys.exit(main())

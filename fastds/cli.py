# SPDX-License-Identifier: Apache-2.0
"""The command `fastds` with its subcommands; nothing heavy is imported before the arguments are read."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from fastds._outputs import is_command
from fastds.tasks.common.command import parser_sentence

_OK, _FAILED, _INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with argv (default: sys.argv[1:]) and return 0, 2 for a user's error, or 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if is_command():
        sys.unraisablehook = _unraisable
    # These have argument lists of their own, with their own help.
    own = {"train": _train, "study": _study, "models": _models, "info": _info}.get(argv[0] if argv else "")
    if own is not None:
        if own is not _info:
            _keep_freed_memory()
        return _guarded(f"fastds {argv[0]}", own, argv[1:])
    try:
        options = _parser().parse_args(argv)
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
        memory.keep_freed_memory(keep)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="fastds", exit_on_error=False, description="Downscale and nowcast weather fields with deep networks."
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, make, text in (
        ("downscale", _downscale_parser, "make radar fields finer in space and time, or gridded fields in space"),
        ("nowcast", _nowcast_parser, "forecast the next radar fields from the last ones"),
        ("query", _query_parser, "read fields at stations with an arbitrary-scale model"),
        ("evaluate", _evaluate_parser, "compare a downscaled or nowcast file with the truth and the baselines"),
        ("demo", _demo_parser, "downscale a synthetic rain event; needs no data and no network"),
        ("train", _plain_parser, "train a model: fastds train --help"),
        ("study", _plain_parser, "compare many models on test data: fastds study --help"),
        ("models", _plain_parser, "list the weights in the package: fastds models --help"),
        ("info", _plain_parser, "print versions, compilers and devices"),
    ):
        commands.add_subcommand(name, make(), help=text)
    return parser


def _plain_parser(description: str | None = None) -> ArgumentParser:
    return ArgumentParser(exit_on_error=False, description=description)


def _downscale_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Radar fields: write IN.nc at twice the resolution and half the time step. Latitude-longitude fields: with "
        "--scale, --grid or --like. Relative humidity: with --model wgan-gp-small-x2 or -x8. An OUT.nc that exists is "
        "replaced."
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="file, folder or 'pattern': reflectivity, rain or fields (time, y, x)",
    )
    parser.add_argument("output", metavar="OUT.nc", help="file to write, NetCDF-4, or Zarr where it ends in .zarr")
    parser.add_argument("--model", help="name of shipped weights or a .safetensors file; default: the only match")
    parser.add_argument("--var", help="variable to downscale, where its attributes do not tell")
    parser.add_argument("--tile", type=int, help="side of a tile in input pixels, a multiple of 16; default: by memory")
    parser.add_argument(
        "--halo", type=int, help="border read around a tile, a multiple of 16; default: network's reach"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="numbers inside the network; default: fp32")
    parser.add_argument("--time-factor", type=int, help="2, or 4 by applying the model twice in time; default: 2")
    parser.add_argument("--scale", type=float, help="latitude-longitude fields: this many times as fine, any real")
    parser.add_argument(
        "--grid", type=float, metavar="DEGREES", help="latitude-longitude fields: spacing of the result"
    )
    parser.add_argument("--like", metavar="FILE", help="latitude-longitude fields: onto the grid of this file")
    parser.add_argument("--members", type=int, help="generators: members of the ensemble; default: one, without noise")
    parser.add_argument("--seed", type=int, help="generators: of the first member; default: 0")
    parser.add_argument("--level", type=float, help="generators: value of the vertical coordinate")
    _add_static(parser)
    _add_reading(parser)
    _add_dtype(parser)
    _add_z_r(parser)
    parser.add_argument("--truth", metavar="FILE", help="fine radar fields to compare the result with: prints errors")
    return parser


def _nowcast_parser() -> ArgumentParser:
    parser = _plain_parser("Forecast from the last fields of IN.nc. An OUT.nc that exists is replaced.")
    parser.add_argument("input", metavar="IN", help="file, folder or 'pattern': reflectivity or rain (time, y, x)")
    parser.add_argument("output", metavar="OUT.nc", help="file to write, NetCDF-4")
    parser.add_argument(
        "--model",
        help="shipped name, .safetensors file, persistence, blurred-persistence, extrapolation or pysteps; default: "
        "the shipped nowcaster, else extrapolation",
    )
    parser.add_argument("--steps", type=int, help="number of fields; default: 12")
    parser.add_argument("--lead", metavar="DURATION", help="of the last field, such as 60min; instead of --steps")
    parser.add_argument("--start", metavar="TIME", help="last known field, such as 2010-08-26T03:00; default: the last")
    parser.add_argument("--every", metavar="STEP", help="hindcasts from --start, or from the first possible time, on")
    parser.add_argument("--interval", metavar="DURATION", help="between fields; default: the shortest the model knows")
    parser.add_argument("--coarsen", type=int, help="cells of IN.nc along one of OUT.nc; default: as the model knows")
    parser.add_argument("--block", type=int, help="start anew from the forecasts after so many fields; default: never")
    parser.add_argument(
        "--smooth", action="store_true", help="least squared error; default: with the intensities of the last field"
    )
    parser.add_argument("--quantity", choices=["rate", "reflectivity"], default="rate", help="mm h-1 or dBZ")
    parser.add_argument("--var", help="variable to forecast, where its attributes do not tell")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="numbers inside the network")
    _add_reading(parser, start=False)
    _add_dtype(parser)
    _add_z_r(parser)
    parser.add_argument("--picture", metavar="PNG", help="draw observed fields, forecast and difference")
    parser.add_argument(
        "--truth", metavar="FILE", help="fields after the starts (IN.nc, for hindcasts): prints the scores by lead"
    )
    return parser


def _query_parser() -> ArgumentParser:
    parser = _plain_parser("Write the values of IN.nc at stations, by the model and by bilinear interpolation.")
    parser.add_argument("input", metavar="IN.nc", help="the model's variables over latitude and longitude")
    parser.add_argument("--points", metavar="CSV", required=True, help="columns lat and lon, degrees; others are kept")
    parser.add_argument("--output", "--out", metavar="CSV", required=True, help="file to write")
    parser.add_argument("--model", help="shipped name or file of an arbitrary-scale model; default: inr-small")
    parser.add_argument("--outside", choices=["error", "nan", "clamp"], default="error", help="points off a region")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    _add_static(parser)
    _add_reading(parser)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = _plain_parser("Print the errors of PRED, downscaled fields or forecasts, and of every baseline.")
    parser.add_argument("prediction", metavar="PRED", help="downscaled file, or forecasts of fastds nowcast")
    parser.add_argument("truth", metavar="TRUTH", help="fine file on the same grid and times, or the fields that came")
    parser.add_argument(
        "--input", metavar="FILE", help="the input of PRED; default: TRUTH averaged 2 x 2, for forecasts TRUTH"
    )
    parser.add_argument("--var", help="variable to compare, where its attributes do not tell")
    _add_reading(parser)
    _add_z_r(parser)
    parser.add_argument("--csv", metavar="FILE", help="also write the table to this file")
    return parser


def _demo_parser() -> ArgumentParser:
    parser = _plain_parser("Downscale a seeded synthetic rain event and compare the result with the truth.")
    parser.add_argument(
        "--output", "--out", metavar="DIR", default="fastds-demo", help="folder for the files and the picture"
    )
    parser.add_argument("--model", help="name of shipped weights or a .safetensors file")
    parser.add_argument("--seed", type=int, help="seed of the rain event")
    parser.add_argument("--size", type=int, help="pixels a side of the fine grid, a multiple of 32")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    return parser


def _add_static(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--static", action="append", metavar="FILE[:VAR]",
        help="static maps (orography) of a model that reads some, on any grid; may be given again for the next map",
    )  # fmt: skip


def _add_reading(parser: ArgumentParser, start: bool = True) -> None:
    parser.add_argument("--missing", type=float, metavar="VALUE", help="value that stands for a missing one")
    parser.add_argument("--units", metavar="UNITS", help="of the variable, where the file does not tell or tells wrong")
    if start:
        parser.add_argument("--start", metavar="TIME", help="first time that is read, such as 2010-08-26T03:00")
    parser.add_argument("--stop", metavar="TIME", help="last time that is read")


def _add_dtype(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=["input", "float32"], help="of OUT.nc; default: input, integers where IN.nc has packed ones"
    )


def _add_z_r(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--z-r", type=float, nargs=2, metavar=("A", "B"), help="Z = A R^B between reflectivity and rain rate in mm/h"
    )


def _given(options, names: Sequence[str]) -> dict:
    """Those of the named options that were given."""
    return {name: options[name] for name in names if options[name] is not None}


_READING = ("missing", "units", "start", "stop")
_DOWNSCALE = (
    "var", "tile", "halo", "threads", "precision", "time_factor", "scale", "grid", "like", "members", "seed", "level",
    "static", "dtype", *_READING,
)  # fmt: skip


def _downscale(options) -> None:
    from fastds.tasks.verbs import check_options, downscaling_task, task_function

    _check_files(options, "like", "truth")
    chosen = _given(options, _DOWNSCALE) | _law(options)
    task = downscaling_task(options.model, chosen)
    run = task_function(task, "downscale_file")
    further = {*_READING, "truth"} if task == "radar" else set(_READING)
    check_options(run, task, chosen | _given(options, ("truth",)), further)
    if task == "fields":
        # Maps of a whole globe leave gaps in a heap that never shrinks: 3.9 GB instead of 1.7 for 721 x 1440 points.
        _keep_freed_memory(False)
    if options.truth:
        from fastds.tasks.radar.evaluation import check_truth_file, evaluate_files

        check_truth_file(options.truth, options.input, options.time_factor or 2, **_reading(options))
    print(run(options.input, options.output, model=options.model, progress=True, **chosen).summary())
    if options.truth:
        files = options.output, options.truth
        evaluate_files(*files, coarse=options.input, progress=True, **_reading(options)).print()


def _nowcast(options) -> None:
    from fastds.tasks.nowcast.run import nowcast_file

    _check_files(options, "truth")
    names = ("steps", "lead", "start", "every", "interval", "coarsen", "block", "smooth", "quantity")
    names += ("threads", "precision", "model", "picture", "truth", "dtype", "stop")
    chosen = _given(options, names) | _given(options, ("var", "missing", "units")) | _law(options)
    report = nowcast_file(options.input, options.output, progress=True, **chosen)
    print(_with_options(report.summary(), set(options.keys())))
    if options.truth:
        from fastds.tasks.nowcast.evaluation import evaluate_files

        files = options.output, options.truth
        told = _given(options, ("var", "missing", "units")) | _law(options)
        evaluate_files(*files, observed=options.input, progress=True, **told).print()


def _query(options) -> None:
    from fastds.tasks.fields.run import query_file

    chosen = {name: options[name] for name in ("model", "outside", "static", "threads", *_READING)}
    print(query_file(options.input, options.points, options.output, **chosen).summary())


def _evaluate(options) -> None:
    from fastds.tasks.common.inference import check_target
    from fastds.tasks.nowcast.forecasts import is_forecast_file
    from fastds.tasks.verbs import task_function

    files = options.prediction, options.truth
    if options.csv:
        for file in files:
            check_target(file, options.csv)
    task, given = ("nowcast", "observed") if is_forecast_file(options.prediction) else ("radar", "coarse")
    chosen = {given: options.input, "progress": True} | _reading(options)
    table = task_function(task, "evaluate_files")(*files, **chosen)
    table.print()
    if options.csv:
        table.to_csv(options.csv)


def _demo(options) -> None:
    from fastds.tasks.radar.demo import demo

    chosen = {key: value for key in ("model", "seed", "size", "threads") if (value := options[key]) is not None}
    demo(options.output, progress=True, **chosen)


def _train(argv: list[str]) -> int:
    from fastds.tasks.common.command import main as train

    return train(argv)


def _study(argv: list[str]) -> int:
    from fastds.studies.command import main as study

    return study(argv)


def _models(argv: list[str]) -> None:
    from fastds.models.listing import main as models

    models(argv)


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


def _guarded(name: str, run, options) -> int:
    """Run a subcommand; errors a user can mend become one sentence, warnings one line."""
    names = set(options.keys()) if hasattr(options, "keys") else set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {_with_options(str(message), names)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", UserWarning)
        try:
            return run(options) or _OK
        except (ValueError, OSError, ImportError, MemoryError) as error:
            print(f"{name}: {_with_options(_sentence(error), names)}", file=sys.stderr)
            return _FAILED
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return _INTERRUPTED


def _unraisable(error) -> None:
    """Say nothing of what h5netcdf raises while it closes a damaged file, whose error has been told."""
    if not str(getattr(error.object, "__module__", "")).startswith(("h5netcdf", "h5py")):
        sys.__unraisablehook__(error)


def _with_options(sentence: str, names: set[str]) -> str:
    """A sentence that names arguments of Python with the options of the command line: "time_factor must be ..." becomes
    "--time-factor must be ...", and "the arguments scale and grid" becomes "the options --scale and --grid"."""

    def option(name: re.Match) -> str:
        return f"--{name[0].replace('_', '-')}" if name[0] in names else name[0]

    def several(found: re.Match) -> str:
        return f"option{found[1]} {re.sub(r'[a-z_]+', option, found[2])}"

    sentence = re.sub(r"^[a-z_]+(?= must | is | needs |: )", option, sentence)
    listed = r"\bargument(s?) ((?:[a-z_]+)(?:(?:, | and | or )[a-z_]+)*)"
    return re.sub(listed, several, sentence).replace(" is no argument for ", " is no option for ")


def _sentence(error: BaseException) -> str:
    """The error's words on one line."""
    return " ".join(str(error).split()) or type(error).__name__


_COMMANDS = {"downscale": _downscale, "nowcast": _nowcast, "query": _query, "evaluate": _evaluate, "demo": _demo}

if __name__ == "__main__":
    sys.exit(main())

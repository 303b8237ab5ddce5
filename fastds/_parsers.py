# SPDX-License-Identifier: Apache-2.0
"""The options of the command `fastds` and its subcommands; nothing heavy is imported for them."""

from collections.abc import Callable

from jsonargparse import ArgumentParser

from fastds._version import __version__


def parser_of_all() -> ArgumentParser:
    """The parser of the command with all its subcommands."""
    parser = ArgumentParser(
        prog="fastds",
        exit_on_error=False,
        allow_abbrev=False,
        version=__version__,
        description="Downscale and nowcast weather fields with deep networks.",
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        commands.add_subcommand(name, parser_of(name), help=text)
    return parser


def parser_of(command: str) -> ArgumentParser:
    """The parser of one of COMMANDS; train, study, models, export and info read their arguments themselves."""
    return COMMANDS[command][0]()


def _plain_parser(description: str | None = None) -> ArgumentParser:
    # Abbreviations are refused: what is one today may be another option tomorrow.
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)


def _downscale_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Radar fields: write IN.nc at twice the resolution and half the time step. Gridded fields: with "
        "--scale, --grid or --like. Relative humidity: with --model wgan-gp-small-x2 or -x8. An OUT.nc that exists is "
        "replaced."
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="file, folder or 'pattern': reflectivity, rain or fields (time, y, x)",
    )
    parser.add_argument("output", metavar="OUT.nc", help="file to write, NetCDF-4, or Zarr where it ends in .zarr")
    parser.add_argument(
        "--model",
        help="shipped weights, a .safetensors file, or trilinear, bicubic, advection (radar), bilinear, bicubic, "
        "lanczos (fields); default: the shipped network that takes IN",
    )
    parser.add_argument(
        "--var", help="variable to downscale, where its attributes do not tell; of fields, the only one"
    )
    parser.add_argument("--tile", type=int, help="side of a tile in input pixels, a multiple of 16; default: by memory")
    parser.add_argument(
        "--halo", type=int, help="border read around a tile, a multiple of 16; default: network's reach"
    )
    _add_computing(parser)
    parser.add_argument("--time-factor", type=int, help="2, or 4 by applying the model twice in time; default: 2")
    parser.add_argument(
        "--coarsened", choices=["linear_z", "dbz", "plain_dbz", "mean"],
        help="how the cells of IN average finer ones, where that is known; the result, averaged that way, then nearly "
        "gives IN. Radar: in linear Z, dBZ above a floor, or plain dBZ, no echo included; gridded fields: mean",
    )  # fmt: skip
    parser.add_argument(
        "--smooth", action="store_const", const=True,
        help="radar: keep the fields of least squared error between input times; by default they get the detail and "
        "intensities of those at input times",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, help="gridded fields: this many times as fine, any real")
    parser.add_argument(
        "--grid",
        type=float,
        metavar="SPACING",
        help="gridded fields: grid spacing of the output, in degrees, or in the units of x and y",
    )
    parser.add_argument("--like", metavar="FILE", help="gridded fields: onto the grid of this file")
    parser.add_argument("--members", type=int, help="radar, generators: members of the ensemble; default: one field")
    parser.add_argument("--seed", type=int, help="seed of the members; default: 0")
    parser.add_argument("--level", type=float, help="generators: value of the vertical coordinate")
    _add_static(parser)
    parser.add_argument(
        "--dynamics", metavar="VARIABLES",
        help="radar: what a network such as fczsm-d reads beside the reflectivity, where IN has other names or units "
        "than its card: probability=prob,measurement_height=height, or as in training '{prob: [0, 100], height: "
        "[0, 20000]}', variables of IN with the ends of their ranges",
    )  # fmt: skip
    _add_reading(parser)
    _add_archive(parser)
    _add_dtype(parser)
    _add_z_r(parser)
    _add_form(parser, "mlcast: radar fields as an archive in MLCast's form, OUT.zarr; default: cf")
    parser.add_argument("--truth", metavar="FILE", help="fine fields to compare the result with: prints the scores")
    _add_report(parser)
    return parser


def _nowcast_parser() -> ArgumentParser:
    parser = _plain_parser("Forecast from the last fields of IN.nc. An OUT.nc that exists is replaced.")
    parser.add_argument("input", metavar="IN", help="file, folder or 'pattern': reflectivity or rain (time, y, x)")
    parser.add_argument("output", metavar="OUT.nc", help="file to write, NetCDF-4, or Zarr where it ends in .zarr")
    parser.add_argument(
        "--model",
        help="shipped name, .safetensors file, persistence, blurred-persistence, extrapolation or pysteps; default: "
        "the shipped nowcaster, else extrapolation",
    )
    parser.add_argument("--steps", type=int, help="number of forecast fields; default: 12")
    parser.add_argument(
        "--lead", metavar="DURATION", help="lead time of the last field, such as 60min; instead of --steps"
    )
    parser.add_argument("--start", metavar="TIME", help="last known field, such as 2010-08-26T03:00; default: the last")
    parser.add_argument("--every", metavar="STEP", help="hindcasts from --start, or from the first possible time, on")
    parser.add_argument(
        "--interval", metavar="DURATION", help="time step of the forecast; default: the shortest the model knows"
    )
    parser.add_argument(
        "--coarsen",
        type=int,
        metavar="N",
        help="average N x N cells before forecasting; default: what the model was trained for",
    )
    parser.add_argument(
        "--block", type=int, metavar="N", help="after N fields use forecasts as new input; default: never"
    )
    parser.add_argument(
        "--smooth", action="store_true",
        help="keep the smooth forecast that minimises squared error; by default its intensities are matched to the "
        "last field",
    )  # fmt: skip
    parser.add_argument(
        "--members",
        type=int,
        metavar="N",
        help="ensemble of N forecasts, a dimension realization; default: one forecast",
    )
    parser.add_argument("--seed", type=int, help="seed of the members; default: 0. Member k is the same for every N")
    parser.add_argument(
        "--probability", metavar="RATES",
        help="rain rates in mm/h, such as 1,5,10: write the share of members that reach each rate, not the members; "
        "--members N counts N, default: 24, one in memory at a time; for both, run it twice with the same --seed",
    )  # fmt: skip
    parser.add_argument("--quantity", choices=["rate", "reflectivity"], default="rate", help="mm h-1 or dBZ")
    parser.add_argument("--var", help="variable to forecast, where its attributes do not tell")
    _add_computing(parser)
    _add_reading(parser, start=False)
    _add_archive(parser)
    _add_dtype(parser)
    _add_z_r(parser)
    _add_form(parser, "mlcast: one forecast, or hindcasts of one step, as an archive in its form; default: cf")
    parser.add_argument("--picture", metavar="PNG", help="draw observed fields, forecast and difference")
    parser.add_argument(
        "--truth", metavar="FILE", help="fields after the starts (IN.nc, for hindcasts): prints the scores by lead"
    )
    _add_report(parser)
    return parser


def _query_parser() -> ArgumentParser:
    parser = _plain_parser("Write the values of IN.nc at stations, by the model and by bilinear interpolation.")
    parser.add_argument("input", metavar="IN.nc", help="the model's variables over latitude and longitude")
    parser.add_argument("--points", metavar="CSV", required=True, help="columns lat and lon, degrees; others are kept")
    parser.add_argument("--output", "--out", metavar="CSV", required=True, help="file to write")
    parser.add_argument("--model", help="name or file of an arbitrary-scale model; default: inr-small or inr-any")
    parser.add_argument("--outside", choices=["error", "nan", "clamp"], default="error", help="points off a region")
    parser.add_argument("--var", help="the only variable to read")
    _add_computing(parser)
    _add_static(parser)
    _add_reading(parser)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Print the errors of PRED, downscaled fields, an ensemble (with a dimension realization) or forecasts, and of "
        "the simple methods. Radar, gridded fields and forecasts are told by PRED."
    )
    parser.add_argument("prediction", metavar="PRED", help="downscaled file, or forecasts of fastds nowcast")
    parser.add_argument("truth", metavar="TRUTH", help="fine file with the grid and times of PRED, or fields that came")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="the input of PRED; default: of radar TRUTH averaged 2 x 2, of gridded fields TRUTH averaged by the "
        "factor that PRED tells, of forecasts TRUTH",
    )
    parser.add_argument("--var", help="variable to compare; default: as attributes tell, or all gridded fields")
    _add_reading(parser)
    _add_z_r(parser)
    parser.add_argument("--csv", metavar="FILE", help="also write the table to this file")
    _add_workers(parser, "archives")
    _add_report(parser)
    return parser


def _check_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Say what files are, what each command would do with them, and what stands in the way. The exit "
        "status is 0 where some command takes every one of them, else 2.",
    )
    parser.add_argument(
        "inputs", metavar="FILE", nargs="+", help="files, folders or 'patterns' of any format, one by one"
    )
    parser.add_argument("--var", help="variable to look at, where its attributes do not tell")
    parser.add_argument(
        "--model", action="append", metavar="WEIGHTS",
        help="weights, or a folder of them, of which it is said what takes each file; may be given again; default: the "
        "*.safetensors of the current folder and the best.safetensors of trainings in it",
    )  # fmt: skip
    _add_reading(parser)
    return parser


def _convert_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Write raw files as CF NetCDF (OUT.nc), or as an archive in MLCast's form (OUT.zarr).",
    )
    parser.add_argument("inputs", metavar="IN", nargs="+", help="files of one format, a folder, or a 'pattern'")
    parser.add_argument("output", metavar="OUT", help="OUT.nc or OUT.zarr; one that exists is replaced")
    parser.add_argument("--var", help="variable of an archive, where its attributes do not tell")
    _add_form(parser, "default: mlcast for OUT.zarr, else cf")
    _add_reading(parser)
    return parser


def _finetune_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Train weights further on files of your own; a block of each is held out, and the scores on it are printed "
        "before and after."
    )
    parser.add_argument("model", metavar="MODEL", help="name of shipped weights or a .safetensors file")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="a file or a folder of NetCDF files")
    parser.add_argument(
        "--output", metavar="DIR", default="finetuned", help="folder of the run; one that is there goes on"
    )
    parser.add_argument("--max-minutes", type=float, help="length of the training; default: 30")
    parser.add_argument("--max-steps", type=int, help="optimiser steps; default: as many as there is time for")
    parser.add_argument("--learning-rate", type=float, help="highest learning rate; default: 5e-4")
    parser.add_argument("--var", help="variable to train on, where its attributes do not tell")
    _add_device(parser)
    _add_reading(parser)
    return parser


def _demo_parser() -> ArgumentParser:
    parser = _plain_parser("Downscale a seeded synthetic rain event and compare the result with the truth.")
    parser.add_argument(
        "--output", "--out", metavar="DIR", default="fastds-demo", help="folder for the files and the picture"
    )
    parser.add_argument("--model", help="name of shipped weights or a .safetensors file")
    parser.add_argument("--seed", type=int, help="seed of the rain event")
    parser.add_argument("--size", type=int, help="pixels a side of the fine grid, a multiple of 32")
    _add_device(parser)
    return parser


def _export_parser() -> ArgumentParser:
    parser = _plain_parser(
        "Write a network as ONNX or as a package of AOTInductor, checked against the network itself."
    )
    parser.prog = "fastds export"
    parser.add_argument("model", metavar="MODEL", help="name of shipped weights or a .safetensors file")
    parser.add_argument("output", metavar="OUT", help="file to write, .onnx or .pt2; one that exists is replaced")
    parser.add_argument("--frames", type=int, help="fields that go in; default: as the card says, else 2, 5 or 8")
    parser.add_argument("--steps", type=int, help="fields of a nowcast; default: 12")
    return parser


def _add_computing(parser: ArgumentParser) -> None:
    _add_device(parser)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="arithmetic of the network; default: bf16 on a GPU, else fp32"
    )


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument(
        "--device", metavar="{auto,cpu,cuda}", default="auto", help="default: auto, a GPU where there is one"
    )


def _add_static(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--static", action="append", metavar="FILE[:VAR]",
        help="static maps (orography) of a model that reads some, on any grid; may be given again for the next map",
    )  # fmt: skip


def _add_reading(parser: ArgumentParser, start: bool = True) -> None:
    parser.add_argument("--missing", type=float, metavar="VALUE", help="value that stands for a missing one")
    parser.add_argument("--units", metavar="UNITS", help="units of the variable, where the file has none or wrong ones")
    if start:
        parser.add_argument("--start", metavar="TIME", help="first time that is read, such as 2010-08-26T03:00")
    parser.add_argument("--stop", metavar="TIME", help="last time that is read")


def _add_workers(parser: ArgumentParser, where: str) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help=f"{where}: processes that share the work")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="archives: address or file of a dask scheduler, whose workers do the work",
    )


def _add_archive(parser: ArgumentParser) -> None:
    _add_workers(parser, "archives, OUT.zarr")
    parser.add_argument(
        "--append", action="store_true", help="archives: compute only what files bring that are new since OUT.zarr"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="archives: leave out files and times that fail, and say which"
    )


def _add_dtype(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=["input", "float32"],
        help="type of the values in OUT.nc; default: input, integers where IN.nc has packed ones",
    )


def _add_form(parser: ArgumentParser, form: str) -> None:
    parser.add_argument("--to", choices=["cf", "mlcast"], help=form)
    parser.add_argument("--license", metavar="SPDX", help="archives: licence of the data, such as CC-BY-4.0")
    parser.add_argument("--creator", metavar="'NAME <EMAIL>'", help="archives: who makes it")
    parser.add_argument("--identifier", metavar="ID", help="archives: COUNTRY-ENTITY-VARIABLE: FI-FMI-reflectivity")
    parser.add_argument(
        "--created-with", metavar="URL", help="archives: address of the repository, for MLCast's catalogue"
    )


def _add_report(parser: ArgumentParser) -> None:
    parser.add_argument("--report", metavar="HTML", help="page to write: what was run, scores, maps and curves")


def _add_z_r(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--z-r", type=float, nargs=2, metavar=("A", "B"), help="Z = A R^B between reflectivity and rain rate in mm/h"
    )


# Command -> what makes its parser, and what it does.
COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], str]] = {
    "downscale": (_downscale_parser, "make radar fields finer in space and time, or gridded fields in space"),
    "nowcast": (_nowcast_parser, "forecast the next radar fields from the last ones"),
    "query": (_query_parser, "read fields at stations with an arbitrary-scale model"),
    "evaluate": (_evaluate_parser, "compare downscaled fields, members or nowcasts with the truth"),
    "check": (_check_parser, "say what files are and what each command would do with them"),
    "convert": (_convert_parser, "write raw files as NetCDF or as an archive of MLCast"),
    "demo": (_demo_parser, "downscale a synthetic rain event; needs no data and no network"),
    "finetune": (_finetune_parser, "train weights further on files of one's own"),
    "train": (_plain_parser, "train a model: fastds train --help"),
    "study": (_plain_parser, "compare many models on test data: fastds study --help"),
    "models": (_plain_parser, "list the weights in the package: fastds models --help"),
    "export": (_export_parser, "write a network as ONNX or for AOTInductor: fastds export --help"),
    "info": (_plain_parser, "print versions, compilers and devices"),
}

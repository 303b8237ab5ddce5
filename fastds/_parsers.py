# SPDX-License-Identifier: Apache-2.0
"""Argument parsers of the command `fastds` and its subcommands. This module imports neither torch nor xarray."""

from collections.abc import Callable

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from fastds._version import __version__


class _HelpFormatter(DefaultHelpFormatter):
    """Help formatter that appends neither type nor default to a help text, because the texts mention the defaults."""

    def _get_help_string(self, action):
        return action.help or ""


def build_parser() -> ArgumentParser:
    """Build the parser of the command with all its subcommands."""
    parser = ArgumentParser(
        prog="fastds",
        exit_on_error=False,
        allow_abbrev=False,
        version=__version__,
        formatter_class=_HelpFormatter,
        description="Downscale and nowcast weather fields with deep networks.",
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        commands.add_subcommand(name, build_command_parser(name), help=text)
    return parser


def build_command_parser(command: str) -> ArgumentParser:
    """Build the parser of one of COMMANDS.

    The commands train, study, models and info parse their arguments themselves.
    """
    return COMMANDS[command][0]()


def get_spellings(parser: ArgumentParser) -> dict[str, str]:
    """Return the option of the command line for each argument of a parser; positional arguments have their metavar."""
    return {
        action.dest: action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
        for action in parser._actions
    }


def _create_parser(description: str | None = None) -> ArgumentParser:
    # Abbreviated options are not allowed, because a new option could make an abbreviation ambiguous.
    return ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description=description, formatter_class=_HelpFormatter
    )


def _downscale_parser() -> ArgumentParser:
    parser = _create_parser(
        "Downscale a file. Radar fields: to twice the resolution and half the time step. Gridded fields: to the grid "
        "given by --scale, --grid or --like. Relative humidity: with --model wgan-gp-small-x2 or wgan-gp-small-x8. An "
        "existing OUT.nc is replaced."
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="file, folder or 'pattern' with reflectivity, precipitation or gridded fields (time, y, x)",
    )
    parser.add_argument("output", metavar="OUT.nc", help="file to write: NetCDF-4, or Zarr if the name ends in .zarr")
    parser.add_argument(
        "--model",
        help="name of shipped weights, a .safetensors file, or a baseline: trilinear, bicubic or advection for radar "
        "fields; bilinear, bicubic, lanczos or conservative (means over the cells of a finer or coarser grid) for "
        "gridded fields (default: the shipped network that takes IN)",
    )
    parser.add_argument(
        "--var",
        metavar="NAMES",
        help="variable to downscale; gridded fields: also several names such as t2m,r2m, or all for all fields "
        "(default: radar fields: found by its attributes; gridded fields: the variables of the model, or those with "
        "the most dimensions)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        help="radar: side of a tile in input pixels, a multiple of 16 (default: depends on the available memory)",
    )
    parser.add_argument(
        "--halo",
        type=int,
        help="radar: width of the margin around a tile in input pixels, a multiple of 16 (default: the receptive field "
        "of the network)",
    )
    _add_execution(parser)
    parser.add_argument(
        "--time-factor",
        type=int,
        help="radar: factor of the time resolution, 2 or 4; 4 applies the model twice (default: 2)",
    )
    parser.add_argument(
        "--coarsened", choices=["auto", "unknown", "linear_z", "dbz", "plain_dbz", "mean"],
        help="how the values of IN average finer cells; the output is then corrected so that the same average nearly "
        "gives IN. Radar fields: linear_z (mean of Z), dbz (mean of dBZ after raising values below the floor to the "
        "floor), plain_dbz (mean of unchanged dBZ), auto (find it from the values, and do not correct the output if "
        "they show none) or unknown (do not correct the output). Gridded fields: mean or unknown (default: auto for "
        "radar, unknown for gridded fields)",
    )  # fmt: skip
    parser.add_argument(
        "--smooth", action="store_const", const=True,
        help="radar: between input times, write the smooth fields of least squared error (default: their detail and "
        "intensities are adjusted to those at the input times)",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, help="gridded fields: scale factor along both axes, any positive number")
    parser.add_argument(
        "--grid",
        type=float,
        metavar="SPACING",
        help="gridded fields: grid spacing of the output in degrees, or in the units of x and y",
    )
    parser.add_argument("--like", metavar="FILE", help="gridded fields: file with the grid of the output")
    parser.add_argument(
        "--members", type=int, help="radar and humidity: number of ensemble members (default: a single field)"
    )
    parser.add_argument("--seed", type=int, help="random seed of the ensemble (default: 0)")
    parser.add_argument("--level", type=float, help="humidity: value of the vertical coordinate to downscale")
    _add_static(parser)
    _add_dynamics(parser)
    _add_read_options(parser)
    _add_archive(parser)
    _add_dtype(parser)
    _add_z_r(parser)
    _add_format(
        parser, "format of the output: cf, or for radar fields mlcast, an MLCast archive OUT.zarr (default: cf)"
    )
    _add_picture(parser, "input and output")
    parser.add_argument(
        "--truth", metavar="FILE", help="file with the true fine fields: print the scores of the output"
    )
    _add_report(parser)
    return parser


def _nowcast_parser() -> ArgumentParser:
    parser = _create_parser("Forecast radar fields from the last frames of a file. An existing OUT.nc is replaced.")
    parser.add_argument(
        "input", metavar="IN", help="file, folder or 'pattern' with reflectivity or precipitation (time, y, x)"
    )
    parser.add_argument("output", metavar="OUT.nc", help="file to write: NetCDF-4, or Zarr if the name ends in .zarr")
    parser.add_argument(
        "--model",
        help="name of shipped weights, a .safetensors file, or a baseline: persistence, blurred-persistence, "
        "extrapolation or pysteps (default: the shipped nowcasting network; extrapolation if no network is shipped)",
    )
    parser.add_argument("--steps", type=int, help="number of forecast frames (default: 12)")
    parser.add_argument(
        "--lead", metavar="DURATION", help="lead time of the last frame, such as 60min, instead of --steps"
    )
    parser.add_argument(
        "--start", metavar="TIME", help="initialization time, such as 2010-08-26T03:00 (default: the last time of IN)"
    )
    parser.add_argument(
        "--every",
        metavar="STEP",
        help="compute hindcasts at this interval, such as 30min, from --start or the first possible time on",
    )
    parser.add_argument(
        "--interval",
        metavar="DURATION",
        help="time step of the forecast (default: the shortest that suits the data and the model)",
    )
    parser.add_argument(
        "--coarsen",
        type=int,
        metavar="N",
        help="average the output quantity over N x N cells before the forecast (default: depends on the grid spacing "
        "of the training)",
    )
    parser.add_argument(
        "--block",
        type=int,
        metavar="N",
        help="restart the network from its own forecasts after N frames (default: no restart)",
    )
    parser.add_argument(
        "--smooth", action="store_true",
        help="write the smooth forecast of least squared error, for rain rates the expected rain rate (default: its "
        "intensities are matched to those of the last frame)",
    )  # fmt: skip
    parser.add_argument(
        "--members",
        type=int,
        metavar="N",
        help="number of ensemble members, written along the dimension realization (default: a single forecast)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="random seed of the ensemble (default: 0); member k does not depend on the number of members",
    )
    parser.add_argument(
        "--probability", metavar="RATES",
        help="rain rates in mm/h, such as 1,5,10: write the exceedance probability of each rate in an ensemble of "
        "--members members (default: 24) instead of the members",
    )  # fmt: skip
    parser.add_argument(
        "--quantity",
        choices=["rate", "reflectivity"],
        default="rate",
        help="quantity of the output: rate in mm h-1 or reflectivity in dBZ (default: rate)",
    )
    parser.add_argument("--var", help="variable to forecast (default: found by its attributes)")
    _add_execution(parser)
    _add_read_options(parser, start=False)
    _add_archive(parser)
    _add_dtype(parser)
    _add_z_r(parser)
    _add_format(
        parser,
        "format of the output: cf, or mlcast, an MLCast archive OUT.zarr with a single forecast or hindcasts of one "
        "step (default: cf)",
    )
    _add_picture(
        parser,
        "observed fields, forecast and their difference, or with --probability the probabilities by lead time and rate",
    )
    parser.add_argument(
        "--truth",
        metavar="FILE",
        help="file with the observed fields of the forecast times (hindcasts: IN): print the scores by lead time",
    )
    _add_all_scores(parser)
    _add_report(parser)
    return parser


def _watch_parser() -> ArgumentParser:
    parser = _create_parser(
        "Compute each new file of a folder in one process that keeps the model loaded: fastds watch IN_FOLDER "
        "OUT_FOLDER [options] -- nowcast [options of nowcast], or -- downscale [options of downscale]. A nowcast is "
        "computed from the newest files, a downscaled field from each file. A restarted process continues."
    )
    parser.add_argument("input", metavar="IN_FOLDER", help="folder in which files arrive; its folders are not searched")
    parser.add_argument(
        "output",
        metavar="OUT_FOLDER",
        help="folder of the outputs and of the state, fastds-watch.json; made if missing",
    )
    parser.add_argument(
        "--name",
        metavar="FORMAT",
        default="{stem}.nc",
        help="names of the outputs, such as '{time:%Y%m%dT%H%M}_nowcast.nc', from the last time and the stem of the "
        "newest input (default: {stem}.nc)",
    )
    parser.add_argument(
        "--pattern", metavar="PATTERN", default="*", help="names of the inputs, such as '*.h5' (default: *)"
    )
    parser.add_argument(
        "--poll",
        type=float,
        metavar="SECONDS",
        help="look for files at this interval, also on network file systems (default: be notified by the operating "
        "system if the extra `watch` is installed, and look every 10 s; else look every 5 s)",
    )
    parser.add_argument(
        "--settle",
        type=float,
        metavar="SECONDS",
        help="time without a change of size and modification time after which a file is read; 0 for files that appear "
        "complete, by renaming (default: 2)",
    )
    parser.add_argument(
        "--late",
        choices=["compute", "skip"],
        help="files that are older than the newest output: compute or skip their outputs (default: compute for "
        "downscale, skip for nowcast)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="nowcast: read the files of the newest N times, if there are N (default: those that the model needs)",
    )
    parser.add_argument(
        "--keep",
        metavar="DURATION",
        help="remove outputs that are older than the newest output by more than this, such as 2h (default: keep all)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="log and count the outputs that are complete later than this after the arrival of their files",
    )
    parser.add_argument("--once", action="store_true", help="compute the files that are there, and end")
    parser.add_argument("--log", metavar="FILE", help="file to which JSON lines are appended (default: standard error)")
    parser.add_argument(
        "--heartbeat", metavar="FILE", help="file that is touched every 5 s, also while waiting, but not while hung"
    )
    parser.add_argument(
        "--hang",
        type=float,
        metavar="SECONDS",
        help="longest computation of one output; after it, the heartbeat stops (default: 300)",
    )
    parser.add_argument(
        "--options",
        metavar="FILE",
        help="text file with further options of the command after --; SIGHUP reads it and the weights again",
    )
    return parser


def _query_parser() -> ArgumentParser:
    parser = _create_parser(
        "Write the values of gridded fields at points, computed by a model and by bilinear interpolation."
    )
    parser.add_argument(
        "input", metavar="IN.nc", help="file with the variables of the model over latitude and longitude"
    )
    parser.add_argument(
        "--points",
        metavar="CSV",
        required=True,
        help="points: columns lat and lon in degrees; other columns are copied to the output",
    )
    parser.add_argument("--output", "--out", metavar="CSV", required=True, help="CSV file to write")
    parser.add_argument(
        "--model", help="name or file of an arbitrary-scale model (default: inr-small if it takes IN, else inr-any)"
    )
    parser.add_argument(
        "--outside",
        choices=["error", "nan", "clamp"],
        default="error",
        help="points outside the fields: stop, write NaN, or move the points to the edge (default: error)",
    )
    parser.add_argument(
        "--var", metavar="NAMES",
        help="variable to read, several names such as t2m,r2m, or all for all fields (default: all variables of the "
        "model)",
    )  # fmt: skip
    parser.add_argument(
        "--height", metavar="COLUMN",
        help="column of the points with their heights in metres: correct temperatures near the surface for the height "
        "of the model surface, which is read from --static or from IN (default: no correction)",
    )  # fmt: skip
    parser.add_argument(
        "--lapse-rate", metavar="RATE",
        help="with --height: decrease of temperature with height in K/km; or levels, fitted to the pressure levels of "
        "IN; or neighbourhood, fitted to the cells around each point (default: 6.5)",
    )  # fmt: skip
    _add_execution(parser)
    _add_static(parser)
    _add_read_options(parser)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = _create_parser(
        "Print the scores of PRED and of the baselines. PRED has downscaled radar or gridded fields, an ensemble (with "
        "a dimension realization), forecasts, or probabilities of exceedance; the kind is read from PRED."
    )
    parser.add_argument(
        "prediction", metavar="PRED", help="downscaled file, or forecasts or probabilities of fastds nowcast"
    )
    parser.add_argument(
        "truth",
        metavar="TRUTH",
        help="file with the true fields on the grid and at the times of PRED; for forecasts, the observed fields",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="file from which PRED was computed (default: radar: TRUTH averaged over 2 x 2 pixels; gridded fields: "
        "TRUTH averaged by the scale factor in PRED; forecasts: TRUTH)",
    )
    parser.add_argument(
        "--var",
        metavar="NAMES",
        help="variable to compare; gridded fields: also several names such as t2m,r2m (default: found by its "
        "attributes; gridded fields: all variables)",
    )
    _add_read_options(parser)
    _add_z_r(parser)
    parser.add_argument("--csv", metavar="FILE", help="CSV file to which all scores are also written")
    _add_all_scores(parser)
    _add_workers(parser, "archives")
    _add_report(parser)
    return parser


def _check_parser() -> ArgumentParser:
    parser = _create_parser(
        "Print format and contents of files, and the commands that accept them or the reasons why not. The exit "
        "status is 0 if at least one command accepts each file, else 2.",
    )
    parser.add_argument(
        "inputs",
        metavar="FILE",
        nargs="+",
        help="files, folders or 'patterns' of any format; each is checked separately",
    )
    parser.add_argument("--var", help="variable to check (default: found by its attributes)")
    parser.add_argument(
        "--model", action="append", metavar="WEIGHTS",
        help="weights, or a folder of weights, to check in addition to the shipped weights; can be repeated (default: "
        "*.safetensors in the current folder and best.safetensors of the training runs in it)",
    )  # fmt: skip
    _add_read_options(parser)
    return parser


def _convert_parser() -> ArgumentParser:
    parser = _create_parser(
        "Convert files of any format to CF NetCDF (OUT.nc) or to an MLCast archive (OUT.zarr).",
    )
    parser.add_argument("inputs", metavar="IN", nargs="+", help="files of one format, a folder, or a 'pattern'")
    parser.add_argument("output", metavar="OUT", help="OUT.nc or OUT.zarr; an existing file is replaced")
    parser.add_argument("--var", help="variable to write to an MLCast archive (default: found by its attributes)")
    _add_format(parser, "format of the output: cf or mlcast (default: mlcast for OUT.zarr, else cf)")
    _add_read_options(parser)
    return parser


def _finetune_parser() -> ArgumentParser:
    parser = _create_parser(
        "Fine-tune weights on your files. The last part of each file is held out; the scores on the held-out parts "
        "before and after are printed."
    )
    parser.add_argument("model", metavar="MODEL", help="name of shipped weights or a .safetensors file")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="NetCDF file, or folder of NetCDF files")
    parser.add_argument(
        "--output",
        metavar="DIR",
        default="finetuned",
        help="folder of the run; an existing run is resumed (default: finetuned)",
    )
    parser.add_argument("--max-minutes", type=float, help="length of the training in minutes (default: 30)")
    parser.add_argument("--max-steps", type=int, help="number of optimizer steps (default: limited by the time only)")
    parser.add_argument("--learning-rate", type=float, help="highest learning rate (default: 5e-4)")
    parser.add_argument("--var", help="variable to train on (default: found by its attributes)")
    _add_static(parser)
    _add_dynamics(parser)
    _add_device(parser)
    _add_read_options(parser)
    return parser


def _demo_parser() -> ArgumentParser:
    parser = _create_parser(
        "Downscale a synthetic rain event and compare the result with the truth. No data are needed."
    )
    parser.add_argument(
        "--output",
        "--out",
        metavar="DIR",
        default="fastds-demo",
        help="folder for the files and the picture (default: fastds-demo)",
    )
    parser.add_argument("--model", help="name of shipped weights or a .safetensors file (default: fczsm-small)")
    parser.add_argument("--seed", type=int, help="random seed of the rain event")
    parser.add_argument("--size", type=int, help="side of the fine grid in pixels, a multiple of 32")
    _add_device(parser)
    return parser


def _export_parser() -> ArgumentParser:
    parser = _create_parser(
        "Export a network to ONNX or to a package of AOTInductor, and compare the file with the network."
    )
    parser.prog = "fastds export"
    parser.add_argument("model", metavar="MODEL", help="name of shipped weights or a .safetensors file")
    parser.add_argument("output", metavar="OUT", help="file to write, .onnx or .pt2; an existing file is replaced")
    parser.add_argument(
        "--frames",
        type=int,
        help="number of input frames (default: as in the model card, else 2 for fczsm, 5 for nowcasts, 8 for humidity)",
    )
    parser.add_argument("--steps", type=int, help="number of forecast frames of a nowcasting network (default: 12)")
    return parser


def _add_execution(parser: ArgumentParser) -> None:
    _add_device(parser)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="precision inside the network (default: bf16 on a GPU, else fp32)"
    )
    parser.add_argument(
        "--graph",
        choices=["auto", "never"],
        help="auto: replay the network from a graph when the shapes of its inputs repeat, which saves the time between "
        "kernels (default: auto)",
    )


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="number of CPU threads (default: torch's setting)")
    parser.add_argument(
        "--device",
        metavar="{auto,cpu,cuda}",
        default="auto",
        help="device of the network; auto selects a GPU if there is one (default: auto)",
    )


def _add_dynamics(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dynamics", metavar="VARIABLES",
        help="radar: additional input variables of a network such as fczsm-d, if their names or units in the files "
        "differ from the model card: probability=prob,measurement_height=height, or variables of the files with their "
        "ranges as in training: '{prob: [0, 100], height: [0, 20000]}' (default: the names and units in the model "
        "card)",
    )  # fmt: skip


def _add_static(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--static", action="append", metavar="FILE[:VAR]",
        help="static map such as orography, on any grid, for a model that reads static maps; repeat the option for "
        "further maps",
    )  # fmt: skip


def _add_read_options(parser: ArgumentParser, start: bool = True) -> None:
    parser.add_argument(
        "--missing", type=float, metavar="VALUE", help="value that marks missing data, if the file does not declare it"
    )
    parser.add_argument(
        "--units", metavar="UNITS", help="units of the variable, if the file has no units or wrong units"
    )
    parser.add_argument(
        "--array", metavar="LAYOUT",
        help="layout of raw binary files (.bin, .dat, .raw), KEY=VALUE with spaces in between, such as "
        "'shape=12,500,500 dtype=<f4 bounds=45,55,5,15 units=dBZ time=2024-01-01T00:00 step=5min'; keys: shape, dtype, "
        "offset, grid or bounds, missing, scale_factor, add_offset, units, name, standard_name, no_echo, time, step, "
        "order",
    )  # fmt: skip
    if start:
        parser.add_argument(
            "--start",
            metavar="TIME",
            help="first time to read, such as 2010-08-26T03:00 (default: the first in the file)",
        )
    parser.add_argument(
        "--stop", metavar="TIME", help="last time to read, such as 2010-08-26T06:00 (default: the last in the file)"
    )


def _add_workers(parser: ArgumentParser, where: str) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help=f"{where}: number of worker processes")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="archives: address or file of a dask scheduler whose workers compute the result",
    )


def _add_archive(parser: ArgumentParser) -> None:
    _add_workers(parser, "archives, OUT.zarr")
    parser.add_argument(
        "--append",
        action="store_true",
        help="archives: compute only the files that were added since OUT.zarr was written",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="archives: skip files and times that fail, and list them"
    )
    parser.add_argument(
        "--chunks",
        metavar="DIM=N,...",
        help="archives: lengths of the Zarr chunks, such as time=365,latitude=100,longitude=100 (default: all columns "
        "and rows up to 2048, and times up to 8 MiB)",
    )
    parser.add_argument(
        "--shards", metavar="DIM=N,...", help="archives: lengths of the shards of Zarr, multiples of the chunks"
    )


def _add_dtype(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=["input", "float32"],
        help="type of the values in OUT.nc; input: packed integers if IN has packed integers (default: input)",
    )


def _add_format(parser: ArgumentParser, text: str) -> None:
    parser.add_argument("--to", choices=["cf", "mlcast"], help=text)
    parser.add_argument("--license", metavar="SPDX", help="MLCast archives: licence of the data, such as CC-BY-4.0")
    parser.add_argument("--creator", metavar="'NAME <EMAIL>'", help="MLCast archives: name and address of the creator")
    parser.add_argument(
        "--identifier",
        metavar="ID",
        help="MLCast archives: identifier COUNTRY-ENTITY-VARIABLE, such as FI-FMI-reflectivity",
    )
    parser.add_argument(
        "--created-with",
        metavar="URL",
        help="MLCast archives: address of a repository, which MLCast's catalogue requires",
    )


def _add_all_scores(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--all-scores", action="store_true", help="print all scores (default: of forecasts, the main scores)"
    )


def _add_picture(parser: ArgumentParser, content: str) -> None:
    parser.add_argument(
        "--picture", metavar="PICTURE",
        help=f"picture to write, .png, .svg or .pdf: {content}; or animation, .gif or .mp4, with one frame of the "
        "output for each time",
    )  # fmt: skip


def _add_report(parser: ArgumentParser) -> None:
    parser.add_argument("--report", metavar="HTML", help="HTML report to write: settings, scores, maps and curves")


def _add_z_r(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--z-r",
        type=float,
        nargs=2,
        metavar=("A", "B"),
        help="Z-R relation Z = A R^B between reflectivity Z in mm^6 m^-3 and rain rate R in mm/h "
        "(default: that of the file, else 200 1.6)",
    )


# Command -> function that builds its parser, and its description.
COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], str]] = {
    "downscale": (_downscale_parser, "downscale radar fields in space and time, or gridded fields in space"),
    "nowcast": (_nowcast_parser, "forecast radar fields from the last frames"),
    "watch": (_watch_parser, "nowcast or downscale each new file of a folder, in one process"),
    "query": (_query_parser, "interpolate gridded fields to points with an arbitrary-scale model"),
    "evaluate": (_evaluate_parser, "verify downscaled fields, ensembles or nowcasts against the truth"),
    "check": (_check_parser, "print contents of files and the commands that accept them"),
    "convert": (_convert_parser, "convert files to CF NetCDF or to an MLCast archive"),
    "demo": (_demo_parser, "downscale a synthetic rain event; needs no data and no network"),
    "finetune": (_finetune_parser, "fine-tune weights on your files"),
    "train": (_create_parser, "train a model: fastds train --help"),
    "study": (_create_parser, "compare many models on test data: fastds study --help"),
    "models": (_create_parser, "list the shipped weights: fastds models --help"),
    "export": (_export_parser, "export a network to ONNX or AOTInductor: fastds export --help"),
    "info": (_create_parser, "print versions, compiler, instruction sets and devices"),
}

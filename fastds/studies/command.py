# SPDX-License-Identifier: Apache-2.0
"""The command `fastds study`: a table of the studies and its dispatch to their modules."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import sys

from fastds._suggestions import suggest_and_list
from fastds.training.command import get_option_spellings, run_command

_FIELDS = "fastds.studies.fields.study"
# Study -> (module with parse_arguments(arguments) and study(config), description).
STUDIES = {
    "radar": ("fastds.studies.radar", "errors of a model and of baselines on the test radars"),
    "nowcast": ("fastds.studies.nowcast", "scores of a nowcasting model and of baselines on the test radars"),
    "humidity": ("fastds.studies.humidity", "generators, ablations and baselines on the test regions of a training"),
    "any-variable": ("fastds.studies.any_variable", "gains of a network of any variable over interpolation"),
    "nowcast-errors": (
        "fastds.studies.fit_nowcast_errors",
        "the fit of the error model that members of nowcasts are drawn from",
    ),
    "downscaling-errors": (
        "fastds.studies.fit_downscaling_errors",
        "the fit of the error model that members of downscaled fields are drawn from",
    ),
    "domain": (
        "fastds.studies.domain.study",
        "correlation of a network's error with the out-of-distribution score of its inputs",
    ),
    "input-ranges": ("fastds.studies.domain.ranges", "the input ranges of a model card"),
    "fczsm": ("fastds.studies.fczsm.study", "the tables and figures of the FC-ZSM paper, on radar files of your own"),
    "db-rnn": ("fastds.studies.db_rnn.study", "the tables and figures of the DB-RNN paper, on radar files of your own"),
    "wgan-gp": ("fastds.studies.wgan_gp.study", "the tables and figures of the humidity WGAN-GP paper, on your fields"),
    "inr": ("fastds.studies.inr.study", "arbitrary-scale networks of the INR paper and other methods, on your fields"),
    "fields": (_FIELDS, "arbitrary-scale networks and baselines, by a configuration of your own: --config FILE"),
    "fields-500hPa": (_FIELDS, "the same on ERA5 fields of 500 hPa"),
    "fields-eraint": (_FIELDS, "the same on ERA-Interim fields of 500 hPa"),
    "t2m-uk": (_FIELDS, "the same on ERA5 temperatures of the British Isles"),
}


@dataclasses.dataclass
class Files:
    """The test data.

    Args:
        path: folder of the files.
    """

    path: str


def find_configurations() -> dict[str, pathlib.Path]:
    """Return the study configurations that are shipped with the package, name -> YAML file."""
    return {path.stem: path for path in sorted((pathlib.Path(__file__).parent / "configs").glob("*.yaml"))}


def format_overview() -> str:
    """Format the text of `fastds study --help`."""
    lines = ["usage: fastds study NAME --data.path PATH ...", "", "Options of a study: fastds study NAME --help.", ""]
    return "\n".join(lines + [f"  {name:18} {about}" for name, (_, about) in STUDIES.items()])


def explain_unknown_study(name: str) -> str | None:
    """Return the error message for an unknown study, or None if the study exists."""
    if name in STUDIES:
        return None
    return f"fastds study: there is no study {name!r}{suggest_and_list(name, STUDIES)}"


def main(arguments: list[str] | None = None) -> int:
    """Run `fastds study NAME ...`, which prints the tables of a study.

    An error of the user is reported on one line and gives the exit status 2.

    Args:
        arguments: command line without the name of the program; None reads the arguments of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["-h"], ["--help"]):
        print(format_overview())
        return 0
    name = arguments.pop(0) if arguments else ""
    arguments = ["--plan=true" if word == "--plan" else word for word in arguments]
    unknown = explain_unknown_study(name)
    if unknown is not None:
        print(unknown, file=sys.stderr)
        return 2
    shipped = ["--config", str(find_configurations()[name])] if name in find_configurations() else []

    names: dict[str, str] = {}  # filled in study(), so that a failing import is reported like other errors

    def study() -> pathlib.Path | None:
        module = importlib.import_module(STUDIES[name][0])
        names.update(get_option_spellings(module.StudyConfig))
        return module.study(module.parse_arguments([*shipped, *arguments]))

    return run_command(f"fastds study {name}", study, names)

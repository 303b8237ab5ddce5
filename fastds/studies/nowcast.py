# SPDX-License-Identifier: Apache-2.0
"""Scores of a nowcasting model on the test radars: `fastds study nowcast --data.path FOLDER`."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from fastds import models
from fastds._options import OptionError, spell_name, spell_value
from fastds.data import RAIN_THRESHOLDS, open_dataset
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.tables import format_count
from fastds.models.card import Network
from fastds.report import check_report
from fastds.studies.command import Files
from fastds.studies.report import write_rows, write_study
from fastds.tasks.nowcast.evaluation import evaluate
from fastds.tasks.nowcast.report import make_lead_charts
from fastds.tasks.nowcast.run import nowcast
from fastds.tasks.nowcast.scores import NowcastTable, compute_csi_difference
from fastds.training.command import read_command_line

# Held-out radars: file -> frames from one initialization time to the next.
TEST_STARTS = {
    "radar_mch_20160711_5min.nc": 3,
    "radar_opera_20180824_15min.nc": 1,
    "radar_bom_melbourne_20180616_6min.nc": 2,
}
RATES = (0.5, 2.0, 5.0)
REFERENCES = ("extrapolation", "blurred-persistence", "persistence")


def score_file(
    model: Network,
    folder: str | os.PathLike,
    file: str,
    steps: int = 12,
    starts: int | None = None,
    smooth: bool = False,
    baselines: Sequence[str] | None = None,
) -> NowcastTable:
    """Score the forecasts of a model and of the baselines on a test file.

    Args:
        model: network with a model card.
        folder: folder of the test files.
        file: name of a file of TEST_STARTS.
        steps: number of forecast frames; fewer if the file is shorter.
        starts: largest number of initialization times; None uses all.
        smooth: see StudyConfig.
        baselines: names of baselines, see fastds.tasks.nowcast.evaluation.evaluate.
    """
    every = TEST_STARTS[file]
    with open_dataset(pathlib.Path(folder) / file) as dataset:
        dataset = dataset.load()
    known = model.card.input_steps
    steps = min(steps, dataset.sizes["time"] - known)
    last = dataset.sizes["time"] - steps
    if starts is not None:
        last = min(last, known + (starts - 1) * every)
    minutes = every * float((dataset.time[1] - dataset.time[0]) / np.timedelta64(1, "m"))
    # the scores are those of reflectivity, whose smooth forecast is not that of the rain rate
    options: dict[str, Any] = {"steps": steps, "every": f"{minutes:g}min", "smooth": smooth, "quantity": "reflectivity"}
    return evaluate(nowcast(model, dataset.isel(time=slice(0, last)), **options), dataset, baselines=baselines)


def compare_with_reference(table: NowcastTable, reference: str = "extrapolation") -> dict[str, np.ndarray]:
    """Compare the last method of a table with a reference by lead time.

    Returns:
        A dictionary of arrays (n,): "mse" is the squared error of the method divided by that of the reference, and
            "csi R" for R in RATES is the CSI at R mm/h of the method minus that of the reference.
    """
    model, other = table.rows[list(table.rows)[-1]], table.rows[reference]
    gains = {f"csi {rate:g}": (model["csi"] - other["csi"])[:, RAIN_THRESHOLDS.index(rate)] for rate in RATES}
    return {"mse": model["mse"] / other["mse"], **gains}


def summarize(table: NowcastTable) -> dict[str, float]:
    """Summarize scores for a model card: means over lead times, and the worst lead time.

    The means are those of the model and of the baselines in REFERENCES.
    """
    out: dict[str, float] = {"starts": table.starts}
    name = list(table.rows)[-1]
    for method in (name, *REFERENCES):
        suffix = "" if method == name else f" of {method}"
        out[f"mse{suffix}"] = round(float(table.means(method, "mse")), 2)
        for rate in RATES:
            out[f"csi {rate:g}{suffix}"] = round(float(table.means(method, "csi")[RAIN_THRESHOLDS.index(rate)]), 4)
    worst = compare_with_reference(table)
    out["mse over extrapolation's, worst lead"] = round(float(np.nanmax(worst["mse"])), 3)
    for rate in RATES:
        out[f"csi {rate:g} less extrapolation's, worst lead"] = round(float(np.nanmin(worst[f"csi {rate:g}"])), 4)
    return out


@dataclasses.dataclass
class StudyConfig:
    """Comparison of a model with baselines on every test radar: scores by lead time and their means.

    Args:
        data: folder with the radar files.
        model: name of a shipped model or path of a safetensors file.
        starts: largest number of forecasts of a file.
        smooth: score the smooth forecasts of least squared error, whose intensities are not matched to the last frame.
        output: file to which the weights are saved with the scores in their model card; None saves nothing.
        against: another model, with which CSI is compared by initialization time instead of the baselines.
        threads: number of threads of torch; None leaves the number unchanged.
        report: HTML page for the scores by lead time of every file; None writes none. Excludes against.
        members: number of ensemble members. If it is given, ensembles are compared with methods of pysteps, and output
            is the folder that stores the scores of every start (default study-nowcast).
        mlcast: weights of MLCast's network, whose members are also compared; None leaves it out.
        window: for ensembles, side in pixels of the square with the largest echo area, in which forecasts are made.
        leaderboard: file of leaderboard rows (see docs/models/leaderboard.md) to which the scores are added; None adds
            none. Excludes against and members.
    """

    data: Files
    model: str = "nowcast-small"
    starts: int | None = None
    smooth: bool = False
    output: str | None = None
    against: str | None = None
    threads: int | None = None
    report: str | None = None
    members: int | None = None
    mlcast: str | None = None
    window: int = 256
    leaderboard: str | None = None


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study nowcast` into a StudyConfig."""
    return read_command_line(StudyConfig, arguments, "fastds study nowcast", "Scores on the test radars.", {})


def study(config: StudyConfig) -> str | None:
    """Run `fastds study nowcast`: print the scores, write config.report and return config.output."""
    if config.report is not None:
        if config.against is not None:
            raise OptionError("report", f"must be left out with {spell_value('against', config.against)}")
        check_report(config.report)
    if config.members is not None:
        return _compare_ensembles(config)
    if config.mlcast is not None:
        raise OptionError(
            "mlcast", f"must be left out, got {config.mlcast}; only {spell_name('members')}=N are compared with it"
        )
    if config.leaderboard is not None and config.against is not None:
        raise OptionError("leaderboard", f"must be left out with {spell_value('against', config.against)}")
    scores: dict[str, NowcastTable] = {}
    with inference_context(None, resolve_execution(None, config.threads)):
        options = config.starts, config.smooth, config.output, config.against, scores
        results = print_scores(config.data.path, config.model, *options)
    if config.leaderboard is not None:
        write_rows(config, models.load_card(config.model).name, make_leaderboard_rows(results))
    if config.report is not None:
        _write_report(config, scores)
    return config.output


def make_leaderboard_rows(results: dict[str, dict]) -> list[dict]:
    """Make two leaderboard rows for each file, with means over lead times.

    One is the squared error divided by that of extrapolation, the other the difference of CSI at 2 mm/h from
    extrapolation.
    """
    rows = []
    for file, found in results.items():
        shared = {"task": "nowcast", "data": file, "cases": found["starts"]}
        mse = {"score": "squared error in dBZ over extrapolation's", "better": "lower"}
        csi = {"score": "CSI at 2 mm/h less extrapolation's", "better": "higher"}
        rows.append(shared | mse | {"value": round(found["mse"] / found["mse of extrapolation"], 4)})
        rows.append(shared | csi | {"value": round(found["csi 2"] - found["csi 2 of extrapolation"], 4)})
    return rows


def _compare_ensembles(config: StudyConfig) -> str:
    if cast(int, config.members) < 2 or config.window < 64:
        raise OptionError("members", f"must be at least 2 and window 64, got {config.members} and {config.window}")
    left_out = {"against": config.against is not None, "leaderboard": config.leaderboard is not None}
    for name, given in (left_out | {"smooth": config.smooth}).items():
        if given:
            raise OptionError(name, f"must be left out with {spell_value('members', config.members)}")
    from fastds.studies.nowcast_ensembles import compare

    output = config.output or "study-nowcast"
    with inference_context(None, resolve_execution(None, config.threads)):
        sizes = cast(int, config.members), config.starts, config.window
        tables = compare(config.data.path, config.model, output, *sizes, config.mlcast)
    for table in tables:
        print(f"\n{table.to_markdown()}")
    if config.report is not None:
        write_study("Ensembles on the test radars", config, [table.to_rich() for table in tables])
    return output


def _write_report(config: StudyConfig, scores: dict[str, NowcastTable]) -> None:
    tables, notes, charts = [], [], []
    for file, found in scores.items():
        for rich in found.tables():
            rich.title = f"{file}: {rich.title}"
            tables.append(rich)
        notes += [f"{file}: {sentence}" for sentence in found.list_notes()]
        charts += [dataclasses.replace(chart, title=f"{file}: {chart.title}") for chart in make_lead_charts(found)]
    write_study("Scores on the test radars", config, tables, notes, charts)


def print_scores(
    data: str,
    model: str = "nowcast-small",
    starts: int | None = None,
    smooth: bool = False,
    output: str | None = None,
    against: str | None = None,
    scores: dict[str, NowcastTable] | None = None,
) -> dict:
    """Print the scores of a model on all test files.

    Args:
        data: folder with the radar files.
        model: see StudyConfig.
        starts: see StudyConfig.
        smooth: see StudyConfig.
        output: see StudyConfig.
        against: see StudyConfig.
        scores: dict to which the tables are added, file -> NowcastTable.

    Returns:
        {file: summary}; empty with `against`.
    """
    network: Network = models.load(model)
    results: dict[str, dict[str, float]] = {}
    other = None if against is None else models.load(against)
    for file in TEST_STARTS:
        if other is not None:
            _print_difference(network, other, data, file, starts=starts, smooth=smooth)
            continue
        found = score_file(network, data, file, starts=starts, smooth=smooth)
        results[file] = summarize(found)
        if scores is not None:
            scores[file] = found
        print(
            f"{file}: {format_count(found.starts, 'start')}, minutes "
            + " ".join(f"{lead / 60:g}" for lead in found.leads)
        )
        for reference in REFERENCES:
            for name, values in compare_with_reference(found, reference).items():
                print(f"  {name:8s} vs {reference:20s}" + " ".join(f"{v:6.3f}" for v in values), flush=True)
    if output is not None:
        network.card.metrics["test"] = results
        models.save(network, output)
    return results


def _print_difference(ours, theirs, data: str, file: str, **options) -> None:
    """Print the mean CSI of two models over lead times, and the difference with its interval over start times."""
    tables = [score_file(network, data, file, baselines=(), **options) for network in (ours, theirs)]
    names = [next(iter(scores.rows)) for scores in tables]
    mse, csi = (
        [scores.means(name, score) for scores, name in zip(tables, names, strict=True)] for score in ("mse", "csi")
    )
    first, second = (scores.counts[name] for scores, name in zip(tables, names, strict=True))
    gain = compute_csi_difference(first, second)
    print(f"{file}: {format_count(tables[0].starts, 'start')}, mse {mse[0]:.2f} and {mse[1]:.2f}")
    for k, rate in enumerate(RAIN_THRESHOLDS):
        values = (csi[0][k], csi[1][k], *gain[:, k])
        print(
            "  csi {:4g} mm/h {:.4f} and {:.4f}, difference {:+.4f} [{:+.4f}, {:+.4f}]".format(rate, *values),
            flush=True,
        )

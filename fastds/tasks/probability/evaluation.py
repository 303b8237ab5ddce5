# SPDX-License-Identifier: Apache-2.0
"""Verification of exceedance probabilities by threshold and lead time."""

from __future__ import annotations

import os

import xarray as xr

from fastds.data.grid.times import format_time
from fastds.data.radar.reflectivity import find_z_r, to_reflectivity
from fastds.inference.scoring import ScoreItems, ScoreSums, sum_scores
from fastds.inference.tables import format_count
from fastds.tasks.nowcast.evaluation import check_grid
from fastds.tasks.nowcast.starts import Timeline, read_frames_at
from fastds.tasks.probability.forecasts import ProbabilityForecasts
from fastds.tasks.probability.scores import ComparedProbabilities, ProbabilitySums, ProbabilityTable
from fastds.training.radar_files import open_reflectivity


class EvaluationItems:
    """Initialization times to score, in the form that fastds.inference.scoring needs.

    The arguments are those of evaluate.
    """

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        *,
        observed: xr.Dataset | None = None,
        var: str | None = None,
        z_r: tuple[float, float] | None = None,
    ):
        self.forecasts = forecasts = ProbabilityForecasts(prediction)
        # averages over cells and thresholds in mm/h are then those of the observed rain
        self.rain_z_r = forecasts.z_r if forecasts.unit == "mm/h" else None
        self.source = source = open_reflectivity(truth, var, z_r, "TRUTH", rain_z_r=self.rain_z_r)
        self.line = Timeline.of(source)
        self.z_r, self.origin = self._find_z_r(z_r)
        check_grid(forecasts.variable, forecasts.cells.factor, source, "TRUTH")

    def _find_z_r(self, given: tuple[float, float] | None) -> tuple[tuple[float, float], str]:
        """Return the Z-R relation of the observations, and its origin.

        For observed rain, it is that by which the rain was converted to reflectivity, so that thresholds in mm/h are
        compared with the rain itself.
        """
        source, forecasts = self.source, self.forecasts
        if source.z_r is not None:
            return source.z_r, "the truth is rain"
        if given is None and forecasts.z_r_origin != "the default":
            return forecasts.z_r, "that of the forecast"
        return find_z_r(source.dataset, source.raw, given)

    def __len__(self) -> int:
        return len(self.forecasts.starts)

    def read_item(self, number: int) -> ComparedProbabilities | None:
        """Read probabilities and observed fields of an initialization time; None if no lead time has observations."""
        forecasts = self.forecasts
        after = read_frames_at(self.source, self.line, forecasts.starts[number], forecasts.leads, forecasts.cells)
        if all(frame is None for frame in after):
            return None
        return ComparedProbabilities(number, forecasts.read(number), after)

    def score(self, item: ComparedProbabilities) -> ScoreSums:
        """Compute the tallies of an initialization time."""
        forecasts = self.forecasts
        sums = ProbabilitySums(len(forecasts.thresholds), len(forecasts.leads))
        sums.starts = 1
        cells, no_echo = forecasts.cells, self.source.no_echo
        no_echo = max(no_echo, cells.floor) if cells.factor > 1 else no_echo
        for lead, z in enumerate(item.after):
            if z is None:
                sums.absent += 1
                continue
            events = forecasts.find_events(z, self.z_r, no_echo)
            sums.add(item.number, len(self), lead, item.probabilities[:, lead], events, z)
        return ScoreSums(probabilities=sums)


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    observed: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
    report: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    score_items: ScoreItems | None = None,
) -> ProbabilityTable:
    """Compare exceedance probabilities with the observed fields at their valid times.

    An event is a cell whose observed rain rate or reflectivity reaches the threshold. Observed reflectivity is
    converted by the Z-R relation of the forecast (of the truth, or `z_r`, if the forecast declares none); observed rain
    is compared as it is. Cells that are missing in the probabilities or in the truth are left out.

    Args:
        prediction: probabilities, see ProbabilityForecasts.
        truth: observed reflectivity or rain on the grid of the forecast's input.
        observed: observed fields before the forecast, for the maps of the report; None: truth.
        var: name of the variable in truth.
        z_r: a and b of Z = a R^b for truth.
        progress: show a progress bar.
        report: HTML file with scores, diagrams and maps; None: no report.
        model: name or file of the weights whose card is in the report; None: the model that the prediction names.
        score_items: function that computes the scores in other processes, see fastds.inference.scoring.

    Returns:
        Scores by threshold and lead time.

    Raises:
        ValueError: thresholds, units, grids or times that do not fit, or probabilities that are not from 0 to 1.
    """
    scoring = EvaluationItems(prediction, truth, var=var, z_r=z_r)
    forecasts, page = scoring.forecasts, None
    if report is not None:
        from fastds.tasks.probability.report import EvaluationReport

        before = scoring.source
        if observed is not None:
            before = to_reflectivity(observed, var, z_r=z_r)
            if scoring.source.z_r is not None:
                before = before.replace_z_r(scoring.source.z_r, "that of the truth")
        page = EvaluationReport(report, forecasts, scoring.source, before, model)
    sums = sum_scores(scoring, "starts", progress, None if page is None else page.add, score_items)
    if not sums:
        raise _make_time_error(forecasts, scoring.line)
    found = sums["probabilities"]
    table = ProbabilityTable.of(
        found, forecasts.labels, forecasts.leads, forecasts.has_leads, forecasts.name, _list_notes(scoring, found)
    )
    if page is not None:
        page.write(table)
    return table


def _list_notes(scoring: EvaluationItems, sums: ProbabilitySums) -> list[str]:
    """Return the notes about conversions and about times without observations."""
    forecasts, notes = scoring.forecasts, [*scoring.forecasts.notes, *scoring.source.notes]
    if forecasts.unit == "mm/h":
        a, b = scoring.z_r
        notes.append(f"Observed rain by Z = {a:g} R^{b:g}, {scoring.origin}.")
    left_out = len(scoring) - sums.starts
    if left_out:
        starts = format_count(len(scoring), "start")
        notes.append(f"{left_out} of {starts} left out, the truth has no field at their valid times.")
    if sums.absent:
        fields = format_count(sums.absent, "field")
        notes.append(f"{fields} of other starts left out, the truth lacks their valid times.")
    return notes


def _make_time_error(forecasts: ProbabilityForecasts, line: Timeline) -> ValueError:
    first, last = (format_time(forecasts.find_valid_time(number, number)) for number in (0, -1))
    times = format_time(line.times[0]), format_time(line.times[-1])
    return ValueError(
        f"the truth has no field at the valid times of the probabilities: these are from {first} to {last}, those of "
        f"the truth from {times[0]} to {times[1]}"
    )

# SPDX-License-Identifier: Apache-2.0
"""HTML report of downscaled radar fields: scores if the truth is known, maps of input and output, settings."""

from __future__ import annotations

import os
from typing import Unpack

import torch

from fastds.data import ReflectivityInput, open_input, to_reflectivity
from fastds.data.grid.times import JITTER, match_times
from fastds.data.radar.reflectivity import find_z_r
from fastds.data.reading import ReadOptions
from fastds.inference.files import compute_mean_spacing
from fastds.inference.run_facts import describe_run, format_utc, get_file, read_settings
from fastds.report import MAX_FRAMES, MapGrid, Maps, Page, check_report, radar_style, select_evenly
from fastds.report.curves import Curves
from fastds.tasks.fields.alignment import MEMBER
from fastds.tasks.radar.methods import BASELINES, OF_ONE_TIME
from fastds.tasks.radar.pairs import Pair, Pairs, list_members
from fastds.tasks.radar.scores import EvaluationTable

_FLOOR = 0.0


class EvaluationReport:
    """HTML report of an evaluation with scores, maps and curves.

    `add` is called for each pair of `source`, in their order.

    Args:
        path: HTML file to write.
        source: prediction, truth and input, divided into pairs of successive input frames.
        model: see fastds.inference.run_facts.describe_run.
    """

    def __init__(self, path: str | os.PathLike, source: Pairs, model: str | os.PathLike | None):
        datasets = [s.dataset for s in (source.fine, source.truth, source.coarse) if s is not None]
        check_report(path, *map(get_file, datasets))
        self.path, self.source, self.model = path, source, model
        self.baseline = "bicubic" if source.single else "advection"
        self.name = f"{source.name} (PRED)" if source.name == self.baseline else source.name
        self.maps = make_maps(source.truth, ["input", self.name, "truth", self.baseline])
        spacing = compute_mean_spacing(source.truth)
        self.curves = Curves(None if spacing is None else spacing / 1e3)
        frames = len(source.pairs[0][1])
        every = len(source) * (frames - 1) < MAX_FRAMES
        self.shown = set(range(len(source)) if every else select_evenly(len(source), MAX_FRAMES // frames))
        if len(self.shown) < len(source):
            self.maps.notes.append(f"Maps and spectra of {len(self.shown)} of {len(source)} pairs of input times.")
        self.number = 0

    def add(self, pair: Pair) -> None:
        """Add a pair of input times; pairs come in the order of the source."""
        methods = OF_ONE_TIME if self.source.single else BASELINES
        made = {name: pair.baseline(method, _FLOOR) for name, method in methods.items()} | {self.name: pair.prediction}
        valid = pair.valid.expand(pair.truth.shape)
        between = slice(None) if self.source.single else slice(1, -1)
        self.curves.add_errors({k: z[between] for k, z in made.items()}, pair.truth[between], valid[between])
        if self.number in self.shown:
            middle = len(pair.truth) // 2
            truth = torch.where(pair.valid, pair.truth, torch.nan)[middle]
            fields = {k: torch.where(pair.valid, z[middle], torch.nan) for k, z in made.items()}
            self.curves.add_spectra(fields | {"truth": truth})
            self._draw(pair, torch.where(pair.there, made[self.baseline], torch.nan))
        self.number += 1

    def _draw(self, pair: Pair, baseline: torch.Tensor) -> None:
        """Draw the frames of a pair.

        The last frame is left out if the next pair is drawn, because it is the first frame of the next pair.
        """
        last = len(pair.truth) - 1
        following = self.number + 1 in self.shown and self.number + 1 < len(self.source)
        for k in range(last + (not following)):
            given = {0: pair.coarse[0], last: pair.coarse[-1]}.get(k)
            fields = {"input": given, self.name: pair.prediction[k], "truth": pair.truth[k], self.baseline: baseline[k]}
            self.maps.add(
                format_utc(pair.times[k]), {name: z if z is None else z.numpy() for name, z in fields.items()}
            )

    def write(self, table: EvaluationTable) -> None:
        """Write the report with the table of scores."""
        sources = {"prediction": self.source.fine, "truth": self.source.truth, "input": self.source.coarse}
        files = {name: (source.dataset, source.raw) for name, source in sources.items() if source is not None}
        facts = describe_run(self.model, read_settings(self.source.fine.dataset), files)
        charts = self.curves.charts("at its time" if self.source.single else "between the input times")
        title = f"Downscaled radar fields: {self.source.name} against the truth"
        Page(title, facts, table.tables(), table.list_notes(), self.maps, charts).write(self.path)


def make_maps(source: ReflectivityInput, panels: list[str]) -> Maps:
    """Return empty maps on the grid of a source, with its Z-R relation in the colour bar."""
    z_r = find_z_r(source.dataset, source.raw, source.z_r)[0]
    return Maps(MapGrid.of(source.raw, source.dataset), panels, radar_style(z_r))


def report_files(
    output: str | os.PathLike,
    given: str | os.PathLike,
    *,
    report: str | os.PathLike,
    model: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    **reading: Unpack[ReadOptions],
) -> None:
    """Write the report of a downscaled file without a truth: maps of output and input, settings.

    Args:
        output: downscaled file.
        given: input of the downscaling.
        report: HTML file to write.
        model: see EvaluationReport.
        var: name of the variable in both files.
        z_r: a and b of Z = a R^b for both files.
        reading: options for reading the input, see fastds.data.reading.
    """
    with open_input(output) as fine, open_input(given, var, **reading) as coarse:
        made = to_reflectivity(list_members(fine)[0], var, z_r=z_r, least=1)
        source = to_reflectivity(coarse, var, z_r=z_r, least=1)
        name = str(fine.attrs.get("fastds_model", "output")) + ", member 1" * (MEMBER in fine.dims)
        maps = make_maps(made, ["input", name])
        tolerance = JITTER * (60.0 if len(made.times) < 2 else made.cadence)
        places = match_times(source.times, made.times, tolerance)  # -1 for times that the input does not have
        shown = select_evenly(len(made.times), MAX_FRAMES)
        if len(shown) < len(made.times):
            maps.notes.append(f"Maps of {len(shown)} of {len(made.times)} times.")
        for k in shown:
            at = int(places[k])
            maps.add(format_utc(made.times[k]), {"input": None if at < 0 else source.frames(at), name: made.frames(k)})
        facts = describe_run(model, read_settings(fine), {"output": (fine, made.raw), "input": (coarse, source.raw)})
        Page("Downscaled radar fields", facts, maps=maps).write(report)

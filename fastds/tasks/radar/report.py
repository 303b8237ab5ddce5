# SPDX-License-Identifier: Apache-2.0
"""The HTML report of downscaled radar fields: with a truth as they are evaluated, without one what was made of what."""

from __future__ import annotations

import os
from typing import Unpack

import torch

from fastds.data import ReflectivityInput, opened, to_reflectivity
from fastds.data.grid.times import JITTER, same_times
from fastds.data.radar.reflectivity import z_r_law
from fastds.data.reading import Reading
from fastds.report import MAX_FRAMES, MapGrid, Maps, Page, check_report, radar_style, select_evenly
from fastds.report.curves import Curves
from fastds.tasks.common.inference import mean_spacing_m
from fastds.tasks.common.reports import facts, file_of, settings_of, utc
from fastds.tasks.fields.places import MEMBER
from fastds.tasks.radar.methods import BASELINES, OF_ONE_TIME
from fastds.tasks.radar.pairs import Pair, Pairs, members_in
from fastds.tasks.radar.scores import EvaluationTable

_FLOOR = 0.0


class EvaluationReport:
    """Maps and curves of an evaluation, filled pair by pair.

    Args: path: of the report; source: the pairs; model: see fastds.tasks.common.reports.facts.
    """

    def __init__(self, path: str | os.PathLike, source: Pairs, model: str | os.PathLike | None):
        datasets = [s.dataset for s in (source.fine, source.truth, source.coarse) if s is not None]
        check_report(path, *map(file_of, datasets))
        self.path, self.source, self.model = path, source, model
        self.baseline = "bicubic" if source.single else "advection"
        self.name = f"{source.name} (PRED)" if source.name == self.baseline else source.name
        self.maps = maps_of(source.truth, ["input", self.name, "truth", self.baseline])
        spacing = mean_spacing_m(source.truth)
        self.curves = Curves(None if spacing is None else spacing / 1e3)
        frames = len(source.pairs[0][1])
        every = len(source) * (frames - 1) < MAX_FRAMES
        self.shown = set(range(len(source)) if every else select_evenly(len(source), MAX_FRAMES // frames))
        if len(self.shown) < len(source):
            self.maps.notes.append(f"Maps and spectra of {len(self.shown)} of {len(source)} pairs of input times.")
        self.number = 0

    def add(self, pair: Pair) -> None:
        """One pair of input times, in the order of the source."""
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
        """All frames but the last, which begins the next pair; the last of the last one, too."""
        last = len(pair.truth) - 1
        following = self.number + 1 in self.shown and self.number + 1 < len(self.source)
        for k in range(last + (not following)):
            given = {0: pair.coarse[0], last: pair.coarse[-1]}.get(k)
            fields = {"input": given, self.name: pair.prediction[k], "truth": pair.truth[k], self.baseline: baseline[k]}
            self.maps.add(utc(pair.times[k]), {name: z if z is None else z.numpy() for name, z in fields.items()})

    def write(self, table: EvaluationTable) -> None:
        """Write the page with the scores."""
        sources = {"prediction": self.source.fine, "truth": self.source.truth, "input": self.source.coarse}
        files = {name: (source.dataset, source.raw) for name, source in sources.items() if source is not None}
        told = facts(self.model, settings_of(self.source.fine.dataset), files)
        charts = self.curves.charts("at its time" if self.source.single else "between the input times")
        title = f"Downscaled radar fields: {self.source.name} against the truth"
        Page(title, told, table.tables(), table.sentences(), self.maps, charts).write(self.path)


def maps_of(source: ReflectivityInput, panels: list[str]) -> Maps:
    """Empty maps on the grid of a source, with its Z-R law in the colour bar."""
    law = z_r_law(source.dataset, source.raw, source.z_r)[0]
    return Maps(MapGrid.of(source.raw), panels, radar_style(law))


def report_files(
    output: str | os.PathLike,
    given: str | os.PathLike,
    *,
    report: str | os.PathLike,
    model: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    **reading: Unpack[Reading],
) -> None:
    """Write a report of a downscaled file without a truth: maps of it and of its input, and what was run.

    output: the file that was made. given: the file it was made of. report: the page. model: as in EvaluationReport.
    var, z_r: as in fastds.tasks.radar.run.downscale_file. reading: of given, see fastds.data.reading.
    """
    with opened(output) as fine, opened(given, var, **reading) as coarse:
        made = to_reflectivity(members_in(fine)[0], var, z_r=z_r, least=1)
        source = to_reflectivity(coarse, var, z_r=z_r, least=1)
        name = str(fine.attrs.get("fastds_model", "output")) + ", member 1" * (MEMBER in fine.dims)
        maps = maps_of(made, ["input", name])
        tolerance = JITTER * (60.0 if len(made.times) < 2 else made.cadence)
        places = same_times(source.times, made.times, tolerance)  # -1 where the input has no such time
        shown = select_evenly(len(made.times), MAX_FRAMES)
        if len(shown) < len(made.times):
            maps.notes.append(f"Maps of {len(shown)} of {len(made.times)} times.")
        for k in shown:
            at = int(places[k])
            maps.add(utc(made.times[k]), {"input": None if at < 0 else source.frames(at), name: made.frames(k)})
        told = facts(model, settings_of(fine), {"output": (fine, made.raw), "input": (coarse, source.raw)})
        Page("Downscaled radar fields", told, maps=maps).write(report)

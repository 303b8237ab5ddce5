# SPDX-License-Identifier: Apache-2.0
"""HTML report of downscaled gridded fields: scores if the truth is known, maps of input and output, settings."""

from __future__ import annotations

import functools
import os
from typing import Unpack

import numpy as np
import xarray as xr

from fastds.data import open_input
from fastds.data.grid.variables import split_names
from fastds.data.reading import ReadOptions
from fastds.inference.run_facts import describe_run, format_utc, get_file, read_settings
from fastds.plot import draw_rank_histogram
from fastds.report import (
    MAX_FRAMES,
    Chart,
    MapGrid,
    Maps,
    MapStyle,
    Page,
    check_report,
    choose_field_style,
    select_evenly,
)
from fastds.tasks.fields.alignment import MEMBER
from fastds.tasks.fields.pairs import COARSE, TRUTH, Pair, Pairs
from fastds.tasks.fields.scores import REFERENCE, FieldTable, label_single_member

_MAX_MEMBERS = 3  # number of ensemble members on the maps


class EvaluationReport:
    """HTML report of an evaluation with scores of all variables and maps of the first one.

    Args:
        path: HTML file to write.
        pairs: fields that are compared.
        truth: dataset of the truth.
        coarse: dataset of the coarse input, or None.
        name: label of the prediction among the methods.
        model: see fastds.inference.run_facts.describe_run.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        pairs: Pairs,
        truth: xr.Dataset,
        coarse: xr.Dataset | None,
        name: str,
        model: str | os.PathLike | None,
    ):
        given = {"prediction": pairs.prediction, "truth": truth} | ({} if coarse is None else {"input": coarse})
        check_report(path, *map(get_file, given.values()))
        self.path, self.pairs, self.given, self.name, self.model = path, pairs, given, name, model
        self.variable, *others = pairs.names
        self.truth = pairs.sources[TRUTH][self.variable]
        places = pairs.list_indices(self.variable)
        self.shown = [places[k] for k in select_evenly(len(places), MAX_FRAMES)]
        panels = ["input", name, *([label_single_member(name)] if pairs.members > 1 else []), "truth", REFERENCE]
        there = panels if COARSE in pairs.sources else panels[1:-1]
        self.maps = Maps(MapGrid.of(self.truth.field, truth), there, self._style())
        if others:
            self.maps.notes.append(f"Maps of {self.variable}, one of {', '.join(pairs.names)}.")
        if len(self.shown) < len(places):
            self.maps.notes.append(f"Maps of {len(self.shown)} of {len(places)} fields.")

    def _style(self) -> MapStyle:
        fields = [self.truth.values(at) for at in self.shown]
        low, high = (f([f(np.ma.masked_invalid(z)) for z in fields]) for f in (np.min, np.max))
        return choose_field_style(self.truth.field, float(low), float(high))

    def add(self, pair: Pair) -> None:
        """Add a field; fields come in the order of the pairs."""
        if pair.name != self.variable or pair.at not in self.shown:
            return
        fields = {"input": pair.coarse, self.name: pair.members.mean(0), "truth": pair.truth}
        fields |= {label_single_member(self.name): pair.members[0], REFERENCE: pair.baselines.get(REFERENCE)}
        self.maps.add(_make_frame_label(self.truth.field, pair.at), fields)

    def write(self, table: FieldTable) -> None:
        """Write the report with the table of scores."""
        files = {what: (dataset, dataset[self.variable]) for what, dataset in self.given.items()}
        facts = describe_run(self.model, read_settings(self.pairs.prediction), files)
        title = f"Downscaled fields: {', '.join(self.pairs.names)} against the truth"
        Page(title, facts, table.tables(), table.list_notes(), self.maps, _make_charts(table.ranks)).write(self.path)


def _make_charts(ranks: dict[str, list[float]]) -> list[Chart]:
    """Return the rank histograms of an ensemble; none without an ensemble."""
    if not ranks:
        return []
    ends = (f"{name}: {shares[0]:.3f} below and {shares[-1]:.3f} above all members" for name, shares in ranks.items())
    alt = f"Share of cells where the truth has each rank among the members. {'; '.join(ends)}"
    return [Chart("Rank of the truth among the members", alt, functools.partial(draw_rank_histogram, ranks))]


def report_files(
    output: str | os.PathLike,
    given: str | os.PathLike,
    *,
    report: str | os.PathLike,
    model: str | os.PathLike | None = None,
    var: str | None = None,
    **reading: Unpack[ReadOptions],
) -> None:
    """Write the report of a file of gridded fields that was downscaled.

    Args:
        output: downscaled file.
        given: input of the downscaling.
        report: HTML file to write.
        model: name or file of the weights whose card is shown; None: the model named by the output.
        var: names of variables, see split_names, of which the first is drawn; None: the first of the output.
        reading: options for reading the input, see fastds.data.reading.
    """
    with open_input(output) as fine, open_input(given, var, **reading) as coarse:
        fields = [name for name, v in fine.data_vars.items() if v.ndim >= 2]
        field = fine[next(iter(split_names(var, fine.data_vars) or fields))]
        source = _select_level(coarse[field.name], field)
        maps = _make_maps(fine, field, source)
        if len(fine.data_vars) > 1:
            maps.notes.insert(0, f"Maps of {field.name}, one of {', '.join(map(str, fine.data_vars))}.")
        facts = describe_run(model, read_settings(fine), {"output": (fine, field), "input": (coarse, source)})
        Page(f"Downscaled fields: {field.name}", facts, maps=maps).write(report)


def _select_level(source: xr.DataArray, field: xr.DataArray) -> xr.DataArray:
    """Select the level of the output in the input, and order the dimensions as in the output."""
    for dim in set(source.dims) - set(field.dims):
        source = source.sel({dim: field[dim]}, method="nearest") if dim in field.coords else source.isel({dim: 0})
    return source.transpose(*(dim for dim in field.dims if dim in source.dims))


def _make_maps(fine: xr.Dataset, field: xr.DataArray, source: xr.DataArray) -> Maps:
    """Return maps of the input and of the output or its first members, one frame for each time and level."""
    members = range(min(_MAX_MEMBERS, field.sizes.get(MEMBER, 0)))
    made = {f"member {k + 1}": field.isel({MEMBER: k}) for k in members} or {"output": field}
    lead = [dim for dim in source.dims[:-2]]
    places = list(np.ndindex(*(source.sizes[dim] for dim in lead)))
    chosen = [dict(zip(lead, places[k], strict=True)) for k in select_evenly(len(places), MAX_FRAMES)]
    seen = [{"input": source.isel(at), **{name: part.isel(at) for name, part in made.items()}} for at in chosen]
    low, high = (f([f(np.ma.masked_invalid(part["input"].values)) for part in seen]) for f in (np.min, np.max))
    style = choose_field_style(field, float(low), float(high))
    maps = Maps(MapGrid.of(field, fine), ["input", *made], style)
    if len(chosen) < len(places):
        maps.notes.append(f"Maps of {len(chosen)} of {len(places)} fields.")
    for at, parts in zip(chosen, seen, strict=True):
        maps.add(_make_frame_label(source, at), {name: part.values for name, part in parts.items()})
    return maps


def _make_frame_label(source: xr.DataArray, at: dict) -> str:
    """Return time and level of a field as text."""
    parts = []
    for dim, k in at.items():
        value = source[dim].values[k] if dim in source.coords else k
        timed = dim in source.coords and source[dim].dtype.kind in "MO"
        parts.append(format_utc(value) if timed else f"{dim} {value:g} {source[dim].attrs.get('units', '')}".rstrip())
    return ", ".join(parts) or "the field"

# SPDX-License-Identifier: Apache-2.0
"""The HTML report of downscaled gridded fields: with a truth as they are evaluated, without one maps of input and
output; and what was run."""

from __future__ import annotations

import functools
import os
from typing import Unpack

import numpy as np
import xarray as xr

from fastds.data import opened
from fastds.data.reading import Reading
from fastds.plot import draw_rank_histogram
from fastds.report import MAX_FRAMES, Chart, MapGrid, Maps, MapStyle, Page, check_report, field_style, select_evenly
from fastds.tasks.common.reports import facts, file_of, settings_of, utc
from fastds.tasks.fields.pairs import COARSE, TRUTH, Pair, Pairs
from fastds.tasks.fields.places import MEMBER
from fastds.tasks.fields.scores import REFERENCE, FieldTable, one_of

_MEMBERS = 3  # of an ensemble on the maps


class EvaluationReport:
    """Maps of an evaluation, filled field by field, of the first variable.

    Args: path: of the report; pairs: what is compared; truth, coarse: the datasets of it; name: of the prediction among
    the methods; model: see fastds.tasks.common.reports.facts.
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
        check_report(path, *map(file_of, given.values()))
        self.path, self.pairs, self.given, self.name, self.model = path, pairs, given, name, model
        self.variable, *others = pairs.names
        self.truth = pairs.sources[TRUTH][self.variable]
        places = pairs.places(self.variable)
        self.shown = [places[k] for k in select_evenly(len(places), MAX_FRAMES)]
        panels = ["input", name, *([one_of(name)] if pairs.members > 1 else []), "truth", REFERENCE]
        there = panels if COARSE in pairs.sources else panels[1:-1]
        self.maps = Maps(MapGrid.of(self.truth.field), there, self._style())
        if others:
            self.maps.notes.append(f"Maps of {self.variable}, one of {', '.join(pairs.names)}.")
        if len(self.shown) < len(places):
            self.maps.notes.append(f"Maps of {len(self.shown)} of {len(places)} fields.")

    def _style(self) -> MapStyle:
        fields = [self.truth.values(at) for at in self.shown]
        low, high = (f([f(np.ma.masked_invalid(z)) for z in fields]) for f in (np.min, np.max))
        return field_style(_label_of(self.truth.field), float(low), float(high))

    def add(self, pair: Pair) -> None:
        """One field, in the order of the pairs."""
        if pair.name != self.variable or pair.at not in self.shown:
            return
        fields = {"input": pair.coarse, self.name: pair.members.mean(0), "truth": pair.truth}
        fields |= {one_of(self.name): pair.members[0], REFERENCE: pair.baselines.get(REFERENCE)}
        self.maps.add(_label(self.truth.field, pair.at), fields)

    def write(self, table: FieldTable) -> None:
        """Write the page with the scores."""
        files = {what: (dataset, dataset[self.variable]) for what, dataset in self.given.items()}
        told = facts(self.model, settings_of(self.pairs.prediction), files)
        title = f"Downscaled fields: {', '.join(self.pairs.names)} against the truth"
        Page(title, told, table.tables(), table.sentences(), self.maps, _charts(table.ranks)).write(self.path)


def _charts(ranks: dict[str, list[float]]) -> list[Chart]:
    """The rank histograms of an ensemble, where there are any."""
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
    **reading: Unpack[Reading],
) -> None:
    """Write a report of a file of gridded fields that was downscaled.

    output: the file that was made. given: the file it was made of. report: the page. model: name or file of the weights
    whose card it tells; None: as output names them. var: the variable that is drawn; None: the first of output.
    reading: of given, see fastds.data.reading.
    """
    with opened(output) as fine, opened(given, var, **reading) as coarse:
        field = fine[var or next(name for name, v in fine.data_vars.items() if v.ndim >= 2)]
        source = _same_place(coarse[field.name], field)
        maps = _maps(fine, field, source)
        if len(fine.data_vars) > 1:
            maps.notes.insert(0, f"Maps of {field.name}, one of {', '.join(map(str, fine.data_vars))}.")
        told = facts(model, settings_of(fine), {"output": (fine, field), "input": (coarse, source)})
        Page(f"Downscaled fields: {field.name}", told, maps=maps).write(report)


def _same_place(source: xr.DataArray, field: xr.DataArray) -> xr.DataArray:
    """The input at the level that the output has, with its dimensions in the order of the output."""
    for dim in set(source.dims) - set(field.dims):
        source = source.sel({dim: field[dim]}, method="nearest") if dim in field.coords else source.isel({dim: 0})
    return source.transpose(*(dim for dim in field.dims if dim in source.dims))


def _maps(fine: xr.Dataset, field: xr.DataArray, source: xr.DataArray) -> Maps:
    """Input and output, or the first members, one frame for each time and level."""
    members = range(min(_MEMBERS, field.sizes.get(MEMBER, 0)))
    made = {f"member {k + 1}": field.isel({MEMBER: k}) for k in members} or {"output": field}
    lead = [dim for dim in source.dims[:-2]]
    places = list(np.ndindex(*(source.sizes[dim] for dim in lead)))
    chosen = [dict(zip(lead, places[k], strict=True)) for k in select_evenly(len(places), MAX_FRAMES)]
    seen = [{"input": source.isel(at), **{name: part.isel(at) for name, part in made.items()}} for at in chosen]
    low, high = (f([f(np.ma.masked_invalid(part["input"].values)) for part in seen]) for f in (np.min, np.max))
    maps = Maps(MapGrid.of(field), ["input", *made], field_style(_label_of(field), float(low), float(high)))
    if len(chosen) < len(places):
        maps.notes.append(f"Maps of {len(chosen)} of {len(places)} fields.")
    for at, parts in zip(chosen, seen, strict=True):
        maps.add(_label(source, at), {name: part.values for name, part in parts.items()})
    return maps


def _label_of(field: xr.DataArray) -> str:
    return f"{field.attrs.get('long_name', field.name)} ({field.attrs.get('units', 'no units')})"


def _label(source: xr.DataArray, at: dict) -> str:
    """Time and level of a field."""
    words = []
    for dim, k in at.items():
        value = source[dim].values[k] if dim in source.coords else k
        timed = dim in source.coords and source[dim].dtype.kind in "MO"
        words.append(utc(value) if timed else f"{dim} {value:g} {source[dim].attrs.get('units', '')}".rstrip())
    return ", ".join(words) or "the field"

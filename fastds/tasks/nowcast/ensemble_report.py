# SPDX-License-Identifier: Apache-2.0
"""Maps and charts of ensembles for HTML reports: members, quantiles, probabilities, and scores by lead time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fastds.data import rate_to_reflectivity
from fastds.inference.tables import format_count
from fastds.plot import draw_rank_histogram
from fastds.report import (
    Chart,
    MapGrid,
    Maps,
    make_lead_chart,
    make_probability_style,
    radar_style,
    select_evenly,
)
from fastds.tasks.nowcast.ensemble_scores import RATES, EnsembleRows
from fastds.tasks.nowcast.forecasts import Forecasts

_MAX_STAMPS = 8  # maximum number of members on the maps
_QUANTILES = (0.1, 0.5, 0.9)
_MAX_LEADS = 3  # maximum number of lead times in a chart of ranks


def make_ensemble_maps(forecasts: Forecasts, number: int, frames: Sequence[tuple[str, int, int | None]]) -> list[Maps]:
    """Return small maps of the members, of their quantiles, and of probabilities, with the frames of the other maps.

    Args:
        forecasts: forecasts with members.
        number: index of the initialization time.
        frames: see fastds.tasks.nowcast.report.list_map_frames.
    """
    grid, style, count = MapGrid.of(forecasts.variable, forecasts.dataset), radar_style(forecasts.z_r), forecasts.count
    shown = range(min(count, _MAX_STAMPS))
    members = [f"member {k + 1}" for k in shown]
    quantiles = [f"{100 * q:g} % quantile" for q in _QUANTILES]
    probabilities = [f"at least {rate:g} mm/h" for rate in RATES]
    stamps = Maps(grid, members, style, "Members", small=True)
    spread = Maps(grid, quantiles, style, "Quantiles of the members at each pixel", small=True)
    shares = Maps(grid, probabilities, make_probability_style(), "Share of the members", small=True)
    if len(shown) < count:
        stamps.notes.append(f"The first {len(shown)} of {format_count(count, 'member')}.")
    rain = stamps.thin(forecasts.read_members(number))
    for label, _, lead in frames:
        if lead is None:
            for maps in (stamps, spread, shares):
                maps.add(label, {})
            continue
        fields = rain[:, lead]
        missing = np.isnan(fields).any(0)
        stamps.add(label, dict(zip(members, rate_to_reflectivity(fields[: len(shown)], forecasts.z_r), strict=True)))
        values = rate_to_reflectivity(np.quantile(fields, _QUANTILES, axis=0), forecasts.z_r)
        spread.add(label, dict(zip(quantiles, values, strict=True)))
        found = [np.where(missing, np.nan, (fields >= rate).mean(0)) for rate in RATES]
        shares.add(label, dict(zip(probabilities, found, strict=True)))
    return [stamps, spread, shares]


def make_ensemble_charts(rows: EnsembleRows) -> list[Chart]:
    """Return charts of the ranks of the truth, and of CRPS and spread/skill by lead time."""
    chosen = select_evenly(len(rows.leads), _MAX_LEADS)
    ranks = {f"+{rows.leads[k] / 60:g} min": rows.wet_ranks[k].tolist() for k in chosen}
    ends = "; ".join(f"{name}: outside the members {values[0] + values[-1]:.3f}" for name, values in ranks.items())
    text = f"Where a member or the truth has rain: share of pixels by rank of the truth; flat is reliable. {ends}"
    charts = [Chart("Rank of the truth where there is rain", text, functools.partial(draw_rank_histogram, ranks))]
    if len(rows.leads) < 2:
        return charts
    crps = {
        "fair CRPS": rows.rows["crps"],
        f"CRPS of {rows.members} members": rows.rows["crps_ensemble"],
        "its reliability": rows.rows["crps_reliability"],
        "its potential": rows.rows["crps_potential"],
    }
    by_lead = {"CRPS (mm/h)": crps, "Spread/skill": {"spread/skill": rows.rows["spread_skill"]}}
    return [*charts, *(make_lead_chart(title, rows.leads, curves) for title, curves in by_lead.items())]

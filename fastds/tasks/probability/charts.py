# SPDX-License-Identifier: Apache-2.0
"""Charts of probabilities for HTML reports: reliability diagrams, ROC curves, scores by lead time."""

from __future__ import annotations

import functools

import numpy as np

from fastds.plot import draw_reliability_diagram, draw_roc_curves
from fastds.report import Chart, make_lead_chart, select_evenly
from fastds.tasks.probability.scores import NAMES, ProbabilityTable

_MAX_LEADS = 3  # maximum number of lead times in a diagram
_MIN_CELLS = 30  # minimum number of cells of a class that is drawn


def make_probability_charts(table: ProbabilityTable) -> list[Chart]:
    """Return a reliability diagram and ROC curves of each threshold, then Brier skill and ROC area by lead time."""
    charts = [chart for t in range(len(table.thresholds)) for chart in _make_diagrams(table, t)]
    return [*charts, *_make_lead_charts(table)]


def _make_diagrams(table: ProbabilityTable, threshold: int) -> list[Chart]:
    name = table.thresholds[threshold]
    chosen = [k for k in select_evenly(len(table.leads), _MAX_LEADS) if table.rows["cells"][threshold, k] > 0]
    labels = [f"+{table.leads[k] / 60:g} min" if table.has_leads else "all times" for k in chosen]
    reliability, roc = {}, {}
    for k, label in zip(chosen, labels, strict=True):
        curve = table.get_reliability(threshold, k)
        frequency, drawn = curve.pop("frequency"), curve["cells"] >= _MIN_CELLS
        reliability[label] = {key: values[drawn] for key, values in curve.items()} | {"frequency": frequency}
        hits, alarms = table.curves[:, threshold, k]
        if np.isfinite(hits).all() and np.isfinite(alarms).all():
            roc[f"{label}, area {table.rows['roc_area'][threshold, k]:.3f}"] = alarms, hits
    bars = "; bars are 95 % intervals" * bool(table.intervals)
    texts = [f"{label}: {len(curve['cells'])} classes" for label, curve in reliability.items()]
    charts = [
        Chart(
            f"Reliability at {name}",
            f"Observed frequency by forecast probability, and numbers of cells{bars}. {'; '.join(texts)}",
            functools.partial(draw_reliability_diagram, reliability),
        )
    ]
    if roc:
        text = f"Hit rate by false alarm rate. {'; '.join(roc)}"
        charts.append(Chart(f"ROC at {name}", text, functools.partial(draw_roc_curves, roc)))
    return charts


def _make_lead_charts(table: ProbabilityTable) -> list[Chart]:
    charts = []
    for score in ("brier_skill", "roc_area"):
        curves = dict(zip(table.thresholds, table.rows[score], strict=True))
        if len(table.leads) < 2 or not any(np.isfinite(values).any() for values in curves.values()):
            continue
        charts.append(make_lead_chart(NAMES[score], table.leads, curves))
    return charts

# SPDX-License-Identifier: Apache-2.0
"""Reports: one HTML page that opens without a network, with what was run, scores, maps over time and curves.

This package knows no task: the modules report of fastds.tasks.radar, nowcast and fields fill the pages.
"""

from fastds.report.charts import Chart
from fastds.report.grid import MapGrid
from fastds.report.maps import MAX_FRAMES, MAX_PIXELS, Maps, MapStyle, evenly, field_style, radar_style
from fastds.report.page import Page, check_report

__all__ = [
    "MAX_FRAMES",
    "MAX_PIXELS",
    "Chart",
    "MapGrid",
    "MapStyle",
    "Maps",
    "Page",
    "check_report",
    "evenly",
    "field_style",
    "radar_style",
]

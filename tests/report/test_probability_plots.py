# SPDX-License-Identifier: Apache-2.0
"""Tests of figures of probabilities: classes of the maps, graticule, reliability diagram, ROC curves."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fastds.plot import (
    PROBABILITY_LEVELS,
    draw_probability,
    draw_probability_maps,
    draw_reliability_diagram,
    draw_roc_curves,
    probability_style,
)
from fastds.plot.graticule import draw_graticule, format_degrees
from fastds.plot.location import Location, Nodes
from fastds.report import Chart, MapGrid, Maps, make_probability_style


def test_classes_of_probabilities_begin_at_their_levels():
    """Shares of members in float32, such as 7 / 10, are in the class that they begin; 0 is white and NaN grey."""
    shares = np.float32([[0, 0.049, 0.05, 1 / 10, 3 / 10, 7 / 10, 9 / 10, 1, np.nan]])
    image = draw_probability(Figure().subplots(), shares)
    colours = [to_hex(colour) for colour in image.to_rgba(image.get_array())[0]]
    colour_map, _, levels = probability_style()
    assert levels == PROBABILITY_LEVELS and len(colour_map.colors) == len(levels) - 1
    first = [0, 1, 3, 7, 9, 9]
    assert colours == ["#ffffff", "#ffffff", *(colour_map.colors[k] for k in first), "#d0d0d0"]
    style = make_probability_style()
    classes = np.digitize(shares[0, :-1], style.edges)
    assert classes.tolist() == [0, 0, *(k + 1 for k in first)] and style.labels == tuple(map(str, levels[:-1]))


def test_maps_have_one_panel_per_event_and_time():
    fields = [[np.full((4, 6), 0.1 * k + 0.3 * row) for k in range(3)] for row in range(2)]
    figure = draw_probability_maps(fields, ["at least 1 mm/h", "at least 5 mm/h"], ["+10 min", "+20 min", "+30 min"])
    panels = figure.axes[:6]
    titles = [axes.get_title() for axes in panels]
    assert titles[0] == "at least 1 mm/h, +10 min" and titles[5] == "at least 5 mm/h, +30 min"
    assert [float(axes.collections[0].get_array()[0, 0]) for axes in panels] == pytest.approx([0, 10, 20, 30, 40, 50])
    with pytest.raises(ValueError, match=r"expected 1 x 3 maps, one per event and time, got \(2, \[3, 3\]\)"):
        draw_probability_maps(fields, ["one"], ["a", "b", "c"])


def test_maps_of_latitudes_have_degrees_and_their_shape_on_the_ground():
    x, y = np.linspace(8, 10, 41), np.linspace(59, 61, 41)
    figure = draw_probability_maps([[np.zeros((41, 41))]], ["event"], ["now"], x=x, y=y, unit="degrees")
    axes = figure.axes[0]
    assert axes.get_aspect() == pytest.approx(2) and axes.yaxis.get_major_formatter()(60.5, 0) == "60.5°N"


def test_graticule_labels_edges_where_they_cross_parallels_and_meridians():
    x, y = np.linspace(0, 100, 51), np.linspace(200, 0, 81)  # north to south
    latitude = 45 + y[:, None] / 100 + 0 * x
    longitude = 179 + x / 50 + 0 * y[:, None]  # crosses 180
    longitude = (longitude + 180) % 360 - 180
    axes = Figure().subplots()
    draw_graticule(axes, Location(x, y, "km", Nodes(x, y, latitude, longitude)), most=10)
    labels = dict(zip((text.get_text() for text in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    assert labels["46°N"] == pytest.approx(100)
    labels = dict(zip((text.get_text() for text in axes.get_xticklabels()), axes.get_xticks(), strict=True))
    assert labels["179.5°E"] == pytest.approx(25) and labels["179.5°W"] == pytest.approx(75)
    assert [format_degrees(v, "EW") for v in (0.0, -3.5, 190.0)] == ["0°", "3.5°W", "170°W"]


def test_reliability_diagram_has_points_intervals_and_numbers():
    curve = {
        "probability": [0.0, 0.5, 1.0], "observed": [0.1, 0.4, 0.9], "cells": [90, 40, 50],
        "low": [0.05, np.nan, 0.8], "high": [0.2, np.nan, 0.95], "frequency": 0.3,
    }  # fmt: skip
    upper, lower = draw_reliability_diagram({"+10 min": curve}).axes
    line = next(line for line in upper.lines if line.get_label() == "+10 min")
    assert line.get_ydata().tolist() == [0.1, 0.4, 0.9]
    bars = [segment for c in upper.collections for segment in c.get_segments() if len(segment)]
    np.testing.assert_allclose(sorted(s[:, 1].tolist() for s in bars), [[0.05, 0.2], [0.8, 0.95]])
    assert lower.lines[0].get_ydata().tolist() == [90, 40, 50] and lower.get_yscale() == "log"


def test_roc_curves_have_the_given_points():
    axes = draw_roc_curves({"area 0.8": ([0, 0.2, 1], [0, 0.8, 1])}).axes[0]
    assert axes.lines[1].get_xdata().tolist() == [0, 0.2, 1] and axes.get_xlabel() == "false alarm rate"


def test_charts_of_both_themes_differ_in_ink_only():
    figures = []

    def draw():
        figures.append(draw_roc_curves({"a": ([0, 1], [0, 1])}))
        return figures[-1]

    chart = Chart("ROC", "text", draw)
    assert chart.uri("light") != chart.uri("dark") and len(figures) == 1
    axes = figures[0].axes[0]
    assert {to_hex(axes.xaxis.label.get_color()), to_hex(axes.spines["left"].get_edgecolor())} == {"#dfe4ec"}
    assert to_hex(axes.lines[1].get_color()) == "#1f77b4"


def test_small_maps_are_thinned_with_a_note():
    grid = MapGrid(0, 1, 0, 1, "pixels", (False, False), 1.0)
    maps = Maps(grid, ["member 1"], make_probability_style(), small=True)
    thin = maps.thin(np.arange(600.0 * 600).reshape(1, 600, 600))
    assert thin.shape == (1, 200, 200) and thin[0, 0, 0] == 601
    assert maps.notes == ["Maps of 600 x 600 pixels show every 3rd pixel each way."]

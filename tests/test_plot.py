# SPDX-License-Identifier: Apache-2.0
"""Figures: colours of single values, places of cells, labels, and no global matplotlib state."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastds.plot import (
    REFLECTIVITY_LEVELS,
    difference_style,
    draw_daily_series,
    draw_field,
    draw_rank_histogram,
    field_panel,
    reflectivity_style,
    spectra,
    training_curves,
)


@pytest.mark.parametrize("scale", REFLECTIVITY_LEVELS)
def test_each_class_has_its_own_colour(scale):
    colour_map, norm, levels = reflectivity_style(scale)
    middles = [(a + b) / 2 for a, b in zip(levels, levels[1:], strict=False)]
    colours = colour_map(norm(middles))
    assert len(np.unique(colours, axis=0)) == len(levels) - 1
    # A value on an edge belongs to the class above it.
    np.testing.assert_array_equal(colour_map(norm(levels[3])), colours[3])


def test_no_echo_is_white_and_missing_is_grey():
    colour_map, norm, _ = reflectivity_style()
    drawn = colour_map(norm(np.ma.masked_invalid([-32.0, np.nan])))
    assert drawn[0].tolist() == [1, 1, 1, 1]
    assert drawn[1][0] == drawn[1][1] == drawn[1][2] != 1


def test_difference_is_blue_below_and_red_above_white_zero():
    colour_map, norm, levels = difference_style(10.0)
    weak, none, strong = colour_map(norm([-5.0, 0.0, 5.0]))
    assert weak[2] > weak[0] and strong[0] > strong[2] and none.tolist() == [1, 1, 1, 1]
    assert levels == tuple(-level for level in reversed(levels))


def test_unknown_scale_and_limit_are_refused():
    with pytest.raises(ValueError, match="scale must be one of nws, meteonet, got 'jet'"):
        reflectivity_style("jet")
    with pytest.raises(ValueError, match="limit must be a positive"):
        difference_style(0)


def test_cells_lie_around_their_centres():
    axes = Figure().subplots()
    image = draw_field(axes, np.zeros((2, 3)), x=[1.0, 2.0, 3.0], y=[10.0, 9.0])
    corners = image.get_coordinates()
    assert corners[0, 0].tolist() == [0.5, 10.5] and corners[-1, -1].tolist() == [3.5, 8.5]
    with pytest.raises(ValueError, match="3 cell centres"):
        draw_field(axes, np.zeros((2, 3)), x=[1.0, 2.0])


def test_field_panel_has_rows_times_units_and_colour_bars(tmp_path):
    field, coarse = np.full((8, 12), 22.0), np.full((4, 6), 22.0)
    field[0, 0] = np.nan
    figure = field_panel(
        {"truth": [field] * 3, "FC-ZSM": [field, None, field]},
        ["14:45", "14:50", "14:55"],
        differences={"FC-ZSM": [field - 22] * 3},
        inputs=[coarse, None, coarse],
        x=np.arange(12.0),
        y=np.arange(8.0),
        title="event",
    )
    figure.savefig(tmp_path / "panel.png", dpi=40)
    words = " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
    for word in ("truth, 14:50", "input, 14:45", "FC-ZSM minus truth, 14:55", "x (km)", "y (km)", "event"):
        assert word in words
    assert "reflectivity (dBZ)" in words and "difference from truth (dB)" in words
    # The coarse cells cover the area of the fine ones.
    areas = {tuple(axes.collections[0].get_datalim(axes.transData).extents.round(6)) for axes in _maps(figure)}
    assert areas == {(-0.5, -0.5, 11.5, 7.5)}
    rgb = _pixels(figure)
    expected = (np.asarray(reflectivity_style()[0](reflectivity_style()[1](22.0)))[:3] * 255).round().astype(int)
    assert (np.abs(rgb[..., :3].astype(int) - expected).max(-1) <= 1).mean() > 0.1


def _maps(figure):
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_title()]


def _pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_field_panel_counts_its_maps():
    with pytest.raises(ValueError, match="row 'truth' must have 3 maps"):
        field_panel({"truth": [np.zeros((4, 4))] * 2}, ["a", "b", "c"])
    with pytest.raises(ValueError, match="differences 'other' have no row among the fields truth"):
        field_panel({"truth": [np.zeros((4, 4))]}, ["a"], differences={"other": [np.zeros((4, 4))]})


def test_training_curves_skip_empty_cells(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,step,train_loss,val_loss\n0,10,1.0,\n0,20,,2.0\n1,30,0.5,\n")
    axes = training_curves({"small": log}).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"small train_loss": [[10, 1.0], [30, 0.5]], "small val_loss": [[20, 2.0]]}
    with pytest.raises(ValueError, match="no column named loss in the logs; they have epoch, step"):
        training_curves({"small": log}, columns=["loss"])


def test_spectra_are_drawn_over_wavelength():
    axes = spectra({"truth": ([0.0, 0.1, 0.5], [9.0, 4.0, 1.0])}).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 4.0], [2.0, 1.0]]


def test_daily_series_and_rank_histogram():
    axes = draw_daily_series([1, 2, 3], {"bicubic": [3.0, 2.0, 4.0], "ours": [1.0, 1.5, 2.0]}, "MSE (%^2)").axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["ours"] == [[1, 1.0], [2, 1.5], [3, 2.0]] and axes.get_ylabel() == "MSE (%^2)"
    with pytest.raises(ValueError, match="has 2 values for 3 days"):
        draw_daily_series([1, 2, 3], {"ours": [1.0, 2.0]}, "MSE")
    axes = draw_rank_histogram({"ensemble": [0.3, 0.4, 0.3]}).axes[0]
    steps, flat = axes.lines
    assert steps.get_xydata().tolist() == [[0, 0.3], [1, 0.4], [2, 0.3]]
    assert flat.get_ydata()[0] == pytest.approx(1 / 3)


def test_plot_leaves_matplotlib_alone():
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy(); import fastds.plot;"
        "assert 'matplotlib.pyplot' not in sys.modules; assert dict.__eq__(matplotlib.rcParams.copy(), before)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

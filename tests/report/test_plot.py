# SPDX-License-Identifier: Apache-2.0
"""Tests of figures: colours, positions of cells, labels and global matplotlib state."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastds.plot import (
    REFLECTIVITY_LEVELS,
    difference_style,
    draw_by_factor,
    draw_daily_series,
    draw_difference,
    draw_field,
    draw_rank_histogram,
    field_panel,
    forecast_strip,
    reflectivity_style,
    spectra,
    training_curves,
)
from tests.support import forked


@pytest.mark.parametrize("scale", REFLECTIVITY_LEVELS)
def test_each_class_has_its_own_colour(scale):
    colour_map, norm, levels = reflectivity_style(scale)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
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


def visible(figure, rows, columns):
    """Return the axes of the maps, and their titles by row and column (None for hidden axes)."""
    axes = np.array(figure.axes[: rows * columns]).reshape(rows, columns)
    return axes, [[a.get_title() if a.get_visible() else None for a in row] for row in axes]


def bars(figure, count):
    """Return (label, ticks) of each of the last `count` axes of a figure, which are its colour bars."""
    return [
        (a.get_xlabel(), [float(t.get_text().replace("\N{MINUS SIGN}", "-")) for t in a.get_xticklabels()])
        for a in figure.axes[-count:]
    ]


def values_of(axes):
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


def test_field_panel_map_by_map():
    fields = {"truth": [np.full((4, 8), 10.0 + k) for k in range(3)], "net": [np.full((4, 8), 40.0), None, None]}
    differences = {"net": [None, np.full((4, 8), -3.0), np.full((4, 8), 3.0)]}
    inputs = [np.full((2, 4), 20.0), None, np.full((2, 4), 25.0)]
    figure = field_panel(fields, ["a", "b", "c"], differences=differences, inputs=inputs, unit="m", limit=5.0)
    axes, titles = visible(figure, 2, 6)
    assert titles == [
        ["truth, a", "truth, b", "truth, c", "input, a", None, "input, c"],
        ["net, a", None, None, None, "net minus truth, b", "net minus truth, c"],
    ]
    for place, value in {(0, 1): 11.0, (0, 3): 20.0, (0, 5): 25.0, (1, 0): 40.0, (1, 4): -3.0, (1, 5): 3.0}.items():
        assert (values_of(axes[place]) == value).all(), place
    blue_to_red = difference_style(5.0)[1].boundaries
    assert np.array_equal(axes[1, 4].collections[0].norm.boundaries, blue_to_red)
    assert np.array_equal(axes[0, 3].collections[0].norm.boundaries, REFLECTIVITY_LEVELS["nws"])
    # Names of axes at the left and at the bottom alone.
    assert [a.get_ylabel() for a in axes[:, 0]] == ["y (m)"] * 2 and {a.get_ylabel() for a in axes[:, 1:].flat} == {""}
    assert {a.get_xlabel() for a in axes[0]} == {""} and axes[1, 0].get_xlabel() == axes[1, 5].get_xlabel() == "x (m)"
    shown = [(a.xaxis.get_tick_params(), a.yaxis.get_tick_params()) for a in (axes[0, 0], axes[1, 5])]
    assert [(x["labelbottom"], y["labelleft"]) for x, y in shown] == [(False, True), (True, False)]
    # 2.6 inches a map at most, 17 in all.
    assert figure.get_size_inches() == pytest.approx([6 * 2.6 + 0.7, (2.6 / 2 + 0.28) * 2 + 1.5])
    long = field_panel({"truth": [np.zeros((4, 8))] * 9}, ["t"] * 9)
    assert long.get_size_inches() == pytest.approx([17.0 + 0.7, 17 / 9 / 2 + 0.28 + 1.5])
    assert bars(figure, 2) == [
        ("reflectivity (dBZ)", list(REFLECTIVITY_LEVELS["nws"])),
        ("difference from truth (dB)", pytest.approx(difference_style(5.0)[2])),
    ]
    assert axes[0, 0].get_aspect() == 1.0 and len(figure.axes) == 14
    # Pixel numbers, cells of 2 x 2 pixels in the input.
    assert axes[0, 3].collections[0].get_coordinates()[-1, -1].tolist() == [8.0, 4.0]
    alone = field_panel({"truth": [np.zeros((4, 4))]}, ["a"], scale="meteonet", title="event")
    assert alone.get_size_inches() == pytest.approx([2.6 + 0.7, 2.6 + 0.28 + 1.5]) and alone.get_suptitle() == "event"
    assert len(alone.axes) == 2 and bars(alone, 1)[0][1] == list(REFLECTIVITY_LEVELS["meteonet"])
    with pytest.raises(ValueError, match="grids must divide one another, got 3 and 4 pixels"):
        field_panel({"truth": [np.zeros((4, 4))], "net": [np.zeros((3, 3))]}, ["a"])


def test_forecast_strip_map_by_map():
    observed = [np.full((4, 8), 30.0), np.full((4, 8), -32.0), None]
    forecast = [None, np.full((4, 8), 9.0), np.full((4, 8), 12.0)]
    figure = forecast_strip(observed, forecast, ["a", "b", "c"], x=np.arange(8.0), y=np.arange(4.0), title="event")
    axes, titles = visible(figure, 3, 3)
    assert titles == [
        ["observed, a", "observed, b", None],
        [None, "forecast, b", "forecast, c"],
        [None, "forecast minus observed, b", None],
    ]
    assert (values_of(axes[2, 1]) == 4.0).all(), "of fields lifted to 5 dBZ"
    assert [a.get_ylabel() for a in axes[:, 0]] == ["y (km)", "", ""]
    assert [a.get_ylabel() for a in axes[:, 1]] == ["", "y (km)", "y (km)"]
    assert axes[2, 1].get_xlabel() == "x (km)" and axes[1, 1].get_xlabel() == ""
    assert axes[0, 0].collections[0].get_coordinates()[-1, -1].tolist() == [7.5, 3.5]
    assert figure.get_size_inches() == pytest.approx([9.7, (1.5 + 0.28) * 3 + 1.6]) and figure.get_suptitle() == "event"
    assert [label for label, _ in bars(figure, 2)] == ["reflectivity (dBZ)", "forecast minus observed (dB)"]
    later = forecast_strip([observed[0], None], [None, forecast[1]], ["a", "b"])
    assert len(later.axes) == 2 + 1 and later.get_size_inches() == pytest.approx([6.7, 1.5 + 0.28 + 1.0])
    assert [a.get_title() for a in later.axes[:2]] == ["observed, a", "forecast, b"], "no empty row"
    wide = forecast_strip(observed * 3, [None] * 9, ["t"] * 9)
    assert wide.get_size_inches()[0] == pytest.approx(17.7)
    assert len(wide.axes) == 9 + 1, "no forecast at all"
    with pytest.raises(ValueError, match="expected 3 fields, one per time, got 3 and 2"):
        forecast_strip(observed, forecast[:2], ["a", "b", "c"])


def test_field_and_difference_maps():
    axes = Figure().subplots(1, 3)
    image = draw_difference(axes[0], [[np.nan, 4.0]], limit=5.0)
    assert image.norm.boundaries.tolist() == pytest.approx([-5, -4, -3, -2, -1, -0.25, 0.25, 1, 2, 3, 4, 5])
    assert image.get_array().mask.tolist() == [[True, False]] and axes[0].yaxis_inverted()
    image = draw_field(axes[1], np.zeros((3, 1)), x=[4.0], y=[0.0, 2.0, 4.0])
    assert image.get_coordinates()[[0, -1], [0, -1]].tolist() == [[3.5, -1.0], [4.5, 5.0]]
    assert not axes[1].yaxis_inverted()
    with pytest.raises(ValueError, match=r"field must have two dimensions \(y, x\), got shape \(3,\)"):
        draw_field(axes[2], np.zeros(3))


def test_curve_labels(tmp_path):
    (tmp_path / "a.csv").write_text("epoch,step,train_loss\n1,30,0.5\n0,10,1.0\n")
    axes = training_curves({"a": tmp_path / "a.csv"}, x="epoch", log_y=False).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 1.0], [1, 0.5]], "in order"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "loss", "linear")
    assert training_curves({"a": tmp_path / "a.csv"}).axes[0].get_yscale() == "log" and axes.get_legend()
    axes = spectra({"truth": ([0.1, 0.2, 0.5], [9.0, 0.0, 1.0])}, unit="m").axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 9.0], [2.0, 1.0]] and axes.xaxis_inverted()
    assert axes.get_xlabel() == "wavelength (m)" and axes.get_xscale() == axes.get_yscale() == "log"
    axes = draw_rank_histogram({"a": [0.3, 0.7], "b": [0.5, 0.5]}).axes[0]
    assert axes.get_ylim()[0] == 0 and [line.get_ydata()[0] for line in axes.lines] == [0.3, 0.5, 0.5, 0.5]
    assert axes.lines[1].get_color() == axes.lines[0].get_color() != axes.lines[2].get_color()
    assert axes.get_legend() and draw_daily_series([1], {"a": [2.0]}, "MSE").axes[0].get_xlabel() == "day"


def test_plot_does_not_change_matplotlib_settings():
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy(); import fastds.plot;"
        "assert 'matplotlib.pyplot' not in sys.modules; assert dict.__eq__(matplotlib.rcParams.copy(), before)"
    )
    done = forked.run(code, imports=forked.TORCH)
    assert done.returncode == 0, done.stderr


def test_no_two_lines_look_the_same():
    figure = draw_by_factor(("2", "4"), {f"method {k}": {"2": k, "4": k} for k in range(25)}, "gain")
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == 25


def test_a_method_is_drawn_at_the_factors_it_knows():
    """A curve has points only at the factors of its method, at their places among all factors."""
    figure = draw_by_factor(("2", "2x3", "4"), {"any": {"4": 3.0, "2": 1.0, "2x3": 2.0}, "one": {"4": 5.0}}, "gain")
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"any": [[0, 1], [1, 2], [2, 3]], "one": [[2, 5]]}
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["2", "2x3", "4"]

# SPDX-License-Identifier: Apache-2.0
"""Tests of the charts of reports: lines, labels and captions."""

import numpy as np
import pytest
import torch

from fastds.metrics import error_sums, power_spectrum
from fastds.report.curves import Curves
from fastds.tasks.fields import report as fields_report
from fastds.training import report as training_report


def test_errors_by_intensity_by_hand():
    truth, prediction = torch.tensor([[10.0, 12.0, 40.0, 80.0, -32.0]]), torch.tensor([[12.0, 8.0, 43.0, 60.0, 9.0]])
    sums = error_sums(prediction, truth, torch.tensor([[True, True, True, True, True]]), [10.0, 20.0, 70.0])
    assert sums.tolist() == [[2, -2, 20], [2, -7, 109]]  # 80 dBZ counts as 70
    sums = error_sums(prediction, truth, torch.tensor([[True, False, True, False, True]]), [10.0, 20.0, 70.0])
    assert sums.tolist() == [[1, 2, 4], [1, 3, 9]]


def test_spectrum_of_a_wave_peaks_at_its_wavelength():
    wave = 30 + 10 * torch.cos(2 * np.pi * (torch.arange(64) + 0.5) / 16).expand(64, 64)
    wavenumber, power = power_spectrum(wave)
    assert abs(wavenumber[power.argmax()] - 1 / 16) <= 1 / 128
    _, twice = power_spectrum(torch.stack([wave, wave]))
    np.testing.assert_allclose(twice, power)
    with pytest.raises(ValueError, match="fields must have shape"):
        power_spectrum(torch.zeros(3))


def test_spectrum_averages_over_rings():
    """The spectrum of 4 x 5 pixels is compared with an explicit DCT."""
    field = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) + 20
    rows, columns = ([[np.cos(np.pi * k * (x + 0.5) / n) for x in range(n)] for k in range(n)] for n in (4, 5))
    modes = np.array(rows) @ field.double().numpy() @ np.array(columns).T
    modes *= np.outer(np.where(np.arange(4), 0.5**0.5, 0.5), np.where(np.arange(5), 0.4**0.5, 0.2**0.5))
    k = np.hypot(*np.meshgrid(np.arange(4) / 8, np.arange(5) / 10, indexing="ij"))
    rings = [(k > 0) & (k < 0.25), (k >= 0.25) & (k < 0.5)]
    wavenumber, power = power_spectrum(field)
    assert wavenumber.tolist() == [0.125, 0.375]
    np.testing.assert_allclose(power, [np.mean(modes[ring] ** 2) for ring in rings], rtol=1e-6)


def test_errors_are_drawn_at_class_centres():
    curves, truth = Curves(None), torch.full((8, 8), 22.0)
    curves.add_errors({"a": truth + 3}, truth, torch.ones(8, 8, dtype=torch.bool))
    for axes in curves.charts()[0].draw().axes:  # mean and rms error
        points = np.concatenate([np.array(line.get_data(), float).T for line in axes.lines])
        assert points[points[:, 1] == 3].tolist() == [[22.5, 3]]


@pytest.mark.parametrize(("last", "scale"), [(0.19, "linear"), (0.21, "log"), (-2.1, "linear")])
def test_wide_range_curves_are_logarithmic(tmp_path, last, scale):
    (tmp_path / "m.csv").write_text(f"step,loss\n1,0.02\n2,0.05\n3,{last}\n")
    chart = training_report._make_chart("loss", {"": tmp_path / "m.csv"})
    assert chart.alt == f"loss by step: 0.02 at first, {last:.4g} at last"
    assert chart.draw().axes[0].get_yscale() == scale


def test_rank_histogram_describes_its_ends():
    (chart,) = fields_report._make_charts({"t": [0.5, 0.2, 0.1, 0.3]})
    assert "t: 0.500 below and 0.300 above all members" in chart.alt and fields_report._make_charts({}) == []


def test_empty_curves_are_omitted():
    curves = Curves(None)
    dry = torch.zeros(16, 16)
    curves.add_errors({"a": dry}, dry, torch.ones(16, 16, dtype=torch.bool))
    curves.add_spectra({"a": dry})
    assert curves.charts() == []

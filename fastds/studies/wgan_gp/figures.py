# SPDX-License-Identifier: Apache-2.0
"""Line figures of the WGAN-GP study, after the paper's figures 8 and 9: validation scores and scores by day."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping

import numpy as np

from fastds.plot import draw_daily_series
from fastds.report import Chart
from fastds.studies.common.figures import draw_validation_curves
from fastds.studies.wgan_gp.samples import Region

_INDICATORS = {
    "mse": "MSE (squared %)", "mae": "MAE (%)", "ssim": "SSIM", "psnr": "PSNR (dB)", "acc": "ACC", "tcc": "TCC"
}  # fmt: skip


def average_by_day(values: np.ndarray, regions: list[Region]) -> list[float]:
    """Average one number per sample over the tiles of each day."""
    found, start = [], 0
    for region in regions:
        part = np.reshape(values[start : start + len(region)], (len(region.days), len(region.tiles)))
        found += part.mean(1).tolist()
        start += len(region)
    return found


def make_charts(
    curves: Mapping[str, pathlib.Path], results: Mapping[str, Mapping[str, np.ndarray]], regions: list[Region]
) -> dict[str, Chart]:
    """Make the line charts, file name -> chart.

    Args:
        curves: method -> validation log.
        results: method -> score -> one number for each sample.
        regions: test regions.
    """
    found, days = {}, list(range(1, sum(len(region.days) for region in regions) + 1))
    if curves:
        draw = functools.partial(draw_validation_curves, curves, "validation CRPS of two members (%)")
        found["figure-08"] = Chart("Figure 8: validation error", f"Validation error of {', '.join(curves)}", draw)
        for score, label in _INDICATORS.items():
            options = {"column": f"val_{score}_one", "log_y": False}
            draw = functools.partial(draw_validation_curves, curves, f"validation {label}", **options)
            alt = f"Validation {label} of {', '.join(curves)}"
            found[f"figure-08-{score}"] = Chart(f"Figure 8: validation {label} of one member", alt, draw)
    shown = [name for name in results if not name.endswith("misaligned")]
    for score, label in _INDICATORS.items():
        lines = {name: average_by_day(results[name][score], regions) for name in shown}
        draw = functools.partial(draw_daily_series, days, lines, label)
        found[f"figure-09-{score}"] = Chart(f"Figure 9: {label} by day", f"{label} of {', '.join(lines)}", draw)
    return found

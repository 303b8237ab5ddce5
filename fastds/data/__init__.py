# SPDX-License-Identifier: Apache-2.0
"""Weather fields as xarray datasets: file formats, coordinates, radar data, writers and training samples."""

import importlib
from typing import TYPE_CHECKING, Any

from fastds.data.formats.array_files import open_array
from fastds.data.formats.hko7 import open_hko7
from fastds.data.formats.opening import open_dataset
from fastds.data.formats.radolan import open_radolan
from fastds.data.grid.grids import coarsen_grid, grid_spacing_m, refine_grid
from fastds.data.grid.times import refine_time, sequences, time_encoding, triples
from fastds.data.grid.value_checks import apply_metadata
from fastds.data.io.files import save_dataset
from fastds.data.io.output import add_history, coarsen_dataset, from_reflectivity, output_frames, output_shape
from fastds.data.io.statics import StaticMaps, static_maps
from fastds.data.radar.pixels import (
    DWD_Z_R,
    HKO_Z_R,
    PIXEL_SCALES,
    RAIN_THRESHOLDS,
    from_pixels,
    normalised_rates,
    recode_pixels,
    to_pixels,
)
from fastds.data.radar.preparation import (
    CEILING_DBZ,
    ECHO_FRACTION,
    FLOOR_DBZ,
    clip_reflectivity,
    coarsen,
    coarsen_mask,
    cut_to_multiple,
    echo_fraction,
    has_enough_echo,
    prepare,
    refine_mask,
    restore,
    valid_mask,
)
from fastds.data.radar.reflectivity import (
    ReflectivityInput,
    rate_to_reflectivity,
    reflectivity_to_rate,
    split_amount,
    to_reflectivity,
)
from fastds.data.radar.synthetic import synthetic_event
from fastds.data.reading import open_input

if TYPE_CHECKING:
    from fastds.data.samples.radar_triples import EpochSampler as EpochSampler
    from fastds.data.samples.radar_triples import EvaluationTriples as EvaluationTriples
    from fastds.data.samples.radar_triples import FrameStore as FrameStore
    from fastds.data.samples.radar_triples import RadarTriples as RadarTriples
    from fastds.data.samples.radar_triples import TimeBlock as TimeBlock
    from fastds.data.samples.radar_windows import RadarWindows as RadarWindows
    from fastds.data.samples.radar_windows import make_window as make_window

_NEED_TORCH = {
    "EpochSampler": "radar_triples",
    "EvaluationTriples": "radar_triples",
    "FrameStore": "radar_triples",
    "RadarTriples": "radar_triples",
    "RadarWindows": "radar_windows",
    "TimeBlock": "radar_triples",
    "make_window": "radar_windows",
}

__all__ = [
    "CEILING_DBZ",
    "DWD_Z_R",
    "ECHO_FRACTION",
    "FLOOR_DBZ",
    "HKO_Z_R",
    "PIXEL_SCALES",
    "RAIN_THRESHOLDS",
    "ReflectivityInput",
    "StaticMaps",
    "add_history",
    "apply_metadata",
    "clip_reflectivity",
    "coarsen",
    "coarsen_dataset",
    "coarsen_grid",
    "coarsen_mask",
    "cut_to_multiple",
    "echo_fraction",
    "from_pixels",
    "from_reflectivity",
    "grid_spacing_m",
    "has_enough_echo",
    "normalised_rates",
    "open_array",
    "open_dataset",
    "open_hko7",
    "open_radolan",
    "open_input",
    "output_frames",
    "output_shape",
    "prepare",
    "rate_to_reflectivity",
    "recode_pixels",
    "refine_grid",
    "refine_mask",
    "refine_time",
    "reflectivity_to_rate",
    "restore",
    "save_dataset",
    "sequences",
    "split_amount",
    "static_maps",
    "synthetic_event",
    "time_encoding",
    "to_pixels",
    "to_reflectivity",
    "triples",
    "valid_mask",
    *_NEED_TORCH,
]


def __getattr__(name: str) -> Any:
    # The training datasets import torch. All other names of this package work without it.
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(f"fastds.data.samples.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

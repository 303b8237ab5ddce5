# SPDX-License-Identifier: Apache-2.0
"""Radar fields as xarray datasets: files, variables, grids, the preparation of samples, synthetic events."""

from .amounts import split_amount
from .files import open_dataset, save_dataset
from .grid import coarsen_grid, grid_spacing_m, refine_grid
from .output import add_history, coarsen_dataset, from_reflectivity, output_frames, output_shape
from .preparation import (
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
from .reflectivity import ReflectivityInput, rate_to_reflectivity, reflectivity_to_rate, to_reflectivity
from .synthetic import synthetic_event
from .times import refine_time, time_encoding, triples

_NEED_TORCH = ("EpochSampler", "EvaluationTriples", "FrameStore", "RadarTriples", "TimeBlock")

__all__ = [
    "CEILING_DBZ",
    "ECHO_FRACTION",
    "FLOOR_DBZ",
    "ReflectivityInput",
    "add_history",
    "clip_reflectivity",
    "coarsen",
    "coarsen_dataset",
    "coarsen_grid",
    "coarsen_mask",
    "cut_to_multiple",
    "echo_fraction",
    "from_reflectivity",
    "grid_spacing_m",
    "has_enough_echo",
    "open_dataset",
    "output_frames",
    "output_shape",
    "prepare",
    "rate_to_reflectivity",
    "refine_grid",
    "refine_mask",
    "refine_time",
    "reflectivity_to_rate",
    "restore",
    "save_dataset",
    "split_amount",
    "synthetic_event",
    "time_encoding",
    "to_reflectivity",
    "triples",
    "valid_mask",
    *_NEED_TORCH,
]


def __getattr__(name):
    # The datasets for training need torch; files, grids and preparation work without loading it.
    if name in _NEED_TORCH:
        from . import radar_triples

        return getattr(radar_triples, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

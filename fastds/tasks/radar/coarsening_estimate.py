# SPDX-License-Identifier: Apache-2.0
"""Estimate how the cells of a radar field average finer cells, from the field itself.

Radar products have few distinct values, such as multiples of 0.5 dBZ. Averages over blocks of 2 x 2 pixels leave traces
of these values:

* The mean of four values in dBZ is a multiple of a quarter of the step.
* The mean of linear Z of a block with a single wet pixel is 6.02 dB below a multiple of the step.
* A mean in dBZ that includes the no-echo value has values far below the weakest echo next to strong echo. A mean of
  values that were raised to a floor has many values just above the floor.

Fields without these traces, such as fields with continuous values or fields that were rounded after averaging, are not
recognised.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from fastds._options import spell_argument
from fastds.data import ReflectivityInput
from fastds.data.radar.preparation import UNKNOWN_COARSENING
from fastds.inference.ood.score import select_evenly

# dB: steps of the values of radar products.
_STEPS = (1.0, 0.5, 0.2, 0.1)
_SINGLE_STEPS = (1.0, 0.5)
_TOLERANCE = 0.006  # dB: values that are packed with a step of 0.01 dB are rounded by up to 0.005
_MIN_CELLS = 300  # minimum number of cells for each decision
_STRONG_DBZ = 15.0  # the floor of the networks; values above are averages of dBZ in all modes
_PIXELS = 4  # pixels of a block
# A field has the values of a product, or of the means of four of them, if this share of its values is a multiple of the
# step. Random values have a share of 0.024 for a step of 0.5 dB, and of 0.1 for its quarter.
_MIN_ON_STEP = 0.97
_MIN_ON_QUARTER = 0.9
# Minimum share of the cells at the edge of echo that are a multiple of the step less 6.02 dB.
_MIN_SINGLE = 0.12
# dB: the mean Z of one pixel in four is lower by this number.
_SINGLE_DB = 10 * math.log10(_PIXELS)
# dB: share of the other echo with an offset, times the step, from which on this offset is compared; random values have
# 0.012. Largest difference of two equal offsets.
_MIN_REFERENCE, _MAX_DIFFERENCE = 0.03, 0.005
# Share of echo next to strong echo that is weaker than natural edges are.
_MIN_GAP = 0.008
# Number of cells up to 2 dB above the floor over the number of cells up to 2 dB below it.
_MIN_FLOOR_STEP = 1.6
_KERNEL = np.ones((3, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class CoarseningEstimate:
    """Estimate of the way in which a field averages finer cells.

    Attributes:
        mode: "linear_z", "dbz" or "plain_dbz", see fastds.data.coarsen; None if the field shows no average.
        reason: what the estimate is based on, for a note.
    """

    mode: str | None
    reason: str

    def choose_correction(self, smooth: bool) -> str | None:
        """Return the mode by which the result is corrected, or None.

        The correction for linear_z decreases the squared error of the result. The correction for means of dBZ decreases
        it only for smooth frames.

        Args:
            smooth: whether frames between input times are those of least squared error.
        """
        return self.mode if smooth or self.mode == "linear_z" else None

    def make_notes(self, smooth: bool) -> list[str]:
        """Return the note for the user about the estimate, if there is one.

        Args:
            smooth: see choose_correction.
        """
        if self.mode is None:
            return []
        option = spell_argument("coarsened")
        found = f"the input seems to be coarsened by {self.mode} ({self.reason})"
        if self.choose_correction(smooth) is not None:
            undo = f"{option} {UNKNOWN_COARSENING} leaves it uncorrected"
            return [f"{found}, and the result is corrected accordingly; {undo}"]
        return [f"{found}; {option} {self.mode} corrects the result accordingly"]


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Values in dBZ of the echo of some frames, by position.

    Attributes:
        strong: number of cells of strong echo.
        all: all echo.
        interior: strong echo without weak or missing cells around it.
        edge: echo with a dry cell next to it.
        inner: echo without a dry cell next to it.
        near: weak echo next to strong echo.
    """

    strong: int
    all: np.ndarray
    interior: np.ndarray
    edge: np.ndarray
    inner: np.ndarray
    near: np.ndarray


def estimate_coarsening(source: ReflectivityInput) -> CoarseningEstimate:
    """Estimate how the cells of radar fields average finer cells.

    Args:
        source: radar fields. Rain rates and amounts are not examined.

    Returns:
        The estimate, from at most eight frames that are evenly distributed over all.
    """
    if source.kind != "reflectivity":
        return CoarseningEstimate(None, f"a rain {source.kind} is not examined")
    frames = [source.frames([k])[0] for k in select_evenly(source.shape[0])]
    return estimate_frames(frames, source.no_echo)


def estimate_frames(frames: Sequence[np.ndarray], no_echo: float) -> CoarseningEstimate:
    """Estimate how the cells of frames average blocks of 2 x 2 finer cells.

    Args:
        frames: (H, W) each, in dBZ, NaN = missing.
        no_echo: value of cells without echo in dBZ. Lower values count as no echo.

    Returns:
        The estimate.
    """
    lowest = min((float(np.nanmin(z)) for z in frames if not np.isnan(z).all()), default=no_echo)
    dry = max(no_echo, lowest)
    cells = _sort_cells(frames, dry) if frames else None
    if cells is None or len(cells.all) < _MIN_CELLS:
        return CoarseningEstimate(None, "there is too little echo")
    for step in _STEPS:
        if _compute_share_on_step(cells.all, step) >= _MIN_ON_STEP:
            return CoarseningEstimate(None, f"values are multiples of {step:g} dBZ, as of a radar product")
    averages = cells.interior if len(cells.interior) >= _MIN_CELLS else cells.all
    for step in _STEPS:
        if _compute_share_on_step(averages, step / _PIXELS) >= _MIN_ON_QUARTER:
            return _classify_dbz_mean(cells, dry, step)
    for floor, step in itertools.product((None, _STRONG_DBZ), _SINGLE_STEPS):
        if _has_single_pixels(cells, floor, step):
            text = f"many values at the edges of echo are those of one pixel of {step:g} dBZ steps in four"
            return CoarseningEstimate("linear_z", text)
    return CoarseningEstimate(None, "values have no trace of an average")


def _classify_dbz_mean(cells: _Cells, dry: float, step: float) -> CoarseningEstimate:
    """Return whether means in dBZ are of values above a floor, which is the floor of the networks, or of all values."""
    text = f"values are multiples of {step / _PIXELS:g} dBZ"
    if dry >= _STRONG_DBZ - _TOLERANCE:
        return CoarseningEstimate("dbz", f"{text} and at least {dry:g} dBZ")
    gap = np.count_nonzero(cells.near < dry + 0.55 * (_STRONG_DBZ - dry)) / max(cells.strong, 1)
    above, below = (
        np.count_nonzero((cells.all > low) & (cells.all <= low + 2)) for low in (_STRONG_DBZ, _STRONG_DBZ - 2)
    )
    has_floor = above >= _MIN_FLOOR_STEP * below
    if has_floor and gap < _MIN_GAP:
        return CoarseningEstimate("dbz", f"{text}, with many just above {_STRONG_DBZ:g} dBZ")
    return CoarseningEstimate("plain_dbz", f"{text}, with values between weak echo and no echo")


def _has_single_pixels(cells: _Cells, floor: float | None, step: float) -> bool:
    """Return whether many cells at the edge of echo are means of linear Z of one pixel of a product and three dry ones.

    Args:
        cells: values of the echo.
        floor: see _invert_single.
        step: step of the values of the product in dB.
    """
    single = _invert_single(cells.edge, floor)
    if len(single) < _MIN_CELLS:
        return False
    share, offset = _find_offset(single, step)
    # In a field that is in part a product, cells at the edges have the offset of the others before the inversion, which
    # adds 6.02 dB for weak echo. Most products have the offset 0.
    share_of_others, offset_of_others = _find_offset(cells.inner, step)
    if share_of_others < _MIN_REFERENCE / step:
        offset_of_others = 0.0
    finest = min(_SINGLE_STEPS)  # multiples of 0.5 dBZ have two offsets for a step of 1 dBZ
    is_product = abs((offset - offset_of_others) % finest - _SINGLE_DB % finest) < _MAX_DIFFERENCE
    return share >= _MIN_SINGLE and not is_product


def _sort_cells(frames: Sequence[np.ndarray], dry: float) -> _Cells:
    """Return the echo of frames by position; values up to `dry` are no echo."""
    found: list[list[np.ndarray]] = [[], [], [], [], []]
    strong_count = 0
    for z in frames:
        known = np.where(np.isnan(z), -np.inf, z)
        echo = known > dry + _TOLERANCE
        strong = known > _STRONG_DBZ + _TOLERANCE
        near = cv2.dilate(strong.astype(np.uint8), _KERNEL) > 0
        interior = cv2.erode(strong.astype(np.uint8), _KERNEL) > 0
        no_echo = (~echo & ~np.isnan(z)).astype(np.uint8)
        edge = echo & (cv2.dilate(no_echo, _KERNEL) > 0)
        for values, mask in zip(found, (echo, interior, edge, echo & ~edge, echo & near & ~strong), strict=True):
            values.append(z[mask])
        strong_count += int(np.count_nonzero(strong))
    return _Cells(strong_count, *(np.concatenate(values).astype(np.float64) for values in found))


def _compute_share_on_step(values: np.ndarray, step: float) -> float:
    """Return the share of values that are multiples of a step, plus the offset for which this share is largest."""
    return _find_offset(values, step)[0]


def _find_offset(values: np.ndarray, step: float) -> tuple[float, float]:
    """Find the offset for which most values are multiples of a step plus the offset.

    Args:
        values: in dB.
        step: in dB.

    Returns:
        The share of these values, and the offset in dB, from 0 to the step. 0 and 0 if there are no values.
    """
    if not len(values):
        return 0.0, 0.0
    width = 2 * _TOLERANCE
    bins = max(1, math.floor(step / (width / 4)))
    residue = np.mod(values, step) / step
    counts = np.bincount(np.minimum((residue * bins).astype(np.int64), bins - 1), minlength=bins)
    window = max(1, round(width / step * bins))
    circular = np.concatenate([counts, counts[: window - 1]])
    sums = np.convolve(circular, np.ones(window), "valid")
    first = int(sums.argmax())
    # the centre of the values within the window
    places = np.arange(first, first + window)
    centre = np.average(places + 0.5, weights=np.maximum(circular[places], 1e-9))
    return float(sums[first] / len(values)), float(centre / bins * step % step)


def _invert_single(values: np.ndarray, floor: float | None) -> np.ndarray:
    """Return the reflectivity of the wet pixel of blocks whose mean linear Z is given, if a single pixel is wet.

    Args:
        values: reflectivity of the mean in dBZ.
        floor: reflectivity in dBZ that dry pixels count as; None: they count as Z = 0. Values that cannot be such
            means are left out.
    """
    if floor is None:
        return values + _SINGLE_DB
    above = _PIXELS * 10 ** ((values[values > floor + _TOLERANCE] - floor) / 10) - (_PIXELS - 1)
    return floor + 10 * np.log10(above)

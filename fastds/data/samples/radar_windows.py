# SPDX-License-Identifier: Apache-2.0
"""Radar samples for nowcasting: windows of consecutive frames, m known and n future ones."""

import numpy as np
import torch

from fastds.data.radar import preparation
from fastds.data.samples.radar_triples import FrameStore, Source

NOWCAST_FLOOR_DBZ = 0.0
NOWCAST_CEILING_DBZ = 60.0


class RadarWindows(torch.utils.data.Dataset):
    """Whole frames of one source in windows of known + future frames at equal intervals, found by their times.

    No window spans a gap in time. Rows and columns at the end are cut to a multiple of `scale`.

    Args:
        source: A path, TimeBlock, Dataset, DataArray in dBZ, or FrameStore.
        known: Number of input frames, m.
        future: Number of target frames, n.
        interval: Interval between frames of a window in multiples of the cadence (the paper's stride).
        every: Windows start only at multiples of `every` intervals after the first frame. With known + future, windows
            do not overlap, as in the paper; with 1, a window starts at every frame.
        scale: Coarsening of the grid.
        mode: Coarsening mode, see `coarsen`.
        floor: dBZ that becomes 0.
        ceiling: dBZ that becomes 1.

    Attributes:
        store: FrameStore.
        index: (number, known + future) indices of the frames of every window.

    Sample: see `make_window`.

    Raises:
        ValueError: The source has no such window.

    Source: Ma, Zhang and Liu 2024, DB-RNN, section V-B.
    """

    def __init__(
        self,
        source: Source | FrameStore,
        *,
        known: int = 5,
        future: int = 5,
        interval: int = 1,
        every: int = 1,
        scale: int = 1,
        mode: str = "dbz",
        floor: float = NOWCAST_FLOOR_DBZ,
        ceiling: float = NOWCAST_CEILING_DBZ,
    ):
        self.store = source if isinstance(source, FrameStore) else FrameStore(source)
        self.known, self.interval, self.scale, self.mode = known, interval, scale, mode
        self.floor, self.ceiling = floor, ceiling
        self.index = self.store.sequences(known + future, interval, every)
        if not len(self.index):
            raise ValueError(
                f"{self.store.name}: no {known + future} frames at equal intervals of "
                f"{interval * self.store.cadence:g} s among {self.store.shape[0]} frames"
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        z = preparation.cut_to_multiple(self.store.dbz(self.index[number]), self.scale)
        sample = make_window(z, self.known, scale=self.scale, mode=self.mode, floor=self.floor, ceiling=self.ceiling)
        return {key: torch.from_numpy(value) for key, value in sample.items()}


def make_window(
    z: np.ndarray,
    known: int,
    *,
    scale: int = 1,
    mode: str = "dbz",
    floor: float = NOWCAST_FLOOR_DBZ,
    ceiling: float = NOWCAST_CEILING_DBZ,
) -> dict[str, np.ndarray]:
    """Make a sample from consecutive frames.

    Args:
        z: (m + n, H, W) dBZ, NaN where missing; H and W multiples of `scale`.
        known: m.
        scale: Coarsening of the grid.
        mode: Coarsening mode, see `coarsen`.
        floor: dBZ that becomes 0.
        ceiling: dBZ that becomes 1.

    Returns:
        Dictionary of x (m, 1, h, w) and y (n, 1, h, w), float32 in [0, 1] with 0 where missing, and valid (m + n, 1,
        h, w), bool.
    """
    coarse = preparation.coarsen(z, scale, mode, floor)
    valid = preparation.valid_mask(coarse)[:, None]
    frames = np.ascontiguousarray(preparation.prepare(coarse, floor, ceiling)[:, None], dtype=np.float32)
    return {"x": frames[:known], "y": frames[known:], "valid": valid}

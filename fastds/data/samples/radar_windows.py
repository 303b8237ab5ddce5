# SPDX-License-Identifier: Apache-2.0
"""Windows of consecutive radar fields: m known ones in, the n that follow out."""

import numpy as np
import torch

from fastds.data.radar import preparation
from fastds.data.samples.radar_triples import FrameStore, Source

NOWCAST_FLOOR_DBZ = 0.0
NOWCAST_CEILING_DBZ = 60.0


class RadarWindows(torch.utils.data.Dataset):
    """Whole fields of one source in windows of known + future frames at equal intervals, found by time stamp.

    No window has a gap in time inside. The grid is cut at its end to a multiple of `scale`.

    Args:
        source: a path, TimeBlock, Dataset, DataArray in dBZ, or FrameStore.
        known, future: m and n, frames.
        interval: frames of the file from one frame of a window to the next (the paper's stride).
        every: windows start only at multiples of `every` intervals after the first frame; known + future: windows do
            not overlap, as in the paper; 1: at every frame.
        scale: coarsening of the grid, and mode, its way, see `preparation.coarsen`.
        floor, ceiling: dBZ of 0 and 1.
    Sample: see `make_window`. Deterministic.
    Attributes: store; index (number, known + future), frames of every window.
    Raises: ValueError where the file holds no such window.
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
    """A sample from consecutive fields z (m + n, H, W) in dBZ, NaN = missing; H, W multiples of scale.

    known: m. scale, mode: of the coarsening, see `coarsen`. floor, ceiling: dBZ that become 0 and 1.

    Returns: dict of x (m, 1, h, w) and y (n, 1, h, w), float32 in [0, 1] with missing -> 0, and valid (m + n, 1, h, w)
        bool, False where a frame is missing.
    """
    coarse = preparation.coarsen(z, scale, mode, floor)
    valid = preparation.valid_mask(coarse)[:, None]
    frames = np.ascontiguousarray(preparation.prepare(coarse, floor, ceiling)[:, None], dtype=np.float32)
    return {"x": frames[:known], "y": frames[known:], "valid": valid}

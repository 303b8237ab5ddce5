# SPDX-License-Identifier: Apache-2.0
"""Training sequences from radar files: crops at fixed positions, or crops that move with the echo."""

import pathlib
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds import data as fd
from fastds._options import spell_name
from fastds.data.samples.radar_triples import FrameStore, check_not_missing
from fastds.inference.ood.statistics import compute_motion_statistics
from fastds.models.baselines.boundary import fill_missing
from fastds.models.baselines.extrapolation import compute_trajectories
from fastds.models.baselines.motion import estimate_backward_flow
from fastds.tasks.nowcast.config import DataConfig
from fastds.training.modules import BaseDataModule
from fastds.training.radar_files import (
    make_synthetic_events,
    make_time_blocks,
    select_validation_values,
    share_weights,
)

_MAX_ATTEMPTS = 24
_ECHO_DBZ = 15.0
_MIN_VALID = 0.5  # fraction of a crop


class NowcastCrops(torch.utils.data.Dataset):
    """Random crops of m + n consecutive frames.

    A sample is drawn by source, interval, scale, time window, position, flips, transpose and time direction. With
    `moving`, the crop moves with the optical flow of the input frames: each frame is sampled at the positions, at its
    time, of the air in the pixels of the last input frame, as for the inputs of LagrangianRNN. Forecast frames are
    interpolated bicubically, which hardly smooths the truth. With config.pool, there is a limited number of crops,
    which are cached in half precision; flips, transposes and shifts are drawn again for each sample.

    Args:
        sources: paths, TimeBlocks, Datasets or DataArrays, see FrameStore.
        config: see DataConfig.
        samples: number of samples.
        scales: coarsening factors to draw from.
        intervals: multiples of the time step to draw from.
        weights: relative sampling weight of each source; None: equal.
        moving: whether crops move with the optical flow.
        augment: whether config.augment (flips and transposes), config.reverse (time reversal) and config.shift (added
            dBZ) are applied.
        seed: random seed. Sample i depends on (seed, i) only; i >= samples is allowed.

    Returns:
        Samples are dicts of frames (m + n, 1, h, w) float32 in [0, 1], missing pixels 0, and valid (m + n, 1, h, w)
        bool.

    Raises:
        ValueError: a source is too small or too short.
    """

    def __init__(
        self,
        sources,
        config: DataConfig,
        *,
        samples: int,
        scales,
        intervals,
        weights=None,
        moving: bool,
        augment: bool,
        seed: int,
    ):
        self.stores = [FrameStore(source) for source in sources]
        check_not_missing(self.stores)
        self.config, self.samples, self.moving, self.augment, self.seed = config, samples, moving, augment, seed
        self.windows = [
            {interval: found for interval in intervals if len(found := self._windows(store, interval))}
            for store in self.stores
        ]
        self.intervals = [[interval for interval in intervals if interval in found] for found in self.windows]
        self.scales = [[s for s in scales if s * config.crop <= min(store.shape[1:])] for store in self.stores]
        for store, windows, fitting in zip(self.stores, self.windows, self.scales, strict=True):
            if not windows:
                raise ValueError(
                    f"{store.name}: no {config.known + config.fewest} frames at equal intervals among {store.shape[0]}"
                )
            if not fitting:
                raise ValueError(
                    f"{store.name}: the grid {store.shape[1:]} is smaller than {spell_name('data.crop')} {config.crop}"
                )
        share = np.ones(len(self.stores)) if weights is None else np.asarray(weights, dtype=np.float64)
        self.share = share / share.sum()
        self._pool: dict[Any, Any] = {}

    def _windows(self, store: FrameStore, interval: int) -> list[np.ndarray]:
        """Return the frame numbers of all windows; windows with fewer than m + n frames are last."""
        c = self.config
        found: dict[Any, Any] = {}
        for future in range(c.future, c.fewest - 1, -1):
            for window in store.sequences(c.known + future, interval):
                found.setdefault(int(window[0]), window)
        return list(found.values())

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = int(index) % self.config.pool if self.config.pool else int(index)
        if number in self._pool:
            frames, valid = self._pool[number]
        else:
            frames, valid = self._draw(np.random.default_rng((self.seed, number)))
            if self.config.pool:
                frames, valid = self._pool[number] = frames.half(), valid
        if self.augment:
            rng = np.random.default_rng((self.seed, int(index), 1))
            if self.config.augment:
                frames, valid = _flip_and_transpose(rng, frames, valid)
            frames = self._add_dbz(frames.float(), float(rng.uniform(self.config.shift[0], self.config.shift[1])))
        return {"frames": frames.float().contiguous(), "valid": valid.contiguous()}

    def _add_dbz(self, frames: Tensor, dbz: float) -> Tensor:
        """Return the frames with `dbz` added to the echo; dry pixels stay dry."""
        shifted = (frames + dbz / (self.config.ceiling - self.config.floor)).clamp(0, 1)
        return torch.where(frames > 0, shifted, frames)

    def _draw(self, rng) -> tuple[Tensor, Tensor]:
        c = self.config
        number = int(rng.choice(len(self.stores), p=self.share))
        store, scale = self.stores[number], int(rng.choice(self.scales[number]))
        windows = self.windows[number][int(rng.choice(self.intervals[number]))]
        window = windows[int(rng.integers(len(windows)))]
        if self.augment and c.reverse and rng.integers(2) and len(window) == c.known + c.future:
            window = window[::-1]
        return self._read(store, scale, window, self._draw_place(rng, store, scale, window[c.known - 1]))

    def _draw_place(self, rng, store: FrameStore, scale: int, frame: int) -> list[int]:
        """Return the first row and column, on the coarse grid, of a crop with enough echo.

        If no attempt has enough echo, the attempt with most echo is returned.
        """
        side, best = self.config.crop * scale, None
        for _ in range(_MAX_ATTEMPTS):
            place = [int(rng.integers(size // scale - self.config.crop + 1)) for size in store.shape[1:]]
            z = store.dbz([frame], *(slice(p * scale, p * scale + side) for p in place))
            covered = np.isfinite(z).mean()
            echo = fd.echo_fraction(z, _ECHO_DBZ) if covered >= _MIN_VALID else covered - 1.0
            if best is None or echo > best[0]:
                best = echo, place
            if echo >= self.config.minimum_echo:
                break
        assert best is not None
        return best[1]

    def _read(self, store: FrameStore, scale: int, window: np.ndarray, place: list[int]) -> tuple[Tensor, Tensor]:
        """Read frames and valid mask (m + n, 1, crop, crop) of a crop.

        A crop that moves is read with a halo of `halo` pixels.
        """
        c, halo = self.config, self.config.halo if self.moving else 0
        spans = [
            (max(p - halo, 0), min(p + c.crop + halo, size // scale))
            for p, size in zip(place, store.shape[1:], strict=True)
        ]
        dbz = store.dbz(window, *(slice(a * scale, b * scale) for a, b in spans))
        z = torch.from_numpy(fd.coarsen(dbz, scale, "dbz", floor=c.floor))[:, None]
        x = (z.clamp(c.floor, c.ceiling) - c.floor) / (c.ceiling - c.floor)
        valid = ~x.isnan()
        corner = [p - a for p, (a, _) in zip(place, spans, strict=True)]
        if self.moving:
            x, valid = follow_motion(x, valid, c.known, corner, c.crop)
        else:
            x = torch.where(valid, x, 0.0)
        absent = c.known + c.future - len(x)
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, absent)), F.pad(valid, (0, 0, 0, 0, 0, 0, 0, absent))


def follow_motion(x: Tensor, valid: Tensor, known: int, corner: list[int], crop: int) -> tuple[Tensor, Tensor]:
    """Sample frames at the positions of the air that is in a crop at the initialization time.

    The initialization time is that of frame known - 1. The positions follow the steady optical flow of the known frames
    backward and forward in time.

    Args:
        x: (T, 1, H, W) in [0, 1], NaN = missing.
        valid: (T, 1, H, W) bool.
        known: number m of frames from which the motion is estimated.
        corner: first row and column of the crop.
        crop: side of the crop.

    Returns:
        Frames and valid mask (T, 1, crop, crop); positions outside the given fields are not valid.
    """
    flow, inputs = estimate_backward_flow(x[None, :known]), fill_missing(x[None, :known])
    back, ahead = compute_trajectories(flow, known - 1)[0], compute_trajectories(-flow, max(len(x) - known, 1))[0]
    shifts = torch.cat([back.flip(0), torch.zeros_like(back[:1]), ahead[: len(x) - known]])
    rows, columns = (slice(c, c + crop) for c in corner)
    size = x.shape[-2:]
    start = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))
    at = (start + shifts)[:, :, rows, columns]
    limits = torch.tensor([n - 1.0 for n in size]).view(2, 1, 1)
    inside = ((at >= 0) & (at <= limits)).all(1, keepdim=True)
    grid = (2 * at / limits.clamp(min=1) - 1).flip(1).permute(0, 2, 3, 1)
    options: dict[str, Any] = {"padding_mode": "border", "align_corners": True}
    moved = F.grid_sample(inputs[0], grid[:known], mode="bilinear", **options)
    truth = torch.where(valid[known:], x[known:], 0.0)
    truth = F.grid_sample(truth, grid[known:], mode="bicubic", **options).clamp(0, 1)
    whole = F.grid_sample(valid.float(), grid, mode="bilinear", **options) > 0.999
    return torch.cat([moved, truth]), whole & inside


def _flip_and_transpose(rng, *fields: Tensor) -> list[Tensor]:
    """Apply the same random flips and transpose to all fields."""
    flips, transpose = [axis for axis in (-1, -2) if rng.integers(2)], rng.integers(2)
    flipped = [field.flip(flips) for field in fields]
    return [field.transpose(-1, -2) for field in flipped] if transpose else flipped


class NowcastData(BaseDataModule):
    """Training crops, and fixed validation crops of later times, at all scales; see DataConfig.intervals.

    Args:
        config: see DataConfig.
        moving: see NowcastCrops; used for LagrangianRNN.
        seed: random seed of the samples.
        devices: see BaseDataModule.
    """

    def __init__(self, config: DataConfig, moving: bool, seed: int = 0, devices: int = 1):
        super().__init__(config, seed, devices)
        self.moving = moving

    def compute_statistics(self, sample: dict) -> dict[str, float]:
        """Return the statistics of the last two input frames of a sample, for the ranges in the model card."""
        return compute_motion_statistics(sample["frames"][self.config.known - 2 : self.config.known, 0])

    def compute_input_ranges(self, *samples: int) -> dict[str, list[float]]:
        """Return the ranges of the input statistics of training crops at fixed positions, for the model card."""
        if not self.moving or self.config.known < 2:
            return super().compute_input_ranges(*samples) if self.config.known > 1 else {}
        fixed = NowcastData(self.config, moving=False, seed=self.seed, devices=self.devices)
        with warnings.catch_warnings():  # warnings about unusable files have been issued before
            warnings.simplefilter("ignore", UserWarning)
            fixed.setup()
        return fixed.compute_input_ranges(*samples)

    def setup(self, stage: str | None = None) -> None:
        if self.training is not None:
            return
        c = self.config
        least = (c.known + c.fewest - 1) * min(c.intervals) + 1
        train, validation = make_time_blocks(c, least, c.crop * min(c.scales))
        self.files = [pathlib.Path(block.path).name for block in train]
        events = make_synthetic_events(c.synthetic_events, self.seed, frames=max(24, c.known + c.future))
        weights = share_weights(c.weights, len(train), len(events))
        self.training = NowcastCrops(
            [*train, *events], c, samples=c.epoch_samples, scales=c.scales, intervals=c.intervals, weights=weights,
            moving=self.moving, augment=True, seed=self.seed,
        )  # fmt: skip
        self.validation = NowcastCrops(
            validation, c, samples=c.validation_samples, scales=sorted(set(c.scales)),
            intervals=select_validation_values(c.intervals), moving=self.moving, augment=False, seed=self.seed + 1,
        )  # fmt: skip

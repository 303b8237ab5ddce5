# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation samples from radar files: two coarse frames in, three fine frames out."""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.grid import times
from fastds.data.grid.plausible import MEND_FIRST
from fastds.data.radar import preparation
from fastds.data.radar.reflectivity import ReflectivityInput, to_reflectivity
from fastds.data.samples.augmentation import augment
from fastds.data.samples.dynamic_fields import DynamicFields

_ATTEMPTS = 24
_MISSING_CODE = np.uint8(255)


class Draw(NamedTuple):
    """Which sample it is: the number of its source, three frames of that, the coarsening of the truth, the way of
    coarsening, and the first row and column of the crop in coarse pixels."""

    source: int
    triple: tuple[int, ...]
    scale: int
    mode: str
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class TimeBlock:
    """Some consecutive frames of the file `path`: indices start, ..., stop - 1 after sorting by time (stop None: to the
    end) of the variable var (None: found as by to_reflectivity)."""

    path: str
    start: int = 0
    stop: int | None = None
    var: str | None = None


Source: TypeAlias = str | os.PathLike | TimeBlock | xr.Dataset | xr.DataArray


class FrameStore:
    """The frames of one source in memory, one byte a pixel where the values lie on a 0.5 dBZ lattice, else float32.

    Args:
        source: a path, a TimeBlock, an xarray.Dataset, or a DataArray (time, y, x) in dBZ.
    Attributes: name; seconds (T,) since the first frame; shape (T, H, W); data and table (None for float32 data);
    missing, whether every pixel is.
    """

    def __init__(self, source: Source):
        field, self.name = _read(source)
        self.seconds = times.seconds_since_first(field["time"].values)
        self.cadence = times.most_frequent_step(self.seconds)
        values = np.asarray(field.values, dtype=np.float32)
        self.missing = bool(np.isnan(values).all())
        self.data, self.table = _pack(values)
        self.shape = self.data.shape

    def dbz(
        self, frames: Sequence[int] | np.ndarray, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Reflectivity (len(frames), h, w) in dBZ, float32, NaN where missing."""
        part = np.stack([self.data[frame, rows, columns] for frame in frames])
        return part if self.table is None else self.table[part]

    def always_valid(self) -> np.ndarray:
        """Pixels (H, W) that are missing in no frame."""
        missing = np.isnan if self.table is None else lambda codes: codes == _MISSING_CODE
        return ~np.logical_or.reduce([missing(frame) for frame in self.data])

    def triples(self, interval: int = 1, every: int = 1) -> np.ndarray:
        """Index triples (n, 3) at `interval` times the cadence."""
        return self.sequences(3, interval, every)

    def sequences(self, length: int, interval: int = 1, every: int = 1) -> np.ndarray:
        """Indices (n, length) of frames at `interval` times the cadence, see times.sequences."""
        return times.sequences(self.seconds, length, interval * self.cadence, every)


def check_not_missing(stores: Sequence[FrameStore]) -> None:
    """ValueError where every pixel of every source is missing."""
    if all(store.missing for store in stores):
        names = ", ".join(store.name for store in stores)
        raise ValueError(f"there is nothing to learn from: every pixel of {names} is missing")


class RadarTriples(torch.utils.data.Dataset):
    """Random training samples: coarse frames t and t + 2 D in, fine frames t, t + D, t + 2 D out.

    A sample draws a source, an interval D (multiples of the cadence of the file), a scale (the truth itself is the
    file coarsened by 1, 2 or 4), a way of coarsening (see `preparation.coarsen`), a crop on block borders, flips, a
    transpose and the direction of time.
    Users bring other grids and cadences than the training files: hence the mixture. To draw a value more often, repeat
    it.

    Args:
        sources: paths, TimeBlocks, Datasets, DataArrays or FrameStores.
        crop: side of the coarse crop in pixels; the fine crop has twice that.
        samples: length of the dataset; sample i depends on (seed, i) only, and i >= samples is allowed (see
            EpochSampler).
        scales, intervals, modes: values to draw from.
        weights: relative share of each source; None: equal.
        floor, ceiling: dBZ, see `preparation.prepare`.
        minimum_echo, minimum_valid: a crop needs this share of echo in its valid fine pixels (mean of three frames)
            and this share of valid ones; after 24 attempts the attempt with most echo is taken.
        augment: flips and transposes. reverse: time reversal; None: as augment.
        fixed: the samples are these draws and no others: every one once in a pass over them, in an order drawn anew
            for each pass; None: samples are drawn at random.
        flow: None, or a callable on whole coarse frames: (2, h, w) float32 in [0, 1] -> (2, 2, h, w) displacements
            (dy, dx) in pixels, [0] from the first frame to the second, [1] back. Computed once per (source, scale,
            triple) from frames coarsened in dBZ.
        statics: None, or per source its static maps (S, H, W), normalised; the sample gets their means over coarse
            pixels.
        dynamics: None, or per source its DynamicFields, D more channels of x.
    Sample: dict of x (2, 1 + D, h, w), y (3, 1, 2h, 2w) float32 in [0, 1] with missing -> 0; valid (3, 1, 2h, 2w) bool:
        the fine pixel is valid and so are the input blocks above it; flow (1, 2, 2, h, w) if asked for; static (S, h,
        w) where there are statics.
    Deterministic by (seed, index); safe in DataLoader workers (call `cache_flow()` before they start).
    """

    def __init__(
        self,
        sources: Iterable[Source | FrameStore],
        *,
        crop: int = 48,
        samples: int = 10_000,
        scales: Sequence[int] = (1, 2, 4),
        intervals: Sequence[int] = (1, 2, 3),
        modes: Sequence[str] = preparation.COARSENING_MODES,
        weights: Sequence[float] | None = None,
        floor: float = preparation.FLOOR_DBZ,
        ceiling: float = preparation.CEILING_DBZ,
        minimum_echo: float = preparation.ECHO_FRACTION,
        minimum_valid: float = 0.5,
        augment: bool = True,
        reverse: bool | None = None,
        flow: Callable[[np.ndarray], np.ndarray] | None = None,
        statics: Sequence[np.ndarray] | None = None,
        dynamics: Sequence[DynamicFields] | None = None,
        fixed: Sequence[Draw] | None = None,
        seed: int = 0,
    ):
        self.statics, self.dynamics, self.fixed = statics, dynamics, fixed
        self.stores = [source if isinstance(source, FrameStore) else FrameStore(source) for source in sources]
        check_not_missing(self.stores)
        self.crop, self.samples, self.modes, self.seed = int(crop), int(samples), tuple(modes), int(seed)
        preparation.check_modes(self.modes)
        self.floor, self.ceiling, self.minimum_echo, self.minimum_valid = floor, ceiling, minimum_echo, minimum_valid
        self.augment, self.reverse, self.flow = augment, augment if reverse is None else reverse, flow
        self.scales = [
            [scale for scale in scales if 2 * scale * self.crop <= min(store.shape[1:])] for store in self.stores
        ]
        self.triples = [
            {interval: found for interval in intervals if len(found := store.triples(interval))}
            for store in self.stores
        ]
        self.intervals = [[interval for interval in intervals if interval in found] for found in self.triples]
        for store, fitting, found in zip(self.stores, self.scales, self.triples, strict=True):
            if not fitting:
                raise ValueError(
                    f"{store.name}: a coarse crop of {crop} needs {2 * min(scales) * crop} fine pixels a side, "
                    f"the grid is {store.shape[1:]}"
                )
            if not found:
                raise ValueError(f"{store.name}: no three frames at equal intervals among {store.shape[0]} frames")
        share = np.ones(len(self.stores)) if weights is None else np.asarray(weights, dtype=np.float64)
        if share.shape != (len(self.stores),) or not np.all(share >= 0) or not share.sum() > 0:
            raise ValueError(
                f"weights must be {len(self.stores)} non-negative numbers, one per source, got {weights!r}"
            )
        self.share = share / share.sum()
        self._flows = {}

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, int(index)))
        draw, z = self.draw(rng) if self.fixed is None else (self._fixed(int(index)), None)
        sample = self.read(draw, z)
        if self.augment or self.reverse:
            turns = rng.integers(0, 2, 4).astype(bool) & [*3 * [self.augment], self.reverse]
            sample = augment(sample, *turns)
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.items()}

    def only(self, fixed: Sequence[Draw]) -> "RadarTriples":
        """A dataset of these draws alone, never turned, of the same sources in memory."""
        other = copy.copy(self)
        other.fixed, other.samples, other.augment, other.reverse = fixed, len(fixed), False, False
        return other

    def read(self, draw: Draw, z: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The sample of a draw, not turned; z: its fields, where they are at hand."""
        number, triple, scale, mode, row, column = draw
        rows, columns = self.window(draw)
        z = self.stores[number].dbz(triple, rows, columns) if z is None else z
        sample = make_sample(z, scale=scale, mode=mode, floor=self.floor, ceiling=self.ceiling)
        if self.dynamics is not None:
            further = self.dynamics[number].coarse(np.asarray(triple[::2]), 2 * scale, rows, columns)
            sample["x"] = np.concatenate([sample["x"], further], 1)
        if self.flow is not None:
            whole = self._coarse_flow(number, scale, triple)
            sample["flow"] = whole[:, :, row : row + self.crop, column : column + self.crop].astype(np.float32)[None]
        if self.statics is not None:
            sample["static"] = preparation.coarsen(self.statics[number][:, rows, columns], 2 * scale)
        return sample

    def window(self, draw: Draw) -> tuple[slice, slice]:
        """Rows and columns of a draw on the grid of its source."""
        block = 2 * draw.scale
        return tuple(slice(block * first, block * (first + self.crop)) for first in (draw.row, draw.column))

    def _fixed(self, index: int) -> Draw:
        """Of fixed draws the one of an index."""
        turn, place = divmod(index, len(self.fixed))
        return self.fixed[np.random.default_rng((self.seed, 1, turn)).permutation(len(self.fixed))[place]]

    def draw(self, rng: np.random.Generator, attempts: int = _ATTEMPTS) -> tuple[Draw, np.ndarray]:
        """A sample at random and its fields (3, H, W) in dBZ; attempts: places among which one with echo is looked
        for."""
        number = int(rng.choice(len(self.stores), p=self.share))
        store, scale = self.stores[number], int(rng.choice(self.scales[number]))
        triple = rng.choice(self.triples[number][int(rng.choice(self.intervals[number]))])
        mode = str(rng.choice(self.modes))
        z, row, column = self._draw_crop(rng, store, scale, triple, attempts)
        return Draw(number, tuple(map(int, triple)), scale, mode, row, column), z

    def cache_flow(self, progress: Callable[[list], Iterable] | None = None) -> None:
        """Compute the flow of every (source, scale, triple) now, so that DataLoader workers share it; progress wraps
        the list of keys."""
        keys = [
            (number, scale, tuple(map(int, triple)))
            for number in range(len(self.stores))
            for scale in sorted(set(self.scales[number]))
            for found in self.triples[number].values()
            for triple in found
        ]
        for number, scale, triple in keys if progress is None else progress(keys):
            self._coarse_flow(number, scale, triple)

    def _draw_crop(
        self, rng: np.random.Generator, store: FrameStore, scale: int, triple: np.ndarray, attempts: int
    ) -> tuple[np.ndarray, int, int]:
        block, best = 2 * scale, None
        side = block * self.crop
        for _ in range(attempts):
            row, column = (int(rng.integers(0, (size - side) // block + 1)) for size in store.shape[1:])
            window = slice(row * block, row * block + side), slice(column * block, column * block + side)
            z = store.dbz(triple, *window)
            echo = self.echo(z)
            if best is None or echo > best[0]:
                best = echo, (z, row, column)
            if echo >= self.minimum_echo:
                break
        return best[1]

    def echo(self, z: np.ndarray) -> float:
        """The share of echo of a crop (3, H, W), negative where too much of it is missing."""
        covered = np.isfinite(z).mean()
        return preparation.echo_fraction(z, self.floor) if covered >= self.minimum_valid else -1.0 + covered

    def _coarse_flow(self, number: int, scale: int, triple: Sequence[int] | np.ndarray) -> np.ndarray:
        key = number, scale, *map(int, triple[::2])
        if key not in self._flows:
            z = preparation.cut_to_multiple(self.stores[number].dbz(triple[::2]), 2 * scale)
            x = preparation.prepare(preparation.coarsen(z, 2 * scale, floor=self.floor), self.floor, self.ceiling)
            self._flows[key] = np.asarray(self.flow(x)).astype(np.float16)
        return self._flows[key]


class EvaluationTriples(torch.utils.data.Dataset):
    """Whole frames in file order, without augmentation: the samples from which every reported number is made.

    The truth is cut from the top left to multiples of `multiple` pixels. A pixel counts as valid if it is so in every
    frame of the source and so is its block. With valid pixels more than two pixels away from others and from the edge
    (see fastds.metrics.interior) these samples reproduce the published errors of trilinear interpolation on the
    project's files.

    Args: source, floor, ceiling, flow as in RadarTriples; interval: multiple of the cadence; scale: coarsening of the
        truth; every: starts only at multiples of `every` intervals; mode: of the coarsening; static, dynamic: the
        static maps and the DynamicFields of the source, or None.
    Sample: as in RadarTriples, with whole frames.
    """

    def __init__(
        self,
        source: Source | FrameStore,
        *,
        interval: int = 1,
        scale: int = 1,
        every: int = 1,
        mode: str = "dbz",
        multiple: int = 4,
        floor: float = preparation.FLOOR_DBZ,
        ceiling: float = preparation.CEILING_DBZ,
        flow: Callable[[np.ndarray], np.ndarray] | None = None,
        static: np.ndarray | None = None,
        dynamic: DynamicFields | None = None,
    ):
        self.store = source if isinstance(source, FrameStore) else FrameStore(source)
        self.static, self.dynamic = static, dynamic
        self.index = self.store.triples(interval, every)
        self.floor, self.ceiling, self.flow = floor, ceiling, flow
        self.scale, self.mode, self.multiple = scale, mode, multiple * scale
        always = preparation.cut_to_multiple(self.store.always_valid(), self.multiple)
        self.valid = preparation.refine_mask(preparation.coarsen_mask(always, 2 * scale), 2)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        z = preparation.cut_to_multiple(self.store.dbz(self.index[number]), self.multiple)
        sample = make_sample(z, scale=self.scale, mode=self.mode, floor=self.floor, ceiling=self.ceiling)
        sample["valid"] = sample["valid"] & self.valid
        factor, rows, columns = 2 * self.scale, *(slice(0, n) for n in z.shape[1:])
        if self.dynamic is not None:
            further = self.dynamic.coarse(self.index[number][::2], factor, rows, columns)
            sample["x"] = np.concatenate([sample["x"], further], 1)
        if self.static is not None:
            sample["static"] = preparation.coarsen(self.static[:, rows, columns], factor)
        if self.flow is not None:
            sample["flow"] = np.asarray(self.flow(sample["x"][:, 0]), dtype=np.float32)[None]
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.items()}


class EpochSampler(torch.utils.data.Sampler):
    """Indices epoch * len(dataset), ... of a RadarTriples: new samples every epoch, also with persistent workers
    (Lightning calls set_epoch)."""

    def __init__(self, dataset: RadarTriples):
        self.length, self.epoch = len(dataset), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


def make_sample(
    z: np.ndarray,
    *,
    scale: int = 1,
    mode: str = "dbz",
    floor: float = preparation.FLOOR_DBZ,
    ceiling: float = preparation.CEILING_DBZ,
) -> dict[str, np.ndarray]:
    """Arrays x (2, 1, h, w), y (3, 1, 2h, 2w), valid (3, 1, 2h, 2w) from three frames z (3, H, W) in dBZ; H, W
    multiples of 2 * scale."""
    truth = preparation.coarsen(z, scale, mode, floor)
    coarse = preparation.coarsen(truth[::2], 2, mode, floor)
    blocks = preparation.refine_mask(preparation.valid_mask(coarse).all(axis=0), 2)
    valid = preparation.valid_mask(truth) & blocks
    x, y = (preparation.prepare(part, floor, ceiling)[:, None] for part in (coarse, truth))
    return {"x": x, "y": y, "valid": valid[:, None]}


def _read(source: Source) -> tuple[xr.DataArray, str]:
    if isinstance(source, (str, os.PathLike)):
        source = TimeBlock(os.fspath(source))
    if not isinstance(source, TimeBlock):
        if hasattr(source, "data_vars"):
            return _checked(to_reflectivity(source), slice(None)), "the dataset"
        return source, str(source.name or "the field")
    with open_dataset(source.path) as dataset:
        name = f"{os.path.basename(source.path)}[{source.start}:{'' if source.stop is None else source.stop}]"
        return _checked(to_reflectivity(dataset, source.var), slice(source.start, source.stop)), name


def _checked(source: ReflectivityInput, part: slice) -> xr.DataArray:
    """Some frames of a source in memory, whose values are plausible."""
    all_missing = "every pixel of a block to train on is missing"
    source.check(range(source.shape[0])[part], all_missing, MEND_FIRST, stacklevel=4)
    return source.field[part].load()


def _pack(z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    lowest = np.nanmin(z) if np.isfinite(z).any() else np.float32(0.0)
    table = np.append(lowest + 0.5 * np.arange(255, dtype=np.float32), np.float32(np.nan)).astype(np.float32)
    codes = np.rint((z - lowest) * 2.0)
    if np.nanmax(codes, initial=0.0) > 254:
        return z, None
    codes = np.where(np.isnan(codes), _MISSING_CODE, codes).astype(np.uint8)
    if not np.allclose(table[codes], z, rtol=0.0, atol=1e-3, equal_nan=True):
        return z, None
    return codes, table

# SPDX-License-Identifier: Apache-2.0
"""Radar samples for training and evaluation of downscaling: two coarse frames in, three fine frames out."""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import xarray as xr

from fastds._options import OptionError, spell_name
from fastds.data.formats.opening import open_dataset
from fastds.data.grid import times
from fastds.data.grid.variables import REPAIR_FIRST
from fastds.data.radar import preparation
from fastds.data.radar.reflectivity import ReflectivityInput, to_reflectivity
from fastds.data.samples.dynamic_fields import DynamicFields

_MAX_ATTEMPTS = 24  # positions that are tried for a crop with enough echo
_MAX_DRAWS_PER_SAMPLE = 1000  # limit for draw_sets: most crops of dry times have too little echo
_MISSING_CODE = np.uint8(255)
# Share of the context frames that samples with augmentation do not contain, as at the ends of a series.
_UNKNOWN_CONTEXT = 0.2


class Draw(NamedTuple):
    """Identification of a random sample.

    Attributes:
        source: Index of the source.
        triple: Indices of three frames of the source.
        scale: Coarsening of the truth.
        mode: Coarsening mode.
        row: First row of the crop in coarse pixels.
        column: First column of the crop in coarse pixels.
    """

    source: int
    triple: tuple[int, ...]
    scale: int
    mode: str
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class TimeBlock:
    """Consecutive frames of a file.

    Attributes:
        path: File.
        start: Index of the first frame, after sorting by time.
        stop: Index after the last frame; None: the end.
        var: Name of the variable; None: chosen as by `to_reflectivity`.
    """

    path: str
    start: int = 0
    stop: int | None = None
    var: str | None = None


Source: TypeAlias = str | os.PathLike | TimeBlock | xr.Dataset | xr.DataArray


class FrameStore:
    """Frames of one source in memory, with one byte a pixel if 255 levels of 0.5 dBZ hold all values, else float32.

    Args:
        source: A path, a TimeBlock, an xarray.Dataset, or a DataArray (time, y, x) in dBZ.

    Attributes:
        name: Description of the source for messages.
        seconds: (T,) since the first frame.
        cadence: Time step in seconds.
        shape: (T, H, W).
        data: (T, H, W) codes or float32 dBZ.
        table: Code -> dBZ; None if `data` is float32.
        missing: Whether every pixel is missing.
    """

    def __init__(self, source: Source):
        field, self.name = _read_source(source)
        self.seconds = times.compute_seconds_since_first(field["time"].values)
        self.cadence = times.estimate_time_step(self.seconds)
        values = np.asarray(field.values, dtype=np.float32)
        self.missing = bool(np.isnan(values).all())
        self.data, self.table = _pack_frames(values)
        self.shape = self.data.shape

    def dbz(
        self, frames: Sequence[int] | np.ndarray, rows: slice = slice(None), columns: slice = slice(None)
    ) -> np.ndarray:
        """Return the reflectivity of selected frames.

        Args:
            frames: Indices of the frames.
            rows: Slice of rows; all rows by default.
            columns: Slice of columns; all columns by default.

        Returns:
            (len(frames), h, w) in dBZ, float32, NaN where missing.
        """
        part = np.stack([self.data[frame, rows, columns] for frame in frames])
        return part if self.table is None else self.table[part]

    def always_valid(self) -> np.ndarray:
        """Return the mask (H, W) of pixels that are missing in no frame."""
        missing = np.isnan if self.table is None else lambda codes: codes == _MISSING_CODE
        return ~np.logical_or.reduce([missing(frame) for frame in self.data])

    def find_neighbours(self, triple: Sequence[int] | np.ndarray) -> tuple[int | None, int | None]:
        """Find the frames one interval of the input, that is triple[2] - triple[0], before and after a triple.

        Args:
            triple: Indices of three frames at equal intervals.

        Returns:
            Index of the frame before and of the frame after; None where the source has no such frame.
        """
        first, last = self.seconds[triple[0]], self.seconds[triple[-1]]
        length = last - first
        frames = times.find_times(self.seconds, np.array([first - length, last + length]), times.JITTER * self.cadence)
        before, after = (None if frame < 0 else int(frame) for frame in frames)
        return before, after

    def triples(self, interval: int = 1, every: int = 1) -> np.ndarray:
        """Return index triples (n, 3) at `interval` times the cadence, see `fastds.data.sequences`."""
        return self.sequences(3, interval, every)

    def sequences(self, length: int, interval: int = 1, every: int = 1) -> np.ndarray:
        """Find sequences of equally spaced frames, see `fastds.data.sequences`.

        Args:
            length: Number of frames of a sequence.
            interval: Time between frames, in multiples of the cadence.
            every: Sequences start at multiples of this number of intervals; 1: at any frame.

        Returns:
            (n, length) indices of frames.
        """
        return times.sequences(self.seconds, length, interval * self.cadence, every)


def check_not_missing(stores: Sequence[FrameStore]) -> None:
    """Raise ValueError if every pixel of every source is missing."""
    if all(store.missing for store in stores):
        names = ", ".join(store.name for store in stores)
        raise ValueError(f"there is nothing to learn from: every pixel of {names} is missing")


class RadarTriples(torch.utils.data.Dataset):
    """Random training samples: coarse frames t and t + 2 D in, fine frames t, t + D and t + 2 D out.

    A sample draws a source, an interval D (a multiple of the cadence), a scale (the truth is the file coarsened by 1, 2
    or 4), a coarsening mode (see `coarsen`), a crop on block borders, flips, a transpose and the direction of time. The
    mixture makes networks applicable to grids and cadences other than those of the training files. A value that occurs
    several times in a list is drawn more often.

    Args:
        sources: Paths, TimeBlocks, Datasets, DataArrays or FrameStores.
        crop: Side of the coarse crop in pixels; the fine crop has twice this side.
        samples: Length of the dataset. Sample i depends on (seed, i) only; i >= samples is allowed (see EpochSampler).
        scales: Scales to draw from.
        intervals: Intervals to draw from, in multiples of the cadence.
        modes: Coarsening modes to draw from.
        weights: Relative frequency of each source; None: equal.
        floor: dBZ that becomes 0, see `prepare`.
        ceiling: dBZ that becomes 1, see `prepare`.
        minimum_echo: Smallest fraction of echo in the valid fine pixels of a crop (mean of three frames). If 24
            attempts find no such crop, the one with most echo is taken.
        minimum_valid: Smallest fraction of valid pixels of a crop.
        augment: Whether to flip and transpose.
        reverse: Whether to reverse time; None: as `augment`.
        flow: None, or a function of whole coarse frames (2, h, w) float32 in [0, 1] that returns displacements (2, 2,
            h, w) (dy, dx) in pixels: [0] from the first frame to the second, [1] from the second to the first. It is
            called once for each (source, scale, triple), with frames coarsened in dBZ.
        context: Whether samples contain the coarse frames before and after x, which are then further arguments of
            `flow`: function of frames and context, both (2, h, w).
        statics: None, or the normalised static maps (S, H, W) of each source; samples contain their means over coarse
            pixels.
        dynamics: None, or the DynamicFields of each source, which add D channels to x.
        fixed: Draws that replace random samples; each pass contains every draw once, in a new order. None: random
            samples.
        seed: Seed.

    Sample: dict of x (2, 1 + D, h, w) and y (3, 1, 2h, 2w), float32 in [0, 1] with 0 where missing; valid (3, 1, 2h,
    2w) bool, True where the fine pixel and the blocks of the input are valid; flow (1, 2, 2, h, w) if requested;
    context (2, 1, h, w) if requested, NaN where the source has no such frame and, with augment, in one frame of five;
    static (S, h, w) with statics. Deterministic by (seed, index). DataLoader workers may be used; call `cache_flow()`
    before they start.

    Raises:
        ValueError: A source is too small for the crop or has no triple of frames, all pixels are missing, or weights or
            modes are invalid.
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
        flow: Callable[..., np.ndarray] | None = None,
        context: bool = False,
        statics: Sequence[np.ndarray] | None = None,
        dynamics: Sequence[DynamicFields] | None = None,
        fixed: Sequence[Draw] | None = None,
        seed: int = 0,
    ):
        self.context = context
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
        for store, fitting, of_interval in zip(self.stores, self.scales, self.triples, strict=True):
            if not fitting:
                raise ValueError(
                    f"{store.name}: a coarse crop of {crop} needs {2 * min(scales) * crop} fine pixels a side, "
                    f"the grid is {store.shape[1:]}"
                )
            if not of_interval:
                raise ValueError(f"{store.name}: no three frames at equal intervals among {store.shape[0]} frames")
        share = np.ones(len(self.stores)) if weights is None else np.asarray(weights, dtype=np.float64)
        if share.shape != (len(self.stores),) or not np.all(share >= 0) or not share.sum() > 0:
            raise OptionError(
                "weights", f"must be {len(self.stores)} non-negative numbers, one per source, got {weights!r}"
            )
        self.share = share / share.sum()
        self._flows: dict[tuple, np.ndarray] = {}

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, int(index)))
        draw, z = self.draw(rng) if self.fixed is None else (self._get_fixed_draw(int(index)), None)
        sample = self.read(draw, z)
        if self.augment or self.reverse:
            chosen = rng.integers(0, 2, 4).astype(bool) & [*3 * [self.augment], self.reverse]
            sample = augment(sample, *chosen)
        if self.augment and self.context:
            known = rng.random((2, 1, 1, 1)) >= _UNKNOWN_CONTEXT
            sample["context"] = np.where(known, sample["context"], np.float32(np.nan))
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.items()}

    def select_draws(self, fixed: Sequence[Draw]) -> "RadarTriples":
        """Return a dataset of these draws only, without augmentation, which shares the sources in memory."""
        other = copy.copy(self)
        other.fixed, other.samples, other.augment, other.reverse = fixed, len(fixed), False, False
        return other

    def read(self, draw: Draw, z: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the sample that a Draw identifies, without augmentation.

        Args:
            draw: Identification of the sample.
            z: Fine frames (3, H, W) of the sample in dBZ. If None, they are read from the source.
        """
        number, triple, scale, mode, row, column = draw
        rows, columns = self.window(draw)
        z = self.stores[number].dbz(triple, rows, columns) if z is None else z
        sample = make_sample(z, scale=scale, mode=mode, floor=self.floor, ceiling=self.ceiling)
        if self.dynamics is not None:
            further = self.dynamics[number].coarsen(np.asarray(triple[::2]), 2 * scale, rows, columns)
            sample["x"] = np.concatenate([sample["x"], further], 1)
        if self.flow is not None:
            whole = self._get_coarse_flow(number, scale, triple)
            sample["flow"] = whole[:, :, row : row + self.crop, column : column + self.crop].astype(np.float32)[None]
        if self.context:
            sample["context"] = self._read_context(number, triple, scale, mode, rows, columns)[:, None]
        if self.statics is not None:
            sample["static"] = preparation.coarsen(self.statics[number][:, rows, columns], 2 * scale)
        return sample

    def window(self, draw: Draw) -> tuple[slice, slice]:
        """Return rows and columns of a draw on the grid of its source."""
        block = 2 * draw.scale
        rows, columns = (slice(block * first, block * (first + self.crop)) for first in (draw.row, draw.column))
        return rows, columns

    def _get_fixed_draw(self, index: int) -> Draw:
        """Return the fixed draw of a sample index."""
        assert self.fixed is not None
        epoch, position = divmod(index, len(self.fixed))
        return self.fixed[np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.fixed))[position]]

    def draw(self, rng: np.random.Generator, attempts: int = _MAX_ATTEMPTS) -> tuple[Draw, np.ndarray]:
        """Draw a random sample.

        Args:
            rng: Random generator.
            attempts: Number of positions that are tried for a crop with enough echo.

        Returns:
            Draw, and its fine frames (3, H, W) in dBZ.
        """
        number = int(rng.choice(len(self.stores), p=self.share))
        store, scale = self.stores[number], int(rng.choice(self.scales[number]))
        triple = rng.choice(self.triples[number][int(rng.choice(self.intervals[number]))])
        mode = str(rng.choice(self.modes))
        z, row, column = self._draw_crop(rng, store, scale, triple, attempts)
        return Draw(number, tuple(map(int, triple)), scale, mode, row, column), z

    def cache_flow(self, progress: Callable[[list], Iterable] | None = None) -> None:
        """Compute the flow of every (source, scale, triple), so that DataLoader workers share it.

        Args:
            progress: Function that wraps the list of keys, for a progress bar; None: none.
        """
        keys = [
            (number, scale, tuple(map(int, triple)))
            for number in range(len(self.stores))
            for scale in sorted(set(self.scales[number]))
            for found in self.triples[number].values()
            for triple in found
        ]
        for number, scale, triple in keys if progress is None else progress(keys):
            self._get_coarse_flow(number, scale, triple)

    def _draw_crop(
        self, rng: np.random.Generator, store: FrameStore, scale: int, triple: np.ndarray, attempts: int
    ) -> tuple[np.ndarray, int, int]:
        """Draw positions of a crop until one has enough echo, and return the best crop with its row and column.

        Args:
            rng: Random generator.
            store: Source.
            scale: Coarsening of the truth.
            triple: Indices of three frames.
            attempts: Largest number of positions.
        """
        block = 2 * scale
        best: tuple[float, tuple[np.ndarray, int, int]] | None = None
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
        assert best is not None
        return best[1]

    def echo(self, z: np.ndarray) -> float:
        """Return the fraction of pixels of a crop (3, H, W) with echo, or a negative number if too many are missing."""
        covered = np.isfinite(z).mean()
        return preparation.echo_fraction(z, self.floor) if covered >= self.minimum_valid else -1.0 + covered

    def _get_coarse_flow(self, number: int, scale: int, triple: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the cached flow between the outer frames of a triple on the coarse grid."""
        key = number, scale, *map(int, triple[::2])
        if key not in self._flows:
            z = preparation.cut_to_multiple(self.stores[number].dbz(triple[::2]), 2 * scale)
            x = preparation.prepare(preparation.coarsen(z, 2 * scale, floor=self.floor), self.floor, self.ceiling)
            assert self.flow is not None
            around = (self._read_context(number, triple, scale),) if self.context else ()
            self._flows[key] = np.asarray(self.flow(x, *around)).astype(np.float16)
        return self._flows[key]

    def _read_context(
        self,
        number: int,
        triple: Sequence[int] | np.ndarray,
        scale: int,
        mode: str = "dbz",
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> np.ndarray:
        """Return the coarse frames (2, h, w) before and after a triple, in [0, 1], NaN where the source has none."""
        store = self.stores[number]
        before, after = store.find_neighbours(triple)
        found = []
        for frame in (before, after):
            z = store.dbz([triple[0] if frame is None else frame], rows, columns)
            z = preparation.coarsen(preparation.cut_to_multiple(z, 2 * scale), scale, mode, self.floor)
            x = preparation.prepare(preparation.coarsen(z, 2, mode, self.floor), self.floor, self.ceiling)[0]
            found.append(np.full_like(x, np.nan) if frame is None else x)
        return np.stack(found)


def draw_sets(samples: RadarTriples, counts: Sequence[int], seed: int = 0) -> list[list[Draw]]:
    """Draw disjoint sets of fixed samples that satisfy samples.minimum_echo and samples.minimum_valid.

    No two samples have the same frames, grid and position. Samples of different sets may overlap, or be separated by
    a few minutes.

    Args:
        samples: Source of the draws, with crop, scales, intervals, modes and weights.
        counts: Number of samples of each set, such as (6000, 0, 1000).
        seed: Seed of the draw.

    Returns:
        One list of draws for each set.

    Raises:
        ValueError: The sources have too few such samples.

    Source: Chen, Qin and Dai 2022, "we randomly selected 7,000 sets of data, including 6,000 groups as the training
    dataset and 1,000 groups as the test dataset".
    """
    rng, required = np.random.default_rng((seed, 2)), sum(counts)
    found: dict[Any, Any] = {}
    for _ in range(_MAX_DRAWS_PER_SAMPLE * max(1, required)):
        if len(found) == required:
            break
        draw, z = samples.draw(rng, attempts=1)
        if samples.echo(z) >= samples.minimum_echo:
            found.setdefault(draw._replace(mode=""), draw)
    if len(found) < required:
        echo, valid = (f"{share:.0%}" for share in (samples.minimum_echo, samples.minimum_valid))
        raise ValueError(
            f"{spell_name('data.fixed_samples')} {list(counts)} are {required}, and {len(found)} different samples "
            f"were found with {echo} of echo ({spell_name('data.minimum_echo')}) and {valid} of valid pixels "
            f"({spell_name('data.minimum_valid')})"
        )
    drawn, ends = list(found.values()), np.cumsum(counts)
    return [drawn[end - count : end] for end, count in zip(ends, counts, strict=True)]


class EvaluationTriples(torch.utils.data.Dataset):
    """Whole frames in the order of the file, without augmentation, from which scores are computed.

    Rows and columns of the truth are cut at the end to multiples of `multiple` pixels. A pixel is valid if it and all
    pixels of its coarse block are valid in every frame of the source.

    Args:
        source: A source or FrameStore, see RadarTriples.
        interval: Interval D in multiples of the cadence.
        scale: Coarsening of the truth.
        every: Triples start only at multiples of `every` intervals.
        mode: Coarsening mode.
        multiple: Multiple to which the truth, after coarsening by `scale`, is cut.
        floor: See RadarTriples.
        ceiling: See RadarTriples.
        flow: See RadarTriples.
        static: Normalised static maps of the source, or None.
        dynamic: DynamicFields of the source, or None.

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
            further = self.dynamic.coarsen(self.index[number][::2], factor, rows, columns)
            sample["x"] = np.concatenate([sample["x"], further], 1)
        if self.static is not None:
            sample["static"] = preparation.coarsen(self.static[:, rows, columns], factor)
        if self.flow is not None:
            sample["flow"] = np.asarray(self.flow(sample["x"][:, 0]), dtype=np.float32)[None]
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.items()}


class EpochSampler(torch.utils.data.Sampler):
    """Sampler of a RadarTriples that gives new samples in every epoch, also with persistent workers.

    Epoch e has the indices e * len(dataset), ..., (e + 1) * len(dataset) - 1. Lightning calls `set_epoch`.

    Args:
        dataset: RadarTriples.
    """

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
    """Make the arrays of a sample from three fine frames.

    Args:
        z: (3, H, W) dBZ, NaN where missing; H and W multiples of 2 * scale.
        scale: Coarsening of the truth.
        mode: Coarsening mode.
        floor: dBZ that becomes 0.
        ceiling: dBZ that becomes 1.

    Returns:
        dict of x (2, 1, h, w), y (3, 1, 2h, 2w) and valid (3, 1, 2h, 2w).
    """
    truth = preparation.coarsen(z, scale, mode, floor)
    coarse = preparation.coarsen(truth[::2], 2, mode, floor)
    blocks = preparation.refine_mask(np.asarray(preparation.valid_mask(coarse).all(axis=0)), 2)
    valid = preparation.valid_mask(truth) & blocks
    x, y = (preparation.prepare(part, floor, ceiling)[:, None] for part in (coarse, truth))
    return {"x": x, "y": y, "valid": valid[:, None]}


def augment(
    sample: dict[str, np.ndarray], flip_rows: bool, flip_columns: bool, transpose: bool, reverse: bool
) -> dict[str, np.ndarray]:
    """Flip, transpose and time-reverse a sample. The vectors (dy, dx) of its optical flow are flipped with it.

    Args:
        sample: Name -> array whose last two axes are rows and columns.
        flip_rows: Whether to reverse the order of rows.
        flip_columns: Whether to reverse the order of columns.
        transpose: Whether to exchange rows and columns.
        reverse: Whether to reverse time.
    """
    flow = sample.get("flow")
    arrays = {key: value for key, value in sample.items() if key != "flow"}
    for flip, axis, component in ((flip_rows, -2, 0), (flip_columns, -1, 1)):
        if flip:
            arrays = {key: np.flip(value, axis) for key, value in arrays.items()}
            if flow is not None:
                flow = np.flip(flow, axis).copy()
                flow[:, :, component] *= -1
    if transpose:
        arrays = {key: np.swapaxes(value, -1, -2) for key, value in arrays.items()}
        flow = None if flow is None else np.flip(np.swapaxes(flow, -1, -2), 2)
    if reverse:
        arrays = {key: value if key == "static" else np.flip(value, 0) for key, value in arrays.items()}
        flow = None if flow is None else np.flip(flow, 1)
    return arrays if flow is None else {**arrays, "flow": flow}


def _read_source(source: Any) -> tuple[xr.DataArray, str]:
    if isinstance(source, (str, os.PathLike)):
        source = TimeBlock(os.fspath(source))
    if not isinstance(source, TimeBlock):
        if hasattr(source, "data_vars"):
            return _load_checked(to_reflectivity(source), slice(None)), "the dataset"
        return source, str(source.name or "the field")
    with open_dataset(source.path) as dataset:
        name = f"{os.path.basename(source.path)}[{source.start}:{'' if source.stop is None else source.stop}]"
        return _load_checked(to_reflectivity(dataset, source.var), slice(source.start, source.stop)), name


def _load_checked(source: ReflectivityInput, part: slice) -> xr.DataArray:
    """Load some frames of an input and check that their values are plausible."""
    all_missing = "every pixel of a block to train on is missing"
    source.check(range(source.shape[0])[part], all_missing, REPAIR_FIRST, stacklevel=4)
    return source.field[part].load()


def _pack_frames(z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    lowest = np.nanmin(z) if np.isfinite(z).any() else np.float32(0.0)
    table = np.append(lowest + 0.5 * np.arange(255, dtype=np.float32), np.float32(np.nan)).astype(np.float32)
    codes = np.rint((z - lowest) * 2.0)
    if np.nanmax(codes, initial=0.0) > 254:
        return z, None
    codes = np.where(np.isnan(codes), _MISSING_CODE, codes).astype(np.uint8)
    if not np.allclose(table[codes], z, rtol=0.0, atol=1e-3, equal_nan=True):
        return z, None
    return codes, table

# SPDX-License-Identifier: Apache-2.0
"""Radar files to batches: whole time blocks for training and for validation."""

import pathlib
from collections.abc import Callable, Iterator

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from fastds import data as fd
from fastds.models.baselines import optical_flow
from fastds.tasks.radar.config import DataConfig

_GAP = 2  # frames left out between training and validation, so that no triple shares a frame


class CropsDataModule(L.LightningDataModule):
    """Loaders of new training crops in every epoch and of fixed validation crops.

    setup() of a subclass sets training and validation, two datasets; config has batch_size and workers.
    """

    def __init__(self, config, seed: int):
        super().__init__()
        self.config, self.seed = config, seed
        self.training = self.validation = None

    def train_dataloader(self) -> DataLoader:
        size = self.config.batch_size
        sampler = NewSamples(len(self.training) // size * size, lambda: self.trainer.global_step * size)
        n = self.config.workers
        return DataLoader(self.training, batch_size=size, sampler=sampler, num_workers=n, persistent_workers=n > 0)

    def val_dataloader(self) -> DataLoader:
        fixed = Subset(self.validation, range(len(self.validation)))
        return DataLoader(fixed, batch_size=self.config.batch_size)


class RadarDataModule(CropsDataModule):
    """Training crops that mix scales, intervals and ways of coarsening, and fixed validation crops from later frames.

    Args:
        config: see DataConfig.
        flow: add the optical flow of the whole coarse frames to every sample.
        static_channels: S, how many of config.statics the network reads. static_variables: of the card of weights that
            are trained on, whose normalisation is kept.
        seed: of the samples; sample i of a run depends on (seed, i) only.
    """

    def __init__(self, config: DataConfig, flow: bool, seed: int = 0, static_channels: int = 0, static_variables=()):
        super().__init__(config, seed)
        self.flow, self.static_variables = flow, list(static_variables)
        if len(config.statics) != static_channels or (static_channels and config.synthetic_events):
            raise ValueError(
                f"data.statics: the network reads {static_channels} static maps and {len(config.statics)} were given, "
                f"with {config.synthetic_events} synthetic events; expected FILE.nc:VARIABLE per map and none of those"
            )

    def setup(self, stage: str | None = None) -> None:
        if self.training is not None:
            return
        c = self.config
        train, validation = time_blocks(c)
        events = synthetic_events(c.synthetic_events, self.seed)
        statics = self._statics([block.path for block in train]) if c.statics else None
        shared = dict(
            crop=c.crop,
            floor=c.floor,
            ceiling=c.ceiling,
            minimum_echo=c.minimum_echo,
            flow=_flow_of_pair if self.flow else None,
            statics=statics,
        )
        weights = source_weights(c.weights, len(train), len(events))
        self.training = fd.RadarTriples(
            [*train, *events],
            samples=c.epoch_samples,
            scales=tuple(c.scales),
            intervals=tuple(c.intervals),
            weights=weights,
            seed=self.seed,
            **shared,
        )
        self.validation = fd.RadarTriples(
            validation,
            samples=c.validation_samples,
            scales=(1,),
            intervals=(1,),
            modes=("dbz",),
            augment=False,
            seed=self.seed + 1,
            **shared,
        )
        if self.flow:
            self.training.cache_flow()
            self.validation.cache_flow()

    def _statics(self, paths: list[str]) -> list[np.ndarray]:
        """The maps (S, H, W) of every file, normalised as static_variables says, which is set where it is empty: by
        mean and standard deviation over all of them."""
        maps = []
        for path in paths:
            with fd.open_dataset(path) as dataset:
                source = fd.to_reflectivity(dataset, self.config.var)
                wanted = self.static_variables or None
                try:
                    maps.append(fd.static_maps(self.config.statics, source.raw, source.dataset, wanted))
                except ValueError as error:
                    raise ValueError(f"data.statics, for {path}: {error}") from None
        if not self.static_variables:
            cells = np.concatenate([m.values.reshape(len(m.values), -1) for m in maps], axis=1, dtype=np.float64)
            scales = zip(maps[0].variables, cells.mean(1), cells.std(1), strict=True)
            # a map of one value everywhere has no deviation
            self.static_variables = [{**v, "mean": float(m), "std": float(s) or 1.0} for v, m, s in scales]
        mean, std = (np.array([v[key] for v in self.static_variables])[:, None, None] for key in ("mean", "std"))
        return [((m.values - mean) / std).astype(np.float32) for m in maps]


class NewSamples(torch.utils.data.Sampler):
    """Indices start(), start() + 1, ... of length samples: every epoch new ones, also in a run that was resumed.

    (The epoch that Lightning hands to samplers is off by one after a resume from the end of an epoch.)
    """

    def __init__(self, length: int, start: Callable[[], int]):
        self.length, self.start = length, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = self.start()
        return iter(range(first, first + self.length))


def synthetic_events(count: int, seed: int, frames: int = 24) -> list:
    """Rain events of seeds seed, seed + 1, ... that move at 5 to 25 m/s in turn."""
    events = (fd.synthetic_event(seed=seed + k, frames=frames, speed=5.0 + 5.0 * (k % 5)) for k in range(count))
    return [event[["reflectivity"]] for event in events]


def source_weights(weights: list | None, files: int, events: int) -> list | None:
    """One weight per source: those of the files, then the last shared by the events; None: all alike.

    Raises: ValueError for another number of weights.
    """
    if not weights:
        return None
    wanted = files + bool(events)
    if len(weights) != wanted:
        raise ValueError(
            f"data.weights needs one number per training file and one for the synthetic events: {wanted}, "
            f"got {len(weights)}"
        )
    return weights[:files] + [weights[-1] / events for _ in range(events)]


def time_blocks(config: DataConfig, least: int = 3) -> tuple[list, list]:
    """The training and the validation blocks of config.path, two lists of TimeBlock in the order of config.blocks.

    least: frames of a sample; those blocks that config.blocks does not give have so many.

    Raises: FileNotFoundError where path or a named file is missing; ValueError for blocks that overlap or a file too
        short to split.
    """
    root = pathlib.Path(config.path)
    if not root.exists():
        raise FileNotFoundError(f"data.path: no such file or folder: {root}")
    blocks = config.blocks
    if blocks:
        files = [root / name if root.is_dir() else root for name in blocks if root.is_dir() or name == root.name]
    else:
        files = sorted(root.glob("*.nc")) if root.is_dir() else [root]
    if not files:
        raise FileNotFoundError(f"data.path: no file to train on in {root}")
    train, validation = [], []
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"data.path: no such file: {file}, which data.blocks names; without --config, "
                "`fastds train radar|nowcast --data.path=FOLDER` takes every *.nc of a folder"
            )
        part = blocks.get(file.name) or _last_fifth(file, least)
        overlap(file.name, part)
        train.append(fd.TimeBlock(str(file), *part["train"], var=config.var))
        validation.append(fd.TimeBlock(str(file), *part["validation"], var=config.var))
    return train, validation


def overlap(name: str, part: dict) -> None:
    """Raise ValueError unless part names a training and a validation block without a common frame."""
    if set(part) != {"train", "validation"} or any(len(part[key]) != 2 for key in part):
        raise ValueError(
            f"data.blocks[{name!r}] must be {{train: [start, stop], validation: [start, stop]}}, got {part}"
        )
    (a, b), (c, d) = part["train"], part["validation"]
    if max(a, c) < min(b, d):
        raise ValueError(
            f"data.blocks[{name!r}]: training frames {a}..{b - 1} and validation frames {c}..{d - 1} overlap"
        )


def _last_fifth(file: pathlib.Path, least: int) -> dict[str, list[int]]:
    with fd.open_dataset(file) as dataset:
        frames = dataset.sizes.get("time", 0)
    split = frames - max(least, round(frames / 5))
    if split - _GAP < least:
        raise ValueError(
            f"{file.name} has {frames} time steps, too few for training and validation blocks of at least {least} and "
            f"{_GAP} between them"
        )
    return {"train": [0, split - _GAP], "validation": [split, frames]}


def _flow_of_pair(x: np.ndarray) -> np.ndarray:
    return optical_flow(torch.from_numpy(np.ascontiguousarray(x))[None])[0, 0].numpy()

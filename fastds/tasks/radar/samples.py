# SPDX-License-Identifier: Apache-2.0
"""Training and validation samples from radar files."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastds import data as fd
from fastds._options import OptionError, spell_name
from fastds.data.samples.dynamic_fields import DynamicFields
from fastds.data.samples.radar_triples import draw_sets
from fastds.inference.ood.statistics import compute_motion_statistics
from fastds.inference.tables import track_progress
from fastds.models.baselines import optical_flow
from fastds.tasks.radar.config import DataConfig
from fastds.tasks.radar.motion import smooth_pair_flow
from fastds.training.modules import BaseDataModule
from fastds.training.radar_files import (
    list_whole_files,
    make_synthetic_events,
    make_time_blocks,
    select_validation_values,
    share_weights,
)


class RadarData(BaseDataModule):
    """Training crops with random scales, intervals and coarsening operators, and fixed validation crops.

    With split "blocks", validation crops are from other frames than training crops.

    Args:
        config: see DataConfig.
        flow: whether to add the optical flow of whole coarse frames to each sample.
        seed: random seed of the samples; sample i depends on (seed, i) only.
        static_channels: number of static maps that the network reads.
        static_variables: static variables in the card of weights from which the training starts; their normalisation is
            used.
        in_channels: number of input channels of the network, one more than config.dynamics has entries.
        devices: see BaseDataModule.
        progress: print the progress of the optical flow, which is computed before the training.
        context: whether samples contain the coarse frames before and after, which then steady the optical flow as in
            `fastds downscale`.

    Attributes:
        training: training samples.
        validation: validation samples.
        test: test samples of split "random", else None.
        test_draws: draws of the test samples.
    """

    def __init__(
        self,
        config: DataConfig,
        flow: bool,
        seed: int = 0,
        static_channels: int = 0,
        static_variables: Sequence[dict] = (),
        in_channels: int = 1,
        devices: int = 1,
        progress: bool = False,
        context: bool = False,
    ):
        super().__init__(config, seed, devices)
        self.context = context
        self.progress, self.flow, self.static_variables = progress, flow, list(static_variables)
        self.test: Any = None
        self.test_draws: list[Any] = []
        self.dynamic_variables: list[dict] = []
        if len(config.statics) != static_channels or (static_channels and config.synthetic_events):
            raise OptionError(
                "data.statics",
                f": the network reads {static_channels} static maps and {len(config.statics)} were given, "
                f"with {config.synthetic_events} synthetic events; expected FILE.nc:VARIABLE per map and none of those",
            )
        if len(config.dynamics) != in_channels - 1 or (config.dynamics and config.synthetic_events):
            raise OptionError(
                "data.dynamics",
                f": the network reads {in_channels - 1} variables in addition to the reflectivity and "
                f"{len(config.dynamics)} were given, with {config.synthetic_events} synthetic events; expected "
                "{VARIABLE: [low, high], ...} and none of those",
            )

    def setup(self, stage: str | None = None) -> None:
        if self.training is not None:
            return
        c = self.config
        side = 2 * c.crop * min(c.scales)
        train, validation = (
            make_time_blocks(c, side=side) if c.split == "blocks" else 2 * (list_whole_files(c.path, c.var, side),)
        )
        self.files = [pathlib.Path(block.path).name for block in train]
        events = make_synthetic_events(c.synthetic_events, self.seed)
        shared = dict(
            crop=c.crop,
            floor=c.floor,
            ceiling=c.ceiling,
            minimum_echo=c.minimum_echo,
            minimum_valid=c.minimum_valid,
            flow=_compute_flow if self.flow else None,
            context=self.context,
            statics=self.read_statics([block.path for block in train]) if c.statics else None,
        )
        drawn = dict(scales=tuple(c.scales), intervals=tuple(c.intervals), modes=c.modes)
        self.training = fd.RadarTriples(
            [*train, *events],
            dynamics=self._read_dynamics(train),
            samples=c.epoch_samples,
            weights=share_weights(c.weights, len(train), len(events)),
            augment=c.augment,
            reverse=c.reverse,
            seed=self.seed,
            **drawn,
            **shared,
        )
        if c.split == "random":
            self._draw_sets()
        else:
            self.validation = fd.RadarTriples(
                validation,
                dynamics=self._read_dynamics(validation),
                samples=c.validation_samples,
                scales=select_validation_values(c.scales),
                intervals=select_validation_values(c.intervals),
                modes=sorted(set(c.modes)),
                augment=False,
                seed=self.seed + 1,
                **shared,
            )
        if self.flow:
            for samples in {id(sets): sets for sets in (self.training, self.validation)}.values():
                samples.cache_flow(lambda keys: track_progress(keys, self.progress, "pairs of fields", "optical flow"))

    def _draw_sets(self) -> None:
        """Set training, validation and test to fixed samples of the same files, which share memory."""
        sets = draw_sets(self.training, self.config.fixed_samples, self.config.split_seed)
        self.training.fixed, *others = sets
        self.test_draws = sets[-1]
        self.validation, self.test = (self.training.select_draws(found) if found else None for found in others)

    def compute_statistics(self, sample: dict) -> dict[str, float]:
        """Return the statistics of the input frames of a sample, for the ranges in the model card."""
        return compute_motion_statistics(sample["x"][:, 0])

    def _read_dynamics(self, blocks: list[fd.TimeBlock]) -> list[DynamicFields] | None:
        """Return the additional input variables of each block, and set dynamic_variables."""
        if not self.config.dynamics:
            return None
        try:
            found = [DynamicFields(b.path, self.config.dynamics, slice(b.start, b.stop), b.var) for b in blocks]
        except ValueError as error:
            raise OptionError("data.dynamics", f": {error}") from None
        self.dynamic_variables = found[0].variables
        return found

    def read_statics(self, paths: list[str]) -> list[np.ndarray]:
        """Return the static maps (S, H, W) of each file, normalised by static_variables.

        If static_variables is empty, it is set to the mean and standard deviation over all files.
        """
        maps = []
        for path in paths:
            with fd.open_dataset(path) as dataset:
                source = fd.to_reflectivity(dataset, self.config.var)
                expected = self.static_variables or None
                try:
                    maps.append(fd.static_maps(self.config.statics, source.raw, source.dataset, expected))
                except ValueError as error:
                    raise ValueError(f"{spell_name('data.statics')}, for {path}: {error}") from None
        if not self.static_variables:
            cells = np.concatenate([m.values.reshape(len(m.values), -1) for m in maps], axis=1, dtype=np.float64)
            scales = zip(maps[0].variables, cells.mean(1), cells.std(1), strict=True)
            # a constant map has zero standard deviation
            self.static_variables = [{**v, "mean": float(m), "std": float(s) or 1.0} for v, m, s in scales]
        mean, std = (np.array([v[key] for v in self.static_variables])[:, None, None] for key in ("mean", "std"))
        return [((m.values - mean) / std).astype(np.float32) for m in maps]


def _compute_flow(x: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """Compute the optical flow (2, 2, h, w) of frames (2, h, w), averaged with that of the neighbouring pairs.

    Args:
        x: the frames, in [0, 1].
        context: (2, h, w), the frames before and after, NaN where not known; None: flow of the frames alone.
    """
    frames = torch.from_numpy(np.ascontiguousarray(x))
    if context is None or np.isnan(context).any():
        return optical_flow(frames[None])[0, 0].numpy()
    before, after = torch.from_numpy(np.ascontiguousarray(context))
    return smooth_pair_flow(torch.stack([before, frames[0]]), frames, torch.stack([frames[1], after]))[0].numpy()

# SPDX-License-Identifier: Apache-2.0
"""Radar files to batches: whole time blocks for training and for validation."""

import pathlib

import numpy as np
import torch

from fastds import data as fd
from fastds.data.samples.dynamic_fields import DynamicFields
from fastds.data.samples.fixed_sets import draw_sets
from fastds.models.baselines import optical_flow
from fastds.tasks.common.radar_files import source_weights, synthetic_events, time_blocks, usual, whole_files
from fastds.tasks.common.tables import tracked
from fastds.tasks.common.training import SampleData
from fastds.tasks.domain.statistics import of_echo
from fastds.tasks.radar.config import DataConfig


class RadarData(SampleData):
    """Training crops that mix scales, intervals and ways of coarsening, and fixed validation crops from later frames.

    Args:
        config: see DataConfig.
        flow: add the optical flow of the whole coarse frames to every sample.
        static_channels: S, how many of config.statics the network reads. static_variables: of the card of weights that
            are trained on, whose normalisation is kept.
        seed: of the samples; sample i of a run depends on (seed, i) only.
        in_channels: of the network, one more than there are config.dynamics.
        devices: see SampleData.
        progress: say how far the optical flow is, which is computed before the training.
    Attributes: training, validation; test, the fixed test samples of split "random", else None, and test_draws, which
        samples they are.
    """

    def __init__(
        self,
        config: DataConfig,
        flow: bool,
        seed: int = 0,
        static_channels: int = 0,
        static_variables: list[dict] = (),
        in_channels: int = 1,
        devices: int = 1,
        progress: bool = False,
    ):
        super().__init__(config, seed, devices)
        self.progress, self.test, self.test_draws = progress, None, []
        self.flow, self.static_variables, self.dynamic_variables = flow, list(static_variables), []
        if len(config.statics) != static_channels or (static_channels and config.synthetic_events):
            raise ValueError(
                f"data.statics: the network reads {static_channels} static maps and {len(config.statics)} were given, "
                f"with {config.synthetic_events} synthetic events; expected FILE.nc:VARIABLE per map and none of those"
            )
        if len(config.dynamics) != in_channels - 1 or (config.dynamics and config.synthetic_events):
            raise ValueError(
                f"data.dynamics: the network reads {in_channels - 1} variables beside the reflectivity and "
                f"{len(config.dynamics)} were given, with {config.synthetic_events} synthetic events; expected "
                "{VARIABLE: [low, high], ...} and none of those"
            )

    def setup(self, stage: str | None = None) -> None:
        if self.training is not None:
            return
        c = self.config
        side = 2 * c.crop * min(c.scales)
        train, validation = (
            time_blocks(c, side=side) if c.split == "blocks" else 2 * (whole_files(c.path, c.var, side),)
        )
        self.files = [pathlib.Path(block.path).name for block in train]
        events = synthetic_events(c.synthetic_events, self.seed)
        shared = dict(
            crop=c.crop,
            floor=c.floor,
            ceiling=c.ceiling,
            minimum_echo=c.minimum_echo,
            minimum_valid=c.minimum_valid,
            flow=_flow_of_pair if self.flow else None,
            statics=self.statics_of([block.path for block in train]) if c.statics else None,
        )
        drawn = dict(scales=tuple(c.scales), intervals=tuple(c.intervals), modes=c.modes)
        self.training = fd.RadarTriples(
            [*train, *events],
            dynamics=self._dynamics(train),
            samples=c.epoch_samples,
            weights=source_weights(c.weights, len(train), len(events)),
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
                dynamics=self._dynamics(validation),
                samples=c.validation_samples,
                scales=usual(c.scales),
                intervals=usual(c.intervals),
                modes=sorted(set(c.modes)),
                augment=False,
                seed=self.seed + 1,
                **shared,
            )
        if self.flow:
            for samples in {id(sets): sets for sets in (self.training, self.validation)}.values():
                samples.cache_flow(lambda keys: tracked(keys, self.progress, "pairs of fields", "optical flow"))

    def _draw_sets(self) -> None:
        """Let training, validation and test be fixed samples of the same files, which they share in memory."""
        sets = draw_sets(self.training, self.config.fixed_samples, self.config.split_seed)
        self.training.fixed, *others = sets
        self.test_draws = sets[-1]
        self.validation, self.test = (self.training.only(found) if found else None for found in others)

    def statistics(self, sample: dict) -> dict[str, float]:
        """See SampleData."""
        return of_echo(sample["x"][:, 0])

    def _dynamics(self, blocks: list[fd.TimeBlock]) -> list[DynamicFields] | None:
        """The fields of every block, which dynamic_variables tells of."""
        if not self.config.dynamics:
            return None
        try:
            found = [DynamicFields(b.path, self.config.dynamics, slice(b.start, b.stop), b.var) for b in blocks]
        except ValueError as error:
            raise ValueError(f"data.dynamics: {error}") from None
        self.dynamic_variables = found[0].variables
        return found

    def statics_of(self, paths: list[str]) -> list[np.ndarray]:
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


def _flow_of_pair(x: np.ndarray) -> np.ndarray:
    return optical_flow(torch.from_numpy(np.ascontiguousarray(x))[None])[0, 0].numpy()

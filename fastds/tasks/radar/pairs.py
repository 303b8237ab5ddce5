# SPDX-License-Identifier: Apache-2.0
"""Pairs of coarse frames and the fine frames between them, from datasets of prediction, truth and coarse input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr

from fastds.data import ReflectivityInput, prepare, refine_mask, restore
from fastds.data.grid.axes import get_north_up_index
from fastds.data.grid.times import JITTER, match_times
from fastds.data.io.output import coarsen_with_weak_echo
from fastds.data.radar.preparation import CEILING_DBZ
from fastds.metrics import EVALUATION_FLOORS, interior
from fastds.tasks.fields.alignment import MEMBER
from fastds.training.radar_files import are_different, open_reflectivity

SPACE_FACTOR = 2


@dataclasses.dataclass
class Pair:
    """Two coarse frames and the fine frames from one to the other, in dBZ, NaN = missing.

    Attributes:
        coarse: (2, h, w); two equal frames if there is a single time.
        truth: (f + 1, H, W); f = 0 for a single time.
        prediction: (f + 1, H, W); for an ensemble, the mean of the members above the lower floor.
        there: (H, W), mask of pixels at which the coarse frames are not missing.
        valid: (H, W), pixels that are scored.
        times: (f + 1) times of the fine frames.
        flipped: dimensions that must be flipped to orient the frames north up.
        members: (M, f + 1, H, W) of an ensemble, or None.
    """

    coarse: torch.Tensor
    truth: torch.Tensor
    prediction: torch.Tensor
    there: torch.Tensor
    valid: torch.Tensor
    times: np.ndarray
    flipped: tuple[int, ...] = ()
    members: torch.Tensor | None = None
    _made: dict = dataclasses.field(default_factory=dict)

    def baseline(self, method: Callable, floor: float) -> torch.Tensor:
        """Return the frames of a baseline above the floor, (f + 1, H, W) in dBZ; computed once.

        For f = 4, the baseline first inserts the coarse middle frame.
        """
        if (method, floor) not in self._made:
            self._made[method, floor] = self._baseline(method, floor)
        return self._made[method, floor]

    def _baseline(self, method: Callable, floor: float) -> torch.Tensor:
        x = prepare(self.coarse, floor, CEILING_DBZ)[None, :, None].flip(self.flipped)
        if len(self.truth) == 5:
            x = method(x, 1)
        fine = method(x, SPACE_FACTOR)[0, : len(self.truth), 0]
        return restore(fine, floor, CEILING_DBZ).flip(self.flipped)


class Pairs:
    """The pairs of coarse frames for which prediction and truth have all fine frames.

    For a prediction with a single time, the only item has its frame.

    Args:
        prediction: downscaled fields.
        truth: true fields.
        coarse: input of the downscaling, or None.
        var: name of the variable.
        z_r: a and b of Z = a R^b; None: those of the files. Rain of all files is converted by the relation of the
            prediction, or of the truth if the prediction is reflectivity.

    Raises:
        ValueError: grids or times do not fit.
    """

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        coarse: xr.Dataset | None,
        var: str | None,
        z_r: tuple[float, float] | None,
    ):
        self.members = [open_reflectivity(member, var, z_r, "PRED", least=1) for member in list_members(prediction)]
        self.fine = self.members[0]
        self.single = len(self.fine.times) == 1
        least = 1 if self.single else 2
        places = [self.fine.raw.coords[dim].values if dim in self.fine.raw.coords else None for dim in self.fine.dims]
        self.truth = open_reflectivity(truth, var, z_r, "TRUTH", places[1:], least, self.fine.z_r)
        if self.fine.shape[1:] != self.truth.shape[1:]:
            raise ValueError(f"the grids differ: PRED has {self.fine.shape[1:]} pixels, TRUTH {self.truth.shape[1:]}")
        _check_coordinates(self.fine, self.truth)
        if min(self.fine.shape[1:]) < 2 * SPACE_FACTOR or any(n % SPACE_FACTOR for n in self.fine.shape[1:]):
            raise ValueError(f"the fine grid must have an even number of pixels each way, got {self.fine.shape[1:]}")
        self.name = str(prediction.attrs.get("fastds_model", "prediction"))
        rain_z_r = self.truth.z_r if self.fine.z_r is None else self.fine.z_r
        self.coarse = None
        if coarse is not None:
            self.coarse = open_reflectivity(coarse, var, z_r, "COARSE", least=least, rain_z_r=rain_z_r)
        if self.coarse is not None and tuple(SPACE_FACTOR * n for n in self.coarse.shape[1:]) != self.fine.shape[1:]:
            sizes = f"{self.fine.shape[1:]} and {self.coarse.shape[1:]}"
            raise ValueError(f"PRED must have twice the pixels of COARSE each way, got {sizes}")
        self.notes = []
        covered = tuple(truth.sizes[dim] for dim in self.truth.dims[1:])
        if covered != self.truth.shape[1:]:
            self.notes.append(
                "{} x {} of the {} x {} pixels of TRUTH are compared".format(*self.fine.shape[1:], *covered)
            )
        if self.coarse is None:
            when = "" if self.single else " at every second time"
            self.notes.append(f"coarse input of the baselines: TRUTH averaged 2 x 2{when}")
        numbers = [dict(enumerate(range(len(self.fine.times)))), self._match_times(self.truth)]
        self.pairs = self._make_single_pair(numbers) if self.single else self._find_pairs(numbers)
        if not self.pairs:
            common = "time" if self.single else "pair of input times with all times between them"
            raise ValueError(f"PRED, TRUTH and COARSE have no {common} in common")

    def _match_times(self, source: ReflectivityInput) -> dict[int, int]:
        """Return a dict from frames of the prediction to frames of another source at the same times."""
        tolerance = JITTER * (60.0 if self.single else self.fine.cadence)
        found = match_times(self.fine.times, source.times, tolerance)
        return {int(frame): number for number, frame in enumerate(found) if frame >= 0}

    def _make_single_pair(self, places: list[dict]) -> list[tuple]:
        """Return the item of a prediction with a single time, see _find_pairs."""
        given = {0: 0} if self.coarse is None else self._match_times(self.coarse)
        there = 0 in places[1] and 0 in given
        return [((given[0], given[0]), [0], [places[1][0]])] if there else []

    def _find_pairs(self, places: list[dict]) -> list[tuple]:
        """Return for each pair the numbers of its coarse frames and of its fine frames in prediction and truth."""
        count = len(self.fine.times)
        if self.coarse is None:
            factor = 2
            pairs = [((i, i + factor), range(i, i + factor + 1)) for i in range(0, count - factor, factor)]
        else:
            factor = round(self.coarse.cadence / self.fine.cadence)
            if factor not in (2, 4):
                steps = f"{self.fine.cadence:g} and {self.coarse.cadence:g} s"
                raise ValueError(f"PRED must have a half or a quarter of COARSE's time step, got {steps}")
            starts = {number: frame for frame, number in self._match_times(self.coarse).items()}
            pairs = [
                ((i, i + 1), range(starts[i], starts[i] + factor + 1))
                for segment in self.coarse.segments
                for i in range(segment.start, segment.stop - 1)
                if i in starts and starts[i] + factor < count
            ]
        return [
            (outer, list(frames), [places[1][t] for t in frames])
            for outer, frames in pairs
            if all(t in places[1] for t in frames)
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Pair:
        outer, in_prediction, in_truth = self.pairs[number]
        members = torch.stack([torch.from_numpy(member.frames(in_prediction)) for member in self.members])
        prediction = members[0] if len(members) == 1 else average_above(members, min(EVALUATION_FLOORS))
        truth = torch.from_numpy(self.truth.frames(in_truth))
        if self.coarse is None:
            form: dict[str, Any] = {"mode": "dbz", "floor": EVALUATION_FLOORS[0], "no_echo": self.truth.no_echo}
            frames = coarsen_with_weak_echo(truth[[0, -1]].numpy(), SPACE_FACTOR, **form)
        else:
            frames = self.coarse.frames(list(outer))
        coarse = torch.from_numpy(frames)
        there = refine_mask(~torch.isnan(coarse).any(0), SPACE_FACTOR)
        valid = there & ~torch.isnan(truth).any(0) & ~torch.isnan(prediction).any(0)
        flipped = tuple(dim for dim in (-2, -1) if get_north_up_index(self.truth.raw)[dim].step < 0)
        drawn = None if len(members) == 1 else members
        return Pair(coarse, truth, prediction, there, interior(valid), self.truth.times[in_truth], flipped, drawn)


def list_members(dataset: xr.Dataset) -> list[xr.Dataset]:
    """Return the members of an ensemble, or a list of the dataset itself."""
    count = dataset.sizes.get(MEMBER)
    return [dataset] if count is None else [dataset.isel({MEMBER: k}, drop=True) for k in range(count)]


def average_above(members: torch.Tensor, floor: float) -> torch.Tensor:
    """Return the mean (...) of members (M, ...) in dBZ; values below the floor count as the floor."""
    return members.clamp(min=floor).mean(0)


def _check_coordinates(first, second) -> None:
    """Raise ValueError if both have coordinates that differ by more than a tenth of a cell."""
    for dim_a, dim_b in zip(first.dims[1:], second.dims[1:], strict=True):
        if dim_a not in first.raw.coords or dim_b not in second.raw.coords:
            continue
        a, b = (s.raw[d].values for s, d in ((first, dim_a), (second, dim_b)))
        if are_different(a, b):
            raise ValueError(
                f"the grids differ: coordinate {dim_a} of PRED and {dim_b} of TRUTH are not the same places"
            )

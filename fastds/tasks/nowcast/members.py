# SPDX-License-Identifier: Apache-2.0
"""Members of an ensemble nowcast: the law of the method's errors, drawn with noise of the observed texture; or those
that a network draws itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastds.data import rate_to_reflectivity
from fastds.models import load
from fastds.models.baselines.extrapolation import trajectories
from fastds.models.baselines.rims import Origins
from fastds.models.db_rnn.lagrangian import backward_flow
from fastds.models.ensembles import ErrorLaw, MovingNoise, Surroundings, balanced, echo, rain_rate
from fastds.tasks.common.settings import Settings
from fastds.tasks.fields.places import noise_seed
from fastds.tasks.nowcast.methods import Method
from fastds.tasks.nowcast.windows import WET_RATE

LAW = "nowcast-errors"  # the shipped law
OWN = "noise of the network"  # in place of the law
_TOGETHER = 4  # members that a network draws at once, for the sake of memory
_RANGE_DB = 60.0  # of the fields that the motion is estimated of
_MOST = 20.0  # dBZ, of a weakest echo: fields that are wet everywhere show none
_WEAKEST = 0.02  # share of the wet pixels that the weakest echo leaves out: single pixels


def known_echo(z: np.ndarray, floor: float) -> Tensor:
    """Known fields in dBZ as dB above the floor, no echo = 0, NaN where missing."""
    return torch.from_numpy(np.asarray(z - floor, np.float32)).clamp(0, _RANGE_DB)


def paths_of(known: Tensor, steps: int) -> Tensor:
    """Where what arrives after 1 ... n steps is now, (n, 2, H, W) pixels, by the motion that networks in the frame of
    the moving air use; known: as known_echo gives it."""
    return trajectories(backward_flow(known[None, :, None] / _RANGE_DB), steps)[0]


def from_outside(last: np.ndarray, paths: Tensor) -> np.ndarray:
    """1 where the air of a forecast (steps, H, W) comes from outside the pixels of the last known field (H, W) that are
    not missing, else 0; paths: as paths_of gives them."""
    origins = Origins.of(paths, torch.from_numpy(~np.isnan(last)))
    return (origins.distance > 0).float().numpy()


def weakest_echo(z_r: tuple[float, float]) -> float:
    """The echo of WET_RATE, dBZ: no member has weaker one."""
    return float(rate_to_reflectivity(np.float64(WET_RATE), z_r))


def least_echo(last: np.ndarray, z_r: tuple[float, float]) -> float:
    """The weakest echo of a field (H, W) in dBZ, at least weakest_echo and at most _MOST."""
    least = weakest_echo(z_r)
    wet = last[last > 0]
    return max(least, min(_MOST, float(np.quantile(wet, _WEAKEST)))) if wet.size else least


class Ensemble:
    """Members around a method's mean forecast.

    A member is the law's z = m + s h(n) at every pixel with noise n, and no echo where z is below the weakest echo of
    the last field: dry is dry, and the distribution of the members at a pixel is the law's. The mean of their rain is
    that of the last field, moved, as far as it was observed: m is raised or lowered everywhere, see balanced.

    Args: method, computed: of the mean forecast, and how. seed: of all; member k of a start is the same whatever the
    number of members and the other starts. z_r: (a, b) of rain rates.
    """

    def __init__(self, method: Method, computed: Settings, seed: int, z_r: tuple[float, float]):
        self.method, self.computed, self.seed, self.z_r = method, computed, seed, z_r
        self.floor, self.ceiling = float(method.card.floor_dbz), float(method.card.ceiling_dbz)
        self.law = _law()

    def draw(self, z: np.ndarray, paths: Tensor, steps: int, start: object, members: int) -> Iterator[np.ndarray]:
        """Members (steps, H, W) in dBZ, floor = no echo, one after the other; in memory are the law's fields and one.

        z: known fields (known >= 2, H, W) in dBZ, NaN = missing. paths: as paths_of gives them. start: the time of the
        last known field.
        """
        with self.computed.autocast():
            mean = self.method(z, steps)
        valid = ~np.isnan(z[-1])
        least = least_echo(z[-1], self.z_r)
        if not (z[-1][valid] >= least).any():
            yield from (np.full(mean.shape, self.floor, np.float32) for _ in range(members))
            return
        around = Surroundings(known_echo(z, self.floor), torch.from_numpy(mean) - self.floor, paths)
        laws = self._laws(around, least)

        def field(lead: int, numbers: np.ndarray) -> np.ndarray:
            z = (echo(laws[lead], torch.from_numpy(numbers)) + self.floor).clamp(max=self.ceiling)
            return torch.where(z < least, self.floor, z).numpy()

        noise = MovingNoise.around(around)
        noise.match(lambda lead, numbers: field(lead, numbers) - self.floor)
        for member in range(members):
            drawn = noise.draw(noise_seed(self.seed, member, start), workers=torch.get_num_threads())
            yield np.stack([field(lead, numbers) for lead, numbers in enumerate(drawn)])

    def _laws(self, around: Surroundings, least: float) -> list[tuple[Tensor, ...]]:
        """The law of every lead, with the mean rain of the last field where it has moved to."""

        def rain(z: Tensor) -> Tensor:
            z = (z + self.floor).clamp(max=self.ceiling)
            return torch.where(z < least, 0.0, rain_rate(z, self.z_r))

        laws, slope = [], 10 * self.z_r[1]
        for lead, target in enumerate(around.moved(rain(around.last))):
            law = self.law(around.features(lead, least - self.floor))
            laws.append(balanced(law, target, around.known(lead), around.valid, rain, slope))
        return laws


class OwnMembers:
    """Members of a network that draws them itself, with the noise that it was trained with; no echo below the rate of
    a wet area.

    Args: as of Ensemble.
    """

    def __init__(self, method: Method, computed: Settings, seed: int, z_r: tuple[float, float]):
        self.method, self.computed, self.seed, self.least = method, computed, seed, weakest_echo(z_r)

    def draw(self, z: np.ndarray, paths: object, steps: int, start: object, members: int) -> Iterator[np.ndarray]:
        """As of Ensemble."""
        floor = np.float32(self.method.card.floor_dbz)
        if not (z[-1] >= self.least).any():
            yield from (np.full((steps, *z.shape[1:]), floor) for _ in range(members))
            return
        for first in range(0, members, _TOGETHER):
            seed = np.random.SeedSequence(noise_seed(self.seed, first, start)).generate_state(1, np.uint64)
            with torch.random.fork_rng(), self.computed.autocast():
                torch.manual_seed(int(seed[0]))
                drawn = self.method.members(z, steps, min(_TOGETHER, members - first))
            yield from np.where(drawn < self.least, floor, drawn)


def exceedance(members: Iterator[np.ndarray], count: int, thresholds: Sequence[float]) -> np.ndarray:
    """Shares (thresholds, steps, H, W) of so many members (steps, H, W) that reach thresholds, of their unit."""
    counts = 0
    for fields in members:
        counts = counts + np.stack([fields >= np.float32(threshold) for threshold in thresholds]).astype(np.uint16)
    return (counts / np.float32(count)).astype(np.float32)


@functools.cache
def _law() -> ErrorLaw:
    return load(LAW)

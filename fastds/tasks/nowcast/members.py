# SPDX-License-Identifier: Apache-2.0
"""Ensemble nowcasts: members drawn from the error model of a forecast, or drawn by a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fastds.data import rate_to_reflectivity
from fastds.inference.execution import ExecutionConfig
from fastds.models import load
from fastds.models.baselines.boundary import BackTrajectories
from fastds.models.baselines.extrapolation import compute_trajectories
from fastds.models.baselines.motion import estimate_backward_flow
from fastds.models.ensembles import (
    EchoShift,
    ErrorModel,
    ForecastFeatures,
    LagrangianNoise,
    compute_expected_rain,
    convert_to_rain_rate,
    match_echo_areas,
    match_mean_rain,
    sample_reflectivity,
)
from fastds.tasks.fields.alignment import make_noise_seed
from fastds.tasks.nowcast.methods import Method
from fastds.tasks.nowcast.windows import WET_RATE

ERROR_MODEL = "nowcast-errors"  # shipped error model
NETWORK_NOISE = "noise of the network"  # recorded in place of the error model's name
_MEMBER_BATCH = 4  # number of members that a network computes in a batch; limits memory
_RANGE_DB = 60.0  # dynamic range of the frames from which the motion is estimated
_MAX_THRESHOLD = (
    20.0  # dBZ; upper limit of a detection threshold, which cannot be estimated from fields that are wet everywhere
)
_STRONG_RATE = 5.0  # mm/h; weaker echo is not shifted to areas of the last frame
_THRESHOLD_QUANTILE = 0.02  # fraction of the wet pixels below the detection threshold; ignores single pixels


def scale_known_frames(z: np.ndarray, floor: float) -> Tensor:
    """Convert frames from dBZ to dB above the floor; no echo = 0, NaN = missing."""
    return torch.from_numpy(np.asarray(z - floor, np.float32)).clamp(0, _RANGE_DB)


def find_trajectories(known: Tensor, steps: int) -> Tensor:
    """Return the back-trajectories of the motion used by Lagrangian networks.

    Args:
        known: frames, see scale_known_frames.
        steps: number of forecast frames.

    Returns:
        (n, 2, H, W): displacements in pixels from each pixel to the origin of its air 1 ... n steps before.
    """
    return compute_trajectories(estimate_backward_flow(known[None, :, None] / _RANGE_DB), steps)[0]


def find_inflow(last: np.ndarray, paths: Tensor) -> np.ndarray:
    """Return the mask of forecast pixels whose air comes from outside the observed area.

    Args:
        last: last input frame (H, W), NaN = missing.
        paths: see find_trajectories.

    Returns:
        (steps, H, W): 1 where the air comes from outside the pixels that are not missing, else 0.
    """
    origins = BackTrajectories.from_displacements(paths, torch.from_numpy(~np.isnan(last)))
    return (origins.distance > 0).float().numpy()


def compute_min_echo(z_r: tuple[float, float]) -> float:
    """Return the reflectivity in dBZ of WET_RATE, below which members have no echo."""
    return float(rate_to_reflectivity(np.float64(WET_RATE), z_r))


def find_detection_threshold(last: np.ndarray, z_r: tuple[float, float]) -> float:
    """Return the detection threshold of a frame (H, W) in dBZ, between compute_min_echo and _MAX_THRESHOLD."""
    threshold = compute_min_echo(z_r)
    wet = last[last > 0]
    return max(threshold, min(_MAX_THRESHOLD, float(np.quantile(wet, _THRESHOLD_QUANTILE)))) if wet.size else threshold


class Ensemble:
    """Ensemble around the mean forecast of a method.

    At each pixel, a member is z = m + s h(n) with noise n and the parameters m and s of the error model, and no echo if
    z is below the detection threshold of the last frame. The parameter m is shifted at all pixels, so that the mean
    rain of the members is about that of the advected last frame, as far as it was observed. Echo above 5 mm/h is
    shifted, so that its areas are nearer to those of the advected last frame (see fastds.models.ensembles).

    Args:
        method: method of the mean forecast.
        execution: execution settings of the method.
        seed: random seed. Member k of an initialization time does not depend on the number of members or on other
            initialization times.
        z_r: a and b of Z = a R^b.
    """

    def __init__(self, method: Method, execution: ExecutionConfig, seed: int, z_r: tuple[float, float]):
        self.method, self.execution, self.seed, self.z_r = method, execution, seed, z_r
        self.floor = float(cast(float, method.card.floor_dbz))
        self.ceiling = float(cast(float, method.card.ceiling_dbz))
        self.error_model = _load_error_model()

    def draw(self, z: np.ndarray, paths: Tensor, steps: int, start: object, members: int) -> Iterator[np.ndarray]:
        """Yield the members (steps, H, W) in dBZ, floor = no echo. Only one member is in memory at a time.

        Args:
            z: input frames (known >= 2, H, W) in dBZ, NaN = missing.
            paths: see find_trajectories.
            steps: number of forecast frames.
            start: time of the last frame.
            members: number of members.
        """
        threshold = find_detection_threshold(z[-1], self.z_r)
        features = self._compute_features(z, paths, steps, threshold)
        if features is None:
            yield from (np.full((steps, *z.shape[1:]), self.floor, np.float32) for _ in range(members))
            return
        distributions = self._compute_distributions(features, threshold)

        def field(lead: int, numbers: np.ndarray) -> np.ndarray:
            z = (distributions[lead].sample(torch.from_numpy(numbers)) + self.floor).clamp(max=self.ceiling)
            return torch.where(z < threshold, self.floor, z).numpy()

        noise = LagrangianNoise.from_features(features)
        noise.match(lambda lead, numbers: field(lead, numbers) - self.floor)
        for member in range(members):
            drawn = noise.draw(make_noise_seed(self.seed, member, start), workers=torch.get_num_threads())
            yield np.stack([field(lead, numbers) for lead, numbers in enumerate(drawn)])

    def compute_mean_rain(self, z: np.ndarray, paths: Tensor, steps: int) -> np.ndarray:
        """Compute the expected rain rate, which is the mean of infinitely many members.

        The rain rate of the mean reflectivity is lower, because the rain rate is a convex function of the reflectivity.

        Args:
            z: input frames (known >= 2, H, W) in dBZ, NaN = missing.
            paths: see find_trajectories.
            steps: number of forecast frames.

        Returns:
            (steps, H, W), reflectivity of the expected rain rate in dBZ, floor = no echo.
        """
        threshold = find_detection_threshold(z[-1], self.z_r)
        features = self._compute_features(z, paths, steps, threshold)
        if features is None:
            return np.full((steps, *z.shape[1:]), self.floor, np.float32)
        rain = functools.partial(self._convert_to_rain, threshold=threshold)
        distributions = self._compute_distributions(features, threshold)
        expected = [compute_expected_rain(d.parameters, d.shift_before(rain)).numpy() for d in distributions]
        return rate_to_reflectivity(np.stack(expected), self.z_r, self.floor)

    def _compute_features(self, z: np.ndarray, paths: Tensor, steps: int, threshold: float) -> ForecastFeatures | None:
        """Return the features of the forecast of the method; None if the last frame is dry.

        The arguments are those of compute_mean_rain, and the detection threshold in dBZ.
        """
        if not (z[-1] >= threshold).any():
            return None
        with self.execution.autocast():
            mean = self.method(z, steps)
        return ForecastFeatures(scale_known_frames(z, self.floor), torch.from_numpy(mean) - self.floor, paths)

    def _convert_to_rain(self, z: Tensor, threshold: float) -> Tensor:
        """Convert dB above the floor to mm/h, with no rain below the detection threshold in dBZ."""
        z = (z + self.floor).clamp(max=self.ceiling)
        return torch.where(z < threshold, 0.0, convert_to_rain_rate(z, self.z_r))

    def _compute_distributions(self, features: ForecastFeatures, threshold: float) -> list[_Distribution]:
        """Return the distributions of reflectivity at each lead time.

        m is shifted, so that the expected mean rain approaches the mean rain of the advected last frame, and strong
        echo is shifted to the areas that it has there. The second shift becomes weaker with the lead time, as the
        advected frame resembles the future less.
        """
        rain = functools.partial(self._convert_to_rain, threshold=threshold)
        strong = float(rate_to_reflectivity(np.float64(_STRONG_RATE), self.z_r)) - self.floor
        strongest = self.ceiling - self.floor
        distributions, slope = [], 10 * self.z_r[1]
        advected = zip(features.advect(rain(features.last)), features.advect(features.last), strict=True)
        for lead, (target, echo) in enumerate(advected):
            raw = self.error_model(features.compute(lead, threshold - self.floor))
            observed = features.compute_observed_weight(lead)
            parameters = match_mean_rain(raw, target, observed, features.valid, rain, slope)
            weight = features.similar ** ((lead + 1) / 2)
            shift = match_echo_areas(parameters, echo, features.valid & (observed > 0.5), weight, strong, strongest)
            made = _Distribution(parameters, shift)
            if shift is not None:
                balanced = match_mean_rain(raw, target, observed, features.valid, made.shift_before(rain), slope)
                made = _Distribution(balanced, shift)
            distributions.append(made)
        return distributions


class _Distribution(NamedTuple):
    """Distribution of reflectivity at each pixel at one lead time.

    Attributes:
        parameters: m, s, g and e of the error model.
        shift: shift of strong echo, or None.
    """

    parameters: tuple[Tensor, ...]
    shift: EchoShift | None

    def sample(self, noise: Tensor) -> Tensor:
        """Return reflectivity in dB above the floor from standard normal noise (H, W)."""
        z = sample_reflectivity(self.parameters, noise)
        return z if self.shift is None else self.shift(z)

    def shift_before(self, convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return `convert`, applied to shifted reflectivity."""
        shift = self.shift
        return convert if shift is None else lambda z: convert(shift(z))


class NetworkEnsemble:
    """Ensemble of a network that draws members with the noise with which it was trained.

    Members have no echo below the rate WET_RATE. The arguments are those of Ensemble.
    """

    def __init__(self, method: Method, execution: ExecutionConfig, seed: int, z_r: tuple[float, float]):
        self.method, self.execution, self.seed, self.min_echo = method, execution, seed, compute_min_echo(z_r)

    def draw(self, z: np.ndarray, paths: object, steps: int, start: object, members: int) -> Iterator[np.ndarray]:
        """Yield the ensemble members, which the network draws in batches.

        Args:
            z: input frames (known, H, W) in dBZ, NaN = missing.
            paths: not used.
            steps: number of forecast frames.
            start: time of the last frame.
            members: number of members.

        Yields:
            Members (steps, H, W) in dBZ, with the floor of the model card where there is no echo.
        """
        floor = np.float32(self.method.card.floor_dbz)
        if not (z[-1] >= self.min_echo).any():
            yield from (np.full((steps, *z.shape[1:]), floor) for _ in range(members))
            return
        for first in range(0, members, _MEMBER_BATCH):
            seed = np.random.SeedSequence(make_noise_seed(self.seed, first, start)).generate_state(1, np.uint64)
            with torch.random.fork_rng(), self.execution.autocast():
                torch.manual_seed(int(seed[0]))
                drawn = self.method.draw_members(z, steps, min(_MEMBER_BATCH, members - first))
            yield from np.where(drawn < self.min_echo, floor, drawn)


def compute_exceedance(
    members: Iterator[np.ndarray], count: int, thresholds: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return exceedance probabilities.

    Args:
        members: members (steps, H, W).
        count: number of members.
        thresholds: thresholds, in the units of the members.

    Returns:
        (thresholds, steps, H, W) float32.
    """
    counts: Any = 0
    for fields in members:
        counts = counts + np.stack([fields >= np.float32(threshold) for threshold in thresholds]).astype(np.uint16)
    return (counts / np.float32(count)).astype(np.float32)


@functools.cache
def _load_error_model() -> ErrorModel:
    return cast(ErrorModel, load(ERROR_MODEL))

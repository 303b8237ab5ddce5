# SPDX-License-Identifier: Apache-2.0
"""Ensembles of downscaled radar fields: members drawn from the error model of a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from fastds._options import OptionError, spell_argument
from fastds.inference.execution import MAX_COUNT, check_whole
from fastds.models import ModelCard, load
from fastds.models.baselines import advection
from fastds.models.ensembles import ErrorModel, sample_reflectivity
from fastds.models.ensembles.downscaling_features import (
    WET_SHARE_INDEX,
    DownscalingFeatures,
    compute_mean,
    draw_smooth_noise,
    draw_zero_block_mean_noise,
    estimate_correlation,
)
from fastds.tasks.fields.alignment import make_noise_seed
from fastds.tasks.radar.back_projection import make_single_band

ERROR_MODEL = "downscaling-errors"  # shipped error model
MIN_ECHO_SHARE = 0.02  # smallest fraction of echo around a pixel for which a member may have echo at the pixel
_WET_DB = 1.0  # dB above the floor, of pixels whose errors are compared


class RadarEnsemble:
    """Ensemble members around the fine frames of a network.

    At each pixel near echo, a member is z = m + s h(n) with noise n and the parameters m and s of the error model, and
    no echo if z is below the floor. At input times, n is white noise with zero block means; between input times, it is
    smooth noise (fastds.models.ensembles.downscaling_features). The noise of different times is independent, because
    errors at times five minutes from each other are nearly uncorrelated.

    Args:
        count: number of members.
        seed: random seed. Member k at a time does not depend on the number of members or on other times.
        card: card of the network; its frames are in [0, 1] between floor and ceiling.
    """

    def __init__(self, count: int, seed: int, card: ModelCard):
        self.count, self.seed, self.card = count, seed, card
        self.span = cast(float, card.ceiling_dbz) - cast(float, card.floor_dbz)

    def draw_at_input(self, detail: DownscalingFeatures, time: object) -> Tensor:
        """Draw members (count, H, W) in [0, 1] above the floor for a frame at an input time."""
        shape = detail.fine.shape
        return self._draw(
            self._compute_parameters(detail),
            time,
            lambda seed: draw_zero_block_mean_noise(seed, (shape[0], shape[1]), cast(int, self.card.space_factor)),
        )

    def draw_between(self, details: Sequence[DownscalingFeatures], time: object) -> Tensor:
        """Draw members (count, H, W) in [0, 1] above the floor for the middle one of three frames."""
        first, parameters, last = map(self._compute_parameters, details)
        ends = (self._variance(details[0], first) + self._variance(details[2], last)) / 2
        near, shape = estimate_correlation(ends, self._variance(details[1], parameters)), details[1].fine.shape
        return self._draw(parameters, time, lambda seed: draw_smooth_noise(seed, (shape[0], shape[1]), near))

    def _compute_parameters(self, detail: DownscalingFeatures) -> Tensor:
        """Return the parameters m, s, g and e of the error model, (4, H, W), without spread far from echo."""
        out = detail.fine.new_empty(4, *detail.fine.shape)
        for rows in detail.split_rows():
            features = detail.compute(rows)
            with torch.inference_mode():
                out[:, rows] = torch.stack(_load_error_model()(features))
            far = features[WET_SHARE_INDEX] < MIN_ECHO_SHARE
            out[0, rows][far], out[1, rows][far] = detail.fine[rows][far], 0.0
        return out

    def _variance(self, detail: DownscalingFeatures, parameters: Tensor) -> float:
        """Return the mean of s^2 over pixels with echo; 0 without echo."""
        wet = detail.fine > _WET_DB
        return compute_mean(parameters[1][wet].square()) if wet.any() else 0.0

    def _draw(self, parameters: Tensor, time: object, noise: Callable) -> Tensor:
        out = parameters.new_empty(self.count, *parameters.shape[1:])
        for member, field in enumerate(out):
            numbers = noise(make_noise_seed(self.seed, member, time))
            torch.div(sample_reflectivity(tuple(parameters), numbers), self.span, out=field)
        return out.clamp_(0.0, 1.0)


def make_detail(y: Tensor, x: Tensor, card: ModelCard, difference: Tensor | None = None) -> DownscalingFeatures:
    """Return the inputs of the error model for one frame.

    Args:
        y: fine frame (H, W) in [0, 1] between floor and ceiling of the card.
        x: coarse frame (h, w) with the same scaling.
        card: card of the network.
        difference: difference of the advected input frames (H, W) for a frame between input times; None at an input
            time.
    """
    span = cast(float, card.ceiling_dbz) - cast(float, card.floor_dbz)
    fine = y.clamp(0.0, 1.0) * span
    return DownscalingFeatures(fine, x * span, torch.zeros_like(fine) if difference is None else difference * span)


def make_details(
    y: Tensor, x: Tensor, flow: Tensor, card: ModelCard, bands: Callable = make_single_band
) -> list[DownscalingFeatures]:
    """Return the inputs of the error model for the three frames y (3, H, W) of coarse frames x (2, h, w).

    Args:
        y: fine frames in [0, 1].
        x: coarse frames in [0, 1].
        flow: optical flow of x, see back_projection.back_project.
        card: card of the network.
        bands: see back_projection.back_project.
    """
    between = make_detail(y[1], x.mean(0), card, _compute_difference(x, flow, y.shape[-1] // x.shape[-1], bands))
    return [make_detail(y[0], x[0], card), between, make_detail(y[2], x[1], card)]


def _compute_difference(x: Tensor, flow: Tensor, factor: int, bands: Callable) -> Tensor:
    """Return the difference (H, W) of the first and the second frame, both moved to the middle time."""
    out = x.new_empty(x.shape[1] * factor, x.shape[2] * factor)
    both = torch.stack([x[0], 1 - x[1]])  # advection returns the mean of both, for values in [0, 1]
    for rows, window, inner in bands(x.shape[1:], flow.abs().max().item()):
        moved = advection(both[None, :, None, window], factor, flow[..., window, :][None])[0, 1, 0, inner]
        out[factor * rows.start : factor * rows.stop] = 2 * moved - 1
    return out


@functools.cache
def _load_error_model() -> ErrorModel:
    return cast(ErrorModel, load(ERROR_MODEL))


def check_members(members: int | None, seed: int | None, card: ModelCard) -> None:
    """Check the options of an ensemble.

    Args:
        members: number of members, or None for no ensemble.
        seed: random seed, or None.
        card: model card of the network.

    Raises:
        ValueError: members or seed is invalid, or the error model does not cover the network.
    """
    check_whole("members", members, 2, MAX_COUNT)
    check_whole("seed", seed, 0)
    if members is None:
        if seed is not None:
            raise OptionError("seed", f"is that of members, give {spell_argument('members')}, got {seed}")
        return
    known = _load_error_model().card
    (low, high), factor = cast(tuple[float, float], known.valid_range), known.space_factor
    if (card.floor_dbz, card.ceiling_dbz, card.space_factor) != (low, high, factor):
        raise ValueError(
            f"members are drawn around networks that make reflectivity from {low:g} to {high:g} dBZ {factor} times as "
            f"fine, such as fczsm-small; {card.name} is none"
        )

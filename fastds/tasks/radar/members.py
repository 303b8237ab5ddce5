# SPDX-License-Identifier: Apache-2.0
"""Members of downscaled radar fields: the law of a network's errors, drawn with noise of the texture that it lacks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastds.data.grid.times import text_of
from fastds.models import ModelCard, load
from fastds.models.baselines import advection
from fastds.models.ensembles import ErrorLaw, echo
from fastds.models.ensembles.detail import ECHO, Detail, correlation, lost_detail, mean, smooth_noise
from fastds.tasks.radar.agreement import one_band

LAW = "downscaling-errors"  # the shipped law
NEAR = 0.02  # share of echo around a pixel from which on it may have some in a member
_WET_DB = 1.0  # above the floor, of pixels whose errors are compared


class Members:
    """Members around a network's fine fields.

    A member is the law's z = m + s h(n) at every pixel near echo, none where z is below the floor. At input times n is
    white with blocks that have no mean, between them it is smooth, see detail.py; times are independent, as errors of
    five minutes apart are (correlation .1 along the motion).

    Args: count, seed: member k of a time is the same whatever the number of members and the other times. card: of the
    network, whose fields are in [0, 1] from its floor to its ceiling.
    """

    def __init__(self, count: int, seed: int, card: ModelCard):
        self.count, self.seed = count, seed
        self.span, self.factor = card.ceiling_dbz - card.floor_dbz, card.space_factor

    def at_input(self, y: Tensor, x: Tensor, time: object) -> Tensor:
        """(count, H, W) of the field y (H, W) at an input time, made of x (h, w), all in [0, 1] above the floor."""
        law = self._law(self._detail(y, x))
        return self._drawn(y, law, time, lambda seed: lost_detail(seed, y.shape, self.factor))

    def between(self, y: Tensor, x: Tensor, flow: Tensor, time: object, bands: Callable = one_band) -> Tensor:
        """(count, H, W) of the middle one of the fields y (3, H, W), made of x (2, h, w); flow and bands: as of
        agreement.agree."""
        first, law, last = (self._law(detail) for detail in self.details(y, x, flow, bands))
        ends = (self._variance(y[0], first) + self._variance(y[2], last)) / 2
        near = correlation(ends, self._variance(y[1], law))
        return self._drawn(y[1], law, time, lambda seed: smooth_noise(seed, y.shape[1:], near))

    def details(self, y: Tensor, x: Tensor, flow: Tensor, bands: Callable = one_band) -> list[Detail]:
        """What the law reads of each of the three fields; arguments as in between."""
        apart = self._apart(x, flow, bands)
        return [self._detail(y[0], x[0]), self._detail(y[1], x.mean(0), apart), self._detail(y[2], x[1])]

    def _detail(self, y: Tensor, x: Tensor, apart: Tensor | None = None) -> Detail:
        fine = y.clamp(0.0, 1.0) * self.span
        return Detail(fine, x * self.span, torch.zeros_like(fine) if apart is None else apart)

    def _apart(self, x: Tensor, flow: Tensor, bands: Callable) -> Tensor:
        """(H, W), dB: the first field less the second, both moved to the middle."""
        out = x.new_empty(x.shape[1] * self.factor, x.shape[2] * self.factor)
        both = torch.stack([x[0], 1 - x[1]])  # advection gives their mean, of numbers in [0, 1]
        for rows, window, inner in bands(x.shape[1:], flow.abs().max().item()):
            moved = advection(both[None, :, None, window], self.factor, flow[..., window, :][None])[0, 1, 0, inner]
            out[self.factor * rows.start : self.factor * rows.stop] = (2 * moved - 1) * self.span
        return out

    def _law(self, detail: Detail) -> Tensor:
        """(4, H, W): m, s, g and e, without any spread far from echo."""
        out = detail.fine.new_empty(4, *detail.fine.shape)
        for rows in detail.bands():
            features = detail.features(rows)
            with torch.inference_mode():
                out[:, rows] = torch.stack(_law()(features))
            far = features[ECHO] < NEAR
            out[0, rows][far], out[1, rows][far] = detail.fine[rows][far], 0.0
        return out

    def _variance(self, y: Tensor, law: Tensor) -> float:
        """The mean of s^2 where there is echo, 0 where there is none."""
        wet = y > _WET_DB / self.span
        return mean(law[1][wet].square()) if wet.any() else 0.0

    def _drawn(self, y: Tensor, law: Tensor, time: object, noise: Callable) -> Tensor:
        out = y.new_empty(self.count, *y.shape)
        for member, field in enumerate(out):
            numbers = noise([self.seed, member, int.from_bytes(text_of(time).encode())])
            torch.div(echo(tuple(law), numbers), self.span, out=field)
        return out.clamp_(0.0, 1.0)


@functools.cache
def _law() -> ErrorLaw:
    return load(LAW)


def check_members(members: int | None, seed: int | None, card: ModelCard) -> None:
    """ValueError for numbers of members and seeds that are none, and for models whose errors the law does not know."""
    for name, value, least in (("members", members, 2), ("seed", seed, 0)):
        if value is not None and (int(value) != value or value < least):
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if members is None:
        if seed is not None:
            raise ValueError(f"seed is that of members, give the argument members, got {seed}")
        return
    known = _law().card
    (low, high), factor = known.valid_range, known.space_factor
    if (card.floor_dbz, card.ceiling_dbz, card.space_factor) != (low, high, factor):
        raise ValueError(
            f"members are drawn around networks that make reflectivity from {low:g} to {high:g} dBZ {factor} times as "
            f"fine, such as fczsm-small; {card.name} is none"
        )

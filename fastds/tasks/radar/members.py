# SPDX-License-Identifier: Apache-2.0
"""Members of downscaled radar fields: the law of a network's errors, drawn with noise of the texture that it lacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastds.models import ModelCard, load
from fastds.models.baselines import advection
from fastds.models.ensembles import ErrorLaw, echo
from fastds.models.ensembles.detail import ECHO, Detail, correlation, lost_detail, mean, smooth_noise
from fastds.tasks.common.settings import MOST, check_whole
from fastds.tasks.fields.places import noise_seed
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
        self.count, self.seed, self.card = count, seed, card
        self.span = card.ceiling_dbz - card.floor_dbz

    def at_input(self, detail: Detail, time: object) -> Tensor:
        """(count, H, W) in [0, 1] above the floor, of a field at an input time."""
        shape = detail.fine.shape
        return self._drawn(self._law(detail), time, lambda seed: lost_detail(seed, shape, self.card.space_factor))

    def between(self, details: Sequence[Detail], time: object) -> Tensor:
        """(count, H, W) in [0, 1] above the floor, of the middle one of three fields."""
        first, law, last = map(self._law, details)
        ends = (self._variance(details[0], first) + self._variance(details[2], last)) / 2
        near, shape = correlation(ends, self._variance(details[1], law)), details[1].fine.shape
        return self._drawn(law, time, lambda seed: smooth_noise(seed, shape, near))

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

    def _variance(self, detail: Detail, law: Tensor) -> float:
        """The mean of s^2 where there is echo, 0 where there is none."""
        wet = detail.fine > _WET_DB
        return mean(law[1][wet].square()) if wet.any() else 0.0

    def _drawn(self, law: Tensor, time: object, noise: Callable) -> Tensor:
        out = law.new_empty(self.count, *law.shape[1:])
        for member, field in enumerate(out):
            numbers = noise(noise_seed(self.seed, member, time))
            torch.div(echo(tuple(law), numbers), self.span, out=field)
        return out.clamp_(0.0, 1.0)


def detail_at(y: Tensor, x: Tensor, card: ModelCard, apart: Tensor | None = None) -> Detail:
    """What the law reads of a field y (H, W) that was made of x (h, w), both in [0, 1] from floor to ceiling of the
    card; apart: see Detail, None at an input time."""
    span = card.ceiling_dbz - card.floor_dbz
    fine = y.clamp(0.0, 1.0) * span
    return Detail(fine, x * span, torch.zeros_like(fine) if apart is None else apart * span)


def details(y: Tensor, x: Tensor, flow: Tensor, card: ModelCard, bands: Callable = one_band) -> list[Detail]:
    """That of three fields y (3, H, W) made of x (2, h, w); flow and bands: as of agreement.agree."""
    between = detail_at(y[1], x.mean(0), card, _apart(x, flow, y.shape[-1] // x.shape[-1], bands))
    return [detail_at(y[0], x[0], card), between, detail_at(y[2], x[1], card)]


def _apart(x: Tensor, flow: Tensor, factor: int, bands: Callable) -> Tensor:
    """(H, W): the first field less the second, both moved to the middle."""
    out = x.new_empty(x.shape[1] * factor, x.shape[2] * factor)
    both = torch.stack([x[0], 1 - x[1]])  # advection gives their mean, of numbers in [0, 1]
    for rows, window, inner in bands(x.shape[1:], flow.abs().max().item()):
        moved = advection(both[None, :, None, window], factor, flow[..., window, :][None])[0, 1, 0, inner]
        out[factor * rows.start : factor * rows.stop] = 2 * moved - 1
    return out


@functools.cache
def _law() -> ErrorLaw:
    return load(LAW)


def check_members(members: int | None, seed: int | None, card: ModelCard) -> None:
    """ValueError for numbers of members and seeds that are none, and for models whose errors the law does not know."""
    check_whole("members", members, 2, MOST)
    check_whole("seed", seed, 0)
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

# SPDX-License-Identifier: Apache-2.0
"""What is not observed: the motion near the rim of the observed area, and the echo that comes from outside it."""

from typing import NamedTuple

import scipy  # its parts are imported at first use
import torch
import torch.nn.functional as F
from torch import Tensor

_RIM = 8  # pixels from missing ones within which motion is not trusted; from twice that on it is
_AROUND = 16  # pixels, of the window that motion is taken from there
_MEMORY = 32.0  # pixels from the observed area over which the edge is forgotten
_WIDE = 64  # pixels, of the window that the mean echo is taken from
_LEAST_WEIGHT = 1e-3
_LOOKED_AT = 1 << 16  # pixels, about as many as an area is estimated of


def local_mean(x: Tensor, width: int) -> Tensor:
    """Means of fields in a Gaussian window, edges repeated.

    Computed on cells of width / 2 pixels and interpolated, so that a wide window costs no more than a narrow one.

    Args:
        x: (B, H, W). width: standard deviation, pixels, even.

    Returns: (B, H, W).
    """
    cell, (h, w) = width // 2, x.shape[-2:]
    coarse = F.avg_pool2d(F.pad(x[:, None], (0, -w % cell, 0, -h % cell), mode="replicate"), cell)
    places = torch.arange(-6, 7, dtype=x.dtype)
    kernel = torch.exp(-places.square() / 8)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    with torch.autocast(x.device.type, enabled=False):
        coarse = F.conv2d(F.pad(coarse, (0, 0, 6, 6), mode="replicate"), kernel)
        coarse = F.conv2d(F.pad(coarse, (6, 6, 0, 0), mode="replicate"), kernel.transpose(2, 3))
    size = [n * cell for n in coarse.shape[-2:]]
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False)[:, 0, :h, :w]


def known_weight(valid: Tensor, width: int) -> Tensor:
    """Share (H, W) of a Gaussian window that is known, what means over known pixels are divided by; valid: (H, W)."""
    return local_mean(valid.float()[None], width)[0].clamp(min=_LEAST_WEIGHT)


def trusted_motion(flow: Tensor, valid: Tensor) -> Tensor:
    """Motion that near the rim of the observed area, and outside it, is the mean of the motion further inside.

    Echo that enters looks to any flow like echo that grows out of the rim, which would be drawn out to a fan.

    Args: flow: (B, 2, H, W), pixels. valid: (B, H, W) bool, pixels that were observed.

    Returns: (B, 2, H, W); flow itself where the nearest missing pixel is 16 pixels away or more, and where no pixel is.
    """
    return torch.stack([_trusted(*part) for part in zip(flow, valid, strict=True)])


def _trusted(flow: Tensor, valid: Tensor) -> Tensor:
    if valid.all():
        return flow
    gaps = torch.from_numpy(scipy.ndimage.distance_transform_edt(valid.cpu().numpy())).float()
    trust = ((gaps - _RIM) / _RIM).clamp(0, 1)
    if not trust.any():
        return flow
    motion = flow.cpu()
    parts = torch.cat([motion * trust, trust[None]])
    parts = local_mean(parts, _AROUND) + _LEAST_WEIGHT * parts.mean((1, 2), keepdim=True)
    return torch.lerp(parts[:2] / parts[2], motion, trust).to(flow)


class Origins(NamedTuple):
    """Where the air of a forecast was at the start.

    Attributes: rows, columns: (n, H, W), pixels of the last known field, which may lie outside the grid. place: the
    nearest of the grid, H W numbered by rows. distance: from the nearest pixel that was observed, 0 where it was.
    """

    rows: Tensor
    columns: Tensor
    place: Tensor
    distance: Tensor

    @classmethod
    def of(cls, paths: Tensor, valid: Tensor) -> "Origins":
        """By displacements (n, 2, H, W) in pixels as trajectories gives them; valid: (H, W) bool, what was observed."""
        h, w = valid.shape
        rows = (torch.arange(h, device=paths.device).view(-1, 1) + paths[:, 0]).round().long()
        columns = (torch.arange(w, device=paths.device) + paths[:, 1]).round().long()
        inside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
        place = inside[0] * w + inside[1]
        beyond = torch.hypot((rows - inside[0]).float(), (columns - inside[1]).float())
        gaps = torch.full((h, w), float(h + w))
        if valid.any():
            gaps = torch.from_numpy(scipy.ndimage.distance_transform_edt(~valid.cpu().numpy())).float()
        return cls(rows, columns, place, beyond + gaps.to(place.device).flatten()[place])


def from_outside(forecast: Tensor, last: Tensor, paths: Tensor, wet: float | None = None) -> Tensor:
    """A forecast in which echo that comes from outside the observed area is what is expected there.

        y' = e y + (1 - e) M;  e = exp(-distance / 32)

    distance is that of the air's origin from the nearest observed pixel, M the mean of the observed echo around that
    place in a Gaussian window of 64 pixels. What was not observed is not drawn out to stripes.

    A mean is weak and everywhere. With `wet`, M reaches it on no larger a part of what comes from outside than the
    observed echo does in the same windows: where y' is least, it is cut to `wet`.

    Args: forecast: (B, n, C, H, W). last: (B, C, H, W), the last known field, NaN where missing. paths: (B, n, 2, H,
    W), see Origins. wet: echo above this value is wet; None: nothing is cut.

    Returns: (B, n, C, H, W).
    """
    return torch.stack([_from_outside(*part, wet) for part in zip(forecast, last, paths, strict=True)])


def moved_area(wet: Tensor, paths: Tensor) -> Tensor:
    """The area that the last known field alone makes wet in a forecast, where that field was observed.

    A pixel counts as the air's origin does where that was observed, and farther outside towards the mean around that
    place, as from_outside takes echo. Of large fields every so many pixels are looked at.

    Args: wet: (H, W), the share of each pixel that is wet, NaN where it was not observed. paths: (n, 2, H, W), see
    Origins.

    Returns: (n,), pixels.
    """
    valid, (h, w) = ~wet.isnan(), wet.shape
    wet = torch.where(valid, wet, 0.0)
    mean = (local_mean(wet[None], _WIDE)[0] / known_weight(valid, _WIDE)).flatten()
    seen = valid.flatten().nonzero()[:, 0][:: max(1, h * w // _LOOKED_AT)]
    rows, columns = (paths.flatten(2)[..., seen] + torch.stack([seen // w, seen % w])).round().long().unbind(1)
    inside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    place = inside[0] * w + inside[1]
    distance = torch.hypot((rows - inside[0]).float(), (columns - inside[1]).float())
    if not valid.all():
        gaps = torch.from_numpy(scipy.ndimage.distance_transform_edt(~valid.numpy())).float()
        distance += gaps.flatten()[place]
    share = torch.lerp(mean[place], wet.flatten()[place], torch.exp(-distance / _MEMORY))
    return share.double().mean(1) * int(valid.sum())


def _from_outside(forecast: Tensor, last: Tensor, paths: Tensor, wet: float | None) -> Tensor:
    valid = ~last.isnan()
    origins, weight = Origins.of(paths, valid[0]), known_weight(valid[0].cpu(), _WIDE)
    known = torch.exp(-origins.distance / _MEMORY).to(forecast)[:, None]

    def expected(echo: Tensor, moved: Tensor) -> Tensor:
        mean = (local_mean(torch.where(valid, echo, 0.0).cpu(), _WIDE) / weight).to(moved)
        return torch.lerp(mean.flatten(1)[:, origins.place].movedim(0, 1), moved, known)

    out = expected(last.float(), forecast)
    if wet is not None:
        shares = expected((last > wet).float(), (forecast > wet).to(forecast))
        _limit_area(out, shares, (origins.distance > 0) & valid[0], wet)
    return out


def _limit_area(fields: Tensor, shares: Tensor, where: Tensor, wet: float) -> None:
    """Cut fields (n, C, H, W) to `wet` where they are least, so that of the pixels `where` (n, H, W) no more are above
    it than the sum of shares (n, C, H, W) over them."""
    for field, share, area in zip(fields, shares, where, strict=True):
        for channel, part in zip(field, share, strict=True):
            values = channel[area]
            above = min(round(float(part[area].double().sum())), len(values))
            least = values.argsort(stable=True)[: len(values) - above]
            values[least] = values[least].clamp(max=wet)
            channel[area] = values

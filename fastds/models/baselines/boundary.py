# SPDX-License-Identifier: Apache-2.0
"""Boundary handling for extrapolation nowcasts: missing pixels, motion near the coverage edge, inflow from outside."""

from typing import NamedTuple

import scipy  # its submodules are imported at first use
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.graph import is_capturing

_EDGE = 8  # pixels: edge motion has weight 0 up to this distance from a missing pixel, 1 from twice this distance
_EDGE_WIDTH = 16  # pixels: standard deviation of the window from which edge motion is taken
_DECAY = 32.0  # pixels: decay length of edge values outside the coverage
_MEAN_WIDTH = 64  # pixels: standard deviation of the window of the mean reflectivity
_LEAST_WEIGHT = 1e-3
_SAMPLES = 1 << 16  # approximate number of pixels from which an area is estimated


def fill_missing(x: Tensor) -> Tensor:
    """Fill missing pixels (NaN) with the nearest value of their frame, or with 0 if the frame has no value.

    During an export and during the capture of a graph, x is returned unchanged.

    Args:
        x: (..., C, h, w), any unit.

    Returns:
        (..., C, h, w). This is x itself if no pixel is missing.
    """
    if torch.compiler.is_exporting() or is_capturing():
        return x
    missing = torch.isnan(x)
    if not missing.any():
        return x
    out = x.flatten(0, -3).clone()
    for field, holes in zip(out, missing.flatten(0, -3), strict=True):
        if holes.all():
            field.zero_()
        elif holes.any():
            rows, columns = scipy.ndimage.distance_transform_edt(
                holes.cpu().numpy(), return_distances=False, return_indices=True
            )
            field.copy_(field[torch.from_numpy(rows), torch.from_numpy(columns)])
    return out.reshape(x.shape)


def compute_local_mean(x: Tensor, width: int) -> Tensor:
    """Compute means in a Gaussian window, with repeated edges.

    The means are computed on cells of width / 2 pixels and interpolated, so that the cost does not grow with the width.

    Args:
        x: (B, H, W).
        width: standard deviation of the window in pixels, even.

    Returns:
        (B, H, W).
    """
    cell, (h, w) = width // 2, x.shape[-2:]
    coarse = F.avg_pool2d(F.pad(x[:, None], (0, -w % cell, 0, -h % cell), mode="replicate"), cell)
    offsets = torch.arange(-6, 7, dtype=x.dtype)
    kernel = torch.exp(-offsets.square() / 8)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    with torch.autocast(x.device.type, enabled=False):
        coarse = F.conv2d(F.pad(coarse, (0, 0, 6, 6), mode="replicate"), kernel)
        coarse = F.conv2d(F.pad(coarse, (6, 6, 0, 0), mode="replicate"), kernel.transpose(2, 3))
    size = [n * cell for n in coarse.shape[-2:]]
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False)[:, 0, :h, :w]


def compute_coverage_weight(valid: Tensor, width: int) -> Tensor:
    """Compute the share of a Gaussian window that is valid.

    If missing pixels of a field are 0, the window mean divided by this share is the mean over the valid pixels.

    Args:
        valid: (H, W) bool.
        width: standard deviation of the window in pixels, even.

    Returns:
        (H, W), at least 0.001.
    """
    return compute_local_mean(valid.float()[None], width)[0].clamp(min=_LEAST_WEIGHT)


def inpaint_edge_motion(flow: Tensor, valid: Tensor) -> Tensor:
    """Replace the motion near the coverage edge and outside the coverage by the mean motion further inside.

    Optical flow is biased near the coverage edge, because precipitation that enters the coverage appears to grow there.

    Args:
        flow: (B, 2, H, W), in pixels.
        valid: (B, H, W) bool, observed pixels.

    Returns:
        (B, 2, H, W). The flow is unchanged at pixels that are at least 16 pixels away from every
        missing pixel. It is unchanged everywhere if no pixel is more than 8 pixels away from every missing pixel.
    """
    return torch.stack([_inpaint_edges(*part) for part in zip(flow, valid, strict=True)])


def _inpaint_edges(flow: Tensor, valid: Tensor) -> Tensor:
    if valid.all():
        return flow
    gaps = torch.from_numpy(scipy.ndimage.distance_transform_edt(valid.cpu().numpy())).float()
    trust = ((gaps - _EDGE) / _EDGE).clamp(0, 1)
    if not trust.any():
        return flow
    motion = flow.cpu()
    parts = torch.cat([motion * trust, trust[None]])
    parts = compute_local_mean(parts, _EDGE_WIDTH) + _LEAST_WEIGHT * parts.mean((1, 2), keepdim=True)
    return torch.lerp(parts[:2] / parts[2], motion, trust).to(flow)


class BackTrajectories(NamedTuple):
    """Origins of the air of forecast frames on the grid of the last input frame.

    Attributes:
        rows: (n, H, W), row of the origin, rounded. Origins may lie outside the grid.
        columns: (n, H, W), column of the origin, rounded.
        pixel: (n, H, W), flat index in row-major order of the grid pixel nearest to the origin.
        distance: (n, H, W), distance from the origin to `pixel` plus the distance from `pixel` to the nearest observed
            pixel, in pixels. It is 0 if the origin was observed.
    """

    rows: Tensor
    columns: Tensor
    pixel: Tensor
    distance: Tensor

    @classmethod
    def from_displacements(cls, paths: Tensor, valid: Tensor) -> "BackTrajectories":
        """Compute the origins of the air of forecast frames.

        Args:
            paths: (n, 2, H, W), displacements in pixels, see `compute_trajectories`.
            valid: (H, W) bool, observed pixels of the last input frame.
        """
        h, w = valid.shape
        rows = (torch.arange(h, device=paths.device).view(-1, 1) + paths[:, 0]).round().long()
        columns = (torch.arange(w, device=paths.device) + paths[:, 1]).round().long()
        inside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
        pixel = inside[0] * w + inside[1]
        beyond = torch.hypot((rows - inside[0]).float(), (columns - inside[1]).float())
        gaps = torch.full((h, w), float(h + w))
        if valid.any():
            gaps = torch.from_numpy(scipy.ndimage.distance_transform_edt(~valid.cpu().numpy())).float()
        return cls(rows, columns, pixel, beyond + gaps.to(pixel.device).flatten()[pixel])


def fill_inflow(forecast: Tensor, last: Tensor, paths: Tensor, wet: float | None = None) -> Tensor:
    """Blend inflow from outside the coverage with the mean of the observed values nearby.

        y' = e y + (1 - e) M;  e = exp(-distance / 32)

    The distance of the origin of the air from the coverage is BackTrajectories.distance. M is the mean of the observed
    values around the grid pixel nearest to the origin, in a Gaussian window with a standard deviation of 64 pixels.
    Without this step, extrapolation would repeat the edge values as stripes.

    The mean M is weak and nonzero almost everywhere. With `wet`, the number of wet pixels in the inflow is therefore
    limited. The limit is the sum of the wet shares of the pixels, which are blended with their mean as the values are.
    The smallest values are clipped to `wet`.

    Args:
        forecast: (B, n, C, H, W).
        last: (B, C, H, W), the last input frame, NaN where missing.
        paths: (B, n, 2, H, W), displacements in pixels, see `compute_trajectories`.
        wet: values above this one are wet. None disables the clipping.

    Returns:
        (B, n, C, H, W).
    """
    return torch.stack([_fill_inflow(*part, wet) for part in zip(forecast, last, paths, strict=True)])


def estimate_advected_area(wet: Tensor, paths: Tensor) -> Tensor:
    """Estimate the wet area of each forecast frame for the case that the last frame is only advected.

    Only the pixels that the last frame covers count, each with the wet share at the origin of its air. For origins
    outside the coverage, the share decays to the local mean as in `fill_inflow`. In large fields only a regular sample
    of the pixels is used.

    Args:
        wet: (H, W), wet share of each pixel of the last frame, NaN where missing.
        paths: (n, 2, H, W), displacements in pixels, see `compute_trajectories`.

    Returns:
        (n,), areas in pixels.
    """
    valid, (h, w) = ~wet.isnan(), wet.shape
    wet = torch.where(valid, wet, 0.0)
    mean = (compute_local_mean(wet[None], _MEAN_WIDTH)[0] / compute_coverage_weight(valid, _MEAN_WIDTH)).flatten()
    seen = valid.flatten().nonzero()[:, 0][:: max(1, h * w // _SAMPLES)]
    rows, columns = (paths.flatten(2)[..., seen] + torch.stack([seen // w, seen % w])).round().long().unbind(1)
    inside = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    pixel = inside[0] * w + inside[1]
    distance = torch.hypot((rows - inside[0]).float(), (columns - inside[1]).float())
    if not valid.all():
        gaps = torch.from_numpy(scipy.ndimage.distance_transform_edt(~valid.numpy())).float()
        distance += gaps.flatten()[pixel]
    share = torch.lerp(mean[pixel], wet.flatten()[pixel], torch.exp(-distance / _DECAY))
    return share.double().mean(1) * int(valid.sum())


def _fill_inflow(forecast: Tensor, last: Tensor, paths: Tensor, wet: float | None) -> Tensor:
    """Fill the inflow of one sample, see fill_inflow."""
    valid = ~last.isnan()
    origins, weight = (
        BackTrajectories.from_displacements(paths, valid[0]),
        compute_coverage_weight(valid[0].cpu(), _MEAN_WIDTH),
    )
    weight_observed = torch.exp(-origins.distance / _DECAY).to(forecast)[:, None]

    def blend_with_mean(echo: Tensor, moved: Tensor) -> Tensor:
        mean = (compute_local_mean(torch.where(valid, echo, 0.0).cpu(), _MEAN_WIDTH) / weight).to(moved)
        return torch.lerp(mean.flatten(1)[:, origins.pixel].movedim(0, 1), moved, weight_observed)

    out = blend_with_mean(last.float(), forecast)
    if wet is not None:
        shares = blend_with_mean((last > wet).float(), (forecast > wet).to(forecast))
        _limit_area(out, shares, (origins.distance > 0) & valid[0], wet)
    return out


def _limit_area(fields: Tensor, shares: Tensor, where: Tensor, wet: float) -> None:
    """Clip the smallest values of fields in place, to limit the number of pixels above `wet`.

    Args:
        fields: (n, C, H, W), modified in place.
        shares: (n, C, H, W), wet share of each pixel. The sum over the pixels in `where` is the limit.
        where: (n, H, W) bool, the pixels that count.
        wet: values above this one are wet.
    """
    for field, share, area in zip(fields, shares, where, strict=True):
        for channel, part in zip(field, share, strict=True):
            values = channel[area]
            above = min(round(float(part[area].double().sum())), len(values))
            least = values.argsort(stable=True)[: len(values) - above]
            values[least] = values[least].clamp(max=wet)
            channel[area] = values

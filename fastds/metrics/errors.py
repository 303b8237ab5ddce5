# SPDX-License-Identifier: Apache-2.0
"""Squared errors in dBZ^2 and structural similarity of three-frame sequences, on valid pixels only."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Number = TypeVar("Number", float, np.ndarray, Tensor)

EVALUATION_FLOORS = (15.0, 0.0)  # dBZ; errors are reported for both floors
CEILING_DBZ = 70.0


def interior(valid: Tensor, margin: int = 2) -> Tensor:
    """Select the valid pixels that are more than `margin` pixels away from missing pixels and from the grid edge.

    The distance of two pixels is the larger of their distances along rows and columns.

    Args:
        valid: (..., H, W) bool, True where the field is not missing.
        margin: pixels of the grid.

    Returns:
        (..., H, W) bool.

    Raises:
        ValueError: If the margin is negative.
    """
    if margin < 0:
        raise ValueError(f"margin must be >= 0 pixels, got {margin}")
    if margin == 0:
        return valid
    h, w = valid.shape[-2:]
    missing = F.pad((~valid).reshape(-1, 1, h, w).float(), [margin] * 4, value=1.0)
    return (F.max_pool2d(missing, 2 * margin + 1, stride=1) == 0).reshape(valid.shape)


def mse_total(mse_t2: Number, mse_t13: Number) -> Number:
    """Compute the mean squared error over three frames: (mse_t2 + 2 mse_t13) / 3.

    Args:
        mse_t2: error of the middle frame.
        mse_t13: mean error of the two outer frames.
    """
    return (mse_t2 + 2.0 * mse_t13) / 3.0


def radar_errors(
    prediction: Tensor, truth: Tensor, valid: Tensor | None = None, floor: float = 15.0, with_ssim: bool = True
) -> dict[str, float]:
    """Compute errors of downscaled reflectivity on valid pixels. Both fields are first clipped to floor ... 70 dBZ.

    mse_t2 is the mean of (prediction - truth)^2 at the interpolated middle frame, mse_t13 that at the two outer frames,
    and mse_total = (mse_t2 + 2 mse_t13) / 3.

    Args:
        prediction: (..., 3, H, W), in dBZ. NaN is not allowed at valid pixels.
        truth: (..., 3, H, W), in dBZ. NaN counts as missing.
        valid: bool, broadcastable to the fields; None selects the pixels where truth is not missing. A pixel counts
            only if it is valid in all three frames.
        floor: in dBZ.
        with_ssim: False leaves "ssim" NaN. The SSIM needs torchmetrics.

    Returns:
        {"mse_total", "mse_t2", "mse_t13" (dBZ^2), "mse_normalised" (mse_total / (70 - floor)^2), "ssim", "bias" (dBZ),
        "pixels"}. The errors are NaN if no pixel is valid.

    Raises:
        ValueError: If the shapes do not fit, or if the prediction is missing at a valid pixel.

    Source: Chen, Qin and Dai 2022. The formula of mse_total holds for all seven rows that they publish.
    """
    if prediction.shape != truth.shape or truth.ndim < 3 or truth.shape[-3] != 3:
        raise ValueError(
            "prediction and truth must both have shape (..., 3, H, W), "
            f"got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    present = ~torch.isnan(truth)
    valid = present if valid is None else present & valid
    valid = valid.all(dim=-3, keepdim=True).expand(truth.shape)
    if torch.isnan(prediction[valid]).any():
        raise ValueError("prediction has missing values on valid pixels")
    p, t = (torch.where(valid, z, floor).double().clamp(floor, CEILING_DBZ) for z in (prediction, truth))
    error = p - t
    count = valid[..., 0, :, :].sum().double()
    frame = [error[..., i, :, :].square().sum() / count for i in range(3)]
    t13 = 0.5 * (frame[0] + frame[2])
    total = mse_total(frame[1], t13)
    return {
        "mse_total": total.item(),
        "mse_t2": frame[1].item(),
        "mse_t13": t13.item(),
        "mse_normalised": total.item() / (CEILING_DBZ - floor) ** 2,
        "ssim": ssim(p, t, valid, CEILING_DBZ - floor) if with_ssim else float("nan"),
        "bias": (error.sum() / (3.0 * count)).item(),
        "pixels": int(count),
    }


def error_sums(prediction: Tensor, truth: Tensor, valid: Tensor, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    """Sum errors by intensity class of the truth. Both fields are first clipped to 0 ... 70 dBZ.

    Args:
        prediction: in dBZ.
        truth: the same shape, in dBZ.
        valid: bool, the pixels that count.
        edges: ascending edges of the classes of the truth, in dBZ. Pixels outside of all classes are ignored.

    Returns:
        (classes, 3) float64: number of pixels, sum of prediction - truth, sum of its square.
    """
    edges = np.asarray(edges, float)
    p, t = (z[valid].double().clamp(0.0, CEILING_DBZ).numpy() for z in (prediction, truth))
    inside = (t >= edges[0]) & (t <= edges[-1])
    p, t = p[inside], t[inside]
    # np.histogram with weights would sort the values. The last class includes its upper edge, as in np.histogram.
    number = np.minimum(np.searchsorted(edges, t, side="right") - 1, len(edges) - 2)
    sums = (np.bincount(number, w, minlength=len(edges) - 1) for w in (None, p - t, np.square(p - t)))
    return np.stack([part.astype(np.float64) for part in sums], -1)


def ssim(prediction: Tensor, truth: Tensor, valid: Tensor, value_range: float) -> float:
    """Compute the mean structural similarity over the pixels whose window has only valid pixels, with torchmetrics.

    The window is a Gaussian of 11 x 11 pixels with sigma 1.5.

    Args:
        prediction: (..., H, W), finite everywhere (missing pixels filled).
        truth: the same shape, finite everywhere.
        valid: (..., H, W) bool.
        value_range: L of the constants c1 = (0.01 L)^2 and c2 = (0.03 L)^2, in the unit of the fields.

    Returns:
        The mean; NaN if no window is valid or the grid is smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    h, w = truth.shape[-2:]
    if min(h, w) < 11:
        return float("nan")
    inside = interior(valid, 5).reshape(-1, 1, 1, h, w)
    if not inside.any():
        return float("nan")
    total = 0.0
    for p, t, keep in zip(*(z.float().reshape(-1, 1, 1, h, w) for z in (prediction, truth)), inside, strict=True):
        _, full = structural_similarity_index_measure(
            p, t, sigma=1.5, kernel_size=11, data_range=float(value_range), reduction="none", return_full_image=True
        )
        total += full[keep].double().sum().item()
    return total / int(inside.sum())

# SPDX-License-Identifier: Apache-2.0
"""Scores of sequences of fields, in their own unit: errors, structure, correlations in space and in time."""

import torch
from torch import Tensor


def _check(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != truth.shape or truth.ndim < 3:
        raise ValueError(
            "prediction and truth must have the same shape (..., T, H, W), "
            f"got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    if not (torch.isfinite(prediction).all() and torch.isfinite(truth).all()):
        raise ValueError("prediction and truth must be finite")
    return prediction.double(), truth.double()


def correlation(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Pearson correlation over `dims`, which vanish; NaN where a or b does not vary."""
    return uncentred_correlation(a - a.mean(dims, keepdim=True), b - b.mean(dims, keepdim=True), dims)


def uncentred_correlation(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """sum(a b) / sqrt(sum(a^2) sum(b^2)) over `dims`, which vanish: no mean is subtracted; NaN where a or b is 0."""
    power = (a.square().sum(dims) * b.square().sum(dims)).sqrt()
    product = (a * b).sum(dims)
    return torch.where(power > 1e-12 * product.abs().max().clamp(min=1e-300), product / power, torch.nan)


def field_scores(
    prediction: Tensor, truth: Tensor, data_range: float = 100.0, climatology: Tensor | None = None
) -> dict[str, float]:
    """Scores of one or more sequences, averaged over frames or points and then over sequences.

    mse = mean (p - t)^2;  mae = mean |p - t|;  psnr = mean over frames of 10 log10(data_range^2 / mse of the frame);
    ssim: 11 x 11 Gaussian window, sigma 1.5 (torchmetrics);
    acc: correlation over space of every frame;  acc_daymean: sum(p' t') / sqrt(sum(p'^2) sum(t'^2)) over space of every
    frame, p' and t' the anomalies from each point's own mean over the sequence, of which no second mean is subtracted;
    acc_climatology: the same of anomalies from `climatology`;  tcc: correlation over the steps at every point.

    Args:
        prediction, truth: (..., T, H, W), de-normalised, in one unit (% for humidity).
        data_range: peak of PSNR and range of SSIM, in that unit; never taken from the data.
        climatology: broadcastable to truth, in that unit, or None.

    Returns: {"mse", "mae", "psnr", "ssim", "acc", "acc_daymean", "tcc"} and with climatology "acc_climatology". Frames
        and points without variance are left out of correlations; NaN where nothing is left, and for the SSIM of grids
        smaller than its window.

    Raises: ValueError for shapes that do not fit, missing values or a data_range that is not positive.

    Source: Li et al. 2024, equations 8 to 13. Their equation 12 is acc_daymean; the numbers of their tables fit acc.
    """
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    p, t = _check(prediction, truth)
    frame = (p - t).square().mean((-2, -1))
    scores = {
        "mse": frame.mean(),
        "mae": (p - t).abs().mean(),
        "psnr": (10 * torch.log10(data_range**2 / frame.clamp(min=1e-30))).mean(),
        "ssim": _ssim(p, t, data_range),
        "acc": correlation(p, t, (-2, -1)).nanmean(),
        "acc_daymean": _anomaly_correlation(p, t, p.mean(-3, keepdim=True), t.mean(-3, keepdim=True)),
        "tcc": correlation(p, t, (-3,)).nanmean(),
    }
    if climatology is not None:
        scores["acc_climatology"] = _anomaly_correlation(p, t, climatology, climatology)
    return {name: float(value) for name, value in scores.items()}


def _anomaly_correlation(p: Tensor, t: Tensor, mean_p: Tensor, mean_t: Tensor) -> Tensor:
    """Mean over the frames of the uncentred correlation over space of anomalies."""
    return uncentred_correlation(p - mean_p, t - mean_t, (-2, -1)).nanmean()


def _ssim(p: Tensor, t: Tensor, data_range: float) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(t.shape[-2:]) < 11:
        return torch.tensor(torch.nan)
    p, t = (z.reshape(-1, 1, *z.shape[-2:]) for z in (p, t))
    return structural_similarity_index_measure(p, t, sigma=1.5, kernel_size=11, data_range=float(data_range))


def daily_series(prediction: Tensor, truth: Tensor, data_range: float = 100.0) -> dict[str, list[float]]:
    """field_scores of every sequence of prediction and truth (N, T, H, W) by itself: name -> N numbers, for curves over
    the days; data_range as there."""
    days = [field_scores(p, t, data_range) for p, t in zip(prediction, truth, strict=True)]
    return {name: [day[name] for day in days] for name in (days[0] if days else ())}

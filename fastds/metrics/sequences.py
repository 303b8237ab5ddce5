# SPDX-License-Identifier: Apache-2.0
"""Scores of sequences of fields: errors, structural similarity, correlations in space and time."""

import torch
from torch import Tensor


def _check_sequences(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != truth.shape or truth.ndim < 3:
        raise ValueError(
            "prediction and truth must have the same shape (..., T, H, W), "
            f"got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    if not (torch.isfinite(prediction).all() and torch.isfinite(truth).all()):
        raise ValueError("prediction and truth must be finite")
    return prediction.double(), truth.double()


def correlation(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Compute the Pearson correlation; NaN where a or b is constant.

    Args:
        a: tensor.
        b: tensor of the same shape.
        dims: dimensions over which the correlation is computed. They are removed.
    """
    return uncentred_correlation(a - a.mean(dims, keepdim=True), b - b.mean(dims, keepdim=True), dims)


def uncentred_correlation(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Compute sum(a b) / sqrt(sum(a^2) sum(b^2)); NaN where a or b is 0.

    In contrast to the Pearson correlation no mean is subtracted.

    Args:
        a: tensor.
        b: tensor of the same shape.
        dims: dimensions over which the sums are computed. They are removed.
    """
    power = (a.square().sum(dims) * b.square().sum(dims)).sqrt()
    product = (a * b).sum(dims)
    return torch.where(power > 1e-12 * product.abs().max().clamp(min=1e-300), product / power, torch.nan)


def field_scores(
    prediction: Tensor, truth: Tensor, data_range: float = 100.0, climatology: Tensor | None = None
) -> dict[str, float]:
    """Compute scores of one or more sequences, averaged over frames or points and then over sequences.

    In the formulas, p is the prediction and t is the truth.

    mse: mean of (p - t)^2.
    mae: mean of |p - t|.
    psnr: mean over frames of 10 log10(data_range^2 / mse of the frame).
    ssim: structural similarity with a Gaussian window of 11 x 11 pixels, sigma 1.5 (torchmetrics).
    acc: spatial correlation of every frame.
    acc_daymean: sum(p' t') / sqrt(sum(p'^2) sum(t'^2)) over the pixels of every frame, where p' and t' are anomalies
    from the mean over the sequence at each point. No second mean is subtracted.
    acc_climatology: the same for anomalies from `climatology`.
    tcc: correlation over the time steps at every point.

    Args:
        prediction: (..., T, H, W), in physical units (% for humidity).
        truth: the same shape and unit.
        data_range: peak of PSNR and range of SSIM, in the same unit. It is never computed from the data.
        climatology: broadcastable to truth, in the same unit, or None.

    Returns:
        {"mse", "mae", "psnr", "ssim", "acc", "acc_daymean", "tcc"}, and "acc_climatology" if a climatology is given.
        Correlations ignore frames and points without variance. A score is NaN if nothing is left, and the SSIM also for
        grids smaller than its window.

    Raises:
        ValueError: If the shapes do not fit, values are missing, or data_range is not positive.

    Source: Li et al. 2024, equations 8 to 13. Their equation 12 is acc_daymean, but the numbers in their tables agree
    with acc.
    """
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    p, t = _check_sequences(prediction, truth)
    frame = (p - t).square().mean((-2, -1))
    scores = {
        "mse": frame.mean(),
        "mae": (p - t).abs().mean(),
        "psnr": (10 * torch.log10(data_range**2 / frame.clamp(min=1e-30))).mean(),
        "ssim": _ssim(p, t, data_range),
        "acc": correlation(p, t, (-2, -1)).nanmean(),
        "acc_daymean": _correlate_anomalies(p, t, p.mean(-3, keepdim=True), t.mean(-3, keepdim=True)),
        "tcc": correlation(p, t, (-3,)).nanmean(),
    }
    if climatology is not None:
        scores["acc_climatology"] = _correlate_anomalies(p, t, climatology, climatology)
    return {name: float(value) for name, value in scores.items()}


def _correlate_anomalies(p: Tensor, t: Tensor, mean_p: Tensor, mean_t: Tensor) -> Tensor:
    """Compute the uncentred spatial correlation of anomalies, averaged over frames."""
    return uncentred_correlation(p - mean_p, t - mean_t, (-2, -1)).nanmean()


def _ssim(p: Tensor, t: Tensor, data_range: float) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(t.shape[-2:]) < 11:
        return torch.tensor(torch.nan)
    p, t = (z.reshape(-1, 1, *z.shape[-2:]) for z in (p, t))
    found = structural_similarity_index_measure(p, t, sigma=1.5, kernel_size=11, data_range=float(data_range))
    assert isinstance(found, Tensor)  # a pair only with further outputs, which are not requested
    return found


def daily_series(prediction: Tensor, truth: Tensor, data_range: float = 100.0) -> dict[str, list[float]]:
    """Compute field_scores for every sequence separately, for curves over the days.

    Args:
        prediction: (N, T, H, W).
        truth: the same shape.
        data_range: see field_scores.

    Returns:
        For each score, a list of N numbers.
    """
    days = [field_scores(p, t, data_range) for p, t in zip(prediction, truth, strict=True)]
    return {name: [day[name] for day in days] for name in (days[0] if days else ())}

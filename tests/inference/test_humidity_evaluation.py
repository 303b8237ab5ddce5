# SPDX-License-Identifier: Apache-2.0
"""Tests of the table of humidity scores against float64 computations."""

import numpy as np
import pytest
import torch
from torch import nn

from fastds.models import ModelCard
from fastds.tasks.humidity.evaluation import INTERPOLATIONS, RIDGE_PENALTY, evaluate_region

TIMES, ROWS, COLUMNS = 8, 24, 28


def kernel(method, t):
    t = abs(t)
    if method == "bilinear":
        return max(0.0, 1 - t)
    if method == "lanczos":
        return np.sinc(t) * np.sinc(t / 3) if t < 3 else 0.0
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2  # Keys, a = -0.5
    return near if t < 1 else far if t < 2 else 0.0


def interpolated(x, method, align):
    """Interpolate (T, h, w) to twice the resolution, with repeated edge values.

    Args:
        x: coarse fields.
        method: interpolation kernel.
        align: position of coarse point k on the fine grid: 2 k for "grid", 2 k + 1/2 for "center".
    """
    for axis in (1, 2):
        n = x.shape[axis]
        weights = np.zeros((2 * n, n))
        for fine in range(2 * n):
            at = fine / 2 - (0.25 if align == "center" else 0.0)
            for k in range(-4, n + 4):
                weights[fine, min(max(k, 0), n - 1)] += kernel(method, at - k)
        x = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), x, (1, axis)), 0, axis)
    return x


def ridge(coarse, fine, x):
    """Predict each fine point by ridge regression on the 3 x 3 coarse points around it.

    Args:
        coarse: coarse training fields (T, h, w).
        fine: fine training fields.
        x: coarse fields of the prediction.
    """
    near = [np.pad(z, ((0, 0), (1, 1), (1, 1)), "edge") for z in (coarse, x)]
    out = np.zeros((len(x), ROWS, COLUMNS))
    for row, column in np.ndindex(ROWS, COLUMNS):
        a, b = (z[:, row // 2 : row // 2 + 3, column // 2 : column // 2 + 3].reshape(len(z), 9) for z in near)
        y, middle = fine[:, row, column], a.mean(0)
        weights = np.linalg.solve(
            (a - middle).T @ (a - middle) + RIDGE_PENALTY * np.eye(9), (a - middle).T @ (y - y.mean())
        )
        out[:, row, column] = y.mean() + (b - middle) @ weights
    return out


class Plain(nn.Module):
    """Repeats each coarse value on 2 x 2 points and adds 0.05, in normalised units."""

    config = {"scale": 2}

    def forward(self, x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2) + 0.05


class Noisy(Plain):
    """Adds 0.1 (m + 1) to member m."""

    def noise_shape(self, x):
        return (1,)

    def forward(self, x, noise="random"):
        assert noise == "zero"
        return super().forward(x)

    def ensemble(self, x, members, seed):
        return torch.stack([super(Noisy, self).forward(x) + 0.1 * (m + seed) for m in range(members)])


def scores(field, truth):
    """Return the scores of a field: mse, mae, psnr for a range of 80, and correlations over space and over time."""

    def correlation(axes):
        p, t = (z - z.mean(axes, keepdims=True) for z in (field, truth))
        with np.errstate(invalid="ignore"):  # points that do not vary are left out
            return np.nanmean((p * t).sum(axes) / np.sqrt((p**2).sum(axes) * (t**2).sum(axes)))

    frame = ((field - truth) ** 2).mean((1, 2))
    row = {"mse": frame.mean(), "mae": np.abs(field - truth).mean(), "psnr": (10 * np.log10(80**2 / frame)).mean()}
    return row | {"acc": correlation((1, 2)), "tcc": correlation((0,))}


@pytest.mark.parametrize("coarsening", ["decimate", "mean"])
def test_rows_by_hand(coarsening):
    """The later half of the times is scored. Regressions are fitted to the earlier half."""
    rng = np.random.default_rng(1)
    waves = np.sin(0.5 * np.arange(ROWS)[:, None] + np.arange(TIMES)[:, None, None]) * np.cos(0.4 * np.arange(COLUMNS))
    fine = 50 + 20 * waves + 3 * rng.normal(size=(TIMES, ROWS, COLUMNS))
    networks = {"plain": Plain(), "noisy": Noisy()}
    for network in networks.values():
        network.card = ModelCard(offset=10.0, range=80.0, coarsening=coarsening, valid_range=(22.0, 90.0))
    padded = np.pad(fine, ((0, 0), (0, 1), (0, 1)), "edge")  # the last row and column fit into no coarse cell
    table = evaluate_region(networks, torch.from_numpy(padded), members=3, seed=2)

    coarse = fine[:, ::2, ::2] if coarsening == "decimate" else fine.reshape(TIMES, 12, 2, 14, 2).mean((2, 4))
    early, late, truth = coarse[:4], coarse[4:], fine[4:]
    true = "grid" if coarsening == "decimate" else "center"
    rows = {}
    for method, align in INTERPOLATIONS:
        rows[method if align == true else f"{method}, wrong convention"] = interpolated(late, method, align)
    residual = (fine[:4] - interpolated(early, "bicubic", true)).mean(0)
    rows["static residual map"] = interpolated(late, "bicubic", true) + residual
    rows["per-location ridge"] = ridge(early, fine[:4], late)
    repeated = late.repeat(2, 1).repeat(2, 2) + 80 * 0.05
    members = [(repeated + 80 * 0.1 * (m + 2)).clip(22, 90) for m in range(3)]
    rows["plain"] = rows["noisy, no noise"] = repeated.clip(22, 90)
    rows |= {"noisy, one member": members[0], "noisy, ensemble mean": np.mean(members, 0)}
    assert list(table) == list(rows)
    for name, field in rows.items():
        expected = scores(field, truth)
        assert {key: table[name][key] for key in expected} == pytest.approx(expected, rel=1e-4), name
    pairs = np.mean([np.abs(a - b) for a in members for b in members], 0) * 9 / (2 * 3 * 2)
    crps = np.mean([np.abs(a - truth) for a in members], 0) - pairs
    assert table["noisy, ensemble mean"]["crps"] == pytest.approx(crps.mean(), rel=1e-5)

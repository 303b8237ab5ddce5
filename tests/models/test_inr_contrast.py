# SPDX-License-Identifier: Apache-2.0
"""Tests of local contrast normalisation, and that a network does not depend on the units of its input."""

import numpy as np
import pytest
import torch

from fastds import models
from fastds.models.inr.encoders import compute_local_contrast
from fastds.tasks.fields.evaluation import resize_bilinear

f64 = torch.float64


def noisy(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


def small_network(**options):
    """Return a float64 network with random weights and a non-zero last layer."""
    torch.manual_seed(1)
    given = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1}
    given |= {"decoder_options": {"width": 16, "heads": 2, "key_width": 4, "hidden": 1, "slope": True}}
    network = models.create("inr-any", **given | options).double().eval()
    torch.nn.init.normal_(network.decoder.trunk[-1].weight)
    return network


@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
@pytest.mark.parametrize("periodic", [False, True], ids=["region", "globe"])
def test_mean_and_spread_pixel_by_pixel(periodic, masked):
    x = 3 + noisy(2, 2, 7, 9)
    valid = noisy(2, 2, 7, 9, seed=1) > -1 if masked else None
    mean, spread = compute_local_contrast(x, valid, 5, periodic)

    def around(field, b, c, row, column):
        """Return the valid pixels in a window of 5 x 5.

        Rows are repeated beyond the border; columns are repeated or periodic.
        """
        rows = [min(max(row + i, 0), 6) for i in range(-2, 3)]
        columns = [(column + j) % 9 if periodic else min(max(column + j, 0), 8) for j in range(-2, 3)]
        seen = [(b, c, i, j) for i in rows for j in columns]
        return np.array([float(field[at]) for at in seen if valid is None or bool(valid[at])])

    for at in np.ndindex(2, 2, 7, 9):
        values = around(x, *at)
        assert abs(float(mean[at]) - values.mean()) < 1e-12
    left = (x - mean).square()
    for at in np.ndindex(2, 2, 7, 9):
        expected = np.sqrt(around(left, *at).mean() + (1e-6 * float(mean[at])) ** 2)
        assert abs(float(spread[at]) - expected) < 1e-12


def test_a_field_in_other_units_gives_the_same_in_these():
    network, x = small_network(), noisy(1, 1, 12, 14)
    with torch.no_grad():
        y = network(x, scale=2.5)
        other = network(1000 * x - 70, scale=2.5)
        plain = resize_bilinear(x, (30, 35))
    assert (y - plain).abs().max() > 0.1, "the decoder adds nothing"
    torch.testing.assert_close(other, 1000 * y - 70, rtol=1e-6, atol=1e-3)  # 1e-6 of the mean counts as rounding


def test_variables_of_a_batch_are_independent_of_each_other_and_of_missing_values():
    network, x = small_network(), noisy(3, 1, 10, 11)
    x[1] *= 1e4
    with torch.no_grad():
        whole = network(x, scale=2)
        torch.testing.assert_close(whole[1:2], network(x[1:2], scale=2), rtol=1e-12, atol=1e-9)
        x[2, 0, 4, 4] = float("nan")
        holed = network(x, scale=2)
    torch.testing.assert_close(holed[:2], whole[:2], rtol=1e-12, atol=0)
    assert holed[2].isfinite().all() and (holed[2] != whole[2]).any(), "the others stand in for one missing pixel"


def test_contrast_keeps_dry_exactly():
    """Output farther from rain than the receptive field is exactly 0."""
    network, x = small_network(), torch.zeros(1, 1, 40, 40, dtype=f64)
    with torch.no_grad():
        assert (network(x, scale=3) == 0).all()
        x[0, 0, 5, 6] = 7.0
        y = network(x, scale=3)
    assert (y[..., 60:, :] == 0).all() and (y[..., :30, :40] != 0).any()


def test_contrast_in_bands_is_identical():
    network, x = small_network(periodic_x=True), noisy(1, 1, 40, 12)
    y = network(x, scale=2)  # with gradients: at once
    with torch.no_grad():
        torch.testing.assert_close(network(x, scale=2), y.detach(), rtol=1e-12, atol=1e-12)
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_gradient_of_a_flat_input_is_finite():
    x = torch.zeros(1, 1, 8, 8, dtype=f64, requires_grad=True)
    small_network()(x, scale=2).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "options", [{"contrast_window": 4}, {"contrast_window": 1}, {"contrast_window": 9, "skip": False}]
)
def test_contrast_rejects_invalid_windows(options):
    with pytest.raises(ValueError, match="contrast_window must be 0 or an odd size from 3 on, with skip"):
        models.create("inr-any", **options)

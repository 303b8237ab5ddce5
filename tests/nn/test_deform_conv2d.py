# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.nn.DeformConv2d and GuidedDeformConv2d."""

import pytest
import torch
import torch.nn.functional as F

from fastds.nn import DeformConv2d, GuidedDeformConv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference


def guided(**changes):
    layer = GuidedDeformConv2d(**({"in_channels": 16, "out_channels": 6, "offset_groups": 2} | changes))
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.2)
    torch.nn.init.normal_(layer.conv_offset_mask.bias)
    return layer


def test_deform_conv2d_module_is_the_op():
    layer = DeformConv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2)
    x, offset, mask = torch.randn(2, 6, 9, 8), torch.randn(2, 36, 4, 7), torch.rand(2, 18, 4, 7)
    y = layer(x, offset, mask)
    expected = reference(x, offset, layer.weight, layer.bias, (2, 1), (1, 0), (2, 1), mask)
    torch.testing.assert_close(y, expected)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert DeformConv2d(6, 4, 3, bias=False).bias is None
    assert "kernel_size=(3, 2), stride=(2, 1)" in repr(layer) and "groups=2, bias=True" in repr(layer)


def test_deform_conv2d_module_refuses_groups():
    with pytest.raises(ValueError, match="groups must divide in_channels and out_channels, got groups=4"):
        DeformConv2d(6, 4, 3, groups=4)


def test_guided_starts_as_half_a_convolution():
    layer = GuidedDeformConv2d(16, 6, offset_groups=2)
    assert list(layer.state_dict()) == ["weight", "bias", "conv_offset_mask.weight", "conv_offset_mask.bias"]
    assert layer.conv_offset_mask.weight.shape == (54, 16, 3, 3)
    assert all((p == 0).all() for p in (layer.bias, *layer.conv_offset_mask.parameters()))
    assert 0 < layer.weight.abs().max() <= 1 / 12
    torch.nn.init.normal_(layer.bias)
    x, guide = torch.randn(2, 16, 7, 5), torch.randn(2, 16, 7, 5)
    expected = 0.5 * F.conv2d(x, layer.weight, padding=1) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, guide), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulated", [True, False], ids=["modulated", "plain"])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("flow", [True, False], ids=["flow", "no_flow"])
def test_guided_formula(modulated, kernel_size, flow):
    layer = guided(modulated=modulated, kernel_size=kernel_size)
    x, guide = torch.randn(2, 16, 7, 5), torch.randn(2, 16, 7, 5)
    base = torch.randn(2, 2, 7, 5) if flow else None
    maps = F.conv2d(guide, layer.conv_offset_mask.weight, layer.conv_offset_mask.bias, padding=1)
    split = 4 * kernel_size**2
    offset, mask = maps[:, :split].clone(), maps[:, split:].sigmoid() if modulated else None
    if flow:
        offset[:, 0::2] += base[:, :1]
        offset[:, 1::2] += base[:, 1:]
    expected = reference(x, offset, layer.weight, layer.bias, 1, kernel_size // 2, 1, mask)
    torch.testing.assert_close(layer(x, guide, base), expected, rtol=1e-4, atol=1e-4)


def test_guided_gradients_reach_everything():
    layer = guided()
    x, guide, base = torch.randn(1, 16, 6, 5), torch.randn(1, 16, 6, 5), torch.randn(1, 2, 6, 5)
    leaves = [t.requires_grad_() for t in (x, guide, base)]
    layer(*leaves).square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (*leaves, *layer.parameters()))


def test_guided_by_flow_follows_the_flow():
    """With a guide of zeros and an identity weight of size 1 x 1, the result is half the warped input."""
    layer = GuidedDeformConv2d(4, 4, offset_groups=2, kernel_size=1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4)[..., None, None])
    x = torch.randn(1, 4, 8, 9)
    flow = torch.tensor([1.0, -2.0])[None, :, None, None].expand(1, 2, 8, 9)
    y = layer(x, torch.zeros_like(x), flow)
    assert torch.equal(y[:, :, :7, 2:], 0.5 * x[:, :, 1:, :7])


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16"])
def test_guided_flow_stays_float32(autocast):
    """A flow of 1001 pixels would be wrong by one pixel in bfloat16, which the ramp in x would show."""
    layer = GuidedDeformConv2d(1, 1, offset_groups=1, modulated=False, kernel_size=1)
    with torch.no_grad():
        layer.weight.fill_(1)
    x = torch.arange(2048.0).remainder(8).reshape(1, 1, 1, 2048)
    flow = torch.tensor([0.0, 1001.0])[None, :, None, None].expand(1, 2, 1, 2048)
    if not autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x, torch.zeros_like(x), flow)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y[0, 0, 0, :1000].float(), x[0, 0, 0, 1001:2001].float())


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_guided_in_bfloat16_is_near_float32(grad):
    layer = guided()
    with torch.set_grad_enabled(grad):
        x, guide, base = torch.randn(1, 16, 9, 8), torch.randn(1, 16, 9, 8), torch.randn(1, 2, 9, 8)
        exact = layer(x, guide, base)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x, guide, base)
    assert (y - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


def test_guided_keeps_channels_last():
    x = torch.randn(1, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    assert guided()(x, x).is_contiguous(memory_format=torch.channels_last)


def test_guided_refuses():
    with pytest.raises(ValueError, match="offset_groups must divide in_channels, got 3 groups and 16 channels"):
        GuidedDeformConv2d(16, 16, offset_groups=3)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        GuidedDeformConv2d(16, 16, offset_groups=2, kernel_size=2)
    with pytest.raises(ValueError, match=r"base_offset has shape \(1, 2, 6, 6\), expected \(1, 2, 6, 5\)"):
        guided()(torch.randn(1, 16, 6, 5), torch.randn(1, 16, 6, 5), torch.zeros(1, 2, 6, 6))


def test_guided_activation():
    module = GuidedDeformConv2d(8, 4, offset_groups=2)
    x, guide = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6)
    assert torch.equal(module(x, guide, activation="leaky_relu"), torch.nn.functional.leaky_relu(module(x, guide), 0.1))
    with pytest.raises(ValueError, match="activation must be None or 'leaky_relu', got 'relu'"):
        module(x, guide, activation="relu")

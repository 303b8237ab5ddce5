# SPDX-License-Identifier: Apache-2.0
"""Tests of UNet and UNet3D against torch.nn.functional: outputs, gradients, parameters and FLOPs."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastds
from fastds import models
from fastds.models.baselines import trilinear

PARAMETERS = {"unet": 31_031_299, "unet-32": 7_759_875, "unet3d": 34_234_057}


def parameters_of(model):
    """Return the parameters by name in float64."""
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


def plain_unet(x, p, r=2):
    """Compute a U-Net with torch.nn.functional; the channels are bilinearly interpolated frames."""
    b, n, c, h, w = x.shape
    y = F.interpolate(x.reshape(b, n * c, h, w), scale_factor=r, mode="bilinear", align_corners=False)
    height, width = y.shape[2:]
    y = F.pad(y, (0, -width % 16, 0, -height % 16), mode="replicate")

    def conv(name, z):
        return F.relu(F.conv2d(z, p[f"{name}.weight"], p[f"{name}.bias"], padding=1))

    def two(name, z):
        return conv(f"{name}.conv2", conv(f"{name}.conv1", z))

    maps = [two("down.0", y)]
    for k in range(1, 5):
        maps.append(two(f"down.{k}", F.max_pool2d(maps[-1], 2)))
    z = maps[4]
    for k in (3, 2, 1, 0):
        up = F.conv_transpose2d(z, p[f"up.{k}.weight"], p[f"up.{k}.bias"], stride=2)
        z = two(f"merge.{k}", torch.cat([maps[k], up], 1))
    out = F.conv2d(z, p["last.weight"], p["last.bias"])[:, :, :height, :width]
    return out.reshape(b, 3, -1, height, width)


def plain_unet3d(x, p, r=2):
    """Compute a three-dimensional U-Net with torch.nn.functional on trilinearly interpolated frames."""
    y = F.interpolate(x.transpose(1, 2), (3, r * x.shape[3], r * x.shape[4]), mode="trilinear", align_corners=False)
    height, width = y.shape[3:]
    y = F.pad(y, (0, -width % 8, 0, -height % 8, 0, 0), mode="replicate")

    def conv(name, z):
        weight = p[f"{name}.weight"]
        return F.conv3d(z, weight, p[f"{name}.bias"], padding=[k // 2 for k in weight.shape[2:]])

    def two(name, z):
        return conv(f"{name}.conv2", conv(f"{name}.conv1", z).relu()).relu()

    maps = [two("down.0", y)]
    for k in range(1, 4):
        maps.append(two(f"down.{k}", F.max_pool3d(maps[-1], (1, 2, 2))))
    z = maps[3]
    for k in (2, 1, 0):
        up = conv(f"up.{k}", z.repeat_interleave(2, 3).repeat_interleave(2, 4)).relu()
        z = two(f"merge.{k}", torch.cat([maps[k], up], 1))
    return conv("last", z).transpose(1, 2)[..., :height, :width]


PLAIN = {"unet": plain_unet, "unet3d": plain_unet3d}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_specification(name):
    model = models.create(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert name in models.available() and model.card.name == name


@pytest.mark.parametrize(("name", "gflop"), [("unet", 235), ("unet-32", 59), ("unet3d", 4440)])
def test_flops_of_the_specification(name, gflop):
    """FLOPs of the convolutions for (1, 2, 1, 200, 200), counted on meta tensors."""
    model, x = models.create(name).to("meta"), torch.zeros(1, 2, 1, 200, 200, device="meta")
    with fastds.use_backend("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(2, 2, 1, 16, 24), (1, 2, 3, 13, 9)], ids=str)
def test_unet_equals_torch(name, shape):
    torch.manual_seed(0)
    model = models.create(name, width=4, in_channels=shape[2])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)  # biases, which start at zero
    x = torch.rand(shape)
    y, plain = model(x), parameters_of(model)
    expected = PLAIN[name](x.double(), plain)
    assert y.shape == (shape[0], 3, 1, 2 * shape[3], 2 * shape[4]) == expected.shape
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    given = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(given)
    expected.backward(given.double())
    for key, parameter in model.named_parameters():
        found, grad = parameter.grad.double(), plain[key].grad
        assert grad.any() and (found - grad).norm() <= 1e-4 * grad.norm(), key


def test_the_interpolation_before_unet3d_is_that_of_the_baseline():
    x = torch.rand(1, 2, 1, 5, 6)
    y = F.interpolate(x.transpose(1, 2), (3, 10, 12), mode="trilinear", align_corners=False).transpose(1, 2)
    torch.testing.assert_close(trilinear(x, 2), y)


@pytest.mark.parametrize("name", PLAIN)
def test_unet_weights_round_trip(name, tmp_path):
    model = models.create(name, width=2, scale=3)
    models.save(model, tmp_path / "w.safetensors")
    loaded, x = fastds.load(tmp_path / "w.safetensors"), torch.rand(1, 2, 1, 8, 8)
    assert loaded.config == model.config and torch.equal(loaded(x), model.eval()(x))
    assert loaded(x).shape == (1, 3, 1, 24, 24) and loaded.card.space_factor == 3


def test_unet_rejects_invalid_arguments():
    for name in PLAIN:
        model = models.create(name, width=2)
        for shape in ((1, 3, 1, 8, 8), (1, 2, 2, 8, 8)):
            with pytest.raises(ValueError, match=r"x must have shape \(B, 2, 1, h, w\), got \(1, "):
                model(torch.rand(shape))
        with pytest.raises(ValueError, match="width must be a positive integer, got 0"):
            models.create(name, width=0)
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        models.create("unet3d", kernel=4)

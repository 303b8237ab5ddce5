# SPDX-License-Identifier: Apache-2.0
"""Tests of SimVP against a computation layer by layer."""

import pytest
import torch
import torch.nn.functional as F

from fastds import models
from fastds.models.db_rnn.sim_vp import SimVP
from fastds.tasks.nowcast.config import DataConfig, TrainingConfig
from fastds.tasks.nowcast.training import NowcastModule

pytestmark = pytest.mark.usefixtures("native")
SMALL = {"frames": 3, "spatial": 4, "temporal": 16, "blocks": 3, "kernels": [3, 5], "groups": 2}


def normed(x, module, groups, stride=1, transposed=False):
    conv = module.conv
    if transposed:
        x = F.conv_transpose2d(x, conv.weight, conv.bias, stride=2, padding=1, output_padding=1)
    else:
        x = F.conv2d(x, conv.weight, conv.bias, stride, conv.weight.shape[-1] // 2)
    batch, channels, height, width = x.shape
    sets = x.reshape(batch, groups, -1)
    sets = (sets - sets.mean(2, keepdim=True)) / (sets.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = sets.view(batch, channels, height, width) * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
    return torch.where(x > 0, x, 0.2 * x)


def inception(x, block, groups):
    x = F.conv2d(x, block.squeeze.weight, block.squeeze.bias)
    y = 0
    for branch in block.branches:
        conv, outputs = branch.conv, branch.conv.weight.shape[0] // groups
        parts = [
            F.conv2d(part, weight, padding=weight.shape[-1] // 2)
            for part, weight in zip(x.chunk(groups, 1), conv.weight.split(outputs), strict=True)
        ]
        z = torch.cat(parts, 1) + conv.bias[:, None, None]
        z = F.leaky_relu(F.group_norm(z, groups, branch.norm.weight, branch.norm.bias), 0.2)
        y = y + z
    return y


def oracle(model, frames):
    """Compute the next m frames with one pass."""
    batch, known, _, height, width = frames.shape
    every, skips = [], []
    for frame in frames.unbind(1):
        skip = x = normed(frame, model.shallow, 2)
        for module, stride in zip(model.encoder, (2, 1, 2), strict=True):
            x = normed(x, module, 2, stride)
        every.append(x)
        skips.append(skip)
    x, groups, skipped = torch.cat(every, 1), model.config["groups"], []
    for block in model.translator.down:
        x = inception(x, block, groups)
        skipped.append(x)
    x = inception(x, model.translator.up[0], groups)
    for block, skip in zip(list(model.translator.up)[1:], skipped[-2::-1], strict=True):
        x = inception(torch.cat([x, skip], 1), block, groups)
    out = []
    for features, skip in zip(x.chunk(known, 1), skips, strict=True):
        for module, doubles in zip(model.decoder, (True, False, True), strict=True):
            features = normed(features, module, 2, transposed=doubles)
        y = normed(torch.cat([features, skip], 1), model.last, 2)
        out.append(F.conv2d(y, model.output.weight, model.output.bias))
    return torch.stack(out, 1)


def test_simvp_equals_its_layers():
    torch.manual_seed(4)
    model, frames = SimVP(**SMALL).double(), torch.rand(2, 3, 1, 12, 16, dtype=torch.float64)
    first = oracle(model, frames)
    expected = torch.cat([first, oracle(model, first)], 1)[:, :5]
    (got,) = model(frames, 5)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    parameters, along = list(model.parameters()), torch.randn_like(got)
    grads = torch.autograd.grad((got * along).sum(), parameters)
    exact = torch.autograd.grad((expected * along).sum(), parameters)
    for a, b in zip(grads, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_parameters():
    with torch.device("meta"):
        model = models.create("simvp")
    assert sum(p.numel() for p in model.parameters()) == 38_933_889  # the paper's Table VII: 38.9 M


def test_simvp_forecast(tmp_path):
    model = models.create("simvp", **SMALL).eval()
    frames = torch.rand(1, 3, 1, 13, 18)
    hole = frames.clone()
    frames[0, 1, 0, 3:7], hole[0, 1, 0, 3:7] = 0, float("nan")
    with torch.no_grad():
        got = model.forecast(hole, 4)
        assert got.shape == (1, 4, 1, 13, 18) and got.min() >= 0 and got.max() <= 1
        whole = model(F.pad(frames, (0, 2, 0, 3)), 4)[0]
        assert torch.equal(got, whole[..., :13, :18].clamp(0, 1))
        models.save(model, tmp_path / "model.safetensors")
        again = models.load(tmp_path / "model.safetensors")
        assert again.config == model.config and torch.equal(again.forecast(frames, 4), got)


def test_training_takes_the_frames_to_forecast():
    config = TrainingConfig(DataConfig(path=".", known=3, future=3, crop=16), model="simvp")
    config.loss.kind = "db-rnn"
    model = SimVP(**SMALL)
    module = NowcastModule(model, config)
    batch = {"frames": torch.rand(2, 6, 1, 16, 16), "valid": torch.ones(2, 6, 1, 16, 16, dtype=torch.bool)}
    difference = model(batch["frames"][:, :3], 3)[0] - batch["frames"][:, 3:]
    expected = (difference.abs() + difference.square()).sum() / (2 * 3)
    torch.testing.assert_close(module.loss(module(batch), batch), expected)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SimVP(groups=3), "groups a divisor of frames"),
        (lambda: SimVP(blocks=1), "blocks at least 2"),
        (lambda: SimVP(kernels=(3, 4)), r"kernels must be odd, got \(3, 4\)"),
        (lambda: SimVP(**SMALL)(torch.rand(1, 4, 1, 16, 16)), "frames has 4 time steps, expected the 3"),
        (lambda: SimVP(**SMALL)(torch.rand(1, 16, 16)), r"frames must be a Tensor \(B, T, 1, H, W\)"),
        (lambda: SimVP(**SMALL).roll(torch.rand(1, 3, 1, 16, 16), 3, None, 0.5), "feed_truth must be 0"),
    ],
    ids=["groups", "blocks", "kernels", "time steps", "shape", "sampling"],
)
def test_wrong_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_weights_follow_the_memory_format(tmp_path):
    """In another memory format, the weight would be reordered in each call of a convolution."""
    model = models.create("simvp", **SMALL)
    models.save(model, tmp_path / "w.safetensors")
    for made in (model, models.load(tmp_path / "w.safetensors")):
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in made.parameters() if w.dim() == 4)

# SPDX-License-Identifier: Apache-2.0
"""Tests of Conv3x3, Conv1x1, ResidualBlock and PixelShuffleUpsample against layers of torch in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import prune

from fastds.nn import (
    Conv1x1,
    Conv2d,
    Conv3x3,
    ConvGRUCell,
    ConvLSTMCell,
    DeformConv2d,
    GuidedDeformConv2d,
    LocalAttentionDecoder,
    LocalEnsembleDecoder,
    PixelShuffleUpsample,
    ResidualBlock,
    chunks,
)
from fastds.nn.convolutions import MultiInputConv3x3, MultiInputConv5x5
from fastds.ops import pixel_shuffle, window_attention2d
from fastds.ops.core import layout


def by_torch(conv, x, x2=None, residual=None, act=None, slope=0.1, shuffle=1):
    """Compute shuffle(act(conv(concat(x, x2)) + bias + residual)) with torch.nn.functional."""
    source = x if x2 is None else torch.cat([x, x2], 1)
    y = F.conv2d(source, conv.weight, conv.bias, conv.stride, conv.kernel_size // 2)
    y = y if residual is None else y + residual
    y = F.relu(y) if act == "relu" else F.leaky_relu(y, slope) if act == "leaky_relu" else y
    return F.pixel_shuffle(y, shuffle)


def assert_equal_with_gradients(module, ours, theirs, *inputs):
    """Compare values, and the gradients of inputs and parameters for a random cotangent."""
    a, b = ours(), theirs()
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    leaves = [*(t for t in inputs if t is not None), *module.parameters()]
    along = torch.randn(b.shape, dtype=b.dtype)
    for got, expected in zip(*(torch.autograd.grad(y, leaves, along) for y in (a, b)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


CASES = {
    "plain": {},
    "no bias": {"bias": False, "activation": "relu"},
    "stride": {"stride": 2, "activation": "leaky_relu", "negative_slope": 0.3, "with_residual": True},
    "two sources": {"with_x2": True, "activation": "leaky_relu"},
    "all": {"with_x2": True, "with_residual": True, "activation": "relu", "upscale_factor": 2},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [Conv3x3, Conv1x1])
def test_convolutions_with_epilogues(kind, name):
    options = dict(CASES[name])
    with_x2, with_residual = options.pop("with_x2", False), options.pop("with_residual", False)
    made = {key: options.pop(key) for key in ("bias", "stride") if key in options}
    conv = kind(6 if with_x2 else 4, 8, **made).double()
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64, requires_grad=True)
    x2 = torch.randn(2, 2, 7, 9, dtype=torch.float64, requires_grad=True) if with_x2 else None
    size = (4, 5) if "stride" in made else (7, 9)
    residual = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True) if with_residual else None
    theirs = {"act": options.get("activation"), "slope": options.get("negative_slope", 0.1)}
    assert_equal_with_gradients(
        conv,
        lambda: conv(x, x2, residual=residual, **options),
        lambda: by_torch(conv, x, x2, residual, shuffle=options.get("upscale_factor", 1), **theirs),
        x, x2, residual,
    )  # fmt: skip


LAYERS = pytest.mark.parametrize(
    ("layer", "size"),
    [(Conv3x3(4, 6), 7), (Conv3x3(4, 6, stride=2), 4), (Conv1x1(4, 6), 7)],
    ids=["3x3", "stride", "1x1"],
)


@LAYERS
def test_broadcasting_operands_are_rejected(layer, size):
    x = torch.ones(2, 4, 7, 7)
    for call, words in (
        (lambda: layer(x[:, :3]), r"^x has 3 channels, weight takes 4: weight has shape .*, expected \(6, 3,"),
        (lambda: layer(x, x[:, :1]), r"^x and second_input have 5 channels, weight takes 4: "),
        (lambda: layer(x[:, :2], x[:, 2:, :1, :1]), r"second_input has shape \(2, 2, 1, 1\), expected \(2, 2, 7, 7\)"),
        (lambda: layer(x, residual=torch.ones(1, 6, 1, 1)), rf"expected \(2, 6, {size}, {size}\)"),
        (
            lambda: layer(x, activation="leaky_relu", negative_slope=-1),
            "negative_slope must be a finite number >= 0, got -1",
        ),
        (lambda: layer(x, activation="gelu"), "activation must be None, 'relu' or 'leaky_relu', got 'gelu'"),
        (lambda: layer(x[0]), "x has shape .* expected 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@LAYERS
def test_float32_weights_take_16_bit_maps(layer, size):
    x = torch.randn(2, 4, 7, 7).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16 and y.shape == (2, 6, size, size)
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=0.01, atol=0.02)


@LAYERS
def test_vmap_equals_a_loop(layer, size):
    """The function vmap is applied over samples, and over the weights of two layers."""
    x, residual = torch.randn(3, 1, 4, 7, 7), torch.randn(3, 1, 6, size, size)
    got = torch.func.vmap(lambda x, r: layer(x, None, residual=r, activation="relu"))(x, residual)
    torch.testing.assert_close(
        got, torch.stack([layer(a, None, residual=r, activation="relu") for a, r in zip(x, residual, strict=True)])
    )
    weights = {name: torch.stack([p, 2 * p]) for name, p in layer.named_parameters()}
    got = torch.func.vmap(lambda w: torch.func.functional_call(layer, w, (x[0],), {"residual": residual[0]}))(weights)
    torch.testing.assert_close(got[1], 2 * layer(x[0]) + residual[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (Conv3x3, (0, 4), "in_channels must be an int >= 1, got 0"),
        (Conv1x1, (4, 2.0), "out_channels must be an int >= 1, got 2.0"),
        (partial(Conv3x3, stride=(2, 1)), (4, 4), r"stride must be an int >= 1, got \(2, 1\)"),
        (ConvLSTMCell, (3, 0), "hidden_channels must be an int >= 1, got 0"),
        (ConvGRUCell, (-1, 3), "in_channels must be an int >= 1, got -1"),
        (
            partial(PixelShuffleUpsample, upscale_factor=[2, 2]),
            (4, 1),
            r"upscale_factor must be 1, 2, 3 or 4, got \[2, 2\]",
        ),
        (DeformConv2d, (4, 4, (3, 3, 3)), r"kernel_size must be an int >= 1 or a pair of them, got \(3, 3, 3\)"),
        (DeformConv2d, (4, 4, 3, (1.5, 1)), r"stride must be an int >= 1 or a pair of them, got \(1.5, 1\)"),
        (DeformConv2d, (4, 4, 3, 1, "same"), "padding must be an int >= 0 or a pair of them, got 'same'"),
        (DeformConv2d, (4, 4, 3, 1, 0, 1, 0), "groups must be an int >= 1, got 0"),
        (partial(GuidedDeformConv2d, offset_groups=0), (4, 4), "offset_groups must be an int >= 1, got 0"),
        (
            partial(LocalAttentionDecoder, width=16, heads=3),
            (4, 1),
            "heads must divide width, got 3 heads and width 16",
        ),
        (Conv2d, (4, 4, (3, 5)), r"kernel_size must be an int or a pair of equal ints, got \(3, 5\)"),
        (Conv2d, (4, 4, 3), "padding must be 'same' or kernel_size // 2 = 1, got 0"),
        (Conv2d, (4, 4, 3, 2, 1), "stride must be 1, got 2"),
        (Conv2d, (4, 4, 3, 1, 1, 2), "dilation must be 1, got 2"),
        (Conv2d, (4, 4, 3, 1, 1, 1, 1, True, "reflect"), "padding_mode must be 'zeros', got 'reflect'"),
    ],
)
def test_modules_reject_invalid_sizes(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(*arguments)


def test_modules_accept_numpy_integers():
    assert Conv3x3(np.int64(2), np.int64(3), stride=np.int32(1))(torch.ones(1, 2, 4, 4)).shape == (1, 3, 4, 4)
    assert DeformConv2d(2, 3, np.int64(3), padding=np.int64(1)).padding == (1, 1)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (Conv3x3(4, 6), lambda m, x: m(x, activation="relu")),
        (PixelShuffleUpsample(4, 2, upscale_factor=2), lambda m, x: m(x)),
        (ConvLSTMCell(4, 3), lambda m, x: m.sequence(torch.stack([x, x], 1))[0]),
        (ConvGRUCell(4, 16), lambda m, x: m.sequence(torch.stack([x, x], 1))[0]),
        (GuidedDeformConv2d(4, 3, offset_groups=2), lambda m, x: m(x, x)),
        (LocalEnsembleDecoder(4, 1, width=8), lambda m, x: m(x, (9, 8))),
        (Conv1x1(4, 4), lambda m, x: window_attention2d(m(x), x, x, window=3)),
        (Conv1x1(4, 4), lambda m, x: pixel_shuffle(m(x), 2, m.bias)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gradients_of_many_directions_at_once(module, call, native, monkeypatch):
    monkeypatch.setattr(layout, "MIN_NATIVE_ELEMENTS", 0)
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    y, leaves = call(module, x), [x, *module.parameters()]
    along = torch.randn(3, *y.shape)
    got = torch.autograd.grad(y, leaves, along, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        for a, b in zip(got, torch.autograd.grad(y, leaves, along[k], retain_graph=True), strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-4, atol=1e-4)


def every(*results):
    return [t for r in results for t in (every(*r) if isinstance(r, tuple) else [r])]


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (ConvLSTMCell(3, 4), lambda m, x: (m(x), m(x, m(x)), m.sequence(torch.stack([x, x], 1)))),
        (ConvGRUCell(3, 4), lambda m, x: (m(x), m(x, m(x)), m.sequence(torch.stack([x, x], 1)))),
        (GuidedDeformConv2d(3, 4, offset_groups=1), lambda m, x: m(x, x)),
        (LocalEnsembleDecoder(3, 1, width=8), lambda m, x: m(x, (9, 8))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_made_by_hooks(module, call):
    x = torch.randn(2, 3, 6, 7)
    layers = [m for m in module.modules() if hasattr(m, "weight")]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    got = every(call(module, x))
    for layer in layers:
        layer.weight = layer.weight_orig * layer.weight_mask
        layer._forward_pre_hooks.clear()
    for a, b in zip(got, every(call(module, x)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kind", "size"), [(Conv3x3, 9), (Conv1x1, 1)])
def test_initial_weights_are_those_of_conv2d(kind, size):
    """Weights and bias are uniform in +-1 / sqrt(fan in)."""
    conv, bound = kind(16, 400), 1 / math.sqrt(16 * size)
    for values in (conv.weight.detach(), conv.bias.detach()):
        assert values.abs().max() <= bound and values.abs().max() > 0.97 * bound
        assert abs(values.mean()) < 0.1 * bound and values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert conv.weight.shape == (400, 16, math.isqrt(size), math.isqrt(size))
    assert repr(kind(3, 5, bias=False, stride=2)) == f"{kind.__name__}(3, 5, bias=False, stride=2)"
    assert repr(kind(3, 5)) == f"{kind.__name__}(3, 5, bias=True)"


def test_residual_block_by_torch():
    block = ResidualBlock(5).double()
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    assert_equal_with_gradients(
        block, lambda: block(x), lambda: x + by_torch(block.conv2, by_torch(block.conv1, x, act="relu")), x
    )


def test_residual_blocks_start_near_the_identity():
    """The weights are normal with standard deviation 0.1 sqrt(2 / fan_in), and biases are 0."""
    block = ResidualBlock(32)
    for conv in (block.conv1, block.conv2):
        assert (conv.bias == 0).all()
        assert conv.weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / (9 * 32)), rel=0.05)


@pytest.mark.parametrize(("scale", "steps"), [(1, ()), (2, (2,)), (3, (3,)), (4, (2, 2))])
def test_sub_pixel_by_torch(scale, steps):
    layer = PixelShuffleUpsample(3, 3 if scale == 1 else 2, upscale_factor=scale).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)

    def theirs():
        y = x
        for conv, r in zip(layer.convs, steps, strict=True):
            y = by_torch(conv, y, act="leaky_relu", shuffle=r)
        return y * 1.0

    assert layer(x).shape == (2, 3 if scale == 1 else 2, 5 * scale, 6 * scale) and layer.upscale_factor == scale
    assert_equal_with_gradients(layer, lambda: layer(x) * 1.0, theirs, x)


def test_sub_pixel_rejects_invalid_arguments():
    with pytest.raises(ValueError, match="upscale_factor must be 1, 2, 3 or 4, got 5"):
        PixelShuffleUpsample(3, 3, upscale_factor=5)
    with pytest.raises(ValueError, match="out_channels must equal in_channels for upscale_factor 1, got 2 and 3"):
        PixelShuffleUpsample(3, 2, upscale_factor=1)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("channels", [(3,), (3, 2), (3, 2, 4), (3, 2, 4, 1), (1, 2, 3, 2, 1)], ids=len)
@pytest.mark.parametrize(("kind", "size"), [(MultiInputConv3x3, 3), (MultiInputConv5x5, 5)])
def test_multi_input_conv_equals_sum_of_convolutions(kind, size, channels, with_residual):
    module = kind(channels, 5).double()
    sources = [torch.randn(2, c, 6, 7, dtype=torch.float64, requires_grad=True) for c in channels]
    residual = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True) if with_residual else None

    def theirs():
        parts = zip(sources, module.weight.split(channels, 1), module.bias, strict=True)
        y = sum(F.conv2d(x, weight, bias, padding=size // 2) for x, weight, bias in parts)
        return y if residual is None else y + residual

    assert_equal_with_gradients(module, lambda: module(*sources, residual=residual), theirs, *sources, residual)


@pytest.mark.parametrize(("kind", "size"), [(MultiInputConv3x3, 9), (MultiInputConv5x5, 25)])
def test_multi_input_conv_initial_weights(kind, size):
    """Weights and biases are uniform in +-1/sqrt(k^2 C) for each input."""
    module = kind((3, 12), 2048)
    for part, bias, channels in zip(module.weights(), module.bias, (3, 12), strict=True):
        bound = 1 / math.sqrt(size * channels)
        for values in (part, bias):
            ends = values.min().item(), values.max().item(), values.mean().item()
            assert ends == pytest.approx((-bound, bound, 0), rel=0.01, abs=0.05 * bound)


# ---- pieces


def test_chunk_size_follows_the_working_set(monkeypatch):
    x = torch.zeros(20, 16, 32, 32)
    for bytes_at_once, frames in ((0, 1), (1 << 18, 4), ((1 << 18) + 1, 4)):
        monkeypatch.setattr(chunks, "WORKING_SET_BYTES", bytes_at_once)
        with torch.no_grad():
            assert chunks.get_frames_per_chunk(x) == frames and chunks.get_frames_per_chunk(x, channels=32) == max(
                1, frames // 2
            )
        assert chunks.get_frames_per_chunk(x) is None  # with gradients all at once
    assert chunks.split_rows(20, 1 << 15, 2) == [(0, 8, 0, 10), (8, 16, 6, 18), (16, 20, 14, 20)]
    assert [band[:2] for band in chunks.split_rows(9, 1 << 18, 0)] == [(0, 4), (4, 8), (8, 9)]

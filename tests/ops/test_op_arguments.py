# SPDX-License-Identifier: Apache-2.0
"""Tests of arguments that the ops share: unusual tensors, autocast, empty tensors and error messages."""

import signal

import pytest
import torch

from fastds import ops
from fastds.ops import GridSpec
from fastds.ops.impl.inr_query.points import Axis
from tests.support.forked import in_a_child

LAST = torch.channels_last


def maps(channels=4, batch=2, size=(5, 6), dtype=torch.float32):
    return torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=LAST)


def filters(outputs, inputs, dtype=torch.float32):
    return (torch.randn(outputs, inputs, 3, 3) / 6).to(dtype)


GRID = GridSpec.cells((5, 6), (7, 8))
CALLS = {  # op of maps and weights of given dtypes
    "conv1x1": lambda x, w: ops.conv1x1(maps(dtype=x), filters(3, 4, w)[..., :1, :1], torch.ones(3, dtype=w)),
    "conv3x3": lambda x, w: ops.conv3x3(maps(dtype=x), filters(3, 4, w), torch.ones(3, dtype=w)),
    "conv_lstm_cell": lambda x, w: ops.conv_lstm_cell(
        maps(dtype=x), maps(dtype=x), maps(), filters(16, 8, w), torch.ones(16, dtype=w)
    ),
    "conv_st_lstm_gates": lambda x, w: ops.conv_st_lstm_gates(
        maps(dtype=x), maps(dtype=x), maps(), filters(16, 8, w), torch.ones(16, dtype=w)
    ),
    "conv_memory_gates": lambda x, w: ops.conv_memory_gates(
        maps(dtype=x), maps(dtype=x), maps(), filters(12, 8, w), torch.ones(12, dtype=w)
    ),
    "conv_output_gate": lambda x, w: ops.conv_output_gate(
        maps(dtype=x), maps(dtype=x), maps(), filters(4, 8, w), torch.ones(4, dtype=w)
    ),
    "conv_gru_cell": lambda x, w: ops.conv_gru_cell(
        maps(dtype=x), maps(dtype=x), filters(8, 8, w), torch.ones(8, dtype=w), filters(4, 8, w), torch.ones(4, dtype=w)
    ),
    "deform_conv2d": lambda x, w: ops.deform_conv2d(
        maps(dtype=x), maps(18), filters(3, 4, w), torch.ones(3, dtype=w), padding=1
    ),
    "pixel_shuffle": lambda x, w: ops.pixel_shuffle(maps(dtype=x), 2, torch.ones(4, dtype=w)),
    "inr_query": lambda x, w: ops.inr_query(
        maps(8, dtype=x), GRID, [(torch.randn(3, 8).to(w), torch.ones(3, dtype=w))], ensemble="late",
        rho_w=torch.randn(8, 2).to(w), bias=torch.ones(8, dtype=w), activation="none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_float16_weights_under_bfloat16_autocast(name, native):
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        got = CALLS[name](torch.float32, torch.float16)
        torch.manual_seed(1)
        expected = CALLS[name](torch.float32, torch.bfloat16)
    for a, b in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (got, expected)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_gate_values_keep_their_dtype_under_autocast(dtype, native):
    x, value, weight = maps(dtype=torch.bfloat16), maps(dtype=dtype), filters(4, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as seen:
        ops.output_gate(x, value)
        ops.conv_output_gate(x, x, value, weight)
    assert not [event for event in seen.events() if event.name == "aten::_to_copy"]


@pytest.mark.parametrize(
    "stride,padding,dilation", [(1 << 31, 0, 1), (1, 1 << 31, 1), (1, 1, 1 << 31), (1, 1 << 40, 1 << 41)]
)
def test_deform_conv2d_rejects_excessive_dilation(stride, padding, dilation):
    name = "stride" if stride > 1 else "padding" if dilation == 1 or padding > 1 else "dilation"
    with pytest.raises(ValueError, match=f"{name} must be an int or a pair of ints from . to 16777215, got"):
        ops.deform_conv2d(maps(), maps(2, size=(1, 1)), torch.ones(3, 4, 1, 1), None, stride, padding, dilation)


@pytest.mark.parametrize(
    "numbers", [(1 << 62, 1, 0, 1), (4, 1 << 62, 0, 1), (4, 1, 1 << 62, 1), (4, 1 << 61, 0, 1 << 20)]
)
def test_axis_beyond_64_bits_is_rejected(numbers):
    with pytest.raises(ValueError, match="Axis needs integers .* below 2.62, and coordinates within 2.31 pixels"):
        Axis(*numbers)
    flat = (maps(8), [], [], None, None, [4, 1, 0, 1, *numbers], *8 * (None,), "affine", "late", 1, 0, "none")
    with pytest.raises(ValueError, match="Axis needs integers"):
        torch.ops.fastds.inr_query(*flat, "bilinear", [False, False], torch.float32)


def test_excessive_grid_is_rejected():
    with pytest.raises(ValueError, match="where has 1099511627776 x 1099511627776 points, expected fewer than 2.40"):
        ops.inr_query(maps(8), GridSpec.cells((5, 6), (1 << 40, 1 << 40)), ensemble="late")


@pytest.mark.parametrize(
    "call,text",
    [
        (
            lambda: ops.pixel_shuffle(maps(), 2, activation="leaky_relu", negative_slope=None),
            "negative_slope is a NoneType",
        ),
        (lambda: ops.conv3x3(maps(), filters(3, 4), negative_slope="x"), "negative_slope is a str, expected a number"),
        (lambda: ops.gru_update(maps(), maps(), maps(), negative_slope=None), "negative_slope is a NoneType"),
        (lambda: ops.traj_gru_gates(maps(12), maps(12), maps(), negative_slope=None), "negative_slope is a NoneType"),
        (lambda: ops.lstm_gates(3.0, maps()), "pre is a float, expected a Tensor"),
        (lambda: ops.null_op(3), "x is an int, expected a Tensor"),
        (lambda: ops.conv3x3(1.5, filters(3, 4)), "x is a float, expected a Tensor"),
        (lambda: ops.window_attention2d(maps(), maps(), 2), "v is an int, expected a Tensor"),
        (lambda: ops.inr_query(maps(8), GRID, feature="dot", ensemble="none", rho_w=3), "rho_w is an int, expected a"),
        (lambda: ops.null_op(maps().to_sparse()), "x is a tensor of layout torch.sparse_coo, expected a dense one"),
        (lambda: ops.conv3x3(maps(), filters(3, 4).to_sparse()), "weight is a tensor of layout torch.sparse_coo"),
        (lambda: ops.lstm_gates(maps(16), maps().to_sparse()), "c is a tensor of layout torch.sparse_coo"),
        (lambda: ops.deform_conv2d(maps().to_sparse(), maps(18), filters(3, 4), padding=1), "input is a tensor"),
        (lambda: ops.window_attention2d(maps(), maps().to_sparse(), maps()), "k is a tensor of layout"),
        (lambda: ops.pixel_unshuffle(maps(size=(4, 6)).to_sparse(), 2), "x is a tensor of layout"),
        (lambda: ops.inr_query(maps(8).to_sparse(), GRID, ensemble="late"), "maps is a tensor of layout"),
        (
            lambda: ops.inr_query(maps(8), GRID, [(torch.ones(3, 8), torch.ones(3).to_sparse())], ensemble="late"),
            r"trunk\[0\] bias is a tensor of layout torch.sparse_coo",
        ),
    ],
)  # fmt: skip
def test_non_tensor_arguments_are_named(call, text, native):
    with pytest.raises(TypeError, match=text):
        call()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_empty_tensors_keep_their_shape(backend, native):
    """Results and gradients of empty batches are empty."""
    fine = maps(3, 0, (4, 6)).requires_grad_()
    features = maps(8, 0).requires_grad_()
    mask = torch.ones(0, 5, 6, dtype=torch.bool)
    with ops.core.backends.use_backend(backend):
        coarse = ops.pixel_unshuffle(fine, 2)
        back = ops.pixel_shuffle(coarse, 2, activation="relu")
        values = ops.inr_query(features, GRID, ensemble="late", mask=mask)
        (back.sum() + values.sum()).backward()
    assert coarse.shape == (0, 12, 2, 3) and back.shape == fine.shape and values.shape == (0, 56, 8)
    assert fine.grad.shape == fine.shape and features.grad.shape == features.shape


@pytest.mark.parametrize("channels", [1, 4])
def test_lazily_negated_views(channels, native):
    """The imaginary part of a conjugate tensor is a view that torch negates when it is read."""

    def view(tensor):
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag

    x, y = torch.randn(2, channels, 5, 6), torch.randn(2, channels, 5, 6)
    w = torch.randn(3, channels, 3, 3)
    assert view(x).is_neg() and torch.equal(view(x), x)
    for function in (
        lambda a, b: ops.conv3x3(a, w, algorithm="winograd"),
        lambda a, b: ops.window_attention2d(a, b, a, window=3),
        ops.output_gate,
        lambda a, b: ops.pixel_shuffle(a.repeat(1, 4, 1, 1), 2),
        lambda a, b: ops.deform_conv2d(a, b[:, :1].repeat(1, 18, 1, 1), w, padding=1),
        lambda a, b: ops.inr_query(a, GRID, ensemble="late", activation="none"),
    ):
        torch.testing.assert_close(function(view(x), view(y)), function(x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_a_forked_child_runs_on_one_thread(native):
    torch.set_num_threads(2)
    x, w = maps(16, size=(32, 32)), filters(16, 16)
    expected = ops.conv3x3(x, w)

    def repeats(out):
        signal.alarm(30)
        out.write(str(torch.equal(ops.conv3x3(x, w), expected)))

    assert in_a_child(repeats) == (["True"], 0)

# SPDX-License-Identifier: Apache-2.0
"""Tests of deform_conv2d at the border of the field and with extreme offsets, and of its error messages."""

import pytest
import torch

import fastds
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import MESSAGES, NAMES, Problem, gradients

BOTH = [deform_conv2d, reference]
H, W, EPS = 5, 6, 2.0**-10


def at(positions, dtype=torch.float64):
    """Return x (1, 3, H, W) and an offset (1, 2, H, W) that samples given positions.

    Output pixel n samples positions[n % len(positions)].
    """
    x = torch.randn(1, 3, H, W, dtype=dtype)
    target = torch.tensor(positions, dtype=dtype)[torch.arange(H * W) % len(positions)]
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    unshifted = torch.stack([rows, columns], -1).reshape(-1, 2)
    return x, (target - unshifted).T.reshape(1, 2, H, W)


def sample(x, y_at, x_at):
    """Sample bilinearly with zeros outside, in plain Python."""
    if not (-1 < y_at < H and -1 < x_at < W):
        return torch.zeros(3, dtype=x.dtype)
    y0, x0 = int(y_at // 1), int(x_at // 1)
    total = torch.zeros(3, dtype=x.dtype)
    for i in (y0, y0 + 1):
        for j in (x0, x0 + 1):
            if 0 <= i < H and 0 <= j < W:
                total += (1 - abs(y_at - i)) * (1 - abs(x_at - j)) * x[0, :, i, j]
    return total


EDGES_Y = [-1.0 - EPS, -1.0, -1.0 + EPS, -EPS, 0.0, EPS, H - 1 - EPS, H - 1.0, H - 1 + EPS, H - EPS, float(H), H + EPS]
EDGES_X = [-2.0, -1.0, -1.0 + EPS, 0.0, 2.5, W - 1.0, W - EPS, float(W)]
EDGES = [(a, b) for a in EDGES_Y for b in EDGES_X]


@pytest.mark.parametrize("function", BOTH, ids=["ours", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value_at_the_border(function, dtype):
    eye = torch.eye(3, dtype=dtype).reshape(3, 3, 1, 1)
    for start in range(0, len(EDGES), H * W):
        positions = EDGES[start : start + H * W]
        x, offset = at(positions, dtype)
        y = function(x, offset, eye).reshape(3, -1)
        for n, (a, b) in enumerate(positions):
            torch.testing.assert_close(y[:, n], sample(x, a, b), rtol=1e-5, atol=1e-5)


def test_gradients_at_the_border_use_the_floor_cell():
    for start in range(0, len(EDGES), H * W):
        x, offset = at(EDGES[start : start + H * W])
        tensors = [
            x,
            offset,
            torch.randn(4, 3, 1, 1).double(),
            torch.randn(4).double(),
            torch.randn(1, 1, H, W).double(),
        ]
        grad_y = torch.randn(1, 4, H, W, dtype=torch.float64)
        ours, exact = (gradients(lambda t, f=f: f(*t[:4], mask=t[4]), tensors, grad_y) for f in BOTH)
        for name, a, b in zip(("value", *NAMES), ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_derivative_at_an_integer_uses_the_next_cell():
    x, offset = at([(2.0, 3.0)])
    offset.requires_grad_()
    y = deform_conv2d(x, offset, torch.ones(1, 3, 1, 1, dtype=torch.float64))
    (grad,) = torch.autograd.grad(y.sum(), offset)
    total = x.sum(1)[0]
    torch.testing.assert_close(grad[0, 0], (total[3, 3] - total[2, 3]).expand(H, W))
    torch.testing.assert_close(grad[0, 1], (total[2, 4] - total[2, 3]).expand(H, W))


def test_gradient_near_a_kink_is_one_sided():
    """Near the jumps of the gradient, it equals a finite difference whose step does not cross the jump."""
    h = 2.0**-20
    weight = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    for edge in (-1.0, 0.0, H - 1.0, float(H)):
        for side in (-EPS, EPS):
            x, offset = at([(edge + side, 2.25)])
            offset.requires_grad_()
            (grad,) = torch.autograd.grad(deform_conv2d(x, offset, weight).sum(), offset)
            step = torch.zeros_like(offset)
            step[:, 0] = h
            with torch.no_grad():
                difference = deform_conv2d(x, offset + step, weight) - deform_conv2d(x, offset - step, weight)
            torch.testing.assert_close(grad[0, 0], difference[0, 0] / (2 * h), rtol=1e-6, atol=1e-8)


def bad_offsets(dtype):
    values = [float("nan"), float("inf"), float("-inf"), 1e4, -1e4]
    values += [6e4, -6e4] if dtype == torch.float16 else [1e10, -1e10, 2.0**31, -(2.0**31), 3e38, -3e38]
    return values


@pytest.mark.parametrize("function", BOTH, ids=["ours", "reference"])
@pytest.mark.parametrize("offset_dtype", [torch.float32, None], ids=["offset32", "same"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bad_offsets_sample_zero(function, dtype, offset_dtype):
    problem = Problem("bad", 1, 8, 4, 5, 6, G=2)
    tensors = problem.tensors(dtype, offset_dtype)
    offset, mask = tensors[1].clone(), tensors[4].clone()
    values = torch.tensor(bad_offsets(offset.dtype)).to(offset.dtype)
    where = torch.rand(1, 18, 5, 6) < 0.4  # (group, tap)
    pairs = offset.unflatten(1, (18, 2))
    axis = torch.randint(0, 2, where.shape)
    chosen = values[torch.randint(0, len(values), where.shape)]
    for a in (0, 1):
        pairs[:, :, a] = torch.where(where & (axis == a), chosen, pairs[:, :, a])
    clean_mask = torch.where(where, torch.zeros_like(mask), mask)
    clean = [tensors[0], tensors[1], *tensors[2:4], clean_mask]
    grad_y = torch.randn(1, 4, 5, 6)
    got = gradients(lambda t: problem.run(function, t), [tensors[0], offset, *tensors[2:4], mask], grad_y)
    expected = gradients(lambda t: problem.run(function, t), clean, grad_y)
    assert all(t.isfinite().all() for t in got)
    for name, a, b in list(zip(("value", *NAMES), got, expected, strict=True))[:5]:
        assert torch.equal(a, b), name
    gone = where.repeat_interleave(2, 1)
    assert (got[2][gone] == 0).all() and (got[5][where] == 0).all()


@pytest.mark.parametrize("function", BOTH, ids=["ours", "reference"])
def test_all_offsets_nan(function):
    problem = Problem("nan")
    x, offset, weight, bias, mask = problem.tensors(torch.float32)
    y, *grads = gradients(
        lambda t: problem.run(function, t), [x, offset * float("nan"), weight, bias, mask], torch.ones(2, 6, 7, 9)
    )
    assert torch.equal(y, bias[:, None, None].expand_as(y))
    assert all((g == 0).all() for i, g in enumerate(grads) if i != 3)
    assert (grads[3] == 2 * 7 * 9).all()


@pytest.mark.parametrize("function", BOTH, ids=["ours", "reference"])
def test_samples_outside_do_not_read_the_field(function):
    x = torch.randn(1, 4, 5, 6)
    x[0, :, 0, 0] = float("nan")
    y = function(x, torch.full((1, 2, 5, 6), 100.0), torch.randn(3, 4, 1, 1))
    assert (y == 0).all()


def test_samples_all_on_one_pixel():
    x, offset = at([(2.0, 3.0)], torch.float32)
    x.requires_grad_()
    y = deform_conv2d(x, offset, torch.ones(1, 3, 1, 1))
    (grad,) = torch.autograd.grad(y.sum(), x)
    expected = torch.zeros_like(x)
    expected[:, :, 2, 3] = H * W
    assert torch.equal(grad, expected)


def test_negative_mask_is_a_factor():
    problem = Problem("negative")
    x, offset, weight, _, mask = problem.tensors(torch.float32)
    y = problem.run(deform_conv2d, [x, offset, weight, None, mask])
    assert torch.equal(problem.run(deform_conv2d, [x, offset, weight, None, -mask]), -y)


def test_far_positions_keep_their_fraction_in_half_precision():
    x = torch.arange(1024.0).reshape(1, 1, 1, 1024).remainder(8).to(torch.bfloat16)
    offset = torch.tensor([0.0, 400.25]).reshape(1, 2, 1, 1).expand(1, 2, 1, 1024)
    y = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, dtype=torch.bfloat16))
    low, high = x[0, 0, 0, 400:1000].double(), x[0, 0, 0, 401:1001].double()
    torch.testing.assert_close(y[0, 0, 0, :600].double(), 0.75 * low + 0.25 * high, rtol=2**-8, atol=0)


def call(**changes):
    problem = Problem("messages")
    x, offset, weight, bias, mask = problem.tensors(torch.float32)
    args = {"input": x, "offset": offset, "weight": weight, "bias": bias, "padding": 1, "mask": mask} | changes
    return deform_conv2d(**args)


@pytest.mark.parametrize("changes,kind,text", [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_error_messages(changes, kind, text):
    with pytest.raises(kind, match=text):
        call(**changes)


def test_registered_op_rejects_invalid_arguments():
    x, offset, weight, _, mask = Problem("direct").tensors(torch.float32)
    with pytest.raises(ValueError, match="mask has shape"):
        torch.ops.fastds.deform_conv2d(x, offset, weight, None, [1, 1], [1, 1], [1, 1], mask[:, :9])
    with pytest.raises(ValueError, match="grad_y has shape"):
        torch.ops.fastds.deform_conv2d_backward(
            torch.ones(2, 6, 7, 8), x, offset, weight, [1, 1], [1, 1], [1, 1], mask, [True] * 5
        )


def test_explain_names_the_backend(native):
    x, offset, weight, bias, mask = Problem("explain").tensors(torch.float32)
    answers = fastds.explain("deform_conv2d", x, offset, weight)
    triton = "refused: Triton kernels run on CUDA tensors, got a cpu tensor"
    assert answers == {"native": "chosen", "triton": triton, "reference": "usable"}
    with fastds.use_backend("reference"):
        assert fastds.explain("deform_conv2d", x, offset, weight, mask=mask)["reference"] == "chosen"
    refused = fastds.explain("deform_conv2d", x.int(), offset, weight)
    assert refused["native"].startswith("refused: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [3, 5, 21])
def test_an_infinite_mask_stays_infinite(channels, dtype):
    """The kernel reads vectors past an odd number of channels; 0 times infinity there must not give NaN."""
    x, weight = torch.ones(1, channels, 4, 5, dtype=dtype), torch.ones(2, channels, 3, 3, dtype=dtype)
    offset, mask = torch.full((1, 18, 4, 5), 0.25), torch.ones(1, 9, 4, 5, dtype=dtype)
    mask[0, 8, 1, 2] = torch.inf
    y = deform_conv2d(x, offset, weight, padding=1, mask=mask)
    assert not y.isnan().any() and y[:, :, 1, 2].isinf().all() and y.isinf().sum() == 2

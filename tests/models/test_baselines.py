# SPDX-License-Identifier: Apache-2.0
"""Tests of the trilinear, bicubic and advection baselines."""

import pytest
import torch
import torch.nn.functional as F

from fastds.models.baselines import advection, bicubic, optical_flow, trilinear, warp
from fastds.models.baselines.advection import backward_flow, compute_halfway_flow
from fastds.models.baselines.super_resolution import SRResNet


def moving_blobs(frames: int, step: tuple[float, float], size: int = 96) -> torch.Tensor:
    """Return frames (1, frames, 1, size, size) of smooth blobs that move by step = (dy, dx) pixels a frame."""
    g = torch.Generator().manual_seed(5)
    centres = torch.rand(14, 2, generator=g) * size
    widths = 4.0 + 5.0 * torch.rand(14, generator=g)
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None, :]
    out = torch.zeros(1, frames, 1, size, size)
    for t in range(frames):
        for (y, x), s in zip(centres, widths, strict=True):
            distance = (rows - y - t * step[0]) ** 2 + (columns - x - t * step[1]) ** 2
            out[0, t, 0] += 0.5 * torch.exp(-distance / (2 * s**2))
    return out.clamp(max=1.0)


def test_trilinear_equals_interpolate_for_two_frames():
    x = torch.rand(2, 2, 3, 5, 7)
    expected = F.interpolate(x.transpose(1, 2), size=(3, 10, 14), mode="trilinear", align_corners=False).transpose(1, 2)
    torch.testing.assert_close(trilinear(x, 2), expected)


def test_trilinear_in_time_for_three_frames():
    x = torch.tensor([0.0, 1.0, 5.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 4, 4)
    assert trilinear(x, 1)[0, :, 0, 0, 0].tolist() == [0.0, 0.5, 1.0, 3.0, 5.0]


def test_bicubic_stays_in_range_and_keeps_constants():
    x = (torch.rand(1, 2, 1, 9, 9) > 0.5).float()
    y = bicubic(x, 3)
    assert y.shape == (1, 3, 1, 27, 27) and y.min() == 0.0 and y.max() == 1.0
    torch.testing.assert_close(bicubic(torch.full((1, 2, 1, 4, 4), 0.3), 2), torch.full((1, 3, 1, 8, 8), 0.3))


def test_backward_flow_is_that_of_optical_flow():
    x = torch.nn.functional.interpolate(torch.rand(6, 1, 9, 8), (40, 29), mode="bicubic").view(2, 3, 1, 40, 29)
    flow = backward_flow(x, [(0, 1), (1, 2), (0, 2)])
    assert flow.shape == (2, 3, 2, 40, 29) and torch.equal(flow[:, :2], optical_flow(x)[:, :, 1])
    assert torch.equal(flow[:, 2], optical_flow(x[:, ::2])[:, 0, 1])
    with pytest.raises(ValueError, match="x must have shape"):
        backward_flow(torch.rand(4, 4), [(0, 1)])


@pytest.mark.parametrize("step", [(3.0, -2.0), (0.0, 5.0)], ids=str)
def test_optical_flow_is_symmetric_in_time(step):
    x = moving_blobs(3, step)
    flow = optical_flow(x)
    assert flow.shape == (1, 2, 2, 2, 96, 96) and flow.dtype == torch.float32
    inner = flow[..., 24:72, 24:72].flatten(-2).median(-1).values  # (1, 2, way, dy dx)
    expected = torch.tensor(step)
    torch.testing.assert_close(inner[0, :, 0], expected.expand(2, 2), atol=0.3, rtol=0)
    torch.testing.assert_close(inner[0, :, 1], -expected.expand(2, 2), atol=0.3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 40)], ids=str)
def test_flow_of_small_grids(size):
    flow = optical_flow(torch.rand(2, 2, *size))
    assert flow.shape == (2, 1, 2, 2, *size) and torch.isfinite(flow).all()


def test_warp_by_integers_extends_the_edge():
    x = torch.rand(2, 3, 6, 8)
    displacement = torch.zeros(2, 2, 6, 8)
    displacement[:, 0] = 2.0
    displacement[:, 1] = -1.0
    y = warp(x, displacement)
    rows = (torch.arange(6) + 2).clamp(max=5)
    columns = (torch.arange(8) - 1).clamp(min=0)
    torch.testing.assert_close(y, x[:, :, rows][:, :, :, columns])


def test_halfway_flow_of_uniform_motion():
    flow = torch.zeros(1, 2, 2, 8, 8)
    flow[:, 0, 0], flow[:, 1, 0] = 3.0, -3.0
    half = compute_halfway_flow(flow)
    torch.testing.assert_close(half[:, 0], torch.full((1, 8, 8), -1.5))
    assert half[:, 1].abs().max() == 0.0


def test_advection_finds_the_middle_frame():
    x = moving_blobs(3, (2.0, -3.0))
    truth, pair = x[:, 1:2], x[:, ::2]
    middle = (slice(None), slice(1, 2), slice(None), slice(16, 80), slice(16, 80))
    moved = (advection(pair, 1)[middle] - truth[:, :, :, 16:80, 16:80]).square().mean()
    mean = (trilinear(pair, 1)[middle] - truth[:, :, :, 16:80, 16:80]).square().mean()
    assert moved < 0.02 * mean


def test_advection_keeps_outer_frames_and_takes_a_given_flow():
    x = moving_blobs(2, (0.0, 4.0))
    still = advection(x, 2, flow=torch.zeros(1, 1, 2, 2, 96, 96))
    torch.testing.assert_close(still, bicubic(x, 2))
    torch.testing.assert_close(advection(x, 2)[:, ::2], bicubic(x, 2)[:, ::2])


def test_advection_is_symmetric_in_time():
    x = moving_blobs(2, (2.0, 1.0))
    torch.testing.assert_close(advection(x.flip(1), 2).flip(1), advection(x, 2), atol=1e-5, rtol=0)


def test_advection_passes_gradients():
    x = torch.rand(1, 2, 1, 6, 6, dtype=torch.float64).clamp(0.2, 0.8).requires_grad_()
    flow = 0.7 * torch.randn(1, 1, 2, 2, 6, 6)
    assert torch.autograd.gradcheck(lambda z: advection(z, 1, flow), (x,), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: trilinear(torch.rand(1, 1, 1, 4, 4), 2), ValueError, "N >= 2 frames"),
        (lambda: bicubic(torch.rand(2, 1, 4, 4), 2), ValueError, "shape \\(B, N, C, h, w\\)"),
        (lambda: trilinear(torch.zeros(1, 2, 1, 4, 4, dtype=torch.int64), 2), TypeError, "floating-point"),
        (lambda: advection(torch.rand(1, 2, 1, 4, 4), 0), ValueError, "positive integer"),
        (
            lambda: advection(torch.rand(1, 2, 1, 4, 4), 2, torch.zeros(1, 1, 2, 2, 4, 5)),
            ValueError,
            "flow must have shape",
        ),
        (lambda: optical_flow(torch.rand(4, 4)), ValueError, "x must have shape"),
        (lambda: optical_flow(torch.full((1, 2, 8, 8), float("nan"))), ValueError, "must be finite"),
    ],
    ids=["one-frame", "four-dims", "integers", "factor", "flow-shape", "flow-dims", "nan"],
)
def test_baselines_error_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


def plain_srresnet(p: dict, x: torch.Tensor, blocks: int, stages: int, training: bool) -> torch.Tensor:
    """Compute SRResNet with torch.nn.functional from weights by name."""

    def conv(name, x):
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=p[f"{name}.weight"].shape[-1] // 2)

    def norm(name, x):
        of = [p[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *(of if not training else (None, None, *of[2:])), training=training)

    h = first = F.prelu(conv("first.0", x), p["first.1.weight"])
    for k in range(blocks):
        inner = F.prelu(norm(f"blocks.{k}.norm1", conv(f"blocks.{k}.conv1", h)), p[f"blocks.{k}.act.weight"])
        h = h + norm(f"blocks.{k}.norm2", conv(f"blocks.{k}.conv2", inner))
    h = first + norm("middle.1", conv("middle.0", h))
    for k in range(stages):
        h = F.prelu(F.pixel_shuffle(conv(f"up.{3 * k}", h), 2), p[f"up.{3 * k + 2}.weight"])
    return conv("last", h)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_srresnet_equals_its_formula(training, dtype, tolerance):
    torch.manual_seed(2)
    network = SRResNet(2, 4, width=16, blocks=2).to(dtype)
    for name, values in network.named_buffers():
        if name.endswith(("mean", "var")):
            values.uniform_(0.5, 2)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias)
    x, parameters = torch.randn(2, 3, 2, 7, 6, dtype=dtype), dict(network.named_parameters())
    expected = plain_srresnet(dict(network.named_buffers()) | parameters, x.flatten(0, 1), 2, 2, training)
    found = network.train(training)(x)
    assert found.shape == (2, 3, 2, 28, 24)
    pairs = [(found.flatten(0, 1), expected)]
    if dtype == torch.float64:
        of_both = (torch.autograd.grad(y.square().sum(), parameters.values()) for y in (found, expected))
        pairs += zip(*of_both, strict=True)
    size = max(float(b.detach().abs().max()) for _, b in pairs)
    for a, b in pairs:
        assert float((a - b).detach().abs().max()) < tolerance * size

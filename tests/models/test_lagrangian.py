# SPDX-License-Identifier: Apache-2.0
"""Tests of networks that start from extrapolation along the optical flow."""

import pytest
import torch

import fastds
from fastds import models
from fastds.models.baselines import motion
from fastds.models.baselines.extrapolation import extrapolation
from fastds.models.baselines.motion import estimate_backward_flow
from fastds.models.db_rnn import LagrangianRNN
from fastds.models.db_rnn.lagrangian import match_intensities

pytestmark = pytest.mark.usefixtures("native")


def blobs(frames: int, step: tuple[float, float], size: int = 64) -> torch.Tensor:
    """Return frames (1, frames, 1, size, size) of smooth blobs that move by step = (dy, dx) pixels a frame."""
    g = torch.Generator().manual_seed(5)
    centres, widths = torch.rand(14, 2, generator=g) * size, 4 + 5 * torch.rand(14, generator=g)
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
    fields = [
        sum(
            0.5 * torch.exp(-((rows - y - t * step[0]) ** 2 + (columns - x - t * step[1]) ** 2) / (2 * s**2))
            for (y, x), s in zip(centres, widths, strict=True)
        )
        for t in range(frames)
    ]
    return torch.stack(fields).clamp(max=1.0)[None, :, None]


def test_flow_points_to_where_the_echo_was():
    x = blobs(3, (1.5, -2.0))
    flow, echo = estimate_backward_flow(x), (x[0, 2, 0] > 0.2)[12:-12, 12:-12]
    inner = flow[0, :, 12:-12, 12:-12]
    assert flow.shape == (1, 2, 64, 64)
    assert (inner[0][echo] + 1.5).abs().mean() < 0.15 and (inner[1][echo] - 2.0).abs().mean() < 0.15


def test_flow_is_a_weighted_mean_over_spans(monkeypatch):
    """Neighbouring pairs: 1/6 and 5/6. Spans: 0.3, 0.4 / (1 + (d2 / 2)^2) and 0.3 / (1 + (d3 / 2)^2)."""
    seen = []

    def fake_flow(frames, pairs):
        seen.append((frames.shape[1], list(pairs)))
        values = {1: 6.0, 2: 14.0, 3: 3.0}  # of a displacement over 1, 2 and 3 intervals
        flows = [torch.full((1, 2, 64, 64), values[later - earlier]) for earlier, later in pairs]
        flows[0] = flows[0] - 6.0 if len(pairs) > 1 else flows[0]  # the first pair of neighbours: 0
        return torch.stack(flows, 1)

    monkeypatch.setattr(motion, "backward_flow", fake_flow)
    x = torch.rand(1, 5, 1, 64, 64)
    recent = 5.0  # (0 + 5 * 6) / 6
    distance2, distance3 = 2**0.5 * abs(7.0 - recent), 2**0.5 * abs(1.0 - recent)
    weights = (0.3, 0.4 / (1 + (distance2 / 2) ** 2), 0.3 / (1 + (distance3 / 2) ** 2))
    expected = (weights[0] * recent + weights[1] * 7.0 + weights[2] * 1.0) / sum(weights)
    torch.testing.assert_close(estimate_backward_flow(x), torch.full((1, 2, 64, 64), expected), rtol=1e-5, atol=0)
    three = (weights[0] * recent + weights[1] * 7.0) / sum(weights[:2])
    torch.testing.assert_close(estimate_backward_flow(x[:, 2:]), torch.full((1, 2, 64, 64), three), rtol=1e-5, atol=0)
    torch.testing.assert_close(estimate_backward_flow(x[:, 3:]), torch.full((1, 2, 64, 64), 6.0), rtol=1e-5, atol=0)
    assert seen == [(4, [(1, 2), (2, 3), (1, 3), (0, 3)]), (3, [(0, 1), (1, 2), (0, 2)]), (2, [(0, 1)])]


def compute_flow_error(x: torch.Tensor, step: tuple[float, float]) -> float:
    """Return the mean absolute error in pixels of the flow of blobs that move by `step`, where there is echo."""
    flow, echo = estimate_backward_flow(x)[0, :, 12:-12, 12:-12], (x[0, -1, 0] > 0.2)[12:-12, 12:-12]
    return max((flow[k][echo] + step[k]).abs().mean().item() for k in (0, 1))


def test_more_frames_give_a_better_flow_of_noisy_echo():
    step, noise = (1.5, -2.0), torch.Generator().manual_seed(3)
    x = (blobs(5, step) + 0.08 * torch.randn(1, 5, 1, 64, 64, generator=noise)).clamp(0, 1)
    assert compute_flow_error(x, step) < 0.9 * compute_flow_error(x[:, 2:], step)


def test_earlier_frames_without_the_echo_hardly_change_the_flow():
    step = (1.5, -2.0)
    x = blobs(5, step)
    x[:, 1] = blobs(5, step).flip(-1, -2)[:, 1]  # other echo: the flow over three intervals finds no match
    assert compute_flow_error(x, step) < 0.2


@pytest.mark.parametrize("network", ["MSRNN", "DBRNN"])
def test_untrained_network_extrapolates(network):
    x = blobs(3, (1.5, -2.0), 40).repeat(2, 1, 1, 1, 1)
    x[1, 2, 0, 3:9, 30:] = float("nan")
    model, flow = LagrangianRNN(network, "convgru", 4).eval(), torch.full((2, 2, 40, 40), 0.7)
    with torch.no_grad():
        y, matched = (model.forecast(x, 3, flow, smooth=smooth) for smooth in (True, False))
        for forecast in (y, matched):
            assert torch.equal(forecast[0, ..., :37, :37], model(x, 3, flow).clamp(0, 1)[0, ..., :37, :37])
    assert (matched <= y).all() and (y[matched < y] > 7 / 60).all() and (matched < y).any()
    torch.testing.assert_close(y, extrapolation(x, 3, flow).clamp(0, 1), rtol=0, atol=1e-6)


def test_input_frames_are_advected_to_the_start(monkeypatch):
    model, seen = LagrangianRNN("MSRNN", "convgru", 4), []
    x, back = torch.rand(1, 4, 1, 24, 24), torch.tensor([-1.0, 3.0]).reshape(1, 2, 1, 1).expand(1, 2, 24, 24)

    def roll(frames, steps):
        seen.append(frames)
        return (frames[:, -1:].expand(-1, steps, -1, -1, -1),)

    monkeypatch.setattr(model.network, "roll", roll)
    y = model(x, 2, back)
    for j in range(4):
        moved = x[:, 3 - j].roll((j, -3 * j), (-2, -1))
        torch.testing.assert_close(seen[0][:, 3 - j, :, 6:-10, 6:-10], moved[..., 6:-10, 6:-10])
    for k in (1, 2):
        expected = x[:, -1].roll((k, -3 * k), (-2, -1))
        torch.testing.assert_close(y[:, k - 1, :, 6:-10, 6:-10], expected[..., 6:-10, 6:-10])


def test_learned_changes_are_advected():
    """In a uniform motion, the forecast is the forecast of the field at rest, moved along."""
    torch.manual_seed(1)
    model = LagrangianRNN("MSRNN", "convlstm", 4).eval()
    torch.nn.init.normal_(model.network.module.output.weight, std=0.2)
    moving, still = blobs(3, (0.0, 2.0)), blobs(1, (0.0, 0.0)).expand(1, 3, 1, 64, 64)
    back = torch.tensor([0.0, -2.0]).reshape(1, 2, 1, 1).expand(1, 2, 64, 64)
    with torch.no_grad():
        a, b = model(moving, 2, back), model(still, 2, torch.zeros_like(back))
    assert (b[:, 1] - still[:, 0]).abs().max() > 0.02
    for k in range(2):  # frame 2 of `moving` is `still` 4 pixels on, and step k moves 2 (k + 1) further
        columns = slice(28 + 2 * (k + 1), 40 + 2 * (k + 1))
        torch.testing.assert_close(a[0, k, 0, 24:40, columns], b[0, k, 0, 24:40, 24:36], rtol=0, atol=2e-3)


def test_matching_preserves_distribution_and_order():
    g = torch.Generator().manual_seed(7)
    y, field = torch.rand(1, 2, 1, 9, 8, generator=g) * 0.3, torch.rand(1, 1, 9, 8, generator=g)
    valid = torch.rand(1, 1, 9, 8, generator=g) > 0.3
    got = match_intensities(y, field, valid, 0.4)
    values = field[valid].sort().values
    for k in range(2):
        ours, before = got[:, k][valid], y[:, k][valid]
        assert torch.equal(got[:, k][~valid], y[:, k][~valid])
        ours = ours[before.argsort()]
        strong = values >= 0.4
        assert torch.equal(ours[strong], values[strong]) and torch.equal(ours[~strong], before.sort().values[~strong])


def test_forecasts_keep_the_rain_area():
    torch.manual_seed(1)
    x, flow = blobs(3, (0.0, 0.0), 32), torch.zeros(1, 2, 32, 32)
    areas = {}
    for match_above in (0.25, None):
        model = LagrangianRNN("MSRNN", "convgru", 4, match_above=match_above).eval()
        torch.nn.init.constant_(model.network.module.output.bias, -0.2)
        y = model.forecast(x, 2, flow)
        areas[match_above] = [(z >= 0.3).sum().item() for z in (x[:, -1], *y.unbind(1))]
    assert areas[0.25][0] == areas[0.25][1] == areas[0.25][2] > 50
    assert areas[None][0] > areas[None][1] > areas[None][2]


def test_autocast_moves_the_echo_to_the_same_places():
    """In bfloat16, large displacements would be rounded."""
    model = LagrangianRNN("MSRNN", "convgru", 4).eval()
    x = blobs(3, (0.3, 2.7), 96)
    plain = model.forecast(x, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.forecast(x, 6)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, atol=2e-3, rtol=0)


def test_saved_and_loaded(tmp_path):
    model = LagrangianRNN("DBRNN", "convgru", 4)
    torch.nn.init.normal_(model.network.deblurrer.output.weight)
    models.save(model, tmp_path / "m.safetensors")
    again, x = models.load(tmp_path / "m.safetensors"), blobs(2, (1.0, 0.0), 32)
    with torch.no_grad():
        assert torch.equal(again.forecast(x, 2), model.eval().forecast(x, 2))


def test_messages():
    with pytest.raises(ValueError, match="network must be one of MSRNN, DBRNN"):
        LagrangianRNN("SimVP")
    with pytest.raises(ValueError, match="m >= 2"):
        LagrangianRNN(hidden=4).forecast(torch.zeros(1, 1, 1, 8, 8), 1)


@pytest.mark.parametrize("smooth", [False, True])
def test_no_echo_gives_no_echo(smooth):
    model = fastds.load("nowcast-small")
    frames = torch.rand(2, model.card.input_steps, 1, 32, 32)
    frames[0] = 0
    frames[0, :, :, :4] = float("nan")
    y = model.forecast(frames, 3, smooth=smooth)
    assert (y[0] == 0).all() and (y[1] > 0).any()

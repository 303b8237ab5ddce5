# SPDX-License-Identifier: Apache-2.0
"""Tests of DB-RNN networks: sizes, missing values, forecasts, losses, discriminator and presets."""

import pytest
import torch
import torch.nn.functional as F

from fastds import models
from fastds.models.db_rnn import CELLS, DBRNN, MSRNN, Discriminator, StagedRNN
from fastds.models.db_rnn.discriminator import select_variant
from fastds.models.db_rnn.losses import (
    Weights,
    compute_loss_weights,
    compute_scheduled_weights,
    discriminator_loss,
    generator_loss,
    gradient_difference_loss,
    pixel_loss,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("native")


def small(kind=MSRNN, cell="convlstm", **options):
    return kind(cell, 8, **options).eval()


def test_sizes_are_padded_with_dry_pixels():
    model, frames = small(), torch.rand(1, 3, 1, 13, 18)
    with torch.no_grad():
        got = model(frames, 2)[0]
        whole = model(F.pad(frames, (0, 2, 0, 3)), 2)[0]
    assert got.shape == (1, 4, 1, 13, 18) and torch.equal(got, whole[..., :13, :18])
    assert small(cell="motionrnn")(torch.rand(1, 2, 1, 9, 9), 1)[0].shape == (1, 2, 1, 9, 9)


def test_missing_values_count_as_dry():
    model, frames = small(), torch.rand(1, 2, 1, 16, 16)
    hole = frames.clone()
    hole[0, 1, 0, 3:7, 4:9] = float("nan")
    frames[0, 1, 0, 3:7, 4:9] = 0
    with torch.no_grad():
        assert torch.equal(model(hole, 2)[0], model(frames, 2)[0])


@pytest.mark.parametrize("kind", [MSRNN, DBRNN, StagedRNN])
def test_forecast_of_long_sequences(kind):
    model, frames = small(kind), torch.rand(2, 3, 1, 16, 16)
    with torch.no_grad():
        got = model.forecast(frames, 7)
        assert torch.equal(got, model(frames, 7)[-1][:, -7:].clamp(0, 1)) and got.shape == (2, 7, 1, 16, 16)


def test_restart_uses_the_forecast_frames():
    model, frames = small(DBRNN), torch.rand(2, 3, 1, 16, 16)
    with torch.no_grad():
        first = model.forecast(frames, 2)
        second = model.forecast(torch.cat([frames, first], 1)[:, -3:], 2)
        assert torch.equal(model.forecast(frames, 3, block=2), torch.cat([first, second], 1)[:, :3])


def test_scheduled_sampling_feeds_the_truth():
    model, frames = small(), torch.rand(2, 6, 1, 16, 16)
    with torch.no_grad():
        taught = model(frames[:, :3], 4, truth=frames[:, 3:], feed_truth=1.0)[0]
        torch.testing.assert_close(taught, model(frames, 1)[0])
        half = model(frames[:, :3], 4, truth=frames[:, 3:], feed_truth=0.5)[0]
    assert torch.equal(half[:, :3], taught[:, :3]) and not torch.equal(half, taught)
    with pytest.raises(ValueError, match="truth must hold 3 frames"):
        model(frames[:, :3], 4, feed_truth=0.5)


@pytest.mark.parametrize("kind", [MSRNN, DBRNN])
def test_residual_network_predicts_changes(kind):
    """With zero output weights, the forecast of a residual network is the last frame."""
    frames = torch.rand(2, 3, 1, 16, 16)
    plain, model = small(kind), small(kind, residual=True)
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(frames, 1)[0] - frames, plain(frames, 1)[0], rtol=1e-5, atol=1e-6)
        for module in (m for m in model.modules() if hasattr(m, "output") and hasattr(m, "embed")):
            module.output.weight.zero_()
            module.output.bias.zero_()
        last = frames[:, -1:].expand(-1, 2, -1, -1, -1)
        assert torch.equal(model(frames, 3)[-1], torch.cat([frames, last], 1))


def test_samples_do_not_mix():
    for name in CELLS:
        options = {"cell_options": {"window": 4}} if name == "preciplstm" else {}
        model, frames = small(DBRNN, name, **options), torch.rand(3, 2, 1, 16, 16)
        with torch.no_grad():
            for all_at_once, one in zip(model(frames, 2), model(frames[1:2], 2), strict=True):
                torch.testing.assert_close(all_at_once[1:2], one, rtol=1e-4, atol=1e-5)


def test_training_reduces_the_loss():
    torch.manual_seed(3)
    model = DBRNN("predrnn", 8)
    rows = torch.arange(24.0)[:, None]
    clips = torch.stack([torch.exp(-(((rows - 6 - t) ** 2) + (torch.arange(24.0) - 8 - t) ** 2) / 9) for t in range(6)])
    clips = clips[None, :, None]
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = generator_loss(*model(clips[:, :3], 3), clips[:, 1:], Weights(1, 1, 0.001, 0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_losses_by_hand():
    y, x = torch.randn(2, 3, 1, 4, 5, dtype=torch.float64), torch.randn(2, 3, 1, 4, 5, dtype=torch.float64)
    pixel = gradient = 0.0
    for b in range(2):
        for t in range(3):
            a, c = x[b, t, 0], y[b, t, 0]
            pixel += (a - c).abs().sum() + ((a - c) ** 2).sum()
            for i in range(3):
                for j in range(4):
                    gradient += abs(abs(a[i + 1, j] - a[i, j]) - abs(c[i + 1, j] - c[i, j]))
                    gradient += abs(abs(a[i, j + 1] - a[i, j]) - abs(c[i, j + 1] - c[i, j]))
    torch.testing.assert_close(pixel_loss(y, x), pixel / 6)
    torch.testing.assert_close(gradient_difference_loss(y, x), gradient / 6)
    total = generator_loss(y, x, x, Weights(0.5, 2.0, 0.001, 0.0))
    torch.testing.assert_close(total, 0.5 * pixel / 6)
    with pytest.raises(ValueError, match="must have one shape"):
        pixel_loss(y, x[:1])


def test_all_terms_of_the_loss_by_hand():
    y, d, x = (torch.randn(2, 3, 1, 4, 5, dtype=torch.float64) for _ in range(3))

    def pixel(z):
        return ((z - x).abs() + (z - x) ** 2).sum() / 6

    def slopes(z):
        return [z.diff(dim=-2)[..., :, :-1].abs(), z.diff(dim=-1)[..., :-1, :].abs()]

    gradient = sum((a - b).abs().sum() for a, b in zip(slopes(d), slopes(x), strict=True)) / 6
    total = generator_loss(y, d, x, Weights(0.5, 2.0, 0.3, 0.0))
    torch.testing.assert_close(total, 0.5 * pixel(y) + 2.0 * pixel(d) + 0.3 * gradient)


def test_adversarial_terms():
    critic = Discriminator("S", (32, 32)).double()
    y = torch.rand(2, 3, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 3, 1, 32, 32, dtype=torch.float64)
    probability = critic(y.flatten(0, 1)).sigmoid()
    got = generator_loss(x, y, y.detach(), Weights(0.0, 0.0, 0.0, 1.0), critic)
    torch.testing.assert_close(got, -probability.log().mean())
    real = critic(x.flatten(0, 1)).sigmoid()
    loss = discriminator_loss(critic, y, x)
    torch.testing.assert_close(loss, -real.log().mean() - (1 - probability).log().mean())
    loss.backward()
    assert y.grad is None
    with pytest.raises(ValueError, match="discriminator is None"):
        generator_loss(x, y, x, compute_scheduled_weights(0))


def test_schedule_of_the_loss():
    ends = [compute_scheduled_weights(e) for e in (0, 10, 20, 49)]
    assert [w.forecast for w in ends] == pytest.approx([1, 0.505, 0.01, 0.01])
    assert [w.deblurred for w in ends] == pytest.approx([0.01, 0.505, 1, 1])
    assert {(w.gradient, w.adversarial) for w in ends} == {(0.001, 1.0)}
    assert compute_loss_weights(30, "none", scheduled=False) == Weights(1, 1, 0, 0)
    assert compute_loss_weights(20, "none") == Weights(pytest.approx(0.01), 1.0, 0.0, 0.0)
    assert compute_loss_weights(20, "gdl") == Weights(pytest.approx(0.01), 1.0, 0.001, 0.0)
    assert compute_loss_weights(7) == compute_scheduled_weights(7) and compute_loss_weights(
        7, scheduled=False
    ) == Weights(1, 1, 0.001, 1)
    with pytest.raises(ValueError, match="terms must be one of none, gdl, adversarial, got 'all'"):
        compute_loss_weights(0, "all")
    with pytest.raises(ValueError, match="epoch must be >= 0"):
        compute_scheduled_weights(-1)


@pytest.mark.parametrize("variant,parameters", [("S", 11_701), ("M", 16_873), ("L", 26_881)])
def test_discriminator_shapes(variant, parameters):
    critic = Discriminator(variant)
    assert sum(p.numel() for p in critic.parameters()) == parameters
    assert critic(torch.rand(2, 1, 160, 160)).shape == (2, 1)
    cell = {"S": "trajgru", "M": "predrnn", "L": "mim"}[variant]
    assert sum(p.numel() for p in Discriminator(select_variant(cell)).parameters()) == parameters
    with pytest.raises(ValueError, match=r"expected \(N, 1, 160, 160\)"):
        critic(torch.rand(2, 1, 64, 64))
    for arguments, words in (
        ({"variant": "X"}, "variant must be one of S, M, L"),
        ({"size": (40, 32)}, "multiples of 32"),
    ):
        with pytest.raises(ValueError, match=words):
            Discriminator(**arguments)


@pytest.mark.parametrize(
    "name", [f"{kind}-{cell}" for cell in CELLS for kind in ("ms", "db")] + ["ms-predrnn-s", "db-convlstm-small"]
)
def test_presets(name, tmp_path):
    model = models.create(name, hidden=4)
    models.save(model, tmp_path / "model.safetensors")
    again = models.load(tmp_path / "model.safetensors")
    assert type(again) is type(model) and again.config == model.config
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


def test_wrong_arguments():
    for make, words in (
        (lambda: MSRNN("lstm"), "cell must be one of convlstm, .*, got 'lstm'"),
        (lambda: MSRNN("convlstm", cell_options={"links": 3}), "cell 'convlstm' does not take the options"),
        (lambda: MSRNN("motionrnn", 6), "hidden must be a multiple of 4"),
        (lambda: MSRNN("mim", 4, {"difference": "x"}), "difference must be 'hidden' or 'input'"),
        (lambda: small()(torch.rand(1, 16, 16), 1), r"frames must be a Tensor \(B, T, 1, H, W\), got \(1, 16, 16\)"),
        (lambda: small()(torch.rand(1, 0, 1, 16, 16), 1), "frames has no time step"),
        (lambda: small()(torch.rand(1, 2, 1, 16, 16), 0), "steps must be an int >= 1, got 0"),
        (lambda: small().forecast(torch.rand(1, 2, 1, 16, 16), 1, block=0), "block must be None or an int >= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            make()

# SPDX-License-Identifier: Apache-2.0
"""Tests of adversarial training against a separate implementation."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds.metrics import field_scores
from fastds.tasks.humidity.config import CriticConfig, DataConfig, LossConfig, OptimiserConfig, TrainingConfig
from fastds.tasks.humidity.training import AdversarialModule

RATE, CRITIC_RATE, DECAY, BETAS, PENALTY, STEPS_PER_EPOCH, EPOCHS = 0.02, 0.05, 0.22, (0.3, 0.8), 3.0, 2, 3
CASES = {
    "wgan-gp, l1": LossConfig(adversary="wgan_gp", content="l1", adversarial_weight=0.5, penalty=PENALTY),
    "gan, mse": LossConfig(adversary="gan", content="mse", adversarial_weight=0.5, content_weight=2.0),
    "wgan-gp, crps": LossConfig(
        content="crps", noise_free_weight=0.7, adversarial_weight=0.5, adversarial_ramp=2.0, critic_steps=2,
        penalty=PENALTY,
    ),
}  # fmt: skip


def made(scale, coarse, noise):
    """Compute the output of the generator: scale[0] times the repeated coarse field plus scale[1] times noise."""
    return scale[0] * coarse.repeat_interleave(2, -1).repeat_interleave(2, -2) + scale[1] * noise


class Generator(nn.Module):
    """Generator with two parameters that records its noise."""

    config = {"scale": 2}

    def __init__(self, a=0.8, b=0.3):
        super().__init__()
        self.scale, self.noises = nn.Parameter(torch.tensor([a, b])), []
        self.register_buffer("calls", torch.tensor(0))

    def noise_shape(self, coarse):
        return (*coarse.shape[:3], 2 * coarse.shape[3], 2 * coarse.shape[4])

    def forward(self, coarse, noise="random", seed=None):
        self.calls += 1
        if isinstance(noise, str):
            g = torch.Generator().manual_seed(seed) if seed is not None else None
            noise = torch.randn(self.noise_shape(coarse), generator=g) * (noise == "random")
        self.noises.append(noise)
        return made(self.scale, coarse, noise)


class Critic(nn.Module):
    """D(x, coarse) = <w, x> + v * mean(coarse), whose gradient in x is w."""

    config = {"conditional": True}

    def __init__(self, entries):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.linspace(-0.3, 0.4, entries)), nn.Parameter(torch.tensor(0.5))

    def forward(self, x, coarse):
        return x.flatten(1) @ self.w + self.v * coarse.flatten(1).mean(1)


def configuration(loss, **changes):
    data = DataConfig(path="none.nc", steps=1, crop=4, batch_size=2, range=50.0, coarsening="mean")
    optimiser = OptimiserConfig(betas=BETAS, warmup_epochs=1, epochs=EPOCHS)
    critic = CriticConfig(learning_rate=CRITIC_RATE)
    config = TrainingConfig(data, loss, optimiser, critic=critic, learning_rate=RATE, ema_decay=DECAY)
    return dataclasses.replace(config, **changes)


def module_of(config):
    """Return the module without a trainer."""
    module = AdversarialModule(Generator(), Critic(16), config, STEPS_PER_EPOCH)
    optimisers, module.logged = module.configure_optimizers(), {}
    module.optimizers = lambda: optimisers
    module.manual_backward = lambda loss: loss.backward()
    module.log = lambda name, value, **_: module.logged.update({name: float(value)})
    module.log_dict = lambda values, **_: module.logged.update({k: float(v) for k, v in values.items()})
    module._trainer = SimpleNamespace(world_size=1)
    return module


def batches(count):
    g = torch.Generator().manual_seed(7)
    draw = lambda *size: torch.rand(2, 1, 1, *size, generator=g)  # noqa: E731
    return [{"coarse": draw(2, 2), "fine": draw(4, 4)} for _ in range(count)]


# ---- by hand, in float64


class Adam:
    """Adam (Kingma and Ba 2015, Algorithm 1)."""

    def __init__(self, values):
        self.values, self.m, self.v, self.t = values, [0.0] * len(values), [0.0] * len(values), 0

    def step(self, gradients, rate):
        self.t += 1
        for k, g in enumerate(gradients):
            self.m[k] = BETAS[0] * self.m[k] + (1 - BETAS[0]) * g
            self.v[k] = BETAS[1] * self.v[k] + (1 - BETAS[1]) * g**2
            m, v = self.m[k] / (1 - BETAS[0] ** self.t), self.v[k] / (1 - BETAS[1] ** self.t)
            self.values[k].data -= rate * m / (v.sqrt() + 1e-8)


def score(critic, x, coarse):
    return (x.flatten(1) * critic[0]).sum(1) + critic[1] * coarse.flatten(1).mean(1)


def critic_loss(critic, real, fake, coarse, loss):
    real, fake = score(critic, real, coarse), score(critic, fake, coarse)
    if loss.adversary == "gan":
        return -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    return fake.mean() - real.mean() + PENALTY * (critic[0].square().sum().sqrt() - 1) ** 2


def generator_loss(scale, critic, batch, noise, loss, step):
    draws = [made(scale, batch["coarse"], z) for z in noise.chunk(len(noise) // 2)]
    fine = batch["fine"]
    if loss.content == "crps":
        x, y = draws[:2]
        content = ((x - fine).abs() + (y - fine).abs() - (x - y).abs()).mean() / 2
    else:
        content = (draws[0] - fine).abs().mean() if loss.content == "l1" else ((draws[0] - fine) ** 2).mean()
    total = loss.content_weight * content
    if loss.noise_free_weight:
        assert (noise[-2:] == 0).all() and (noise[:-2] != 0).all()
        total = total + loss.noise_free_weight * ((draws[-1] - fine) ** 2).mean()
    judged = score(critic, draws[0], batch["coarse"])
    adversarial = -judged.mean() if loss.adversary == "wgan_gp" else -judged.sigmoid().log().mean()
    ramp = min(1.0, (step + 1) / (loss.adversarial_ramp * STEPS_PER_EPOCH)) if loss.adversarial_ramp else 1.0
    return total + loss.adversarial_weight * ramp * adversarial, content, adversarial


def rate_of(step):
    """Return the rate: warm-up, then a cosine by epochs."""
    if step < STEPS_PER_EPOCH:
        return (step + 1) / STEPS_PER_EPOCH
    return (1 + math.cos(math.pi * (step // STEPS_PER_EPOCH) / EPOCHS)) / 2


@pytest.mark.parametrize("name", CASES)
def test_training_step_by_hand(name):
    loss, module = CASES[name], module_of(configuration(CASES[name]))
    double = lambda x: x.detach().double().clone().requires_grad_()  # noqa: E731
    scale = double(module.generator.scale)
    critic = [double(p) for p in module.critic_loss.critic.parameters()]
    ours, theirs, average = Adam([scale]), Adam(critic), scale.detach().clone()
    for step, batch in enumerate(batches(5)):
        module.generator.noises.clear()
        module.training_step(batch, step)
        *fakes, noise = (z.double() for z in module.generator.noises)
        batch, rate = {k: v.double() for k, v in batch.items()}, rate_of(step)
        assert len(fakes) == loss.critic_steps
        for z in fakes:
            fake = made(scale.detach(), batch["coarse"], z)
            judged = critic_loss(critic, batch["fine"], fake, batch["coarse"], loss)
            theirs.step(torch.autograd.grad(judged, critic, allow_unused=True), CRITIC_RATE * rate)
        total, content, adversarial = generator_loss(scale, critic, batch, noise, loss, step)
        ours.step(torch.autograd.grad(total, [scale]), RATE * rate)
        decay = min(DECAY, (step + 2) / (step + 11))
        average = decay * average + (1 - decay) * scale.detach()
        expected = {"rate": rate, "critic": judged.item(), "content": content.item()}
        expected["adversarial"] = adversarial.item()
        assert {name: module.logged[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    found = [module.generator.scale, module.average.scale, *module.critic_loss.critic.parameters()]
    for a, b in zip(found, [scale, average, *critic], strict=True):
        torch.testing.assert_close(a.detach().double(), b.detach(), rtol=1e-4, atol=1e-5)
    assert module.average.calls == module.generator.calls, "what is no number with a fraction is copied"


@pytest.mark.parametrize(("steps", "decay"), [(0, 1 / 10), (1, 2 / 11), (2, DECAY), (9, DECAY)])
def test_weight_average_warms_up(steps, decay):
    """The decay is (1 + steps) / (10 + steps), but at most ema_decay."""
    module = module_of(configuration(LossConfig()))
    with torch.no_grad():
        module.average.scale.copy_(torch.tensor([2.0, 0.0])), module.generator.scale.copy_(torch.tensor([0.0, 3.0]))
    module.steps = steps
    module.update_average()
    assert module.average.scale.tolist() == pytest.approx([2 * decay, 3 * (1 - decay)])


@pytest.mark.parametrize("averaged", [True, False])
def test_validation_scores_by_hand(averaged):
    module = module_of(configuration(LossConfig(), ema_decay=DECAY if averaged else 0.0))
    exported = module.average if averaged else module.generator
    assert module.exported is exported
    with torch.no_grad():
        exported.scale.copy_(torch.tensor([1.3, 0.6]))
    fine = batches(1)[0]["fine"]
    coarse = torch.full((2, 1, 1, 2, 2), 0.4)  # of one value, which every interpolation keeps
    module.validation_step({"coarse": coarse, "fine": fine}, 3)
    noise = [torch.randn(fine.shape, generator=torch.Generator().manual_seed(3000 + m)).double() for m in range(2)]
    a, b = (1.3 * 0.4 + 0.6 * z for z in noise)
    errors = {"val_mse": (a + b) / 2, "val_mse_noise_free": torch.full_like(a, 1.3 * 0.4)}
    errors["val_mse_bicubic"] = torch.full_like(a, 0.4)
    expected = {k: 2500 * float(((v - fine) ** 2).mean()) for k, v in errors.items()}
    expected["val_crps"] = 50 * float(((a - fine).abs() + (b - fine).abs() - (a - b).abs()).mean() / 2)
    one = field_scores(50 * a[:, :, 0], 50 * fine[:, :, 0].double(), 50.0)  # of the first member, the paper's figure 8
    expected |= {f"val_{name}_one": one[name] for name in ("mse", "mae", "psnr", "ssim", "acc", "tcc")}
    assert expected["val_mae_one"] == pytest.approx(50 * float((a - fine).abs().mean()))
    assert module.logged == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_learning_rate_reaches_zero_at_the_time_limit():
    module = module_of(configuration(LossConfig(), max_minutes=2.0))
    module.steps = 4  # two of three epochs
    for seconds, done in ((0.0, 2 / 3), (30.0, 2 / 3), (100.0, 100 / 120), (150.0, 1.0)):
        module.elapsed = seconds
        assert module.compute_rate_factor() == pytest.approx((1 + math.cos(math.pi * done)) / 2, abs=1e-9)

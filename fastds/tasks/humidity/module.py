# SPDX-License-Identifier: Apache-2.0
"""The Lightning module of the WGAN-GP: alternating updates by hand, two time scales, exact resume."""

import copy
import math

import torch
from torch import Tensor

from fastds.models.baselines import interpolate
from fastds.models.wgan_gp.penalty import CriticLoss, adversarial_loss
from fastds.tasks.humidity.config import GANConfig
from fastds.tasks.radar.module import TimedModule


def content_loss(members: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Distance of members (M, ...) from the truth (...): "l1", "mse", or the fair CRPS of M >= 2 members.

    CRPS = mean_m |x_m - y| - 1/(2 M (M-1)) sum_{m,k} |x_m - x_k|. Source: Ferro 2014, equation 8.
    """
    error = members - truth
    if kind == "mse":
        return error.square().mean()
    loss = error.abs().mean()
    if kind == "l1":
        return loss
    m = len(members)
    pairs = sum((members[i] - members[k]).abs().mean() for i in range(m) for k in range(i))
    return loss - pairs / (m * (m - 1))


def sample(network: torch.nn.Module, coarse: Tensor, **noise) -> Tensor:
    """The network's fields; noise (of HumidityGenerator.forward) is for those that take any."""
    return network(coarse, **noise) if hasattr(network, "noise_shape") else network(coarse)


class GANModule(TimedModule):
    """Trains a generator (B, T, 1, h, w) -> (B, T, 1, H, W) against a critic.

    Logged: critic, penalty, gradient_norm (its mean, which goes to 1), content, adversarial, rate; val_mse of the mean
    of two members, in squared units of the field, val_mse_quiet of the field without noise, and val_mse_bicubic of
    coordinate-true interpolation.

    Args:
        generator, critic: the networks.
        config: the run.
        steps_per_epoch: mini-batches, for the schedule.
    """

    def __init__(self, generator: torch.nn.Module, critic: torch.nn.Module, config: GANConfig, steps_per_epoch: int):
        super().__init__(config)
        self.automatic_optimization = False
        self.generator, self.steps_per_epoch = generator, steps_per_epoch
        self.critic_loss = CriticLoss(critic, config.loss.adversary, config.loss.penalty)
        decay = config.optimiser.ema_decay
        self.average = copy.deepcopy(generator).requires_grad_(False) if decay > 0 else None
        self.steps = 0

    @property
    def exported(self) -> torch.nn.Module:
        """The generator that is validated and saved: the averaged one, where there is one."""
        return self.generator if self.average is None else self.average

    def samples_seen(self) -> int:
        return self.steps * self.config.data.batch_size

    # ---- steps

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.trainer.world_size > 1:  # noise and penalties of their own
            torch.manual_seed(self.config.seed + 1_000_003 * (self.global_rank + 1) + self.steps)

    def training_step(self, batch: dict, batch_index: int) -> None:
        critic_optimiser, generator_optimiser = self.optimizers()
        rate = self.rate()
        for optimiser in (critic_optimiser, generator_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = rate * group["initial_lr"]
        for _ in range(self.config.loss.critic_steps):
            self.critic_step(batch, critic_optimiser)
        self.generator_step(batch, generator_optimiser)
        self.steps += 1
        self.update_average()
        self.log("rate", rate)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optimiser.bfloat16)

    def critic_input(self, batch: dict) -> Tensor | None:
        return batch["coarse"] if getattr(self.critic_loss.critic, "config", {}).get("conditional") else None

    def critic_step(self, batch: dict, optimiser) -> None:
        with torch.no_grad(), self.autocast():
            fake = sample(self.generator, batch["coarse"])
        with self.autocast():
            loss, logs = self.critic_loss(batch["fine"], fake.to(batch["fine"].dtype), self.critic_input(batch))
        self.finite("the critic's loss", loss)
        optimiser.zero_grad()
        self.manual_backward(loss)
        optimiser.step()
        self.log_dict({"critic": loss.detach()} | logs)

    def generator_step(self, batch: dict, optimiser) -> None:
        c = self.config.loss
        members, quiet = self.draw(batch["coarse"])
        content = content_loss(members.float(), batch["fine"], c.content)
        loss = c.content_weight * content
        if quiet is not None:
            loss = loss + c.quiet_weight * (quiet.float() - batch["fine"]).square().mean()
        if c.adversarial_weight > 0:
            adversarial = self.adversarial(members[0], batch)
            loss = loss + self.adversarial_weight() * adversarial
            self.log("adversarial", adversarial.detach())
        self.finite("the generator's loss", loss)
        optimiser.zero_grad()
        self.manual_backward(loss)
        optimiser.step()
        self.log("content", content.detach(), prog_bar=True)

    def draw(self, coarse: Tensor) -> tuple[Tensor, Tensor | None]:
        """Members (M, B, T, O, H, W) as the content loss wants them, and the field without noise where it is trained.

        Drawn as one batch: batch normalisation sees all.
        """
        c = self.config.loss
        draws, quiet = 2 if c.content == "crps" else 1, c.quiet_weight > 0
        coarse, noise = coarse.repeat(draws + quiet, 1, 1, 1, 1), {}
        if quiet:
            noise["noise"] = torch.randn(self.generator.noise_shape(coarse), device=coarse.device)
            noise["noise"].unflatten(0, (draws + 1, -1))[draws] = 0
        with self.autocast():
            fields = sample(self.generator, coarse, **noise).unflatten(0, (draws + quiet, -1))
        return fields[:draws], fields[draws] if quiet else None

    def adversarial(self, fake: Tensor, batch: dict) -> Tensor:
        """The generator's adversarial loss; the critic gets no gradients."""
        extra = self.critic_input(batch)
        critic = self.critic_loss.critic.requires_grad_(False)
        with self.autocast():
            score = critic(fake, *(() if extra is None else (extra,)))
        critic.requires_grad_(True)
        return adversarial_loss(score, self.config.loss.adversary)

    def adversarial_weight(self) -> float:
        c = self.config.loss
        ramp = c.adversarial_ramp * self.steps_per_epoch
        return c.adversarial_weight * min(1.0, (self.steps + 1) / ramp if ramp else 1.0)

    def finite(self, what: str, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{what} was not finite (step {self.steps}); the last checkpoint is kept: resume with smaller rates"
            )

    @torch.no_grad()
    def update_average(self) -> None:
        if self.average is None:
            return
        decay = min(self.config.optimiser.ema_decay, (1 + self.steps) / (10 + self.steps))
        for ours, new in zip(self.average.state_dict().values(), self.generator.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours.lerp_(new, 1 - decay)
            else:
                ours.copy_(new)

    # ---- schedule

    def rate(self) -> float:
        """Factor of both learning rates: warm-up by steps, then cosine by epochs (or by the clock, if that ends first).

        Source: Li et al. 2024, equation 7 and the warm-up above it, with the slips corrected unless literal_schedule.
        """
        o = self.config.optimiser
        warm = o.warmup_epochs * self.steps_per_epoch
        if self.steps < warm:
            literal = min(1.0, self.config.data.batch_size / (warm + 1e-8))
            return literal if o.literal_schedule else (self.steps + 1) / (warm + 1e-8)
        done = min(1.0, self.steps // self.steps_per_epoch / o.epochs)
        if self.config.max_minutes is not None:
            done = max(done, min(1.0, self.clock() / (60.0 * self.config.max_minutes)))
        return 0.5 * (1.0 + math.cos(done if o.literal_schedule else math.pi * done))

    def configure_optimizers(self):
        o = self.config.optimiser
        pairs = ((self.critic_loss.critic, o.critic_rate), (self.generator, o.generator_rate))
        optimisers = [torch.optim.Adam(net.parameters(), lr=rate, betas=o.betas) for net, rate in pairs]
        for optimiser, (_, rate) in zip(optimisers, pairs, strict=True):
            optimiser.param_groups[0]["initial_lr"] = rate
        return optimisers

    # ---- validation

    def on_validation_model_eval(self) -> None:
        self.eval()

    def validation_step(self, batch: dict, batch_index: int) -> None:
        coarse, fine, g = batch["coarse"], batch["fine"], self.exported
        members = torch.stack([sample(g, coarse, seed=1000 * batch_index + m) for m in range(2)])
        scale = self.config.data.range**2
        align = "grid" if self.config.data.coarsening == "decimate" else "center"
        reference = interpolate(coarse, g.config["scale"], "bicubic", align)
        values = {
            "val_mse": (members.mean(0) - fine).square().mean() * scale,
            "val_mse_bicubic": (reference - fine).square().mean() * scale,
            "val_mse_quiet": (sample(g, coarse, noise="zero") - fine).square().mean() * scale,
            "val_crps": content_loss(members, fine, "crps") * self.config.data.range,
        }
        self.log_dict(values, batch_size=len(fine), prog_bar=True, sync_dist=self.trainer.world_size > 1)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.steps = checkpoint["steps"]
        if self.trainer.world_size > 1:
            self._random_state = None  # it is that of the first process

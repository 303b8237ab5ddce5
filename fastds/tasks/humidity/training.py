# SPDX-License-Identifier: Apache-2.0
"""Training of the WGAN-GP: alternating updates, two learning rates, exact resuming, exported generator."""

from __future__ import annotations

import copy
import math
import pathlib
from typing import Any

import torch
from torch import Tensor

from fastds import models
from fastds._options import OptionError, spell_name
from fastds.metrics import field_scores
from fastds.models.baselines import interpolate
from fastds.models.baselines.super_resolution import SRCNN, SRGANDiscriminator, SRResNet
from fastds.models.card import Network
from fastds.models.wgan_gp import HumidityCritic, HumidityGenerator
from fastds.models.wgan_gp.penalty import CriticLoss, adversarial_loss
from fastds.tasks.humidity.config import TrainingConfig
from fastds.tasks.humidity.evaluation import run_network
from fastds.tasks.humidity.samples import HumidityData
from fastds.training.baseline_comparison import compare_to_baseline
from fastds.training.lightning_extra import L
from fastds.training.maps import SampleRow, select_rows
from fastds.training.model_card import update_model_card
from fastds.training.modules import BaseLightningModule
from fastds.training.trainer import ExportBest, prepare_run, run_training


def compute_content_loss(members: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Return the distance of members from the truth.

    CRPS = mean_m |x_m - y| - 1/(2 M (M-1)) sum_{m,k} |x_m - x_k|.

    Args:
        members: (M, ...); M >= 2 for "crps".
        truth: (...).
        kind: "l1", "mse" or "crps" (fair).

    Source: Ferro 2014, equation 8.
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


class AdversarialModule(BaseLightningModule):
    """Training of a generator (B, T, 1, h, w) -> (B, T, 1, H, W) against a critic.

    Logged values are critic, penalty, gradient_norm (the mean, which converges to about 1), content, adversarial and
    rate, and three mean squared errors in squared units of the field: val_mse is that of the mean of two members,
    val_mse_noise_free that of the field with zero noise, and val_mse_bicubic that of bicubic interpolation.

    Args:
        generator: generator.
        critic: critic.
        config: configuration of the training.
        steps_per_epoch: number of batches in an epoch, for the schedule.
    """

    def __init__(self, generator: Network, critic: Network, config: TrainingConfig, steps_per_epoch: int):
        super().__init__(config)
        self.automatic_optimization = False
        self.generator, self.steps_per_epoch = generator, steps_per_epoch
        self.critic_loss = CriticLoss(critic, config.loss.adversary, config.loss.penalty)
        decay = config.ema_decay
        self.average = copy.deepcopy(generator).requires_grad_(False) if decay > 0 else None
        self.steps = 0

    @property
    def exported(self) -> Network:
        """Generator that is validated and saved: the averaged one, if weights are averaged."""
        return self.generator if self.average is None else self.average

    def steps_done(self) -> int:
        return self.steps  # Lightning's global_step counts the steps of both optimizers

    def last_step(self) -> int | None:
        epochs = self.config.optimiser.epochs
        by_epochs = None if epochs is None else epochs * self.steps_per_epoch
        return by_epochs if self.config.max_steps is None else self.config.max_steps

    def samples_seen(self) -> int:
        """Return the number of training samples used so far."""
        return self.steps * self.config.data.batch_size

    def training_step(self, batch: dict, batch_index: int) -> None:
        optimisers: Any = self.optimizers()
        critic_optimiser, generator_optimiser = optimisers
        rate = self.compute_rate_factor()
        for optimiser in (critic_optimiser, generator_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = rate * group["initial_lr"]
        for _ in range(self.config.loss.critic_steps):
            self.critic_step(batch, critic_optimiser)
        self.generator_step(batch, generator_optimiser)
        self.steps += 1
        self.update_average()
        self.log("rate", rate)

    def autocast(self) -> torch.autocast:
        """Return the autocast context: bfloat16 if configured."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optimiser.bfloat16)

    def critic_input(self, batch: dict) -> Tensor | None:
        """Return the coarse fields if the critic reads them, else None."""
        return batch["coarse"] if getattr(self.critic_loss.critic, "config", {}).get("conditional") else None

    def critic_step(self, batch: dict, optimiser: torch.optim.Optimizer) -> None:
        with torch.no_grad(), self.autocast():
            fake = run_network(self.generator, batch["coarse"])
        with self.autocast():
            loss, logs = self.critic_loss(batch["fine"], fake.to(batch["fine"].dtype), self.critic_input(batch))
        self.check_finite("the critic's loss", loss)
        optimiser.zero_grad()
        self.manual_backward(loss)
        optimiser.step()
        self.log_dict({"critic": loss.detach()} | logs)

    def generator_step(self, batch: dict, optimiser: torch.optim.Optimizer) -> None:
        c = self.config.loss
        members, noise_free = self.draw(batch["coarse"])
        content = compute_content_loss(members.float(), batch["fine"], c.content)
        loss = c.content_weight * content
        if noise_free is not None:
            loss = loss + c.noise_free_weight * (noise_free.float() - batch["fine"]).square().mean()
        if c.adversarial_weight > 0:
            adversarial = self.compute_adversarial_loss(members[0], batch)
            loss = loss + self.adversarial_weight() * adversarial
            self.log("adversarial", adversarial.detach())
        self.check_finite("the generator's loss", loss)
        optimiser.zero_grad()
        self.manual_backward(loss)
        optimiser.step()
        self.log("content", content.detach(), prog_bar=True)

    def draw(self, coarse: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw the members for the content loss, and the field without noise if it is trained.

        All fields are computed as one batch, so that batch normalisation uses all of them.

        Args:
            coarse: (B, T, 1, h, w).

        Returns:
            Members (M, B, T, O, H, W), and the field without noise or None.
        """
        c = self.config.loss
        draws, with_noise_free = 2 if c.content == "crps" else 1, c.noise_free_weight > 0
        coarse, noise = coarse.repeat(draws + with_noise_free, 1, 1, 1, 1), {}
        if with_noise_free:
            noise["noise"] = torch.randn(self.generator.noise_shape(coarse), device=coarse.device)
            noise["noise"].unflatten(0, (draws + 1, -1))[draws] = 0
        with self.autocast(), self.use_graphs():
            fields = run_network(self.generator, coarse, **noise).unflatten(0, (draws + with_noise_free, -1))
        return fields[:draws], fields[draws] if with_noise_free else None

    def compute_adversarial_loss(self, fake: Tensor, batch: dict) -> Tensor:
        """Return the generator's adversarial loss, without gradients of the critic."""
        extra = self.critic_input(batch)
        critic = self.critic_loss.critic.requires_grad_(False)
        with self.autocast():
            score = critic(fake, *(() if extra is None else (extra,)))
        critic.requires_grad_(True)
        return adversarial_loss(score, self.config.loss.adversary)

    def adversarial_weight(self) -> float:
        """Return the adversarial weight of this step, which increases over loss.adversarial_ramp epochs."""
        c = self.config.loss
        ramp = c.adversarial_ramp * self.steps_per_epoch
        return c.adversarial_weight * min(1.0, (self.steps + 1) / ramp if ramp else 1.0)

    def check_finite(self, what: str, loss: Tensor) -> None:
        """Raise FloatingPointError if a loss is not finite."""
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{what} was not finite (step {self.steps}); the last checkpoint is kept: resume with a smaller "
                f"{spell_name('learning_rate')} and {spell_name('critic.learning_rate')}"
            )

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the averaged generator with the new weights."""
        if self.average is None:
            return
        decay = min(self.config.ema_decay, (1 + self.steps) / (10 + self.steps))
        for averaged, new in zip(self.average.state_dict().values(), self.generator.state_dict().values(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(new, 1 - decay)
            else:
                averaged.copy_(new)

    def compute_rate_factor(self) -> float:
        """Return the factor of both learning rates: warm-up by steps, then cosine.

        The cosine follows the epochs, or the steps if max_steps is given, or the time if the time limit comes first.

        Source: Li et al. 2024, equation 7 and the warm-up above it; misprints are corrected unless literal_schedule is
        set.
        """
        o, last = self.config.optimiser, self.config.max_steps
        warm = o.warmup_epochs * self.steps_per_epoch
        if self.steps < warm:
            literal = min(1.0, self.config.data.batch_size / (warm + 1e-8))
            return literal if o.literal_schedule else (self.steps + 1) / (warm + 1e-8)
        done = 0.0
        if last is not None:
            done = min(1.0, self.steps / last)
        elif o.epochs is not None:
            done = min(1.0, self.steps // self.steps_per_epoch / o.epochs)
        if self.config.max_minutes is not None:
            done = max(done, min(1.0, self.training_seconds() / (60.0 * self.config.max_minutes)))
        return 0.5 * (1.0 + math.cos(done if o.literal_schedule else math.pi * done))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        o = self.config.optimiser
        rates = self.config.critic.learning_rate, self.config.learning_rate
        pairs = list(zip((self.critic_loss.critic, self.generator), rates, strict=True))
        optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(net.parameters(), lr=rate, betas=o.betas) for net, rate in pairs
        ]
        for optimiser, (_, rate) in zip(optimisers, pairs, strict=True):
            optimiser.param_groups[0]["initial_lr"] = rate
        return optimisers

    def on_validation_model_eval(self) -> None:
        self.eval()

    def validation_step(self, batch: dict, batch_index: int) -> None:
        coarse, fine, g = batch["coarse"], batch["fine"], self.exported
        members = torch.stack([run_network(g, coarse, seed=1000 * batch_index + m) for m in range(2)])
        scale = self.config.data.range**2
        align = "grid" if self.config.data.coarsening == "decimate" else "center"
        reference = interpolate(coarse, g.config["scale"], "bicubic", align)
        values = {
            "val_mse": (members.mean(0) - fine).square().mean() * scale,
            "val_mse_bicubic": (reference - fine).square().mean() * scale,
            "val_mse_noise_free": (run_network(g, coarse, noise="zero") - fine).square().mean() * scale,
            "val_crps": compute_content_loss(members, fine, "crps") * self.config.data.range,
        }
        # scores in figure 8 of the paper, of one member
        peak = self.config.data.range
        one = field_scores(members[0][:, :, 0] * peak, fine[:, :, 0] * peak, peak)
        values |= {f"val_{name}_one": one[name] for name in ("mse", "mae", "psnr", "ssim", "acc", "tcc")}
        self.log_dict(values, batch_size=len(fine), prog_bar=True, sync_dist=self.trainer.world_size > 1)
        if self.maps is not None and batch_index == 0:
            self.maps.rows = self._make_map_rows(coarse, members[0], fine)

    def _make_map_rows(self, *fields: Tensor) -> list[SampleRow]:
        """Return coarse input, one member and truth (B, T, 1, H, W) of the first sample in the units of the file."""
        c = self.config.data
        coarse, member, fine = (c.offset + c.range * field[0, :, 0].float() for field in fields)
        is_percent = (c.offset, c.range) == (0.0, 100.0)
        attrs = {"standard_name": "relative_humidity", "units": "%"} if is_percent else {}
        return [
            SampleRow(f"time {k + 1}", member[k], fine[k], coarse[k], attrs, "" if is_percent else "field")
            for k in select_rows(len(fine))
        ]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.steps = checkpoint["steps"]


class ExportGenerator(ExportBest):
    """Export of the weights with the lowest val_crps."""

    def validate(self, trainer: L.Trainer, module: Any) -> tuple[Network, dict, float]:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        score = "squared error without noise", values["val_mse_noise_free"], values["val_mse_bicubic"]
        comparison = compare_to_baseline("bicubic interpolation", *score)
        scores = {**module.config.model.card.get("metrics", {}), "validation": values, **comparison}
        return module.exported, scores, values["val_crps"]


def build_module(config: TrainingConfig) -> AdversarialModule:
    """Create the networks, or load model.start, fill the card, and return the training module.

    Raises:
        ValueError: options that do not fit.
    """
    c = config.model
    generator = models.load(c.start).train() if c.start else models.create(c.name, **c.options)
    if not isinstance(generator, HumidityGenerator | SRCNN | SRResNet):
        raise OptionError(
            "model.name",
            f": {c.start or c.name!r} cannot be trained on humidity, which takes wgan-gp, wgan-gp-small, "
            "srcnn or srgan",
        )
    critic = {"humidity": HumidityCritic, "srgan": SRGANDiscriminator}[config.critic.name](**config.critic.options)
    noisy = hasattr(generator, "noise_shape")
    if not noisy and (config.loss.content == "crps" or config.loss.noise_free_weight > 0):
        raise OptionError(
            "loss",
            f": content 'crps' and noise_free_weight are for a generator with noise; {c.start or c.name!r} has none",
        )
    update_model_card(generator.card, config)
    generator.card.offset, generator.card.range = config.data.offset, config.data.range
    generator.card.coarsening = config.data.coarsening
    return AdversarialModule(generator, critic, config, max(1, config.data.epoch_samples // config.data.batch_size))


def train(config: TrainingConfig) -> pathlib.Path:
    """Train, or resume if config.output has a checkpoint, and export the generator.

    The result is deterministic for a given configuration and number of threads, also after an interruption, unless
    max_minutes ends the run.

    Returns:
        Path of best.safetensors.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data or options that do not fit.
        FloatingPointError: a loss was not finite.
    """
    prepare_run(config)
    module = build_module(config)
    scale = module.generator.config["scale"]
    data = HumidityData(config.data, scale, config.seed, module.samples_seen, config.devices)
    data.setup()
    # config.max_steps is enforced by the module, because the trainer would also count the steps of the critic.
    epochs = config.optimiser.epochs if config.max_steps is None else None
    bounds: dict[str, Any] = {"max_steps": -1, "max_epochs": -1 if epochs is None else epochs}
    return run_training(config, module, data, ExportGenerator, **bounds)

# SPDX-License-Identifier: Apache-2.0
"""The Lightning modules: clock, learning rate and guards of every training; losses on valid pixels for radar."""

import math
import time

import lightning as L
import torch
from torch import Tensor

from fastds.models.baselines import trilinear
from fastds.tasks.radar.config import TrainingConfig

_PATIENCE = 5  # steps in a row whose loss or gradient may be not finite


class TimedModule(L.LightningModule):
    """Ends at config.max_minutes of training or at the trainer's max_steps, in either case with a validation; the clock
    and the random state are part of the checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.elapsed, self._since = 0.0, None
        self._random_state = None

    def clock(self) -> float:
        """Seconds of training so far, those before a resumed checkpoint included."""
        return self.elapsed + (0.0 if self._since is None else time.monotonic() - self._since)

    def on_train_start(self) -> None:
        self._since = time.monotonic()

    def on_train_batch_end(self, outputs, batch: dict, batch_index: int) -> None:
        limit, last = self.config.max_minutes, self.trainer.max_steps
        # Lightning validates before it stops where it is told to, and at max_steps it does not.
        if (limit is not None and self.clock() >= 60.0 * limit) or 0 <= last <= self.trainer.global_step:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["elapsed"] = self.clock()
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.elapsed, self._random_state = checkpoint["elapsed"], checkpoint["random_state"]

    def on_train_epoch_start(self) -> None:
        # After a resume, once everything that draws at start has drawn.
        state, self._random_state = self._random_state, None
        if state is not None:
            torch.set_rng_state(state)


class SupervisedModule(TimedModule):
    """One network, AdamW, a rate by steps and clock; steps whose loss or gradient is not finite are left out.

    Subclasses give forward(batch), loss(prediction, batch) and validation_step.
    """

    def __init__(self, model: torch.nn.Module, config):
        super().__init__(config)
        self.model = model
        self._bad_steps, self._finite_loss = 0, True

    def training_step(self, batch: dict, batch_index: int) -> Tensor | None:
        loss = self.loss(self(batch), batch)
        self._finite_loss = bool(torch.isfinite(loss))
        if not self._finite_loss:
            self._count_bad_step("loss")
            return None
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    # learning rate

    def configure_optimizers(self) -> dict:
        c = self.config
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up, then cosine to zero at max_steps or max_minutes,
        whichever is nearer.
        """
        c = self.config
        done = step / c.max_steps
        if c.max_minutes is not None:
            done = max(done, self.clock() / (60.0 * c.max_minutes))
        return min(1.0, (step + 1) / max(1, c.warmup_steps)) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        if torch.isfinite(norm):
            self._bad_steps = (
                0 if self._finite_loss else self._bad_steps
            )  # called without gradients after a skipped loss
        else:
            self._count_bad_step("gradient")
            optimizer.zero_grad(set_to_none=True)

    def _count_bad_step(self, what: str) -> None:
        self._bad_steps += 1
        if self._bad_steps >= _PATIENCE:
            raise FloatingPointError(
                f"the {what} was not finite in {_PATIENCE} steps in a row (step {self.global_step}); "
                "the last checkpoint is kept: resume with a smaller learning_rate"
            )


class DownscalingModule(SupervisedModule):
    """Trains a model that maps two coarse fields to three fine ones, as config says.

    Batches: x (B, 2, 1, h, w), y and valid (B, 3, 1, r*h, r*w), flow (B, 1, 2, 2, h, w) and static (B, S, h, w) where
    the model needs them;
    x and y normalised to [0, 1]. Logged: loss, learning rate, val_mse_total (dBZ^2 above the floor) and
    val_relative (val_mse_total over that of trilinear interpolation).
    """

    def __init__(self, model: torch.nn.Module, config: TrainingConfig):
        super().__init__(model, config)
        self.range_dbz = config.data.ceiling - config.data.floor

    def forward(self, batch: dict) -> Tensor:
        return self.model(batch["x"], **{key: batch[key] for key in ("static", "flow") if key in batch})

    def loss(self, prediction: Tensor, batch: dict) -> Tensor:
        """Mean over the samples of the mean error of each on its valid pixels; errors in dBZ."""
        valid = batch["valid"]
        error = torch.where(valid, prediction - batch["y"], 0.0) * self.range_dbz
        count = valid.sum(dim=(1, 2, 3, 4)).clamp(min=1)
        if self.config.loss == "charbonnier":
            return (((error.square() + 0.01).sqrt() - 0.1).sum(dim=(1, 2, 3, 4)) / count).mean()
        mse = error.square().sum(dim=(1, 2, 3, 4)) / count
        if self.config.loss == "mse":
            return mse.mean()
        return (mse / (self._trilinear_mse(batch, count) + 0.25)).mean()  # 0.25 dBZ^2: nearly dry crops count less

    def _trilinear_mse(self, batch: dict, count: Tensor) -> Tensor:
        with torch.no_grad():
            r = batch["y"].shape[-1] // batch["x"].shape[-1]
            error = torch.where(batch["valid"], trilinear(batch["x"], r) - batch["y"], 0.0) * self.range_dbz
            return error.square().sum(dim=(1, 2, 3, 4)) / count

    def validation_step(self, batch: dict, batch_index: int) -> None:
        valid, b = batch["valid"], batch["x"].shape[0]
        count = valid.sum(dim=(1, 2, 3, 4)).clamp(min=1)
        error = torch.where(valid, self(batch) - batch["y"], 0.0) * self.range_dbz
        ours = (error.square().sum(dim=(1, 2, 3, 4)) / count).mean()
        reference = self._trilinear_mse(batch, count).mean()
        self.log("val_mse_total", ours, batch_size=b, prog_bar=True)
        self.log("val_mse_trilinear", reference, batch_size=b)

    def on_validation_epoch_end(self) -> None:
        values = self.trainer.callback_metrics
        if float(values["val_mse_trilinear"]) > 0:
            self.log("val_relative", values["val_mse_total"] / values["val_mse_trilinear"], prog_bar=True)

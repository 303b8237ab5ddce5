# SPDX-License-Identifier: Apache-2.0
"""A tiny training of a nowcasting network."""

import torch

from fastds.tasks.nowcast.config import DataConfig, ModelConfig, TrainingConfig


def samples(event, **changes) -> DataConfig:
    values = dict(
        known=3, future=3, crop=24, halo=16, scales=[1], minimum_echo=0.0, batch_size=2, epoch_samples=8,
        validation_samples=4,
    )  # fmt: skip
    return DataConfig(str(event), **(values | changes))


def tiny(event, output="unused", **changes) -> TrainingConfig:
    values = dict(
        model=ModelConfig("nowcast-small", {"network": "MSRNN", "hidden": 8}), output=str(output), max_steps=8,
        warmup_steps=2, ema_decay=0.9, threads=1,
    )  # fmt: skip
    return TrainingConfig(changes.pop("data", samples(event)), **(values | changes))


def batch_of(b=2, known=3, future=3, size=32):
    g = torch.Generator().manual_seed(0)
    valid = torch.rand(b, known + future, 1, size, size, generator=g) > 0.2
    frames = torch.rand(b, known + future, 1, size, size, generator=g)
    return {"frames": torch.where(valid, frames, 0.0), "valid": valid}

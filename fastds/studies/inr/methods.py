# SPDX-License-Identifier: Apache-2.0
"""Methods of the INR paper: networks, published results, and training configurations."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from fastds.models.inr.encoders import KINDS
from fastds.models.registry import PRESETS
from fastds.studies.common.config import PAPER
from fastds.studies.fields.study import INTERPOLATIONS, SCALES
from fastds.tasks.fields.config import DataConfig, ModelConfig, TrainingConfig, parse_arguments


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        preset: preset of the network; "" for interpolations.
        dpfa: kind of the aggregation; None for other networks.
        factor: the only factor of a fixed-scale network; "" for arbitrary scales.
        degraded: fraction of the training samples from the degradation pipeline.
    """

    preset: str = ""
    dpfa: str | None = None
    factor: str = ""
    degraded: float = 0.0


_DEGRADED = 0.5
METHODS = {
    **{name: Method() for name in INTERPOLATIONS},
    **{f"EDSR-x{factor}": Method(f"edsr-x{factor}", factor=factor) for factor in ("2", "3", "4")},
    **{name: Method(name.lower()) for name in ("MetaSR", "LIIF", "LTE", "CiaoSR")},
    # The paper's method uses the degradation strategy; its fraction of the samples is not published.
    "ours": Method("inr", "deform", degraded=_DEGRADED),
    **{f"ours-{kind}": Method("inr", kind, degraded=_DEGRADED) for kind in KINDS if kind != "deform"},
    "ours-clean": Method("inr", "deform"),
}
NETWORKS = [name for name, method in METHODS.items() if method.preset]
FACTORS = tuple(SCALES)
# (method, other method, minimum difference of PSNR in dB at x2 according to the abstract).
PAPER_RANKING = (
    ("ours", "EDSR-x2", 0.7), ("ours", "EDSR-x3", None), ("ours", "EDSR-x4", None),
    *(("ours", name, 0.48) for name in ("MetaSR", "LIIF", "LTE", "CiaoSR")),
    ("ours", "bicubic", None), *(("ours", f"ours-{kind}", None) for kind in KINDS if kind != "deform"),
    ("ours", "ours-clean", None), *(("ours-clean", name, None) for name in ("EDSR-x2", "LIIF", "LTE", "bicubic")),
)  # fmt: skip
_SMALL = "inr-small"  # small preset, whose encoder all small networks use
_VALIDATIONS = 4  # validations of the training of a small network


def make_model_config(name: str, budget: str) -> ModelConfig:
    """Make the model configuration of a method: a preset and the options that differ from it."""
    preset, dpfa, *_ = METHODS[name]
    options = {} if dpfa is None else {"dpfa": dpfa}
    if budget == PAPER:
        return ModelConfig(preset, options)
    options |= {"encoder_options": PRESETS[_SMALL][1]["encoder_options"]}
    return ModelConfig(preset if dpfa is None else _SMALL, options)


def load_paper_config(name: str, path: str) -> TrainingConfig:
    """Load the shipped training configuration of a method.

    The configuration follows the abstract of the paper, and the training of LIIF where the abstract gives no detail.
    """
    config = parse_arguments(["--config", METHODS[name].preset, "--data.path", path])
    options = config.model.options | make_model_config(name, PAPER).options
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, options=options),
        data=dataclasses.replace(config.data, degraded=METHODS[name].degraded),
    )


def make_training_config(name: str, budget: str, steps: int, data: DataConfig, **run: Any) -> TrainingConfig:
    """Make the training configuration of a method.

    With the budget "paper" it is the configuration of load_paper_config, except for data and steps.

    Args:
        name: the method.
        budget: budget of the study.
        steps: number of steps.
        data: samples.
        run: further options of the training.
    """
    method = METHODS[name]
    if budget == PAPER:
        paper = load_paper_config(name, data.path)
        given = ("variables", "level", "vectors", "split", "train", "validation", "test")
        data = dataclasses.replace(paper.data, **{key: getattr(data, key) for key in given})
        return dataclasses.replace(paper, data=data, max_steps=steps, **run)
    factors = [2.0] * 2 if not method.factor else [float(method.factor)] * 2
    data = dataclasses.replace(
        data,
        crop=32,
        queries=1024,
        batch_size=8,
        epoch_samples=8 * max(1, -(-steps // _VALIDATIONS)),
        scales=factors if method.factor else [1.0, 4.0],
        test_scales=factors[:1],
        degraded=method.degraded,
    )
    return TrainingConfig(
        data,
        make_model_config(name, budget),
        max_steps=steps,
        learning_rate=3e-3,
        warmup_steps=min(100, steps // 10 + 1),
        ema_decay=0.98,
        **run,
    )

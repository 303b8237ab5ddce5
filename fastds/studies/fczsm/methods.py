# SPDX-License-Identifier: Apache-2.0
"""Methods of the FC-ZSM paper: networks, published results, and training configurations."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

from fastds.models.card import Network
from fastds.studies.common.config import PAPER
from fastds.tasks.radar.config import DataConfig, ModelConfig, TrainingConfig, parse_arguments


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
        preset: preset of the network; None for methods without training.
        published: MSE total, t2, t1 + t3 (their unit is not given), SSIM; None if the paper has no such row.
        dynamic: the network reads dynamic channels.
        static: the network reads static channels.
    """

    preset: str | None
    published: tuple[float, float, float, float] | None
    dynamic: bool = False
    static: bool = False


METHODS = {
    "trilinear": Method(None, (2.452, 5.886, 0.735, 0.895)),
    "bicubic": Method(None, None),
    "advection": Method(None, None),
    "UNet": Method("unet", (1.027, 2.054, 0.514, 0.931)),
    "UNet3D": Method("unet3d", (0.855, 1.769, 0.398, 0.953)),
    "ZSM": Method("fczsm", (0.730, 1.456, 0.367, 0.958)),
    "ZSM-D": Method("fczsm-d", (0.696, 1.359, 0.365, 0.960), dynamic=True),
    "ZSM-S": Method("fczsm-s", (0.676, 1.333, 0.347, 0.960), static=True),
    "ZSM-DS": Method("fczsm-ds", (0.675, 1.318, 0.354, 0.960), dynamic=True, static=True),
}
# Table 3: MSE of the baseline and of the method. DCN is the network of Serifi et al. (2021), on their data in g/m^2.
REDUCTIONS = {
    "DCN": (1.740, 0.649),
    **{
        name: (2.452, cast(tuple, METHODS[name].published)[0])
        for name in ("UNet", "UNet3D", "ZSM", "ZSM-D", "ZSM-S", "ZSM-DS")
    },
}
# Pairs (better, worse) in the ranking of the paper.
PAPER_RANKING = (
    ("UNet", "trilinear"), ("UNet3D", "UNet"), ("ZSM", "UNet3D"), ("ZSM-D", "ZSM"), ("ZSM-S", "ZSM"),
    ("ZSM-DS", "ZSM"), ("ZSM-S", "ZSM-D"), ("ZSM-DS", "ZSM-S"), ("ZSM", "advection"),
)  # fmt: skip
# Number of the figure with curves -> (methods, number of the figure with maps).
FIGURES = {
    "07": (("UNet", "UNet3D", "ZSM"), "08-09"),
    "10": (("ZSM", "ZSM-D", "ZSM-S", "ZSM-DS"), "11-12"),
}
# Small networks, with a thirtieth to an eightieth of the paper's parameters.
_SMALL: dict[str, dict[str, Any]] = {
    "fczsm": {
        "num_features": 16, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 3,
        "lstm_alignment": "plain",
    },
    "unet": {"width": 12},
    "unet3d": {"width": 8},
}  # fmt: skip
_VALIDATIONS = 8  # validations of the training of a small network


def make_network_options(name: str, budget: str, dynamics: int, statics: int) -> dict[str, Any]:
    """Return the network options that differ from the preset.

    Args:
        name: the method.
        budget: with "paper" the network has its full size, otherwise it is small.
        dynamics: number of dynamic channels.
        statics: number of static channels.
    """
    method = METHODS[name]
    options = {} if budget == PAPER else dict(_SMALL[cast(str, method.preset).split("-")[0]])
    if method.dynamic:
        options["in_channels"] = 1 + dynamics
    if method.static:
        options["static_channels"] = statics
    return options


def load_paper_config(name: str, path: str) -> TrainingConfig:
    """Load the shipped training configuration of a method, which follows the paper."""
    return parse_arguments(["--config", cast(str, METHODS[name].preset), "--data.path", path])


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
        given = ("blocks", "var", "split", "fixed_samples", "split_seed", "minimum_echo")
        data = dataclasses.replace(
            paper.data,
            statics=data.statics if method.static else [],
            dynamics=data.dynamics if method.dynamic else {},
            **{key: getattr(data, key) for key in given},
        )
        options = paper.model.options | make_network_options(name, budget, len(data.dynamics), len(data.statics))
        model = dataclasses.replace(paper.model, options=options)
        return dataclasses.replace(paper, data=data, model=model, max_steps=steps, **run)
    batch = 4
    data = dataclasses.replace(
        data,
        statics=data.statics if method.static else [],
        dynamics=data.dynamics if method.dynamic else {},
        scales=[1],
        intervals=[1],
        modes=["dbz"],
        batch_size=batch,
        epoch_samples=batch * max(1, -(-steps // _VALIDATIONS)),
        validation_samples=32,
        workers=0,
    )
    options = make_network_options(name, budget, len(data.dynamics), len(data.statics))
    return TrainingConfig(
        data, ModelConfig(cast(str, method.preset), options), loss="mse", max_steps=steps, learning_rate=2e-3,
        ema_decay=0.0, warmup_steps=min(50, steps // 10 + 1), **run,
    )  # fmt: skip


def get_width(model: Network) -> int:
    """Return the number of features of a network's first level."""
    return model.config.get("num_features") or model.config["width"]

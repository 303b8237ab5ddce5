# SPDX-License-Identifier: Apache-2.0
"""Architectures and presets by name."""

import difflib
from typing import Any

from torch import nn

from fastds._argument_types import check_types, get_annotations
from fastds._suggestions import resolve_name
from fastds.models import db_rnn, mlcast
from fastds.models.baselines.super_resolution import SRCNN, SRResNet
from fastds.models.baselines.unet import UNet, UNet3D
from fastds.models.card import Network
from fastds.models.db_rnn.sim_vp import SimVP
from fastds.models.ensembles import ErrorModel
from fastds.models.fczsm import FCZSM
from fastds.models.inr import FixedRatioDownscaler, INRDownscaler
from fastds.models.wgan_gp import HumidityCritic, HumidityGenerator

# The architectures of each task in fastds.models.card.TASK_NAMES.
TASKS: dict[str, tuple[type[nn.Module], ...]] = {
    "radar": (FCZSM, UNet, UNet3D),
    "nowcast": (
        db_rnn.DBRNN, db_rnn.LagrangianRNN, db_rnn.MSRNN, db_rnn.StagedRNN, mlcast.MLCastConvGRU, SimVP,
    ),
    "fields": (FixedRatioDownscaler, INRDownscaler),
    "humidity": (HumidityGenerator, SRCNN, SRResNet),
}  # fmt: skip
# Network classes by their name in weights files. Each class takes its configuration as keyword arguments and stores
# them in the attribute `config`.
ARCHITECTURES: dict[str, type[nn.Module]] = {
    **{kind.__name__: kind for kinds in TASKS.values() for kind in kinds},
    "ErrorLaw": ErrorModel,  # the name in existing weights files
    "HumidityCritic": HumidityCritic,
}

# Presets: name of the architecture, arguments that differ from its defaults, description.
PRESETS: dict[str, tuple[str, dict, str]] = {
    **db_rnn.PRESETS,
    **mlcast.PRESETS,
    "fczsm": ("FCZSM", {}, "FC-ZSM of the paper, reflectivity alone (ZSM)."),
    "fczsm-d": ("FCZSM", {"in_channels": 3}, "With dynamic channels: rain probability and measurement height (ZSM-D)."),
    "fczsm-s": ("FCZSM", {"static_channels": 2}, "With static guidance: height and land-sea mask (ZSM-S)."),
    "fczsm-ds": ("FCZSM", {"in_channels": 3, "static_channels": 2}, "With both (ZSM-DS)."),
    "fczsm-small": (
        "FCZSM",
        {
            "num_features": 16,
            "offset_groups": 2,
            "extractor_blocks": 1,
            "reconstruction_blocks": 3,
            "lstm_alignment": "plain",
            "residual": "advection",
            "flow_guided": True,
            "feature_skip": True,
        },
        "Small enough for any machine.",
    ),
    "nowcast-errors": ("ErrorLaw", {}, "Error model of nowcasts, from which ensemble members are drawn."),
    "downscaling-errors": (
        "ErrorLaw",
        {"hidden": 32, "features": 29, "lacking": 1},
        "Error model of downscaled radar fields, from which ensemble members are drawn.",
    ),
    "inr": ("INRDownscaler", {}, "Arbitrary-scale downscaling: EDSR encoder with DPFA, attention decoder."),
    "inr-parity256": (
        "INRDownscaler",
        {"decoder_options": {"width": 256, "heads": 8}},
        "The decoder as wide as those of LIIF and LTE.",
    ),
    "inr-small": (
        "INRDownscaler",
        {
            "encoder_options": {"channels": 32, "blocks": 8},
            "dpfa_count": 2,
            "decoder_options": {"width": 64, "heads": 4, "key_width": 8, "hidden": 1, "slope": True},
        },
        "Arbitrary-scale downscaling for any machine.",
    ),
    "inr-any": (
        "INRDownscaler",
        {
            "in_channels": 1,
            "contrast_window": 9,
            "encoder_options": {"channels": 32, "blocks": 8},
            "dpfa_count": 2,
            "decoder_options": {"width": 64, "heads": 4, "key_width": 8, "hidden": 1, "slope": True},
        },
        "inr-small for one variable of any kind, in units of its local variation.",
    ),
    "liif": ("INRDownscaler", {"decoder": "liif", "dpfa": "none"}, "Baseline: LIIF on the same encoder."),
    "lte": ("INRDownscaler", {"decoder": "lte", "dpfa": "none"}, "Baseline: LTE on the same encoder."),
    "ciaosr": ("INRDownscaler", {"decoder": "ciaosr", "dpfa": "none"}, "Baseline: CiaoSR, local, on the same encoder."),
    "metasr": ("INRDownscaler", {"decoder": "metasr", "dpfa": "none"}, "Baseline: MetaSR on the same encoder."),
    "edsr-x2": ("FixedRatioDownscaler", {"scale": 2}, "Baseline: the same encoder for factor 2 alone."),
    "edsr-x3": ("FixedRatioDownscaler", {"scale": 3}, "Baseline: the same encoder for factor 3 alone."),
    "edsr-x4": ("FixedRatioDownscaler", {"scale": 4}, "Baseline: the same encoder for factor 4 alone."),
    "simvp": ("SimVP", {}, "SimVP, which DB-RNN is compared with."),
    "srcnn": ("SRCNN", {}, "Baseline: SRCNN on bicubic interpolation, x8."),
    "srgan": ("SRResNet", {}, "Baseline: the generator of SRGAN, x8."),
    "srgan-small": (
        "SRResNet",
        {"width": 32, "blocks": 8},
        "Baseline: the generator of SRGAN, as large as wgan-gp-small.",
    ),
    "unet": ("UNet", {}, "U-Net, 64 to 1024 channels, which FC-ZSM is compared with."),
    "unet-32": ("UNet", {"width": 32}, "The same with 32 to 512 channels."),
    "unet3d": ("UNet3D", {}, "U-Net of space and time, which FC-ZSM is compared with."),
    "wgan-gp": ("HumidityGenerator", {}, "Generator of the humidity WGAN-GP, x8."),
    "wgan-gp-small": (
        "HumidityGenerator",
        {
            "width": 32,
            "post_width": 64,
            "pre_blocks": 2,
            "post_blocks": 2,
            "reduction": 8,
            "noise": "learned",
            "noise_std": 0.1,
            "upsampling": "narrow",
            "residual": "center",
        },
        "Small humidity generator on area means, on top of bicubic interpolation.",
    ),
}


def create(name: str, **overrides: Any) -> nn.Module:
    """Build a preset with fresh weights.

    Args:
        name: name of a preset, see `available()`. Case is ignored, and names as the papers write them, such as
            "ZSM-DS", are accepted.
        overrides: arguments of the architecture that replace those of the preset.

    Raises:
        ValueError: If the name is unknown or an argument does not fit the architecture.
    """
    check_types({"name": str}, {"name": name})
    name = resolve_preset(name)
    architecture, config, description = PRESETS[name]
    model: Network = build(architecture, {**config, **overrides})
    model.card.name, model.card.description = name, description
    return model


def resolve_preset(name: str) -> str:
    """Return the name of a preset in the spelling of PRESETS.

    Args:
        name: name of the preset in any case or in the spelling of the papers.

    Raises:
        ValueError: If there is no preset of this name.
    """
    found = resolve_name(str(name), PRESETS)
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), PRESETS, n=4, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"there is no preset {name!r}; {meant}fastds.models.available() lists all {len(PRESETS)}")
    return found


def find_task(name: str) -> str:
    """Return the task of a preset: "radar", "nowcast", "fields" or "humidity"; "" for presets without a task."""
    kind = ARCHITECTURES[PRESETS[resolve_preset(name)][0]]
    return next((task for task, kinds in TASKS.items() if kind in kinds), "")


def find_architecture(kind: type[nn.Module]) -> str | None:
    """Return the name of a class in weights files, or None if weights files cannot hold it."""
    return next((name for name, known in ARCHITECTURES.items() if known is kind), None)


def build(architecture: str, config: dict) -> nn.Module:
    """Build an architecture by name from its configuration.

    Args:
        architecture: key of ARCHITECTURES.
        config: keyword arguments of the class.

    Raises:
        ValueError: If the architecture is unknown, or if an argument is unknown or has a wrong type or value.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}")
    check_types(get_annotations(ARCHITECTURES[architecture]), config)
    try:
        return ARCHITECTURES[architecture](**config)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:  # for example sizes that torch rejects, or 0 groups
        raise ValueError(f"{architecture} cannot be built from the configuration {config}: {error}") from None

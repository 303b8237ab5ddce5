# SPDX-License-Identifier: Apache-2.0
"""Names of architectures and presets."""

import difflib
from typing import Any

from torch import nn

from fastds._argument_types import check_types, get_annotations
from fastds._suggestions import resolve_name
from fastds.models import db_rnn, mlcast
from fastds.models.baselines.super_resolution import SRCNN, SRResNet
from fastds.models.baselines.unet import UNet, UNet3D
from fastds.models.db_rnn.sim_vp import SimVP
from fastds.models.ensembles import ErrorLaw
from fastds.models.fczsm import FCZSM
from fastds.models.inr import FixedRatioDownscaler, INRDownscaler
from fastds.models.wgan_gp import HumidityCritic, HumidityGenerator

# By the task that they are for.
TASKS: dict[str, tuple[type[nn.Module], ...]] = {
    "radar": (FCZSM, UNet, UNet3D),
    "nowcast": (
        db_rnn.DBRNN, db_rnn.LagrangianRNN, db_rnn.MSRNN, db_rnn.StagedRNN, mlcast.MLCastConvGRU, SimVP,
    ),
    "fields": (FixedRatioDownscaler, INRDownscaler),
    "humidity": (HumidityGenerator, SRCNN, SRResNet),
}  # fmt: skip
_OF_OTHERS = (ErrorLaw, HumidityCritic)  # networks
# Classes that a checkpoint may name; each takes its config as keyword arguments and keeps it as .config.
ARCHITECTURES: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kinds in (*TASKS.values(), _OF_OTHERS) for kind in kinds
}

# Named configurations: architecture, what differs from its defaults, one sentence.
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
    "nowcast-errors": ("ErrorLaw", {}, "Error model of nowcasts, which members are drawn from."),
    "downscaling-errors": (
        "ErrorLaw",
        {"hidden": 32, "features": 29, "lacking": 1},
        "Error model of downscaled radar fields, which members are drawn from.",
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
        name: of a preset, see available(), in any case, or as the papers write it, such as "ZSM-DS".
        overrides: arguments of the architecture that replace the preset's.

    Raises:
        ValueError: unknown name or argument.
    """
    check_types({"name": str}, {"name": name})
    name = check_preset(name)
    architecture, config, description = PRESETS[name]
    model = build(architecture, {**config, **overrides})
    model.card.name, model.card.description = name, description
    return model


def check_preset(name: str) -> str:
    """The preset that a name stands for, see create. Raises: ValueError for a name that is none."""
    found = resolve_name(str(name), PRESETS)
    if found is None:
        near = difflib.get_close_matches(str(name).lower(), PRESETS, n=4, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"there is no preset {name!r}; {meant}fastds.models.available() lists all {len(PRESETS)}")
    return found


def task_of(name: str) -> str:
    """The task of a preset, "radar", "nowcast", "fields" or "humidity"; "" where it has none."""
    kind = ARCHITECTURES[PRESETS[check_preset(name)][0]]
    return next((task for task, kinds in TASKS.items() if kind in kinds), "")


def build(architecture: str, config: dict) -> nn.Module:
    """Build an architecture by name from its config.

    Raises:
        ValueError: unknown architecture, an argument it does not take or whose type or size is none.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}")
    check_types(get_annotations(ARCHITECTURES[architecture]), config)
    try:
        return ARCHITECTURES[architecture](**config)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:  # sizes that torch refuses, 0 groups
        raise ValueError(f"{architecture} cannot be built from the configuration {config}: {error}") from None

# SPDX-License-Identifier: Apache-2.0
"""Names of architectures and presets."""

from torch import nn

from fastds.models.fczsm import FCZSM

# Classes that a checkpoint may name; each takes its config as keyword arguments and keeps it as .config.
ARCHITECTURES: dict[str, type[nn.Module]] = {"FCZSM": FCZSM}

# Named configurations: architecture, what differs from its defaults, one sentence.
PRESETS: dict[str, tuple[str, dict, str]] = {
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
        "Small enough for any machine; its weights are shipped.",
    ),
}


def create(name: str, **overrides) -> nn.Module:
    """Build a preset with fresh weights.

    Args:
        name: of a preset, see available().
        overrides: arguments of the architecture that replace the preset's.

    Raises:
        ValueError: unknown name or argument.
    """
    if name not in PRESETS:
        raise ValueError(f"name must be one of {sorted(PRESETS)}, got {name!r}")
    architecture, config, description = PRESETS[name]
    model = build(architecture, {**config, **overrides})
    model.card.name, model.card.description = name, description
    return model


def build(architecture: str, config: dict) -> nn.Module:
    """Build an architecture by name from its config.

    Raises:
        ValueError: unknown architecture or an argument it does not take.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got {architecture!r}")
    try:
        return ARCHITECTURES[architecture](**config)
    except TypeError as error:
        raise ValueError(f"{architecture} cannot be built from the configuration {config}: {error}") from None

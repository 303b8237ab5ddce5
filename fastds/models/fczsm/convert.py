# SPDX-License-Identifier: Apache-2.0
"""Load checkpoints of the original Zooming Slow-Mo."""

import re

from torch import Tensor

# Patterns of keys in the original checkpoint, each with the name of the layer in FCZSM. In the original's aligners,
# layers with suffix _1 warp the earlier frame or the input of the recurrence. Layers with suffix _2 warp the later
# frame or the recurrent state.
_PATTERNS = (
    (r"conv_first", "extractor.conv"),
    (r"feature_extraction\.(\d+)", r"extractor.blocks.\1"),
    (r"fea_L(\d)_conv([12])", None),
    (r"pcd_align", "interpolation"),
    (r"fusion", "interpolation.mix"),
    (r"ConvBLSTM\.forward_net\.pcd_([hc])\.pcd_align", r"lstm.align_\1"),
    (r"ConvBLSTM\.forward_net\.pcd_([hc])\.fusion", r"lstm.align_\1.mix"),
    (r"ConvBLSTM\.forward_net\.pcd_([hc])\.fea_L(\d)_conv([12])", None),
    (r"ConvBLSTM\.forward_net\.cell_list\.0\.conv", "lstm.gates"),
    (r"ConvBLSTM\.conv_1x1", "lstm.merge"),
    (r"recon_trunk\.(\d+)", r"reconstruction.blocks.\1"),
    (r"upconv1", "reconstruction.up.convs.0"),
    (r"upconv2", "reconstruction.up.convs.1"),
    (r"HRconv", "reconstruction.hidden"),
    (r"conv_last", "reconstruction.last"),
)
_LAYERS = {"offset_conv1": "guide_in", "offset_conv2": "guide_mix", "offset_conv3": "guide_out", "fea_conv": "fuse"}
_ALIGNER = re.compile(r"(.*)\.L(\d)_(offset_conv[123]|dcnpack|fea_conv)_([12])\.(.+)")
_PYRAMID = re.compile(r"(?:ConvBLSTM\.forward_net\.pcd_([hc])\.)?fea_L([23])_conv([12])\.(.+)")


def rename_key(key: str) -> str:
    """Return the key in the state dict of FCZSM for a key of the original checkpoint.

    Raises:
        ValueError: If the original has no such key.
    """
    pyramid = _PYRAMID.fullmatch(key)
    if pyramid:
        state, level, number, rest = pyramid.groups()
        owner = f"lstm.align_{state}" if state else "interpolation"
        return f"{owner}.pyramid.{'down' if number == '1' else 'conv'}{level}.{rest}"
    aligner = _ALIGNER.fullmatch(key)
    if aligner:
        owner, level, layer, direction, rest = aligner.groups()
        layer = "deform" if layer == "dcnpack" else _LAYERS[layer]
        owner = _map_owner(owner)
        name = f"way{direction}" if owner == "interpolation" else {"1": "x_way", "2": "state_way"}[direction]
        return f"{owner}.{name}.levels.{int(level) - 1}.{layer}.{rest}"
    owner, _, rest = key.rpartition(".")
    if re.search(r"\.conv[12]$", owner) and not owner.startswith("ConvBLSTM"):
        owner, _, layer = owner.rpartition(".")
        rest = f"{layer}.{rest}"
    return f"{_map_owner(owner)}.{rest}"


def _map_owner(name: str) -> str:
    for pattern, replacement in _PATTERNS:
        match = re.fullmatch(pattern, name)
        if match and replacement:
            return match.expand(replacement)
    raise ValueError(f"state_dict has the key {name!r}, which Zooming Slow-Mo does not have")


def convert(state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Convert a state dict of the original Zooming Slow-Mo.

    Features, offset groups, block counts and channels are inferred from the shapes. A prefix "module." of data-parallel
    training is removed.

    Args:
        state_dict: tensors by name.

    Returns:
        The configuration of FCZSM (scale 4) and its state dict.

    Raises:
        ValueError: If a key is unknown or missing.
    """
    state = {rename_key(key.removeprefix("module.")): tensor for key, tensor in state_dict.items()}
    try:
        return _infer_config(state), state
    except KeyError as error:
        raise ValueError(f"state_dict lacks the key for {error}: it is no Zooming Slow-Mo checkpoint") from None


def _infer_config(state: dict[str, Tensor]) -> dict:
    """Infer the configuration from a state dict with the keys of FCZSM."""

    def blocks(owner: str) -> int:
        return len({key.split(".")[2] for key in state if key.startswith(f"{owner}.blocks.")})

    first, last = state["extractor.conv.weight"], state["reconstruction.last.weight"]
    offsets = state["interpolation.way1.levels.0.deform.conv_offset_mask.bias"]
    return {
        "in_channels": first.shape[1],
        "out_channels": last.shape[0],
        "num_features": first.shape[0],
        "offset_groups": offsets.shape[0] // 27,
        "extractor_blocks": blocks("extractor"),
        "reconstruction_blocks": blocks("reconstruction"),
        "scale": 4,
        "head_features": state["reconstruction.hidden.weight"].shape[1],
    }

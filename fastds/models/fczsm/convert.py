# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with the key names of the original Zooming Slow-Mo."""

import re

from torch import Tensor

# Key patterns of the original and what they are called here. In the aligners _1 is the way that deforms the first
# argument (the earlier frame, or the recurrence's input), _2 the way that deforms the second.
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


def rename(key: str) -> str:
    """The name here of a key of the original.

    Raises:
        ValueError: a key the original does not have.
    """
    pyramid = _PYRAMID.fullmatch(key)
    if pyramid:
        state, level, number, rest = pyramid.groups()
        owner = f"lstm.align_{state}" if state else "interpolation"
        return f"{owner}.pyramid.{'down' if number == '1' else 'conv'}{level}.{rest}"
    aligner = _ALIGNER.fullmatch(key)
    if aligner:
        owner, level, layer, way, rest = aligner.groups()
        layer = "deform" if layer == "dcnpack" else _LAYERS[layer]
        owner = _owner(owner)
        name = f"way{way}" if owner == "interpolation" else {"1": "x_way", "2": "state_way"}[way]
        return f"{owner}.{name}.levels.{int(level) - 1}.{layer}.{rest}"
    owner, _, rest = key.rpartition(".")
    if re.search(r"\.conv[12]$", owner) and not owner.startswith("ConvBLSTM"):
        owner, _, layer = owner.rpartition(".")
        rest = f"{layer}.{rest}"
    return f"{_owner(owner)}.{rest}"


def _owner(name: str) -> str:
    for pattern, replacement in _PATTERNS:
        match = re.fullmatch(pattern, name)
        if match and replacement:
            return match.expand(replacement)
    raise ValueError(f"state_dict has the key {name!r}, which Zooming Slow-Mo does not have")


def convert(state_dict: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Configuration of FCZSM (scale 4) and its state, from a state dict of the original Zooming Slow-Mo.

    Features, offset groups, block counts and channels are read off the shapes; a "module." prefix of data-parallel
    training is dropped.

    Raises:
        ValueError: a key is unknown or missing.
    """
    state = {rename(key.removeprefix("module.")): tensor for key, tensor in state_dict.items()}
    try:
        return _config(state), state
    except KeyError as error:
        raise ValueError(f"state_dict lacks what is {error} here: it is no Zooming Slow-Mo checkpoint") from None


def _config(state: dict[str, Tensor]) -> dict:
    """Configuration of the renamed state."""

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

# SPDX-License-Identifier: Apache-2.0
"""Tests of the conversion of checkpoints with the key names of the original Zooming Slow-Mo."""

import pytest
import torch

from fastds.models import FCZSM


def original_state(n=64, groups=8, front=5, back=40, head=64, prefix="") -> dict[str, torch.Tensor]:
    """Return random tensors with the names and shapes of the original state dict (3 channels, factor 4)."""
    convs = {"conv_first": (n, 3, 3)}
    convs |= {f"feature_extraction.{i}.conv{k}": (n, n, 3) for i in range(front) for k in (1, 2)}
    convs |= {f"recon_trunk.{i}.conv{k}": (n, n, 3) for i in range(back) for k in (1, 2)}
    for owner in ("", "ConvBLSTM.forward_net.pcd_h.", "ConvBLSTM.forward_net.pcd_c."):
        convs |= {f"{owner}fea_L{level}_conv{k}": (n, n, 3) for level in (2, 3) for k in (1, 2)}
        convs[f"{owner}fusion"] = (n, 2 * n, 1)
        for way in (1, 2):
            for level in (1, 2, 3):
                layer = f"{owner}pcd_align.L{level}_"
                convs[f"{layer}offset_conv1_{way}"] = (n, 2 * n, 3)
                convs[f"{layer}offset_conv2_{way}"] = (n, n if level == 3 else 2 * n, 3)
                convs[f"{layer}dcnpack_{way}"] = (n, n, 3)
                convs[f"{layer}dcnpack_{way}.conv_offset_mask"] = (27 * groups, n, 3)
                if level < 3:
                    convs[f"{layer}offset_conv3_{way}"] = (n, n, 3)
                    convs[f"{layer}fea_conv_{way}"] = (n, 2 * n, 3)
    convs["ConvBLSTM.forward_net.cell_list.0.conv"] = (4 * n, 2 * n, 3)
    convs["ConvBLSTM.conv_1x1"] = (n, 2 * n, 1)
    convs |= {
        "upconv1": (4 * n, n, 3),
        "upconv2": (4 * head, n, 3),
        "HRconv": (head, head, 3),
        "conv_last": (3, head, 3),
    }
    state = {}
    for name, (out, channels, k) in convs.items():
        state[f"{prefix}{name}.weight"] = 0.05 * torch.randn(out, channels, k, k)
        state[f"{prefix}{name}.bias"] = 0.05 * torch.randn(out)
    return state


# One key of each kind and where it belongs.
PLACES = {
    "conv_first.weight": "extractor.conv.weight",
    "feature_extraction.1.conv2.bias": "extractor.blocks.1.conv2.bias",
    "fea_L2_conv1.weight": "interpolation.pyramid.down2.weight",
    "fea_L3_conv2.weight": "interpolation.pyramid.conv3.weight",
    "pcd_align.L3_offset_conv2_1.weight": "interpolation.way1.levels.2.guide_mix.weight",
    "pcd_align.L1_offset_conv3_2.weight": "interpolation.way2.levels.0.guide_out.weight",
    "pcd_align.L2_dcnpack_2.weight": "interpolation.way2.levels.1.deform.weight",
    "pcd_align.L2_dcnpack_1.conv_offset_mask.bias": "interpolation.way1.levels.1.deform.conv_offset_mask.bias",
    "pcd_align.L1_fea_conv_1.weight": "interpolation.way1.levels.0.fuse.weight",
    "fusion.weight": "interpolation.mix.weight",
    "ConvBLSTM.forward_net.pcd_h.fea_L3_conv1.weight": "lstm.align_h.pyramid.down3.weight",
    "ConvBLSTM.forward_net.pcd_h.pcd_align.L1_offset_conv1_1.weight": "lstm.align_h.x_way.levels.0.guide_in.weight",
    "ConvBLSTM.forward_net.pcd_c.pcd_align.L1_offset_conv1_2.weight": "lstm.align_c.state_way.levels.0.guide_in.weight",
    "ConvBLSTM.forward_net.pcd_c.fusion.weight": "lstm.align_c.mix.weight",
    "ConvBLSTM.forward_net.cell_list.0.conv.weight": "lstm.gates.weight",
    "ConvBLSTM.conv_1x1.weight": "lstm.merge.weight",
    "recon_trunk.0.conv1.weight": "reconstruction.blocks.0.conv1.weight",
    "upconv1.weight": "reconstruction.up.convs.0.weight",
    "upconv2.weight": "reconstruction.up.convs.1.weight",
    "HRconv.weight": "reconstruction.hidden.weight",
    "conv_last.bias": "reconstruction.last.bias",
}


def test_the_original_configuration():
    state = original_state()
    model = FCZSM.from_zooming_slomo(state)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in state.values()) == 11_102_771
    assert {k: model.config[k] for k in ("in_channels", "out_channels", "scale", "num_features", "offset_groups")} == {
        "in_channels": 3, "out_channels": 3, "scale": 4, "num_features": 64, "offset_groups": 8,
    }  # fmt: skip
    assert (model.config["extractor_blocks"], model.config["reconstruction_blocks"]) == (5, 40)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data-parallel"])
def test_converted_state_dict_has_every_key(prefix):
    state = original_state(n=8, groups=2, front=2, back=1, head=12, prefix=prefix)
    model = FCZSM.from_zooming_slomo(state)
    ours = model.state_dict()
    assert len(ours) == len(state) and model.config["head_features"] == 12
    for theirs, place in PLACES.items():
        assert torch.equal(ours[place], state[prefix + theirs]), theirs
    assert model(torch.rand(1, 2, 3, 8, 8)).shape == (1, 3, 3, 32, 32)


def test_convert_names_mismatched_entries():
    state = original_state(n=8, groups=2, front=1, back=1)
    with pytest.raises(ValueError, match="has the key 'decoder', which Zooming Slow-Mo does not have"):
        FCZSM.from_zooming_slomo({**state, "decoder.weight": torch.zeros(1)})
    without = {k: v for k, v in state.items() if k != "fusion.bias"}
    with pytest.raises(ValueError, match=r"missing \['interpolation.mix.bias'\]"):
        FCZSM.from_zooming_slomo(without)
    with pytest.raises(ValueError, match=r"interpolation.mix.bias of shape \(3,\), expected \(8,\)"):
        FCZSM.from_zooming_slomo({**state, "fusion.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="it is no Zooming Slow-Mo checkpoint"):
        FCZSM.from_zooming_slomo({"conv_first.weight": torch.zeros(8, 3, 3, 3)})

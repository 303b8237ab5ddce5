# SPDX-License-Identifier: Apache-2.0
"""Layers around the ops of fastds.ops, for any PyTorch model.

* Convolutions with a fused epilogue: Conv3x3, Conv1x1, ResidualBlock, PixelShuffleUpsample.
* Convolutions of any odd size, also with groups: Conv2d.
* Deformable convolutions: DeformConv2d, and GuidedDeformConv2d, which computes its offsets.
* Recurrent cells: ConvLSTMCell, ConvGRUCell; their method `sequence` runs them over time.
* Decoders that evaluate feature maps at any point: LocalAttentionDecoder, LocalEnsembleDecoder.

Layers that also exist in torch or torchvision have the same parameters. help(fastds.nn.NAME) shows the formula and the
shapes of a layer.
"""

from fastds.nn.convolutions import Conv1x1, Conv2d, Conv3x3, PixelShuffleUpsample, ResidualBlock
from fastds.nn.deform_conv2d import DeformConv2d, GuidedDeformConv2d
from fastds.nn.local_decoders import LocalAttentionDecoder, LocalEnsembleDecoder
from fastds.nn.recurrent import ConvGRUCell, ConvLSTMCell

__all__ = [
    "Conv1x1", "Conv2d", "Conv3x3", "ConvGRUCell", "ConvLSTMCell", "DeformConv2d", "GuidedDeformConv2d",
    "LocalAttentionDecoder", "LocalEnsembleDecoder", "ResidualBlock", "PixelShuffleUpsample",
]  # fmt: skip

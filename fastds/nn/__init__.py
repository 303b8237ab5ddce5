# SPDX-License-Identifier: Apache-2.0
"""Layers with weights around the ops of fastds.ops, for any PyTorch model.

Convolutions with what follows them in the same pass (Conv3x3, Conv1x1, ResidualBlock, SubPixel) and of any size and
groups (Conv2d); deformable convolutions (DeformConv2d; GuidedDeformConv2d makes the offsets itself); recurrent cells
(ConvLSTMCell, ConvGRUCell; .sequence runs them over time); decoders that read feature maps at any point
(LocalAttentionDecoder, LocalEnsembleDecoder).

Where torch or torchvision has the same layer, its weights fit. help(fastds.nn.NAME) gives formula and shapes.
"""

from fastds.nn.convolutions import Conv1x1, Conv2d, Conv3x3, ResidualBlock, SubPixel
from fastds.nn.deform_conv2d import DeformConv2d, GuidedDeformConv2d
from fastds.nn.local_decoders import LocalAttentionDecoder, LocalEnsembleDecoder
from fastds.nn.recurrent import ConvGRUCell, ConvLSTMCell

__all__ = [
    "Conv1x1", "Conv2d", "Conv3x3", "ConvGRUCell", "ConvLSTMCell", "DeformConv2d", "GuidedDeformConv2d",
    "LocalAttentionDecoder", "LocalEnsembleDecoder", "ResidualBlock", "SubPixel",
]  # fmt: skip

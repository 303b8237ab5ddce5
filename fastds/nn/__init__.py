# SPDX-License-Identifier: Apache-2.0
"""Modules around the ops."""

from fastds.nn.convolutions import Conv1x1, Conv3x3, ResidualBlock, SubPixel
from fastds.nn.deform_conv2d import DeformConv2d, GuidedDeformConv2d
from fastds.nn.local_decoders import LocalAttentionDecoder, LocalEnsembleDecoder
from fastds.nn.recurrent import ConvGRUCell, ConvLSTMCell

__all__ = [
    "Conv1x1", "Conv3x3", "ConvGRUCell", "ConvLSTMCell", "DeformConv2d", "GuidedDeformConv2d",
    "LocalAttentionDecoder", "LocalEnsembleDecoder", "ResidualBlock", "SubPixel",
]  # fmt: skip

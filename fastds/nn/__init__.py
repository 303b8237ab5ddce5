# SPDX-License-Identifier: Apache-2.0
"""Modules around the ops."""

from fastds.nn.conv3x3 import Conv1x1, Conv3x3
from fastds.nn.deform_conv2d import DeformConv2d, GuidedDeformConv2d
from fastds.nn.local_decoders import LocalAttentionDecoder, LocalEnsembleDecoder
from fastds.nn.recurrent import ConvGRUCell, ConvLSTMCell
from fastds.nn.residual_block import ResidualBlock
from fastds.nn.sub_pixel import SubPixel

__all__ = [
    "Conv1x1", "Conv3x3", "ConvGRUCell", "ConvLSTMCell", "DeformConv2d", "GuidedDeformConv2d",
    "LocalAttentionDecoder", "LocalEnsembleDecoder", "ResidualBlock", "SubPixel",
]  # fmt: skip

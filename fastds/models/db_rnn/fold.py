# SPDX-License-Identifier: Apache-2.0
"""The embedding of a frame inside the first cell's convolutions.

Emb is 1x1 from one channel, so W * (Emb frame) = W_fold * (frame, 1) with two input channels in the place of C: at
hidden 24 a sixth of a ConvLSTM module's multiply-adds. The channel of ones carries the embedding's bias, right at the
zero-padded border, too.
"""

import torch
from torch import Tensor

from fastds.nn.conv3x3 import Conv1x1
from fastds.nn.summed_conv import SummedConv3x3


def with_ones(frame: Tensor) -> Tensor:
    """(B, 1, H, W) -> (frame, 1), (B, 2, H, W), channels_last."""
    return torch.cat([frame, torch.ones_like(frame)], 1).contiguous(memory_format=torch.channels_last)


def fold_embedding(conv: SummedConv3x3, embed: Conv1x1) -> Tensor:
    """Weight of `conv` for the sources (frame, 1), rest, in the place of embed(frame), rest."""
    first = conv.in_channels[0]
    columns = torch.cat([embed.weight[:, 0, 0], embed.bias[:, None]], 1)  # (C, 2)
    own = torch.einsum("ocyx,ck->okyx", conv.weight[:, :first], columns)
    return torch.cat([own, conv.weight[:, first:]], 1)

# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution of a field whose border goes on as the field does."""

from torch import Tensor

from fastds.nn.conv3x3 import Conv3x3
from fastds.ops import conv3x3


class BorderConv(Conv3x3):
    """3x3 convolution whose border is continued as the field is: "replicate", "circular_x" or "zeros"."""

    def __init__(self, in_channels: int, out_channels: int, padding_mode: str):
        super().__init__(in_channels, out_channels)
        self.padding_mode = padding_mode

    def forward(self, x: Tensor, residual: Tensor | None = None, act: str | None = None) -> Tensor:
        options = {"residual": residual, "act": act, "padding_mode": self.padding_mode}
        return conv3x3(x, self.weight, self.bias, **options)

# SPDX-License-Identifier: Apache-2.0
"""Residual block without normalisation."""

from torch import Tensor, nn

from fastds.nn.conv3x3 import Conv3x3


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between them and a skip around both.

    y = x + conv2(relu(conv1(x)))

    Args:
        channels: C.

    Shapes: (B, C, H, W) -> (B, C, H, W). Weights start Kaiming-normal (fan in) times 0.1, biases at zero.

    Source: Lim et al. 2017 (EDSR); Chen, Qin and Dai 2022, feature extractor and reconstruction.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, a=0, mode="fan_in")
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, act="relu"), residual=x)

# SPDX-License-Identifier: Apache-2.0
"""SimVP, a nowcasting network without recurrence, as a peer of DB-RNN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.card import ModelCard
from fastds.models.db_rnn.module import pad_to_multiple
from fastds.models.db_rnn.network import NowcastModel, check_frames
from fastds.models.graph_cache import capturable
from fastds.nn.convolutions import Conv1x1, Conv2d, Conv3x3

SLOPE = 0.2  # negative slope of all leaky ReLUs


class ConvNormAct(nn.Module):
    """Convolution, group normalisation and leaky ReLU."""

    def __init__(self, conv: nn.Module, outputs: int, groups: int = 2):
        super().__init__()
        self.conv, self.norm = conv, nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


def build_encoder_layers(channels: int) -> list[nn.Module]:
    """Build the three encoder layers after the first one; two of them halve the resolution."""
    halves = (nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
    convs = (next(halves), Conv3x3(channels, channels), next(halves))
    return [ConvNormAct(conv, channels) for conv in convs]


def build_decoder_layers(channels: int) -> list[nn.Module]:
    """Build the three decoder layers before the last one; two of them double the resolution."""
    doubles = (nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1) for _ in range(2))
    convs = (next(doubles), Conv3x3(channels, channels), next(doubles))
    return [ConvNormAct(conv, channels) for conv in convs]


class Inception(nn.Module):
    """Sum of grouped convolutions of several kernel sizes after one 1x1 convolution."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernels: tuple[int, ...], groups: int):
        super().__init__()
        self.squeeze = Conv1x1(inputs, hidden)
        convs = (Conv2d(hidden, outputs, k, padding="same", groups=groups) for k in kernels)
        self.branches = nn.ModuleList(ConvNormAct(conv, outputs, groups) for conv in convs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return sum(branch(x) for branch in self.branches)


class Translator(nn.Module):
    """U-shaped stack of inception blocks on the features of all frames, stacked along the channels."""

    def __init__(self, channels: int, hidden: int, blocks: int, kernels: tuple[int, ...], groups: int):
        super().__init__()

        def block(inputs: int, outputs: int) -> Inception:
            return Inception(inputs, hidden // 2, outputs, kernels, groups)

        self.down = nn.ModuleList([block(channels, hidden), *(block(hidden, hidden) for _ in range(blocks - 1))])
        middle = (block(2 * hidden, hidden) for _ in range(blocks - 2))
        self.up = nn.ModuleList([block(hidden, hidden), *middle, block(2 * hidden, channels)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for block in self.up[1:]:
            x = block(torch.cat([x, skips.pop()], 1))
        return x


class SimVP(NowcastModel):
    """SimVP: one encoder for each frame, one translator for all features, one decoder for each frame.

    The defaults have 38.9 million parameters, as in Table VII of the DB-RNN paper.

    Args:
        frames: number of input frames and of output frames of one pass, m = n.
        spatial: channels of encoder and decoder, even.
        temporal: channels of the translator, a multiple of 2 * groups.
        blocks: number N_T of blocks on the way down; the way up has the same number.
        kernels: kernel sizes of the translator's convolutions, odd.
        groups: groups of these convolutions, a divisor of frames * spatial.

    Shapes: forward(frames (B, m, 1, H, W) in [0, 1], steps=n) -> (forecasts (B, n, 1, H, W),), the n frames after the
    input. More than m frames are forecast by further passes over the last m forecasts. Frames of any size are padded
    with dry pixels.

    Source: Gao, Tan, Wu and Li 2022, SimVP: Simpler yet Better Video Prediction; four layers each in encoder and
    decoder, with strides 1, 2, 1, 2 and back.
    """

    multiple = 4
    bits_depend_on_threads = True  # those of torch's strided and grouped convolutions

    def __init__(
        self, frames: int = 5, spatial: int = 64, temporal: int = 512, blocks: int = 3,
        kernels: tuple[int, ...] = (3, 5, 7, 11), groups: int = 4,
    ):  # fmt: skip
        super().__init__()
        if frames < 1 or spatial % 2 or (frames * spatial) % groups or temporal % (2 * groups) or blocks < 2:
            raise ValueError(
                "frames must be positive, spatial even, groups a divisor of frames * spatial and of temporal / 2, "
                f"blocks at least 2, got {frames}, {spatial}, {groups}, temporal {temporal} and {blocks}"
            )
        if any(k % 2 == 0 for k in kernels):
            raise ValueError(f"kernels must be odd, got {tuple(kernels)}")
        self.config = {
            "frames": frames, "spatial": spatial, "temporal": temporal, "blocks": blocks, "kernels": list(kernels),
            "groups": groups,
        }  # fmt: skip
        self.card = ModelCard()
        self.frames = frames
        self.shallow = ConvNormAct(Conv3x3(1, spatial), spatial)
        self.encoder = nn.Sequential(*build_encoder_layers(spatial))
        self.translator = Translator(frames * spatial, temporal, blocks, tuple(kernels), groups)
        self.decoder = nn.Sequential(*build_decoder_layers(spatial))
        self.last = ConvNormAct(Conv3x3(2 * spatial, spatial), spatial)
        self.output = Conv1x1(spatial, 1)
        # The memory format of the feature maps. Otherwise oneDNN reorders the large weights in every pass.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not declare it

    def run_pass(self, frames: Tensor) -> Tensor:
        """Forecast the next m frames: (B, m, 1, H, W) -> (B, m, 1, H, W), with H and W multiples of 4."""
        batch = frames.shape[0]
        x = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        shallow = self.shallow(x)
        deep = self.encoder(shallow)
        deep = self.translator(deep.reshape(batch, -1, *deep.shape[2:])).reshape(deep.shape)
        return self.output(self.last(torch.cat([self.decoder(deep), shallow], 1))).reshape(frames.shape)

    def roll(self, frames: Tensor, steps: int, truth: Tensor | None = None, feed_truth: float = 0.0) -> tuple[Tensor]:
        """Forecast frames, with the interface of the recurrent networks.

        Args:
            frames: (B, m, 1, H, W) in [0, 1].
            steps: number n of frames.
            truth: unused.
            feed_truth: must be 0, because no forecast is fed back frame by frame.

        Returns:
            ((B, n, 1, H, W),).

        Raises:
            ValueError: If feed_truth is above 0, or if frames or steps have a wrong shape or value.
            TypeError: If frames have a wrong dtype.
        """
        if feed_truth > 0:
            raise ValueError("feed_truth must be 0 for SimVP, which feeds no forecast back frame by frame")
        check_frames(frames, steps, self)
        if frames.shape[1] != self.frames:
            raise ValueError(f"frames has {frames.shape[1]} time steps, expected the {self.frames} of the network")
        return (self._roll(frames, steps),)

    @capturable
    def _roll(self, frames: Tensor, steps: int) -> Tensor:
        size, passes = frames.shape[-2:], [pad_to_multiple(frames, self.multiple)]
        for _ in range(-(-steps // self.frames)):
            passes.append(self.run_pass(passes[-1]))
        return torch.cat(passes[1:], 1)[:, :steps, :, : size[0], : size[1]]

    def forward(self, frames: Tensor, steps: int = 5) -> tuple[Tensor]:
        return self.roll(frames, steps)

    def forecast(self, frames: Tensor, steps: int) -> Tensor:
        """Forecast the n frames after the input, (B, n, 1, H, W), clipped to [0, 1]."""
        return self(frames, steps)[0].clamp(0, 1)

# SPDX-License-Identifier: Apache-2.0
"""MLCast's nowcasting network of ConvGRU blocks.

The parameters have the names of mlcast.models.ConvGruModel in mlcast 0.1.0.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._mixins import NowcastMixin
from fastds.models.card import ModelCard
from fastds.models.db_rnn.module import pad_to_multiple
from fastds.models.graph_cache import capturable
from fastds.nn.convolutions import Conv3x3
from fastds.nn.recurrent import run_gru, run_gru_without_input
from fastds.ops import pixel_shuffle, pixel_unshuffle
from fastds.ops.core.layout import get_padding_to_multiple

# Defaults of `mlcast train`: number of input frames, and the reflectivity in dBZ that is scaled to -1 and to 1.
INPUT_STEPS, FLOOR_DBZ, CEILING_DBZ = 6, 0.0, 60.0
LIGHTNING = "network."  # prefix of the keys in a checkpoint of `mlcast train`


def build_card(name: str) -> ModelCard:
    """Build the model card of weights that `mlcast train` trained with its defaults."""
    z = {"name": "reflectivity", "standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}
    return ModelCard(
        name=name, description="Trained by MLCast.", input_variables=[z], output_variables=[z],
        input_steps=INPUT_STEPS, floor_dbz=FLOOR_DBZ, ceiling_dbz=CEILING_DBZ,
    )  # fmt: skip


class Cell(nn.Module):
    """Weights of a ConvGRU whose input and hidden state have C channels.

    [u r] = sigmoid(combined_gates([x; h]));  n = tanh(out_gate([x; r h]));  h' = (1 - u) h + u n
    """

    def __init__(self, channels: int):
        super().__init__()
        self.combined_gates = Conv3x3(2 * channels, 2 * channels)
        self.out_gate = Conv3x3(2 * channels, channels)


class ConvGRU(nn.Module):
    """Run a ConvGRU cell over a sequence.

    Shapes: forward(x (T*B, C, H, W) or None for zeros, h (B, C, H, W), times=T) -> states (T*B, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.cell = Cell(channels)

    def forward(self, x: Tensor | None, h: Tensor | None, times: int) -> Tensor:
        """Run the cell over a sequence.

        Args:
            x: (T*B, C, H, W), input of all steps, or None for zeros.
            h: (B, C, H, W), initial hidden state. None for zeros is allowed only together with an x.
            times: number T of steps.

        Returns:
            (T*B, C, H, W), hidden states of all steps.
        """
        convolutions = self.cell.combined_gates, self.cell.out_gate
        if x is None:
            assert h is not None
            return torch.cat(run_gru_without_input(*convolutions, h, times, keep="1-z"))
        return torch.cat(run_gru(*convolutions, x, h, times, keep="1-z"))


def _draw_noise(state: Tensor, steps: int, members: int) -> Tensor:
    """Return the noise of an ensemble, (steps * members * B, C, h, w).

    Args:
        state: (B, C, h, w), a tensor of the shape, dtype and device of the noise of one member and step.
        steps: number of frames.
        members: number of members.
    """
    shape = (state.shape[0], steps, *state.shape[1:])
    noise = [state.new_empty(shape).normal_() for _ in range(members)]  # one member at a time, as in mlcast
    return torch.stack(noise).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)


class Block(nn.Module):
    """Block of the encoder or the decoder: a ConvGRU."""

    def __init__(self, channels: int):
        super().__init__()
        self.convgru = ConvGRU(channels)


class Coder(nn.Module):
    """Stack of blocks, one for each number of channels."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.blocks = nn.ModuleList(Block(c) for c in channels)


class MLCastConvGRU(NowcastMixin, nn.Module):
    """MLCast's nowcasting network: an encoder of ConvGRU blocks at decreasing resolution and a mirrored decoder.

        e_0 = x;  e_i = unshuffle(ConvGRU_i(e_{i-1})), i = 1 .. n;  d_n = 0 or noise
        d_{i-1} = shuffle(ConvGRU'_i(d_i; state e_i of the last time)); d_0 is the forecast

    Reflectivity from 0 to 60 dBZ is scaled to -1 ... 1. If d_n is zero, its part of the convolutions is skipped. All
    members of an ensemble pass the decoder as one batch. Weights of mlcast load unchanged with load_state_dict or
    from_mlcast. For the same noise the forecasts equal those of mlcast.

    Args:
        input_channels: number C of channels of the frames.
        num_blocks: n. Frames are padded with 0 to multiples of 2^n, as in mlcast.
        noisy_decoder: use noise for d_n also in forecasts without an ensemble.

    Shapes: forward(x (B, T >= 1, C, H, W), steps, ensemble_size=1) -> (B, steps, C * ensemble_size, H, W), members next
    to each other. This is the interface of MLCast's networks, so `mlcast train` accepts the class as its network.

    Source: mlcast-community/mlcast 0.1.0, models/convgru.py (Apache-2.0 or BSD-3-Clause). No code of it is used.
    """

    upright = False  # frames keep the row order of the file, as in the training by mlcast

    def __init__(self, input_channels: int = 1, num_blocks: int = 4, noisy_decoder: bool = False):
        super().__init__()
        for name, value in (("input_channels", input_channels), ("num_blocks", num_blocks)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int >= 1, got {value!r}")
        self.config = {"input_channels": input_channels, "num_blocks": num_blocks, "noisy_decoder": bool(noisy_decoder)}
        self.card = ModelCard()
        self.input_channels, self.num_blocks, self.noisy_decoder = input_channels, num_blocks, bool(noisy_decoder)
        channels = [input_channels * 4**i for i in range(num_blocks + 1)]
        self.encoder, self.decoder = Coder(channels[:-1]), Coder(channels[:0:-1])

    def forward(self, x: Tensor, steps: int, ensemble_size: int = 1) -> Tensor:
        """Forecast frames on the scale of MLCast.

        Args:
            x: (B, T >= 1, C, H, W), input frames, reflectivity from 0 to 60 dBZ scaled to -1 ... 1.
            steps: number of forecast frames.
            ensemble_size: number of members. With more than one member, the decoder uses noise.

        Returns:
            (B, steps, C * ensemble_size, H, W), on the scale of the input. Members follow one another along channels.
        """
        return self._run(x, steps, ensemble_size, ensemble_size > 1 or self.noisy_decoder)

    def _run(self, x: Tensor, steps: int, ensemble_size: int, noisy: bool) -> Tensor:
        self._check(x, steps, ensemble_size)
        batch, _, _, height, width = x.shape
        multiple = 2**self.num_blocks
        x = F.pad(x, (0, get_padding_to_multiple(width, multiple), 0, get_padding_to_multiple(height, multiple)))
        states = self._encode(x)
        x = None  # type: ignore[assignment]  # releases the padded frames
        if noisy:
            x = _draw_noise(states[0], steps, ensemble_size)
            states = [state.repeat(ensemble_size, 1, 1, 1) for state in states]
        y = self._decode(states, steps, x)  # (steps * members * B, C, H, W)
        y = y.unflatten(0, (steps, ensemble_size, batch)).permute(2, 0, 1, 3, 4, 5).flatten(2, 3)
        return y[..., :height, :width]

    def forecast(self, frames: Tensor, steps: int, members: int | None = None) -> Tensor:
        """Forecast frames in the normalisation of fastds.

        Args:
            frames: (B, T, 1, H, W), (dBZ - floor) / (ceiling - floor), clipped to [0, 1]; missing values (NaN) count as
                dry.
            steps: number n of frames.
            members: number of ensemble members, each with its own noise for d_n. None: one forecast, with noise only if
                the decoder is noisy. The noise comes from torch's random generator.

        Returns:
            (B, n, members or 1, H, W), clipped to [0, 1].
        """
        height, width = frames.shape[-2:]
        x = 2 * pad_to_multiple(frames, 2**self.num_blocks).clamp(0, 1) - 1  # forward pads with 0 (30 dBZ)
        y = self._run(x, steps, members or 1, self.noisy_decoder or members is not None)
        return ((y[..., :height, :width] + 1) / 2).clamp(0, 1)

    @capturable
    def _encode(self, x: Tensor) -> list[Tensor]:
        """Return the last output of each encoder block, the deepest first."""
        times, states = x.shape[1], []
        x = x.transpose(0, 1).flatten(0, 1)
        block: Any
        for block in self.encoder.blocks:
            x = pixel_unshuffle(block.convgru(x, None, times), 2)
            states.append(x.unflatten(0, (times, -1))[-1])
        return states[::-1]

    @capturable
    def _decode(self, states: list[Tensor], steps: int, x: Tensor | None) -> Tensor:
        """Run the decoder.

        Args:
            states: result of `_encode`, repeated for each member.
            steps: number of frames.
            x: noise (steps * members * B, C, h, w), or None for one forecast without noise.
        """
        block: Any
        for block, state in zip(self.decoder.blocks, states, strict=True):
            x = pixel_shuffle(block.convgru(x, state, steps), 2)
        assert x is not None  # there is at least one block
        return x

    def _check(self, x: Tensor, steps: int, ensemble_size: int) -> None:
        if not isinstance(x, Tensor) or x.dim() != 5 or x.shape[2] != self.input_channels or 0 in x.shape[1:]:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a Tensor (B, T, {self.input_channels}, H, W) with T, H, W >= 1, got {got}")
        for name, value in (("steps", steps), ("ensemble_size", ensemble_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int >= 1, got {value!r}")

    @classmethod
    def from_mlcast(cls, state: Mapping[str, Tensor], noisy_decoder: bool = False) -> "MLCastConvGRU":
        """Build a model with the weights of an mlcast.models.ConvGruModel and a card for `fastds nowcast`.

        Args:
            state: its state dict, or the "state_dict" of a checkpoint of `mlcast train`, from torch.load(path,
                weights_only=True)["state_dict"].
            noisy_decoder: the argument with which the network was built.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If keys or shapes belong to another network.
        """
        inner = {name.removeprefix(LIGHTNING): value for name, value in state.items()}
        first = inner.get("encoder.blocks.0.convgru.cell.out_gate.weight")
        blocks = sum(name.startswith("encoder.") and name.endswith(".out_gate.bias") for name in inner)
        if first is None or first.dim() != 4 or not blocks:
            raise ValueError("state is no ConvGruModel: it lacks encoder.blocks.0.convgru.cell.out_gate.weight")
        if first.shape[-2:] != (3, 3):
            raise ValueError(f"state has convolutions of {tuple(first.shape[-2:])}, expected (3, 3)")
        model = cls(first.shape[0], blocks, noisy_decoder)
        try:
            model.load_state_dict(inner)
        except RuntimeError as error:
            raise ValueError(f"state does not fit a ConvGruModel of {blocks} blocks: {error}") from None
        model.card = build_card("mlcast-convgru")
        return model.eval()

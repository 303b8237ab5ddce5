# SPDX-License-Identifier: Apache-2.0
"""MS-RNN, DB-RNN and the staged pair: networks that extrapolate a sequence of radar fields."""

import torch
from torch import Tensor, nn

from fastds._mixins import NowcastMixin
from fastds.models.card import ModelCard
from fastds.models.db_rnn.cells import CELLS
from fastds.models.db_rnn.module import ModuleState, MSModule, pad_to_multiple
from fastds.models.inputs import check_input
from fastds.ops.core.buffer_pool import reused_memory
from fastds.ops.impl.conv_cells.fused import recomputed_gates


def check_frames(frames: Tensor, steps: int, model: nn.Module) -> None:
    """Refuses what is no sequence for the model."""
    if not isinstance(frames, Tensor) or frames.dim() != 5 or frames.shape[2] != 1:
        got = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
        raise ValueError(f"frames must be a Tensor (B, T, 1, H, W), got {got}")
    check_input("frames", frames, model)
    if frames.shape[1] < 1:
        raise ValueError("frames has no time step, expected at least one")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int >= 1, got {steps!r}")


class NowcastModel(NowcastMixin, nn.Module):
    """A network with forecast(frames, steps) and a card."""


class _Series:
    """The maps of an output, step by step, as one tensor.

    Without a graph each is copied to its place at once: kept one by one they would fragment the memory, and memory with
    such holes is neither used again nor given back.
    """

    def __init__(self, steps: int):
        self.steps, self.maps, self.whole = steps, [], None

    def append(self, y: Tensor) -> None:
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            if self.whole is None:
                self.whole = y.new_empty(y.shape[0], self.steps, *y.shape[1:])
            y = self.whole[:, len(self.maps)].copy_(y)
        self.maps.append(y)

    def stacked(self) -> Tensor:
        return torch.stack(self.maps, 1) if self.whole is None else self.whole


class _Nowcaster(NowcastModel):
    """The time loop shared by the networks: subclasses give one step."""

    multiple: int
    recompute: bool

    def step(self, frame: Tensor, state: dict) -> tuple[Tensor, ...]:
        """Forecasts of the next frame (B, 1, H, W) from this one; the last is what is fed back. Changes state."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def start(self) -> dict:
        """The state of a new sequence: zeros."""
        raise NotImplementedError(f"{type(self).__name__} has no start")

    def roll(
        self, frames: Tensor, steps: int, truth: Tensor | None = None, feed_truth: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Run over m known frames and n - 1 forecast ones.

        Args:
            frames: (B, m, 1, H, W) in [0, 1]; missing values (NaN) count as dry; any size, padded with dry pixels.
            steps: n, of the forecast.
            truth: (B, n - 1, 1, H, W), the frames after the known ones, for scheduled sampling.
            feed_truth: probability per sample and step that truth stands in for the forecast.

        Returns:
            For each of the step's outputs the forecasts of frames 1 .. m + n - 1, (B, m + n - 1, 1, H, W).
        """
        check_frames(frames, steps, self)
        known, size = frames.shape[1], frames.shape[-2:]
        if feed_truth > 0 and (truth is None or truth.shape[1] < steps - 1):
            raise ValueError(f"truth must hold {steps - 1} frames for scheduled sampling")
        frames = pad_to_multiple(frames, self.multiple)
        truth = pad_to_multiple(truth, self.multiple) if feed_truth > 0 else None
        total = known + steps - 1
        state, series, frame = self.start(), None, None
        with reused_memory(CELLS[self.config["cell"]].alike):
            for t in range(total):
                if t < known:
                    frame = frames[:, t]
                elif feed_truth > 0:
                    use = torch.rand(frame.shape[0], 1, 1, 1, device=frame.device) < feed_truth
                    frame = torch.where(use, truth[:, t - known].to(frame.dtype), frame)
                with recomputed_gates(self.recompute):
                    results = self.step(frame, state)
                series = series or [_Series(total) for _ in results]
                for one, y in zip(series, results, strict=True):
                    one.append(y)
                frame = results[-1]
        return tuple(one.stacked()[..., : size[0], : size[1]] for one in series)

    def forecast(self, frames: Tensor, steps: int, block: int | None = None) -> Tensor:
        """The n frames after the known ones, clipped to [0, 1].

        Args:
            frames: (B, m, 1, H, W).
            steps: n.
            block: None keeps the states and rolls on; else the network starts anew from its last m forecasts after
                every `block` frames.

        Returns:
            (B, n, 1, H, W).
        """
        if block is None:
            return self.roll(frames, steps)[-1][:, -steps:].clamp(0, 1)
        if not isinstance(block, int) or block < 1:
            raise ValueError(f"block must be None or an int >= 1, got {block!r}")
        known = frames.shape[1]
        while frames.shape[1] < known + steps:
            frames = torch.cat([frames, self.forecast(frames[:, -known:], block)], 1)
        return frames[:, known : known + steps]


class MSRNN(_Nowcaster):
    """One MS-RNN module rolled over time: every step forecasts the next frame.

    Args:
        cell: convlstm, convgru, trajgru, predrnn, predrnn++, mim, motionrnn, preciplstm, predrnn-v2, sa-convlstm or
            mk-lstm (MS-LSTM's).
        hidden: channels of every layer.
        cell_options: arguments of the cell, see its class.
        residual: a step forecasts the change of the frame it sees, not the next frame itself (not in the paper).
        recompute: rematerialize gates and resized maps in the backward instead of keeping them: the same numbers.

    Shapes: forward(frames (B, m, 1, H, W) in [0, 1], steps=n) -> (forecasts (B, m + n - 1, 1, H, W),), of the frames
    1 to m + n - 1 after the first; see roll and forecast.

    Source: Ma, Zhang and Liu 2024, DB-RNN, equations 3, 4 and 7; MS-RNN.
    """

    def __init__(
        self, cell: str = "convlstm", hidden: int = 24, cell_options: dict | None = None, residual: bool = False,
        recompute: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.config = {"cell": cell, "hidden": hidden, "cell_options": dict(cell_options or {}), "residual": residual}
        self.config["recompute"] = self.recompute = recompute
        self.card = ModelCard()
        self.module = MSModule(cell, hidden, self.config["cell_options"], residual)
        self.multiple = self.module.multiple

    def start(self) -> dict:
        return {"module": ModuleState()}

    def step(self, frame: Tensor, state: dict[str, ModuleState]) -> tuple[Tensor, ...]:
        y, _ = self.module(frame, state["module"])
        return (y,)

    def forward(
        self, frames: Tensor, steps: int = 5, truth: Tensor | None = None, feed_truth: float = 0.0
    ) -> tuple[Tensor, ...]:
        return self.roll(frames, steps, truth, feed_truth)


class DBRNN(_Nowcaster):
    """Forecasting and deblurring module, trained end to end; what is fed back is the deblurred forecast.

        x_0 = Emb' Y_f + f_5, and + f_{5-l} in the deblurring layer l, f the forecasting module's hidden states

    One zigzag memory runs through all twelve cells and on to the next step.

    Args:
        cell, hidden, cell_options: as MSRNN.
        residual: both modules give changes, the forecaster of its frame, the deblurrer of the forecast.
        recompute: as MSRNN.
        local_zigzag: the forecasting module gets back its own memory of the step before, not the deblurring module's.

    Shapes: forward(frames (B, m, 1, H, W), steps=n) -> (forecasts, deblurred forecasts), each (B, m + n - 1, 1, H, W).

    Source: Ma, Zhang and Liu 2024, DB-RNN, equations 2, 5 and 6.
    """

    def __init__(
        self, cell: str = "convlstm", hidden: int = 24, cell_options: dict | None = None, residual: bool = False,
        local_zigzag: bool = False, recompute: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.config = {"cell": cell, "hidden": hidden, "cell_options": dict(cell_options or {}), "residual": residual}
        self.config["recompute"] = self.recompute = recompute
        self.config["local_zigzag"] = local_zigzag
        self.card = ModelCard()
        options = self.config["cell_options"]
        self.forecaster = MSModule(cell, hidden, options, residual)
        self.deblurrer = MSModule(cell, hidden, options, residual)
        self.local_zigzag = local_zigzag
        self.multiple = self.forecaster.multiple

    def start(self) -> dict:
        return {"forecaster": ModuleState(), "deblurrer": ModuleState()}

    def step(self, frame: Tensor, state: dict[str, ModuleState]) -> tuple[Tensor, ...]:
        own, other = state["forecaster"], state["deblurrer"]
        y, hidden = self.forecaster(frame, own)
        own.m, other.m = own.m if self.local_zigzag else None, own.m
        deblurred, _ = self.deblurrer(y, other, skips=hidden[::-1])
        own.m, other.m = own.m if self.local_zigzag else other.m, None
        return y, deblurred

    def forward(
        self, frames: Tensor, steps: int = 5, truth: Tensor | None = None, feed_truth: float = 0.0
    ) -> tuple[Tensor, ...]:
        return self.roll(frames, steps, truth, feed_truth)


class StagedRNN(NowcastModel):
    """A forecaster and a deblurrer trained one after the other (MS-X-S).

    The forecaster recurses on its own output; the deblurrer runs over its forecasts in order and gives for each the
    frame it stands for, never fed back.

    Args:
        cell, hidden, cell_options: as MSRNN, of both.

    Shapes: forward(frames (B, m, 1, H, W), steps=n) -> (forecasts, deblurred forecasts), each (B, m + n - 1, 1, H, W).

    Source: Ma, Zhang and Liu 2024, DB-RNN, section V-G.
    """

    def __init__(self, cell: str = "convlstm", hidden: int = 24, cell_options: dict | None = None):
        super().__init__()
        self.config = {"cell": cell, "hidden": hidden, "cell_options": dict(cell_options or {})}
        self.card = ModelCard()
        self.forecaster, self.deblurrer = MSRNN(**self.config), MSRNN(**self.config)

    def deblur(self, forecasts: Tensor) -> Tensor:
        """(B, T, 1, H, W) -> the same frames, deblurred."""
        return self.deblurrer.roll(forecasts, 1)[0]

    def forward(self, frames: Tensor, steps: int = 5) -> tuple[Tensor, Tensor]:
        (forecasts,) = self.forecaster.roll(frames, steps)
        return forecasts, self.deblur(forecasts)

    def forecast(self, frames: Tensor, steps: int) -> Tensor:
        """The n frames after the known ones, (B, n, 1, H, W), clipped to [0, 1]."""
        return self(frames, steps)[1][:, -steps:].clamp(0, 1)

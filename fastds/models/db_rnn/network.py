# SPDX-License-Identifier: Apache-2.0
"""MS-RNN, DB-RNN and the staged pair: recurrent networks that extrapolate a sequence of radar frames."""

from typing import Any

import torch
from torch import Tensor, nn

from fastds._mixins import NowcastMixin
from fastds.models.card import ModelCard
from fastds.models.db_rnn.cells import CELLS
from fastds.models.db_rnn.module import ModuleState, MSModule, pad_to_multiple
from fastds.models.graph_cache import capturable
from fastds.models.inputs import check_input
from fastds.ops.core.buffer_pool import reuse_memory
from fastds.ops.impl.conv_rnn.fused import recompute_gates


def check_frames(frames: Tensor, steps: int, model: nn.Module) -> None:
    """Check the input of a nowcasting network.

    Args:
        frames: expected to be (B, T >= 1, 1, H, W), floating-point, and float64 only if the weights are float64.
        steps: expected to be an int >= 1.
        model: the network.

    Raises:
        ValueError: If frames or steps have a wrong shape or value.
        TypeError: If frames have a wrong dtype.
    """
    if not isinstance(frames, Tensor) or frames.dim() != 5 or frames.shape[2] != 1:
        got = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
        raise ValueError(f"frames must be a Tensor (B, T, 1, H, W), got {got}")
    check_input("frames", frames, model)
    if frames.shape[1] < 1:
        raise ValueError("frames has no time step, expected at least one")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int >= 1, got {steps!r}")


class NowcastModel(NowcastMixin, nn.Module):
    """Base class of networks with forecast(frames, steps) and a model card."""

    card: ModelCard
    config: dict[str, Any]


class _FrameBuffer:
    """Collects the output frames of all time steps in one tensor.

    Without gradients each frame is copied into the result at once. Separate frames would fragment the memory.

    Args:
        steps: number of frames.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.maps: list[Tensor] = []
        self.whole: Tensor | None = None

    def append(self, y: Tensor) -> None:
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            if self.whole is None:
                self.whole = y.new_empty(y.shape[0], self.steps, *y.shape[1:])
            y = self.whole[:, len(self.maps)].copy_(y)
        self.maps.append(y)

    def stack(self) -> Tensor:
        return torch.stack(self.maps, 1) if self.whole is None else self.whole


class _Nowcaster(NowcastModel):
    """Time loop that the recurrent networks share. Subclasses define `step` and `init_state`."""

    multiple: int
    recompute: bool

    @property
    def bits_depend_on_threads(self) -> bool:
        """Return whether rounding depends on the number of threads of torch, as in the cell of MotionRNN."""
        return self.config["cell"] == "motionrnn"

    def step(self, frame: Tensor, state: dict) -> tuple[Tensor, ...]:
        """Forecast the next frame.

        Args:
            frame: (B, 1, H, W).
            state: state of the network, modified in place.

        Returns:
            One or more forecasts (B, 1, H, W). The last one is the input of the next step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def init_state(self) -> dict:
        """Return the state of a new sequence, zeros."""
        raise NotImplementedError(f"{type(self).__name__} has no init_state")

    def roll(
        self, frames: Tensor, steps: int, truth: Tensor | None = None, feed_truth: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Run over the m input frames and n - 1 forecast frames.

        Args:
            frames: (B, m, 1, H, W) in [0, 1]. Missing values (NaN) count as dry. Frames of any size are padded with dry
                pixels.
            steps: number n of forecast frames.
            truth: (B, n - 1, 1, H, W), the true frames after the input, for scheduled sampling.
            feed_truth: probability, per sample and step, that the true frame replaces the forecast as input.

        Returns:
            For each output of `step`, the forecasts of frames 1 .. m + n - 1, (B, m + n - 1, 1, H, W).

        Raises:
            ValueError: If frames, steps or truth have a wrong shape or value.
            TypeError: If frames have a wrong dtype.
        """
        check_frames(frames, steps, self)
        if feed_truth > 0 and (truth is None or truth.shape[1] < steps - 1):
            raise ValueError(f"truth must hold {steps - 1} frames for scheduled sampling")
        use = None
        if feed_truth > 0:
            use = torch.rand(steps - 1, len(frames), 1, 1, 1, device=frames.device) < feed_truth
        return self._roll(frames, steps, truth if feed_truth > 0 else None, use)

    @capturable
    def _roll(self, frames: Tensor, steps: int, truth: Tensor | None, use_truth: Tensor | None) -> tuple[Tensor, ...]:
        """Run over checked frames, see `roll`.

        Args:
            frames: (B, m, 1, H, W).
            steps: number n of forecast frames.
            truth: (B, n - 1, 1, H, W), or None without scheduled sampling.
            use_truth: (n - 1, B, 1, 1, 1) bool, whether the true frame replaces the forecast as input; or None.
        """
        known, size = frames.shape[1], frames.shape[-2:]
        frames = pad_to_multiple(frames, self.multiple)
        truth = None if truth is None else pad_to_multiple(truth, self.multiple)
        total = known + steps - 1
        state, series = self.init_state(), None
        frame: Any = None
        with reuse_memory(CELLS[self.config["cell"]].uniform_sizes):
            for t in range(total):
                if t < known:
                    frame = frames[:, t]
                elif truth is not None:
                    assert use_truth is not None  # it comes with `truth`
                    frame = torch.where(use_truth[t - known], truth[:, t - known].to(frame.dtype), frame)
                with recompute_gates(self.recompute):
                    results = self.step(frame, state)
                series = series or [_FrameBuffer(total) for _ in results]
                for one, y in zip(series, results, strict=True):
                    one.append(y)
                frame = results[-1]
        assert series is not None  # total is at least 1
        return tuple(one.stack()[..., : size[0], : size[1]] for one in series)

    def forecast(self, frames: Tensor, steps: int, block: int | None = None) -> Tensor:
        """Forecast the n frames after the input, clipped to [0, 1].

        Args:
            frames: (B, m, 1, H, W).
            steps: n.
            block: None forecasts all frames in one run. A number restarts the network after each `block` frames from
                the last m frames.

        Returns:
            (B, n, 1, H, W).

        Raises:
            ValueError: If frames, steps or block have a wrong shape or value.
            TypeError: If frames have a wrong dtype.
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
    """One MS-RNN module that runs over time and forecasts the next frame in every step.

    Args:
        cell: convlstm, convgru, trajgru, predrnn, predrnn++, mim, motionrnn, preciplstm, predrnn-v2, sa-convlstm or
            mk-lstm (the cell of MS-LSTM).
        hidden: number of channels of every layer.
        cell_options: further arguments of the cell, see its class.
        residual: forecast the change of the input frame instead of the next frame (not in the paper).
        recompute: recompute gates and resized feature maps in the backward instead of saving them. The results are the
            same.

    Shapes: forward(frames (B, m, 1, H, W) in [0, 1], steps=n) -> (forecasts (B, m + n - 1, 1, H, W),), forecasts of
    frames 1 to m + n - 1, where frame 0 is the first input frame.

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

    def init_state(self) -> dict:
        return {"module": ModuleState()}

    def step(self, frame: Tensor, state: dict[str, ModuleState]) -> tuple[Tensor, ...]:
        y, _ = self.module(frame, state["module"])
        return (y,)

    def forward(
        self, frames: Tensor, steps: int = 5, truth: Tensor | None = None, feed_truth: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Run over the m input frames and n - 1 forecast frames.

        Args:
            frames: (B, m, 1, H, W) in [0, 1]. Missing values (NaN) count as dry.
            steps: number n of forecast frames.
            truth: (B, n - 1, 1, H, W), the true frames after the input, for scheduled sampling, or None.
            feed_truth: probability, per sample and step, that the true frame replaces the forecast as input.

        Returns:
            A tuple of one tensor (B, m + n - 1, 1, H, W), the forecasts of frames 1 to m + n - 1.
        """
        return self.roll(frames, steps, truth, feed_truth)


class DBRNN(_Nowcaster):
    """A forecasting and a deblurring module, trained end to end. The deblurred forecast is the input of the next step.

        x_0 = Emb' Y_f + f_5;  x_l = resize(h_{l-1}) + skip_l + f_{5-l}

    x_l is the input of layer l of the deblurring module, f_l is the hidden state of layer l of the forecasting module,
    and Y_f is the forecast; for the other terms see MSModule. One zigzag memory runs through all twelve cells and on to
    the next time step, unless local_zigzag is set.

    Args:
        cell, hidden, cell_options, recompute: as for MSRNN.
        residual: both modules output changes: the forecaster of its input frame, the deblurrer of the forecast (not in
            the paper).
        local_zigzag: the forecasting module continues its own zigzag memory of the previous step, not that of the
            deblurring module.

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

    def init_state(self) -> dict:
        return {"forecaster": ModuleState(), "deblurrer": ModuleState()}

    def step(self, frame: Tensor, state: dict[str, ModuleState]) -> tuple[Tensor, ...]:
        forecasting, deblurring = state["forecaster"], state["deblurrer"]
        y, hidden = self.forecaster(frame, forecasting)
        forecasting.m, deblurring.m = forecasting.m if self.local_zigzag else None, forecasting.m
        deblurred, _ = self.deblurrer(y, deblurring, skips=hidden[::-1])
        forecasting.m, deblurring.m = forecasting.m if self.local_zigzag else deblurring.m, None
        return y, deblurred

    def forward(
        self, frames: Tensor, steps: int = 5, truth: Tensor | None = None, feed_truth: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Run over the m input frames and n - 1 deblurred forecast frames.

        Args:
            frames: (B, m, 1, H, W) in [0, 1]. Missing values (NaN) count as dry.
            steps: number n of forecast frames.
            truth: (B, n - 1, 1, H, W), the true frames after the input, for scheduled sampling, or None.
            feed_truth: probability, per sample and step, that the true frame replaces the deblurred forecast as input.

        Returns:
            Forecasts and deblurred forecasts of frames 1 to m + n - 1, each (B, m + n - 1, 1, H, W).
        """
        return self.roll(frames, steps, truth, feed_truth)


class StagedRNN(NowcastModel):
    """A forecaster and a deblurrer that are trained one after the other (MS-X-S).

    The forecaster runs on its own output. The deblurrer runs over the sequence of forecasts and outputs each frame
    deblurred. Its output is not fed back.

    Args:
        cell, hidden, cell_options: as for MSRNN, for both networks.

    Shapes: forward(frames (B, m, 1, H, W), steps=n) -> (forecasts, deblurred forecasts), each (B, m + n - 1, 1, H, W).

    Source: Ma, Zhang and Liu 2024, DB-RNN, section V-G.
    """

    def __init__(self, cell: str = "convlstm", hidden: int = 24, cell_options: dict | None = None):
        super().__init__()
        self.config = {"cell": cell, "hidden": hidden, "cell_options": dict(cell_options or {})}
        self.card = ModelCard()
        self.forecaster, self.deblurrer = MSRNN(**self.config), MSRNN(**self.config)

    def deblur(self, forecasts: Tensor) -> Tensor:
        """Deblur a sequence of forecasts (B, T, 1, H, W)."""
        return self.deblurrer.roll(forecasts, 1)[0]

    def forward(self, frames: Tensor, steps: int = 5) -> tuple[Tensor, Tensor]:
        (forecasts,) = self.forecaster.roll(frames, steps)
        return forecasts, self.deblur(forecasts)

    def forecast(self, frames: Tensor, steps: int) -> Tensor:
        """Forecast the n frames after the input, (B, n, 1, H, W), clipped to [0, 1]."""
        return self(frames, steps)[1][:, -steps:].clamp(0, 1)

# SPDX-License-Identifier: Apache-2.0
"""Signatures of exported networks: inputs, outputs and dynamic sizes of each network family.

Dynamic sizes have the names batch, height, width and points. The numbers of frames and steps are fixed, because loops
over them are unrolled.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._options import OptionError, get_argument_word, spell_argument
from fastds._suggestions import add_article
from fastds.models.baselines.super_resolution import SRCNN, SRResNet
from fastds.models.baselines.unet import UNet, UNet3D
from fastds.models.card import Network
from fastds.models.db_rnn import DBRNN, MSRNN, LagrangianRNN, StagedRNN
from fastds.models.db_rnn.cells import PrecipLSTM
from fastds.models.db_rnn.sim_vp import SimVP
from fastds.models.fczsm import FCZSM
from fastds.models.inr import FixedRatioDownscaler, INRDownscaler
from fastds.models.inr.encoders import HALO
from fastds.models.mlcast import MLCastConvGRU
from fastds.models.wgan_gp import HumidityGenerator
from fastds.ops import PointSpec

_PAIR, _KNOWN, _STEPS, _DAY = 2, 5, 12, 8  # defaults of frames and steps, if neither the caller nor the card gives them


@dataclass(frozen=True)
class Input:
    """A float32 input.

    Attributes:
        shape: sizes; names stand for dynamic sizes.
        low, high: usual range of values.
        smooth: whether neighbouring pixels have similar values, as in an optical flow.
    """

    shape: tuple[int | str, ...]
    low: float | Tensor = 0.0
    high: float | Tensor = 1.0
    smooth: bool = False

    def draw(self, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
        """Draw random values for given dynamic sizes."""
        shape = [sizes[n] if isinstance(n, str) else n for n in self.shape]
        if self.smooth:
            coarse = torch.rand((1, math.prod(shape[:-2]), 3, 3), generator=generator)
            uniform = F.interpolate(coarse, shape[-2:], mode="bilinear", align_corners=True).reshape(shape)
        else:
            uniform = torch.rand(shape, generator=generator)
        return self.low + (self.high - self.low) * uniform


@dataclass(frozen=True)
class Signature:
    """A network as a module with tensor inputs and one tensor output.

    Attributes:
        module: module with forward(*inputs) -> Tensor.
        inputs: inputs by name, in order.
        text: description of the inputs and the output.
        least: least height and width.
        channel: dimension of the variables in the output.
    """

    module: nn.Module
    inputs: dict[str, Input]
    text: str
    least: int = 8
    channel: int = -3

    def draw(self, sizes: dict[str, int], seed: int) -> tuple[Tensor, ...]:
        """Draw random inputs.

        Args:
            sizes: dynamic sizes by name.
            seed: seed of the generator.
        """
        generator = torch.Generator().manual_seed(seed)
        return tuple(given.draw(sizes, generator) for given in self.inputs.values())


class _Call(nn.Module):
    """Module that calls a function of a model and the inputs."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self.model, *inputs)


def build_signature(model: nn.Module, **options: int | None) -> Signature:
    """Build the signature of a model.

    Args:
        model: network on the CPU, in evaluation mode and float32.
        options: numbers of frames and steps; None takes the default.

    Raises:
        ValueError: If the network cannot be exported, or if an option is unknown for the network or is not a positive
            integer.
    """
    make = next((make for kinds, make in _FAMILIES if isinstance(model, kinds)), None)
    if make is None:
        known = ", ".join(sorted(kind.__name__ for kinds, _ in _FAMILIES for kind in kinds))
        raise ValueError(
            f"{add_article(type(model).__name__)} cannot be exported, expected one of {known}; export a custom "
            'network by torch.onnx.export(..., dynamo=True) inside `with fastds.use_backend("reference"):`'
        )
    given = {name: value for name, value in options.items() if value is not None}
    parameters = inspect.signature(make).parameters.values()
    accepted = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for name, value in given.items():
        if name not in accepted:
            word = get_argument_word()
            usage = f"takes {spell_argument(*accepted)}" if accepted else f"takes no {word}s"
            raise OptionError(name, f"is no {word} for {type(model).__name__}, which {usage}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(name, f"must be a positive number, got {value!r}")
    return make(model, **given)


def _describe_fczsm(model: FCZSM, *, frames: int = _PAIR) -> Signature:
    c = model.config
    inputs = {"x": Input(("batch", frames, c["in_channels"], "height", "width"))}
    names, text = ["x"], f"x: {frames} fields at equal intervals, normalised as the card says, no missing values"
    if c["static_channels"]:
        names.append("static")
        inputs["static"] = Input(("batch", c["static_channels"], "height", "width"), -1, 1)
        text += "; static: maps, normalised"
    if c["flow_guided"] or c["residual"] == "advection":
        names.append("flow")
        inputs["flow"] = Input(("batch", frames - 1, 2, 2, "height", "width"), -3, 3, smooth=True)
        text += (
            "; flow: for each pair of fields the displacements (dy, dx) in pixels from the earlier to the later field "
            "and back, as fastds.models.baselines.advection.optical_flow gives them"
        )
    if c["middle_frame"]:
        names.append("context")
        inputs["context"] = Input(("batch", 2, c["in_channels"], "height", "width"))
        text += "; context: the fields before and after x, at the same interval, NaN where not known"
    call = _Call(model, lambda model, *given: model(**dict(zip(names, given, strict=True))))
    return Signature(call, inputs, text)


def _describe_unet(model: UNet | UNet3D) -> Signature:
    inputs = {"x": Input(("batch", _PAIR, model.config["in_channels"], "height", "width"))}
    text = "x: 2 fields, normalised as the card says, no missing values"
    return Signature(_Call(model, lambda model, x: model(x)), inputs, text)


def _describe_nowcaster(model: Network, *, frames: int | None = None, steps: int = _STEPS) -> Signature:
    _check_nowcaster(model)
    frames = frames or model.card.input_steps or getattr(model, "frames", _KNOWN)
    inputs = {"x": Input(("batch", frames, getattr(model, "input_channels", 1), "height", "width"))}
    text = f"x: the last {frames} fields between 0 and 1 as the card says; the result: the next {steps}"
    multiple = 2**model.num_blocks if isinstance(model, MLCastConvGRU) else getattr(model, "multiple", 8)
    return Signature(_Call(model, lambda model, x: model.forecast(x, steps)), inputs, text, max(8, 2 * multiple))


def _check_nowcaster(model: nn.Module) -> None:
    if any(isinstance(module, PrecipLSTM) for module in model.modules()):
        raise ValueError("cells of kind preciplstm cannot be exported: no standard operator attends to a window")
    if getattr(model, "noisy_decoder", False):
        raise ValueError("an MLCastConvGRU with noisy_decoder cannot be exported: it draws its noise inside")


def _describe_lagrangian(model: LagrangianRNN, *, frames: int | None = None, steps: int = _STEPS) -> Signature:
    _check_nowcaster(model)
    frames = frames or model.card.input_steps or _KNOWN
    inputs = {
        "x": Input(("batch", frames, 1, "height", "width")),
        "flow": Input(("batch", 2, "height", "width"), -3, 3, smooth=True),
    }
    text = (
        f"x: the last {frames} fields between 0 and 1 as the card says, no missing values; flow: the displacement "
        "(dy, dx) in pixels from each pixel to the position of its air one step before, as "
        "fastds.models.baselines.estimate_backward_flow gives it; the result: the next "
        f"{steps}, smooth (not matched to the intensities of the last field) and not clipped"
    )
    return Signature(_Call(model, lambda model, x, flow: model(x, steps, flow)), inputs, text)


def _describe_generator(model: HumidityGenerator, *, frames: int = _DAY) -> Signature:
    c = model.config
    channels = c["noise_channels"] if c["noise"] == "concat" else c["width"]
    inputs = {
        "x": Input(("batch", frames, c["in_channels"], "height", "width"), -1, 1),
        "noise": Input(("batch", frames, channels, "height", "width"), -2, 2),
    }
    text = f"x: {frames} fields in sequence, normalised as the card says; noise: N(0, 1), or 0 for none"
    return Signature(_Call(model, lambda model, x, noise: model(x, noise)), inputs, text)


def _describe_inr(model: INRDownscaler) -> Signature:
    low, high = ((model.mean + k * model.std)[:, None, None] for k in (-2, 2))
    inputs = {
        "x": Input(("batch", model.in_channels, "height", "width"), low, high),
        "points": Input(("points", 2), -1, 1),
        "scale": Input((2,), 1, model.max_scale),
    }
    text = (
        "x: fields in units of the card, no missing values; points: (y, x) from -1 to 1 between the outer edges of the "
        "pixels, so that pixel i of n lies at (2 i + 1) / n - 1; points beyond are moved to the edge; scale: how many "
        "times as fine as x the requested values are, rows and columns"
    )
    if model.static_channels:
        inputs["static"] = Input(("batch", model.static_channels, "height", "width"), -1, 1)
        text += "; static: maps in their units"
    crosses_poles = model.pole == "cross"
    if crosses_poles:
        text += "; x has an even number of columns"
    return Signature(_Call(model, _query), inputs, text, 2 * HALO if crosses_poles else 8, channel=-1)


def _query(model: INRDownscaler, x: Tensor, points: Tensor, scale: Tensor, static: Tensor | None = None) -> Tensor:
    """Evaluate an INRDownscaler at points.

    Args:
        model: the network.
        x: (B, C, H, W).
        points: (Q, 2), (y, x) from -1 to 1 between the outer pixel edges.
        scale: (2,), ratio of the resolution of the requested values to that of x.
        static: static maps or None.

    Returns:
        (B, Q, O).
    """
    size = [points.new_full((), n, dtype=torch.float64) for n in x.shape[2:]]
    u = ((points.double() + 1) * torch.stack(size) - 1) / 2
    rows, columns = (a.clamp(min=-0.5).minimum(n - 0.5) for a, n in zip(u.unbind(-1), size, strict=True))
    u = torch.stack([rows, u[:, 1] if model.periodic_x else columns], -1)[None]
    base = u.floor()
    where = PointSpec(base.int(), (u - base).float())
    return model.query(x, where, scale.expand(x.shape[0], 2), static)


def _describe_super_resolution(model: Network) -> Signature:
    c = model.config
    channels = c["in_channels"] if isinstance(model, FixedRatioDownscaler) else c["channels"]
    inputs = {"x": Input(("batch", channels, "height", "width"))}
    return Signature(_Call(model, lambda model, x: model(x)), inputs, "x: fields as the network was trained with")


_FAMILIES: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., Signature]], ...] = (
    ((FCZSM,), _describe_fczsm),
    ((UNet, UNet3D), _describe_unet),
    ((LagrangianRNN,), _describe_lagrangian),
    ((MSRNN, DBRNN, StagedRNN, SimVP, MLCastConvGRU), _describe_nowcaster),
    ((HumidityGenerator,), _describe_generator),
    ((INRDownscaler,), _describe_inr),
    ((FixedRatioDownscaler, SRCNN, SRResNet), _describe_super_resolution),
)

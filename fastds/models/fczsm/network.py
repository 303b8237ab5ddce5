# SPDX-License-Identifier: Apache-2.0
"""FC-ZSM: temporal and spatial downscaling of a sequence of fields in one network."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._mixins import DownscaleMixin
from fastds.models.baselines.advection import AdvectedPairs, advect_pairs, optical_flow
from fastds.models.baselines.interpolation import interleave, trilinear
from fastds.models.card import ModelCard
from fastds.models.fczsm.aligner import DirectionalAligner, FeaturePyramid, SingleLevel
from fastds.models.fczsm.conv_lstm import DeformableConvLSTM, repeat_batch
from fastds.models.fczsm.convert import convert
from fastds.models.fczsm.guidance import StaticBranch, compute_interpolation_offsets
from fastds.models.fczsm.middle import MiddleFrameCorrection
from fastds.models.graph import compile_graph
from fastds.models.graph_cache import capturable
from fastds.models.inputs import check_input, check_samples
from fastds.nn.chunks import apply_in_chunks, can_chunk, split_rows
from fastds.nn.convolutions import Conv1x1, Conv3x3, PixelShuffleUpsample, ResidualBlock
from fastds.ops.core.layout import get_padding_to_multiple


class FeatureExtractor(nn.Module):
    """Feature extractor: leaky_relu(conv(x), 0.1) and residual blocks, (B, C, h, w) -> (B, n, h, w)."""

    def __init__(self, in_channels: int, features: int, blocks: int):
        super().__init__()
        self.conv = Conv3x3(in_channels, features)
        self.blocks = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return apply_in_chunks(self.run_layers, x, channels=self.conv.out_channels)

    def run_layers(self, x: Tensor) -> Tensor:
        return self.blocks(self.conv(x, activation="leaky_relu"))


class Interpolation(nn.Module):
    """Interpolate a feature map between two frames: mix[way1(F_i -> F_{i+1}), way2(F_{i+1} -> F_i)].

    way1 and way2 are directional aligners, mix is a 1x1 convolution.

    Source: Chen, Qin and Dai 2022, eq. 2-5 and 8.
    """

    def __init__(self, features: int, groups: int, plain: bool, static_features: int, modulated: bool):
        super().__init__()
        self.pyramid = SingleLevel() if plain else FeaturePyramid(features)
        levels = self.pyramid.levels
        self.way1 = DirectionalAligner(features, groups, levels, static_features, modulated)
        self.way2 = DirectionalAligner(features, groups, levels, static_features, modulated)
        self.mix = Conv1x1(2 * features, features)

    def forward(self, frames: Tensor, batch: int, static: list[Tensor] | None, flow: Tensor | None) -> Tensor:
        """Interpolate between all neighbouring frames.

        Args:
            frames: (N*B, n, h, w), frame-major.
            batch: B.
            static: static features, one per pyramid level, or None.
            flow: (B, N-1, 2, 2, h, w) or None.

        Returns:
            The N-1 intermediate feature maps, ((N-1)*B, n, h, w).
        """
        levels = self.pyramid(frames)
        count, pairs = len(levels), frames.shape[0] - batch
        maps = [z[:-batch] for z in levels] + [z[batch:] for z in levels]
        if static is not None:
            maps += [repeat_batch(s, pairs) for s in static[:count]]
        if flow is not None:
            maps += [z for pyramid in compute_interpolation_offsets(flow, count) for z in pyramid]

        def interpolate_pairs(*maps: Tensor) -> Tensor:
            """Compute the intermediate feature maps of some pairs of frames.

            The arguments are the levels of the earlier frames, of the later frames, of the static features if there are
            any, and of the base offsets if there are any.
            """
            groups = [list(maps[k : k + count]) for k in range(0, len(maps), count)]
            earlier, later, rest = groups[0], groups[1], groups[2:]
            static_maps = rest.pop(0) if static is not None else None
            base = rest if flow is not None else (None, None)
            ahead = self.way1(earlier, later, static_maps, base[0])
            return self.mix(ahead, self.way2(later, earlier, static_maps, base[1]))

        return apply_in_chunks(interpolate_pairs, *maps)


class Reconstruction(nn.Module):
    """Residual blocks, sub-pixel upsampling and output head, applied to each frame independently.

    z = blocks(H); z = PixelShuffleUpsample_r(z); y = last(leaky_relu(hidden(z), 0.1))
    """

    def __init__(self, features: int, head_features: int, out_channels: int, blocks: int, scale: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))
        self.up = PixelShuffleUpsample(features, head_features, upscale_factor=scale)
        self.hidden = Conv3x3(head_features, head_features)
        self.last = Conv3x3(head_features, out_channels)

    # Halo of a band of the head, in rows of x. Two rows suffice at all scales. Four rows keep bands aligned with the
    # 4x4 tiles of the convolutions, so that the result does not change in any bit.
    HEAD_HALO = 4

    def forward(self, x: Tensor) -> Tensor:
        if not can_chunk(x):
            return self.run_head(self.blocks(x))
        return torch.cat([self.run_head_in_bands(self.blocks(frame)) for frame in x.split(1)])

    def run_head(self, z: Tensor) -> Tensor:
        return self.last(self.hidden(self.up(z), activation="leaky_relu"))

    def run_head_in_bands(self, z: Tensor) -> Tensor:
        """Apply the final layers to one frame in bands of rows, so that no whole feature map of fine pixels exists."""
        r = self.up.upscale_factor
        widest = max(r * r * self.hidden.in_channels, z.shape[1])
        out = []
        for first, last, start, stop in split_rows(z.shape[2], widest * z.shape[3] * z.element_size(), self.HEAD_HALO):
            y = self.run_head(z[:, :, start:stop])
            out.append(y[:, :, r * (first - start) : r * (last - start)])
        return torch.cat(out, 2)


class FCZSM(DownscaleMixin, nn.Module):
    """Feature Constrained Zooming Slow-Mo: from N coarse frames to 2N-1 frames at r times the resolution.

        F = extractor(x);  F_{i,i+1} = interpolation(F_i, F_{i+1}; static)
        H = deformable ConvLSTM(F_1, F_12, F_2, ...);  y = reconstruction(H) (+ residual)

    Args:
        in_channels: number C of dynamic variables, stacked as channels, reflectivity first.
        out_channels: number of output channels.
        static_channels: number S of static maps on the coarse grid (height, land-sea mask); 0 for none.
        num_features: number n of feature maps, divisible by offset_groups.
        offset_groups: number G of offset groups of the deformable convolutions.
        extractor_blocks, reconstruction_blocks: number of residual blocks (k1 and k2 of the paper).
        scale: factor r in space, 1, 2, 3 or 4.
        alignment: "pcd" (three-level pyramid, as Zooming Slow-Mo) or "plain" (one level, the equations of the paper).
        lstm_alignment: the same choice for the recurrent aligners; None takes `alignment`.
        modulated: deformable convolutions with a mask.
        static_features: number ns of feature maps of the static branch; None takes num_features.
        static_in_lstm: also guide the recurrent aligners by the static features.
        head_features: number of feature maps after the sub-pixel upsampling; None takes num_features.
        residual: None (as in the paper), "trilinear" or "advection": add the output to this baseline.
        flow_guided: add optical flow to the offsets (not in the paper), see fczsm/guidance.py.
        feature_skip: add the frame features to the output of the LSTM (not in the paper). Fine structure can then
            bypass the gates, and training converges faster.
        middle_frame: correct the frames between input times with the input frames before and after each pair (not in
            the paper), see fczsm/middle.py. Only with one input and output channel and residual="advection".

    Source: Chen, Qin and Dai 2022, Front. Earth Sci. 10:887842; Xiang et al. 2020 (Zooming Slow-Mo).
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        static_channels: int = 0,
        num_features: int = 64,
        offset_groups: int = 8,
        extractor_blocks: int = 5,
        reconstruction_blocks: int = 10,
        scale: int = 2,
        alignment: str = "pcd",
        lstm_alignment: str | None = None,
        modulated: bool = True,
        static_features: int | None = None,
        static_in_lstm: bool = False,
        head_features: int | None = None,
        residual: str | None = None,
        flow_guided: bool = False,
        feature_skip: bool = False,
        middle_frame: bool = False,
    ):
        super().__init__()
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_config(config)
        self.config = config
        self.card = ModelCard(name="fczsm", space_factor=scale, time_factor=2)
        n, ns = num_features, static_features or num_features
        plain, plain_lstm = alignment == "plain", (lstm_alignment or alignment) == "plain"
        self.extractor = FeatureExtractor(in_channels, n, extractor_blocks)
        static_in = ns if static_channels else 0
        if static_channels:
            levels = 1 if plain and (plain_lstm or not static_in_lstm) else FeaturePyramid.levels
            self.static_branch = StaticBranch(FeatureExtractor(static_channels, ns, extractor_blocks), ns, levels)
        self.interpolation = Interpolation(n, offset_groups, plain, static_in, modulated)
        self.lstm = DeformableConvLSTM(n, offset_groups, plain_lstm, static_in if static_in_lstm else 0, modulated)
        self.reconstruction = Reconstruction(n, head_features or n, out_channels, reconstruction_blocks, scale)
        if residual is not None:  # without training the output is the baseline
            nn.init.zeros_(self.reconstruction.last.weight)
            bias = self.reconstruction.last.bias
            assert bias is not None
            nn.init.zeros_(bias)
        if middle_frame:
            self.middle = MiddleFrameCorrection(scale)

    @classmethod
    def from_zooming_slomo(cls, state_dict: dict[str, Tensor]) -> "FCZSM":
        """Build the network (scale 4) from a checkpoint of the original Zooming Slow-Mo.

        Args:
            state_dict: tensors by name, loaded with torch.load(..., weights_only=True).

        Raises:
            ValueError: If a key is unknown or missing, or a shape does not fit.
        """
        config, state = convert(state_dict)
        model = cls(**config)
        expected = model.state_dict()
        missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
        if missing or extra:
            raise ValueError(f"state_dict does not fit Zooming Slow-Mo: missing {missing[:3]}, unexpected {extra[:3]}")
        shapes = {k: tuple(state[k].shape) for k in expected if expected[k].shape != state[k].shape}
        if shapes:
            key, shape = next(iter(shapes.items()))
            raise ValueError(f"state_dict has {key} of shape {shape}, expected {tuple(expected[key].shape)}")
        model.load_state_dict(state)
        return model

    def forward(
        self, x: Tensor, static: Tensor | None = None, flow: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Downscale a sequence.

        Args:
            x: (B, N, C, h, w), N >= 2 frames at equal time steps, normalised; any h and w.
            static: (S, h, w) or (B, S, h, w), normalised. Required if static_channels > 0, not allowed otherwise.
            flow: (B, N-1, 2, 2, h, w), (dy, dx) in pixels of the grid of x, as baselines.optical_flow returns it. Used
                only with flow_guided or residual="advection"; None computes it from channel 0.
            context: (B, 2, C, h, w), the frames before and after the sequence at the same time step, normalised, NaN
                where not known. Used only with middle_frame; None: not known.

        Returns:
            (B, 2N-1, out_channels, r*h, r*w) at half the time step, normalised.

        Raises:
            ValueError: If x, static, flow or context has another shape, or if static is missing or not allowed.
            TypeError: If x is not floating-point, or if only one of x and the weights is float64.
        """
        return self._run(*self.prepare_inputs(x, static, flow, context))

    @capturable
    def _run(self, x: Tensor, static: Tensor | None, flow: Tensor | None, context: Tensor | None) -> Tensor:
        """Run the network on checked inputs, see `forward`. Flow and context are given if the network needs them."""
        b, n, _, h, w = x.shape
        pad = (0, get_padding_to_multiple(w, 4), 0, get_padding_to_multiple(h, 4))
        frames = _pad_edges(x.transpose(0, 1).flatten(0, 1), pad).contiguous(memory_format=torch.channels_last)
        guide_flow = None
        if self.config["flow_guided"]:
            assert flow is not None
            guide_flow = _pad_edges(flow.float(), pad)
        features = self.extractor(frames)
        levels = None
        if static is not None:
            static = _pad_edges(static if static.ndim == 4 else static[None], pad)
            levels = self.static_branch(static)
        between = self.interpolation(features, b, levels, guide_flow).split([b] * (n - 1))
        sequence = [m for pair in zip(features.split([b] * n), (*between, None), strict=True) for m in pair][:-1]
        hidden = self.lstm(sequence, levels if self.config["static_in_lstm"] else None, guide_flow)
        if self.config["feature_skip"]:
            hidden = hidden + torch.cat(sequence)
        r = self.config["scale"]
        y = self.reconstruction(hidden)[..., : r * h, : r * w]
        y = y.reshape(2 * n - 1, b, *y.shape[1:]).transpose(0, 1).contiguous()
        return self._add_residual(y, x, flow, context)

    def _add_residual(self, y: Tensor, x: Tensor, flow: Tensor | None, context: Tensor | None) -> Tensor:
        """Add the interpolated input to y (B, 2N-1, C, r*h, r*w), and correct the frames between input times."""
        if self.config["residual"] is None:
            return y
        first, r = x[:, :, : self.config["out_channels"]], self.config["scale"]
        first = first.to(torch.promote_types(x.dtype, torch.float32))
        if self.config["residual"] == "trilinear":
            return trilinear(first, r) + y
        pairs = advect_pairs(first, r, flow)
        y = interleave(pairs.fine, pairs.middles) + y
        return y if context is None else self._correct_middle_frames(y, x, context, pairs)

    def _correct_middle_frames(self, y: Tensor, x: Tensor, context: Tensor, pairs: AdvectedPairs) -> Tensor:
        """Return y (B, 2N-1, 1, r*h, r*w) with corrected frames between input times, see `forward`."""
        b, n = x.shape[:2]
        frames = torch.cat([context[:, :1], x, context[:, 1:]], 1)[:, :, 0]
        around = torch.stack([frames[:, :-3], frames[:, 3:]], 2)
        neighbours = torch.stack([frames[:, 1:-2], frames[:, 2:-1]], 2)
        inputs = (z.flatten(0, 1) for z in (y[:, 1::2], neighbours, around))
        middle = self.middle(*inputs, pairs).unflatten(0, (b, n - 1)).to(y.dtype)
        first, *later = y[:, ::2].unbind(1)
        return torch.stack([first, *(z for pair in zip(middle.unbind(1), later, strict=True) for z in pair)], 1)

    def compile_graph(
        self,
        x: Tensor,
        static: Tensor | None = None,
        flow: Tensor | None = None,
        context: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Callable[..., Tensor]:
        """Capture the forward for inference, see fastds.compile_graph.

        Args:
            x: (B, N, C, h, w), an example of the input.
            static: static maps, see `forward`.
            flow: optical flow, see `forward`.
            context: frames before and after, see `forward`.
            dtype: dtype of the arithmetic, see fastds.compile_graph.

        Returns:
            A function with the arguments of `forward`, for inputs of the same shapes and dtypes.
        """
        return compile_graph(self, x, static, flow, context, dtype=dtype)

    def prepare_inputs(
        self, x: Tensor, static: Tensor | None = None, flow: Tensor | None = None, context: Tensor | None = None
    ) -> tuple:
        """Prepare the arguments of `forward`.

        Args:
            x: (B, N, C, h, w).
            static: static maps, see `forward`.
            flow: optical flow, see `forward`. None computes it if the network needs it.
            context: frames before and after, see `forward`. None makes frames of NaN if the network needs them.

        Returns:
            x, static, the flow and the context. Flow and context are None if the network does not use them.
        """
        self._check_inputs(x, static, flow, context)
        if not self.config["middle_frame"]:
            context = None
        elif context is None:
            context = x.new_full((x.shape[0], 2, *x.shape[2:]), torch.nan)
        return x, static, self._resolve_flow(x, flow), context

    def _resolve_flow(self, x: Tensor, flow: Tensor | None) -> Tensor | None:
        if not (self.config["flow_guided"] or self.config["residual"] == "advection"):
            return None
        if flow is not None:
            return flow
        return optical_flow(x[:, :, 0])

    def _check_inputs(self, x: Tensor, static: Tensor | None, flow: Tensor | None, context: Tensor | None) -> None:
        c, s = self.config["in_channels"], self.config["static_channels"]
        check_input("x", x, self)
        if x.ndim != 5 or x.shape[1] < 2 or x.shape[2] != c:
            raise ValueError(f"x must have shape (B, N >= 2, {c}, h, w), got {tuple(x.shape)}")
        check_samples("x", x)
        b, n, _, h, w = x.shape
        if s == 0 and static is not None:
            raise ValueError("static was given, but this model has static_channels=0")
        if s and static is None:
            raise ValueError(f"static is missing: this model needs {s} static maps of shape ({s}, {h}, {w})")
        if static is not None and tuple(static.shape) != ((s, h, w) if static.ndim == 3 else (b, s, h, w)):
            raise ValueError(f"static must have shape ({s}, {h}, {w}) or ({b}, ...), got {tuple(static.shape)}")
        if flow is not None and tuple(flow.shape) != (b, n - 1, 2, 2, h, w):
            raise ValueError(f"flow must have shape {(b, n - 1, 2, 2, h, w)} to go with x, got {tuple(flow.shape)}")
        if context is not None and tuple(context.shape) != (b, 2, c, h, w):
            raise ValueError(f"context must have shape {(b, 2, c, h, w)} to go with x, got {tuple(context.shape)}")


def check_config(config: dict) -> None:
    """Check the configuration of an FCZSM.

    Raises:
        ValueError: If an argument has a wrong value. The message names the argument.
    """
    for name in ("in_channels", "out_channels", "num_features", "offset_groups"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(f"{name} must be a positive integer, got {config[name]!r}")
    for name in ("static_channels", "extractor_blocks", "reconstruction_blocks"):
        if not isinstance(config[name], int) or config[name] < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {config[name]!r}")
    choices = {
        "scale": (1, 2, 3, 4),
        "alignment": ("pcd", "plain"),
        "lstm_alignment": (None, "pcd", "plain"),
        "residual": (None, "trilinear", "advection"),
    }
    for name, allowed in choices.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {config[name]!r}")
    if config["num_features"] % config["offset_groups"]:
        n, groups = config["num_features"], config["offset_groups"]
        raise ValueError(f"num_features must be divisible by offset_groups, got {n} and {groups}")
    if config["residual"] and config["out_channels"] > config["in_channels"]:
        raise ValueError(
            f"residual={config['residual']!r} adds the first input channels to the output, so out_channels must be at "
            f"most in_channels={config['in_channels']}, got {config['out_channels']}"
        )
    if config["middle_frame"] and (
        config["residual"] != "advection" or config["in_channels"] != 1 or config["out_channels"] != 1
    ):
        raise ValueError(
            "middle_frame=True needs residual='advection', in_channels=1 and out_channels=1, got "
            f"{config['residual']!r}, {config['in_channels']} and {config['out_channels']}"
        )


def _pad_edges(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Repeat the bottom and right edges of the last two dimensions."""
    if all(isinstance(n, int) and n == 0 for n in pad):  # symbolic sizes of a tracer are no int
        return x
    return F.pad(x.flatten(0, -4), pad, mode="replicate").unflatten(0, x.shape[:-3])

# SPDX-License-Identifier: Apache-2.0
"""Reference implementation of fastds.models.FCZSM in plain PyTorch.

It is used in tests, for counting FLOPs, and as a peer in benchmarks. Tensors are contiguous, nothing is precomputed,
and the time directions run one after the other. Channels are concatenated, and deformable convolutions use grid_sample
and one matrix product. The reference reads the state dict and configuration of an FCZSM.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_by_grid_sample(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Compute a deformable 3x3 convolution with stride 1 and padding 1 by grid_sample.

    Args:
        x: (B, C, H, W).
        offset: (B, 18 * G, H, W), in pixels.
        weight: (O, C, 3, 3).
        bias: (O,).
        mask: (B, 9 * G, H, W) or None.

    Returns:
        (B, O, H, W).
    """
    b, c, h, w = x.shape
    taps, groups = 9, offset.shape[1] // 18
    offset = offset.reshape(b, groups, taps, 2, h, w)
    step = torch.arange(-1, 2, device=x.device, dtype=offset.dtype)
    rows = torch.arange(h, device=x.device, dtype=offset.dtype)[:, None] + step.repeat_interleave(3)[:, None, None]
    columns = torch.arange(w, device=x.device, dtype=offset.dtype) + step.repeat(3)[:, None, None]
    y = (2 * (offset[:, :, :, 0] + rows) + 1) / h - 1
    z = (2 * (offset[:, :, :, 1] + columns) + 1) / w - 1
    grid = torch.stack((z, y), -1).reshape(b * groups, taps * h, w, 2)
    sampled = F.grid_sample(x.reshape(b * groups, c // groups, h, w), grid, align_corners=False)
    sampled = sampled.reshape(b, groups, c // groups, taps, h, w)
    if mask is not None:
        sampled = sampled * mask.reshape(b, groups, 1, taps, h, w)
    product = weight.reshape(weight.shape[0], -1) @ sampled.reshape(b, c * taps, h * w)
    return product.reshape(b, -1, h, w) + bias.reshape(1, -1, 1, 1)


class ReferenceFCZSM:
    """FCZSM as functions of a state dict and a configuration.

    Args:
        state: model.state_dict(), or the parameters by name, which makes the output differentiable.
        config: model.config.
        deform: deformable convolution, (x, offset, weight, bias, mask) -> (B, O, H, W).
    """

    def __init__(self, state: dict[str, Tensor], config: dict, deform: Callable = deform_by_grid_sample):
        self.state, self.config, self.deform = state, config, deform

    def __call__(self, x: Tensor, static: Tensor | None = None, flow: Tensor | None = None) -> Tensor:
        """Compute the output of the network without the residual.

        Args:
            x: (B, N, C, h, w), h and w multiples of 4.
            static: (S, h, w) or (B, S, h, w), or None.
            flow: (B, N-1, 2, 2, h, w) or None.

        Returns:
            (B, 2N-1, O, r*h, r*w).
        """
        b, n = x.shape[:2]
        plain = self.config["alignment"] == "plain"
        plain_lstm = (self.config["lstm_alignment"] or self.config["alignment"]) == "plain"
        flow = flow if self.config["flow_guided"] else None
        frames = [self.extractor("extractor", x[:, i]) for i in range(n)]
        levels = None
        if static is not None:
            static = static if static.ndim == 4 else static[None]
            levels = self.extractor("static_branch.extractor", static.expand(b, -1, -1, -1))
            single = plain and (plain_lstm or not self.config["static_in_lstm"])
            levels = [levels] if single else self.pyramid("static_branch.pyramid", levels)
        pyramids = [[z] if plain else self.pyramid("interpolation.pyramid", z) for z in frames]
        sequence = [frames[0]]
        for i in range(n - 1):
            pair = (None, None) if flow is None else (0.5 * flow[:, i, 1], 0.5 * flow[:, i, 0])
            sequence.append(self.between(pyramids[i], pyramids[i + 1], levels, pair))
            sequence.append(frames[i + 1])
        hidden = self.lstm(sequence, levels if self.config["static_in_lstm"] else None, flow, plain_lstm)
        if self.config.get("feature_skip"):
            hidden = [h + z for h, z in zip(hidden, sequence, strict=True)]
        return torch.stack([self.reconstruction(h) for h in hidden], 1)

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def act_conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.leaky_relu(self.conv(name, x, stride), 0.1)

    def residual_blocks(self, name: str, x: Tensor) -> Tensor:
        number = 0
        while f"{name}.{number}.conv1.weight" in self.state:
            x = x + self.conv(f"{name}.{number}.conv2", F.relu(self.conv(f"{name}.{number}.conv1", x)))
            number += 1
        return x

    def extractor(self, name: str, x: Tensor) -> Tensor:
        return self.residual_blocks(f"{name}.blocks", self.act_conv(f"{name}.conv", x))

    def pyramid(self, name: str, x: Tensor) -> list[Tensor]:
        second = self.act_conv(f"{name}.conv2", self.act_conv(f"{name}.down2", x, 2))
        third = self.act_conv(f"{name}.conv3", self.act_conv(f"{name}.down3", second, 2))
        return [x, second, third]

    def guided_deform(self, name: str, x: Tensor, guide: Tensor, base: Tensor | None) -> Tensor:
        maps = self.conv(f"{name}.conv_offset_mask", guide)
        split = 18 * self.config["offset_groups"]
        offset, mask = maps[:, :split], None
        if base is not None:
            offset = offset + base.repeat(1, split // 2, 1, 1)
        if self.config["modulated"]:
            mask = torch.sigmoid(maps[:, split:])
        return self.deform(x, offset, self.state[f"{name}.weight"], self.state[f"{name}.bias"], mask)

    def align_one_way(
        self, name: str, source: list[Tensor], target: list[Tensor], static: list[Tensor] | None, base: Tensor | None
    ) -> Tensor:
        """Warp the source toward the target.

        Args:
            name: prefix of the parameters.
            source: levels of the source pyramid.
            target: levels of the target pyramid.
            static: levels of the static features or None.
            base: displacement (B, 2, h, w) in pixels of level 1, or None.
        """
        bases = [base] * len(source)
        if base is not None:
            bases = [F.avg_pool2d(base, 2**k) / 2**k for k in range(len(source))]
        offsets = warped = None
        for k in reversed(range(len(source))):
            level = f"{name}.levels.{k}"
            guides = [source[k], target[k]] + ([] if static is None else [static[k]])
            guide = self.act_conv(f"{level}.guide_in", torch.cat(guides, 1))
            if offsets is None:
                offsets = self.act_conv(f"{level}.guide_mix", guide)
                warped = self.guided_deform(f"{level}.deform", source[k], offsets, bases[k])
                warped = warped if len(source) == 1 else F.leaky_relu(warped, 0.1)
                continue
            guide = torch.cat([guide, 2 * _up(offsets)], 1)
            offsets = self.act_conv(f"{level}.guide_out", self.act_conv(f"{level}.guide_mix", guide))
            fine = self.guided_deform(f"{level}.deform", source[k], offsets, bases[k])
            warped = self.conv(f"{level}.fuse", torch.cat([fine, _up(warped)], 1))
            warped = F.leaky_relu(warped, 0.1) if k else warped
        return warped

    def between(
        self,
        first: list[Tensor],
        second: list[Tensor],
        static: list[Tensor] | None,
        base: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        way1 = self.align_one_way("interpolation.way1", first, second, static, base[0])
        way2 = self.align_one_way("interpolation.way2", second, first, static, base[1])
        return self.conv("interpolation.mix", torch.cat([way1, way2], 1))

    def align_state(
        self,
        name: str,
        x: Tensor,
        state: Tensor,
        static: list[Tensor] | None,
        base: tuple[Tensor | None, Tensor | None],
        plain: bool,
    ) -> Tensor:
        x_base, state_base = base
        if plain:
            return self.align_one_way(f"{name}.state_way", [state], [x], static, state_base)
        x, state = self.pyramid(f"{name}.pyramid", x), self.pyramid(f"{name}.pyramid", state)
        way1 = self.align_one_way(f"{name}.x_way", x, state, static, x_base)
        way2 = self.align_one_way(f"{name}.state_way", state, x, static, state_base)
        return self.conv(f"{name}.mix", torch.cat([way1, way2], 1))

    def lstm(
        self, sequence: list[Tensor], static: list[Tensor] | None, flow: Tensor | None, plain: bool
    ) -> list[Tensor]:
        static = static[:1] if plain and static is not None else static
        last = len(sequence) - 1
        forward, backward = {}, {}
        for out, indices in ((forward, range(last + 1)), (backward, range(last, -1, -1))):
            h = c = torch.zeros_like(sequence[0])
            for t in indices:
                base = (None, None)
                if flow is not None and t != indices[0]:
                    pair, toward = ((t - 1) // 2, 1) if out is forward else (t // 2, 0)
                    base = (0.5 * flow[:, pair, 1 - toward], 0.5 * flow[:, pair, toward])
                h = self.align_state("lstm.align_h", sequence[t], h, static, base, plain)
                c = self.align_state("lstm.align_c", sequence[t], c, static, base, plain)
                i, f, o, g = self.conv("lstm.gates", torch.cat([sequence[t], h], 1)).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                out[t] = h
        return [self.conv("lstm.merge", torch.cat([forward[t], backward[t]], 1)) for t in range(last + 1)]

    def reconstruction(self, x: Tensor) -> Tensor:
        x = self.residual_blocks("reconstruction.blocks", x)
        number = 0
        while f"reconstruction.up.convs.{number}.weight" in self.state:
            r = 2 if self.config["scale"] == 4 else self.config["scale"]
            x = F.leaky_relu(F.pixel_shuffle(self.conv(f"reconstruction.up.convs.{number}", x), r), 0.1)
            number += 1
        return self.conv("reconstruction.last", self.act_conv("reconstruction.hidden", x))


def count_flops(state: dict[str, Tensor], config: dict, frames: int, h: int, w: int) -> int:
    """Count the FLOPs of one forward pass on (1, frames, C, h, w); a multiply-add counts as two.

    Convolutions and matrix products count as in torch's FlopCounterMode. The sampling of deformable convolutions adds
    four multiply-adds and one multiplication by the mask per sample.

    Args:
        state: state dict, of which only the shapes are used.
        config: configuration of the FCZSM.
        frames: number N of input frames.
        h: height of the input.
        w: width of the input.
    """
    from torch.utils.flop_counter import FlopCounterMode

    samples = 0

    def deform(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal samples
        samples += 9 * x.numel()
        return deform_by_grid_sample(x, offset, weight, bias, mask)

    state = {name: value.to("meta") for name, value in state.items()}
    x = torch.empty(1, frames, config["in_channels"], h, w, device="meta")
    static = torch.empty(config["static_channels"], h, w, device="meta") if config["static_channels"] else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ReferenceFCZSM(state, {**config, "flow_guided": False}, deform)(x, static)
    return counter.get_total_flops() + 9 * samples


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale downscaling: an encoder at the input's resolution, a decoder that is asked at any place."""

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._mixins import DownscaleMixin
from fastds.models.card import ModelCard
from fastds.models.graph import capturing
from fastds.models.inputs import check_input
from fastds.models.inr import bands
from fastds.models.inr.bands import POLES, Encoded, across_poles
from fastds.models.inr.contrast import local_contrast
from fastds.models.inr.decoders import DECODERS
from fastds.models.inr.dpfa import DPFA, KINDS, ScaleEmbedding
from fastds.models.inr.encoders import ENCODERS
from fastds.nn.local_decoders import each_sample
from fastds.ops import GridSpec, PointSpec

REGISTRATIONS = ("cell", "node")


class INRDownscaler(DownscaleMixin, nn.Module):
    """Implicit neural representation of a field: (B, C, H, W) in, values at any resolution or at any points out.

        F = encoder((x - mean) / std, static) with DPFA modules steered by the scale; maps = decoder.prepare(F)
        y(u) = std * decoder(maps, u, kappa) + bilinear(x)(u)

    Args:
        in_channels: C, variables stacked as channels.
        predicted: channels of x that come out, in this order; None = all.
        static_channels: maps that only the encoder reads (orography, land-sea mask, sin and cos of latitude).
        encoder, encoder_options: a name of fastds.models.inr.ENCODERS and its arguments.
        decoder, decoder_options: a name of fastds.models.inr.DECODERS and its arguments.
        dpfa, dpfa_count: "deform", "mask", "modconv", "film" or "none", and how many, evenly spread over the encoder.
        periodic_x: columns go round the globe.
        registration: "cell" (pixels are areas, grids share the outer edges) or "node" (points, grids share the outer
            rows; ERA5 with both poles).
        pole: "clamp", or "cross": beyond the first and last row the encoder sees the other side of the pole.
        vector_channels: channels of x that change sign across a pole (u, v).
        mask_channel: the encoder also gets a channel that says which pixels are valid.
        skip: add the bilinearly interpolated input.
        contrast_window: k, odd: the encoder sees every pixel less the mean of the k x k around it, in units of their
            spread, and what the decoder adds is in units of that spread: y is then the same function of a field in any
            units. 0: by mean and std. Needs skip.
        max_scale: largest trained factor; the cell that the network sees is never smaller.
        compat: "liif" pads convolutions with zeros and weighs corners by areas, as published checkpoints expect; at
            the last whole row and column the areas vanish (fastds.ops.inr_query).

    Buffers mean and std (C,), static_mean and static_std (S,) are the normalisation of the training data. NaN in x is
    missing: filled for the encoder, left out of every query, NaN where nothing valid is near. An untrained attention
    decoder with skip is bilinear interpolation.

    Source: Li et al. 2026 (abstract); everything it does not say is ours.
    """

    def __init__(
        self,
        in_channels: int = 4,
        predicted: list[int] | None = None,
        static_channels: int = 0,
        encoder: str = "edsr",
        encoder_options: dict | None = None,
        decoder: str = "attention",
        decoder_options: dict | None = None,
        dpfa: str = "deform",
        dpfa_count: int = 4,
        periodic_x: bool = False,
        registration: str = "cell",
        pole: str = "clamp",
        vector_channels: list[int] | None = None,
        mask_channel: bool = False,
        skip: bool = True,
        contrast_window: int = 0,
        max_scale: float = 4.0,
        compat: str | None = None,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for name, value, allowed in (
            ("encoder", encoder, ENCODERS), ("decoder", decoder, DECODERS), ("dpfa", dpfa, KINDS),
            ("registration", registration, REGISTRATIONS), ("pole", pole, POLES), ("compat", compat, (None, "liif")),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        self.predicted = list(range(in_channels)) if predicted is None else list(predicted)
        if not self.predicted or any(not 0 <= c < in_channels for c in self.predicted):
            raise ValueError(f"predicted must name channels of 0..{in_channels - 1}, got {predicted!r}")
        if contrast_window and (contrast_window % 2 == 0 or contrast_window < 3 or not skip):
            raise ValueError(f"contrast_window must be 0 or an odd size from 3 on, with skip, got {contrast_window!r}")
        self.contrast_window = contrast_window
        self.in_channels, self.static_channels, self.mask_channel = in_channels, static_channels, mask_channel
        self.periodic_x, self.registration, self.pole = periodic_x, registration, pole
        self.vector_channels, self.skip, self.max_scale = list(vector_channels or ()), skip, float(max_scale)
        padding = "zeros" if compat else "circular_x" if periodic_x else "replicate"
        total = in_channels + static_channels + mask_channel
        self.encoder = ENCODERS[encoder](total, padding, **(encoder_options or {}))
        self.embedding = self.modules_after = None
        if dpfa != "none":
            channels, stages = self.encoder.out_channels, self.encoder.stages
            if not 1 <= dpfa_count <= stages:
                raise ValueError(f"dpfa_count must lie in 1..{stages}, the stages of the encoder, got {dpfa_count}")
            self.embedding = ScaleEmbedding(64)
            self.modules_after = nn.ModuleDict(
                {str(stages * (k + 1) // dpfa_count - 1): DPFA(channels, 64, padding, dpfa) for k in range(dpfa_count)}
            )
        options = dict(decoder_options or {})
        if compat and decoder in ("liif", "lte"):
            options["compat"] = compat
        self.decoder = DECODERS[decoder](self.encoder.out_channels, len(self.predicted), padding, **options)
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))
        if static_channels:
            self.register_buffer("static_mean", torch.zeros(static_channels))
            self.register_buffer("static_std", torch.ones(static_channels))
        self.card = ModelCard()

    @property
    def edge(self) -> tuple[str, str]:
        return "clamp", "wrap" if self.periodic_x else "clamp"

    def set_periodic(self, periodic: bool) -> None:
        """Take columns as a circle or not from now on; the weights are the same for both.

        Raises:
            ValueError: a compat model, whose convolutions pad with zeros.
        """
        if self.config["compat"] and periodic:
            raise ValueError("a compat model pads with zeros and has no periodic columns")
        self.periodic_x = periodic
        mode = "zeros" if self.config["compat"] else "circular_x" if periodic else "replicate"
        for module in self.modules():
            if hasattr(module, "padding_mode"):
                module.padding_mode = mode
            if hasattr(module, "periodic"):
                module.periodic = periodic

    # ---- where

    def grid(self, size: Sequence[int], target: Sequence[int]) -> GridSpec:
        """The query grid of target = (H', W') over fields of size (H, W)."""
        if self.registration == "node":
            return GridSpec.nodes(tuple(size), tuple(target), self.periodic_x)
        return GridSpec.cells(tuple(size), tuple(target))

    def target_size(self, size: Sequence[int], scale: float | Sequence[float]) -> tuple[int, int]:
        """(H', W') for a factor or a pair of factors; nodes keep the outer rows, so H' - 1 = round((H - 1) s)."""
        pair = tuple(scale) if isinstance(scale, tuple | list) else (scale, scale)
        if len(pair) != 2 or any(not isinstance(s, int | float) or not 0 < s < math.inf for s in pair):
            raise ValueError(f"scale must be a positive number or a pair of them, got {scale!r}")
        node = self.registration == "node"
        last = (node, node and not self.periodic_x)
        return tuple(max(1, round((n - at) * s) + at) for n, s, at in zip(size, pair, last, strict=True))

    # ---- parts

    def encode(self, x: Tensor, factor: Tensor, static: Tensor | None = None) -> Encoded:
        """What is made once per field: x (B, C, H, W), factor (B, 2) scale per axis, static (B or 1, S, H, W)."""
        valid = self._check(x, static)
        mean, std = (t.to(x.dtype)[:, None, None] for t in (self.mean, self.std))
        spread = mask = None
        if self.contrast_window:
            mean, std = local_contrast(x, valid, self.contrast_window, self.periodic_x)
            spread = self._of_predicted(std, 1)
            std = torch.where(std > 0, std, 1)
        z = (x - mean) / std
        if valid is not None:
            z = torch.where(valid, z, 0)
            mask = self._of_predicted(valid, 1).all(1)
        parts = [z]
        if self.static_channels:
            mean, std = (t[:, None, None] for t in (self.static_mean, self.static_std))
            parts.append(((static - mean) / std).to(z.dtype).expand(z.shape[0], -1, -1, -1))
        if self.mask_channel:
            parts.append((torch.ones_like(z[:, :1]) if valid is None else valid.all(1, keepdim=True)).to(z.dtype))
        f = self._features(torch.cat(parts, 1), factor)
        skip = self._of_predicted(x, 1) if self.skip else None
        return Encoded(f, skip, mask, spread)

    def _features(self, z: Tensor, factor: Tensor) -> Tensor:
        e = None if self.embedding is None else self.embedding(factor.clamp(max=self.max_scale).to(self.mean.dtype))

        def between(i: int, f: Tensor) -> Tensor:
            if e is None or str(i) not in self.modules_after:
                return f
            return self.modules_after[str(i)](f, e)

        if self.pole == "clamp":
            return self.encoder(z, between)
        z, halo = across_poles(z, self.registration, self.vector_channels)
        return self.encoder(z, between)[:, :, halo : z.shape[2] - halo]

    def decode(self, encoded: Encoded, where: GridSpec | PointSpec, cell: Tensor) -> Tensor:
        """Values (B, Q, O) at `where`; cell (B, 2) or (B, Q, 2): 2 / s per axis, the size of a query in half pixels."""
        cell = cell.clamp(min=2 / self.max_scale)
        gain = None if self.contrast_window else self._of_predicted(self.std, 0)
        y = bands.decode(self.decoder, encoded, where, cell, self.edge, gain)
        return y if self.skip else y + self._of_predicted(self.mean, 0)

    def query(self, x: Tensor, where: GridSpec | PointSpec, factor: Tensor, static: Tensor | None = None) -> Tensor:
        """Values (B, Q, O) at `where` for factors (B, 2) of each sample and axis; what training calls."""
        return self.decode(self.encode(x, factor, static), where, 2 / factor)

    def _of_predicted(self, x: Tensor, dim: int) -> Tensor:
        """The predicted channels of x; an index that is a list would be copied from the host each time."""
        if self.predicted == list(range(self.in_channels)):
            return x
        return torch.stack([x.select(dim, c) for c in self.predicted], dim)

    def _check_fields(self, x: Tensor) -> None:
        check_input("x", x, self)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {self.in_channels}, H, W)")

    def _check(self, x: Tensor, static: Tensor | None) -> Tensor | None:
        """Refuses what does not fit; the valid pixels, None where there is nothing missing."""
        self._check_fields(x)
        if (static is None) != (self.static_channels == 0) or (
            static is not None and tuple(static.shape[1:]) != (self.static_channels, *x.shape[2:])
        ):
            found = None if static is None else tuple(static.shape)
            raise ValueError(f"static has shape {found}, expected (B or 1, {self.static_channels}, H, W) of x")
        if torch.compiler.is_compiling() or capturing() or torch.isfinite(x.sum()):
            return None
        return torch.isfinite(x)

    # ---- the public call

    def forward(
        self,
        x: Tensor,
        size: tuple[int, int] | None = None,
        *,
        scale: float | tuple[float, float] | None = None,
        points: PointSpec | None = None,
        static: Tensor | None = None,
        supersample: int = 1,
        conserve: bool = False,
    ) -> Tensor:
        """Downscale to a size, by a factor, or to points; exactly one of size, scale and points.

        Args:
            x: (B, C, H, W) physical units, NaN = missing.
            size: (H', W'), any, also smaller than (H, W). scale: factor or pair (rows, columns), any real > 0.
            points: PointSpec over (H, W); their support is that of the largest trained factor unless scale is given.
            static: (B or 1, S, H, W) where the model reads static maps.
            supersample: every value is the mean of k x k sub-points; for cells larger than the pixels of x.
            conserve: whole factors of cell-registered grids: correct every coarse pixel to its mean.

        Returns:
            (B, O, H', W') channels_last, or (B, Q, O) for points; float32 (float64 for float64 fields).

        Raises:
            TypeError: x of another kind than the weights.
            ValueError: shapes or options that do not fit, a scale that is zero, negative or not finite.
        """
        if (size is not None) + (scale is not None and points is None) + (points is not None) != 1:
            raise ValueError("give exactly one of size, scale and points (points may come with a scale)")
        self._check_fields(x)
        height, width = x.shape[2:]
        if points is not None:
            self.target_size((height, width), scale or 1)
            pair = scale if isinstance(scale, tuple | list) else 2 * [self.max_scale if scale is None else scale]
            return self.query(x, points, each_sample(pair, x, x.dtype), static)
        target = self.target_size((height, width), scale) if size is None else tuple(size)
        grid = self.grid((height, width), target)
        pair = [axis.den / axis.step if axis.step else 1.0 for axis in (grid.rows, grid.columns)]
        if min(pair) < 1 and supersample == 1:
            warnings.warn(
                f"size {target} is coarser than the input {(height, width)}: one value stands for several pixels; "
                "supersample=k averages k x k sub-points",
                stacklevel=2,
            )
        if supersample != 1:
            if self.registration != "cell" or not isinstance(supersample, int) or supersample < 1:
                raise ValueError(f"supersample must be an int >= 1 on cell-registered grids, got {supersample!r}")
            grid = self.grid((height, width), tuple(supersample * n for n in target))
        y = self.query(x, grid, each_sample(pair, x, x.dtype), static)
        y = y.unflatten(1, grid.size).permute(0, 3, 1, 2)
        if supersample != 1:
            y = F.avg_pool2d(y, supersample)
        return self._conserved(x, y) if conserve else y

    def _conserved(self, x: Tensor, y: Tensor) -> Tensor:
        (height, width), (rows, columns) = x.shape[2:], y.shape[2:]
        if self.registration != "cell" or rows % height or columns % width:
            raise ValueError(
                f"conserve needs whole factors of cell-registered grids, got {(height, width)} to {(rows, columns)}"
            )
        factor = rows // height, columns // width
        error = self._of_predicted(x, 1) - F.avg_pool2d(y, factor)
        return y + error.repeat_interleave(factor[0], 2).repeat_interleave(factor[1], 3)

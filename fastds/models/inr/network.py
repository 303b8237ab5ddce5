# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale downscaling: an encoder at the input's resolution and a decoder that is evaluated at any position."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds._mixins import DownscaleMixin
from fastds.models.card import ModelCard
from fastds.models.graph import is_capturing
from fastds.models.graph_cache import capturable
from fastds.models.inputs import check_input
from fastds.models.inr import decoders
from fastds.models.inr.decoders import DECODERS, Encoded
from fastds.models.inr.encoders import (
    DPFA,
    ENCODERS,
    KINDS,
    POLES,
    ScaleEmbedding,
    compute_local_contrast,
    pad_across_poles,
)
from fastds.nn.convolutions import PaddedConv3x3
from fastds.nn.local_decoders import expand_to_batch
from fastds.ops import GridSpec, PointSpec


class FixedRatioDownscaler(nn.Module):
    """EDSR for one scale factor: encoder, sub-pixel convolutions, output convolution, plus bilinear interpolation.

    Args:
        in_channels: number C of variables, all of which are predicted.
        scale: factor in space, 2, 3 or 4.
        encoder, encoder_options: as for INRDownscaler.
        periodic_x: whether columns are periodic.
        skip: add the bilinearly interpolated input (not in the paper).

    Shapes: (B, C, H, W) -> (B, C, s H, s W), cell-registered.

    Source: Lim et al. 2017 (EDSR-baseline).
    """

    def __init__(
        self,
        in_channels: int = 4,
        scale: int = 2,
        encoder: str = "edsr",
        encoder_options: dict[str, Any] | None = None,
        periodic_x: bool = False,
        skip: bool = True,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale!r}")
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
        self.in_channels, self.scale, self.periodic_x, self.skip = in_channels, scale, periodic_x, skip
        padding = "circular_x" if periodic_x else "replicate"
        self.encoder = cast(Any, ENCODERS[encoder])(in_channels, padding, **(encoder_options or {}))
        channels = self.encoder.out_channels
        self.steps = [2, 2] if scale == 4 else [scale]
        self.up = nn.ModuleList(PaddedConv3x3(channels, channels * r * r, padding_mode=padding) for r in self.steps)
        self.last = PaddedConv3x3(channels, in_channels, padding_mode=padding)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))
        self.card = ModelCard()

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Downscale fields.

        Args:
            x: (B, C, H, W), physical units, without missing values.
            size: None or (s H, s W).

        Raises:
            ValueError: If x or size has a wrong shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {self.in_channels}, H, W)")
        target = tuple(self.scale * n for n in x.shape[2:])
        if size is not None and tuple(size) != target:
            raise ValueError(f"size must be {target}, {self.scale} times that of x, got {tuple(size)}")
        mean, std = (t.to(x.dtype)[:, None, None] for t in (self.mean, self.std))
        f = self.encoder((x - mean) / std, lambda i, f: f)
        for conv, r in zip(self.up, self.steps, strict=True):
            f = conv(f, upscale_factor=r)
        y = self.last(f).to(x.dtype) * std
        return y + upsample_bilinear(x, self.scale, self.periodic_x) if self.skip else y + mean

    def query(self, x: Tensor, where: PointSpec, factor: Tensor) -> Tensor:
        """Return the values of the fine pixels that contain the points, for training.

        Args:
            x: (B, C, H, W), physical units.
            where: Q points.
            factor: (B, 2), must be the scale of the model.

        Returns:
            (B, Q, C).

        Raises:
            ValueError: If factor is not the scale of the model.
        """
        if (factor != self.scale).any():
            raise ValueError(f"factor must be {self.scale}, the only scale of this model, got {factor.tolist()}")
        y = self(x)
        pixel = self.scale * where.base + torch.floor((where.frac + 0.5) * self.scale).int()
        rows, columns = (pixel[..., i].clamp(0, y.shape[2 + i] - 1) for i in (0, 1))
        index = (rows * y.shape[3] + columns).long()[:, None].expand(*y.shape[:2], -1)
        return y.flatten(2).gather(2, index).transpose(1, 2)


def upsample_bilinear(x: Tensor, scale: int, periodic_x: bool) -> Tensor:
    """Interpolate bilinearly by an integer factor.

    Args:
        x: (B, C, H, W).
        scale: factor.
        periodic_x: whether columns are periodic.
    """
    if periodic_x:
        x = F.pad(x, (1, 1, 0, 0), mode="circular")
    height, width = x.shape[2:]
    y = F.interpolate(x, (scale * height, scale * width), mode="bilinear", align_corners=False)
    return y[..., scale:-scale] if periodic_x else y


REGISTRATIONS = ("cell", "node")


class INRDownscaler(DownscaleMixin, nn.Module):
    """Implicit neural representation of fields: (B, C, H, W) in, values at any resolution or at any points out.

        F = encoder((x - mean) / std, static) with DPFA modules that depend on the scale; maps = decoder.prepare(F)
        y(u) = std * decoder(maps, u, kappa) + bilinear(x)(u)

    Args:
        in_channels: number C of variables, stacked as channels.
        predicted: indices of the channels of x that are predicted, in this order; None for all.
        static_channels: number of static maps for the encoder (orography, land-sea mask, sin and cos of latitude).
        encoder, encoder_options: key of fastds.models.inr.ENCODERS and further arguments of the class.
        decoder, decoder_options: key of fastds.models.inr.DECODERS and further arguments of the class.
        dpfa: kind of the DPFA modules: "deform", "mask", "modconv", "film" or "none".
        dpfa_count: number of DPFA modules, evenly distributed over the encoder.
        periodic_x: whether columns are periodic.
        registration: "cell" (pixels are areas, grids share the outer edges) or "node" (pixels are points, grids share
            the outer rows, such as ERA5 with both poles).
        pole: "clamp", or "cross": the encoder sees the field on the other side of the pole beyond the first and last
            row.
        vector_channels: channels of x that change sign across a pole (u, v).
        mask_channel: give the encoder a channel with the valid pixels.
        skip: add the bilinearly interpolated input.
        contrast_window: 0 normalises by mean and std. An odd window size normalises every pixel by mean and spread of
            the window around it, and scales the decoder's output by the spread, so that the model does the same for
            fields in any unit. Needs skip.
        max_scale: largest scale factor in the training. Larger factors use the cell size of this one.
        compat: "liif" pads convolutions with zeros and weights corners by areas, as published checkpoints expect. At
            the last row and column the areas vanish, see fastds.ops.inr_query.

    The buffers mean and std (C,), static_mean and static_std (S,) are the normalisation of the training data. Missing
    values (NaN) in x are filled for the encoder and have no weight in queries. A query without valid pixels nearby is
    NaN. An untrained attention decoder with skip equals bilinear interpolation.

    Source: Li et al. 2026 (abstract); everything else is our design.
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
        self.encoder = cast(Any, ENCODERS[encoder])(total, padding, **(encoder_options or {}))
        self.embedding: Any = None
        self.modules_after: Any = None
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
        self.decoder = DECODERS[decoder](
            self.encoder.out_channels, len(self.predicted), padding_mode=padding, **options
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))
        self.static_mean: Tensor
        self.static_std: Tensor
        if static_channels:
            self.register_buffer("static_mean", torch.zeros(static_channels))
            self.register_buffer("static_std", torch.ones(static_channels))
        self.card = ModelCard()

    @property
    def edge(self) -> tuple[str, str]:
        """Border handling of queries for rows and columns."""
        return "clamp", "wrap" if self.periodic_x else "clamp"

    @property
    def capture_state(self) -> bool:
        """Setting that a graph of `encode` depends on, see fastds.models.graph_cache."""
        return self.periodic_x

    def set_periodic(self, periodic: bool) -> None:
        """Set whether columns are periodic. The weights do not depend on it.

        Raises:
            ValueError: If the model has `compat`, because its convolutions pad with zeros.
        """
        if self.config["compat"] and periodic:
            raise ValueError("a compat model pads with zeros and has no periodic columns")
        self.periodic_x = periodic
        mode = "zeros" if self.config["compat"] else "circular_x" if periodic else "replicate"
        module: Any
        for module in self.modules():
            if hasattr(module, "padding_mode"):
                module.padding_mode = mode
            if hasattr(module, "periodic"):
                module.periodic = periodic

    def build_grid(self, size: Sequence[int], target: Sequence[int]) -> GridSpec:
        """Build the query grid of size target = (H', W') over fields of size (H, W)."""
        if self.registration == "node":
            return GridSpec.nodes(tuple(size), tuple(target), self.periodic_x)
        return GridSpec.cells(tuple(size), tuple(target))

    def compute_target_size(self, size: Sequence[int], scale: float | Sequence[float]) -> tuple[int, int]:
        """Compute (H', W') for a scale factor or a pair of factors.

        With node registration the outer rows are shared, so H' - 1 = round((H - 1) s).

        Args:
            size: (H, W).
            scale: factor, or factors for rows and columns.

        Raises:
            ValueError: If a factor is not positive and finite.
        """
        pair = tuple(scale) if isinstance(scale, tuple | list) else (scale, scale)
        if len(pair) != 2 or any(not isinstance(s, int | float) or not 0 < s < math.inf for s in pair):
            raise ValueError(f"scale must be a positive number or a pair of them, got {scale!r}")
        node = self.registration == "node"
        last = (node, node and not self.periodic_x)
        return tuple(max(1, round((n - at) * s) + at) for n, s, at in zip(size, pair, last, strict=True))

    @capturable(finite=True)
    def encode(self, x: Tensor, factor: Tensor, static: Tensor | None = None) -> Encoded:
        """Encode fields, once for all queries.

        Args:
            x: (B, C, H, W), physical units, NaN where missing.
            factor: (B or 1, 2), scale per axis.
            static: (B or 1, S, H, W) or None.
        """
        valid = self._check_inputs(x, static)
        mean, std = (t.to(x.dtype)[:, None, None] for t in (self.mean, self.std))
        spread = mask = None
        if self.contrast_window:
            mean, std = compute_local_contrast(x, valid, self.contrast_window, self.periodic_x)
            spread = self._select_predicted(std, 1)
            std = torch.where(std > 0, std, 1)
        z = (x - mean) / std
        if valid is not None:
            z = torch.where(valid, z, 0)
            mask = self._select_predicted(valid, 1).all(1)
        parts = [z]
        if self.static_channels:
            assert static is not None
            mean, std = (t[:, None, None] for t in (self.static_mean, self.static_std))
            parts.append(((static - mean) / std).to(z.dtype).expand(z.shape[0], -1, -1, -1))
        if self.mask_channel:
            parts.append((torch.ones_like(z[:, :1]) if valid is None else valid.all(1, keepdim=True)).to(z.dtype))
        f = self._encode_features(torch.cat(parts, 1), factor)
        skip = self._select_predicted(x, 1) if self.skip else None
        return Encoded(f, skip, mask, spread)

    def _encode_features(self, z: Tensor, factor: Tensor) -> Tensor:
        e = None if self.embedding is None else self.embedding(factor.clamp(max=self.max_scale).to(self.mean.dtype))

        def between(i: int, f: Tensor) -> Tensor:
            if e is None or str(i) not in self.modules_after:
                return f
            return self.modules_after[str(i)](f, e)

        if self.pole == "clamp":
            return self.encoder(z, between)
        z, halo = pad_across_poles(z, self.registration, self.vector_channels)
        return self.encoder(z, between)[:, :, halo : z.shape[2] - halo]

    def decode(self, encoded: Encoded, where: GridSpec | PointSpec, cell: Tensor) -> Tensor:
        """Evaluate the decoder.

        Args:
            encoded: result of `encode`.
            where: grid or points with Q queries.
            cell: (B, 2) or (B, Q, 2), size of a query in half pixels of the encoded fields: 2 / s per axis for a scale
                factor s. Scale factors above max_scale count as max_scale.

        Returns:
            (B, Q, O).
        """
        cell = cell.clamp(min=2 / self.max_scale)
        gain = None if self.contrast_window else self._select_predicted(self.std, 0)
        y = decoders.decode(self.decoder, encoded, where, cell, self.edge, gain)
        return y if self.skip else y + self._select_predicted(self.mean, 0)

    def query(self, x: Tensor, where: GridSpec | PointSpec, factor: Tensor, static: Tensor | None = None) -> Tensor:
        """Evaluate the model at queries, for training.

        Args:
            x: (B, C, H, W), physical units, NaN where missing.
            where: grid or points with Q queries.
            factor: (B, 2), scale per axis.
            static: (B or 1, S, H, W) or None.

        Returns:
            (B, Q, O).
        """
        return self.decode(self.encode(x, factor, static), where, 2 / factor)

    def _select_predicted(self, x: Tensor, dim: int) -> Tensor:
        """Select the predicted channels of x, without an index list, which would be copied from the host each time."""
        if self.predicted == list(range(self.in_channels)):
            return x
        return torch.stack([x.select(dim, c) for c in self.predicted], dim)

    def _check_fields(self, x: Tensor) -> None:
        check_input("x", x, self)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {self.in_channels}, H, W)")

    def _check_inputs(self, x: Tensor, static: Tensor | None) -> Tensor | None:
        """Check x and static.

        Returns:
            The valid pixels. None if no value is missing, and while the forward is compiled or captured.

        Raises:
            ValueError: If x or static has a wrong shape.
            TypeError: If x has a wrong dtype.
        """
        self._check_fields(x)
        if (static is None) != (self.static_channels == 0) or (
            static is not None and tuple(static.shape[1:]) != (self.static_channels, *x.shape[2:])
        ):
            found = None if static is None else tuple(static.shape)
            raise ValueError(f"static has shape {found}, expected (B or 1, {self.static_channels}, H, W) of x")
        if torch.compiler.is_compiling() or is_capturing() or torch.isfinite(x.sum()):
            return None
        return torch.isfinite(x)

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
        """Downscale to a size, by a factor, or to points.

        Exactly one of size, scale and points must be given, except that points may have a scale.

        Args:
            x: (B, C, H, W), physical units, NaN where missing.
            size: (H', W'), any size, also smaller than (H, W).
            scale: factor or pair (rows, columns), any real number > 0.
            points: PointSpec over (H, W). The cell size of points is that of max_scale unless scale is given.
            static: (B or 1, S, H, W), if the model has static maps.
            supersample: number k. Each value is the mean of k x k sub-points. This is useful for cells that are larger
                than the pixels of x.
            conserve: True shifts the values within each coarse pixel so that their mean is the value of x. Needs
                integer factors and cell registration.

        Returns:
            (B, O, H', W') in channels_last, or (B, Q, O) for points; float32 (float64 for float64 fields).

        Raises:
            TypeError: If x is not floating-point, or if only one of x and the weights is float64.
            ValueError: If a shape or an option does not fit, or if a scale is not positive and finite.
        """
        if (size is not None) + (scale is not None and points is None) + (points is not None) != 1:
            raise ValueError("give exactly one of size, scale and points (points may come with a scale)")
        self._check_fields(x)
        height, width = x.shape[2:]
        if points is not None:
            self.compute_target_size((height, width), scale or 1)
            pair = scale if isinstance(scale, tuple | list) else 2 * [self.max_scale if scale is None else scale]
            return self.query(x, points, expand_to_batch(pair, x, x.dtype), static)
        target: Sequence[int]
        if size is None:
            assert scale is not None
            target = self.compute_target_size((height, width), scale)
        else:
            target = tuple(size)
        grid = self.build_grid((height, width), target)
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
            grid = self.build_grid((height, width), tuple(supersample * n for n in target))
        y = self.query(x, grid, expand_to_batch(pair, x, x.dtype), static)
        y = y.unflatten(1, grid.size).permute(0, 3, 1, 2)
        if supersample != 1:
            y = F.avg_pool2d(y, supersample)
        return self._conserve_means(x, y) if conserve else y

    def _conserve_means(self, x: Tensor, y: Tensor) -> Tensor:
        (height, width), (rows, columns) = x.shape[2:], y.shape[2:]
        if self.registration != "cell" or rows % height or columns % width:
            raise ValueError(
                f"conserve needs whole factors of cell-registered grids, got {(height, width)} to {(rows, columns)}"
            )
        factor = rows // height, columns // width
        error = self._select_predicted(x, 1) - F.avg_pool2d(y, factor)
        return y + error.repeat_interleave(factor[0], 2).repeat_interleave(factor[1], 3)

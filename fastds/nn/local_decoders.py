# SPDX-License-Identifier: Apache-2.0
"""Decoders that read feature maps at any place: local ensemble (LIIF) and attention over the corners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastds._suggestions import add_article
from fastds.nn.convolutions import BorderConv, Conv1x1, parameters_of
from fastds.ops import GridSpec, PointSpec, inr_query
from fastds.ops.core.arguments import check_counts
from fastds.ops.core.tracing import Proxy, record_layer
from fastds.ops.impl.inr_query.points import from_normalised

CLAMPED = ("clamp", "clamp")


class Trunk(nn.ModuleList):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]):
        super().__init__(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def pairs(self, gain: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer; gain multiplies the last one's outputs."""
        pairs = [parameters_of(layer) for layer in self]
        if gain is not None:
            pairs[-1] = (pairs[-1][0] * gain[:, None], pairs[-1][1] * gain)
        return pairs


def _exact(x: Tensor) -> torch.dtype:
    """The dtype of coordinates and interpolated fields for features x: half precision loses pixels."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def each_sample(pair: Sequence[float], x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same pair for every sample of x, (B, 2), made where x is: a copy from the host would wait for the device."""
    return torch.stack([torch.full((x.shape[0],), value, dtype=dtype, device=x.device) for value in pair], 1)


class LocalDecoder(nn.Module):
    """What decoders share: prepare(features) -> maps, made once a field, and query(maps, where, cell, ...) of them.

    Subclasses give prepare, trunk and options(), or a query of their own.
    """

    def __init__(self, padding_mode: str):
        super().__init__()
        self.padding_mode = padding_mode

    def forward(
        self,
        x: Tensor,
        where: Sequence[int] | GridSpec | PointSpec | Tensor,
        cell: Tensor | None = None,
        skip: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Values at places.

        Args:
            x: (B, C, H, W) features.
            where: (H', W'), a size whose cells cover the same domain; a GridSpec or PointSpec of fastds.ops; or
                coordinates (Q, 2) or (B, Q, 2), float32 or float64, (y, x) from -1 to 1 between the outer edges.
            cell: (B, 2) or (B, Q, 2), size of a query in half pixels of x. None: 2 H / H' and 2 W / W' of a size or
                GridSpec, 2 (a pixel) for points.
            skip: (B, O, H, W) field that is added by bilinear interpolation, or None.
            mask: (B, H, W) bool, False: missing, see inr_query; or None.

        Returns:
            (B, O, H', W') channels_last for a size, else (B, Q, O).
        """
        if type(x) is Proxy and x.tracer.root is not self:
            return record_layer(self, x, where, cell=cell, skip=skip, mask=mask)
        size = where if isinstance(where, tuple | list | torch.Size) else None
        edge = ("clamp", "wrap") if self.padding_mode == "circular_x" else CLAMPED
        if size is not None:
            where = GridSpec.cells(tuple(x.shape[2:]), tuple(size))
        elif isinstance(where, Tensor):
            where = from_normalised(where, tuple(x.shape[2:]), edge, dtype=_exact(x))
        elif not isinstance(where, GridSpec | PointSpec):
            kinds = "a size (rows, columns), a GridSpec, a PointSpec or a Tensor of coordinates"
            raise TypeError(f"where is {add_article(type(where).__name__)}, expected {kinds}")
        cell = self._cell(x, where) if cell is None else cell
        y = self.query(self.prepare(x), where, cell, skip, edge, mask)
        return y if size is None else y.unflatten(1, where.size).permute(0, 3, 1, 2)

    @staticmethod
    def _cell(x: Tensor, where: GridSpec | PointSpec) -> Tensor:
        axes = (where.rows, where.columns) if isinstance(where, GridSpec) else ()
        pair = [2 * axis.step / axis.den for axis in axes] or [2.0, 2.0]
        return each_sample(pair, x, _exact(x))

    def query(
        self,
        maps: Tensor,
        where: GridSpec | PointSpec,
        cell: Tensor,
        skip: Tensor | None = None,
        edge: tuple[str, str] = CLAMPED,
        mask: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> Tensor:
        """Values at places from prepared maps, as forward; gain (O,) multiplies what the trunk gives."""
        return self.ask(maps, where, self.trunk.pairs(gain), cell, skip, edge, mask, **self.options())

    def options(self) -> dict[str, Any]:
        """What inr_query makes of the maps: its keyword arguments beside those of the places."""
        raise NotImplementedError(f"{type(self).__name__} has no options of inr_query")

    def ask(
        self,
        maps: Tensor,
        where: GridSpec | PointSpec,
        trunk: Sequence[tuple[Tensor, Tensor]],
        cell: Tensor,
        skip: Tensor | None,
        edge: tuple[str, str],
        mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """inr_query with cell and skip in the precision it wants."""
        exact = _exact(maps)
        skip = None if skip is None else skip.to(exact)
        cell = cell.to(exact) if isinstance(cell, Tensor) else cell
        return inr_query(maps, where, trunk, cell=cell, skip=skip, edge=edge, mask=mask, **options)


class LocalEnsembleDecoder(LocalDecoder):
    """Local implicit image function: the same small network at the four pixels around a place, and their average.

    h_j = relu(conv(x)_j + R rho_j + Lambda kappa), y(u) = sum_j omega_j trunk(h_j) + bilinear(skip)(u)

    over the corners j at offsets rho_j with bilinear weights omega_j, kappa the size of a query (fastds.ops.inr_query).
    The first layer of the published network, linear in the unfolded 3x3 neighbourhood, offset and cell, is here a 3x3
    convolution made once a field, R and Lambda.

    Args:
        channels: C of the features. outputs: O. width, hidden: channels and number of the hidden layers after the
            first.
        padding_mode: how the border goes on: "replicate", "circular_x" (columns go round the globe, also for the
            queries) or "zeros".
        compat: "liif" weighs the corners by areas as published instead of bilinearly; it changes the numbers at whole
            coordinates of the last row and column alone, see fastds.ops.inr_query.

    Parameters: local (the convolution), offset (R) and cell (Lambda), (width, 2), trunk, the linear layers.

    Shapes: (B, C, H, W) -> (B, O, H', W') channels_last for a size, (B, Q, O) for a GridSpec, PointSpec or coordinates.

    Gradients: of features, parameters, skip and coordinates, to any order. Deterministic on a CPU.

    Raises: TypeError, ValueError: as fastds.ops.inr_query.

    Source: Chen, Liu and Wang 2021 (LIIF): local ensemble, feature unfolding and cell decoding on.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        padding_mode: str = "replicate",
        width: int = 256,
        hidden: int = 3,
        compat: str | None = None,
    ):
        super().__init__(padding_mode)
        self.compat = compat
        self.local = BorderConv(channels, width, padding_mode)
        self.offset = nn.Parameter(torch.empty(width, 2))
        self.cell = nn.Parameter(torch.empty(width, 2))
        bound = (9 * channels + 4) ** -0.5  # as one linear layer over the unfolded features would start
        for parameter in (self.local.weight, self.local.bias, self.offset, self.cell):
            nn.init.uniform_(parameter, -bound, bound)
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return self.local(features)

    def options(self) -> dict[str, Any]:
        return {"rho_w": self.offset, "cell_w": self.cell, "ensemble": "late", "compat": self.compat}


class LocalAttentionDecoder(LocalDecoder):
    """Attention over the four nearest pixels with their bilinear weights as prior, then one small network.

    h_j = relu(P_j + R rho_j + Lambda kappa), z_h = sum_j alpha_jh h_jh, y(u) = trunk(z) + bilinear(skip)(u),
    alpha_jh ~ omega_j exp(<q_h, K_jh> / sqrt(key_width) + <offset_bias_h, rho_j>), as fastds.ops.inr_query. P, K and
    the contents of q are convolutions of the features. The last layer starts at zero: an untrained decoder gives zero,
    with skip bilinear interpolation.

    Args:
        channels, outputs, padding_mode, width, hidden: as LocalEnsembleDecoder. heads, key_width: of the attention,
            width divisible by heads.
        attention: False: bilinear weights instead. slope: every pixel has its own R added to the common one, two more
            maps.

    Shapes, gradients, errors: as LocalEnsembleDecoder.

    Source: ours; Cao et al. 2023 (CiaoSR) for attention over the corners.
    """

    def __init__(
        self, channels: int, outputs: int, padding_mode: str = "replicate", width: int = 128, heads: int = 4,
        key_width: int = 16, hidden: int = 3, attention: bool = True, slope: bool = False,
    ):  # fmt: skip
        super().__init__(padding_mode)
        check_counts(width=width, heads=heads, key_width=key_width)
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads and width {width}")
        self.heads, self.key_width, self.attention = heads, key_width, attention
        self.feature = "slope" if slope else "affine"
        self.local = BorderConv(channels, width, padding_mode)
        self.slopes = BorderConv(channels, 2 * width, padding_mode) if slope else None
        if attention:
            self.key = Conv1x1(channels, heads * key_width)
            self.content = Conv1x1(channels, heads * key_width)
            self.offset_bias = nn.Parameter(torch.zeros(heads, 2))
        self.offset = nn.Parameter(0.5 * torch.randn(width, 2))
        self.cell = nn.Parameter(0.1 * torch.randn(width, 2))
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])
        nn.init.zeros_(self.trunk[-1].weight)
        nn.init.zeros_(self.trunk[-1].bias)

    def prepare(self, features: Tensor) -> Tensor:
        maps = [self.local(features)]
        if self.slopes is not None:
            maps.append(self.slopes(features))
        if self.attention:
            maps += [self.key(features), self.content(features)]
        return torch.cat(maps, 1)

    def options(self) -> dict[str, Any]:
        options = {"feature": self.feature, "rho_w": self.offset, "cell_w": self.cell, "ensemble": "early_area"}
        if self.attention:
            options |= {"ensemble": "early_attn", "heads": self.heads, "dk": self.key_width}
            options["rho_bias"] = self.offset_bias
        return options

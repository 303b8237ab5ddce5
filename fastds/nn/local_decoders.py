# SPDX-License-Identifier: Apache-2.0
"""Decoders that evaluate feature maps at any point, by a local ensemble (LIIF) or by attention.

Both kinds of decoder combine the features of the four nearest pixels.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastds._suggestions import add_article
from fastds.nn.convolutions import Conv1x1, PaddedConv3x3, get_parameters
from fastds.ops import GridSpec, PointSpec, inr_query
from fastds.ops.core.arguments import check_positive_ints
from fastds.ops.core.tracing import Proxy, record_layer
from fastds.ops.impl.inr_query.points import from_normalised

CLAMPED = ("clamp", "clamp")


class Trunk(nn.ModuleList):
    """Linear layers with ReLU between them.

    Args:
        widths: channels of the input and of the output of each layer.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def get_layers(self, gain: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Return (weight, bias) of each layer; gain (O,) multiplies the outputs of the last layer."""
        pairs: list[Any] = [get_parameters(layer) for layer in self]
        if gain is not None:
            pairs[-1] = (pairs[-1][0] * gain[:, None], pairs[-1][1] * gain)
        return pairs


def _get_compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of coordinates and interpolated fields for features x: float64 for float64, else float32.

    16-bit dtypes are not used, because they cannot resolve pixels.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def expand_to_batch(pair: Sequence[float], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Repeat a pair of numbers for each sample of a batch, on the device of x.

    A copy from the host would synchronize with the device.

    Args:
        pair: two numbers.
        x: (B, ...), the batch.
        dtype: dtype of the result.

    Returns:
        (B, 2).
    """
    return torch.stack([torch.full((x.shape[0],), value, dtype=dtype, device=x.device) for value in pair], 1)


class LocalDecoder(nn.Module):
    """Base class of decoders.

    prepare(features) computes the maps of a field, and query(maps, where, cell, ...) evaluates them. Subclasses define
    prepare, and either `trunk` and options() or their own query.

    Args:
        padding_mode: str, "replicate", "circular_x" or "zeros".
    """

    trunk: Any  # a Trunk, in subclasses that use the default query
    prepare: Callable[..., Tensor]  # prepare(features) of a subclass

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
        """Evaluate features at points.

        Args:
            x: (B, C, H, W), features.
            where: (H', W'), a grid size whose cells cover the same domain; a GridSpec or PointSpec of fastds.ops; or
                coordinates (Q, 2) or (B, Q, 2), float32 or float64, (y, x) from -1 to 1 between the outer edges.
            cell: (B, 2) or (B, Q, 2), size of a query in half pixels of x. None: the spacing of the grid for a size or
                GridSpec, 2 (one pixel) for points.
            skip: (B, O, H, W), field that is added by bilinear interpolation, or None.
            mask: (B, H, W) bool, False for missing pixels (see inr_query), or None.

        Returns:
            (B, O, H', W') channels_last for a size, else (B, Q, O).

        Raises:
            TypeError: `where` has another type, or see fastds.ops.inr_query.
            ValueError: see fastds.ops.inr_query.
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x, where, cell=cell, skip=skip, mask=mask)
        size = where if isinstance(where, tuple | list | torch.Size) else None
        edge = ("clamp", "wrap") if self.padding_mode == "circular_x" else CLAMPED
        if size is not None:
            where = GridSpec.cells(tuple(x.shape[2:]), tuple(size))
        elif isinstance(where, Tensor):
            where = from_normalised(where, tuple(x.shape[2:]), edge, dtype=_get_compute_dtype(x))
        elif not isinstance(where, GridSpec | PointSpec):
            kinds = "a size (rows, columns), a GridSpec, a PointSpec or a Tensor of coordinates"
            raise TypeError(f"where is {add_article(type(where).__name__)}, expected {kinds}")
        cell = self._cell(x, where) if cell is None else cell
        y = self.query(self.prepare(x), where, cell, skip, edge, mask)
        return y if size is None else y.unflatten(1, tuple(size)).permute(0, 3, 1, 2)

    @staticmethod
    def _cell(x: Tensor, where: GridSpec | PointSpec) -> Tensor:
        axes = (where.rows, where.columns) if isinstance(where, GridSpec) else ()
        pair = [2 * axis.step / axis.den for axis in axes] or [2.0, 2.0]
        return expand_to_batch(pair, x, _get_compute_dtype(x))

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
        """Evaluate prepared maps at points.

        Args:
            maps: (B, M, H, W), result of prepare.
            where: GridSpec or PointSpec.
            cell: (B, 2) or (B, Q, 2), size of a query in half pixels of the maps.
            skip: (B, O, H, W), field that is added by bilinear interpolation, or None.
            edge: pair of "clamp" or "wrap" for rows and columns.
            mask: (B, H, W) bool, False for missing pixels, or None.
            gain: (O,), factors of the trunk's outputs, or None.

        Returns:
            (B, Q, O).
        """
        return self.call_inr_query(maps, where, self.trunk.get_layers(gain), cell, skip, edge, mask, **self.options())

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of inr_query that do not depend on the query points."""
        raise NotImplementedError(f"{type(self).__name__} has no options of inr_query")

    def call_inr_query(
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
        """Call inr_query with cell and skip in the compute dtype.

        Args:
            maps: (B, M, H, W), result of prepare.
            where: GridSpec or PointSpec.
            trunk: pairs (weight, bias).
            cell: size of a query in half pixels of the maps.
            skip: (B, O, H, W) or None.
            edge: pair of "clamp" or "wrap" for rows and columns.
            mask: (B, H, W) bool or None.
            **options: other keyword arguments of inr_query.

        Returns:
            (B, Q, O).
        """
        exact = _get_compute_dtype(maps)
        skip = None if skip is None else skip.to(exact)
        cell = cell.to(exact) if isinstance(cell, Tensor) else cell
        return inr_query(maps, where, trunk, cell=cell, skip=skip, edge=edge, mask=mask, **options)


class LocalEnsembleDecoder(LocalDecoder):
    """Local implicit image function: a weighted mean of a small network's outputs at the four nearest pixels.

    h_j = relu(conv(x)_j + R rho_j + Lambda kappa), y(u) = sum_j omega_j trunk(h_j) + bilinear(skip)(u)

    The sum is over the corners j, which have offsets rho_j and bilinear weights omega_j; kappa is the size of a query
    (see fastds.ops.inr_query). The first layer of the published network is linear in the unfolded 3x3 neighbourhood,
    the offset and the cell. Here a 3x3 convolution, computed once for a field, and the matrices R and Lambda replace
    it.

    Args:
        in_channels: int, C, channels of the features.
        out_channels: int, O.
        padding_mode: str, padding of the 3x3 convolution: "replicate", "circular_x" (columns wrap around, also for
            queries) or "zeros".
        width: int, channels of the hidden layers.
        hidden: int, number of hidden layers after the first.
        compat: "liif" or None. "liif" weights the corners by areas, as published, instead of bilinearly. The results
            differ only at integer coordinates of the last row and column, see fastds.ops.inr_query.

    Raises:
        ValueError: in_channels or width is not a positive integer.

    Parameters: local (the convolution), offset (R) and cell (Lambda), both (width, 2), and trunk (the linear layers).

    Shapes: (B, C, H, W) -> (B, O, H', W') channels_last for a size, (B, Q, O) for a GridSpec, PointSpec or coordinates.

    Gradients exist for features, parameters, skip and coordinates, to any order. Results are deterministic on a CPU.

    Source: Chen, Liu and Wang 2021 (LIIF), with local ensemble, feature unfolding and cell decoding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding_mode: str = "replicate",
        width: int = 256,
        hidden: int = 3,
        compat: str | None = None,
    ):
        super().__init__(padding_mode)
        self.compat = compat
        self.local = PaddedConv3x3(in_channels, width, padding_mode=padding_mode)
        self.offset = nn.Parameter(torch.empty(width, 2))
        self.cell = nn.Parameter(torch.empty(width, 2))
        bound = (9 * in_channels + 4) ** -0.5  # that of one linear layer over the unfolded features
        for parameter in (*self.local.parameters(), self.offset, self.cell):
            nn.init.uniform_(parameter, -bound, bound)
        self.trunk = Trunk([width] * (hidden + 1) + [out_channels])

    def prepare(self, features: Tensor) -> Tensor:
        """Compute the maps that inr_query evaluates.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, width, H, W).
        """
        return self.local(features)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of inr_query that do not depend on the query points."""
        return {"rho_w": self.offset, "cell_w": self.cell, "ensemble": "late", "compat": self.compat}


class LocalAttentionDecoder(LocalDecoder):
    """Attention over the four nearest pixels with their bilinear weights as prior, followed by a small network.

    h_j = relu(P_j + R rho_j + Lambda kappa), z_h = sum_j alpha_jh h_jh, y(u) = trunk(z) + bilinear(skip)(u),
    alpha_jh ~ omega_j exp(<q_h, K_jh> / sqrt(key_width) + <offset_bias_h, rho_j>)

    The symbols are explained in fastds.ops.inr_query. P, the keys K and the contents that q interpolates are
    convolutions of the features. The last layer is initialized to zero, so that an untrained decoder returns zero, or
    the bilinear interpolation of skip.

    Args:
        in_channels: int, C, channels of the features.
        out_channels: int, O.
        padding_mode: str, see LocalEnsembleDecoder.
        width: int, channels of the hidden layers, divisible by heads.
        heads: int, number of attention heads.
        key_width: int, key channels of each head.
        hidden: int, number of hidden layers of the trunk.
        attention: bool, whether to use attention. If False, the weights are bilinear.
        slope: bool, whether each pixel adds its own matrix to R, which needs 2 * width more map channels.

    Raises:
        ValueError: heads does not divide width, or an argument is not a positive integer.

    Shapes and gradients are those of LocalEnsembleDecoder.

    Source: specific to fastds; Cao et al. 2023 (CiaoSR) for attention over the corners.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, padding_mode: str = "replicate", width: int = 128, heads: int = 4,
        key_width: int = 16, hidden: int = 3, attention: bool = True, slope: bool = False,
    ):  # fmt: skip
        super().__init__(padding_mode)
        check_positive_ints(width=width, heads=heads, key_width=key_width)
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads and width {width}")
        self.heads, self.key_width, self.attention = heads, key_width, attention
        self.feature = "slope" if slope else "affine"
        self.local = PaddedConv3x3(in_channels, width, padding_mode=padding_mode)
        self.slopes = PaddedConv3x3(in_channels, 2 * width, padding_mode=padding_mode) if slope else None
        if attention:
            self.key = Conv1x1(in_channels, heads * key_width)
            self.content = Conv1x1(in_channels, heads * key_width)
            self.offset_bias = nn.Parameter(torch.zeros(heads, 2))
        self.offset = nn.Parameter(0.5 * torch.randn(width, 2))
        self.cell = nn.Parameter(0.1 * torch.randn(width, 2))
        self.trunk = Trunk([width] * (hidden + 1) + [out_channels])
        nn.init.zeros_(self.trunk[-1].weight)
        nn.init.zeros_(self.trunk[-1].bias)

    def prepare(self, features: Tensor) -> Tensor:
        """Compute the maps that inr_query evaluates.

        Args:
            features: (B, C, H, W).

        Returns:
            (B, M, H, W), the channels of P, then those of the slopes, K and the contents, if the decoder has them.
        """
        maps = [self.local(features)]
        if self.slopes is not None:
            maps.append(self.slopes(features))
        if self.attention:
            maps += [self.key(features), self.content(features)]
        return torch.cat(maps, 1)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of inr_query that do not depend on the query points."""
        options: dict[str, Any] = {
            "feature": self.feature,
            "rho_w": self.offset,
            "cell_w": self.cell,
            "ensemble": "early_area",
        }
        if self.attention:
            options |= {"ensemble": "early_attn", "heads": self.heads, "dk": self.key_width}
            options["rho_bias"] = self.offset_bias
        return options

# SPDX-License-Identifier: Apache-2.0
"""Query points of a field: grids in exact integers, and scattered points as a pixel and a fraction.

On an axis of n cells the index coordinate u is i at the centre of cell i, and the domain extends from u = -1/2 to
n - 1/2. The normalised coordinate is x = -1 + (2u + 1) / n. Pairs are (row, column), that is (y, x).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastds._options import OptionError, spell_value
from fastds.ops.core.arguments import is_int

OUTSIDE = ("error", "nan", "clamp")
EDGES = ("clamp", "wrap")
_BORDER_TOLERANCE = 1e-6  # pixels beyond the domain, which ends half a pixel beyond the outer centres


def check_axis(size: int, step: int, start: int, den: int) -> None:
    """Raise ValueError unless an Axis can be computed in 64-bit integers and its pixels fit 32-bit integers.

    Args:
        size: number of points.
        step: numerator of the spacing.
        start: numerator of the first coordinate.
        den: denominator.
    """
    ends = max(abs(start), abs(start + step * (size - 1)))
    if size < 0 or den < 1 or max(size, abs(step), den, ends) >= 1 << 62 or ends >= den << 31:
        raise ValueError(
            "Axis needs integers with size >= 0 and den >= 1, below 2^62, and coordinates within 2^31 pixels, "
            f"got {(size, step, start, den)}"
        )


@dataclass(frozen=True)
class Axis:
    """Equally spaced index coordinates in exact integers, u_k = (start + step * k) / den for k = 0 .. size-1.

    Args:
        size: int, number of points.
        step: int, numerator of the spacing.
        start: int, numerator of the first coordinate.
        den: int, denominator.

    Raises:
        ValueError: a number is not an integer or too large for 64-bit arithmetic, or a coordinate is 2^31 or more.
    """

    size: int
    step: int
    start: int
    den: int

    def __post_init__(self):
        numbers = (self.size, self.step, self.start, self.den)
        if not all(map(is_int, numbers)):
            raise ValueError(f"Axis needs integers, got {numbers}")
        check_axis(*numbers)

    def window(self, first: int, stop: int) -> "Axis":
        """Return the Axis of the points first .. stop-1 of this axis."""
        if not 0 <= first <= stop <= self.size:
            raise ValueError(f"window {first}:{stop} does not lie in 0:{self.size}")
        return Axis(stop - first, self.step, self.start + self.step * first, self.den)

    def locate(self, device=None) -> tuple[Tensor, Tensor]:
        """Return floor(u) as int64 and u - floor(u) as float64. Only the division of the fraction rounds."""
        numerator = self.start + self.step * torch.arange(self.size, dtype=torch.int64, device=device)
        base = torch.div(numerator, self.den, rounding_mode="floor")
        return base, (numerator - base * self.den).double() / self.den


def _check_size(name: str, size, least: int = 1) -> tuple[int, int]:
    """Return the size as a tuple of two ints, or raise ValueError unless it is a pair of ints >= least."""
    if not isinstance(size, tuple | list | torch.Size) or len(size) != 2:
        raise ValueError(f"{name} must be a pair (rows, columns), got {size!r}")
    if not all(is_int(v) and v >= least for v in size):
        raise ValueError(f"{name} must be two ints >= {least}, got {tuple(size)}")
    return tuple(size)


@dataclass(frozen=True)
class GridSpec:
    """All points of a grid, row by row: Q = rows.size * columns.size. Coordinates are computed from integers.

    Args:
        rows: Axis of the row coordinates.
        columns: Axis of the column coordinates.
    """

    rows: Axis
    columns: Axis

    @classmethod
    def cells(cls, source, target) -> "GridSpec":
        """Build the grid of the cell centres of another size over the same domain.

        u_k = ((2k+1) n - m) / 2m, as torch's interpolate places pixels with align_corners=False

        Args:
            source: (H, W) of the maps.
            target: (H', W') of the grid.

        Returns:
            the GridSpec.
        """
        pairs = zip(_check_size("source", source), _check_size("target", target, 0), strict=True)
        return cls(*(Axis(m, 2 * n, n - m, max(1, 2 * m)) for n, m in pairs))

    @classmethod
    def nodes(cls, source, target, periodic_x: bool = False) -> "GridSpec":
        """Build a grid of nodes whose first and last rows are those of the maps, as in ERA5 with rows at the poles.

        u_k = k (n-1) / (m-1); with periodic_x columns have u_k = k n / m, so that the first columns coincide.

        Args:
            source: (H, W) of the maps.
            target: (H', W') of the grid.
            periodic_x: bool, whether the columns cover a full circle.

        Returns:
            the GridSpec.
        """
        (height, width), (rows, columns) = _check_size("source", source), _check_size("target", target)
        across = Axis(columns, width, 0, columns) if periodic_x else _make_node_axis(width, columns)
        return cls(_make_node_axis(height, rows), across)

    @classmethod
    def corners(cls, source, target) -> "GridSpec":
        """Build a grid at the upper left corners of cells instead of their centres, u_k = k n / m, as MetaSR does.

        Args:
            source: (H, W) of the maps.
            target: (H', W') of the grid.

        Returns:
            the GridSpec.
        """
        return cls(
            *(
                Axis(m, n, 0, m)
                for n, m in zip(_check_size("source", source), _check_size("target", target), strict=True)
            )
        )

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.rows.size, self.columns.size

    @property
    def count(self) -> int:
        """Number of points."""
        return self.rows.size * self.columns.size

    def window(self, rows: tuple[int, int], columns: tuple[int, int]) -> "GridSpec":
        """Return a rectangular part of this grid.

        Args:
            rows: first row and last row + 1.
            columns: first column and last column + 1.
        """
        return GridSpec(self.rows.window(*rows), self.columns.window(*columns))

    def numbers(self) -> list[int]:
        """Return size, step, start and den of the rows, then of the columns."""
        y, x = self.rows, self.columns
        return [y.size, y.step, y.start, y.den, x.size, x.step, x.start, x.den]

    def points(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> "PointSpec":
        """Return the same points as a PointSpec of batch 1.

        Args:
            device: device of the coordinates. None: the default device.
            dtype: dtype of the fractions.
        """
        (i, t), (j, r) = self.rows.locate(device), self.columns.locate(device)
        pair = [torch.meshgrid(*p, indexing="ij") for p in ((i, j), (t, r))]
        base, frac = (torch.stack([a.reshape(-1), b.reshape(-1)], -1)[None] for a, b in pair)
        return PointSpec(base.int(), frac.to(dtype))


def _make_node_axis(n: int, m: int) -> Axis:
    if m == 1 and n > 1:
        raise ValueError(f"target must have at least two rows and columns for a node grid over {n} nodes, got 1")
    return Axis(m, n - 1, 0, max(1, m - 1))


@dataclass(frozen=True)
class PointSpec:
    """Scattered points with index coordinates base + frac.

    Args:
        base: (B or 1, Q, 2) int32, floor of the index coordinates (row, column).
        frac: (B or 1, Q, 2) float32 or float64 in [0, 1], the remainder. In float32 its rounding error is at most 6e-8
            pixels for any grid size.
        outside: (B or 1, Q) bool, True for points whose value is NaN, or None.

    Raises:
        TypeError: base is not int32, or frac is neither float32 nor float64.
        ValueError: the shapes do not match.
    """

    base: Tensor
    frac: Tensor
    outside: Tensor | None = None

    def __post_init__(self):
        if not isinstance(self.base, Tensor) or self.base.dtype != torch.int32:
            raise TypeError(f"base must be an int32 Tensor, got {getattr(self.base, 'dtype', type(self.base))}")
        if not isinstance(self.frac, Tensor) or self.frac.dtype not in (torch.float32, torch.float64):
            found = getattr(self.frac, "dtype", type(self.frac))
            raise TypeError(
                f"frac must be a float32 or float64 Tensor (half precision cannot resolve pixels), got {found}"
            )
        if self.base.dim() != 3 or self.base.shape[-1] != 2 or self.frac.shape != self.base.shape:
            shapes = tuple(self.base.shape), tuple(self.frac.shape)
            raise ValueError(f"base and frac must both have shape (B, Q, 2), got {shapes[0]} and {shapes[1]}")
        if self.outside is not None and tuple(self.outside.shape) != tuple(self.base.shape[:2]):
            raise ValueError(f"outside has shape {tuple(self.outside.shape)}, expected {tuple(self.base.shape[:2])}")

    @property
    def count(self) -> int:
        """Number of points of each sample."""
        return self.base.shape[1]

    def to(self, device: torch.device | str) -> "PointSpec":
        """Return the same points on a device.

        Args:
            device: target device.
        """
        moved: Any = (t if t is None else t.to(device) for t in (self.base, self.frac, self.outside))
        return PointSpec(*moved)


def from_index(u: Tensor, size, edge=("clamp", "clamp"), outside: str = "error", dtype=torch.float32) -> PointSpec:
    """Build points from index coordinates.

    Args:
        u: (Q, 2) or (B or 1, Q, 2) float32 or float64, (row, column) in pixels of the maps. It may require a gradient.
        size: (H, W) of the maps.
        edge: pair of "clamp" or "wrap" for rows and columns. On a wrapped axis no point is outside.
        outside: "error", "nan" or "clamp", for points more than half a pixel beyond the outer centres. "error" raises
            ValueError, "nan" gives NaN, and "clamp" gives the value at the border.
        dtype: dtype of frac.

    Returns:
        PointSpec.

    Raises:
        TypeError: u is neither a float32 nor a float64 tensor.
        ValueError: a shape or option is invalid, a coordinate is not finite, or a point is outside with "error".
    """
    if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"coordinates must be a float32 or float64 Tensor, got {getattr(u, 'dtype', type(u).__name__)}")
    _check_pairs(u)
    u = u[None] if u.dim() == 2 else u
    if outside not in OUTSIDE:
        raise OptionError("outside", f"must be one of {', '.join(OUTSIDE)}, got {outside!r}")
    height, width = _check_size("size", size)
    u = u.double()
    if not torch.isfinite(u).all():
        raise ValueError("coordinates must be finite, got NaN or infinity")
    parts, worst, beyond = [], 0.0, torch.zeros(u.shape[:2], dtype=torch.bool, device=u.device)
    for axis, n, mode in zip(u.unbind(-1), (height, width), check_edge(edge), strict=True):
        if mode == "clamp":
            off = (axis < -0.5 - _BORDER_TOLERANCE) | (axis > n - 0.5 + _BORDER_TOLERANCE)
            if off.any():
                worst = max(worst, (axis - (n - 1) / 2).abs().max().item() - (n - 1) / 2)
            beyond |= off
            axis = axis.clamp(-0.5, n - 0.5)
        parts.append(axis)
    if outside == "error" and worst > 0:
        raise ValueError(
            f"{int(beyond.sum())} of {beyond.numel()} points lie outside the domain, the farthest {worst:.4g} pixels "
            f"beyond the outer centres (half a pixel is allowed); {spell_value('outside', 'nan', 'clamp')} accepts them"
        )
    u = torch.stack(parts, -1)
    base = torch.floor(u.detach())
    return PointSpec(base.int(), (u - base).to(dtype), beyond if outside == "nan" else None)


def _check_pairs(coordinates: Tensor) -> None:
    if coordinates.dim() not in (2, 3) or coordinates.shape[-1] != 2:
        raise ValueError(f"coordinates have shape {tuple(coordinates.shape)}, expected (Q, 2) or (B, Q, 2)")


def from_normalised(coord: Tensor, size, edge=("clamp", "clamp"), outside="error", dtype=torch.float32) -> PointSpec:
    """Build points from normalised coordinates (y, x), which are -1 and 1 at the ends of the domain.

    u = ((x + 1) n - 1) / 2 per axis

    Args:
        coord: (Q, 2) or (B or 1, Q, 2) float32 or float64; the computation is in float64.
        size: (H, W) of the maps.
        edge: see from_index.
        outside: see from_index.
        dtype: dtype of frac.

    Returns:
        PointSpec.

    Raises:
        TypeError: coord is neither a float32 nor a float64 tensor.
        ValueError: see from_index.
    """
    if not isinstance(coord, Tensor) or coord.dtype not in (torch.float32, torch.float64):
        found = getattr(coord, "dtype", type(coord).__name__)
        raise TypeError(
            f"coord must be a float32 or float64 Tensor (half precision cannot resolve pixels), got {found}"
        )
    _check_pairs(coord)
    n = torch.tensor(_check_size("size", size), dtype=torch.float64, device=coord.device)
    return from_index(((coord.double() + 1) * n - 1) / 2, size, edge, outside, dtype)


def from_latlon(lat, lon, grid_lat, grid_lon, *, periodic_x=False, outside="error", dtype=torch.float32) -> PointSpec:
    """Build points from latitudes and longitudes, on a regular grid given by its coordinate arrays.

    u = (phi - phi_0) / d_phi per axis, with the first coordinate phi_0 and the step d_phi. This holds whether the
    coordinates are cell centres or nodes. Longitudes may be in -180..180 or 0..360.

    Args:
        lat: (Q,) degrees.
        lon: (Q,) degrees.
        grid_lat: (H,) degrees, equally spaced, ascending or descending.
        grid_lon: (W,) degrees, equally spaced, ascending or descending.
        periodic_x: bool, whether the grid covers all longitudes: W * d_lon = 360.
        outside: see from_index.
        dtype: dtype of frac.

    Returns:
        PointSpec.

    Raises:
        ValueError: a latitude is beyond 90 degrees (it may be swapped with a longitude); lat and lon differ in length;
            grid coordinates are unsorted, repeated or not equally spaced; periodic_x is True for a grid that does not
            cover 360 degrees; or a point is outside with "error".
    """
    lat, lon, grid_lat, grid_lon = (
        torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (lat, lon, grid_lat, grid_lon)
    )
    if lat.shape != lon.shape:
        raise ValueError(f"lat has {lat.numel()} values, lon has {lon.numel()}, expected the same number")
    for name, values in (("lat", lat), ("grid_lat", grid_lat)):
        if values.numel() and not values.abs().max() <= 90 + 1e-9:
            worst = values.abs().max().item()
            raise ValueError(f"{name} reaches {worst:g}, expected degrees within 90; are lat and lon swapped?")
    step_y, step_x = get_spacing("grid_lat", grid_lat), get_spacing("grid_lon", grid_lon)
    if periodic_x and not math.isclose(abs(step_x) * grid_lon.numel(), 360, rel_tol=1e-4):
        raise ValueError(f"periodic_x: grid_lon spans {abs(step_x) * grid_lon.numel():g} degrees, expected 360")
    # Shift each longitude by multiples of 360 degrees to within 180 degrees of the middle of the grid.
    middle = (grid_lon[0] + grid_lon[-1]) / 2
    lon = middle + torch.remainder(lon - middle + 180, 360) - 180
    u = torch.stack([(lat - grid_lat[0]) / step_y, (lon - grid_lon[0]) / step_x], -1)
    edge = ("clamp", "wrap" if periodic_x else "clamp")
    return from_index(u, (grid_lat.numel(), grid_lon.numel()), edge, outside, dtype)


def get_spacing(name: str, values: Tensor) -> float:
    """Return the mean step of equally spaced coordinates, negative if they descend.

    Steps may differ from the mean by a thousandth of it, or by the rounding of coordinates to float32.

    Args:
        name: str, name of the coordinates in error messages.
        values: (N,), the coordinates.

    Raises:
        ValueError: there are fewer than two values, or they are not finite or not equally spaced.
    """
    if values.numel() < 2:
        raise ValueError(f"{name} has {values.numel()} values, expected at least two")
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} has {count} missing value{'s' * (count > 1)}")
    steps = values.diff()
    mean = ((values[-1] - values[0]) / (values.numel() - 1)).item()
    if not (steps * mean > 0).all():
        raise ValueError(f"{name} must be strictly ascending or descending, it repeats or is unsorted")
    rounding = 4 * 2.0**-24 * values.abs().max().item()
    if (steps - mean).abs().max() > max(1e-3 * abs(mean), rounding):
        raise ValueError(f"{name} must be equally spaced, steps vary from {steps.min():g} to {steps.max():g}")
    return mean


def check_edge(edge) -> tuple[str, str]:
    """Return `edge` as a tuple, or raise ValueError unless it is a pair of "clamp" or "wrap"."""
    if not isinstance(edge, tuple | list) or len(edge) != 2 or any(e not in EDGES for e in edge):
        raise ValueError(f"edge must be a pair of 'clamp' or 'wrap' for rows and columns, got {edge!r}")
    return tuple(edge)

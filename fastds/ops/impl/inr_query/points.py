# SPDX-License-Identifier: Apache-2.0
"""Where a field is asked for: whole grids as integers, scattered points as a cell and a position in it.

Index coordinate u on an axis of n cells: the centre of cell i is u = i, the domain ends at u = -1/2 and n - 1/2. The
normalised coordinate is x = -1 + (2u + 1) / n. Pairs are (row, column), that is (y, x).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastds.ops.core.arguments import is_int

OUTSIDE = ("error", "nan", "clamp")
EDGES = ("clamp", "wrap")
_BORDER_TOLERANCE = 1e-6  # tolerance of the half-pixel rim in pixels


def check_axis(size: int, step: int, start: int, den: int) -> None:
    """ValueError unless 64-bit arithmetic holds the numbers of an Axis and 32-bit integers its pixels."""
    ends = max(abs(start), abs(start + step * (size - 1)))
    if size < 0 or den < 1 or max(size, abs(step), den, ends) >= 1 << 62 or ends >= den << 31:
        raise ValueError(
            "Axis needs integers with size >= 0 and den >= 1, below 2^62, and coordinates within 2^31 pixels, "
            f"got {(size, step, start, den)}"
        )


@dataclass(frozen=True)
class Axis:
    """Equally spaced index coordinates in exact integers: u_k = (start + step * k) / den, k = 0 .. size-1.

    Raises ValueError for numbers that are no integers or too large for 64-bit arithmetic, and coordinates from 2^31 on.
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
        """Points first .. stop-1 of this axis."""
        if not 0 <= first <= stop <= self.size:
            raise ValueError(f"window {first}:{stop} does not lie in 0:{self.size}")
        return Axis(stop - first, self.step, self.start + self.step * first, self.den)

    def locate(self, device=None) -> tuple[Tensor, Tensor]:
        """floor(u) as int64 and u - floor(u) as float64, both exact up to the last division."""
        numerator = self.start + self.step * torch.arange(self.size, dtype=torch.int64, device=device)
        base = torch.div(numerator, self.den, rounding_mode="floor")
        return base, (numerator - base * self.den).double() / self.den


def _check_size(name: str, size, least: int = 1) -> tuple[int, int]:
    if not isinstance(size, tuple | list | torch.Size) or len(size) != 2:
        raise ValueError(f"{name} must be a pair (rows, columns), got {size!r}")
    if not all(is_int(v) and v >= least for v in size):
        raise ValueError(f"{name} must be two ints >= {least}, got {tuple(size)}")
    return tuple(size)


@dataclass(frozen=True)
class GridSpec:
    """Every point of a grid, row by row: Q = rows.size * columns.size. Coordinates are made from the integers."""

    rows: Axis
    columns: Axis

    @classmethod
    def cells(cls, source, target) -> "GridSpec":
        """Cell-registered grids over the same domain, as torch's align_corners=False: u_k = ((2k+1) n - m) / 2m.

        Args:
            source: (H, W) of the maps. target: (H', W') asked for.
        """
        pairs = zip(_check_size("source", source), _check_size("target", target, 0), strict=True)
        return cls(*(Axis(m, 2 * n, n - m, max(1, 2 * m)) for n, m in pairs))

    @classmethod
    def nodes(cls, source, target, periodic_x: bool = False) -> "GridSpec":
        """Node-registered grids whose first and last rows coincide, such as ERA5 with both poles.

        u_k = k (n-1) / (m-1); columns too, unless periodic_x: then u_k = k n / m from a common first meridian.
        """
        (height, width), (rows, columns) = _check_size("source", source), _check_size("target", target)
        across = Axis(columns, width, 0, columns) if periodic_x else _make_node_axis(width, columns)
        return cls(_make_node_axis(height, rows), across)

    @classmethod
    def corners(cls, source, target) -> "GridSpec":
        """Upper-left corners instead of centres, u_k = k n / m: the projection of MetaSR."""
        return cls(
            *(
                Axis(m, n, 0, m)
                for n, m in zip(_check_size("source", source), _check_size("target", target), strict=True)
            )
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    @property
    def count(self) -> int:
        return self.rows.size * self.columns.size

    def window(self, rows: tuple[int, int], columns: tuple[int, int]) -> "GridSpec":
        """The points rows[0] .. rows[1]-1 by columns[0] .. columns[1]-1 of this grid."""
        return GridSpec(self.rows.window(*rows), self.columns.window(*columns))

    def numbers(self) -> list[int]:
        """size, step, start, den of rows, then of columns."""
        return [v for a in (self.rows, self.columns) for v in (a.size, a.step, a.start, a.den)]

    def points(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> "PointSpec":
        """The same points as a PointSpec of batch 1."""
        (i, t), (j, r) = self.rows.locate(device), self.columns.locate(device)
        pair = [torch.meshgrid(*p, indexing="ij") for p in ((i, j), (t, r))]
        base, frac = (torch.stack([a.reshape(-1), b.reshape(-1)], -1)[None] for a, b in pair)
        return PointSpec(base.int(), frac.to(dtype))


def _make_node_axis(n: int, m: int) -> Axis:
    if m == 1 and n > 1:
        raise ValueError(f"target has one row or column, which no node grid over {n} nodes has")
    return Axis(m, n - 1, 0, max(1, m - 1))


@dataclass(frozen=True)
class PointSpec:
    """Scattered points: index coordinate = base + frac.

    Args:
        base: (B or 1, Q, 2) int32, floor of (row, column) index coordinates.
        frac: (B or 1, Q, 2) float32 or float64 in [0, 1], the rest; together exact to 6e-8 px at any grid size.
        outside: (B or 1, Q) bool, points whose value is NaN, or None.
    """

    base: Tensor
    frac: Tensor
    outside: Tensor | None = None

    def __post_init__(self):
        if not isinstance(self.base, Tensor) or self.base.dtype != torch.int32:
            raise TypeError(f"base must be an int32 Tensor, got {getattr(self.base, 'dtype', type(self.base))}")
        if not isinstance(self.frac, Tensor) or self.frac.dtype not in (torch.float32, torch.float64):
            found = getattr(self.frac, "dtype", type(self.frac))
            raise TypeError(f"frac must be a float32 or float64 Tensor (half precision loses pixels), got {found}")
        if self.base.dim() != 3 or self.base.shape[-1] != 2 or self.frac.shape != self.base.shape:
            shapes = tuple(self.base.shape), tuple(self.frac.shape)
            raise ValueError(f"base and frac must both have shape (B, Q, 2), got {shapes[0]} and {shapes[1]}")
        if self.outside is not None and tuple(self.outside.shape) != tuple(self.base.shape[:2]):
            raise ValueError(f"outside has shape {tuple(self.outside.shape)}, expected {tuple(self.base.shape[:2])}")

    @property
    def count(self) -> int:
        return self.base.shape[1]

    def to(self, device: torch.device | str) -> "PointSpec":
        """The same points on a device."""
        return PointSpec(*(t if t is None else t.to(device) for t in (self.base, self.frac, self.outside)))


def from_index(u: Tensor, size, edge=("clamp", "clamp"), outside: str = "error", dtype=torch.float32) -> PointSpec:
    """Points given by index coordinates.

    Args:
        u: (Q, 2) or (B or 1, Q, 2) float32 or float64, (row, column) in pixels of the maps; may require grad.
        size: (H, W) of the maps.
        edge: per axis "clamp" or "wrap"; a wrapped axis has no outside.
        outside: what a point more than half a pixel beyond the outer centres gets: "error" raises, "nan" gives NaN,
            "clamp" the value at the rim.
        dtype: of frac.

    Raises:
        TypeError, ValueError: another dtype or shape, an unknown option, a coordinate that is not finite, or a point
            outside under "error".
    """
    if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"coordinates must be a float32 or float64 Tensor, got {getattr(u, 'dtype', type(u).__name__)}")
    _check_pairs(u)
    u = u[None] if u.dim() == 2 else u
    if outside not in OUTSIDE:
        raise ValueError(f"outside must be one of {', '.join(OUTSIDE)}, got {outside!r}")
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
            "beyond the outer centres (half a pixel is allowed); outside='nan' or 'clamp' accepts them"
        )
    u = torch.stack(parts, -1)
    base = torch.floor(u.detach())
    return PointSpec(base.int(), (u - base).to(dtype), beyond if outside == "nan" else None)


def _check_pairs(coordinates: Tensor) -> None:
    if coordinates.dim() not in (2, 3) or coordinates.shape[-1] != 2:
        raise ValueError(f"coordinates have shape {tuple(coordinates.shape)}, expected (Q, 2) or (B, Q, 2)")


def from_normalised(coord: Tensor, size, edge=("clamp", "clamp"), outside="error", dtype=torch.float32) -> PointSpec:
    """Points given by normalised coordinates (y, x), -1 and 1 at the ends of the domain: u = ((x + 1) n - 1) / 2.

    Args, errors: as from_index; coord may be float32 or float64, the arithmetic is float64.
    """
    if not isinstance(coord, Tensor) or coord.dtype not in (torch.float32, torch.float64):
        found = getattr(coord, "dtype", type(coord).__name__)
        raise TypeError(f"coord must be a float32 or float64 Tensor (half precision loses pixels), got {found}")
    _check_pairs(coord)
    n = torch.tensor(_check_size("size", size), dtype=torch.float64, device=coord.device)
    return from_index(((coord.double() + 1) * n - 1) / 2, size, edge, outside, dtype)


def from_latlon(lat, lon, grid_lat, grid_lon, *, periodic_x=False, outside="error", dtype=torch.float32) -> PointSpec:
    """Points given by latitude and longitude on a regular grid given by its coordinate arrays.

    u = (phi - phi_0) / d_phi per axis, so node and cell registration need no option. Longitudes may come in either
    convention, -180..180 or 0..360.

    Args:
        lat, lon: (Q,) degrees.
        grid_lat: (H,) degrees, equally spaced, ascending or descending. grid_lon: (W,) degrees, ascending.
        periodic_x: the grid goes round the globe: W * d_lon = 360.
        outside, dtype: as from_index.

    Raises:
        ValueError: latitudes beyond 90 degrees (swapped with longitudes?), coordinates that are unsorted, repeated or
            unequally spaced, periodic_x on a grid that does not close, points outside under "error".
    """
    lat, lon, grid_lat, grid_lon = (
        torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (lat, lon, grid_lat, grid_lon)
    )
    if lat.shape != lon.shape:
        raise ValueError(f"lat has {lat.numel()} values, lon has {lon.numel()}; expected as many")
    for name, values in (("lat", lat), ("grid_lat", grid_lat)):
        if values.numel() and not values.abs().max() <= 90 + 1e-9:
            worst = values.abs().max().item()
            raise ValueError(f"{name} reaches {worst:g}, expected degrees within 90; are lat and lon swapped?")
    step_y, step_x = get_spacing("grid_lat", grid_lat), get_spacing("grid_lon", grid_lon)
    if periodic_x and not math.isclose(abs(step_x) * grid_lon.numel(), 360, rel_tol=1e-4):
        raise ValueError(f"periodic_x: grid_lon spans {abs(step_x) * grid_lon.numel():g} degrees, expected 360")
    # A point is brought within half a turn of the middle of the grid.
    middle = (grid_lon[0] + grid_lon[-1]) / 2
    lon = middle + torch.remainder(lon - middle + 180, 360) - 180
    u = torch.stack([(lat - grid_lat[0]) / step_y, (lon - grid_lon[0]) / step_x], -1)
    edge = ("clamp", "wrap" if periodic_x else "clamp")
    return from_index(u, (grid_lat.numel(), grid_lon.numel()), edge, outside, dtype)


def get_spacing(name: str, values: Tensor) -> float:
    """The step of equally spaced coordinates, negative where they descend; ValueError where they are not.

    Steps may differ by a thousandth, or by what storing the coordinates in float32 changes."""
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
    """edge itself as a pair of "clamp" or "wrap" for rows and columns."""
    if not isinstance(edge, tuple | list) or len(edge) != 2 or any(e not in EDGES for e in edge):
        raise ValueError(f"edge must be a pair of 'clamp' or 'wrap' for rows and columns, got {edge!r}")
    return tuple(edge)

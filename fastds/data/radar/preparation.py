# SPDX-License-Identifier: Apache-2.0
"""Between a field of reflectivity in dBZ and the numbers a network sees; every function takes numpy arrays or torch
tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastds.data.grid.grids import check_factor

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

FLOOR_DBZ = 15.0
CEILING_DBZ = 70.0
ECHO_FRACTION = 0.20
COARSENING_MODES = ("dbz", "linear_z", "plain_dbz")


def prepare(z: Array, floor: float = FLOOR_DBZ, ceiling: float = CEILING_DBZ) -> Array:
    """Scale reflectivity to [0, 1]: x = (clip(z, floor, ceiling) - floor) / (ceiling - floor), missing values -> 0.

    Args:
        z: reflectivity in dBZ, any shape, NaN where missing (no echo: any value at or below the floor).
        floor, ceiling: dBZ; the values that become 0 and 1.
    Returns: same shape and floating type, without NaN; keep `valid_mask(z)` to mask results afterwards.
    Raises: ValueError if ceiling <= floor.
    Source: Chen, Qin, Dai 2022, section 2; the floor value is 15 dBZ and not 0, so that echo edges have no cliff.
    """
    _check_range(floor, ceiling)
    xp = _namespace(z)
    x = (clip_reflectivity(z, floor, ceiling) - floor) / (ceiling - floor)
    return xp.where(xp.isnan(x), xp.zeros_like(x), x)


def restore(x: Array, floor: float = FLOOR_DBZ, ceiling: float = CEILING_DBZ) -> Array:
    """Go back from [0, 1] to reflectivity: z = floor + x (ceiling - floor), in dBZ; not clipped."""
    _check_range(floor, ceiling)
    return x * (ceiling - floor) + floor


def clip_reflectivity(z: Array, floor: float = FLOOR_DBZ, ceiling: float | None = None) -> Array:
    """Lift z (dBZ, any shape) to the floor and cut it at the ceiling (None: no ceiling); NaN stays NaN."""
    if _is_torch(z):
        return z.clamp(min=floor, max=ceiling)
    return np.clip(z, floor, ceiling)


def coarsen(z: Array, factor: int = 2, mode: str = "dbz", floor: float | None = None) -> Array:
    """Mean of factor x factor blocks of a reflectivity field, in dBZ or in linear Z.

    dbz:       Z(I, J) = mean over the block of z
    linear_z:  Z(I, J) = 10 log10(mean over the block of 10^(z / 10))
    plain_dbz: as dbz, of z as it is, no echo included

    Args:
        z: (..., H, W) dBZ; H and W multiples of factor (see `cut_to_multiple`). A block with a missing pixel (NaN) is
            missing.
        factor: pixels per side of a block, >= 1.
        mode: "dbz" (as in the paper), "linear_z" (what a radar of coarser resolution measures) or "plain_dbz" (what
            xarray's coarsen().mean() makes of a file).
        floor: dBZ, applied before the mean but for plain_dbz; None leaves z as it is.
    Returns: (..., H / factor, W / factor), same type as z. Deterministic; differentiable for torch tensors.
    Raises: ValueError for sizes that are no multiples, an unknown mode or factor < 1.
    """
    check_modes([mode])
    check_factor(factor)
    _check_multiple(z, factor)
    if floor is not None and mode != "plain_dbz":
        z = clip_reflectivity(z, floor)
    if factor == 1:
        return z
    if mode != "linear_z":
        return _block_mean(z, factor)
    base = 0.0 if floor is None else floor  # a block at the floor stays there: the mean of 10^0 is rounded to no other
    return base + 10.0 * _namespace(z).log10(_block_mean(10.0 ** ((z - base) * 0.1), factor))


def check_modes(modes: Sequence[str], name: str = "mode") -> None:
    """Raise ValueError, naming the argument, for ways of coarsening that are none of COARSENING_MODES, and where there
    are none."""
    for mode in modes or [None]:
        if mode not in COARSENING_MODES:
            raise ValueError(f"{name} must be one of {', '.join(COARSENING_MODES)}, got {mode!r}")


def valid_mask(z: Array) -> Array:
    """True where z is not missing (NaN)."""
    return ~_namespace(z).isnan(z)


def coarsen_mask(valid: Array, factor: int = 2) -> Array:
    """A coarse pixel is valid if every one of its factor x factor fine pixels is; valid is (..., H, W) bool."""
    check_factor(factor)
    _check_multiple(valid, factor)
    out = valid[..., ::factor, ::factor]
    for i, j in _offsets(factor)[1:]:
        out = out & valid[..., i::factor, j::factor]
    return out


def refine_mask(valid: Array, factor: int = 2) -> Array:
    """Repeat the coarse mask `valid` (..., h, w) on the finer grid, (..., factor h, factor w)."""
    check_factor(factor)
    if _is_torch(valid):
        return valid.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return valid.repeat(factor, -2).repeat(factor, -1)


def cut_to_multiple(z: Array, factor: int) -> Array:
    """Drop the last rows and columns of z (..., H, W) so that both sizes are multiples of factor."""
    check_factor(factor)
    height, width = z.shape[-2:]
    return z[..., : height - height % factor, : width - width % factor]


def echo_fraction(z: Array, floor: float = FLOOR_DBZ, valid: Array | None = None) -> float:
    """Share of the valid pixels with reflectivity above the floor; z in dBZ, any shape, NaN = missing; 0 where
    nothing is valid."""
    valid = valid_mask(z) if valid is None else valid & valid_mask(z)
    count = int(valid.sum())
    return int(((z > floor) & valid).sum()) / count if count else 0.0


def has_enough_echo(z: Array, floor: float = FLOOR_DBZ, minimum: float = ECHO_FRACTION) -> bool:
    """The sample rule of the paper: the share of pixels above floor (dBZ) in the fine frames z (T, H, W) is at least
    `minimum`."""
    return echo_fraction(z, floor) >= minimum


def _is_torch(array: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _namespace(array: object) -> Any:
    return sys.modules["torch"] if _is_torch(array) else np


def _offsets(factor: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(factor) for j in range(factor)]


def _block_mean(z: Array, factor: int) -> Array:
    parts = [z[..., i::factor, j::factor] for i, j in _offsets(factor)]
    return sum(parts[1:], parts[0]) * (1.0 / factor**2)


def _check_range(floor: float, ceiling: float) -> None:
    if not ceiling > floor:
        raise ValueError(f"ceiling must be above floor, got floor {floor} and ceiling {ceiling} dBZ")


def _check_multiple(z: Array, factor: int) -> None:
    height, width = z.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"the grid ({height}, {width}) must be a multiple of factor {factor} in both directions")

# SPDX-License-Identifier: Apache-2.0
"""Conversion between reflectivity in dBZ and the input of a network, for numpy arrays and torch tensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastds._options import OptionError
from fastds.data.grid.grids import check_factor

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

FLOOR_DBZ = 15.0
CEILING_DBZ = 70.0
ECHO_FRACTION = 0.20
COARSENING_MODES = ("dbz", "linear_z", "plain_dbz")
# Values of an argument in place of a mode: estimate the mode, and do not correct for it.
AUTO_COARSENING, UNKNOWN_COARSENING = "auto", "unknown"


def prepare(z: Array, floor: float = FLOOR_DBZ, ceiling: float = CEILING_DBZ) -> Array:
    """Scale reflectivity to [0, 1]: x = (clip(z, floor, ceiling) - floor) / (ceiling - floor). Missing values become 0.

    Args:
        z: Reflectivity in dBZ, any shape, NaN where missing. Any value at or below the floor means no echo.
        floor: dBZ that becomes 0.
        ceiling: dBZ that becomes 1.

    Returns:
        Array of the same shape and floating-point dtype, without NaN. `valid_mask(z)` is False where values were
        missing.

    Raises:
        ValueError: `ceiling` is not above `floor`.

    Source: Chen, Qin and Dai 2022, section 2. The floor is 15 dBZ and not 0 dBZ, which avoids steep edges of echoes.
    """
    _check_range(floor, ceiling)
    xp = _get_namespace(z)
    x = (clip_reflectivity(z, floor, ceiling) - floor) / (ceiling - floor)
    return xp.where(xp.isnan(x), xp.zeros_like(x), x)


def restore(x: Array, floor: float = FLOOR_DBZ, ceiling: float = CEILING_DBZ) -> Array:
    """Convert from [0, 1] to reflectivity z = floor + x (ceiling - floor), without clipping.

    Args:
        x: Any shape.
        floor: dBZ of 0.
        ceiling: dBZ of 1.

    Returns:
        Array of the same shape, dBZ.

    Raises:
        ValueError: `ceiling` is not above `floor`.
    """
    _check_range(floor, ceiling)
    return x * (ceiling - floor) + floor


def clip_reflectivity(z: Array, floor: float = FLOOR_DBZ, ceiling: float | None = None) -> Array:
    """Clip reflectivity to [floor, ceiling]; NaN stays NaN.

    Args:
        z: dBZ, any shape.
        floor: dBZ.
        ceiling: dBZ; None: no upper limit.
    """
    array: Any = z
    return array.clamp(min=floor, max=ceiling) if _is_torch(z) else np.clip(array, floor, ceiling)


def coarsen(z: Array, factor: int = 2, mode: str = "dbz", floor: float | None = None) -> Array:
    """Coarsen reflectivity by means over blocks of factor x factor pixels, in dBZ or in linear Z.

    dbz:       Z(I, J) = mean over the block of max(z, floor)
    linear_z:  Z(I, J) = 10 log10(mean over the block of 10^(max(z, floor) / 10))
    plain_dbz: Z(I, J) = mean over the block of z, without floor and including values of no echo

    Args:
        z: (..., H, W) dBZ; H and W multiples of `factor`, see `cut_to_multiple`. A block with a missing pixel (NaN) is
            missing.
        factor: Side of a block in pixels, >= 1.
        mode: "dbz" (as in the paper), "linear_z" (like a radar of coarser resolution) or "plain_dbz" (like xarray's
            coarsen().mean()).
        floor: dBZ; None: no floor.

    Returns:
        (..., H / factor, W / factor), of the same type as `z`. Deterministic; differentiable for torch tensors.

    Raises:
        ValueError: H or W is not a multiple, the mode is unknown, or `factor` is less than 1.
    """
    check_modes([mode])
    check_factor(factor)
    _check_multiple(z, factor)
    if floor is not None and mode != "plain_dbz":
        z = clip_reflectivity(z, floor)
    if factor == 1:
        return z
    if mode != "linear_z":
        return _compute_block_mean(z, factor)
    base = 0.0 if floor is None else floor  # relative to the floor, a block at the floor has a mean of exactly 10^0
    return base + 10.0 * _get_namespace(z).log10(_compute_block_mean(10.0 ** ((z - base) * 0.1), factor))


def check_modes(modes: Sequence[str], name: str = "mode") -> None:
    """Raise ValueError if a mode is not in COARSENING_MODES, or if there is no mode.

    Args:
        modes: Names of coarsening modes.
        name: Name of the argument, for the message.
    """
    for mode in modes or (None,):
        if mode not in COARSENING_MODES:
            raise OptionError(name, f"must be one of {', '.join(COARSENING_MODES)}, got {mode!r}")


def valid_mask(z: Array) -> Array:
    """Return True where a field is not missing (NaN).

    Args:
        z: Field of any shape, NaN where missing.
    """
    return ~_get_namespace(z).isnan(z)


def coarsen_mask(valid: Array, factor: int = 2) -> Array:
    """Coarsen a mask: a coarse pixel is valid if all of its factor x factor fine pixels are.

    Args:
        valid: (..., H, W) bool; H and W multiples of `factor`.
        factor: Side of a block in pixels, >= 1.

    Returns:
        (..., H / factor, W / factor) bool.
    """
    check_factor(factor)
    _check_multiple(valid, factor)
    out = valid[..., ::factor, ::factor]
    for i, j in _list_offsets(factor)[1:]:
        out = out & valid[..., i::factor, j::factor]
    return out


def refine_mask(valid: Array, factor: int = 2) -> Array:
    """Repeat each value of a coarse mask or field along both axes.

    Args:
        valid: (..., h, w), mask or field.
        factor: Number of repetitions along each axis, >= 1.

    Returns:
        (..., factor h, factor w).
    """
    check_factor(factor)
    mask: Any = valid
    if _is_torch(valid):
        return mask.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return mask.repeat(factor, -2).repeat(factor, -1)


def cut_to_multiple(z: Array, factor: int) -> Array:
    """Drop the last rows and columns of a field so that both sizes are multiples of a factor.

    Args:
        z: (..., H, W).
        factor: Side of a block in pixels, >= 1.
    """
    check_factor(factor)
    height, width = z.shape[-2:]
    return z[..., : height - height % factor, : width - width % factor]


def echo_fraction(z: Array, floor: float = FLOOR_DBZ, valid: Array | None = None) -> float:
    """Return the fraction of valid pixels with reflectivity above the floor; 0 if no pixel is valid.

    Args:
        z: dBZ, any shape, NaN where missing.
        floor: dBZ.
        valid: Further mask of valid pixels, of the same shape; None: all pixels that are not NaN.
    """
    valid = valid_mask(z) if valid is None else valid & valid_mask(z)
    count = int(valid.sum())
    return int(((z > floor) & valid).sum()) / count if count else 0.0


def has_enough_echo(z: Array, floor: float = FLOOR_DBZ, minimum: float = ECHO_FRACTION) -> bool:
    """Return True if a sample satisfies the paper's rule: at least the fraction `minimum` is above the floor.

    Args:
        z: (T, H, W) fine frames in dBZ.
        floor: dBZ.
        minimum: Fraction.
    """
    return echo_fraction(z, floor) >= minimum


def _is_torch(array: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _get_namespace(array: object) -> Any:
    return sys.modules["torch"] if _is_torch(array) else np


def _list_offsets(factor: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(factor) for j in range(factor)]


def _compute_block_mean(z: Array, factor: int) -> Array:
    parts = [z[..., i::factor, j::factor] for i, j in _list_offsets(factor)]
    return sum(parts[1:], parts[0]) * (1.0 / factor**2)


def _check_range(floor: float, ceiling: float) -> None:
    if not ceiling > floor:
        raise ValueError(f"ceiling must be above floor, got floor {floor} and ceiling {ceiling} dBZ")


def _check_multiple(z: Array, factor: int) -> None:
    height, width = z.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"the grid ({height}, {width}) must be a multiple of factor {factor} in both directions")

# SPDX-License-Identifier: Apache-2.0
"""Between a field of reflectivity in dBZ and the numbers a network sees; every function takes numpy arrays or torch tensors."""

import sys

import numpy as np

FLOOR_DBZ = 15.0
CEILING_DBZ = 70.0
ECHO_FRACTION = 0.20
COARSENING_MODES = ("dbz", "linear_z")


def prepare(z, floor=FLOOR_DBZ, ceiling=CEILING_DBZ):
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


def restore(x, floor=FLOOR_DBZ, ceiling=CEILING_DBZ):
    """Go back from [0, 1] to reflectivity: z = floor + x (ceiling - floor), in dBZ; not clipped."""
    _check_range(floor, ceiling)
    return x * (ceiling - floor) + floor


def clip_reflectivity(z, floor=FLOOR_DBZ, ceiling=None):
    """Lift z (dBZ, any shape) to the floor and cut it at the ceiling (None: no ceiling); NaN stays NaN."""
    if _is_torch(z):
        return z.clamp(min=floor, max=ceiling)
    return np.clip(z, floor, ceiling)


def coarsen(z, factor=2, mode="dbz", floor=None):
    """Mean of factor x factor blocks of a reflectivity field, in dBZ or in linear Z.

    dbz:       Z(I, J) = mean over the block of z
    linear_z:  Z(I, J) = 10 log10(mean over the block of 10^(z / 10))

    Args:
        z: (..., H, W) dBZ; H and W multiples of factor (see `cut_to_multiple`). A block with a missing pixel (NaN) is missing.
        factor: pixels per side of a block, >= 1.
        mode: "dbz" (as in the paper) or "linear_z" (what a radar of coarser resolution measures).
        floor: dBZ, applied before the mean; None leaves z as it is.
    Returns: (..., H / factor, W / factor), same type as z. Deterministic; differentiable for torch tensors.
    Raises: ValueError for sizes that are no multiples, an unknown mode or factor < 1.
    """
    if mode not in COARSENING_MODES:
        raise ValueError(f"mode must be one of {', '.join(COARSENING_MODES)}, got {mode!r}")
    _check_factor(factor)
    _check_multiple(z, factor)
    if floor is not None:
        z = clip_reflectivity(z, floor)
    if factor == 1:
        return z
    if mode == "dbz":
        return _block_mean(z, factor)
    return 10.0 * _namespace(z).log10(_block_mean(10.0 ** (z * 0.1), factor))


def valid_mask(z):
    """True where z is not missing (NaN)."""
    return ~_namespace(z).isnan(z)


def coarsen_mask(valid, factor=2):
    """A coarse pixel is valid if every one of its factor x factor fine pixels is; valid is (..., H, W) bool."""
    _check_factor(factor)
    _check_multiple(valid, factor)
    out = valid[..., ::factor, ::factor]
    for i, j in _offsets(factor)[1:]:
        out = out & valid[..., i::factor, j::factor]
    return out


def refine_mask(valid, factor=2):
    """Repeat a coarse mask (..., h, w) on the finer grid, (..., factor h, factor w)."""
    _check_factor(factor)
    if _is_torch(valid):
        return valid.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return valid.repeat(factor, -2).repeat(factor, -1)


def cut_to_multiple(z, factor):
    """Drop the last rows and columns of (..., H, W) so that both sizes are multiples of factor."""
    _check_factor(factor)
    height, width = z.shape[-2:]
    return z[..., : height - height % factor, : width - width % factor]


def echo_fraction(z, floor=FLOOR_DBZ, valid=None):
    """Share of the valid pixels with reflectivity above the floor; z in dBZ, any shape, NaN = missing; 0 where nothing is valid."""
    valid = valid_mask(z) if valid is None else valid & valid_mask(z)
    count = int(valid.sum())
    return int(((z > floor) & valid).sum()) / count if count else 0.0


def has_enough_echo(z, floor=FLOOR_DBZ, minimum=ECHO_FRACTION):
    """The sample rule of the paper: mean echo fraction over the fine frames (T, H, W) is at least `minimum`."""
    return echo_fraction(z, floor) >= minimum


def triples(times, interval=None, every=1):
    """Indices of frames at t, t + D and t + 2 D, found by time stamp, so that gaps make no false triples.

    Args:
        times: (T,) sorted times without duplicates: datetime64, cftime objects, or numbers.
        interval: D as timedelta64, datetime.timedelta or number (the unit of times); None: the most frequent step of times.
        every: keep only starts that are a multiple of `every` intervals after the first time (2: triples share end frames only).
    Returns: (n, 3) int64 array of indices, n may be 0.
    Raises: ValueError for fewer than two times, unsorted times or an interval <= 0.
    """
    seconds = seconds_since_first(times)
    step = most_frequent_step(seconds) if interval is None else _in_seconds(interval)
    if not step > 0:
        raise ValueError(f"interval must be positive, got {interval!r}")
    place = {round(value * 1000): index for index, value in enumerate(seconds)}
    found = []
    for index, value in enumerate(seconds):
        if every > 1 and round(value / step, 6) % every:
            continue
        second, third = (place.get(round((value + k * step) * 1000)) for k in (1, 2))
        if second is not None and third is not None:
            found.append((index, second, third))
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def seconds_since_first(times):
    """Float64 seconds since the first of the sorted times (datetime64, cftime objects, or numbers taken as seconds)."""
    values = np.asarray(times)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"times must hold at least 2 time steps in one dimension, got shape {values.shape}")
    if values.dtype.kind == "M":
        seconds = (values - values[0]) / np.timedelta64(1, "ns") * 1e-9
    elif values.dtype.kind == "O":
        seconds = np.array([(value - values[0]).total_seconds() for value in values])
    else:
        seconds = values.astype(np.float64) - float(values[0])
    if not np.all(np.diff(seconds) > 0):
        raise ValueError("times must be sorted and without duplicates")
    return seconds


def most_frequent_step(seconds):
    """The most frequent difference of sorted seconds (ties: the smaller one), to the millisecond."""
    steps, counts = np.unique(np.round(np.diff(seconds), 3), return_counts=True)
    return float(steps[np.argmax(counts)])


def _in_seconds(interval):
    if isinstance(interval, np.timedelta64):
        return float(interval / np.timedelta64(1, "ns")) * 1e-9
    return float(interval.total_seconds()) if hasattr(interval, "total_seconds") else float(interval)


def _is_torch(array):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _namespace(array):
    return sys.modules["torch"] if _is_torch(array) else np


def _offsets(factor):
    return [(i, j) for i in range(factor) for j in range(factor)]


def _block_mean(z, factor):
    parts = [z[..., i::factor, j::factor] for i, j in _offsets(factor)]
    return sum(parts[1:], parts[0]) * (1.0 / factor**2)


def _check_range(floor, ceiling):
    if not ceiling > floor:
        raise ValueError(f"ceiling must be above floor, got floor {floor} and ceiling {ceiling} dBZ")


def _check_factor(factor):
    if int(factor) != factor or factor < 1:
        raise ValueError(f"factor must be a whole number >= 1, got {factor!r}")


def _check_multiple(z, factor):
    height, width = z.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"the grid ({height}, {width}) must be a multiple of factor {factor} in both directions")

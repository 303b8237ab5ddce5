# SPDX-License-Identifier: Apache-2.0
"""Synthetic rain events from a seed: cells in stratiform rain, advected by a wind, as in a radar composite."""

import dataclasses
from typing import cast

import numpy as np
import scipy  # its subpackages are imported lazily
import xarray as xr

from fastds._argument_types import validate_arguments
from fastds._options import OptionError
from fastds.data.radar.reflectivity import NO_ECHO_DBZ, rate_to_reflectivity, reflectivity_to_rate

_WEAKEST_ECHO_DBZ = 0.0
_STRONGEST_ECHO_DBZ = 62.0
_CELL_LIFE_S = (1200.0, 4200.0)
_EDDY_M = 30_000.0
_RANGES = {
    "seed": (0, 2**63), "frames": (2, 10_000), "cadence_minutes": (0.1, 1440), "spacing_m": (50, 50_000),
    "speed": (0, 200), "rotation": (0, 10), "gusts": (0, 10), "cells_per_10000_km2": (0, 1000),
}  # fmt: skip


@validate_arguments
def synthetic_event(
    seed: int = 0,
    frames: int = 12,
    shape: tuple[int, int] = (256, 256),
    *,
    cadence_minutes: float = 5.0,
    spacing_m: float = 1000.0,
    speed: float = 12.0,
    rotation: float = 0.15,
    gusts: float = 0.15,
    cells_per_10000_km2: float = 10.0,
    stratiform_dbz: float | None = 6.0,
    start: str = "2024-06-01T12:00",
) -> xr.Dataset:
    """Make a rain event on a square grid: reflectivity (time, y, x) in dBZ, determined by a seed.

    The field is z(p, t) = L(D(p, t), t). L develops in the frame of the moving air, and D(p, t) is the position of the
    air at p in the middle frame, so that advection does not smooth the field repeatedly. L is the sum, in mm/h, of

    * stratiform rain: a Gaussian field in dBZ with a power-law spectrum (amplitude ~ k^-1.45) around `stratiform_dbz`,
      limited smoothly at 32 dBZ; a wave of wavelength l decorrelates in 200 min (l / 100 km)^0.7, so small scales
      change first;
    * convective cells, born at random in bands, that live 20 to 70 minutes with intensity sin^2(pi age / life):
      ellipses of 1.5 to 5 km, axes up to 1 : 2.5, slowly rotating, with small-scale texture.

    Reflectivity is Z = 200 R^1.6; values below 0 dBZ are no echo (-32 dBZ).

    Args:
        seed: Integer; the same seed and arguments give the same event.
        frames: Number of times, >= 2.
        shape: (H, W) in pixels, each >= 32.
        cadence_minutes: Time step in minutes.
        spacing_m: Pixel size in metres.
        speed: Mean wind in m/s, of random direction.
        rotation: Speed, at the domain's edge, of a rotation around its centre, as a fraction of `speed`.
        gusts: Root mean square of the wind in eddies of about 60 km, as a fraction of `speed`.
        cells_per_10000_km2: Number of living convective cells in 10^4 km^2.
        stratiform_dbz: Mean of the stratiform field in dBZ; None: no stratiform rain.
        start: First time (UTC).

    Returns:
        xarray.Dataset with `reflectivity`, with the wind `eastward_wind` and `northward_wind` (y, x) in m/s, and with
        projection coordinates x and y in m (pixel centres, y descending). The wind is constant in time and is the true
        motion of every feature.

    Raises:
        TypeError: An argument has another type.
        ValueError: There are fewer than two frames, a side has fewer than 32 pixels, or a number is outside its range.
    """
    if min(shape) < 32:
        raise ValueError(f"shape must be two sizes of at least 32 pixels, got {shape}")
    given = {
        "seed": seed, "frames": frames, "cadence_minutes": cadence_minutes, "spacing_m": spacing_m, "speed": speed,
        "rotation": rotation, "gusts": gusts, "cells_per_10000_km2": cells_per_10000_km2,
    }  # fmt: skip
    for name, value in given.items():
        least, most = _RANGES[name]
        if not least <= value <= most:
            raise OptionError(name, f"must be from {least} to {most:g}, got {value}")
    try:
        first = np.datetime64(start, "ns")
    except ValueError:
        raise OptionError("start", f"must be a date and time such as 2024-06-01T12:00, got {start!r}") from None
    seed, frames, shape = int(seed), int(frames), cast(tuple[int, int], tuple(map(int, shape)))
    rng = np.random.default_rng(seed)
    step_s = cadence_minutes * 60.0
    distance = (1.0 + rotation + 3.0 * gusts) * speed * step_s / spacing_m * (frames // 2 + 1)
    pad = int(np.ceil(distance)) + 8
    padded = tuple(scipy.fft.next_fast_len(size + 2 * pad, real=True) for size in shape)
    air = _Air(padded, spacing_m, step_s, _displace_positions(rng, padded, spacing_m))
    flow = _draw_flow(rng, padded, shape, spacing_m, speed, rotation, gusts) * (step_s / spacing_m)
    origins = _trace_back(flow, frames)
    textures = _draw_gaussian_fields(rng, frames, air)
    cells = _draw_cells(rng, frames, air, cells_per_10000_km2)
    z = np.empty((frames, *shape), dtype=np.float32)
    for number in range(frames):
        rain = _compute_rain(textures[number], cells, number * step_s, air, stratiform_dbz)
        where = [origin[pad : pad + shape[0], pad : pad + shape[1]] for origin in origins[number]]
        rain = scipy.ndimage.map_coordinates(rain, where, order=3, mode="nearest")
        dbz = rate_to_reflectivity(rain, no_echo=NO_ECHO_DBZ)
        z[number] = np.where(dbz < _WEAKEST_ECHO_DBZ, NO_ECHO_DBZ, np.minimum(dbz, _STRONGEST_ECHO_DBZ))
    wind = flow[:, pad : pad + shape[0], pad : pad + shape[1]] * (spacing_m / step_s)
    return _make_dataset(z, wind, seed, cadence_minutes, spacing_m, first)


@dataclasses.dataclass(frozen=True)
class _Air:
    """Padded grid in the frame of the moving air.

    Attributes:
        shape: (H, W) with padding.
        spacing_m: Pixel size in metres.
        step_s: Time step in seconds.
        ragged: (2, H, W) displaced pixel positions, which make the outlines of cells irregular.
    """

    shape: tuple
    spacing_m: float
    step_s: float
    ragged: np.ndarray


def _displace_positions(rng: np.random.Generator, padded: tuple[int, ...], spacing_m: float) -> np.ndarray:
    """Return pixel positions (2, H, W) displaced by noise of 1 km with a correlation length of 3 km."""
    grid = np.stack(np.meshgrid(*map(np.arange, padded), indexing="ij")).astype(np.float64)
    smooth = np.exp(-0.5 * (2.0 * np.pi * _compute_wavenumbers(padded, spacing_m) * 2_000.0) ** 2)
    noise = np.stack([_invert(_draw_noise(rng, padded) * smooth, padded) for _ in range(2)])
    return grid + noise * (1_000.0 / spacing_m / noise.std())


def _draw_flow(
    rng: np.random.Generator,
    padded: tuple[int, ...],
    shape: tuple[int, int],
    spacing_m: float,
    speed: float,
    rotation: float,
    gusts: float,
) -> np.ndarray:
    """Draw a divergence-free motion (2, H, W) of the air along rows (southward) and columns (eastward) in m/s.

    Args:
        rng: Random generator.
        padded: Shape of the padded grid.
        shape: Shape of the domain.
        spacing_m: Pixel size in metres.
        speed: See `synthetic_event`.
        rotation: See `synthetic_event`.
        gusts: See `synthetic_event`.
    """
    angle, sense = rng.uniform(0.0, 2.0 * np.pi), rng.choice([-1.0, 1.0])
    rows, columns = (np.arange(size) - (size - 1) / 2.0 for size in padded)
    half = max(shape) / 2.0
    flow = np.empty((2, *padded))
    flow[0] = speed * (np.sin(angle) + sense * rotation * columns[None, :] / half)
    flow[1] = speed * (np.cos(angle) - sense * rotation * rows[:, None] / half)
    wave = _compute_wavenumbers(padded, spacing_m)
    stream = _invert(_draw_noise(rng, padded) * np.exp(-0.5 * (2.0 * np.pi * wave * _EDDY_M / 2.0) ** 2), padded)
    down, right = np.gradient(stream)
    eddies = np.stack([right, -down])
    return flow + eddies * (gusts * speed / max(float(np.sqrt(np.mean(np.sum(eddies**2, axis=0)))), 1e-12))


def _trace_back(flow: np.ndarray, frames: int) -> list[np.ndarray]:
    """Return for each frame the positions (2, H, W), in pixels, of the air in the middle frame."""
    grid = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float64) for size in flow.shape[1:]), indexing="ij"))
    moved = {frames // 2: np.zeros_like(flow)}
    for direction, numbers in ((-1.0, range(frames // 2 + 1, frames)), (1.0, range(frames // 2 - 1, -1, -1))):
        half_way = _sample(flow, grid + direction * 0.5 * flow)
        back = grid + direction * half_way
        for number in numbers:
            moved[number] = direction * half_way + _sample(moved[number + int(direction)], back)
    return [grid + moved[number] for number in range(frames)]


def _sample(field: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.stack([scipy.ndimage.map_coordinates(part, positions, order=1, mode="nearest") for part in field])


def _draw_gaussian_fields(rng: np.random.Generator, frames: int, air: _Air) -> list[np.ndarray]:
    """Draw Gaussian fields (standard deviation 1) with a power-law spectrum.

    Small scales have a shorter autocorrelation in time than large scales.
    """
    wave = _compute_wavenumbers(air.shape, air.spacing_m)
    amplitude = np.maximum(wave, 1.0 / 150_000.0) ** -1.45
    amplitude[0, 0] = 0.0
    memory = np.exp(-air.step_s / (12_000.0 * (1e-5 / np.maximum(wave, 1e-6)) ** 0.7))
    state, fields = _draw_noise(rng, air.shape), []
    scale = 1.0 / _invert(state * amplitude, air.shape).std()
    for number in range(frames):
        if number:
            state = memory * state + np.sqrt(1.0 - memory**2) * _draw_noise(rng, air.shape)
        fields.append(_invert(state * amplitude, air.shape) * scale)
    return fields


def _draw_cells(rng: np.random.Generator, frames: int, air: _Air, density: float) -> dict[str, np.ndarray]:
    """Draw the parameters of all convective cells as arrays; positions in pixels, times in seconds.

    Args:
        rng: Random generator.
        frames: Number of frames.
        air: Grid.
        density: Number of living cells in 10^4 km^2.
    """
    area = np.prod(air.shape) * (air.spacing_m / 1e5) ** 2
    duration, mean_life = frames * air.step_s, sum(_CELL_LIFE_S) / 2.0
    count = int(rng.poisson(density * area * (duration + mean_life) / mean_life))
    clusters = max(1, count // 4)
    parent = rng.integers(0, clusters, count)
    positions = rng.uniform(0.0, 1.0, (clusters, 2)) * air.shape
    band = rng.uniform(0.0, np.pi) + rng.normal(0.0, 0.25, clusters)
    along, across = rng.normal(0.0, 14_000.0, count), rng.normal(0.0, 4_000.0, count)
    directions = np.stack([np.sin(band), np.cos(band)])[:, parent]
    offset = (directions * along + np.stack([directions[1], -directions[0]]) * across) / air.spacing_m
    life = rng.uniform(*_CELL_LIFE_S, count)
    return {
        "row": positions[parent, 0] + offset[0],
        "column": positions[parent, 1] + offset[1],
        "life": life,
        "birth": rng.uniform(-mean_life, duration, count),
        "peak": np.minimum(rng.lognormal(np.log(12.0), 0.8, count), 110.0),
        "size": np.clip(rng.lognormal(np.log(2600.0), 0.35, count), 1500.0, 5000.0) / air.spacing_m,
        "aspect": rng.uniform(1.0, 2.5, count),
        "angle": band[parent] + rng.normal(0.0, 0.4, count),
        "rotation_rate": rng.normal(0.0, 1.5e-4, count),
    }


def _compute_rain(
    texture: np.ndarray, cells: dict[str, np.ndarray], seconds: float, air: _Air, stratiform_dbz: float | None
) -> np.ndarray:
    """Compute the rain rate in mm/h on the padded grid at one time, in the frame of the air.

    Args:
        texture: Gaussian field of this time.
        cells: Parameters of the cells.
        seconds: Time since the first frame.
        air: Grid.
        stratiform_dbz: See `synthetic_event`.
    """
    rain = np.zeros(air.shape)
    age = seconds - cells["birth"]
    for number in np.flatnonzero((age > 0.0) & (age < cells["life"])):
        cell = {key: value[number] for key, value in cells.items()}
        _add_cell(rain, cell, age[number])
    fine = texture - scipy.ndimage.gaussian_filter(texture, 8_000.0 / air.spacing_m, mode="wrap")
    rain = scipy.ndimage.map_coordinates(rain, air.ragged, order=1, mode="nearest") * np.exp(0.5 * fine / fine.std())
    if stratiform_dbz is not None:
        dbz = stratiform_dbz + 13.0 * texture
        dbz = 32.0 - 5.0 * np.logaddexp(0.0, (32.0 - dbz) / 5.0)
        rain += reflectivity_to_rate(dbz, no_echo=-30.0)
    return rain


def _add_cell(rain: np.ndarray, cell: dict[str, float], age: float) -> None:
    """Add the rain of a convective cell of this age (s) to `rain`, in place."""
    radius = int(4.0 * cell["size"] * np.sqrt(cell["aspect"])) + 1
    rows, columns = (int(round(cell[key])) for key in ("row", "column"))
    top, left = max(rows - radius, 0), max(columns - radius, 0)
    window = rain[top : max(rows + radius + 1, 0), left : max(columns + radius + 1, 0)]
    if not window.size:
        return
    down = np.arange(top, top + window.shape[0])[:, None] - cell["row"]
    right = np.arange(left, left + window.shape[1])[None, :] - cell["column"]
    angle = cell["angle"] + cell["rotation_rate"] * age
    along = (down * np.sin(angle) + right * np.cos(angle)) / (cell["size"] * np.sqrt(cell["aspect"]))
    across = (down * np.cos(angle) - right * np.sin(angle)) / (cell["size"] / np.sqrt(cell["aspect"]))
    strength = cell["peak"] * np.sin(np.pi * age / cell["life"]) ** 2
    window += strength * np.exp(-((along**2 + across**2) ** 0.75))


def _compute_wavenumbers(shape: tuple[int, ...], spacing_m: float) -> np.ndarray:
    """Return the wavenumbers (H, W / 2 + 1) of a real Fourier transform in 1/m."""
    return np.hypot(scipy.fft.fftfreq(shape[0], spacing_m)[:, None], scipy.fft.rfftfreq(shape[1], spacing_m)[None, :])


def _draw_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return scipy.fft.rfft2(rng.standard_normal(shape))


def _invert(spectrum: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return scipy.fft.irfft2(spectrum, s=shape)


def _make_dataset(
    z: np.ndarray, wind: np.ndarray, seed: int, cadence_minutes: float, spacing_m: float, first: np.datetime64
) -> xr.Dataset:
    """Make the dataset of an event.

    Args:
        z: (T, H, W) dBZ.
        wind: (2, H, W) wind along rows (southward) and columns (eastward) in m/s.
        seed: Seed, for the attribute `source`.
        cadence_minutes: Time step in minutes.
        spacing_m: Pixel size in metres.
        first: First time.
    """
    frames, height, width = z.shape
    step = np.timedelta64(round(cadence_minutes * 60e9), "ns")
    times = first + step * np.arange(frames)
    y = ((height - 1) / 2.0 - np.arange(height)) * spacing_m
    x = (np.arange(width) - (width - 1) / 2.0) * spacing_m
    metres = {"units": "m", "long_name": "pixel centre"}
    coords = {
        "time": ("time", times, {"standard_name": "time", "axis": "T"}),
        "y": ("y", y, {"standard_name": "projection_y_coordinate", "axis": "Y", **metres}),
        "x": ("x", x, {"standard_name": "projection_x_coordinate", "axis": "X", **metres}),
    }
    reflectivity = {
        "standard_name": "equivalent_reflectivity_factor",
        "long_name": "reflectivity of a synthetic rain event",
        "units": "dBZ",
        "no_echo_value": NO_ECHO_DBZ,
        "grid_mapping": "crs",
    }
    crs = {
        "grid_mapping_name": "azimuthal_equidistant",
        "latitude_of_projection_origin": 50.0,
        "longitude_of_projection_origin": 10.0,
        "earth_radius": 6_371_000.0,
    }
    speed = {"units": "m s-1", "grid_mapping": "crs"}
    data = {
        "reflectivity": (("time", "y", "x"), z, reflectivity),
        "eastward_wind": (("y", "x"), wind[1].astype(np.float32), {"standard_name": "eastward_wind", **speed}),
        "northward_wind": (("y", "x"), -wind[0].astype(np.float32), {"standard_name": "northward_wind", **speed}),
        "crs": ((), np.int32(0), crs),
    }
    attrs = {
        "Conventions": "CF-1.8",
        "title": "synthetic rain event",
        "source": f"fastds.data.synthetic_event, seed {seed}",
    }
    out = xr.Dataset(data, coords, attrs)
    out["time"].encoding.update(units="seconds since 1970-01-01", calendar="proleptic_gregorian")
    return out

# SPDX-License-Identifier: Apache-2.0
"""Random NetCDF files and Zarr stores with levels or members, further variables, bounds and groups."""

import dataclasses
from pathlib import Path

import numpy as np

from .drawn import KINDS, Drawn, Packing, Times, draw_grid, draw_stored, draw_times, draw_values
from .writers import register_writer

_LATIN1 = "Météo, 2 m au-dessus du sol".encode("latin-1")


@dataclasses.dataclass
class _Array:
    """A variable as stored."""

    dims: tuple[str, ...]
    numbers: np.ndarray
    attrs: dict
    fill: object = None


@register_writer("netcdf4", share=0.35, added=0)
def write_netcdf4(rng: np.random.Generator, folder: Path) -> Drawn:
    return _write_cf(rng, folder, "netcdf4")


@register_writer("netcdf3", share=0.08, added=10)
def write_netcdf3(rng: np.random.Generator, folder: Path) -> Drawn:
    return _write_cf(rng, folder, "netcdf3")


@register_writer("zarr2", share=0.09, added=9)
def write_zarr2(rng: np.random.Generator, folder: Path) -> Drawn:
    return _write_cf(rng, folder, "zarr2")


@register_writer("zarr3", share=0.07, added=8)
def write_zarr3(rng: np.random.Generator, folder: Path) -> Drawn:
    return _write_cf(rng, folder, "zarr3")


def _write_cf(rng: np.random.Generator, folder: Path, form: str) -> Drawn:
    """Write NetCDF or Zarr, as one file or as several with different packings."""
    zarr = form.startswith("zarr")
    count, shape = int(rng.integers(2, 6)), (int(rng.integers(12, 30)), int(rng.integers(12, 30)))
    extra = str(rng.choice(["", "level", "number"], p=[0.76, 0.12, 0.12]))
    inner = int(rng.integers(2, 4)) if extra else 1
    kinds = [str(kind) for kind in rng.permutation(list(KINDS))[: 1 + (rng.random() < 0.2)]]
    values = {kind: draw_values(rng, kind, (count * inner, *shape)) for kind in kinds}
    grid, lon, lat, cell, grid_name = draw_grid(rng, shape)
    times = draw_times(rng, count)
    dtypes = ("f4", "f8", "i2", "i4") if form == "netcdf3" else ("f4", "f8", "i2", "u1", "u2", "i4")
    parts = 1 if zarr or rng.random() < 0.75 else 2
    order = rng.permutation(parts)
    how = {"kinds": kinds, "grid": grid_name, "times": times.how, "extra": extra, "packing": []}
    how |= {name: bool(rng.random() < share) for name, share in _HABITS.items() if not (zarr and name == "group")}
    edges = np.linspace(0, count, parts + 1).astype(int)
    expected = {kind: array.copy() for kind, array in values.items()}
    tolerance = dict.fromkeys(kinds, 0.0)
    transposed, extra_first = bool(rng.random() < 0.3), bool(rng.random() < 0.3)
    for part in range(parts):
        steps = slice(edges[part], edges[part + 1])
        arrays = _axes(grid, times, steps, how["bounds"])
        if extra:
            arrays[extra] = _Array((extra,), np.arange(inner), {"units": "1"})
        for kind in kinds:
            rows = slice(inner * edges[part], inner * edges[part + 1])
            part_values = values[kind][rows] + (30.0 if part and kind == "t2m" else 0.0)
            expected[kind][rows] = part_values
            packing = draw_stored(rng, float(np.nanmin(part_values)), float(np.nanmax(part_values)), dtypes)
            how["packing"].append(packing.name)
            tolerance[kind] = max(tolerance[kind], packing.tolerance)
            leading = {"time": edges[part + 1] - edges[part]} | ({extra: inner} if extra else {})
            arrays[kind] = _field(kind, packing, part_values, grid, leading, (transposed and not zarr, extra_first))
        if how["latin"] and not zarr:
            arrays[kinds[0]].attrs["long_name"] = _LATIN1
        name = f"{'ab'[order[part]]}{part}.nc" if parts > 1 else "file.zarr" if zarr else "file.nc"
        (_write_zarr if zarr else _write_netcdf)(rng, folder / name, form, arrays, how)
    tolerance = {k: t + 3e-7 * float(np.nanmax(np.abs(expected[k]))) for k, t in tolerance.items()}
    bounds = times.seconds[:, None] - times.step * np.array([1.0, 0.0]) if how["bounds"] else None
    path = str(folder / "*.nc") if parts > 1 else folder / name
    var, *others = kinds
    gap = "has a gap from" if grid_name.endswith("in two parts") else ""
    return Drawn(
        path, var, expected[var], lon, lat, times.seconds, tolerance[var], cell, how, times.first,
        {kind: (expected[kind], tolerance[kind]) for kind in others}, bounds, times.refused or gap,
    )  # fmt: skip


# What writers do, and how often it is drawn.
_HABITS = {"bounds": 0.2, "group": 0.05, "latin": 0.08, "other group": 0.1}


def _axes(grid: dict, times: Times, steps: slice, bounds: bool) -> dict[str, _Array]:
    """Return the coordinates, and their bounds if they have some."""
    numbers = times.numbers[steps]
    arrays = {"time": _Array(("time",), numbers, dict(times.attrs))}
    for name, found in grid.items():
        if isinstance(found, tuple):
            arrays[name] = _Array(found[0], found[1], dict(found[2]))
        else:
            arrays[name] = _Array((), np.array(0, "i4"), {"crs_wkt": found})
    if bounds:
        for name in [name for name, array in arrays.items() if array.dims == (name,)]:
            axis = arrays[name]
            axis.attrs["bounds"] = f"{name}_bnds"
            if name == "time":
                ends = numbers[:, None] - times.step / times.per_unit * np.array([1.0, 0.0])
            else:
                step = np.median(np.abs(np.diff(axis.numbers)))
                ends = axis.numbers[:, None].astype(float) + step * np.array([-0.5, 0.5])
            arrays[f"{name}_bnds"] = _Array((name, "bnds"), ends.astype("f8"), {})
    return arrays


def _field(kind: str, packing: Packing, values: np.ndarray, grid: dict, leading: dict, order: tuple) -> _Array:
    """Pack a field.

    Args:
        kind: kind of variable, see KINDS.
        packing: packing to apply.
        values: unpacked values.
        grid: coordinates of the grid.
        leading: sizes of the dimensions before those of the grid.
        order: True if rows and columns are exchanged, and True if the leading dimensions are reversed.
    """
    units, standard, _ = KINDS[kind]
    plane = next((v[0] for v in grid.values() if isinstance(v, tuple) and len(v[0]) == 2), tuple(grid)[:2])
    numbers = packing.store(values).reshape(*leading.values(), *values.shape[1:])
    dims = (*leading, *plane)
    stored_dims = (*(tuple(leading)[::-1] if order[1] else leading), *(plane[::-1] if order[0] else plane))
    numbers = np.ascontiguousarray(numbers.transpose([dims.index(dim) for dim in stored_dims]))
    attrs = {"units": units, "standard_name": standard} | packing.attrs
    fill = attrs.pop("_FillValue", None)
    if "crs" in grid:
        attrs["grid_mapping"] = "crs"
    if "lat" in grid:
        attrs["coordinates"] = "lat lon"
    return _Array(stored_dims, numbers, attrs, fill)


def _write_netcdf(rng, path: Path, form: str, arrays: dict[str, _Array], how: dict) -> None:
    import netCDF4

    classic = form == "netcdf3"
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_OFFSET" if classic else "NETCDF4") as file:
        place = file.createGroup("data") if how["group"] and not classic else file
        if how["latin"]:
            file.setncattr("institution", _LATIN1)
        file.set_auto_maskandscale(False)
        for array in arrays.values():
            for dim, size in zip(array.dims, array.numbers.shape, strict=True):
                if dim not in place.dimensions:
                    place.createDimension(dim, size)
        packed = {} if classic else {"zlib": bool(rng.random() < 0.5)}
        for name, array in arrays.items():
            numbers = array.numbers.astype("f8" if classic and array.numbers.dtype == "i8" else array.numbers.dtype)
            variable = place.createVariable(name, numbers.dtype, array.dims, fill_value=array.fill, **packed)
            variable.set_auto_maskandscale(False)
            variable[...] = numbers
            variable.setncatts(array.attrs)
        if how["other group"] and not classic:
            file.createGroup("extra").createDimension("n", 2)


def _write_zarr(rng, path: Path, form: str, arrays: dict[str, _Array], how: dict) -> None:
    import zarr

    version = int(form[-1])
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, array in arrays.items():
        options = {"fill_value": array.fill} if version == 2 and array.fill is not None else {}
        if version == 3:
            options["dimension_names"] = array.dims
        stored = group.create_array(name, shape=array.numbers.shape, dtype=array.numbers.dtype, **options)
        stored[...] = array.numbers
        attrs = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in array.attrs.items()}
        if version == 2:
            attrs["_ARRAY_DIMENSIONS"] = list(array.dims)
        elif array.fill is not None:  # the format 3 holds it as xarray encodes it: another attribute declares it
            attrs["missing_value"] = np.asarray(array.fill).item()
        stored.attrs.update(attrs)

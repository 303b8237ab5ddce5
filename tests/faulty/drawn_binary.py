# SPDX-License-Identifier: Apache-2.0
"""Random files of RADOLAN, Nimrod and MeteoNet, written with struct from the format descriptions."""

import bz2
import datetime
import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from .drawn import Drawn, random_field
from .drawn_radar import transform
from .writers import register_writer

_START = datetime.datetime(2024, 6, 1, 11, 50)
_FIRST = "2024-06-01T11:50"
# RADOLAN (DWD, RADOLAN composite format). _PRODUCTS: bytes of a pixel, exponent of the precision, and minutes of each
# product. _GRIDS: rows, columns, and the numbers of rows below and columns left of 9 E, 51 N.
_PRODUCTS = {"RX": (1, 0, 5), "RW": (2, -1, 60), "RY": (2, -2, 5), "YW": (2, -2, 5), "SF": (2, -1, 1440)}
_GRIDS = {"RX": (900, 900, 450, 450), "YW": (1100, 900, 550, 370)}
_EARTH = {"3SW   2.13.1": "+a=6370040 +b=6370040", "5SW P30001H": "+ellps=WGS84"}


@register_writer("radolan", share=0.015, added=3)
def write_radolan(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write composites of one RADOLAN product in one or more files or an archive.

    Pixels include missing data, clutter flags, negative and secondary values. Files may be compressed.
    """
    import pyproj

    product = str(rng.choice(list(_PRODUCTS)))
    size, exponent, _ = _PRODUCTS[product]
    rows, columns, down, left = _GRIDS.get(product, _GRIDS["RX"])
    version = str(rng.choice(list(_EARTH)))
    count = int(rng.integers(1, 4)) if rng.random() < 0.3 else 1
    way = str(rng.choice(["plain", "gz", "bz2"])) if count == 1 else str(rng.choice(["files", "tar", "tar.gz"]))
    values, contents = [], []
    for k in range(count):
        codes, field = _codes(rng, size, (rows, columns), 10.0**exponent)
        values.append(field)
        time = _START + datetime.timedelta(minutes=5 * k)
        name = f"raa01-{product.lower()}_10000-{time:%y%m%d%H%M}-dwd---bin"
        contents.append((name, _composite(product, version, time, codes)))
    path = _stored(rng, folder, way, contents)
    crs = pyproj.CRS.from_user_input(f"+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 {_EARTH[version]} +units=m")
    east, north = pyproj.Proj(crs)(9.0, 51.0)
    x, y = east + 1e3 * (np.arange(columns) + 0.5 - left), north + 1e3 * (rows - np.arange(rows) - 0.5 - down)
    lon, lat = transform(crs, x, y)
    var = "reflectivity" if size == 1 else "rainfall_amount"
    how = {"product": product, "version": version[0], "way": way}
    return Drawn(path, var, np.stack(values), lon, lat, 300.0 * np.arange(count), 1e-4, 1e3 / 111e3, how, _FIRST)


def _codes(rng: np.random.Generator, size: int, shape: tuple, precision: float) -> tuple[np.ndarray, np.ndarray]:
    """Return codes from south to north, as in the files, and values from north to south."""
    blocks = random_field(rng, (1, shape[0] // 20, shape[1] // 20))[0]
    smooth = np.kron(blocks, np.ones((20, 20)))
    wet = smooth > 0.4
    if size == 1:
        codes = np.where(wet, np.rint(60 + 80 * smooth) + rng.integers(0, 8, shape), 0).astype("u1")
        values = codes * 0.5 - 32.5
        missing = [249, 250]
    else:
        amounts = np.where(wet, np.rint(900 * smooth) + rng.integers(0, 40, shape), 0).astype("u2")
        negative = (rng.random(shape) < 1e-5) & wet
        secondary = rng.random(shape) < 0.1
        codes = amounts | (0x1000 * secondary).astype("u2") | (0x4000 * negative).astype("u2")
        values = amounts * precision * np.where(negative, -1.0, 1.0)
        missing = [0x2000 | 2500, 0x8000 | 700]
    for code in missing:
        top, left = (int(rng.integers(n - 40)) for n in shape)
        codes[top : top + 30, left : left + 30] = code
        values[top : top + 30, left : left + 30] = np.nan
    return codes[::-1], values


def _composite(product: str, version: str, time: datetime.datetime, codes: np.ndarray) -> bytes:
    """Return the bytes of a composite: text header, end-of-text byte, and codes in little-endian order."""
    size, exponent, minutes = _PRODUCTS[product]
    rows, columns = codes.shape
    stations = "MS 76<boo,ros,hnr,umd,pro,ess,fld,drs,neu,nhb,oft,eis,tur,isn,fbg,mem> "
    tail = f"VS {version}PR E{exponent:+03d}INT{minutes:4d}GP{rows:4d}x{columns:4d}{stations}"
    body = codes.astype("u1" if size == 1 else "<u2").tobytes()
    head = f"{product}{time:%d%H%M}10000{time:%m%y}BY"
    length = len(head) + 7 + len(tail) + 1 + len(body)
    return f"{head}{length:7d}{tail}".encode() + b"\x03" + body


def _stored(rng: np.random.Generator, folder: Path, way: str, contents: list[tuple[str, bytes]]) -> Path | str:
    """Return the path or the pattern of the written files."""
    if way in ("plain", "gz", "bz2"):
        name, content = contents[0]
        pack = {"plain": lambda data: data, "gz": lambda data: gzip.compress(data, 1), "bz2": bz2.compress}[way]
        path = folder / (name if way == "plain" else f"{name}.{way}")
        path.write_bytes(pack(content))
        return path
    order = [contents[k] for k in rng.permutation(len(contents))]
    if way == "files":
        for name, content in order:
            (folder / name).write_bytes(content)
        return str(folder / "raa01*")
    path = folder / f"composites.{way}"
    mode = {"mode": "w"} if way == "tar" else {"mode": "w:gz", "compresslevel": 1}
    with tarfile.open(path, **mode) as archive:
        for name, content in order:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@register_writer("nimrod", share=0.035, added=2)
def write_nimrod(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write a field of any number type on the British National Grid, with its origin at the top left or bottom left."""
    import pyproj

    rows, columns, cell = int(rng.integers(10, 30)), int(rng.integers(10, 30)), float(rng.choice([1e3, 2e3, 5e3]))
    kind = str(rng.choice(["rate", "amount", "reflectivity"]))
    form = str(rng.choice([">f4", ">i2", ">i4", ">u1"]))
    up, lead = int(rng.integers(0, 2)), int(rng.choice([0, 0, 0, 60]))
    field = random_field(rng, (rows, columns, 1))[..., 0]
    reach = {"rate": 100.0, "amount": 12.0, "reflectivity": 60.0}[kind]
    exact = reach * np.maximum(0, 1.4 * field - 0.4)
    factor = 1.0 if form == ">f4" else float({">u1": 2, ">i2": rng.choice([32, 10]), ">i4": 32}[form])
    codes = exact.astype("f4") if form == ">f4" else np.rint(exact * factor)
    values = codes.astype(float) / factor
    missing = {">f4": -32767.0, ">i2": -1.0, ">i4": -32767.0, ">u1": 255.0}[form]
    real_missing = float(rng.choice([-32767.0, 1e6])) if form == ">f4" else -32767.0
    if rng.random() < 0.6:
        codes[2:6, 3:7] = real_missing if form == ">f4" else missing
        values[2:6, 3:7] = np.nan
    north, west = float(rng.integers(200, 900)) * 1e3 + 0.5 * cell, float(rng.integers(100, 400)) * 1e3 + 0.5 * cell
    south = north - cell * (rows - 1)
    valid = _START + datetime.timedelta(minutes=lead)
    type_, size = {">f4": (0, 4), ">i2": (1, 2), ">i4": (1, 4), ">u1": (2, 1)}[form]
    minutes = 60 if kind == "amount" else 0
    whole = [
        valid.year, valid.month, valid.day, valid.hour, valid.minute, 0,
        _START.year, _START.month, _START.day, _START.hour, _START.minute,
        type_, size, 1, 0, rows, columns, 2, {"rate": 63, "amount": 73, "reflectivity": 1}[kind], 8, 0, 0, 0, up,
        -32767 if form == ">f4" else int(missing), minutes, 4, 0, 0, 0, 0,
    ]  # fmt: skip
    real = [9999.0, -32767.0, south if up else north, cell, west, cell, real_missing, 1.0, *[-32767.0] * 20]
    name = {"rate": "mm/hr", "amount": "mm", "reflectivity": "dBZ"}[kind]
    units = name if factor == 1 else f"{name}*{factor:.0f}"
    text = units.ljust(8) + "Radar composite".ljust(24) + kind.ljust(24)
    header = struct.pack(">31h28f", *whole, *real) + struct.pack(">45f", *[-32767.0] * 45) + text.encode()
    header += struct.pack(">51h", *[-32767] * 51)
    body = (codes[::-1] if up else codes).astype(form).tobytes()
    content = b"".join(struct.pack(">i", len(part)) + part + struct.pack(">i", len(part)) for part in (header, body))
    zipped = bool(rng.random() < 0.3)
    path = folder / ("metoffice-c-band.dat.gz" if zipped else "metoffice-c-band.dat")
    path.write_bytes(gzip.compress(content) if zipped else content)
    lon, lat = transform(pyproj.CRS.from_epsg(27700), west + cell * np.arange(columns), north - cell * np.arange(rows))
    var = {"rate": "rainfall_rate", "amount": "rainfall_amount", "reflectivity": "reflectivity"}[kind]
    if kind == "reflectivity":
        values = np.maximum(values, -32.0)
    how = {"kind": kind, "form": form, "up": up, "lead": lead, "missing": real_missing, "units": units}
    return Drawn(path, var, values[None], lon, lat, np.zeros(1), 1e-4, cell / 111e3, how, valid.isoformat()[:16])


@register_writer("meteonet", share=0.03, added=1)
def write_meteonet(rng: np.random.Generator, folder: Path) -> Drawn:
    """Write a MeteoNet archive of rain or reflectivity (old or new product) and its coordinate file."""
    count, rows, columns = int(rng.integers(2, 5)), int(rng.integers(10, 30)), int(rng.integers(10, 30))
    kind = str(rng.choice(["rainfall", "reflectivity_old", "reflectivity_new"]))
    field = np.maximum(0, 1.5 * random_field(rng, (count, rows, columns)) - 0.5)
    missing = np.zeros(field.shape, bool)
    if rng.random() < 0.7:
        missing[:, :3, 2:6] = True
    if kind == "rainfall":
        codes, parts, code, dtype = np.rint(2500 * field), 100, -1, "i2"
    elif kind == "reflectivity_old":
        codes, parts, code, dtype = np.rint(60 * field), 1, 255, str(rng.choice(["u1", "i2"]))
    else:
        codes, parts, code, dtype = np.where(field > 0, np.rint(120 * field) * 5 - 90, -100), 10, -200, "i2"
    values = np.where(missing, np.nan, codes / parts)
    arrays = {"data": np.where(missing, code, codes).astype(dtype)}
    if kind == "reflectivity_new":
        scales = {"prob": 50, "height": 900}
        arrays |= {name: np.where(missing, -200, value).astype("i2") for name, value in scales.items()}
    dates = np.array([_START + datetime.timedelta(minutes=5 * k) for k in range(count)], object)
    path = folder / f"{kind}_NW_2024_06.1.npz"
    np.savez_compressed(path, **arrays)
    _add_dates(path, dates, int(rng.choice([2, pickle.DEFAULT_PROTOCOL])))
    step = 0.01
    lat = float(rng.integers(44, 50)) - step * np.arange(rows)
    lon = float(rng.integers(-5, 5)) + step * np.arange(columns)
    plane = np.meshgrid(lon, lat)
    np.savez(folder / "radar_coords_NW.npz", lats=plane[1], lons=plane[0])
    var = "rainfall_amount" if kind == "rainfall" else "reflectivity"
    how = {"kind": kind, "dtype": dtype}
    return Drawn(path, var, values, *plane, 300.0 * np.arange(count), 1e-4, step, how, _FIRST)


def _add_dates(path: Path, dates: np.ndarray, protocol: int) -> None:
    """Add pickled dates and an empty array of missing dates to an npz archive."""
    with zipfile.ZipFile(path, "a") as archive:
        for name, array in (("dates", dates), ("miss_dates", dates[:0])):
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
            pickle.dump(array, stream, protocol=protocol)
            archive.writestr(f"{name}.npy", stream.getvalue())

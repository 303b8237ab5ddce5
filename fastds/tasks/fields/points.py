# SPDX-License-Identifier: Apache-2.0
"""Points on the globe from a CSV file, columns or pairs."""

import csv
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = str | os.PathLike | Mapping[str, Sequence] | Sequence[tuple[float, float]]


def _read_rows(path: str | os.PathLike) -> list[dict]:
    """Read the rows of a CSV file. The separator is the first of comma, semicolon and tab that the header contains.

    Raises:
        ValueError: the encoding is not UTF-8, or a row has the wrong number of values.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=next((mark for mark in ",;\t" if mark in head), ","))
            for row in (rows := list(reader)):
                if None in row or None in row.values():
                    count = sum(value is not None for name, value in row.items() if name is not None)
                    count += len(row.get(None, []))
                    columns = len(reader.fieldnames or ())
                    raise ValueError(f"{path}: point {rows.index(row) + 1} has {count} values for {columns} columns")
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#x} at {error.start}"
        raise ValueError(f"{path} is not in UTF-8 ({found}): save it as UTF-8 first") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}") from None
    return rows


def _collect_rows(points: Mapping[str, Sequence] | Sequence[tuple[float, float]]) -> list[dict]:
    try:
        if not hasattr(points, "keys"):
            return [{"lat": latitude, "lon": longitude} for latitude, longitude in points]
        names = list(points.keys())
        return [dict(zip(names, row, strict=True)) for row in zip(*(points[n] for n in names), strict=True)]
    except (TypeError, ValueError):
        expected = "a CSV file, columns lat and lon of one length by name, or pairs (latitude, longitude)"
        raise TypeError(f"points must be {expected}, got {reprlib.repr(points)}") from None


def read_points(points: Points) -> tuple[list[dict], list[float], list[float]]:
    """Read points, see fastds.query.

    Returns:
        Rows, latitudes and longitudes.

    Raises:
        FileNotFoundError: no such file.
        TypeError: the argument is not a collection of points.
        ValueError: a point has no latitude or no longitude.
    """
    where = "points"
    if isinstance(points, str | os.PathLike):
        where = str(points)
        if not Path(points).is_file():
            raise FileNotFoundError(f"no such file: {points}")
        stations = _read_rows(points)
    else:
        stations = _collect_rows(points)
    columns = {str(name).strip().lower(): name for name in (stations[0] if stations else {})}
    pair = [
        next((columns[n] for n in names if n in columns), None) for names in (("lat", "latitude"), ("lon", "longitude"))
    ]
    if None in pair:
        raise ValueError(f"{where}: expected the columns lat and lon, found {', '.join(columns) or 'nothing'}")
    try:
        latitude, longitude = ([float(s[name]) for s in stations] for name in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: a coordinate is no number such as 45.2: {error}") from None
    return stations, latitude, longitude

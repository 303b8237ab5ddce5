# SPDX-License-Identifier: Apache-2.0
"""Maps of a field of any output of fastds: selection of times, lead times and members, colours, coasts, graticule."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastds.data.grid.axes import find_rows_and_columns, find_time_dimension
from fastds.data.grid.times import format_time
from fastds.data.grid.variables import parse_duration
from fastds.plot.field_styles import FieldStyle, choose_style
from fastds.plot.location import Location
from fastds.plot.maps import colour_bar, draw_cells, finish_map, note_missing
from fastds.plot.panels import MapPanels, MapRow
from fastds.plot.saving import check_picture, is_animation, save_animation, save_figure
from fastds.plot.selection import format_map_time, select_equally, select_leads

MEMBER, REFERENCE, PERIOD, THRESHOLD = "realization", "forecast_reference_time", "forecast_period", "threshold"
_RELATION = "spp__relative_to_threshold"
_MOST_ROWS = 6


def draw_map(
    data: xr.DataArray | xr.Dataset,
    *,
    var: str | None = None,
    time: str | Sequence[str] | None = None,
    lead: str | Sequence[str] | None = None,
    member: int | Sequence[int] | None = None,
    axes: Axes | None = None,
    outlines: bool = True,
    title: str | None = None,
    save: str | os.PathLike | None = None,
) -> Figure:
    """Draw maps of a field and return the Figure.

    There is one column for each time or lead time, and one row for each threshold of probabilities or each member.
    Maps with a known location have coasts, borders, cities and a graticule. Locations are known from latitudes and
    longitudes, or from a grid mapping, which is a variable of the dataset; pass the Dataset if the DataArray does not
    have it.

    Args:
        data: field over y and x, and over time, lead time, members or thresholds if it has them; or a Dataset.
        var: name of the variable of a Dataset. Default: the only field.
        time: time, or several, such as "2020-06-01T12:00"; of hindcasts the initialization time. Default: at most six
            times at equal intervals; of hindcasts the first.
        lead: lead time, or several, such as "30min", of forecasts. Default: at most six at equal intervals.
        member: number of a member from 1, or several. Default: the mean of the members.
        axes: matplotlib axes for a single map. Default: a new figure.
        outlines: draw coasts, borders and cities.
        title: title of the figure. Default: quantity, initialization time and method, as far as they are known.
        save: PNG, SVG or PDF file to write, or GIF or MP4 with one frame for each selected time, by default all.
            Default: no file.

    Returns:
        The Figure, of an animation with the last frame.

    Raises:
        ValueError: data without y and x, or with further dimensions; unknown times, lead times or members; axes for
            several maps.
    """
    if save is not None:
        check_picture(save, "save")
    selection = select_maps(data, var=var, time=time, lead=lead, member=member, every=_is_animated(save, axes))
    heading = selection.title if title is None else title
    if axes is not None:
        figure = selection.draw_on(axes, outlines, heading)
    elif save is not None and is_animation(save):
        return selection.animate(save, outlines, heading)
    else:
        figure = MapPanels(selection.make_rows(), selection.columns, heading, outlines).figure
    if save is not None:
        save_figure(figure, save)
    return figure


def _is_animated(save: str | os.PathLike | None, axes: Axes | None) -> bool:
    if save is None or not is_animation(save):
        return False
    if axes is not None:
        raise ValueError(f"axes cannot be given for an animation, got save={os.fspath(save)!r}")
    return True


@dataclasses.dataclass
class MapSelection:
    """Selected fields of a variable.

    Attributes:
        fields: (rows, columns, H, W), not loaded if the data are not.
        rows: names of the rows.
        columns: names of the columns: times or lead times.
        style: colours of the quantity.
        location: location of the fields.
        title: title of the figure.
    """

    fields: xr.DataArray
    rows: list[str]
    columns: list[str]
    style: FieldStyle
    location: Location
    title: str

    def read(self, row: int, column: int) -> np.ndarray:
        """Read a field (H, W)."""
        return np.asarray(self.fields[row, column].values, dtype=float)

    def make_rows(self) -> list[MapRow]:
        """Return all fields as rows of maps."""
        columns = range(len(self.columns))
        return [
            MapRow(name, [self.read(k, column) for column in columns], self.style, self.location)
            for k, name in enumerate(self.rows)
        ]

    def draw_on(self, axes: Axes, outlines: bool, title: str) -> Figure:
        """Draw the only map on axes and return their figure.

        Raises:
            ValueError: several maps are selected.
        """
        if len(self.rows) * len(self.columns) != 1:
            count = f"{len(self.rows)} x {len(self.columns)}"
            raise ValueError(f"axes are for a single map, got {count}: select one with time, lead or member")
        field, style, location = self.read(0, 0), self.style, self.location
        image = draw_cells(
            axes, style.convert(field), location.x, location.y, (style.colour_map, style.norm, style.levels)
        )
        figure: Any = axes.get_figure()
        box = axes.get_position()
        size = float(box.width * figure.get_figwidth()), float(box.height * figure.get_figheight())
        label = ", ".join(filter(None, (title, *self.rows, *self.columns)))
        finish_map(axes, label, location, True, True, size=size, outlines=outlines)
        bar_label = style.label + note_missing([field])
        colour_bar(figure, image, np.array([axes]), style.levels, bar_label, style.extend)
        return figure

    def animate(self, path: str | os.PathLike, outlines: bool, title: str) -> Figure:
        """Write an animation with one frame per column, and return the figure of the last frame."""
        first = [self.read(k, 0) for k in range(len(self.rows))]
        panels = MapPanels(
            [MapRow("", first, self.style, self.location)], self.rows, f"{title}: {self.columns[0]}", outlines
        )

        def iterate():
            for column, name in enumerate(self.columns):
                fields = [[self.read(k, column) for k in range(len(self.rows))]]
                yield ": ".join(filter(None, (title, name))), fields

        save_animation(panels, iterate(), path)
        return panels.figure


def select_maps(
    data: xr.DataArray | xr.Dataset,
    *,
    var: str | None = None,
    time: str | Sequence[str] | None = None,
    lead: str | Sequence[str] | None = None,
    member: int | Sequence[int] | None = None,
    every: bool = False,
) -> MapSelection:
    """Select the fields of a picture.

    Args:
        data: see draw_map.
        var: see draw_map.
        time: see draw_map.
        lead: see draw_map.
        member: see draw_map.
        every: select all times by default, in place of at most six.

    Raises:
        ValueError: see draw_map.
    """
    field, dataset = _find_field(data, var)
    field = arrange_field(field)
    y, x = field.dims[-2:]
    field, thresholds = _select_thresholds(field)
    field, columns, start = _select_columns(field, time, lead, every)
    field, members = _select_members(field, member)  # after the columns, so that the mean is that of few fields
    extra = [dim for dim in field.dims[:-2] if dim not in ("_row", "_column") and field.sizes[dim] > 1]
    if extra:
        example = f"data.isel({extra[0]}=0)"
        raise ValueError(f"variable {field.name} has the dimensions {_list_dims(field)}: select one value, {example}")
    field = field.squeeze([dim for dim in field.dims[:-2] if dim not in ("_row", "_column")], drop=True)
    for name in ("_row", "_column"):
        if name not in field.dims:
            field = field.expand_dims(name)
    field = field.transpose("_row", "_column", y, x)
    rows = thresholds or members or [""]
    quantity = _describe(field, dataset, "probability" if thresholds else "")
    title = ", ".join(filter(None, (quantity, *(members[:1] if thresholds else []), start)))
    if not thresholds and len(rows) == 1 and rows != [""]:
        title, rows = f"{title}, {rows[0]}", [""]
    style = _choose_style(field, bool(thresholds))
    return MapSelection(field, rows, columns, style, Location.of(field[0, 0], dataset), title)


def arrange_field(field: xr.DataArray) -> xr.DataArray:
    """Transpose a field to (..., y, x).

    Raises:
        ValueError: the field has fewer than two dimensions.
    """
    y, x = find_rows_and_columns(field, field.dims)
    if y is None or x is None:
        if field.ndim < 2:
            raise ValueError(f"variable {field.name} must have the dimensions y and x, got {_list_dims(field)}")
        y, x = field.dims[-2:]
    return field.transpose(..., y, x)


def find_limits(field: xr.DataArray) -> tuple[float, float]:
    """Return the smallest and largest finite value of a field, (0, 1) if there is none."""
    values = field.where(np.isfinite(field)) if field.dtype.kind == "f" else field
    low, high = float(values.min()), float(values.max())
    return (low, high) if np.isfinite(low) else (0.0, 1.0)


def _choose_style(field: xr.DataArray, is_probability: bool) -> FieldStyle:
    return choose_style(field.attrs, str(field.name or ""), *find_limits(field), is_probability=is_probability)


def _describe(field: xr.DataArray, dataset: xr.Dataset | None, name: str = "") -> str:
    """Return quantity and method of a field as text.

    Args:
        field: field with its attributes.
        dataset: dataset of the field, or None.
        name: name of the quantity; "": from the attributes.
    """
    attrs = field.attrs
    name = name or str(attrs.get("long_name") or attrs.get("standard_name") or field.name or "").replace("_", " ")
    model = "" if dataset is None else str(dataset.attrs.get("fastds_model", ""))
    return f"{name} with {model}" if model and name else name or model


def _list_dims(field: xr.DataArray) -> str:
    return f"({', '.join(f'{dim}: {size}' for dim, size in field.sizes.items())})"


def _find_field(data: xr.DataArray | xr.Dataset, var: str | None) -> tuple[xr.DataArray, xr.Dataset | None]:
    """Return the field that is drawn, and the dataset with its grid mapping if there is one."""
    if isinstance(data, xr.DataArray):
        if var is not None and var != data.name:
            raise ValueError(f"var must be the name of the DataArray, {data.name!r}, or None, got {var!r}")
        return data, None
    fields = [
        name
        for name, field in data.data_vars.items()
        if field.ndim >= 2 and field.dtype.kind in "fiu" and not is_auxiliary(field, data)
    ]
    if var is not None:
        if var not in data.data_vars:
            raise ValueError(f"var must be one of {', '.join(map(str, fields))}, got {var!r}")
        return data[var], data
    most = max((data[name].ndim for name in fields), default=0)
    fields = [name for name in fields if data[name].ndim == most]
    if len(fields) != 1:
        found = ", ".join(map(str, fields)) or "none"
        raise ValueError(f"var must name one of the fields of the dataset: {found}")
    return data[fields[0]], data


def is_auxiliary(field: xr.DataArray, dataset: xr.Dataset) -> bool:
    """Return whether a variable is a mask, or bounds or an ancillary variable of another one."""
    others = [attrs for variable in dataset.variables.values() for attrs in (variable.attrs, variable.encoding)]
    named = {
        word
        for attrs in others
        for key in ("bounds", "ancillary_variables")
        for word in str(attrs.get(key, "")).split()
    }
    return field.name in named or "flag_values" in field.attrs


def _select_thresholds(field: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """Return the fields of the first thresholds along "_row", and their names; without thresholds the field and []."""
    names = [n for n, c in field.coords.items() if c.ndim < 2 and (n == THRESHOLD or _RELATION in c.attrs)]
    if not names:
        return field, []
    threshold = field.coords[names[0]]
    above = "above" if threshold.attrs.get(_RELATION) in ("greater_than", "gt", ">") else "at least"
    units = str(threshold.attrs.get("units", "")).replace("mm h-1", "mm/h")
    labels = [f"{above} {value:g} {units}".strip() for value in np.atleast_1d(threshold.values)[:_MOST_ROWS]]
    if not threshold.ndim:
        return field, labels
    dim = threshold.dims[0]
    return field.isel({dim: slice(_MOST_ROWS)}).rename({dim: "_row"}), labels


def _select_members(field: xr.DataArray, member: int | Sequence[int] | None) -> tuple[xr.DataArray, list[str]]:
    """Return the mean of the members, or selected members along "_row", and their names."""
    if MEMBER not in field.dims:
        if member is not None:
            raise ValueError(f"member={member!r} needs the dimension {MEMBER}, the field has {_list_dims(field)}")
        return field, []
    count = field.sizes[MEMBER]
    if member is None:
        with xr.set_options(keep_attrs=True):
            return field.mean(MEMBER, skipna=False), [f"mean of {count} members"]
    numbers = [member] if isinstance(member, int | np.integer) else list(member)
    if not numbers or any(not 1 <= number <= count for number in numbers):
        raise ValueError(f"member must be from 1 to {count}, got {member!r}")
    labels = [f"member {number} of {count}" for number in numbers]
    index = [number - 1 for number in numbers]
    if len(index) == 1:
        return field.isel({MEMBER: index[0]}, drop=True), labels
    if "_row" in field.dims:
        raise ValueError(f"member must be a single member for fields with thresholds, got {member!r}")
    return field.isel({MEMBER: index}).rename({MEMBER: "_row"}), labels


def _select_columns(
    field: xr.DataArray, time: str | Sequence[str] | None, lead: str | Sequence[str] | None, every: bool
) -> tuple[xr.DataArray, list[str], str]:
    """Return the fields of selected times or lead times along "_column", their names, and a text about the start."""
    start = ""
    dim: Hashable | None
    if REFERENCE in field.dims:
        chosen = _find_times(field[REFERENCE].values, time, "time")[:1] if time is not None else [0]
        field, time = field.isel({REFERENCE: chosen[0]}), None
    if REFERENCE in field.coords and field[REFERENCE].ndim == 0:
        start = f"from {format_map_time(field[REFERENCE].values)}"
    dim = PERIOD if PERIOD in field.dims else find_time_dimension(field)
    has_leads = PERIOD in field.coords and field[PERIOD].dims == ((dim,) if dim in field.dims else ())
    if dim not in field.dims:
        if lead is not None or time is not None:
            raise ValueError(f"the field has neither times nor lead times, its dimensions are {_list_dims(field)}")
        times = [c for n, c in field.coords.items() if c.ndim == 0 and c.dtype.kind == "M" and n != REFERENCE]
        label = (
            f"+{_read_leads(field)[0] / 60:g} min" if has_leads else format_map_time(times[0].values) if times else ""
        )
        return field, [label], start
    if lead is not None and not has_leads:
        raise ValueError(f"lead={lead!r} needs the coordinate {PERIOD} along {dim}, which the field does not have")
    if has_leads:
        leads = _read_leads(field)
        if time is not None:
            index = _find_times(field[dim].values, time, "time")
        elif lead is not None:
            index = _find_leads(leads, lead)
        else:
            index = list(range(len(leads))) if every else select_leads(leads)
        names = [f"+{leads[k] / 60:g} min" for k in index]
    else:
        labels = field[dim].values if dim in field.coords else np.arange(field.sizes[dim])
        if time is not None:
            index = _find_times(labels, time, "time")
        else:
            index = list(range(len(labels))) if every else select_equally(len(labels))
        timed = labels.dtype.kind in "MO"
        names = [format_map_time(labels[k]) if timed else f"{dim} {labels[k]}" for k in index]
    return field.isel({dim: index}).rename({dim: "_column"}), names, start


def _read_leads(field: xr.DataArray) -> np.ndarray:
    """Return the lead times of a field in seconds."""
    period = np.atleast_1d(field[PERIOD].values)
    if period.dtype.kind == "m":
        return period / np.timedelta64(1, "s")
    scale = {"s": 1.0, "seconds": 1.0, "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0}
    return period.astype(float) * scale.get(str(field[PERIOD].attrs.get("units", "s")), 1.0)


def _find_leads(leads: np.ndarray, lead: str | Sequence[str]) -> list[int]:
    found = []
    for text in [lead] if isinstance(lead, str) else lead:
        matches = np.flatnonzero(np.abs(leads - parse_duration(text, "lead")) < 0.5)
        if not len(matches):
            known = ", ".join(f"{value / 60:g}min" for value in leads)
            raise ValueError(f"lead must be among {known}, got {text!r}")
        found.append(int(matches[0]))
    return found


def _find_times(labels: np.ndarray, time: str | Sequence[str], argument: str) -> list[int]:
    """Return the indices of times.

    Args:
        labels: (n,) times.
        time: a time, or several.
        argument: name of the argument for the message.
    """
    index = xr.DataArray(np.arange(len(labels)), dims="t", coords={"t": labels})
    found: list[int] = []
    for text in [time] if isinstance(time, str) else time:
        try:
            found += np.atleast_1d(index.sel(t=text).values).tolist()
        except (KeyError, ValueError, TypeError):
            ends = " to ".join(format_time(label) for label in labels[[0, -1]])
            raise ValueError(f"{argument} must be among the times of the field, {ends}, got {text!r}") from None
    return found

# SPDX-License-Identifier: Apache-2.0
"""xarray accessor: after `import fastds`, dataset.fastds.downscale() and other functions are available."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastds._html import format_heading, format_note, format_table
from fastds._mixins import get_function

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from fastds.data.reading import InputData
    from fastds.tasks.fields.scores import FieldTable
    from fastds.tasks.nowcast.scores import NowcastTable
    from fastds.tasks.probability.scores import ProbabilityTable
    from fastds.tasks.radar.scores import EvaluationTable

    Model = nn.Module | str | os.PathLike | None


class Accessor:
    """Functions of fastds as methods of a Dataset or DataArray. Arguments and errors are those of the functions."""

    def __init__(self, data: xr.Dataset | xr.DataArray):
        self._data = data

    def __repr__(self) -> str:
        name = type(self._data).__name__
        return f"<fastds functions of a {name}: downscale, nowcast, query, evaluate, plot, check>"

    def _repr_html_(self) -> str:
        """Return a table of the functions that take these data, for a notebook; no values are read."""
        from fastds.tasks.applicability import list_applicable  # imports torch

        heads = "function", "takes these data", "result or reason"
        rows = [(one.function, "yes" if one.applies else "no", one.text) for one in list_applicable(self._data)]
        return (
            format_heading(f"Functions of fastds for this {type(self._data).__name__}")
            + format_table(heads, rows, texts=(0, 1, 2))
            + format_note("check() reads the values and shows the models that fit.")
        )

    def downscale(
        self,
        model: Model = None,
        *,
        var: str | None = None,
        scale: float | None = None,
        grid: float | None = None,
        like: xr.Dataset | str | os.PathLike | None = None,
        time_factor: int | None = None,
        static: xr.Dataset | list[str] | None = None,
        dynamics: Mapping[str, Any] | str | None = None,
        coarsened: str | None = None,
        level: float | None = None,
        members: int | None = None,
        seed: int | None = None,
        smooth: bool = False,
        z_r: tuple[float, float] | None = None,
        tile: int | None = None,
        halo: int | None = None,
        missing: float | None = None,
        units: str | None = None,
        array: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        graph: str | None = None,
        progress: bool = False,
    ) -> xr.Dataset:
        """Downscale these fields. This is fastds.downscale(model, data, ...).

        An argument whose description begins with names of tasks raises an exception if the model is for another task.

        Args:
            model: loaded model, shipped name, weights file or baseline ("trilinear", "bicubic" or "advection" for
                radar; "bilinear", "bicubic", "lanczos" or "conservative" for fields). None: the default network:
                fczsm-small for radar; if scale, grid or like is given, inr-small if it takes the data, else inr-any.
            var: name of the variable; fields: also several names separated by commas, or "all" for all fields. Default:
                the only one that fits; fields: those of the model, or those with the most dimensions.
            scale: fields: scale factor along both axes, greater than 0. Exactly one of scale, grid and like is
                required.
            grid: fields: spacing of the output grid in degrees, or in the units of the projected coordinates.
            like: fields: Dataset or file with the output grid.
            time_factor: radar: ratio of the time resolution of output and input, 2 or 4. Default: 2.
            static: radar, fields: static maps for models that read static maps: a Dataset, or a list of files FILE.nc
                or FILE.nc:VARIABLE. Default: none.
            dynamics: radar: additional input variables of models that read some, if their names or units in the data
                differ from the model card: {NAME: VARIABLE}, or {NAME: [low, high]} with the range in the units of the
                data, or {VARIABLE: [low, high]} for all variables in the order of the model's channels. Default: as in
                the model card.
            coarsened: radar, fields: how the input averages finer cells; the output is then corrected so that the same
                average nearly gives the input. Radar: "linear_z", "dbz", "plain_dbz", "auto" (estimated from the
                values) or "unknown" (no correction); fields: "mean" or "unknown". Default: "auto" for radar, "unknown"
                for fields.
            level: humidity: value of the vertical coordinate. Default: the only level.
            members: radar, humidity: number of ensemble members, along a new dimension realization. Default: a single
                field.
            seed: radar, humidity: random seed of the ensemble. Default: 0.
            smooth: radar: between input times, keep the smooth frames of least squared error. Default: False, their
                detail is adjusted to that at the input times.
            z_r: radar: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h, for data in rain rates. Default: zr_a and
                zr_b of the data, else (200, 1.6).
            tile: radar: side of a tile in input pixels, a multiple of 16. Default: depends on the available memory.
            halo: radar: width of the margin around a tile in input pixels, a multiple of 16. Default: the receptive
                field of the network.
            missing: value that marks missing data, if the data do not declare it.
            units: units of the variable, if the data do not declare them.
            array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default:
                none.
            start: first time to use, such as "2020-06-01T12:00". Default: the first time.
            stop: last time to use. Default: the last time.
            threads: number of CPU threads. Default: torch's setting.
            precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
            device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
            graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
                Default: "auto".
            progress: show a progress bar. Default: False.

        Returns:
            A new Dataset with the settings in its attributes. It is lazy if these fields are dask arrays.

        Raises:
            UnknownOptionError: an argument that the task does not have. It is a TypeError and a ValueError.
            ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
            ValueError: a model that does not downscale, or data or arguments that do not fit.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "model")}
        return get_function("downscale")(model, self._data, **options)

    def nowcast(
        self,
        model: Model = None,
        *,
        steps: int | None = None,
        lead: str | None = None,
        start: str | None = None,
        every: str | None = None,
        stop: str | None = None,
        quantity: str = "rate",
        var: str | None = None,
        z_r: tuple[float, float] | None = None,
        coarsen: int | None = None,
        interval: str | None = None,
        block: int | None = None,
        smooth: bool = False,
        members: int | None = None,
        seed: int | None = None,
        probability: Sequence[float] | None = None,
        missing: float | None = None,
        units: str | None = None,
        array: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        graph: str | None = None,
        progress: bool = False,
    ) -> xr.Dataset:
        """Forecast from these radar frames. This is fastds.nowcast(model, data, ...).

        Args:
            model: loaded model, shipped name, weights file, or baseline: "persistence", "blurred-persistence",
                "extrapolation" or "pysteps". None: the shipped nowcasting network.
            steps: number of forecast frames. Default: 12.
            lead: lead time of the last frame, such as "60min", in place of steps.
            start: initialization time, a date. Default: the last time of the data.
            every: interval of hindcasts, such as "30min", from start (or the first possible time) on. Default: a single
                forecast.
            stop: last time of the data to use. Default: the last time.
            quantity: quantity of the output: "rate" in mm/h or "reflectivity" in dBZ. Default: "rate".
            var: name of the variable. Default: the only one that fits.
            z_r: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h. Default: zr_a and zr_b of the data, else (200,
                1.6).
            coarsen: number of cells along each axis over which the output quantity is averaged before the forecast.
                Default: depends on the grid spacing in the model card.
            interval: time between frames, such as "10min". Default: the shortest multiple of the data's interval in the
                range of the model card.
            block: number of frames after which the network restarts from its own forecasts. Default: it continues with
                its states.
            smooth: keep the smooth forecast of least squared error, for rain rates the expected rain rate. Default:
                False, its intensities are matched to those of the last frame.
            members: number of ensemble members, along a new dimension realization. Default: a single forecast.
            seed: random seed of the ensemble. Default: 0.
            probability: rain rates in mm/h; the output has their exceedance probabilities in an ensemble in place of
                the forecast. Default: none.
            missing: value that marks missing data, if the data do not declare it.
            units: units of the variable, if the data do not declare them.
            array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default:
                none.
            threads: number of CPU threads. Default: torch's setting.
            precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
            device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
            graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
                Default: "auto".
            progress: show a progress bar. Default: False.

        Returns:
            A new Dataset with the settings in its attributes. It is lazy if these fields are dask arrays.

        Raises:
            ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
            ValueError: a model that does not forecast, too few frames before the initialization time, or data or
                arguments that do not fit.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "model")}
        return get_function("nowcast")(model, self._data, **options)

    def query(
        self,
        points: str | os.PathLike | Mapping[str, Sequence] | Sequence[tuple[float, float]],
        model: Model = None,
        *,
        outside: str = "error",
        var: str | None = None,
        static: xr.Dataset | list[str] | None = None,
        height: str | None = None,
        lapse_rate: float | str | None = None,
        missing: float | None = None,
        units: str | None = None,
        array: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        graph: str | None = None,
    ) -> list[dict]:
        """Interpolate these fields to points, with a model and bilinearly. This is fastds.query.

        Args:
            points: pairs (latitude, longitude) in degrees, a mapping of columns that include lat and lon, or a CSV file
                of such columns.
            model: arbitrary-scale model, shipped name or weights file. None: inr-small if it takes the data, else
                inr-any.
            outside: points outside the fields: "error" raises an exception, "nan" gives NaN, "clamp" moves the points
                to the edge. Default: "error".
            var: name of the variable, several names separated by commas, or "all". Default: all that fit.
            static: static maps for models that read static maps, and the orography for height: a Dataset, or a list of
                files FILE.nc or FILE.nc:VARIABLE. Default: none; the orography is a variable of the data.
            height: column of the points with their heights in metres; temperatures near the surface are then corrected
                for the height of the model surface. Default: no correction.
            lapse_rate: with height: decrease of temperature with height in K/km, or "levels" or "neighbourhood", fitted
                to the pressure levels or to the cells around each point. Default: 6.5.
            missing: value that marks missing data, if the data do not declare it.
            units: units of the variable, if the data do not declare them.
            array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default:
                none.
            start: first time to use, a date. Default: the first time.
            stop: last time to use. Default: the last time.
            threads: number of CPU threads. Default: torch's setting.
            precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
            device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
            graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
                Default: "auto".

        Returns:
            One dict for each field and point: the columns of the point, the leading coordinates, NAME (value of the
            model) and NAME_bilinear for each variable; with height further columns of the correction.

        Raises:
            ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
            ValueError: a model, data or points that do not fit.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "points", "model")}
        return get_function("query")(model, self._data, points, **options)

    def evaluate(
        self,
        truth: InputData,
        *,
        input: InputData | None = None,
        var: str | None = None,
        z_r: tuple[float, float] | None = None,
        baselines: Sequence[str] | None = None,
        model: str | os.PathLike | None = None,
        report: str | os.PathLike | None = None,
        missing: float | None = None,
        units: str | None = None,
        array: str | None = None,
        start: str | None = None,
        stop: str | None = None,
        progress: bool = False,
    ) -> EvaluationTable | FieldTable | NowcastTable | ProbabilityTable:
        """Verify these downscaled fields, ensembles or nowcasts against the truth. This is fastds.evaluate.

        Args:
            truth: true fields on the same grid and at the same times; for nowcasts the observed fields.
            input: input of the prediction. Default: radar: truth averaged over 2 x 2 pixels at every second time;
                fields: truth coarsened according to the attributes of the prediction; nowcasts: truth.
            var: name of the variable; fields: also several names separated by commas. Default: the only one that fits;
                fields: all.
            z_r: radar, nowcasts: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h. Default: zr_a and zr_b of the
                data, else (200, 1.6).
            baselines: nowcasts: names of the baselines to compare. Default: all.
            model: name or file of the weights whose card is in the report. Default: the model named by the prediction.
            report: HTML file to write. Default: no report.
            missing: value that marks missing data in truth and input, if they do not declare it.
            units: units of the variable in truth and input, if they do not declare them.
            array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default:
                none.
            start: first time of truth and input to use, a date. Default: the first time.
            stop: last time of truth and input to use. Default: the last time.
            progress: show a progress bar. Default: False.

        Returns:
            A table with rows, print(), to_csv(path) and to_html(path).

        Raises:
            UnknownOptionError: an argument that the task of the prediction does not have. It is a TypeError and a
                ValueError.
            ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
            ValueError: grids, times or arguments that do not fit.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "truth")}
        return get_function("evaluate")(self._data, truth, **options)

    def plot(
        self,
        var: str | None = None,
        *,
        time: str | Sequence[str] | None = None,
        lead: str | Sequence[str] | None = None,
        member: int | Sequence[int] | None = None,
        axes: Axes | None = None,
        outlines: bool = True,
        title: str | None = None,
        save: str | os.PathLike | None = None,
    ) -> Figure:
        """Draw maps of a field with coasts, borders and a graticule. This is fastds.plot.draw_map(data, ...).

        Args:
            var: name of the variable of a Dataset. Default: the only field.
            time: time, or several, such as "2020-06-01T12:00"; of hindcasts the initialization time. Default: at most
                six times at equal intervals; of hindcasts the first.
            lead: lead time, or several, such as "30min", of forecasts. Default: at most six at equal intervals.
            member: number of a member from 1, or several. Default: the mean of the members.
            axes: matplotlib axes for a single map. Default: a new figure.
            outlines: draw coasts, borders and cities. Default: True.
            title: title of the figure. Default: quantity, method and initialization time, as far as they are known.
            save: PNG, SVG or PDF file to write, or GIF or MP4 with one frame for each selected time, by default all.
                Default: no file.

        Returns:
            The matplotlib Figure, of an animation with the last frame.

        Raises:
            ValueError: data without y and x, or with further dimensions; unknown times, lead times or members; axes for
                several maps.
        """
        from fastds.plot import draw_map  # imports matplotlib

        options = {name: value for name, value in locals().items() if name not in ("self", "draw_map")}
        return draw_map(self._data, **options)

    def check(self, var: str | None = None) -> bool:
        """Print the contents of these data, and the commands that take them, as `fastds check` does. Values are read.

        Args:
            var: name of the variable. Default: the only one that fits.

        Returns:
            True if at least one command takes the data.
        """
        from fastds.tasks.check import check  # imports torch

        return check(self._data, var)


def register_accessor(xarray: ModuleType) -> None:
    """Register the accessor `fastds` of Dataset and DataArray, unless it exists.

    A second registration would make xarray issue a warning.
    """
    kinds: tuple[tuple[type, Callable], ...] = (
        (xarray.Dataset, xarray.register_dataset_accessor),
        (xarray.DataArray, xarray.register_dataarray_accessor),
    )
    for kind, how in kinds:
        if not hasattr(kind, "fastds"):
            how("fastds")(Accessor)

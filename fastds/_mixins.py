# SPDX-License-Identifier: Apache-2.0
"""Registry of public functions and mixins that add these functions to models as methods.

Models must not import tasks. fastds/__init__.py registers module and name of each function, and the function is
imported at first use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastds._html import format_note

if TYPE_CHECKING:
    import xarray as xr

    from fastds.data.reading import InputData

_LOCATIONS: dict[str, str] = {}


def register_function(verb: str, place: str) -> None:
    """Register a public function.

    Args:
        verb: name of the public function.
        place: location of the implementation, "module:function".
    """
    _LOCATIONS[verb] = place


def is_registered(verb: str) -> bool:
    """Return whether a public function of this name is registered."""
    return verb in _LOCATIONS


def get_function(verb: str) -> Callable:
    """Import and return a registered function."""
    module, _, name = _LOCATIONS[verb].partition(":")
    return getattr(importlib.import_module(module), name)


class CardMixin:
    """Mixin for models with a model card: notebooks show the card."""

    def _repr_html_(self: Any) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return format_note(f"{type(self).__name__} with {count:,} parameters") + self.card._repr_html_()


class DownscaleMixin(CardMixin):
    """Mixin for models that downscale radar frames, gridded fields or humidity."""

    def downscale(
        self,
        data: InputData,
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
        """Downscale data with this model. This is fastds.downscale(model, data, ...).

        An argument whose description begins with names of tasks raises an exception if the model is for another task.

        Args:
            data: Dataset, DataArray, file, or several files of one series.
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
            A new Dataset with the settings in its attributes. It is lazy if `data` is a Dataset of dask arrays.

        Raises:
            UnknownOptionError: an argument that the task does not have. It is a TypeError and a ValueError.
            ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
            ValueError: a model that does not downscale, or data or arguments that do not fit.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "data")}
        return get_function("downscale")(self, data, **options)


class NowcastMixin(CardMixin):
    """Mixin for models that forecast radar frames."""

    def nowcast(
        self,
        data: InputData,
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
        """Forecast radar frames with this model. This is fastds.nowcast(model, data, ...).

        Args:
            data: Dataset, DataArray or files with the last radar frames.
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
            A new Dataset with the settings in its attributes. It is lazy if `data` is a Dataset of dask arrays.

        Raises:
            ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
            ValueError: a model that does not forecast, too few frames before the initialization time, or data or
                arguments that do not fit.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "data")}
        return get_function("nowcast")(self, data, **options)

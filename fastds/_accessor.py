# SPDX-License-Identifier: Apache-2.0
"""xarray accessor: after `import fastds`, dataset.fastds.downscale() and other functions are available."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Unpack

from fastds._mixins import (
    DownscaleOptions,
    EvaluateOptions,
    NowcastOptions,
    QueryOptions,
    get_function,
    show_options,
)

if TYPE_CHECKING:
    import xarray as xr


class Accessor:
    """Functions of fastds as methods of a Dataset or DataArray. Arguments and errors are those of the functions."""

    def __init__(self, data: xr.Dataset | xr.DataArray):
        self._data = data

    @show_options(DownscaleOptions)
    def downscale(self, model: Any = None, **options: Unpack[DownscaleOptions]) -> xr.Dataset:
        """Downscale these fields, see fastds.downscale. model: None: the default model for these fields."""
        return get_function("downscale")(model, self._data, **options)

    @show_options(NowcastOptions)
    def nowcast(self, model: Any = None, **options: Unpack[NowcastOptions]) -> xr.Dataset:
        """Forecast from these radar frames, see fastds.nowcast. model: None: the default nowcasting model."""
        return get_function("nowcast")(model, self._data, **options)

    @show_options(QueryOptions)
    def query(self, points: Any, model: Any = None, **options: Unpack[QueryOptions]) -> list[dict]:
        """Interpolate these fields to points, see fastds.query. model: None: the default model for these fields."""
        return get_function("query")(model, self._data, points, **options)

    @show_options(EvaluateOptions)
    def evaluate(self, truth: Any, **options: Unpack[EvaluateOptions]) -> Any:
        """Verify these downscaled fields or nowcasts against the truth, see fastds.evaluate."""
        return get_function("evaluate")(self._data, truth, **options)


def register_accessor(xarray: ModuleType) -> None:
    """Register the accessor `fastds` of Dataset and DataArray, unless it exists, as xarray would then issue a
    warning.
    """
    kinds: tuple[tuple[type, Callable], ...] = (
        (xarray.Dataset, xarray.register_dataset_accessor),
        (xarray.DataArray, xarray.register_dataarray_accessor),
    )
    for kind, how in kinds:
        if not hasattr(kind, "fastds"):
            how("fastds")(Accessor)

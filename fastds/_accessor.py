# SPDX-License-Identifier: Apache-2.0
"""The verbs as methods of xarray objects: after `import fastds`, dataset.fastds.downscale()."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Unpack

from fastds._verbs import (
    DownscaleOptions,
    EvaluateOptions,
    NowcastOptions,
    QueryOptions,
    function,
    show_options,
)

if TYPE_CHECKING:
    import xarray as xr


class Accessor:
    """The verbs for a Dataset or DataArray; model, options and errors are those of fastds.downscale and the others."""

    def __init__(self, data: xr.Dataset | xr.DataArray):
        self._data = data

    @show_options(DownscaleOptions)
    def downscale(self, model: Any = None, **options: Unpack[DownscaleOptions]) -> xr.Dataset:
        """Make these fields finer, see fastds.downscale. model: None: the shipped one that takes them."""
        return function("downscale")(model, self._data, **options)

    @show_options(NowcastOptions)
    def nowcast(self, model: Any = None, **options: Unpack[NowcastOptions]) -> xr.Dataset:
        """Forecast the next radar fields, see fastds.nowcast. model: None: the shipped nowcaster."""
        return function("nowcast")(model, self._data, **options)

    @show_options(QueryOptions)
    def query(self, points: Any, model: Any = None, **options: Unpack[QueryOptions]) -> list[dict]:
        """Values at points, see fastds.query. model: None: the shipped one that takes them."""
        return function("query")(model, self._data, points, **options)

    @show_options(EvaluateOptions)
    def evaluate(self, truth: Any, **options: Unpack[EvaluateOptions]) -> Any:
        """The errors of these downscaled fields or nowcasts against the truth, see fastds.evaluate."""
        return function("evaluate")(self._data, truth, **options)


def register(xarray: ModuleType) -> None:
    """Let the objects of xarray have the attribute `fastds`; once, as xarray warns of a second time."""
    kinds: tuple[tuple[type, Callable], ...] = (
        (xarray.Dataset, xarray.register_dataset_accessor),
        (xarray.DataArray, xarray.register_dataarray_accessor),
    )
    for kind, how in kinds:
        if not hasattr(kind, "fastds"):
            how("fastds")(Accessor)

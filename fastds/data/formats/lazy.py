# SPDX-License-Identifier: Apache-2.0
"""Lazy application of functions to the values of a variable, and error messages for lazy reading."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from fastds.data.errors import make_read_error

ArrayFunction = Callable[[np.ndarray], np.ndarray]


class _MappedArray(BackendArray):
    """Lazy array of function(values).

    Args:
        variable: Variable of the values.
        function: Function of an array that preserves shape and dtype.
        planes: Whether the function needs complete planes over the last two dimensions.
    """

    def __init__(self, variable: xr.Variable, function: ArrayFunction, planes: bool):
        self.variable, self.function, self.planes = variable, function, planes
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        if not self.planes:
            return self.function(np.asarray(self.variable[key].values))
        whole = (*key[:-2], slice(None), slice(None))
        return self.function(np.asarray(self.variable[whole].values))[(..., *key[-2:])]


def map_values(variable: xr.Variable, function: ArrayFunction, planes: bool = False) -> xr.Variable:
    """Apply a function to the values of a variable: now if the values are in memory, otherwise when they are read.

    Args:
        variable: Variable that is not a dask array.
        function: Function of an array that preserves shape and dtype. It has to be a module-level function, or a
            functools.partial of one, if the variable is pickled.
        planes: Whether the function needs complete planes (..., H, W), for example because it reorders values.

    Returns:
        Variable of the same shape and dtype.
    """
    if variable._in_memory:
        return variable.copy(deep=False, data=function(variable.values))
    lazy = indexing.LazilyIndexedArray(_MappedArray(variable, function, planes))
    return variable.copy(deep=False, data=wrap_in_cache(lazy))


class _GuardedArray(BackendArray):
    """Lazy array that names file and variable in errors of reading."""

    def __init__(self, variable: xr.Variable, name: str, path: str):
        self.variable, self.name, self.path = variable, name, path
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        try:
            return np.asarray(self.variable[key].values)
        except Exception as error:
            found = make_read_error(self.path, error, f"the values of {self.name}")
            if found is error:
                raise
            raise found from error


def guard_values(dataset: xr.Dataset, path: str | os.PathLike) -> xr.Dataset:
    """Make errors of reading lazy values name the file and the variable, as errors of opening do.

    Args:
        dataset: Dataset of a file.
        path: File name for the message.

    Returns:
        Dataset with the same values.
    """
    guarded = {}
    for name, variable in dataset.variables.items():
        if not variable._in_memory and variable.chunks is None:
            lazy = indexing.LazilyIndexedArray(_GuardedArray(variable, str(name), os.fspath(path)))
            guarded[name] = variable.copy(deep=False, data=wrap_in_cache(lazy))
    at_coords = {name: variable for name, variable in guarded.items() if name in dataset.coords}
    return dataset.assign_coords(at_coords).assign({n: v for n, v in guarded.items() if n not in at_coords})


def wrap_in_cache(lazy: Any) -> Any:
    """Wrap a lazy array so that it stays in memory once it was read completely, as xarray.open_dataset does."""
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazy))

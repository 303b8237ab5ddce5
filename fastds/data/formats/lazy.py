# SPDX-License-Identifier: Apache-2.0
"""Functions of the values of a variable that are applied when the values are read."""

from collections.abc import Callable

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

Function = Callable[[np.ndarray], np.ndarray]


class _MappedArray(BackendArray):
    """function(values of a variable); planes: of whole planes over the last two dimensions, else of any part."""

    def __init__(self, variable: xr.Variable, function: Function, planes: bool):
        self.variable, self.function, self.planes = variable, function, planes
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        if not self.planes:
            return self.function(np.asarray(self.variable[key].values))
        whole = (*key[:-2], slice(None), slice(None))
        return self.function(np.asarray(self.variable[whole].values))[(..., *key[-2:])]


def map_values(variable: xr.Variable, function: Function, planes: bool = False) -> xr.Variable:
    """The variable with function applied to its values: when they are read where the variable is lazy, else at once.

    Args:
        variable: not of dask. function: of an array, keeps shape and dtype; for variables that are pickled a function
            of a module or functools.partial of one.
        planes: whether function needs the whole last two dimensions; it gets (..., H, W) and may exchange values there.
    """
    if variable._in_memory:
        return variable.copy(deep=False, data=function(variable.values))
    lazy = indexing.LazilyIndexedArray(_MappedArray(variable, function, planes))
    return variable.copy(deep=False, data=cached(lazy))


def cached(lazy: indexing.ExplicitlyIndexed) -> indexing.ExplicitlyIndexed:
    """A lazy array that is read once where it is asked for as a whole, as those of xarray.open_dataset."""
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazy))

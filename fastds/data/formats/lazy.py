# SPDX-License-Identifier: Apache-2.0
"""Functions of the values of a variable that are applied when the values are read, and errors of reading them."""

import os
from collections.abc import Callable

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from fastds.data.errors import unreadable

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


class _GuardedArray(BackendArray):
    """Values of a variable of a file, whose errors of reading name both."""

    def __init__(self, variable: xr.Variable, name: str, path: str):
        self.variable, self.name, self.path = variable, name, path
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        try:
            return np.asarray(self.variable[key].values)
        except Exception as error:
            found = unreadable(self.path, error, f"the values of {self.name}")
            if found is error:
                raise
            raise found from error


def guard_values(dataset: xr.Dataset, path: str | os.PathLike) -> xr.Dataset:
    """The dataset of a file; errors of reading its lazy values, when they are asked for, become one that names the file
    and the variable, as errors of opening do."""
    guarded = {}
    for name, variable in dataset.variables.items():
        if not variable._in_memory and variable.chunks is None:
            lazy = indexing.LazilyIndexedArray(_GuardedArray(variable, str(name), os.fspath(path)))
            guarded[name] = variable.copy(deep=False, data=cached(lazy))
    at_coords = {name: variable for name, variable in guarded.items() if name in dataset.coords}
    return dataset.assign_coords(at_coords).assign({n: v for n, v in guarded.items() if n not in at_coords})


def cached(lazy: indexing.ExplicitlyIndexed) -> indexing.ExplicitlyIndexed:
    """A lazy array that is read once where it is asked for as a whole, as those of xarray.open_dataset."""
    return indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazy))

# SPDX-License-Identifier: Apache-2.0
"""Reading of small fields in blocks of several steps, because each access to a file takes longer than its values."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import xarray as xr

_BLOCK_BYTES = 16 << 20  # maximum size of a block in memory, unless a single step is larger


class BlockReader:
    """Fields of a dataset, read in blocks along the first leading dimension.

    The last block of each variable is cached. A pickle does not contain it.

    Args:
        dataset: fields (..., H, W).
        lead: leading dimensions.
        horizontal: names of the horizontal dimensions.
    """

    def __init__(self, dataset: xr.Dataset, lead: Sequence[Hashable], horizontal: tuple[str, str]):
        self.dataset, self.lead, self.horizontal = dataset, tuple(lead), horizontal
        self._blocks: dict[str, tuple[int, np.ndarray]] = {}

    def read(self, name: str, at: Mapping[Hashable, int]) -> np.ndarray:
        """Return the field (H, W) of a variable at indices of the leading dimensions, not to be modified."""
        field = self.dataset[name]
        steps = 1
        if self.lead and self.lead[0] in field.dims:
            steps = _BLOCK_BYTES * field.sizes[self.lead[0]] // max(1, 4 * math.prod(field.shape))
        if steps < 2:
            return field.isel(at).transpose(*self.horizontal).values
        index = at[self.lead[0]]
        first, values = self._blocks.get(name, (0, None))
        if values is None or not first <= index < first + len(values):
            first = index // steps * steps
            block = field.isel({self.lead[0]: slice(first, first + steps)})
            values = block.transpose(*self.lead, *self.horizontal).values
            self._blocks[name] = first, values
        return values[(index - first, *(at[dim] for dim in self.lead[1:]))]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_blocks": {}}

# SPDX-License-Identifier: Apache-2.0
"""Samples of radar fields, turned: flips, a transpose, reversal of time."""

import numpy as np


def augment(
    sample: dict[str, np.ndarray], flip_rows: bool, flip_columns: bool, transpose: bool, reverse: bool
) -> dict[str, np.ndarray]:
    """Flip, transpose and reverse in time a sample of arrays; flow vectors (dy, dx) turn with the grid."""
    flow = sample.get("flow")
    arrays = {key: value for key, value in sample.items() if key != "flow"}
    for wanted, axis, component in ((flip_rows, -2, 0), (flip_columns, -1, 1)):
        if wanted:
            arrays = {key: np.flip(value, axis) for key, value in arrays.items()}
            if flow is not None:
                flow = np.flip(flow, axis).copy()
                flow[:, :, component] *= -1
    if transpose:
        arrays = {key: np.swapaxes(value, -1, -2) for key, value in arrays.items()}
        flow = None if flow is None else np.flip(np.swapaxes(flow, -1, -2), 2)
    if reverse:
        arrays = {key: value if key == "static" else np.flip(value, 0) for key, value in arrays.items()}
        flow = None if flow is None else np.flip(flow, 1)
    return arrays if flow is None else {**arrays, "flow": flow}

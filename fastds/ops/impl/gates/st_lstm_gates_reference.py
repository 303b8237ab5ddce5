# SPDX-License-Identifier: Apache-2.0
from fastds.ops.impl.gates.memory_gates_reference import memory_gates


def st_lstm_gates(pre, c):
    """memory_gates of i, f, g, and q as it is; pre in the order i, f, g, q."""
    channels = c.shape[1]
    return memory_gates(pre[:, : 3 * channels], c), pre[:, 3 * channels :].clone()

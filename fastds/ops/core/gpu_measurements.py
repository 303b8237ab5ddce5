# SPDX-License-Identifier: Apache-2.0
"""Backends of ops that were measured on a GPU by bench/gpu_suite.sh, for fastds.explain."""

MEASURED_ON = "NVIDIA H200"
# Pairs (registered op, backend) whose kernels are those of a row of bench/results/gpu.csv. deform_conv2d has times of
# its kernels instead (kernel_times.py). A kernel that is replaced leaves the list until a GPU has run the new one.
MEASURED = frozenset(
    {
        ("conv3x3", "native"),
        ("conv_gru_reset", "native"),
        ("conv_gru_reset", "triton"),
        ("conv_gru_update", "native"),
        ("conv_gru_update", "triton"),
        ("conv_lstm_cell", "native"),
        ("conv_lstm_cell", "triton"),
        ("conv_st_lstm_gates", "native"),
        ("conv_st_lstm_gates", "triton"),
        ("inr_query", "native"),
        ("pixel_shuffle", "native"),
        ("window_attention2d", "triton"),
        ("window_attention2d_backward", "triton"),
    }
)


def describe_source(measured: bool) -> str:
    """Return "measured on" a GPU or "estimated"."""
    return f"measured on {MEASURED_ON}" if measured else "estimated"


def describe_kernels(op_name: str, backend: str) -> str:
    """Return the entry "kernels" of fastds.explain for the backend that an op runs on a GPU."""
    return f"{backend}: {describe_source((op_name, backend) in MEASURED)}"

# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one file per op. Import torch and triton only; importing this package loads neither."""

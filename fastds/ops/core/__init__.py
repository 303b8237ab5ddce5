# SPDX-License-Identifier: Apache-2.0
"""Shared infrastructure of all ops: registration, backend selection, argument checks, autocast, native and Triton
kernels.
"""

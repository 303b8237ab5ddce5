# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the ops, installed as fastds.kernels."""

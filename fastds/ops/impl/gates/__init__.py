# SPDX-License-Identifier: Apache-2.0
"""Pointwise ops of recurrent cells: gates and state updates."""

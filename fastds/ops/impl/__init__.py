# SPDX-License-Identifier: Apache-2.0
"""Implementations of the ops, one folder for each op.

In a folder, op.py has the checks, gradients, registration and public functions, and reference.py has the formula.
"""

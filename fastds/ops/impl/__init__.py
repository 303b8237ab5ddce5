# SPDX-License-Identifier: Apache-2.0
"""Ops, one folder each: op.py has the checks, gradients, registration and public functions, reference.py the
formula.
"""

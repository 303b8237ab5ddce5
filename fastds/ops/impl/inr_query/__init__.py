# SPDX-License-Identifier: Apache-2.0
"""Implicit queries: values of a field between its pixels."""

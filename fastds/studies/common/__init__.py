# SPDX-License-Identifier: Apache-2.0
"""Common parts of the studies: options, costs, resumable runs, bootstrap intervals, tables and figures."""

# SPDX-License-Identifier: Apache-2.0
"""Random calls of the ops, judged by the float64 reference; `python -m tests.fuzz --help` runs them by the million."""

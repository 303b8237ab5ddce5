# SPDX-License-Identifier: Apache-2.0
"""Random calls of the ops, compared with the float64 reference; `python -m tests.fuzz --help` describes campaigns."""

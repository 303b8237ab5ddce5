# SPDX-License-Identifier: Apache-2.0
"""Random calls of the ops, which are compared with the float64 reference."""

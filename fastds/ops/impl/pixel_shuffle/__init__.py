# SPDX-License-Identifier: Apache-2.0
"""Sub-pixel shuffles, with an activation."""

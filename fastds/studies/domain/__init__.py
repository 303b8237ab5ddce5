# SPDX-License-Identifier: Apache-2.0
"""Out-of-distribution score of inputs compared with a network's error, and the input ranges in model cards."""

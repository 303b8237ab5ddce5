# SPDX-License-Identifier: Apache-2.0
"""Out-of-distribution inputs: comparison with the training data of a network."""

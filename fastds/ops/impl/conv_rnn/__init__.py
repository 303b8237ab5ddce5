# SPDX-License-Identifier: Apache-2.0
"""Steps of convolutional recurrent cells: a 3x3 convolution with fused gates."""

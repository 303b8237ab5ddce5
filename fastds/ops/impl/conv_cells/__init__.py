# SPDX-License-Identifier: Apache-2.0
"""A 3x3 convolution and the gates behind it in one op: the recurrent cells."""

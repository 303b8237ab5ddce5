# SPDX-License-Identifier: Apache-2.0
"""The ops in plain PyTorch, written to be read: any dtype, differentiable to any order, the oracle of the tests."""

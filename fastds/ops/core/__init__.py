# SPDX-License-Identifier: Apache-2.0
"""What all ops share: registration, choice of a backend, checks of arguments, autocast, native and Triton kernels."""

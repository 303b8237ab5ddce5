# SPDX-License-Identifier: Apache-2.0
"""Infrastructure of all ops: registration, backend selection, argument checks, autocast, loading of kernels."""

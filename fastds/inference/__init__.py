# SPDX-License-Identifier: Apache-2.0
"""Inference: execution settings, chunking, tiling, files, tables of scores, out-of-distribution inputs."""

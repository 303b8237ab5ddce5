# SPDX-License-Identifier: Apache-2.0
"""Inference, training and verification for the tasks radar, fields, humidity and nowcast."""

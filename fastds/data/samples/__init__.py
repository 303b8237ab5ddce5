# SPDX-License-Identifier: Apache-2.0
"""Training samples of radar data and of gridded fields."""

# SPDX-License-Identifier: Apache-2.0
"""Many trainings beside each other, and the tables of their scores."""

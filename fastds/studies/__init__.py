# SPDX-License-Identifier: Apache-2.0
"""Studies: trainings and evaluations of several methods on the same data, and tables of their scores."""

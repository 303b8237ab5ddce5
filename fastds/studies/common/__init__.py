# SPDX-License-Identifier: Apache-2.0
"""What studies share: a budget, a folder that a killed run goes on with, intervals, tables."""

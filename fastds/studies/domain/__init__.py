# SPDX-License-Identifier: Apache-2.0
"""The score of inputs against a network's card beside its error, and the ranges in the cards."""

# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of fastds/; see `python -m tests.mutants --help`."""

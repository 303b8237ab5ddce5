# SPDX-License-Identifier: Apache-2.0
"""Mutation testing of fastds/; `python -m tests.mutants --help` describes it."""

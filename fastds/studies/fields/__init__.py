# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale networks compared with baselines: `fastds study fields-500hPa --data.path=FILE`."""

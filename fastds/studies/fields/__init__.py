# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale networks beside their baselines: `fastds study fields-500hPa --data.path=FILE`."""

# SPDX-License-Identifier: Apache-2.0
"""The tables and figures of arbitrary-scale downscaling with DPFA: `fastds study inr --data.path FILE`."""

# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of arbitrary-scale downscaling with DPFA: `fastds study inr --data.path FILE`."""

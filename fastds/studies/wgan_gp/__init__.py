# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the humidity WGAN-GP (Li, Wang, Wang and Han 2024): `fastds study wgan-gp`."""

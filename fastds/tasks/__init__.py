# SPDX-License-Identifier: Apache-2.0
"""What users do with the networks: radar, fields, humidity, nowcast. Each folder has the same files."""

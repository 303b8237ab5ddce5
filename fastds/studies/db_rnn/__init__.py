# SPDX-License-Identifier: Apache-2.0
"""The tables and figures of DB-RNN (Ma, Zhang and Liu 2024): `fastds study db-rnn --data.path FOLDER`."""

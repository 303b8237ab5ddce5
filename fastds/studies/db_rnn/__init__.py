# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of DB-RNN (Ma, Zhang and Liu 2024): `fastds study db-rnn --data.path FOLDER`."""

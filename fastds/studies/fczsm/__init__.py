# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of FC-ZSM (Chen, Qin and Dai 2022): `fastds study fczsm --data.path FOLDER`."""

# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.impl.conv3x3.reference import conv3x3
from fastds.ops.impl.gates.gru_reset_reference import gru_reset
from fastds.ops.impl.gates.gru_update_reference import gru_update


def conv_gru_cell(
    x, h, gates_weight, gates_bias, candidate_weight, candidate_bias, keep="z", act="tanh", negative_slope=0.2
):
    """gru_update behind conv3x3([x; r h]), z and r h from gru_reset behind conv3x3([x; h])."""
    pre_z, pre_r = conv3x3(torch.cat([x, h], 1), gates_weight, gates_bias).chunk(2, 1)
    z, reset = gru_reset(pre_z, pre_r, h)
    candidate = conv3x3(torch.cat([x, reset], 1), candidate_weight, candidate_bias)
    return gru_update(z, candidate, h, keep, act, negative_slope)

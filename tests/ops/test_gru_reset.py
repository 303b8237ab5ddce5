# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops import gru_reset
from tests.support.gates_cases import GateTests, s


class TestGruReset(GateTests):
    gates, names, states, second = (1, 1, 1), ("pre_z", "pre_r", "h"), (2,), True
    function = staticmethod(gru_reset)
    op = torch.ops.fastds.gru_reset.default

    @staticmethod
    def oracle(pre_z, pre_r, h):
        return s(pre_z), s(pre_r) * h

    def output_dtypes(self, tensors):
        return [tensors[0].dtype] * 2

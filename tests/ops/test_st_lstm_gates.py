# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops import st_lstm_gates
from tests.support.gates_cases import GateTests, s


class TestStLstmGates(GateTests):
    gates, names, wide, states = (4, 1), ("pre", "c"), (1,), (1,)
    function = staticmethod(st_lstm_gates)
    op = torch.ops.fastds.st_lstm_gates.default

    @staticmethod
    def oracle(pre, c):
        i, f, g, q = pre.chunk(4, 1)
        return s(f) * c + s(i) * torch.tanh(g), 1 * q

    def output_dtypes(self, tensors):
        return [tensors[1].dtype, tensors[0].dtype]

# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops import lstm_gates
from tests.support.gates_cases import GateTests, s


class TestLstmGates(GateTests):
    gates, names, wide, states = (4, 1), ("pre", "c"), (1,), (1,)
    function = staticmethod(lstm_gates)
    op = torch.ops.fastds.lstm_gates.default

    @staticmethod
    def oracle(pre, c):
        n = c.shape[1]
        new = s(pre[:, n : 2 * n]) * c + s(pre[:, :n]) * torch.tanh(pre[:, 2 * n : 3 * n])
        return s(pre[:, 3 * n :]) * torch.tanh(new), new

    def output_dtypes(self, tensors):
        return [tensors[0].dtype, tensors[1].dtype]

    def test_cell_state_in_sixteen_bits(self, native):
        pre, c = self.inputs()
        h, new = lstm_gates(pre.bfloat16(), c.bfloat16())
        assert h.dtype == new.dtype == torch.bfloat16
        expected = self.oracle(pre.bfloat16().double(), c.bfloat16().double())
        self.compare((h, new), expected, torch.bfloat16)

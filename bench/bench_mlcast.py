# SPDX-License-Identifier: Apache-2.0
"""The network of MLCast compared with the package mlcast, onnxruntime and OpenVINO.

Install mlcast by `pip install jaxtyping beartype` and `pip install --no-deps mlcast`. The network has its default
configuration: 256 x 256 pixels, 6 input and 12 output fields, five blocks, one member without noise. onnxruntime and
OpenVINO run the cells of mlcast as ONNX with an unrolled time loop. A training step is forward, mean squared error,
backward and Adam. bfloat16 means autocast for torch and the inference precision of OpenVINO. FLOPs are those of mlcast,
including products with zeros.
"""

import functools
import io

import pytest
import torch
import torch.nn.functional as F

from fastds.models import create

STEPS, SIZE = 12, 256
ROWS = [  # batch, mode, peer, dtype
    *[(2, "forward", peer, torch.float32) for peer in ("fastds", "mlcast", "onnxruntime", "openvino")],
    *[(2, "forward", peer, torch.bfloat16) for peer in ("fastds", "mlcast", "openvino")],
    *[(2, "training step", peer, dtype) for peer in ("fastds", "mlcast") for dtype in (torch.float32, torch.bfloat16)],
    *[(16, "forward", peer, torch.float32) for peer in ("fastds", "mlcast", "openvino")],
    *[(16, "forward", peer, torch.bfloat16) for peer in ("fastds", "mlcast", "openvino")],
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@functools.lru_cache(maxsize=1)
def make_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return create("mlcast-convgru").state_dict()


def make_network(peer: str) -> torch.nn.Module:
    """Return the network of fastds, or of mlcast for any other peer."""
    if peer == "fastds":
        model = create("mlcast-convgru")
    else:
        from mlcast.models.convgru import ConvGruModel

        model = ConvGruModel(1, 5)
    model.load_state_dict(make_weights())
    return model


def make_sample(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return known fields and the true fields after them: smooth fields between -1 and 1."""
    generator = torch.Generator().manual_seed(6)
    coarse = torch.rand(batch * (6 + STEPS), 1, SIZE // 8, SIZE // 8, generator=generator)
    fields = 2 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1) - 1
    return fields.view(batch, 6 + STEPS, 1, SIZE, SIZE).tensor_split([6], 1)


class Unrolled(torch.nn.Module):
    """The network of mlcast for a fixed number of steps, one field at a time because of the pixel shuffle of ONNX."""

    def __init__(self):
        super().__init__()
        self.network = make_network("mlcast")

    def forward(self, x):
        steps, last = list(x.unbind(1)), []
        for block in self.network.encoder.blocks:
            steps = [F.pixel_unshuffle(h, 2) for h in self.run_cell(block, steps, torch.zeros_like(steps[0]))]
            last.append(steps[-1])
        steps = STEPS * [torch.zeros_like(last[-1])]
        for block in self.network.decoder.blocks:
            steps = [F.pixel_shuffle(h, 2) for h in self.run_cell(block, steps, last.pop())]
        return torch.stack(steps, 1)

    @staticmethod
    def run_cell(block, steps, h):
        """Return the states of a recurrent cell after each step."""
        cell, states = block.convgru.cell, []
        for x in steps:
            update, reset = cell.combined_gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
            h = h * (1 - update) + cell.out_gate(torch.cat([x, h * reset], 1)).tanh() * update
            states.append(h)
        return states


def export_onnx(x: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(Unrolled().eval(), (x,), file, input_names=["x"], dynamo=False)
    return file.getvalue()


def build_onnxruntime(x: torch.Tensor):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(export_onnx(x), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x.numpy()})[0]


def build_openvino(x: torch.Tensor, dtype: torch.dtype):
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16"}
    settings |= {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = ov.Core().compile_model(ov.Core().read_model(export_onnx(x)), "CPU", settings)
    return lambda: compiled(x.numpy())[0]


def build(batch: int, mode: str, peer: str, dtype: torch.dtype):
    """Build the callable to time.

    Args:
        batch: number of samples.
        mode: "forward" for the forecasts, "training step" for the loss and the gradients.
        peer: peer of the row.
        dtype: bfloat16 for autocast.
    """
    x, truth = make_sample(batch)
    if peer == "onnxruntime":
        return build_onnxruntime(x)
    if peer == "openvino":
        return build_openvino(x, dtype)
    model = make_network(peer)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(x, STEPS)

    if mode == "forward":
        return torch.no_grad()(run)
    optimizer = torch.optim.Adam(model.parameters(), 1e-9)

    def step():
        optimizer.zero_grad()
        loss = F.mse_loss(run().float(), truth)
        loss.backward()
        optimizer.step()
        return loss.detach(), *(p.grad for p in model.parameters())

    return step


@functools.lru_cache(maxsize=1)
def compute_expected(batch: int, mode: str):
    return build(batch, mode, "mlcast", torch.float32)()


def count_flops(batch: int, mode: str) -> float:
    """Return the FLOPs of a call; a cell of C channels has 54 C^2 multiply-adds per pixel and step."""
    encoder = 6 * sum(54 * 16**i * SIZE**2 / 4**i for i in range(5))
    decoder = STEPS * sum(54 * 16 ** (i + 1) * SIZE**2 / 4 ** (i + 1) for i in range(5))
    return 2 * batch * (encoder + decoder) * (1 if mode == "forward" else 3)


NAMES = ["-".join((str(batch), mode, peer, str(dtype)[6:])).replace(" ", "_") for batch, mode, peer, dtype in ROWS]


@pytest.mark.parametrize(("batch", "mode", "peer", "dtype"), ROWS, ids=NAMES)
def test_mlcast(measure, batch, mode, peer, dtype):
    pytest.importorskip("mlcast.models.convgru")
    measure(
        build, (batch, mode, peer, dtype), op="mlcast-convgru", case=f"({batch},6,1,{SIZE},{SIZE})", mode=mode,
        peer={"mlcast": "torch_eager"}.get(peer, peer), dtype=str(dtype)[6:], flops=count_flops(batch, mode), bytes=0,
        expected=compute_expected(batch, mode), tolerance=TOLERANCE[dtype],
    )  # fmt: skip

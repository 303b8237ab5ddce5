# SPDX-License-Identifier: Apache-2.0
"""MLCast's network against mlcast's own code (pip install --no-deps mlcast; it needs jaxtyping and beartype),
onnxruntime and OpenVINO.

Its default: 256 x 256, 6 fields in, 12 out, five blocks, one member without noise. The runtimes get mlcast's cells with
the time loop unrolled as ONNX. A training step is forward, mean squared error, backward and Adam. bfloat16 is autocast
for torch and OpenVINO's inference precision. FLOPs are those of mlcast's graph, which multiplies by zeros.
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
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return create("mlcast-convgru").state_dict()


def network(peer: str) -> torch.nn.Module:
    if peer == "fastds":
        model = create("mlcast-convgru")
    else:
        from mlcast.models.convgru import ConvGruModel

        model = ConvGruModel(1, 5)
    model.load_state_dict(weights())
    return model


def sample(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Known fields and the truth after them: smooth blobs between -1 and 1."""
    generator = torch.Generator().manual_seed(6)
    coarse = torch.rand(batch * (6 + STEPS), 1, SIZE // 8, SIZE // 8, generator=generator)
    fields = 2 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1) - 1
    return fields.view(batch, 6 + STEPS, 1, SIZE, SIZE).tensor_split([6], 1)


class Unrolled(torch.nn.Module):
    """mlcast's network for a fixed number of steps; a map at a time, which is what ONNX's pixel shuffle takes."""

    def __init__(self):
        super().__init__()
        self.network = network("mlcast")

    def forward(self, x):
        maps, last = list(x.unbind(1)), []
        for block in self.network.encoder.blocks:
            maps = [F.pixel_unshuffle(h, 2) for h in self.states(block, maps, torch.zeros_like(maps[0]))]
            last.append(maps[-1])
        maps = STEPS * [torch.zeros_like(last[-1])]
        for block in self.network.decoder.blocks:
            maps = [F.pixel_shuffle(h, 2) for h in self.states(block, maps, last.pop())]
        return torch.stack(maps, 1)

    @staticmethod
    def states(block, maps, h):
        cell, states = block.convgru.cell, []
        for x in maps:
            update, reset = cell.combined_gates(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
            h = h * (1 - update) + cell.out_gate(torch.cat([x, h * reset], 1)).tanh() * update
            states.append(h)
        return states


def onnx_model(x: torch.Tensor) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(Unrolled().eval(), (x,), file, input_names=["x"], dynamo=False)
    return file.getvalue()


def onnxruntime(x: torch.Tensor):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(onnx_model(x), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x.numpy()})[0]


def openvino(x: torch.Tensor, dtype: torch.dtype):
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16"}
    settings |= {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = ov.Core().compile_model(ov.Core().read_model(onnx_model(x)), "CPU", settings)
    return lambda: compiled(x.numpy())[0]


def build(batch: int, mode: str, peer: str, dtype: torch.dtype):
    """The callable to time: the forecasts, or the loss and the gradients."""
    x, truth = sample(batch)
    if peer == "onnxruntime":
        return onnxruntime(x)
    if peer == "openvino":
        return openvino(x, dtype)
    model = network(peer)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(x, STEPS)

    if mode == "forward":
        return torch.no_grad()(run)
    optimiser = torch.optim.Adam(model.parameters(), 1e-9)

    def step():
        optimiser.zero_grad()
        loss = F.mse_loss(run().float(), truth)
        loss.backward()
        optimiser.step()
        return loss.detach(), *(p.grad for p in model.parameters())

    return step


@functools.lru_cache(maxsize=1)
def expected(batch: int, mode: str):
    return build(batch, mode, "mlcast", torch.float32)()


def flops(batch: int, mode: str) -> float:
    """54 C^2 multiply-adds a pixel and step in a cell of C channels."""
    encoder = 6 * sum(54 * 16**i * SIZE**2 / 4**i for i in range(5))
    decoder = STEPS * sum(54 * 16 ** (i + 1) * SIZE**2 / 4 ** (i + 1) for i in range(5))
    return 2 * batch * (encoder + decoder) * (1 if mode == "forward" else 3)


NAMES = ["-".join((str(batch), mode, peer, str(dtype)[6:])).replace(" ", "_") for batch, mode, peer, dtype in ROWS]


@pytest.mark.parametrize(("batch", "mode", "peer", "dtype"), ROWS, ids=NAMES)
def test_mlcast(measure, batch, mode, peer, dtype):
    pytest.importorskip("mlcast.models.convgru")
    measure(
        build, (batch, mode, peer, dtype), op="mlcast-convgru", case=f"({batch},6,1,{SIZE},{SIZE})", mode=mode,
        peer={"mlcast": "torch_eager"}.get(peer, peer), dtype=str(dtype)[6:], flops=flops(batch, mode), bytes=0,
        expected=expected(batch, mode), tolerance=TOLERANCE[dtype],
    )  # fmt: skip

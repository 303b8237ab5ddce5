# SPDX-License-Identifier: Apache-2.0
"""A model's forward for fixed shapes as one CUDA graph: hundreds of small kernels start with one launch."""

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

WARM_UP_RUNS = 3  # Triton compiles, cuDNN chooses and the caching allocator fills before the capture


class GraphedForward:
    """Replays model(*inputs) as captured: (same shapes, dtypes and device) -> a new tensor, without gradients.

    The weights are copied at the capture, in `dtype` and channels_last; later changes of the model do not reach it. The
    forward runs under autocast to `dtype`, so inputs keep their own. One replay at a time: calls on several streams
    share the buffers of the graph.

    Args:
        model: module on a CUDA device; its forward must not depend on the values of the inputs.
        inputs: example tensors or None, in the order of forward.
        dtype: torch.bfloat16, torch.float16 or torch.float32.

    Raises:
        ValueError: the model or an input is not on one CUDA device, or another dtype.
    """

    def __init__(self, model: nn.Module, *inputs: Tensor | None, dtype: torch.dtype = torch.bfloat16):
        self.device = graph_device(model, inputs, dtype)
        self.dtype = dtype
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.model.to(dtype=dtype, memory_format=torch.channels_last)
        self.inputs = [None if z is None else z.detach().clone() for z in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.no_grad(), cudnn_benchmark():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_RUNS):
                    self._forward()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self.output = self._forward()

    def _forward(self) -> Tensor:
        # The cache of autocast would keep tensors of the graph's memory alive between the runs.
        with torch.autocast("cuda", self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            return self.model(*self.inputs)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        for i, (given, held) in enumerate(zip(inputs, self.inputs, strict=True)):
            if (given is None) != (held is None) or (given is not None and given.shape != held.shape):
                wish, got = (None if z is None else tuple(z.shape) for z in (held, given))
                raise ValueError(f"input {i} has shape {got}, the graph was captured for {wish}")
        with torch.cuda.device(self.device):
            for given, held in zip(inputs, self.inputs, strict=True):
                if held is not None:
                    held.copy_(given)
            self.graph.replay()
            return self.output.clone()


@contextlib.contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """cuDNN times its algorithms at the first call of each shape; with fixed shapes that is once and for all."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def graph_device(model: nn.Module, inputs: Sequence[Tensor | None], dtype: torch.dtype) -> torch.device:
    """The CUDA device of the model; ValueError unless a graph can be captured there."""
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"dtype must be torch.bfloat16, torch.float16 or torch.float32, got {dtype}")
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"a CUDA graph needs a model on a CUDA device, this one is on {device}: call the model itself")
    for i, z in enumerate(inputs):
        if z is not None and z.device != device:
            raise ValueError(f"input {i} is on {z.device}, expected {device}, the device of the model")
    return device

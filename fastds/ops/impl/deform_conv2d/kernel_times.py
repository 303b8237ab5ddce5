# SPDX-License-Identifier: Apache-2.0
"""Times of the kernels of deform_conv2d on a GPU, by which a call selects its kernel.

A time is measured or, for kernels and shapes that no GPU has run, estimated. After a measurement only FORWARD and
BACKWARD change.
"""

import functools
import math
from typing import NamedTuple

from fastds.ops.core.gpu_measurements import describe_source

REFERENCE_PIXELS, REFERENCE_TAPS, REFERENCE_CHANNELS = 40_000, 9, 64  # 64 -> 64 channels, 200 x 200, 3 x 3 taps
TILE_OUTPUTS, FUSED_TILE_OUTPUTS = 64, 128  # outputs for which kernels in one pass compute each sample once
LAUNCH_MICROSECONDS = 2.0
# Kernels that no GPU has run. They are correct in the emulator, and run only if they are requested (use_two_passes,
# use_fused).
UNTRIED = frozenset({"two passes", "fused"})


class ReferenceTime(NamedTuple):
    """Microseconds of a forward or backward pass for (1, 64, 200, 200), 3 x 3 taps, 8 offset groups and 64 outputs.

    Attributes:
        samples: of the samples, or of the whole kernel if it has one pass.
        product: of what grows with the outputs, as a separate matrix product, 0 for a kernel in one pass.
        measured: whether the time was measured, by bench/gpu_suite.sh.
    """

    samples: float
    product: float
    measured: bool


# By bits of the dtype and kernel. Estimates are pessimistic: those of the two passes assume one line of the L1 cache a
# cycle, and a product in float32 without tensor cores.
FORWARD = {
    (16, "window"): ReferenceTime(86, 0, True),
    (16, "tensor cores"): ReferenceTime(120, 0, False),
    (16, "triton"): ReferenceTime(116, 0, True),
    (16, "two passes"): ReferenceTime(34, 14, False),
    (16, "fused"): ReferenceTime(57, 0, False),
    (16, "plain"): ReferenceTime(378, 0, False),
    (32, "triton"): ReferenceTime(199, 0, True),
    (32, "plain"): ReferenceTime(378, 0, True),
    (32, "two passes"): ReferenceTime(68, 100, False),
}
# The samples are the gradients of input, offset and mask, the product is the gradient of weight or both products of the
# two passes, whose estimate assumes that the L2 cache adds one sector of an atomic addition a cycle.
BACKWARD = {
    (16, "triton"): ReferenceTime(398, 128, True),
    (16, "two passes"): ReferenceTime(154, 28, False),
    (16, "plain"): ReferenceTime(480, 378, False),
    (32, "triton"): ReferenceTime(680, 220, False),
    (32, "plain"): ReferenceTime(480, 378, False),
    (32, "two passes"): ReferenceTime(208, 200, False),
}


class KernelTime(NamedTuple):
    """Time of a kernel for one call.

    Attributes:
        kernel: name of the kernel.
        microseconds: expected time.
        measured: whether the kernel was measured with as many taps and no more channels and outputs.
    """

    kernel: str
    microseconds: float
    measured: bool

    def __str__(self) -> str:
        return f"{self.kernel}: {self.microseconds:.0f} us, {describe_source(self.measured)}"


@functools.lru_cache(maxsize=1024)
def rank_kernels(
    kernels: tuple[str, ...],
    bits: int,
    pixels: int,
    taps: int,
    channels: int,
    outputs: int,
    groups: int,
    backward: bool = False,
) -> tuple[KernelTime, ...]:
    """Return the times of kernels for one call, the kernel to run first.

    An estimate replaces a measured kernel only if it is at most half as long, and in the backward pass never. UNTRIED
    kernels are last.

    Args:
        kernels: names of kernels that can run the call, at least one.
        bits: bits of the dtype.
        pixels: number of output pixels of all images.
        taps: number of taps.
        channels: number of input channels.
        outputs: number of output channels.
        groups: number of convolution groups.
        backward: whether the call computes gradients.
    """
    group_channels, group_outputs = channels // groups, outputs // groups
    samples = pixels * taps * channels / (REFERENCE_PIXELS * REFERENCE_TAPS * REFERENCE_CHANNELS)
    covered = taps == REFERENCE_TAPS and max(group_channels, group_outputs) <= REFERENCE_CHANNELS
    times = []
    for kernel in kernels:
        time = (BACKWARD if backward else FORWARD)[bits, kernel]
        in_one_pass = time.product == 0
        tiles = -(-group_outputs // (FUSED_TILE_OUTPUTS if kernel == "fused" else TILE_OUTPUTS))
        microseconds = time.samples * samples * (tiles if in_one_pass else 1)
        microseconds += time.product * samples * group_outputs / REFERENCE_CHANNELS
        launches = 3 if backward else 1 if in_one_pass else 1 + groups
        times.append(KernelTime(kernel, microseconds + launches * LAUNCH_MICROSECONDS, time.measured and covered))
    any_measured = any(time.measured for time in times)
    estimate_factor = (math.inf if backward else 2) if any_measured else 1  # by which estimates count as longer

    def make_key(time: KernelTime) -> tuple[bool, float]:
        return time.kernel in UNTRIED, time.microseconds * (1 if time.measured else estimate_factor)

    return tuple(sorted(times, key=make_key))

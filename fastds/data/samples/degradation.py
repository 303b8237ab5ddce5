# SPDX-License-Identifier: Apache-2.0
"""Random degradation of fine fields to coarse ones, a second-order degradation pipeline.

y1 = pack(noise(resize(blur(x)))), y2 = noise(resize(blur(y1))), then resizing to the coarse size, a sinc filter and
packing, in one of two orders. Resizing preserves positions, so that linear functions are reproduced.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DegradationConfig:
    """Parameters of the random degradation. Fields are normalised per variable; lengths are in fine pixels.

    Args:
        probability: Probability that a sample is degraded; otherwise it is only averaged over coarse pixels.
        blur: Probability of a blur in the first and second stage.
        widths: Smallest and largest sigma of the blur, pixels, in each stage.
        sinc: Probability that the kernel of a blur is a sinc kernel.
        final_sinc: Probability of a sinc filter at the end, which makes ringing like that of a spectral truncation.
        noise: Largest standard deviation of the noise in each stage.
        packing: Probability of GRIB packing; otherwise mantissas are rounded.
        bits: Numbers of bits of GRIB packing, and their weights.
        non_negative: Channels, such as rain and humidity, that get multiplicative noise and a lower bound.
        lower: Lower bound (normalised) of each channel in `non_negative`.
    """

    probability: float = 0.5
    blur: tuple[float, float] = (1.0, 0.8)
    widths: tuple[tuple[float, float], tuple[float, float]] = ((0.2, 3.0), (0.2, 1.5))
    sinc: float = 0.1
    final_sinc: float = 0.8
    noise: tuple[float, float] = (0.03, 0.02)
    packing: float = 0.7
    bits: tuple[tuple[int, ...], tuple[float, ...]] = ((8, 10, 12, 16), (0.1, 0.2, 0.3, 0.4))
    non_negative: tuple[int, ...] = ()
    lower: tuple[float, ...] = ()


class Degradation(torch.nn.Module):
    """Random degradation of normalised fields.

    `forward(x, size, generator)` maps (B, C, H, W) to (B, C, *size), with separate random draws for every sample. The
    same state of the generator gives the same result. Borders are padded by replication, which affects about 10 fine
    pixels for each blur and 10 coarse pixels for the final sinc filter; callers should cut off a halo.

    Args:
        config: Parameters; None: defaults.
        value_range: (C, 2) smallest and largest value of the training data, which half of the packings use as their
            range; None: all packings use the range of the sample.

    Source: Wang et al. 2021 (Real-ESRGAN), with packing in place of JPEG, correlated noise and spectral truncation.
    """

    def __init__(self, config: DegradationConfig | None = None, value_range: Tensor | None = None):
        super().__init__()
        self.config = config or DegradationConfig()
        self.register_buffer("value_range", value_range, persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Degrade fields.

        Args:
            x: (B, C, H, W) normalised fields.
            size: Rows and columns of the coarse grid.
            generator: Random generator.

        Returns:
            (B, C, *size).
        """
        return torch.stack([self._degrade_sample(sample, size, generator) for sample in x])

    def _degrade_sample(self, x: Tensor, size: Sequence[int], g: torch.Generator) -> Tensor:
        c = self.config
        if _draw_uniform(g) >= c.probability:
            return compute_area_mean(x, size)
        y = self._apply_stage(x, 0, size, g)
        y = self._pack(y, g)
        y = self._apply_stage(y, 1, size, g)
        before = _draw_uniform(g) < 0.5
        if before:
            y = self._pack(y, g)
        y = _resize(y, size, g)
        if _draw_uniform(g) < c.final_sinc:
            y = blur(y, make_sinc_kernel(_draw_odd(g, 7, 21), _draw_uniform(g, math.pi / 3, math.pi)))
        if not before:
            y = self._pack(y, g)
        return self._clip_lower(y)

    def _apply_stage(self, x: Tensor, stage: int, size: Sequence[int], g: torch.Generator) -> Tensor:
        """Apply one stage of the pipeline: blur, resizing and noise.

        Args:
            x: (C, H, W).
            stage: 0 or 1.
            size: Coarse size; the stage does not go below it.
            g: Random generator.
        """
        c = self.config
        if _draw_uniform(g) < c.blur[stage]:
            x = blur(x, self._draw_kernel(stage, g))
        low, high = ((0.5, 1.5), (0.7, 1.2))[stage]
        kind = _draw_choice(g, (0.2, 0.7, 0.1))
        factor = (_draw_uniform(g, 1, high), _draw_uniform(g, low, 1), 1.0)[kind]
        # Never below the coarse size, since the lost detail would have to be restored.
        target = [max(m, round(n * factor)) for n, m in zip(x.shape[1:], size, strict=True)]
        x = _resize(x, target, g)
        return self._add_noise(x, c.noise[stage], g)

    def _draw_kernel(self, stage: int, g: torch.Generator) -> Tensor:
        if _draw_uniform(g) < self.config.sinc:
            n = _draw_odd(g, 7, 21)
            return make_sinc_kernel(n, _draw_uniform(g, math.pi / (3 if n < 13 else 5), math.pi))
        low, high = self.config.widths[stage]
        kind = _draw_choice(g, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03))
        isotropic = kind in (0, 2, 4)
        a = _draw_uniform(g, low, high)
        b, theta = (a, 0.0) if isotropic else (_draw_uniform(g, low, high), _draw_uniform(g, -math.pi, math.pi))
        shape = (
            None,
            None,
            _draw_uniform(g, 0.5, 4),
            _draw_uniform(g, 0.5, 4),
            _draw_uniform(g, 1, 2),
            _draw_uniform(g, 1, 2),
        )[kind]
        return make_gaussian_kernel(_draw_odd(g, 7, 21), a, b, theta, shape, plateau=kind >= 4)

    def _add_noise(self, x: Tensor, largest: float, g: torch.Generator) -> Tensor:
        """Add Gaussian noise of random strength and correlation; noise of non-negative channels is multiplicative."""
        correlation = (0.0, 1.0, 2.0, 4.0)[_draw_choice(g, (0.25, 0.25, 0.25, 0.25))]
        strength = _draw_uniform(g, 0, largest)
        white = torch.randn(x.shape, generator=g, dtype=x.dtype)
        if correlation:
            white = blur(white, make_gaussian_kernel(2 * math.ceil(3 * correlation) + 1, correlation, correlation, 0.0))
            white = white / white.std().clamp(min=1e-6)
        y = x + strength * white
        for channel, lower in zip(self.config.non_negative, self.config.lower, strict=True):
            factor = torch.exp(_draw_uniform(g, 0, 0.1) * white[channel])
            y[channel] = lower + (x[channel] - lower) * factor
        return y

    def _pack(self, x: Tensor, g: torch.Generator) -> Tensor:
        """Round all channels as GRIB packing with a random number of bits does, or round their mantissas."""
        if _draw_uniform(g) >= self.config.packing:
            return round_mantissa(x, 6 + _draw_choice(g, (1 / 7,) * 7))
        bits = self.config.bits[0][_draw_choice(g, self.config.bits[1])]
        use_sample_range = self.value_range is None or _draw_uniform(g) < 0.5
        limits: Any = torch.stack([x.amin((1, 2)), x.amax((1, 2))], 1) if use_sample_range else self.value_range
        low = torch.minimum(limits[:, 0].to(x), x.amin((1, 2)))
        return torch.stack([pack(v, bits, a, b) for v, a, b in zip(x, low, limits[:, 1].to(x), strict=True)])

    def _clip_lower(self, x: Tensor) -> Tensor:
        for channel, lower in zip(self.config.non_negative, self.config.lower, strict=True):
            x[channel].clamp_(min=lower)
        return x


def _draw_uniform(g: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=g).item()


def _draw_choice(g: torch.Generator, weights: Sequence[float]) -> int:
    return int(torch.multinomial(torch.tensor(weights), 1, generator=g))


def _draw_odd(g: torch.Generator, low: int, high: int) -> int:
    return low + 2 * int(torch.randint((high - low) // 2 + 1, (), generator=g))


def make_gaussian_kernel(
    n: int, a: float, b: float, theta: float, beta: float | None = None, plateau: bool = False
) -> Tensor:
    """Make a kernel of sum 1: exp(-m/2), exp(-m^beta/2) or 1/(1 + m^beta), with m the squared Mahalanobis distance.

    Args:
        n: Side of the kernel, odd.
        a: Standard deviation in pixels along the direction `theta`.
        b: Standard deviation in pixels across this direction.
        theta: Angle in radians.
        beta: Exponent; None: exp(-m/2).
        plateau: Whether the kernel is 1/(1 + m^beta).

    Returns:
        (n, n) float64.
    """
    at = torch.arange(n, dtype=torch.float64) - n // 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    along, across = x * math.cos(theta) + y * math.sin(theta), y * math.cos(theta) - x * math.sin(theta)
    m = (along / a).square() + (across / b).square()
    k = torch.exp(-0.5 * m) if beta is None else 1 / (1 + m**beta) if plateau else torch.exp(-0.5 * m**beta)
    return k / k.sum()


def make_sinc_kernel(n: int, cutoff: float) -> Tensor:
    """Make an (n, n) circular low-pass kernel of sum 1: k(r) = w J1(w r) / (2 pi r), k(0) = w^2 / (4 pi).

    Args:
        n: Odd integer.
        cutoff: Cutoff frequency w in radians per pixel.
    """
    at = torch.arange(n, dtype=torch.float64) - n // 2
    r = torch.hypot(at[:, None], at[None])
    k = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    k[n // 2, n // 2] = cutoff**2 / (4 * math.pi)
    return k / k.sum()


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve a field (C, H, W) with a kernel (n, n), with replicated borders."""
    n = kernel.shape[0] // 2
    rows, columns = (torch.arange(-n, size + n).clamp(0, size - 1) for size in x.shape[1:])
    padded = x.index_select(1, rows).index_select(2, columns)
    return F.conv2d(padded[:, None], kernel.to(x)[None, None])[:, 0]


def compute_area_mean(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (..., H, W) to (..., *size): every new cell is the mean of the area that it covers, for any sizes."""
    rows, columns = (_compute_overlap(n, m).to(x) for n, m in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _compute_overlap(n: int, m: int) -> Tensor:
    """Return the weights (m, n) of n old cells in m new ones: the overlap as a fraction of the new cell."""
    low, high = torch.arange(m, dtype=torch.float64) * n / m, (torch.arange(m, dtype=torch.float64) + 1) * n / m
    cell = torch.arange(n, dtype=torch.float64)
    shared = torch.minimum(high[:, None], cell[None] + 1) - torch.maximum(low[:, None], cell[None])
    return shared.clamp(min=0) * m / n


def _resize(x: Tensor, size: Sequence[int], g: torch.Generator) -> Tensor:
    """Resize (C, H, W) by a random method: area mean, bilinear or bicubic interpolation, or point sampling."""
    kind = RESIZING[_draw_choice(g, (0.4, 0.2, 0.2, 0.2))]
    if tuple(size) == tuple(x.shape[1:]):
        return x
    rows, columns = (make_resizing_matrix(n, m, kind).to(x) for n, m in zip(x.shape[1:], size, strict=True))
    return rows @ x @ columns.T


def _evaluate_cubic(z: Tensor) -> Tensor:
    """Evaluate the cubic convolution kernel of Keys, a = -1/2, at distances z >= 0."""
    return torch.where(z < 1, (1.5 * z - 2.5) * z * z + 1, (((2.5 - 0.5 * z) * z - 4) * z + 2) * (z < 2))


RESIZING = ("area", "linear", "cubic", "point")


@functools.lru_cache(maxsize=256)
def make_resizing_matrix(n: int, m: int, kind: str) -> Tensor:
    """Make the (m, n) float64 weights of n old cells in m new ones, which reproduce every linear function.

    The kernel is centred at t_k = (k + 1/2) n / m - 1/2 and at least as wide as a new cell: a box over whole pixels
    ("area"), a hat ("linear"), the cubic kernel of Keys ("cubic"), or a hat of one pixel ("point"). The centroid of a
    sampled kernel differs from t_k by a fraction of a pixel, so a tilted hat of sum 0 is added that corrects it.
    Borders are replicated.

    Args:
        n: Number of old cells.
        m: Number of new cells.
        kind: One of RESIZING.
    """
    width = max(1.0, n / m)
    centre = ((torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5)[:, None]
    radius = math.ceil(2 * width) + 1
    tap = torch.floor(centre) + torch.arange(-radius, radius + 1, dtype=torch.float64)
    at = (tap - centre).abs()
    hat = (1 - at / width).clamp(min=0)
    kernels = {
        "area": lambda: (0.5 * width + 0.5 - at).clamp(0, 1),
        "linear": lambda: hat,
        "cubic": lambda: _evaluate_cubic(at / width),
        "point": lambda: (1 - at).clamp(min=0),
    }
    weight = kernels[kind]()
    weight, hat = (w / w.sum(1, keepdim=True) for w in (weight, hat))
    miss = centre - (weight * tap).sum(1, keepdim=True)
    lever = hat * (tap - (hat * tap).sum(1, keepdim=True))
    arm = (lever * tap).sum(1, keepdim=True)
    weight = weight + torch.where(arm > 1e-9, miss / arm, 0) * lever
    index = tap.clamp(0, n - 1).long()
    return torch.zeros(m, n, dtype=torch.float64).scatter_add_(1, index, weight)


def pack(x: Tensor, bits: int, low: Tensor | float | None = None, high: Tensor | float | None = None) -> Tensor:
    """Apply GRIB simple packing: R + q 2^E with integers q and E = ceil(log2((max - min) / (2^bits - 1))).

    The error is at most 2^(E-1).

    Args:
        x: Any shape. A constant field is returned unchanged.
        bits: Number of bits of q.
        low: Lower end R of the range; None: minimum of `x`.
        high: Upper end of the range, raised to the maximum of `x` if necessary; None: maximum of `x`.
    """
    low = x.min() if low is None else low
    high = x.max() if high is None else torch.maximum(torch.as_tensor(high), x.max())
    span = float(high) - float(low)
    if not span > 0:
        return x
    step = 2.0 ** math.ceil(math.log2(span / (2**bits - 1)))
    return (float(low) + torch.round((x.double() - float(low)) / step) * step).to(x.dtype)


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """Round `x` to `bits` explicit mantissa bits, to nearest."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)

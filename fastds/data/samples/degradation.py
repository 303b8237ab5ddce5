# SPDX-License-Identifier: Apache-2.0
"""From a fine field to a coarse one the way real coarse fields come about: a second-order degradation pipeline.

y1 = pack(noise(resize(blur(x)))), y2 = noise(resize(blur(y1))), then to the coarse size, sinc filter and packing in one
of two orders. Resizing keeps cell centres, so a linear ramp stays that ramp.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DegradationConfig:
    """What is drawn; fields are normalised per variable, lengths in fine pixels.

    Args:
        probability: of the whole pipeline; else only the final area mean.
        blur: of a blur in the first and second stage. widths: smallest and largest sigma, pixels, for each.
        sinc, final_sinc: of a sinc kernel as blur, and at the end (spectral truncation rings).
        noise: largest standard deviation of the noise in each stage.
        packing, bits: of GRIB packing, and the lengths it draws from with their weights; else mantissas are rounded.
        non_negative: variables (rain, humidity) that get multiplicative noise and stay >= their lower bound.
        lower: smallest normalised value per non-negative variable.
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
    """degrade(x, size, generator): (B, C, H, W) normalised to (B, C, *size), every sample with its own draws.

    The same generator state gives the same result. Border pixels (about 10 fine pixels per blur, 10 s for the final
    sinc) see a replicated border: cut a halo.

    Source: Wang et al. 2021 (Real-ESRGAN), with packing for JPEG, correlated noise and spectral truncation.
    """

    def __init__(self, config: DegradationConfig | None = None, value_range: Tensor | None = None):
        super().__init__()
        self.config = config or DegradationConfig()
        # (C, 2): smallest and largest value of the training split, for half of the packing ranges.
        self.register_buffer("value_range", value_range, persistent=False)

    def forward(self, x: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.stack([self._one(sample, size, generator) for sample in x])

    def _one(self, x: Tensor, size: Sequence[int], g: torch.Generator) -> Tensor:
        c = self.config
        if _uniform(g) >= c.probability:
            return area_mean(x, size)
        y = self._stage(x, 0, size, g)
        y = self._pack(y, g)
        y = self._stage(y, 1, size, g)
        before = _uniform(g) < 0.5
        if before:
            y = self._pack(y, g)
        y = _resize(y, size, g)
        if _uniform(g) < c.final_sinc:
            y = blur(y, sinc_kernel(_odd(g, 7, 21), _uniform(g, math.pi / 3, math.pi)))
        if not before:
            y = self._pack(y, g)
        return self._bounded(y)

    def _stage(self, x: Tensor, stage: int, size: Sequence[int], g: torch.Generator) -> Tensor:
        c = self.config
        if _uniform(g) < c.blur[stage]:
            x = blur(x, self._kernel(stage, g))
        low, high = ((0.5, 1.5), (0.7, 1.2))[stage]
        kind = _choice(g, (0.2, 0.7, 0.1))
        factor = (_uniform(g, 1, high), _uniform(g, low, 1), 1.0)[kind]
        # Never below the coarse size: what is lost there would be asked for again.
        target = [max(m, round(n * factor)) for n, m in zip(x.shape[1:], size, strict=True)]
        x = _resize(x, target, g)
        return self._noise(x, c.noise[stage], g)

    def _kernel(self, stage: int, g: torch.Generator) -> Tensor:
        if _uniform(g) < self.config.sinc:
            n = _odd(g, 7, 21)
            return sinc_kernel(n, _uniform(g, math.pi / (3 if n < 13 else 5), math.pi))
        low, high = self.config.widths[stage]
        kind = _choice(g, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03))
        isotropic = kind in (0, 2, 4)
        a = _uniform(g, low, high)
        b, theta = (a, 0.0) if isotropic else (_uniform(g, low, high), _uniform(g, -math.pi, math.pi))
        shape = (None, None, _uniform(g, 0.5, 4), _uniform(g, 0.5, 4), _uniform(g, 1, 2), _uniform(g, 1, 2))[kind]
        return gaussian_kernel(_odd(g, 7, 21), a, b, theta, shape, plateau=kind >= 4)

    def _noise(self, x: Tensor, largest: float, g: torch.Generator) -> Tensor:
        correlation = (0.0, 1.0, 2.0, 4.0)[_choice(g, (0.25, 0.25, 0.25, 0.25))]
        strength = _uniform(g, 0, largest)
        white = torch.randn(x.shape, generator=g, dtype=x.dtype)
        if correlation:
            white = blur(white, gaussian_kernel(2 * math.ceil(3 * correlation) + 1, correlation, correlation, 0.0))
            white = white / white.std().clamp(min=1e-6)
        y = x + strength * white
        for channel, lower in zip(self.config.non_negative, self.config.lower, strict=True):
            factor = torch.exp(_uniform(g, 0, 0.1) * white[channel])
            y[channel] = lower + (x[channel] - lower) * factor
        return y

    def _pack(self, x: Tensor, g: torch.Generator) -> Tensor:
        if _uniform(g) >= self.config.packing:
            return round_mantissa(x, 6 + _choice(g, (1 / 7,) * 7))
        bits = self.config.bits[0][_choice(g, self.config.bits[1])]
        own = self.value_range is None or _uniform(g) < 0.5
        limits = torch.stack([x.amin((1, 2)), x.amax((1, 2))], 1) if own else self.value_range
        low = torch.minimum(limits[:, 0].to(x), x.amin((1, 2)))
        return torch.stack([pack(v, bits, a, b) for v, a, b in zip(x, low, limits[:, 1].to(x), strict=True)])

    def _bounded(self, x: Tensor) -> Tensor:
        for channel, lower in zip(self.config.non_negative, self.config.lower, strict=True):
            x[channel].clamp_(min=lower)
        return x


# ---- draws


def _uniform(g: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=g).item()


def _choice(g: torch.Generator, weights: Sequence[float]) -> int:
    return int(torch.multinomial(torch.tensor(weights), 1, generator=g))


def _odd(g: torch.Generator, low: int, high: int) -> int:
    return low + 2 * int(torch.randint((high - low) // 2 + 1, (), generator=g))


# ---- steps


def gaussian_kernel(
    n: int, a: float, b: float, theta: float, beta: float | None = None, plateau: bool = False
) -> Tensor:
    """(n, n) kernel of sum 1: exp(-m/2), exp(-m^beta/2) or the plateau 1/(1 + m^beta), m = Mahalanobis^2.

    Args: n odd; a, b: standard deviations in pixels along and across the direction theta (radians).
    """
    at = torch.arange(n, dtype=torch.float64) - n // 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    along, across = x * math.cos(theta) + y * math.sin(theta), y * math.cos(theta) - x * math.sin(theta)
    m = (along / a).square() + (across / b).square()
    k = torch.exp(-0.5 * m) if beta is None else 1 / (1 + m**beta) if plateau else torch.exp(-0.5 * m**beta)
    return k / k.sum()


def sinc_kernel(n: int, cutoff: float) -> Tensor:
    """(n, n) circular low-pass of sum 1: k(r) = w J1(w r) / (2 pi r), k(0) = w^2 / 4 pi; cutoff w in radians/pixel."""
    at = torch.arange(n, dtype=torch.float64) - n // 2
    r = torch.hypot(at[:, None], at[None])
    k = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    k[n // 2, n // 2] = cutoff**2 / (4 * math.pi)
    return k / k.sum()


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """(C, H, W) with a kernel (n, n); the border is repeated."""
    n = kernel.shape[0] // 2
    rows, columns = (torch.arange(-n, size + n).clamp(0, size - 1) for size in x.shape[1:])
    padded = x.index_select(1, rows).index_select(2, columns)
    return F.conv2d(padded[:, None], kernel.to(x)[None, None])[:, 0]


def area_mean(x: Tensor, size: Sequence[int]) -> Tensor:
    """(..., H, W) to (..., *size): every new cell is the mean of the area it covers, for any sizes."""
    rows, columns = (_overlap(n, m).to(x) for n, m in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _overlap(n: int, m: int) -> Tensor:
    """(m, n) share of each old cell in each new one."""
    low, high = torch.arange(m, dtype=torch.float64) * n / m, (torch.arange(m, dtype=torch.float64) + 1) * n / m
    cell = torch.arange(n, dtype=torch.float64)
    shared = torch.minimum(high[:, None], cell[None] + 1) - torch.maximum(low[:, None], cell[None])
    return shared.clamp(min=0) * m / n


def _resize(x: Tensor, size: Sequence[int], g: torch.Generator) -> Tensor:
    """(C, H, W) to a size by area mean, antialiased bilinear or bicubic interpolation, or point sampling."""
    kind = RESIZING[_choice(g, (0.4, 0.2, 0.2, 0.2))]
    if tuple(size) == tuple(x.shape[1:]):
        return x
    rows, columns = (resizing_matrix(n, m, kind).to(x) for n, m in zip(x.shape[1:], size, strict=True))
    return rows @ x @ columns.T


def _cubic(z: Tensor) -> Tensor:
    """Keys' kernel, a = -1/2, at distances z >= 0."""
    return torch.where(z < 1, (1.5 * z - 2.5) * z * z + 1, (((2.5 - 0.5 * z) * z - 4) * z + 2) * (z < 2))


RESIZING = ("area", "linear", "cubic", "point")


@functools.lru_cache(maxsize=256)
def resizing_matrix(n: int, m: int, kind: str) -> Tensor:
    """(m, n) float64: the weights of n old cells in m new ones, which keep every linear function.

    The kernel of `kind` around the centre t_k = (k + 1/2) n / m - 1/2, as wide as a new cell where that is the wider:
    box over whole pixels, hat, Keys' cubic (a = -1/2), or the hat of one pixel. The centroid of sampled kernels misses
    t by a part of a pixel; adding a tilted hat, of sum 0, puts it right. Beyond the border its values are repeated.
    """
    width = max(1.0, n / m)
    centre = ((torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5)[:, None]
    reach = math.ceil(2 * width) + 1
    tap = torch.floor(centre) + torch.arange(-reach, reach + 1, dtype=torch.float64)
    at = (tap - centre).abs()
    hat = (1 - at / width).clamp(min=0)
    kernels = {
        "area": lambda: (0.5 * width + 0.5 - at).clamp(0, 1),
        "linear": lambda: hat,
        "cubic": lambda: _cubic(at / width),
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
    """GRIB simple packing: R + q 2^E, E = ceil(log2((max - min) / (2^bits - 1))); error at most 2^(E-1).

    Args: x any shape; low, high: the range, that of x if None. A constant field comes back as it is.
    """
    low = x.min() if low is None else low
    high = x.max() if high is None else torch.maximum(torch.as_tensor(high), x.max())
    span = float(high) - float(low)
    if not span > 0:
        return x
    step = 2.0 ** math.ceil(math.log2(span / (2**bits - 1)))
    return (float(low) + torch.round((x.double() - float(low)) / step) * step).to(x.dtype)


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """x with `bits` explicit mantissa bits, rounded to nearest."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)

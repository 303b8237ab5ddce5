# SPDX-License-Identifier: Apache-2.0
"""Noise for ensemble nowcasts, correlated in space as the observed field and in time along the motion of the air."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy  # its submodules are imported at first use

from fastds.models.ensembles.forecast_features import ForecastFeatures

_LEAST, _MOST = 0.05, 0.995  # limits of the correlation of a scale from step to step
_LEAST_SHARE = 0.02  # least share of the power of a scale in the noise, even if the forecast lacks no power
_MOST_CHANGE = 4.0  # largest factor by which one round changes a power
_MARGIN = 16  # pixels: least margin of the periodic plane beyond the grid


class LagrangianNoise:
    """Standard normal noise that moves with the air and has the texture of the missing part of a forecast.

        E_1 = W_1;  E_{k+1} = r E_k + sqrt(1 - r^2) W_{k+1};  n_k(p) = F^-1(A_k E_k)(p + d_k(p))

    W is white noise in spectral space, F^-1 is the inverse Fourier transform, and d_k(p) is the displacement from pixel
    p to the origin of its air k steps before. r is the correlation of the last two input frames at each wavenumber,
    after advection of the earlier one. A_k^2 is the power of the last frame times the share of power that forecast
    frame k lacks at this wavenumber, scaled so that n has variance one. The noise is periodic on a plane larger than
    the grid, so that inflow carries noise, too. It is sampled at the nearest pixel, because interpolation would change
    its spectrum.

    Args:
        valid: (H, W) bool, the pixels that count.
        last: (H, W), the last input frame, without NaN.
        before: (H, W), the frame before, advected to the time of the last one, without NaN.
        mean: (n, H, W), the forecast frames in the same unit.
        rows: (n, H, W), rows of the origins of the air of the forecast frames, see BackTrajectories.
        columns: (n, H, W), columns of these origins.

    Source: after Bowler, Pierce and Seed 2006 (STEPS), with one cascade level per wavenumber.
    """

    def __init__(
        self,
        valid: np.ndarray,
        last: np.ndarray,
        before: np.ndarray,
        mean: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
    ):
        self.valid = valid
        self.shape = tuple(scipy.fft.next_fast_len(size + _MARGIN, real=True) for size in last.shape)
        self.rings = _Rings(self.shape)
        now, then = (self._transform(field) for field in (last, before))
        self.power, former = (np.maximum(self.rings.average(np.abs(part) ** 2), 1e-12) for part in (now, then))
        shared = self.rings.average((now * then.conj()).real) / np.sqrt(self.power * former)
        autocorrelation = shared.clip(_LEAST, _MOST)[self.rings.index]
        self.autocorrelation, self.innovation_scale = (
            part.astype(np.float32) for part in (autocorrelation, np.sqrt(1 - autocorrelation**2))
        )
        amplitude, lacking = np.abs(now), (1 - self._compute_power(field) / self.power for field in mean)
        self.filters = [
            self._normalise(amplitude * np.sqrt(part.clip(_LEAST_SHARE, 1))[self.rings.index]) for part in lacking
        ]
        self.rows, self.columns = (
            np.mod(part, size).astype(np.int32) for part, size in zip((rows, columns), self.shape, strict=True)
        )

    def match(self, member: Callable[[int, np.ndarray], np.ndarray], rounds: int = 3) -> None:
        """Adjust the power spectrum of the noise, so that the spectrum of members approaches the observed spectrum.

        Without this step they differ, because the detection threshold moves power from large to small scales. Each
        round draws a trial member and multiplies A_k^2 by the ratio of observed power to power of the member, which is
        smoothed over scales and limited to 1/4 ... 4.

        Args:
            member: function of the index k of a forecast frame and noise (H, W) that returns frame k of the member with
                this noise, in the unit of the frames.
            rounds: number of rounds.
        """
        for number in range(rounds):
            for lead, noise in enumerate(self.draw([number])):
                ratio = self.power / np.maximum(self._compute_power(member(lead, noise)), 1e-12)
                ratio = scipy.ndimage.gaussian_filter1d(
                    np.log(ratio.clip(1 / _MOST_CHANGE, _MOST_CHANGE)), 1.0, mode="nearest"
                )
                self.filters[lead] = self._normalise(self.filters[lead] * np.exp(0.5 * ratio)[self.rings.index])

    @classmethod
    def from_features(cls, features: ForecastFeatures) -> "LagrangianNoise":
        """Build the noise of a forecast from its features."""
        origins = features.origins
        fields = features.valid, features.last, features.before, features.mean, origins.rows, origins.columns
        return cls(*(field.numpy() for field in fields))

    def draw(self, seed: Sequence[int], workers: int | None = None) -> Iterator[np.ndarray]:
        """Draw the noise of all forecast frames.

        Args:
            seed: numbers that seed the generator. Equal seeds give bitwise equal noise.
            workers: number of threads of the Fourier transform. The noise does not depend on it.

        Yields:
            (H, W) float32 for each forecast frame.
        """
        rng, state = np.random.default_rng(seed), None
        height, width = self.autocorrelation.shape
        for filtered, rows, columns in zip(self.filters, self.rows, self.columns, strict=True):
            innovation = rng.standard_normal((height, width, 2), np.float32).view(np.complex64)[..., 0]
            state = innovation if state is None else self.autocorrelation * state + self.innovation_scale * innovation
            plane = scipy.fft.irfft2(state * filtered, self.shape, workers=workers)
            yield plane[rows, columns]

    def _transform(self, field: np.ndarray) -> np.ndarray:
        plane = np.zeros(self.shape, np.float32)
        plane[: field.shape[0], : field.shape[1]] = np.where(self.valid, field - field[self.valid].mean(), 0)
        return scipy.fft.rfft2(plane)

    def _compute_power(self, field: np.ndarray) -> np.ndarray:
        return self.rings.average(np.abs(self._transform(field)) ** 2)

    def _normalise(self, amplitude: np.ndarray) -> np.ndarray:
        """Scale amplitudes so that irfft2 of complex noise of variance two has variance one.

        The amplitude of the mean is set to zero.
        """
        amplitude = np.where(self.rings.lengths > 0, amplitude, 0.0)
        total = (amplitude**2 * self.rings.counts).sum()
        return (amplitude * np.prod(self.shape) / np.sqrt(2 * max(total, 1e-12))).astype(np.float32)


class _Rings:
    """Wavenumbers of a real Fourier transform, grouped in rings of equal length.

    Args:
        shape: (H, W) of the field.

    Attributes:
        index: number of the ring of each wavenumber.
        counts: number of modes of the full transform that each wavenumber of the real transform stands for.
    """

    def __init__(self, shape: tuple[int, int]):
        rows, columns = scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])[None]
        count, self.lengths = min(shape), np.hypot(rows, columns)
        self.index = np.minimum((self.lengths * count).round().astype(int), count // 2)
        self.counts = np.full(self.index.shape, 2.0)
        self.counts[:, 0] = 1
        if shape[1] % 2 == 0:
            self.counts[:, -1] = 1
        self.sizes = np.bincount(self.index.ravel(), self.counts.ravel())

    def average(self, values: np.ndarray) -> np.ndarray:
        """Average values at all wavenumbers over each ring."""
        return np.bincount(self.index.ravel(), (values * self.counts).ravel()) / self.sizes

# SPDX-License-Identifier: Apache-2.0
"""Noise with the texture of the observed echo, which lives longer the larger it is and moves with the air."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy  # its parts are imported at first use

from fastds.models.ensembles.surroundings import Surroundings

_LEAST, _MOST = 0.05, 0.995  # correlation of a scale from step to step
_KEPT = 0.02  # share of a scale's power that noise has even where the forecast lacks none
_STEP = 4.0  # most that a round changes a power by
_MARGIN = 16  # pixels beyond the grid, at least, after which noise repeats


class MovingNoise:
    """Standard normal noise in the frame of the moving air.

        E_1 = W_1;  E_{k+1} = r E_k + sqrt(1 - r^2) W_{k+1};  n_k(p) = F^-1(A_k E_k)(p + d_k(p))

    W are white, r(|q|) is the correlation of the last known field with the one before, moved, at wavenumber q, and
    A_k^2(q) the power of the last field times the share that the k-th forecast field lacks of it at |q|, scaled so that
    n has variance one. The noise is periodic, on a plane somewhat larger than the grid, so that air from outside brings
    noise like any other, and it is taken from the nearest pixel, which leaves its spectrum as it is.

    Args:
        valid: (H, W), the pixels whose echo counts.
        last, before: (H, W), the last known field, and the one before moved with the air; without NaN.
        mean: (n, H, W), the forecast, the same unit.
        rows, columns: (n, H, W), the pixels of the last field whose echo arrives, see Origins.

    Source: after Bowler, Pierce and Seed 2006 (STEPS); every wavenumber is a level of its cascade.
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
        self.power, former = (np.maximum(self.rings.mean(np.abs(part) ** 2), 1e-12) for part in (now, then))
        shared = self.rings.mean((now * then.conj()).real) / np.sqrt(self.power * former)
        similar = shared.clip(_LEAST, _MOST)[self.rings.index]
        self.similar, self.fresh = (part.astype(np.float32) for part in (similar, np.sqrt(1 - similar**2)))
        observed, lacking = np.abs(now), (1 - self._power(field) / self.power for field in mean)
        self.filters = [self._scaled(observed * np.sqrt(part.clip(_KEPT, 1))[self.rings.index]) for part in lacking]
        self.rows, self.columns = (
            np.mod(part, size).astype(np.int32) for part, size in zip((rows, columns), self.shape, strict=True)
        )

    def match(self, member: Callable[[int, np.ndarray], np.ndarray], rounds: int = 3) -> None:
        """Give members the observed power at every scale, which thresholds take from large ones and give to small ones:
        multiply A_k^2 by the observed power over that of a member drawn on trial, each round.

        member: (k, noise (H, W)) -> field k of the member that has this noise, the unit of the fields.
        """
        for number in range(rounds):
            for lead, noise in enumerate(self.draw([number])):
                ratio = self.power / np.maximum(self._power(member(lead, noise)), 1e-12)
                ratio = scipy.ndimage.gaussian_filter1d(np.log(ratio.clip(1 / _STEP, _STEP)), 1.0, mode="nearest")
                self.filters[lead] = self._scaled(self.filters[lead] * np.exp(0.5 * ratio)[self.rings.index])

    @classmethod
    def around(cls, around: Surroundings) -> "MovingNoise":
        """The noise of a forecast, its fields and its motion."""
        origins = around.origins
        fields = around.valid, around.last, around.before, around.mean, origins.rows, origins.columns
        return cls(*(field.numpy() for field in fields))

    def draw(self, seed: Sequence[int], workers: int | None = None) -> Iterator[np.ndarray]:
        """The noise (H, W) of one step after the other, float32. seed: numbers; the same give the same bits, with any
        number of workers, threads of the transform."""
        rng, state = np.random.default_rng(seed), None
        height, width = self.similar.shape
        for filtered, rows, columns in zip(self.filters, self.rows, self.columns, strict=True):
            fresh = rng.standard_normal((height, width, 2), np.float32).view(np.complex64)[..., 0]
            state = fresh if state is None else self.similar * state + self.fresh * fresh
            plane = scipy.fft.irfft2(state * filtered, self.shape, workers=workers)
            yield plane[rows, columns]

    def _transform(self, field: np.ndarray) -> np.ndarray:
        plane = np.zeros(self.shape, np.float32)
        plane[: field.shape[0], : field.shape[1]] = np.where(self.valid, field - field[self.valid].mean(), 0)
        return scipy.fft.rfft2(plane)

    def _power(self, field: np.ndarray) -> np.ndarray:
        return self.rings.mean(np.abs(self._transform(field)) ** 2)

    def _scaled(self, amplitude: np.ndarray) -> np.ndarray:
        """Amplitudes with which irfft2 makes noise of variance one of complex numbers of variance two. Of the few modes
        that have no partner one half is not seen. None at the mean."""
        amplitude = np.where(self.rings.lengths > 0, amplitude, 0.0)
        total = (amplitude**2 * self.rings.counts).sum()
        return (amplitude * np.prod(self.shape) / np.sqrt(2 * max(total, 1e-12))).astype(np.float32)


class _Rings:
    """Wavenumbers of a real transform by their length. index: the ring of each. counts: modes that each stands for."""

    def __init__(self, shape: tuple[int, int]):
        rows, columns = scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])[None]
        count, self.lengths = min(shape), np.hypot(rows, columns)
        self.index = np.minimum((self.lengths * count).round().astype(int), count // 2)
        self.counts = np.full(self.index.shape, 2.0)
        self.counts[:, 0] = 1
        if shape[1] % 2 == 0:
            self.counts[:, -1] = 1
        self.sizes = np.bincount(self.index.ravel(), self.counts.ravel())

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Of a value by wavenumber, over each ring."""
        return np.bincount(self.index.ravel(), (values * self.counts).ravel()) / self.sizes

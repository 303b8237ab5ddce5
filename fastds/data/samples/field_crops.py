# SPDX-License-Identifier: Apache-2.0
"""Random crops of fine fields as training samples of arbitrary-scale downscaling."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastds.data.samples.degradation import Degradation, area_mean


@dataclass
class FieldBlock:
    """A stack of fields of one kind.

    Args:
        values: (T, C, H, W) physical units, without missing values.
        columns: (first, stop) columns that may be used.
        static: (S, H, W) maps that do not change with time, or None.
    """

    values: Tensor
    columns: tuple[int, int]
    static: Tensor | None = None

    @property
    def usable(self) -> Tensor:
        return self.values[..., self.columns[0] : self.columns[1]]

    @property
    def usable_static(self) -> Tensor:
        """(S, H, W) of these columns; S = 0 without."""
        static = self.values[0, :0] if self.static is None else self.static
        return static[..., self.columns[0] : self.columns[1]]


def statistics(blocks: list[FieldBlock]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel over all blocks, in physical units."""
    flat = torch.cat([b.usable.double().transpose(0, 1).flatten(1) for b in blocks], 1)
    return flat.mean(1).float(), flat.std(1).float()


class FieldCrops(Dataset):
    """Sample i, a function of (seed, i) alone: a coarse crop, and fine pixels of it as points with their values.

    A fine window of (crop + 2 halo) s pixels becomes (crop + 2 halo) coarse ones, of which the halo is cut; `queries`
    fine pixels in the rest are the targets. The factor s is uniform in `scales`, per axis with probability
    `anisotropic`.

    Args:
        blocks: where windows come from. mean, std: (C,) normalisation. degradation: of fine to coarse.
        crop, halo: coarse pixels. queries: targets per sample. scales: smallest and largest factor.
        flips: mirror windows at random; channels in `vectors` = (u, v) change sign with the axis they point along.

    Each sample: x (C, crop, crop) physical units, base (Q, 2) int32 and frac (Q, 2) float32 places, target (Q, C),
    factor (2,), and where the blocks have them static (S, crop, crop), their area means.
    """

    def __init__(
        self, blocks: list[FieldBlock], mean: Tensor, std: Tensor, degradation: Degradation, *, crop=32, halo=4,
        queries=1024, scales=(1.0, 4.0), anisotropic=0.2, flips=True, vectors=(None, None), samples=1000, seed=0,
    ):  # fmt: skip
        self.blocks, self.degradation, self.crop, self.halo = blocks, degradation, crop, halo
        self.mean, self.std = (t[:, None, None] for t in (mean, std))
        self.queries, self.scales, self.anisotropic = queries, scales, anisotropic
        self.flips, self.vectors, self.samples, self.seed = flips, vectors, samples, seed
        largest = min(min(b.usable.shape[2:]) for b in blocks) / (crop + 2 * halo)
        if largest < scales[0]:
            raise ValueError(f"fields are too small for crop {crop} and halo {halo} at factor {scales[0]}")
        self.largest = largest

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed((self.seed << 32) + index)
        whole = self.crop + 2 * self.halo
        sizes = self._window(g, whole)
        chosen = self.blocks[int(torch.randint(len(self.blocks), (), generator=g))]
        block, static = chosen.usable, chosen.usable_static
        at = [int(torch.randint(n - m + 1, (), generator=g)) for n, m in zip(block.shape[2:], sizes, strict=True)]
        time = int(torch.randint(block.shape[0], (), generator=g))
        window = (..., slice(at[0], at[0] + sizes[0]), slice(at[1], at[1] + sizes[1]))
        fine = torch.cat([(block[time][window] - self.mean) / self.std, static[window]])
        fine, static = self._flipped(fine, g).split([block.shape[1], len(static)])
        coarse = self.degradation(fine[None], (whole, whole), g)[0]
        keep = slice(self.halo, self.halo + self.crop)
        pixels, u = zip(*(self._places(g, m, whole) for m in sizes), strict=True)
        base = [torch.floor(v) for v in u]
        sample = {
            "x": coarse[:, keep, keep] * self.std + self.mean,
            "base": torch.stack(base, -1).int(),
            "frac": torch.stack([(v - b).float() for v, b in zip(u, base, strict=True)], -1),
            "target": (fine[:, pixels[0], pixels[1]] * self.std[:, 0] + self.mean[:, 0]).T,
            "factor": torch.tensor([m / whole for m in sizes]),
        }
        if len(static):
            sample["static"] = area_mean(static, (whole, whole))[:, keep, keep]
        return sample

    def _window(self, g, whole: int) -> tuple[int, int]:
        """Fine rows and columns for a factor per axis, the true factor being their ratio to `whole`."""
        low, high = self.scales[0], min(self.scales[1], self.largest)
        drawn = (low + (high - low) * torch.rand(2, generator=g)).tolist()
        if torch.rand((), generator=g) >= self.anisotropic:
            drawn[1] = drawn[0]
        return tuple(int(round(whole * s)) for s in drawn)

    def _places(self, g, m: int, whole: int) -> tuple[Tensor, Tensor]:
        """Fine pixels at random inside the part that is kept, and their coarse index coordinates there."""
        u = ((2 * torch.arange(m, dtype=torch.float64) + 1) * whole - m) / (2 * m) - self.halo
        inside = torch.nonzero((u >= -0.5) & (u <= self.crop - 0.5))[:, 0]
        chosen = inside[torch.randint(inside.numel(), (self.queries,), generator=g)]
        return chosen, u[chosen]

    def _flipped(self, fine: Tensor, g) -> Tensor:
        if not self.flips:
            return fine
        for axis, component in ((2, self.vectors[0]), (1, self.vectors[1])):
            if torch.rand((), generator=g) < 0.5:
                fine = fine.flip(axis)
                if component is not None:
                    # The mean of a wind component changes sign with it.
                    shift = 2 * self.mean[component, 0, 0] / self.std[component, 0, 0]
                    fine = torch.cat(
                        [fine[:component], -fine[component : component + 1] - shift, fine[component + 1 :]]
                    )
        return fine

# SPDX-License-Identifier: Apache-2.0
"""Pictures of the documentation, one per shipped network, of held-out fields: `python -m bench.pictures DATA_FOLDER`.

Radar pictures show a synthetic event or radar data of DWD. The other pictures show ERA5 at 500 hPa, at longitudes
outside the training data, and at 2 m (contains modified Copernicus Climate Change Service information). Requires
pysteps.
"""

import argparse
import pathlib

import numpy as np
import torch
from matplotlib.figure import Figure

import fastds
from fastds.data import coarsen_dataset, open_dataset, rate_to_reflectivity, reflectivity_to_rate, synthetic_event
from fastds.models.baselines import interpolate
from fastds.plot import draw_field, save_png
from fastds.tasks.nowcast.run import nowcast as nowcast_dataset

FOLDER = pathlib.Path(__file__).parents[1] / "fastds" / "models" / "pictures"
ERA5 = "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"
DWD = "radar_dwd_yw_20170816_5min.nc"
CONUS = "era5_surface_025deg_conus_19950714T12.nc"
HELD_OUT = slice(280, 340)  # columns of ERA5 from 100 E to 159 E


def draw_row(name: str, title: str, panels: dict[str, np.ndarray], draw) -> None:
    """Draw a row of panels with a common colour bar.

    Args:
        name: name of the PNG file in FOLDER.
        title: title of the figure.
        panels: fields by title.
        draw: function of axes and values that returns the image for the colour bar.
    """
    figure = Figure(figsize=(2.6 * len(panels) + 0.6, 3.0), layout="constrained")
    grid = figure.subplots(1, len(panels))
    for axes, (label, values) in zip(grid, panels.items(), strict=True):
        image = draw(axes, values)
        axes.set_title(label, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(image, ax=list(grid), shrink=0.8)
    figure.suptitle(title, fontsize=10)
    FOLDER.mkdir(exist_ok=True)
    save_png(figure, FOLDER / f"{name}.png", dpi=72)


def draw_radar() -> None:
    """Draw a downscaled field at a time between the input times."""
    truth = synthetic_event(seed=7, frames=7, shape=(256, 256))
    coarse = coarsen_dataset(truth)
    name = next(iter(truth.data_vars))
    part = slice(96, 192)
    fields = {
        "input, 5 min before": coarse[name].values[1, 48:96, 48:96],
        "trilinear": 0.5 * sum(interpolate(torch.from_numpy(coarse[name].values[k : k + 1]), 2)[0] for k in (1, 2)),
        "fczsm-small": fastds.load("fczsm-small").downscale(coarse)[name].values[3],
        "truth": truth[name].values[3],
    }
    panels = {k: np.asarray(v) if len(v) == 48 else np.asarray(v)[part, part] for k, v in fields.items()}
    draw_row("fczsm-small", "Synthetic rain, 2 km and 10 min to 1 km and 5 min (dBZ)", panels, draw_field)


def draw_radar_members(folder: pathlib.Path) -> None:
    """Draw a downscaled field, ensemble members and their mean at a time between the input times (DWD, CC BY 4.0)."""
    with open_dataset(folder / DWD) as file:
        truth = file[["reflectivity"]].isel(time=slice(6, 11), y=slice(672, 928), x=slice(480, 736)).load()
    coarse = coarsen_dataset(truth)
    single = fastds.downscale("fczsm-small", coarse).reflectivity.values
    ensemble = fastds.downscale("fczsm-small", coarse, members=10).reflectivity.values
    part = slice(96, 192), slice(96, 192)
    panels = {
        "input, 5 min before": coarse.reflectivity.values[0, 48:96, 48:96],
        "fczsm-small": single[1][part],
        "member 1": ensemble[0, 1][part],
        "member 2": ensemble[1, 1][part],
        "mean of ten": ensemble[:, 1].clip(min=0).mean(0)[part],
        "truth": truth.reflectivity.values[1][part],
    }
    draw_row("downscaling-ensemble", "DWD, 16 August 2017, 2 km and 10 min to 1 km and 5 min (dBZ)", panels, draw_field)


def draw_nowcast() -> None:
    event = synthetic_event(seed=11, frames=17, shape=(192, 192))
    name = next(iter(event.data_vars))
    known = event.isel(time=slice(0, 11))
    options = {"steps": 6, "quantity": "reflectivity", "coarsen": 1, "interval": "5min"}
    nowcasts = {m: nowcast_dataset(m, known, **options) for m in ("extrapolation", "nowcast-small")}
    panels = {"last field": event[name].values[10]}
    panels |= {f"{m}, +30 min": next(v for v in d.values() if v.ndim == 3).values[5] for m, d in nowcasts.items()}
    draw_row(
        "nowcast-small", "Synthetic rain (dBZ)", panels | {"observed, +30 min": event[name].values[16]}, draw_field
    )


def draw_nowcast_members() -> None:
    """Draw two ensemble members, the mean, and a member of STEPS of pysteps."""
    from pysteps import motion, nowcasts

    event = synthetic_event(seed=11, frames=17, shape=(192, 192))
    known = event.isel(time=slice(0, 11))
    options = {"steps": 6, "coarsen": 1, "interval": "5min", "members": 24}
    members = nowcast_dataset("nowcast-small", known, **options).rainfall_rate.values[:, 5]
    rain = reflectivity_to_rate(event.reflectivity.values[[8, 9, 10, 16]])
    decibel = np.where(rain[:3] < 0.1, -15.0, 10 * np.log10(np.maximum(rain[:3], 0.1)))
    velocity = motion.get_method("lucaskanade")(decibel)
    threshold = {"precip_thr": -10.0, "kmperpixel": 1.0, "timestep": 5, "seed": 1}
    steps = nowcasts.get_method("steps")(decibel, velocity, 6, n_ens_members=2, **threshold)[0, -1]
    panels = {"last field": rain[2], "member 1, +30 min": members[0], "member 2": members[1]}
    panels |= {"mean of 24": members.mean(0), "STEPS, a member": 10 ** (steps / 10), "observed, +30 min": rain[3]}
    dbz = {name: rate_to_reflectivity(np.where(field < 0.1, 0, field)) for name, field in panels.items()}
    draw_row("nowcast-ensemble", "Synthetic rain (dBZ)", dbz, draw_field)


def make_draw(levels, colours):
    """Return a draw function for draw_row()."""

    def draw(axes, values):
        return axes.imshow(values, vmin=levels[0], vmax=levels[1], cmap=colours, interpolation="nearest")

    return draw


def draw_gridded(folder: pathlib.Path) -> None:
    with open_dataset(folder / ERA5) as dataset:
        fields = torch.stack([torch.from_numpy(dataset[v].values.astype("f4")) for v in "rtuz"], 1)
    fine = fields[7:8, :, 20:80, HELD_OUT]
    coarse = torch.nn.functional.avg_pool2d(fine, 4)
    with torch.no_grad():
        fine_output = fastds.load("inr-small")(coarse, size=fine.shape[2:])
    panels = {
        "input, 4 degrees": coarse,
        "bicubic": interpolate(coarse[0], 4)[None],
        "inr-small": fine_output,
        "truth": fine,
    }
    panels = {k: v[0, 2].numpy() for k, v in panels.items()}
    draw_row("inr-small", "Zonal wind at 500 hPa (m/s)", panels, make_draw((-30, 60), "RdYlBu_r"))

    with open_dataset(folder / CONUS) as dataset:
        fine = torch.from_numpy(dataset.t2m.values.astype("f4"))[:, None, :100, 20:180]
    coarse = torch.nn.functional.avg_pool2d(fine, 4)
    with torch.no_grad():
        fine_output = fastds.load("inr-any")(coarse, scale=4)
    panels = {
        "input, 1 degree": coarse,
        "bicubic": interpolate(coarse[0], 4)[None],
        "inr-any": fine_output,
        "truth": fine,
    }
    panels = {k: v[0, 0].numpy() - 273.15 for k, v in panels.items()}
    draw_row("inr-any", "Temperature at 2 m, United States (°C)", panels, make_draw((5, 36), "RdYlBu_r"))

    generator = fastds.load("wgan-gp-small-x2")
    fine = fields[4:, 0, 20:80, HELD_OUT]
    coarse = torch.nn.functional.avg_pool2d(fine, 2)
    with torch.no_grad():
        x = coarse[None, :, None] / 100
        members = [generator(x, seed=seed)[0, :, 0].clamp(0, 1.05) * 100 for seed in range(10)]
    panels = {"input": coarse, "bicubic": interpolate(coarse, 2), "a member": members[0]}
    panels |= {"mean of 10": torch.stack(members).mean(0), "truth": fine}
    panels = {k: v[3].numpy() for k, v in panels.items()}
    draw_row("wgan-gp-small-x2", "Relative humidity at 500 hPa (%)", panels, make_draw((0, 105), "YlGnBu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path, help="folder of the public fields")
    folder = parser.parse_args().data
    draw_radar()
    draw_radar_members(folder)
    draw_nowcast()
    draw_nowcast_members()
    draw_gridded(folder)


if __name__ == "__main__":
    main()

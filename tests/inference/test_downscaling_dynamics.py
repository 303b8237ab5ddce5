# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling with FC-ZSM-D, -S and -DS, which use further variables and static maps."""

import contextlib
import itertools
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds import models
from fastds.archive import request
from fastds.cli import main
from fastds.data import open_dataset
from fastds.data.samples.dynamic_fields import DynamicChannels
from tests.support.downscaling_cases import awake
from tests.support.meteonet_files import make_radar

SIZE, FRAMES = 48, 5
TINY = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1, "alignment": "plain"}
RANGES = {"probability": (0.0, 100.0), "measurement_height": (0.0, 20000.0)}
UNITS = {"probability": "%", "measurement_height": "m"}
MEAN, STD = 120.0, 60.0
TOLERANCE = 1e-5 * 55.0  # of the numbers in [0, 1], in dBZ
ALIKE = ["--smooth", "--dtype=float32", "--threads=1", "--device=cpu"]


@pytest.fixture(autouse=True)
def fresh():
    request.open_request_dataset.cache_clear()


def network(preset):
    """Return a small network with random weights and a complete model card."""
    torch.manual_seed(5)
    statics = {"static_channels": 1} if "s" in preset.removeprefix("fczsm") else {}
    model = awake(models.create(preset, **TINY, **statics, residual="trilinear"))
    with torch.no_grad():
        model.extractor.conv.weight.mul_(20)  # so that further variables tell, and the map
        if statics:
            model.static_branch.extractor.conv.weight.mul_(500)
    card = model.card
    card.name, card.floor_dbz, card.ceiling_dbz = preset, 15.0, 70.0
    if model.config["in_channels"] > 1:
        additional = [{"name": n, "units": UNITS[n], "range": list(RANGES[n])} for n in RANGES]
        card.input_variables = [{"name": "reflectivity", "units": "dBZ"}, *additional]
    if statics:
        card.static_variables = [{"name": "height", "units": "m", "mean": MEAN, "std": STD}]
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder with weights, MeteoNet archives in two parts, a NetCDF file and a relief.

    The weights are named after their preset.
    """
    folder = tmp_path_factory.mktemp("dynamics")
    for preset in ("fczsm", "fczsm-d", "fczsm-s", "fczsm-ds"):
        models.save(network(preset), folder / f"{preset}.safetensors")
    (folder / "npz").mkdir()
    for part, first in ((1, 0), (2, FRAMES)):
        _make_strong(make_radar(folder / "npz", 2 * FRAMES, SIZE, part=part), first)
    with open_dataset(folder / "npz" / "reflectivity*.npz") as whole:
        assert whole.sizes["time"] == 2 * FRAMES
        whole = whole.drop_attrs(deep=False).load()
    # From south to north, not in the order of time, with a gap after the third field and one field before the next gap.
    part = whole.isel(time=[8, 4, 0, 2, 1, 7]).sortby("latitude")
    part.to_netcdf(folder / "radar.nc", engine="h5netcdf")
    part.drop_vars("measurement_height").to_netcdf(folder / "lacks.nc", engine="h5netcdf")
    height = (("latitude", "longitude"), relief().astype(np.float32), {"units": "m"})
    lat, lon = (whole[name] for name in ("latitude", "longitude"))
    xr.Dataset({"h": height}, {"latitude": lat, "longitude": lon}).to_netcdf(folder / "relief.nc", engine="h5netcdf")
    return folder


def _make_strong(path, first):
    """Replace the reflectivity by 25 to 45 dBZ and remove half of the times of an archive."""
    with np.load(path, allow_pickle=True) as archive:
        arrays = dict(archive)
    keep = slice(first, first + FRAMES)
    t, y, x = np.meshgrid(*map(np.arange, (2 * FRAMES, SIZE, SIZE)), indexing="ij")
    arrays["data"] = np.rint(10 * (35 + 10 * np.sin(0.3 * (x - t)) * np.cos(0.2 * y))).astype("i2")
    assert (arrays["prob"][keep] < 0).any() and (arrays["height"][keep] > 0).any()
    np.savez_compressed(path, **{k: v[keep] if len(v) == 2 * FRAMES else v for k, v in arrays.items()})


def relief():
    return 100.0 + 3.0 * np.arange(SIZE)[:, None] + np.arange(SIZE)


def tensors(folder):
    """Return the inputs of the network (10, 3, h, w), from north to south, computed from the codes of the archives."""
    parts = []
    for path in sorted((folder / "npz").glob("reflectivity*.npz")):
        with np.load(path, allow_pickle=True) as archive:
            z, prob, height = (archive[key].astype(np.float64) for key in ("data", "prob", "height"))
        x = (np.clip(z / 10, 15, 70) - 15) / 55
        additional = [np.where(v < 0, 0.0, v / high).clip(0, 1) for v, high in ((prob, 100.0), (height, 20000.0))]
        parts.append(np.stack([x, *additional], 1))
    return torch.from_numpy(np.concatenate(parts)).float()


def by_hand(model, x, tile=None, height=None):
    """Compute the expected output (2 N - 1, 2 h, 2 w) in dBZ with plain calls of the network.

    Args:
        model: network.
        x: normalised fields (N, C, h, w).
        tile: side of the tiles without their halo of 16 pixels; None for the whole field.
        height: static map in the units of the card; None for the relief.
    """
    height = relief() if height is None else height
    x = x[:, : model.config["in_channels"]]
    static = torch.from_numpy((height - MEAN) / STD).float()[None] if model.config["static_channels"] else None

    def run(pair, rows, columns):
        maps = () if static is None else (static[:, rows, columns],)
        with torch.inference_mode():
            return model(pair[None, ..., rows, columns], *maps)[0, :, 0]

    tile = tile or SIZE
    pairs = []
    for pair in itertools.pairwise(x):
        out = torch.full((3, 2 * SIZE, 2 * SIZE), torch.nan)
        for i in range(0, SIZE, tile):
            for j in range(0, SIZE, tile):
                a, b = max(i - 16, 0), max(j - 16, 0)
                y = run(torch.stack(pair), slice(a, i + tile + 16), slice(b, j + tile + 16))
                core = y[:, 2 * (i - a) :, 2 * (j - b) :][:, : 2 * tile, : 2 * tile]
                out[:, 2 * i : 2 * (i + tile), 2 * j : 2 * (j + tile)] = core
        pairs.append(out)
    fine = [pairs[0][0]]
    for k, y in enumerate(pairs):
        fine += [y[1], (y[2] + pairs[k + 1][0]) / 2 if k + 1 < len(pairs) else y[2]]
    z = 15 + 55 * torch.stack(fine)
    assert float(z.min()) > 19 and float(z.max()) < 70, "so that nothing but the network counts"
    return z.numpy()


def downscaled(folder, source, target, preset, *words):
    given = ["--static", f"{folder / 'relief.nc'}:h"] if preset[-1] == "s" else []
    model = ["--model", str(folder / f"{preset}.safetensors")]
    assert main(["downscale", str(source), str(target), *model, *ALIKE, *given, *words]) == 0
    with open_dataset(target) as out:
        return out.load()


PRESETS = pytest.mark.parametrize("preset", ["fczsm-d", "fczsm-s", "fczsm-ds"])


@PRESETS
@pytest.mark.parametrize("tile", [None, 32])
def test_downscale_meteonet_equals_the_network(folder, tmp_path, preset, tile):
    words = [] if tile is None else [f"--tile={tile}", "--halo=16"]
    source = folder / "npz" / "reflectivity_new_NW_2018_03.1.npz"
    out = downscaled(folder, source, tmp_path / "o.nc", preset, *words)
    x, model = tensors(folder)[:FRAMES], network(preset)
    expected = by_hand(model, x, tile)
    np.testing.assert_allclose(out.reflectivity, expected, rtol=0, atol=TOLERANCE)
    if model.config["static_channels"]:
        flat = by_hand(model, x, tile, 0 * relief())
        assert np.abs(flat - expected)[1::2].max(axis=(1, 2)).min() > 100 * TOLERANCE
    if model.config["in_channels"] > 1:
        without = by_hand(model, x * torch.tensor([1.0, 0.0, 0.0])[:, None, None], tile)
        assert np.abs(without - expected)[[0, 1]].max(axis=(1, 2)).min() > 100 * TOLERANCE
        assert out.attrs["fastds_dynamics"] == "probability (0 to 100 %), measurement_height (0 to 20000 m)"
    else:
        assert "fastds_dynamics" not in out.attrs


@PRESETS
@pytest.mark.parametrize("tile", [None, 32])
def test_downscale_flipped_unsorted_file_with_gaps(folder, tmp_path, preset, tile):
    """The file has the times 0, 1 and 2, the single time 4, and the times 7 and 8."""
    words = [] if tile is None else [f"--tile={tile}", "--halo=16"]
    out = downscaled(folder, folder / "radar.nc", tmp_path / "o.nc", preset, *words)
    assert out.latitude[0] < out.latitude[-1]
    x, model = tensors(folder), network(preset)
    segments = [by_hand(model, x[:3], tile), by_hand(model, x[[4, 4]], tile)[:1], by_hand(model, x[[7, 8]], tile)]
    expected = np.concatenate(segments)[:, ::-1]
    np.testing.assert_allclose(out.reflectivity, expected, rtol=0, atol=TOLERANCE)


@PRESETS
def test_archives_and_many_files(folder, tmp_path, preset, monkeypatch):
    pytest.importorskip("zarr", reason="archives need the package zarr")
    pytest.importorskip("dask", reason="archives need the package dask")
    monkeypatch.setattr("fastds.archive.run.choose_chunk_steps", lambda job, workers=1: job.step_multiple)
    expected = by_hand(network(preset), tensors(folder), 32)
    words, files = ["--tile=32", "--halo=16"], folder / "npz" / "reflectivity*.npz"
    stored = downscaled(folder, files, tmp_path / "o.zarr", preset, *words, "--workers=1")
    np.testing.assert_allclose(stored.reflectivity, expected, rtol=0, atol=TOLERANCE)
    joined = downscaled(folder, files, tmp_path / "o.nc", preset, *words)
    np.testing.assert_allclose(joined.reflectivity, expected, rtol=0, atol=TOLERANCE)


def test_datasets_in_memory_and_of_dask(folder):
    pytest.importorskip("dask", reason="lazy fields need the package dask")
    model, expected = network("fczsm-d"), by_hand(network("fczsm-d"), tensors(folder)[:3])[:, ::-1]
    with open_dataset(folder / "radar.nc") as file:
        coarse = file.sortby("time").isel(time=slice(0, 3)).load()
    for given in (coarse, coarse.chunk(time=1)):
        out = fastds.downscale(model, given, smooth=True)
        assert (out.reflectivity.chunks is None) == (given is coarse)
        np.testing.assert_allclose(out.reflectivity, expected, rtol=0, atol=TOLERANCE)
    one = fastds.downscale(model, coarse.isel(time=1), smooth=True)
    pair = by_hand(model, tensors(folder)[[1, 1]])
    np.testing.assert_allclose(one.reflectivity, pair[:1, ::-1], rtol=0, atol=TOLERANCE)


def test_fields_are_read_once_and_as_they_are_needed(folder, monkeypatch):
    read, frame = [], DynamicChannels.frame
    monkeypatch.setattr(DynamicChannels, "frame", lambda self, k: read.append(k) or frame(self, k))
    with open_dataset(folder / "radar.nc") as coarse:
        fastds.downscale(network("fczsm-d"), coarse, smooth=True)
    assert read == [0, 1, 2, 3, 4, 5]


def test_values_outside_the_range_are_clipped(folder):
    model, ends = network("fczsm-d"), torch.tensor([0.2, 0.6])
    with open_dataset(folder / "radar.nc") as file:
        coarse = file.sortby("time").isel(time=slice(0, 3)).load()
    x = tensors(folder)[:3]
    known = torch.from_numpy(~np.isnan(coarse.probability.values[:, ::-1].copy()))
    inside = ((x[:, 1] - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)
    x[:, 1] = torch.where(known, inside, 0.0)
    assert (x[:, 1] == 0).any() and (inside[known] == 0).any() and (x[:, 1] == 1).any()
    out = fastds.downscale(model, coarse, smooth=True, dynamics={"probability": [20, 60]})
    np.testing.assert_allclose(out.reflectivity, by_hand(model, x)[:, ::-1], rtol=0, atol=TOLERANCE)


def test_tiles_with_and_without_halo_for_all_channels(folder):
    model = network("fczsm-d")
    with open_dataset(folder / "radar.nc") as file:
        coarse = file.sortby("time").isel(time=slice(0, 2)).load()
    whole, wide, none = (
        fastds.downscale(model, coarse, smooth=True, **tiles) for tiles in ({}, {"tile": 32}, {"tile": 32, "halo": 0})
    )
    assert wide.attrs["fastds_halo"] >= 16 and "fastds_seam_error_dBZ" not in wide.attrs
    np.testing.assert_allclose(wide.reflectivity, whole.reflectivity, rtol=0, atol=0.01)
    cut = np.abs(none.reflectivity - whole.reflectivity).values[:, ::-1]
    seams = [
        cut[:, rows, columns].max() for rows in (slice(64), slice(64, None)) for columns in (slice(64), slice(64, None))
    ]
    assert min(seams) > 0.1 and np.abs(np.array(seams) - none.attrs["fastds_seam_error_dBZ"]).min() < 2e-3


def test_members_with_dynamic_channels(folder):
    with open_dataset(folder / "radar.nc") as file:
        coarse = file.sortby("time").isel(time=slice(0, 2)).load()
    model = network("fczsm-d")
    out = fastds.downscale(model, coarse, members=2)
    assert out.reflectivity.sizes["realization"] == 2 and not out.reflectivity.isnull().any()
    without = fastds.downscale(model, coarse.assign(probability=0 * coarse.probability), members=2)
    assert np.abs(out.reflectivity - without.reflectivity).max() > 0.05


@pytest.mark.parametrize(
    "words",
    [
        "probability=prob,measurement_height=height",
        "{probability: prob, measurement_height: height}",
        "{prob: [0, 1], height: [0, 20]}",
        "{measurement_height: height, probability: prob}",
    ],
)
def test_options_declare_names_and_units(folder, tmp_path, words):
    renamed = {"probability": "prob", "measurement_height": "height"}
    with open_dataset(folder / "radar.nc") as file:
        source = file.rename(renamed).load()
    if "20]" in words:
        source["prob"], source["height"] = source.prob / 100, source.height / 1000
    source.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    out = downscaled(folder, tmp_path / "in.nc", tmp_path / "o.nc", "fczsm-d", f"--dynamics={words}")
    plain = downscaled(folder, folder / "radar.nc", tmp_path / "p.nc", "fczsm-d")
    np.testing.assert_allclose(out.reflectivity, plain.reflectivity, rtol=0, atol=TOLERANCE)
    assert out.attrs["fastds_dynamics"].startswith("prob as probability (0 to ")


def test_variables_are_found_by_their_standard_names(folder):
    model = network("fczsm-d")
    model.card.input_variables[2]["standard_name"] = "height_of_it"
    with open_dataset(folder / "radar.nc") as file:
        coarse = file.sortby("time").isel(time=slice(0, 3)).load()
    coarse["h"] = coarse.measurement_height.assign_attrs(standard_name="height_of_it")
    out = fastds.downscale(model, coarse.drop_vars("measurement_height"), smooth=True)
    expected = by_hand(model, tensors(folder)[:3])[:, ::-1]
    np.testing.assert_allclose(out.reflectivity, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("source", "words", "sentence"),
    [
        ("lacks.nc", [], "fczsm-d needs probability and measurement_height in addition to the reflectivity; lacks.nc "
         "lacks measurement_height and holds reflectivity and probability; give other names with --dynamics, as in"),
        ("lacks.nc", ["--workers=1", "o.zarr"], "lacks.nc lacks measurement_height and holds"),
        ("radar.nc", ["--dynamics=probability=prob"], "radar.nc lacks prob and holds"),
        ("radar.nc", ["--dynamics=prob=probability"], "--dynamics names prob, and model fczsm-d reads probability and"),
        ("radar.nc", ["--dynamics={probability: [0]}"], "--dynamics must be {VARIABLE: [low, high], ...} or NAME="),
        ("radar.nc", ["--dynamics=probability"], "--dynamics must be {VARIABLE: [low, high], ...} or NAME=VARIABLE"),
        ("radar.nc", ["--dynamics={probability: [9, 9]}"], "the range of probability must be [low, high], got [9, 9]"),
        ("radar.nc", ["--time-factor=4"], "--time-factor must be 2 for model fczsm-d: a second pass would need "
         "probability and measurement_height at times between those of the data"),
        ("km.nc", [], "measurement_height is in 'km', model fczsm-d was trained with measurement_height in 'm'"),
        ("once.nc", [], "measurement_height of once.nc has not the times and the grid of reflectivity"),
        ("radar.nc", ["--model=fczsm-ds.safetensors"], "fczsm-ds reads static maps, height (m): give them with"),
        ("radar.nc", ["--model=fczsm.safetensors", "--dynamics=a=b"], "reads reflectivity alone; leave out --dynamics"),
    ],
)  # fmt: skip
def test_dynamics_errors(folder, tmp_path, monkeypatch, capsys, source, words, sentence):
    """The error message is one sentence, and no output is written."""
    monkeypatch.chdir(tmp_path)
    for name in ("radar.nc", "lacks.nc", *(f"{p}.safetensors" for p in ("fczsm", "fczsm-d", "fczsm-ds"))):
        shutil.copy(folder / name, name)
    with xr.open_dataset("radar.nc", engine="h5netcdf") as radar:
        height = radar.measurement_height
        radar.assign(measurement_height=height.assign_attrs(units="km")).to_netcdf("km.nc", engine="h5netcdf")
        radar.assign(measurement_height=height.rename(time="hour")).to_netcdf("once.nc", engine="h5netcdf")
    before = sorted(tmp_path.iterdir())
    out = next((word for word in words if word.endswith(".zarr")), "o.nc")
    options = [word for word in words if word != out]
    model = [] if any(word.startswith("--model") for word in words) else ["--model=fczsm-d.safetensors"]
    capsys.readouterr()
    assert main(["downscale", source, out, *model, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1 and sentence in lines[0], lines
    assert sorted(tmp_path.iterdir()) == before


def test_incomplete_model_cards_are_rejected(folder):
    """Without these fields in the card, the options give the names and ranges in the order of the channels."""
    model = network("fczsm-d")
    with open_dataset(folder / "radar.nc") as file:
        coarse = file.sortby("time").isel(time=slice(0, 3)).load()
    expected = by_hand(model, tensors(folder)[:3])[:, ::-1]
    del model.card.input_variables[2]["range"]
    with pytest.raises(ValueError, match="the card of model fczsm-d has no range of measurement_height: give it with"):
        fastds.downscale(model, coarse)
    model.card.input_variables = []
    with pytest.raises(
        ValueError, match="reads 2 variables in addition to the reflectivity, and its card does not name them"
    ):
        fastds.downscale(model, coarse)
    out = fastds.downscale(model, coarse, smooth=True, dynamics=RANGES)
    np.testing.assert_allclose(out.reflectivity, expected, rtol=0, atol=TOLERANCE)


CHECKED = [
    "can        downscale --model fczsm-d.safetensors: reflectivity, probability and measurement_height to 9 fields of "
    "96 x 96; ",
    "can        downscale --model fczsm-ds.safetensors: reflectivity, probability and measurement_height to 9 fields "
    "of 96 x 96; with --static for height (m); ",
    "can        downscale --model fczsm.safetensors: reflectivity to 9 fields of 96 x 96; model fczsm (",
]
LACKING = [
    "cannot     downscale --model fczsm-d.safetensors, downscale --model fczsm-ds.safetensors: needs variables "
    "probability and measurement_height; this file has reflectivity and probability\n",
    "can        downscale --model fczsm.safetensors: reflectivity to ",
]


def test_check_names_suitable_weights_of_a_folder(folder, tmp_path, monkeypatch, capsys):
    for where, words in ((folder, []), (tmp_path, [f"--model={folder}"])):
        monkeypatch.chdir(where)
        capsys.readouterr()
        assert main(["check", str(folder / "radar.nc"), str(folder / "lacks.nc"), *words]) == 0
        whole, lacking = capsys.readouterr().out.replace(f"--model {folder}/", "--model ").split("\n\n")
        for lines, text in ((CHECKED, whole), (LACKING, lacking)):
            for line in lines:
                assert line in text, text


def test_check_of_one_model_and_no_model(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    radar, chosen = str(folder / "radar.nc"), str(folder / "fczsm-d.safetensors")
    assert main(["check", radar, "--model", chosen, "--model", "nowcast-small", "--model", "inr-any"]) == 0
    printed = capsys.readouterr().out
    assert f"can        downscale --model {chosen}: reflectivity, probability and" in printed
    assert "nowcast --model nowcast-small" in printed and "downscale --model inr-any --scale 2" in printed
    assert main(["check", radar]) == 0 and "safetensors" not in capsys.readouterr().out
    assert main(["check", radar, "--model", "none.safetensors"]) == 2
    assert "'none.safetensors' is neither a file nor one of the shipped weights" in capsys.readouterr().err
    assert main(["check", radar, f"--model={tmp_path}"]) == 2
    assert f"there are no weights, *.safetensors, in {tmp_path}" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with contextlib.chdir(tmp_path):
        shutil.copy(chosen, "run/best.safetensors")
        assert main(["check", radar]) == 0
    printed = capsys.readouterr().out
    assert "cannot     downscale --model bad.safetensors: " in printed
    assert "can        downscale --model run/best.safetensors: reflectivity, probability" in printed

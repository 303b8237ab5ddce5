# SPDX-License-Identifier: Apache-2.0
"""Tests of training with further variables as channels (fczsm-d) and of U-Nets, on MeteoNet files."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.meteonet_files import make_radar

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import cli, data, models
from fastds.data.samples.dynamic_fields import DynamicFields
from fastds.models.baselines import trilinear
from fastds.tasks import finetune
from fastds.tasks.finetune import make_config
from fastds.tasks.radar.config import DataConfig, ModelConfig, TrainingConfig
from fastds.tasks.radar.samples import RadarData
from fastds.tasks.radar.training import RadarModule

RANGES = {"probability": [0.0, 100.0], "measurement_height": [0.0, 20000.0]}
TINY = {"num_features": 8, "offset_groups": 1, "extractor_blocks": 1, "reconstruction_blocks": 1, "alignment": "plain"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_radar(tmp_path_factory.mktemp("meteonet"))


def samples(file, **changes):
    chosen = {"crop": 16, "scales": [1], "intervals": [1], "minimum_echo": 0.0, "batch_size": 2, "epoch_samples": 8}
    chosen |= {"validation_samples": 2, "workers": 0, "dynamics": RANGES} | changes
    return DataConfig(str(file), **chosen)


def test_dynamic_channels_average_valid_values(file):
    """A block with a missing pixel is the mean of the other three; a block without valid pixels is 0."""
    fields = DynamicFields(file, RANGES, slice(3, 9))
    with np.load(file) as archive:
        raw = [archive[key].astype(float) for key in ("prob", "height")]
    assert fields.codes.shape == (2, 6, 64, 64)
    found = fields.coarsen([0, 2], 2, slice(4, 37), slice(0, 20))
    assert found.shape == (2, 2, 16, 10) and found.dtype == np.float32
    for d, (values, high) in enumerate(zip(raw, (100, 20000), strict=True)):
        values = np.where(values < 0, np.nan, values)[[3, 5], 4:36, :20].reshape(2, 16, 2, 10, 2)
        count = (~np.isnan(values)).sum((2, 4))
        expected = np.nansum(values, (2, 4)) / np.maximum(count, 1) / high
        np.testing.assert_allclose(found[:, d], expected, atol=0.5 / 254 + 1e-6)
        assert {0, 4} < set(count.ravel()) and not found[:, d][count == 0].any()
    assert fields.variables[0] == {"name": "probability", "units": "%", "range": [0.0, 100.0]}
    narrow, values = DynamicFields(file, {"probability": (20.0, 60.0)}).codes[0], raw[0]
    expected = (np.clip(values[values >= 0], 20, 60) - 20) / 40
    np.testing.assert_allclose(narrow[values >= 0] / 254, expected, atol=0.5 / 254 + 1e-6)
    assert (narrow[values < 0] == 255).all()


def test_samples_carry_the_channels_of_their_crop(file):
    fields = DynamicFields(file, RANGES)
    options = {"crop": 32, "samples": 9, "scales": (1,), "intervals": (1,), "modes": ("dbz",), "minimum_valid": 0.0}
    plain = data.RadarTriples([file], dynamics=[fields], augment=False, **options)
    rotated = data.RadarTriples([file], dynamics=[fields], **options)
    for i in range(9):
        x = plain[i]["x"]
        assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32
        k = next(k for k in range(14) if torch.equal(x[:, 1:], torch.from_numpy(fields.coarsen([k, k + 2], 2))))
        z = data.prepare(data.coarsen(plain.stores[0].dbz([k, k + 2]), 2, floor=15.0))
        np.testing.assert_allclose(x[:, 0], z, atol=1e-6)
        ways = [
            torch.rot90(y.flip(-1) if m else y, n, (-2, -1)) for y in (x, x.flip(0)) for m in (0, 1) for n in range(4)
        ]
        assert any(torch.equal(way, rotated[i]["x"]) for way in ways)
    whole = data.EvaluationTriples(file, dynamic=fields, static=np.ones((1, 64, 64), np.float32))[2]
    assert torch.equal(whole["x"][:, 1:], torch.from_numpy(fields.coarsen([2, 4], 2)))
    assert whole["x"].shape == (2, 3, 32, 32) and whole["static"].shape == (1, 32, 32)


def test_scores_are_of_the_reflectivity_alone(file):
    """The trilinear baseline of the loss uses only the first channel."""
    config = TrainingConfig(samples(file), ModelConfig("fczsm-d", TINY), loss="relative_mse", max_steps=1)
    module = RadarModule(torch.nn.Linear(1, 1), config)
    x, y = torch.rand(1, 2, 3, 8, 8), torch.rand(1, 3, 1, 16, 16)
    batch = {"x": x, "y": y, "valid": torch.ones_like(y, dtype=torch.bool)}
    mse = 55.0**2 * (trilinear(x[:, :, :1], 2) - y).square().mean()
    torch.testing.assert_close(module._trilinear_mse(batch, torch.tensor([768])), mse[None])


@pytest.mark.parametrize(
    ("model", "options", "dynamics"),
    [("fczsm-d", TINY, RANGES), ("unet", {"width": 2}, {}), ("unet3d", {"width": 2, "in_channels": 3}, RANGES)],
    ids=["fczsm-d", "unet", "unet3d-d"],
)
def test_train_and_finetune_commands_with_dynamics(file, tmp_path, monkeypatch, model, options, dynamics):
    def make_short(*arguments):
        config = make_config(*arguments)
        config.data = samples(file, dynamics={}, epoch_samples=4)
        return config

    given = [f"--model.options.{key}={value}" for key, value in options.items()] + [f"--data.dynamics={dynamics}"]
    given += ["--data.crop=16", "--data.scales=[1]", "--data.intervals=[1]", "--data.minimum-echo=0", "--threads=1"]
    given += ["--data.batch-size=2", "--data.epoch-samples=4", "--data.validation-samples=2", "--data.workers=0"]
    run = tmp_path / "run"
    bounds = ["--max-steps=4", "--warmup-steps=1", f"--output={run}", "--progress=false"]
    assert cli.main(["train", "radar", f"--data.path={file}", "--model", model, *given, *bounds]) == 0
    card, trained = models.load_card(run / "best.safetensors"), models.load(run / "best.safetensors")
    assert card.floor_dbz == 15.0 and [v["range"] for v in card.input_variables[1:]] == list(dynamics.values())
    fresh = models.create(model, **options)
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    with data.open_dataset(file) as dataset:
        coarse = data.coarsen_dataset(dataset[["reflectivity"]].isel(time=slice(0, 3)).load())
        means = dataset.isel(time=slice(0, 3, 2)).coarsen(latitude=2, longitude=2).mean().load()
    whole = coarse.assign({name: (coarse.reflectivity.dims, means[name].values) for name in dynamics})
    fine = trained.downscale(whole)
    assert fine.sizes["latitude"] == 64 and fine.sizes["time"] == 3
    if dynamics:
        further = tmp_path / "further"
        given = ["--dynamics=probability=probability,measurement_height=measurement_height"]
        words = [str(run / "best.safetensors"), f"--data={file}", f"--output={further}", "--max-steps=2", *given]
        monkeypatch.setattr(finetune, "make_config", make_short)
        assert cli.main(["finetune", *words]) == 0
        tuned = models.load_card(further / "best.safetensors")
        assert tuned.input_variables == card.input_variables and tuned.name.endswith("-finetuned")
        assert fine.attrs["fastds_dynamics"] == "probability (0 to 100 %), measurement_height (0 to 20000 m)"
        with pytest.raises(
            ValueError, match="needs probability and measurement_height in addition to the reflectivity; the data"
        ):
            trained.downscale(coarse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dynamics": {}},
            "data.dynamics: the network reads 2 variables in addition to the reflectivity and 0 were given",
        ),
        ({"synthetic_events": 2}, "and 2 were given, with 2 synthetic events"),
        ({"dynamics": RANGES | {"rain": [0, 1]}}, "reads 2 variables .* and 3 were given"),
        (
            {"dynamics": {"probability": [0, 100], "rain": [0, 1]}},
            "data.dynamics: there is no variable 'rain' in .* has",
        ),
        ({"dynamics": RANGES | {"probability": [5, 5]}}, r"range of probability must be \[low, high\], got \[5, 5\]"),
        ({"dynamics": RANGES | {"probability": [5]}}, r"range of probability must be \[low, high\], got \[5\]"),
    ],
)
def test_dynamics_errors(file, changes, message):
    with pytest.raises(ValueError, match=message):
        RadarData(dataclasses.replace(samples(file), **changes), False, in_channels=3).setup()


def test_fields_of_other_times_are_refused(file, tmp_path):
    with data.open_dataset(file) as dataset:
        shorter = dataset.load().assign(probability=dataset.probability.isel(latitude=0))
    data.save_dataset(shorter, tmp_path / "radar.nc")
    with pytest.raises(ValueError, match="probability"):
        DynamicFields(tmp_path / "radar.nc", RANGES)


def test_finetune_of_a_network_with_static_maps_needs_its_maps(file, tmp_path):
    model = models.create("fczsm-small", static_channels=1, **TINY)
    model.card.name, model.card.floor_dbz, model.card.ceiling_dbz = "s", 15.0, 70.0
    models.save(model, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="static must be 1 maps, FILE.nc:VARIABLE, which s reads, got 0"):
        finetune.finetune(tmp_path / "s.safetensors", file)
    with pytest.raises(ValueError, match="model s reads reflectivity alone; leave out the argument dynamics"):
        finetune.finetune(tmp_path / "s.safetensors", file, static=["a.nc:z"], dynamics={"probability": [0, 100]})

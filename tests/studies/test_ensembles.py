# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds study nowcast --members` and `nowcast-errors`: fits, scores and peers."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="studies belong to the training extra")

from fastds import models
from fastds.cli import main
from fastds.data import open_dataset, packages, reflectivity_to_rate, save_dataset, synthetic_event
from fastds.metrics import crps
from fastds.models.ensembles import ErrorModel, sample_reflectivity
from fastds.models.ensembles.forecast_features import FEATURES
from fastds.models.mlcast.network import build_card
from fastds.studies import fit_nowcast_errors, nowcast_ensembles
from fastds.studies.common.error_model_fit import Pool, score
from fastds.studies.fit_nowcast_errors import Block, Sample, fit, make_samples
from fastds.tasks.nowcast.ensemble_scores import EnsembleSums
from tests.support.small_models import nowcaster

Z_R = (200.0, 1.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radars")
    save_dataset(synthetic_event(3, frames=14, shape=(80, 96))[["reflectivity", "crs"]], folder / "a.nc")
    return folder


def test_scores_belong_to_the_contents_of_all_weights(tmp_path):
    """Weights that were trained anew in the same place need another folder."""
    files = [str(tmp_path / f"{name}.safetensors") for name in ("model", "mlcast")]
    network = nowcaster()
    for file in files:
        models.save(network, file)
    before = nowcast_ensembles._list_options(files[0], 2, 64, files[1])
    assert before == nowcast_ensembles._list_options(files[0], 2, 64, files[1])
    with torch.no_grad():
        next(network.parameters()).add_(1)
    for file in files:
        models.save(network, file)
        after = nowcast_ensembles._list_options(files[0], 2, 64, files[1])
        assert after["weights"][file] != before["weights"][file]
    assert nowcast_ensembles._list_options("extrapolation", 2, 64, None)["weights"] == {}


def made(count=3000, seed=0):
    """Return a sample whose forecast is 20 dBZ and whose truth is 25 dBZ with a normal error of 5 dB."""
    generator = torch.Generator().manual_seed(seed)
    features = 0.1 * torch.randn(FEATURES, count, generator=generator)
    features[0], features[-6] = 1.0, math.log(2)
    return Sample(features, (25 + 5 * torch.randn(count, generator=generator)).clamp(0, 60), 7.0, Z_R)


def test_the_score_is_the_crps_of_members():
    torch.manual_seed(0)
    model, sample = ErrorModel(4), made(400)
    least = torch.full((400,), sample.least)
    found = score(model, sample.features, sample.truth, least, Z_R)
    m, s, g, e = (part[:, None] for part in model(sample.features))
    noise = torch.randn(400, 4000, generator=torch.Generator().manual_seed(1))
    z = m + s * noise.clamp(-1, 1.5) + s * (noise - 1.5).clamp(min=0) / (1 + g * (noise - 1.5).clamp(min=0))
    z = z - s * (1 + e) * (-1 - noise).clamp(min=0)
    members = torch.where(z < sample.least, 0.0, z.clamp(0, 60)).detach()
    assert found.echo.mean().item() == pytest.approx(crps(members.T, sample.truth), rel=0.03)


def test_fit_recovers_the_distribution():
    torch.manual_seed(0)
    model = ErrorModel(4)
    losses = fit(model, [[made()]], 150, batch=500)
    m, s, _, _ = model(made(200, seed=9).features)
    assert np.mean(losses[-10:]) < 0.6 * losses[0]
    assert m.mean().item() == pytest.approx(25, abs=1.0) and s.mean().item() == pytest.approx(5, abs=1.2)


def test_samples_are_the_pixels_of_both_methods_forwards_and_backwards(folder):
    (found,) = make_samples(folder, [Block("a.nc", every=6, steps=3)])
    assert all(part.features.shape == (FEATURES, part.truth.numel()) for part in found)
    leads = {round(math.exp(float(part.features[-6, 0])) - 1) for part in found}
    assert leads == {1, 2, 3} and len(found) == 2 * 2 * (3 + 3)
    assert all(((part.truth == 0) | (part.truth >= part.least)).all() for part in found)


def test_nowcast_errors_command_writes_an_error_model(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_nowcast_errors, "BLOCKS", (Block("a.nc", every=8, steps=2),))
    monkeypatch.setattr(fit_nowcast_errors.make_samples, "__defaults__", (fit_nowcast_errors.BLOCKS, 0))
    target = tmp_path / "errors.safetensors"
    assert (
        main(["study", "nowcast-errors", f"--data.path={folder}", f"--output={target}", "--steps=3", "--threads=1"])
        == 0
    )
    model = models.load(target)
    assert isinstance(model, ErrorModel) and model.card.name == "nowcast-errors" and model.card.metrics["loss"] > 0
    assert f"wrote {target}" in capsys.readouterr().out


def test_shipped_error_model_card_names_its_data():
    card = models.load_card("nowcast-errors")
    assert models.load("nowcast-errors").config == ErrorModel().config
    assert card.licence and len(card.training_data) == len({block.file for block in fit_nowcast_errors.BLOCKS})
    assert not {block.file for block in fit_nowcast_errors.BLOCKS} & set(nowcast_ensembles.RADARS)


# ---- comparison with pysteps


@pytest.fixture(scope="module")
def growing(folder):
    """Return ten fields of 20, 21, ... dBZ in a square, with no echo elsewhere and a hole in the seventh."""
    with open_dataset(folder / "a.nc") as event:
        event = event.isel(time=slice(0, 10)).load()
    inside = np.zeros((80, 96), bool)
    inside[30:62, 40:72] = True
    echo = 20.0 + np.arange(10, dtype=np.float32)[:, None, None]
    event["reflectivity"] = event.reflectivity.copy(data=np.where(inside, echo, np.float32(-32)))
    event["reflectivity"][6, 30:34, 40:44] = np.nan
    return event


def test_crop_to_echo(growing):
    found = nowcast_ensembles._crop_to_echo(growing, 32)
    assert found.y.equals(growing.y[30:62]) and found.x.equals(growing.x[40:72]) and found.sizes["time"] == 10
    assert nowcast_ensembles._crop_to_echo(growing, 90).sizes["y"] == 80


def test_start_holds_inputs_and_truth(growing):
    start = nowcast_ensembles._make_start(nowcast_ensembles._crop_to_echo(growing, 32), "extrapolation", 6, 3)
    rates = reflectivity_to_rate(20.0 + np.arange(10))
    assert start.dataset.sizes["time"] == 7 and start.cadence == 5.0
    np.testing.assert_allclose(start.rain[:, -1, -1], rates[4:7], rtol=1e-5)
    np.testing.assert_allclose(start.truth[:, -1, -1], rates[7:], rtol=1e-5)
    assert start.rain[2, 0, 0] == 0 and np.isnan(start.truth[:, 0, 0]).all() and np.isnan(start.truth[0]).mean() < 0.05


def test_scores_of_starts_add_up():
    generator = np.random.default_rng(0)
    members, truth = generator.gamma(0.5, 2.0, (2, 5, 1, 20, 24)), generator.gamma(0.5, 2.0, (2, 20, 24))
    parts = []
    together = EnsembleSums(5, [300.0])
    for x, y in zip(members.astype(np.float32), truth.astype(np.float32), strict=True):
        together.add(0, x[:, 0], y)
        start = nowcast_ensembles.Start(None, None, 5.0, 1, y[None])
        parts.append(json.loads(json.dumps(nowcast_ensembles._score(lambda start, x=x: x, start))))
    found, expected = nowcast_ensembles._sum_scores(parts, 5.0), together.rows()
    for name, values in expected.rows.items():
        np.testing.assert_allclose(found.rows[name], values, rtol=1e-9)
    assert nowcast_ensembles._sum_scores(parts, 10.0) is None


@pytest.mark.parametrize(("linear", "options"), [(False, {}), (False, {"precip_thr": -10.0}), (True, {"ar_order": 1})])
def test_pysteps_methods_convert_units(linear, options):
    """The method of pysteps receives dB of mm/h, or mm/h if it is linear. Pixels that it leaves missing become dry."""
    pytest.importorskip("pysteps", reason="pysteps is not installed (optional peer)")
    rain = np.random.default_rng(0).gamma(0.5, 2.0, (3, 40, 48))

    def peer(fields, velocity, steps, **given):
        assert velocity.shape == (2, 40, 48) and fields.ndim == (3 if given else 2)
        assert fields.min() == (0 if linear else -15)
        made = np.stack([fields if fields.ndim == 2 else fields[-1]] * steps)
        made[:, 5] = np.nan
        return made

    start = nowcast_ensembles.Start(None, rain, 5.0, 1, np.zeros((2, 40, 48)))
    found = nowcast_ensembles._run_pysteps(peer, start, linear, **options)
    expected = np.where(rain[-1] < 0.1, 0, rain[-1])
    expected[5] = 0
    np.testing.assert_allclose(found, np.broadcast_to(expected, (2, 2, 40, 48)), rtol=1e-5)


def test_the_loss_of_a_block_is_in_units_of_its_mean_echo_and_rain():
    model, sample = ErrorModel(4), made(50)
    least = torch.full((50,), sample.least)
    pool = Pool(sample.features, sample.truth, least, Z_R)
    crps_db, rain, mean = (part.mean() for part in score(model, sample.features, sample.truth, least, Z_R))
    rates = reflectivity_to_rate(sample.truth.numpy(), no_echo=0.0)
    expected = crps_db / (sample.truth.mean() + 0.3) + rain / (rates.mean() + 0.03) + 0.1 * mean / rates.var(ddof=1)
    assert pool.loss(model, torch.arange(50)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_loss_with_spread_term():
    torch.manual_seed(1)
    model, sample = ErrorModel(4), made(300)
    least = torch.full((300,), sample.least)
    plain, strict = (Pool(sample.features, sample.truth, least, Z_R, spread=weight) for weight in (0.0, 0.5))
    noise = torch.randn(300, 4000, generator=torch.Generator().manual_seed(1))
    members = sample_reflectivity(tuple(part[:, None] for part in model(sample.features)), noise).clamp(0, 60).detach()
    ratio = members.var(1).mean() / (members.mean(1) - sample.truth).square().mean()
    index = torch.arange(300)
    found = (strict.loss(model, index) - plain.loss(model, index)).item()
    assert found == pytest.approx(0.5 * torch.log(ratio).item() ** 2, rel=0.05) and found > 0.1


def test_missing_package_is_named_before_computing(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: name != "skimage" or None)
    with pytest.raises(ImportError, match="pip install scikit-image$"):
        nowcast_ensembles.compare(str(tmp_path), "extrapolation", str(tmp_path / "study"), 3, None, 64, None)
    assert not (tmp_path / "study").exists()


def test_the_study_compares_members_with_those_of_pysteps(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pysteps", reason="pysteps is not installed (optional peer)")
    pytest.importorskip("skimage", reason="scikit-image is not installed (optional peer)")
    monkeypatch.setattr(nowcast_ensembles, "RADARS", {"a.nc": nowcast_ensembles.Radar(3, 3)})
    words = f"study nowcast --data.path={folder} --model=extrapolation --members=3 --window=64 --starts=1 --threads=1"
    mlcast = models.create("mlcast-convgru", num_blocks=1)
    mlcast.card = build_card("mlcast")
    models.save(mlcast, tmp_path / "mlcast.safetensors")
    words += f" --mlcast={tmp_path / 'mlcast.safetensors'}"
    assert main([*words.split(), f"--output={tmp_path / 'study'}", f"--report={tmp_path / 'r.html'}"]) == 0
    printed = capsys.readouterr().out
    assert (
        "a.nc: 1 starts" in printed and "| 15 | 1 |" in printed and "CRPS of the members over that of STEPS" in printed
    )
    peers = "S-PROG | extrapolation | ANVIL | LINDA | MLCast"
    assert f"| minutes | starts | members | STEPS | difference | their mean forecast | {peers} |" in printed
    assert len(list((tmp_path / "study" / "scores").iterdir())) == 8 and (tmp_path / "study" / "table-1.csv").exists()
    assert "Ensembles on the test radars" in (tmp_path / "r.html").read_text()
    assert (
        main([*words.split(), "--against=x"]) == 2
        and "--against must be left out with --members 3" in capsys.readouterr().err
    )
    assert main([*words.split(), "--members=1"]) == 2 and "--members must be at least 2" in capsys.readouterr().err
    alone = f"study nowcast --data.path={folder} --mlcast=m.safetensors"
    assert (
        main(alone.split()) == 2
        and "--mlcast must be left out, got m.safetensors; only --members=N" in capsys.readouterr().err
    )

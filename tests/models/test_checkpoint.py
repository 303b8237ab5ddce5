# SPDX-License-Identifier: Apache-2.0
"""Tests of weights files: saving, loading, and errors for damaged files."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

import fastds
from fastds import models
from fastds.models import ModelCard, checkpoint
from tests.hostile import campaign


def small(**options):
    return models.create(
        "fczsm-small",
        **{"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1} | options,
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.safetensors"
    models.save(small(), path)
    return path


def metadata_of(path) -> dict:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def rewritten(path, state=None, **metadata):
    """Write a weights file again with other tensors or metadata and return its path; None removes an entry."""
    from safetensors.torch import load_file

    content = metadata_of(path) | metadata
    save_file(state or load_file(path), path, {k: v for k, v in content.items() if v is not None})
    return path


def test_round_trip(tmp_path):
    model = small(static_channels=2, scale=3)
    model.card = ModelCard(
        name="test", licence="CC0", training_data=["none"], floor_dbz=15.0, ceiling_dbz=70.0, space_factor=3,
        time_factor=2, grid_spacing_m=(500.0, 2000.0), cadence_s=(600, 1800), motion_px=(0.0, 8.5),
        input_variables=[{"name": "reflectivity", "standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}],
        metrics={"mse_total": 1.25},
    )  # fmt: skip
    models.save(model, tmp_path / "m.safetensors")
    again = models.load(tmp_path / "m.safetensors")
    assert type(again) is type(model) and again.config == model.config and not again.training
    assert again.card == model.card and again.card.fastds_version == fastds.__version__
    assert models.load_card(tmp_path / "m.safetensors") == model.card
    state = again.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_layout_and_training_mode_do_not_matter(tmp_path):
    model = small().to(memory_format=torch.channels_last).train()
    models.save(model, tmp_path / "m.safetensors")
    assert torch.equal(models.load(tmp_path / "m.safetensors").lstm.gates.weight, model.lstm.gates.weight)


def test_load_returns_cached_models_within_the_context(file):
    cache = checkpoint.ModelCache()
    with checkpoint.use_model_cache(cache):
        first = models.load(file)
        assert models.load(str(file)) is first and list(cache.values()) == [first]
        with checkpoint.use_model_cache({}):
            assert models.load(file) is not first
        assert models.load(file) is first
    assert models.load(file) is not first


def test_load_leaves_the_random_state_alone(file):
    state = torch.get_rng_state()
    models.load(file)
    assert torch.equal(torch.get_rng_state(), state)


def test_load_accepts_shipped_names(file, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    assert models.available(pretrained=True) == ["small"]
    assert models.load("small").config == fastds.load(str(file)).config
    assert {"fczsm", "fczsm-d", "fczsm-ds", "fczsm-s", "fczsm-small"} <= set(models.available())


def test_create_builds_presets():
    model = models.create("fczsm-d", num_features=16, offset_groups=2)
    assert model.config["in_channels"] == 3 and model.config["num_features"] == 16 and model.card.name == "fczsm-d"
    with pytest.raises(
        ValueError, match=r"no preset 'fczsm-smal'; did you mean fczsm-small or .*available\(\) lists all"
    ):
        models.create("fczsm-smal")
    with pytest.raises(ValueError, match=r"no preset 'xyz'; fastds.models.available\(\) lists all \d+$"):
        models.create("xyz")
    assert models.create("ZSM", num_features=16, offset_groups=2).card.name == "fczsm", "as the paper writes it"
    with pytest.raises(ValueError, match="no preset 'zsmm'; did you mean .*fczsm"):
        models.create("zsmm")
    with pytest.raises(ValueError, match="FCZSM cannot be built .* unexpected keyword argument 'features'"):
        models.create("fczsm", features=3)


def test_unknown_name_or_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nothing' is neither a file nor one of the shipped weights"):
        models.load("nothing")
    with pytest.raises(FileNotFoundError, match="it is a preset without shipped weights"):
        models.load("fczsm-ds")


@pytest.mark.parametrize("length", [0, 4, 8, 200, 20_000, -1])
def test_load_rejects_truncated_file(file, length):
    content = file.read_bytes()
    file.write_bytes(content[:length])
    with pytest.raises(ValueError, match="no readable safetensors file, it is damaged or truncated"):
        models.load(file)


@pytest.mark.parametrize("place", [0.3, 0.9999])
def test_load_rejects_flipped_bit(file, place):
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(place * (len(content) - start))] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its weights do not match the checksum"):
        models.load(file)


def test_load_rejects_random_bytes(file):
    file.write_bytes(bytes(range(8, 256)) * 40)
    with pytest.raises(ValueError, match="damaged or truncated"):
        models.load(file)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_load_rejects_pickles_without_reading(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    if kind == "torch":
        torch.save({"state": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is a pickled PyTorch file; weights are never unpickled"):
        models.load(path)
    assert not os.path.exists("exploded")


def test_load_rejects_foreign_safetensors(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="has no fastds metadata"):
        models.load(path)
    with pytest.raises(ValueError, match="has no fastds metadata"):
        models.load_card(path)


def test_load_rejects_missing_entry(file):
    with pytest.raises(ValueError, match=r"lacks the metadata \['card'\]"):
        models.load(rewritten(file, card=None))


def test_load_rejects_other_architecture(file):
    with pytest.raises(ValueError, match=r"holds weights of 'ResNet'; this version knows \[.*'FCZSM'"):
        models.load(rewritten(file, architecture="ResNet"))


def test_load_rejects_weights_unlike_the_config(file):
    config = json.loads(metadata_of(file)["config"])
    with pytest.raises(
        ValueError, match="does not hold the weights of its own configuration: missing .*extractor.blocks.1"
    ):
        models.load(rewritten(file, config=json.dumps(config | {"extractor_blocks": 2})))
    with pytest.raises(ValueError, match=r"of another shape \['extractor.blocks.0.conv1.bias'"):
        models.load(rewritten(file, config=json.dumps(config | {"num_features": 16})))


@pytest.mark.parametrize(
    "config, message",
    [
        ("{", "unreadable config"),
        ("[1]", "unreadable config: expected a JSON object, got list"),
        ('{"speed": 1}', "unreadable config: FCZSM cannot be built"),
        ('{"scale": 7}', "unreadable config: scale must be one of"),
    ],
)
def test_load_rejects_broken_config(file, config, message):
    with pytest.raises(ValueError, match=message):
        models.load(rewritten(file, config=config))


@pytest.mark.parametrize("card", ["{", "[]", '{"colour": "blue"}'])
def test_load_rejects_broken_card(file, card):
    rewritten(file, card=card)
    with pytest.raises(ValueError, match="unreadable card: the model card"):
        models.load_card(file)
    with pytest.raises(ValueError, match="unreadable card: the model card"):
        models.load(file)


def test_failed_save_keeps_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        models.save(small(), file)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_save_rejects_unknown_models(tmp_path):
    with pytest.raises(TypeError, match=r"model must be one of \[.*'FCZSM'.*, got Linear"):
        models.save(torch.nn.Linear(2, 2), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_load_names_non_finite_weights(file, value):
    from safetensors.torch import load_file

    state = load_file(file)
    name = sorted(state)[3]
    state[name].view(-1)[0] = value
    rewritten(file, state, sha256=checkpoint._compute_digest(state))
    with pytest.raises(ValueError, match=f"not finite: 1 of {state[name].numel()} numbers of {name}"):
        models.load(file)


@pytest.mark.parametrize("number", [10**7, 2**62, -(10**9)])
def test_load_rejects_oversized_config_before_building(file, number, monkeypatch):
    config = json.loads(metadata_of(file)["config"])
    rewritten(file, config=json.dumps(config | {"reconstruction_blocks": number}))
    monkeypatch.setattr(checkpoint, "build", lambda *args: pytest.fail("built"))
    with pytest.raises(ValueError, match=f"names {number}, and no size in the file"):
        models.load(file)


def test_load_rejects_deeply_nested_json(file):
    rewritten(file, config="[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="unreadable config"):
        models.load(file)
    rewritten(file, config=None, card='{"metrics":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ValueError, match="lacks the metadata"):
        models.load(file)


@pytest.mark.parametrize(
    "field, value",
    [("cadence_s", "often"), ("cadence_s", [1.0]), ("floor_dbz", "low"), ("input_steps", 1.5), ("name", 3),
     ("training_data", "all"), ("input_variables", ["r"]), ("metrics", [])],
)  # fmt: skip
def test_card_fields_have_their_types(file, field, value):
    card = json.loads(metadata_of(file)["card"]) | {field: value}
    rewritten(file, card=json.dumps(card))
    with pytest.raises(ValueError, match=f"card's {field} is"):
        models.load(file)


def test_save_is_reproducible(tmp_path):
    """Eight files are compared, because the safetensors library writes metadata in a random order."""
    model = small()
    for k in range(8):
        models.save(model, tmp_path / f"{k}.safetensors")
    assert len({(tmp_path / f"{k}.safetensors").read_bytes() for k in range(8)}) == 1
    assert models.load(tmp_path / "0.safetensors").config == model.config


def test_load_survives_random_corruption():
    counts, faults = campaign(60, 1)
    assert not faults and sum(counts.values()) == 60 and counts["flipped", "refused"]

# SPDX-License-Identifier: Apache-2.0
"""Tests of the model card of a training: its name and its files."""

import pytest

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import models
from fastds.tasks.fields.config import parse_arguments as fields
from fastds.tasks.humidity.config import parse_arguments as humidity
from fastds.tasks.nowcast.config import parse_arguments as nowcast
from fastds.tasks.radar.config import parse_arguments as radar
from fastds.training.command import TASKS, find_configurations
from fastds.training.model_card import add_file_names, update_model_card

PARSERS = {"radar": radar, "fields": fields, "humidity": humidity, "nowcast": nowcast}
SHIPPED = [(task, name) for task in TASKS for name in find_configurations(task)]


def card_of(config, *files):
    start = config.model.start
    model = models.load(start) if start in models.available(pretrained=True) else models.create(config.model.name)
    update_model_card(model.card, config)
    add_file_names(model.card, config, files)
    return model.card


@pytest.mark.parametrize(("task", "name"), SHIPPED)
def test_model_card_of_shipped_configuration_is_unchanged(task, name):
    given = ["--data.path=somewhere/era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"] if name == "inr-small" else []
    config = PARSERS[task]([f"--config={name}", *(given or ["--data.path=somewhere"])])
    card = card_of(config)
    for key, value in config.model.card.items():
        assert getattr(card, key) == value, key


@pytest.mark.parametrize(
    ("task", "name", "options", "files"),
    [
        ("nowcast", "nowcast-small", ["--data.path=.", "--data.blocks={b.nc: {}, a.nc: {}}"], ["a.nc", "b.nc"]),
        ("radar", "fczsm-small-pure", ["--data.path=folder/mine", "--data.blocks={}"], ["a.nc"]),
        ("fields", "inr-small", ["--data.path=folder/mine.nc"], ["mine.nc"]),
        ("fields", "inr-any", ["--data.path=folder", "--data.each=[mine.nc:t, mine.nc:u]"], ["mine.nc"]),
        ("humidity", "wgan-gp-small", ["--data.path=folder", "--data.sources={m.nc: {}}"], ["m.nc"]),
    ],
)
def test_model_card_describes_other_training_files(task, name, options, files):
    config = PARSERS[task]([f"--config={name}", "--output=runs/mine", *options])
    card = card_of(config, *reversed(files), files[0])
    assert card.training_data == files and card.name == f"{config.model.name}-mine"
    assert not card.licence and not card.limits and not card.picture and not card.training_hours


def test_model_card_of_finetuned_weights_names_both_data_sets():
    config = nowcast(["--model=nowcast-small", "--model.start=nowcast-small", "--data.path=folder/mine.nc"])
    before = models.load_card("nowcast-small")
    card = card_of(config, "mine.nc")
    assert card.training_data == [*before.training_data, "trained further on mine.nc"]
    assert card.name == "nowcast-small-training-nowcast" and card.licence == before.licence


def test_model_card_keeps_a_custom_name():
    config = nowcast(["--model=ms-convlstm", "--data.path=.", "--model.card={name: ours, training_data: [x]}"])
    card = card_of(config, "mine.nc")
    assert (card.name, card.training_data) == ("ours", ["x"])
    for output, name in (("runs/ms-convlstm", "ms-convlstm"), ("a/b", "ms-convlstm-b"), (".", "ms-convlstm")):
        assert card_of(nowcast(["--model=ms-convlstm", "--data.path=.", f"--output={output}"])).name == name


def test_model_card_of_user_weights_is_not_marked_shipped():
    for name in models.available():
        assert "shipped" not in models.create(name).card.description, name

# SPDX-License-Identifier: Apache-2.0
"""Tests of help(): public names document their arguments, and training options have help texts."""

import dataclasses
import importlib
import inspect
import re

import pytest
import torch

PUBLIC = (
    "fastds", "fastds.ops", "fastds.nn", "fastds.models", "fastds.models.baselines", "fastds.models.db_rnn",
    "fastds.models.inr", "fastds.data",
    "fastds.metrics", "fastds.plot", "fastds.report",
)  # fmt: skip


def documentation(thing) -> str:
    """Return the docstrings of a class and its bases, without the signature that dataclasses generate."""
    docstrings = [k.__doc__ or "" for k in getattr(thing, "__mro__", [thing]) if k is not object]
    return "" if docstrings[0].startswith(f"{thing.__name__}(") else "\n".join(docstrings)


def things(module):
    found = importlib.import_module(module)
    for name in found.__all__:
        thing = getattr(found, name)
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith("fastds"):
            yield name, thing


@pytest.mark.parametrize("module", PUBLIC)
def test_public_docstrings_describe_arguments(module):
    for name, thing in things(module):
        text = documentation(thing)
        assert text.strip(), f"{module}.{name} has no docstring"
        given = set(inspect.signature(thing).parameters) - {"args", "kwargs"}
        unsaid = sorted(p for p in given if not re.search(rf"\b{p}\b", text))
        assert not unsaid, f"the docstring of {module}.{name} does not name {unsaid}"


def test_layer_docstrings_describe_forward():
    """The docstring is not the one that torch.nn.Module.forward has."""
    for name, layer in things("fastds.nn"):
        assert (layer.forward.__doc__ or "").strip() not in ("", (torch.nn.Module.forward.__doc__ or "").strip()), name


@pytest.mark.parametrize("module", ["fastds.data", "fastds.ops"])
def test_packages_list_only_public_names(module):
    found = importlib.import_module(module)
    assert dir(found) == sorted(found.__all__)


@pytest.mark.parametrize("op", sorted(set(importlib.import_module("fastds.ops").__all__) - {"GridSpec", "PointSpec"}))
def test_op_docstrings_have_returns_gradients_and_raises(op):
    text = documentation(getattr(importlib.import_module("fastds.ops"), op))
    for part in ("Args:", "Returns:", "[Gg]radients", "Raises:|errors: as"):
        assert re.search(part, text), f"the docstring of fastds.ops.{op} has no {part}"


@pytest.mark.parametrize(
    "module",
    [
        "tasks.radar.config",
        "tasks.fields.config",
        "training.config",
        "tasks.nowcast.config",
        "tasks.humidity.config",
        "studies.fields.study",
        "studies.radar",
        "studies.common.config",
        "studies.fczsm.config",
        "studies.db_rnn.config",
        "studies.wgan_gp.config",
        "studies.inr.config",
        "studies.nowcast",
        "studies.humidity",
        "studies.domain.study",
        "studies.domain.ranges",
        "studies.command",
    ],
)
def test_training_options_have_help_texts(module):
    """The library jsonargparse reads help texts from lines "name: text" of the docstring."""
    found = importlib.import_module(f"fastds.{module}")
    for name, kind in vars(found).items():
        if dataclasses.is_dataclass(kind) and kind.__module__ == found.__name__:
            text = documentation(kind)
            bare = [f.name for f in dataclasses.fields(kind) if not re.search(rf"^\s+{f.name}:", text, re.M)]
            assert not bare, f"{module}.{name}: {bare}"

# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest

from fastds import models
from fastds.archive import request, run
from fastds.data import save_dataset
from tests.support.archives import archive, stored
from tests.support.pipelines import make_event
from tests.support.small_models import radar_model


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(run, "choose_chunk_steps", lambda job, workers=1: job.step_multiple)
    request.open_request_dataset.cache_clear()


@pytest.fixture(scope="module")
def event():
    return make_event()


@pytest.fixture(scope="module")
def made(tmp_path_factory, event):
    """Write six files with two times each, and weights."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "in").mkdir()
    for number in range(6):
        save_dataset(event.isel(time=slice(2 * number, 2 * number + 2)), folder / "in" / f"{number}.nc")
    models.save(radar_model(), folder / "w.safetensors")
    return folder


@pytest.fixture
def files(tmp_path, made):
    """Return a copy of the folder of `made`."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """Return the archive of all six files, made by one run."""
    target = tmp_path_factory.mktemp("whole") / "whole.zarr"
    archive(made, target=target)
    return stored(target)

# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.support.watch_cases import Station, write_frames


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames"), 18)


@pytest.fixture
def make_station(tmp_path, frames):
    """Return a function that makes the folders of a command."""
    return lambda command: Station(tmp_path, frames, command)

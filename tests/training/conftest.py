# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.support.training_runs import make_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))

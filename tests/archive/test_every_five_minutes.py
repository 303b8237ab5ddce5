# SPDX-License-Identifier: Apache-2.0
"""Tests of archives that a timer extends: late files, concurrent runs, other commands on the store."""

import pytest

import fastds
from fastds.archive import workers
from fastds.data import save_dataset
from tests.support.archives import archive, same, stored

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_archive_skips_late_files(files, event):
    names = [f"{number}.nc" for number in range(6)]
    archive(files, names[:2] + names[3:4])
    for _ in range(2):  # and once more, with nothing new
        report = archive(files, names, append=True, keep_going=True)
        assert [note for note in report.notes if "2.nc holds times before the last of" in note]
    expected = fastds.downscale("trilinear", event.isel(time=[0, 1, 2, 3, *range(6, 12)]), threads=1)
    assert stored(files / "out.zarr").drop_attrs().equals(expected.drop_attrs())


def test_manifest_is_removed_with_its_store(files, event):
    archive(files, ["0.nc", "1.nc"])
    save_dataset(fastds.downscale("bicubic", event.isel(time=slice(0, 4)), threads=1), files / "out.zarr")
    with pytest.raises(ValueError, match=r"there is no out\.zarr\.manifest"):
        archive(files, ["0.nc", "1.nc", "2.nc"], append=True)
    archive(files, ["0.nc", "1.nc"])
    assert stored(files / "out.zarr").attrs["fastds_model"] == "trilinear"


def test_archive_lock_excludes_a_second_process(files, whole, monkeypatch):
    """The second process is refused while the first works; the lock of a killed process is ignored."""
    tried, known = [], workers.process_chunk

    def make(job, store, piece):
        if not tried:
            with pytest.raises(BlockingIOError, match="another process works on .*out.zarr; wait for its end") as error:
                archive(files)
            tried.append(error)
        return known(job, store, piece)

    monkeypatch.setattr(workers, "process_chunk", make)
    (files / ".out.zarr.lock").touch()
    archive(files)
    assert same(stored(files / "out.zarr"), whole) and not list(files.glob(".*"))
    assert tried

# SPDX-License-Identifier: Apache-2.0
"""Tests that outputs are complete or absent: devices, hard links, full disks and signals."""

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastds import models
from fastds._outputs import atomic_write, is_running_as_cli
from fastds.cli import main
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from fastds.inference import files as inference_files
from fastds.inference.tables import write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    truth = synthetic_event(5, 9, (256, 256))[["reflectivity", "crs"]]
    save_dataset(truth, folder / "truth.nc")
    save_dataset(coarsen_dataset(truth), folder / "in.nc")
    return folder


def nowcast(folder, output, *options):
    return ["nowcast", f"{folder}/in.nc", str(output), "--model", "persistence", *options]


def test_special_files_are_not_replaced(folder, tmp_path, capsys):
    pipe = tmp_path / "pipe.nc"
    os.mkfifo(pipe)
    link = tmp_path / "link.nc"
    link.symlink_to("/dev/null")
    for output in (pipe, link, "/dev/null"):
        assert main(nowcast(folder, output)) == 2
        assert "the output must be a regular file" in capsys.readouterr().err
    for write in (
        lambda: main(["evaluate", f"{folder}/truth.nc", f"{folder}/truth.nc", "--csv", str(pipe)]),
        lambda: main(nowcast(folder, tmp_path / "o.nc", "--picture", str(pipe))),
        lambda: main(["downscale", f"{folder}/in.nc", str(pipe)]),
    ):
        assert write() == 2 and "must be a regular file" in capsys.readouterr().err
    for save in (lambda: write_csv(pipe, ["a"], []), lambda: models.save(models.create("fczsm-small"), pipe)):
        with pytest.raises(ValueError, match="must be a regular file"):
            save()
    assert pipe.is_fifo() and sorted(p.name for p in tmp_path.iterdir()) == ["link.nc", "pipe.nc"]


def test_the_input_is_not_replaced_under_any_name(folder, tmp_path, capsys):
    source = tmp_path / "in.nc"
    source.write_bytes((folder / "in.nc").read_bytes())
    for name, make in (("hard.nc", os.link), ("soft.nc", os.symlink)):
        make(source, tmp_path / name)
        assert main(nowcast(tmp_path, tmp_path / name)) == 2
        assert "the output must be another file than the input" in capsys.readouterr().err
    assert main(nowcast(folder, source, "--truth", str(source))) == 2
    assert "must be another file" in capsys.readouterr().err
    assert main(["downscale", f"{folder}/in.nc", str(source), "--scale", "2", "--like", str(source)]) == 2
    assert "must be another file" in capsys.readouterr().err
    assert source.read_bytes() == (folder / "in.nc").read_bytes()


@pytest.mark.parametrize(
    ("words", "script", "expected"),
    [
        ("python -X dev -m fastds.cli check", "cli.py", True),
        ("python -m fastds check", "__main__.py", True),
        ("python bin/fastds check", "bin/fastds", True),
        ("python -m pytest fastds", "__main__.py", False),
        ("python program.py -m", "program.py", False),
    ],
)
def test_command_line_is_distinguished_from_programs(words, script, expected, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", words.split())
    monkeypatch.setattr(sys, "argv", [script])
    assert is_running_as_cli() == expected


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
{code}
"""


def limited(size, code, *arguments):
    """Run code in a process whose files cannot exceed a size, as on a full disk.

    The option -B prevents truncated bytecode files.
    """
    command = [sys.executable, "-B", "-W", "ignore", "-c", LIMITED.format(size=size, code=code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_full_disk_error_keeps_the_old_output(folder, tmp_path, suffix):
    """One process tries several file sizes at which writing fails as on a full disk."""
    sizes = [1000, 60_000, 500_000]
    if suffix == "zarr":
        pytest.importorskip("zarr", reason="zarr is not installed")
        sizes = [size // 100 for size in sizes]
    output = tmp_path / f"o.{suffix}"
    save_dataset(open_dataset(folder / "in.nc"), output)
    code = """
import os
from fastds.cli import main
for size in map(int, sys.argv[1].split()):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    print(main(sys.argv[2:]), os.listdir(os.path.dirname(sys.argv[4])))
"""
    done = limited(sizes[0], code, " ".join(map(str, sizes)), *nowcast(folder, output))
    assert done.stdout.splitlines() == len(sizes) * [f"2 ['{output.name}']"], done.stderr
    assert done.stderr.splitlines() == len(sizes) * [f"fastds nowcast: {output} cannot be written: File too large"]
    with open_dataset(output) as dataset:
        assert dataset.equals(open_dataset(folder / "in.nc")) and os.listdir(tmp_path) == [output.name]


def test_pending_chunks_do_not_restore_a_failed_output(tmp_path, monkeypatch):
    """Zarr writes several chunks at once: one fails while the others are still pending."""
    pytest.importorskip("zarr", reason="zarr is not installed")
    from zarr.storage import LocalStore

    put, late = LocalStore.set, []

    async def slow(store, key, value, *rest):
        if key.startswith("reflectivity/c/0"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if key.startswith("reflectivity/c/"):
            await asyncio.sleep(0.2)
            late.append(key)
        await put(store, key, value, *rest)

    monkeypatch.setattr(LocalStore, "set", slow)
    event = synthetic_event(5, frames=4, shape=(32, 32)).chunk(time=1)
    with pytest.raises(OSError, match="o.zarr cannot be written: No space left on device"):
        save_dataset(event, tmp_path / "o.zarr")
    time.sleep(0.4)
    assert late and not list(tmp_path.iterdir())


def test_full_disk_with_tables_pictures_weights_and_temporary_files(tmp_path):
    code = """
import os
import numpy as np
from fastds import models
from fastds.plot.style import save_png
from fastds.inference import files as inference_files
from fastds.inference.tables import write_csv
from matplotlib.figure import Figure
inference_files.MAPPED_BYTES = 0
os.chdir(sys.argv[1])
for write in (lambda: write_csv("a.csv", ["x"], [["1234567890"]] * 1000), lambda: save_png(Figure(), "a.png"),
              lambda: models.save(models.create("fczsm-small"), "a.safetensors"),
              lambda: inference_files.allocate_output((1000, 1000), ".")):
    try:
        write()
    except OSError as error:
        print(error)
"""
    done = limited(1000, code, tmp_path)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr
    messages = [f"{name} cannot be written: File too large" for name in ("a.csv", "a.png", "a.safetensors")]
    assert done.stdout.splitlines() == [
        *messages,
        "0.0 GB are needed in . while the fields are computed: File too large",
    ]


def test_large_fields_are_mapped_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(inference_files, "MAPPED_BYTES", 0)
    values = inference_files.allocate_output((3, 4), tmp_path)
    values[...] = 1.0
    assert isinstance(values, np.memmap) and values.sum() == 12


def run(folder, output, moment, number):
    """Run a nowcast that gets a signal when `moment` returns True for a line of `-X importtime`.

    Returns:
        The exit status and the messages.
    """
    command = [sys.executable, "-X", "importtime", "-m", "fastds", *nowcast(folder, output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if moment(line):
            process.send_signal(number)
            break
    lines += process.stderr.readlines()
    return process.wait(), [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("torch.types", signal.SIGINT),
        ("fastds.ops", signal.SIGTERM),
        ("jsonargparse", signal.SIGINT),
        ("xarray", signal.SIGTERM),
        ("fastds.tasks.nowcast.run", signal.SIGINT),
        ("fastds.tasks.nowcast.run", signal.SIGTERM),
    ],
)
def test_a_signal_during_imports_is_one_line(folder, tmp_path, number, module):
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    status, lines = run(folder, tmp_path / "o.nc", lambda line: re.search(rf"\| +{re.escape(module)}$", line), number)
    assert (status, lines) == (128 + number, [f"fastds: {word}\n"]) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_output_is_written_leaves_nothing(folder, tmp_path, number):
    output = tmp_path / "o.nc"
    output.write_bytes(b"old")
    command = [sys.executable, "-m", "fastds", *nowcast(folder, output, "--steps", "100")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while len(os.listdir(tmp_path)) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    stderr = process.communicate()[1]
    assert process.returncode == 128 + number and stderr.count("\n") == 1, stderr
    assert os.listdir(tmp_path) == ["o.nc"] and output.read_bytes() == b"old"


def test_a_signal_while_an_output_is_replaced_is_deferred():
    """The function commit_output renames twice; between both, no output has the final name."""
    code = (
        "import os, signal; from fastds import _outputs\n"
        "_outputs.install_signal_handlers()\n"
        "with _outputs._defer_signals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('inside', flush=True)\n"
        "print('after', flush=True)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "inside\n" and run.returncode != 0


def test_a_program_that_imports_the_package_keeps_its_signals():
    known = "[signal.getsignal(number) for number in (2, 15)]"  # a test run in the background has others
    code = f"import signal; before = {known}; import fastds; print({known} == before)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_a_folder_is_replaced_and_restored_after_an_error(tmp_path):
    store = tmp_path / "s.zarr"
    for text in ("one", "two"):
        with atomic_write(store) as temporary:
            temporary.mkdir()
            (temporary / "a").write_text(text)
    with pytest.raises(RuntimeError), atomic_write(store) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert (store / "a").read_text() == "two" and os.listdir(tmp_path) == ["s.zarr"]


def test_symbolic_link_is_followed(folder, tmp_path, capsys):
    (tmp_path / "real").mkdir()
    for name in ("o.nc", "o.zarr"):
        link, place = tmp_path / name, tmp_path / "real" / name
        link.symlink_to(place)
        for _ in range(2):
            assert main(nowcast(folder, link, "--steps", "1")) == 0
        assert link.is_symlink() and place.exists() and not place.is_symlink()
        with open_dataset(link) as made:
            assert made.sizes["time"] == 1
    assert sorted(p.name for p in tmp_path.rglob("*.part")) == []
    capsys.readouterr()
    for name, target, message in (
        ("a.nc", tmp_path / "none" / "a.nc", "no such folder: .*none"),
        ("b.nc", tmp_path / "b.nc", "b.nc is a link that points to itself"),
    ):
        (tmp_path / name).symlink_to(target)
        assert main(nowcast(folder, tmp_path / name)) == 2
        assert re.search(message, capsys.readouterr().err)


def test_names_as_long_as_file_systems_take(tmp_path):
    for name in ("n" * 252 + ".nc", "ü" * 126 + ".nc"):
        save_dataset(synthetic_event(1, 2, (32, 32))[["reflectivity"]], tmp_path / name)
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_empty_output_name_is_rejected(folder, tmp_path, capsys, monkeypatch):
    """A script with an unset variable passes an empty name."""
    monkeypatch.chdir(folder)
    assert main(["nowcast", "", str(tmp_path / "o.nc"), "--model=persistence"]) == 2
    assert "the name of the input is empty" in capsys.readouterr().err


def printed(command, how="", **variables):
    """Return the output of a command in a shell, its exit status, and its errors."""
    line = f"set -o pipefail; {sys.executable} -m fastds {command} {how}"
    run = subprocess.run(["bash", "-c", line], capture_output=True, env={**os.environ, **variables})
    return run.stdout, run.stderr.decode(), run.returncode


def test_closed_stdout_is_handled(tmp_path):
    """If the reader of a pipe exits, the command ends with status 141 (SIGPIPE) and still writes its files."""
    save_dataset(synthetic_event(1, 5, (64, 64))[["reflectivity"]], tmp_path / "t.nc")
    same = f"{tmp_path}/t.nc {tmp_path}/t.nc"
    for command in ("models", f"evaluate {same} --csv {tmp_path}/scores.csv"):
        assert printed(command, "| true") == (b"", "", 141)
    assert (tmp_path / "scores.csv").read_text().startswith("method,")


def test_unencodable_characters_are_escaped(folder, tmp_path):
    name = tmp_path / "ü.nc"
    name.symlink_to(folder / "in.nc")
    out, error, status = printed(f"nowcast {name} {tmp_path}/ö.nc --model persistence", PYTHONIOENCODING="ascii")
    assert (error, status) == ("", 0) and out.endswith(rb"\xf6.nc" + b"\n") and (tmp_path / "ö.nc").exists()

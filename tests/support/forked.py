# SPDX-License-Identifier: Apache-2.0
"""Runs programs in forks of a process that has imported the packages, which saves start-up time.

A fork is a separate process: signals, exit status and exit handlers behave as in a new one.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# Imports that take most of the time of `import fastds`. The fork itself imports fastds.
TORCH = """
import gc, torch
gc.freeze()  # else every child copies all objects when it ends
"""
# What the command `fastds` needs.
COMMAND = """
import sys
sys.argv[0] = "fastds"
import fastds.cli, lightning
from fastds.training import modules
from fastds.training import command
import fastds.tasks.fields.training, fastds.tasks.humidity.training
import fastds.tasks.nowcast.training, fastds.tasks.radar.training
"""
# The server computes nothing before it forks, because OpenMP's threads would be missing in the children.
SERVER = """
import json, os, signal, sys
requests = os.fdopen(os.dup(0))
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for line in requests:
    code, words, folder = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
        signal.alarm(300)
        sys.argv[1:] = words
        exec(code, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)  # without what libraries say at the end
"""


@functools.cache
def _server(imports, *variables):
    command, environment = [sys.executable, "-P", "-W", "ignore", "-c", imports + SERVER], os.environ | dict(variables)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def run(code, *words, imports=COMMAND, **variables):
    """Run Python code in a fork of a process with finished imports, and return the finished process.

    Args:
        code: Python code.
        words: command-line arguments of the code.
        imports: code that imports packages.
        variables: environment variables of the process that is forked.
    """
    server = _server(imports, *variables.items())
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([code, list(map(str, words)), folder]), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(words, status, out, err)


def in_a_child(work):
    """Return the lines that work(out) writes in a forked child, and the exit status of the child.

    A crash of the child fails only one test.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # the threads of the parent are not there
            with os.fdopen(writer, "w", buffering=1) as out:
                work(out)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as lines:
        lines_written = lines.read().splitlines()
    _, status = os.waitpid(child, 0)
    return lines_written, os.waitstatus_to_exitcode(status)

# SPDX-License-Identifier: Apache-2.0
"""Writes down which functions of FASTDS_CALLS_OF each test calls, in every Python process that has this folder on its
path: pytest's own, and the programs that a test starts, which inherit its PYTEST_CURRENT_TEST.

A process leaves a file in FASTDS_CALLS_TO; a line is the test ("" outside of one), its phase, a file and the line where
the function starts.
"""

import atexit
import collections
import json
import os
import sys
import threading
import uuid

OF, TO = os.environ["FASTDS_CALLS_OF"] + os.sep, os.environ["FASTDS_CALLS_TO"]
called = collections.defaultdict(set)  # functions by test and phase; not by their code, which has no file when compared


def trace(frame, event, argument):
    code = frame.f_code
    if code.co_filename.startswith(OF):
        called[os.environ.get("PYTEST_CURRENT_TEST", " ()")].add((code.co_filename, code.co_firstlineno))


def write() -> None:
    sys.settrace(None)
    lines = []
    for test, functions in called.items():
        name, _, phase = test.rpartition(" ")
        lines += [json.dumps([name, phase.strip("()"), *function]) + "\n" for function in functions]
    path = os.path.join(TO, uuid.uuid4().hex)
    with open(path + ".part", "w") as out:
        out.writelines(lines)
    os.rename(path + ".part", path)  # whole, or not there: tests kill their programs at any moment


def leave(status: int, leave=os._exit) -> None:  # as forked processes end
    write()
    leave(status)


os._exit = leave
os.register_at_fork(after_in_child=called.clear)
atexit.register(write)
threading.settrace(trace)
sys.settrace(trace)

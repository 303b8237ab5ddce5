# SPDX-License-Identifier: Apache-2.0
"""Records which functions below FASTDS_CALLS_OF each test calls.

Python imports this module at its start if this folder is on its path: in the process of pytest and in programs that
tests start, which inherit PYTEST_CURRENT_TEST. A process writes one file in FASTDS_CALLS_TO. Each line has the test (""
outside tests), its phase, a file, and the line where the function starts.
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

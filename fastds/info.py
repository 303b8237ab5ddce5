# SPDX-License-Identifier: Apache-2.0
"""What this installation has: `fastds info` and `python -m fastds.info`."""

import os
import platform

import torch

from fastds._version import __version__
from fastds.ops.core import native as _native


def _triton_version() -> str:
    try:
        import triton
    except ImportError as error:
        return f"not importable ({error})"
    return triton.__version__


def _devices() -> str:
    found = [f"cpu ({platform.machine()}, {os.cpu_count()} cores)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {properties.name} sm_{properties.major}{properties.minor}")
    return ", ".join(found)


def info() -> dict[str, str]:
    """Version, compiler, instruction sets, CUDA architectures, Triton, torch, devices and threads, as strings."""
    rows = {"fastds": __version__, "python": platform.python_version()}
    if _native.get_missing_reason() is None:
        build = _native.get_module().build_info()
        rows |= {
            "native module": _native.get_module().__file__,
            "compiler": build["compiler"] + ("" if build["debug"] == "0" else f", FASTDS_DEBUG={build['debug']}"),
            "instruction sets": f"{', '.join(build['isa_built'])} built; {build['isa']} selected",
            "CUDA": f"sm_{', sm_'.join(build['cuda_archs'].split())}" if build["cuda"] else "not built",
        }
    else:
        rows["native module"] = _native.get_missing_reason()
    return rows | {
        "triton": _triton_version(),
        "torch": torch.__version__,
        "devices": _devices(),
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Prints info()."""
    for name, value in info().items():
        print(f"{name:17} {value}")


if __name__ == "__main__":
    main()

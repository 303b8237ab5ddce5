# SPDX-License-Identifier: Apache-2.0
"""Report about this installation: `fastds info` and `python -m fastds.info`."""

import os
import platform

import torch

from fastds._version import __version__
from fastds.ops.core import native as _native


def _get_triton_version() -> str:
    try:
        import triton
    except ImportError as error:
        return f"not importable ({error})"
    return triton.__version__


def _describe_devices() -> str:
    found = [f"cpu ({platform.machine()}, {os.cpu_count()} cores)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {properties.name} sm_{properties.major}{properties.minor}")
    return ", ".join(found)


def info() -> dict[str, str]:
    """Return what `fastds info` prints, as text by name.

    The dictionary has the versions of fastds, Python, torch and Triton, the native module, the devices and the number
    of threads. If the native module can be loaded, the dictionary also has its compiler, instruction sets and CUDA
    architectures.
    """
    rows = {"fastds": __version__, "python": platform.python_version()}
    missing = _native.get_missing_reason()
    if missing is None:
        build = _native.get_module().build_info()
        rows |= {
            "native module": _native.get_module().__file__,
            "compiler": build["compiler"] + ("" if build["debug"] == "0" else f", FASTDS_DEBUG={build['debug']}"),
            "instruction sets": f"{', '.join(build['isa_built'])} built; {build['isa']} selected",
            "CUDA": f"sm_{', sm_'.join(build['cuda_archs'].split())}" if build["cuda"] else "not built",
        }
    else:
        rows["native module"] = missing
    return rows | {
        "triton": _get_triton_version(),
        "torch": torch.__version__,
        "devices": _describe_devices(),
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Print the report."""
    for name, value in info().items():
        print(f"{name:17} {value}")


if __name__ == "__main__":
    main()

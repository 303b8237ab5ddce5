# SPDX-License-Identifier: Apache-2.0
"""HDF5 files: their compression filters, and errors in one sentence that names file, group and attribute."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator

import h5py

from fastds.data.formats.contents import Contents

_FILTERS = {
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
}
_FILTERS |= {32017: "SZ", 32019: "JPEG", 32024: "SZ3", 32026: "Blosc2"}


def check_filters(file: h5py.File, contents: Contents) -> None:
    """Load the package hdf5plugin where an open file is compressed by a filter that HDF5 itself lacks.

    Raises: ValueError that names file, variable and filter where the package does not bring it or is not installed."""
    lacking: dict[int, str] = {}

    def visit(name: str, found: object) -> None:
        if isinstance(found, h5py.Dataset):
            pipeline = found.id.get_create_plist()
            for number in range(pipeline.get_nfilters()):
                code = pipeline.get_filter(number)[0]
                if not h5py.h5z.filter_avail(code):
                    lacking.setdefault(code, name)

    file.visititems(visit)
    if lacking and importlib.util.find_spec("hdf5plugin") is not None:
        import hdf5plugin  # noqa: F401  registers its filters

        lacking = {code: name for code, name in lacking.items() if not h5py.h5z.filter_avail(code)}
    for code, name in lacking.items():
        raise ValueError(
            f"{contents.path}: {name} is compressed by the HDF5 filter {_FILTERS.get(code, 'number')} ({code}), which "
            "is not installed: python -m pip install hdf5plugin"
        )


@contextlib.contextmanager
def errors_of_hdf5(contents: Contents, form: str = "HDF5") -> Iterator[None]:
    """A block that reads an HDF5 file: what is missing or unreadable there becomes a ValueError that names the file."""
    try:
        yield
    except ValueError as error:
        if str(contents.path) in str(error):
            raise
        raise ValueError(f"{contents.path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{contents.path} has no {_lacking(error)}") from error
    except (TypeError, IndexError, RuntimeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{contents.path} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        if "errno" in str(error) or error.errno is not None or not str(error):
            raise
        said = " ".join(str(error).split())
        raise ValueError(
            f"{contents.path} looks like {form} but cannot be read ({said}); it may be truncated or damaged"
        ) from error


def _lacking(error: KeyError) -> str:
    """What h5py did not find: "attribute 'date'", "object 'calibration'"."""
    text = str(error.args[0]) if error.args else ""
    found = re.search(r"attribute: '([^']*)'", text) or re.search(r"object '([^']*)'", text)
    kind = "attribute" if "attribute" in text else "group or array"
    return f"{kind} {found[1]}" if found else text or "entry of that name"

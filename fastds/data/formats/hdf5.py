# SPDX-License-Identifier: Apache-2.0
"""HDF5 files: compression filters, errors that name file, group and attribute, and values of attributes."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from fastds.data.formats.file_probe import FileProbe
from fastds.data.io.storage import decode_text

_FILTER_NAMES = {
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
}
_FILTER_NAMES |= {32017: "SZ", 32019: "JPEG", 32024: "SZ3", 32026: "Blosc2"}


def check_filters(file: h5py.File, probe: FileProbe) -> None:
    """Load hdf5plugin if a file is compressed by a filter that HDF5 lacks.

    Args:
        file: Open HDF5 file.
        probe: The file's probe; its path is part of the message.

    Raises:
        ValueError: hdf5plugin is not installed or does not contain the filter. The message names file, variable and
            filter.
    """
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
        import hdf5plugin  # noqa: F401  the import registers the filters

        lacking = {code: name for code, name in lacking.items() if not h5py.h5z.filter_avail(code)}
    for code, name in lacking.items():
        raise ValueError(
            f"{probe.path}: {name} is compressed by the HDF5 filter {_FILTER_NAMES.get(code, 'number')} ({code}), "
            "which is not installed: python -m pip install hdf5plugin"
        )


@contextlib.contextmanager
def translate_hdf5_errors(probe: FileProbe, form: str = "HDF5") -> Iterator[None]:
    """Context manager: convert errors of reading an HDF5 file to ValueError with the name of the file.

    Errors of the operating system, such as denied permission, pass unchanged.

    Args:
        probe: The file's probe.
        form: Name of the format for the message.
    """
    try:
        yield
    except ValueError as error:
        if str(probe.path) in str(error):
            raise
        raise ValueError(f"{probe.path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{probe.path} has no {_describe_missing_entry(error)}") from error
    except (TypeError, IndexError, RuntimeError, OverflowError, AttributeError) as error:
        raise ValueError(f"{probe.path} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        if "errno" in str(error) or error.errno is not None or not str(error):
            raise
        message = " ".join(str(error).split())
        raise ValueError(
            f"{probe.path} looks like {form} but cannot be read ({message}); it may be truncated or damaged"
        ) from error


def _describe_missing_entry(error: KeyError) -> str:
    """Describe the attribute, group or array that h5py did not find, such as "attribute date"."""
    text = str(error.args[0]) if error.args else ""
    found = re.search(r"attribute: '([^']*)'", text) or re.search(r"object '([^']*)'", text)
    kind = "attribute" if "attribute" in text else "group or array"
    return f"{kind} {found[1]}" if found else text or "entry of that name"


def get_required(attrs: Mapping[str, Any], name: str, where: str) -> Any:
    """Return an attribute that must exist.

    Args:
        attrs: Attributes of a group.
        name: Name of the attribute.
        where: Name of the group, for the message.

    Raises:
        ValueError: The attribute is missing or empty.
    """
    if name not in attrs or np.size(attrs[name]) == 0:
        raise ValueError(f"the attribute {where}/{name} is missing")
    return attrs[name]


def parse_number(value: Any) -> float:
    """Return an attribute as a float; of an array, its first element."""
    return float(np.ravel(value)[0])


def parse_text(value: Any) -> str:
    """Return an attribute as a string; of an array, its first element."""
    value = np.ravel(value)[0] if np.ndim(value) else value
    return decode_text(value) if isinstance(value, str | bytes) else str(value)

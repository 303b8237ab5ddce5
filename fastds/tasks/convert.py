# SPDX-License-Identifier: Apache-2.0
"""Command `fastds convert`: write files of any format as CF NetCDF or as an MLCast archive."""

from __future__ import annotations

from jsonargparse import Namespace

from fastds.data import opened, save_dataset
from fastds.data.grid.variables import only_rain
from fastds.data.io.files import names_zarr
from fastds.data.io.mlcast import Origin, save_mlcast
from fastds.inference.files import check_field_target, describe_source
from fastds.inference.tables import track_progress

_ORIGIN = ("license", "creator", "identifier")


def convert(options: Namespace, reading: dict) -> str:
    """Run the command and return a message for the user.

    Args:
        options: parsed command line.
        reading: options of fastds.data.opened: missing, units, start, stop.
    """
    source = options.inputs[0] if len(options.inputs) == 1 else options.inputs
    check_field_target(source, options.output)
    origin = make_origin(options, "mlcast" if names_zarr(options.output) else "cf")
    with opened(source, options.var, **reading) as dataset:
        notes = describe_source(dataset, always=True)
        if origin is not None:
            # a file may contain reflectivity, too, but MLCast archives hold precipitation
            var = options.var or only_rain(dataset)
            notes += [f"archived {var}"] if var else []
            save_mlcast(
                dataset, options.output, origin, var, lambda part: track_progress(part, True, "blocks", "writing")
            )
        else:
            save_dataset(dataset, options.output)
        return "\n".join([*notes, f"wrote {options.output}"])


def make_origin(options: Namespace, form: str = "cf") -> Origin | None:
    """Return the metadata of an MLCast archive from the command line, or None for CF output.

    Args:
        options: parsed command line.
        form: output format if --to is not given: "cf" or "mlcast".

    Raises:
        ValueError: a required option of an archive is missing, or an option of an archive is given with CF output.
    """
    given = {name: options[name] for name in (*_ORIGIN, "created_with")}
    if (options.to or form) != "mlcast":
        useless = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
        if useless:
            raise ValueError(f"{' and '.join(useless)} are for an archive in MLCast's form, which --to mlcast writes")
        return None
    lacking = " and ".join(f"--{name}" for name in _ORIGIN if given[name] is None)
    if lacking:
        raise ValueError(f"an archive in MLCast's form needs {lacking}; --to cf writes a CF store")
    return Origin(**given)

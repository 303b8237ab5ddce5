# SPDX-License-Identifier: Apache-2.0
"""fastds convert: raw files of any format into a CF file or an archive of MLCast."""

from __future__ import annotations

from jsonargparse import Namespace

from fastds.data import opened, save_dataset
from fastds.data.io.mlcast import Origin, save_mlcast
from fastds.tasks.common.inference import check_field_target, read_as
from fastds.tasks.common.tables import tracked

_ORIGIN = ("license", "creator", "identifier")


def convert(options: Namespace, reading: dict) -> str:
    """Run the command with its options and those of reading files; what was done, for the user."""
    source = options.inputs[0] if len(options.inputs) == 1 else options.inputs
    form = options.to or ("mlcast" if options.output.endswith(".zarr") else "cf")
    check_field_target(source, options.output)
    given = {name: options[name] for name in _ORIGIN}
    if form == "mlcast" and None in given.values():
        lacking = " and ".join(f"--{name}" for name, value in given.items() if value is None)
        raise ValueError(f"an archive in MLCast's form needs {lacking}; --to cf writes a plain CF store")
    with opened(source, options.var, **reading) as dataset:
        if form == "mlcast":
            origin = Origin(**given, created_with=options.created_with)
            save_mlcast(dataset, options.output, origin, options.var, lambda blocks: tracked(blocks, True, "blocks"))
        else:
            save_dataset(dataset, options.output)
        return "\n".join([*read_as(dataset, always=True), f"wrote {options.output}"])

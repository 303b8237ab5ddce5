# SPDX-License-Identifier: Apache-2.0
"""Additional input variables of a network: selection by the model card or by the argument `dynamics`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, cast

import xarray as xr

from fastds._options import OptionError, spell_argument
from fastds.data import ReflectivityInput
from fastds.data.grid.variables import is_same_unit
from fastds.data.samples.dynamic_fields import DynamicChannels
from fastds.models import ModelCard
from fastds.models.card import Network

# Variable -> its name in the data, or the ends of its range; or text as on the command line, see _parse_text.
Dynamics: TypeAlias = Mapping[str, str | Sequence[float]] | str
_FORM = "{VARIABLE: [low, high], ...} or NAME=VARIABLE,..."


class Channel(NamedTuple):
    """Additional input channel of a network.

    Attributes:
        variable: name of the variable in the data.
        ends: ends of the range that is scaled to [0, 1].
        name: name in the model card, "" if there is none.
        units: units of the range; None: those of the data.
    """

    variable: str
    ends: tuple[float, float]
    name: str
    units: str | None


def count_channels(model: Network) -> int:
    """Return the number of input variables of a network in addition to the reflectivity."""
    return getattr(model, "config", {}).get("in_channels", 1) - 1


def find_channels(model: Network, dataset: xr.Dataset, given: Dynamics | None = None) -> list[Channel]:
    """Find the additional input variables of a network in a dataset, in the order of the network's channels.

    Args:
        model: network with a card that has names and ranges of the variables in input_variables.
        dataset: data; variables are found by name, then by standard name.
        given: argument `dynamics` of fastds.tasks.radar.run.downscale.

    Returns:
        One Channel for each variable. Variables that the data lack are included.

    Raises:
        ValueError: the network reads reflectivity only, a name is not in the card, the card has too few entries, or a
            variable has other units.
    """
    card, count, given_names = model.card, count_channels(model), _check_dynamics(given)
    if not count:
        if given_names:
            raise ValueError(f"model {card.name} reads reflectivity alone; leave out {spell_argument('dynamics')}")
        return []
    expected = {str(variable["name"]): variable for variable in card.input_variables[1:]}
    if (
        len(given_names) == count
        and not set(given_names) <= set(expected)
        and not any(isinstance(v, str) for v in given_names.values())
    ):
        names = list(expected) if len(expected) == count else count * [""]
        return [
            Channel(v, cast(Any, ends), name, None) for (v, ends), name in zip(given_names.items(), names, strict=True)
        ]
    if len(expected) != count:
        raise ValueError(
            f"model {card.name} reads {count} variables in addition to the reflectivity, and its card does not name "
            f"them: give them with {spell_argument('dynamics')}, as {{VARIABLE: [low, high], ...}}, in the order "
            "of its channels"
        )
    if not set(given_names) <= set(expected):
        others = join_names([name for name in given_names if name not in expected])
        raise ValueError(
            f"{spell_argument('dynamics')} names {others}, and model {card.name} reads {join_names(expected)}"
        )
    return [_make_channel(card, entry, given_names.get(name), dataset) for name, entry in expected.items()]


def read_channels(
    model: Network, source: ReflectivityInput, given: Dynamics | None = None
) -> tuple[DynamicChannels | None, str]:
    """Return the additional input channels on the grid and at the times of the reflectivity, and their description.

    Args:
        model: see find_channels.
        source: radar fields.
        given: see find_channels.

    Returns:
        Channels and description; None and "" for a network without additional input.

    Raises:
        ValueError: a variable is missing, or has another grid or other times, or find_channels raises an error.
    """
    channels = find_channels(model, source.dataset, given)
    if not channels:
        return None, ""
    place = source.dataset.encoding.get("path") or source.dataset.encoding.get("source") or "the data"
    lacking = list_missing(channels, source.dataset)
    if lacking:
        needs = join_names([channel.name or channel.variable for channel in channels])
        raise ValueError(
            f"model {model.card.name} needs {needs} in addition to the reflectivity; {place} lacks "
            f"{join_names(lacking)} and holds {join_names(source.dataset.data_vars)}; give other names with "
            f"{spell_argument('dynamics')}, as in {channels[0].name or 'NAME'}=VARIABLE"
        )
    ranges = [(channel.variable, channel.ends) for channel in channels]
    given_names = ", ".join(_describe_channel(channel, source.dataset) for channel in channels)
    return DynamicChannels(source.dataset, source.raw, ranges, place), given_names


def list_missing(channels: Sequence[Channel], dataset: xr.Dataset) -> list[str]:
    """Return the names of variables that the data lack."""
    return [channel.variable for channel in channels if channel.variable not in dataset.data_vars]


def join_names(names: Collection) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    *others, last = map(str, names) if names else ["nothing"]
    return f"{', '.join(others)} and {last}" if others else last


def _make_channel(card: ModelCard, entry: Mapping, given_names: Any, dataset: xr.Dataset) -> Channel:
    """Return the channel for a variable of a model card.

    Args:
        card: model card.
        entry: entry of card.input_variables.
        given_names: name of the variable in the data, or its range, or None.
        dataset: data.

    Raises:
        ValueError: the card has no range, or the data have other units.
    """
    name, units, standard = str(entry["name"]), entry.get("units"), entry.get("standard_name")
    variable = given_names if isinstance(given_names, str) else name
    if given_names is None and name not in dataset.data_vars and standard is not None:
        alike = [n for n, v in dataset.data_vars.items() if v.attrs.get("standard_name") == standard]
        variable = str(alike[0]) if len(alike) == 1 else name
    if not isinstance(given_names, str | None):
        return Channel(variable, given_names, name, None)
    ends: Any = entry.get("range")
    if not _is_pair(ends):
        raise ValueError(
            f"the card of model {card.name} has no range of {name}: give it with {spell_argument('dynamics')}, as "
            f"{{{name}: [low, high]}}"
        )
    found = dataset[variable].attrs.get("units") if variable in dataset.data_vars else None
    if units is not None and found is not None and not is_same_unit(found, units):
        raise ValueError(
            f"{variable} is in {found!r}, model {card.name} was trained with {name} in {units!r}: give all ranges in "
            f"the units of the data with {spell_argument('dynamics')}, as {{{variable}: [low, high], ...}}"
        )
    return Channel(variable, ends, name, units)


def _describe_channel(channel: Channel, dataset: xr.Dataset) -> str:
    """Describe a channel: "prob as probability (0 to 100 %)"."""
    low, high = channel.ends
    units = channel.units or dataset[channel.variable].attrs.get("units", "")
    units = "" if units == "1" else units
    other = f" as {channel.name}" if channel.name not in ("", channel.variable) else ""
    return f"{channel.variable}{other} ({low:g} to {high:g}{f' {units}' * bool(units)})"


def _check_dynamics(given: Dynamics | None) -> dict[str, str | Sequence[float]]:
    """Return the argument `dynamics` as a dict from variable to name or range. Raises ValueError for other values."""
    if given is None:
        return {}
    given_names: Any = _parse_text(given) if isinstance(given, str) else given
    good = (
        isinstance(given_names, Mapping)
        and len(given_names)
        and all(
            isinstance(name, str) and name and ((isinstance(value, str) and value) or _is_pair(value))
            for name, value in given_names.items()
        )
    )
    if not good:
        raise OptionError("dynamics", f"must be {_FORM}, got {given!r}")
    return dict(given_names)


def _is_pair(value: Any) -> bool:
    """Return whether a value is a sequence of two numbers."""
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return pair and all(isinstance(end, Real) and not isinstance(end, bool) for end in value)


def _parse_text(text: str) -> object:
    """Parse text of the command line: a mapping in YAML, or NAME=VARIABLE separated by commas."""
    if text.lstrip().startswith("{"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): variable.strip() for name, _, variable in pairs}

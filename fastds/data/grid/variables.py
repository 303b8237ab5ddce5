# SPDX-License-Identifier: Apache-2.0
"""Which variable of a file holds the reflectivity, or the rain that it can be made from."""

from fastds.data.grid.units import is_dbz, rain_units

_REFLECTIVITY_PREFIX = "equivalent_reflectivity_factor"
_REFLECTIVITY_NAMES = {
    "reflectivity",
    "reflectivity_factor",
    "corrected_reflectivity",
    "dbz",
    "dbzh",
    "dbzv",
    "th",
    "refl",
    "refd",
    "refc",
    "zh",
    "equivalent_reflectivity_factor",
    "composite_reflectivity",
    "maximum_reflectivity",
    "cappi",
    "base_reflectivity",
}
_RAIN_WORDS = ("rain", "precip", "snowfall", "tp", "rr", "prate")


def choose_variable(dataset, var=None, convert=False):
    """Name and kind ("reflectivity", "rate", "amount") of the variable to use, and notes about the choice.

    With `var` that variable, whatever its kind. Without: the only variable of reflectivity by standard_name and
    units, else the only one by name and units; if there is none and `convert` is set, the only variable of rain.
    Otherwise ValueError with the list of candidates.
    """
    if var is not None:
        if var not in dataset.variables:
            raise ValueError(f"there is no variable {var!r} in the file; {_candidates_sentence(dataset)}")
        return var, _kind_or_refuse(dataset[var]), [f"variable {var} was asked for"]
    fields = [name for name in dataset.data_vars if _is_field(dataset[name])]
    by_standard_name = [name for name in fields if _standard_name(dataset[name]).startswith(_REFLECTIVITY_PREFIX)]
    by_name = [name for name in fields if name.lower() in _REFLECTIVITY_NAMES]
    for matches, reason in ((by_standard_name, "standard_name"), (by_name, "name")):
        if not matches:
            continue
        right = [name for name in matches if is_dbz(dataset[name].attrs.get("units"))]
        if len(right) == 1:
            return (
                right[0],
                "reflectivity",
                [f"variable {right[0]} was chosen: the only one whose {reason} and units (dBZ) say reflectivity"],
            )
        if not right:
            raise ValueError(_wrong_units(dataset[matches[0]]))
        raise ValueError(
            f"{len(right)} variables hold reflectivity: {_list(dataset, right)}; name one of them with var (--var)"
        )
    rain = [name for name in fields if _rain_kind(dataset[name])]
    if convert and len(rain) == 1:
        return rain[0], _rain_kind(dataset[rain[0]]), [f"variable {rain[0]} was chosen: the only one of rain"]
    raise ValueError(f"no variable of reflectivity was found; {_candidates_sentence(dataset)}")


def _kind_or_refuse(variable):
    if not _is_field(variable):
        raise ValueError(f"variable {variable.name} {_dims(variable)} is no field of numbers over (time, y, x)")
    units = variable.attrs.get("units")
    if is_dbz(units):
        return "reflectivity"
    kind = _rain_kind(variable)
    if kind is None:
        raise ValueError(_wrong_units(variable))
    return kind


def _rain_kind(variable):
    """ "rate", "amount" or None; a rate with cell_methods "time: mean" is an amount over its interval."""
    rain = rain_units(variable.attrs.get("units"))
    words = f"{variable.name} {_standard_name(variable)} {variable.attrs.get('long_name', '')}".lower()
    if rain is None or not any(word in words for word in _RAIN_WORDS):
        return None
    return "amount" if rain[1] is None or time_method(variable) in ("mean", "sum") else "rate"


def time_method(variable):
    """The CF cell method over time ("sum", "mean", "point", ...), or None."""
    words = str(variable.attrs.get("cell_methods", "")).split()
    for word, following in zip(words, words[1:], strict=False):
        if word in ("time:", "valid_time:", "t:"):
            return following
    return None


def _is_field(variable):
    return variable.dtype.kind in "fiu" and variable.ndim >= 2


def _standard_name(variable):
    return str(variable.attrs.get("standard_name", ""))


def _wrong_units(variable):
    units = variable.attrs.get("units")
    said = "has no units" if units is None else f"has units {units!r}"
    return f"variable {variable.name} {said}; expected dBZ, a rain rate such as mm h-1, or a rain amount such as kg m-2"


def _candidates_sentence(dataset):
    fields = [name for name in dataset.data_vars if _is_field(dataset[name])]
    if not fields:
        return "the file holds no field over (time, y, x)"
    sentence = f"candidates: {_list(dataset, fields)}"
    if any(_rain_kind(dataset[name]) for name in fields):
        sentence += "; rain is converted by Z-R when it is named with var (--var)"
    return sentence


def _list(dataset, names):
    return ", ".join(
        f"{name} {_dims(dataset[name])} [{dataset[name].attrs.get('units', 'no units')}]" for name in names
    )


def _dims(variable):
    return "(" + ", ".join(map(str, variable.dims)) + ")"

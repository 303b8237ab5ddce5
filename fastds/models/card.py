# SPDX-License-Identifier: Apache-2.0
"""What a user must know of trained weights, kept inside the weights file."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from torch import Tensor

ANY = "any"  # the name of an input variable of any kind and units


@dataclass
class ModelCard:
    """Variables, normalisation, range of validity, origin and scores of a model.

    Attributes:
        name: of the weights.
        description, licence: free text; licence of the weights.
        training_data: sources, with their licences.
        input_variables, output_variables: list of {"name", "standard_name", "units"}, in channel order; an input may
            have "levels_hPa", a list of the pressures it was trained at. [{"name": "any"}]: one variable of any kind.
        static_variables: the same of static maps; with "mean" and "std", their normalisation, where the weights hold
            none.
        floor_dbz, ceiling_dbz: normalisation x = (z - floor) / (ceiling - floor), in dBZ.
        offset, range: normalisation x = (value - offset) / range, in units of the variables; models of gridded fields.
        valid_range: (smallest, largest) value the output may have, in units of the variables; what lies beyond is cut.
        coarsening: how coarse fields of the training data came from fine ones: "mean" over blocks or "decimate".
        input_steps: fields before the start that a nowcaster was trained with; None: the model does not nowcast.
        space_factor, time_factor: of the output grid and the output times.
        grid_spacing_m: (smallest, largest) spacing of the input grid in the training data, metres.
        cadence_s: (shortest, longest) input interval, seconds.
        motion_px: (smallest, largest) motion per input interval, pixels of the input grid.
        input_ranges: by statistic of the inputs its range [low, high] in the training samples, see
            fastds.inference.ood.
        training_hours: of one process. seeds: of the trainings that it was chosen from.
        limits: where it does not win or is not meant for, sentences.
        picture: file of a picture of what it does, beside the sources.
        metrics: scores by name.
        fastds_version: that wrote the file.
    """

    name: str = ""
    description: str = ""
    licence: str = ""
    training_data: list[str] = field(default_factory=list)
    input_variables: list[dict] = field(default_factory=list)
    output_variables: list[dict] = field(default_factory=list)
    static_variables: list[dict] = field(default_factory=list)
    floor_dbz: float | None = None
    ceiling_dbz: float | None = None
    offset: float | None = None
    range: float | None = None
    valid_range: tuple[float, float] | None = None
    coarsening: str | None = None
    input_steps: int | None = None
    space_factor: int | None = None
    time_factor: int | None = None
    grid_spacing_m: tuple[float, float] | None = None
    cadence_s: tuple[float, float] | None = None
    motion_px: tuple[float, float] | None = None
    input_ranges: dict = field(default_factory=dict)
    training_hours: float | None = None
    seeds: list[int] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    picture: str = ""
    metrics: dict = field(default_factory=dict)
    fastds_version: str = ""

    @property
    def task(self) -> str:
        """The task that runs the model, "radar", "fields", "humidity" or "nowcast", as the other fields tell; "" where
        they do not."""
        if self.input_steps is not None:
            return "nowcast"
        if self.floor_dbz is not None and self.ceiling_dbz is not None:
            return "radar"
        if self.coarsening is not None:
            return "humidity"
        return "fields" if self.input_variables else ""

    @property
    def any_variable(self) -> bool:
        """Whether the model takes one variable of any kind and units."""
        return self.input_variables == [{"name": ANY}]

    @property
    def lost_to(self) -> str:
        """The simple method that the weights were no better than on the validation samples of their training; "" where
        they were, or where nothing is known."""
        found = self.metrics.get("simple_method")
        lost = isinstance(found, dict) and found.get("better") is False
        return str(found.get("name", "a simple method")) if lost else ""

    def physical(self, y: Tensor) -> Tensor:
        """A network's output in units of the variables, cut to valid_range; offset and range must be there."""
        values = y * self.range + self.offset
        return values if self.valid_range is None else values.clamp(*self.valid_range)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card.

        Raises:
            ValueError: text is not a JSON object of the card's fields.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the model card is not JSON: {error}") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            unknown = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"the model card has unknown content {unknown}; expected the fields {sorted(known)}")
        for name in ("valid_range", "grid_spacing_m", "cadence_s", "motion_px"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        for f in fields(cls):
            if f.name in values and not _is_a(values[f.name], get_type_hints(cls)[f.name]):
                raise ValueError(f"the model card's {f.name} is {values[f.name]!r:.80}, expected {f.type}")
        for name, limits in values.get("input_ranges", {}).items():
            if not _is_range(limits):
                raise ValueError(
                    f"the model card's input_ranges has {limits!r:.80} for {name}, expected two growing numbers"
                )
        return cls(**values)


def _is_range(value: object) -> bool:
    """Whether a value read from JSON is two finite growing numbers."""
    pair = isinstance(value, list) and len(value) == 2 and all(_is_a(end, float) for end in value)
    return pair and -math.inf < value[0] < value[1] < math.inf


def _is_a(value: object, kind: object) -> bool:
    """Whether a value read from JSON has the type of a card's field."""
    arguments = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is_a(value, one) for one in arguments)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, arguments[0]) for item in value)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) == 2 and all(_is_a(item, float) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))

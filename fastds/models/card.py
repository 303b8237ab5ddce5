# SPDX-License-Identifier: Apache-2.0
"""Model cards: the metadata of trained weights, stored inside the weights file."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_origin, get_type_hints

from fastds._html import format_heading, format_note, format_table, format_value

if TYPE_CHECKING:
    from torch import Tensor

# A torch.nn.Module with its model card in `card` and its configuration in `config`; torch declares neither attribute.
Network: TypeAlias = Any
TASK_NAMES = ("radar", "nowcast", "fields", "humidity")
ANY = "any"  # name of an input variable that may have any meaning and any units


@dataclass(repr=False)
class ModelCard:
    """Metadata of trained weights: variables, normalisation, training conditions, origin and scores.

    Attributes:
        name: name of the weights.
        description: free text.
        licence: licence of the weights.
        training_data: sources of the training data with their licences.
        input_variables: input channels in order, each a dictionary with "name", "standard_name" and "units". An input
            may also have "levels_hPa", the list of pressure levels in the training data. The list [{"name": "any"}]
            stands for one variable with any meaning and units.
        output_variables: output channels in order, in the same form.
        static_variables: static input maps in the same form. If the weights hold no normalisation of a map, its entry
            also has "mean" and "std".
        floor_dbz, ceiling_dbz: limits of the normalisation x = (z - floor) / (ceiling - floor) of reflectivity z, in
            dBZ.
        offset, range: constants of the normalisation x = (value - offset) / range of gridded fields, in the units of
            the variables.
        valid_range: smallest and largest output value, in the units of the variables. Values outside this range are
            clipped.
        coarsening: operator that made the coarse training fields from fine ones: "mean" (block means) or "decimate"
            (every r-th pixel).
        input_steps: number of input frames in the training of a nowcaster; None for models that do not nowcast.
        space_factor, time_factor: ratio of input to output grid spacing, and of input to output time step.
        grid_spacing_m: smallest and largest input grid spacing in the training data, in metres.
        cadence_s: shortest and longest input time step in the training data, in seconds.
        motion_px: smallest and largest motion per input time step in the training data, in pixels of the input grid.
        input_ranges: maps a statistic of the inputs to its range [low, high] over the training samples, see
            fastds.inference.ood.
        training_hours: duration of the training in hours on one process.
        seeds: random seeds of the trainings from which these weights were selected.
        limits: sentences that state where the model is worse than a baseline or should not be used.
        picture: name of an image file in the source tree that shows an example output.
        metrics: scores by name. The entry "simple_method" compares the weights with a baseline.
        fastds_version: version of fastds that wrote the file.
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

    def __repr__(self) -> str:
        return f"<ModelCard {self.name!r}, task {self.task or 'unknown'!r}>"

    def _repr_html_(self) -> str:
        """Return the fields that are set for a notebook."""
        names = [f.name for f in fields(self) if f.name not in ("name", "description", "picture")]
        values = [(name, getattr(self, name)) for name in names]
        rows = [(name, format_value(value)) for name, value in values if value not in (None, "", [], {})]
        parts = [format_heading(f"{self.name or 'unnamed weights'} ({self.task or 'no task'})")]
        parts += [format_note(self.description)] * bool(self.description)
        return "".join([*parts, format_table((), rows, texts=(0, 1))])

    @property
    def task(self) -> str:
        """Return the task that runs the model, derived from the other fields.

        Returns:
            "nowcast", "radar", "humidity" or "fields"; "" if the fields do not identify a task.
        """
        if self.input_steps is not None:
            return "nowcast"
        if self.floor_dbz is not None and self.ceiling_dbz is not None:
            return "radar"
        if self.coarsening is not None:
            return "humidity"
        return "fields" if self.input_variables else ""

    @property
    def any_variable(self) -> bool:
        """True if the model takes one input variable with any meaning and any units."""
        return self.input_variables == [{"name": ANY}]

    @property
    def worse_than(self) -> str:
        """Name of the baseline that the weights did not outperform on the validation samples of their training.

        The name is "" if the weights outperformed the baseline or if the card has no such comparison.
        """
        found = self.metrics.get("simple_method")
        if not isinstance(found, dict) or found.get("better") is not False:
            return ""
        return str(found.get("name", "a simple method"))

    def denormalise(self, y: "Tensor") -> "Tensor":
        """Convert a network output to the units of the variables and clip it to `valid_range`.

        Args:
            y: normalised output of any shape. The card must have `offset` and `range`.
        """
        assert self.range is not None and self.offset is not None
        values = y * self.range + self.offset
        return values if self.valid_range is None else values.clamp(*self.valid_range)

    def to_json(self) -> str:
        """Return the card as a JSON object with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read a card from JSON.

        Args:
            text: JSON object whose keys are fields of the card.

        Raises:
            ValueError: If the text is not JSON, has unknown keys, or has a value that its field does not accept.
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
            if f.name in values and not _has_type(values[f.name], get_type_hints(cls)[f.name]):
                raise ValueError(f"the model card's {f.name} is {values[f.name]!r:.80}, expected {f.type}")
        for name, limits in values.get("input_ranges", {}).items():
            if not _is_range(limits):
                raise ValueError(
                    f"the model card's input_ranges has {limits!r:.80} for {name}, expected two growing numbers"
                )
        return cls(**values)


def _is_range(value: Any) -> bool:
    """Return True if a value read from JSON is a list of two finite, increasing numbers."""
    pair = isinstance(value, list) and len(value) == 2 and all(_has_type(end, float) for end in value)
    return pair and -math.inf < value[0] < value[1] < math.inf


def _has_type(value: object, kind: Any) -> bool:
    """Return True if a value read from JSON matches the type annotation of a card field."""
    arguments = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_has_type(value, one) for one in arguments)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) == 2 and all(_has_type(item, float) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))

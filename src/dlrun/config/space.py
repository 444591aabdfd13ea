"""The space a sweep searches: one dimension a setting, read from Hydra's own grammar, kept as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dlrun.errors import DlrunError

# What a trial is, not what it may try: two trials that differ here could not be compared.
_FIXED = ("search", "tracking", "name", "hydra", "experiment", "hardware.launcher", "hardware.slurm")


@dataclass(frozen=True)
class Dimension:
    """One setting that varies.

    key: as an override names it.   kind: choice, or a number between low and high (both may be drawn).
    choices: the values as override texts.   step: of whole numbers, or None.   log: drawn evenly on a log scale.
    when: (group, choice): the dimension exists only where this was chosen; None: always.
    """

    key: str
    kind: Literal["choice", "int", "float"]
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: int | None = None
    log: bool = False
    when: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """As the study knows it: under each of several choices one setting may have a space of its own."""
        return f"{self.key}@{self.when[0]}={self.when[1]}" if self.when else self.key

    def override(self, value: Any) -> str:
        """The override that sets this value."""
        return f"{self.key}={int(value) if self.kind == 'int' else value}"

    @property
    def first(self) -> Any:
        """A value of the dimension, to try a config with."""
        return self.choices[0] if self.kind == "choice" else self.low

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` turns back."""
        return asdict(self) | {"choices": list(self.choices), "when": list(self.when) if self.when else None}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Dimension:
        """The inverse of `to_json`."""
        when = tuple(stored["when"]) if stored["when"] else None
        return Dimension(**{**stored, "choices": tuple(stored["choices"]), "when": when})  # type: ignore[arg-type]


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """One trial's values: by the names of their dimensions to by the keys of their settings."""
    return {name.partition("@")[0]: value for name, value in values.items()}


def overrides(dimensions: Sequence[Dimension], values: Mapping[str, Any]) -> list[str]:
    """The overrides of one trial, of values by name; group choices first, as their options are set after them."""
    mine = [dimension.override(values[dimension.name]) for dimension in dimensions if dimension.name in values]
    return sorted(mine, key=lambda text: "." in text.partition("=")[0])


def check(dimensions: Sequence[Dimension]) -> None:
    """Raises: DlrunError for a dimension that cannot be searched, whatever the config."""
    if not dimensions:
        raise DlrunError(
            "there is nothing to search: every setting has one value",
            "give one several: 'optimizer.lr=tag(log, interval(1e-4,1e-1))' or model=cnn,resnet20",
        )
    seen: set[tuple[str, tuple[str, str] | None]] = set()
    for dimension in dimensions:
        if any(f"{dimension.key}.".startswith(f"{fixed}.") for fixed in _FIXED):
            raise DlrunError(f"{dimension.key}: cannot be searched: it is the same for all trials")
        if (dimension.key, dimension.when) in seen:
            raise DlrunError(f"{dimension.key}: has two spaces", "give it one")
        if any(key == dimension.key and _meet(when, dimension.when) for key, when in seen):
            raise DlrunError(
                f"{dimension.key}: has spaces that one trial may draw both of",
                "give it one for all trials, or one for each choice of one group under search.space.when",
            )
        seen.add((dimension.key, dimension.when))
        _check_values(dimension)


def _meet(one: tuple[str, str] | None, other: tuple[str, str] | None) -> bool:
    """Whether a trial may fulfil both conditions: not where they ask two choices of one group."""
    return one is None or other is None or one[0] != other[0]


def _check_values(dimension: Dimension) -> None:
    shown = f"interval({dimension.low:g},{dimension.high:g})"
    if dimension.kind == "choice":
        if len(set(dimension.choices)) < len(dimension.choices) or not dimension.choices:
            raise DlrunError(f"{dimension.key}: the same value twice: {', '.join(dimension.choices)}")
    elif not (math.isfinite(dimension.low) and math.isfinite(dimension.high)):
        raise DlrunError(f"{dimension.key}: {shown} has no end", "give it finite ones")
    elif not dimension.low < dimension.high:
        raise DlrunError(f"{dimension.key}: {shown} does not begin below its end")
    elif dimension.log and dimension.low <= 0:
        raise DlrunError(f"{dimension.key}: {shown} cannot be drawn on a log scale", "begin above 0, or leave out log")

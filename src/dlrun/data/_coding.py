"""What the values of a mask mean: which class each is, and which do not count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlrun.contracts import IGNORED
from dlrun.data._images import BadPicture, open_picture, reading
from dlrun.errors import DlrunError

_UNKNOWN = 254  # in the table: a value that means nothing; IGNORED is 255, so that is as many classes as there can be
_LARGEST = 65_535


@dataclass(frozen=True)
class Coding:
    """values: of a mask, in the order of the classes.   ignored: values that do not count."""

    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    @cached_property
    def _table(self) -> np.ndarray:
        """uint8: the class of each value up to the first that is beyond all meaning."""
        table = np.full(max((255, *self.values, *self.ignored)) + 2, _UNKNOWN, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.ignored)] = IGNORED
        return table

    def encode(self, values_HW: np.ndarray) -> np.ndarray:
        """uint8 [H, W]: the class of each pixel, or IGNORED. Raises BadPicture naming a value that means nothing."""
        within = values_HW if values_HW.dtype == np.uint8 else np.minimum(values_HW, len(self._table) - 1)
        coded = self._table[within]
        if (unknown := coded == _UNKNOWN).any():
            value = int(values_HW[unknown][0])
            raise BadPicture(f"the mask has the value {value}, which is no class ({unknown.sum():,} pixels)")
        return coded


class Named(NamedTuple):
    """A coding, the names of its classes, and what was guessed."""

    coding: Coding
    names: tuple[str, ...]
    notes: list[str]


def choose_coding(
    classes: list | None, values: list | None, ignored: list | None, look: Callable[[], set[int]]
) -> Named:
    """The meaning of masks as far as the user said it; `look` gives the values there are, for the rest.

    Without values, the classes are 0, 1, 2 and so on, leaving out those that are ignored.
    """
    skipped = _numbers(ignored or [], "ignored")
    notes: list[str] = []
    if values is not None:
        chosen = _numbers(values, "values")
    elif classes is not None:
        chosen = tuple(value for value in range(len(classes) + len(skipped)) if value not in skipped)[: len(classes)]
    else:
        chosen, skipped, notes = _guessed(look(), skipped)
    names = tuple(str(value) for value in (chosen if classes is None else classes))
    _check(names, chosen, skipped)
    return Named(Coding(chosen, skipped), names, notes)


def _guessed(seen: set[int], ignored: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], list[str]]:
    """Values, ignored values and sentences, from the values that masks have."""
    counted = sorted(seen.difference(ignored))
    notes = []
    if len(counted) > 2 and counted[-1] == 255:
        counted, ignored = counted[:-1], (*ignored, 255)
        notes.append("mask value 255 does not count (guessed; data.ignored)")
    largest = counted[-1] if counted else 0
    if len(counted) == 2 and largest == 255:
        chosen = tuple(counted)
    else:
        chosen = tuple(value for value in range(largest + 1) if value not in ignored)
    shown = ", ".join(map(str, chosen[:12])) + (f", … ({len(chosen)} in all)" if len(chosen) > 12 else "")
    return chosen, ignored, [*notes, f"classes: mask values {shown} (guessed; data.classes names them)"]


def _numbers(given: list, setting: str) -> tuple[int, ...]:
    if not all(type(value) is int and 0 <= value <= _LARGEST for value in given) or len(set(given)) < len(given):
        raise DlrunError(f"data.{setting}: {given} is not a list of different whole numbers in 0..{_LARGEST}")
    return tuple(given)


def _check(names: tuple[str, ...], values: tuple[int, ...], ignored: tuple[int, ...]) -> None:
    if len(names) != len(values):
        raise DlrunError(f"data.classes has {len(names)} names, and data.values has {len(values)} numbers")
    if len(set(names)) < len(names):
        raise DlrunError(f"data.classes: a name is there twice: {', '.join(names)}")
    if both := set(values) & set(ignored):
        raise DlrunError(f"data.ignored: {min(both)} is the value of a class")
    if not 2 <= len(names) <= _UNKNOWN:
        raise DlrunError(
            f"data.classes: {len(names)} classes; a mask has 2 to {_UNKNOWN}",
            "name the values: 'data.values=[0,255]' 'data.classes=[background,object]'",
        )


def mask_values(given: object, folder: Path | None = None) -> np.ndarray:
    """Whole numbers [H, W] of a mask in any of the forms of `open_picture`: the grey level, or the palette's index.

    Raises: BadPicture for what cannot be read, and for a picture in colours.
    """
    with reading():
        picture = open_picture(given, folder)
        values = np.asarray(picture)
        if picture.mode in ("L", "P") or picture.mode.startswith("I"):
            if values.dtype != np.uint8 and values.min() < 0:
                raise BadPicture("a mask with values below 0")
            return values
        if picture.mode == "1":
            return values.astype(np.uint8)
        colours = values[:, :, : len(picture.mode.removesuffix("A"))] if values.ndim == 3 else None
        if colours is not None and values.dtype == np.uint8 and (colours == colours[:, :, :1]).all():
            return colours[:, :, 0]
        raise BadPicture(f"a mask in colours (mode {picture.mode}); it needs one number a pixel")

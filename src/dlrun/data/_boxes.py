"""Boxes of pictures: as a file gives them, checked, and read beside the pictures as padded arrays."""

# N pictures of a source, M boxes of them all, B pictures read, K boxes of the fullest picture

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._labels import Coded, class_names
from dlrun.data._pictures import Pictures
from dlrun.data._source import Source
from dlrun.data._survey import look
from dlrun.errors import DlrunError, Exit

_TOLERANCE = 1.0  # pixels: rounding puts edges this far outside, and they are moved in without a word


@dataclass(frozen=True)
class Annotations:
    """The boxes of one split, as they were found.

    source, column: the pictures.   rows_M: which picture a box is of.
    boxes_M4: left, top, right, bottom in its pixels; nan where there are no four numbers.
    classes: names and, for each box, the index of its name (-1: of no known class, and `said` what was there instead).
    called: what an error calls each box.   sizes_N2: height and width as the file states them; 0 where it does not.
    stray: what is wrong with boxes of no picture at all, by their place.   unusable: with all that is said of a row.
    """

    source: Source
    column: str
    rows_M: np.ndarray
    boxes_M4: np.ndarray
    classes: Coded
    crowd_M: np.ndarray
    called: Sequence[str]
    sizes_N2: np.ndarray
    said: Mapping[int, str] = field(default_factory=dict)
    stray: Mapping[str, str] = field(default_factory=dict)
    unusable: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BoxTable:
    """Sound boxes, ordered by their pictures: those of picture n are starts_N1[n] to starts_N1[n + 1].

    The arrays end with one box more, which fills the places of pictures that have fewer than others.
    bad_N: rows whose boxes are not known, and that are left out.
    """

    starts_N1: np.ndarray
    boxes_M4: np.ndarray
    labels_M: np.ndarray
    crowd_M: np.ndarray
    sizes_N2: np.ndarray
    bad_N: np.ndarray

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Boxes of each of these pictures."""
        return self.starts_N1[rows + 1] - self.starts_N1[rows]


def sound_boxes(given: Annotations, classes: Sequence[str], clip: bool, bad: BadRows) -> BoxTable:
    """The boxes that can be used, inside their pictures. The others are reported, and left out by themselves.

    classes: names in order of their index.   clip: cut boxes at the picture's edge that reach over it.
    """
    for place, reason in given.stray.items():
        bad.report(place, reason)
    cells = Cells(given.source, given.column)
    for row, reason in given.unusable.items():
        bad.report(cells.place(row), reason)
    sizes_N2 = _sizes(given, cells, bad)
    index = {name: place for place, name in enumerate(classes)}
    codes_K = np.array([*(index.get(name, -1) for name in given.classes.names), -1])
    labels_M = codes_K[given.classes.codes_N]
    edges_M4 = np.tile(sizes_N2[given.rows_M][:, ::-1], 2).astype(np.float64)  # right, bottom, right, bottom
    boxes_M4 = np.clip(given.boxes_M4, 0, edges_M4)
    is_open_M = edges_M4[:, 0] == 0  # a picture that cannot be read: the row is bad, its boxes do not matter
    for box in np.flatnonzero(_doubtful(given.boxes_M4, boxes_M4, labels_M, clip) & ~is_open_M).tolist():
        said = given.said.get(box) or f"class '{given.classes.names[given.classes.codes_N[box]]}'"
        reason = _fault(given.boxes_M4[box], boxes_M4[box], edges_M4[box], None if labels_M[box] >= 0 else said)
        bad.report(f"{cells.place(int(given.rows_M[box]))}, {given.called[box]}", reason)
        labels_M[box] = -1
    labels_M[is_open_M] = -1
    kept = np.flatnonzero(labels_M >= 0)
    kept = kept[np.argsort(given.rows_M[kept], kind="stable")]
    counts_N = np.bincount(given.rows_M[kept], minlength=len(given.source))
    return BoxTable(
        np.concatenate([[0], np.cumsum(counts_N)]),
        np.concatenate([boxes_M4[kept], np.zeros((1, 4))]),
        np.append(labels_M[kept], -1),
        np.append(given.crowd_M[kept], False),
        np.maximum(sizes_N2, 1),
        np.isin(np.arange(len(given.source)), list(given.unusable)),
    )


def _sizes(given: Annotations, cells: Cells, bad: BadRows) -> np.ndarray:
    """Height and width of every picture: as stated, else from the picture's own head; 0 where that cannot be read."""
    sizes_N2 = given.sizes_N2.copy()
    unsaid = np.flatnonzero((sizes_N2 <= 0).any(1))
    for seen in look(cells, unsaid, bad) if len(unsaid) else []:
        sizes_N2[seen.row] = seen.height, seen.width
    return np.maximum(sizes_N2, 0)


def _doubtful(given_M4: np.ndarray, clipped_M4: np.ndarray, labels_M: np.ndarray, clip: bool) -> np.ndarray:
    """bool [M]: boxes without numbers, class or area, or too far outside to be moved in."""
    sizes_M2 = clipped_M4[:, 2:] - clipped_M4[:, :2]
    moved_M = np.abs(given_M4 - clipped_M4).max(1)
    # not (a > b): a comparison with nan is false
    return (labels_M < 0) | ~(sizes_M2 > 0).all(1) | (False if clip else ~(moved_M <= _TOLERANCE))


def _fault(given_4: np.ndarray, clipped_4: np.ndarray, edges_4: np.ndarray, unknown: str | None) -> str:
    """What is wrong with a box."""
    if not np.isfinite(given_4).all():
        return "the box is not four finite numbers"
    left, top, right, bottom = (f"{value:g}" for value in given_4)
    box = f"the box from {left},{top} to {right},{bottom}"
    if unknown is not None:
        return f"{box} is of {unknown}, which is none of the classes"
    if (given_4[2:] <= given_4[:2]).any():
        return f"{box} has no area"
    picture = f"the picture of {edges_4[0]:g}x{edges_4[1]:g}"
    if (clipped_4[2:] <= clipped_4[:2]).any():
        return f"{box} is outside {picture}"
    return f"{box} reaches out of {picture}; data.clip_boxes=true cuts such boxes"


class Boxes:
    """The fields of the pictures (with their sizes), and their boxes in pixels of the scaled picture.

    num_boxes: places for boxes in every row.
    """

    def __init__(self, pictures: Pictures, table: BoxTable, num_boxes: int) -> None:
        assert pictures.sized
        self.pictures, self.table, self.num_boxes = pictures, table, num_boxes

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return self.pictures.row_bytes + (4 * 4 + 8 + 1) * self.num_boxes

    @property
    def is_slow(self) -> bool:
        """Whether threads pay."""
        return self.pictures.is_slow

    def read(self, rows: np.ndarray, bad: BadRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """As `Pictures`, and boxes [B, K, 4], box_labels [B, K], box_crowd [B, K].

        A row is good if its picture could be read and is of the size that was stated, and its boxes are known.
        """
        fields, is_good = self.pictures.read(rows, bad)
        is_good &= ~self.table.bad_N[rows]
        stated_B2 = self.table.sizes_N2[rows]
        for index in np.flatnonzero(is_good & (fields["size"] != stated_B2).any(1)).tolist():
            (height, width), (stated_height, stated_width) = fields["size"][index], stated_B2[index]
            reason = f"the picture is {width}x{height}, and its boxes are for one of {stated_width}x{stated_height}"
            bad.report(self.pictures.cells.place(int(rows[index])), reason)
            is_good[index] = False
        places_K = np.arange(self.num_boxes)
        is_box_BK = places_K < self.table.counts(rows)[:, None]
        at_BK = np.where(is_box_BK, self.table.starts_N1[rows][:, None] + places_K, len(self.table.labels_M) - 1)
        _, height, width = self.pictures.decoder.shape
        scale_B4 = np.tile(np.array([width, height]) / stated_B2[:, ::-1], 2)
        boxes = {
            "boxes": (self.table.boxes_M4[at_BK] * scale_B4[:, None]).astype(np.float32),
            "box_labels": self.table.labels_M[at_BK],
            "box_crowd": self.table.crowd_M[at_BK],
        }
        return fields | boxes, is_good

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of the undecoded pictures and of their boxes."""
        total = hashlib.blake2b(self.pictures.digest(rows), digest_size=16)
        table = self.table
        is_mine_M = np.repeat(np.isin(np.arange(len(table.sizes_N2)), rows), np.diff(table.starts_N1))
        for array in (table.boxes_M4, table.labels_M, table.crowd_M):
            total.update(array[:-1][is_mine_M].tobytes())
        total.update(table.counts(rows).tobytes() + table.sizes_N2[rows].tobytes())
        total.update(np.flatnonzero(table.bad_N[rows]).tobytes())
        return total.digest()


def leave_out_empty(empty: Mapping[str, str], num_splits: int, on_bad: Literal["raise", "skip"]) -> list[str]:
    """A sentence about each split that is left out as it lists no pictures. empty: the file of each that lists none.

    Raises: DlrunError for train, where bad rows are refused, or where no split is left.
    """
    for split, file in empty.items():
        if split == "train" or on_bad == "raise" or len(empty) == num_splits:
            can_go = split != "train" and len(empty) < num_splits
            hint = "leave such a split out: data.on_bad=skip" if can_go else ""
            raise DlrunError(f"{file}: its list of images is empty", hint, Exit.DATA)
    return [f"{split} is left out: the list of images of {file} is empty" for split, file in empty.items()]


def choose_classes(found: Mapping[str, Annotations], known: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes in order: those of the source run, else of the training boxes."""
    if known is not None:
        return tuple(known)
    others = [each.classes for name, each in found.items() if name != "train"]
    classes = class_names(found["train"].classes, others)
    if not classes or not len(found["train"].rows_M):
        raise DlrunError(f"{found['train'].source.name}: there are no boxes to train on", code=Exit.DATA)
    return classes

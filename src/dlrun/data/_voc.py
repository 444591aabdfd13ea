"""Folders as Pascal VOC has them: lists of the splits, and an XML file of boxes for each picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from dlrun.data._boxes import Annotations, leave_out_empty
from dlrun.data._files import SPLITS, check_split_names, meaning
from dlrun.data._images import SUFFIXES
from dlrun.data._labels import Coded
from dlrun.data._source import Source
from dlrun.data._tree import Archive, Folder, joined, leads_out
from dlrun.errors import DlrunError, Exit, did_you_mean

_ANNOTATIONS, _PICTURES, _LISTS = "Annotations", "JPEGImages", "ImageSets/Main"


class Layout(NamedTuple):
    """top: the folder that has Annotations.   lists: names of the split lists and the pictures each names."""

    top: str
    lists: dict[str, list[str]]


def find_layout(tree: Folder | Archive) -> Layout:
    """The one folder in the tree with Annotations, and its lists. Raises DlrunError if there are none or several."""
    folders = {PurePosixPath(name).parent for name in tree.names if name.lower().endswith(".xml")}
    tops = sorted({str(folder.parent) for folder in folders if folder.name == _ANNOTATIONS})
    if len(tops) != 1:
        which = f"folders {', '.join(tops)} of that kind" if tops else "no folder Annotations with XML files"
        hint = "name one of them in data.path" if tops else f"expected {_ANNOTATIONS}/, {_PICTURES}/ and {_LISTS}/"
        raise DlrunError(f"data.path: {tree.path.name} has {which}", hint, Exit.DATA)
    top = "" if tops[0] == "." else tops[0]
    where = PurePosixPath(joined(top, _LISTS))
    files = [name for name in tree.names if PurePosixPath(name).parent == where and name.endswith(".txt")]
    lists = {PurePosixPath(name).stem: _stems(tree, name) for name in sorted(files)}
    if not lists:
        inside = [PurePosixPath(name) for name in tree.names if name.lower().endswith(".xml")]
        lists = {"train": sorted(path.stem for path in inside if path.parent == PurePosixPath(top, _ANNOTATIONS))}
    return Layout(top, lists)


def _stems(tree: Folder | Archive, name: str) -> list[str]:
    """The first word of each line (a class's own list has a second one)."""
    try:
        lines = tree.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DlrunError(f"{name} cannot be read: {error}", code=Exit.DATA) from error
    stems = [line.split()[0] for line in lines if line.strip()]
    if bad := [stem for stem in stems if leads_out(stem)]:
        raise DlrunError(f"{name}: '{bad[0]}' is no name of a picture", code=Exit.DATA)
    return stems


def choose_splits(
    layout: Layout, splits: Mapping[str, str] | None, needs_train: bool, on_bad: Literal["raise", "skip"]
) -> tuple[dict[str, str], list[str]]:
    """The list of each split, and sentences about what was guessed or left out."""
    lists = layout.lists
    if chosen := {split: str(name) for split, name in (splits or {}).items() if name}:
        check_split_names(chosen)
        for split, name in chosen.items():
            if name not in lists:
                raise DlrunError(f"data.splits.{split}: there is no list '{name}'", did_you_mean(name, lists))
        notes = []
    else:
        meant = {meaning(name): name for name in lists} | ({} if "train" in lists else {"train": "trainval"})
        chosen = {split: meant[split] for split in SPLITS if meant.get(split) in lists}
        notes = [f"splits: {', '.join(f'{split} is {name}' for split, name in chosen.items())} (guessed)"]
    if needs_train and "train" not in chosen:
        raise DlrunError(
            f"data.path: which list has the training pictures? There are {', '.join(lists)}",
            "say it: 'data.splits={train: NAME}'",
        )
    where = joined(layout.top, _LISTS)
    empty = {split: f"{where}/{name}.txt" for split, name in chosen.items() if not lists[name]}
    notes += leave_out_empty(empty, len(chosen), on_bad)
    return {split: name for split, name in chosen.items() if split not in empty}, notes


class _Found(NamedTuple):
    """The boxes of one file."""

    size: tuple[int, int]
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def read_split(tree: Folder | Archive, layout: Layout, name: str, one_based: bool) -> Annotations:
    """The boxes of a split's pictures. A picture whose XML file is missing or damaged is left out, and reported."""
    each: dict[str, _Found] = {}
    stray = {}
    for stem in layout.lists[name]:
        file = joined(layout.top, f"{_ANNOTATIONS}/{stem}.xml")
        try:
            each[stem] = _read(tree, file, one_based)
        except DlrunError as error:
            stray[f"{name}.txt, {stem}"] = error.message
    said = [word for found in each.values() for word in found.names]
    classes = sorted(set(said) - {""})
    code_of = {word: code for code, word in enumerate(classes)}
    codes = [code_of.get(word, -1) for word in said]
    return Annotations(
        _source(tree, layout.top, f"{name}.txt", list(each)),
        "image",
        np.repeat(np.arange(len(each)), [len(found.names) for found in each.values()]),
        np.array([box for found in each.values() for box in found.boxes], dtype=np.float64).reshape(-1, 4),
        Coded(tuple(classes), np.array(codes, dtype=np.int64), declared=False),
        np.array([flag for found in each.values() for flag in found.difficult], dtype=bool),
        [f"object {index} of {stem}.xml" for stem, found in each.items() for index in range(len(found.names))],
        np.array([found.size for found in each.values()], dtype=np.int64).reshape(-1, 2),
        {index: "no class" for index, code in enumerate(codes) if code < 0},
        stray,
    )


def _source(tree: Folder | Archive, top: str, name: str, stems: list[str]) -> Source:
    import pyarrow as pa

    folder = joined(top, _PICTURES)
    inside = {PurePosixPath(file).stem: file for file in tree.names
              if str(PurePosixPath(file).parent) == folder and file.lower().endswith(SUFFIXES)}  # fmt: skip
    paths = [inside.get(stem, f"{folder}/{stem}.jpg") for stem in stems]
    table = pa.table({"image": pa.array(paths, pa.string())})
    if isinstance(tree, Archive):
        return Source(table, name, archive=tree)
    return Source(table, name, tree.path)


def _read(tree: Folder | Archive, name: str, one_based: bool) -> _Found:
    root = parsed(tree.read(name), name)
    size = root.find("size")
    objects = root.findall("object")
    first = 1.0 if one_based else 0.0
    return _Found(
        (_whole(size, "height"), _whole(size, "width")),
        [(each.findtext("name") or "").strip() for each in objects],
        [_corners(each.find("bndbox"), first) for each in objects],
        [_number(each, "difficult") == 1 for each in objects],
    )


def parsed(data: bytes, name: str) -> ET.Element:
    """The root of an XML document. Raises DlrunError for a damaged one, or one that declares entities of its own."""
    # A document type is where entities are declared that expand to gigabytes or name files.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\x00" in data:
        raise DlrunError(
            f"{name} declares a document type or entities, or is not UTF-8; it is not read", code=Exit.DATA
        )
    try:
        return ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DlrunError(f"{name} cannot be read: {error}", code=Exit.DATA) from error


def _corners(box: ET.Element | None, first: float) -> list[float]:
    """Left, top, right, bottom, where the first pixel is 0 and the right edge of pixel n is n + 1."""
    left, top, right, bottom = (_number(box, edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
    return [left - first, top - first, right, bottom]


def _number(parent: ET.Element | None, name: str) -> float:
    try:
        return float((parent.findtext(name) or "") if parent is not None else "")
    except ValueError:
        return float("nan")


def _whole(parent: ET.Element | None, name: str) -> int:
    """A size; 0 where there is none."""
    number = _number(parent, name)
    return int(number) if 0 < number < 1 << 31 else 0

"""COCO's json files: which is which split, where their pictures are, and the boxes in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from dlrun.data._boxes import Annotations, leave_out_empty
from dlrun.data._files import check_split_names, inner_word, meaning
from dlrun.data._labels import Coded
from dlrun.data._source import Source
from dlrun.data._tree import Archive, Folder, joined, leads_out, parent
from dlrun.errors import DlrunError, Exit, did_you_mean

_PROBES = 20  # pictures that are looked for to find their folder


def find_splits(
    tree: Folder | Archive, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, str], list[str]]:
    """The json file of each split, and a sentence if it was guessed."""
    files = sorted(name for name in tree.names if name.lower().endswith(".json"))
    if wanted := {split: str(name) for split, name in (splits or {}).items() if name}:
        check_split_names(wanted)
        return {split: _named(files, split, name) for split, name in wanted.items()}, []
    chosen = _guessed(files)
    if needs_train and "train" not in chosen:
        shown = ", ".join(files[:8]) + (", …" if len(files) > 8 else "")
        raise DlrunError(
            f"data.path: which json file has the training pictures? {tree.path.name} has {shown or 'none'}",
            "say it: 'data.splits={train: FILE, valid: FILE}'",
            Exit.USAGE if files else Exit.DATA,
        )
    return chosen, [f"splits: {', '.join(f'{split} is {name}' for split, name in chosen.items())} (guessed)"]


def _named(files: list[str], split: str, wanted: str) -> str:
    """The file of this path, or the only one of this name (with or without its suffix)."""
    if wanted in files:
        return wanted
    same = [name for name in files if wanted in (PurePosixPath(name).name, PurePosixPath(name).stem)]
    if len(same) == 1:
        return same[0]
    raise DlrunError(f"data.splits.{split}: no json file is called '{wanted}'", did_you_mean(wanted, same or files))


def _guessed(files: list[str]) -> dict[str, str]:
    """By the split's word in the name (instances_train2017.json) or else in the folder's (train/…coco.json)."""
    found: dict[str, list[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        if split := inner_word(path.stem.rstrip("0123456789")) or meaning(path.parent.name):
            found.setdefault(split, []).append(name)
    if not found and len(files) == 1:
        return {"train": files[0]}
    chosen = {}
    for split, names in found.items():
        # COCO has captions, keypoints and more beside the instances.
        boxes = [name for name in names if "instances" in PurePosixPath(name).name] or names
        if len(boxes) > 1:
            raise DlrunError(
                f"data.path: {' and '.join(boxes[:3])} may both be {split}",
                f"say which is: 'data.splits={{train: FILE, {split}: {boxes[0]}}}'",
            )
        chosen[split] = boxes[0]
    return {split: chosen[split] for split in ("train", "valid", "test") if split in chosen}


def read_splits(
    tree: Folder | Archive,
    chosen: Mapping[str, str],
    images: str | Mapping[str, str] | None,
    on_bad: Literal["raise", "skip"],
) -> tuple[dict[str, Annotations], list[str]]:
    """The boxes of each split's json file, and sentences about what was guessed or left out.

    Raises: DlrunError naming what is wrong.
    """
    contents = {split: _content(tree, name) for split, name in chosen.items()}
    empty = {split: chosen[split] for split, content in contents.items() if not content["images"]}
    notes = leave_out_empty(empty, len(chosen), on_bad)
    found = {}
    for split in [split for split in chosen if split not in empty]:
        found[split], remarks = _read_split(tree, chosen[split], contents[split], split, images)
        notes += remarks
    return found, list(dict.fromkeys(notes))


def _read_split(
    tree: Folder | Archive, name: str, content: dict[str, Any], split: str, images: str | Mapping[str, str] | None
) -> tuple[Annotations, list[str]]:
    """The boxes of a json file, and a sentence about where its pictures are."""
    files = [_file_name(name, index, image) for index, image in enumerate(content["images"])]
    wanted = str((images.get(split) if isinstance(images, Mapping) else images) or "")
    place = Path(wanted).expanduser()
    if place.is_absolute():
        if not place.is_dir():
            raise DlrunError(f"data.images: no such folder: {wanted}", code=Exit.DATA)
        tree, wanted = Folder(place), ""
    folder = _pictures_folder(tree, name, split, files, wanted.strip("/") + "/" if wanted else "")
    source = _source(tree, PurePosixPath(name).name, [joined(folder, file) for file in files])
    notes = [] if images else [f"pictures: {folder or tree.path.name} (guessed)"]
    return _annotations(source, content), notes


def _content(tree: Folder | Archive, name: str) -> dict[str, Any]:
    try:
        content = json.loads(tree.read(name))
    except (ValueError, RecursionError) as error:
        raise DlrunError(f"{name} cannot be read: {error}", code=Exit.DATA) from error
    for part in ("images", "annotations", "categories"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DlrunError(f"{name} is not in COCO's format: it has no list '{part}'", code=Exit.DATA)
    for part in ("images", "categories"):
        for index, entry in enumerate(content[part]):
            if not _is_id(entry.get("id")):
                what = "image" if part == "images" else "category"
                raise DlrunError(f"{name}, {what} {index}: its id is a list or an object", code=Exit.DATA)
    return content


def _is_id(given: object) -> bool:
    """Whether it can name something: no list, and no object."""
    return not isinstance(given, (list, dict))


def _file_name(name: str, index: int, image: dict) -> str:
    file = image.get("file_name")
    if not isinstance(file, str) or not file or leads_out(file):
        raise DlrunError(f"{name}, image {index}: file_name {file!r} is no path inside a folder", code=Exit.DATA)
    return str(PurePosixPath(file.replace("\\", "/")))


def _pictures_folder(tree: Folder | Archive, name: str, split: str, files: list[str], within: str) -> str:
    """The folder that has the first pictures: the one that was named or below it, else any, the likeliest first."""
    probes = files[:: -(-len(files) // _PROBES)]

    def likeliness(folder: str) -> tuple:
        present = sum(joined(folder, file) in tree.names for file in probes)
        is_of_split = any(meaning(part.rstrip("0123456789")) == split for part in folder.split("/"))
        return present, is_of_split, folder == parent(name), -len(folder), folder

    folders = {folder for file in tree.names for folder in _ancestors(file)}
    best = max((folder for folder in folders if f"{folder}/".startswith(within)), key=likeliness, default="")
    if not likeliness(best)[0]:
        raise DlrunError(
            f"{name}: where are its pictures? {probes[0]} is nowhere in {joined(tree.path.name, within)}",
            "name their folder: data.images=FOLDER",
            Exit.DATA,
        )
    return best


def _ancestors(name: str) -> list[str]:
    """Every folder above a file, the top ("") too."""
    return ["" if str(folder) == "." else str(folder) for folder in PurePosixPath(name).parents]


def _source(tree: Folder | Archive, name: str, paths: list[str]) -> Source:
    import pyarrow as pa

    table = pa.table({"image": pa.array(paths, pa.string())})
    if isinstance(tree, Archive):
        return Source(table, name, archive=tree)
    return Source(table, name, tree.path)


def _annotations(source: Source, content: dict[str, Any]) -> Annotations:
    ids = [image.get("id") for image in content["images"]]
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    if len(row_of) < len(ids):
        raise DlrunError(f"{source.name}: two images have the same id", code=Exit.DATA)
    categories = sorted(_categories(content), key=lambda category: _whole(category.get("id"), -1))
    names = tuple(str(category.get("name")) for category in categories)
    if len(set(names)) < len(names):
        raise DlrunError(f"{source.name}: two categories have the same name", code=Exit.DATA)
    code_of = {category.get("id"): code for code, category in enumerate(categories)}
    rows, boxes, codes, crowd, called = [], [], [], [], []
    said, stray = {}, {}
    for index, annotation in enumerate(content["annotations"]):
        what = f"annotation {annotation.get('id', index)}"
        image, category = annotation.get("image_id"), annotation.get("category_id")
        row = row_of.get(image) if _is_id(image) else None
        if row is None:
            stray[f"{source.name}, {what}"] = f"image {image!r} is not in the list of images"
            continue
        code = code_of.get(category, -1) if _is_id(category) else -1
        if code < 0:
            said[len(codes)] = f"category {category}"
        rows.append(row)
        boxes.append(_corners(annotation.get("bbox")))
        codes.append(code)
        crowd.append(bool(annotation.get("iscrowd")))
        called.append(what)
    sizes = [[_pixels(image.get("height")), _pixels(image.get("width"))] for image in content["images"]]
    return Annotations(
        source,
        "image",
        np.array(rows, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        Coded(names, np.array(codes, dtype=np.int64), declared=True),
        np.array(crowd, dtype=bool),
        called,
        np.array(sizes, dtype=np.int64),
        said,
        stray,
    )


def _categories(content: dict[str, Any]) -> list[dict]:
    """The categories, without one that only heads all others and has no box, as exporters put there."""
    categories = content["categories"]
    used = {each.get("category_id") for each in content["annotations"] if _is_id(each.get("category_id"))}

    def is_heading(category: dict) -> bool:
        others = [other.get("supercategory") for other in categories if other is not category]
        heads = bool(others) and all(above == category.get("name") for above in others)
        return heads and category.get("id") not in used

    return [category for category in categories if not is_heading(category)]


def _corners(given: object) -> list[float]:
    """Left, top, right, bottom of left, top, width, height; nan if it is not four numbers."""
    if not isinstance(given, list) or len(given) != 4 or not all(type(value) in (int, float) for value in given):
        return [float("nan")] * 4
    try:
        left, top, width, height = map(float, given)
    except OverflowError:
        return [float("nan")] * 4
    return [left, top, left + width, top + height]


def _whole(given: object, otherwise: int) -> int:
    return given if type(given) is int else otherwise


def _pixels(given: object) -> int:
    """A size; 0 where there is none that a picture may have."""
    return given if type(given) is int and 0 < given < 1 << 31 else 0

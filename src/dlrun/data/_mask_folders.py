"""Folders of pictures beside folders of their masks: a file and its mask have the same name but for the suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from dlrun.data._files import check_split_names, meaning
from dlrun.data._images import SUFFIXES
from dlrun.data._source import Source
from dlrun.data._tree import Folder, joined
from dlrun.errors import DlrunError, Exit, did_you_mean

_PICTURES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "annotations", "annotation", "annot", "labels", "label")
Pair = tuple[str, str]  # the folder of the pictures, and that of their masks


def find_pairs(root: Path) -> dict[str, Pair]:
    """The pairs of folders under root by name, none if it is laid out otherwise. Any of these:

    root/NAME/{images,masks}    root/{images,masks}/NAME    root/{images,masks} ("train")    root/{NAME,NAMEannot}
    """
    folders = _folders(root)
    if pair := _within("", folders):
        inner = set(_folders(root / pair[0])) & set(_folders(root / pair[1]))
        split = {name: (joined(pair[0], name), joined(pair[1], name)) for name in sorted(inner) if meaning(name)}
        return split or {"train": pair}
    found = {}
    for name in folders:
        pair = _within(name, _folders(root / name)) or _beside(name, folders)
        if pair and (meaning(name) or pair[0] != name):
            found[name] = pair
    return found


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _within(where: str, folders: list[str]) -> Pair | None:
    pictures = next((name for name in _PICTURES if name in folders), None)
    masks = next((name for name in _MASKS if name in folders), None)
    return (joined(where, pictures), joined(where, masks)) if pictures and masks else None


def _beside(name: str, folders: list[str]) -> Pair | None:
    beside = (name + mark + word for word in _MASKS for mark in ("", "_", "-"))
    return next(((name, other) for other in beside if other in folders), None)


def pair_sources(
    root: Path, pairs: Mapping[str, Pair], splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    """The rows of each split: columns "image" and "mask" of paths, and a sentence for what was guessed or left out."""
    chosen, notes = _chosen(pairs, splits)
    if needs_train and "train" not in chosen:
        raise DlrunError(
            f"data.path={root}: which folder has the training pictures? There are {', '.join(pairs)}",
            "say it: 'data.splits={train: NAME}'",
        )
    sources = {}
    for split, name in chosen.items():
        sources[split], remarks = _source(root, pairs[name])
        notes += remarks
    return sources, notes


def _chosen(pairs: Mapping[str, Pair], splits: Mapping[str, str] | None) -> tuple[dict[str, str], list[str]]:
    if wanted := {split: str(name) for split, name in (splits or {}).items() if name}:
        check_split_names(wanted)
        for split, name in wanted.items():
            if name not in pairs:
                raise DlrunError(f"data.splits.{split}: there is no folder '{name}'", did_you_mean(name, pairs))
        return wanted, []
    chosen: dict[str, str] = {}
    for name in pairs:
        if split := meaning(name):
            if split in chosen:
                raise DlrunError(
                    f"data.path: '{chosen[split]}' and '{name}' are both {split}",
                    f"say which is meant: 'data.splits={{train: train, {split}: {name}}}'",
                )
            chosen[split] = name
    if len(pairs) == 1 and not chosen:
        chosen = {"train": next(iter(pairs))}
    shown = ", ".join(f"{split} is {pairs[name][0]} and {pairs[name][1]}" for split, name in chosen.items())
    return chosen, [f"splits: {shown} (guessed)"]


def _source(root: Path, pair: Pair) -> tuple[Source, list[str]]:
    import pyarrow as pa

    pictures, masks = (_by_stem(root, folder) for folder in pair)
    if not pictures:
        raise DlrunError(f"{root / pair[0]}: no pictures; their names end in {', '.join(SUFFIXES)}", code=Exit.DATA)
    stems = sorted(pictures)
    columns = {"image": [pictures[stem] for stem in stems], "mask": [masks.get(stem) for stem in stems]}
    table = pa.table({name: pa.array(paths, pa.string()) for name, paths in columns.items()})
    spare = len(masks.keys() - pictures.keys())
    notes = [f"masks without a picture in {pair[0]}, passed over: {spare:,} of {pair[1]}"] if spare else []
    return Source(table, pair[0], root), notes


def _by_stem(root: Path, folder: str) -> dict[str, str]:
    """Paths relative to root by their name inside the folder without suffix."""
    names = [name for name in Folder(root / folder).names if name.lower().endswith(SUFFIXES)]
    found: dict[str, str] = {}
    for name in sorted(names):
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise DlrunError(f"{joined(folder, name)} and {found[stem]} have the same name", code=Exit.DATA)
        found[stem] = joined(folder, name)
    return found

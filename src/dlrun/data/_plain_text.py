"""Files of plain text: each a document, or two in two languages whose lines belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dlrun.data._files import check_split_names, existing, inner_word, is_table, meaning
from dlrun.data._source import Source
from dlrun.data._texts import content_of, decoded
from dlrun.errors import DlrunError, Exit, did_you_mean

_SUFFIXES = (".txt", ".text", ".md", ".raw", ".tokens")


def is_plain(path: str) -> bool:
    """Whether a path leads to files of plain text, and not to tables or to nothing on this machine."""
    place = Path(path).expanduser()
    if not path or not place.exists():
        return False
    if place.is_file():
        return not is_table(place)
    return not any(is_table(file) for file in place.rglob("*")) and bool(_plain_files(place))


def document_sources(path: str, splits: Mapping[str, str] | None, needs_train: bool) -> tuple[dict[str, Source], list]:
    """A column "text" with a row for each file of a split, and a sentence for what was guessed."""
    place = existing(path)
    if place.is_file():
        return {"train": _documents([place])}, []
    files = {str(file.relative_to(place)): file for file in _plain_files(place)}
    grouped, notes = _by_split(place, list(files), _wanted(splits), lambda name, pattern: Path(name).match(pattern))
    if needs_train and "train" not in grouped:
        if grouped:
            raise _no_train(place, list(files))
        grouped = {"train": list(files)}  # no name means a split
    return {split: _documents([files[name] for name in names]) for split, names in grouped.items()}, notes


def line_sources(
    path: str, source: str, target: str, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    """Two columns named after the suffixes of two files whose lines belong together (train.de, train.en).

    Raises: DlrunError that says which suffixes there are, or which two files differ in length.
    """
    place = existing(path)
    stems = {suffix: _stems(place, suffix) for suffix in (source, target)}
    for setting, suffix in (("source", source), ("target", target)):
        if not stems[suffix]:
            known = {Path(file.name.removesuffix(".gz")).suffix[1:] for file in place.iterdir() if file.is_file()}
            raise DlrunError(
                f"data.{setting}: no file of {place} ends in .{suffix}", did_you_mean(suffix, known - {""})
            )
    both = sorted(stems[source].keys() & stems[target].keys())
    grouped, notes = _by_split(place, both, _wanted(splits), lambda name, stem: name == stem)
    if needs_train and "train" not in grouped:
        raise _no_train(place, both)
    found = {}
    for split, names in grouped.items():
        pairs = [(stems[source][name], stems[target][name]) for name in names]
        found[split] = _lines(pairs, (source, target), ", ".join(names))
    return found, notes


def are_lines(path: str) -> bool:
    """Whether a path leads to a folder without tables, where files have the same name but for the last suffix."""
    place = Path(path).expanduser()
    if not path or not place.is_dir() or any(is_table(file) for file in place.rglob("*")):
        return False
    stems = [Path(file.name.removesuffix(".gz")).stem for file in place.iterdir() if file.is_file()]
    return len(set(stems)) < len(stems)


def _wanted(splits: Mapping[str, str] | None) -> dict[str, str]:
    wanted = {split: str(name) for split, name in (splits or {}).items() if name}
    check_split_names(wanted)
    return wanted


def _by_split(
    folder: Path, names: list[str], wanted: dict[str, str], fits: Callable[[str, str], bool]
) -> tuple[dict[str, list[str]], list[str]]:
    """The names of each split: as said, else as they say themselves (train.txt, wiki.train.tokens, train/1.txt)."""
    if wanted:
        found = {split: [name for name in names if fits(name, pattern)] for split, pattern in wanted.items()}
        if missing := [split for split in wanted if not found[split]]:
            raise DlrunError(
                f"data.splits.{missing[0]}: nothing in {folder} is called '{wanted[missing[0]]}'",
                did_you_mean(wanted[missing[0]], names),
            )
        return found, []
    found = {}
    for name in names:
        parts = (Path(name).parts[0], Path(name).name.partition(".")[0], Path(name).name)
        split = next((split for read in (meaning, inner_word) for part in parts if (split := read(part))), None)
        if split is not None:
            found.setdefault(split, []).append(name)
    said = ", ".join(f"{split} is {' and '.join(names[:3])}" for split, names in found.items())
    return found, [f"splits: {said} (guessed)"] if found else []


def _no_train(folder: Path, names: list[str]) -> DlrunError:
    return DlrunError(
        f"data.path: which of the files in {folder} are for training? It has {', '.join(names[:8])}",
        "say it: 'data.splits={train: NAME}'",
    )


def _plain_files(folder: Path) -> list[Path]:
    files = (
        file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "README", "LICENSE"))
    )
    return sorted(file for file in files if Path(file.name.lower().removesuffix(".gz")).suffix in _SUFFIXES)


def _stems(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a suffix, by their name without it."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    ends = f".{suffix}"
    plain = {file: file.name.removesuffix(".gz") for file in files}
    return {name.removesuffix(ends): file for file, name in plain.items() if name.endswith(ends)}


def _documents(files: list[Path]) -> Source:
    import pyarrow as pa

    texts = [decoded(content_of(file), file.name) for file in files]
    if not any(text.strip() for text in texts):
        raise DlrunError(f"{files[0].name}: there is no text in it", code=Exit.DATA)
    name = files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return Source(pa.table({"text": pa.array(texts, pa.large_string())}), name)


def _lines(pairs: list[tuple[Path, Path]], names: tuple[str, str], stem: str) -> Source:
    import pyarrow as pa

    columns: dict[str, list[str]] = {name: [] for name in names}
    for files in pairs:
        lines = [decoded(content_of(file), file.name).removesuffix("\n").split("\n") for file in files]
        if len(lines[0]) != len(lines[1]):
            raise DlrunError(
                f"{files[0].name} has {len(lines[0]):,} lines and {files[1].name} has {len(lines[1]):,}",
                "line for line they must say the same",
                Exit.DATA,
            )
        for name, said in zip(names, lines, strict=True):
            columns[name] += said
    return Source(pa.table({name: pa.array(said, pa.large_string()) for name, said in columns.items()}), stem)

"""The splits a data set lacks: drawn (seeded, stratified by label, to the row) or cut out as blocks of rows."""

# N rows, K classes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dlrun.errors import DlrunError, Exit
from dlrun.randomness import permutation


@dataclass(frozen=True)
class HoldOut:
    """How much of the training rows a missing split takes, and the seed that chooses them.

    A size, where given, wins over its fraction; a fraction or size of 0 makes no such split.
    train_size: of what remains, keep this many rows (None: all).
    blocks: cut the rows, in their order, into this many equal blocks; valid_blocks and test_blocks are the numbers
    (from 0) of those that are held out, and fractions and sizes do not count.
    """

    seed: int
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    valid_size: int | None = None
    test_size: int | None = None
    train_size: int | None = None
    blocks: int | None = None
    valid_blocks: Sequence[int] | None = None
    test_blocks: Sequence[int] | None = None

    def rows(self, split: str, num_rows: int) -> int:
        """Rows the split takes out of num_rows."""
        fraction = getattr(self, f"{split}_fraction")
        size = getattr(self, f"{split}_size")
        if not 0 <= fraction < 1:
            raise DlrunError(f"data.{split}_fraction: {fraction} is not in [0, 1)")
        if size is None:
            return max(1, round(fraction * num_rows)) if fraction else 0
        if not 0 <= size < num_rows:
            raise DlrunError(f"data.{split}_size: {size} is not between 0 and the {num_rows:,} rows there are")
        return size


def divide(
    num_rows: int, labels_N: np.ndarray | None, given: set[str], hold_out: HoldOut
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Positions of the training rows and of the splits made out of them, and a sentence for each made.

    labels_N: class indices to stratify by, where the rows have them.
    given: names of the splits that exist already, "train" among them.
    """
    codes_N = np.zeros(num_rows, dtype=np.int64) if labels_N is None else labels_N
    if hold_out.blocks is None:
        parts, notes = _drawn(codes_N, given, hold_out, "" if labels_N is None else "stratified by label, ")
    else:
        parts, notes = _blocks(num_rows, given, hold_out)
    if hold_out.train_size is not None:
        parts["train"], note = _fewer(codes_N, parts["train"], hold_out)
        notes.append(note)
    return parts, notes


def _drawn(
    codes_N: np.ndarray, given: set[str], hold_out: HoldOut, how: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits of rows drawn at random."""
    for setting in ("valid_blocks", "test_blocks"):
        if getattr(hold_out, setting):
            raise DlrunError(f"data.{setting} is set, and data.blocks is not", "say into how many: data.blocks=10")
    wanted = {name: hold_out.rows(name, len(codes_N)) for name in ("test", "valid") if name not in given}
    sizes = {name: size for name, size in wanted.items() if size}
    notes = [
        f"{name}: {size:,} rows held out of the {len(codes_N):,} of train ({how}seed {hold_out.seed})"
        for name, size in sizes.items()
    ]
    return stratified(codes_N, sizes, hold_out.seed), notes


def _blocks(num_rows: int, given: set[str], hold_out: HoldOut) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits of whole blocks of rows in their order, such as stretches of time, whose rows are too alike to part."""
    count = hold_out.blocks or 0
    if not 2 <= count <= num_rows:
        raise DlrunError(f"data.blocks: {count} is not between 2 and the {num_rows:,} rows there are")
    owner: dict[int, str] = {}
    for name in ("test", "valid"):
        chosen = list(getattr(hold_out, f"{name}_blocks") or ())
        if getattr(hold_out, f"{name}_size") is not None:
            raise DlrunError(
                f"data.{name}_size does not go with data.blocks", f"name the blocks: 'data.{name}_blocks=[{count - 1}]'"
            )
        if chosen and name in given:
            raise DlrunError(f"data.{name}_blocks: the data has a {name} split already", f"data.{name}_blocks=[]")
        for block in chosen:
            if type(block) is not int or not 0 <= block < count:
                raise DlrunError(f"data.{name}_blocks: {block!r} is none of the blocks 0..{count - 1}")
            if block in owner:
                raise DlrunError(f"data.{name}_blocks: block {block} is held out already, for {owner[block]}")
            owner[block] = name
    if len(owner) == count:
        raise DlrunError(f"data.blocks: all {count} blocks are held out, and none is left to train on")
    ends = [block * num_rows // count for block in range(count + 1)]
    rows: dict[str, list[np.ndarray]] = {}
    for block in range(count):
        rows.setdefault(owner.get(block, "train"), []).append(np.arange(ends[block], ends[block + 1]))
    parts = {name: np.concatenate(blocks) for name, blocks in rows.items()}
    notes = []
    for name in (name for name in ("test", "valid") if name in parts):
        mine = [block for block in sorted(owner) if owner[block] == name]
        which = f"block{'s' if len(mine) > 1 else ''} {' and '.join(map(str, mine))}"
        notes.append(f"{name}: {len(parts[name]):,} rows, {which} of {count} equal ones in the order of the rows")
    return parts, notes


def stratified(labels_N: np.ndarray, sizes: Mapping[str, int], seed: int, keep: int = 1) -> dict[str, np.ndarray]:
    """Disjoint, ascending positions for each name, and the rest as "train".

    Every split gets its share of each class to within a row, and train keeps `keep` rows of each class.
    Raises: DlrunError where there are too few rows for that.
    """
    order = permutation(len(labels_N), seed, "split").numpy()
    by_class = order[np.argsort(labels_N[order], kind="stable")]
    counts_K = np.bincount(labels_N)
    starts_K = np.cumsum(counts_K) - counts_K
    used_K = np.zeros_like(counts_K)
    room_K = np.maximum(counts_K - keep, 0)
    parts: dict[str, np.ndarray] = {}
    for name, size in sizes.items():
        take_K = _quotas(counts_K, room_K - used_K, size, name)
        parts[name] = _slices(by_class, starts_K + used_K, take_K)
        used_K = used_K + take_K
    return parts | {"train": _slices(by_class, starts_K + used_K, counts_K - used_K)}


def _quotas(counts_K: np.ndarray, room_K: np.ndarray, size: int, name: str) -> np.ndarray:
    """Rows of each class that add up to size: shares by largest remainder, within the room there is."""
    if size > room_K.sum():
        left = "one of each class" if len(counts_K) > 1 else "one"
        raise DlrunError(
            f"a {name} split of {size:,} rows cannot be made: {int(room_K.sum()):,} rows can be spared "
            f"and leave {left} to train on",
            f"use data.{name}_size={max(0, int(room_K.sum()) // 2)} or data.{name}_fraction=0",
            Exit.DATA,
        )
    exact_K = counts_K * (size / counts_K.sum())
    take_K = np.minimum(np.floor(exact_K).astype(np.int64), room_K)
    while (missing := size - int(take_K.sum())) > 0:
        want_K = np.where(take_K < room_K, exact_K - take_K, -np.inf)
        first = np.argsort(-want_K, kind="stable")[: min(missing, int((take_K < room_K).sum()))]
        take_K[first] += 1
    return take_K


def _slices(by_class: np.ndarray, starts_K: np.ndarray, sizes_K: np.ndarray) -> np.ndarray:
    parts = [by_class[start : start + size] for start, size in zip(starts_K, sizes_K, strict=True)]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def _fewer(labels_N: np.ndarray, train: np.ndarray, hold_out: HoldOut) -> tuple[np.ndarray, str]:
    """A stratified part of the training rows, and a sentence that says so."""
    size = hold_out.train_size or 0
    if not 0 < size <= len(train):
        raise DlrunError(f"data.train_size: {size:,} is not between 1 and the {len(train):,} training rows there are")
    note = f"train: {size:,} of its {len(train):,} rows are used (data.train_size)"
    if size == len(train):
        return train, note
    return train[stratified(labels_N[train], {"part": size}, hold_out.seed, keep=0)["part"]], note

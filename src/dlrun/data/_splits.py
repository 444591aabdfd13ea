"""The splits a data set lacks: seeded, stratified by label, and as many rows as asked for, to the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlrun.errors import DlrunError, Exit
from dlrun.randomness import permutation


@dataclass(frozen=True)
class HoldOut:
    """How much of the training rows a missing split takes, and the seed that chooses them.

    A size, where given, wins over its fraction; a fraction or size of 0 makes no such split.
    train_size: of what remains, keep this many rows (None: all).
    """

    seed: int
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    valid_size: int | None = None
    test_size: int | None = None
    train_size: int | None = None

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


def divide(labels_N: np.ndarray, given: set[str], hold_out: HoldOut) -> tuple[dict[str, np.ndarray], list[str]]:
    """Positions of the training rows and of the splits made out of them, and a sentence for each made.

    given: names of the splits that exist already, "train" among them.
    """
    wanted = {name: hold_out.rows(name, len(labels_N)) for name in ("test", "valid") if name not in given}
    sizes = {name: size for name, size in wanted.items() if size}
    parts = stratified(labels_N, sizes, hold_out.seed)
    notes = [
        f"{name}: {size:,} rows held out of the {len(labels_N):,} of train (stratified by label, seed {hold_out.seed})"
        for name, size in sizes.items()
    ]
    if hold_out.train_size is not None:
        parts["train"], note = _fewer(labels_N, parts["train"], hold_out)
        notes.append(note)
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
        raise DlrunError(
            f"a {name} split of {size:,} rows cannot be made: {int(room_K.sum()):,} rows can be spared "
            f"and leave one of each class to train on",
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

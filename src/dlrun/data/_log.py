"""Interactions by number: users and items as ids from 1, every user's in order of time; which are trained on."""

# N interactions, U users, I items

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlrun.data._bad import BadRows
from dlrun.data._interactions import Interactions
from dlrun.data._mixed_cells import Words
from dlrun.data._splits import HoldOut, stratified
from dlrun.errors import DlrunError, Exit

IDS = "ids.json"  # among the files of a spec: the names of users and items; the first has id 1
TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class Ids:
    """Names of users and items in the order of their ids, which begin at 1. Items: the most frequent first."""

    users: tuple[str, ...]
    items: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """JSON that `from_bytes` turns back."""
        return json.dumps({"users": self.users, "items": self.items}, ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(content: bytes) -> Ids:
        """The inverse of `to_bytes`."""
        stored = json.loads(content)
        return Ids(tuple(stored["users"]), tuple(stored["items"]))


@dataclass(frozen=True)
class Log:
    """By user, and of a user by time; all int64 [N] but rating, float32 [N].

    row: where each was in the file.   starts: int64 [U + 2], where each user's begin; of user 0 there is nothing.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray | None
    time: np.ndarray | None
    row: np.ndarray
    starts: np.ndarray
    ids: Ids

    def __len__(self) -> int:
        return len(self.user)


def kept_rows(found: Interactions, min_rating: float | None, min_user: int, min_item: int) -> np.ndarray:
    """Numbers of the good rows whose user and item have enough of them, until that holds for all."""
    is_kept = found.is_good.copy()
    if min_rating is not None:
        if found.ratings is None:
            raise DlrunError(f"data.min_rating is set, and {found.name} has no column of ratings")
        is_kept &= np.nan_to_num(found.ratings, nan=-np.inf) >= min_rating
    rows = np.flatnonzero(is_kept)
    while len(rows):
        users, items = found.users.codes[rows], found.items.codes[rows]
        enough = (np.bincount(users)[users] >= min_user) & (np.bincount(items)[items] >= min_item)
        if enough.all():
            return rows
        rows = rows[enough]
    raise DlrunError(
        f"{found.name}: no row is left: no user has {min_user} and no item has {min_item} of them",
        "lower data.min_user_count and data.min_item_count",
        Exit.DATA,
    )


def make_ids(found: Interactions, rows: np.ndarray) -> Ids:
    """Ids of the users and items of these rows."""
    users = found.users.codes[rows]
    first = np.unique(users, return_index=True)
    in_order = first[0][np.argsort(first[1], kind="stable")]
    counts = np.bincount(found.items.codes[rows], minlength=len(found.items.names))
    there = np.flatnonzero(counts)
    by_count = there[np.lexsort((there, -counts[there]))]
    return Ids(tuple(found.users.names[code] for code in in_order), tuple(found.items.names[code] for code in by_count))


def make_log(found: Interactions, rows: np.ndarray, ids: Ids, bad: BadRows) -> Log:
    """The log of these rows. A user or an item without an id is a bad row."""
    users, items = _numbered(found.users, ids.users)[rows], _numbered(found.items, ids.items)[rows]
    is_known = (users > 0) & (items > 0)
    for at in np.flatnonzero(~is_known).tolist():
        words, what = (found.users, "user") if users[at] == 0 else (found.items, "item")
        name = words.names[words.codes[rows[at]]]
        bad.report(found.place(int(rows[at])), f"{what} '{name}' is not one the run was trained with")
    users, items, rows = users[is_known], items[is_known], rows[is_known]
    if not len(rows):
        raise DlrunError(f"{found.name}: no row has a user and an item the run was trained with", code=Exit.DATA)
    times = None if found.times is None else found.times[rows]
    order = np.lexsort((rows, users) if times is None else (rows, times, users))
    starts = np.searchsorted(users[order], np.arange(len(ids.users) + 2))
    ratings = None if found.ratings is None else found.ratings[rows][order].astype(np.float32)
    return Log(users[order], items[order], ratings, None if times is None else times[order], rows[order], starts, ids)


def _numbered(words: Words, names: tuple[str, ...]) -> np.ndarray:
    """int64 [rows of the file]: ids, 0 for what has none."""
    place = {name: index for index, name in enumerate(names, start=1)}
    table = np.array([*(place.get(name, 0) for name in words.names), 0], dtype=np.int64)
    return table[words.codes]


def assign(
    log: Log, how: Literal["leave_one_out", "temporal", "random"], hold_out: HoldOut
) -> tuple[np.ndarray, list[str]]:
    """int8 [N], TRAIN, VALID or TEST of each interaction, and a sentence that says how.

    Within leave_one_out and temporal, a user's training interactions come before the others.
    """
    owner = np.zeros(len(log), dtype=np.int8)
    if how == "leave_one_out":
        counts, ends = np.diff(log.starts), log.starts[1:]
        long = counts >= 3
        owner[ends[long] - 1], owner[ends[long] - 2] = TEST, VALID
        short = int(((counts > 0) & ~long).sum())
        by = " by the order of the rows, for lack of times," if log.time is None else ""
        note = f"splits: of every user the last item{by} is for test, the one before it for valid"
        return owner, [note + (f"; {short:,} with fewer than 3 are trained on only" if short else "")]
    sizes = {name: hold_out.rows(name, len(log)) for name in ("test", "valid")}
    if how == "random":
        for name, rows in stratified(np.zeros(len(log), dtype=np.int64), sizes, hold_out.seed).items():
            owner[rows] = {"train": TRAIN, "valid": VALID, "test": TEST}[name]
        return owner, [
            f"splits: drawn at random, {sizes['valid']:,} valid, {sizes['test']:,} test (seed {hold_out.seed})"
        ]
    order = np.argsort(log.row if log.time is None else log.time, kind="stable")
    last = len(log) - sizes["test"]
    owner[order[last:]], owner[order[last - sizes["valid"] : last]] = TEST, VALID
    # Equal times may put a user's later row before an earlier one: what follows a row held out is held out too.
    _ascending(owner, log.starts)
    by = "rows, for lack of times" if log.time is None else "time"
    return owner, [f"splits: by {by}, the last {sizes['test']:,} interactions for test, {sizes['valid']:,} for valid"]


def _ascending(owner: np.ndarray, starts: np.ndarray) -> None:
    """Let no user's owner fall from one interaction to the next, in place."""
    falls = np.flatnonzero(np.diff(owner) < 0) + 1
    inside = falls[~np.isin(falls, starts)]
    for user in np.unique(np.searchsorted(starts, inside, side="right") - 1).tolist():
        part = slice(starts[user], starts[user + 1])
        owner[part] = np.maximum.accumulate(owner[part])

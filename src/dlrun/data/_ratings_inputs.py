"""The input pipeline of a run on ratings: names of users, histories and items to their ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch, DataSpec, Row
from dlrun.data._log import IDS, Ids
from dlrun.data._mixed_cells import as_word
from dlrun.errors import DlrunError, Exit, did_you_mean

LOG = "interactions.safetensors"  # among the files of a spec


class RatingsInputs:
    """New rows: a user the run knows, or the history of anybody; for a rating, a user and an item."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.user_column, self.item_column = [*spec.assets["columns"], "item"][:2]

    @cached_property
    def ids(self) -> Ids:
        return Ids.from_bytes(self.spec.files[IDS])

    @cached_property
    def _users(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids.users, start=1)}

    @cached_property
    def _items(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids.items, start=1)}

    @cached_property
    def _log(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return load(self.spec.files[LOG])

    def encode(self, rows: Sequence[Row]) -> Batch:
        """ "user" int64 [B], "history" int64 [B, T], and "seen" int64 [B, S], or "candidates" [B, 1] for a rating.

        Raises: DlrunError naming the row with an unknown user or item, or without a history.
        """
        if self.spec.target == "target":
            users = [self._user(row, index) for index, row in enumerate(rows)]
            items = [[self._id(self._items, "item", row, self.item_column, index)] for index, row in enumerate(rows)]
            none = torch.zeros(len(rows), 0, dtype=torch.int64)
            found = {"user": torch.tensor(users), "history": none, "candidates": torch.tensor(items)}
            return {"id": torch.arange(len(rows)), **found}
        users, seen = zip(*(self._known(row, index) for index, row in enumerate(rows)), strict=True)
        most = self.spec.sizes.get("history", 0)
        return {
            "id": torch.arange(len(rows)),
            "user": torch.tensor(users),
            "history": _padded([items[len(items) - min(len(items), most) :] for items in seen], in_front=True),
            "seen": _padded(list(seen), in_front=False),
        }

    def prepare(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch

    def _known(self, row: Row, index: int) -> tuple[int, np.ndarray]:
        """The id of a row's user, 0 of one known by history alone, and all items they had."""
        if row.get("history") is None:
            user = self._user(row, index)
            starts = self._log["starts"]
            items = self._log["item"][starts[user] : starts[user + 1]].astype(np.int64)
            return user, self._some(items, index)
        if "history" not in self.spec.sizes:
            raise DlrunError(
                f"row {index}: the run learned from users, not from histories", f"give it '{self.user_column}'"
            )
        given = row["history"]
        names = given.split() if isinstance(given, str) else list(given)
        named = [self._id(self._items, "item", {"history": name}, "history", index) for name in names]
        user = self._users.get(as_word(row.get(self.user_column), frozenset()) or "", 0)
        return user, self._some(np.array(named, dtype=np.int64), index)

    def _some(self, items: np.ndarray, index: int) -> np.ndarray:
        if not len(items):
            raise DlrunError(f"row {index}: a user without history, for whom nothing can be said", code=Exit.DATA)
        return items

    def _user(self, row: Row, index: int) -> int:
        return self._id(self._users, "user", row, self.user_column, index)

    def _id(self, known: dict[str, int], what: str, row: Row, column: str, index: int) -> int:
        if column not in row:
            raise DlrunError(f"row {index} has no '{column}'", did_you_mean(column, map(str, row)))
        name = as_word(row[column], frozenset())
        if name is None or name not in known:
            said = "is empty" if name is None else f"'{name}' is not one the run was trained with"
            raise DlrunError(f"row {index}: {what} {said}", code=Exit.DATA)
        return known[name]


def _padded(rows: list[np.ndarray], in_front: bool) -> Tensor:
    """int64 [B, longest], filled up with zeros."""
    longest = max(len(items) for items in rows)
    padded = np.zeros((len(rows), longest), dtype=np.int64)
    for place, items in zip(padded, rows, strict=True):
        if len(items):
            place[longest - len(items) if in_front else 0 :][: len(items)] = items
    return torch.from_numpy(padded)

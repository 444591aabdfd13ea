"""Batches of interactions: pairs, histories with what came after each of their items, and what is to be ranked."""

# B batch, T longest history of a batch, C candidates, S most items a user of a batch has seen, I items

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import NO_TARGET, Batch
from dlrun.data._log import TRAIN, Log
from dlrun.errors import DlrunError, Exit
from dlrun.randomness import key, uniform


class Before:
    """What users had before a place of the log: stretches of its items that end there."""

    def __init__(self, log: Log) -> None:
        self.item = torch.from_numpy(log.item)
        self.starts = torch.from_numpy(log.starts)
        self.user = torch.from_numpy(log.user)

    def history(self, end_B: Tensor, most: int, user_B: Tensor) -> Tensor:
        """int64 [B, T]: the last items before these places, the latest at the right, zeros in front."""
        lengths_B = (end_B - self.starts[user_B]).clamp(max=most)
        longest = int(lengths_B.max()) if len(end_B) else 0
        back_T = torch.arange(longest, 0, -1)
        at_BT = (end_B[:, None] - back_T).clamp(min=0)
        return self.item[at_BT].masked_fill_(back_T > lengths_B[:, None], 0)

    def seen(self, start_B: Tensor, end_B: Tensor) -> Tensor:
        """int64 [B, S]: all items from one place up to another, zeros after them."""
        lengths_B1 = (end_B - start_B)[:, None]
        on_S = torch.arange(int(lengths_B1.max()) if len(end_B) else 0)
        at_BS = (start_B[:, None] + on_S).clamp_(max=len(self.item) - 1)
        return self.item[at_BS].masked_fill_(on_S >= lengths_B1, 0)


class PairSplit:
    """Training interactions one by one: "user" [B], "history" [B, 0], "targets" [B, 1], "seen" [B, S]."""

    in_memory = True

    def __init__(self, log: Log, owner: np.ndarray) -> None:
        self.before = Before(log)
        self.at_N = torch.from_numpy(np.flatnonzero(owner == TRAIN))
        counts = np.bincount(log.user[owner == TRAIN], minlength=len(log.starts) - 1)
        self.trained_U = torch.from_numpy(counts)  # a user's training interactions come first

    def __len__(self) -> int:
        return len(self.at_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """These interactions."""
        at_B = self.at_N[rows_B]
        user_B = self.before.user[at_B]
        start_B = self.before.starts[user_B]
        return {
            "id": at_B,
            "user": user_B,
            "history": torch.zeros(len(at_B), 0, dtype=torch.int64),
            "targets": self.before.item[at_B][:, None],
            "seen": self.before.seen(start_B, start_B + self.trained_U[user_B]),
        }


class WindowSplit:
    """Stretches of users' training items: "user" [B], "history" [B, T], "targets" [B, T], what came next at each place.

    A user with more than `most` + 1 items has several, from the latest backward; NO_TARGET stands at padding.
    """

    in_memory = True

    def __init__(self, log: Log, owner: np.ndarray, most: int) -> None:
        self.before, self.most = Before(log), most
        counts = np.bincount(log.user[owner == TRAIN], minlength=len(log.starts) - 1)
        users = np.flatnonzero(counts >= 2)
        if not len(users):
            raise DlrunError(
                "data.history: no user has two training items, so none comes after another",
                "data.history=0 learns from single interactions",
                Exit.DATA,
            )
        # A window ends before its last target, and as many places hold a target each.
        pieces = -(-(counts[users] - 1) // most)
        piece_N = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        user_N = np.repeat(users, pieces)
        end_N = log.starts[user_N] + counts[user_N] - 1 - piece_N * most
        self.user_N, self.end_N = torch.from_numpy(user_N), torch.from_numpy(end_N)
        self.lengths = (self.end_N - self.before.starts[self.user_N]).clamp(max=most)

    def __len__(self) -> int:
        return len(self.end_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """These windows."""
        end_B, user_B, lengths_B1 = self.end_N[rows_B], self.user_N[rows_B], self.lengths[rows_B, None]
        longest = int(lengths_B1.max()) if len(rows_B) else 0
        back_T = torch.arange(longest, 0, -1)
        is_padding_BT = back_T > lengths_B1
        at_BT = (end_B[:, None] - back_T).clamp_(min=0)
        return {
            "id": rows_B.clone(),
            "user": user_B,
            "history": self.before.item[at_BT].masked_fill_(is_padding_BT, 0),
            "targets": self.before.item[at_BT + 1].masked_fill_(is_padding_BT, NO_TARGET),
        }


class TargetSplit:
    """Interactions held out, to be ranked among others: "user" [B], "history" [B, T], "item" [B], what it was,
    "candidates" [B, C], that item and others the user never had, and "seen" [B, S], what the user had before."""

    in_memory = True

    def __init__(self, log: Log, at_N: np.ndarray, most: int, negatives_NC: np.ndarray) -> None:
        self.before, self.most = Before(log), most
        self.at_N, self.negatives_NC = torch.from_numpy(at_N), torch.from_numpy(negatives_NC)
        self.lengths = self.at_N - self.before.starts[self.before.user[self.at_N]]

    def __len__(self) -> int:
        return len(self.at_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """These interactions."""
        at_B = self.at_N[rows_B]
        user_B, item_B = self.before.user[at_B], self.before.item[at_B]
        return {
            "id": at_B,
            "user": user_B,
            "history": self.before.history(at_B, self.most, user_B),
            "item": item_B,
            "candidates": torch.cat([item_B[:, None], self.negatives_NC[rows_B].long()], 1),
            "seen": self.before.seen(self.before.starts[user_B], at_B),
        }


class RatedSplit:
    """Interactions with their rating: "user" [B], "history" [B, 0], "candidates" [B, 1], the item, "target" [B, 1]."""

    in_memory = True

    def __init__(self, log: Log, at_N: np.ndarray) -> None:
        assert log.rating is not None
        self.at_N, self.rating = torch.from_numpy(at_N), torch.from_numpy(log.rating)
        self.user, self.item = torch.from_numpy(log.user), torch.from_numpy(log.item)

    def __len__(self) -> int:
        return len(self.at_N)

    def gather(self, rows_B: Tensor) -> Batch:
        """These interactions."""
        at_B = self.at_N[rows_B]
        return {
            "id": at_B,
            "user": self.user[at_B],
            "history": torch.zeros(len(at_B), 0, dtype=torch.int64),
            "candidates": self.item[at_B][:, None],
            "target": self.rating[at_B][:, None],
        }


def sampled_negatives(log: Log, at_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """int32 [N, count]: for each of these places of the log, items its user never had; drawn with replacement, and the
    same for the same seed. Raises: DlrunError for a user who had every item."""
    num_items = len(log.ids.items)
    # What a user had, as sorted numbers that a drawn one is looked up in.
    had = np.unique(log.user * (num_items + 1) + log.item)
    users = log.user[at_N]
    full = np.bincount(had // (num_items + 1), minlength=len(log.starts) - 1)[users] >= num_items
    if count and full.any():
        name = log.ids.users[users[full][0] - 1]
        raise DlrunError(f"data.negatives: user '{name}' had every one of the {num_items:,} items", code=Exit.DATA)
    drawn = np.zeros((len(at_N), count), dtype=np.int32)
    left_row, left_column = (side.reshape(-1) for side in np.indices(drawn.shape))
    attempt = 0
    while len(left_row):
        counters = torch.from_numpy(at_N[left_row] * count + left_column)
        share = uniform(counters, key("negatives", seed, attempt)).numpy().astype(np.float64)
        items = 1 + np.minimum((share * num_items).astype(np.int64), num_items - 1)
        drawn[left_row, left_column] = items
        wanted = users[left_row] * (num_items + 1) + items
        place = np.minimum(np.searchsorted(had, wanted), len(had) - 1)
        is_had = had[place] == wanted
        left_row, left_column, attempt = left_row[is_had], left_column[is_had], attempt + 1
    return drawn

"""From interactions to a Dataset: ids, splits, features, and what must be known to recommend later."""

# N interactions, U users, I items

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Split
from dlrun.data._bad import BadRows
from dlrun.data._interactions import Interactions
from dlrun.data._log import IDS, TEST, TRAIN, VALID, Ids, Log, assign, kept_rows, make_ids, make_log
from dlrun.data._ratings_features import FEATURES, feature_tensors
from dlrun.data._ratings_inputs import LOG, RatingsInputs
from dlrun.data._ratings_splits import PairSplit, RatedSplit, TargetSplit, WindowSplit, sampled_negatives
from dlrun.data._splits import HoldOut
from dlrun.errors import DlrunError, Exit
from dlrun.randomness import permutation


@dataclass(frozen=True)
class Settings:
    """What a user may set of ratings; see `ratings.build`."""

    feedback: Literal["implicit", "explicit"]
    split: Literal["auto", "leave_one_out", "temporal", "random"]
    hold_out: HoldOut
    bad: BadRows
    history: int = 0
    negatives: int = 100
    min_rating: float | None = None
    min_user_count: int = 1
    min_item_count: int = 1
    valid_users: int | None = None
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()

    @property
    def how(self) -> Literal["leave_one_out", "temporal", "random"]:
        """The way of splitting."""
        if self.split != "auto":
            return self.split
        return "random" if self.feedback == "explicit" else "leave_one_out"


def check(settings: Settings) -> None:
    """Raises: DlrunError for settings that do not go together, or are out of range."""
    if settings.history < 0 or settings.negatives < 1:
        name = "history" if settings.history < 0 else "negatives"
        raise DlrunError(f"data.{name}: {getattr(settings, name)} is not at least {0 if name == 'history' else 1}")
    if min(settings.min_user_count, settings.min_item_count) < 1:
        raise DlrunError("data.min_user_count and data.min_item_count are at least 1")
    if settings.feedback == "explicit" and settings.history:
        raise DlrunError("data.history goes with data.feedback=implicit; a rating is predicted from user and item")
    if settings.feedback == "implicit" and settings.how == "random":
        raise DlrunError(
            "data.split=random goes with data.feedback=explicit: an item is ranked by what came before it",
            "data.split=leave_one_out or temporal",
        )


def assemble(found: Interactions, settings: Settings, known: DataSpec | None, notes: list[str]) -> Dataset:
    """The Dataset of these interactions. notes: what was said so far."""
    rows = kept_rows(found, settings.min_rating, settings.min_user_count, settings.min_item_count)
    ids = make_ids(found, rows) if known is None else Ids.from_bytes(known.files[IDS])
    log = make_log(found, rows, ids, settings.bad)
    owner, made = assign(log, settings.how, settings.hold_out)
    said = f"{len(log):,} interactions of {len(ids.users):,} users with {len(ids.items):,} items"
    if (left := len(found.is_good) - len(log)) > 0:
        said += f"; {left:,} rows left out"
    spec = known or _spec(found, rows, log, owner, settings)
    splits, dropped = (_rated if settings.feedback == "explicit" else _ranked)(log, owner, settings)
    return Dataset(
        spec, splits, RatingsInputs(spec), (*notes, said, *made, *dropped, *settings.bad.notes()), _digest(log, owner)
    )


def _rated(log: Log, owner: np.ndarray, settings: Settings) -> tuple[dict[str, Split], list[str]]:
    names = {"train": TRAIN, "valid": VALID, "test": TEST}
    parts = {name: np.flatnonzero(owner == code) for name, code in names.items()}
    return {name: RatedSplit(log, at) for name, at in parts.items() if len(at)}, []


def _ranked(log: Log, owner: np.ndarray, settings: Settings) -> tuple[dict[str, Split], list[str]]:
    train = WindowSplit(log, owner, settings.history) if settings.history else PairSplit(log, owner)
    splits: dict[str, Split] = {"train": train}
    notes = []
    has_history = np.zeros(len(log.starts), dtype=bool)
    has_history[log.user[owner == TRAIN]] = True
    for name, code in (("valid", VALID), ("test", TEST)):
        all_at = np.flatnonzero(owner == code)
        at_N = all_at[has_history[log.user[all_at]]]
        if new := len(all_at) - len(at_N):
            notes.append(f"{name}: {new:,} interactions of users without training items are left out")
        if name == "valid" and settings.valid_users is not None and settings.valid_users < len(at_N):
            chosen = permutation(len(at_N), settings.hold_out.seed, "valid users")[: settings.valid_users]
            at_N = at_N[np.sort(chosen.numpy())]
        if len(at_N):
            negatives = sampled_negatives(log, at_N, settings.negatives, settings.hold_out.seed)
            splits[name] = TargetSplit(log, at_N, settings.history, negatives)
    if len(splits) == 1:
        notes.append("nobody has enough items for one to be held out")
    return splits, notes


def _spec(found: Interactions, rows: np.ndarray, log: Log, owner: np.ndarray, settings: Settings) -> DataSpec:
    """What a model must know, and what a later command needs to recommend."""
    if not (owner == TRAIN).any():
        raise DlrunError(f"{found.name}: no interaction is left to train on", code=Exit.DATA)
    is_rated = settings.feedback == "explicit"
    sizes = {"users": len(log.ids.users), "items": len(log.ids.items)}
    sizes |= {"targets": 1} if is_rated else {"candidates": 1 + settings.negatives}
    sizes |= {"history": settings.history} if settings.history else {}
    assets = {"kind": "ratings", "columns": [*found.keys] if is_rated else [found.keys[0]]}
    assets |= {} if is_rated else {"instead": ["history"]}
    if is_rated:
        assert log.rating is not None
        ratings = log.rating[owner == TRAIN]
        assets["mean_rating"] = float(ratings.mean())
    files = {IDS: log.ids.to_bytes(), LOG: _log_bytes(log, owner)}
    if settings.user_features or settings.item_features:
        content, cardinalities = feature_tensors(found, rows, log, settings.user_features, settings.item_features)
        files[FEATURES] = content
        assets["cardinalities"] = cardinalities
    shapes = {"user": (), "history": (settings.history,), "candidates": (sizes.get("candidates", 1),)}
    target, labels = ("target", ("rating",)) if is_rated else ("item", ())
    return DataSpec(("user", "history", "candidates"), target, sizes, shapes, labels, assets, files)


def _log_bytes(log: Log, owner: np.ndarray) -> bytes:
    """Every user's items in order of time, where each user's begin, and which are trained on."""
    from safetensors.numpy import save

    return save(
        {"item": log.item.astype(np.int32), "starts": log.starts, "is_train": (owner == TRAIN).astype(np.uint8)}
    )


def _digest(log: Log, owner: np.ndarray) -> str:
    total = hashlib.blake2b(digest_size=16)
    for values in (log.user, log.item, log.row, log.rating, owner):
        total.update(b"-" if values is None else values.tobytes())
    return total.hexdigest()

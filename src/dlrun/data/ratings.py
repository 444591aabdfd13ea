"""Ratings or bare interactions of users with items: tables, the hub, or lines of `user item rating time`."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._interactions import Wanted, interactions_source, read_interactions
from dlrun.data._ratings import Settings, assemble, check
from dlrun.data._ratings_inputs import RatingsInputs
from dlrun.data._splits import HoldOut


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    splits: dict | None = None,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    time: str | None = None,
    feedback: Literal["implicit", "explicit"] = "implicit",
    split: Literal["auto", "leave_one_out", "temporal", "random"] = "auto",
    history: int = 0,
    negatives: int = 100,
    min_rating: float | None = None,
    min_user_count: int = 1,
    min_item_count: int = 1,
    valid_users: int | None = None,
    user_features: list | None = None,
    item_features: list | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    split_seed: int | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
) -> Dataset:
    """What users had to do with which items, to rank items for users or to predict ratings.

    Settings:
        path: a table (csv, parquet, json lines), a plain file whose lines are user, item and perhaps rating, time, or
            ORG/NAME on the hub.
        config: which of the hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the hub data set; its newest unless set.
        splits: {train: NAME}, the split or file whose rows are taken where there are several.
        user: the users' column; guessed.
        item: the items' column; guessed.
        rating: the ratings' column; guessed.
        time: the times' column; guessed, and where there is none the order of the rows is that of time.
        feedback: implicit ranks items by what was done at all, explicit predicts the number of a rating.
        split: leave_one_out holds out every user's last item (test) and the one before it (valid), temporal the last
            interactions of all, random any (explicit only); auto is leave_one_out, or random where explicit.
        history: items a user had before, at most, that a model sees; 0 for models that see the user only.
        negatives: items a user never had that each held-out item is ranked among, at least 1.
        min_rating: of implicit feedback, rows with lower ratings or none are left out.
        min_user_count: users with fewer interactions are left out.
        min_item_count: items with fewer interactions are left out.
        valid_users: held-out items that are ranked in validation, at most; all unless set.
        user_features: columns that say something of the user, for models that look at it.
        item_features: columns that say something of the item.
        valid_fraction: share of the interactions held out by temporal or random, in [0, 1).
        test_fraction: the same for the test split.
        split_seed: draws random splits and negatives; the run's seed unless set.
        on_bad: raise at a row that cannot be read, or whose user or item a trained run does not know, or skip it.
        max_bad: rows that may be skipped before it is an error.
    """
    seed = tools.seed if split_seed is None else split_seed
    features = tuple(user_features or ()), tuple(item_features or ())
    bad = BadRows(on_bad, max_bad)
    settings = Settings(
        feedback, split, HoldOut(seed, valid_fraction, test_fraction), bad, history, negatives, min_rating,
        min_user_count, min_item_count, valid_users, *features,
    )  # fmt: skip
    check(settings)
    wanted = Wanted(user, item, rating, time, *features)
    source, notes = interactions_source(path, config, revision, splits, bad)
    is_compared = min_rating is not None
    ratings_are = "predicted" if feedback == "explicit" else "compared" if is_compared else "unused"
    found, guesses = read_interactions(source, wanted, ratings_are, bad)
    return assemble(found, settings, spec_of(tools), [*notes, *guesses])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return RatingsInputs(spec)

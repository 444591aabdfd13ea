"""Made ratings of users with tastes, who go from one item to a like one: no download."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import spec_of
from dlrun.data._bad import BadRows
from dlrun.data._interactions import Interactions, of_words
from dlrun.data._ratings import Settings, assemble, check
from dlrun.data._ratings_inputs import RatingsInputs
from dlrun.data._splits import HoldOut
from dlrun.errors import DlrunError
from dlrun.randomness import key

_GENRES = ("action", "comedy", "drama", "fantasy", "history", "mystery", "romance", "war")
_GROUPS = 5  # of users who like about the same
_FAMOUS = 0.7  # how much more often the first item of a genre is met than the others: 1 / place ^ this
_STAYS = 0.75  # chance that the next item is of the genre that follows the last one's, not of any that is liked


def build(
    tools: Tools,
    *,
    num_users: int = 600,
    num_items: int = 160,
    mean_count: int = 14,
    feedback: Literal["implicit", "explicit"] = "implicit",
    split: Literal["auto", "leave_one_out", "temporal", "random"] = "auto",
    history: int = 0,
    negatives: int = 50,
    features: bool = False,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    made_seed: int = 0,
    split_seed: int | None = None,
) -> Dataset:
    """Items of eight genres; every user likes some more than others, and a genre leads to the next one.

    Settings:
        num_users: users there are, at least 10.
        num_items: items there are, at least 16.
        mean_count: interactions of a user in the mean, at least 4.
        feedback: implicit ranks items by what was done at all, explicit predicts the number of a rating.
        split: leave_one_out holds out every user's last two items, temporal the last interactions of all, random any
            (explicit only); auto is leave_one_out, or random where explicit.
        history: items a user had before, at most, that a model sees; 0 for models that see the user only.
        negatives: items a user never had that each held-out item is ranked among, at least 1.
        features: the genre of an item and the age group of a user are known to models that look at them.
        valid_fraction: share of the interactions held out by temporal or random, in [0, 1).
        test_fraction: the same for the test split.
        made_seed: chooses tastes and interactions; the same in every run unless set.
        split_seed: draws random splits and negatives; the run's seed unless set.
    """
    for name, value, least in (
        ("num_users", num_users, 10),
        ("num_items", num_items, 16),
        ("mean_count", mean_count, 4),
    ):
        if value < least:
            raise DlrunError(f"data.{name}: {value} is not at least {least}")
    if mean_count > num_items // 4:
        raise DlrunError(f"data.mean_count: {mean_count} is more than a quarter of the {num_items} items")
    seed = tools.seed if split_seed is None else split_seed
    known = (("age group",), ("genre",)) if features else ((), ())
    settings = Settings(
        feedback, split, HoldOut(seed, valid_fraction, test_fraction), BadRows(), history, negatives,
        user_features=known[0], item_features=known[1],
    )  # fmt: skip
    check(settings)
    rng = np.random.default_rng(key("made ratings", made_seed) & ((1 << 63) - 1))
    return assemble(_made(num_users, num_items, mean_count, rng), settings, spec_of(tools), [])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return RatingsInputs(spec)


def _made(num_users: int, num_items: int, mean_count: int, rng: np.random.Generator) -> Interactions:
    """The interactions of all users, one after another."""
    import pyarrow as pa

    genre_I = np.arange(num_items) % len(_GENRES)
    fame_I = (1 + np.arange(num_items) // len(_GENRES)) ** -_FAMOUS
    quality_I = rng.normal(0, 0.4, num_items)
    group_U = rng.integers(0, _GROUPS, num_users)
    shared_UG = rng.dirichlet(np.full(len(_GENRES), 0.4), _GROUPS)[group_U]
    taste_UG = 0.8 * shared_UG + 0.2 * rng.dirichlet(np.full(len(_GENRES), 0.4), num_users)
    users, items, ratings, times = [], [], [], []
    for user in range(num_users):
        chosen = _walk(taste_UG[user], genre_I, fame_I, max(3, int(rng.poisson(mean_count))), rng)
        liking = (
            2.5 + 3 * np.sqrt(taste_UG[user, genre_I[chosen]]) + quality_I[chosen] + rng.normal(0, 0.3, len(chosen))
        )
        users += [user] * len(chosen)
        items += chosen
        ratings += np.clip(np.rint(liking), 1, 5).tolist()
        times += np.sort(rng.uniform(0, 1e6, len(chosen))).tolist()
    columns = {
        "genre": pa.chunked_array([[_GENRES[genre_I[item]] for item in items]]),
        "age group": pa.chunked_array([[f"group {group_U[user]}" for user in users]]),
    }
    named = [f"u{user}" for user in users], [f"{_GENRES[genre_I[item]]} {item // len(_GENRES)}" for item in items]
    return of_words("made ratings", *named, np.array(ratings), np.array(times), columns)


def _walk(
    taste_G: np.ndarray, genre_I: np.ndarray, fame_I: np.ndarray, count: int, rng: np.random.Generator
) -> list[int]:
    """Different items of one user, in their order."""
    chosen: list[int] = []
    free_I = np.ones(len(genre_I), dtype=bool)
    while len(chosen) < min(count, len(genre_I) // 2):
        follows = (genre_I[chosen[-1]] + 1) % len(_GENRES) if chosen and rng.random() < _STAYS else None
        weight_I = fame_I * free_I * (taste_G[genre_I] if follows is None else genre_I == follows)
        if weight_I.sum() < 1e-12:  # every item of that genre is had
            weight_I = fame_I * free_I
        item = int(rng.choice(len(genre_I), p=weight_I / weight_I.sum()))
        free_I[item] = False
        chosen.append(item)
    return chosen

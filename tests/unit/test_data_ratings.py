"""Ratings: read, numbered, split by time and sampled as they should be; unknown users and items are refused."""

import gzip
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun import serving
from dlrun.contracts import NO_TARGET, DataSpec
from dlrun.data import made_ratings, ratings
from dlrun.data._ratings_splits import sampled_negatives
from dlrun.errors import DlrunError, Exit

ROWS = """user,item,rating,time,genre
ann,a,5,10,x
ann,b,4,30,y
ann,c,3,20,x
bob,a,1,5,x
bob,b,2,6,y
bob,d,5,7,y
bob,a,4,8,x
cat,a,3,9,x
cat,e,3,9,x
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` caches goes to the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def build(tmp_path):
    def make(text: str = ROWS, spec: DataSpec | None = None, file: str = "rows.csv", **settings):
        (tmp_path / file).write_text(text)
        tools = SimpleNamespace(seed=settings.pop("seed", 0), assets=None, spec=spec)
        return ratings.build(tools, path=str(tmp_path / file), **{"negatives": 2, **settings})

    return make


def whole(split):
    return split.gather(torch.arange(len(split)))


def names(data, ids) -> list:
    """Items by name, "" for none."""
    import json

    items = ["", *json.loads(data.spec.files["ids.json"])["items"]]
    return [[items[max(0, item)] for item in row] for row in ids.tolist()]


def refused(build, *arguments, **settings) -> DlrunError:
    with pytest.raises(DlrunError) as raised:
        build(*arguments, **settings)
    return raised.value


def test_the_last_item_of_a_user_is_for_test_and_the_one_before_for_valid(build):
    data = build(history=5)
    assert data.spec.sizes == {"users": 3, "items": 5, "candidates": 3, "history": 5}
    assert names(data, whole(data.split("test"))["candidates"][:, :1]) == [["b"], ["a"]]  # ann by time: a c b
    test = whole(data.split("test"))
    assert names(data, test["history"]) == [["", "a", "c"], ["a", "b", "d"]]
    assert test["user"].tolist() == [1, 2]
    assert names(data, whole(data.split("valid"))["history"]) == [["", "a"], ["a", "b"]]
    assert "1 with fewer than 3 are trained on only" in data.notes[2]


def test_items_are_numbered_by_frequency_and_users_as_they_appear(build):
    import json

    ids = json.loads(build().spec.files["ids.json"])
    assert ids == {"users": ["ann", "bob", "cat"], "items": ["a", "b", "c", "d", "e"]}


def test_every_training_interaction_is_an_example_without_a_history(build):
    data = build()
    batch = whole(data.split("train"))
    assert batch["user"].tolist() == [1, 2, 2, 3, 3]
    assert names(data, batch["targets"]) == [["a"], ["a"], ["b"], ["a"], ["e"]]
    assert names(data, batch["seen"]) == [["a", ""], ["a", "b"], ["a", "b"], ["a", "e"], ["a", "e"]]
    assert batch["history"].shape == (5, 0)


def test_a_window_holds_what_came_next_at_each_place(build):
    text = (
        "".join(f"u,{name},1,{time}\n" for time, name in enumerate("abcdefgh")) + "v,a,1,1\nv,b,1,2\nw,x,1,1\nw,y,1,1\n"
    )
    data = build("user,item,rating,time\n" + text, history=3, split="leave_one_out")
    batch = whole(data.split("train"))  # of u a to f; of v and w both, too few to hold out
    windows = {tuple(row): tuple(said) for row, said in zip(
        names(data, batch["history"]), names(data, batch["targets"].clamp(min=0)), strict=True)}  # fmt: skip
    assert windows == {
        ("c", "d", "e"): ("d", "e", "f"),
        ("", "a", "b"): ("", "b", "c"),
        ("", "", "a"): ("", "", "b"),
        ("", "", "x"): ("", "", "y"),
    }
    assert sorted(data.split("train").lengths.tolist()) == [1, 1, 2, 3]
    is_padding = batch["history"] == 0
    assert bool((batch["targets"] == NO_TARGET).eq(is_padding).all())


def test_negatives_are_items_the_user_never_had_and_the_same_for_the_same_seed():
    def make(seed: int):
        return made_ratings.build(SimpleNamespace(seed=seed, spec=None), negatives=20)

    test, again, other = whole(make(0).split("test")), whole(make(0).split("test")), whole(make(1).split("test"))
    assert torch.equal(test["candidates"], again["candidates"])
    assert not torch.equal(test["candidates"], other["candidates"])
    had = (test["candidates"][:, 1:, None] == test["seen"][:, None]).any()
    assert not had and not (test["candidates"][:, 1:] == test["item"][:, None]).any()
    counts = torch.bincount(test["candidates"][:, 1:].flatten(), minlength=161)[1:]
    assert counts.min() > 0.4 * counts.float().mean()  # every item is drawn


def test_nobody_who_had_every_item_can_be_ranked(build):
    log = SimpleNamespace(user=np.array([1, 1]), item=np.array([1, 2]), starts=np.array([0, 0, 2]),
                          ids=SimpleNamespace(items=("a", "b"), users=("ann",)))  # fmt: skip
    with pytest.raises(DlrunError, match=r"data\.negatives: user 'ann' had every one of the 2 items"):
        sampled_negatives(log, np.array([1]), 3, 0)  # type: ignore[arg-type]


def test_a_temporal_split_holds_out_the_last_of_all(build):
    data = build(split="temporal", test_fraction=0.1, valid_fraction=0)
    test = whole(data.split("test"))
    assert names(data, test["item"][:, None]) == [["b"]]  # ann's, at 30
    assert len(data.split("train")) == 8


def test_a_user_who_only_begins_after_the_cut_is_left_out_and_said(build):
    text = ROWS + "dan,a,1,100,x\ndan,b,2,101,x\n"
    data = build(text, split="temporal", test_fraction=0.2, valid_fraction=0)
    assert "test: 2 interactions of users without training items are left out" in data.notes


def test_ratings_are_split_at_random_and_keep_their_number(build):
    data = build(feedback="explicit", valid_fraction=0.2, test_fraction=0.2)
    batches = [whole(data.split(name)) for name in ("train", "valid", "test")]
    assert [len(batch["id"]) for batch in batches] == [5, 2, 2]
    ids = torch.cat([batch["id"] for batch in batches])
    assert sorted(ids.tolist()) == list(range(9))
    target = torch.cat([batch["target"] for batch in batches])[:, 0][ids.argsort()]
    assert target.tolist() == [5, 3, 4, 1, 2, 5, 4, 3, 3]  # by user and time
    assert data.spec.assets["mean_rating"] == pytest.approx(float(batches[0]["target"].mean()))
    batch = ratings.inputs(data.spec).encode([{"user": "bob", "item": "d"}])
    assert batch["candidates"].tolist() == [[4]] and batch["user"].tolist() == [2]


def test_rare_users_and_items_go_until_none_is_left(build):
    # Without c, d and e, of which there is one each, cat has but one left.
    data = build(min_user_count=2, min_item_count=2, feedback="explicit")
    assert (data.spec.sizes["users"], data.spec.sizes["items"]) == (2, 2)
    assert "4 rows left out" in data.notes[1]
    assert (
        build(min_user_count=2, min_item_count=2, feedback="explicit", spec=data.spec).fingerprint == data.fingerprint
    )
    error = refused(build, min_user_count=5)
    assert error.message == "rows.csv: no row is left: no user has 5 and no item has 1 of them"


def test_low_ratings_can_be_left_out(build):
    assert "4 interactions of 2 users with 3 items" in build(min_rating=4, negatives=1).notes[1]


@pytest.mark.parametrize("line", ["1::7::5::100\n", "1\t7\t5\t100\n", "1 7 5 100\n", "1,7,5,100\n"])
def test_plain_lines_are_read_whatever_separates_them(build, line):
    data = build(line * 3 + line.replace("7", "8"), file="ratings.dat", negatives=1, feedback="explicit",
                 test_fraction=0, valid_fraction=0)  # fmt: skip
    assert data.spec.sizes == {"users": 1, "items": 2, "targets": 1}
    assert whole(data.split("train"))["target"].tolist() == [[5]] * 4


def test_plain_lines_may_be_compressed_and_be_pairs(tmp_path):
    with gzip.open(tmp_path / "pairs.txt.gz", "wt") as file:
        file.write("1 5\n1 6\n1 7\n1 8\n2 5\n2 9\n2 10\n2 11\n")
    data = ratings.build(
        SimpleNamespace(seed=0, spec=None), path=str(tmp_path / "pairs.txt.gz"), negatives=1, history=2
    )
    assert names(data, whole(data.split("test"))["history"]) == [["6", "7"], ["9", "10"]]


def test_a_line_of_another_length_and_a_row_without_an_item_are_bad_rows(build):
    assert refused(build, "1 5\n1 6 7\n1 7\n", file="p.txt").message == "p.txt, row 1: 3 values, not 2"
    error = refused(build, ROWS + "dan,,3,9,x\n")
    assert error.message == "rows.csv, row 9: no item" and error.code == Exit.DATA
    data = build(ROWS + "dan,,3,9,x\n", on_bad="skip")
    assert "1 row that cannot be read is left out; the first is rows.csv, row 9: no item" in data.notes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"user": "usr"}, "data.user: rows.csv has no column 'usr'"),
        ({"history": -1}, "data.history: -1 is not at least 0"),
        ({"negatives": 0}, "data.negatives: 0 is not at least 1"),
        ({"feedback": "explicit", "history": 3}, "data.history goes with data.feedback=implicit"),
        ({"split": "random"}, "data.split=random goes with data.feedback=explicit"),
        ({"item_features": ["colour"]}, "data.item_features: rows.csv has no column 'colour'"),
    ],
)
def test_what_cannot_be_is_refused(build, settings, says):
    assert refused(build, **settings).message.startswith(says)


def test_a_second_reading_has_the_same_ids_and_refuses_those_it_does_not_know(build):
    first = build(history=3)
    again = build(history=3, spec=first.spec)
    assert again.spec is first.spec and again.fingerprint == first.fingerprint
    error = refused(build, ROWS + "zoe,a,3,9,x\n", spec=first.spec)
    assert error.message == "rows.csv, row 9: user 'zoe' is not one the run was trained with"
    skipped = build(ROWS + "ann,z,3,9,x\n", spec=first.spec, on_bad="skip")
    assert "rows.csv, row 9: item 'z' is not one the run was trained with" in skipped.notes[-1]


def test_a_known_user_and_anybodys_history_are_read_and_others_refused(build):
    spec = build(history=2).spec
    inputs = ratings.inputs(DataSpec.from_json(spec.to_json(), spec.files))
    batch = inputs.encode([{"user": "bob"}, {"history": "c a"}])
    assert batch["user"].tolist() == [2, 0]
    assert batch["history"].tolist() == [[4, 1], [3, 1]]  # bob's last two are d and a
    assert batch["seen"].tolist() == [[1, 2, 4, 1], [3, 1, 0, 0]]
    for row, says in (({"user": "zoe"}, "row 0: user 'zoe' is not one the run was trained with"),
                      ({"history": []}, "row 0: a user without history, for whom nothing can be said"),
                      ({"history": ["z"]}, "row 0: item 'z' is not one the run was trained with"),
                      ({"usr": "bob"}, "row 0 has no 'user'")):  # fmt: skip
        with pytest.raises(DlrunError) as raised:
            inputs.encode([row])
        assert raised.value.message == says
    assert serving.columns(spec) == ["user"]


def test_features_of_users_and_items_are_coded_by_id(build):
    from safetensors.numpy import load

    spec = build(item_features=["genre"], user_features=["rating"]).spec
    known = load(spec.files["features.safetensors"])
    assert known["item_categories"].tolist() == [[0], [2], [3], [2], [3], [2]]  # a x, b y, c x, d y, e x
    assert known["user_numbers"].shape == (4, 1) and spec.assets["cardinalities"] == {"user": [], "item": [4]}
    first = np.array([5, 1, 3.0])  # the first rating of each user in time
    np.testing.assert_allclose(known["user_numbers"][1:, 0], (first - first.mean()) / first.std(), rtol=1e-6)


def test_made_ratings_are_the_same_every_time_and_whoever_likes_a_genre_has_it_more():
    data = made_ratings.build(SimpleNamespace(seed=0, spec=None), feedback="explicit", features=True)
    again = made_ratings.build(SimpleNamespace(seed=0, spec=None), feedback="explicit", features=True)
    assert data.fingerprint == again.fingerprint
    assert 3 < data.spec.assets["mean_rating"] < 4.5
    assert data.spec.sizes["users"] == 600 and 140 <= data.spec.sizes["items"] <= 160


# ---------------------------------------------------------------- columns that were guessed, bad cells, the hub


def renamed(text: str = ROWS, **names: str) -> str:
    header, _, rest = text.partition("\n")
    return ",".join(names.get(name, name) for name in header.split(",")) + "\n" + rest


@pytest.mark.parametrize(("feedback", "asked"), [("implicit", ["user_id"]), ("explicit", ["user_id", "item_id"])])
def test_a_trained_run_asks_for_the_columns_that_were_guessed(build, feedback, asked):
    spec = build(renamed(user="user_id", item="item_id"), feedback=feedback).spec
    assert serving.columns(spec) == asked
    inputs = ratings.inputs(DataSpec.from_json(spec.to_json(), spec.files))
    assert inputs.encode([{"user_id": "bob", "item_id": "d"}])["user"].tolist() == [2]
    with pytest.raises(DlrunError, match="row 0 has no 'user_id'"):
        inputs.encode([{"user": "bob", "item_id": "d"}])


def test_a_split_of_a_hub_data_set_is_read_as_a_table_is(build, monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"user_id": [1, 1, 1, 2, 2, 2], "item": list("abcbad"), "ts": [3, 1, 2, 1, 2, 3]})
    found = datasets.DatasetDict({"train": rows})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: asked.append((given, named)) or found)
    tools = SimpleNamespace(seed=0, assets=None, spec=None)
    data = ratings.build(tools, path="some/where", config="small", revision="v2", negatives=1)
    assert asked == [(("some/where",), {"name": "small", "revision": "v2"})]
    assert "columns: user is user_id, item is item, time is ts (guessed)" in data.notes
    assert names(data, whole(data.split("test"))["item"][:, None]) == [["a"], ["d"]]
    found["extra"] = found["test"] = rows.select(range(3))
    with pytest.raises(DlrunError, match="some/where holds train and test; ratings are one table") as caught:
        ratings.build(tools, path="some/where")
    assert caught.value.hint == "data.path=FILE, or the one to take: data.splits.train=NAME"
    with pytest.raises(DlrunError, match="the data set has no split 'extr'"):
        ratings.build(tools, path="some/where", splits={"train": "extr"})
    chosen = ratings.build(tools, path="some/where", splits={"train": "test"}, split="temporal", test_fraction=0,
                           valid_fraction=0)  # fmt: skip
    assert chosen.spec.size("users") == 1


@pytest.mark.parametrize(
    ("line", "settings", "says"),
    [
        ("dan,a,3,soon,x", {}, "'soon' in column 'ts' is no time"),
        ("dan,a,3,,x", {}, "no time in column 'ts'"),
        ("dan,a,many,4,x", {"feedback": "explicit"}, "'many' in column 'stars' is no number"),
        ("dan,a,,4,x", {"feedback": "explicit"}, "no number in column 'stars'"),
        ("dan,a,many,4,x", {"min_rating": 2}, "'many' in column 'stars' is no number"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_by_its_row_or_left_out(build, line, settings, says):
    text = renamed(f"{ROWS}{line}\ndan,b,3,9,x\n", rating="stars", time="ts")
    error = refused(build, text, **settings)
    assert error.message == f"rows.csv, row 9: {says}" and error.code == Exit.DATA
    data = build(text, on_bad="skip", **settings)
    assert f"1 row that cannot be read is left out; the first is rows.csv, row 9: {says}" in data.notes


def test_a_date_that_is_none_is_a_bad_row_among_dates(build):
    days = zip("abcd", "2134", strict=True)
    dates = "user,item,time\n" + "".join(f"ann,{item},2024-01-0{day}\n" for item, day in days) + "eve,z,2024-02-01\n"
    assert names(build(dates), whole(build(dates).split("test"))["item"][:, None]) == [["d"]]
    error = refused(build, dates + "bob,a,2024-13-45\n")
    assert error.message == "rows.csv, row 5: '2024-13-45' in column 'time' is no time"
    skipped = build(dates + "bob,a,2024-13-45\n", on_bad="skip")
    assert skipped.spec.size("users") == 2
    assert names(skipped, whole(skipped.split("test"))["seen"]) == [["b", "a", "c"]]


def test_an_empty_rating_is_lower_than_any_and_an_unused_one_is_not_looked_at(build):
    assert "4 interactions of 2 users with 3 items" in build(ROWS + "dan,a,,4,x\n", min_rating=4, negatives=1).notes[1]
    assert "10 interactions" in build(ROWS + "dan,a,many,4,x\n").notes[1]


def test_without_times_the_order_of_rows_is_said_to_be_taken(build):
    text = "user,item\nann,b\nann,a\nann,c\nann,d\nbob,z\n"
    data = build(text, negatives=1)
    assert names(data, whole(data.split("test"))["item"][:, None]) == [["d"]]
    assert data.notes[2].startswith("splits: of every user the last item by the order of the rows, for lack of times,")
    assert "rows" not in build().notes[2]

"""Tables of numbers and categories: columns are typed, scaled, coded and refused as they should be."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrun import serving
from dlrun.contracts import DataSpec
from dlrun.data import table
from dlrun.errors import DlrunError, Exit

ROWS = """age,city,rich,name,job
30,Rome,no,anna,2
40,Oslo,yes,bert,3
,Rome,no,carl,2
50,?,yes,dora,2
20,Oslo,no,emil,3
60,Rome,yes,fred,2
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
        whole = {"target": "rich", "valid_fraction": 0, "test_fraction": 0, "ignore": ["name"], "missing": ["?"]}
        tools = SimpleNamespace(seed=0, assets=None, spec=spec)
        return table.build(tools, **{"path": str(tmp_path / file)} | whole | settings)

    return make


def whole(split):
    return split.gather(torch.arange(len(split)))


def refused(build, *arguments, **settings) -> DlrunError:
    with pytest.raises(DlrunError) as raised:
        build(*arguments, **settings)
    return raised.value


def test_a_table_becomes_scaled_numbers_an_indicator_and_codes(build):
    data = build()
    batch = whole(data.split("train"))
    ages = np.array([30, 40, 50, 20, 60.0])  # the median, 40, stands for the missing one
    expected = (np.array([30, 40, 40, 50, 20, 60]) - ages.mean()) / ages.std()
    torch.testing.assert_close(batch["numbers"][:, 0], torch.tensor(expected, dtype=torch.float32))
    assert batch["numbers"][:, 1].tolist() == [0, 0, 1, 0, 0, 0]
    assert batch["categories"].tolist() == [[2], [3], [2], [1], [3], [2]]  # 0 unknown, 1 missing, then by frequency
    assert batch["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert data.spec.sizes == {"numbers": 3, "categories": 1, "classes": 2}  # age, its indicator, job; city
    assert data.spec.assets["cardinalities"] == [4]
    assert data.spec.shapes == {"numbers": (3,), "categories": (1,)}
    assert "numbers: age, job (guessed; data.numeric)" in data.notes


def test_the_kind_of_a_column_can_be_said(build):
    data = build(categorical=["job", "age"], ignore=["name", "city"])
    assert data.spec.sizes == {"numbers": 0, "categories": 2, "classes": 2}
    assert whole(data.split("train"))["categories"].tolist() == [[3, 2], [4, 3], [1, 2], [5, 2], [2, 3], [6, 2]]


def test_new_rows_are_coded_as_the_training_rows_were_and_a_new_category_is_unknown(build):
    data = build()
    given = [{"age": "30", "city": "Rome", "job": "2"}, {"age": None, "city": "", "job": 2.0},
             {"age": 40, "city": "Paris", "job": 3}]  # fmt: skip
    batch = table.inputs(DataSpec.from_json(data.spec.to_json(), data.spec.files)).encode(given)
    held = whole(data.split("train"))
    torch.testing.assert_close(batch["numbers"][0], held["numbers"][0])
    torch.testing.assert_close(batch["numbers"][1], held["numbers"][2])
    assert batch["categories"].tolist() == [[2], [1], [0]]


def test_categories_never_seen_are_counted_and_the_first_is_named(build, tmp_path):
    head = ROWS.splitlines()[0]
    new = f"{head}\n30,Rome,no,a,2\n40,Bonn,yes,b,2\n,,no,c,2\n50,Paris,yes,d,2\n"
    data = build()
    assert not [note for note in data.notes if "unknown" in note]
    note = "2 rows have an unknown category in column 'city' (the first: new.csv, row 1, 'Bonn')"
    assert f"train: {note}" in build(new, data.spec, "new.csv").notes  # as it is evaluated
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "train.csv").write_text(ROWS)
    both = build(new, file="parts/test.csv", path=str(tmp_path / "parts"))
    assert f"test: {note.replace('new.csv', 'test.csv')}" in both.notes
    rows = [{"age": 1, "city": city, "job": 2} for city in ("Rome", "Bonn", None, "Paris")]
    assert not data.inputs.notes()
    data.inputs.encode(rows[:1])
    data.inputs.encode(rows[1:2])
    data.inputs.encode(rows[2:])
    assert data.inputs.notes() == [note.replace("new.csv, row 1", "row 1")]


def test_a_rare_category_of_the_training_rows_is_left_out_without_a_word(build):
    assert not [note for note in build(min_count=3).notes if "unknown" in note]


def test_a_second_reading_uses_the_run_s_own_columns(build):
    first = build(valid_fraction=0.34)
    again = build(valid_fraction=0.34, spec=first.spec)
    assert again.spec is first.spec and again.fingerprint == first.fingerprint
    other = build("age,city,rich,job\n1000,Paris,no,2\n30,Oslo,yes,2\n", spec=first.spec, ignore=[])
    assert whole(other.split("train"))["categories"].tolist()[0] == [0]


def test_quantiles_make_a_normal_distribution_whatever_the_numbers_are(build):
    values = np.exp(np.random.default_rng(0).normal(0, 3, 2000))
    text = "x,rich\n" + "".join(f"{value},{'yes' if value > 1 else 'no'}\n" for value in values)
    scaled = whole(build(text, scaling="quantile", ignore=[]).split("train"))["numbers"][:, 0]
    assert scaled.mean().abs() < 0.02 and abs(float(scaled.std()) - 1) < 0.03
    order = np.argsort(values)
    assert bool((scaled[order].diff() >= 0).all())


def test_a_value_that_takes_up_half_of_the_quantiles_is_put_into_their_middle(build):
    text = "x,rich\n" + "0,no\n" * 50 + "".join(f"{value},yes\n" for value in range(1, 51))
    scaled = whole(build(text, scaling="quantile", ignore=[]).split("train"))["numbers"][:, 0]
    assert scaled[0].item() == pytest.approx(-0.674, abs=0.05)  # a quarter lies below


@pytest.mark.parametrize("cell", ["old", "inf", "1e60"])
def test_a_cell_of_the_wrong_type_is_refused_by_row_and_column(build, cell):
    text = ROWS + f"{cell},Rome,no,gina,2\n" + "30,Rome,no,hans,2\n" * 8
    error = refused(build, text)
    assert error.code == Exit.DATA
    assert error.message.startswith("rows.csv, row 6: '") and error.message.endswith("in column 'age' is no number")
    data = build(text, on_bad="skip")
    assert len(data.split("train")) == 14 and 6 not in whole(data.split("train"))["id"]
    assert "1 row that cannot be read is left out" in data.notes[-1]


def test_a_column_said_to_be_numeric_is_refused_where_it_holds_words(build):
    assert refused(build, numeric=["city"]).message == "rows.csv, row 0: 'Rome' in column 'city' is no number"
    assert (
        "more than data.max_bad=2 rows cannot be read"
        in refused(build, numeric=["city"], on_bad="skip", max_bad=2).message
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"numeric": ["agee"]}, "data.numeric: rows.csv has no column 'agee'"),
        ({"numeric": ["age"], "categorical": ["age"]}, "data.categorical: 'age' is in data.numeric already"),
        ({"numeric": ["rich"]}, "data.numeric: 'rich' is the target, and cannot be learned from"),
        ({"ignore": ["age", "city", "name", "job"]}, "rows.csv: no column is left to learn from beside rich"),
        ({"min_count": 0}, "data.min_count: 0 is not at least 1"),
    ],
)
def test_what_cannot_be_is_refused(build, settings, says):
    assert refused(build, **settings).message == says


def test_new_rows_are_refused_by_name(build):
    inputs = table.inputs(build().spec)
    with pytest.raises(DlrunError, match="row 1: 'age' is 'old'; a number is needed"):
        inputs.encode([{"age": 1, "city": "Rome", "job": 1}, {"age": "old", "city": "Rome", "job": 1}])
    with pytest.raises(DlrunError, match="row 0 has no 'city'"):
        inputs.encode([{"age": 1, "job": 1}])


def test_rare_words_count_as_unknown(build):
    text = ROWS + "30,Bonn,no,gina,2\n"
    assert whole(build(text, min_count=2).split("train"))["categories"].tolist()[-1] == [0]


def test_a_number_and_several_numbers_can_be_predicted(build):
    text = "x,kind,price,weight\n1,a,1.5,10\n2,b,2.5,20\n3,a,4.5,30\n"
    one = build(text, target="price", ignore=["weight"])
    assert one.spec.sizes["targets"] == 1 and whole(one.split("train"))["target"].tolist() == [[1.5], [2.5], [4.5]]
    several = build(text, target=["price", "weight"], ignore=[])
    assert several.spec.labels == ("price", "weight")
    assert several.spec.assets["target_mean"] == pytest.approx([8.5 / 3, 20])
    assert several.spec.assets["target_std"][1] == pytest.approx(math.sqrt(200 / 3))


@pytest.mark.parametrize("said", [{}, {"target_kind": "number"}, {"target": ["price"]}])
def test_a_word_among_the_numbers_to_predict_is_a_bad_row(build, said):
    lines = ["x,price\n", *(f"{row},{row / 4}\n" for row in range(20))]
    lines[8] = "7,cheap\n"
    settings = {"target": "price", "ignore": []} | said
    error = refused(build, "".join(lines), **settings)
    assert error.message == "rows.csv, row 7: 'cheap' in column 'price' is no number" and error.code == Exit.DATA
    data = build("".join(lines), on_bad="skip", **settings)
    assert data.spec.target == "target" and 7 not in whole(data.split("train"))["id"]
    assert whole(data.split("train"))["target"][8].item() == 9 / 4


def test_a_row_without_a_class_is_bad(build):
    text = ROWS + "30,Rome,,gina,2\n" + "30,Rome,no,hans,2\n" * 20
    error = refused(build, text)
    assert error.message == "rows.csv: 1 row has no label in column 'rich' (the first: row 6)"
    assert "data.on_bad=skip" in error.hint and error.code == Exit.DATA
    data = build(text, on_bad="skip", test_fraction=0.2, valid_fraction=0.1)
    ids = [row for name in ("train", "valid", "test") for row in whole(data.split(name))["id"].tolist()]
    assert sorted(ids) == [row for row in range(27) if row != 6] and data.spec.labels == ("no", "yes")
    assert "rows.csv, row 6: no label in column 'rich'" in data.notes[-1]
    assert "max_bad=0" in refused(build, text, on_bad="skip", max_bad=0).message
    unlabelled = refused(build, "age,city,rich,job\n3,Rome,,2\n", data.spec, "new.csv", on_bad="skip")
    assert unlabelled.message == "data: no row of the train split has a label"


def test_whole_numbers_taken_for_classes_say_how_they_become_numbers(build):
    spec = build(target="job").spec
    with pytest.raises(DlrunError, match=r"needs data with 'targets'; this data set has .*classes=2") as caught:
        spec.size("targets")
    assert caught.value.hint == "it has that too: data.target_kind=number"
    assert build(target="job", target_kind="number").spec.size("targets") == 1
    assert "given_by" not in build().spec.assets  # of words there are no numbers


def test_names_and_row_numbers_are_not_learned_from(build):
    rows = [f"{number},person {number},{number % 2}\n" for number in range(300)]
    data = build("id,name,label\n" + "".join(f"{row}" for row in rows).replace("person", "p"), file="n.csv",
                 target="label", ignore=[], categorical=["id"])  # fmt: skip
    assert data.spec.assets["columns"] == ["id"]
    assert "not learned from: name (names or texts) (guessed; data.numeric, data.categorical)" in data.notes


def test_json_lines_and_truth_values_are_read(build):
    text = "".join(f'{{"x": {x}, "ok": {ok}, "rich": "{word}"}}\n' for x, ok, word in
                   [(1, "true", "no"), (2, "false", "yes"), (3, "true", "no")])  # fmt: skip
    data = build(text, file="rows.jsonl", ignore=[])
    assert whole(data.split("train"))["categories"].tolist() == [[2], [3], [2]]
    inputs = table.inputs(data.spec)
    for said in (True, "True", "true"):
        assert inputs.encode([{"x": 1, "ok": said}])["categories"].tolist() == [[2]]


def test_a_served_row_holds_scalars_only(build):
    spec = build().spec
    assert serving.columns(spec) == ["age", "job", "city"]
    row = {"age": np.float64(3), "job": None, "city": "Rome"}
    assert serving.safe_rows(spec, [row]) == [{"age": 3.0, "job": None, "city": "Rome"}]
    with pytest.raises(DlrunError, match=r"row 0, 'city': .* is neither a number nor a word"):
        serving.safe_rows(spec, [row | {"city": ["Rome"]}])

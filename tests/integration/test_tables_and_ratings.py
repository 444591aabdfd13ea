"""Runs on tables and on ratings: trained, scored, evaluated, asked about new rows, refused in a line."""

import csv
import json

import numpy as np
import pytest

from dlrun import predictor
from dlrun import runs as run_folders

SASREC = ("task=ranking", "task.loss=bce", "data=made_ratings", "data.history=10", "model=sasrec", "model.dropout=0.1",
          "optimizer.lr=0.005")  # fmt: skip


@pytest.fixture
def people(tmp_path, monkeypatch):
    """people(name, count) -> a csv file in which the rich are those of a city and an age."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(name: str, count: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["age", "city", "rich", "income"])
            for age, city in zip(rng.integers(20, 80, count), rng.choice(["Oslo", "Rome", "?"], count), strict=True):
                is_rich = (city == "Oslo") == (age < 50)
                writer.writerow([age, city, "yes" if is_rich else "no", 1000.5 + 500 * is_rich])
        return tmp_path / name

    return make


@pytest.mark.parametrize("model", ["tabular_mlp", "ft_transformer"])
def test_a_run_on_a_table_learns_and_its_predictor_reads_new_rows(train, dlrun, people, tmp_path, model):
    small = ("model.width=16",) if model == "ft_transformer" else ()
    run = train("data=table", f"data.path={people('rows.csv', 600)}", "data.target=rich", "data.ignore=[income]",
                "data.missing=['?']", f"model={model}", *small, "optimizer.lr=0.01", "data.batch_size=32",
                "train.duration=8 epochs", "hardware.threads=1", "name=rich")  # fmt: skip
    result = run_folders.read_json(run.folder / "result.json")
    assert result["metrics"]["test/accuracy"] > 0.85  # neither column alone says anything
    assert {"test/auroc", "test/f1", "test/balanced_accuracy", "test/loss"} <= set(result["metrics"])
    trained = predictor.load(run.folder)
    assert trained.evaluate("test")["accuracy"] == pytest.approx(result["metrics"]["test/accuracy"])
    (tmp_path / "new.csv").write_text("city,age\nOslo,25\nRome,25\nParis,\n")
    code, out, err = dlrun("predict", "rich", str(tmp_path / "new.csv"), "--json")
    assert code == 0, err
    assert [row["label"] for row in json.loads(out)["predictions"]][:2] == ["yes", "no"]
    (tmp_path / "new.csv").write_text("city,age\nOslo,25\nRome,young\n")
    code, _, err = dlrun("predict", "rich", str(tmp_path / "new.csv"))
    assert code == 4
    assert "new.csv, row 1: 'age' is 'young'; a number is needed" in err


def test_the_linear_baseline_and_numbers_in_their_own_units(train, people):
    run = train("task=regression", "data=table", f"data.path={people('rows.csv', 500)}", "data.target=income",
                "data.ignore=[rich]", "model=tabular_mlp", "optimizer.lr=0.01", "data.batch_size=32",
                "train.duration=8 epochs", "hardware.threads=1")  # fmt: skip
    metrics = run_folders.read_json(run.folder / "result.json")["metrics"]
    assert metrics["test/rmse"] < 200 and metrics["test/r2"] > 0.4  # the deviation of the targets is 250
    linear = train("task=regression", "data=table", f"data.path={people('rows.csv', 500)}", "data.target=income",
                   "data.ignore=[rich]", "model=tabular_linear", "optimizer.lr=0.05", "data.batch_size=32",
                   "train.duration=4 epochs", "hardware.threads=1")  # fmt: skip
    assert run_folders.read_json(linear.folder / "result.json")["metrics"]["test/r2"] < 0.3


def test_a_table_nobody_was_trained_on_is_the_test_split_whole(train, dlrun, people, tmp_path):
    own = people("rows.csv", 100)
    train("data=table", f"data.path={own}", "data.target=rich", "data.ignore=[income]", "model=tabular_linear",
          "data.batch_size=32", "train.duration=2 steps", "hardware.threads=1", "name=rich")  # fmt: skip
    (tmp_path / "new.csv").write_text("city,age,rich\nOslo,25,yes\nParis,25,no\nRome,70,yes\n")
    code, out, err = dlrun("evaluate", "rich", f"data.path={tmp_path / 'new.csv'}", "--json")
    assert code == 0, err
    assert "3 examples of test" in err
    assert "test: 1 row has an unknown category in column 'city' (the first: new.csv, row 1, 'Paris')" in err
    _, _, err = dlrun("evaluate", json.loads(out)["run_id"])  # a run of its own, on the same rows
    assert "3 examples of test" in err
    for given in (f"data.path={own}", f"data.path={tmp_path}/../{tmp_path.name}/rows.csv"):
        _, _, err = dlrun("evaluate", "rich", given)
        assert "10 examples of test" in err  # its own: most rows were trained on
    people("more.csv", 40)
    _, _, err = dlrun("evaluate", "rich", f"data.path={tmp_path / 'more.csv'}", "data.test_fraction=0.5")
    assert "20 examples of test" in err  # as was said
    code, out, err = dlrun("predict", "rich", str(tmp_path / "new.csv"))
    assert code == 0 and "1 row has an unknown category in column 'city' (the first: row 1, 'Paris')" in err


def test_a_run_that_recommends_learns_and_names_items_for_users(train, dlrun, tmp_path):
    run = train(
        *SASREC, "train.duration=12 epochs", "train.evaluate_every=4 epochs", "hardware.threads=1", "name=taste"
    )
    result = run_folders.read_json(run.folder / "result.json")
    assert result["goal"]["name"] == "ndcg_10"
    metrics = result["metrics"]
    assert metrics["test/hr_10"] > 0.4  # of 51 candidates: by chance 0.2
    assert metrics["test/hr_10_all"] <= metrics["test/hr_10"]
    said = "hr_10, ndcg_10, hr_5, ndcg_5, mrr: of each item among itself and 50 sampled ones"
    assert result["signatures"] == [said]
    code, out, err = dlrun("evaluate", "taste")
    assert code == 0 and said in out, err
    assert (run.folder / "assets" / "ids.json").is_file()
    trained = predictor.load(run.folder)
    assert trained.evaluate("test")["hr_10_all"] == pytest.approx(metrics["test/hr_10_all"])
    (tmp_path / "users.csv").write_text("user\nu0\nu1\n")
    code, out, err = dlrun("predict", "taste", str(tmp_path / "users.csv"), "--json")
    assert code == 0, err
    first, second = json.loads(out)["predictions"]
    assert len(first["items"]) == 10 and first["items"] != second["items"]
    code, out, err = dlrun("predict", "taste", str(tmp_path / "users.csv"), "--json", "--top-k", "3")
    assert code == 0, err
    assert list(json.loads(out)["predictions"][0]["items"]) == list(first["items"])[:3]
    had = json.loads((run.folder / "assets" / "ids.json").read_bytes())["items"]
    seen = trained.inputs.encode([{"user": "u0"}])["seen"][0].tolist()
    assert set(first["items"]) & {had[item - 1] for item in seen} == set()
    (tmp_path / "users.csv").write_text("user\nu0\nzoe\n")
    code, _, err = dlrun("predict", "taste", str(tmp_path / "users.csv"))
    assert code == 4
    assert "users.csv, row 1: user 'zoe' is not one the run was trained with" in err


def test_ratings_are_predicted_for_a_user_and_an_item(train, dlrun, tmp_path):
    run = train("task=rating", "data=made_ratings", "data.feedback=explicit", "model=matrix_factorization",
                "model.width=8", "optimizer.lr=0.01", "optimizer.weight_decay=1.0", "train.duration=6 epochs",
                "train.evaluate_every=3 epochs", "hardware.threads=1", "name=stars")  # fmt: skip
    metrics = run_folders.read_json(run.folder / "result.json")["metrics"]
    assert metrics["test/rmse"] < 0.74 and metrics["test/r2"] > 0.15  # the deviation of the ratings is 0.8
    (tmp_path / "pairs.jsonl").write_text('{"user": "u3", "item": "war 0"}\n')
    code, out, err = dlrun("predict", "stars", str(tmp_path / "pairs.jsonl"), "--json")
    assert code == 0, err
    assert 0 < json.loads(out)["predictions"][0]["prediction"] < 6


@pytest.mark.parametrize("task", ["ranking", "rating"])
def test_a_run_on_guessed_columns_predicts_for_rows_with_those_columns(train, dlrun, tmp_path, monkeypatch, task):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [f"u{user},i{(user + step) % 9},{1 + step},{step}\n" for user in range(12) for step in range(5)]
    (tmp_path / "rows.csv").write_text("user_id,item_id,stars,ts\n" + "".join(rows))
    explicit = ("data.feedback=explicit",) if task == "rating" else ("data.negatives=2",)
    train(f"task={task}", "data=ratings", f"data.path={tmp_path / 'rows.csv'}", *explicit, "model=matrix_factorization",
          "model.width=4", "data.batch_size=16", "train.duration=1 epoch", "hardware.threads=1",
          "name=guessed")  # fmt: skip
    (tmp_path / "new.csv").write_text("user_id,item_id\nu3,i1\n")
    code, out, err = dlrun("predict", "guessed", str(tmp_path / "new.csv"), "--json")
    assert code == 0, err
    assert len(json.loads(out)["predictions"]) == 1


@pytest.mark.parametrize("overrides", [("model=sasrec",), ("model=mlp", "data.history=5")])
def test_a_model_that_does_not_fit_is_refused_in_one_line(dlrun, overrides):
    code, _, err = dlrun("train", "task=ranking", "data=made_ratings", *overrides)
    assert code == 2
    assert "error: this " in err

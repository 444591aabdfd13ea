"""The verbs that read runs, on real ones: evaluate, predict, runs, compare, lineage, ui."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dlrun import runs as run_folders
from dlrun.commands import _making as making
from dlrun.commands._seeds import train_seeds
from dlrun.commands.compare import best_of
from dlrun.commands.train import Options, composed
from dlrun.registry import Registry
from dlrun.worker import Silent

TINY = ("model=logistic", "train.duration=2 epochs", "hardware.device=cpu", "tracking.system_metrics=false")
NUMBERS = ("data=files", "data.path=numbers.csv", "data.target=kind", "data.batch_size=16", "optimizer.lr=0.1")


@dataclass(frozen=True)
class Made:
    """Runs that were made once: two trainings on digits, one on a table of numbers, and two seeds with their parent."""

    folder: Path
    first: str
    second: str
    numbers: str
    parent: str


@pytest.fixture(scope="module")
def made(tmp_path_factory, store) -> Made:
    place = tmp_path_factory.mktemp("made")
    folder = place / "runs"
    folder.mkdir()
    for path in store.parent.glob("*mlflow*"):
        shutil.copy(path, folder / path.name)
    write_numbers(place / "numbers.csv")
    options = Options(folder, Registry(None))

    def train(*overrides: str) -> str:
        config = composed([*TINY, *overrides], options)
        run = making.new_run(config, options.registry, folder, verb="train")
        return making.execute(run, config, options.registry, Silent()).run.id

    before = Path.cwd()
    os.chdir(place)
    try:
        first = train("name=first", "data.batch_size=32")
        second = train("name=second", "data.batch_size=32", "train.duration=3 steps", "schedule=constant")
        numbers = train("name=numbers", *NUMBERS)
        train_seeds(2, [*TINY, "name=several", "train.duration=10 steps"], options)
    finally:
        os.chdir(before)
    return Made(folder, first, second, numbers, run_folders.find(folder, "several").id)


def write_numbers(path: Path) -> None:
    """Two kinds that differ by the sign of `size`."""
    rows = [(f"{(-1) ** i * (1 + i % 7)}", f"{i % 5}", "high" if i % 2 == 0 else "low") for i in range(120)]
    path.write_text("size,noise,kind\n" + "".join(",".join(row) + "\n" for row in rows))


@pytest.fixture
def here(made, runs) -> Path:
    """A runs folder of the test's own, with copies of the runs that were made."""
    for path in made.folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, runs / path.name, symlinks=True)
    return runs


def folder_of(runs: Path, run_id: str) -> Path:
    return runs / run_id / "artifacts"


def rows_of_the_test_split(runs: Path, run_id: str) -> dict[str, torch.Tensor]:
    """The rows of the digits' test split of a run, with their pixels."""
    from dlrun import predictor

    loaded = predictor.load(folder_of(runs, run_id), "cpu")
    split = loaded.dataset.split("test")
    return split.gather(torch.arange(len(split)))


def write_pictures(folder: Path, rows: dict[str, torch.Tensor], count: int) -> list[Path]:
    """The first rows as PNG files, a folder for each class."""
    from PIL import Image

    paths = []
    for index in range(count):
        path = folder / str(int(rows["label"][index])) / f"{int(rows['id'][index]):04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rows["image"][index, 0].numpy()).save(path)
        paths.append(path)
    return paths


# ---------------------------------------------------------------- evaluate


def test_evaluate_gives_the_metrics_that_training_ended_with(here, made, dlrun):
    code, out, _ = dlrun("evaluate", "first", "--json")
    said = json.loads(out)
    result = run_folders.load(folder_of(here, made.first)).result
    assert code == 0
    assert said["run_id"] == made.first and said["status"] == "FINISHED"
    assert set(said) == {"run_id", "run_dir", "status", "goal", "metrics", "seconds", "rate", "parents"}
    tests = {name: value for name, value in result["metrics"].items() if name.startswith("test/")}
    assert said["metrics"] == pytest.approx(tests, rel=1e-6)
    assert said["goal"] == {"name": "accuracy", "value": said["metrics"]["test/accuracy"], "split": "test"}
    assert said["rate"]["samples_per_second"] > 0
    assert len(list(here.glob("*/artifacts/run.json"))) == 6  # no run was made


def test_the_table_goes_to_stdout_and_the_rest_to_stderr(here, dlrun):
    code, out, err = dlrun("evaluate", "first", "--split", "valid")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["metric", "value"]
    assert "valid/accuracy" in [line.split()[0] for line in lines]
    assert "270 examples of valid in" in err


def test_predictions_are_kept_and_found_again(here, made, dlrun):
    _, first, said_first = dlrun("evaluate", "first")
    _, again, said_again = dlrun("evaluate", "first")
    assert "from predictions made before" not in said_first
    assert "270 examples of test from predictions made before" in said_again
    assert first == again
    [path] = (folder_of(here, made.first) / "predictions").glob("*.safetensors")
    assert path.name.startswith("test-") and path.suffix == ".safetensors"
    fields = load_file(path)
    rows = rows_of_the_test_split(here, made.first)
    assert fields["id"].tolist() == sorted(rows["id"].tolist())
    right = (fields["log_probabilities"].argmax(1) == fields["label"]).double().mean()
    assert f"{float(right):.4f}" in first


def test_a_damaged_file_of_predictions_is_made_anew(here, made, dlrun):
    _, before, _ = dlrun("evaluate", "first")
    [path] = (folder_of(here, made.first) / "predictions").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    code, after, err = dlrun("evaluate", "first")
    assert (code, after) == (0, before)
    assert "made before" not in err
    assert len(load_file(path)["id"]) == 270


def test_predictions_of_one_split_or_precision_are_not_those_of_another(here, made, dlrun):
    for split in ("test", "valid"):
        dlrun("evaluate", "first", "--split", split)
    assert dlrun("evaluate", "first", "train.precision=bf16")[0] == 0
    names = [path.stem for path in here.glob("*/artifacts/predictions/*.safetensors")]
    assert len({name.partition("-")[2] for name in names}) == 2 and len(names) == 3


def test_predictions_that_cannot_be_kept_are_a_warning(here, made, dlrun):
    (folder_of(here, made.first) / "predictions").write_text("in the way")
    code, out, err = dlrun("evaluate", "first")
    assert code == 0 and "test/accuracy" in out
    assert "warning: the predictions are not kept" in err


def test_evaluating_other_data_makes_a_run_with_its_own_result(here, made, dlrun):
    paths = write_pictures(here.parent / "photos" / "test", rows_of_the_test_split(here, made.first), 60)
    assert len(paths) == 60
    code, out, err = dlrun("evaluate", "first", "data=files", "data.path=photos", "data.batch_size=32", "--json")
    said = json.loads(out)
    assert code == 0, err
    run = run_folders.load(folder_of(here, said["run_id"]))
    assert said["run_id"] != made.first and said["parents"] == [made.first]
    assert (run.record.verb, run.record.parents, run.status) == ("evaluate", (made.first,), "FINISHED")
    assert run.record.name == "first evaluated"
    assert run.result["metrics"] == said["metrics"]
    assert (run.folder / "confusion.json").exists()
    assert (run.folder / "figures" / "confusion_matrix.png").exists()
    assert not (run.folder / "figures" / "learning_curve.png").exists()
    assert not (folder_of(here, made.first) / "predictions").exists()
    dlrun("evaluate", "first")
    [path] = (folder_of(here, made.first) / "predictions").glob("*.safetensors")
    fields = load_file(path)
    chosen = torch.isin(fields["id"], torch.tensor([int(path.stem) for path in paths]))
    right = (fields["log_probabilities"].argmax(1) == fields["label"])[chosen].double().mean()
    assert said["metrics"]["test/accuracy"] == pytest.approx(float(right))


def test_an_evaluation_is_in_mlflow_with_its_metrics(here, made, dlrun):
    from mlflow import MlflowClient

    said = json.loads(dlrun("evaluate", "first", "data.batch_size=64", "--json")[1])
    run = MlflowClient(f"sqlite:///{here}/mlflow.db").get_run(said["run_id"])
    assert run.data.metrics["test/accuracy"] == pytest.approx(said["metrics"]["test/accuracy"])
    assert run.data.tags["dlrun.parents"] == made.first
    assert run.info.status == "FINISHED"


def test_an_evaluation_stands_for_the_model_it_evaluated(here, made, dlrun):
    [path] = write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 1)
    said = json.loads(dlrun("evaluate", "first", "data.batch_size=64", "--json")[1])
    again = json.loads(dlrun("evaluate", said["run_id"], "--json")[1])
    assert again["run_id"] == said["run_id"] and again["metrics"] == said["metrics"]
    own = json.loads(dlrun("predict", "first", str(path), "--json")[1])["predictions"]
    assert json.loads(dlrun("predict", said["run_id"], str(path), "--json")[1])["predictions"] == own


def test_what_was_trained_cannot_be_changed_afterwards(here, dlrun):
    code, out, err = dlrun("evaluate", "first", "seed=3")
    assert (code, out) == (2, "")
    assert err == (
        "error: evaluate cannot change seed: it is part of how the run was trained\n"
        "  hint: it can change data, task, hardware, tracking, train.precision, name\n"
    )
    assert "evaluate cannot change model.name" in dlrun("evaluate", "first", "model=mlp")[2]
    assert "did you mean data.test_fraction?" in dlrun("evaluate", "first", "data.tset_fraction=0.1")[2]


def test_a_run_from_before_a_setting_existed_is_evaluated_as_any_other(here, made, dlrun):
    config, digest = (here / made.first / "artifacts" / f"config.{end}" for end in ("yaml", "sha256"))
    text, stated = config.read_text(), digest.read_text()
    assert "  copies: 1\n" in text
    try:
        config.write_text(text.replace("  copies: 1\n", ""))
        digest.unlink()
        code, _, err = dlrun("evaluate", "first", "data.batch_size=64")
    finally:
        config.write_text(text)
        digest.write_text(stated)
    assert code == 0, err


def test_data_without_the_split_leaves_no_run_behind(here, made, dlrun):
    write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 40)
    other = ("data=files", f"data.path={here.parent / 'photos'}", "data.valid_fraction=0", "data.test_fraction=0")
    code, _, err = dlrun("evaluate", "first", *other)
    assert code == 2
    assert err.splitlines()[-1:] == ["  hint: --split train"]
    assert "error: the data has no 'test' split; it has train" in err
    assert len(list(here.glob("*/artifacts/run.json"))) == 6


def test_an_evaluation_that_fails_is_marked_failed(here, dlrun, monkeypatch):
    from dlrun.predictor import TrainedModel

    def fail(*_):
        raise RuntimeError("no more of this")

    monkeypatch.setattr(TrainedModel, "predict_split", fail)
    with pytest.raises(RuntimeError, match="no more of this"):
        dlrun("evaluate", "first", "data.batch_size=64")
    run = run_folders.find(here, "latest")
    assert (run.record.verb, run.status, run.record.reason) == ("evaluate", "FAILED", "no more of this")


def test_a_parent_of_several_runs_names_its_children(here, made, dlrun):
    children = [child[:8] for child in run_folders.load(folder_of(here, made.parent)).record.children]
    code, _, err = dlrun("evaluate", "several")
    assert code == 2
    assert f"run {made.parent[:8]} is the parent of 2 runs, and has no weights itself" in err
    assert f"hint: name one of them: {', '.join(children)}" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_an_error_only_where_it_was_asked_for(here, made, dlrun):
    assert dlrun("evaluate", "first", "--device", "cuda")[0] == 2
    code, _, err = dlrun("evaluate", "first", "--device", "gpu")
    assert code == 2 and "'gpu' is not one of 'auto', 'cpu', 'cuda'" in err


def test_a_damaged_checkpoint_is_named_and_another_used(here, made, dlrun):
    checkpoints = folder_of(here, made.first) / "checkpoints"
    best = (checkpoints / "best").resolve()
    weights = best / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, err = dlrun("evaluate", "first")
    assert code == 0 and "test/accuracy" in out
    assert f"warning: checkpoint {best.name} is damaged" in err
    for path in checkpoints.glob("[0-9]*/weights.safetensors"):
        path.write_bytes(b"")
    code, out, err = dlrun("evaluate", "first")
    assert (code, out) == (4, "")
    assert "no valid checkpoint is left" in err


# ---------------------------------------------------------------- predict


def predictions(dlrun, *arguments: str) -> list[dict]:
    code, out, err = dlrun("predict", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["predictions"]


def plain(rows: list[dict]) -> list[tuple]:
    return [(row["label"], pytest.approx(row["probability"], abs=1e-5)) for row in rows]


def test_predictions_of_pictures_equal_those_of_the_same_rows_of_the_data(here, made, dlrun):
    paths = write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 20)
    dlrun("evaluate", "first")
    [stored] = (folder_of(here, made.first) / "predictions").glob("*.safetensors")
    fields = load_file(stored)
    rows = {int(key): scores for key, scores in zip(fields["id"], fields["log_probabilities"].exp(), strict=True)}
    code, out, _ = dlrun("predict", "first", *map(str, paths), "--json")
    said = json.loads(out)
    assert code == 0 and said["run_id"] == made.first
    for path, row in zip(paths, said["predictions"], strict=True):
        best = rows[int(path.stem)].max(0)
        assert row["input"] == str(path)
        assert (row["label"], row["probability"]) == (
            str(int(best.indices)),
            pytest.approx(float(best.values), abs=1e-5),
        )
        assert "id" not in row and len(row["probabilities"]) == 5


def test_a_folder_gives_its_pictures_sorted_and_passes_over_the_rest(here, made, dlrun):
    paths = write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 6)
    (here.parent / "photos" / ".hidden.png").write_text("x")
    (here.parent / "photos" / "notes.txt").write_text("x")
    assert [row["input"] for row in predictions(dlrun, "first", "photos")] == sorted(
        os.path.relpath(path) for path in paths)  # fmt: skip


def test_tables_give_the_predictions_of_their_pictures(here, made, dlrun):
    import pyarrow
    import pyarrow.parquet

    rows = rows_of_the_test_split(here, made.first)
    place = here.parent / "tables"
    paths = write_pictures(place, rows, 4)
    names = [os.path.relpath(path, place) for path in paths]
    (place / "rows.csv").write_text("image,note\n" + "".join(f'{name},"a, b"\n' for name in names))
    (place / "rows.tsv").write_text("image\tnote\n" + "".join(f"{name}\tx\n" for name in names))
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    (place / "rows.jsonl").write_text("\n".join(json.dumps({"image": {"bytes": text}}) for text in encoded) + "\n\n")
    pixels = [{"image": rows["image"][index, 0].tolist()} for index in range(4)]
    (place / "rows.json").write_text(json.dumps(pixels))
    cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), place / "rows.parquet")
    expected = plain(predictions(dlrun, "first", *map(str, paths)))
    for name in ("rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.parquet"):
        said = predictions(dlrun, "first", f"tables/{name}")
        assert plain(said) == expected, name
        assert [(row["input"], row["row"]) for row in said] == [(f"tables/{name}", index) for index in range(4)]


def test_a_run_on_numbers_predicts_the_rows_of_a_table(here, dlrun):
    Path("new.csv").write_text("noise,size,other\n1,5,x\n2,-6,y\n")
    assert [row["label"] for row in predictions(dlrun, "numbers", "new.csv")] == ["high", "low"]
    Path("new.jsonl").write_text('{"size": 6.5, "noise": 0}\n')
    assert [row["label"] for row in predictions(dlrun, "numbers", "new.jsonl")] == ["high"]


def test_predictions_are_printed_as_a_table_csv_or_json_lines(here, made, dlrun):
    [path] = write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 1)
    [said] = predictions(dlrun, "first", str(path))
    table = dlrun("predict", "first", str(path))[1].splitlines()
    assert table[0].split() == ["input", "label", "probability", "probabilities"]
    assert table[1].split()[:3] == [str(path), said["label"], f"{said['probability']:.4f}"]
    [row] = csv.DictReader(dlrun("predict", "first", str(path), "--format", "csv")[1].splitlines())
    assert (row["input"], row["label"], float(row["probability"])) == (str(path), said["label"], said["probability"])
    assert json.loads(row["probabilities"]) == said["probabilities"]
    [line] = dlrun("predict", "first", str(path), "--format", "jsonl")[1].splitlines()
    assert json.loads(line) == said


def test_predictions_are_written_in_the_format_of_the_files_ending(here, made, dlrun):
    write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 3)
    code, out, err = dlrun("predict", "first", "photos", "--output", "said.csv")
    assert (code, out) == (0, "") and "3 predictions are in said.csv" in err
    assert len(list(csv.DictReader(Path("said.csv").read_text().splitlines()))) == 3
    dlrun("predict", "first", "photos", "--output", "said.jsonl")
    assert [json.loads(line)["label"] for line in Path("said.jsonl").read_text().splitlines()]
    dlrun("predict", "first", "photos", "--output", "said.txt")
    assert Path("said.txt").read_text().startswith("input")
    code, _, err = dlrun("predict", "first", "photos", "--output", "no/such/folder.csv")
    assert code == 6 and "error: no/such/folder.csv: cannot be written: No such file or directory" in err


def test_rows_of_pictures_and_tables_mix_and_a_limit_ends_them(here, made, dlrun):
    paths = write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 3)
    Path("rows.csv").write_text("image\n" + "".join(f"{os.path.relpath(path)}\n" for path in paths))
    out = dlrun("predict", "first", "photos", "rows.csv", "--limit", "5", "--format", "csv")[1]
    rows = list(csv.DictReader(out.splitlines()))
    assert list(rows[0])[:2] == ["input", "row"]
    assert [row["row"] for row in rows] == ["", "", "", "0", "1"]


def test_a_picture_that_cannot_be_read_is_named_wherever_it_stands(here, made, dlrun):
    [path] = write_pictures(here.parent / "photos", rows_of_the_test_split(here, made.first), 1)
    Path("bad.png").write_text("no picture")
    code, out, err = dlrun("predict", "first", str(path), "bad.png")
    assert (code, out) == (4, "")
    assert err == "error: bad.png: not a picture in a known format, or damaged\n"
    Path("rows.csv").write_text("image\n" + f"{os.path.relpath(path)}\n" * 70 + "bad.png\n")  # beyond the first batch
    code, out, err = dlrun("predict", "first", "rows.csv")
    assert (code, out) == (4, "")
    assert err == "error: rows.csv, row 70: bad.png: not a picture in a known format, or damaged\n"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("new.csv", "size,noise\n1,2\nabc,2\n", "new.csv, row 1: 'size' is 'abc'; a finite number is needed"),
        ("new.csv", "size\n1\n", "new.csv has no column 'noise'; it has size"),
        ("new.csv", "size,nois\n1,2\n", "did you mean nois?"),
        ("new.csv", "size,noise\n", "new.csv has no rows"),
        ("new.csv", "", "new.csv has no rows"),
        ("new.csv", b"\xff\xfe\x00", "new.csv, row 0: cannot be read: 'utf-8' codec can't decode"),
        ("new.csv", 'size,noise\n1,2\n"1,2\n', "new.csv, row 1: cannot be read: unexpected end of data"),
        ("new.jsonl", '{"size": 1, "noise": 2}\n{"size": ', "new.jsonl, row 1: cannot be read: Expecting value"),
        ("new.jsonl", '{"size": 1, "noise": 2}\n{"size": 1}\n', "new.jsonl, row 1 has no 'noise'"),
        ("new.jsonl", "[1, 2]", "new.jsonl, row 0: cannot be read: an object is expected"),
        ("new.parquet", "nothing", "new.parquet, row 0: cannot be read: "),
        ("new.png", "x", "new.png: is not a table (csv, json lines, parquet)"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_its_row(here, dlrun, name, content, error):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = dlrun("predict", "numbers", name)
    assert (code, out) == (4, "")
    assert error in err
    assert len(err.splitlines()) <= 2


def test_what_is_not_there_is_said_before_anything_is_predicted(here, dlrun):
    Path("photos").mkdir()
    code, _, err = dlrun("predict", "first", "photos")
    assert code == 4 and err == (
        "error: photos: nothing to predict in this folder\n  hint: the run takes pictures\n")  # fmt: skip
    Path("rows.csv").write_text("image\n")
    code, _, err = dlrun("predict", "first", "rows.cvs")
    assert code == 4 and err == "error: rows.cvs: no such file or folder\n  hint: did you mean rows.csv?\n"
    code, _, err = dlrun("predict", "numbers", "photos")
    assert code == 4 and "hint: the run takes a table with the columns size, noise" in err


def test_options_that_exclude_each_other_are_refused(here, dlrun):
    code, _, err = dlrun("predict", "first", "x.png", "--json", "--format", "csv")
    assert code == 2 and "--json goes with neither --format nor --output" in err
    code, _, err = dlrun("predict", "first", "x.png", "--format", "cvs")
    assert code == 2 and err.startswith(
        "error: invalid value for '--format': 'cvs' is not one of 'table', 'csv', 'jsonl'"
    )
    code, _, err = dlrun("predict", "nobody", "x.png")
    assert code == 2 and "error: unknown run 'nobody'" in err


# ---------------------------------------------------------------- runs


def cells(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_runs_are_listed_newest_first(here, made, dlrun):
    code, out, _ = dlrun("runs")
    heading, *rows = cells(out)
    assert code == 0
    assert heading == ["run", "name", "verb", "status", "goal", "model", "data", "age", "took"]
    ids = [row[0] for row in rows]
    assert ids[-3:] == [made.numbers[:8], made.second[:8], made.first[:8]]
    value = run_folders.load(folder_of(here, made.first)).result["metrics"]["test/accuracy"]
    assert rows[-1][1:8] == ["first", "train", "FINISHED", "test/accuracy", f"{value:.4f}", "logistic", "digits"]
    assert "files:numbers.csv" in rows[-3]


def test_runs_as_json_have_the_names_of_every_verb(here, made, dlrun):
    said = json.loads(dlrun("runs", "--json", "--limit", "0")[1])["runs"]
    assert [run["run_id"] for run in said][-1] == made.first
    oldest = said[-1]
    assert (oldest["name"], oldest["verb"], oldest["model"], oldest["data"]) == ("first", "train", "logistic", "digits")
    assert oldest["metrics"]["test/accuracy"] == oldest["goal"]["value"]
    assert oldest["seconds"] > 0
    parent = next(run for run in said if run["run_id"] == made.parent)
    assert len(parent["children"]) == 2


def test_a_limit_says_how_many_are_left_out(here, dlrun):
    _, out, err = dlrun("runs", "--limit", "2")
    assert len(out.splitlines()) == 3
    assert err == "4 older runs are not shown: dlrun runs --limit 0\n"


def test_failed_and_killed_runs_show_their_reason_and_running_ones_their_step(here, made, dlrun):
    run = run_folders.load(folder_of(here, made.first))
    run.update(status="FAILED", reason="the loss is not finite at step 7 " + "x" * 80)
    second = run_folders.load(folder_of(here, made.second)).update(status="RUNNING", reason="", ended=None)
    [killed] = [line for line in dlrun("runs")[1].splitlines() if made.second[:8] in line]
    assert "KILLED" in killed and "its process is gone" in killed
    second.update(status="RUNNING", reason="", ended=None)
    with run_folders.hold(second.folder):
        out = dlrun("runs")[1]
    assert "RUNNING" in out and "step 3/3" in out
    [failed] = [line for line in out.splitlines() if "FAILED" in line]
    assert "the loss is not finite …xxxx" in failed


def test_a_run_with_a_damaged_file_is_still_listed(here, made, dlrun):
    (folder_of(here, made.first) / "result.json").write_text("{")
    (folder_of(here, made.first) / "config.yaml").write_text("model: [")
    code, out, _ = dlrun("runs")
    assert code == 0 and cells(out)[-1][:4] == [made.first[:8], "first", "train", "FINISHED"]
    assert dlrun("runs", "--json")[0] == dlrun("lineage", "first")[0] == dlrun("compare", "first", "second")[0] == 0


def test_an_empty_folder_says_how_to_make_a_run(runs, dlrun):
    code, out, err = dlrun("runs")
    assert (code, out) == (0, "")
    assert err.replace("\n", "") == f"there are no runs in {runs}; make one: dlrun train"
    assert json.loads(dlrun("runs", "--json")[1]) == {"runs": []}


# ---------------------------------------------------------------- compare


def test_compare_marks_the_better_value_and_shows_only_what_differs(here, made, dlrun):
    results = [run_folders.load(folder_of(here, run_id)).result for run_id in (made.first, made.second)]
    values = [result["metrics"]["test/accuracy"] for result in results]
    assert values[0] > values[1]  # the second run was given three steps
    code, out, _ = dlrun("compare", "first", "second")
    rows = {row[0]: row[1:] for row in cells(out) if row}
    assert code == 0
    assert rows["metric"] == [made.first[:8], made.second[:8]]
    assert rows["test/accuracy"] == ["★", f"{values[0]:.4f}", f"{values[1]:.4f}"]
    assert rows["test/loss"][0] == "★"
    settings = [name for name in rows if "." in name]
    assert set(settings) == {"train.duration", "schedule.name"} | {
        name for name in settings if name.startswith("schedule.")
    }
    assert rows["train.duration"] == ["2", "epochs", "3", "steps"]
    assert rows["schedule.name"] == ["cosine", "constant"]


def test_compare_as_json_names_the_best_and_the_differences(here, made, dlrun):
    said = json.loads(dlrun("compare", "first", "second", "--json")[1])
    assert [run["run_id"] for run in said["runs"]] == [made.first, made.second]
    assert said["best"]["test/accuracy"] == made.first
    assert said["differences"]["train.duration"] == {made.first: "2 epochs", made.second: "3 steps"}
    assert "name" not in said["differences"]


def test_the_parent_of_several_seeds_shows_mean_and_deviation(here, made, dlrun):
    result = run_folders.load(folder_of(here, made.parent)).result["metrics"]
    _, out, _ = dlrun("compare", "several", "first")
    [row] = [line for line in out.splitlines() if line.startswith("test/accuracy")]
    assert f"{result['test/accuracy']:.4f} ± {result['test/accuracy_std']:.4f}" in row
    assert "test/accuracy_std" not in out


def test_equal_configs_are_said_to_be_equal_and_missing_metrics_are_dashes(here, made, dlrun):
    run = run_folders.load(folder_of(here, made.first))
    other = run_folders.create(here, run_folders.RunRecord(id=run_folders.new_id(), verb="train", name="other"))
    for name in ("config.yaml", "config.sha256"):
        shutil.copy(run.folder / name, other.folder / name)
    other.update(status="FAILED", reason="it fell")
    _, out, _ = dlrun("compare", "first", "other")
    rows = {row[0]: row[1:] for row in cells(out) if row}
    assert out.splitlines()[-1] == "the configs are equal"
    assert rows["status"] == ["FINISHED", "FAILED"]
    assert rows["test/accuracy"][-1] == "–" and "★" not in out


def test_compare_needs_two_different_runs(here, made, dlrun):
    code, _, err = dlrun("compare", "first", made.first)
    assert code == 2
    assert err.startswith(f"error: compare needs two runs; 'first {made.first}' is one\n")


def test_the_best_stands_alone_and_follows_the_goal():
    assert best_of({"a": 0.5, "b": 0.7}, "max") == "b"
    assert best_of({"a": 0.5, "b": 0.7, "c": float("nan")}, "min") == "a"
    assert best_of({"a": 0.7, "b": 0.7}, "max") is None
    assert best_of({"a": 0.7}, "max") is best_of({"a": 0.5, "b": 0.7}, None) is None


# ---------------------------------------------------------------- lineage


def test_lineage_shows_ancestors_and_descendants_but_no_siblings(here, made, dlrun):
    first, second = run_folders.load(folder_of(here, made.parent)).record.children
    code, out, _ = dlrun("lineage", first)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2
    assert lines[0].startswith(f"{made.parent[:8]}  seeds  several  test/accuracy 0.")
    assert lines[1].startswith(f"└── {first[:8]}  train  several seed 0  test/accuracy 0.")
    assert lines[1].endswith("← this run")
    assert second[:8] in dlrun("lineage", "several")[1]


def test_lineage_as_json_is_nested_in_both_directions(here, made, dlrun):
    said = json.loads(dlrun("evaluate", "first", "data.batch_size=64", "--json")[1])
    tree = json.loads(dlrun("lineage", said["run_id"], "--json")[1])
    assert (tree["run_id"], tree["verb"], tree["children"]) == (said["run_id"], "evaluate", [])
    [parent] = tree["parents"]
    assert (parent["run_id"], parent["parents"]) == (made.first, [])
    assert parent["goal"]["name"] == "accuracy"
    [child] = json.loads(dlrun("lineage", "first", "--json")[1])["children"]
    assert (child["run_id"], child["goal"]["value"]) == (said["run_id"], said["goal"]["value"])


def test_a_run_that_several_led_to_is_shown_in_full_once(here, made, dlrun):
    def make(name: str, *parents: str) -> str:
        record = run_folders.RunRecord(id=run_folders.new_id(), verb="ensemble", name=name, parents=parents)
        return run_folders.create(here, record).update(status="FINISHED").id

    both = make("both", made.first, made.second)
    below = make("below", both)
    lines = dlrun("lineage", "both")[1].splitlines()
    assert [line for line in lines if "both" in line] == [
        f"└── {both[:8]}  ensemble  both  ← this run",
        f"└── {both[:8]}  ensemble  both  (as above)  ← this run",
    ]
    assert [line for line in lines if "below" in line] == [f"    └── {below[:8]}  ensemble  below"]
    assert lines[0].startswith(made.first[:8]) and lines[3].startswith(made.second[:8])


def test_a_parent_that_is_gone_and_a_run_that_names_itself_do_no_harm(here, made, dlrun):
    record = run_folders.RunRecord(id=run_folders.new_id(), verb="train", name="odd")
    run = run_folders.create(here, record).update(status="FINISHED", parents=("ab" * 16,))
    assert dlrun("lineage", "odd")[1].splitlines()[0] == "abababab  not in this folder"
    run.update(parents=(run.id,))
    assert dlrun("lineage", "odd")[0] == dlrun("lineage", "odd", "--json")[0] == 0


# ---------------------------------------------------------------- ui


def test_a_port_in_use_is_one_error_with_a_free_one(runs, dlrun):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = dlrun("ui", "--port", str(port))
    assert (code, out) == (2, "")
    [error, hint] = err.splitlines()
    assert error == f"error: port {port} is in use"
    assert hint.startswith("  hint: dlrun ui --port ")


def test_a_tracking_server_is_named_without_its_password(runs, dlrun, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@tracking.example:5000")
    code, out, err = dlrun("ui")
    assert (code, err) == (0, "")
    assert out == "MLflow is at http://tracking.example:5000 (MLFLOW_TRACKING_URI)\n"


def test_without_runs_there_is_nothing_to_serve(runs, dlrun, monkeypatch):
    code, _, err = dlrun("ui", "--runs", "nowhere")
    assert code == 2 and "hint: make one: dlrun train, or say --runs DIR" in err
    assert not Path("nowhere").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    code, _, err = dlrun("ui")
    assert code == 8 and "MLFLOW_TRACKING_URI: there is no database" in err


@pytest.mark.services
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_ui_serves_the_runs_until_it_is_ended_and_leaves_no_process(here, made, number, code):
    import psutil

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dlrun", "ui", "--port", str(port), "--runs", str(here)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        assert f"ssh -L {port}:127.0.0.1:{port}" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            assert answer.read() == b"OK"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == code
        assert not any(child.is_running() for child in children)
    finally:
        process.kill()


def test_evaluate_does_not_score_rows_that_were_trained_on(train, dlrun):
    run = train()
    code, _, said = dlrun("evaluate", run.short_id, "data.split_seed=5")
    assert code == 2
    assert "evaluate cannot change data.split_seed on the run's own data" in said

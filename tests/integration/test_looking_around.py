"""The verbs that make no run: list, show, doctor, find, init, and train --dry-run."""

import json
import os
import re
from pathlib import Path

import pytest

from dlrun import runs as run_folders
from dlrun.commands import _find_batch, _find_lr
from dlrun.commands.doctor import _OLD_SECONDS
from dlrun.errors import DlrunError, Exit

FAST = ("model=logistic", "hardware.device=cpu", "hardware.threads=1")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def own_model(folder: Path, text: str, name: str = "mine") -> str:
    """A components folder with one model in it."""
    path = folder / "components" / "models" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(folder / "components")


# ---------------------------------------------------------------- list


def test_list_names_every_choice_with_what_it_says_of_itself(dlrun):
    code, out, err = dlrun("list")
    assert (code, err) == (0, "")
    assert re.search(r"^  resnet20 +ResNet-20 for small images", out, re.MULTILINE)
    assert "experiment: A pinned run" in out and "fashion_mnist_cnn" in out
    assert "augment: " in out and "  flip " in out


def test_list_of_one_kind_adds_its_components(dlrun):
    _, out, _ = dlrun("list", "models")
    assert out.startswith("model: The architecture.\n")
    assert "  components (model.name):\n" in out and re.search(r"  torchvision +Any classification architecture", out)
    assert "optimizer:" not in out


def test_list_as_json_is_one_object(dlrun):
    _, out, _ = dlrun("list", "model", "--json")
    found = json.loads(out)["model"]
    resnet = next(item for item in found["choices"] if item["name"] == "resnet20")
    assert (resnet["component"], resnet["yours"]) == ("resnet", False)
    assert {"cnn", "mlp", "resnet"} <= {item["name"] for item in found["components"]}


def test_list_marks_what_is_yours_and_warns_of_what_is_not_used(dlrun, tmp_path):
    folder = own_model(tmp_path, '"""My very own."""\ndef build(spec): ...\n')
    own_model(tmp_path, '"""Never seen."""\ndef build(spec): ...\n', "mlp")
    own_model(tmp_path, "def build(spec:\n", "broken")
    code, out, err = dlrun("list", "model", "--components", folder)
    assert code == 0
    assert re.search(r"  mine \* +My very own\.", out)
    assert "mlp.py is not used: dlrun has a model 'mlp'; rename yours" in err
    assert "broken.py:1: is not Python" in err


@pytest.mark.parametrize(("given", "hint"), [("modl", "did you mean model?"), ("zzz", "known: augment, ")])
def test_list_of_an_unknown_kind_gets_the_nearest(dlrun, given, hint):
    code, _, err = dlrun("list", given)
    assert code == 2 and err.startswith(f"error: no kind '{given}'\n  hint: {hint}")


# ---------------------------------------------------------------- show


def test_show_says_what_can_be_set_and_what_the_choice_sets(dlrun):
    code, out, _ = dlrun("show", "model", "resnet32")
    assert code == 0
    assert out.startswith("model resnet32: ResNet-32 for small images")
    assert "  model.depth = 32   (int)\n      layers with weights" in out
    assert "  model.skip = true   (bool)" in out
    assert "resnet.py" in out and "resnet32.yaml" in out and "    name: resnet\n" in out


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("data", "digits", "  data.batch_size = 32   (int, at least 1)\n      examples of one optimizer step"),
        ("train", "standard", "  train.precision = fp32   (one of fp32, bf16, fp16)\n"),
        ("train", "standard", "  train.ema = null   (float or null, above 0 and below 1)\n"),
        ("schedule", "cosine", "  schedule.warmup = 0 steps   (duration)\n"),
        ("transfer", "none", "  transfer.from = null   (str or null)\n"),
        ("augment", "random_crop", "  data.augment.random_crop.padding = "),
        ("model", "torchvision", "  model.options = null   (dict or null)\n"),
        ("compression", "cluster", "  compression.cluster.clusters = 16   (int)\n"),
        ("experiment", "fashion_mnist_cnn", "    # score:    test accuracy at least 0.925\n"),
        ("hardware", "auto", "  hardware.device = auto   (one of auto, cpu, cuda)\n      auto takes the GPU"),
    ],
)
def test_show_knows_every_kind(dlrun, kind, name, says):
    code, out, _ = dlrun("show", kind, name)
    assert code == 0 and says in out


def test_show_of_a_users_component_without_a_conf_file(dlrun, tmp_path):
    text = '"""Mine."""\ndef build(spec, *, zeal: int):\n    """Works.\n\n    Settings:\n    zeal: how hard\n    """\n'
    code, out, _ = dlrun("show", "model", "mine", "--components", own_model(tmp_path, text))
    assert code == 0
    assert "mine.py  (yours)" in out and "  model.zeal required   (int)\n      how hard" in out


def test_show_as_json_is_one_object(dlrun):
    _, out, _ = dlrun("show", "optimizer", "sgd", "--json")
    found = json.loads(out)
    lr = found["settings"][0]
    assert (found["component"], lr["name"], lr["type"], lr["required"]) == ("sgd", "optimizer.lr", "float", False)
    assert "learning rate" in lr["meaning"]


@pytest.mark.parametrize(("name", "hint"), [("resnet21", "did you mean resnet"), ("zzzz", "known: alexnet")])
def test_show_of_an_unknown_name_gets_the_nearest(dlrun, name, hint):
    code, _, err = dlrun("show", "model", name)
    assert code == 2 and f"error: model: there is no '{name}'\n  hint: {hint}" in err


# ---------------------------------------------------------------- train --dry-run


def test_a_dry_run_counts_what_a_hand_counts_and_writes_nothing(dlrun, tmp_path):
    before = files(tmp_path)
    arguments = ("optimizer=sgd", "data.batch_size=50", "train.duration=3 epochs", "--json")
    code, out, err = dlrun("train", "--dry-run", *FAST, *arguments)
    assert (code, err) == (0, "")
    found = json.loads(out)
    numbers = 64 * 10 + 10  # digits have 64 pixels and 10 classes
    assert found["parameters"] == found["trained_parameters"] == numbers
    assert [layer for layer in found["layers"] if layer["parameters"]] == [
        {"name": "head", "type": "Linear", "shape": [50, 10], "parameters": numbers, "trained": numbers}
    ]
    assert {name: found["memory_bytes"][name] for name in ("weights", "gradients", "optimizer state", "buffers")} == {
        "weights": 4 * numbers, "gradients": 4 * numbers, "optimizer state": 4 * numbers, "buffers": 0}  # fmt: skip
    assert found["memory_bytes"]["activations"] == 4 * 50 * 10 + 4  # log-probabilities, and the loss's count
    assert (found["steps_per_epoch"], found["steps"]) == (26, 78)  # 1,257 rows to train on
    assert found["estimated_seconds"] == pytest.approx(78 * found["seconds_per_step"])
    assert files(tmp_path) == before


def test_a_dry_run_prints_layers_memory_and_time(dlrun):
    code, out, _ = dlrun("train", "--dry-run", "model=cnn", "train.ema=0.9", "train.duration=1 minute", *FAST[1:])
    assert code == 0
    assert all(word in out for word in ("BatchNorm2d", "32 x 10", "averaged weights", "ms\n", "nothing was written"))


def test_a_dry_run_of_several_processes_rehearses_one(dlrun):
    _, out, _ = dlrun("train", "--dry-run", *FAST, "hardware.processes=2", "data.batch_size=40", "--json")
    found = json.loads(out)
    assert found["layers"][-1]["shape"] == [20, 10] and found["steps_per_epoch"] == 32
    code, _, err = dlrun("train", "--dry-run", *FAST, "hardware.processes=3", "data.batch_size=40")
    assert code == 2 and "40 cannot be split over 3 processes x 1 micro-batches" in err


def test_a_dry_run_finds_what_will_go_wrong(dlrun):
    code, _, err = dlrun("train", "--dry-run", "model=alexnet", *FAST[1:])
    assert code == 2 and err.startswith("error: ")


# ---------------------------------------------------------------- find lr


def test_find_lr_suggests_a_rate_and_writes_nothing(dlrun, tmp_path):
    before = files(tmp_path)
    code, out, _ = dlrun("find", "lr", *FAST, "optimizer=sgd", "--json")
    found = json.loads(out)
    assert code == 0
    assert 1e-4 < found["suggestion"] < 1 and found["suggestion"] <= found["lowest"] / 10 * 1.0001
    assert found["override"] == f"optimizer.lr={found['suggestion']:.2g}"
    assert len(found["curve"]) <= 100 and found["curve"][0][0] == _find_lr.FIRST
    assert files(tmp_path) == before


def test_the_suggested_rate_trains_better_than_one_far_from_it(dlrun, train):
    _, out, _ = dlrun("find", "lr", *FAST, "optimizer=sgd", "--json")
    rate = json.loads(out)["suggestion"]
    arguments = ("optimizer=sgd", "train.duration=60 steps", "hardware.threads=1")
    near, low, high = (train(*arguments, f"optimizer.lr={lr}").result["metrics"]["valid/loss"] for lr in
                       (rate, rate / 100, min(50.0, rate * 1000)))  # fmt: skip
    assert near < low and near < high


def test_find_lr_prints_a_curve_and_draws_it(dlrun, tmp_path):
    code, out, _ = dlrun("find", "lr", *FAST, "--output", str(tmp_path / "curve.png"))
    assert code == 0
    assert "loss over log lr" in out and "use   optimizer.lr=" in out and "▁" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = dlrun("find", "lr", *FAST, "--output", str(tmp_path / "nowhere" / "curve.png"))
    assert code == 6 and "curve.png: cannot be written" in err


def test_the_curve_is_judged_by_its_steepest_fall_and_its_bottom():
    rates = [10 ** (-6 + 7 * step / 100) for step in range(100)]
    losses = (
        [2.0] * 40 + [2.0 - 0.1 * step for step in range(1, 16)] + [0.5] * 20 + [0.5 * 1.2**step for step in range(25)]
    )
    found = _find_lr.judged(rates, losses, diverged=True)
    assert rates[42] < found.steepest < rates[56]
    assert rates[54] < found.lowest < rates[80]
    assert found.suggestion == min(found.steepest, found.lowest / 10)


@pytest.mark.parametrize("losses", [[], [2.0], [2.0] * 100, [2.0 + 0.1 * step for step in range(30)]])
def test_a_loss_that_never_falls_gives_no_rate(losses):
    with pytest.raises(DlrunError, match="the loss falls at no learning rate") as caught:
        _find_lr.judged([1e-6] * len(losses), losses, diverged=False)
    assert caught.value.code == Exit.TRAINING


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("lr", *FAST, "optimizer.lr=0"), "error: optimizer.lr: 0.0 cannot be scaled"),
        (("lrr",), "error: 'lrr' cannot be looked for\n  hint: did you mean lr?"),
        (("batch-size", "--output", "x.png"), "error: --output draws the curve of dlrun find lr"),
    ],
)
def test_find_refuses_what_it_cannot_do(dlrun, arguments, says):
    code, _, err = dlrun("find", *arguments)
    assert code == 2 and says in err


# ---------------------------------------------------------------- find batch-size


def test_find_batch_size_tries_powers_of_two(dlrun, tmp_path, monkeypatch):
    monkeypatch.setattr(_find_batch, "_ENOUGH_SECONDS", 0.02)
    before = files(tmp_path)
    code, out, err = dlrun("find", "batch-size", *FAST, "--json")
    found = json.loads(out)
    sizes = [trial["batch_size"] for trial in found["trials"]]
    assert code == 0 and sizes == [8 * 2**step for step in range(len(sizes))] and len(sizes) >= 3
    assert found["suggestion"] in sizes and found["override"] == f"data.batch_size={found['suggestion']}"
    assert found["reason"] in ("two sizes in a row were no faster", "there are 1257 training examples")
    assert all(trial["samples_per_second"] > 0 and trial["memory_bytes"] > 2**20 for trial in found["trials"])
    assert "8 examples: " in err and files(tmp_path) == before


def test_find_batch_size_stops_before_memory_is_short(dlrun, monkeypatch):
    monkeypatch.setattr(_find_batch, "_ENOUGH_SECONDS", 0.02)
    monkeypatch.setattr(_find_batch, "_stalled", lambda trials: False)
    monkeypatch.setattr(_find_batch, "free_memory_bytes", lambda: 1_000_000)
    code, out, _ = dlrun("find", "batch-size", *FAST, "model=mlp")
    assert code == 0 and "examples would take about" in out and "use   data.batch_size=" in out
    monkeypatch.setattr(_find_batch, "free_memory_bytes", lambda: 10_000)
    code, _, err = dlrun("find", "batch-size", *FAST, "model=mlp")
    assert code == 5 and "8 examples would take about" in err


def test_the_smallest_batch_near_the_best_speed_is_suggested():
    trials = [_find_batch.Trial(8, 100.0, 1), _find_batch.Trial(16, 195.0, 1), _find_batch.Trial(32, 200.0, 1)]
    assert _find_batch.Found(trials, "").suggestion == 16
    assert not _find_batch._stalled(trials)
    assert _find_batch._stalled([*trials, _find_batch.Trial(64, 201.0, 1), _find_batch.Trial(128, 190.0, 1)])


# ---------------------------------------------------------------- doctor


def test_doctor_finds_nothing_wrong_with_a_good_folder(dlrun, train):
    train()
    code, out, err = dlrun("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert all(line.startswith(("ok ", "warning ", " ")) for line in lines)
    assert "mlflow.db answers" in out and "looked at 1 runs and 2 checkpoints" in out
    assert "Python 3." in out and "cores" in out and "OMP_NUM_THREADS" in out and "GiB free" in out


def test_doctor_makes_no_store_where_there_is_none(dlrun, tmp_path):
    code, out, _ = dlrun("doctor", "--runs", str(tmp_path / "fresh"))
    assert code == 0 and "is made by the first run" in out
    assert not (tmp_path / "fresh").exists()


def test_doctor_names_every_damaged_file(dlrun, train, runs):
    broken, unread, gone = train(), train(), train()
    weights = broken.checkpoints / os.readlink(broken.checkpoints / "best") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (unread.folder / "run.json").write_text("{")
    (gone.folder / "metrics.jsonl").write_text("{\n")
    (gone.checkpoints / "best").unlink()
    (gone.checkpoints / "best").symlink_to("00009999")
    code, out, _ = dlrun("doctor", "--json")
    found = json.loads(out)
    assert code == 4 and found["damaged"]
    errors = {finding["text"] for finding in found["findings"] if finding["level"] == "error"}
    assert len(errors) == 4
    for words in (
        str(weights),
        str(unread.folder / "run.json"),
        "metrics.jsonl",
        "best points to a checkpoint that is gone",
    ):
        assert any(words in text for text in errors), words


def test_doctor_warns_of_the_dead_and_of_what_they_left(dlrun, train):
    run = train()
    run.update(status="RUNNING")
    left = run.checkpoints / ".tmp-7-1"
    left.mkdir()
    os.utime(left, (1, run.record.created - 2 * _OLD_SECONDS))
    code, out, _ = dlrun("doctor")
    assert code == 0
    assert (
        f"said RUNNING, and no process runs it: it is KILLED now\n{'':<22}hint: go on with: dlrun train --resume" in out
    )
    assert f"left over    {left}\n" in out
    assert run_folders.load(run.folder).status == "KILLED"


def test_doctor_says_that_the_store_is_damaged_or_away(dlrun, runs, monkeypatch):
    for path in runs.glob("*mlflow*"):
        path.write_bytes(b"no database" * 100)
    code, out, _ = dlrun("doctor")
    assert code == 4 and "error    tracking" in out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:9")
    code, out, _ = dlrun("doctor")
    assert code == 0 and "warning  tracking     http://127.0.0.1:9: " in out and "word@" not in out


# ---------------------------------------------------------------- init


def test_an_inited_project_trains_and_predicts(dlrun, runs, tmp_path, monkeypatch):
    code, out, _ = dlrun("init", "project")
    assert code == 0 and out.endswith("Train it:\n  cd project\n  dlrun train experiment=first\n")
    monkeypatch.chdir(tmp_path / "project")
    code, out, _ = dlrun("train", "experiment=first", "--json", "--runs", str(runs), "tracking.system_metrics=false")
    found = json.loads(out)
    assert code == 0 and found["metrics"]["test/accuracy"] >= 0.97
    run = run_folders.find(runs, "latest")
    assert set(run.record.components) == {"models/mynet.py", "data/mydata.py", "tasks/mytask.py"}
    assert all((run.folder / "components" / name).is_file() for name in run.record.components)
    Path("points.csv").write_text("x,y\n0.5,0.1\n-0.5,-0.1\n")
    code, out, _ = dlrun("predict", "latest", "points.csv", "--runs", str(runs), "--json")
    labels = [row["label"] for row in json.loads(out)["predictions"]]
    assert code == 0 and set(labels) == {"left", "right"}


def test_init_refuses_a_folder_that_has_one_of_its_files(dlrun, tmp_path, monkeypatch):
    (tmp_path / "components/models").mkdir(parents=True)
    (tmp_path / "components/models/mynet.py").write_text("mine")
    before = files(tmp_path)
    code, _, err = dlrun("init")
    assert code == 2 and "mynet.py is there already; nothing was written" in err
    assert files(tmp_path) == before


def test_init_where_nothing_can_be_written_is_a_disk_error(dlrun, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = dlrun("init", str(tmp_path / "file"))
    assert code == 6 and "name another folder: dlrun init DIR" in err
